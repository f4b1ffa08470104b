"""Stage `evaluate`: base, SFT and policy side by side on held-out prompts.

With the town's facts the gold judge scores every response. Without a gold judge the reward model's score is all there
is, and the report says so: a reward model cannot tell whether it was fooled.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from alignment.artifacts import write_json
from alignment.checkpoint import load_tokenizer
from alignment.config import EvaluationConfig
from alignment.ensemble import Ensemble
from alignment.errors import DataError
from alignment.figures import gold_curve, kinds_chart
from alignment.journal import Journal
from alignment.logprobs import response_logprobs, scoring_batches
from alignment.model import load_causal_model, load_rewards, reward_scores
from alignment.pretrain import heldout_loss, pack
from alignment.records import CRITERIA, Prompt, read_records
from alignment.sampling import Sample, generate
from alignment.statistics import wilson_interval
from alignment.tokenizer import decode_response, prompt_tokens

TOKEN_BUDGET = 8192
TIE_MARGIN = 0.02  # gold scores closer than this do not decide who is better
Judge = Callable[[Prompt, str], Any]


@dataclass(frozen=True)
class Answer:
    """One response with everything that is known of it; gold figures are None without a judge."""

    prompt_id: str
    kind: str
    prompt: str
    response: str
    tokens: int
    ended: bool
    reward: float
    kl: float
    helpful: float | None = None
    truthful: float | None = None
    harmless: float | None = None
    score: float | None = None
    why: str = ""


@dataclass(frozen=True)
class Bench:
    """What every model is measured with."""

    config: EvaluationConfig
    tokenizer: PreTrainedTokenizerBase
    sft: PreTrainedModel
    reward: PreTrainedModel | Ensemble
    judge: Judge | None
    seed: int


def evaluate(
    config: EvaluationConfig,
    out: Path,
    journal: Journal,
    *,
    seed: int,
    base: Path,
    sft: Path,
    policy: Path,
    reward: Path,
    prompts: Path,
    corpus: Path,
    judge: Judge | None = None,
) -> dict[str, float]:
    """Write `evaluation.json`, `samples.jsonl`, `samples.md` and the figures; return the headline figures."""
    tokenizer = load_tokenizer(policy / "model")
    bench = Bench(config, tokenizer, load_causal_model(sft / "model"), load_rewards(reward), judge, seed)
    rows = [row for row in read_records(prompts / "prompts.jsonl", Prompt)[0] if row.split == "heldout"]
    within = fitting(rows, bench)
    too_long, rows = len(rows) - len(within), within[: config.prompts or None]
    models = {
        name: load_causal_model(path / "model") for name, path in (("base", base), ("sft", sft), ("policy", policy))
    }
    answers = {name: answer_all(bench, model, rows) for name, model in models.items()}
    heldout = pack(corpus / "heldout.jsonl", tokenizer, int(bench.sft.config.max_position_embeddings)).rows
    report: dict[str, Any] = {
        "models": {name: summary(given) for name, given in answers.items()},
        "by_kind": {name: by_kind(given) for name, given in answers.items()},
        "win_rate_vs_sft": win_rate(answers["policy"], answers["sft"]),
        "kl_to_sft": fmean(answer.kl for answer in answers["policy"]),
        "tax": {name: heldout_loss(model, heldout) for name, model in models.items()},
        "curve": measure_curve(bench, policy, rows[: config.curve_prompts]),
        "judge": "gold" if judge else "reward model",
        "prompts": {"asked": len(rows), "too_long": too_long},
    }
    write_json(out / "evaluation.json", report)
    write_samples(out, answers)
    draw_figures(report, journal)
    figures = flatten({key: report[key] for key in ("models", "win_rate_vs_sft", "tax", "kl_to_sft", "prompts")})
    journal.log(figures, step=0)
    return figures


def fitting(rows: Sequence[Prompt], bench: Bench) -> list[Prompt]:
    """Held-out prompts that leave room for an answer. Raises DataError when none does."""
    room = int(bench.sft.config.max_position_embeddings) - bench.config.max_new_tokens
    kept = [row for row in rows if len(prompt_tokens(bench.tokenizer, row.messages)) <= room]
    if not kept:
        raise DataError(
            f"none of {len(rows)} held-out prompts leaves room for {bench.config.max_new_tokens} tokens; "
            "lower `evaluation.max_new_tokens` or raise `prompts.heldout_share`"
        )
    return kept


def answer_all(bench: Bench, model: PreTrainedModel, rows: Sequence[Prompt]) -> list[Answer]:
    """Sample, score and judge `samples_per_prompt` answers to every prompt."""
    tokenizer, config = bench.tokenizer, bench.config
    repeated = [row for row in rows for _ in range(config.samples_per_prompt)]
    turns = [prompt_tokens(tokenizer, row.messages) for row in repeated]
    samples = generate(
        model,
        turns,
        max_new_tokens=config.max_new_tokens,
        temperature=config.temperature,
        eos_token_ids=[int(tokenizer.eos_token_id)],
        pad_token_id=int(tokenizer.pad_token_id),
        generator=torch.Generator(device=model.device).manual_seed(bench.seed),
    )
    sequences = [turn + sample.tokens for turn, sample in zip(turns, samples, strict=True)]
    rewards = reward_scores(bench.reward, sequences, [len(turn) for turn in turns]).tolist()
    kls = sequence_kl(bench.sft, turns, samples, config.temperature)
    return [judged(bench, *fields) for fields in zip(repeated, samples, rewards, kls, strict=True)]


@torch.no_grad()
def sequence_kl(
    reference: PreTrainedModel, prompts: Sequence[list[int]], samples: Sequence[Sample], temperature: float
) -> list[float]:
    """log π(y|x) − log π_ref(y|x) of each sampled response, in nats: its mean estimates KL(π‖π_ref)."""
    sequences = [prompt + sample.tokens for prompt, sample in zip(prompts, samples, strict=True)]
    kls = torch.tensor([sum(sample.logprobs) for sample in samples], dtype=torch.float64)
    for batch in scoring_batches(sequences, [len(p) for p in prompts], TOKEN_BUDGET, reference.device):
        kls.index_add_(0, batch.sequence.cpu(), -response_logprobs(reference, batch, temperature).double().cpu())
    return list(kls.tolist())


def judged(bench: Bench, row: Prompt, sample: Sample, reward: float, kl: float) -> Answer:
    """An answer with the judge's verdict, where there is a judge."""
    text = decode_response(bench.tokenizer, sample.tokens)
    gold: dict[str, Any] = {}
    if bench.judge is not None:
        verdict = bench.judge(row, text)
        gold = {name: getattr(verdict, name) for name in (*CRITERIA, "score")} | {"why": "; ".join(verdict.reasons)}
    return Answer(row.id, row.kind, row.text, text, len(sample.tokens), sample.ended, reward, kl, **gold)


def summary(answers: Sequence[Answer]) -> dict[str, float]:
    """Means over answers; gold figures only where there are any."""
    names = ["reward", "tokens", "ended", "kl"] + ([*CRITERIA, "score"] if answers[0].score is not None else [])
    return {name: fmean(float(getattr(answer, name)) for answer in answers) for name in names}


def by_kind(answers: Sequence[Answer]) -> dict[str, dict[str, float]]:
    """The same for each kind of prompt."""
    groups: dict[str, list[Answer]] = defaultdict(list)
    for answer in answers:
        groups[answer.kind or "all"].append(answer)
    return {kind: summary(group) | {"count": float(len(group))} for kind, group in sorted(groups.items())}


def win_rate(ours: Sequence[Answer], theirs: Sequence[Answer]) -> dict[str, Any]:
    """Share of decided prompts on which ours is better, with Wilson's 95 % interval; by gold score, else by reward.

    A prompt counts once, by the mean over its samples, and is decided when the means differ by more than a margin.
    """
    by = "score" if ours[0].score is not None else "reward"
    margin = TIE_MARGIN if by == "score" else 0.0
    differences: dict[str, list[float]] = defaultdict(list)
    for a, b in zip(ours, theirs, strict=True):
        differences[a.prompt_id].append(getattr(a, by) - getattr(b, by))
    means = [fmean(of_prompt) for of_prompt in differences.values()]
    decided = [mean for mean in means if abs(mean) > margin]
    wins = sum(d > 0 for d in decided)
    low, high = wilson_interval(wins, len(decided))
    return {
        "rate": wins / len(decided) if decided else 0.5,
        "low": low,
        "high": high,
        "decided": len(decided),
        "prompts": len(means),
        "by": by,
    }


def measure_curve(bench: Bench, policy: Path, rows: Sequence[Prompt]) -> list[dict[str, float]]:
    """Proxy and gold score of each snapshot of PPO, over its KL to SFT."""
    file = policy / "snapshots.json"
    steps = json.loads(file.read_text(encoding="utf-8")) if file.exists() else []
    points = []
    for step in steps:
        model = load_causal_model(policy / "snapshots" / f"step-{step:05d}")
        points.append({"step": float(step)} | summary(answer_all(bench, model, rows)))
    return points


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Nested figures as `a.b.c: number`; words are left out."""
    flat: dict[str, float] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        elif isinstance(value, int | float):
            flat[prefix + name] = float(value)
    return flat


def write_samples(out: Path, answers: Mapping[str, Sequence[Answer]], shown: int = 40) -> None:
    """All answers as JSONL, and some side by side as a table for people."""
    with (out / "samples.jsonl").open("w", encoding="utf-8") as file:
        for name, given in answers.items():
            file.writelines(json.dumps({"model": name, **asdict(answer)}) + "\n" for answer in given)
    lines = ["| kind | prompt | " + " | ".join(answers) + " |", "|---" * (2 + len(answers)) + "|"]
    for same in list(zip(*answers.values(), strict=True))[:shown]:
        cells = [
            f"{cell(a.response)}<br>{a.reward:+.2f}" + ("" if a.score is None else f" · gold {a.score:.2f}")
            for a in same
        ]
        lines.append(f"| {cell(same[0].kind)} | {cell(same[0].prompt)} | " + " | ".join(cells) + " |")
    (out / "samples.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def cell(text: str) -> str:
    """Text that cannot break out of a table cell."""
    shown = text.replace("&", "&amp;").replace("<", "&lt;").replace("|", "&#124;")
    return "<br>".join(shown.splitlines())


def draw_figures(report: Mapping[str, Any], journal: Journal) -> None:
    """The gold curve, and the criteria by model."""
    if report["curve"]:
        journal.figure("gold_curve", gold_curve(report["curve"]))
    if report["judge"] == "gold":
        journal.figure("criteria", kinds_chart(report["models"]))
