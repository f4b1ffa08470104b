"""A middleware for Label Studio's pages: it adds the script that keeps typed text in drafts (`rlhf_drafts.js`)."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

SCRIPT = Path(__file__).with_name("rlhf_drafts.js")
ADDRESS = "rlhf/drafts.js"
END = b"</body>"


class Pages:
    """The middleware. The script comes from the same origin, as the content security policy of the pages wants it."""

    def __init__(self, get_response: Callable[[Any], Any]) -> None:
        from django.conf import settings  # type: ignore[import-not-found]

        self._get_response = get_response
        version = hashlib.sha256(SCRIPT.read_bytes()).hexdigest()[:8]
        self._tag = f'<script src="{settings.HOSTNAME or ""}/{ADDRESS}?v={version}" defer></script>'.encode()

    def __call__(self, request: Any) -> Any:
        """The response, a page with the script."""
        response = self._get_response(request)
        if not response.streaming and response.get("Content-Type", "").startswith("text/html"):
            response.content = with_script(response.content, self._tag)
            if response.has_header("Content-Length"):
                response["Content-Length"] = str(len(response.content))
        return response


def with_script(page: bytes, tag: bytes) -> bytes:
    """The page with the tag at the end of its body; one without a body stays as it is."""
    before, end, after = page.rpartition(END)
    return before + tag + end + after if end else page
