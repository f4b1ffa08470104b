"""The key of every stage of the recipes, as they were when outputs were first published under them.

A finished run is found by its key alone. A key that changes makes everybody's finished work invisible, so these change
only together with a stage's version or a default that is meant to change.
`python -m tests.flows.recipe.test_golden_keys` writes the file again.
"""

import json
from pathlib import Path

import pytest

from flows.pipeline.dag import keys, steps
from flows.recipe.schema import load_recipe
from tests.conftest import SHARED_DATA, TINY

FILE = Path(__file__).parents[2] / "golden" / "keys.json"
CASES: dict[str, tuple[str, list[str]]] = {
    "town": ("town", []),
    "town, seed 3": ("town", ["seed=3"]),
    "town, dpo": ("town", ["align.method=dpo"]),
    "town, kto": ("town", ["align.method=kto"]),
    "town, rloo": ("town", ["align.method=rloo"]),
    "town, best of n": ("town", ["align.method=best_of_n"]),
    "town, chosen by held-out labels": ("town", ["align.select=heldout_reward"]),
    "town, no rules": ("town", ["align.rules=[]", "align.ptx_min_reward=null"]),
    "town, ensemble of adapters": ("town", ["reward.members=3", "reward.combine=worst", "reward.lora_rank=4"]),
    "town, people": ("town", ["labeling.annotators=people", "labeling.quality.gold.share=0"]),
    "tiny": (str(TINY), []),
    "tiny, two processes": (str(TINY), ["compute.processes=2"]),
    "hh": ("hh", []),
    "oasst": ("oasst", []),
}
OF_OTHERS = ("hh", "oasst")


def stage_keys(case: str) -> dict[str, str]:
    """The key of each stage of a case, in the order in which they run."""
    recipe, overrides = CASES[case]
    return keys(steps(load_recipe(recipe, overrides)))


@pytest.mark.parametrize("case", CASES)
def test_no_key_has_changed(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if case in OF_OTHERS:
        if not SHARED_DATA.is_dir():
            pytest.skip(f"{SHARED_DATA} is not here")
        monkeypatch.chdir(Path(__file__).parents[3])  # their `data_root` is relative, and paths are part of a key
    assert stage_keys(case) == json.loads(FILE.read_text(encoding="utf-8"))[case]


if __name__ == "__main__":
    FILE.write_text(json.dumps({case: stage_keys(case) for case in CASES}, indent=1) + "\n", encoding="utf-8")
