"""The author of an annotation: the account that made its last version.

Label Studio stores two accounts. `completed_by` owns the annotation; whoever posts one may name another account there.
`updated_by` saved it last: on creation it is the account of the request, and every later change sets it, the star of a
ground truth too, which leaves the result as it was. Annotations that came with imported tasks have no `updated_by`.
Such an annotation, and one that another account saved before its owner ever did, may be in the name of somebody else.
An account is a number; snapshots have an object with `id` and `email`, some exports only the e-mail address.
"""

from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Any

from labeling.set_aside import SET_ASIDE

Account = int | str
CREW = "@crew.rlhf.local"  # end of the addresses of simulated annotators
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


def doubt(versions: Iterable[Mapping[str, Any]]) -> str:
    """Why the account that an annotation of a server names cannot be believed; "" if it can. The oldest version first.

    Whoever posts an annotation may write any account into `completed_by`; `updated_by` is the server's. The owner is
    believed once a version was saved by the owner, and whoever changes such an annotation is believed as its editor.
    """
    reason, owned, previous = "", False, None
    for raw in versions:
        content = (raw.get("result"), bool(raw.get("was_cancelled")))
        first, last = owner(raw), account(raw["updated_by"] if "updated_by" in raw else raw.get("completed_by"))
        by_owner = last is not None and first in (None, last)
        owned = owned or by_owner
        if by_owner:
            reason = ""
        elif content != previous:
            reason = "" if owned and last is not None else _in_the_name_of(first, last)
        previous = content
    return reason


def _in_the_name_of(first: Account | None, last: Account | None) -> str:
    if last is None:
        return f"in the name of account {first}, but imported with a task, or saved by an account that was deleted"
    return (
        f"in the name of somebody else: account {last} saved it, and it names account {first}, whose judgement it "
        "becomes when that account opens it and presses Update"
    )


def with_author(versions: Sequence[Mapping[str, Any]], known: Container[Account] | None = None) -> dict[str, Any]:
    """The newest version, with the author if its own fields name another one. `versions`: the oldest first.

    It is set aside if its author cannot be believed, or is none of the accounts `known`.
    """
    raw, person = dict(versions[-1]), last_author(versions)
    if SET_ASIDE in raw:
        return raw
    raw = raw if author(raw) == person else raw | {AUTHOR: person}
    reason = doubt(versions) or (_unknown(raw) if known is not None and person not in known else "")
    return raw | {SET_ASIDE: reason} if reason else raw


def _unknown(raw: Mapping[str, Any]) -> str:
    """The reason to set aside an annotation of an account that nobody named."""
    person = author(raw)
    name = str(raw.get("created_username") or "").rpartition(",")[0].strip() if owner(raw) == person else ""
    if CREW in name:
        return f"account {person} ({name}) is a simulated annotator, and people are asked here"
    return (
        f"account {person}{f' ({name})' if name else ''} is no annotator of this collection: "
        "to count people's judgements, name the address in labeling.people and run `rlhf label open`"
    )


def counted(annotations: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The annotations that are not set aside."""
    return [raw for raw in annotations if SET_ASIDE not in raw]


def judges(annotations: Iterable[Mapping[str, Any]]) -> int:
    """How many people judged the task of these annotations; each annotation without a known author is one more."""
    authors = [author(raw) for raw in counted(annotations) if not raw.get("was_cancelled")]
    return len({*authors} - {None}) + authors.count(None)
