"""Parsing of external rows: conversations, transcripts and templates, into prompts and responses.

Invalid rows raise `BadRow` with the reason for `rejected.jsonl`.
"""

import re
from collections.abc import Sequence
from string import Formatter
from typing import Any

from alignment.errors import ConfigError
from alignment.records import Message, Prompt, Response, stable_id

Row = dict[str, Any]


class BadRow(ValueError):
    """An invalid row; the message is the reason in `rejected.jsonl`."""


def make_prompt(messages: Sequence[Message]) -> Prompt:
    """A prompt whose id is a hash of its content."""
    for message in messages:
        if not message.content.strip():
            raise BadRow(f"an empty {message.role} turn")
    return Prompt(id=stable_id("p", *(f"{m.role}:{m.content}" for m in messages)), messages=tuple(messages))


def make_response(prompt: Prompt, text: str) -> Response:
    """A response whose id is a hash of its content and the prompt."""
    if not text.strip():
        raise BadRow("an empty response")
    return Response(id=stable_id("r", prompt.id, text.strip()), text=text.strip())


def parse_transcript(transcript: str) -> tuple[list[Message], str]:
    """Split Anthropic's "\\n\\nHuman: … \\n\\nAssistant: …" into the turns before the last answer, and that answer."""
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
    """Messages from a string, as a single turn of `role`, or from a list of {role, content}."""
    if isinstance(value, str):
        return [Message(role=role, content=value)]
    if not isinstance(value, list) or not value:
        raise BadRow(f"expected text or a list of messages, not {type(value).__name__}")
    return [Message.model_validate(message) for message in value]


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
        if "." in field or "__" in field or "{" in shape:
            raise ConfigError(f"template {template!r}: use keys and indices as in {{field[0][key]}}, not {field!r}")
    try:
        return template.format(**row).strip()
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise BadRow(f"template {template!r} does not fit the row: {type(error).__name__} {error}") from error
