"""One-time links into Prefect's pages: `rlhf up` and `rlhf status` print http://HOST:PORT/enter#CODE.

A code is signed with Prefect's password, expires, and is exchanged for the password once. It stands behind the # of the
address, so that no browser sends it in a request line or as the referring page.
"""

import secrets
import time

from itsdangerous import BadSignature, URLSafeTimedSerializer

from flows.stack.services import Site

SECONDS = 600
PATH = "/enter"


def link(site: Site) -> str:
    """A link that opens Prefect's pages once, within ten minutes; "" for a stack without Prefect or its password."""
    if not site.prefect_auth or not site.url("prefect"):
        return ""
    return f"{site.url('prefect')}{PATH}#{code(site.prefect_auth)}"


def code(auth: str) -> str:
    """A new code for the password `auth`."""
    return _signer(auth).dumps(secrets.token_urlsafe(9))


class Codes:
    """The codes that a server accepts: signed with its password, issued while it runs, not used yet."""

    def __init__(self, auth: str) -> None:
        """`auth` is the server's USER:PASSWORD."""
        self._signer = _signer(auth)
        self._started = int(time.time())
        self._used: dict[str, float] = {}

    def use(self, text: str) -> bool:
        """Whether the code is valid now; it is not afterwards."""
        try:
            nonce, issued = self._signer.loads(text, max_age=SECONDS, return_timestamp=True)
        except BadSignature:
            return False
        if issued.timestamp() < self._started or nonce in self._used:
            return False
        now = time.time()
        self._used = {used: at for used, at in self._used.items() if now - at <= SECONDS + 1} | {nonce: now}
        return True


def _signer(auth: str) -> URLSafeTimedSerializer:
    return URLSafeTimedSerializer(auth, salt="rlhf.enter", signer_kwargs={"key_derivation": "hmac"})
