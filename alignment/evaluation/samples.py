"""The sampled responses: all as JSONL, and the first response to each of the first prompts, by model."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from alignment.evaluation.judged_responses import JudgedResponse
from alignment.markdown import plain


def write_samples(out: Path, responses: Mapping[str, Sequence[JudgedResponse]], shown: int = 40) -> None:
    """Write `samples.jsonl`, and `samples.md` with the first `shown` prompts; responses are by model."""
    with (out / "samples.jsonl").open("w", encoding="utf-8") as file:
        for name, judged in responses.items():
            file.writelines(json.dumps({"model": name, **response.row()}) + "\n" for response in judged)
    prompts: dict[str, list[str]] = {}
    for row in zip(*responses.values(), strict=True):
        if row[0].prompt_id not in prompts and len(prompts) < shown:
            prompts[row[0].prompt_id] = _side_by_side(len(prompts) + 1, dict(zip(responses, row, strict=True)))
    (out / "samples.md").write_text("\n".join(line for lines in prompts.values() for line in lines), encoding="utf-8")


def _side_by_side(number: int, responses: Mapping[str, JudgedResponse]) -> list[str]:
    first = next(iter(responses.values()))
    kind = f" ({plain(first.kind)})" if first.kind else ""
    answers = [
        f"- **{model}** ({_scores(response)}): {plain(response.response)}" for model, response in responses.items()
    ]
    return [f"### {number}. {plain(first.prompt)}{kind}", "", *answers, ""]


def _scores(response: JudgedResponse) -> str:
    gold = "" if response.gold is None else f", gold {response.gold.score:.2f}"
    return f"reward {response.reward:+.2f}{gold}"
