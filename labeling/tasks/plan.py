"""The plan of a collection: its tasks, built without a server."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from alignment.records import Comparison, Prompt, Rejected, ResponseSet
from labeling.config import Kind, LabelingConfig
from labeling.tasks.gold import Answers, gold_tasks
from labeling.tasks.similarity import nearly_same
from labeling.tasks.tasks import Task, build_tasks, build_writing_tasks, distinct


@dataclass(frozen=True)
class Planned:
    """Tasks by kind, gold ones among them, in the order in which they are stored.

    `rejected` are response sets that no task could be built from, `answers` the known answers of gold tasks;
    `collapsed` counts near-duplicates of other responses to the same prompt.
    """

    tasks: dict[Kind, list[Task]]
    rejected: list[Rejected] = field(default_factory=list)
    answers: Answers = field(default_factory=dict)
    collapsed: int = 0


def plan_tasks(
    config: LabelingConfig,
    sets: Sequence[ResponseSet],
    known: Sequence[Comparison] = (),
    pairs: Mapping[str, tuple[str, str]] | None = None,
) -> Planned:
    """Ranking tasks for the first `rankings.prompts` sets, pairwise tasks for the next `pairwise.prompts`.

    `known` are comparisons for gold tasks. `pairs` names the two responses to compare, by prompt id; without it they
    are drawn at random.
    """
    first, second = config.rankings.prompts, config.pairwise.prompts
    sets_by_kind: dict[Kind, Sequence[ResponseSet]] = {
        "ranking": sets[:first],
        "pairwise": [keep_pair(row, pairs or {}) for row in sets[first : first + second]],
    }
    built = {kind: build_tasks(kind, of_kind, config.seed) for kind, of_kind in sets_by_kind.items()}
    uids = {task.uid for tasks, _ in built.values() for task in tasks}
    sampled = {row.prompt.id: row.responses for row in sets}
    gold = gold_tasks(known, config.gold_tasks, uids, config.seed, sampled)
    return Planned(
        tasks={kind: shuffle_in_gold(tasks, gold.tasks[kind], config.seed) for kind, (tasks, _) in built.items()},
        rejected=[row for _, unfit in built.values() for row in unfit] + gold.rejected,
        answers=gold.answers,
        collapsed=sum(len(row.responses) - len(distinct(row.responses)) for row in sets[: first + second]),
    )


def plan_writing(config: LabelingConfig, prompts: Sequence[Prompt], sets: Sequence[ResponseSet]) -> list[Task]:
    """Tasks for the first `demonstrations.prompts` prompts; the draft is the prompt's first response, if any.

    The order of responses is unrelated to their quality.
    """
    drafts = {row.prompt.id: row.responses[0].text for row in sets} if config.demonstrations.draft else {}
    return build_writing_tasks(prompts[: config.demonstrations.prompts], drafts)


def keep_pair(row: ResponseSet, pairs: Mapping[str, tuple[str, str]]) -> ResponseSet:
    """The set reduced to the two responses that `pairs` names; unchanged without a pair, or for near-duplicates."""
    chosen = [response for response in row.responses if response.id in pairs.get(row.prompt.id, ())]
    if len(chosen) != 2 or nearly_same(chosen[0].text, chosen[1].text):
        return row
    return row.model_copy(update={"responses": tuple(chosen)})


def shuffle_in_gold(tasks: Sequence[Task], gold: Sequence[Task], seed: int) -> list[Task]:
    """The tasks with gold tasks shuffled in, so that the position does not reveal them."""
    every = [*tasks, *gold]
    if gold:
        random.Random(f"mixed:{seed}").shuffle(every)
    return every
