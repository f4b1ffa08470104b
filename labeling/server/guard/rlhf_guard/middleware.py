"""The middleware itself: what is checked before Label Studio sees a request."""

import os
import sys
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from .accounts import guard_accounts
from .browsers import COOKIES, PROGRAMS, PROGRAMS_HEADERS, elsewhere, hold, origin_refusal
from .connections import on_event
from .passwords import MINUTE_SECONDS, Attempts, is_log_in


class Guard:
    """The middleware. It is set up with the first handler, when all of Label Studio is loaded."""

    ready = armed = False

    def __init__(self, get_response: Callable[[Any], Any]) -> None:
        self._get_response = get_response
        self._page_host = os.environ.get("RLHF_PAGE_HOST", "").lower()
        self._attempts = Attempts()
        if not Guard.ready:
            guard_accounts()
            hold(self._page_host)
            Guard.ready = True

    def __call__(self, request: Any) -> Any:
        """The response. Connections are guarded from the first request on: starting the server asks its own port."""
        from django.conf import settings  # type: ignore[import-not-found]

        if not Guard.armed:
            Guard.armed = True
            if settings.SSRF_PROTECTION_ENABLED:
                sys.addaudithook(on_event)
        if elsewhere(self._page_host, request.META):
            return _address_for_programs(request)
        public = urlsplit(settings.HOSTNAME or "").netloc
        session = COOKIES[0] in request.COOKIES
        if reason := origin_refusal(request.method, request.path, request.META, public, session):
            return _text(reason, 403)
        if is_log_in(request.method, request.path):
            return self._log_in(request)
        return self._get_response(request)

    def _log_in(self, request: Any) -> Any:
        """The response to a password. An attempt counts until it succeeds, so that many at once are counted too."""
        account = request.POST.get("email") or request.POST.get("username") or ""
        who = (request.META.get("REMOTE_ADDR", ""), account.strip().lower()[:256])
        if not self._attempts.begin(who):
            response = _text("too many wrong passwords: wait a minute", 429)
            response["Retry-After"] = str(int(MINUTE_SECONDS))
            return response
        response = self._get_response(request)
        if response.status_code != 200:  # the form again: a wrong password
            self._attempts.forget(who)
        return response


def _text(reason: str, status: int) -> Any:
    from django.http import HttpResponse  # type: ignore[import-not-found]

    return HttpResponse(reason, status=status, content_type="text/plain")


def _address_for_programs(request: Any) -> Any:
    """The answer to a browser under another host name: no page of Label Studio, and old cookies are removed."""
    from django.http import HttpResponse

    response = HttpResponse(PROGRAMS, status=403, headers=PROGRAMS_HEADERS)
    for cookie in COOKIES:
        if cookie in request.COOKIES:
            response.delete_cookie(cookie)
    return response
