"""`rlhf label open` against a real server: plan, open, reopen, changed label config, accounts, budgets, selection."""

import json
import re
import stat
from pathlib import Path

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner, Result

from alignment.errors import ArtifactError, ConfigError, DataError
from alignment.records import (
    Demonstration,
    Message,
    Prompt,
    Rejected,
    Response,
    ResponseSet,
    read_records,
    write_records,
)
from flows.annotation import open as opening
from flows.annotation.accounts import accounts_file, ensure_people, known_accounts, states
from flows.annotation.label_studio import annotation_store
from flows.annotation.select import Material, read_material, within_budget
from flows.cli.main import app
from labeling.config import Choice, LabelingConfig, PairwiseTasks, RankingTasks
from labeling.server.client import LabelStudio
from labeling.server.users import ensure_account, members
from labeling.server.webhooks import has_webhook
from labeling.simulation.crew import ranking_result
from labeling.store.sync import sync
from tests.labeling.helpers import TOKEN, free_port, response_set

RECIPE = {
    "town": None,
    "comparisons": {"sources": []},
    "demonstrations": {"sources": []},
    "corpus": {"sources": []},
    "prompts": {"sources": []},
}


def open_(recipe: Path, *arguments: str) -> Result:
    return CliRunner().invoke(app, ["label", "open", str(recipe), *arguments], env={"COLUMNS": "240"})


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RLHF_HOME", str(tmp_path))
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", TOKEN)
    monkeypatch.setenv("LABEL_STUDIO_URL", f"http://127.0.0.1:{free_port()}")
    return tmp_path


@pytest.fixture
def on_server(home: Path, owner: LabelStudio, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LABEL_STUDIO_URL", owner.url)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{home / 'mlflow.db'}")  # nothing is read from it
    return home


def recipe_file(home: Path, title: str, sets: list[ResponseSet], **labeling: object) -> Path:
    write_records(home / "responses.jsonl", sets)
    told = {
        "annotators": "people",
        "title": title,
        "responses": [str(home / "responses.jsonl")],
        "rankings": {"prompts": 4, "overlap": 2},
        "pairwise": {"prompts": 2, "overlap": 1},
    }
    path = home / f"{title}.yaml"
    path.write_text(yaml.safe_dump({"name": title, **RECIPE, "labeling": told | labeling}))
    return path


@pytest.mark.server
def test_open_again_changes_nothing_and_a_new_screen_keeps_the_old_project(on_server: Path, owner: LabelStudio) -> None:
    people = ["nora@open.local", "omar@open.local"]
    recipe = recipe_file(on_server, "opened", [response_set(n) for n in range(6)], people=people)

    def of_title() -> dict[str, int]:
        return {p["title"]: p["task_number"] for p in owner.projects() if p["title"].startswith("opened ")}

    planned = open_(recipe, "--plan")
    assert planned.exit_code == 0, planned.output
    assert "nothing was changed" in planned.output and not of_title() and not accounts_file().exists()
    # 4 tasks · 2 people · 240 s + 2 · 1 · 120 s = 0.53 h + 0.07 h
    assert "0.5" in planned.output and "0.1" in planned.output and "about 0.6 annotator hours" in planned.output
    assert "240 s, assumed" in planned.output and "account nora@open.local: new" in planned.output
    assert open_(recipe).exit_code == 1 and not of_title()  # nobody said yes
    opened = open_(recipe, "--yes")
    assert opened.exit_code == 0, opened.output
    assert sorted(of_title().values()) == [2, 4] and "/data?labeling=1" in opened.output
    assert f"{owner.url}/user/signup/?token=" in opened.output
    kept = json.loads(accounts_file().read_text())["servers"][owner.url]
    assert list(kept) == people and stat.S_IMODE(accounts_file().stat().st_mode) == 0o600
    with LabelStudio(owner.url, kept[people[0]]["token"]) as nora:
        assert nora.whoami()["email"] == people[0]
        number = next(p["id"] for p in owner.projects() if p["title"].startswith("opened ranking"))
        row = owner.tasks(number, "id", "data")[0]
        nora.annotate(row["id"], ranking_result([one["id"] for one in row["data"]["responses"]]), 9.0)
    before = (of_title(), accounts_file().read_bytes())
    again = open_(recipe)  # and does not ask
    assert again.exit_code == 0 and "nothing to do: everything exists already" in again.output
    assert (of_title(), accounts_file().read_bytes()) == before
    (on_server / "ours").mkdir()
    (on_server / "ours" / "screen.yaml").write_text("labels: {done: 'Finished?'}")
    changed = open_(recipe, "--yes", "--set", f"labeling.guidelines={on_server / 'ours'}")
    assert "opened ranking is another collection (another screen or other guidelines)" in changed.output
    assert "stays with its 1 annotations" in changed.output and "opened ranking 2 (new)" in changed.output
    assert of_title() == {
        "opened ranking": 4,
        "opened ranking 2": 4,
        "opened pairwise": 2,
        "opened pairwise 2": 2,
    }


@pytest.mark.server
def test_another_overlap_is_another_collection_and_answers_are_added(on_server: Path, owner: LabelStudio) -> None:
    recipe = recipe_file(on_server, "grows", [response_set(n) for n in range(9)])
    assert open_(recipe, "--yes").exit_code == 0
    writing = ["--set", "labeling.demonstrations={prompts: 3, overlap: 2, draft: true}"]
    hook = ["--set", "labeling.webhook=http://127.0.0.1:9/"]
    more = [*writing, *hook, "--set", "labeling.rankings={prompts: 5, overlap: 3}"]
    shown = open_(recipe, "--yes", *more)
    assert shown.exit_code == 0, shown.output
    assert "grows ranking is another collection (2 per task) and stays with its 0 annotations" in shown.output
    assert "grows pairwise is another collection (other prompts or responses)" in shown.output
    assert "600 s, assumed" in shown.output and "3 webhooks to http://127.0.0.1:9/ are missing" in shown.output
    everything = {p["title"]: p for p in owner.projects() if p["title"].startswith("grows ")}
    assert {title: (p["task_number"], p["maximum_annotations"]) for title, p in everything.items()} == {
        "grows ranking": (4, 2),  # as they were opened
        "grows pairwise": (2, 1),
        "grows ranking 2": (5, 3),
        "grows pairwise 2": (2, 1),  # the fifth prompt is now ranked, and the seventh compared
        "grows demonstration": (3, 2),
    }
    found = {title: p for title, p in everything.items() if title not in ("grows ranking", "grows pairwise")}
    assert all(has_webhook(owner, p["id"], "http://127.0.0.1:9/") for p in found.values())
    (row, *_) = owner.tasks(found["grows demonstration"]["id"], "id", "data", "total_predictions", "predictions")
    assert row["data"]["draft"] in {response.text for response in response_set(0).responses}
    assert "nothing to do" in open_(recipe, *more).output
    assert "nothing to do" in open_(recipe).output
    assert open_(recipe, "--yes", *more, "--set", "labeling.demonstrations.prompts=4").exit_code == 0
    assert owner.project(found["grows demonstration"]["id"])["task_number"] == 4  # answers are written as they come
    number, out = found["grows demonstration"]["id"], on_server / "written.jsonl"
    asked = ("label", "demonstrations", "--out", str(out), str(number))
    assert "`rlhf label sync`" in str(CliRunner().invoke(app, asked).exception)
    answer = {"from_name": "answer", "to_name": "prompt", "type": "textarea", "value": {"text": [" Mara Lind. "]}}
    owner.annotate(row["id"], [answer], 30.0)
    owner.annotate(row["id"], [{"foo": "bar"}], 30.0)
    sync(owner, annotation_store(), [number])
    told = CliRunner().invoke(app, asked)
    assert told.exit_code == 0, told.output
    (made,), _ = read_records(out, Demonstration)
    assert made.completion == "Mara Lind." and made.messages[-1].content == row["data"]["prompt"]
    (aside,), _ = read_records(on_server / "written.rejected.jsonl", Rejected)
    assert "without a control name" in aside.reason


@pytest.mark.server
def test_demonstrations_alone_need_prompts_and_no_responses(
    on_server: Path, owner: LabelStudio, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = [response_set(n).prompt.model_copy(update={"split": "train"}) for n in range(3)]
    write_records(on_server / "prompts" / "prompts.jsonl", prompts)
    monkeypatch.setattr(opening, "stage_output", lambda stage, key, command: {"prompts": on_server / "prompts"}[stage])
    recipe = recipe_file(
        on_server,
        "answers",
        [],
        responses=[],
        demonstrations={"prompts": 2},
        rankings={"prompts": 0},
        pairwise={"prompts": 0},
    )
    opened = open_(recipe, "--yes")
    assert opened.exit_code == 0, opened.output
    (project,) = [one for one in owner.projects() if one["title"].startswith("answers ")]
    assert project["task_number"] == 2 and "answers demonstration" in project["title"]
    run = CliRunner().invoke(app, ["run", str(recipe)])
    assert run.exit_code == 1 and "which `rlhf label open` collects" in str(run.exception)


@pytest.mark.server
def test_accounts_of_people_who_chose_a_password_or_changed_a_token(on_server: Path, owner: LabelStudio) -> None:
    ensure_account(owner, "paul@open.local", "a password of his own")
    told = ["paul@open.local", "Quinn@open.local"]
    assert states(owner, told) == {"paul@open.local": "signed up", "Quinn@open.local": "new"}
    paul = members(owner)["paul@open.local"].id
    assert paul not in known_accounts(owner)
    assert ensure_people(owner, told)["Quinn@open.local"] == "new"
    assert states(owner, told)["paul@open.local"] == "signed up" and paul not in known_accounts(owner)
    assert ensure_people(owner, told, ["paul@open.local"])["Quinn@open.local"] == "ready"
    assert states(owner, told)["paul@open.local"] == "own password"
    assert {paul, members(owner)["quinn@open.local"].id, owner.whoami()["id"]} <= known_accounts(owner)
    assert states(owner, told)["Quinn@open.local"] == "ready"
    book = json.loads(accounts_file().read_text())
    old = book["servers"][owner.url]["Quinn@open.local"]["token"]
    with LabelStudio(owner.url, old) as quinn:
        quinn.post("/api/current-user/reset-token/", {})
    assert ensure_people(owner, told)["Quinn@open.local"] == "token changed"
    assert states(owner, told)["Quinn@open.local"] == "ready"
    accounts_file().write_text("{}}")
    with pytest.raises(ArtifactError, match=r"annotators\.json cannot be read"):
        states(owner, told)


@pytest.mark.server
def test_an_account_that_signed_up_before_it_was_named_counts_when_a_person_says_whose_it_is(
    on_server: Path, owner: LabelStudio
) -> None:
    """A stranger with the invitation can sign up with anybody's address before the team names it."""
    for name in ("carol", "dora", "erik"):
        ensure_account(owner, f"{name}@named.local", "a password of a stranger")
    people = [f"{name}@named.local" for name in ("carol", "dora", "erik")]
    carol, dora, erik = (members(owner)[email].id for email in people)
    recipe = recipe_file(on_server, "named", [response_set(n) for n in range(6)], people=people)
    opened = open_(recipe, "--yes", "--accept", "dora@named.local")
    assert opened.exit_code == 0, opened.output
    today = members(owner)["carol@named.local"].joined
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d", today)
    assert f"account carol@named.local: signed up by itself on {today} UTC" in opened.output
    assert "account carol@named.local signed up by itself and does not count" in opened.output
    assert {carol, dora, erik} & known_accounts(owner) == {dora}
    asked = CliRunner().invoke(app, ["label", "open", str(recipe)], input="y\nn\ny\n")
    assert asked.exit_code == 0 and "is the account carol@named.local theirs?" in asked.output
    assert {carol, dora, erik} & known_accounts(owner) == {dora, erik}
    strange = open_(recipe, "--yes", "--accept", "fred@named.local")
    assert strange.exit_code == 1 and "labeling.people does not name" in str(strange.exception)


@pytest.mark.server
def test_hours_are_a_budget_that_stands_when_the_pace_changes(on_server: Path, owner: LabelStudio) -> None:
    sets = [response_set(n) for n in range(30)]
    recipe = recipe_file(
        on_server,
        "budget",
        sets,
        rankings={"prompts": 24, "overlap": 1},
        pairwise={"prompts": 0},
        choose={"by": "random", "hours": 1.4},
    )
    assert open_(recipe, "--yes").exit_code == 0  # 24 · 240 s = 1.6 h; 1.4 h pay for 21
    number = next(p["id"] for p in owner.projects() if p["title"].startswith("budget ranking"))
    rows = owner.tasks(number, "id", "data")
    assert len(rows) == 21
    for row in rows:
        owner.annotate(row["id"], ranking_result([one["id"] for one in row["data"]["responses"]]), 100.0)
    store = annotation_store()
    sync(owner, store, [number])
    assert "nothing to do" in open_(recipe).output
    other = open_(recipe, "--plan", "--set", "labeling.choose.hours=0.5")  # 18 · 100 s are half an hour
    assert "100 s, measured on 21" in other.output, other.output
    assert re.search(r"│ 18 +│ 0 +│ 18 +│", other.output), other.output  # fewer tasks are another collection
    config = LabelingConfig.model_validate({"choose": {"hours": 0.001}, "annotators": "people"})
    with pytest.raises(ConfigError, match="does not cover a single task"):
        within_budget(config, Material(sets), store, None)
    store.close()


def policy(home: Path, name: str, texts: dict[int, tuple[str, ...]]) -> str:
    """A file of a policy's answers to numbered prompts."""
    sets = [
        ResponseSet(
            prompt=Prompt(id=f"p{n}", messages=(Message(role="user", content=f"Who lives in house {n}?"),)),
            responses=tuple(Response(id=f"{name}{n}.{i}", text=text) for i, text in enumerate(some)),
        )
        for n, some in texts.items()
    ]
    (home / name).mkdir(exist_ok=True)
    write_records(home / name / "responses.jsonl", sets)
    return str(home / name)


def test_prompts_that_policies_answer_differently_come_first(tmp_path: Path) -> None:
    one = policy(tmp_path, "one", {1: ("Mara.", "Tom."), 2: ("Mara.", "Tom."), 3: ("Mara.", "Tom."), 4: ("A.", "B.")})
    other = policy(tmp_path, "other", {1: ("Tom.", "mara"), 2: ("Ada.", "Bo."), 3: ("Tom.", "Bo.")})
    config = LabelingConfig.model_validate(
        {"annotators": "people", "responses": (one, other), "choose": {"by": "policies"}}
    )
    found = read_material(config, None)
    assert [row.prompt.id for row in found.sets] == ["p2", "p3", "p1", "p4"]
    # sets of one word: {m, t} and {a, b}: (2 + 2)/4 + (2 + 2)/4 − 0; {m, t} and {t, b}: 1/2 + 1/2 − 2 · 1/4
    assert found.worth == pytest.approx({"p1": 0.0, "p2": 1.0, "p3": 0.5})
    texts = {row.prompt.id: [response.text for response in row.responses] for row in found.sets}
    assert texts["p1"] == ["Mara.", "Tom."] and texts["p2"] == ["Mara.", "Ada.", "Tom.", "Bo."]
    assert found.origins["one2.0"] == "file 1" and found.origins["other2.0"] == "file 2"
    with pytest.raises(ValueError, match=r"compares two files in `responses`; got 1"):
        LabelingConfig.model_validate({"annotators": "people", "responses": (one,), "choose": {"by": "policies"}})


def test_a_screen_takes_nine_and_what_has_no_room_is_counted(tmp_path: Path) -> None:
    names = ["one", "other"]
    files = [policy(tmp_path, name, {1: tuple(f"{name} says thing {i}" for i in range(6))}) for name in names]
    found = read_material(LabelingConfig(annotators="people", responses=tuple(files)), None)
    assert len(found.sets[0].responses) == 9 and found.left_out == 3
    write_records(tmp_path / "one" / "responses.jsonl", [response_set(1), response_set(1)])
    (tmp_path / "other" / "responses.jsonl").write_text('{"prompt": 1}\n' + response_set(2).model_dump_json() + "\n")
    found = read_material(LabelingConfig(annotators="people", responses=tuple(files)), None)
    assert sorted(row.reason.split(" in ")[0] for row in found.rejected)[-1] == "the prompt prompt_1 is repeated"
    assert len(found.rejected) == 2 and len(found.sets) == 2
    (tmp_path / "other" / "responses.jsonl").write_text("")
    with pytest.raises(DataError, match="has no response sets"):
        read_material(LabelingConfig(annotators="people", responses=tuple(files)), None)


def test_a_random_choice_is_repeatable(tmp_path: Path) -> None:
    write_records(tmp_path / "responses.jsonl", [response_set(n) for n in range(20)])

    def chosen(seed: int) -> list[str]:
        config = LabelingConfig(annotators="people", choose=Choice(by="random"), seed=seed)
        return [row.prompt.id for row in read_material(config, tmp_path).sets]

    assert chosen(1) == chosen(1) != chosen(2) and sorted(chosen(1)) == sorted(chosen(2))
    given = read_material(LabelingConfig(annotators="people"), tmp_path).sets
    assert [row.prompt.id for row in given] == [f"prompt_{n}" for n in range(20)]


def test_prompts_on_which_an_ensemble_disagrees_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sets = [response_set(n, ("Mara Lind.", "Tom Berg.", "Nobody.")) for n in range(3)]
    write_records(tmp_path / "responses.jsonl", sets)
    told = {"prompt_0": [[1.0, 0.0, 0.0], [1.0, 0.0, 0.0]], "prompt_2": [[2.0, 0.0, 0.0], [0.0, 0.0, 2.0]]}
    monkeypatch.setattr("alignment.reward_model.disagreement.member_rewards", lambda _, __: told)
    choice = Choice(by="disagreement", reward=str(tmp_path))
    found = read_material(LabelingConfig(annotators="people", choose=choice), tmp_path)
    assert [row.prompt.id for row in found.sets] == ["prompt_2", "prompt_0", "prompt_1"]  # the last was not scored
    sigmoid = 1 / (1 + np.exp(-2.0))
    # pairs 01 and 12: σ(2) and σ(0); pair 02: σ(2) and σ(−2)
    small, large = ((sigmoid - 0.5) / 2) ** 2, ((sigmoid - (1 - sigmoid)) / 2) ** 2
    assert found.worth == pytest.approx({"prompt_0": 0.0, "prompt_2": (2 * small + large) / 3})
    assert found.pairs["prompt_2"] == (sets[2].responses[0].id, sets[2].responses[2].id)
    with pytest.raises(ValueError, match="requires `reward`"):
        Choice(by="disagreement")


def test_what_cannot_be_opened_says_what_to_do(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = recipe_file(home, "refused", [response_set(1)])
    (home / "responses.jsonl").unlink()
    missing = open_(recipe, "--plan")
    assert missing.exit_code == 1 and "name a file of response sets" in str(missing.exception)
    for told, words in (
        (["labeling.people=[nobody]"], "'nobody' is not an e-mail address"),
        (["labeling.webhook=here"], "is not a URL"),
        (["labeling=null", "comparisons.sources=[{path: x.jsonl}]"], "x.jsonl"),
    ):
        refused = open_(recipe, "--plan", *(word for one in told for word in ("--set", one)))
        assert refused.exit_code == 1 and words in str(refused.exception)
    defaults = LabelingConfig(annotators="people", rankings=RankingTasks(prompts=1), pairwise=PairwiseTasks(prompts=0))
    changed = defaults.model_copy(update={"people": ("nora@open.local",), "webhook": "http://127.0.0.1:9/"})
    assert changed.judging == defaults  # who is invited does not make the labelling run again
