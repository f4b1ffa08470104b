"""Alignment tax: the loss of next-token prediction by fine-tuning, on held-out text."""

from alignment.evaluation.bench import Bench, Figures, Models
from alignment.training.pretrain import heldout_loss, pack


def measure_alignment_tax(bench: Bench, models: Models) -> Figures:
    """`tax`: cross-entropy per token (nats) of each model on the corpus's held-out documents."""
    context = int(bench.reference.config.max_position_embeddings)
    rows = pack(bench.corpus / "heldout.jsonl", bench.chat, context).rows
    return Figures({"tax": {name: heldout_loss(model, rows) for name, model in models.by_name().items()}})
