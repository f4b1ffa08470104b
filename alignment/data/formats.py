"""Named formats, and how the columns of a row become prompts, answers and judgements.

Each format is an entry of `FORMATS`: which column holds what, as `columns` says it in a recipe. With `auto` a row is
read by TRL's columns, else by the first named format whose columns it has.

Chosen and rejected may be whole conversations. What they share is the prompt, and the assistant's turns at which they
part are compared; turns after these answer different conversations and are left out.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from alignment.config.stages import Columns, RowSource, TextSource
from alignment.data.conversations import (
    CONVERSATIONS,
    PROMPTS,
    RESPONSES,
    BadRow,
    Row,
    as_messages,
    columns_of,
    is_answered,
    is_conversation,
    kind_of,
    other_reader,
    parse_transcript,
    short,
)
from alignment.data.files import loads
from alignment.errors import ConfigError
from alignment.records import Message

STRONGEST = 3
EXPORTED = "comparison_id"  # a column that only exported rows have
SYSTEMS = ("system", "system_prompt")
COMPLETIONS = ("completion", "response", "output", "answer")
TEXTS = ("response", "completion", "text", "content", "answer")
SCORES = ("score", "overall_score", "rating", "scores", "ratings")
RANKS = ("rank", "ranks")
ABSENT = object()

FORMATS: dict[str, Columns] = {
    "alpaca": Columns(system="system", prompt="instruction", input="input", completion="output"),
    "dolly": Columns(prompt="instruction", input="context", completion="response"),
    "sharegpt": Columns(system="system", messages="conversations"),
    "orca": Columns(system="system", prompt="question", chosen="chosen", rejected="rejected"),
    "argilla": Columns(prompt="instruction", chosen="chosen_response", rejected="rejected_response"),
    "helpsteer": Columns(prompt="prompt", a="response_1", b="response_2", strength="preference_strength"),
    "helpsteer3": Columns(prompt="context", a="response1", b="response2", strength="overall_preference"),
    "shp": Columns(prompt="history", a="human_ref_A", b="human_ref_B", winner="labels", a_wins=(1,), b_wins=(0,)),
    "arena": Columns(a="conversation_a", b="conversation_b", winner="winner", annotator="judge"),
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
OPTIONAL = ("input", "system", "annotator")  # a row may be without these


@dataclass(frozen=True)
class Judgement:
    """Two answers to the same turns; `cut`: turns that follow them were left out."""

    turns: Sequence[Message]
    chosen: str
    rejected: str
    strength: int = 1
    annotator: str = ""
    cut: bool = False


# --- which columns a row has -----------------------------------------------------------------------------------------


def columns_for(source: RowSource, row: Row, kind: str) -> tuple[str, Columns]:
    """The format of a row, and its columns. `kind` is comparisons, prompts or demonstrations."""
    named = FORMATS.get(source.format)
    if source.format == "scores":
        named = scored_columns(row)
    columns = source.columns if named is None else _replaced(named, source.columns)
    if columns is not None:
        check_kind(source, kind)
        return source.format if named is not None else "columns", columns
    if other := other_reader(row):
        raise BadRow(other)
    for name, columns in _possible(row, kind):
        if suits(columns, kind) and all(look_up(row, column) is not ABSENT for column in required(columns).values()):
            return name, columns
    raise BadRow(f"no {WANTED[kind]} among {columns_of(row)}, nor all columns of a named format; set `columns:`")


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
    """The options of the prompt's columns: its own, a system turn's, and Alpaca's input."""
    asked = (name for name in CONVERSATIONS if is_conversation(row.get(name)) and not is_answered(row[name]))
    prompt = next((name for name in (*PROMPTS, *asked) if name in row), "")
    system = next((name for name in SYSTEMS if name in row), "")
    more = {"input": "input"} if prompt == "instruction" and "input" in row else {}
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
    raise BadRow(f"no {what}: none of {', '.join(names)} among {columns_of(row)}")


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
        raise BadRow(f"no column {path!r} ({option}) among {columns_of(row)}")
    return value


def document_column(row: Row, source: TextSource) -> str:
    """The column of a document: a conversation if there is one, unless the row has a column that the recipe names."""
    if source.text_field in row and source.text_field != TextSource.model_fields["text_field"].default:
        return source.text_field
    return next((name for name in CONVERSATIONS if is_conversation(row.get(name))), source.text_field)


# --- prompts and answers ---------------------------------------------------------------------------------------------


def prompt_turns(row: Row, columns: Columns) -> list[Message]:
    """The turns of the columns of the prompt; none if no column holds it."""
    if not columns.prompt:
        return _system_turn(row, columns)
    turns = as_messages(value_of(row, columns, "prompt"), "user")
    below = look_up(row, columns.input) if columns.input else ABSENT
    if below is not ABSENT and not isinstance(below, str):
        raise BadRow(f"the text below the prompt ({columns.input!r}) is not text but {kind_of(below)}")
    if isinstance(below, str) and below.strip() and turns:
        turns[-1] = turns[-1].model_copy(update={"content": f"{turns[-1].content}\n\n{below.strip()}"})
    return under_system(_system_turn(row, columns), turns)


def under_system(system: Sequence[Message], turns: list[Message]) -> list[Message]:
    """The turns after a system turn that stands elsewhere in the row. Raises BadRow if they begin with another one."""
    if not system or turns[:1] == system:
        return turns
    if turns[:1] and turns[0].role == "system":
        if turns[0].content.strip() != system[0].content.strip():
            raise BadRow(
                f"two different system turns: {short(system[0].content)} outside the conversation, and "
                f"{short(turns[0].content)} in it; remove one, or read the conversation alone by `columns`"
            )
        return turns
    return [*system, *turns]


def _system_turn(row: Row, columns: Columns) -> list[Message]:
    text = look_up(row, columns.system) if columns.system else ABSENT
    if text is ABSENT or (isinstance(text, str) and not text.strip()):
        return []
    if not isinstance(text, str):
        raise BadRow(f"the system turn ({columns.system!r}) is not text but {kind_of(text)}")
    return [Message(role="system", content=text)]


def conversation_turns(row: Row, columns: Columns) -> list[Message]:
    """The turns of the column `messages`, after a system turn of its own column."""
    value = value_of(row, columns, "messages")
    if not isinstance(value, list):
        raise BadRow(f"expected a list of messages under {columns.messages!r}, not {type(value).__name__}")
    return under_system(_system_turn(row, columns), as_messages(value, "user"))


def demonstration_turns(row: Row, columns: Columns) -> tuple[list[Message], str]:
    """The turns before the answer, and the answer."""
    if columns.messages:
        turns = conversation_turns(row, columns)
    else:
        turns = _with_answer(prompt_turns(row, columns), value_of(row, columns, "completion"))
    if len(turns) < 2 or turns[-1].role != "assistant":
        raise BadRow("the conversation does not end with an assistant turn after a user's")
    return turns[:-1], turns[-1].content


def asked_turns(row: Row, columns: Columns) -> list[Message]:
    """The turns of a prompt: up to the last answer of a conversation, or what two conversations share."""
    if columns.messages:
        turns = conversation_turns(row, columns)
        answered = turns[-1:] and turns[-1].role == "assistant"
        if answered and len(turns) < 2:
            raise BadRow("the conversation does not end with an assistant turn after a user's")
        return turns[:-1] if answered else turns
    sides = [name for name in ("chosen", "a") if getattr(columns, name)]
    asked = value_of(row, columns, "prompt") if columns.prompt else None
    if columns.json_turns or (sides and not isinstance(asked, list) and _whole(row, columns, sides[0], asked)):
        return list(_shared(row, columns, (sides[0], "rejected" if sides == ["chosen"] else "b")).turns)
    return prompt_turns(row, columns)


def _whole(row: Row, columns: Columns, side: str, asked: Any) -> bool:
    """Whether a side is a conversation that tells more of the prompt than its column does."""
    return asked is None or isinstance(value_of(row, columns, side), list)


def _with_answer(turns: list[Message], value: Any) -> list[Message]:
    """The turns of a side: an answer to `turns`, or a conversation that repeats them."""
    asked = [_turn_text(turn) for turn in turns if turn.role != "system"]
    if isinstance(value, str) and not asked:
        before, answer = _whole_transcript(value)
        return [*turns, *before, Message(role="assistant", content=answer)]
    side = as_messages(value, "assistant")
    if not side:
        raise BadRow("an empty conversation")
    if side[0].role == "assistant":
        if not asked:
            raise BadRow("the conversation begins with an assistant turn, and no column holds the prompt")
        return [*turns, *side]
    told = [_turn_text(turn) for turn in side if turn.role != "system"]
    if told[: len(asked)] != asked and not (len(asked) == 1 and asked[0] in told):
        raise BadRow("the conversation does not contain the prompt; read it alone by `columns`, without `prompt`")
    return under_system([turn for turn in turns if turn.role == "system"], side)


def _whole_transcript(text: str) -> tuple[list[Message], str]:
    try:
        return parse_transcript(text)
    except BadRow as error:
        raise BadRow(
            f"no prompt: no column holds it, and the answer is no transcript that contains it ({error})"
        ) from None


def _turn_text(turn: Message) -> tuple[str, str]:
    return turn.role, turn.content.strip()


# --- judgements ------------------------------------------------------------------------------------------------------


def judgement(row: Row, columns: Columns) -> Judgement:
    """The judgement of a row with two responses. Raises BadRow for a row that does not hold one."""
    sides = ("chosen", "rejected") if columns.chosen else ("a", "b")
    verdict = _verdict(row, columns)
    shared = _shared(row, columns, sides if verdict >= 0 else (sides[1], sides[0]))
    annotator = look_up(row, columns.annotator) if columns.annotator else ABSENT
    if isinstance(annotator, bytes):
        raise BadRow(f"the annotator ({columns.annotator!r}) is {kind_of(annotator)}")
    return Judgement(
        turns=shared.turns,
        chosen=shared.chosen,
        rejected=shared.rejected,
        strength=abs(verdict),
        annotator="" if annotator is ABSENT else str(annotator),
        cut=shared.cut,
    )


def _shared(row: Row, columns: Columns, sides: tuple[str, str]) -> Judgement:
    """What two sides share, and the answers at which they part."""
    turns = [] if columns.json_turns else prompt_turns(row, columns)
    values = [value_of(row, columns, side) for side in sides]
    if columns.json_turns:
        values = [_turns_in_json(value_of(row, columns, "prompt"), value) for value in values]
    first, second = (_with_answer(turns, value) for value in values)
    pairs = zip(first, second, strict=False)
    shared = next((n for n, (one, other) in enumerate(pairs) if _turn_text(one) != _turn_text(other)), None)
    if shared is None:
        same = "are the same" if len(first) == len(second) else "are one conversation, cut at different turns"
        raise BadRow(f"{sides[0]} and {sides[1]} {same}")
    cut = max(len(first), len(second)) > shared + 1
    transcripts = not columns.prompt and isinstance(values[0], str)
    if not shared or {first[shared].role, second[shared].role} != {"assistant"} or (cut and transcripts):
        raise BadRow(f"{sides[0]} and {sides[1]} do not share the same prompt")
    return Judgement(first[:shared], first[shared].content, second[shared].content, cut=cut)


def _turns_in_json(asked: Any, answered: Any) -> list[dict[str, Any]]:
    """A conversation from two JSON texts: the list of the user's turns, and that of the assistant's."""
    try:
        turns = loads(asked), loads(answered)
        if not all(isinstance(side, list) for side in turns):
            raise TypeError("one is no list")
        pairs = list(zip(*turns, strict=True))
    except (TypeError, ValueError, RecursionError) as error:
        raise BadRow(f"prompt and response are not JSON lists of as many turns: {error}") from error
    return [
        {"role": role, "content": text}
        for pair in pairs
        for role, text in zip(("user", "assistant"), pair, strict=True)
    ]


def _verdict(row: Row, columns: Columns) -> int:
    """How much better the first response is, −3 to 3; 0 is a tie."""
    size = as_number(value_of(row, columns, "strength"), "strength") if columns.strength else None
    if columns.chosen:
        if size is not None and size < 0:
            raise BadRow(f"the strength is {size:g}, but `chosen` is the better: give 0 to 3, or name `a` and `b`")
        return 1 if size is None else _strength(abs(size))
    if columns.winner:
        side = _winner(value_of(row, columns, "winner"), columns)
        if size is not None and bool(side) != bool(size):
            raise BadRow(f"the winner is {('a tie', 'a', 'b')[side]}, but the strength is {size:g}")
        return side if size is None else side * _strength(abs(size))
    if columns.strength:
        assert size is not None
        return -_strength(size)
    first, second = (as_number(value_of(row, columns, option), option) for option in ("score_a", "score_b"))
    if columns.json_turns and first == second:
        _refuse_no_winner(row, first)
    return (first > second) - (first < second)


def _refuse_no_winner(row: Row, won: float) -> None:
    """Raise BadRow where the winner columns of arena-55k name two winners, or none and no tie."""
    tie = row.get("winner_tie")
    if won or (tie is not None and not as_number(tie, "winner_tie")):
        raise BadRow("the columns of the winner name " + ("both responses" if won else "no response and no tie"))


def _strength(size: float) -> int:
    """A strength of 1 to 3 with the sign of `size`, 0 for a tie."""
    if size == 0:
        return 0
    return int(math.copysign(max(1, min(round(abs(size)), STRONGEST)), size))


def _winner(value: Any, columns: Columns) -> int:
    """1 if the value means that a is better, −1 for b, 0 for a tie."""
    wanted = _plain(value)
    for side, values in ((1, (*columns.a_wins, columns.a)), (-1, (*columns.b_wins, columns.b)), (0, columns.tie)):
        if wanted in map(_plain, values):
            return side
    known = f"a_wins {[*columns.a_wins]}, b_wins {[*columns.b_wins]} or tie {[*columns.tie]}"
    raise BadRow(f"{columns.winner!r} is {short(value)}, which is not among {known}")


def _plain(value: Any) -> str:
    """A value as text, so that 1, 1.0 and "1" are the same, and "Tie" and "tie"."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).strip().casefold()


def as_number(value: Any, what: str) -> float:
    """A finite number; text that is one counts, because delimited files hold text. Raises BadRow for anything else."""
    try:
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise ValueError
        result = float(value)
        if not math.isfinite(result):
            raise ValueError
    except (ValueError, OverflowError):
        raise BadRow(f"the {what.replace('_', ' ')} is not a number but {short(value)}") from None
    return result
