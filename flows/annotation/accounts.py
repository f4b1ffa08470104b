"""Annotators' accounts: created on the server, with passwords and tokens in a file that only its owner can read."""

import secrets
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Literal

from pydantic import ConfigDict, Field, ValidationError

from alignment.artifacts import PRIVATE, write_text
from alignment.errors import ArtifactError
from alignment.records import Record
from flows.home import home_directory
from labeling.errors import BadCredentials
from labeling.locks import exclusive_lock
from labeling.server.client import LabelStudio
from labeling.server.users import ensure_account, let_annotate, members

FILE = "annotators.json"
State = Literal["new", "ready", "token changed", "signed up", "own password"]


class Account(Record):
    """The secrets of one account."""

    id: int
    password: str = Field(repr=False)
    token: str = Field(repr=False)


class Accounts(Record):
    """All accounts that this home created, by the server's address and the e-mail address.

    `known` are the ids of other accounts whose judgements count, by the server's address: of people who were named and
    had signed up themselves, of simulated annotators, and of the owner.
    """

    model_config = ConfigDict(hide_input_in_errors=True)

    servers: dict[str, dict[str, Account]] = Field(default_factory=dict)
    known: dict[str, tuple[int, ...]] = Field(default_factory=dict)

    def ids(self, url: str) -> frozenset[int]:
        """The accounts of a server whose judgements count."""
        return frozenset({*self.known.get(url, ()), *(account.id for account in self.servers.get(url, {}).values())})


def states(owner: LabelStudio, emails: Iterable[str]) -> dict[str, State]:
    """The state of each account; read-only.

    `new`: it does not exist yet. `ready`: created here, and its token is valid. `token changed`: created here, but its
    token is no longer valid. `signed up`: the person signed up with the invitation link, set the password, and was not
    named before, so that the judgements do not count yet. `own password`: the same, and they count.
    """
    accounts, existing = _read(), members(owner)
    known, ids = accounts.servers.get(owner.url, {}), accounts.known.get(owner.url, ())
    return {email: _state(owner, known.get(email), existing.get(email.lower()), ids) for email in emails}


def _state(owner: LabelStudio, account: Account | None, number: int | None, known: Collection[int]) -> State:
    if number is None:
        return "new"
    if account is None:
        return "own password" if number in known else "signed up"
    with LabelStudio(owner.url, account.token) as client:
        try:
            client.whoami()
        except BadCredentials:
            return "token changed"
    return "ready"


def ensure_people(owner: LabelStudio, emails: Iterable[str]) -> dict[str, State]:
    """Create missing accounts, refresh changed tokens, and let the judgements of all count. Returns the states before.

    Each account is written to the file before the next is created.
    """
    with exclusive_lock(f"accounts {home_directory()}"):
        before = states(owner, emails)
        existing = members(owner)
        _remember(owner, [existing[email.lower()] for email, state in before.items() if state == "signed up"])
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


def remember(owner: LabelStudio, ids: Iterable[int] = ()) -> frozenset[int]:
    """Let the judgements of these accounts count, and those of the owner; returns all whose judgements count.

    The guard of the server is told each time: without it only accounts that were named before could judge.
    """
    with exclusive_lock(f"accounts {home_directory()}"):
        _remember(owner, ids)
    return known_accounts(owner)


def _remember(owner: LabelStudio, ids: Iterable[int]) -> None:
    accounts = _read()
    known = {*accounts.known.get(owner.url, ()), *ids, int(owner.whoami()["id"])}
    if known != {*accounts.known.get(owner.url, ())}:
        _write(accounts.model_copy(update={"known": accounts.known | {owner.url: tuple(sorted(known))}}))
    let_annotate(owner, {*known, *accounts.ids(owner.url)})


def known_accounts(owner: LabelStudio) -> frozenset[int]:
    """The accounts whose judgements count: the owner, people whom `labeling.people` named, simulated annotators."""
    return _read().ids(owner.url) | {int(owner.whoami()["id"])}


def accounts_by_server() -> dict[str, frozenset[int]]:
    """The accounts whose judgements count, by the server's address; a server without any is not among them."""
    accounts = _read()
    return {url: accounts.ids(url) for url in {*accounts.known, *accounts.servers}}


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
