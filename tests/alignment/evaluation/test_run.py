"""Evaluation: win rate with its interval, KL to SFT, the curve, and tables that no response can corrupt."""

import html
import json
import math
from dataclasses import replace

import pytest
import torch

from alignment.config.stages import EvaluationConfig
from alignment.errors import DataError
from alignment.evaluation import EVALUATORS
from alignment.evaluation import run as stage
from alignment.evaluation.bench import Bench, Figures, not_measured
from alignment.evaluation.best_of_n import best_of_n_points
from alignment.evaluation.gold_curve import chosen_step, curve_fits, snapshot_points
from alignment.evaluation.judged_responses import Gold, JudgedResponse, means, sequence_kl
from alignment.evaluation.kind_means import means_by_kind
from alignment.evaluation.run import flatten
from alignment.evaluation.samples import write_samples
from alignment.evaluation.win_rate import win_rate
from alignment.journal import Journal
from alignment.markdown import plain
from alignment.models.chat import load_chat
from alignment.models.generation import Sample
from alignment.models.scalar import load_causal_model, load_rewards
from alignment.models.tokenizer import load_tokenizer
from alignment.plots import new_figure
from tests.alignment.evaluation.world import judge, run
from tests.alignment.tiny_world import make_model, prompt

PLAIN = JudgedResponse("p", "fact", "Q?", "A.", tokens=4, ended=True, reward=1.0, kl=0.5)


def rewarded(*rewards: float) -> list[JudgedResponse]:
    return [replace(PLAIN, prompt_id=f"p{number}", reward=reward) for number, reward in enumerate(rewards)]


def scored(*scores: float) -> list[JudgedResponse]:
    return [replace(PLAIN, prompt_id=f"p{number}", gold=Gold({}, score, "")) for number, score in enumerate(scores)]


def test_win_rate_by_reward_by_hand() -> None:
    won = win_rate(rewarded(2, 2, 1, 5, 3), rewarded(1, 1, 2, 4, 3))
    assert (won["rate"], won["decided"], won["prompts"], won["by"]) == (0.75, 4, 5, "reward")
    # Wilson, 3 of 4, z² = 3.8415: (.75 + .48018 ∓ 1.95996·√(.1875/4 + 3.8415/64)) / 1.96037
    assert (won["low"], won["high"]) == pytest.approx((0.300642, 0.954413), abs=1e-5)


def test_gold_scores_decide_where_there_are_any_and_small_differences_are_ties() -> None:
    ours = scored(0.9, 0.515, 0.2, 1.0)
    theirs = scored(0.5, 0.5, 0.9, 0.97)
    ours = [replace(response, reward=-9.0) for response in ours]
    won = win_rate(ours, theirs)
    assert (won["by"], won["decided"], won["rate"]) == ("score", 3, pytest.approx(2 / 3))


def test_a_prompt_counts_once_by_the_mean_over_its_samples() -> None:
    ours = [replace(r, prompt_id=name) for r, name in zip(scored(1.0, 0.5, 0.4), "aab", strict=True)]
    theirs = [replace(response, gold=Gold({}, 0.7, "")) for response in ours]
    won = win_rate(ours, theirs)  # a: .75 against .7, b: .4 against .7
    assert (won["rate"], won["decided"], won["prompts"]) == (0.5, 2, 2)


def test_only_ties_say_nothing() -> None:
    won = win_rate(rewarded(1, 1), rewarded(1, 1))
    assert (won["rate"], won["low"], won["high"], won["decided"]) == (0.5, 0, 1, 0)


def test_means_and_kinds_by_hand() -> None:
    longer, other = replace(PLAIN, reward=3.0, tokens=6, ended=False, kl=1.5), replace(PLAIN, kind="open", reward=5.0)
    assert means([PLAIN, longer]) == {"reward": 2.0, "tokens": 5.0, "ended": 0.5, "kl": 1.0}
    kinds = means_by_kind([PLAIN, longer, other, replace(PLAIN, kind="")])
    assert {kind: (figures["count"], figures["reward"]) for kind, figures in kinds.items()} == {
        "all": (1, 1.0),
        "fact": (2, 2.0),
        "open": (1, 5.0),
    }
    judged = replace(PLAIN, gold=Gold({"helpful": 1.0, "truthful": 0.0}, 0.67, ""))
    assert means([judged, replace(judged, gold=Gold({"helpful": 0.0, "truthful": 0.5}, 0.33, ""))]) == pytest.approx(
        {"reward": 1.0, "tokens": 4.0, "ended": 1.0, "kl": 0.5, "helpful": 0.5, "truthful": 0.25, "score": 0.5}
    )


def test_figures_become_flat_and_words_are_left_out() -> None:
    assert flatten({"a": {"b": 1, "c": {"d": 0.5}}, "e": "word", "f": [1]}) == {"a.b": 1.0, "a.c.d": 0.5}


# --- the table -------------------------------------------------------------------------------------------------------


NASTY = ("a | b", "<script>alert(1)</script>", "one\ntwo", "a\r\nb\rc\x0bd\x0ce\u2028f", "&lt;b&gt; \\| | ||")


@pytest.mark.parametrize("text", NASTY)
def test_text_of_a_model_stays_text_on_one_line(text) -> None:
    shown = plain(text)
    assert not {"|", "<", ">"} & set(shown) and len(shown.splitlines()) == 1
    assert html.unescape(shown) == " ".join(text.split())  # and nothing of it is lost but breaks


def test_a_prompt_is_shown_once_with_the_first_response_of_each_model(tmp_path) -> None:
    nasty = replace(PLAIN, kind="a|b", prompt="Q|\n<b>?", response="| --- |\n# head")
    write_samples(tmp_path, {name: [nasty, PLAIN] for name in ("base", "sft", "policy")})  # of the same prompt
    text = (tmp_path / "samples.md").read_text()
    assert text.count("### ") == 1 and text.count("- **") == 3 and "<br>" not in text
    assert text.startswith("### 1. Q&#124; &#60;b&#62;? (a&#124;b)\n\n- **base** (reward ")
    rows = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert [row["model"] for row in rows] == ["base"] * 2 + ["sft"] * 2 + ["policy"] * 2
    assert rows[0]["response"] == nasty.response and rows[0]["score"] is None


# --- distance --------------------------------------------------------------------------------------------------------


def logprob(model, head: list[int], tokens: list[int], temperature: float) -> float:
    """log π(tokens | head), token by token, each in a forward of its own."""
    total = 0.0
    for t, token in enumerate(tokens):
        with torch.no_grad():
            logits = model(torch.tensor([head + tokens[:t]])).logits[0, -1].double() / temperature
        total += float(logits[token] - torch.logsumexp(logits, 0))
    return total


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_sequence_kl_is_the_difference_of_log_probabilities(world, temperature) -> None:
    tokenizer = load_tokenizer(world / "model")
    reference, policy = make_model(tokenizer, 1), make_model(tokenizer, 2)
    heads, tails = [[5, 6, 7], [8], [9, 10]], [[11, 12, 1], [13] * 9, [1]]
    ours = [
        [logprob(policy, head, tail[: t + 1], temperature) for t in range(len(tail))]
        for head, tail in zip(heads, tails, strict=True)
    ]
    samples = [
        Sample(tail, [after - before for after, before in zip(sums, [0.0, *sums], strict=False)])
        for tail, sums in zip(tails, ours, strict=True)
    ]
    wanted = [s[-1] - logprob(reference, h, t, temperature) for s, h, t in zip(ours, heads, tails, strict=True)]
    assert sequence_kl(reference, heads, samples, temperature) == pytest.approx(wanted, abs=1e-4)  # float32 forwards


# --- the stage -------------------------------------------------------------------------------------------------------


def test_three_models_answer_the_held_out_prompts_that_fit(world, tmp_path) -> None:
    figures, report = run(world, tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert {row["kind"] for row in rows} == {"fact", "open"} and len(rows) == 3 * 2 * 2
    assert report["judge"] == "reward model" and report["win_rate_vs_sft"]["by"] == "reward"
    same = [[row["response"] for row in rows if row["model"] == name] for name in ("base", "sft")]
    assert same[0] == same[1]  # one and the same model, seed and prompts
    assert figures["models.sft.kl"] == pytest.approx(0, abs=1e-4) and figures["kl_to_sft"] != 0
    mean = sum(row["reward"] for row in rows if row["model"] == "policy") / 4
    assert figures["models.policy.reward"] == pytest.approx(mean, abs=1e-6)
    assert figures["tax.base"] == figures["tax.sft"] != figures["tax.policy"]
    assert [point["step"] for point in report["curve"]] == [2.0, 4.0] and "score" not in report["curve"][0]


def test_with_a_gold_judge_every_answer_has_its_verdict(world, tmp_path) -> None:
    figures, report = run(world, tmp_path, judge, curve_prompts=1)
    rows = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    for row in rows:
        helpful = 1 / (1 + len(row["response"]))
        assert row["score"] == pytest.approx(0.34 * helpful + 0.33) and row["why"] == f"read; {row['kind']}"
    assert report["judge"] == "gold" and report["win_rate_vs_sft"]["by"] == "score"
    assert (figures["models.policy.truthful"], figures["models.policy.harmless"]) == (1, 0)
    assert {"gold_curve.png", "criteria.png"} == {path.name for path in (tmp_path / "figures").iterdir()}


def test_no_prompt_that_fits_is_an_error_in_words(world, tmp_path) -> None:
    with pytest.raises(DataError, match="no held-out prompt leaves room for 63 tokens"):
        run(world, tmp_path, max_new_tokens=63)


def make_bench(world, **options) -> Bench:
    """The bench that the stage makes, without a judge and with prompts of its own."""
    config = EvaluationConfig(**{"max_new_tokens": 8, **options})
    chat, sft = load_chat(world / "model"), load_causal_model(world / "sft" / "model")
    rows = [prompt("What does Ada play?"), prompt("Who?")]
    return Bench(config, chat, sft, load_rewards(world / "reward"), None, 0, rows, world / "policy", world, world)


def test_a_policy_without_snapshots_has_no_curve(world, tmp_path) -> None:
    bench = replace(make_bench(world), policy=tmp_path)
    assert snapshot_points(bench) == [] and chosen_step(tmp_path) is None
    assert curve_fits([]) == {} and best_of_n_points(bench, ()) == []


def test_responses_are_sampled_once(world) -> None:
    bench = make_bench(world)
    assert bench.responses(bench.reference) is bench.responses(bench.reference)
    assert bench.responses(bench.reference) == bench.sample(bench.reference, bench.prompts, 1)


def point(step: int, kl: float, gold: float) -> dict[str, float]:
    return {"step": float(step), "kl": kl, "reward": 0.5 + 2 * kl**0.5, "score": gold}


def test_the_curve_is_fitted_from_sft_on() -> None:
    def law(d: float) -> float:
        return 0.6 + d * (0.3 - 0.2 * math.log(d))

    points = [point(0, 1e-5, 0.6), *(point(n, d * d, law(d)) for n, d in enumerate((0.4, 0.9, 1.7, 2.6), start=8))]
    fits = curve_fits(points)
    gold = fits["gold"]
    assert (gold["alpha"], gold["beta"], gold["start"], gold["points"]) == pytest.approx((0.3, 0.2, 0.6, 4), abs=1e-9)
    assert gold["residual"] < 1e-9 and gold["peak_distance"] == pytest.approx(math.exp(0.5))
    # the proxy rises by 2 d: α = 2, β = 0, and no peak (0.0063 is the proxy's own start, √1e-5 · 2)
    assert fits["proxy"]["alpha"] == pytest.approx(2, abs=0.02) and abs(fits["proxy"]["beta"]) < 0.02
    assert curve_fits(points[1:]) == {} and curve_fits(points[:3]) == {}
    assert "gold" not in curve_fits([{k: v for k, v in one.items() if k != "score"} for one in points])


def test_best_of_n_sampling_is_measured_at_its_distance(world, tmp_path) -> None:
    figures, report = run(world, tmp_path, judge, best_of_n=[1, 4], curve_prompts=2)
    one, four = report["best_of_n"]
    assert (one["n"], four["n"]) == (1, 4) and one["kl"] == 0
    assert four["kl"] == pytest.approx(math.log(4) - 0.75)
    assert four["reward"] > one["reward"] and figures["best_of_4.score"] == four["score"]
    assert report["curve_fit"] == {} and report["chosen_step"] is None  # no snapshot of step 0


def test_best_of_all_that_were_sampled_is_the_best_one(world) -> None:
    bench = make_bench(world, samples_per_prompt=3)
    rewards = [response.reward for response in bench.responses(bench.reference)]
    (first, last) = best_of_n_points(bench, [3, 1])
    assert first["reward"] == pytest.approx(sum(rewards) / 6)
    assert last["reward"] == pytest.approx((max(rewards[:3]) + max(rewards[3:])) / 2)
    assert "score" not in last


# --- another evaluator -----------------------------------------------------------------------------------------------


def measure_lengths(bench, models) -> Figures:
    """Characters of each model's responses, with a plot."""
    lengths = {
        name: sum(len(response.response) for response in bench.responses(model))
        for name, model in models.by_name().items()
    }

    def plot(report):
        figure, axes = new_figure("characters")
        axes.bar(list(report["characters"]), list(report["characters"].values()))
        return figure

    return Figures({"characters": lengths}, plots={"characters": plot})


def measure_flattery(bench, models) -> Figures:
    """Something that only a gold judge can tell."""
    return not_measured("flattery") if bench.judge is None else Figures({"flattery": 0.25})


def test_an_evaluator_is_one_entry(world, tmp_path, monkeypatch) -> None:
    before, plain = run(world, tmp_path / "before")
    monkeypatch.setattr(stage, "EVALUATORS", (*EVALUATORS, measure_lengths, measure_flattery))
    metrics, report = run(world, tmp_path / "after")
    rows = [json.loads(line) for line in (tmp_path / "after" / "samples.jsonl").read_text().splitlines()]
    characters = {
        name: sum(len(row["response"]) for row in rows if row["model"] == name) for name in ("base", "sft", "policy")
    }
    assert report == plain | {"characters": characters, "flattery": None}
    assert metrics == before | {f"characters.{name}": count for name, count in characters.items()}
    assert Journal(tmp_path / "after").read()[-1]["values"] == metrics
    assert (tmp_path / "after" / "figures" / "characters.png").stat().st_size > 0


def test_what_needs_a_gold_judge_is_measured_with_one(world, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(stage, "EVALUATORS", (measure_flattery,))
    metrics, report = run(world, tmp_path, judge)
    assert report["flattery"] == metrics["flattery"] == 0.25


def test_two_evaluators_of_one_name_are_an_error(world, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(stage, "EVALUATORS", (measure_flattery, measure_flattery))
    with pytest.raises(ValueError, match="two evaluators report flattery"):
        run(world, tmp_path)
