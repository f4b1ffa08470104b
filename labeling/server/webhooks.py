"""Webhooks, by which Label Studio signals changes. They are never resent, so they only trigger a sync."""

import hmac

from labeling.errors import RequestRefused, WebhookRefused
from labeling.server.client import LabelStudio

ACTIONS = ("ANNOTATION_CREATED", "ANNOTATIONS_CREATED", "ANNOTATION_UPDATED", "ANNOTATIONS_DELETED", "TASKS_DELETED")
HEADER = "X-RLHF-Webhook"


def secret_of(client: LabelStudio) -> str:
    """The value of HEADER: the same for everybody with the account's token, about which it says nothing."""
    return hmac.new(client.token.encode(), b"webhook", "sha256").hexdigest()


def has_webhook(client: LabelStudio, project: int, url: str) -> bool:
    """Whether the project has an active webhook to `url` that the receiver accepts."""
    list_webhooks, headers = client.sdk.webhooks.list, {HEADER: secret_of(client)}
    return client.call(
        lambda: any(
            hook.url == url and hook.is_active and {*ACTIONS} <= {*hook.actions} and hook.headers == headers
            for hook in list_webhooks(project=project)
        )
    )


def ensure_webhook(client: LabelStudio, project: int, url: str) -> bool:
    """Add a webhook to `url` without payload; False if the project has it already.

    Raises WebhookRefused for a URL that the server does not call; by default it calls none on its own machine.
    """
    if has_webhook(client, project, url):
        return False
    try:
        client.call(
            client.sdk.webhooks.create,
            project=project,
            url=url,
            send_payload=False,
            send_for_all_actions=False,
            is_active=True,
            actions=ACTIONS,
            headers={HEADER: secret_of(client)},
        )
    except RequestRefused as error:
        raise WebhookRefused(
            f"Label Studio refuses the webhook {url} ({error}). It calls addresses on its own machine or network only "
            "if started with RLHF_LABEL_STUDIO_LOCAL_WEBHOOKS=1, which lets everybody with an account reach them: "
            "`rlhf down`, then `RLHF_LABEL_STUDIO_LOCAL_WEBHOOKS=1 rlhf up`; or remove labeling.webhook"
        ) from error
    return True
