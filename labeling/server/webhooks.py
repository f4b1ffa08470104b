"""Webhooks: Label Studio tells an address of ours that something changed. Never repeated, so only a reason to look."""

from labeling.errors import RequestRefused, WebhookRefused
from labeling.server.client import LabelStudio, expect

ACTIONS = ("ANNOTATION_CREATED", "ANNOTATIONS_CREATED", "ANNOTATION_UPDATED", "ANNOTATIONS_DELETED", "TASKS_DELETED")


def has_webhook(client: LabelStudio, project: int, url: str) -> bool:
    """Whether the project tells this address."""
    hooks = expect(client.call(client.sdk.webhooks.list, project=project), list, "the list of webhooks")
    return any(hook.url == url and hook.is_active and {*ACTIONS} <= {*hook.actions} for hook in hooks)


def ensure_webhook(client: LabelStudio, project: int, url: str) -> bool:
    """Have the project tell `url` of changes, without saying what changed; False when it does so already.

    Raises WebhookRefused for an address that the server does not call, as it does with all on its own machine.
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
        )
    except RequestRefused as error:
        raise WebhookRefused(
            f"Label Studio does not call {url} ({error}). It calls addresses on its own machine or network only when "
            "it was started with RLHF_LABEL_STUDIO_LOCAL_WEBHOOKS=1, which lets everybody with an account reach them: "
            "`rlhf down`, then RLHF_LABEL_STUDIO_LOCAL_WEBHOOKS=1 `rlhf up`; or leave labeling.webhook out"
        ) from error
    return True
