"""Tells people what happened to a run, through Prefect's notification blocks.

    with notifying(recipe.notify, "town"):          # of the recipe, and of the home
        notify("people_done", "960 of 960 are judged")

A message is sent by a thread of its own, so that a receiver that does not answer delays nothing; at the end of the run
there are CLOSE_SECONDS for the last ones. One that is not delivered is a line in the log, without the receiver's
address, which may be a secret.
"""

import logging
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from functools import partial
from pathlib import Path
from typing import cast

import httpx
from prefect.blocks.abstract import NotificationBlock, NotificationError
from prefect.blocks.notifications import CustomWebhookNotificationBlock, MicrosoftTeamsWebhook, SlackWebhook
from prefect.runtime import flow_run
from prefect.types import SecretDict
from prefect.utilities.urls import url_for

from alignment.errors import ConfigError, GateError
from flows.disk import LOW_BYTES, bytes_left, disk_shown, in_background
from flows.failures import NotYet, explained
from flows.home import home_directory
from flows.mail import Email
from flows.recipe.channels import Channel, Event, home_channels, merged
from flows.recipe.credentials import redacted
from flows.tracking.logs import known_secrets

log = logging.getLogger(__name__)
CLOSE_SECONDS = 5.0
DISK_SECONDS = 30.0
LONGEST_TEXT = 2000  # characters
CHATTY = ("apprise", "httpx", "httpcore")  # loggers that write whole addresses


BLOCKS: Mapping[str, type[NotificationBlock]] = {
    "custom-webhook": CustomWebhookNotificationBlock,
    "slack-webhook": SlackWebhook,
    "ms-teams-webhook": MicrosoftTeamsWebhook,
    "email": Email,
}
TITLES: Mapping[Event, str] = {
    "people_done": "people are done",
    "quota_reached": "enough is judged",
    "deadline_reached": "the deadline of the labelling is reached",
    "gate_failed": "a gate was missed",
    "run_died": "the run died",
    "disk_low": "the disk is getting full",
}


class Notifier:
    """Sends the messages of one run to its channels, each by a thread."""

    def __init__(self, channels: Iterable[Channel], about: str) -> None:
        """`about` names the run in subjects."""
        self.channels, self.about = tuple(channels), about
        self._secrets = known_secrets(home_directory())
        self._threads: list[threading.Thread] = []

    def send(self, event: Event, text: str) -> None:
        """Send a message to every channel that is told of the event."""
        subject = f"{self.about}: {TITLES[event]}"
        body = redacted(text, self._secrets)[:LONGEST_TEXT]
        for channel in self.channels:
            if event in channel.events:
                work = (copy_context().run, deliver_or_log, channel.to, subject, body)
                thread = threading.Thread(target=work[0], args=work[1:], name=f"notify-{event}", daemon=True)
                thread.start()
                self._threads.append(thread)

    def close(self) -> None:
        """Wait a little for messages that are under way."""
        deadline = time.monotonic() + CLOSE_SECONDS
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        if late := sum(thread.is_alive() for thread in self._threads):
            log.warning("%d notifications were not delivered within %.0f s, and are given up", late, CLOSE_SECONDS)


_notifier: ContextVar[Notifier | None] = ContextVar("notifier", default=None)


@contextmanager
def notifying(channels: Iterable[Channel], about: str) -> Iterator[None]:
    """A context in which `notify` tells these channels and those of the home. An error that leaves it is told, too.

    Raises ConfigError for a file of the home that has no channels.
    """
    home = home_directory()
    notifier = Notifier(merged([*home_channels(home), *channels]), about)
    if not notifier.channels:
        yield
        return
    for name in CHATTY:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    before = _notifier.set(notifier)
    try:
        with in_background(partial(_watch_disk, home), "notify-disk"):
            yield
    except NotYet:
        raise
    except Exception as error:
        event: Event = "gate_failed" if isinstance(error, GateError) else "run_died"
        notify(event, f"{type(error).__name__}: {explained(error) or error}")
        raise
    finally:
        notifier.close()
        _notifier.reset(before)


def notify(event: Event, text: str) -> None:
    """Tell the channels of the surrounding `notifying`, if there are any; adds a link to the flow run's page."""
    notifier = _notifier.get()
    if notifier is not None:
        page = url_for("flow-run", obj_id=str(flow_run.id)) if flow_run.id else None
        notifier.send(event, text if page is None else f"{text}\n{page}")


def _watch_disk(home: Path, ended: threading.Event) -> None:
    """Notify once when little is left on the disk of the home."""
    while not ended.is_set():
        if bytes_left(home) < LOW_BYTES:
            notify("disk_low", disk_shown(home))
            return
        ended.wait(DISK_SECONDS)


def store(block: str, address: str) -> None:
    """Store the address of a receiver as a notification block of Prefect, which keeps it encrypted.

    Raises ConfigError, without the address, for one that the kind of block does not take.
    """
    kind, _, name = block.partition("/")
    if (kind == "email") != address.startswith(("mailto://", "mailtos://")):
        raise ConfigError(
            f"{block}: e-mail goes to an address mailtos://USER:PASSWORD@SMTP-HOST?to=ADDRESS, and nothing else"
        )
    try:
        receiver = _custom_webhook(name, address) if kind == "custom-webhook" else BLOCKS[kind](url=address)
    except (ValueError, KeyError, TypeError):
        raise ConfigError(f"the address is not one of a {kind}: see `rlhf notify add --help`") from None
    receiver.save(name, overwrite=True)


def _custom_webhook(name: str, address: str) -> CustomWebhookNotificationBlock:
    """A webhook that gets subject and text as JSON. Only `secrets` of this block is kept secret by Prefect."""
    return CustomWebhookNotificationBlock(
        name=name,
        url="{{address}}",
        json_data={"subject": "{{subject}}", "text": "{{body}}"},
        secrets=SecretDict({"address": address}),
    )


def deliver_or_log(block: str, subject: str, body: str) -> None:
    """Deliver a message, or log why it was not delivered."""
    problem = deliver(block, subject, body)
    if problem:
        log.warning("%s was not told %r: %s", block, subject, problem)
    else:
        log.info("%s was told: %s", block, subject)


def deliver(block: str, subject: str, body: str) -> str:
    """Send a message through a block of Prefect; returns the problem, without addresses, or "" for none."""
    kind, _, name = block.partition("/")
    try:
        receiver = cast(NotificationBlock, BLOCKS[kind].load(name))  # Prefect's functions wait for it outside of a loop
        with receiver.raise_on_failure():
            _ = receiver.notify(body, subject)
    except httpx.HTTPStatusError as error:
        return f"the receiver answers {error.response.status_code}"
    except NotificationError:
        return "the receiver does not take it, or does not answer"
    except ValueError as error:
        missing = "Unable to find block" in str(error)
        return f"Prefect has no such block; `rlhf notify add {block}` stores it" if missing else "the block is invalid"
    except Exception as error:
        return f"the receiver cannot be reached ({type(error).__name__})"
    return ""
