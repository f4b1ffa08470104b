"""Prefect's automations that tell the channels of the home of crashed runs.

A run that fails tells its channels itself. One that is killed cannot; its worker or the watcher marks it Crashed, and
Prefect's server sends the message. Idempotent: `rlhf notify add` and `rlhf deploy` create what is missing, and remove
what is no longer in notify.yaml.
"""

from collections.abc import Iterable
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.events.actions import SendNotification
from prefect.events.schemas.automations import Automation, AutomationCore, EventTrigger, Posture
from prefect.exceptions import ObjectNotFound

from alignment.errors import ConfigError
from flows.deployments.deploy import read_file
from flows.flow_runs import FLOWS
from flows.recipe.channels import Channel

PREFIX = "rlhf: a run crashed, tell "
SUBJECT = "{{ flow_run.name }}: the run died"
BODY = "{{ flow.name }} {{ flow_run.name }}: {{ flow_run.state.message }}\n{{ flow_run|ui_url }}"


def set_up_automations(channels: Iterable[Channel]) -> list[str]:
    """Create, update and remove automations as the channels say; returns the names of those that exist then.

    Raises ConfigError for a channel whose block Prefect does not have.
    """
    block_by_name = {f"{PREFIX}{channel.to}": channel.to for channel in channels if "run_died" in channel.events}
    with get_client(sync_client=True) as prefect:
        existing = {one.name: one for one in prefect.read_automations() if one.name.startswith(PREFIX)}
        for name in existing.keys() - block_by_name.keys():
            prefect.delete_automation(existing[name].id)
        for name, block in block_by_name.items():
            _set_up(prefect, existing.get(name), _automation(name, block_id(prefect, block)))
    return [*block_by_name]


def _set_up(prefect: SyncPrefectClient, before: Automation | None, automation: AutomationCore) -> None:
    if before is None:
        prefect.create_automation(automation)
    elif before.actions != automation.actions or before.trigger != automation.trigger:
        prefect.delete_automation(before.id)
        prefect.create_automation(automation.model_copy(update={"enabled": before.enabled}))


def _automation(name: str, block: UUID) -> AutomationCore:
    flows = sorted({*FLOWS, *(_flow_name(spec.entrypoint) for spec in read_file()[1])})
    return AutomationCore(
        name=name,
        description="created by rlhf, from notify.yaml in the home",
        trigger=EventTrigger(
            posture=Posture.Reactive,
            expect={"prefect.flow-run.Crashed"},
            match={"prefect.resource.id": "prefect.flow-run.*"},
            match_related={"prefect.resource.role": "flow", "prefect.resource.name": flows},
            for_each={"prefect.resource.id"},
        ),
        actions=[SendNotification(block_document_id=block, subject=SUBJECT, body=BODY)],
    )


def _flow_name(entrypoint: str) -> str:
    return entrypoint.rpartition(".")[2].replace("_", "-")


def block_id(prefect: SyncPrefectClient, block: str) -> UUID:
    """The id of a notification block. Raises ConfigError if there is none."""
    kind, _, name = block.partition("/")
    try:
        return UUID(str(prefect.read_block_document_by_name(name, kind, include_secrets=False).id))
    except ObjectNotFound as error:
        raise ConfigError(f"Prefect has no block {block}: `rlhf notify add {block}` stores it") from error
