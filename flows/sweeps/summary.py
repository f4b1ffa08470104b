"""The figures of a sweep: mean and interval over the seeds of each setting, and differences between settings.

Intervals are 95 % intervals of Student's t for the mean over seeds. Differences are taken seed by seed: cells with the
same seed share their data and the models before the option that differs, so that the difference varies less.
"""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from statistics import fmean, stdev

from pydantic import Field
from scipy.stats import t as student

from alignment.records import Record

CONFIDENCE = 0.95
FEWEST = 2  # seeds of an interval
NOTE = "mean over seeds ± half of the 95 % t interval; without ± there is one seed"
TITLES = {
    "win_rate_vs_sft": "wins over SFT",
    "kl_to_sft": "KL to SFT",
    "tax_ratio": "held-out loss / SFT's",
    "reward_accuracy_heldout_prompts": "reward accuracy",
    "gold_policy_score": "gold score",
    "gold_policy_helpful": "helpful",
    "gold_policy_truthful": "truthful",
    "gold_policy_harmless": "harmless",
}


class Outcome(Record):
    """What came of a cell: the figures of its release, or the problem that ended its run."""

    setting: str
    seed: int
    release: str = ""
    model: str = ""
    gate_passed: bool = False
    figures: dict[str, float] = Field(default_factory=dict)
    problem: str = ""


@dataclass(frozen=True)
class Estimate:
    """A mean over `count` values with half of its 95 % interval; `half` is None for a single value."""

    mean: float
    half: float | None
    count: int

    def __str__(self) -> str:
        return f"{self.mean:.3f}" if self.half is None else f"{self.mean:.3f} ± {self.half:.3f}"


def estimate(values: Sequence[float]) -> Estimate | None:
    """Mean and t interval: half = t(0.975, n − 1) · s / √n. None without values."""
    count = len(values)
    if not count:
        return None
    if count < FEWEST:
        return Estimate(values[0], None, count)
    quantile = float(student.ppf((1 + CONFIDENCE) / 2, count - 1))
    return Estimate(fmean(values), quantile * stdev(values) / math.sqrt(count), count)


def by_setting(outcomes: Sequence[Outcome]) -> dict[str, list[Outcome]]:
    """The outcomes of each setting, in the order of the settings."""
    return {
        setting: [outcome for outcome in outcomes if outcome.setting == setting]
        for setting in dict.fromkeys(outcome.setting for outcome in outcomes)
    }


def values_of(outcomes: Sequence[Outcome], figure: str) -> dict[int, float]:
    """A figure by seed, of the cells that have it."""
    return {outcome.seed: outcome.figures[figure] for outcome in outcomes if figure in outcome.figures}


def shown_figures(outcomes: Sequence[Outcome]) -> list[str]:
    """The figures of tables and pictures: those of TITLES that any cell has."""
    return [name for name in TITLES if any(name in outcome.figures for outcome in outcomes)]


def estimates(outcomes: Sequence[Outcome]) -> dict[str, dict[str, Estimate | None]]:
    """By setting and figure: the mean over seeds."""
    return {
        setting: {name: estimate(list(values_of(rows, name).values())) for name in shown_figures(outcomes)}
        for setting, rows in by_setting(outcomes).items()
    }


def differences(outcomes: Sequence[Outcome]) -> dict[str, dict[str, Estimate | None]]:
    """By setting, without the first, and figure: the mean difference to the first setting over common seeds."""
    first, *others = by_setting(outcomes).items()
    return {
        setting: {name: estimate(_paired(rows, first[1], name)) for name in shown_figures(outcomes)}
        for setting, rows in others
    }


def _paired(rows: Sequence[Outcome], first: Sequence[Outcome], figure: str) -> list[float]:
    these, those = values_of(rows, figure), values_of(first, figure)
    return [these[seed] - those[seed] for seed in these if seed in those]


def table(outcomes: Sequence[Outcome]) -> list[list[str]]:
    """A header, and a row for each setting: its finished seeds and its figures."""
    names = shown_figures(outcomes)
    rows = [["setting", "seeds", *(TITLES[name] for name in names)]]
    for setting, means in estimates(outcomes).items():
        cells = by_setting(outcomes)[setting]
        done = sum(not outcome.problem for outcome in cells)
        seeds = str(done) if done == len(cells) else f"{done} of {len(cells)}"
        rows.append([setting, seeds, *(_shown(means[name]) for name in names)])
    return rows


def difference_table(outcomes: Sequence[Outcome]) -> list[list[str]]:
    """A header, and a row for each setting but the first: its differences to the first."""
    names = shown_figures(outcomes)
    rows = [
        [setting, str(max((mean.count for mean in means.values() if mean), default=0)), *map(_shown, means.values())]
        for setting, means in differences(outcomes).items()
    ]
    return [["setting", "common seeds", *(TITLES[name] for name in names)], *rows]


def _shown(mean: Estimate | None) -> str:
    return "–" if mean is None else str(mean)


def markdown(name: str, outcomes: Sequence[Outcome]) -> str:
    """The report of a sweep: means, differences to the first setting, every cell, and problems."""
    settings, failed = by_setting(outcomes), [outcome for outcome in outcomes if outcome.problem]
    parts = [f"# Sweep {name}", NOTE, _markdown_table(table(outcomes))]
    if len(settings) > 1:
        parts += [f"Difference to `{next(iter(settings))}`, seed by seed:", _markdown_table(difference_table(outcomes))]
    parts += ["Every cell:", _markdown_table(cell_table(outcomes))]
    if failed:
        parts.append("Cells without figures:")
        parts.append("\n".join(f"- {cell.setting}, seed {cell.seed}: {inline(cell.problem)}" for cell in failed))
    return "\n\n".join(parts) + "\n"


def cell_table(outcomes: Sequence[Outcome]) -> list[list[str]]:
    """A header, and a row for each cell with its release, its registered version and its figures."""
    names = shown_figures(outcomes)
    rows = [
        [
            *(outcome.setting, str(outcome.seed), outcome.release or "failed", outcome.model.removeprefix("models:/")),
            "passed" if outcome.gate_passed else "missed" if outcome.release else "",
            *(f"{outcome.figures[name]:.3f}" if name in outcome.figures else "–" for name in names),
        ]
        for outcome in outcomes
    ]
    return [["setting", "seed", "release", "policy", "gate", *(TITLES[name] for name in names)], *rows]


def as_csv(outcomes: Sequence[Outcome]) -> str:
    """A row for each cell, with all its figures under their own names."""
    names = list(dict.fromkeys(name for outcome in outcomes for name in outcome.figures))
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["setting", "seed", "release", "policy", "gate_passed", "problem", *names])
    for cell in outcomes:
        values = [_number(cell.figures, name) for name in names]
        writer.writerow([cell.setting, cell.seed, cell.release, cell.model, cell.gate_passed, cell.problem, *values])
    return text.getvalue()


def _number(figures: Mapping[str, float], name: str) -> str:
    return repr(figures[name]) if name in figures else ""


def _markdown_table(rows: Sequence[Sequence[str]]) -> str:
    header, *others = [[inline(cell) for cell in row] for row in rows]
    line = ["---", *("---:" for _ in header[1:])]
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, line, *others))


def inline(text: str) -> str:
    """A text on one line of Markdown: no HTML, no link, no code, no cell of its own."""
    plain = escape(" ".join(text.split()), quote=False)
    return plain.translate({ord(mark): f"&#{ord(mark)};" for mark in "|[]`"})
