"""Annotators' accounts: created on the server, with passwords and tokens in a file that only its owner can read."""

import secrets
from collections.abc import Iterable
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
from labeling.server.users import ensure_account, members

FILE = "annotators.json"
State = Literal["new", "ready", "token changed", "own password"]


class Account(Record):
    """The secrets of one account."""

    id: int
    password: str = Field(repr=False)
    token: str = Field(repr=False)


class Accounts(Record):
    """All accounts that this home created, by the server's address and the e-mail address."""

    model_config = ConfigDict(hide_input_in_errors=True)

    servers: dict[str, dict[str, Account]] = Field(default_factory=dict)


def states(owner: LabelStudio, emails: Iterable[str]) -> dict[str, State]:
    """The state of each account; read-only.

    `new`: it does not exist yet. `ready`: created here, and its token is valid. `token changed`: created here, but its
    token is no longer valid. `own password`: the person signed up with the invitation link and set the password.
    """
    known, existing = _read().servers.get(owner.url, {}), members(owner)
    return {email: _state(owner, known.get(email), email.lower() in existing) for email in emails}


def _state(owner: LabelStudio, account: Account | None, exists: bool) -> State:
    if not exists:
        return "new"
    if account is None:
        return "own password"
    with LabelStudio(owner.url, account.token) as client:
        try:
            client.whoami()
        except BadCredentials:
            return "token changed"
    return "ready"


def ensure_people(owner: LabelStudio, emails: Iterable[str]) -> dict[str, State]:
    """Create missing accounts and refresh changed tokens. Returns the states before the change.

    Each account is written to the file before the next is created.
    """
    with exclusive_lock(f"accounts {home_directory()}"):
        before = states(owner, emails)
        for email, state in before.items():
            if state not in ("new", "token changed"):
                continue
            accounts = _read()
            known = accounts.servers.get(owner.url, {})
            password = known[email].password if email in known else secrets.token_urlsafe(12)
            person = ensure_account(owner, email, password)
            account = Account(id=person.id, password=password, token=person.token.get_secret_value())
            accounts = Accounts(servers=accounts.servers | {owner.url: known | {email: account}})
            write_text(accounts_file(), accounts.model_dump_json(indent=1) + "\n", PRIVATE)
    return before


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
