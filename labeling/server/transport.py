"""The HTTP transport under the SDK: retries safe requests and maps refusals to errors."""

import time

import httpx

from labeling.errors import BadCredentials, RequestRefused, ServerFault, ServerUnavailable, UnreadableAnswer

ONCE = "X-RLHF-Once"  # a header of ours, not sent: the request is not retried
LARGEST_ANSWER = 32_000_000  # bytes; a page of tasks that is larger is read in parts
DECODED = (b"content-encoding", b"content-length", b"transfer-encoding")
NEVER_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)


class RetryingTransport(httpx.BaseTransport):
    """Sends a request up to `attempts` times; returns only responses with a status below 500, fully read.

    A request that may have taken effect is retried only if that is harmless: a POST only if it never reached the server
    or got a 503, all others after any network error or 5xx.

    `url` is the server's address for error messages. Raises ServerUnavailable when no attempt succeeds, and
    ServerFault if the last one got a 500, and UnreadableAnswer for a response that is larger than LARGEST_ANSWER.
    """

    def __init__(self, url: str, transport: httpx.BaseTransport, attempts: int, backoff_seconds: float) -> None:
        self._url = url
        self._transport = transport
        self._attempts = attempts
        self._backoff_seconds = backoff_seconds

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """The server's response to `request`."""
        error = ServerUnavailable(self._url, "no attempt")
        for attempt in range(1 if request.headers.pop(ONCE, None) else self._attempts):
            if attempt:
                time.sleep(self._backoff_seconds * 2 ** (attempt - 1))
            try:
                response = read_bounded(request, self._transport.handle_request(request))
            except httpx.TransportError as failure:
                error = ServerUnavailable(self._url, str(failure) or type(failure).__name__)
                if request.method == "POST" and not isinstance(failure, NEVER_SENT):
                    break
                continue
            if response.status_code < 500:
                return response
            error = self._error(request, response)
            if request.method == "POST" and response.status_code != 503:
                break
        raise error

    def _error(self, request: httpx.Request, response: httpx.Response) -> ServerUnavailable:
        """The error of a 5xx response."""
        sent = f"{request.method} {request.url.path}"
        if response.status_code == 500:
            return ServerFault(self._url, sent, response.text)
        return ServerUnavailable(self._url, f"{sent} returned {response.status_code}")

    def close(self) -> None:
        """Close the connections."""
        self._transport.close()


def read_bounded(request: httpx.Request, response: httpx.Response) -> httpx.Response:
    """The response, read and decompressed. Raises UnreadableAnswer as soon as it is larger than LARGEST_ANSWER."""
    content = bytearray()
    try:
        for part in response.iter_bytes():
            content += part
            if len(content) > LARGEST_ANSWER:
                raise UnreadableAnswer(
                    f"{request.method} {shown_url(request.url)} sent more than {LARGEST_ANSWER:,} bytes"
                )
    finally:
        response.close()
    sent = [(name, value) for name, value in response.headers.raw if name.lower() not in DECODED]
    return httpx.Response(
        response.status_code, headers=sent, content=bytes(content), request=request, extensions=response.extensions
    )


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
