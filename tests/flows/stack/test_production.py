"""`rlhf up --profile production`: the pipeline on PostgreSQL, authentication, repair, backup and restore, nginx."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from prefect.client.orchestration import SyncPrefectClient

from flows.operations import backup, restore
from flows.stack import credentials, postgres, processes, services, stack, state
from flows.stack.processes import StackError
from flows.stack.services import WAVES, Name, Site
from labeling.server.client import LabelStudio
from tests.conftest import TINY
from tests.flows.local import hostile_environment
from tests.labeling.browser import CHROMIUM, chromium
from tests.labeling.helpers import free_port
from tests.labeling.tasks.test_characters import check_odd_texts, check_poison

pytestmark = [pytest.mark.server, pytest.mark.long]
ROOT = Path(__file__).parents[3]
PARTS: list[Name] = [name for wave in WAVES for name in wave]


@pytest.fixture(scope="module", autouse=True)
def installed() -> None:
    """The programs that production needs."""
    try:
        postgres.programs()
        postgres.account()
        services.label_studio_executable()
    except StackError as error:
        pytest.skip(str(error))


def rlhf(home: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    told = {**os.environ, "RLHF_HOME": str(home), "COLUMNS": "200", "OMP_NUM_THREADS": "1", **variables}
    command = [sys.executable, "-m", "flows.cli.main", *arguments]
    return subprocess.run(command, env=told, capture_output=True, text=True, timeout=1200, check=False)


@pytest.fixture(scope="module")
def home() -> Iterator[Path]:
    """A home that the database's user can reach, which pytest's own directories are not."""
    place = Path("/tmp") / f"rlhf-production-{os.getpid()}-{free_port()}"
    yield place
    shutil.rmtree(place, ignore_errors=True)


@pytest.fixture(scope="module")
def public_url() -> str:
    """Where nginx will be."""
    return f"http://127.0.0.1:{free_port()}"


@pytest.fixture(scope="module")
def production(home: Path, public_url: str) -> Iterator[Site]:
    """The whole topology as processes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RLHF_PUBLIC_URL", public_url)
        patch.setattr(stack, "START_SECONDS", 900.0)
        for name in PARTS:
            patch.setenv(services.port_variable(name), str(free_port()))
        try:
            yield stack.up(home, "production").site
        finally:
            stack.down(home)


@pytest.fixture(scope="module")
def lineage(production: Site, home: Path) -> str:
    """What `rlhf lineage` says after the pipeline ran on this stack."""
    done = rlhf(home, "run", str(TINY))
    assert done.returncode == 0, done.stderr[-3000:]
    assert "0 of 13 stages were cached" in done.stdout
    return rlhf(home, "lineage", "tiny-policy@candidate", "--json").stdout


def rows(site: Site, name: Name, table: str) -> int:
    """How many rows a server's table holds."""
    role = postgres.DATABASES[name]
    with postgres.connect(site.addresses["postgres"], site.credentials.secrets.databases[name], role) as connection:
        found = connection.execute(f"SELECT count(*) FROM {table}").fetchone()
    assert found is not None
    return int(found[0])


def test_the_pipeline_and_the_round_trip_of_labels_pass_on_postgresql(production: Site, lineage: str) -> None:
    told = json.loads(lineage)["inputs"]["reward"]["inputs"]["comparisons"]
    assert len(told["annotation_ids"]) >= 20
    assert rows(production, "label-studio", "task_completion") >= len(told["annotation_ids"])
    assert rows(production, "mlflow", "runs") == 14 and rows(production, "prefect", "flow_run") == 1
    assert not list(production.home.rglob("*.sqlite3")) and not list(production.home.glob("*/*.db"))
    with LabelStudio(production.url("label-studio"), production.credentials.label_studio_token) as owner:
        assert {project["title"].split()[0] for project in owner.projects()} == {"tiny"}


def test_odd_texts_and_annotations_that_cannot_be_read_on_postgresql(production: Site, tmp_path: Path) -> None:
    with LabelStudio(production.url("label-studio"), production.credentials.label_studio_token) as owner:
        check_odd_texts(owner, tmp_path)
        assert len(check_poison(owner)) == 1  # PostgreSQL does not take a lone surrogate, but takes an infinite time


def test_status_shows_all_parts_and_knows_the_profile(production: Site, home: Path) -> None:
    status = rlhf(home, "status")
    assert (status.returncode, status.stdout.count("works")) == (0, 6)
    with pytest.raises(StackError, match="has the profile 'production'"):
        stack.up(home, "default")


def test_the_environment_of_other_servers_changes_no_answer(production: Site, home: Path, tmp_path: Path) -> None:
    away = hostile_environment("http://127.0.0.1:9")
    away |= {"PREFECT_API_AUTH_STRING": "somebody:else", "HOME": str(tmp_path)}
    (tmp_path / ".netrc").write_text("default login somebody password else\n")
    status, plan = rlhf(home, "status", **away), rlhf(home, "run", str(TINY), "--plan", **away)
    assert (status.returncode, status.stdout.count("works")) == (0, 6), status.stderr
    assert status.stdout.count("1 online") == 2 and "(none)" not in status.stdout
    assert plan.returncode == 0 and "unknown" not in plan.stdout, plan.stderr
    assert "as of the last sync" not in rlhf(home, "label", "status", **away).stderr


def test_who_has_no_password_is_refused(production: Site) -> None:
    with httpx.Client(trust_env=False, timeout=60) as http:
        asked = {"max_results": 1}
        search = f"{production.url('mlflow')}/api/2.0/mlflow/experiments/search"
        assert http.post(search, json=asked).status_code == 401
        assert http.post(search, json=asked, auth=("rlhf", "a guess")).status_code == 401
        known = production.credentials.secrets
        right = (known.mlflow_username, known.mlflow_password)
        assert http.post(search, json=asked, auth=right).status_code == 200
        assert http.post(search, json=asked, auth=right, headers={"Host": "evil.example"}).status_code == 403
        version = f"{production.url('prefect')}/api/admin/version"
        assert http.get(version).status_code == 401
        right = ("rlhf", known.prefect_auth.split(":")[1])
        assert http.get(version, auth=right).status_code == 200
        assert http.get(version, auth=right, headers={"Host": "evil.example"}).status_code == 400
        assert http.get(f"{production.url('label-studio')}/api/projects").status_code == 401
    assert "password authentication failed" in postgres.probe(production.addresses["postgres"], "a guess")[0]
    with pytest.raises(postgres.psycopg.OperationalError, match="permission denied for database"):
        host, _, port = production.addresses["postgres"].rpartition(":")
        postgres.psycopg.connect(
            host=host, port=port, user="mlflow", password=known.mlflow_database_password, dbname="label_studio"
        )


def secrets(site: Site) -> list[str]:
    """Every secret of the stack."""
    found: dict[str, Any] = json.loads((site.home / credentials.FILE).read_text())
    found |= found.pop("production")
    auth = str(found.pop("prefect_auth"))
    return [
        auth,
        auth.split(":")[1],
        *(value for name, value in found.items() if "email" not in name and "username" not in name),
    ]


def test_no_secret_is_on_a_command_line_in_a_log_or_open_to_others(production: Site, lineage: str) -> None:
    known = secrets(production)
    assert len(known) == 11
    started = state.read(production.home).servers
    groups = {server.process.pid for server in started.values() if server.process is not None}
    assert len(groups) == len(PARTS)
    for process in psutil.process_iter():
        try:
            told = " ".join(process.cmdline())
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
        assert not [secret for secret in known if secret in told], process.pid
    for log in (path for path in (production.home / "logs").rglob("*") if path.is_file()):
        text = log.read_text(errors="replace")
        assert not [number for number, secret in enumerate(known) if secret in text], log
    assert not (production.home / credentials.FILE).stat().st_mode & 0o077
    assert not production.home.stat().st_mode & 0o007
    assert not [number for number, secret in enumerate(known) if secret in repr(production.credentials)]


def test_a_worker_runs_what_is_deployed_and_knows_no_password_of_a_database(production: Site, home: Path) -> None:
    deployed = rlhf(home, "deploy")
    assert deployed.returncode == 0, deployed.stderr[-3000:]
    url = f"{production.url('prefect')}/api"
    with SyncPrefectClient(url, auth_string=production.prefect_auth) as client:
        run = client.create_flow_run_from_deployment(client.read_deployment_by_name("watch/watch").id)
        deadline = time.monotonic() + 300
        while not (seen := client.read_flow_run(run.id).state) or not seen.is_final():
            assert time.monotonic() < deadline, seen
            time.sleep(1.0)
    assert seen.is_completed(), seen
    process = state.read(home).servers["ops-worker"].process
    assert process is not None
    variables = psutil.Process(process.pid).environ()
    assert not {*production.credentials.secrets.databases.values()} & {*variables.values()}
    assert "PGPASSWORD" not in variables


def test_up_mends_a_database_that_was_killed(production: Site, home: Path, lineage: str) -> None:
    before = state.read(home).servers["postgres"].process
    assert before is not None
    os.kill(before.pid, signal.SIGKILL)
    deadline = time.monotonic() + 60
    while processes.is_alive(before) and time.monotonic() < deadline:
        time.sleep(0.05)
    stack.up(home)
    assert state.read(home).servers["postgres"].process != before
    assert all(row.health.ok for row in stack.status(home))


def test_a_backup_restored_into_an_empty_place_has_the_lineage_intact(
    production: Site, home: Path, lineage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables = [("label-studio", "task_completion"), ("mlflow", "metrics"), ("prefect", "flow_run")]
    before = [rows(production, *table) for table in tables]
    made = backup.backup(tmp_path / "kept", home)
    after = [rows(production, *table) for table in tables]  # Prefect schedules runs meanwhile
    assert {"databases/mlflow.dump", "home/annotations.db", "home/credentials.json"} <= made.files.keys()
    for name in PARTS:
        monkeypatch.setenv(services.port_variable(name), str(free_port()))
    new = home.with_name(home.name + "-restored")
    try:
        assert rlhf(new, "restore", str(tmp_path / "kept"), "--key", str(home / "backup.key")).returncode == 0
        with pytest.raises(StackError, match="is not empty"):
            restore.restore(tmp_path / "kept", new, key=home / "backup.key")
        remembered, known = state.read(new), credentials.ensure(new)
        site = stack._up(new, remembered, known, [("postgres",), ("mlflow",)]).site
        restored = [rows(site, *table) for table in tables]
        assert all(low <= count <= high for low, count, high in zip(before, restored, after, strict=True)), restored
        assert restored[:2] == before[:2]
        found = rlhf(new, "lineage", "tiny-policy@candidate", "--json")
        assert found.stdout == lineage, found.stderr
    finally:
        stack.down(new)
        shutil.rmtree(new, ignore_errors=True)


def test_nginx_limits_log_ins_and_the_screens_work_under_its_policy(
    production: Site, public_url: str, lineage: str, tmp_path: Path
) -> None:
    if shutil.which("nginx") is None or not Path(CHROMIUM).exists():
        pytest.skip("nginx or Chromium is not installed: `apt-get install nginx chromium`")
    text = (ROOT / "deploy" / "nginx" / "nginx.conf").read_text(encoding="utf-8")
    text = text.replace("label-studio:8080", production.addresses["label-studio"]).replace("/tmp/", f"{tmp_path}/")
    (tmp_path / "nginx.conf").write_text(text.replace("listen 8080", f"listen {public_url.removeprefix('http://')}"))
    command = ["nginx", "-c", str(tmp_path / "nginx.conf"), "-g", "daemon off;"]
    with subprocess.Popen(command, stderr=(tmp_path / "log").open("w")) as nginx:
        try:
            _label_in_a_browser(production, public_url)
            with httpx.Client(base_url=public_url, trust_env=False, timeout=60) as http:
                page = http.get("/user/login/")
                policies = [value for name, value in page.headers.multi_items() if name == "content-security-policy"]
                assert len(policies) == 2 and any("nonce-" in policy for policy in policies)
                assert page.headers.get("access-control-allow-origin") is None
                asked = {"Origin": "http://evil.example"}
                assert "access-control-allow-origin" not in http.get("/api/version", headers=asked).headers
                tries = [http.post("/user/login/", data={"email": "a@b.c"}).status_code for _ in range(12)]
                assert tries[-1] == 429 and http.get("/user/login/").status_code == 200
        finally:
            nginx.terminate()


def _label_in_a_browser(site: Site, url: str) -> None:
    """The owner logs in, and the ranking screen shows its list; nothing was loaded from elsewhere or kept back."""
    with LabelStudio(site.url("label-studio"), site.credentials.label_studio_token) as owner:
        (project,) = (one for one in owner.projects() if "ranking" in one["title"])
        task = owner.tasks(project["id"])[0]["id"]
    with chromium() as browser:
        page = browser.new_page(viewport={"width": 1360, "height": 860})
        page.set_default_timeout(120_000)
        kept_back: list[str] = []
        page.on("requestfailed", lambda request: kept_back.append(f"{request.url} {request.failure}"))
        for attempt in range(200):
            try:
                page.goto(f"{url}/user/login/")
                break
            except Exception:
                assert attempt < 199
                time.sleep(0.1)
        page.fill("input[name=email]", site.credentials.label_studio_email)
        page.fill("input[name=password]", site.credentials.label_studio_password)
        page.click("button[type=submit]")
        page.wait_for_url(lambda there: "login" not in there)
        page.goto(f"{url}/projects/{project['id']}/data?task={task}")
        page.locator(".htx-ranker-item").first.wait_for(state="attached")
    assert not [one for one in kept_back if "csp" in one]


def test_down_leaves_nothing(production: Site, home: Path, lineage: str) -> None:
    pids = [server.process.pid for server in state.read(home).servers.values() if server.process is not None]
    children = [child for pid in pids for child in psutil.Process(pid).children(recursive=True)]
    stopped = stack.down(home)
    assert stopped == [services.TITLES[name] for name in PARTS]
    _, alive = psutil.wait_procs(children, timeout=60)
    assert not alive and not any(psutil.pid_exists(pid) for pid in pids)
