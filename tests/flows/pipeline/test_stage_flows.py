"""Stages as separate flows, and collection of demonstrations, on a real Label Studio and Prefect."""

from pathlib import Path

import pytest

from alignment.errors import ConfigError
from alignment.records import Demonstration, read_records
from flows.annotation.accounts import remember
from flows.pipeline.stage_flows import collect_comparisons, collect_demonstrations
from flows.recipe.schema import Recipe, load_recipe
from labeling.server.client import LabelStudio
from labeling.server.users import ensure_account
from tests.conftest import TINY
from tests.labeling.helpers import TOKEN

pytestmark = pytest.mark.server
ANSWER = [
    {"from_name": "answer", "to_name": "prompt", "type": "textarea", "value": {"text": ["Mara Lind bakes the bread."]}},
]


@pytest.fixture
def recipe(workplace: Path, server_url: str, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    monkeypatch.setenv("LABEL_STUDIO_URL", server_url)
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", TOKEN)
    writing = ["labeling.title=writers", "labeling.demonstrations.prompts=2"]
    return load_recipe(str(TINY), writing)


def test_what_people_wrote_is_taken_as_it_comes(recipe: Recipe, owner: LabelStudio) -> None:
    first = collect_demonstrations(recipe)
    assert (first["asked"], first["written"]) == (2, 0)
    ours = [project for project in owner.projects() if project["title"].startswith("writers ")]
    assert [project["task_number"] for project in ours] == [2]  # nothing is opened to be judged
    account = ensure_account(owner, "wilma@rlhf.local", "password-of-wilma", "Wilma")
    remember(owner, [account.id])  # who only signed up does not count
    with LabelStudio(owner.url, account.token.get_secret_value()) as wilma:
        task = next(iter(owner.tasks(ours[0]["id"], "id")))
        wilma.annotate(task["id"], ANSWER, 5.0)
    second = collect_demonstrations(recipe)
    assert (second["asked"], second["written"]) == (2, 1)
    rows, bad = read_records(Path(second["file"]), Demonstration)
    assert [row.completion for row in rows] == ["Mara Lind bakes the bread."] and not bad
    assert len([one for one in owner.projects() if one["title"].startswith("writers ")]) == 1


def test_recipes_that_ask_nobody_are_refused(recipe: Recipe) -> None:
    silent = load_recipe(str(TINY))
    with pytest.raises(ConfigError, match=r"asks for no written answers: set labeling\.demonstrations\.prompts"):
        collect_demonstrations(silent)
    with pytest.raises(ConfigError, match="has no section `labeling`, so there is nothing to label"):
        collect_comparisons(load_recipe(str(TINY), ["labeling=null", "comparisons.sources=[{path: town://c.jsonl}]"]))
