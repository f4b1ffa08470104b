"""Annotators' accounts: made on the server, their passwords and tokens kept in a file that only its owner can read."""

import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from alignment.errors import ArtifactError
from flows.home import home_directory
from flows.stack.credentials import write_private
from labeling.errors import BadCredentials
from labeling.locks import exclusively
from labeling.server.client import LabelStudio
from labeling.server.users import ensure_account, members

FILE = "annotators.json"
State = Literal["new", "ready", "token changed", "own password"]


class Kept(BaseModel):
    """What is kept of one account."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: int
    password: str = Field(repr=False)
    token: str = Field(repr=False)


class Book(BaseModel):
    """All accounts that were made here, by the server's address and the e-mail address."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    servers: dict[str, dict[str, Kept]] = {}


def states(owner: LabelStudio, emails: Iterable[str], home: Path | None = None) -> dict[str, State]:
    """How it is about each account, without changing anything.

    `new`: there is none yet. `ready`: made here, and its token works. `token changed`: made here, and its token does
    not work any more. `own password`: the person signed up by the invitation link; nobody else has the password.
    """
    kept, there = _read(home).servers.get(owner.url, {}), members(owner)
    return {email: _state(owner, kept.get(email), email.lower() in there) for email in emails}


def _state(owner: LabelStudio, kept: Kept | None, there: bool) -> State:
    if not there:
        return "new"
    if kept is None:
        return "own password"
    with LabelStudio(owner.url, kept.token) as client:
        try:
            client.whoami()
        except BadCredentials:
            return "token changed"
    return "ready"


def ensure_people(owner: LabelStudio, emails: Iterable[str], home: Path | None = None) -> dict[str, State]:
    """An account for everyone who has none yet; a token that was changed is read anew. Returns the states of before.

    Each account is in the file before the next one is made.
    """
    with exclusively(f"accounts {home_directory(home)}"):
        before = states(owner, emails, home)
        for email, state in before.items():
            if state not in ("new", "token changed"):
                continue
            book = _read(home)
            known = book.servers.get(owner.url, {})
            password = known[email].password if email in known else secrets.token_urlsafe(12)
            made = ensure_account(owner, email, password)
            entry = Kept(id=made.id, password=password, token=made.token.get_secret_value())
            whole = Book(servers=book.servers | {owner.url: known | {email: entry}})
            write_private(book_path(home), whole.model_dump_json(indent=1))
    return before


def book_path(home: Path | None = None) -> Path:
    """Where passwords and tokens are kept."""
    return home_directory(home) / FILE


def _read(home: Path | None) -> Book:
    path = book_path(home)
    if not path.exists():
        return Book()
    try:
        return Book.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise ArtifactError(
            f"{path} cannot be read: {error.errors()[0]['msg']}; restore it, or remove it and set new passwords on the "
            "server"
        ) from error
