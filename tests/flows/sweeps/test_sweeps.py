"""The grid of a sweep and its figures, with values computed by hand."""

import csv
import io
from pathlib import Path

import pytest

from alignment.errors import ConfigError
from flows.pipeline.sweep import equal_settings, stages_to_run, sweep_of
from flows.sweeps.grid import alternatives, cells_of, parse_seeds
from flows.sweeps.pictures import draw_pictures
from flows.sweeps.summary import Outcome, as_csv, difference_table, estimate, markdown, table
from tests.conftest import TINY


def outcome(setting: str, seed: int, wins: float, kl: float = 1.0) -> Outcome:
    figures = {"win_rate_vs_sft": wins, "kl_to_sft": kl, "gold_base_score": 0.5}
    return Outcome(setting=setting, seed=seed, release=f"r-{seed}", model="models:/policy/3", figures=figures)


OUTCOMES = [
    *(outcome("tiny kl_coef=0.02", seed, wins) for seed, wins in ((0, 0.8), (1, 0.9), (2, 1.0))),
    *(outcome("tiny kl_coef=0.05", seed, wins) for seed, wins in ((0, 0.7), (1, 0.8), (2, 0.9))),
]


@pytest.mark.parametrize(
    ("text", "seeds"), [("0-2", [0, 1, 2]), ("3", [3]), ("0,3, 5-6", [0, 3, 5, 6]), ("10-10", [10])]
)
def test_seeds_are_numbers_and_ranges(text: str, seeds: list[int]) -> None:
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize("text", ["", "a", "2-0", "0,0", "1-2-3", "-1", "0-1000000000", "0.5"])
def test_other_seeds_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--seeds"):
        parse_seeds(text)


@pytest.mark.parametrize(
    ("override", "single"),
    [
        ("ppo.kl_coef=0.02,0.05", ["ppo.kl_coef=0.02", "ppo.kl_coef=0.05"]),
        ("align.method=ppo,dpo", ["align.method=ppo", "align.method=dpo"]),
        ("evaluation.best_of_n=[1, 4]", ["evaluation.best_of_n=[1, 4]"]),
        ("align.rules=[{name: safety}],[]", ['align.rules=[{"name": "safety"}]', "align.rules=[]"]),
        ("labeling=null", ["labeling=null"]),
        ("description='a, b','null'", ['description="a, b"', 'description="null"']),
    ],
)
def test_commas_separate_values_and_not_what_is_in_brackets(override: str, single: list[str]) -> None:
    assert alternatives(override) == single


@pytest.mark.parametrize("override", ["ppo.kl_coef", "ppo.kl_coef=", "ppo.kl_coef=[1", "x=}"])
def test_values_that_are_no_list_are_refused(override: str) -> None:
    with pytest.raises(ConfigError, match="--set"):
        alternatives(override)


def test_every_setting_has_every_seed_and_a_stopped_sweep_has_the_same_seeds_of_each() -> None:
    cells = cells_of([str(TINY)], ["ppo.kl_coef=0.02,0.05", "ppo.steps=2"], [0, 1])
    assert [cell.name for cell in cells] == [
        "tiny kl_coef=0.02, seed 0",
        "tiny kl_coef=0.05, seed 0",
        "tiny kl_coef=0.02, seed 1",
        "tiny kl_coef=0.05, seed 1",
    ]
    assert [(cell.recipe.ppo.kl_coef, cell.recipe.ppo.steps, cell.recipe.seed) for cell in cells[1:3]] == [
        (0.05, 2, 0),
        (0.02, 2, 1),
    ]
    with pytest.raises(ConfigError, match="two cells are called 'tiny, seed 0'"):
        cells_of([str(TINY), str(TINY)], [], [0])
    with pytest.raises(ConfigError, match="kl_coef: -1 is not allowed"):
        cells_of([str(TINY)], ["ppo.kl_coef=0.1,-1"], [0])


def test_shared_stages_count_once_and_options_without_effect_are_named() -> None:
    cells = cells_of([str(TINY)], ["ppo.kl_coef=0.02,0.05"], [0, 1])
    stages = stages_to_run(cells, ask_mlflow=False)
    assert stages["sft"] == stages["reward"] == 2 and stages["ppo"] == stages["evaluate"] == 4
    assert equal_settings(cells) == []
    idle = cells_of([str(TINY)], ["align.method=dpo", "align.dpo.max_length_tokens=96", "ppo.kl_coef=0.02,0.05"], [0])
    assert equal_settings(idle) == [("tiny kl_coef=0.02", "tiny kl_coef=0.05")]


def test_the_name_follows_what_is_computed_and_not_where() -> None:
    name = sweep_of(cells_of([str(TINY)], [], [0])).name
    assert name.startswith("tiny-") and name == sweep_of(cells_of([str(TINY)], ["compute.processes=2"], [0])).name
    assert name != sweep_of(cells_of([str(TINY)], ["release_gate.min_win_rate=0.9"], [0])).name
    assert name == sweep_of(cells_of([str(TINY)], ["notify=[{to: slack-webhook/team}]"], [0])).name


def test_the_interval_is_students() -> None:
    """Mean 0.9, s = 0.1, t(0.975, 2) = 4.302653: half = 4.302653 · 0.1 / √3 = 0.248414."""
    mean = estimate([0.8, 0.9, 1.0])
    assert mean is not None and mean.mean == pytest.approx(0.9) and mean.half == pytest.approx(0.248414, abs=1e-6)
    assert str(mean) == "0.900 ± 0.248"
    alone = estimate([0.5])
    assert alone is not None and alone.half is None and str(alone) == "0.500"
    assert estimate([]) is None


def test_differences_are_seed_by_seed() -> None:
    """Each seed differs by 0.1, so the interval has no width, although each mean has a wide one."""
    assert table(OUTCOMES)[1] == ["tiny kl_coef=0.02", "3", "0.900 ± 0.248", "1.000 ± 0.000"]
    assert difference_table(OUTCOMES)[1:] == [["tiny kl_coef=0.05", "3", "-0.100 ± 0.000", "0.000 ± 0.000"]]


def test_cells_without_figures_are_counted_and_named() -> None:
    failed = Outcome(setting="tiny kl_coef=0.05", seed=3, problem="GateError: too | poor\nby <b>far</b>")
    outcomes = [*OUTCOMES, failed]
    assert table(outcomes)[2][1] == "3 of 4"
    text = markdown("tiny-1", outcomes)
    assert "- tiny kl_coef=0.05, seed 3: GateError: too &#124; poor by &lt;b&gt;far&lt;/b&gt;" in text
    rows = list(csv.DictReader(io.StringIO(as_csv(outcomes))))
    assert len(rows) == 7 and rows[0]["gold_base_score"] == "0.5" and rows[6]["win_rate_vs_sft"] == ""


def test_pictures_are_drawn(tmp_path: Path) -> None:
    assert [path.name for path in draw_pictures(OUTCOMES, tmp_path)] == ["figures.png", "frontier.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in tmp_path.iterdir())
    assert draw_pictures([Outcome(setting="tiny", seed=0, problem="failed")], tmp_path) == []
