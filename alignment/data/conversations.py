"""Parsing of external rows: conversations, transcripts and templates, into prompts and responses.

Invalid rows raise `BadRow` with the reason for `rejected.jsonl`. An empty system turn is none.
"""

import re
from collections.abc import Mapping, Sequence
from string import Formatter
from typing import Any, Literal, TypeGuard

from alignment.errors import ConfigError
from alignment.records import Message, Prompt, Response, stable_id

Row = dict[str, Any]
Role = Literal["system", "user", "assistant"]
ROLES: dict[str, Role] = {
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "bot", "model", "chatgpt", "chatbot", "bard", "bing", "ai"), "assistant"),
    **dict.fromkeys(("system", "developer"), "system"),
}
PROMPTS = ("prompt", "instruction", "question", "input")
CONVERSATIONS = ("messages", "conversations", "conversation")
RESPONSES = ("responses", "completions", "answers", "generations")
TOOL_KEYS = ("tool_calls", "function_call")
FORMATTER = Formatter()
# HelpSteer2: question <extra_id_1>Assistant↵ answer <extra_id_1>User↵ question. Without the role and the end of its
# line it is text: T5 has a sentinel of the same name.
NEMO_MARKER = re.compile(r"<extra_id_1>(User|Assistant)\r?\n")


class BadRow(ValueError):
    """An invalid row; the message is the reason in `rejected.jsonl`."""


class MissingColumnError(BadRow):
    """A row without a column that it needs."""


def make_prompt(messages: Sequence[Message]) -> Prompt:
    """A prompt whose id is a hash of its content."""
    messages = without_empty_system(messages)
    if not messages:
        raise BadRow("an empty prompt")
    for message in messages:
        if not message.content.strip():
            raise BadRow(f"an empty {message.role} turn")
    if all(message.role == "system" for message in messages):
        raise BadRow("a system turn alone, without a user's")
    return Prompt(id=stable_id("p", *(f"{m.role}:{m.content}" for m in messages)), messages=tuple(messages))


def make_response(prompt: Prompt, text: str) -> Response:
    """A response whose id is a hash of its content and the prompt."""
    if not text.strip():
        raise BadRow("an empty response")
    return Response(id=stable_id("r", prompt.id, text.strip()), text=text.strip())


def parse_transcript(transcript: Any) -> tuple[list[Message], str]:
    """Split Anthropic's "\\n\\nHuman: … \\n\\nAssistant: …" into the turns before the last answer, and that answer."""
    if not isinstance(transcript, str):
        raise BadRow(f"expected a transcript, not {kind_of(transcript)}")
    parts = re.split(r"\n\n(Human|Assistant):", "\n\n" + transcript.lstrip())
    if parts[0].strip() or len(parts) < 5:
        raise BadRow("not a transcript of Human and Assistant turns")
    roles = {"Human": "user", "Assistant": "assistant"}
    turns = [Message(role=roles[who], content=text.strip()) for who, text in zip(parts[1::2], parts[2::2], strict=True)]
    if turns[-1].role != "assistant":
        raise BadRow("the transcript does not end with an Assistant turn")
    return turns[:-1], turns[-1].content


def split_messages(value: Any) -> tuple[list[Message], str]:
    """Split a conversation into the turns before the last answer, and that answer."""
    messages = as_messages(value, "user")
    if len(messages) < 2 or messages[-1].role != "assistant":
        raise BadRow("the conversation does not end with an assistant turn after a user's")
    return messages[:-1], messages[-1].content


def as_messages(value: Any, role: str) -> list[Message]:
    """Messages from text, as a turn of `role`, from one message, or from a list of {role, content} or {from, value}.

    Text that is marked as a conversation (`Human:` and `Assistant:`, or NeMo's markers) has several turns.
    """
    if isinstance(value, str):
        return _marked_turns(value) if role == "user" else [Message(role="assistant", content=value)]
    if isinstance(value, Mapping):
        value = [value]
    if not isinstance(value, list) or not value:
        raise BadRow(f"expected text or a list of messages, not {kind_of(value)}")
    return without_empty_system([as_message(message) for message in value])


def without_empty_system(messages: Sequence[Message]) -> list[Message]:
    """The turns without empty system turns, which say nothing."""
    return [message for message in messages if message.role != "system" or message.content.strip()]


def as_message(value: Any) -> Message:
    """A message from {role, content} or {from, value}; other keys are not read. Its content may be a list of texts."""
    if not isinstance(value, Mapping):
        raise BadRow(f"expected a message with `role` and `content`, not {type(value).__name__}")
    role, content = value.get("role", value.get("from")), value.get("content", value.get("value"))
    called = next((key for key in TOOL_KEYS if value.get(key)), None)
    if called:
        raise BadRow(f"a turn with `{called}`: calls of tools cannot be represented")
    if not isinstance(role, str) or role.strip().lower() not in ROLES:
        raise BadRow(f"the role of a turn is {short(role)}; known are {', '.join(sorted(ROLES))}")
    return Message(role=ROLES[role.strip().lower()], content=_content(content))


def _content(value: Any) -> str:
    """The text of a message's content: text, or a list of texts and {type: text, text}."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise BadRow("a turn without content" if value is None else f"a turn's content is {kind_of(value)}")
    return "".join(map(_part, value))


def _part(value: Any) -> str:
    """The text of a part of a message's content."""
    text = value.get("text") if isinstance(value, Mapping) else value
    other = isinstance(value, Mapping) and not str(value.get("type", "text")).endswith("text")
    if other or not isinstance(text, str):
        kind = short(value.get("type")) if isinstance(value, Mapping) else kind_of(value)
        raise BadRow(f"a part of a turn is {kind}, not text")
    return text


def _marked_turns(text: str) -> list[Message]:
    """The turns of a prompt: several where it is a transcript that awaits the Assistant, or has NeMo's markers."""
    if re.match(r"\s*Human:", text) and re.search(r"\n\nAssistant:\s*$", text):
        return parse_transcript(text)[0]
    first, *marked = NEMO_MARKER.split(text)
    if not marked:
        return [Message(role="user", content=text)]
    if marked[-2] == "Assistant" and not marked[-1].strip():  # the prompt awaits this answer
        marked = marked[:-2]
    turns = [("User", first)] if first.strip() else []
    turns += zip(marked[::2], marked[1::2], strict=True)
    return [as_message({"role": role, "content": content.strip()}) for role, content in turns]


def kind_of(value: Any) -> str:
    """The type of a value that should have been another, as it stands in a reason."""
    return "bytes that are not UTF-8" if isinstance(value, bytes) else type(value).__name__


def short(value: Any) -> str:
    """A value as it stands in a reason: at most 60 characters, without control characters."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def columns_of(row: Mapping[str, Any]) -> str:
    """The names of a row's columns, as they stand in a reason."""
    names = sorted(map(str, row))
    more = f" and {len(names) - 30} more" if len(names) > 30 else ""
    return f"{names[:30]}{more}"


def is_conversation(value: Any) -> bool:
    """Whether a value is a list of messages."""
    first = value[0] if isinstance(value, list) and value else None
    return isinstance(first, Mapping) and bool(first.keys() & {"role", "from"})


def is_history(value: Any) -> TypeGuard[list[list[str]]]:
    """Whether a value is a list of pairs of texts: questions and answers before a prompt."""
    return isinstance(value, list) and all(
        isinstance(pair, list) and len(pair) == 2 and all(isinstance(text, str) for text in pair) for pair in value
    )


def system_role(value: Any) -> bool:
    """Whether a value is a list of messages with a system turn that says something."""
    if not is_conversation(value):
        return False
    roles = (
        message.get("role", message.get("from"))
        for message in value
        if isinstance(message, Mapping) and message.get("content", message.get("value"))
    )
    return any(isinstance(role, str) and ROLES.get(role.strip().lower()) == "system" for role in roles)


def is_answered(conversation: list[Any]) -> bool:
    """Whether a conversation ends with an answer, and so is no prompt."""
    last = conversation[-1]
    role = last.get("role", last.get("from")) if isinstance(last, Mapping) else None
    return isinstance(role, str) and ROLES.get(role.strip().lower()) == "assistant"


def other_reader(row: Row) -> str:
    """What reads a row in a form that `auto` does not take; "" for other rows."""
    prompt, keys = row.get("prompt"), row.keys()
    if isinstance(prompt, Mapping) and "replies" in prompt:
        return "a tree of messages with ranked replies: set `format: oasst`"
    if keys >= {"message_id", "parent_id", "text"}:
        return "a single message of a tree: take the file of whole trees, with `format: oasst`"
    if isinstance(prompt, Mapping) and prompt.keys() >= {"id", "messages"} and "chosen" in row:
        return "a comparison as `rlhf label import` and stages write it: set `format: records`"
    talk = row.get("messages")
    if keys >= {"id", "messages", "completion"} and not (is_conversation(talk) and is_answered(row["messages"])):
        return "a demonstration as `rlhf label demonstrations` and stages write it: set `format: records`"
    if keys >= {"data", "annotations"}:
        return "a task of Label Studio: `rlhf label import FILE --format label-studio` reads such files"
    return ""


def only_text(value: Any) -> str:
    """The text of a completion that is text or a single assistant message."""
    if isinstance(value, str):
        return value
    messages = as_messages(value, "assistant")
    if len(messages) != 1 or messages[0].role != "assistant":
        raise BadRow("expected a single assistant message as the answer")
    return messages[0].content


def fill(template: str, row: Row) -> str:
    """Fill "{field}" and "{field[0][sub]}" from a row. Attributes are not reachable: only keys and indices are."""
    try:
        fields = [(field, shape or "") for _, field, shape, _ in Formatter().parse(template) if field is not None]
    except ValueError as error:
        raise ConfigError(f"template {template!r} cannot be read: {error}; write {{{{ for a brace") from error
    for field, shape in fields:
        if re.search(r"\d{4}", shape):
            raise ConfigError(f"template {template!r}: give a width or precision below 1000 for {field!r}")
        if "." in field or "__" in field or "{" in shape:
            raise ConfigError(f"template {template!r}: use keys and indices as in {{field[0][key]}}, not {field!r}")
    try:
        for field, _ in fields:
            if isinstance(FORMATTER.get_field(field, (), row)[0], bytes):
                raise BadRow(f"{field!r} is {kind_of(b'')}")
        return template.format(**row).strip()
    except BadRow:
        raise
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise BadRow(f"template {template!r} does not fit the row: {type(error).__name__} {error}") from error
