"""Errors of the labeling package.

LabelingError
├── ServerUnavailable      no answer, or 5xx answers through all retries
├── ServerStartFailed      a server that we started did not become ready
├── BadCredentials         the token or the password is not accepted
├── RequestRefused         the server refused a request (4xx)
├── UnexpectedAnswer       an answer that does not have the shape that the API documents
├── TaskError              response sets of which no task can be built
├── WebhookRefused         the server does not call the address of a webhook
├── ListenFailed           webhooks cannot be received
├── StoreError             the annotation store's file is not one, or has another format
├── CollectionLost         a project was deleted in Label Studio while people worked in it
└── CollectionIncomplete   the deadline passed with too few judgements
"""


class LabelingError(Exception):
    """Any failure of the labeling package."""


class ServerUnavailable(LabelingError):
    """Label Studio cannot be reached, or keeps failing."""

    def __init__(self, url: str, cause: object) -> None:
        super().__init__(
            f"Label Studio at {url} does not answer ({cause}). `rlhf up` starts the local server; "
            "for a server of your own check the labeling.url of the recipe."
        )
        self.url = url


class ServerStartFailed(LabelingError):
    """The server process ended, or its port was taken, before it was ready."""


class BadCredentials(LabelingError):
    """A token or a password was refused."""

    def __init__(self, url: str, who: str) -> None:
        super().__init__(
            f"Label Studio at {url} refused the credentials of {who}. Tokens and passwords count only when an account "
            "is first created: use those of that time, or read the token on the server's Account page."
        )


class RequestRefused(LabelingError):
    """A 4xx answer: retrying will not help."""

    def __init__(self, method: str, url: str, status: int, body: str) -> None:
        super().__init__(f"{method} {url} was refused with {status}: {body[:500]}")
        self.status = status


class UnexpectedAnswer(LabelingError):
    """The server's answer does not have the documented shape."""


class TaskError(LabelingError):
    """Response sets of which no task can be built."""


class WebhookRefused(LabelingError):
    """The server does not call the address of a webhook."""


class ListenFailed(LabelingError):
    """Webhooks cannot be received."""


class StoreError(LabelingError):
    """The annotation store cannot be used."""


class CollectionLost(LabelingError):
    """A project of the collection was deleted on the server."""

    def __init__(self, title: str, kept: int, place: object) -> None:
        super().__init__(
            f"the project {title!r} was deleted in Label Studio; {kept} annotations of it are kept in {place}. "
            "Run the same command again: it opens the project anew"
        )


class CollectionIncomplete(LabelingError):
    """Too few judgements at the deadline."""
