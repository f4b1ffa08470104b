"""Errors of the labeling package.

LabelingError
├── ServerUnavailable      no response, or 5xx responses through all retries
│   └── ServerFault        the server responds, and fails on this request (500)
├── ServerStartFailed      a server that was started did not become ready
├── BadCredentials         the token or the password was refused
├── RequestRefused         the server refused a request (4xx, or 500 for what it cannot store)
├── UnexpectedAnswer       a response that does not have the documented format
│   └── UnreadableAnswer   a response that is no JSON, or too large
├── TaskError              input that no task can be built from
├── GuidelinesError        guidelines that no screen can be made from
├── WebhookRefused         the server does not call the address of a webhook
├── ListenFailed           webhooks cannot be received
├── StoreError             the file is not an annotation store, or has another format
├── CollectionLost         a project was deleted in Label Studio while people worked in it
└── CollectionIncomplete   the deadline passed with too few judgements
"""


class LabelingError(Exception):
    """Any failure of the labeling package."""


class ServerUnavailable(LabelingError):
    """Label Studio cannot be reached, or all retries failed."""

    def __init__(self, url: str, cause: object) -> None:
        super().__init__(
            f"Label Studio at {url} does not answer ({cause}). `rlhf up` starts the local server; "
            "for another server check labeling.url in the recipe."
        )
        self.url = url


class ServerFault(ServerUnavailable):
    """The server responded with 500, through all retries: it is in trouble, or cannot handle what is in the request."""

    def __init__(self, url: str, request: str, body: str) -> None:
        self.url, self.request = url, request
        self.body = "" if body.lstrip().startswith("<") else " ".join(body.split())[:300]  # a page says nothing
        LabelingError.__init__(
            self,
            f"Label Studio at {url} fails on a request: {request} returned 500{': ' if self.body else ''}{self.body}. "
            "The server runs, and its log says why: of a local one, logs/label-studio.log in the home.",
        )


class ServerStartFailed(LabelingError):
    """The server process exited, or its port was in use, before it was ready."""


class BadCredentials(LabelingError):
    """A token or a password was refused."""

    def __init__(self, url: str, who: str) -> None:
        super().__init__(
            f"Label Studio at {url} refused the credentials of {who}. Tokens and passwords are set when an account "
            "is first created: use the original ones, or read the token on the server's Account page."
        )


class RequestRefused(LabelingError):
    """The server does not take a request: retrying will not help."""

    def __init__(self, method: str, url: str, status: int, body: str) -> None:
        super().__init__(f"{method} {url} was refused with {status}: {body[:500]}")
        self.status = status


class UnexpectedAnswer(LabelingError):
    """The server's response does not have the documented format."""


class UnreadableAnswer(UnexpectedAnswer):
    """The server's response is no JSON, or larger than is read."""


class TaskError(LabelingError):
    """No task can be built from the input."""


class GuidelinesError(LabelingError):
    """The directory of guidelines lacks something, or has something that no screen can be made from."""


class WebhookRefused(LabelingError):
    """The server does not call the address of a webhook."""


class ListenFailed(LabelingError):
    """Webhooks cannot be received."""


class StoreError(LabelingError):
    """The annotation store cannot be used."""


class CollectionLost(LabelingError):
    """A project of the collection was deleted on the server."""

    def __init__(self, title: str, kept: int, path: object) -> None:
        super().__init__(
            f"the project {title!r} was deleted in Label Studio; its {kept} annotations are kept in {path}. "
            "Run the same command again to create the project anew"
        )


class CollectionIncomplete(LabelingError):
    """Too few judgements at the deadline."""
