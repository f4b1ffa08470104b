"""Fixtures of the evaluation tests: base, SFT, a policy with snapshots, a reward model and held-out prompts."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from alignment.config.stages import EvaluationConfig
from alignment.evaluation.run import evaluate
from alignment.journal import Journal
from alignment.models.scalar import save_model, scalar_head, scalar_model_from
from alignment.records import Document, Prompt
from alignment.town import Verdict
from tests.alignment.tiny_world import LINES, make_base, make_model, prompt, write

KINDS = {"fact": "What does Ada play?", "open": "Tell me about Bo.", "seen": "Who?", "long": "long " * 60}


def make_world(directory: Path) -> Path:
    """Everything that `evaluate` reads; SFT is the base model, and each snapshot another random model."""
    model, tokenizer = make_base(directory)
    for number, name in enumerate(("sft", "policy", "policy/snapshots/step-00002", "policy/snapshots/step-00004")):
        saved = model if name == "sft" else make_model(tokenizer, number)
        save_model(saved, directory / name if "snapshots" in name else directory / name / "model", tokenizer)
    (directory / "policy" / "snapshots.json").write_text("[2, 4]")
    reward = scalar_model_from(model)
    nn.init.normal_(scalar_head(reward).weight, generator=torch.Generator().manual_seed(0))
    save_model(reward, directory / "reward" / "model", tokenizer)
    rows = [prompt(text, kind=kind, split="train" if kind == "seen" else "heldout") for kind, text in KINDS.items()]
    write(directory / "prompts.jsonl", rows)
    write(directory / "heldout.jsonl", [Document(text=line) for line in LINES])
    return directory


def run(
    world: Path, out: Path, judge: Any = None, policy: Path | None = None, **options: Any
) -> tuple[dict[str, float], dict[str, Any]]:
    """The stage's metrics and `evaluation.json`."""
    config = EvaluationConfig(**{"max_new_tokens": 8, "samples_per_prompt": 2, **options})
    inputs = {"base": world, "sft": world / "sft", "reward": world / "reward", "policy": policy or world / "policy"}
    metrics = evaluate(config, out, Journal(out), seed=0, prompts=world, corpus=world, judge=judge, **inputs)
    return metrics, json.loads((out / "evaluation.json").read_text())


def judge(asked: Prompt, text: str) -> Verdict:
    """Likes what is short."""
    scores = {"helpful": 1 / (1 + len(text)), "truthful": 1.0, "harmless": 0.0}
    return Verdict(scores, reasons=("read", asked.kind))
