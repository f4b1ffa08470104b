"""The HTTP transport under the SDK: retries safe requests and maps refusals to errors."""

import time

import httpx

from labeling.errors import BadCredentials, RequestRefused, ServerUnavailable

NEVER_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)


class RetryingTransport(httpx.BaseTransport):
    """Sends a request up to `attempts` times; returns only responses with a status below 500, fully read.

    A request that may have taken effect is retried only if that is harmless: a POST only if it never reached the server
    or got a 503, all others after any network error or 5xx.

    `url` is the server's address for error messages. Raises ServerUnavailable when no attempt succeeds.
    """

    def __init__(self, url: str, transport: httpx.BaseTransport, attempts: int, backoff_seconds: float) -> None:
        self._url = url
        self._transport = transport
        self._attempts = attempts
        self._backoff_seconds = backoff_seconds

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """The server's response to `request`."""
        cause = "no attempt"
        for attempt in range(self._attempts):
            if attempt:
                time.sleep(self._backoff_seconds * 2 ** (attempt - 1))
            try:
                response = self._transport.handle_request(request)
                response.read()
            except httpx.TransportError as error:
                cause = str(error) or type(error).__name__
                if request.method == "POST" and not isinstance(error, NEVER_SENT):
                    break
                continue
            if response.status_code < 500:
                return response
            cause = f"{request.method} {request.url.path} returned {response.status_code}"
            if request.method == "POST" and response.status_code != 503:
                break
        raise ServerUnavailable(self._url, cause)

    def close(self) -> None:
        """Close the connections."""
        self._transport.close()


def raise_for_refusal(url: str, response: httpx.Response) -> None:
    """Raise the error of a response of the server at `url`, if its status is not 2xx.

    Raises BadCredentials (401) and RequestRefused (any other status from 300).
    """
    request = response.request
    if response.status_code == 401:
        raise BadCredentials(url, "the given token")
    if response.status_code >= 300:
        raise RequestRefused(request.method, shown_url(request.url), response.status_code, response.text)


def shown_url(url: httpx.URL) -> str:
    """An address for error messages: without its query, which may hold an invitation, and without user and password."""
    return str(url.copy_with(query=None, username="", password=""))
