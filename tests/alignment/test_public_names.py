"""The names that `alignment` offers: which they are, that each resolves, and that none is imported before its use."""

import subprocess
import sys
from importlib import import_module

import pytest

import alignment

HOMES = {
    "Ensemble": "alignment.models.ensembles",
    "Journal": "alignment.journal",
    "ModelReward": "alignment.rewards.components",
    "PPOConfig": "alignment.ppo.config",
    "PPOResult": "alignment.ppo.train",
    "RuleReward": "alignment.rewards.components",
    "import_checkpoint": "alignment.models.importing",
    "load_reward": "alignment.models.reward_adapters",
    "load_scalar_model": "alignment.models.scalar",
    "train_ppo": "alignment.ppo.train",
}


def test_the_public_names_are_these_and_each_resolves() -> None:
    assert sorted(alignment.__all__) == sorted(HOMES)
    for name, module in HOMES.items():
        assert getattr(alignment, name) is getattr(import_module(module), name)


def test_a_name_that_is_not_public_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'alignment' has no attribute 'train_dpo'"):
        alignment.train_dpo  # noqa: B018
    with pytest.raises(ImportError, match="cannot import name 'train_dpo' from 'alignment'"):
        exec("from alignment import train_dpo")


def test_importing_alignment_alone_imports_no_torch() -> None:
    code = "import sys, alignment; print([m for m in ('torch', 'transformers', 'pydantic') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    light = "import sys; from alignment import PPOConfig, Journal; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", light], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
