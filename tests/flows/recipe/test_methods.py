"""Every alignment method takes the same place in the pipeline: run through the graph, without servers."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from alignment.errors import ConfigError
from alignment.methods import METHODS, dpo, ppo
from alignment.records import Comparison, Prompt, Response, read_records, write_records
from alignment.stage import Method
from flows.pipeline import flow
from flows.pipeline.dag import keys, steps
from flows.recipe.schema import Recipe, load_recipe
from flows.releases.gate import missed_gates
from flows.releases.manifest import release_manifest
from flows.tracking.runner import run_step
from tests.conftest import TINY

pytestmark = pytest.mark.slow

SMALL = [
    "town.documents=120",
    "pretrain.epochs=1",
    "reward.epochs=1",
    "evaluation.prompts=6",
    "evaluation.curve_prompts=2",
    "sft.epochs=1",
]


FEWER = {
    "dpo": ["align.dpo.batch_size=8"],
    "kto": ["align.kto.batch_size=8"],
    "rloo": ["align.rloo.steps=2", "align.rloo.batch_size=8"],
    "best_of_n": [
        "align.best_of_n.samples=4",
        "align.best_of_n.prompts=12",
        "align.best_of_n.max_new_tokens=48",
        "align.best_of_n.finetune.log_every_steps=1",
    ],
}


def small_options(method: Method[Any]) -> list[str]:
    """Overrides that fit a method into the tiny model's context of 96 tokens, and those in `FEWER`."""
    values = {**dict.fromkeys(method.sequence_options, 96), **dict.fromkeys(method.response_options, 16)}
    return [*(f"{method.section}.{name}={value}" for name, value in values.items()), *FEWER.get(method.name, [])]


def recipe(place: Path, *told: str) -> Recipe:
    """The tiny recipe with comparisons from a file, so that nobody is asked."""
    source = f"comparisons.sources=[{{path: {place / 'judged.jsonl'}, format: records}}]"
    return load_recipe(str(TINY), ["labeling=null", source, *SMALL, *told])


@pytest.fixture(scope="module")
def place(workplace: Path) -> Iterator[Path]:
    """A home with judgements in it, where stages are plain functions and no Prefect tasks; what one test made is found
    by the others."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flow, "run_task", run_step)
        chain = steps(load_recipe(str(TINY), SMALL))
        town = run_step(chain["town"], {})
        prompts, _ = read_records(run_step(chain["prompts"], {"town": town}).file("prompts.jsonl"), Prompt)
        sides = [Response(id=word, text=word) for word in ("I do not know.", "Ask somebody else, you fool.")]
        pairs = [
            Comparison(id=row.id, prompt=row, chosen=sides[0], rejected=sides[1])
            for row in prompts
            if row.split == "train"
        ]
        write_records(workplace / "judged.jsonl", pairs)
        yield workplace


def test_rules_are_part_of_the_key_and_of_the_log(place: Path) -> None:
    plain = recipe(place)
    ruled = recipe(place, "align.rules=[{name: safety, weight: 0.5}, {name: format}]")
    different = {stage for stage, key in keys(steps(ruled)).items() if keys(steps(plain))[stage] != key}
    assert different == {"ppo", "evaluate"}
    filtered = keys(steps(recipe(place, "align.ptx_min_reward=0")))
    assert {stage for stage, key in filtered.items() if keys(steps(plain))[stage] != key} == different
    assert keys(steps(recipe(place, "align.safety.insults=[turnip]"))) == keys(steps(plain))  # no rule reads it
    made = flow.run_steps(ruled, steps(ruled))
    line = json.loads(made["ppo"].file("metrics.jsonl").read_text().splitlines()[0])["values"]
    assert line["reward"] == pytest.approx(
        line["reward/model"] + 0.5 * line["reward/safety"] + line["reward/format"], abs=1e-5
    )
    manifest = release_manifest(ruled, made)
    assert manifest["method"] == "ppo" and manifest["models"]["policy"] == made["ppo"].model
    assert isinstance(missed_gates(ruled.release_gate, manifest), list)


def test_a_snapshot_is_chosen_by_held_out_labels(place: Path) -> None:
    plain, chosen = recipe(place), recipe(place, "align.select=heldout_reward", "align.select_prompts=6")
    assert [*steps(chosen)][-3:] == ["validation", "ppo", "evaluate"] and "validation" not in steps(plain)
    assert keys(steps(chosen))["reward"] == keys(steps(plain))["reward"] != keys(steps(chosen))["validation"]
    made = flow.run_steps(chosen, steps(chosen))
    first, second = (made[name].result() for name in ("reward", "validation"))
    assert second["train_pairs"] == first["pairs_heldout_prompts"] < first["train_pairs"]
    assert second["pairs_heldout_prompts"] == first["train_pairs"]
    selection = json.loads(made["ppo"].file("selection.json").read_text())
    assert list(selection["means"]) == ["0", "2", "3"] and selection["prompts"] == 6
    ppo = made["ppo"].path
    places = ("model", f"snapshots/step-{selection['step']:05d}")
    weights = [(ppo / at / "model.safetensors").read_bytes() for at in places]
    assert weights[0] == weights[1] and made["ppo"].result()["policy_step"] == selection["step"]
    logged = {
        line["step"]: line["values"]["heldout_reward"]
        for line in map(json.loads, (ppo / "metrics.jsonl").open())
        if "heldout_reward" in line["values"]
    }
    assert {str(step): value for step, value in logged.items()} == selection["means"]
    assert (ppo / "figures" / "selection.png").exists()
    manifest = release_manifest(chosen, made)
    assert manifest["chosen_step"] == selection["step"] and [point["step"] for point in manifest["curve"]] == [0, 2, 3]


def test_each_method_stands_in_the_same_place(place: Path) -> None:
    others = [method for method in METHODS if method is not ppo.METHOD]
    recipes = {method.name: recipe(place, f"align.method={method.name}", *small_options(method)) for method in others}
    assert len({keys(steps(one))["evaluate"] for one in recipes.values()}) == len(others)
    for name, one in recipes.items():
        made = flow.run_steps(one, steps(one))
        manifest = release_manifest(one, made)
        assert list(made)[-2:] == [name, "evaluate"] and manifest["method"] == name
        assert manifest["models"]["policy"] == made[name].model and manifest["curve"] == []
        assert manifest["release"].endswith(made[name].key[:8]) and manifest["kl_to_sft"] != 0
        assert ("reward" if name == "rloo" else "loss") in made[name].result()
        assert not (made[name].path / "checkpoint").exists() and list((made[name].path / "figures").glob("*.png"))
    ignored = ("align.rloo.steps=3", "ppo.steps=9", "align.rules=[{name: safety}]", "align.ptx_min_reward=0")
    changed = keys(steps(recipe(place, "align.method=dpo", *small_options(dpo.METHOD), *ignored)))
    assert changed == keys(steps(recipes["dpo"]))


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("align.method=dpo", "align.dpo.max_length_tokens 128 is more than pretrain.model.context_length 96"),
        ("align.method=rloo", None),
        ("align.rloo.max_new_tokens=100", None),
    ],
)
def test_lengths_are_those_of_the_chosen_method(override: str, words: str | None) -> None:
    if words is None:
        load_recipe(str(TINY), [override])
        return
    with pytest.raises(ConfigError, match=words):
        load_recipe(str(TINY), [override])
