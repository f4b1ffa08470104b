"""Annotators' accounts: created on the server, with passwords and tokens in a file that only its owner can read."""

import secrets
from collections.abc import Collection, Container, Iterable, Mapping
from pathlib import Path
from typing import Literal

from pydantic import ConfigDict, Field, ValidationError

from alignment.artifacts import PRIVATE, write_text
from alignment.errors import ArtifactError
from alignment.records import Record
from flows.home import home_directory
from labeling.authors import CREW
from labeling.config import Annotators
from labeling.errors import BadCredentials
from labeling.locks import exclusive_lock
from labeling.server.client import LabelStudio
from labeling.server.users import Member, ensure_account, let_annotate, members

FILE = "annotators.json"
State = Literal["new", "ready", "token changed", "signed up", "own password"]
NOT_CONFIRMED = (
    "account {0} signed up by itself and does not count, because nobody confirmed whose it is: ask the person, then "
    "run `rlhf label open` with --accept {0}"
)


class Account(Record):
    """The secrets of one account."""

    id: int
    password: str = Field(repr=False)
    token: str = Field(repr=False)


class Accounts(Record):
    """All accounts that this home created, by the server's address and the e-mail address.

    `known` are the ids of other people whose judgements count, by the server's address: of those who were named and had
    signed up themselves, and of the owner. `crew` are those of simulated annotators.
    """

    model_config = ConfigDict(hide_input_in_errors=True)

    servers: dict[str, dict[str, Account]] = Field(default_factory=dict)
    known: dict[str, tuple[int, ...]] = Field(default_factory=dict)
    crew: dict[str, tuple[int, ...]] = Field(default_factory=dict)

    def ids(self, url: str, annotators: Annotators = "people") -> frozenset[int]:
        """The accounts of a server whose judgements count in a collection of these annotators."""
        if annotators == "simulated":
            return frozenset(self.crew.get(url, ()))
        people = {*self.known.get(url, ()), *(account.id for account in self.servers.get(url, {}).values())}
        return frozenset(people - {*self.crew.get(url, ())})


def states(owner: LabelStudio, emails: Iterable[str]) -> dict[str, State]:
    """The state of each account; read-only.

    `new`: it does not exist yet. `ready`: created here, and its token is valid. `token changed`: created here, but its
    token is no longer valid. `signed up`: somebody signed up with the invitation link and set the password, and nobody
    has confirmed yet that it is the person's account, so that its judgements do not count. `own password`: they signed
    up too, and they count.
    """
    accounts, existing = _read(), members(owner)
    known, ids = accounts.servers.get(owner.url, {}), accounts.known.get(owner.url, ())
    return {email: _state(owner, known.get(email), existing.get(email.lower()), ids) for email in emails}


def _state(owner: LabelStudio, account: Account | None, member: Member | None, known: Collection[int]) -> State:
    if member is None:
        return "new"
    if account is None:
        return "own password" if member.id in known else "signed up"
    with LabelStudio(owner.url, account.token) as client:
        try:
            client.whoami()
        except BadCredentials:
            return "token changed"
    return "ready"


def sign_ups(owner: LabelStudio, people: Mapping[str, State]) -> dict[str, str]:
    """When the accounts were created that signed up themselves and do not count yet.

    Whoever has the invitation can sign up with any address: that an account has somebody's address does not show that
    it is theirs.
    """
    waiting = [email for email, state in people.items() if state == "signed up"]
    existing = members(owner) if waiting else {}
    return {email: existing[email.lower()].joined for email in waiting if email.lower() in existing}


def ensure_people(owner: LabelStudio, emails: Iterable[str], confirmed: Container[str] = ()) -> dict[str, State]:
    """Create missing accounts, refresh changed tokens, and let the judgements of these accounts count.

    Accounts that signed up themselves count from when a person `confirmed` that they are theirs. Each account is
    written to the file before the next is created. Returns the states before.
    """
    with exclusive_lock(f"accounts {home_directory()}"):
        before = states(owner, emails)
        existing = members(owner)
        waiting = [email for email, state in before.items() if state == "signed up"]
        _remember(owner, [existing[email.lower()].id for email in waiting if email in confirmed])
        for email, state in before.items():
            if state not in ("new", "token changed"):
                continue
            accounts = _read()
            known = accounts.servers.get(owner.url, {})
            password = known[email].password if email in known else secrets.token_urlsafe(12)
            person = ensure_account(owner, email, password)
            account = Account(id=person.id, password=password, token=person.token.get_secret_value())
            _write(accounts.model_copy(update={"servers": accounts.servers | {owner.url: known | {email: account}}}))
    return before


def remember(owner: LabelStudio, ids: Iterable[int] = (), annotators: Annotators = "people") -> frozenset[int]:
    """Let the judgements of these accounts count, and those of the owner; returns all that count with `annotators`.

    The guard of the server is told each time: without it only accounts that were named before could judge.
    """
    with exclusive_lock(f"accounts {home_directory()}"):
        _remember(owner, ids, annotators)
    return known_accounts(owner, annotators)


def _remember(owner: LabelStudio, ids: Iterable[int], annotators: Annotators = "people") -> None:
    accounts = _read()
    people, crew = {*accounts.known.get(owner.url, ())}, {*accounts.crew.get(owner.url, ())}
    if owner.url not in accounts.crew:  # a file of an earlier version has them among the people
        crew = {member.id for email, member in members(owner).items() if email.endswith(CREW) and member.id in people}
    if annotators == "simulated":
        crew |= {*ids}
    people = ({*people, int(owner.whoami()["id"])} | ({*ids} if annotators == "people" else set())) - crew
    known = accounts.known | {owner.url: tuple(sorted(people))}
    changed = accounts.model_copy(update={"known": known, "crew": accounts.crew | {owner.url: tuple(sorted(crew))}})
    if changed != accounts:
        _write(changed)
    let_annotate(owner, {*changed.ids(owner.url), *changed.ids(owner.url, "simulated")})


def known_accounts(owner: LabelStudio, annotators: Annotators = "people") -> frozenset[int]:
    """The accounts whose judgements count: simulated annotators, or the owner and people named in `labeling.people`."""
    ids = _read().ids(owner.url, annotators)
    return ids | {int(owner.whoami()["id"])} if annotators == "people" else ids


def accounts_by_server(annotators: Annotators = "people") -> dict[str, frozenset[int]]:
    """The accounts whose judgements count, by the server's address; a server without any is not among them."""
    accounts = _read()
    return {url: accounts.ids(url, annotators) for url in {*accounts.known, *accounts.servers, *accounts.crew}}


def addresses_by_server() -> dict[str, dict[int, str]]:
    """The e-mail addresses of the accounts that this home created for people, by id, by the server's address."""
    servers = _read().servers
    return {url: {account.id: email for email, account in known.items()} for url, known in servers.items()}


def _write(accounts: Accounts) -> None:
    accounts_file().parent.mkdir(parents=True, exist_ok=True)
    write_text(accounts_file(), accounts.model_dump_json(indent=1) + "\n", PRIVATE)


def accounts_file() -> Path:
    """The file with passwords and tokens."""
    return home_directory() / FILE


def _read() -> Accounts:
    path = accounts_file()
    if not path.exists():
        return Accounts()
    try:
        return Accounts.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise ArtifactError(
            f"{path} cannot be read: {error.errors()[0]['msg']}; restore it, or remove it and set new passwords on the "
            "server"
        ) from error
