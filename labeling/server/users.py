"""Annotator accounts, created through an invitation and the sign-up form, as a person would.

Accounts created by the API, and so by the SDK, have no password and no organisation and cannot log in.
"""

import hashlib
import hmac
import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple
from urllib.parse import urljoin

import httpx
from pydantic import BaseModel, ConfigDict, SecretStr

from labeling.errors import BadCredentials, RequestRefused, ServerUnavailable, UnexpectedAnswer
from labeling.server.client import LabelStudio, expect
from labeling.server.transport import shown_url

LOGIN_PATH = "/user/login/"
TIMEOUT_SECONDS = 60.0


class Account(BaseModel):
    """An annotator's account with its own token."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: int
    email: str
    password: SecretStr
    token: SecretStr


class Member(NamedTuple):
    """An account of the server, and when it was created."""

    id: int
    joined: str


def members(owner: LabelStudio) -> dict[str, Member]:
    """All accounts by lower-case e-mail address."""
    users = expect(owner.get("/api/users"), list, "the list of users")
    return owner.call(lambda: {str(user["email"]).lower(): _member(user) for user in users})


def _member(user: Mapping[str, object]) -> Member:
    joined = str(user.get("date_joined") or "an unknown day")[:16].replace("T", " ")
    return Member(int(str(user["id"])), joined)


def let_annotate(owner: LabelStudio, ids: Iterable[int]) -> None:
    """Let accounts write annotations on a server with our guard. A server without it lets every account."""
    try:
        owner.post("/api/rlhf/annotators", {"ids": sorted(ids)})
    except RequestRefused as error:
        if error.status not in (404, 405):
            raise


def invite_link(owner: LabelStudio) -> str:
    """The URL at which anyone who has it can sign up."""
    invitation = expect(owner.get("/api/invite"), dict, "an invitation")
    return urljoin(f"{owner.url}/", str(invitation["invite_url"]))


def derived_password(secret: str, email: str) -> str:
    """A password derived from `secret`, so that it does not have to be stored."""
    return hmac.new(secret.encode(), email.encode(), hashlib.sha256).hexdigest()[:24]


def ensure_account(owner: LabelStudio, email: str, password: str, first_name: str = "") -> Account:
    """Log in to the account of `email`, or create it through an invitation of `owner`, and let it write annotations.

    Raises BadCredentials when the account exists with another password.
    """
    try:
        with httpx.Client(base_url=owner.url, timeout=TIMEOUT_SECONDS, trust_env=False) as http:
            if not _log_in(http, email, password):
                _sign_up(owner, http, email, password)
                if not _log_in(http, email, password):
                    raise BadCredentials(owner.url, email)
            account = _read_account(owner, http, email, password, first_name)
    except httpx.TransportError as error:
        raise ServerUnavailable(owner.url, error) from error
    let_annotate(owner, [account.id])
    return account


def _form_token(page: httpx.Response) -> str:
    """The CSRF token of the page's form."""
    match = re.search(r'name="csrfmiddlewaretoken"\s+value="([^"]+)"', page.text)
    if page.status_code != 200 or match is None:
        raise UnexpectedAnswer(f"{shown_url(page.request.url)} has no form (status {page.status_code})")
    return match.group(1)


def _submit(http: httpx.Client, path: str, fields: dict[str, str]) -> bool:
    """Submit the form at `path`; True if it was accepted (a redirect), False if it is shown again."""
    page = http.get(path)
    form = fields | {"csrfmiddlewaretoken": _form_token(page)}
    response = http.post(path, data=form, headers={"Referer": str(page.request.url)})
    if response.status_code >= 400:
        raise RequestRefused("POST", shown_url(page.request.url), response.status_code, response.text)
    return response.status_code == 302


def _log_in(http: httpx.Client, email: str, password: str) -> bool:
    http.cookies.clear()
    return _submit(http, LOGIN_PATH, {"email": email, "password": password, "persist_session": "on"})


def _sign_up(owner: LabelStudio, http: httpx.Client, email: str, password: str) -> None:
    fields = {"email": email, "password": password, "how_find_us": "", "elaborate": "", "allow_newsletters": "false"}
    http.cookies.clear()
    if not _submit(http, invite_link(owner), fields):
        raise BadCredentials(owner.url, f"{email} (the account exists with another password, or the form rejected it)")


def _read_account(owner: LabelStudio, http: httpx.Client, email: str, password: str, first_name: str) -> Account:
    response = http.get("/api/current-user/token")
    if response.status_code != 200:
        url = shown_url(response.request.url)
        raise UnexpectedAnswer(f"{url} returned {response.status_code}: {response.text[:200]}")
    token = str(response.json()["token"])
    with LabelStudio(owner.url, token) as client:
        who = client.whoami()
        if first_name and who.get("first_name") != first_name:
            client.call(client.sdk.users.update, who["id"], first_name=first_name)
    return Account(id=int(who["id"]), email=email, password=SecretStr(password), token=SecretStr(token))
