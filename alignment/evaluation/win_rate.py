"""Win rate of the policy against SFT."""

from collections import defaultdict
from collections.abc import Sequence

from alignment import intervals
from alignment.evaluation.bench import Bench, Figures, Models
from alignment.evaluation.judged_responses import JudgedResponse


def measure_win_rate(bench: Bench, models: Models) -> Figures:
    """`win_rate_vs_sft`: the share of decided prompts on which the policy is better, with its interval."""
    return Figures({"win_rate_vs_sft": win_rate(bench.responses(models.policy), bench.responses(models.sft))})


def win_rate(ours: Sequence[JudgedResponse], theirs: Sequence[JudgedResponse]) -> dict[str, float | str]:
    """Share of decided prompts on which ours is better, by gold score, else by reward."""
    by, margin = ("reward", 0.0) if ours[0].gold is None else ("score", intervals.TIE_MARGIN)
    return {**intervals.win_rate(_by_prompt(ours, by), _by_prompt(theirs, by), margin), "by": by}


def _by_prompt(responses: Sequence[JudgedResponse], figure: str) -> dict[str, list[float]]:
    values: dict[str, list[float]] = defaultdict(list)
    for response in responses:
        values[response.prompt_id].append(response.figures()[figure])
    return values
