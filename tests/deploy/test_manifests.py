"""deploy/: manifests that match their schemas, are hardened, and run what `rlhf up --profile production` runs."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from flows.stack import commands, outages, postgres
from flows.stack.services import DEFAULT_PORTS, POOLS, Credentials, Name, Secrets, Site
from labeling.server import gunicorn

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
KUBERNETES = "1.34"
LAUNCHED: tuple[Name, ...] = ("prefect", "mlflow", "label-studio", "train-worker", "ops-worker")
SECRET = "a secret: "
TOKEN = "0123456789" * 4
PUBLIC = {"compose": "${RLHF_PUBLIC_URL:-http://localhost:8080}", "k8s": "https://labels.example.org"}
S3 = {"AWS_ACCESS_KEY_ID_FILE", "AWS_SECRET_ACCESS_KEY_FILE", "AWS_DEFAULT_REGION", "MLFLOW_S3_ENDPOINT_URL"}


def site(public_url: str) -> Site:
    """A production stack as it looks from inside a container."""
    secrets = {name: SECRET + name for name in Secrets.model_fields} | {"mlflow_username": "rlhf"}
    credentials = Credentials(
        label_studio_email="owner@rlhf.local",
        label_studio_password=SECRET + "label_studio_password",
        label_studio_token=TOKEN,
        label_studio_secret_key=SECRET + "label_studio_secret_key",
        production=Secrets.model_validate(secrets),
    )
    addresses = {name: f"{'127.0.0.1' if name in POOLS else name}:{port}" for name, port in DEFAULT_PORTS.items()}
    return Site(
        home=Path("/var/lib/rlhf"),
        credentials=credentials,
        addresses=addresses,
        profile="production",
        bind="0.0.0.0",
        artifacts="s3://mlflow",
        public_url=public_url,
    )


def launch(name: Name, where: str) -> commands.Launch:
    """What the process profile starts, as it would be in a container."""
    there = site(PUBLIC[where])
    if name == "label-studio":
        settings = commands.label_studio_settings(there, Path("/usr/local/bin/label-studio"))
        return commands.label_studio_launch(there, settings, Path("/opt/rlhf") / gunicorn.CONFIGURATION.name)
    return commands.launch_of(name, there)


@cache
def compose() -> dict[str, Any]:
    """The compose file, with its anchors resolved."""
    return yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))


@cache
def manifests(overlay: str) -> tuple[dict[str, Any], ...]:
    """The objects of a kustomization."""
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed: it puts the kustomization together")
    command = ["kubectl", "kustomize", str(DEPLOY / "k8s" / overlay)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return tuple(yaml.load_all(done.stdout, yaml.CSafeLoader))


def workloads(overlay: str = "base") -> dict[str, dict[str, Any]]:
    """The pod of each workload by its name."""
    kinds = ("Deployment", "StatefulSet", "Job", "CronJob")
    found = {one["metadata"]["name"]: one["spec"] for one in manifests(overlay) if one["kind"] in kinds}
    return {
        name: (spec["jobTemplate"]["spec"] if "jobTemplate" in spec else spec)["template"]["spec"]
        for name, spec in found.items()
    }


def containers() -> dict[tuple[str, str], tuple[list[str], dict[str, str]]]:
    """Command and environment of every service of the compose file and every workload of the manifests."""
    found = {
        ("compose", name): (service.get("command", []), {k: str(v) for k, v in service.get("environment", {}).items()})
        for name, service in compose()["services"].items()
    }
    for name, pod in workloads().items():
        (container,) = pod["containers"]
        variables = {one["name"]: one["value"] for one in container.get("env", [])}
        found["k8s", name] = (container.get("args", []), variables)
    return found


def as_files(switches: dict[str, str]) -> dict[str, str]:
    """The variables of a launch with secrets in files: NAME_FILE in place of NAME."""
    told = {}
    for name, value in switches.items():
        secret = value.removeprefix(SECRET) if value.startswith(SECRET) else "label_studio_token" * (value == TOKEN)
        told |= {f"{name}_FILE": f"/run/secrets/{secret}"} if secret else {name: value}
    return told


@pytest.mark.parametrize("where", ["compose", "k8s"])
@pytest.mark.parametrize("name", LAUNCHED)
def test_containers_run_what_the_process_profile_runs(name: Name, where: str) -> None:
    expected = launch(name, where)
    command, environment = containers()[where, name]
    assert command == ["python" if part == sys.executable else part for part in expected.command]
    further = {key: environment.pop(key) for key in S3 & environment.keys()}
    assert environment == as_files(expected.switches)
    assert bool(further) == (name == "mlflow")


@pytest.mark.parametrize("where", ["compose", "k8s"])
def test_the_database_is_the_same(where: str) -> None:
    command, environment = containers()[where, "postgres"]
    assert command == ["postgres", *postgres.OPTIONS]
    assert "--auth=scram-sha-256" in environment["POSTGRES_INITDB_ARGS"]
    command, environment = containers()[where, "databases"]
    assert command == ["python", "-m", postgres.__name__]
    told = {name.removesuffix("_FILE"): value.removeprefix("/run/secrets/") for name, value in environment.items()}
    passwords = postgres.passwords_from(told)
    assert passwords == {name: f"{role}_database_password" for name, role in postgres.DATABASES.items()}


@pytest.fixture(autouse=True)
def our_own_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """How long clients ask again is taken from the environment where it is set there."""
    for name in outages.RETRIES:
        monkeypatch.delenv(name, raising=False)


def test_workers_are_for_the_pools_that_are_deployed_to() -> None:
    deployed = yaml.safe_load((DEPLOY / "prefect.yaml").read_text(encoding="utf-8"))["definitions"]["pools"]
    assert {name: pool["type"] for name, pool in deployed.items()} == dict.fromkeys(POOLS.values(), "process")


def test_ports_and_accounts_are_the_same() -> None:
    accounts = commands.mlflow_accounts(site(""))
    assert compose()["configs"]["basic_auth"]["content"] == accounts
    (config,) = (one for one in manifests("base") if one["metadata"]["name"] == "mlflow-accounts")
    assert config["data"]["basic_auth.ini"] == accounts
    ports = {
        one["metadata"]["name"]: one["spec"]["ports"][0]["port"]
        for one in manifests("base")
        if one["kind"] == "Service"
    }
    assert {name: port for name, port in ports.items() if name != "nginx"} == {
        name: port for name, port in DEFAULT_PORTS.items() if name not in POOLS
    }
    nginx = (DEPLOY / "nginx" / "nginx.conf").read_text(encoding="utf-8")
    assert f"server label-studio:{DEFAULT_PORTS['label-studio']};" in nginx
    assert f"listen {ports['nginx']};" in nginx


def test_the_compose_file_fits_its_schema() -> None:
    place = files("check_jsonschema").joinpath("builtin_schemas/vendor/compose-spec.json")
    schema = json.loads(place.read_text(encoding="utf-8"))
    jsonschema.Draft7Validator(schema).validate(compose())
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft7Validator(schema).validate({**compose(), "servces": {}})


@pytest.mark.parametrize("overlay", ["base", "gpu"])
def test_the_manifests_fit_their_schemas(overlay: str) -> None:
    for one in manifests(overlay):
        kubernetes_validate.validate(one, KUBERNETES, strict=True)
    broken = {**manifests(overlay)[0], "sepc": {}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, KUBERNETES, strict=True)


def test_every_service_is_locked_down_and_limited() -> None:
    services, secrets = compose()["services"], compose()["secrets"]
    for name, service in services.items():
        assert service["user"].split(":")[0] not in ("0", "root"), name
        assert service["read_only"] and service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["deploy"]["resources"]["limits"].keys() == {"cpus", "memory", "pids"}, name
        assert "healthcheck" in service or service["restart"] in ("on-failure", "no"), name
        assert set(service.get("secrets", [])) <= secrets.keys(), name
        assert all(not port.startswith("0.0.0.0") and ":" in port for port in service.get("ports", [])), name
    assert all("ports" not in services[name] for name in ("postgres", "minio", "label-studio"))
    assert compose()["networks"]["data"] == {"internal": True}
    assert services["postgres"]["networks"] == services["minio"]["networks"] == ["data"]


def test_every_pod_is_locked_down_and_limited() -> None:
    for name, pod in workloads().items():
        (container,) = pod["containers"]
        assert pod["securityContext"]["runAsNonRoot"] and not pod["automountServiceAccountToken"], name
        assert pod["enableServiceLinks"] is False, f"{name} would be told MLFLOW_PORT and the like by Kubernetes"
        inside = container["securityContext"]
        assert inside["readOnlyRootFilesystem"] and not inside["allowPrivilegeEscalation"], name
        assert inside["capabilities"] == {"drop": ["ALL"]}, name
        assert container["resources"]["limits"].keys() >= {"cpu", "memory"} == container["resources"]["requests"].keys()
        mounted = {item["key"] for volume in pod["volumes"] if "secret" in volume for item in volume["secret"]["items"]}
        asked = {one["value"] for one in container.get("env", []) if one["value"].startswith("/run/secrets/")}
        assert asked == {f"/run/secrets/{key}" for key in mounted}, name
    gpu = workloads("gpu")["train-worker"]["containers"][0]
    assert gpu["resources"]["limits"]["nvidia.com/gpu"] == "1" and gpu["image"].endswith("-cuda")


def images() -> Iterator[str]:
    yield from (service["image"] for service in compose()["services"].values())
    yield from (container["image"] for pod in workloads().values() for container in pod["containers"])
    for dockerfile in DEPLOY.glob("Dockerfile*"):
        yield from (line.split()[1] for line in dockerfile.read_text().splitlines() if line.startswith("FROM "))


def test_every_image_has_a_version() -> None:
    for image in images():
        tag = image.rpartition(":")[2]
        assert any(character.isdigit() for character in tag) and "latest" not in tag, image


def test_secrets_are_made_once_and_for_every_service(tmp_path: Path) -> None:
    script = shutil.copy(DEPLOY / "make-secrets.sh", tmp_path)
    subprocess.run([script], check=True, capture_output=True)
    made = {path.name: path.read_text() for path in (tmp_path / "secrets").iterdir()}
    assert made.keys() == compose()["secrets"].keys()
    assert len(set(made.values())) == len(made) and len(made["label_studio_token"]) == 40
    assert all(len(value) >= 40 for name, value in made.items() if name != "minio_user")
    assert (tmp_path / "secrets").stat().st_mode & 0o077 == 0
    subprocess.run([script], check=True, capture_output=True)
    assert made == {path.name: path.read_text() for path in (tmp_path / "secrets").iterdir()}


def test_secrets_come_from_files_and_not_by_the_command_line(tmp_path: Path) -> None:
    script = (DEPLOY / "secrets.sh").read_text().replace("\\/run\\/secrets\\/", str(tmp_path).replace("/", "\\/"))
    (tmp_path / "secrets.sh").write_text(script)
    (tmp_path / "password").write_text("with space and $dollar")
    told = {"PATH": "/usr/bin:/bin", "PGPASSWORD_FILE": f"{tmp_path}/password", "OTHER_FILE": "/etc/hosts"}
    command = ["sh", str(tmp_path / "secrets.sh"), "env"]
    said = subprocess.run(command, env=told, capture_output=True, text=True, check=True).stdout.splitlines()
    assert "PGPASSWORD=with space and $dollar" in said and "OTHER_FILE=/etc/hosts" in said
    assert not any(line.startswith("PGPASSWORD_FILE") for line in said)
    told |= {"PGPASSWORD_FILE": f"{tmp_path}/lost"}
    missing = subprocess.run(command, env=told, capture_output=True, text=True, check=False)
    assert missing.returncode == 1 and "PGPASSWORD_FILE cannot be read" in missing.stderr


def test_nginx_takes_its_configuration(tmp_path: Path) -> None:
    if shutil.which("nginx") is None:
        pytest.skip("nginx is not installed: `apt-get install nginx`")
    text = (DEPLOY / "nginx" / "nginx.conf").read_text(encoding="utf-8")
    text = text.replace("label-studio:8080", "127.0.0.1:1").replace("/tmp/", f"{tmp_path}/")
    (tmp_path / "nginx.conf").write_text(text)
    done = subprocess.run(["nginx", "-t", "-c", tmp_path / "nginx.conf"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
