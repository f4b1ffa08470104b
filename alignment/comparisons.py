"""Stage `comparisons`: human judgements split by prompt, with some annotators held out too.

The reward model is tested on prompts that nobody's judgement was trained on, once by annotators whose other judgements
were trained on and once by annotators it never met.
"""

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from alignment.config import ComparisonsConfig
from alignment.corpus import settle_rejected
from alignment.errors import DataError
from alignment.journal import Journal
from alignment.prompts import hashed_split
from alignment.records import Comparison, Rejected, read_records, write_records
from alignment.sources import read_comparisons


@dataclass(frozen=True)
class SplitComparisons:
    """Disjoint by prompt: train against both tests. `aside` holds ties and what held-out annotators said elsewhere."""

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
    for source in config.sources:
        good, bad = read_comparisons(source, town)
        rows += good
        rejected += bad
    settle_rejected(rejected, len(rows), config.max_rejected_share, out)
    parts = split_comparisons(rows, config, seed)
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
        "heldout_prompts": len(parts.heldout_prompts),
        "heldout_annotators": len(parts.heldout_annotators),
        "ties": sum(c.strength == 0 for c in rows),
        "rejected": len(rejected),
    }
    journal.log(counts, step=0)
    return {name: float(count) for name, count in counts.items()}


def split_comparisons(rows: Sequence[Comparison], config: ComparisonsConfig, seed: int) -> SplitComparisons:
    """Hold out prompts, preferably ones that a held-out annotator judged, so that both tests are as large as can be.

    Who was dealt which prompt says nothing of its content, so this preference does not bias the test.
    """
    held_annotators = choose_annotators(rows, config.heldout_annotators, seed)
    judged_by: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        judged_by[row.prompt.id].add(row.annotator_id)
    if held_annotators:
        order = sorted(judged_by)
        random.Random(f"comparisons-{seed}").shuffle(order)
        order.sort(key=lambda prompt: not judged_by[prompt] & held_annotators)
        held_prompts = set(order[: max(1, round(len(order) * config.heldout_share))])
    else:
        held_prompts = {prompt for prompt in judged_by if hashed_split(prompt, config.heldout_share, seed) == "heldout"}
    parts = SplitComparisons([], [], [], [])
    for row in rows:
        held_prompt, held_annotator = row.prompt.id in held_prompts, row.annotator_id in held_annotators
        if row.strength == 0 or (held_annotator and not held_prompt):
            parts.aside.append(row)
        elif held_prompt:
            (parts.heldout_annotators if held_annotator else parts.heldout_prompts).append(row)
        else:
            parts.train.append(row)
    return parts


def choose_annotators(rows: Sequence[Comparison], count: int, seed: int) -> set[str]:
    """Annotators to hold out: at most `count`, and never more than a third of those there are."""
    annotators = sorted({row.annotator_id for row in rows} - {""})
    random.Random(f"annotators-{seed}").shuffle(annotators)
    return set(annotators[: min(count, len(annotators) // 3)])
