"""The turns, answers and judgements of a row, by the columns that hold them.

Chosen and rejected may be whole conversations. What they share is the prompt, and the assistant's turns at which they
part are compared; turns after these answer different conversations and are left out.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from alignment.config.stages import Columns
from alignment.data.conversations import (
    PROMPTS,
    BadRow,
    Row,
    as_messages,
    is_history,
    kind_of,
    parse_transcript,
    short,
)
from alignment.data.files import loads
from alignment.data.formats import ABSENT, FORMATS, look_up, value_of
from alignment.records import Message

STRONGEST = 3
# columns beside `chosen` and `rejected` that may say the opposite, or that neither is better
SCORED_SIDES = tuple(
    names
    for word in ("score", "rating", "avg_rating", "reward")
    for names in ((f"{word}_chosen", f"{word}_rejected"), (f"chosen_{word}", f"rejected_{word}"))
)
VERDICTS = ("winner", "preference", "status")
TIES = ("tie", "draw")
BAD_LABELS = ("label", "kto_tag")  # of KTO


class NoPromptError(BadRow):
    """An answer without the turns before it."""


@dataclass(frozen=True)
class Judgement:
    """Two answers to the same turns; `cut`: turns that follow them were left out."""

    turns: Sequence[Message]
    chosen: str
    rejected: str
    strength: int = 1
    annotator: str = ""
    cut: bool = False


# --- prompts and answers ---------------------------------------------------------------------------------------------


def prompt_turns(row: Row, columns: Columns) -> list[Message]:
    """The turns of the columns of the prompt; none if no column holds it."""
    if not columns.prompt:
        return _system_turn(row, columns)
    turns = [*_history(row, columns), *as_messages(value_of(row, columns, "prompt"), "user")]
    below = look_up(row, columns.input) if columns.input else ABSENT
    if below is not ABSENT and not isinstance(below, str):
        raise BadRow(f"the text below the prompt ({columns.input!r}) is not text but {kind_of(below)}")
    if isinstance(below, str) and below.strip() and turns:
        turns[-1] = turns[-1].model_copy(update={"content": f"{turns[-1].content}\n\n{below.strip()}"})
    return under_system(_system_turn(row, columns), turns)


def _history(row: Row, columns: Columns) -> list[Message]:
    """Earlier turns, each a question and its answer, before the prompt."""
    pairs = look_up(row, columns.history) if columns.history else ABSENT
    if pairs is ABSENT or pairs == []:
        return []
    if not is_history(pairs):
        raise BadRow(f"the earlier turns ({columns.history!r}) are not a list of pairs of question and answer")
    return [
        Message(role=role, content=text)
        for pair in pairs
        for role, text in zip(("user", "assistant"), pair, strict=True)
    ]


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
    answers = look_up(row, columns.messages or columns.completion)
    last = answers[-1] if isinstance(answers, list) and answers else None
    if isinstance(last, Mapping) and last.get("weight") == 0 and not isinstance(last["weight"], bool):
        raise BadRow("the answer has `weight: 0`, so it is not to be learnt; end the conversation before it")
    if columns.messages:
        turns = conversation_turns(row, columns)
    else:
        turns = _with_answer(prompt_turns(row, columns), value_of(row, columns, "completion"))
    if len(turns) < 2 or turns[-1].role != "assistant":
        raise BadRow("the conversation does not end with an assistant turn after a user's")
    return turns[:-1], turns[-1].content


def refuse_bad_label(row: Row) -> None:
    """Raise BadRow for a completion that its row marks as bad, as KTO's data do."""
    for name in BAD_LABELS:
        if row.get(name) is False or (isinstance(row.get(name), str) and _plain(row[name]) == "false"):
            raise BadRow(
                f"`{name}` is false: the answer is marked as bad; leave such rows out, or name `prompt` and "
                "`completion` in `columns` if the label means something else"
            )


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
            raise NoPromptError("the conversation begins with an assistant turn, and no column holds the prompt")
        return [*turns, *side]
    told = [_turn_text(turn) for turn in side if turn.role != "system"]
    if told[: len(asked)] != asked and not (len(asked) == 1 and asked[0] in told):
        raise BadRow("the conversation does not contain the prompt; read it alone by `columns`, without `prompt`")
    return under_system([turn for turn in turns if turn.role == "system"], side)


def _whole_transcript(text: str) -> tuple[list[Message], str]:
    try:
        return parse_transcript(text)
    except BadRow as error:
        raise NoPromptError(
            f"no prompt: no column holds it, and the answer is no transcript that contains it ({error})"
        ) from None


def _turn_text(turn: Message) -> tuple[str, str]:
    return turn.role, turn.content.strip()


# --- judgements ------------------------------------------------------------------------------------------------------


def judgement(row: Row, columns: Columns, *, settled: bool = False) -> Judgement:
    """The judgement of a row with two responses. Raises BadRow for a row that does not hold one.

    `settled`: the recipe names the chosen column, so that nothing else in the row says which is better.
    """
    sides = ("chosen", "rejected") if columns.chosen else ("a", "b")
    verdict = _verdict(row, columns)
    if columns.chosen and not settled and _is_tie(row, columns):
        verdict = 0
    shared = _shared(row, columns, sides if verdict >= 0 else (sides[1], sides[0]))
    annotator = look_up(row, columns.annotator) if columns.annotator else ABSENT
    if isinstance(annotator, bytes):
        raise BadRow(f"the annotator ({columns.annotator!r}) is {kind_of(annotator)}")
    if isinstance(annotator, list):
        annotator = ",".join(map(str, annotator))
    return Judgement(
        turns=shared.turns,
        chosen=shared.chosen,
        rejected=shared.rejected,
        strength=abs(verdict),
        annotator="" if annotator is ABSENT else str(annotator),
        cut=shared.cut,
    )


def verdicts_beside(row: Row, columns: Columns) -> list[str]:
    """The columns beside `chosen` and `rejected` that say which is better, or that neither is."""
    scores = [name for names in SCORED_SIDES if all(name in row for name in names) for name in names]
    return [name for name in (*scores, *VERDICTS, *TIES) if name in row and name not in columns.names.values()]


def _is_tie(row: Row, columns: Columns) -> bool:
    """Whether the row says elsewhere that neither is better. Raises BadRow where it says that the rejected is."""
    beside = verdicts_beside(row, columns)
    remedy = "; name `chosen` and `rejected` in `columns` if these count"
    tie = any(row[name] is True for name in TIES if name in beside)
    for names in SCORED_SIDES:
        if not {*names} <= {*beside}:
            continue
        try:
            chosen, rejected = (as_number(row[name], name) for name in names)
        except BadRow:
            continue  # no number, so it says nothing of the order
        if chosen < rejected:
            raise BadRow(f"`{names[0]}` is {chosen:g} and `{names[1]}` {rejected:g}, and the former is chosen{remedy}")
        tie = tie or chosen == rejected
    for name in VERDICTS:
        value = _plain(row[name]) if name in beside else ""
        if value == "rejected":
            raise BadRow(f"`{name}` is {short(row[name])}, which contradicts `chosen`{remedy}")
        tie = tie or value in TIES
    return tie


def _first_answers(turns: list[Message], number: int) -> list[Message]:
    """The turns up to an answer, counted from 1."""
    ends = [index for index, turn in enumerate(turns, start=1) if turn.role == "assistant"]
    if number > len(ends):
        raise BadRow(f"the judgement is about answer {number}, but there are {len(ends)}")
    return turns[: ends[number - 1]]


def _judged_turn(row: Row, columns: Columns) -> int:
    """Which of the answers was judged, from 1; 0 for the whole conversations.

    MT-Bench names it under `turn`; beside `anony`, Chatbot Arena's `turn` is the number of turns.
    """
    value = look_up(row, columns.turn) if columns.turn else ABSENT
    if value is ABSENT or (columns.turn == FORMATS["arena"].turn and "anony" in row):
        return 0
    number = as_number(value, "turn")
    if number < 1 or not number.is_integer():
        raise BadRow(f"the turn that was judged is {short(value)}, not 1 or more")
    return int(number)


def _shared(row: Row, columns: Columns, sides: tuple[str, str]) -> Judgement:
    """What two sides share, and the answers at which they part."""
    turns = [] if columns.json_turns else prompt_turns(row, columns)
    values = [value_of(row, columns, side) for side in sides]
    if columns.json_turns:
        values = [_turns_in_json(value_of(row, columns, "prompt"), value) for value in values]
    try:
        first, second = (_with_answer(turns, value) for value in values)
    except NoPromptError as error:
        name = next((name for name in PROMPTS if name in row), "")
        raise BadRow(
            f"{error}; the row has {name!r}: name it as `prompt` in `columns`" if name else str(error)
        ) from None
    judged = _judged_turn(row, columns)
    if judged:
        first, second = (_first_answers(side, judged) for side in (first, second))
    pairs = zip(first, second, strict=False)
    shared = next((n for n, (one, other) in enumerate(pairs) if _turn_text(one) != _turn_text(other)), None)
    if shared is None:
        same = "are the same" if len(first) == len(second) else "are one conversation, cut at different turns"
        raise BadRow(f"{sides[0]} and {sides[1]} {same}")
    cut = max(len(first), len(second)) > shared + 1
    if judged and cut:
        raise BadRow(f"answer {judged} was judged, but the conversations part before it, so its questions differ")
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
        asks, answers = map(len, turns)
        if asks != answers:
            raise ValueError(f"the prompt has {asks}, the response {answers}")
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
    first, second = (_score(value_of(row, columns, option), option) for option in ("score_a", "score_b"))
    if columns.json_turns and first == second:
        _refuse_no_winner(row, first)
    return (first > second) - (first < second)


def _refuse_no_winner(row: Row, won: float) -> None:
    """Raise BadRow where the winner columns of arena-55k name two winners, or none and no tie."""
    tie = row.get("winner_tie")
    if won or (tie is not None and not _score(tie, "winner_tie")):
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


def _score(value: Any, option: str) -> float:
    """A score; True and False, as values or text, are 1 and 0."""
    flags = {"true": 1.0, "false": 0.0}
    flag = flags.get(_plain(value)) if isinstance(value, bool | str) else None
    return as_number(value, option) if flag is None else flag


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
