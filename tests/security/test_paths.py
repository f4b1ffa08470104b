"""No name in a recipe, tag, listing or release escapes its root; oversized files are refused."""

import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from alignment.artifacts import directory_digest, output_name
from alignment.config.stages import SFTConfig
from alignment.data.readers import locate
from alignment.errors import ArtifactError, ConfigError
from alignment.plain_yaml import plain_yaml
from flows.recipe.schema import load_recipe
from flows.releases.report import load_release
from flows.releases.trace import stage_output
from flows.tracking import runs
from tests.flows.tiny import Counted, run_stage


def recipe(place: Path, *lines: str) -> str:
    """A recipe file of these lines."""
    path = place / "recipe.yaml"
    path.write_text("\n".join(["labeling: null", "town: {}", *lines]))
    return str(path)


@pytest.mark.parametrize("name", ["../../etc/passwd", "a/../../b", "/etc/passwd", "..", ""])
def test_names_of_data_and_of_the_town_stay_below_their_root(tmp_path: Path, name: str) -> None:
    told = recipe(tmp_path, f"comparisons: {{sources: [{{path: 'data://{name}'}}]}}")
    with pytest.raises(ConfigError, match="leads out of data://"):
        load_recipe(told)
    with pytest.raises(ConfigError, match="leads out of town://"):
        locate(f"town://{name}", tmp_path)


def test_names_below_the_root_are_found(tmp_path: Path) -> None:
    told = recipe(tmp_path, "data_root: somewhere", "comparisons: {sources: [{path: 'data://a/b..c.jsonl'}]}")
    assert load_recipe(told).comparisons.sources[0].path == "somewhere/a/b..c.jsonl"
    assert locate("town://corpus.jsonl", tmp_path) == tmp_path / "corpus.jsonl"


BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{now}: &{now} [{', '.join([f'*{before}'] * 10)}]\n" for before, now in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (BOMB, "more than 100000 values"),
        ("name: &a [*a]", "nested deeper"),
        ("name: " + "[" * 3000 + "]" * 3000, "nested deeper"),
        ("name: " + "x" * 1_000_001, "more than 1000000"),
        ('name: !!python/object/apply:os.system ["true"]', "could not determine a constructor"),
    ],
)
def test_yaml_that_grows_or_runs_is_refused(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "bomb.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=words):
        load_recipe(str(path))
    with pytest.raises(ConfigError, match=r"--set name="):
        load_recipe("town", [f"name={text.removeprefix('name: ')}"] if text is not BOMB else ["name={x: &a [*a]}"])


def test_aliases_that_only_save_words_are_read() -> None:
    assert plain_yaml("a: &a {b: 1}\nc: *a") == {"a": {"b": 1}, "c": {"b": 1}}


@pytest.mark.parametrize(("stage", "key"), [("../../evil", "0" * 64), ("sft", "../../evil"), ("?", ""), ("a/b", "0")])
def test_the_name_of_an_output_is_a_plain_name(stage: str, key: str) -> None:
    assert output_name("best_of_n", "0" * 64) == "best_of_n-" + "0" * 16
    with pytest.raises(ArtifactError, match="name no output"):
        output_name(stage, key)


def test_a_tag_that_was_changed_in_mlflow_leads_nowhere(home: Path) -> None:
    made = run_stage("comparisons", Counted(), config=SFTConfig())
    MlflowClient().set_tag(made.run_id, runs.TAG_STAGE, "../../evil")
    with pytest.raises(ArtifactError, match="was a run's tag changed in MLflow"):
        stage_output(made.run_id)
    assert not (home.parent / "evil-").exists() and not (home / "fetched").exists()


@pytest.mark.parametrize("name", ["x' or tags.y = 'z", "../../etc/passwd", "a`b"])
def test_the_name_of_a_release_is_text_and_nothing_else(home: Path, name: str) -> None:
    with pytest.raises(ArtifactError, match="no release"):
        load_release(name)


def test_a_link_in_an_artifact_store_is_not_taken_for_an_output(home: Path, tmp_path: Path) -> None:
    work = Counted()
    made = run_stage("sft", work, config=SFTConfig())
    secret = tmp_path / "secret"
    secret.write_text("an output\n")  # even with the right content
    (stored,) = (home / "mlruns").rglob("text.txt")
    stored.unlink()
    stored.symlink_to(secret)
    digest = directory_digest(made.path)
    for path in sorted(made.path.rglob("*"), reverse=True):
        path.unlink()
    made.path.rmdir()
    again = run_stage("sft", work, config=SFTConfig())
    assert directory_digest(again.path) == digest or not again.cached
    assert not any(path.is_symlink() for path in again.path.rglob("*"))


class Hostile(http.server.BaseHTTPRequestHandler):
    """An MLflow server whose listing of a run's artifacts names a file outside."""

    named = "../../../evil"

    def do_GET(self) -> None:
        asked = urlsplit(self.path)
        if asked.path.endswith("/runs/get"):
            info = {
                "run_id": "r",
                "run_uuid": "r",
                "experiment_id": "1",
                "status": "FINISHED",
                "artifact_uri": "mlflow-artifacts:/1/r/artifacts",
                "lifecycle_stage": "active",
            }
            self._send({"run": {"info": info, "data": {}}})
        elif asked.path.endswith("/mlflow-artifacts/artifacts"):
            inside = parse_qs(asked.query).get("path", [""])[0].endswith("output")
            self._send(
                {
                    "files": [{"path": self.named, "is_dir": False, "file_size": 4}]
                    if inside
                    else [{"path": "output", "is_dir": True}]
                }
            )
        elif "/mlflow-artifacts/artifacts/" in asked.path:
            self._send("evil")
        else:
            self._send({})

    def _send(self, value: Any) -> None:
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def hostile() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hostile) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize("named", ["../../../evil", "/tmp/evil", "..%2f..%2fevil", "output/../../../../evil"])
def test_a_listing_of_artifacts_cannot_write_outside(
    hostile: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: str
) -> None:
    monkeypatch.setattr(Hostile, "named", named)
    place = tmp_path / "a" / "b" / "c"
    place.mkdir(parents=True)
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(hostile)
    try:
        runs.fetch_output("r", place)
    except (MlflowException, OSError):
        pass
    finally:
        mlflow.set_tracking_uri(before if before.startswith(("http", "sqlite")) else None)  # type: ignore[arg-type]
    outside = [path for path in tmp_path.rglob("*") if path.is_file() and place not in path.parents]
    assert not outside and not Path("/tmp/evil").exists()
