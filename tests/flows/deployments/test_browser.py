"""Prefect's pages in a real browser: starting a run by the form, a refused value, and the links."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml
from playwright.sync_api import Locator, Page, expect
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterId

from flows.stack import credentials, entrance, processes
from flows.stack.health import health_of
from flows.stack.services import Name
from flows.stack.stack import Stack
from labeling.server.client import LabelStudio
from tests.flows.local import launch_of, site_of
from tests.labeling.browser import logged_in
from tests.labeling.helpers import TOKEN, free_port

pytestmark = [pytest.mark.server, pytest.mark.browser, pytest.mark.long]
SMALL: dict[str, Any] = {
    "name": "small",
    "description": "every stage in half a minute",
    "town": {"people": 12, "documents": 200, "demonstrations": 40, "prompts": 30, "heldout_prompts": 10},
    "tokenizer": {"vocab_size": 300},
    "pretrain": {
        "epochs": 1,
        "model": {"hidden_size": 16, "layers": 1, "heads": 2, "intermediate_size": 32, "context_length": 96},
    },
    "sft": {"epochs": 1, "max_length_tokens": 96},
    "sampling": {"prompts": 12, "max_new_tokens": 12},
    "labeling": {"title": "small", "rankings": {"prompts": 4}, "pairwise": {"prompts": 3}, "crew": {"annotators": 3}},
    "reward": {"epochs": 1, "max_length_tokens": 96},
    "reward_gate": {"min_accuracy_heldout_prompts": 0},
    "ppo": {"steps": 1, "batch_size": 8, "minibatch_size": 8, "max_new_tokens": 12},
    "evaluation": {"max_new_tokens": 12, "curve_prompts": 4},
}


@pytest.fixture(scope="module")
def servers(server_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A Prefect and an MLflow server of their own, beside the Label Studio of all tests."""
    home = tmp_path_factory.mktemp("stack")
    known = credentials.ensure(home).model_copy(update={"label_studio_token": TOKEN})
    names: tuple[Name, ...] = ("prefect", "mlflow")
    ports = {name: free_port() for name in names}
    site = site_of(home, {**ports, "label-studio": int(server_url.rpartition(":")[2])}, known)
    with ExitStack() as started:
        for name, port in ports.items():
            launch = launch_of(name, home, port, known)
            process = processes.launch(
                launch.command, environment=launch.environment, directory=launch.directory, log=home / f"{name}.log"
            )
            started.callback(processes.stop, process)
        deadline = time.monotonic() + 600
        while not all(health_of(name, site).ok for name in names):
            assert time.monotonic() < deadline, "the servers did not come up"
            time.sleep(0.5)
        yield Stack(site=site)


@pytest.fixture
def page(owner: LabelStudio) -> Iterator[Page]:
    """The browser of an engineer who is logged in to Label Studio."""
    with logged_in(owner, seconds=60, width=1400, height=900) as page:
        yield page


def run(servers: Stack, *command: str) -> str:
    """What a command prints in the surroundings of the stack."""
    told = {**os.environ, **servers.environment(), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    done = subprocess.run([sys.executable, "-m", *command], env=told, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def option(page: Page, *names: str) -> Locator:
    """The field of an option, by the labels of its sections and its own."""
    place = page.locator("body")
    for name in names:
        label = f"normalize-space()='{name} (Optional)' or normalize-space()='{name}'"
        place = place.locator(f"xpath=.//div[./div[contains(@class, 'p-label__header')]//span[{label}]]").first
    return place.locator("input, textarea").first


def open_form(page: Page, servers: Stack, deployment: str) -> None:
    """From the list of deployments to the form, as a person clicks."""
    page.goto(entrance.link(servers.site))
    page.wait_for_url(lambda url: "/enter" not in url)
    page.goto(f"{servers.urls['prefect']}/deployments")
    page.get_by_placeholder("Search deployments").fill(deployment)
    page.get_by_role("link", name=deployment, exact=True).first.click()
    page.get_by_role("button", name="Run", exact=True).click()
    page.get_by_text("Custom run").click()
    expect(option(page, "recipe", "name")).to_have_value(deployment)


def follow(page: Page, run_page: str, artifact: str) -> Page:
    """From a flow run's page over one of its artifacts to the page, in a tab of its own, where its link leads."""
    page.goto(run_page)
    page.get_by_text("Artifacts", exact=True).first.click()
    cards = page.locator("a[href*='/artifacts/artifact/']")
    expect(cards.first).to_be_visible()
    page.mouse.move(800, 700)
    deadline = time.monotonic() + 120
    while not cards.filter(has_text=artifact).count():  # the list holds what is seen, and grows with the scrolling
        assert time.monotonic() < deadline, f"no artifact {artifact} on {run_page}"
        page.mouse.wheel(0, 200)
        page.wait_for_timeout(200)
    cards.filter(has_text=artifact).first.click()
    with page.expect_popup() as opened:
        page.locator(".artifact-data-markdown a[href^=http]").first.click()
    return opened.value


def test_a_run_from_the_form_and_the_links_between_the_pages(servers: Stack, page: Page, tmp_path: Path) -> None:
    recipe = tmp_path / "small.yaml"
    recipe.write_text(yaml.safe_dump(SMALL))
    run(servers, "flows.cli.main", "deploy", str(recipe))
    assert "watch/watch" in run(servers, "flows.cli.main", "deploy", str(recipe))

    open_form(page, servers, "small")
    expect(option(page, "recipe", "pretrain", "model", "hidden_size")).to_have_value("16")
    expect(page.get_by_text("passes over the comparisons").first).to_be_attached()
    option(page, "recipe", "ppo", "kl_coef").fill("-1")
    page.get_by_role("button", name="Submit").click()
    refused = "Validation failed for field 'recipe.ppo.kl_coef'. Failure reason: -1 is less than the minimum of 0"
    expect(page.get_by_text(refused).first).to_be_visible()
    option(page, "recipe", "ppo", "kl_coef").fill("0.1")
    option(page, "recipe", "seed").fill("7")
    page.get_by_role("button", name="Submit").click()
    page.wait_for_url("**tab=Runs**")  # the deployment's runs, of which it is the first

    impossible = {"recipe": {**SMALL, "ppo": {"minibatch_size": 33}}}
    api = f"{servers.urls['prefect']}/api"
    with SyncPrefectClient(api, auth_string=servers.site.prefect_auth) as client:
        deployment = client.read_deployment_by_name("rlhf/small").id
        of_deployment = DeploymentFilter(id=DeploymentFilterId(any_=[deployment]))
        (started,) = client.read_flow_runs(deployment_filter=of_deployment)
        run_page = f"{servers.urls['prefect']}/runs/flow-run/{started.id}"
        refused_run = client.create_flow_run_from_deployment(deployment, parameters=impossible)
        for _ in range(2):  # the pool has one slot
            run(servers, "flows.deployments.worker", "--pool", "train", "--run-once")
        state = client.read_flow_run(refused_run.id).state
        assert state is not None and state.is_failed()
        assert "batch_size 128 is not a multiple of minibatch_size 33" in str(state.message)
        made = client.read_flow_run(started.id)
    assert made.state is not None and made.state.is_completed(), made.state
    assert made.parameters["recipe"]["ppo"]["kl_coef"] == 0.1 and made.parameters["recipe"]["seed"] == 7

    labelling = follow(page, run_page, "label-studio-ranking")
    expect(labelling.get_by_text("Labeling Instructions").first).to_be_visible()
    mlflow = follow(page, run_page, "mlflow-run")
    expect(mlflow.get_by_text("win_rate_vs_sft").first).to_be_attached()
    with mlflow.expect_popup() as opened:
        mlflow.get_by_role("link", name=f"{made.name} in Prefect").click()
    expect(opened.value.get_by_text(made.name).first).to_be_visible()
    assert opened.value.url == run_page
