"""Tasks that Label Studio offers to nobody, because annotations that do not count fill them.

Label Studio counts every annotation against a task's overlap: those of accounts that nobody named, and those that no
judgement can be read from. Such a task gets an overlap of its own, higher by their number. Nothing is deleted.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from labeling.judgements.judgement import Judgement
from labeling.names import uid_of
from labeling.server.client import LabelStudio


def needed_overlaps(rows: Sequence[Mapping[str, Any]], judgements: Iterable[Judgement], overlap: int) -> dict[int, int]:
    """The overlap, by task id, of each task that would be full before `overlap` of its `judgements` count.

    `rows` are the tasks with all their annotations, as in the store.
    """
    counted = Counter(judgement.task_uid for judgement in judgements)
    needed = {}
    for row in rows:
        valid = counted[uid_of(row)]
        taken = sum(not raw.get("was_cancelled") and not raw.get("ground_truth") for raw in row["annotations"])
        if valid < overlap <= taken:
            needed[int(row["id"])] = overlap + taken - valid
    return needed


def reopen(client: LabelStudio, project: int, needed: Mapping[int, int]) -> int:
    """Raise the overlaps of tasks to those in `needed`; returns how many were lower."""
    if not needed:
        return 0
    listed = client.tasks(project, "overlap", "is_labeled")
    low = [row["id"] for row in listed if row["id"] in needed and _is_full(row, needed[row["id"]])]
    for number in low:
        client.patch(f"/api/tasks/{number}/", {"overlap": needed[number], "is_labeled": False})
    return len(low)


def _is_full(row: Mapping[str, Any], needed: int) -> bool:
    return int(row.get("overlap") or 0) < needed or bool(row.get("is_labeled"))
