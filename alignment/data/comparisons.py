"""Stage `comparisons`: human judgements split by prompt, with some annotators held out too.

The reward model is tested on prompts without any training judgement: on judgements of annotators who are in the
training data, and on those of annotators who are not.
"""

import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from alignment.config.stages import ComparisonsConfig
from alignment.data.prompts import hashed_split
from alignment.data.readers import read_comparisons
from alignment.data.rejected import write_rejected
from alignment.data.used_columns import SourceNotes, write_notes
from alignment.errors import DataError
from alignment.journal import Journal
from alignment.records import Comparison, Rejected, read_records, stable_id, write_records

DECISIVE_LEAD = 0.5  # lead of a majority, in judgements of average weight


@dataclass(frozen=True)
class SplitComparisons:
    """Train and both test sets, disjoint by prompt. `aside` has ties, comparisons without weight, and held-out
    annotators' judgements of training prompts."""

    train: list[Comparison]
    heldout_prompts: list[Comparison]
    heldout_annotators: list[Comparison]
    aside: list[Comparison]


def build_comparisons(
    config: ComparisonsConfig,
    out: Path,
    journal: Journal,
    *,
    seed: int,
    labelled: Path | None = None,
    town: Path | None = None,
) -> dict[str, float]:
    """Split judgements from `labelled` (a file that the labelling stage wrote) or from the sources of the recipe."""
    rows: list[Comparison] = []
    rejected: list[Rejected] = []
    if labelled is not None:
        rows, rejected = read_records(labelled, Comparison)
    notes = [(source.path, SourceNotes("comparisons")) for source in config.sources]
    for source, (_, note) in zip(config.sources, notes, strict=True):
        good, bad = read_comparisons(source, town, note)
        rows += good
        rejected += bad
    write_notes(journal, notes)
    write_rejected(rejected, len(rows), config.max_rejected_share, out, "comparisons")
    if config.weights == "none":
        rows = [row.model_copy(update={"weight": 1.0}) for row in rows]
    parts = split_comparisons(rows, config, seed)
    judged = len(parts.train)
    parts = replace(parts, train=aggregated(parts.train, config.aggregate))
    if not parts.train or not parts.heldout_prompts:
        raise DataError(
            f"{len(rows)} comparisons leave {len(parts.train)} for training and {len(parts.heldout_prompts)} for "
            "testing; collect more, or change `comparisons.heldout_share`"
        )
    write_records(out / "comparisons.jsonl", rows)
    for name in ("train", "heldout_prompts", "heldout_annotators", "aside"):
        write_records(out / f"{name}.jsonl", getattr(parts, name))
    counts = {
        "comparisons": len(rows),
        "prompts": len({c.prompt.id for c in rows}),
        "annotators": len({c.annotator_id for c in rows} - {""}),
        "train": len(parts.train),
        "train_judgements": judged,
        "heldout_prompts": len(parts.heldout_prompts),
        "heldout_annotators": len(parts.heldout_annotators),
        "ties": sum(c.strength == 0 for c in rows),
        "rejected": len(rejected),
    }
    journal.log(counts, step=0)
    return {name: float(count) for name, count in counts.items()}


def split_comparisons(rows: Sequence[Comparison], config: ComparisonsConfig, seed: int) -> SplitComparisons:
    """Hold out prompts, preferably those decided by a held-out annotator and by another too, so that both tests are as
    large as possible, and those decided by held-out annotators only (a senior, say) last.

    The assignment of prompts to annotators is independent of their content, so this preference does not bias the test.
    """
    held_annotators = choose_annotators(rows, config.heldout_annotators, seed)
    judged_by: dict[str, set[str]] = {row.prompt.id: set() for row in rows}
    for row in rows:
        if row.strength != 0 and row.weight != 0:
            judged_by[row.prompt.id].add(row.annotator_id)
    if held_annotators:
        order = sorted(judged_by)
        random.Random(f"comparisons-{seed}").shuffle(order)
        order.sort(key=lambda p: (not judged_by[p] - held_annotators, not judged_by[p] & held_annotators))
        held_prompts = set(order[: max(1, round(len(order) * config.heldout_share))])
    else:
        held_prompts = {prompt for prompt in judged_by if hashed_split(prompt, config.heldout_share, seed) == "heldout"}
    parts = SplitComparisons([], [], [], [])
    for row in rows:
        held_prompt, held_annotator = row.prompt.id in held_prompts, row.annotator_id in held_annotators
        if row.strength == 0 or row.weight == 0 or (held_annotator and not held_prompt):
            parts.aside.append(row)
        elif held_prompt:
            (parts.heldout_annotators if held_annotator else parts.heldout_prompts).append(row)
        else:
            parts.train.append(row)
    return parts


def choose_annotators(rows: Sequence[Comparison], count: int, seed: int) -> set[str]:
    """Annotators to hold out: at most `count`, and never more than a third of all.

    Numeric ids sort by value, so that the choice is the same on a server whose ids start elsewhere.
    """
    annotators = sorted({row.annotator_id for row in rows} - {""}, key=lambda name: (len(name), name))
    random.Random(f"annotators-{seed}").shuffle(annotators)
    return set(annotators[: min(count, len(annotators) // 3)])


def aggregated(rows: Sequence[Comparison], how: Literal["each", "majority", "soft"]) -> list[Comparison]:
    """Training comparisons with the judgements of each pair merged; `rows` have no ties.

    With v_i and v_j the summed weights of those who prefer i and j: `majority` is the preferred side with weight 1,
    if it leads by half a judgement or more (v_i - v_j >= 1/2): without weights every lead does, and with them pairs are
    dropped on which equally reliable people differ, or which only an unreliable annotator judged. `soft` is i over j
    with weight v_i / (v_i + v_j) and j over i with v_j / (v_i + v_j), which under Bradley-Terry is cross-entropy with
    that share as the label; the weights of a prompt are then scaled to 1 on average, since the reward model divides by
    the number of its comparisons.
    """
    if how == "each":
        return list(rows)
    by_pair: dict[tuple[str, str, str], list[Comparison]] = defaultdict(list)
    for row in (row for row in rows if row.weight > 0):
        first, second = sorted((row.chosen.id, row.rejected.id))
        by_pair[row.prompt.id, first, second].append(row)
    settled = [row for judgements in by_pair.values() for row in _settled(judgements, how)]
    if how == "majority":
        return settled
    of_prompt: dict[str, list[float]] = defaultdict(list)
    for row in settled:
        of_prompt[row.prompt.id].append(row.weight)
    return [
        row.model_copy(update={"weight": row.weight * len(of_prompt[row.prompt.id]) / sum(of_prompt[row.prompt.id])})
        for row in settled
    ]


def _settled(judgements: Sequence[Comparison], how: str) -> Iterator[Comparison]:
    """The comparison (or two) that replaces all judgements of a pair."""
    sides: dict[str, list[Comparison]] = defaultdict(list)
    for row in judgements:
        sides[row.chosen.id].append(row)
    votes = {side: sum(row.weight for row in same) for side, same in sides.items()}
    total, best = sum(votes.values()), max(votes, key=lambda side: votes[side])
    if how == "soft":
        for side, same in sides.items():
            yield _joined(same, votes[side] / total)
    elif 2 * votes[best] - total >= DECISIVE_LEAD:
        yield _joined(sides[best], 1.0)


def _joined(same: Sequence[Comparison], weight: float) -> Comparison:
    """Equal judgements merged into a comparison; ids of annotations, annotators and tasks are joined by commas."""
    names = ("annotation_id", "annotator_id", "task_uid")
    first = {row.chosen_first for row in same}
    return same[0].model_copy(
        update={
            "id": same[0].id if len(same) == 1 else stable_id("cmp", *(row.id for row in same)),
            "weight": weight,
            "strength": max(1, round(sum(row.strength for row in same) / len(same))),
            "chosen_first": first.pop() if len(first) == 1 else None,
            **{name: ",".join(sorted({getattr(row, name) for row in same})) for name in names},
        }
    )
