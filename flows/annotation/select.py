"""Selects the responses of a collection: their order, and how many of them the budget covers."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

import numpy as np
from pydantic import ValidationError

from alignment.artifacts import content_digest, stage_key, write_text
from alignment.errors import ArtifactError, ConfigError, DataError
from alignment.paths import is_directory
from alignment.records import Prompt, Record, Rejected, Response, ResponseSet, read_records
from alignment.town.facts import known_facts
from alignment.town.world import World
from flows.home import home_directory
from labeling.config import Kind, LabelingConfig
from labeling.reports.effort import Pace, measured_paces
from labeling.store.store import Store
from labeling.tasks.selection import (
    affordable,
    by_worth,
    disagreement,
    in_random_order,
    interleaved,
    most_disputed_pair,
)
from labeling.tasks.similarity import policy_difference
from labeling.tasks.tasks import distinct

RESPONSES = "responses.jsonl"
FACTS = "facts.json"
MOST_RESPONSES = 9  # of a screen
COLLECTIONS = "collections"


@dataclass(frozen=True)
class Material:
    """The responses that can be judged. `sets` are in order of priority, `worth` is the score behind it, by prompt id.

    `pairs` are the responses to compare when a pairwise task shows two of several. `origins` maps each response to its
    file, or to its position among the samples; `left_out` counts those beyond the limit of a screen.
    """

    sets: list[ResponseSet]
    rejected: list[Rejected] = field(default_factory=list)
    worth: dict[str, float] = field(default_factory=dict)
    pairs: dict[str, tuple[str, str]] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    left_out: int = 0


class Budget(Record):
    """The number of prompts of each kind to open, and the paces that it was computed from."""

    prompts: dict[Kind, int]
    paces: dict[Kind, Pace]


def needed_stages(config: LabelingConfig) -> list[str]:
    """The stages whose outputs are needed to create the tasks."""
    writing = config.demonstrations
    needed = {
        "responses": (config.judged > 0 or writing.draft) and not config.responses,
        "town": config.quality.gold.share > 0 and config.quality.gold.path is None,
        "prompts": writing.prompts > 0 and not writing.draft,
    }
    return [stage for stage, is_needed in needed.items() if is_needed]


def read_material(config: LabelingConfig, responses: Path | None) -> Material:
    """The response sets of the configured files, or of the stage `responses`, in order of priority."""
    if not config.responses:
        assert responses is not None, "a recipe without files of responses has a stage `responses`"
        sets, bad = read_records(responses / RESPONSES, ResponseSet)
        if bad:
            raise ArtifactError(f"{responses} has {len(bad)} rows that are not response sets; remove it and run again")
        return order_material(config, [sets], [])
    files = [_file(path) for path in config.responses]
    read = [read_records(file, ResponseSet) for file in files]
    for file, (good, _) in zip(files, read, strict=True):
        if not good:
            raise DataError(f"{file} has no response sets; see responses.jsonl of a stage `responses` for the format")
    return order_material(config, [good for good, _ in read], [row for _, bad in read for row in bad])


def with_facts(config: LabelingConfig, material: Material, town: Path | None) -> Material:
    """The material with what is true of each prompt, for people who judge a town; else unchanged."""
    sets = [
        row.model_copy(update={"prompt": informed(config, row.prompt, row.responses, town)}) for row in material.sets
    ]
    return replace(material, sets=sets)


def informed(config: LabelingConfig, prompt: Prompt, responses: Iterable[Response], town: Path | None) -> Prompt:
    """The prompt with what is true of it and of the responses, if people judge a town; else unchanged."""
    if town is None or config.annotators != "people":
        return prompt
    facts = known_facts(_world(town), prompt, [response.text for response in responses])
    return prompt.model_copy(update={"meta": {**prompt.meta, "facts": facts}}) if facts else prompt


@cache
def _world(town: Path) -> World:
    return World.load(town / FACTS)


def _file(path: str) -> Path:
    return Path(path) / RESPONSES if is_directory(path) else Path(path)


def order_material(
    config: LabelingConfig, files: Sequence[Sequence[ResponseSet]], rejected: list[Rejected]
) -> Material:
    """The sets of all files, merged by prompt, in order of priority."""
    by_file = [_by_prompt(sets, number, rejected) for number, sets in enumerate(files)]
    sets: dict[str, ResponseSet] = {}
    origins: dict[str, str] = {}
    left_out = 0
    for name in dict.fromkeys(name for file in by_file for name in file):
        sets_of_prompt = [file[name] for file in by_file if name in file]
        responses = interleaved([response_set.responses for response_set in sets_of_prompt])
        _check_unique_ids(name, responses)
        if len(files) > 1:
            kept = distinct(responses)
            responses = kept[:MOST_RESPONSES]
            left_out += len(kept) - len(responses)
        if len(responses) > 1:
            sets[name] = ResponseSet(prompt=sets_of_prompt[0].prompt, responses=tuple(responses))
        for number, file in enumerate(by_file, start=1):
            for position, response in enumerate(file[name].responses if name in file else (), start=1):
                origins.setdefault(response.id, f"file {number}" if len(files) > 1 else f"sample {position}")
    worth, pairs = _worth(config, sets, by_file)
    ordered = _ordered(config, sets, worth)
    return Material(sets=ordered, rejected=rejected, worth=worth, pairs=pairs, origins=origins, left_out=left_out)


def _ordered(config: LabelingConfig, sets: dict[str, ResponseSet], worth: dict[str, float]) -> list[ResponseSet]:
    """The sets in the order in which they are judged."""
    if config.choose.by == "given":
        return list(sets.values())
    if config.choose.by == "random":
        return in_random_order(sets, config.seed)
    return by_worth(sets, worth, config.seed)


def _by_prompt(sets: Sequence[ResponseSet], file: int, rejected: list[Rejected]) -> dict[str, ResponseSet]:
    """The sets of a file by prompt id; a repeated prompt is rejected."""
    sets_by_prompt: dict[str, ResponseSet] = {}
    for line, response_set in enumerate(sets, start=1):
        if sets_by_prompt.setdefault(response_set.prompt.id, response_set) is not response_set:
            reason = f"the prompt {response_set.prompt.id} is repeated in this file"
            rejected.append(Rejected(file=f"responses {file}", line=line, reason=reason, row=response_set.model_dump()))
    return sets_by_prompt


def _check_unique_ids(prompt: str, responses: Sequence[Response]) -> None:
    texts: dict[str, str] = {}
    for response in responses:
        if texts.setdefault(response.id, response.text) != response.text:
            raise DataError(f"two responses to prompt {prompt} have the id {response.id}: make the ids unique")


def _worth(
    config: LabelingConfig, sets: dict[str, ResponseSet], by_file: Sequence[dict[str, ResponseSet]]
) -> tuple[dict[str, float], dict[str, tuple[str, str]]]:
    """The worth of judging each prompt and its most disputed pair, as `choose` requires."""
    if config.choose.by == "policies":
        first_file, second_file = by_file
        texts = {
            name: [[r.text for r in file[name].responses] for file in by_file]
            for name in first_file
            if name in second_file
        }
        return {name: policy_difference(*texts_of_both) for name, texts_of_both in texts.items()}, {}
    if config.choose.reward is None:
        return {}, {}
    from alignment.reward_model.disagreement import member_rewards

    rewards = member_rewards(Path(config.choose.reward), [*sets.values()])
    scores, pairs = {name: np.array(rows) for name, rows in rewards.items()}, {}
    for name, rows in scores.items():
        first, second = most_disputed_pair(rows)
        pairs[name] = (sets[name].responses[first].id, sets[name].responses[second].id)
    return {name: disagreement(rows) for name, rows in scores.items()}, pairs


def within_budget(
    config: LabelingConfig, material: Material, store: Store, responses: Path | None
) -> tuple[LabelingConfig, Budget]:
    """The options limited to the available prompts and to `choose.hours`, and the budget behind that.

    Measured paces change while people work, so the first budget is stored in the home directory and reused.
    """
    ranked = min(config.rankings.prompts, len(material.sets))
    counts: dict[Kind, int] = {
        "ranking": ranked,
        "pairwise": min(config.pairwise.prompts, len(material.sets) - ranked),
    }
    if config.choose.hours is None:
        return config, Budget(prompts=counts, paces=measured_paces(store))
    path = home_directory() / COLLECTIONS / f"{_key(config, responses)}.json"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, _compute_budget(config, counts, measured_paces(store)).model_dump_json(indent=1))
    try:
        budget = Budget.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise ArtifactError(
            f"{path} is not a budget of a collection ({error.errors()[0]['msg']}): remove it"
        ) from error
    return config.with_prompts(budget.prompts), budget


def _compute_budget(config: LabelingConfig, counts: dict[Kind, int], paces: dict[Kind, Pace]) -> Budget:
    assert config.choose.hours is not None
    gold = 1 + config.quality.gold.share
    costs = {kind: config.overlaps[kind] * paces[kind].seconds * gold / 3600 for kind in counts}
    affordable_prompts = affordable(counts, costs, config.choose.hours)
    if not any(affordable_prompts.values()):
        raise ConfigError(f"labeling.choose.hours {config.choose.hours:g} does not cover a single task: increase it")
    return Budget(prompts={kind: affordable_prompts[kind] for kind in counts}, paces=paces)


def _key(config: LabelingConfig, responses: Path | None) -> str:
    """A hash of everything that the selection depends on, except the paces."""
    paths = [*map(Path, config.files.values()), *([responses / RESPONSES] if responses else [])]
    digests = [content_digest(path) for path in paths]
    return stage_key("choice", version=1, config=config.judging, inputs={}, file_digests=digests, seed=0)[:16]
