"""The means of `model_means`, by kind of prompt."""

from collections import defaultdict
from collections.abc import Sequence

from alignment.evaluation.bench import Bench, Figures, Models
from alignment.evaluation.judged_responses import JudgedResponse, means


def measure_kind_means(bench: Bench, models: Models) -> Figures:
    """`by_kind`: means and number of responses of each model by kind of prompt; too many for metrics."""
    report = {name: means_by_kind(bench.responses(model)) for name, model in models.by_name().items()}
    return Figures({"by_kind": report}, metrics={})


def means_by_kind(responses: Sequence[JudgedResponse]) -> dict[str, dict[str, float]]:
    """Means and `count` for each kind, in alphabetical order; prompts without a kind are `all`."""
    groups: dict[str, list[JudgedResponse]] = defaultdict(list)
    for response in responses:
        groups[response.kind or "all"].append(response)
    return {kind: means(group) | {"count": float(len(group))} for kind, group in sorted(groups.items())}
