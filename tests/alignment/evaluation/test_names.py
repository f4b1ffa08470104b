"""The names of all that evaluation writes, held by a golden file: releases, reports and MLflow read them.

`python -m tests.alignment.evaluation.test_names` writes the file again, after a change that is meant.
"""

import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from alignment.models.scalar import load_causal_model, save_model
from alignment.models.tokenizer import load_tokenizer
from tests.alignment.evaluation.world import judge, make_world, run

FILE = Path(__file__).parent.parent.parent / "golden" / "evaluation.json"
JUDGES = {"gold judge": judge, "no judge": None}


def policy_with_a_curve(world: Path, directory: Path) -> Path:
    """A policy that leaves SFT (its snapshot of step 0) further behind at each snapshot, and is the one of step 2."""
    tokenizer = load_tokenizer(world / "model")
    model = load_causal_model(world / "sft" / "model")
    generator = torch.Generator().manual_seed(0)
    head = model.get_output_embeddings().weight
    for step in range(5):
        save_model(model, directory / "snapshots" / f"step-{step:05d}", tokenizer)
        with torch.no_grad():
            head += 0.6 * nn.init.normal_(torch.empty_like(head), generator=generator)
    shutil.copytree(directory / "snapshots" / "step-00002", directory / "model")
    (directory / "snapshots.json").write_text("[0, 1, 2, 3, 4]")
    (directory / "selection.json").write_text('{"step": 2}')
    return directory


def measured(world: Path, out: Path, case: str) -> dict[str, Any]:
    """All that the stage writes and returns, with values."""
    policy = policy_with_a_curve(world, out / "input")
    metrics, report = run(world, out, JUDGES[case], policy=policy, best_of_n=[1, 3], curve_prompts=1)
    rows = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
    answers = [line.split("**")[1] for line in (out / "samples.md").read_text().splitlines() if line.startswith("- ")]
    figures = sorted(path.name for path in (out / "figures").iterdir())
    return {
        "evaluation.json": report,
        "metrics": metrics,
        "samples.jsonl": rows,
        "samples.md": answers,
        "figures": figures,
    }


def names(values: Any, prefix: str = "") -> Iterator[str]:
    """`a.b[].c` for each value in nested mappings and lists."""
    if isinstance(values, dict):
        for name, value in values.items():
            yield from names(value, f"{prefix}.{name}" if prefix else name)
    elif isinstance(values, list):
        for value in values:
            yield from names(value, prefix + "[]")
    else:
        yield prefix


def all_names(case: dict[str, Any]) -> dict[str, list[str]]:
    """The names in what `measured` returns; figures by their files, and the models of the first prompt."""
    read = {part: sorted(set(names(case[part]))) for part in ("evaluation.json", "metrics", "samples.jsonl")}
    return read | {"figures": case["figures"], "samples.md": case["samples.md"][:3]}


@pytest.mark.parametrize("case", JUDGES)
def test_every_name_is_the_golden_one(world, tmp_path, case) -> None:
    assert all_names(measured(world, tmp_path, case)) == json.loads(FILE.read_text())[case]


if __name__ == "__main__":
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        root = make_world(Path(temporary) / "world")
        golden = {case: all_names(measured(root, Path(temporary) / case, case)) for case in JUDGES}
    FILE.write_text(json.dumps(golden, indent=2) + "\n")
