"""Named formats, and which columns of a row hold what.

Each format is an entry of `FORMATS`: which column holds what, as `columns` says it in a recipe. With `auto` a row is
read by TRL's columns, else by the first named format whose columns it has.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

from alignment.config.stages import Columns, RowSource, TextSource
from alignment.data.conversations import (
    CONVERSATIONS,
    PROMPTS,
    RESPONSES,
    BadRow,
    MissingColumnError,
    Row,
    columns_of,
    is_answered,
    is_conversation,
    is_history,
    other_reader,
    system_role,
)
from alignment.errors import ConfigError

EXPORTED = "comparison_id"  # a column that only exported rows have
SYSTEMS = ("system", "system_prompt")
COMPLETIONS = ("completion", "response", "output", "answer")
TEXTS = ("response", "completion", "text", "content", "answer")
SCORES = ("score", "overall_score", "rating", "scores", "ratings")
RANKS = ("rank", "ranks")
ABSENT = object()

FORMATS: dict[str, Columns] = {
    "alpaca": Columns(system="system", history="history", prompt="instruction", input="input", completion="output"),
    "dolly": Columns(prompt="instruction", input="context", completion="response"),
    "sharegpt": Columns(system="system", messages="conversations"),
    "orca": Columns(system="system", prompt="question", chosen="chosen", rejected="rejected"),
    "argilla": Columns(prompt="instruction", chosen="chosen_response", rejected="rejected_response"),
    "helpsteer": Columns(prompt="prompt", a="response_1", b="response_2", strength="preference_strength"),
    "helpsteer3": Columns(prompt="context", a="response1", b="response2", strength="overall_preference"),
    "shp": Columns(prompt="history", a="human_ref_A", b="human_ref_B", winner="labels", a_wins=(1,), b_wins=(0,)),
    "arena": Columns(a="conversation_a", b="conversation_b", winner="winner", annotator="judge", turn="turn"),
    "arena-55k": Columns(
        prompt="prompt",
        a="response_a",
        b="response_b",
        score_a="winner_model_a",
        score_b="winner_model_b",
        json_turns=True,
    ),
    "pku": Columns(
        prompt="prompt", a="response_0", b="response_1", winner="better_response_id", a_wins=(0,), b_wins=(1,)
    ),
    "webgpt": Columns(prompt="question.full_text", a="answer_0", b="answer_1", score_a="score_0", score_b="score_1"),
    "summarize-from-feedback": Columns(
        prompt="info.post",
        a="summaries.0.text",
        b="summaries.1.text",
        winner="choice",
        a_wins=(0,),
        b_wins=(1,),
        annotator="worker",
    ),
    "ultrafeedback": Columns(prompt="instruction", responses="completions", text="response", score="overall_score"),
    "nectar": Columns(prompt="prompt", responses="answers", text="answer", rank="rank"),
}
SCORED = Columns(prompt="prompt", responses="responses")  # what format `scores` has at least
READERS = {  # formats without columns, and what they hold
    "hh": ("prompts", "comparisons"),
    "template": ("prompts", "demonstrations"),
}
OPTIONAL = ("input", "system", "history", "annotator", "turn")  # a row may be without these
VARIANTS = {"summarize-from-feedback": ("prompt", "info.article")}  # another column, in rows without the format's own


# --- which columns a row has -----------------------------------------------------------------------------------------


def columns_for(source: RowSource, row: Row, kind: str) -> tuple[str, Columns]:
    """The format of a row, and its columns. `kind` is comparisons, prompts or demonstrations."""
    named = FORMATS.get(source.format)
    if source.format == "scores":
        named = scored_columns(row)
    columns = source.columns if named is None else _replaced(named, source.columns)
    if columns is not None:
        check_kind(source, kind)
        if named is None:
            return "columns", _with_system(columns, row)
        return source.format, _variant(source.format, columns, row)
    if other := other_reader(row):
        raise BadRow(other)
    for name, possible in _possible(row, kind):
        columns = _variant(name, possible, row)
        if suits(columns, kind) and all(look_up(row, column) is not ABSENT for column in required(columns).values()):
            return name, columns
    raise MissingColumnError(
        f"no {WANTED[kind]} among {columns_of(row)}, nor all columns of a named format; set `columns:`"
    )


def _variant(name: str, columns: Columns, row: Row) -> Columns:
    """The columns of a named format, with another column where the row lacks the format's own."""
    option, other = VARIANTS.get(name, ("", ""))
    if not option or getattr(columns, option) != getattr(FORMATS[name], option):
        return columns
    lacks = look_up(row, getattr(columns, option)) is ABSENT and look_up(row, other) is not ABSENT
    return _replaced(columns, _columns(**{option: other})) if lacks else columns


def _with_system(columns: Columns, row: Row) -> Columns:
    """`columns` of a recipe that name no system turn, with the row's column of it.

    A system turn in the conversations that the recipe names comes first.
    """
    names = columns.names
    name = next((name for name in SYSTEMS if isinstance(row.get(name), str)), "")
    if columns.system or not name or name in names.values():
        return columns
    turns = (look_up(row, names[option]) for option in ("messages", "prompt", "chosen", "a") if option in names)
    return columns if any(map(system_role, turns)) else _replaced(columns, _columns(system=name))


def check_kind(source: RowSource, kind: str) -> None:
    """Raise ConfigError if the format or the columns of a source hold no records of a kind, whatever its rows are."""
    if kind not in READERS.get(source.format, (kind,)):
        raise ConfigError(f"{source.path}: format '{source.format}' holds no {kind}; `rlhf data check` shows what does")
    if source.format == "template" and kind == "demonstrations" and not source.completion:
        raise ConfigError(f"{source.path}: format 'template' needs `completion` too, as in completion: '{{answer}}'")
    named = SCORED if source.format == "scores" else FORMATS.get(source.format)
    columns = source.columns if named is None else _replaced(named, source.columns)
    if columns is not None and not suits(columns, kind):
        what = "`columns`" if named is None else f"format '{source.format}'"
        raise ConfigError(f"{source.path}: {what} holds no {kind}; they need {NEEDED[kind]}")


NEEDED = {
    "comparisons": "columns.chosen and rejected; a and b with winner, strength, or score_a and score_b; or responses",
    "prompts": "columns.prompt or messages",
    "demonstrations": "columns.messages, or prompt and completion",
}
WANTED = {
    "comparisons": "`chosen` and `rejected`",
    "prompts": "`prompt` or `messages`",
    "demonstrations": "`messages` or `prompt` and `completion`",
}


@lru_cache(maxsize=1024)
def _columns(**options: str) -> Columns:
    return Columns(**options)


def _possible(row: Row, kind: str) -> Iterator[tuple[str, Columns]]:
    """TRL's columns, then those of the named formats, then of several scored responses."""
    prompt = _prompt_columns(row)
    if kind != "comparisons":
        system = {"system": prompt["system"]} if "system" in prompt else {}
        yield "dolly", _replaced(FORMATS["dolly"], _columns(**system))  # its context is part of the question
    if kind == "comparisons":
        yield "chosen and rejected", _columns(chosen="chosen", rejected="rejected", **prompt)
    else:
        for name in CONVERSATIONS:
            if is_conversation(row.get(name)):
                yield name, _columns(messages=name, **({"system": prompt["system"]} if "system" in prompt else {}))
    if kind == "demonstrations" and "prompt" in prompt:
        for name in COMPLETIONS:
            yield f"{prompt['prompt']} and {name}", _columns(completion=name, **prompt)
    if kind == "prompts":
        if isinstance(row.get("chosen"), list) and not isinstance(row.get(prompt.get("prompt", "")), list):
            yield "chosen and rejected", _columns(chosen="chosen", rejected="rejected", **prompt)
        yield from ((name, columns) for name, columns in FORMATS.items() if columns.a)
        if "prompt" in prompt:
            yield prompt["prompt"], _columns(**prompt)
        yield "chosen and rejected", _columns(chosen="chosen", rejected="rejected")
    yield from FORMATS.items()
    if any(isinstance(row.get(name), list) for name in RESPONSES):
        yield "scores", scored_columns(row)


def _prompt_columns(row: Row) -> dict[str, str]:
    """The options of the prompt's columns: its own, a system turn's, Alpaca's input, and LLaMA-Factory's history."""
    asked = (name for name in CONVERSATIONS if is_conversation(row.get(name)) and not is_answered(row[name]))
    prompt = next((name for name in (*PROMPTS, *asked) if name in row), "")
    system = next((name for name in SYSTEMS if name in row), "")
    more = {"input": "input"} if prompt == "instruction" and "input" in row else {}
    if prompt and is_history(row.get("history")):
        more["history"] = "history"
    return {**({"prompt": prompt} if prompt else {}), **({"system": system} if system else {}), **more}


def scored_columns(row: Row) -> Columns:
    """The columns of a prompt with several scored or ranked responses. Raises BadRow for a row without them."""
    prompt = _first_of(row, PROMPTS, "prompt")
    responses = _first_of(row, RESPONSES, "responses")
    items = row[responses] if isinstance(row[responses], list) else []
    keys = dict.fromkeys(key for item in items if isinstance(item, Mapping) for key in item)
    text = next((name for name in TEXTS if name in keys), "")
    beside = [name for name in row if isinstance(row[name], list)]
    score = next((name for name in SCORES if name in keys or name in beside), "")
    rank = next((name for name in RANKS if name in keys or name in beside), "")
    system = next((name for name in SYSTEMS if name in row), "")
    return Columns(prompt=prompt, responses=responses, text=text, score=score, rank=rank, system=system)


def _first_of(row: Row, names: Sequence[str], what: str) -> str:
    for name in names:
        if name in row:
            return name
    raise MissingColumnError(f"no {what}: none of {', '.join(names)} among {columns_of(row)}")


@lru_cache(maxsize=1024)
def _replaced(named: Columns, other: Columns | None) -> Columns:
    """A named format with the columns that the recipe sets."""
    if other is None:
        return named
    default = _columns()
    changed = {name: value for name, value in other if value != getattr(default, name)}
    return Columns.model_validate({**named.model_dump(), **changed})


def suits(columns: Columns, kind: str) -> bool:
    """Whether columns say enough for records of a kind."""
    judged = columns.winner or columns.strength or (columns.score_a and columns.score_b)
    pair = bool(columns.chosen or columns.responses or (columns.a and judged))
    if kind == "comparisons":
        return pair
    if kind == "demonstrations":
        return bool(columns.messages or (columns.completion and columns.prompt))
    return bool(columns.messages or columns.prompt or columns.chosen or columns.a)


def required(columns: Columns) -> dict[str, str]:
    """The columns that a row must have, by option."""
    return {option: column for option, column in columns.names.items() if option not in OPTIONAL}


def look_up(row: Mapping[str, Any], path: str) -> Any:
    """The value of a column, or within one, as in `question.full_text` or `answers.0.text`; ABSENT if there is none."""
    if path in row:
        return row[path]
    value: Any = row
    for part in path.split("."):
        if isinstance(value, Mapping) and part in value:
            value = value[part]
        elif (
            isinstance(value, list) and part.isascii() and part.isdigit() and len(part) < 10 and int(part) < len(value)
        ):
            value = value[int(part)]
        else:
            return ABSENT
    return value


def value_of(row: Row, columns: Columns, option: str) -> Any:
    """The value of a column that a row must have."""
    path = getattr(columns, option)
    value = look_up(row, path)
    if value is ABSENT:
        raise MissingColumnError(f"no column {path!r} ({option}) among {columns_of(row)}")
    return value


def document_column(row: Row, source: TextSource) -> str:
    """The column of a document: a conversation if there is one, unless the row has a column that the recipe names."""
    if source.text_field in row and source.text_field != TextSource.model_fields["text_field"].default:
        return source.text_field
    return next((name for name in CONVERSATIONS if is_conversation(row.get(name))), source.text_field)
