"""Agreement and annotator quality against hand-computed values."""

import krippendorff
import numpy as np
import pytest

from alignment.records import Comparison
from labeling.judgements.judgement import PairwiseJudgement, RankingJudgement
from labeling.quality.agreement import agreement, alpha, alpha_interval, alphas_of_two, double_judgements, rate, votes
from labeling.quality.annotators import quality
from labeling.tasks.tasks import make_task
from tests.labeling.helpers import response_set

ROW = response_set(1)
FIRST, SECOND, THIRD, _ = sorted(ROW.responses, key=lambda response: response.id)


def said(by: str, better: int, strength: int = 1, **criteria: int) -> Comparison:
    """`by` prefers the first response (better=1) or the second (-1)."""
    chosen, rejected = (FIRST, SECOND) if better > 0 else (SECOND, FIRST)
    return Comparison(
        id=f"cmp_{by}_{better}",
        prompt=ROW.prompt,
        chosen=chosen,
        rejected=rejected,
        strength=strength,
        criteria=criteria,
        annotation_id="1",
        annotator_id=by,
    )


def test_alpha_of_krippendorffs_own_example() -> None:
    # Krippendorff (2011), "Computing Krippendorff's Alpha-Reliability", A: binary data, two observers: 0.095
    one, other = (0, 1, 0, 0, 0, 0, 0, 0, 1, 0), (1, 1, 1, 0, 0, 1, 0, 0, 0, 0)
    found = {("p", str(i), "x"): {"A": a, "B": b} for i, (a, b) in enumerate(zip(one, other, strict=True))}
    # coincidences o00=10, o01=o10=4, o11=2; n0=14, n1=6; alpha = 1 - 19*8/(2*14*6)
    assert alpha(found) == pytest.approx(1 - 19 * 8 / (2 * 14 * 6), abs=1e-9)
    assert alpha(found) == pytest.approx(0.095, abs=5e-4)


def test_alpha_agrees_with_the_krippendorff_package() -> None:
    rng = np.random.default_rng(0)
    for annotators, missing in ((2, 0.0), (3, 0.3), (6, 0.6), (9, 0.8)):
        table = rng.integers(-1, 2, size=(annotators, 120)).astype(float)
        table[:, :60] = table[0, :60]  # half of the units are agreed on
        table[rng.random(table.shape) < missing] = np.nan
        found = {
            (f"p{unit % 40}", str(unit), "x"): {str(a): int(v) for a, v in enumerate(column) if not np.isnan(v)}
            for unit, column in enumerate(table.T)
        }
        reference = krippendorff.alpha(reliability_data=table, level_of_measurement="nominal")
        assert alpha(found) == pytest.approx(reference, abs=1e-9)


def test_alpha_of_each_two_agrees_with_the_krippendorff_package() -> None:
    rng = np.random.default_rng(1)
    table = rng.integers(-1, 2, size=(4, 90)).astype(float)
    table[:, :40] = table[0, :40]
    table[rng.random(table.shape) < 0.3] = np.nan
    found = {
        (f"p{unit}", "a", "b"): {str(a): int(v) for a, v in enumerate(column) if not np.isnan(v)}
        for unit, column in enumerate(table.T)
    }
    of_two = alphas_of_two(found)
    assert list(of_two) == ["0 and 1", "0 and 2", "0 and 3", "1 and 2", "1 and 3", "2 and 3"]
    for pair, value in of_two.items():
        reference = krippendorff.alpha(table[[int(pair[0]), int(pair[-1])]], level_of_measurement="nominal")
        assert value == pytest.approx(reference, abs=1e-9)


def test_the_interval_of_alpha() -> None:
    # two who agree in 90 % of 400 units with even marginals: alpha near .8, standard error near 2 sqrt(.9 * .1 / 400)
    found = {(f"p{i}", "a", "b"): {"A": (-1) ** i, "B": (-1) ** i * (1 if i % 20 > 1 else -1)} for i in range(400)}
    low, high = alpha_interval(found)
    assert alpha(found) == pytest.approx(0.8, abs=2e-3)
    assert low == pytest.approx(0.8 - 1.96 * 0.03, abs=0.012) and high == pytest.approx(0.8 + 1.96 * 0.03, abs=0.012)
    assert alpha_interval({("p", "1", "x"): {"A": 1}}) == (None, None)


def test_alpha_at_the_ends() -> None:
    full = {("p", str(i), "x"): {"A": i % 2, "B": i % 2} for i in range(6)}
    assert alpha(full) == pytest.approx(1.0)
    assert alpha({("p", "1", "x"): {"A": 1, "B": 1}}) is None
    assert alpha({}) is None


def test_the_side_a_comparison_is_written_from_does_not_matter() -> None:
    assert votes([said("5", 1), said("6", -1)]) == {("prompt_1", FIRST.id, SECOND.id): {"5": 1, "6": -1}}
    assert votes([said("5", -1, helpful=2)], "helpful") == {("prompt_1", FIRST.id, SECOND.id): {"5": -1}}


def test_rate_by_hand_and_ties_stay_out_of_it() -> None:
    doubles = double_judgements(votes([said("5", 1), said("6", 1), said("7", -1), said("8", 1, strength=0)]))
    assert [(one, other, same) for _, one, other, same in doubles] == [
        ("5", "6", True),
        ("5", "7", False),
        ("6", "7", False),
    ]
    found = rate([(f"p{i}", "5", "6", i % 4 != 0) for i in range(400)])
    assert found.count == 400 and found.share == pytest.approx(0.75)
    # a proportion of 400: 1.96 * sqrt(.75 * .25 / 400) = 0.042
    assert found.low == pytest.approx(0.75 - 0.042, abs=0.008)
    assert found.high == pytest.approx(0.75 + 0.042, abs=0.008)
    assert rate([]).share is None


def test_agreement_by_criterion_and_by_pair_of_annotators() -> None:
    rows = [said("5", 1, helpful=2, truthful=1), said("6", 1, helpful=-1), said("7", -1, helpful=1)]
    found = agreement(rows)
    assert found.overall.share == pytest.approx(1 / 3)
    # 5 says the first is more helpful, 6 and 7 the second
    assert found.criteria["helpful"].count == 3
    assert found.criteria["helpful"].share == pytest.approx(1 / 3)
    assert found.criteria["truthful"].count == 0
    assert {name: rated.share for name, rated in found.annotators.items()} == {
        "5 and 6": 1.0,
        "5 and 7": 0.0,
        "6 and 7": 0.0,
    }
    # two values of one pair that differ: 1 - (2 - 1) * 2 / 2; two that are the same say nothing
    assert found.annotators_alpha == {"5 and 6": None, "5 and 7": 0.0, "6 and 7": 0.0}


def test_quality_by_hand() -> None:
    ranking = make_task("ranking", ROW.prompt, ROW.responses, 0)
    pair = make_task("pairwise", ROW.prompt, ROW.responses, 0)
    tasks = {ranking.uid: ranking, pair.uid: pair}

    def common(uid: str, number: str, seconds: float) -> dict[str, object]:
        return {
            "annotation_id": number,
            "annotator_id": "5",
            "task_uid": uid,
            "created_at": "",
            "lead_time": seconds,
        }

    judgements = [
        RankingJudgement.model_validate(common(ranking.uid, "1", 10.0) | {"ranking": ranking.shown}),
        RankingJudgement.model_validate(common(ranking.uid, "2", 20.0) | {"ranking": ranking.shown[::-1]}),
        PairwiseJudgement.model_validate(common(pair.uid, "3", 60.0) | {"preference": 2}),
    ]
    five, six = quality(judgements, tasks, [said("5", 1), said("6", -1)], {"6": 3})
    assert (five.judgements, five.skips, six.judgements, six.skips) == (3, 0, 0, 3)
    assert five.agreement_with_others == 0.0
    assert five.untouched_share == 0.5 and six.untouched_share is None
    assert five.first_position_share == pytest.approx(2 / (1 / 4 + 1 / 4 + 1 / 2))
    assert five.agreement.count == 1 and five.hasty_share is None
    assert five.median_lead_time_seconds == 20.0
