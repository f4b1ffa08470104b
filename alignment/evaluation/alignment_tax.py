"""Alignment tax: what fine-tuning costs in next-token prediction on text that no model was trained on."""

from alignment.evaluation.bench import Bench, Figures, Models
from alignment.training.pretrain import heldout_loss, pack


def measure_alignment_tax(bench: Bench, models: Models) -> Figures:
    """`tax`: cross-entropy per token (nats) of each model on the corpus's held-out documents."""
    context = int(bench.reference.config.max_position_embeddings)
    rows = pack(bench.corpus / "heldout.jsonl", bench.tokenizer, context).rows
    return Figures({"tax": {name: heldout_loss(model, rows) for name, model in models.by_name().items()}})
