"""Evaluation of a reward model: accuracy by test set and criterion, calibration, correlation with length."""

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor
from transformers import PreTrainedModel

from alignment.criteria import CRITERION_NAMES
from alignment.distributed.collectives import on_main
from alignment.errors import DataError
from alignment.journal import Journal
from alignment.models.encoding import Pair
from alignment.models.ensembles import Ensemble, spread
from alignment.models.likelihood import likelihood_head
from alignment.models.scalar import member_scores, reward_scores
from alignment.records import Comparison, write_records
from alignment.reward_model.plots import calibration
from alignment.statistics import bag_of_words_accuracy, expected_calibration_error, pearson

Encoding = tuple[Comparison, Pair]
TESTS = ("heldout_prompts", "heldout_annotators")


def examine(
    model: PreTrainedModel | Ensemble,
    rows: dict[str, list[Encoding]],
    out: Path,
    journal: Journal,
) -> dict[str, float]:
    """Accuracy by test set and criterion, calibration, correlation with length, and the accuracy of a bag of words."""
    members = model.models if isinstance(model, Ensemble) else (model,)
    likelihood = likelihood_head(members[0])
    figures: dict[str, float] = {} if likelihood is None else {"likelihood_coef": likelihood.coef.bias.item()}
    scale = sum(float(member.config.reward_scale) for member in members) / len(members)
    for name in TESTS:
        if not rows[name]:
            continue
        margins = score_margins(model, rows[name]) * scale  # in Bradley-Terry's units again
        figures[f"accuracy_{name}"] = float((margins > 0).float().mean())
        figures[f"pairs_{name}"] = float(len(rows[name]))
        figures |= accuracy_by_criterion(margins, [row for row, _ in rows[name]], name)
    tested = rows["heldout_prompts"]
    if not tested:
        raise DataError("no held-out comparison fits; raise `reward.max_length_tokens` or `comparisons.heldout_share`")
    comparisons = [row for row, _ in tested]
    margins = score_margins(model, tested) * scale
    figures["ece"] = expected_calibration_error(margins)
    figures["length_correlation"] = length_correlation(model, tested)
    figures["longer_wins"] = sum(len(c.chosen.text) > len(c.rejected.text) for c in comparisons) / len(tested)
    figures["bag_of_words_accuracy"] = bag_of_words_accuracy([row for row, _ in rows["train"]], comparisons)
    if isinstance(model, Ensemble):
        figures |= examine_members(model, tested)
    journal.figure("calibration", calibration(margins))
    journal.log({name: value for name, value in figures.items() if not name.startswith("pairs_")}, step=0)
    on_main(write_records, out / "tested.jsonl", comparisons)
    return figures


def examine_members(ensemble: Ensemble, rows: Sequence[Encoding]) -> dict[str, float]:
    """Accuracy of each member, and the disagreement of members on a response (in standard deviations of score)."""
    figures = {}
    for number, model in enumerate(ensemble.models):
        margins = score_margins(model, rows)
        figures[f"member_{number}_accuracy"] = float((margins > 0).float().mean())
    prompts = [len(pair.prompt) for _, pair in rows]
    chosen = member_scores(ensemble, [pair.prompt + pair.chosen for _, pair in rows], prompts)
    return figures | {"member_spread": float(spread(chosen).mean())}


def score_margins(model: PreTrainedModel | Ensemble, rows: Sequence[Encoding]) -> Tensor:
    """Normalised score of chosen minus that of rejected. Shape: (rows,)."""
    prompts = [len(pair.prompt) for _, pair in rows]
    chosen, rejected = zip(*((pair.prompt + pair.chosen, pair.prompt + pair.rejected) for _, pair in rows), strict=True)
    return reward_scores(model, chosen, prompts) - reward_scores(model, rejected, prompts)


def transposed(pairs: Sequence[tuple[list[int], int]]) -> tuple[list[list[int]], list[int]]:
    """The list of sequences and the list of prompt lengths."""
    return [sequence for sequence, _ in pairs], [length for _, length in pairs]


def accuracy_by_criterion(margins: Tensor, rows: Sequence[Comparison], name: str) -> dict[str, float]:
    """Agreement with the ratings of each criterion, over the pairs whose responses were rated differently."""
    figures = {}
    for criterion in dict.fromkeys((*CRITERION_NAMES, *(name for row in rows for name in row.criteria))):
        rated = [i for i, row in enumerate(rows) if row.criteria.get(criterion)]
        if rated:
            agrees = [(float(margins[i]) > 0) == (rows[i].criteria[criterion] > 0) for i in rated]
            figures[f"accuracy_{name}_{criterion}"] = sum(agrees) / len(agrees)
    return figures


def length_correlation(model: PreTrainedModel | Ensemble, rows: Sequence[Encoding]) -> float:
    """Pearson correlation of score and response length in tokens, over the distinct responses of the test."""
    distinct = {
        (row.prompt.id, side.id): (pair.prompt + tokens, len(pair.prompt))
        for row, pair in rows
        for side, tokens in ((row.chosen, pair.chosen), (row.rejected, pair.rejected))
    }
    sequences, prompts = transposed(list(distinct.values()))
    lengths = [len(sequence) - prompt for sequence, prompt in zip(sequences, prompts, strict=True)]
    return pearson(reward_scores(model, sequences, prompts).tolist(), lengths)
