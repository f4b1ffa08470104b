"""Which servers a command uses: those of the home or of the environment, and this machine never through a proxy."""

import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import psutil
import pytest

from alignment.errors import ConfigError
from flows.annotation.label_studio import client
from flows.home import home_directory
from flows.stack import commands, credentials, processes, stack, state
from flows.stack.environment import FOREIGN, addresses, foreign, prepare, use_stack, waiting
from flows.stack.health import ADDRESSES, health_elsewhere
from flows.stack.processes import StackError
from flows.stack.proxies import direct_loopback, unusable_proxies
from flows.stack.services import LABEL_STUDIO, NAMES, Name, Site
from labeling.config import LabelingConfig
from tests.conftest import TINY
from tests.flows.local import hostile_environment
from tests.labeling.helpers import free_port

ROOT = Path(__file__).parents[3]
BLACK_HOLE = "http://10.255.255.1:8080"
COMMANDS: dict[str, tuple[str, ...]] = {
    "status": ("status",),
    "doctor": ("doctor",),
    "plan": ("run", str(TINY), "--plan"),
    "run": ("run", str(TINY), "--stage", "town"),
    "deploy": ("deploy",),
    "promote": ("promote", "policy/1"),
    "rollback": ("rollback", "policy", "--why", "it is no good"),
    "compare": ("compare", "policy/1", "policy/2"),
    "releases": ("releases",),
    "report": ("report",),
    "lineage": ("lineage", "policy"),
    "watch": ("watch",),
    "resume": ("resume", "nobody"),
    "retry": ("retry", "nobody"),
    "gc": ("gc",),
    "label open": ("label", "open", str(TINY), "--plan"),
    "label sync": ("label", "sync"),
    "label status": ("label", "status"),
    "label show": ("label", "show", "cmp_1"),
    "label export": ("label", "export", "a-release", "--out", "rows.jsonl"),
}
# In a fork for each command: the environment at the first import of Prefect or MLflow. The stack counts as running.
ORDER = """
import json, os, sys
import flows.pipeline.dag, labeling.server.client  # once for all forks
from flows.cli.main import main
from flows.stack import credentials, stack, state

class Watch:
    def find_spec(self, name, path=None, target=None):
        if name in ("prefect", "mlflow"):
            seen(name)

def seen(name):
    names = ("PREFECT_API_URL", "MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI", "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE")
    os.write(answer, json.dumps([name, [os.environ.get(name) for name in names]]).encode())
    os._exit(0)

def connect(home, needed):
    return stack.Stack(site=state.read(home).site(home, credentials.read(home)))

home, commands = sys.argv[1], json.loads(sys.argv[2])
stack.connect = connect
sys.meta_path.insert(0, Watch())
results = {}
for name, arguments in commands.items():
    readable, answer = os.pipe()
    child = os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_RDWR), 1)
        sys.argv = ["rlhf", "--home", home, *arguments]
        try:
            main()
        finally:
            os._exit(0)
    os.close(answer)
    os.waitpid(child, 0)
    results[name] = os.read(readable, 10_000).decode()
print(json.dumps(results))
"""
NO_LIBRARY = {"status", "label status", "label sync"}  # of those that this stack can answer without Prefect and MLflow


def execute(home: Path, *arguments: str, environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """Run `rlhf` in its own process, with this environment and without the variables of these tests."""
    unset = (*FOREIGN, *LABEL_STUDIO, "RLHF_HOME")
    variables = {name: value for name, value in os.environ.items() if name not in unset}
    return subprocess.run(
        [sys.executable, "-m", "flows.cli.main", "--home", str(home), *arguments],
        env={**variables, "COLUMNS": "200", "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=120,
    )


@pytest.fixture(scope="module")
def silent() -> Iterator[str]:
    """The address of a server that accepts connections and never answers."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(128)
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def stopped_stack(home: Path) -> Site:
    """A home with a stack that does not run."""
    servers = {name: state.Server(port=free_port()) for name in NAMES}
    state.write(home, state.State(servers={**servers}))
    return state.read(home).site(home, credentials.ensure(home))


def hanging_stack(home: Path, url: str) -> None:
    """A home with a stack whose servers run and never answer."""
    this = processes.Process(pid=os.getpid(), started_at=psutil.Process().create_time(), mark="")
    server = state.Server(port=int(url.rpartition(":")[2]), process=this)
    state.write(home, state.State(servers=dict.fromkeys(NAMES, server)))
    credentials.ensure(home)


# --- the home ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("home", "problem"),
    [
        ("file", "file is not a directory"),
        ("file/below", "file is not a directory"),
        ("loop", "Symlink loop"),
        ("loop/below", "Symlink loop"),
        ("n" * 300, "File name too long"),
        ("~nosuchuser/x", "home directory"),
        ("/proc/x", "nothing can be written in /proc"),
    ],
)
def test_a_home_that_cannot_be_a_directory(
    home: str, problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    Path("loop").symlink_to("loop")
    monkeypatch.setenv("RLHF_HOME", home)
    with pytest.raises(ConfigError, match=rf"the home .* cannot be used \(.*{problem}.*\): set RLHF_HOME or --home"):
        home_directory()


def test_a_home_may_be_new_or_behind_a_link(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("target")
    assert home_directory(tmp_path / "a" / "b") == tmp_path / "a" / "b"
    assert home_directory(tmp_path / "link" / "b") == tmp_path / "target" / "b"


# --- proxies -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, "localhost,127.0.0.1,::1"),
        ({"NO_PROXY": ".corp, 10.0.0.0/8"}, ".corp,10.0.0.0/8,localhost,127.0.0.1,::1"),
        ({"no_proxy": "a.org", "NO_PROXY": "b.org,localhost"}, "a.org,b.org,localhost,127.0.0.1,::1"),
        ({"NO_PROXY": "[::1],::1/128,fe80::/10,host:8080"}, "::1,host:8080,localhost,127.0.0.1"),
        ({"NO_PROXY": "*"}, "*,localhost,127.0.0.1,::1"),
    ],
)
def test_loopback_is_added_to_the_entries_of_the_user(environment: dict[str, str], expected: str) -> None:
    assert direct_loopback(environment) == {"no_proxy": expected, "NO_PROXY": expected}
    assert direct_loopback({}, "10.1.2.3")["NO_PROXY"].endswith(",10.1.2.3")
    assert direct_loopback(direct_loopback(environment)) == direct_loopback(environment)


def test_proxies_of_an_unknown_kind_are_named() -> None:
    proxies = {"ALL_PROXY": "socks://h:1", "all_proxy": "socks4://h:1", "HTTP_PROXY": "http://h:1"}
    proxies |= {"https_proxy": "h:3128", "FTP_PROXY": "ftp://h:1"}
    assert unusable_proxies(proxies) == ["ALL_PROXY", "all_proxy"]


@pytest.mark.parametrize("proxy", ["http://me:hunter22@h:port", "http://[::1", "http://", "h:99999"])
def test_a_proxy_or_an_exemption_that_cannot_be_read_is_named(
    proxy: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HTTP_PROXY", proxy)
    monkeypatch.setenv("https_proxy", "h:3128")
    monkeypatch.setenv("NO_PROXY", "b\u00fccher.example,\u00e9,[::1]:80,a:b,host:8080")
    monkeypatch.setenv("no_proxy", "")
    prepare()
    notes = capsys.readouterr().err
    assert "rlhf: HTTP_PROXY is ignored, because it is not the address of a proxy" in notes and "hunter22" not in notes
    assert "rlhf: '[::1]:80' in NO_PROXY is ignored" in notes and "rlhf: 'a:b' in NO_PROXY is ignored" in notes
    assert len(notes.splitlines()) == 3
    assert os.environ["NO_PROXY"] == "xn--bcher-kva.example,xn--9ca,host:8080,localhost,127.0.0.1,::1"
    assert "HTTP_PROXY" not in os.environ and os.environ["https_proxy"] == "h:3128"
    httpx.Client().close()


# --- what is foreign ---------------------------------------------------------------------------------------------


def test_what_names_another_server_or_an_account_there_is_foreign() -> None:
    ours = {"MLFLOW_TRACKING_URI": "http://127.0.0.1:5000", "LABEL_STUDIO_API_KEY": "ours"}
    theirs = {"MLFLOW_TRACKING_TOKEN": "t", "PREFECT_API_KEY": "k", "LABEL_STUDIO_API_KEY": "theirs"}
    assert foreign({"MLFLOW_TRACKING_URI": "http://127.0.0.1:5000/", "PREFECT_LOGGING_LEVEL": "DEBUG"}, ours) == {}
    assert foreign(theirs, ours) == theirs
    assert foreign({**ours, "LABEL_STUDIO_URL": "http://labels.example"}, ours) == {}  # a team's own server


@pytest.mark.parametrize("name", ["plan", "report", "label status"])
def test_the_note_names_hosts_and_no_secrets(name: str, tmp_path: Path) -> None:
    hanging_stack(tmp_path, "http://127.0.0.1:9")
    secret = {"MLFLOW_TRACKING_URI": "http://me:hunter22@mlflow.example:5000", "PREFECT_API_KEY": "hunter22"}
    done = execute(tmp_path, *COMMANDS[name], environment=secret)
    assert "hunter22" not in done.stdout + done.stderr and "Traceback" not in done.stderr, done.stderr
    assert "`rlhf up`" in done.stderr


def test_prefect_and_mlflow_are_pointed_at_the_stack_before_they_are_imported(tmp_path: Path) -> None:
    site = stopped_stack(tmp_path)
    expected = [f"{site.url('prefect')}/api", site.url("mlflow"), site.url("mlflow"), "false"]
    away = {"PREFECT_API_URL": "http://prefect.example/api", "MLFLOW_TRACKING_URI": "http://mlflow.example"}
    variables = {name: value for name, value in os.environ.items() if name not in (*FOREIGN, *LABEL_STUDIO)}
    arguments = [sys.executable, "-c", ORDER, str(tmp_path), json.dumps(COMMANDS)]
    done = subprocess.run(arguments, env=variables | away, capture_output=True, text=True, timeout=300, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    results: dict[str, str] = json.loads(done.stdout)
    assert {name for name, seen in results.items() if not seen} == NO_LIBRARY, done.stderr
    assert {name: json.loads(seen)[1] for name, seen in results.items() if seen} == {
        name: expected for name in COMMANDS if name not in NO_LIBRARY
    }
    note = "PREFECT_API_URL (prefect.example), MLFLOW_TRACKING_URI (mlflow.example)"
    assert done.stderr.count(note) == len(results) - 1  # all but `status`, which asks no server here


def test_no_help_imports_prefect_or_mlflow() -> None:
    code = """
import sys
from typer.testing import CliRunner
from flows.cli.main import app
import flows.operations.backup, flows.stack.postgres  # commands of the containers
for arguments in sys.argv[1:]:
    assert CliRunner().invoke(app, [*arguments.split(), "--help"]).exit_code == 0, arguments
print({"prefect", "mlflow", "torch"} & {*sys.modules})
"""
    names = [" ".join(arguments[: 2 if arguments[0] == "label" else 1]) for arguments in COMMANDS.values()]
    done = subprocess.run([sys.executable, "-c", code, *names], capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.stdout.strip() == "set()", done.stderr


# --- servers elsewhere -------------------------------------------------------------------------------------------


def test_a_home_without_a_stack_and_an_environment_without_servers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RLHF_HOME", str(tmp_path))
    for name in (*FOREIGN, *LABEL_STUDIO):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(StackError, match=r"Prefect and MLflow .*`rlhf up`, or set PREFECT_API_URL and MLFLOW_TRACKING"):
        use_stack("prefect", "mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    use_stack("mlflow")  # a store without a server
    monkeypatch.setenv("PREFECT_API_URL", f"http://me:hunter22@127.0.0.1:{free_port()}/api")
    with pytest.raises(StackError, match=r"Prefect at http://\*\*\*@127.0.0.1.*cannot be used: check PREFECT_API_URL"):
        use_stack("prefect", "mlflow")


@pytest.mark.parametrize(
    "url",
    [
        *("bob:hunter22@127.0.0.1:9", "http://bob:a/hunter22@h", "http://bob:1/hunter22@h", "http://hunter22/x@h"),
        *("http://bob:hunter22@[::1", "postgresql://u:hunter22@h/d", "file:///tmp/x", " ", "://x", "http://h:port"),
        *("http://", "hunter22://bob@h", "http://h:1\n"),
    ],
)
@pytest.mark.parametrize("variable", ["PREFECT_API_URL", "MLFLOW_TRACKING_URI", "LABEL_STUDIO_URL"])
def test_what_is_no_address_is_refused_without_its_secrets(
    url: str, variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RLHF_HOME", str(tmp_path))
    for name in (*FOREIGN, *LABEL_STUDIO):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, url)
    server = next(name for name in NAMES if ADDRESSES[name] == variable)
    for command in (lambda: use_stack(server), stack.status):
        with pytest.raises(StackError, match=rf"^{variable} must be http\(s\)://HOST") as refusal:
            command()
        assert "hunter22" not in str(refusal.value)
    assert "hunter22" not in addresses((server,))


def answering(answers: Mapping[str, str]) -> ThreadingHTTPServer:
    """A server in a thread; at other paths and for other methods it answers 404."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path in answers else 404)
            self.end_headers()
            self.wfile.write(answers.get(self.path, "").encode())

        def do_POST(self) -> None:
            self.do_GET()

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


@pytest.mark.parametrize(
    ("name", "answers", "problem"),
    [
        ("prefect", {"/api/health": "true", "/api/admin/version": '"3.1.0"'}, ""),
        ("prefect", {"/api/health": "<html>"}, r"not Prefect's API.*ends with /api.*200 with '<html>'"),
        ("prefect", {}, "not Prefect's API.*answers 404"),
        ("mlflow", {"/api/health": "OK", "/api/version": "3.1.0"}, ""),
        ("mlflow", {"/api/api/2.0/mlflow/experiments/search": "{}"}, ""),  # a gateway
        ("mlflow", {"/api/health": "OK"}, "not MLflow's tracking server: /health answers 200 with 'OK'"),
        ("mlflow", {"/api/health": "OK", "/api/version": "<html>"}, "not MLflow's tracking server"),
        ("mlflow", {}, "not MLflow's tracking server: /health answers 404"),
    ],
)
def test_a_server_that_answers_may_be_another(name: Name, answers: dict[str, str], problem: str) -> None:
    with answering(answers) as server:
        health = health_elsewhere(name, {ADDRESSES[name]: f"http://127.0.0.1:{server.server_port}/api/"})
        server.shutdown()
    assert health.ok == (not problem) and re.search(problem, health.problem), health


@pytest.mark.parametrize(
    ("name", "variable", "title"),
    [
        ("plan", "MLFLOW_TRACKING_URI", "MLflow"),
        ("report", "MLFLOW_TRACKING_URI", "MLflow"),
        ("status", "PREFECT_API_URL", "the servers"),
        ("watch", "PREFECT_API_URL", "Prefect"),
        ("label status", "LABEL_STUDIO_URL", "Label Studio"),
    ],
)
def test_a_silent_server_is_named_within_three_seconds_and_given_up(
    name: str, variable: str, title: str, silent: str, tmp_path: Path
) -> None:
    done = execute(tmp_path, *COMMANDS[name], environment={variable: silent, "LABEL_STUDIO_API_KEY": "f" * 40})
    where = "" if name == "status" else f" at {silent.removeprefix('http://')}"
    assert re.search(rf"rlhf: waiting for {title}{where} \([123] s\)", done.stderr)
    assert "timed out" in done.stdout + done.stderr and "Traceback" not in done.stderr
    assert name in ("status", "plan") or f"check {variable}" in done.stderr
    assert done.returncode == (0 if name in ("plan", "label status") else 1)


def test_a_server_that_hangs_after_its_health_check_is_given_up(tmp_path: Path) -> None:
    class Hanging(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path not in ("/health", "/version"):
                ended.wait(60)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"OK" if self.path == "/health" else b"3.1.0")

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    ended = threading.Event()
    with ThreadingHTTPServer(("127.0.0.1", 0), Hanging) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}"
        patience = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "3", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
        done = execute(tmp_path, *COMMANDS["report"], environment={"MLFLOW_TRACKING_URI": url, **patience})
        ended.set()
        server.shutdown()
    assert f"rlhf: {tmp_path} has no stack, so this uses MLflow at {url.removeprefix('http://')}" in done.stderr
    assert f"waiting for MLflow at {url.removeprefix('http://')} (" in done.stderr
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert re.search(rf"rlhf: MLflow \({url}/api/.*\) does not answer: `rlhf status` shows", done.stderr)


def test_a_stack_that_hangs_is_given_up_whatever_the_environment_says(silent: str, tmp_path: Path) -> None:
    hanging_stack(tmp_path, silent)
    done = execute(tmp_path, *COMMANDS["report"], environment={"MLFLOW_TRACKING_URI": BLACK_HOLE})
    assert re.search(rf"waiting for MLflow of the stack in {tmp_path} \([123] s\)", done.stderr)
    assert done.returncode == 1 and "MLflow (timed out)" in done.stderr and "`rlhf up`" in done.stderr


def test_a_wait_is_told_once_it_is_long(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flows.stack.environment.BRIEF_SECONDS", 0.05)
    monkeypatch.setattr("flows.stack.environment.REPEAT_SECONDS", 30.0)
    with waiting("waiting for what is quick"):
        pass
    with waiting("waiting for MLflow at mlflow.example"):
        time.sleep(0.2)
    assert capsys.readouterr().err == "rlhf: waiting for MLflow at mlflow.example (0 s)\n"


def test_a_clock_that_was_set_back_does_not_silence_a_wait(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("flows.stack.environment.SILENT_SECONDS", 0.1)
    monkeypatch.setattr("flows.stack.environment.BRIEF_SECONDS", 0.05)
    monkeypatch.setattr("flows.stack.environment._note_times", [time.time() + 6 * 3600])
    with waiting("waiting"):
        time.sleep(0.3)
    assert capsys.readouterr().err.startswith("rlhf: waiting (0 s)\n")


def test_a_line_is_repeated_often_at_first_and_then_seldom(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("flows.stack.environment.BRIEF_SECONDS", 0.05)
    monkeypatch.setattr("flows.stack.environment.SILENT_SECONDS", 0.05)
    monkeypatch.setattr("flows.stack.environment.REPEAT_SECONDS", 0.3)
    with waiting("waiting"):
        time.sleep(0.9)
    lines = len(capsys.readouterr().err.splitlines())
    assert 3 <= lines <= 9  # 0.05, 0.1, ... 0.3, 0.6: not 18


# --- workers -----------------------------------------------------------------------------------------------------


def test_workers_use_the_stack_and_the_team_s_own_label_studio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = stopped_stack(tmp_path)
    site = site.model_copy(update={"addresses": {**site.addresses, "ops-worker": f"127.0.0.1:{free_port()}"}})
    for name, value in hostile_environment(BLACK_HOLE).items():
        monkeypatch.setenv(name, value)
    worker = commands.launch_of("ops-worker", site).environment
    assert worker.items() >= site.client_environment().items()
    assert worker["PREFECT_SERVER_ALLOW_EPHEMERAL_MODE"] == "false"
    assert worker["no_proxy"] == worker["NO_PROXY"] == ".example,localhost,127.0.0.1,::1"
    assert not {"MLFLOW_TRACKING_TOKEN", "MLFLOW_RUN_ID", "PREFECT_API_KEY", "PREFECT_PROFILE"} & worker.keys()
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", "f" * 40)  # beside LABEL_STUDIO_URL
    worker = commands.launch_of("ops-worker", site).environment
    assert [worker[name] for name in LABEL_STUDIO] == [BLACK_HOLE, "f" * 40]


# --- Label Studio elsewhere --------------------------------------------------------------------------------------


def test_the_token_is_only_sent_to_the_server_that_it_belongs_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", "f" * 40)
    monkeypatch.setenv("LABEL_STUDIO_URL", "http://127.0.0.1:8080")
    monkeypatch.setenv("RLHF_PUBLIC_URL", "https://labels.example/")
    for url in (None, "http://localhost:8080/", "https://labels.example"):
        with client(LabelingConfig(url=url)) as label_studio:
            assert label_studio.url == (url or "http://127.0.0.1:8080").rstrip("/")
    with pytest.raises(StackError, match=r"labeling.url is https://other.example, but LABEL_STUDIO_API_KEY belongs to"):
        client(LabelingConfig(url="https://other.example"))
    monkeypatch.delenv("LABEL_STUDIO_URL")
    with client(LabelingConfig(url="https://other.example")) as label_studio:
        assert label_studio.url == "https://other.example"


def test_a_team_s_own_label_studio_is_used_beside_a_stack(
    silent: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stopped_stack(tmp_path)
    monkeypatch.setenv("RLHF_HOME", str(tmp_path))
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", "f" * 40)
    monkeypatch.setattr("flows.stack.health.PROBE_SECONDS", 0.2)
    for named, recipe in ((silent, None), ("", silent)):
        monkeypatch.setenv("LABEL_STUDIO_URL", named) if named else monkeypatch.delenv("LABEL_STUDIO_URL")
        with pytest.raises(StackError, match=rf"Label Studio at {silent} \(timed out\) cannot be used"):
            use_stack("label-studio", label_studio=recipe)
        assert f"Label Studio is {silent.removeprefix('http://')}, as LABEL_STUDIO_URL says" in capsys.readouterr().err
        assert os.environ["LABEL_STUDIO_API_KEY"] == "f" * 40
