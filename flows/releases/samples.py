"""The sampled responses of an evaluation: by model and prompt, with intervals of their mean scores."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

from alignment.criteria import GOLD_FIGURES
from alignment.errors import ArtifactError
from alignment.intervals import mean_interval
from alignment.records import read_lines

FILE = "samples.jsonl"
FIGURES = (*GOLD_FIGURES, "reward", "tokens")
Row = Mapping[str, object]
Samples = Mapping[str, Mapping[str, Sequence[Row]]]  # model, prompt id, its responses


def read_samples(evaluation: Path) -> Samples:
    """The responses in the output of a stage `evaluate`. Raises ArtifactError for a damaged file."""
    samples: dict[str, dict[str, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for number, row, reason in read_lines(evaluation / FILE):
        if reason or not isinstance(row, dict) or not {"model", "prompt_id", "response", "reward"} <= row.keys():
            problem = reason or "no sampled response"
            raise ArtifactError(f"{evaluation / FILE} line {number}: {problem}; remove {evaluation} and run again")
        samples[str(row["model"])][str(row["prompt_id"])].append(row)
    return samples


def scores(samples: Samples, model: str, figure: str) -> dict[str, list[float]]:
    """The values of a figure by prompt; empty if it was not measured."""
    by_prompt = samples.get(model, {})
    values = {prompt: [row.get(figure) for row in rows] for prompt, rows in by_prompt.items()}
    return {
        prompt: [float(value) for value in listed if isinstance(value, int | float)]
        for prompt, listed in values.items()
        if None not in listed
    }


def intervals(samples: Samples) -> dict[str, dict[str, tuple[float, float]]]:
    """The 95 % interval of each figure of each model over prompts; a prompt counts once, by its mean."""
    return {model: _of_model(samples, model) for model in samples}


def _of_model(samples: Samples, model: str) -> dict[str, tuple[float, float]]:
    means = {name: [fmean(values) for values in scores(samples, model, name).values()] for name in FIGURES}
    return {name: mean_interval(values) for name, values in means.items() if len(values) > 1}


def excerpt(samples: Samples, count: int, longest: int = 400) -> list[dict[str, object]]:
    """The first response of each model to `count` prompts of as many kinds as possible, cut to `longest` characters."""
    prompts = samples.get("policy", {})
    by_kind: dict[str, list[str]] = defaultdict(list)
    for prompt, rows in prompts.items():
        by_kind[str(rows[0].get("kind", ""))].append(prompt)
    rounds = [listed[number] for number in range(count) for listed in by_kind.values() if number < len(listed)]
    return [
        {
            "prompt": _cut(str(prompts[prompt][0].get("prompt", "")), longest),
            "kind": prompts[prompt][0].get("kind", ""),
            "responses": {
                model: {
                    "text": _cut(str(rows[prompt][0]["response"]), longest),
                    "reward": rows[prompt][0]["reward"],
                    "score": rows[prompt][0].get("score"),
                }
                for model, rows in samples.items()
                if prompt in rows
            },
        }
        for prompt in rounds[:count]
    ]


def _cut(text: str, longest: int) -> str:
    return text if len(text) <= longest else text[: longest - 1] + "…"
