"""Evaluation of a reward model: accuracy by test set and criterion, calibration, correlation with length."""

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from alignment.criteria import CRITERION_NAMES
from alignment.distributed.collectives import on_main
from alignment.errors import DataError
from alignment.journal import Journal
from alignment.models.ensembles import Ensemble, spread
from alignment.models.likelihood import likelihood_head
from alignment.models.scalar import member_scores, reward_scores
from alignment.models.tokenizer import prompt_tokens, response_tokens
from alignment.records import Comparison, write_records
from alignment.reward_model.plots import calibration
from alignment.statistics import bag_of_words_accuracy, expected_calibration_error, pearson

TESTS = ("heldout_prompts", "heldout_annotators")


def examine(
    model: PreTrainedModel | Ensemble,
    tokenizer: PreTrainedTokenizerBase,
    rows: dict[str, list[Comparison]],
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
        margins = score_margins(model, tokenizer, rows[name]) * scale  # in Bradley-Terry's units again
        figures[f"accuracy_{name}"] = float((margins > 0).float().mean())
        figures[f"pairs_{name}"] = float(len(rows[name]))
        figures |= accuracy_by_criterion(margins, rows[name], name)
    tested = rows["heldout_prompts"]
    if not tested:
        raise DataError("no held-out comparison fits; raise `reward.max_length_tokens` or `comparisons.heldout_share`")
    margins = score_margins(model, tokenizer, tested) * scale
    figures["ece"] = expected_calibration_error(margins)
    figures["length_correlation"] = length_correlation(model, tokenizer, tested)
    figures["longer_wins"] = sum(len(c.chosen.text) > len(c.rejected.text) for c in tested) / len(tested)
    figures["bag_of_words_accuracy"] = bag_of_words_accuracy(rows["train"], tested)
    if isinstance(model, Ensemble):
        figures |= examine_members(model, tokenizer, tested)
    journal.figure("calibration", calibration(margins))
    journal.log({name: value for name, value in figures.items() if not name.startswith("pairs_")}, step=0)
    on_main(write_records, out / "tested.jsonl", tested)
    return figures


def examine_members(
    ensemble: Ensemble, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Comparison]
) -> dict[str, float]:
    """Accuracy of each member, and the disagreement of members on a response (in standard deviations of score)."""
    figures = {}
    for number, model in enumerate(ensemble.models):
        margins = score_margins(model, tokenizer, rows)
        figures[f"member_{number}_accuracy"] = float((margins > 0).float().mean())
    prompts = [len(prompt_tokens(tokenizer, row.prompt.messages)) for row in rows]
    chosen = member_scores(ensemble, [score_input(tokenizer, row, "chosen") for row in rows], prompts)
    return figures | {"member_spread": float(spread(chosen).mean())}


def score_margins(
    model: PreTrainedModel | Ensemble, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Comparison]
) -> Tensor:
    """Normalised score of chosen minus that of rejected. Shape: (rows,)."""
    prompts = [len(prompt_tokens(tokenizer, row.prompt.messages)) for row in rows]
    sides = [[score_input(tokenizer, row, side) for row in rows] for side in ("chosen", "rejected")]
    return reward_scores(model, sides[0], prompts) - reward_scores(model, sides[1], prompts)


def transposed(pairs: Sequence[tuple[list[int], int]]) -> tuple[list[list[int]], list[int]]:
    """The list of sequences and the list of prompt lengths."""
    return [sequence for sequence, _ in pairs], [length for _, length in pairs]


def score_input(tokenizer: PreTrainedTokenizerBase, row: Comparison, side: str) -> list[int]:
    """Token ids of the prompt with a side of a comparison."""
    return prompt_tokens(tokenizer, row.prompt.messages) + response_tokens(tokenizer, getattr(row, side).text)


def accuracy_by_criterion(margins: Tensor, rows: Sequence[Comparison], name: str) -> dict[str, float]:
    """Agreement with the ratings of each criterion, over the pairs whose responses were rated differently."""
    figures = {}
    for criterion in CRITERION_NAMES:
        rated = [i for i, row in enumerate(rows) if row.criteria.get(criterion)]
        if rated:
            agrees = [(float(margins[i]) > 0) == (rows[i].criteria[criterion] > 0) for i in rated]
            figures[f"accuracy_{name}_{criterion}"] = sum(agrees) / len(agrees)
    return figures


def length_correlation(
    model: PreTrainedModel | Ensemble, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Comparison]
) -> float:
    """Pearson correlation of score and response length in tokens, over the distinct responses of the test."""
    distinct = {
        (r.prompt.id, side.id): (score_input(tokenizer, r, name), len(prompt_tokens(tokenizer, r.prompt.messages)))
        for r in rows
        for name, side in (("chosen", r.chosen), ("rejected", r.rejected))
    }
    sequences, prompts = transposed(list(distinct.values()))
    lengths = [len(sequence) - prompt for sequence, prompt in zip(sequences, prompts, strict=True)]
    return pearson(reward_scores(model, sequences, prompts).tolist(), lengths)
