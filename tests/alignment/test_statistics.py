"""Intervals, calibration and correlation against independently computed values."""

import math

import numpy
import pytest
import torch

from alignment.intervals import wilson_interval
from alignment.statistics import bag_of_words_accuracy, expected_calibration_error, pearson
from tests.alignment.tiny_world import comparison


def test_wilson_interval_of_published_examples() -> None:
    # Newcombe, Statistics in Medicine 17 (1998), table I, method 3: 81/263, 15/148, 0/20, 1/29
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)  # four digits are published
    assert wilson_interval(15, 148) == pytest.approx((0.0624, 0.1605), abs=5e-5)
    assert wilson_interval(0, 20) == pytest.approx((0, 0.1611), abs=5e-5)
    assert wilson_interval(1, 29) == pytest.approx((0.0061, 0.1718), abs=5e-5)


def test_wilson_interval_is_symmetric_and_knows_nothing_without_trials() -> None:
    low, high = wilson_interval(3, 10)
    assert wilson_interval(7, 10) == pytest.approx((1 - high, 1 - low), abs=1e-12)
    assert wilson_interval(0, 0) == (0, 1)
    # the bounds solve (p̂ − p)² = z² p(1 − p)/n, by which Wilson defined them
    for bound in (low, high):
        assert (0.3 - bound) ** 2 == pytest.approx(1.959963984540054**2 * bound * (1 - bound) / 10, abs=1e-12)


def logit(p: float) -> float:
    return math.log(p / (1 - p))


def test_calibration_error_by_hand() -> None:
    # confidences .72 (right), .72 (wrong), .93 (right), .93 (right): bins [.7,.75) and [.9,.95)
    # gaps |.72 − .5| = .22 and |.93 − 1| = .07, each with half of the pairs: .145
    margins = torch.tensor([logit(0.72), -logit(0.72), logit(0.93), logit(0.93)])
    assert expected_calibration_error(margins) == pytest.approx(0.145, abs=1e-6)
    # one bin: |(.72 + .72 + .93 + .93)/4 − 3/4| = .075
    assert expected_calibration_error(margins, bins=1) == pytest.approx(0.075, abs=1e-6)


def test_calibration_error_of_the_sure_and_right_is_nil_and_of_the_sure_and_wrong_is_one() -> None:
    assert expected_calibration_error(torch.full((5,), 50.0)) == pytest.approx(0, abs=1e-6)
    assert expected_calibration_error(torch.full((5,), -50.0)) == pytest.approx(1, abs=1e-6)


def test_pearson_agrees_with_numpy() -> None:
    draw = numpy.random.default_rng(0)
    a = draw.normal(size=50)
    b = 0.4 * a + draw.normal(size=50)
    assert pearson(a.tolist(), b.tolist()) == pytest.approx(numpy.corrcoef(a, b)[0, 1], abs=1e-12)
    assert pearson([1, 2, 3], [2, 4, 6]) == pytest.approx(1) and pearson([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
    assert pearson([1, 1, 1], [1, 2, 3]) == 0


def test_bag_of_words_learns_a_word_and_nothing_where_there_is_none() -> None:
    train = [comparison(f"q{i}", f"good word{i % 3}", f"bad word{i % 3}") for i in range(12)]
    test = [comparison("t1", "good one", "bad one"), comparison("t2", "bad one", "good one")]
    assert bag_of_words_accuracy(train, test[:1]) == 1.0
    assert bag_of_words_accuracy(train, test) == 0.5
