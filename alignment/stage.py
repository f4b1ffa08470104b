"""A stage as one object: its options, its inputs, the function that does its work, and its cost.

    STAGE = Stage("sft", run=finetune, config=SFTConfig, inputs=("base", "demonstrations"), section="sft", model="sft")

`alignment.stages` lists the stages, `alignment.methods` those that can make the policy. Recipes, plans, cost estimates,
cache keys, error messages and the processes of `accelerate launch` read what they need from these objects. So a stage's
module is imported before anything runs: what is slow to import (torch, transformers, trl) is imported by `run`.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Concatenate, Generic, TypeVar

from pydantic import BaseModel

from alignment.artifacts import stage_key
from alignment.config.rollout import WHOLE
from alignment.config.stages import ComputeConfig
from alignment.distributed.devices import computing, description
from alignment.footprint.model import Footprint
from alignment.journal import Journal
from alignment.rules.options import AlignOptions

Figures = Mapping[str, float]
C = TypeVar("C", bound=BaseModel)


@dataclass(frozen=True)
class Sizes:
    """The sizes of the models and the data of a recipe before it runs; None if not known yet.

    Lengths are in tokens; the others count rows.
    """

    conversation_tokens: int
    context_length: int
    corpus_tokens: int | None = None
    demonstrations: int = 0
    prompts: int = 0
    heldout_prompts: int = 0
    comparisons: float = 0.0
    judged_responses: float = 0.0
    heldout_share: float = 0.0
    snapshots: int = 0
    responses_per_prompt: int = 2

    def episode_tokens(self, max_new_tokens: int) -> int:
        """Tokens of a prompt with its response; the prompt may fill the rest of a conversation's length."""
        return max(1, self.conversation_tokens - max_new_tokens) + max_new_tokens


@dataclass(frozen=True)
class Tokens:
    """Tokens that a stage trains on (forward and backward) and tokens that it only reads, per model."""

    trained: float = 0.0
    read: float = 0.0


@dataclass(frozen=True)
class Stage(Generic[C]):
    """The definition of a stage.

    `run(config, out, journal, *, seed, **inputs)` writes into the directory `out` and returns metrics; `inputs` are the
    directories of the stages that it reads; the field `inputs` names those that it always has. `section` is where a
    recipe has its options. `version` is raised when the code changes the result: it is part of the cache key. `model`
    is the name under which `out/model` is registered. `cost` estimates the tokens; None if no model runs or the corpus
    is not known yet. `memory` predicts the bytes of the models at the stage's peak (`alignment.footprint.peaks`).
    """

    name: str
    run: Callable[Concatenate[C, Path, Journal, ...], Figures]
    config: type[C]
    section: str
    inputs: tuple[str, ...] = ()
    version: int = 1
    model: str | None = None
    cost: Callable[[C, Sizes], Tokens | None] | None = None
    memory: Callable[[C, Footprint, Sizes], int] | None = None
    # Options of `config`, by their names there. Lengths above the model's context are rejected before anything runs.
    sequence_options: tuple[str, ...] = ()  # tokens of a whole sequence
    response_options: tuple[str, ...] = ()  # tokens of a response alone
    batch_option: str = ""  # rows per optimizer step, sharded over processes; "": runs in a single process
    less_memory: str = ""  # what to do when memory runs out, with full names of options

    @property
    def distributed(self) -> bool:
        """Whether the stage can run in several processes."""
        return bool(self.batch_option)

    def key_options(self, config: C, align: AlignOptions | None) -> BaseModel | dict[str, Any]:
        """The options as they enter the cache key, provenance and MLflow's parameters."""
        return config


@dataclass(frozen=True)
class Method(Stage[C]):
    """A stage that makes the policy from SFT. Its options are under `align.NAME`, unless `section` says otherwise.

    A method with `reward` among its inputs also gets `align: AlignOptions`, for the rules beside the reward model.
    """

    model: str | None = "policy"
    weights_comparisons: bool = True  # whether it uses comparison weights; False if its trainer does not
    keeps_snapshots: bool = False  # whether `align.select` can select a snapshot

    @property
    def follows_reward(self) -> bool:
        """Whether the reward model scores what the policy samples."""
        return "reward" in self.inputs

    @property
    def reads_corpus(self) -> bool:
        """Whether pretraining text is mixed in."""
        return "corpus" in self.inputs

    def key_options(self, config: C, align: AlignOptions | None) -> dict[str, Any]:
        """The method's options under its name, beside those of `align` that act on it."""
        return {self.name: config, **({} if align is None else align.in_use())}


@dataclass(frozen=True)
class Step:
    """A stage of one recipe: its options, and the stage that makes each of its inputs.

    `inputs` maps the stage's name of an input to the name of the stage that makes it. `files` are read by the stage,
    and enter the key by content. `compute` does not: it changes results by rounding only. Nor does `registry`, the name
    that the recipe's models are registered under.
    """

    stage: Stage[Any]
    config: BaseModel
    inputs: Mapping[str, str] = field(default_factory=dict)
    files: tuple[Path, ...] = ()
    seed: int = 0
    align: AlignOptions | None = None
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    registry: str = ""

    @property
    def name(self) -> str:
        """The stage's name."""
        return self.stage.name

    @property
    def model(self) -> str | None:
        """The name of the registered model, as in town-policy; None for a stage without one."""
        role = self.stage.model
        return f"{self.registry}-{role}" if role and self.registry else role

    @property
    def options(self) -> BaseModel | dict[str, Any]:
        """All options that may change the result."""
        return self.stage.key_options(self.config, self.align)

    def key(self, inputs: Mapping[str, str], file_digests: list[str]) -> str:
        """The cache key of the output, from the keys of the inputs."""
        return stage_key(
            self.name,
            version=self.stage.version,
            config=self.options,
            inputs=inputs,
            file_digests=file_digests,
            seed=self.seed,
        )

    def perform(self, out: Path, journal: Journal, inputs: Mapping[str, Path]) -> Figures:
        """Do the work in `out`, on the device and in the precision of `compute`; every process of a distributed stage
        calls this."""
        shared = {} if self.align is None else {"align": self.align}
        with computing(self.compute):
            if self.stage.cost is not None:
                journal.describe(description())
            return self.stage.run(self.config, out, journal, seed=self.seed, **shared, **inputs)

    def to_json(self, inputs: Mapping[str, Path]) -> str:
        """The step and the directories of its inputs, for another process; `alignment.stages.read_step` reads it."""
        return json.dumps(
            {
                "stage": self.name,
                "config": self.config.model_dump(mode="json", context=WHOLE),
                "align": None if self.align is None else self.align.model_dump(mode="json"),
                "seed": self.seed,
                "compute": self.compute.model_dump(mode="json"),
                "inputs": {name: str(path) for name, path in inputs.items()},
            }
        )
