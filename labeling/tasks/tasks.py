"""Blind tasks: the data shown to annotators, and the mapping back to responses.

Responses are in a seeded random order, under ids that are unique to the task. `Task.data` is everything that an
annotator can see; it contains no model name, score or response id of ours.
"""

import random
from collections.abc import Mapping, Sequence
from typing import Any

from alignment.records import Prompt, Record, Rejected, Response, ResponseSet, stable_id
from labeling.config import Kind
from labeling.errors import TaskError
from labeling.tasks.characters import NO_UNICODE, is_unicode, shown, unicode_only
from labeling.tasks.similarity import nearly_same

CUT_OFF = "cut off here: the limit of length was reached"
CUT_OFF_HTML = f"<em>{CUT_OFF}</em>"  # constants: no text of a model is ever HTML
CODE_HTML = "<samp>code</samp>"
CODE = "code"
LETTERS = "ABCDEFGHI"
FENCE, INDENT = "```", ("    ", "\t")
SPEAKERS = {"system": "Told to the assistant", "user": "Person", "assistant": "Assistant"}


class Task(Record):
    """One task. `responses` maps the task's opaque ids to ours, in the order shown.

    `draft` is the initial text of the answer of a demonstration task, "" for none.
    """

    uid: str
    kind: Kind
    prompt: Prompt
    responses: dict[str, Response]
    draft: str = ""

    @property
    def shown(self) -> tuple[str, ...]:
        """The opaque ids in the order shown."""
        return tuple(self.responses)

    @property
    def cut_off(self) -> bool:
        """Whether an answer was cut off."""
        return any(response.ended is False for response in self.responses.values())

    @property
    def data(self) -> dict[str, Any]:
        """The task as Label Studio stores it, with stand-ins for characters that it cannot store or show."""
        data: dict[str, Any] = shown(self._texts)
        return data

    @property
    def _texts(self) -> dict[str, Any]:
        *before, last = self.prompt.messages
        common: dict[str, Any] = {
            "uid": self.uid,
            "before": [{"who": SPEAKERS[turn.role], "text": turn.content, turn.role: [1]} for turn in before],
            "prompt": last.content,
            "prompt_code": _code(*(turn.content for turn in self.prompt.messages)),
            "facts": [facts] if (facts := facts_of(self.prompt)) else [],
        }
        if self.kind == "demonstration":
            return common | {"draft": self.draft}
        if self.kind == "pairwise":
            sides = zip("ab", self.responses.items(), strict=True)
            return common | {name: value for side, shown in sides for name, value in _side(side, *shown).items()}
        answers = zip(LETTERS, self.responses.items(), strict=False)
        return common | {"responses": [_item(letter, *shown) for letter, shown in answers]}


def _side(side: str, opaque: str, response: Response) -> dict[str, Any]:
    """The fields of one of two answers; its notes are lists of none or one."""
    return {
        f"{side}_id": opaque,
        f"response_{side}": response.text,
        f"{side}_code": _code(response.text),
        f"{side}_cut": [CUT_OFF] if response.ended is False else [],
    }


def _item(letter: str, opaque: str, response: Response) -> dict[str, str]:
    """An answer of a ranking."""
    notes = (CUT_OFF_HTML if response.ended is False else "") + (CODE_HTML if _code(response.text) else "")
    return {"id": opaque, "title": letter, "body": response.text} | ({"html": notes} if notes else {})


def _code(*texts: str) -> list[str]:
    """A list of one if a text has code, which is shown in a fixed face: a fence, or two indented lines."""
    indented = (line for text in texts for line in text.splitlines() if line.startswith(INDENT) and line.strip())
    return [CODE] if any(FENCE in text for text in texts) or len(list(indented)) > 1 else []


def facts_of(prompt: Prompt) -> str:
    """What is known to be true of a prompt: the one part of `meta` that annotators see."""
    facts = prompt.meta.get("facts", "")
    return facts if isinstance(facts, str) else ""


def judged_parts(data: Mapping[str, Any]) -> dict[str, Any]:
    """What annotators judge in a task's data, in one form for all label configs so far, without display marks."""
    parts = {name: value for name, value in data.items() if not name.endswith("_code")}
    parts["facts"] = data.get("facts", [])
    parts["before"] = [{"who": turn.get("who"), "text": turn.get("text")} for turn in _mappings(data.get("before", []))]
    if "response_a" in data:
        return parts | {f"{side}_cut": bool(data.get(f"{side}_cut")) for side in "ab"}
    if "responses" not in data:
        return {"draft": "", **parts}
    items = _mappings(data["responses"])
    return parts | {"responses": [(item.get("id"), item.get("body"), is_cut_off(item)) for item in items]}


def is_cut_off(item: Mapping[str, Any]) -> bool:
    """Whether an answer of a ranking has the note that it was cut off."""
    return str(item.get("html", "")).startswith(CUT_OFF_HTML)


def _mappings(value: Any) -> list[Mapping[str, Any]]:
    return [item for item in value if isinstance(item, Mapping)] if isinstance(value, list) else []


def distinct(responses: Sequence[Response]) -> list[Response]:
    """The responses without near-duplicates of an earlier one."""
    kept: list[Response] = []
    for response in responses:
        if not any(nearly_same(response.text, other.text) for other in kept):
            kept.append(response)
    return kept


def make_task(kind: Kind, prompt: Prompt, responses: Sequence[Response], seed: int) -> Task:
    """One task, in an order drawn from the content and the seed; its uid is a hash of what is shown.

    For a pairwise task with more than two responses, two are drawn. Raises TaskError for fewer than two or more than
    nine distinct responses, and for an empty text.
    """
    choices = distinct(responses)
    _check(kind, prompt, choices)
    rng = random.Random(f"{seed}:{kind}:{prompt.id}:" + ":".join(sorted(r.id for r in choices)))
    if kind == "pairwise":
        choices = rng.sample(choices, 2)
    rng.shuffle(choices)
    facts = facts_of(prompt)
    uid = stable_id("task", kind, prompt.id, prompt.text, *map(_identity, choices), *([facts] if facts else []))
    return Task(uid=uid, kind=kind, prompt=prompt, responses={stable_id("r", uid, r.id): r for r in choices})


def _identity(response: Response) -> str:
    """What makes a response another one on the screen."""
    return f"{response.id}\x1e{response.text}" + ("\x1ecut off" if response.ended is False else "")


def _check(kind: Kind, prompt: Prompt, choices: Sequence[Response]) -> None:
    if not prompt.text.strip():
        raise TaskError("the prompt is empty")
    if not is_unicode([prompt.text, *(response.text for response in choices)]):
        raise TaskError(NO_UNICODE)
    if kind == "demonstration":
        return
    if any(not response.text.strip() for response in choices):
        raise TaskError("a response is empty")
    if len({response.id for response in choices}) < len(choices):
        raise TaskError("two responses share an id")
    if not 2 <= len(choices) <= 9:
        raise TaskError(f"{len(choices)} distinct responses; a task needs 2 to 9")


def build_tasks(kind: Kind, sets: Sequence[ResponseSet], seed: int) -> tuple[list[Task], list[Rejected]]:
    """(Tasks, rejected sets) for response sets; duplicates and sets that cannot be judged are rejected."""
    tasks: dict[str, Task] = {}
    rejected: list[Rejected] = []
    for number, row in enumerate(sets, start=1):
        try:
            task = make_task(kind, row.prompt, row.responses, seed)
            if task.uid in tasks:
                raise TaskError("duplicate of an earlier response set")
        except TaskError as error:
            rejected.append(
                Rejected(file="response sets", line=number, reason=str(error), row=unicode_only(row.model_dump()))
            )
        else:
            tasks[task.uid] = task
    return list(tasks.values()), rejected


def build_writing_tasks(prompts: Sequence[Prompt], drafts: Mapping[str, str] | None = None) -> list[Task]:
    """Writing tasks, one per distinct prompt.

    `drafts` are initial texts of the answer, by prompt id.
    """
    tasks = [make_task("demonstration", prompt, (), seed=0) for prompt in prompts]
    drafted = ((task, (drafts or {}).get(task.prompt.id, "").strip()) for task in tasks)
    with_drafts = (
        task.model_copy(update={"draft": draft, "uid": stable_id("task", task.uid, draft)}) if draft else task
        for task, draft in drafted
    )
    return list({task.uid: task for task in with_drafts}.values())
