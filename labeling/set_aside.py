"""Annotations that are set aside before they are parsed: unreadable, too large, or by somebody who cannot be believed.

An annotation that the server cannot send, or that the store does not take, is replaced by a stand-in with its id and
the reason under the key SET_ASIDE. The server's own JSON has no such key, and a client cannot add one.
"""

import math
from collections.abc import Mapping
from typing import Any

SET_ASIDE = "set_aside"
UNREAD = "unread"  # the server failed on it: it is read again later
LONGEST_CHARACTERS = 1_000_000
DEEPEST = 50
GREATEST_INTEGER = 2**63 - 1
KEPT = ("id", "task", "project", "completed_by", "updated_by", "was_cancelled", "created_at", "updated_at")


def stand_in(raw: Mapping[str, Any], reason: str) -> dict[str, Any]:
    """What is kept of an annotation that is not stored: who, when, and the reason."""
    kept = {name: raw.get(name) for name in KEPT} | {"was_cancelled": bool(raw.get("was_cancelled"))}
    return kept | {"result": None, SET_ASIDE: reason}


def unread(number: int, task: int, time: str) -> dict[str, Any]:
    """The stand-in of an annotation that the server cannot send. `time`: of the last change of its task."""
    known = {"id": number, "task": task, "created_at": time, "updated_at": time}
    return stand_in(known, "the server fails on it; delete it in Label Studio") | {UNREAD: True}


def bounded(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The annotation, or its stand-in if it is larger than the store takes."""
    reason = annotation_refusal(raw)
    return stand_in(raw, reason) if reason else dict(raw)


def annotation_refusal(raw: Mapping[str, Any]) -> str:
    """Why an annotation is not stored; "" if it is. A time that is no number is unknown, and no reason."""
    return refusal({name: value for name, value in raw.items() if name != "lead_time"})


def refusal(value: object, longest: int = LONGEST_CHARACTERS) -> str:
    """Why a JSON value is not stored; "" if it is. Its texts and numbers may have `longest` characters in total."""
    waiting: list[tuple[object, int]] = [(value, 0)]
    size = 0
    while waiting:
        item, depth = waiting.pop()
        if depth > DEEPEST:
            return f"nested deeper than {DEEPEST} levels"
        match item:
            case str():
                size += len(item)
            case Mapping():
                waiting += [(inner, depth + 1) for pair in item.items() for inner in pair]
            case list() | tuple():
                waiting += [(inner, depth + 1) for inner in item]
            case float() if not math.isfinite(item):
                return f"a number that is not finite: {item}"
            case int() if abs(item) > GREATEST_INTEGER:
                return "an integer of more than 64 bits"
        size += 2
        if size > longest:
            return f"longer than {longest:,} characters"
    return ""
