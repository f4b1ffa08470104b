"""The author of an annotation: the account that made its last version.

Label Studio stores two accounts. `completed_by` owns the annotation; whoever posts one may name another account there.
`updated_by` saved it last: on creation it is the account of the request, and every later change sets it, the star of a
ground truth too, which leaves the result as it was. Annotations that came with imported tasks have no `updated_by`.
An account is a number; snapshots have an object with `id` and `email`, some exports only the e-mail address.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Account = int | str
AUTHOR = "author"  # key of an annotation whose author was found in its history


def account(value: object) -> Account | None:
    """The account that a field names: its id, else its e-mail address in lower case; None if it names nobody."""
    match value:
        case bool():
            return None
        case int():
            return value
        case str() if value.strip().isdecimal():
            return int(value)
        case str():
            return value.strip().lower() or None
        case Mapping():
            by_id = account(value.get("id"))
            return account(value.get("email")) if by_id is None else by_id
    return None


def owner(raw: Mapping[str, Any]) -> Account | None:
    """The account that the annotation belongs to."""
    return account(raw.get("completed_by"))


def author(raw: Mapping[str, Any]) -> Account | None:
    """The author of an annotation; None if nobody is named, or if another account either changed or only starred it."""
    if AUTHOR in raw:
        return account(raw[AUTHOR])
    first, last = owner(raw), account(raw.get("updated_by"))
    if first is None or last is None:
        return first if last is None else last
    if last == first or type(last) is not type(first):  # an id and an address cannot be compared
        return first
    return None if raw.get("ground_truth") else last


def last_author(versions: Iterable[Mapping[str, Any]]) -> Account | None:
    """The author of the newest version of an annotation. `versions`: the oldest first.

    A version with the result of the one before is no new judgement: something else was changed, such as the star.
    """
    known: Account | None = None
    previous: tuple[object, bool] | None = None
    for raw in versions:
        content = (raw.get("result"), bool(raw.get("was_cancelled")))
        if known is None or content != previous:
            known = author(raw)
        previous = content
    return known


def with_author(versions: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The newest version, with the author if its own fields name another one. `versions`: the oldest first."""
    raw, known = dict(versions[-1]), last_author(versions)
    return raw if author(raw) == known else raw | {AUTHOR: known}


def judges(annotations: Iterable[Mapping[str, Any]]) -> int:
    """How many people judged the task of these annotations; each annotation without a known author is one more."""
    authors = [author(raw) for raw in annotations if not raw.get("was_cancelled")]
    return len({*authors} - {None}) + authors.count(None)
