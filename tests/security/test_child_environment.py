"""What a child process learns of the environment, and that every child is started with a chosen one."""

import ast
from pathlib import Path

import pytest

from alignment.rollout.server_process import without_secrets
from flows.stack import commands
from flows.stack.services import DEFAULT_PORTS, Credentials, Name, Secrets, Site
from labeling.child_environment import child_environment
from labeling.server import process as label_studio

ROOT = Path(__file__).parents[2]
SECRETS = {
    "HF_TOKEN": "hf-secret",
    "WANDB_API_KEY": "wandb-secret",
    "AWS_SECRET_ACCESS_KEY": "aws-secret",
    "GOOGLE_APPLICATION_CREDENTIALS": "/keys/google-secret.json",
    "GITHUB_TOKEN": "github-secret",
    "PREFECT_API_KEY": "prefect-secret",
    "OPENAI_API_KEY": "openai-secret",
    "DATABASE_URL": "postgresql://me:database-secret@db.example/data",
    "SSH_AUTH_SOCK": "/tmp/ssh-secret",
    "my_db_pwd": "lower-secret",
    "SESSION_COOKIE": "cookie-secret",
}
HOOKS = {
    "LD_PRELOAD": "/tmp/hook.so",
    "PYTHONSTARTUP": "/tmp/hook.py",
    "BASH_ENV": "/tmp/hook.sh",
    "PYTHONHOME": "/hook",
}
USEFUL = {
    "PATH": "/opt/bin:/usr/bin",
    "HOME": "/home/me",
    "LC_ALL": "C.UTF-8",
    "https_proxy": "http://me:pw@proxy:3128",
}
HARDWARE = {"CUDA_VISIBLE_DEVICES": "0", "NCCL_DEBUG": "INFO", "HF_HOME": "/cache", "TOKENIZERS_PARALLELISM": "false"}
ENVIRONMENT = {**SECRETS, **HOOKS, **USEFUL, **HARDWARE, "PWD": "/home/me", "PGSSLROOTCERT": "/root.crt"}
STARTS = {
    *(f"subprocess.{name}" for name in ("run", "Popen", "call", "check_call", "check_output", "getoutput")),
    *("asyncio.create_subprocess_exec", "asyncio.create_subprocess_shell", "os.posix_spawn", "os.posix_spawnp"),
    *(
        f"os.{name}{suffix}"
        for name in ("exec", "spawn")
        for suffix in ("v", "ve", "vp", "vpe", "l", "le", "lp", "lpe")
    ),
}
REVIEWED = {
    ("flows/stack/processes.py", "subprocess.Popen"): "Launch.environment",
    ("labeling/server/process.py", "subprocess.Popen"): "environment(settings)",
    ("alignment/rollout/server_process.py", "subprocess.Popen"): "without_secrets(os.environ), tested below",
    ("flows/stack/postgres.py", "subprocess.run"): "child_environment in the line before",
    ("alignment/distributed/parent_death.py", "os.execvp"): "the program that it was started for gets its environment",
}


def site(home: Path, *names: Name) -> Site:
    secrets = {name: f"ours-{name}" for name in Secrets.model_fields}
    credentials = Credentials(
        label_studio_email="a@b.c",
        label_studio_password="long enough",
        label_studio_token="a" * 40,
        label_studio_secret_key="s",
        production=Secrets.model_validate(secrets),
    )
    addresses = {name: f"127.0.0.1:{port}" for name, port in DEFAULT_PORTS.items()}
    return Site(home=home, credentials=credentials, addresses=addresses, profile="production")


def test_a_program_gets_an_allow_list() -> None:
    assert child_environment("program", ENVIRONMENT) == USEFUL
    assert child_environment("database-client", ENVIRONMENT) == {**USEFUL, "PGSSLROOTCERT": "/root.crt"}


def test_the_server_of_artifacts_has_the_accounts_of_their_stores() -> None:
    passed = child_environment("artifact-server", ENVIRONMENT)
    assert passed.keys() == {*USEFUL, "AWS_SECRET_ACCESS_KEY", "GOOGLE_APPLICATION_CREDENTIALS"}


def test_a_worker_has_the_settings_of_training_and_the_secrets_that_it_needs() -> None:
    passed = child_environment("worker", ENVIRONMENT)
    needed = {"HF_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "GOOGLE_APPLICATION_CREDENTIALS"}
    assert passed.keys() == {*USEFUL, *HARDWARE, *needed, "PWD", "PGSSLROOTCERT"}
    named = child_environment("worker", {**ENVIRONMENT, "RLHF_WORKER_VARIABLES": "OPENAI_API_KEY, LD_PRELOAD"})
    assert named.keys() - passed.keys() == {"OPENAI_API_KEY", "LD_PRELOAD", "RLHF_WORKER_VARIABLES"}


def test_training_in_several_processes_has_the_environment_of_one() -> None:
    assert child_environment("training", ENVIRONMENT) == ENVIRONMENT


@pytest.mark.parametrize("name", ["postgres", "prefect", "mlflow", "label-studio", "train-worker", "ops-worker"])
def test_no_part_of_a_stack_has_foreign_secrets(name: Name, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable, value in {**SECRETS, **HOOKS}.items():
        monkeypatch.setenv(variable, value)
    program = tmp_path / "label-studio"
    program.touch()
    monkeypatch.setenv("RLHF_LABEL_STUDIO", str(program))
    monkeypatch.setattr(commands.postgres, "programs", lambda: tmp_path)
    monkeypatch.setattr(commands.postgres, "account", lambda: None)
    environment = commands.launch_of(name, site(tmp_path)).environment
    worker = {"HF_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "GOOGLE_APPLICATION_CREDENTIALS"}
    needed = {"mlflow": {"AWS_SECRET_ACCESS_KEY", "GOOGLE_APPLICATION_CREDENTIALS"}}
    expected = worker if name.endswith("worker") else needed.get(name, set())
    assert {key for key, value in SECRETS.items() if environment.get(key) == value} == expected
    assert not HOOKS.keys() & environment.keys() and environment["PATH"]


def test_a_server_of_vllm_has_no_foreign_secrets() -> None:
    passed = without_secrets({**ENVIRONMENT, "VLLM_API_KEY": "its own"})
    secrets = {name for name in SECRETS if name in passed}
    assert not secrets and passed.items() >= HARDWARE.items() and passed["VLLM_API_KEY"] == "its own"


def test_label_studio_by_itself_has_no_foreign_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable, value in {**SECRETS, **HOOKS}.items():
        monkeypatch.setenv(variable, value)
    settings = label_studio.ServerSettings.model_validate(
        {"executable": tmp_path, "data_dir": tmp_path, "port": 1, "password": "long enough", "token": "a" * 40}
    )
    environment = label_studio.environment(settings)
    assert not (SECRETS | HOOKS).keys() & environment.keys()


def starts(source: str) -> list[tuple[str, bool]]:
    """The calls that start a process, and whether their environment comes from `child_environment`."""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    chosen = {word.value: word for call in calls for word in call.keywords if word.arg == "env"}
    return [
        (
            ast.unparse(call.func),
            any(w.value in chosen and "child_environment(" in ast.unparse(w) for w in call.keywords),
        )
        for call in calls
        if ast.unparse(call.func) in STARTS
    ]


@pytest.mark.parametrize("package", ["alignment", "flows", "labeling"])
def test_every_child_process_gets_an_environment_of_the_function(package: str) -> None:
    for path in sorted((ROOT / package).rglob("*.py")):
        source, name = path.read_text(encoding="utf-8"), str(path.relative_to(ROOT))
        imported = [node.module for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom)]
        assert "subprocess" not in imported, f"{name}: import subprocess as a module, so that its calls are seen"
        inherited = {call for call, chosen in starts(source) if not chosen and (name, call) not in REVIEWED}
        assert not inherited, f"{name}: {inherited} without env=child_environment(...)"


def test_the_reviewed_calls_exist() -> None:
    for (name, call), _ in REVIEWED.items():
        assert (call, False) in starts((ROOT / name).read_text(encoding="utf-8")), f"{name} has no {call} to review"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("subprocess.run(['git'])", [("subprocess.run", False)]),
        ("subprocess.Popen(c, env=os.environ)", [("subprocess.Popen", False)]),
        ("os.execvp(c, c)", [("os.execvp", False)]),
        ("subprocess.run(c, env={**child_environment('program', e), 'A': 'b'})", [("subprocess.run", True)]),
    ],
)
def test_starts_are_seen(line: str, expected: list[tuple[str, bool]]) -> None:
    assert starts(line) == expected
