"""The same recipe on the CPU in bfloat16, stage by stage and without servers: what is multiplied in it."""

import json
import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode

from alignment.distributed import devices
from alignment.journal import Journal
from alignment.ppo import memory
from alignment.records import ResponseSet, read_records
from alignment.stage import Step
from alignment.town import Judge
from flows.pipeline.dag import keys, steps
from flows.recipe.schema import load_recipe
from tests.alignment.tiny_world import comparison, write
from tests.conftest import TINY

pytestmark = pytest.mark.long

aten = torch.ops.aten
PRODUCTS = {aten.mm.default, aten.addmm.default, aten.bmm.default}
SMALLER = [
    *("town.documents=150", "town.demonstrations=24", "town.heldout_prompts=8", "pretrain.epochs=1"),
    *("sampling.prompts=18", "sft.epochs=1", "reward.epochs=1", "ppo.steps=1", "evaluation.curve_prompts=2"),
    *("align.dpo.batch_size=8", "align.kto.batch_size=8", "align.rloo.steps=1", "align.rloo.batch_size=8"),
    *("align.dpo.max_length_tokens=96", "align.kto.max_length_tokens=96"),
    *("align.rloo.max_new_tokens=24", "align.best_of_n.max_new_tokens=40", "align.best_of_n.finetune.epochs=1"),
    *("align.best_of_n.finetune.max_length_tokens=96",),
    *("align.best_of_n.samples=6", "align.best_of_n.prompts=40", "evaluation.prompts=4"),
]
METHODS = ("dpo", "kto", "rloo", "best_of_n")


class Products(TorchDispatchMode):
    """Counts the multiplications of matrix products by the dtype in which they are computed."""

    def __init__(self) -> None:
        super().__init__()
        self.count = Counter[torch.dtype]()

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if operation in PRODUCTS:
            self.count[args[-1].dtype] += args[-2].numel() * args[-1].shape[-1]
        return operation(*args, **(kwargs or {}))


def perform(step: Step, made: Path, products: dict[str, Counter[torch.dtype]]) -> None:
    """Perform a step in `made/STAGE` on what other steps made there, and count its multiplications."""
    out = made / step.name
    inputs = {name: made / source for name, source in step.inputs.items()}
    with Products() as counted:
        figures = step.perform(out, Journal(out), inputs)
    products[step.name] = counted.count
    (out / "figures.json").write_text(json.dumps(dict(figures)), encoding="utf-8")


def judge_responses(made: Path) -> None:
    """The stage `labeling` without people: the town's judge compares the first two responses to each prompt."""
    judge = Judge.load(made / "town" / "facts.json")
    rows = []
    for answers in read_records(made / "responses" / "responses.jsonl", ResponseSet)[0]:
        pair = sorted(answers.responses[:2], key=lambda r: judge(answers.prompt, r.text).score)
        rows.append(comparison(answers.prompt.text, pair[1].text, pair[0].text))
    write(made / "labeling" / "comparisons.jsonl", rows)
    write(made / "labeling" / "quarantine.jsonl", [])


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Counter[torch.dtype]]]:
    """The directory of all stages, with one for each method, and the matrix products of each."""
    made = tmp_path_factory.mktemp("bfloat16")
    options = [*SMALLER, "compute.device=cpu", "compute.precision=bfloat16"]
    products: dict[str, Counter[torch.dtype]] = {}
    with pytest.MonkeyPatch.context() as patch:
        for module in (devices, memory):  # emulated where the processor has none
            patch.setattr(module, "has_bfloat16", lambda device: True)
        chain = steps(load_recipe(str(TINY), options))
        for name, step in chain.items():
            if name == "labeling":
                judge_responses(made)
            else:
                perform(step, made, products)
        for method in METHODS:
            perform(steps(load_recipe(str(TINY), [*options, f"align.method={method}"]))[method], made, products)
    return made, products


MODELS = ("pretrain", "sft", "responses", "reward", "ppo", *METHODS, "evaluate")


@pytest.mark.parametrize("stage", MODELS)
def test_products_are_in_bfloat16_and_figures_finite(
    stages: tuple[Path, Mapping[str, Counter[torch.dtype]]], stage: str
) -> None:
    made, products = stages
    assert json.loads((made / stage / "environment.json").read_text()) == {"device": "cpu", "precision": "bfloat16"}
    share = products[stage][torch.bfloat16] / products[stage].total()
    assert share > 0.98, products[stage]  # heads of reward and value models are in float32
    figures = json.loads((made / stage / "figures.json").read_text())
    assert figures and all(math.isfinite(value) for value in figures.values()), figures


@pytest.mark.parametrize("stage", ["pretrain", "sft", "reward", "ppo", *METHODS])
def test_trained_weights_are_in_float32(stages: tuple[Path, Mapping[str, object]], stage: str) -> None:
    weights = load_file(stages[0] / stage / "model" / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
    rounded = sum(bool((tensor == tensor.bfloat16()).all()) for tensor in weights.values())
    assert rounded < len(weights) / 2  # they are no copies of weights in bfloat16


def test_the_precision_is_no_part_of_a_key() -> None:
    one, other = (steps(load_recipe(str(TINY), [f"compute.precision={p}"])) for p in ("float32", "bfloat16"))
    assert keys(one) == keys(other)
    assert {step.compute.precision for step in other.values()} == {"bfloat16"}
