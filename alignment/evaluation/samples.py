"""The sampled responses: all as JSONL, and the first prompts as a table of models side by side."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from alignment.evaluation.judged_responses import JudgedResponse


def write_samples(out: Path, responses: Mapping[str, Sequence[JudgedResponse]], shown: int = 40) -> None:
    """Write `samples.jsonl`, and `samples.md` with the first `shown` prompts; responses are by model."""
    with (out / "samples.jsonl").open("w", encoding="utf-8") as file:
        for name, judged in responses.items():
            file.writelines(json.dumps({"model": name, **response.row()}) + "\n" for response in judged)
    lines = ["| kind | prompt | " + " | ".join(responses) + " |", "|---" * (2 + len(responses)) + "|"]
    for row in list(zip(*responses.values(), strict=True))[:shown]:
        cells = [cell(row[0].kind), cell(row[0].prompt), *map(_response_cell, row)]
        lines.append("| " + " | ".join(cells) + " |")
    (out / "samples.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _response_cell(response: JudgedResponse) -> str:
    gold = "" if response.gold is None else f" · gold {response.gold.score:.2f}"
    return f"{cell(response.response)}<br>{response.reward:+.2f}{gold}"


def cell(text: str) -> str:
    """Text escaped for a table cell: it cannot become HTML, a link, an image, code or another cell."""
    escaped = text.replace("&", "&amp;")
    for mark in "<>|[]`":
        escaped = escaped.replace(mark, f"&#{ord(mark)};")
    return "<br>".join(escaped.splitlines())
