"""Guidelines of annotators: a folder of files, of the package or of a team.

    screen.yaml         language, criteria, flags, and the texts of the screens
    guidelines.md       how to judge; `{criteria}` and `{flags}` stand for the lists of screen.yaml
    demonstrations.md   how to write an answer

The package has a folder for each language. A team's folder needs only what it changes; the rest is that of its
language.
"""

import hashlib
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from alignment.bounded import read_bounded
from alignment.plain_yaml import LONGEST_BYTES, plain_yaml
from labeling.config import LANGUAGES, Kind
from labeling.errors import GuidelinesError

SCREEN, JUDGING, WRITING = "screen.yaml", "guidelines.md", "demonstrations.md"
RIGHT_TO_LEFT = ("ar", "fa", "he", "ur")
VERDICT_KEYS = "12345678"
VERSION_CHARACTERS = 8
Name = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z_]*$", max_length=40)]
Text = Annotated[str, StringConstraints(min_length=1, strip_whitespace=True)]
StyleText = Annotated[Text, StringConstraints(pattern=r'^[^"\\<>&\n]*$')]  # is part of a style sheet
Key = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]$")]


class Strict(BaseModel):
    """Frozen; unknown names are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Mark(Strict):
    """What an answer can be marked with; `keys` do so for answer A and for answer B."""

    name: Name
    title: Text
    keys: tuple[Key, Key] | None = None


class Criterion(Mark):
    """A mark of one to five stars; each press of its key adds one."""

    question: Text
    keys: tuple[Key, Key]


class Flag(Mark):
    """A mark that an answer has or has not."""

    meaning: Text


class Labels(Strict):
    """The texts of the screens. `{side}` stands for A or B; `key` names a criterion with its key."""

    guidelines: Text
    keys: Text
    asks: Text
    user: Text
    assistant: Text
    system: Text
    facts: Text
    answer: StyleText
    cut_off: StyleText
    key: Text
    stars: Text
    flags: Text
    verdict: Text
    verdict_missing: Text
    a_3: Text
    a_2: Text
    a_1: Text
    tie: Text
    b_1: Text
    b_2: Text
    b_3: Text
    cannot_judge: Text
    reason: Text
    ask: Text
    ask_here: Text
    rank: Text
    done: Text
    done_missing: Text
    ranked: Text
    unrankable: Text
    ties: Text
    each: Text
    write: Text
    write_here: Text
    write_missing: Text
    prompt: Text
    clear: Text
    unclear: Text
    asks_harm: Text
    keys_pairwise: Text
    keys_ranking: Text
    keys_demonstration: Text
    keys_all: Text

    @model_validator(mode="after")
    def _check_slots(self) -> "Labels":
        slots = {"key": ("{criterion}", "{side}", "{key}"), "stars": ("{side}",), "flags": ("{side}",)}
        for label, needed in slots.items():
            if missing := [slot for slot in needed if slot not in getattr(self, label)]:
                raise ValueError(f"labels.{label} needs {missing[0]}, which the screen replaces")
        choices = [self.a_3, self.a_2, self.a_1, self.tie, self.b_1, self.b_2, self.b_3, self.cannot_judge]
        for group in (choices, [self.ranked, self.unrankable, self.cannot_judge], [self.clear, self.unclear]):
            if len({*group}) < len(group):
                raise ValueError(f"two choices of one question have the same label: {', '.join(group)}")
        return self


class Guidelines(Strict):
    """What annotators are told and asked. `judging` and `writing` are Markdown."""

    language: Annotated[str, StringConstraints(pattern=r"^[a-z]{2,3}(-[A-Za-z0-9]+)*$")] = "en"
    criteria: tuple[Criterion, ...] = Field(min_length=1)
    flags: tuple[Flag, ...] = ()
    labels: Labels
    judging: Text
    writing: Text

    @model_validator(mode="after")
    def _check_names_and_keys(self) -> "Guidelines":
        for what, names in (("criteria", [c.name for c in self.criteria]), ("flags", [f.name for f in self.flags])):
            if twice := _twice(names):
                raise ValueError(f"{what}: two have the name {twice}")
        if twice := _twice((*VERDICT_KEYS, *(key for mark in self.marks for key in mark.keys or ()))):
            raise ValueError(f"the key {twice} is used twice (1 to 8 are those of the verdict)")
        if twice := _twice(flag.title for flag in self.flags):
            raise ValueError(f"flags: two have the title {twice}")
        return self

    @property
    def marks(self) -> tuple[Mark, ...]:
        """Criteria and flags."""
        return (*self.criteria, *self.flags)

    @property
    def direction(self) -> Literal["ltr", "rtl"]:
        """The direction in which the language is written."""
        return "rtl" if self.language.partition("-")[0] in RIGHT_TO_LEFT else "ltr"

    @property
    def version(self) -> str:
        """A short hash of everything that annotators are told and asked."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:VERSION_CHARACTERS]

    def text(self, kind: Kind) -> str:
        """The guidelines for a kind of task, as Markdown."""
        criteria = "\n".join(f"- **{row.title}** - {row.question}" for row in self.criteria)
        flags = "\n".join(f"- **{row.title}** - {row.meaning}" for row in self.flags)
        text = self.writing if kind == "demonstration" else self.judging
        return text.replace("{criteria}", criteria).replace("{flags}", flags)


def _twice(values: Iterable[str]) -> str:
    """The first value that occurs twice, "" if none does."""
    seen: set[str] = set()
    for value in values:
        if value in seen:
            return value
        seen.add(value)
    return ""


def read_guidelines(name: str) -> Guidelines:
    """The guidelines of a language of the package, or in a directory. Raises GuidelinesError with file and reason."""
    return shipped(name) if name in LANGUAGES else _read_directory(Path(name))


@cache
def shipped(language: str) -> Guidelines:
    """The guidelines of the package in one of its languages."""
    folder = files("labeling").joinpath("guidelines", language)
    values = yaml.safe_load(folder.joinpath(SCREEN).read_text(encoding="utf-8"))
    texts = {name: folder.joinpath(file).read_text(encoding="utf-8") for name, file in _TEXTS.items()}
    return Guidelines.model_validate(values | texts)


def copy_guidelines(language: str, directory: Path) -> list[Path]:
    """Write the files of a language of the package into a new directory. Raises GuidelinesError."""
    if language not in LANGUAGES:
        raise GuidelinesError(f"the package has no guidelines in {language!r}; choose from {', '.join(LANGUAGES)}")
    if directory.exists():
        raise GuidelinesError(f"{directory} exists already: name a new directory")
    directory.mkdir(parents=True)
    source = files("labeling").joinpath("guidelines", language)
    paths = [directory / name for name in (SCREEN, JUDGING, WRITING)]
    for path in paths:
        path.write_text(source.joinpath(path.name).read_text(encoding="utf-8"), encoding="utf-8")
    return paths


_TEXTS = {"judging": JUDGING, "writing": WRITING}


def _read_directory(directory: Path) -> Guidelines:
    """The guidelines in a team's directory; what it lacks is that of its language, or English."""
    present = {name: directory / name for name in (SCREEN, JUDGING, WRITING) if (directory / name).is_file()}
    if not present:
        raise GuidelinesError(
            f"{directory} has none of {SCREEN}, {JUDGING} and {WRITING}: name a directory with at least one of them, "
            f"or a language of the package ({', '.join(LANGUAGES)}); `rlhf label guidelines DIRECTORY` writes a copy"
        )
    values = _read_yaml(present[SCREEN]) if SCREEN in present else {}
    language = values.get("language", "en")
    base = shipped(language if language in LANGUAGES else "en")
    texts = {name: _read_text(present[file]) for name, file in _TEXTS.items() if file in present}
    complete: dict[str, Any] = {"criteria": base.criteria, "flags": base.flags, **_texts(base), **values, **texts}
    labels = values.get("labels") or {}
    if not isinstance(labels, Mapping):
        raise GuidelinesError(f"{present[SCREEN]}: labels is no mapping of names to texts")
    complete["labels"] = ({} if language not in LANGUAGES else base.labels.model_dump()) | dict(labels)
    try:
        return Guidelines.model_validate(complete)
    except ValidationError as error:
        raise GuidelinesError(f"{directory / SCREEN}: {_first_problem(error, base)}") from error


def _texts(base: Guidelines) -> dict[str, str]:
    return {"judging": base.judging, "writing": base.writing}


def _read_text(path: Path) -> str:
    try:
        text = read_bounded(path, LONGEST_BYTES).decode("utf-8")
    except (OSError, ValueError) as error:
        raise GuidelinesError(f"{path} cannot be read as UTF-8 text: {error}") from error
    if not text.strip():
        raise GuidelinesError(f"{path} is empty: write the guidelines in it, or remove it to use the package's")
    return text


def _read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; texts of guidelines have files of their own."""
    try:
        values = plain_yaml(_read_text(path))
    except (yaml.YAMLError, ValueError) as error:
        raise GuidelinesError(f"{path} is no valid YAML: {error}") from error
    known = {"language", "criteria", "flags", "labels"}
    if not isinstance(values, dict) or (unknown := sorted(map(str, {*values} - known))):
        what = f"it has {unknown[0]}" if isinstance(values, dict) else "it is no mapping"
        raise GuidelinesError(f"{path}: {what}; it takes language, criteria, flags and labels")
    return values


def _first_problem(error: ValidationError, base: Guidelines) -> str:
    """The first error, with the path of the value and, for a missing label, the English text."""
    problem = error.errors()[0]
    where = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "missing" and problem["loc"][0] == "labels":
        english = getattr(base.labels, str(problem["loc"][1]))
        return f"{where} is missing: translate {english!r}"
    value = "" if problem["type"] == "missing" else f" (it is {str(problem['input'])[:80]!r})"
    message = problem["msg"].removeprefix("Value error, ")
    return f"{where}: {message}{value}" if where else message
