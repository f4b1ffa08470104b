"""The over-optimization law of RL is recovered from data, and best-of-n equals the exact expectation."""

import itertools
import math
from types import ModuleType

import pytest

from tests.formulas.models import module

LAWS = module("evaluation.overoptimization")
DISTANCES = (0.3, 0.8, 1.5, 2.2, 3.0)


def check_recovery(m: ModuleType) -> None:
    """α and β of exact points, also a β below 0; the peak is where the derivative α − β − β log d is 0."""
    for alpha, beta in ((0.7, 0.4), (1.2, 1.2), (0.2, -0.3)):
        rewards = [d * (alpha - beta * math.log(d)) for d in DISTANCES]
        fit = m.fit_rl([d * d for d in DISTANCES], rewards)
        assert (fit.alpha, fit.beta, fit.points) == pytest.approx((alpha, beta, 5), abs=1e-9)
        assert fit.residual == pytest.approx(0, abs=1e-9)
        assert [fit.at(d) for d in DISTANCES] == pytest.approx(rewards) and fit.at(0) == 0
        if beta > 0:
            assert alpha - beta - beta * math.log(fit.peak) == pytest.approx(0, abs=1e-9)
        else:
            assert fit.peak is None


def check_residual(m: ModuleType) -> None:
    """At d = 1 the law is α whatever β is: two points there, 1 apart, leave half of it each."""
    fit = m.fit_rl([1.0, 1.0, math.e**2], [0.0, 1.0, math.e * (0.5 - 0.25)])
    assert (fit.alpha, fit.beta) == pytest.approx((0.5, 0.25))
    assert fit.residual == pytest.approx(math.sqrt(2 * 0.25 / 3))


def check_best_of_n(m: ModuleType) -> None:
    """Against every way to take n of five, one by one."""
    proxy, values = [0.3, -1.0, 2.0, 0.9, 1.1], [1.0, 5.0, -2.0, 0.5, 4.0]
    for n in range(1, 6):
        ways = list(itertools.combinations(range(5), n))
        wanted = sum(values[max(way, key=lambda i: proxy[i])] for way in ways) / len(ways)
        assert m.best_of_n_mean(proxy, values, n) == pytest.approx(wanted)


def check_distance(m: ModuleType) -> None:
    """KL of the largest of n uniform numbers to one of them: its density is n x^(n−1), integrated numerically."""
    for n in (1, 2, 4, 16):
        steps = 200_000
        middle = [(i + 0.5) / steps for i in range(steps)]
        kl = sum(n * x ** (n - 1) * math.log(n * x ** (n - 1)) for x in middle if n > 1) / steps
        assert m.best_of_n_kl(n) == pytest.approx(kl, abs=1e-5)


def test_known_laws_are_found_again() -> None:
    check_recovery(LAWS)


def test_what_is_left_of_a_point_off_the_law() -> None:
    check_residual(LAWS)


def test_too_few_points_say_nothing() -> None:
    assert LAWS.fit_rl([0.0, 1.0, 2.0], [0.0, 1.0, 1.0]) is None
    assert LAWS.fit_rl([-0.01, 1.0, 2.0, 3.0], [9.0, 1.0, 1.2, 1.3]).points == 3


def test_best_of_n_uses_every_sample() -> None:
    check_best_of_n(LAWS)
    with pytest.raises(ValueError, match="best of 3 cannot be taken from 2"):
        LAWS.best_of_n_mean([1.0, 2.0], [1.0, 2.0], 3)


def test_the_distance_of_best_of_n() -> None:
    check_distance(LAWS)
