"""The criteria are one table: an added row is scored, counted and plotted, and shown by guidelines that ask for it."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from alignment.config.gates import ReleaseGate
from alignment.criteria import CRITERIA, CRITERION_NAMES, gold_score
from flows.releases.gate import gate_figures

pytestmark = pytest.mark.slow

NAMES = ["helpful", "truthful", "harmless", "concise"]


@pytest.fixture(scope="module")
def places() -> list[dict]:
    """What `tests.fourth_criterion` prints: screen, judge, collection, figures."""
    command = [sys.executable, "-m", "tests.fourth_criterion"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1], check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_fourth_criterion_is_rated_on_the_screen(places) -> None:
    screen = places[0]
    assert screen["ratings"] == [f"{side}_{name}" for side in "ab" for name in NAMES]
    assert {"Concise, A (key Z)", "Concise, B (key X)"} <= {*screen["headers"]} and screen["every key once"]
    assert screen["guidelines"] == ["- **Concise** - is it as short as it can be?"]
    assert screen["keys"] == ["- **Z**: Concise, A", "- **X**: Concise, B"]


def test_a_fourth_criterion_is_scored_by_the_judge_once_it_has_a_function(places) -> None:
    judge = places[1]
    assert (
        "no scoring function for the criterion 'concise': add one to alignment.town.judge.SCORING" in judge["refusal"]
    )
    assert [*judge["scores"]] == NAMES and judge["scores"]["concise"] in (0.0, 1.0)
    weighted = sum(w * judge["scores"][name] for name, w in zip(NAMES, (0.34, 0.33, 0.33, 0.5), strict=True))
    assert judge["score"] == pytest.approx(weighted / 1.5, abs=1e-12)
    assert judge["reasons"][-1] in ("short", "long")


def test_a_fourth_criterion_is_simulated_parsed_and_reported(places) -> None:
    collected = places[2]
    assert collected["weights"] == [4, 4] and collected["quarantined"] == 0
    assert [*collected["counts"]] == NAMES and collected["counts"]["concise"] > 0
    assert "concise" in collected["alpha"] and "concise" in collected["page"]


def test_a_fourth_criterion_is_in_figures_gate_and_release(places) -> None:
    figures = places[3]
    assert figures["means"] == {"helpful": 1.0, "truthful": 1.0, "harmless": 1.0, "concise": 0.25, "score": 0.75}
    assert figures["chart"] == [*NAMES, "score"] and figures["bars"] == 5
    assert figures["reward model"] == {"accuracy_t_concise": 1.0}
    assert figures["gate"] == {"min_concise": 0.25, "max_concise_drop": 0.25}
    assert figures["release"][:6] == ["model", *NAMES, "score"]


def test_the_gold_score_is_the_weighted_mean() -> None:
    assert gold_score({"helpful": 0.5, "truthful": 1.0, "harmless": 0.0}) == 0.34 * 0.5 + 0.33
    assert sum(criterion.weight for criterion in CRITERIA) == 1.0  # so that dividing by it changes no score


def test_every_option_of_the_release_gate_limits_a_figure() -> None:
    manifest = {"gold": None, "tax": {"sft": 1.0, "policy": 1.0}, "win_rate_vs_sft": {"rate": 0.5, "low": 0.4}}
    assert {*ReleaseGate.model_fields} <= {*gate_figures(manifest)}


def test_names_can_be_used_in_controls_metrics_and_files() -> None:
    assert len({*CRITERION_NAMES}) == len(CRITERIA)
    assert all(re.fullmatch("[a-z][a-z_]*", name) for name in CRITERION_NAMES)
