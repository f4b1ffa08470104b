"""What annotators may send: bodies, filters and names that neither Label Studio's pages nor its exports fail on."""

import json
import math
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any
from unicodedata import normalize

PEOPLE = ("completed_by", "updated_by", "last_created_by", "user")  # fields that name an account
NO = ("", "0", "false", "f", "no", "n", "off", "none", "null")
MOST_FILTERS = 20
DEEPEST = 50
GREATEST_INTEGER = 2**63 - 1
LONGEST_SECONDS = 366 * 86_400.0
ENCODED = 3  # a result in a form is JSON text of JSON text at most
NAMES = ("from_name", "to_name", "type")
HELD = {"Choices": ("choices", (list,)), "TextArea": ("text", (list, str))}  # what exports take out of a value
NO_CONTROLS: Mapping[str, str] = MappingProxyType({})


def values(data: Any, field: str) -> list[Any]:
    """All values of a field of a body: a form may repeat it."""
    if hasattr(data, "getlist"):
        return list(data.getlist(field))
    return [data[field]] if field in data else []


def body_refusal(data: Any, user: int, controls: Mapping[str, str] = NO_CONTROLS) -> str:
    """Why the body of a request by account `user`, JSON or a form, is refused; "" if it is taken.

    `controls` are the types of the controls of an annotation's project, by name.
    """
    if not hasattr(data, "get"):
        return "not an object"
    whole = dict(data.lists()) if hasattr(data, "lists") else data
    if problem := oddity(whole):
        return problem
    for text in (text for value in whole.values() for text in (value if isinstance(value, list) else [value])):
        if isinstance(text, str) and (problem := _text_refusal(text)):
            return problem
    for result in values(data, "result"):
        if problem := _result_refusal(result, controls):
            return problem
    if not all(_is_time(time) for time in values(data, "lead_time")):
        return f"lead_time is no number of seconds up to {LONGEST_SECONDS:.0f}"
    if any(str(value).strip().lower() not in NO for value in values(data, "ground_truth")):
        return "only the owner of this server may mark ground truths"
    for field in PEOPLE:
        if any(value not in (None, "") and str(value) != str(user) for value in values(data, field)):
            return "an annotation is made in one's own name"
    return ""


def _text_refusal(text: str) -> str:
    """Why a field's text is refused; "" if it is taken. Forms, and some fields, hold JSON as text: it has to be plain.

    A text that is no JSON is only a text.
    """
    value: object = text
    for _ in range(ENCODED):
        if not isinstance(value, str):
            break
        try:
            value = json.loads(value)
        except RecursionError:
            return f"nested deeper than {DEEPEST} levels"
        except ValueError:
            return ""
        if problem := oddity(value):
            return problem
    return ""


def _result_refusal(result: Any, controls: Mapping[str, str]) -> str:
    """Why a result, as JSON or as its text, is refused; "" if it is taken."""
    for _ in range(ENCODED):
        if not isinstance(result, str):
            break
        try:
            result = json.loads(result)
        except (ValueError, RecursionError) as error:
            return f"result is not JSON: {error}"
    if result is None:
        return ""
    if not isinstance(result, list):
        return "result is no list"
    return oddity(result) or next(filter(None, (_item_refusal(item, controls) for item in result)), "")


def _item_refusal(item: Any, controls: Mapping[str, str]) -> str:
    """Why an item of a result is refused, on which Label Studio's counts and exports fail; "" if it is taken."""
    if not isinstance(item, Mapping) or not all(isinstance(item.get(name, ""), str) for name in NAMES):
        return "an item of a result is an object whose from_name, to_name and type are texts"
    if item.get("type") == "relation" and "from_name" not in item:
        return ""
    value, control = item.get("value"), controls.get(item.get("from_name", ""), "")
    if not isinstance(value, Mapping):
        return "an item of a result has a value, which is an object"
    key, kinds = HELD.get(control, ("", (object,)))
    if key and not isinstance(value.get(key), kinds):
        return f"the value of {item['from_name']} has {key}"
    return ""


def _is_time(time: Any) -> bool:
    """Whether a time can be averaged with others: two of the largest numbers add up to infinity."""
    if time is None or time == "":
        return True
    try:
        return abs(float(time)) <= LONGEST_SECONDS
    except (TypeError, ValueError, OverflowError):
        return False


def oddity(value: Any) -> str:
    """What is not plain JSON in a value: what databases refuse, or what a page or an export fails on."""
    waiting: list[tuple[Any, int]] = [(value, 0)]
    while waiting:
        item, depth = waiting.pop()
        if depth > DEEPEST:
            return f"nested deeper than {DEEPEST} levels"
        if isinstance(item, str):
            if not item.isascii() and any("\ud800" <= character <= "\udfff" for character in item):
                return "not plain JSON: a lone surrogate"
        elif isinstance(item, Mapping):
            waiting += [(inner, depth + 1) for pair in item.items() for inner in pair]
        elif isinstance(item, list | tuple):
            waiting += [(inner, depth + 1) for inner in item]
        elif isinstance(item, float):
            if not math.isfinite(item):
                return f"not plain JSON: {item}"
        elif isinstance(item, int):
            if abs(item) > GREATEST_INTEGER:
                return "an integer of more than 64 bits"
        elif item is not None:
            return f"not plain JSON: {type(item).__name__}"
    return ""


def account_refusal(data: Any, account: Mapping[str, object]) -> str:
    """Why a change of one's own account is refused: a name that looks like another account's."""
    for field, own in account.items():
        if any(str(value) != str(own) for value in values(data, field)):
            return f"{field} cannot be changed"
    return name_refusal(name for field in ("first_name", "last_name") for name in values(data, field))


def name_refusal(names: Iterable[object]) -> str:
    """Why the names of a person are refused: pages show the address beside them."""
    return "a name is no e-mail address" if any("@" in normalize("NFKC", str(name)) for name in names) else ""


def filter_refusal(items: Iterable[Mapping[str, Any]]) -> str:
    """Why the filters of an annotator, of a request or a tab, are refused; "" if they are not."""
    waiting, count = list(items), 0
    while waiting:
        item, count = waiting.pop(), count + 1
        if count > MOST_FILTERS:
            return f"a query may have {MOST_FILTERS} filters"
        column = str(item.get("filter") or item.get("column")).lower()  # Label Studio makes `__` of its dots
        if "regex" in str(item.get("operator")).lower() or "regex" in column or "__" in column:
            return "only the owner of this server may filter by regular expressions or lookups"
        waiting += [item["child_filter"]] if item.get("child_filter") else []
    return ""
