"""Training the members of an ensemble of reward models in sequence.

All are trained on the same comparisons, in different orders and from different heads (Coste et al. 2024, section 3).
No bootstrap: each member would lose a third of the prompts, and for networks different initialisations and orders were
enough (Lakshminarayanan et al. 2017, "Simple and Scalable Predictive Uncertainty", section 2.4).
"""

import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from alignment.artifacts import write_json
from alignment.config.stages import RewardConfig
from alignment.distributed.collectives import on_main
from alignment.distributed.devices import frozen_dtype
from alignment.journal import Journal
from alignment.models.ensembles import Ensemble
from alignment.models.reward_adapters import save_reward
from alignment.models.scalar import ENSEMBLE_FILE, load_scalar_model, scalar_head

Train = Callable[[int, Path, Journal], PreTrainedModel]
SEED_STEP = 10_007  # between the seeds of two members; a prime above any number of epochs


def member_seed(seed: int, number: int) -> int:
    """The seed of a member's order of prompts; member 0 has the stage's seed."""
    return seed + SEED_STEP * number


def shake_head(model: PreTrainedModel, number: int) -> None:
    """Initialize the new head randomly at the model's initialization scale, instead of 0."""
    generator = torch.Generator().manual_seed(SEED_STEP + number)
    std = float(getattr(model.config, "initializer_range", 0.02))
    weight = scalar_head(model).weight
    drawn = torch.empty_like(weight, device="cpu")  # the same numbers on every device
    with torch.no_grad():
        weight.copy_(drawn.normal_(std=std, generator=generator))


def train_members(
    train: Train, config: RewardConfig, tokenizer: PreTrainedTokenizerBase, out: Path, journal: Journal
) -> PreTrainedModel | Ensemble:
    """The trained reward model, or all members as an ensemble; `train(number, directory, journal)` trains a member.

    Member 0 is `model/` and logs to the stage's journal; others are `model-N/` with journals under `members/N/`. A
    resumed run skips members that are finished.
    """
    if config.members == 1:
        model = train(0, out, journal)
        on_main(save_reward, model, out / "model", tokenizer)
        return model
    models = [_member(train, number, tokenizer, out, journal) for number in range(config.members)]
    description = {"members": config.members, "combine": config.combine, "combine_coef": config.combine_coef}
    on_main(write_json, out / ENSEMBLE_FILE, description)
    return Ensemble(tuple(models), config.combine, config.combine_coef)


def _member(
    train: Train, number: int, tokenizer: PreTrainedTokenizerBase, out: Path, journal: Journal
) -> PreTrainedModel:
    path = out / ("model" if number == 0 else f"model-{number}")
    if not path.exists():
        directory = out if number == 0 else out / "members" / str(number)
        model = train(number, directory, journal if number == 0 else type(journal)(directory))
        on_main(_publish, model, path, tokenizer)
    return load_scalar_model(path, frozen_dtype())


def _publish(model: PreTrainedModel, path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    temporary = path.with_name(path.name + ".partial")
    shutil.rmtree(temporary, ignore_errors=True)
    save_reward(model, temporary, tokenizer)
    temporary.replace(path)
