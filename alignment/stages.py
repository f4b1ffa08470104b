"""The registry of stages: every stage as one object (`alignment.stage`), and steps as other processes read them.

The dependencies of a stage are imported when it runs, so that a fully cached run does not load torch. The stage
`labeling` needs Label Studio and is in `flows.annotation`; methods are in `alignment.methods`.
"""

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from alignment.config.base import Config, Count
from alignment.config.stages import (
    ComparisonsConfig,
    ComputeConfig,
    CorpusConfig,
    DemonstrationsConfig,
    EvaluationConfig,
    PretrainConfig,
    PromptsConfig,
    RewardConfig,
    SamplingConfig,
    SFTConfig,
    TokenizerConfig,
    TownConfig,
)
from alignment.footprint import peaks
from alignment.footprint.model import Footprint
from alignment.journal import Journal
from alignment.methods import METHODS
from alignment.rules.options import AlignOptions
from alignment.stage import Figures, Sizes, Stage, Step, Tokens


class TokenizerOptions(Config):
    """The options of the tokenizer stage: its own, and the context of the model that is trained with it."""

    tokenizer: TokenizerConfig
    context_length: Count


def _town(config: TownConfig, out: Path, journal: Journal, *, seed: int) -> Figures:
    from alignment import town

    return town.build_town(config, seed, out)


def _corpus(config: CorpusConfig, out: Path, journal: Journal, *, seed: int, **inputs: Path) -> Figures:
    from alignment.data.corpus import prepare_corpus

    return prepare_corpus(config, out, journal, seed=seed, **inputs)


def _tokenizer(config: TokenizerOptions, out: Path, journal: Journal, *, seed: int, corpus: Path) -> Figures:
    from alignment.models.tokenizer import train_tokenizer

    return train_tokenizer(config.tokenizer, out, journal, corpus=corpus, context_length=config.context_length)


def _pretrain(config: PretrainConfig, out: Path, journal: Journal, *, seed: int, **inputs: Path) -> Figures:
    from alignment.training.pretrain import pretrain

    return pretrain(config, out, journal, seed=seed, **inputs)


def _demonstrations(
    config: DemonstrationsConfig, out: Path, journal: Journal, *, seed: int, town: Path | None = None
) -> Figures:
    from alignment.data.demonstrations import collect_demonstrations

    return collect_demonstrations(config, out, journal, town=town)


def _prompts(config: PromptsConfig, out: Path, journal: Journal, *, seed: int, town: Path | None = None) -> Figures:
    from alignment.data.prompts import collect_prompts

    return collect_prompts(config, out, journal, seed=seed, town=town)


def _sft(config: SFTConfig, out: Path, journal: Journal, *, seed: int, base: Path, demonstrations: Path) -> Figures:
    from alignment.training.sft import finetune

    return finetune(config, out, journal, seed=seed, base=base, demonstrations=demonstrations)


def _responses(
    config: SamplingConfig, out: Path, journal: Journal, *, seed: int, model: Path, prompts: Path
) -> Figures:
    from alignment.data.responses import sample_responses

    return sample_responses(config, out, journal, seed=seed, model=model, prompts=prompts)


def _comparisons(config: ComparisonsConfig, out: Path, journal: Journal, *, seed: int, **inputs: Path) -> Figures:
    from alignment.data.comparisons import build_comparisons

    labelled = inputs.get("labelled")
    judged = None if labelled is None else labelled / "comparisons.jsonl"
    return build_comparisons(config, out, journal, seed=seed, labelled=judged, town=inputs.get("town"))


def _reward(
    config: RewardConfig,
    out: Path,
    journal: Journal,
    *,
    seed: int,
    sft: Path,
    comparisons: Path,
    demonstrations: Path,
    swapped: bool = False,
) -> Figures:
    from alignment.reward_model.train import train_reward_model

    data = {"sft": sft, "comparisons": comparisons, "demonstrations": demonstrations}
    return train_reward_model(config, out, journal, seed=seed, swapped=swapped, **data)


def _validation(config: RewardConfig, out: Path, journal: Journal, *, seed: int, **inputs: Path) -> Figures:
    """A second reward model, trained on the comparisons that are held out from the first."""
    return _reward(config, out, journal, seed=seed, swapped=True, **inputs)


def _evaluate(
    config: EvaluationConfig, out: Path, journal: Journal, *, seed: int, town: Path | None = None, **inputs: Path
) -> Figures:
    from alignment.evaluation.run import evaluate
    from alignment.town import Judge

    judge = None if town is None else Judge.load(town / "facts.json")
    return evaluate(config, out, journal, seed=seed, judge=judge, **inputs)


def _rescore(config: Config, out: Path, journal: Journal, *, seed: int, **inputs: Path) -> Figures:
    from alignment.evaluation.rescoring import rescore

    return rescore(out, journal, **inputs)


def _pretrain_cost(config: PretrainConfig, sizes: Sizes) -> Tokens | None:
    return None if sizes.corpus_tokens is None else Tokens(trained=sizes.corpus_tokens * config.epochs)


def _sft_cost(config: SFTConfig, sizes: Sizes) -> Tokens:
    return Tokens(trained=sizes.demonstrations * config.max_length_tokens * config.epochs)


def _responses_cost(config: SamplingConfig, sizes: Sizes) -> Tokens:
    length = sizes.episode_tokens(config.max_new_tokens)
    return Tokens(read=config.prompts * config.responses_per_prompt * length)


def _reward_cost(config: RewardConfig, sizes: Sizes) -> Tokens:
    """Each response is read and trained on once per epoch, regardless of the number of its pairs."""
    responses = sizes.judged_responses * (1 - sizes.heldout_share)
    return Tokens(trained=responses * config.max_length_tokens * config.epochs * config.members)


def _validation_cost(config: RewardConfig, sizes: Sizes) -> Tokens:
    responses = sizes.judged_responses * sizes.heldout_share
    return Tokens(trained=responses * config.max_length_tokens * config.epochs)


def _evaluate_cost(config: EvaluationConfig, sizes: Sizes) -> Tokens:
    """Three models answer, and so do the points of the curve; each answer is sampled and scored by three models."""
    prompts = config.prompts or sizes.heldout_prompts
    points = sizes.snapshots + max(config.best_of_n, default=0)
    answers = 3 * prompts * config.samples_per_prompt + points * config.curve_prompts
    return Tokens(read=4 * answers * sizes.episode_tokens(config.max_new_tokens))


def _pretrain_memory(config: PretrainConfig, model: Footprint, sizes: Sizes) -> int:
    return peaks.of_pretraining(config, model, sizes.context_length)


def _sft_memory(config: SFTConfig, model: Footprint, sizes: Sizes) -> int:
    return peaks.of_adapter_training(config, model, config.batch_size, config.max_length_tokens)


def _responses_memory(config: SamplingConfig, model: Footprint, sizes: Sizes) -> int:
    return peaks.of_reading(model, 1, config.batch_size, sizes.episode_tokens(config.max_new_tokens))


def _reward_memory(config: RewardConfig, model: Footprint, sizes: Sizes) -> int:
    return peaks.of_reward_training(config, model, sizes.responses_per_prompt)


def _evaluate_memory(config: EvaluationConfig, model: Footprint, sizes: Sizes) -> int:
    """Base, SFT, policy and reward model are held at the same time."""
    return peaks.of_reading(model, 4, SAMPLED_ROWS, sizes.episode_tokens(config.max_new_tokens))


class PretrainStage(Stage[PretrainConfig]):
    """The stage `pretrain`, whose key also has the version of the import where a checkpoint is imported."""

    def key_options(self, config: PretrainConfig, align: AlignOptions | None) -> BaseModel | dict[str, Any]:
        """The options, and the version of the import."""
        return config if config.checkpoint is None else {**config.model_dump(), "import_version": IMPORT_VERSION}


PREFERENCES = ("sft", "comparisons", "demonstrations")
SAMPLED_ROWS = 128  # at a time in the evaluation
IMPORT_VERSION = 2  # raised when an imported checkpoint changes

TOWN = Stage("town", run=_town, config=TownConfig, section="town", version=2)
CORPUS = Stage("corpus", run=_corpus, config=CorpusConfig, section="corpus")
TOKENIZER = Stage("tokenizer", run=_tokenizer, config=TokenizerOptions, section="tokenizer", inputs=("corpus",))
PRETRAIN = PretrainStage(
    "pretrain",
    run=_pretrain,
    config=PretrainConfig,
    section="pretrain",
    inputs=("corpus",),
    version=2,
    model="base",
    cost=_pretrain_cost,
    memory=_pretrain_memory,
    batch_option="batch_sequences",
    less_memory="lower pretrain.micro_batch_tokens, set pretrain.gradient_checkpointing: true",
)
DEMONSTRATIONS = Stage("demonstrations", run=_demonstrations, config=DemonstrationsConfig, section="demonstrations")
PROMPTS = Stage("prompts", run=_prompts, config=PromptsConfig, section="prompts")
SFT = Stage(
    "sft",
    run=_sft,
    config=SFTConfig,
    section="sft",
    inputs=("base", "demonstrations"),
    model="sft",
    cost=_sft_cost,
    memory=_sft_memory,
    sequence_options=("max_length_tokens",),
    batch_option="batch_size",
    less_memory="lower sft.micro_batch_tokens, set sft.gradient_checkpointing: true or sft.lora_rank",
)
RESPONSES = Stage(
    "responses",
    run=_responses,
    config=SamplingConfig,
    section="sampling",
    inputs=("model", "prompts"),
    cost=_responses_cost,
    memory=_responses_memory,
    response_options=("max_new_tokens",),
    less_memory="lower sampling.batch_size, sampling.max_new_tokens",
)
COMPARISONS = Stage("comparisons", run=_comparisons, config=ComparisonsConfig, section="comparisons", version=5)
REWARD = Stage(
    "reward",
    run=_reward,
    config=RewardConfig,
    section="reward",
    inputs=PREFERENCES,
    version=3,
    model="reward-model",
    cost=_reward_cost,
    memory=_reward_memory,
    sequence_options=("max_length_tokens",),
    batch_option="batch_prompts",
    less_memory="lower reward.micro_batch_tokens, set reward.gradient_checkpointing: true or reward.lora_rank",
)
VALIDATION = Stage(
    "validation",
    run=_validation,
    config=RewardConfig,
    section="reward",
    inputs=PREFERENCES,
    version=2,
    cost=_validation_cost,
    memory=_reward_memory,
    batch_option="batch_prompts",
    less_memory="lower reward.micro_batch_tokens, set reward.gradient_checkpointing: true or reward.lora_rank",
)
EVALUATE = Stage(
    "evaluate",
    run=_evaluate,
    config=EvaluationConfig,
    section="evaluation",
    inputs=("base", "sft", "policy", "reward", "prompts", "corpus"),
    version=2,
    cost=_evaluate_cost,
    memory=_evaluate_memory,
    response_options=("max_new_tokens",),
    less_memory="lower evaluation.max_new_tokens",
)
# Of no recipe: runs where two releases without a gold judge have different reward models.
RESCORE = Stage(
    "rescore", run=_rescore, config=Config, section="evaluation", inputs=("evaluation", "prompts", "reward")
)

STAGES: tuple[Stage[Any], ...] = (
    TOWN,
    CORPUS,
    TOKENIZER,
    PRETRAIN,
    DEMONSTRATIONS,
    PROMPTS,
    SFT,
    RESPONSES,
    COMPARISONS,
    REWARD,
    VALIDATION,
    *METHODS,
    EVALUATE,
)


def read_step(text: str) -> tuple[Step, dict[str, Path]]:
    """A step and the directories of its inputs, as `Step.to_json` wrote them."""
    fields = json.loads(text)
    stage = next(stage for stage in STAGES if stage.name == fields["stage"])
    step = Step(
        stage,
        stage.config.model_validate(fields["config"]),
        inputs={name: name for name in fields["inputs"]},
        seed=fields["seed"],
        align=None if fields["align"] is None else AlignOptions.model_validate(fields["align"]),
        compute=ComputeConfig.model_validate(fields["compute"]),
    )
    return step, {name: Path(path) for name, path in fields["inputs"].items()}
