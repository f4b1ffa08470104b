"""Gold tasks: tasks with a known answer, which look like ordinary ones.

Known answers are comparisons ("this response is better than that one"). A prompt with three or more responses can be a
ranking task, of which only the known pairs are graded; any known pair can be a pairwise task. The answer is never
sent to the server.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from alignment.records import Comparison, Rejected, Response
from labeling.config import Kind
from labeling.errors import TaskError
from labeling.tasks.characters import unicode_only
from labeling.tasks.tasks import Task, make_task

Answers = dict[str, tuple[tuple[str, str], ...]]  # by task uid, pairs of response ids, the better one first


@dataclass(frozen=True)
class GoldSet:
    """The gold tasks of a collection by kind, their answers, and rows that no task could be built from."""

    tasks: dict[Kind, list[Task]]
    answers: Answers
    rejected: list[Rejected]


def gold_tasks(
    known: Sequence[Comparison],
    counts: Mapping[Kind, int],
    others: set[str],
    seed: int,
    sampled: Mapping[str, Sequence[Response]] | None = None,
) -> GoldSet:
    """At most `counts` tasks of each kind, at most one per prompt; `others` are the uids of the ordinary tasks.

    Rankings come first, since not every prompt has enough responses for one; a pairwise task takes the pair with the
    greatest strength. A ranking also shows the other responses `sampled` for its prompt (by prompt id), so that it is
    as long as ordinary ones.
    """
    gold = GoldSet({kind: [] for kind in counts}, {}, [])
    by_prompt: dict[str, list[Comparison]] = defaultdict(list)
    for number, row in enumerate(known, start=1):
        if row.strength:
            by_prompt[row.prompt.id].append(row)
        else:
            gold.rejected.append(_unfit(number, "a tie is no answer", row))
    for number, rows in enumerate(by_prompt.values(), start=1):
        responses = {side.id: side for row in rows for side in (row.chosen, row.rejected)}
        kind: Kind = "ranking" if 3 <= len(responses) <= 9 and _wanted(gold, counts, "ranking") else "pairwise"
        if not _wanted(gold, counts, kind):
            continue
        if kind == "pairwise":
            rows = [max(rows, key=lambda row: row.strength)]
            responses = {side.id: side for side in (rows[0].chosen, rows[0].rejected)}
        elif (
            len(more := responses | {response.id: response for response in (sampled or {}).get(rows[0].prompt.id, ())})
            <= 9
        ):
            responses = more
        try:
            task = _task(kind, rows, list(responses.values()), others, seed)
        except TaskError as error:
            gold.rejected.append(_unfit(number, str(error), rows[0]))
            continue
        shown = {response.id for response in task.responses.values()}
        pairs = [(row.chosen.id, row.rejected.id) for row in rows if {row.chosen.id, row.rejected.id} <= shown]
        gold.tasks[kind].append(task)
        gold.answers[task.uid] = tuple(pairs)
    return gold


def _unfit(number: int, reason: str, row: Comparison) -> Rejected:
    return Rejected(file="gold answers", line=number, reason=reason, row=unicode_only(row.model_dump()))


def _wanted(gold: GoldSet, counts: Mapping[Kind, int], kind: Kind) -> bool:
    return len(gold.tasks.get(kind, ())) < counts.get(kind, 0)


def _task(kind: Kind, rows: Sequence[Comparison], responses: Sequence[Response], others: set[str], seed: int) -> Task:
    known = {(row.chosen.id, row.rejected.id) for row in rows}
    if any((worse, better) in known for better, worse in known):
        raise TaskError("the known answers contradict each other")
    task = make_task(kind, rows[0].prompt, responses, seed)
    if task.uid in others:
        raise TaskError("the same task exists as an ordinary task")
    return task
