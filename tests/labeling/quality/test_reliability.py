"""Crowd-BT: the formula by hand, its gradient, recovery of planted reliabilities, weights."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.optimize import approx_fprime

from alignment.records import Comparison, Message, Prompt, Response
from labeling.quality.reliability import PRIOR, SPREAD, Choices, minus_log_posterior, reliabilities, weights


def sigmoid(x: float) -> float:
    return float(1 / (1 + np.exp(-x)))


def row(prompt: int, won: int, lost: int, by: str, number: int = 0) -> Comparison:
    message = Message(role="user", content="?")
    sides = {f"{prompt}-{i}": Response(id=f"{prompt}-{i}", text=f"answer {i}") for i in (won, lost)}
    return Comparison(
        id=f"c{prompt}-{won}-{lost}-{by}-{number}",
        prompt=Prompt(id=f"p{prompt}", messages=(message,)),
        chosen=sides[f"{prompt}-{won}"],
        rejected=sides[f"{prompt}-{lost}"],
        annotator_id=by,
    )


def planted(
    seed: int, eta: dict[str, float], prompts: int = 150, responses: int = 4, overlap: int = 4
) -> list[Comparison]:
    """What annotators of these reliabilities say under the model itself, with scores of spread 2."""
    rng = np.random.default_rng(seed)
    rows = []
    for prompt in range(prompts):
        scores = rng.normal(0, 2, responses)
        for by in rng.permutation(list(eta))[:overlap]:
            for i in range(responses):
                for j in range(i):
                    better = rng.random() < sigmoid(scores[i] - scores[j])
                    first = better == (rng.random() < eta[by])
                    rows.append(row(prompt, i, j, str(by)) if first else row(prompt, j, i, str(by)))
    return rows


def test_the_posterior_by_adaptive_integration() -> None:
    choices = Choices.of([row(1, 0, 1, "a"), row(1, 1, 0, "b"), row(2, 0, 1, "a")])
    value, _ = minus_log_posterior(np.array([1.0, -0.4, 0.3]), choices)
    eta, tau = {"a": sigmoid(1.0), "b": sigmoid(-0.4)}, float(np.exp(0.3))

    def said(by: str, difference: float) -> float:
        return eta[by] * sigmoid(difference) + (1 - eta[by]) * sigmoid(-difference)

    def normal(x: float) -> float:
        return float(np.exp(-(x**2) / (2 * tau**2)) / (tau * np.sqrt(2 * np.pi)))

    pair, _ = quad(lambda x: normal(x) * said("a", x) * said("b", -x), -20, 20, epsabs=1e-12)
    a, b = PRIOR
    prior = sum((a - 1) * np.log(one) + (b - 1) * np.log(1 - one) for one in eta.values())
    prior -= (0.3 - SPREAD[0]) ** 2 / (2 * SPREAD[1] ** 2)
    assert value == pytest.approx(-(np.log(pair) + np.log(0.5) + prior), abs=1e-6)


def test_pairs_of_which_the_same_people_say_the_same_are_integrated_once() -> None:
    rows = [row(1, 0, 1, "a"), row(1, 1, 0, "b"), row(2, 1, 0, "a"), row(2, 0, 1, "b"), row(3, 0, 1, "a")]
    choices = Choices.of(rows)
    assert choices.begins.tolist() == [0, 2] and choices.times.tolist() == [2.0, 1.0]  # pair 2 is pair 1 turned round
    one_by_one = replace(
        choices,
        who=np.array([0, 1, 0, 1, 0]),
        side=np.array([1.0, -1.0, -1.0, 1.0, 1.0]),
        begins=np.array([0, 2, 4]),
        times=np.ones(3),
    )
    point = np.array([0.7, -0.2, 0.4])
    (value, gradient), (same, by_pair) = (minus_log_posterior(point, some) for some in (choices, one_by_one))
    assert value == pytest.approx(same, abs=1e-12) and gradient == pytest.approx(by_pair, abs=1e-12)


def test_the_gradient_is_that_of_the_posterior() -> None:
    choices = Choices.of(planted(0, {"a": 0.9, "b": 0.6, "c": 0.3}, prompts=4, responses=3, overlap=3))
    point = np.random.default_rng(1).normal(size=4)
    _, gradient = minus_log_posterior(point, choices)
    numeric = approx_fprime(point, lambda x: minus_log_posterior(x, choices)[0], 1e-6)
    assert gradient == pytest.approx(numeric, abs=1e-4)  # forward differences with a step of 1e-6


def test_planted_reliabilities_are_recovered() -> None:
    eta = {"a": 0.95, "b": 0.95, "c": 0.9, "d": 0.9, "e": 0.75, "f": 0.5, "g": 0.2}
    found = reliabilities(planted(3, eta))
    for annotator, value in eta.items():
        # about 500 comparisons each: a standard error near 0.04
        assert found[annotator] == pytest.approx(value, abs=0.1), annotator


def test_an_annotator_turned_round_is_found_out() -> None:
    rows = planted(5, {"a": 0.95, "b": 0.95, "c": 0.9, "d": 0.85, "e": 0.6})
    turned = [
        one.model_copy(update={"chosen": one.rejected, "rejected": one.chosen}) if one.annotator_id == "a" else one
        for one in rows
    ]
    straight, mirrored = reliabilities(rows), reliabilities(turned)
    assert mirrored["a"] == pytest.approx(1 - straight["a"], abs=0.05)
    assert mirrored["c"] == pytest.approx(straight["c"], abs=0.05)


def test_weights_by_hand() -> None:
    rows = [row(1, 0, 1, "a"), row(2, 0, 1, "a"), row(3, 0, 1, "b"), row(4, 0, 1, "c")]
    # 2η − 1: 0.8, 0.8, 0.4, 0 with mean 0.5
    found = weights(rows, {"a": 0.9, "b": 0.7, "c": 0.3})
    assert found == pytest.approx({"a": 1.6, "b": 0.8, "c": 0.0})
    assert reliabilities([]) == {} and weights([], {}) == {}
