"""Secrets: mode 0600 whatever the umask, and never in logs, parameters, tags, tracebacks or messages."""

import json
import logging
import os
import stat
import time
import traceback
from pathlib import Path

import httpx
import mlflow
import pytest
from mlflow import MlflowClient
from pydantic import ValidationError

from alignment.artifacts import PRIVATE, write_text
from alignment.errors import ConfigError
from flows.annotation.accounts import Account, Accounts
from flows.annotation.label_studio import client
from flows.recipe.credentials import redacted, secrets_of, shown_address
from flows.recipe.schema import Recipe, load_recipe
from flows.stack import credentials, stack
from flows.stack.commands import launch_of, prepare
from flows.stack.processes import StackError
from flows.stack.services import NAMES, Credentials, Name, Site
from flows.tracking import runs
from labeling.errors import LabelingError
from labeling.server.client import LabelStudio
from tests.conftest import TINY
from tests.labeling.helpers import TOKEN, free_port, settings

SECRET = "hunter2-hunter2"
WITH_USER = f"http://admin:{SECRET}@127.0.0.1:1"


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_files_of_secrets_are_for_their_owner_alone(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        credentials.ensure(tmp_path)
        path = tmp_path / "credentials.json"
        path.chmod(0o666)  # somebody loosened it; written again it is private
        write_text(path, path.read_text(), PRIVATE)
        (tmp_path / "annotators.json.partial").write_text("left by a killed process")
        write_text(tmp_path / "annotators.json", "{}", PRIVATE)
        prepare("mlflow", site(tmp_path))
    finally:
        os.umask(before)
    for name in ("credentials.json", "annotators.json"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "mlflow").stat().st_mode) == 0o700  # holds databases with tokens


def site(home: Path) -> Site:
    """A stack that does not run, with ports of its own."""
    addresses: dict[Name, str] = {name: f"127.0.0.1:{free_port()}" for name in NAMES}
    return Site(home=home, credentials=credentials.ensure(home), addresses=addresses)


def all_of(made: Credentials) -> list[str]:
    """The secret ones."""
    told = {**made.model_dump(), **(made.production.model_dump() if made.production else {})}
    hidden = {name: value for name, value in told.items() if not name.endswith(("email", "username"))}
    return [value for value in hidden.values() if isinstance(value, str)]


def test_what_prints_a_stack_prints_no_secret(tmp_path: Path) -> None:
    made = credentials.ensure(tmp_path, "production")
    place = site(tmp_path)
    launches = [launch_of(name, place) for name in ("mlflow", "label-studio")]
    shown = f"{place!r} {place} {made!r} {launches!r} {Account(id=1, password=SECRET, token=SECRET)!r}"
    shown += f"{LabelStudio('http://127.0.0.1:1', SECRET)!r} {settings(tmp_path)!r}"
    assert not [one for one in [*all_of(made), SECRET, TOKEN] if one in shown]
    commands = " ".join(word for launch in launches for word in launch.command)
    assert not [one for one in all_of(made) if one in commands]  # everybody can list commands


def test_a_file_of_secrets_that_cannot_be_read_is_not_repeated(tmp_path: Path) -> None:
    made = credentials.ensure(tmp_path).model_dump()
    (tmp_path / "credentials.json").write_text(json.dumps(made | {"extra": SECRET, "label_studio_token": [SECRET]}))
    with pytest.raises(StackError) as caught:
        stack.status(tmp_path)
    told = "".join(traceback.format_exception(caught.value))
    assert "credentials.json cannot be read" in told
    assert not [one for one in (SECRET, *map(str, made.values())) if one in told]
    with pytest.raises(ValidationError) as refused:
        Accounts.model_validate({"servers": {"s": {"e": {"id": "x", "password": SECRET, "token": SECRET}}}})
    assert SECRET not in str(refused.value)


@pytest.mark.parametrize(
    "override",
    [
        f"labeling.url={WITH_USER}",
        f"labeling.webhook=http://127.0.0.1/?token={SECRET}",
        f"pretrain.checkpoint=https://x:{SECRET}@huggingface.co/a/b",
        f"description=see ftp://me:{SECRET}@host/x",
    ],
)
def test_a_recipe_with_credentials_in_an_address_is_refused_and_not_repeated(override: str) -> None:
    with pytest.raises(ConfigError, match="contains credentials in a URL") as caught:
        load_recipe(str(TINY), [override, "ppo.steps=none"])
    assert override.partition("=")[0] in str(caught.value)
    assert SECRET not in "".join(traceback.format_exception(caught.value))


def test_a_form_that_is_refused_does_not_repeat_the_secret() -> None:
    with pytest.raises(ValidationError, match="contains credentials") as caught:
        Recipe.model_validate({"name": "x", "labeling": {"url": WITH_USER}})
    assert SECRET not in str(caught.value) and SECRET not in repr(caught.value)


def test_label_studio_with_credentials_in_its_address_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LABEL_STUDIO_URL", WITH_USER)
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", SECRET)
    with pytest.raises(StackError, match="LABEL_STUDIO_URL contains credentials") as caught:
        client(load_recipe(str(TINY)).labeling)  # type: ignore[arg-type]
    assert SECRET not in str(caught.value)


def test_a_server_that_fails_gives_the_token_away_neither_in_the_message_nor_in_the_traceback(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        if "boom" in str(request.url):
            raise httpx.ReadError("connection lost", request=request)
        return httpx.Response(403, request=request, text="not allowed")

    monkeypatch.setattr(httpx, "HTTPTransport", lambda **_: httpx.MockTransport(answer))
    for path in ("/api/boom", "/api/refused"):
        api = LabelStudio("http://127.0.0.1:1", SECRET, attempts=1)
        with pytest.raises(LabelingError, match=r"connection lost|was refused with 403") as caught:
            api.get(path)
        told = traceback.TracebackException.from_exception(caught.value, capture_locals=True)
        assert SECRET not in "".join(told.format())


def test_an_invitation_that_is_refused_is_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    refusing = httpx.MockTransport(lambda request: httpx.Response(403, request=request, text="no"))
    monkeypatch.setattr(httpx, "HTTPTransport", lambda **_: refusing)
    api = LabelStudio("http://127.0.0.1:1", SECRET, attempts=1)
    with pytest.raises(LabelingError, match=r"GET http://127\.0\.0\.1:1/user/signup/ was refused") as caught:
        api.get("/user/signup/", token=SECRET)
    assert SECRET not in str(caught.value)


def test_a_run_in_mlflow_names_no_secret(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", SECRET)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", SECRET)
    with runs.pipeline_run("tiny", recipe=load_recipe(str(TINY)), flow_run_id="f") as run_id:
        pass
    told = MlflowClient().get_run(run_id).to_dictionary()
    assert SECRET not in json.dumps(told)
    assert not [name for name in {**told["data"]["tags"], **told["data"]["params"]} if "API_KEY" in name]
    assert SECRET not in "".join(path.read_text(errors="replace") for path in home.rglob("*.yaml"))
    mlflow.end_run()


def test_what_is_secret_by_its_name_is_taken_out_of_a_text() -> None:
    environment = {
        "LABEL_STUDIO_API_KEY": SECRET,
        "HF_TOKEN": "tokentoken",
        "PREFECT_API_AUTH_STRING": "admin:pass1234",
        "RLHF_TOKENIZER": "keepme-keepme",
        "SHORT_TOKEN": "x",
        "label_studio_password": "pass-word-1",
    }
    found = secrets_of(environment)
    assert found == {SECRET, "tokentoken", "admin:pass1234", "pass-word-1"}
    text = f"Token {SECRET} at https://me:{SECRET[::-1]}@host/a?b=1&api_key=abc&c=2 keepme-keepme x"
    assert redacted(text, found) == "Token *** at https://***@host/a?b=1&api_key=***&c=2 keepme-keepme x"


def test_http_libraries_do_not_tell_addresses_by_themselves() -> None:
    for name in ("httpx", "httpcore", "urllib3"):
        assert logging.getLogger(name).getEffectiveLevel() >= logging.WARNING


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://bob:a/hunter22@host:1/x", "http://***@host:1/x"),
        ("http://bob:hunt@er22@host", "http://***@host"),
        ("bob:hunter22@host", "***@host"),
        ("hunter22://bob@host", "***@host"),
        ("http://host/?token=hunter22", "http://host/?token=***"),
        ("http://host:1/a", "http://host:1/a"),
    ],
)
def test_an_address_is_shown_without_what_stands_before_an_at(url: str, shown: str) -> None:
    assert shown_address(url) == shown
    if url.startswith("http"):
        assert redacted(f"at {url} said <me@x>") == f"at {shown} said <me@x>"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("proxy bob:hunter22@host:3128 refused", "proxy ***@host:3128 refused"),
        ("bob:hunter22@10.0.0.1", "***@10.0.0.1"),
        ("bob:hunter22@[::1]:80", "***@[::1]:80"),
        ("'bob:hunt@er/22@host'", "'***@host'"),
        ("proxy=bob:hunter22@host,", "proxy=***@host,"),
        ('{"proxy": "bob:hunter22@host"}', '{"proxy": "***@host"}'),
        ("(bob:hunter22@host)", "(***@host)"),
        ("at 12:30 me@example.org wrote: a:b", "at 12:30 me@example.org wrote: a:b"),
        ("git@github.com:owner/name.git", "git@github.com:owner/name.git"),
        ("host:80/a b@c", "host:80/a b@c"),
        ("https://bob:hunter22@host and ann:hunter23@host", "https://***@host and ***@host"),
    ],
)
def test_credentials_without_a_scheme_are_taken_out_of_a_text(text: str, shown: str) -> None:
    assert redacted(text) == shown


@pytest.mark.parametrize("text", ["a", "a:", "a:b,", "@", "a://", "a://b:", "?token", "a:b@"])
def test_long_texts_take_no_time(text: str) -> None:
    started = time.monotonic()
    redacted(text * (50_000 // len(text)))
    assert time.monotonic() - started < 10
