"""Prefect attacked as pages, other accounts and holders of its password would: one real server, Chromium, a worker."""

import base64
import inspect
import json
import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, expect, sync_playwright
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import FlowRun
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings
from prefect.workers import process
from prefect.workers.base import BaseWorker

from flows.deployments.deploy import SET_DIRECTORY, deploy
from flows.deployments.worker import Refused, check_entrypoint, check_job, check_steps, without_hooks
from flows.stack import credentials, entrance, processes
from flows.stack.health import health_of, lets_strangers_in
from flows.stack.services import Site
from tests.flows.local import launch_of, site_of
from tests.labeling.browser import CHROMIUM, FLAGS
from tests.labeling.helpers import free_port

ATTACK = """<!doctype html><script>
const target = location.hash.slice(1), body = '{"name": "attack"}';
const tries = {
  json: () => fetch(target + "/api/flows/", {method: "POST", headers: {"Content-Type": "application/json"}, body}),
  simple: () => fetch(target + "/api/flows/", {method: "POST", mode: "no-cors", body}),
  blob: () => fetch(target + "/api/flows/", {method: "POST", mode: "no-cors", body: new Blob([body])}),
  credentials: () => fetch(target + "/api/flows/", {method: "POST", credentials: "include", body}),
  read: () => fetch(target + "/api/admin/version"),
  enter: () => fetch(target + "/enter", {method: "POST", mode: "no-cors", body: "x"}),
  socket: () => new Promise((opened, failed) => {
    const socket = new WebSocket(target.replace("http", "ws") + "/api/events/in", ["prefect"]);
    socket.onopen = opened; socket.onerror = failed;
  }),
};
(async () => {
  const results = {};
  for (const [name, attempt] of Object.entries(tries)) {
    try { results[name] = (await attempt()).type; } catch { results[name] = "refused"; }
  }
  document.title = JSON.stringify(results);
})();
</script>"""

LOGGING = """version: 1
handlers: {{file: {{class: logging.FileHandler, filename: {mark}}}}}
root: {{handlers: [file]}}
"""
PROFILES = 'active = "x"\n[profiles.x]\nPREFECT_LOGGING_CONFIG_PATH = "{path}"\n'
READ_RESULT = """
import sys
from uuid import UUID
from prefect.client.orchestration import get_client
from flows.results import refuse_results
refuse_results()
with get_client(sync_client=True) as client:
    try:
        client.read_flow_run(UUID(sys.argv[1])).state.result(_sync=True)
    except Exception as error:
        print(type(error).__name__)
print("antigravity" in sys.modules)
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Prefect as `rlhf up` starts it."""
    home, port = tmp_path_factory.mktemp("door"), free_port()
    known = credentials.ensure(home)
    site, launch = site_of(home, {"prefect": port}, known), launch_of("prefect", home, port, known)
    server = processes.launch(
        launch.command, environment=launch.environment, directory=launch.directory, log=home / "prefect.log"
    )
    try:
        deadline = time.monotonic() + 300
        while not health_of("prefect", site).ok:
            assert processes.is_alive(server) and time.monotonic() < deadline, (home / "prefect.log").read_text()
            time.sleep(0.2)
        yield site
    finally:
        processes.stop(server)


@pytest.fixture
def client(site: Site) -> Iterator[SyncPrefectClient]:
    """A client that knows the password."""
    with SyncPrefectClient(f"{site.url('prefect')}/api", auth_string=site.prefect_auth) as client:
        yield client


@contextmanager
def pages(directory: Path) -> Iterator[str]:
    """A server of somebody else's pages, on another port of this machine."""
    handler = partial(SimpleHTTPRequestHandler, directory=str(directory))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@contextmanager
def browser() -> Iterator[Browser]:
    """Chromium, for which evil.example is this machine, as after DNS rebinding."""
    if not Path(CHROMIUM).exists():
        pytest.skip("Chromium is not installed: `apt-get install chromium`")
    with sync_playwright() as playwright:
        flags = [*FLAGS, "--host-resolver-rules=MAP evil.example 127.0.0.1"]
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield chromium
        chromium.close()


@pytest.mark.server
def test_without_the_password_there_is_only_health(site: Site) -> None:
    with httpx.Client(base_url=site.url("prefect"), trust_env=False, timeout=60) as http:
        assert http.get("/api/health").json() is True
        for path in ("/api/admin/version", "/api/flows/filter", "/api/csrf-token?client=x", "/api/ui-settings"):
            assert http.get(path).status_code == http.get(path, auth=("rlhf", "")).status_code == 401, path
        for path in ("/docs", "/docs/oauth2-redirect", "/redoc", "/openapi.json", "/openapi.json/"):  # slow to make
            assert http.get(path).status_code == 401, path
        assert http.post("/api/flows/", content=b'{"name": "attack"}').status_code == 401
        answer = http.post("/api/flows/", content=b'{"name": "attack"}', auth=("rlhf", site.prefect_auth[5:]))
        assert answer.status_code == 403 and "CSRF" in answer.text
    assert not lets_strangers_in(site)


@pytest.mark.server
@pytest.mark.browser
def test_pages_from_elsewhere_reach_nothing(site: Site, client: SyncPrefectClient, tmp_path: Path) -> None:
    """From another port of loopback, to localhost by another name, and from a name that leads to this machine."""
    (tmp_path / "attack.html").write_text(ATTACK)
    port = site.port("prefect")
    with pages(tmp_path) as url, browser() as chromium:
        page = chromium.new_page()
        for origin in (url, url.replace("127.0.0.1", "localhost"), url.replace("127.0.0.1", "evil.example")):
            for target in ("127.0.0.1", "localhost", "evil.example"):
                page.goto("about:blank")
                page.goto(f"{origin}/attack.html#http://{target}:{port}")
                page.wait_for_function("document.title !== ''")
                results = json.loads(page.title())
                assert {results.pop(name) for name in ("simple", "blob", "enter")} <= {"opaque", "refused"}
                assert set(results.values()) == {"refused"}, (origin, target, results)
        answer = page.goto(f"http://evil.example:{port}/")
        assert answer is not None and answer.status == 400
    assert client.read_flows() == []


@pytest.mark.server
@pytest.mark.browser
def test_a_link_opens_the_pages_once(site: Site) -> None:
    link = entrance.link(site)
    with browser() as chromium:
        page = chromium.new_page()
        page.goto(site.url("prefect"))
        expect(page.get_by_role("heading", name="Login")).to_be_visible(timeout=60_000)
        page.goto(link)
        expect(page.get_by_text("Run a task or flow to get started").first).to_be_visible(timeout=60_000)
        assert "#" not in page.url
        page.goto(f"{site.url('prefect')}/work-pools")
        expect(page.get_by_text("Create a work pool to get started").first).to_be_visible(timeout=60_000)
        other = chromium.new_context().new_page()
        other.goto(link)
        expect(other.get_by_text("`rlhf status` prints a new one")).to_be_visible(timeout=60_000)


def run(client: SyncPrefectClient, name: str, changes: dict[str, Any], **job: Any) -> FlowRun:
    """A run of a deployment like `watch`, with changes."""
    flow = client.create_flow_from_name("watch")
    options = {"entrypoint": "flows.deployments.watcher.watch", "pull_steps": [{SET_DIRECTORY: {"directory": "."}}]}
    deployment = client.create_deployment(flow, name, work_pool_name="ops", **{**options, **changes})
    return client.create_flow_run_from_deployment(deployment, **job)


@pytest.fixture
def deployed(site: Site) -> None:
    """The work pools and deployments of `rlhf deploy`."""
    url = f"{site.url('prefect')}/api"
    with temporary_settings({PREFECT_API_URL: url, PREFECT_API_AUTH_STRING: site.prefect_auth}):
        deploy()


@pytest.mark.long
@pytest.mark.server
@pytest.mark.usefixtures("deployed")
def test_who_has_the_password_still_runs_no_commands_on_our_workers(
    site: Site, client: SyncPrefectClient, tmp_path: Path
) -> None:
    mark = tmp_path / "mark"
    script = {"prefect.deployments.steps.run_shell_script": {"script": f"touch {mark}", "stream_output": False}}
    (tmp_path / "evil.py").write_text(f"open({str(mark)!r}, 'w')\nfrom prefect import flow\n@flow\ndef f(): pass\n")
    good = client.create_flow_run_from_deployment(client.read_deployment_by_name("watch/watch").id)
    elsewhere = [{SET_DIRECTORY: {"directory": str(tmp_path)}}]
    startup = {"env": {"PYTHONSTARTUP": str(tmp_path / "evil.py")}}
    attacks = {
        "script": run(client, "script", {"pull_steps": [script]}),
        "both": run(client, "both", {"pull_steps": [{SET_DIRECTORY: {"directory": "."}}, script]}),
        "file": run(client, "file", {"entrypoint": f"{tmp_path / 'evil.py'}:f"}),
        "module": run(client, "module", {"entrypoint": "evil.f", "pull_steps": elsewhere}),
        "command": run(client, "command", {"job_variables": {"command": f"touch {mark}"}}),
        "directory": run(client, "directory", {"job_variables": {"working_dir": str(tmp_path)}}),
        "variable": run(client, "variable", {"job_variables": {"env": {"PYTHONPATH": str(tmp_path)}}}),
        "of the run": run(client, "of the run", {}, job_variables=startup),
        "dotted": run(client, "dotted", {}, job_variables={"env.PREFECT__FLOW_ENTRYPOINT": f"{tmp_path}/evil.py:f"}),
    }
    (tmp_path / "prefect.toml").write_text('[logging]\nconfig_path = "logging.yml"\n')
    (tmp_path / "logging.yml").write_text(LOGGING.format(mark=mark))
    attacks["files"] = run(client, "files", {"pull_steps": elsewhere})
    (site.home / "prefect" / "logging.yml").write_text(LOGGING.format(mark=mark))  # as a backup of others brings it
    (site.home / "prefect" / "profiles.toml").write_text(PROFILES.format(path=tmp_path / "logging.yml"))
    command = [sys.executable, "-P", "-m", "flows.deployments.worker", "--pool", "ops", "--run-once"]
    environment = {**os.environ, **site.client_environment()}
    done = subprocess.run(command, env=environment, cwd=site.home, capture_output=True, text=True, timeout=600)
    assert not mark.exists()
    states = {name: client.read_flow_run(attack.id).state for name, attack in attacks.items()}
    for name, state in states.items():
        assert state is not None and state.name == "Crashed" and "Refused" in str(state.message), (name, state)
    state = client.read_flow_run(good.id).state
    assert state is not None and state.name == "Completed", (state, done.stdout[-3000:], done.stderr[-3000:])


class Attack:
    """Code in a pickle."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (str(self.mark), "w"))


def result_file(directory: Path, mark: Path) -> Path:
    """A result as Prefect stores it, whose reading opens `mark`."""
    record = {
        "metadata": {"storage_key": "result", "serializer": {"type": "pickle"}, "prefect_version": "3.8.8"},
        "result": base64.b64encode(pickle.dumps(Attack(mark))).decode(),
    }
    (directory / "result").write_text(json.dumps(record))
    return directory / "result"


def block_of(client: SyncPrefectClient, url: str) -> str:
    """A block of storage that reads from a server."""
    http = client._client
    kind = http.get("/block_types/slug/remote-file-system").json()["id"]
    condition = {"block_schemas": {"block_type_id": {"any_": [kind]}}}
    schema = http.post("/block_schemas/filter", json=condition).json()[0]["id"]
    block = {"name": "attack", "block_type_id": kind, "block_schema_id": schema}
    answer = http.post("/block_documents/", json={**block, "data": {"basepath": url, "settings": {}}})
    return str(answer.json()["id"])


def complete(client: SyncPrefectClient, run: FlowRun, data: dict[str, Any]) -> None:
    """Say that a run is completed, and where its result is."""
    state = {"type": "COMPLETED", "name": "Completed", "data": {"type": "reference", **data}}
    client._client.post(f"/flow_runs/{run.id}/set_state", json={"state": state, "force": True})


@pytest.mark.server
@pytest.mark.usefixtures("deployed")
def test_a_result_that_a_state_names_is_not_read(site: Site, client: SyncPrefectClient, tmp_path: Path) -> None:
    """By the engine of a worker's run that was completed meanwhile, from a file and from a block, and by any process
    that asks for it; and reading the state imports no module that it names."""
    mark = tmp_path / "mark"
    file = result_file(tmp_path, mark)
    pickled = {"serializer": {"type": "pickle", "picklelib": "cloudpickle"}, "prefect_version": "3.8.8"}
    with pages(tmp_path) as url:
        results = {
            "file": {**pickled, "storage_key": str(file)},
            "block": {**pickled, "storage_key": "result", "storage_block_id": block_of(client, url)},
            "module": {"storage_key": str(file), "serializer": {"type": "pickle", "picklelib": "antigravity"}},
        }
        for name, data in results.items():
            attack = run(client, f"result of a {name}", {})
            complete(client, attack, data)
            environment = {**os.environ, **site.client_environment(), "PREFECT__FLOW_RUN_ID": str(attack.id)}
            environment |= {"PREFECT__FLOW_ENTRYPOINT": "flows.deployments.watcher.watch"}
            engine = [sys.executable, "-P", "-m", "flows.deployments.engine"]
            ended = subprocess.run(engine, env=environment, capture_output=True, text=True, timeout=300)
            assert ended.returncode == 1 and "Completed already" in ended.stderr, ended.stderr
            script = [sys.executable, "-P", "-c", READ_RESULT, str(attack.id)]
            asked = subprocess.run(script, env=environment, capture_output=True, text=True, timeout=300)
            assert asked.stdout.split() == ["ResultRefused", "False"], (name, asked.stdout, asked.stderr)
    assert not mark.exists()


def test_what_a_job_may_say() -> None:
    check_job(None, None, {"PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30"})
    for job in [("true", None, {}), (None, Path("/"), {}), (None, None, {"LD_PRELOAD": "x"})]:
        with pytest.raises(Refused):
            check_job(*job)
    with pytest.raises(Refused, match="must be a number"):
        check_job(None, None, {"PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "{{ x }}"})
    assert check_entrypoint("flows.pipeline.flow.rlhf") == "flows.pipeline.flow.rlhf"
    for entrypoint in (None, "", "flows.pipeline.flow", "flows/pipeline/flow.py:rlhf", "os.system"):
        with pytest.raises(Refused, match="no flow of this project"):
            check_entrypoint(entrypoint)
    check_steps([{SET_DIRECTORY: {"directory": "."}}])
    check_steps([])
    further: dict[str, object] = {SET_DIRECTORY: {"directory": ".", "requires": "evil"}}
    elsewhere: dict[str, object] = {SET_DIRECTORY: {"directory": "/data"}}
    foreign: dict[str, object] = {"x": {"directory": "."}}
    for step in ({}, elsewhere, foreign, further):
        with pytest.raises(Refused, match="pull steps"):
            check_steps([step])


def test_prefect_looks_for_hooks_where_the_worker_has_none() -> None:
    """Prefect's function would read the deployment again, and run its pull steps in the worker's own process."""
    assert "resolve_flow=load_flow_from_flow_run" in inspect.getsource(process.ProcessWorker.run)
    assert process.load_flow_from_flow_run is without_hooks
    assert BaseWorker.get_worker_class_from_type("process") is process.ProcessWorker
