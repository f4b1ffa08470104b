"""What the worker takes from Prefect's API, and that no failing server ends it."""

import asyncio
from typing import Any
from uuid import uuid4

import httpx
import pytest
from prefect.client.schemas.objects import FlowRun

from flows.deployments.watcher import HEARTBEATS
from flows.deployments.worker import Refused, Worker, check_entrypoint, check_job


@pytest.mark.parametrize("value", ["٣٠", "0", "29", "9" * 5000, "030", "30\n", "-30", "3e1", "", None])
def test_only_a_number_of_seconds_is_a_heartbeat(value: str | None) -> None:
    check_job(None, None, {HEARTBEATS: "30"})
    with pytest.raises(Refused, match="from 30 to 9999") as refusal:
        check_job(None, None, {HEARTBEATS: value})
    assert len(str(refusal.value)) < 200


@pytest.mark.parametrize("entrypoint", [None, [], ["flows.deployments.watcher.watch"], {}, "os.system", "watch " * 999])
def test_only_the_name_of_a_flow_of_ours_is_an_entrypoint(entrypoint: Any) -> None:
    with pytest.raises(Refused, match="no flow of this project") as refusal:
        check_entrypoint(entrypoint)
    assert len(str(refusal.value)) < 400


class Failing:
    """A client of a Prefect that answers every request with a status, or with none."""

    def __init__(self, status: int) -> None:
        self.requests, self._status = 0, status

    async def _fail(self, *_: object, **__: object) -> None:
        self.requests += 1
        request = httpx.Request("GET", "http://127.0.0.1:4200/api")
        if self._status == 0:
            raise httpx.ConnectError("refused", request=request)
        raise httpx.HTTPStatusError("failed", request=request, response=httpx.Response(self._status, request=request))

    read_deployment = read_flow_run = get_scheduled_flow_runs_for_work_pool = _fail


@pytest.mark.parametrize(("status", "polls"), [(500, True), (503, True), (0, True), (401, False)])
def test_a_failing_server_does_not_end_the_worker(
    status: int, polls: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A run that could not be submitted is asked for again. A refused account ends the worker, before it has runs."""

    async def work() -> None:
        worker, prefect = Worker(work_pool_name="ops", name="ops-worker"), Failing(status)
        worker._client, worker._has_successfully_synced = prefect, True  # type: ignore[assignment]
        run = FlowRun(flow_id=uuid4(), deployment_id=uuid4(), name="neat-lizard")
        worker._submitting_flow_run_ids.add(run.id)
        await worker._submit_run(run)
        assert not worker._submitting_flow_run_ids
        await worker._cancel_run(run.id)
        monkeypatch.setattr(worker, "sync_with_backend", prefect._fail)
        for poll in (worker.get_and_submit_flow_runs, worker._sync_and_initialize):
            if polls:
                assert not await poll()
            else:
                with pytest.raises(httpx.HTTPStatusError):
                    await poll()
        assert prefect.requests == 4

    asyncio.run(work())
