"""Alignment tax: the loss of next-token prediction by fine-tuning, on held-out text."""

from alignment.evaluation.bench import Bench, Figures, Models
from alignment.models.architecture import row_length
from alignment.training.pretrain import heldout_loss, heldout_text


def measure_alignment_tax(bench: Bench, models: Models) -> Figures:
    """`tax`: cross-entropy per token (nats) of each model on the corpus's held-out documents."""
    text = heldout_text(bench.corpus, bench.chat, row_length(bench.reference))
    return Figures({"tax": {name: heldout_loss(model, text) for name, model in models.by_name().items()}})
