"""A recipe: every option of one run of the pipeline, validated before anything starts.

Recipes are YAML files in `flows/recipes/` or elsewhere; `--set a.b=VALUE` overrides single options. Unknown keys, wrong
types and contradictory options are rejected with the key's path, the value and the allowed values.
"""

from collections.abc import Iterator, Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import ConfigDict, Field, ValidationError, model_validator

from alignment.bounded import read_bounded
from alignment.config.base import Config, Natural
from alignment.config.gates import ChampionGate, ReleaseGate, RewardGate
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
from alignment.data.formats import check_kind
from alignment.data.readers import inside, locate
from alignment.errors import ConfigError, DataError
from alignment.methods.align import AlignConfig
from alignment.paths import exists, is_file
from alignment.plain_yaml import LONGEST_BYTES, plain_yaml
from alignment.ppo.config import PPOConfig
from alignment.stage import Stage
from alignment.stages import EVALUATE, PRETRAIN, RESPONSES, REWARD, SFT
from flows.recipe.channels import Channel
from flows.recipe.compute import check_compute
from flows.recipe.credentials import refuse_credentials
from flows.recipe.messages import validation_message
from flows.recipe.overrides import apply_override
from labeling.config import LabelingConfig
from labeling.screens.render import screens

LONGEST_NAME = 200  # characters of a packaged recipe's
RECIPES = Path(__file__).parent.parent / "recipes"
TOWN_SCHEME, DATA_SCHEME = "town://", "data://"
EXPECTED_FILES = {
    "quality": "a JSONL file of comparisons",
    "choose": "the output directory of a reward stage, which `rlhf run RECIPE --stage reward` prints",
    "responses": "a file of response sets, or a directory with a responses.jsonl",
    "guidelines": "a directory of guidelines (`rlhf label guidelines DIRECTORY` writes one), or a language",
}
SOURCES = ("corpus", "demonstrations", "prompts", "comparisons")


class RegistryConfig(Config):
    """How the models of a recipe are registered: as NAME-base, NAME-sft, NAME-reward-model and NAME-policy.

    All runs with the same name, of whatever seed and options, make versions of the same models and compete for one
    champion.
    """

    name: str = Field(
        "",
        pattern=r"^([A-Za-z0-9][A-Za-z0-9_.-]*)?$",
        description="letters, digits, . _ -; the recipe's name if empty. Give an experiment a name of its own if it is "
        "not to compete for the recipe's champion",
    )
    licences: dict[Literal["corpus", "demonstrations", "prompts", "comparisons"], str] = Field(
        default_factory=dict, description="the licence of each kind of data, for the model card"
    )
    intended_use: str = Field("", description="what the policy is for, for the model card")
    limits: str = Field("", description="what the policy is not for and where it fails, for the model card")


class Recipe(Config):
    """One run of the pipeline, from corpus to a registered policy. `labeling: null` with `comparisons.sources` uses
    existing comparisons; `town: null` runs on your own data. `data://NAME` is a file under `data_root`."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    name: str = Field(
        min_length=1, pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", description="letters, digits, . _ -; names the run"
    )
    description: str = Field("", description="what the recipe is for")
    seed: Natural = Field(0, description="random seed of all stages")
    data_root: str = Field(".", description="directory of data://NAME, relative to the working directory")
    town: TownConfig | None = Field(None, description="the synthetic town; null: your own data")
    corpus: CorpusConfig = CorpusConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()
    pretrain: PretrainConfig = PretrainConfig()
    demonstrations: DemonstrationsConfig = DemonstrationsConfig()
    prompts: PromptsConfig = PromptsConfig()
    sft: SFTConfig = SFTConfig()
    sampling: SamplingConfig = SamplingConfig()
    labeling: LabelingConfig | None = Field(
        None, description="how responses are judged; null: comparisons come from files"
    )
    comparisons: ComparisonsConfig = ComparisonsConfig()
    reward: RewardConfig = RewardConfig()
    reward_gate: RewardGate = RewardGate()
    align: AlignConfig = AlignConfig()
    ppo: PPOConfig = PPOConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    release_gate: ReleaseGate = ReleaseGate()
    champion_gate: ChampionGate = ChampionGate()
    registry: RegistryConfig = RegistryConfig()
    compute: ComputeConfig = ComputeConfig()
    notify: tuple[Channel, ...] = Field(
        (), description="who is told what becomes of the run; the home's notify.yaml names channels of all runs"
    )

    @property
    def registered_name(self) -> str:
        """The name under which the models are registered."""
        return self.registry.name or self.name

    @model_validator(mode="before")
    @classmethod
    def _no_credentials(cls, values: Any) -> Any:
        """Reject credentials in a recipe, and resolve every data://NAME to a path below `data_root`."""
        refuse_credentials(values)
        return _with_data(values, str(values.get("data_root", "."))) if isinstance(values, dict) else values

    @model_validator(mode="after")
    def _possible(self) -> "Recipe":
        problems = [*self._judgements(), *self._town(), *self._sources(), *self._lengths(), *self._processes()]
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def _judgements(self) -> Iterator[str]:
        """Comparisons have exactly one source, and there are enough prompts to judge."""
        comparisons = self.comparisons
        weighted = comparisons.aggregate == "soft" or (
            comparisons.aggregate == "each" and comparisons.weights != "none"
        )
        if weighted and not self.align.chosen.weights_comparisons:
            yield (
                f"align.method {self.align.method} weights all comparisons equally: set comparisons.aggregate: "
                "majority, or comparisons.weights: none with each, or choose another method"
            )
        if self.labeling is None:
            if not self.comparisons.sources:
                yield "there is no source of comparisons: add `labeling`, or files in `comparisons.sources`"
            return
        if self.comparisons.sources:
            yield "`comparisons.sources` and `labeling` are both set: set `labeling: null`, or remove the sources"
        if self.labeling.annotators == "simulated" and self.town is None:
            yield (
                "labeling.annotators is 'simulated', but without a town there is no judge to simulate: set "
                "labeling.annotators: people, or set comparisons.sources and labeling: null"
            )
        gold = self.labeling.quality.gold
        if gold.share and gold.path is None and self.town is None:
            yield "labeling.quality.gold has a share, but there are no known answers: set labeling.quality.gold.path"
        needed = self.labeling.rankings.prompts + self.labeling.pairwise.prompts
        gold_prompts = sum(self.labeling.gold_tasks.values()) if self.labeling.annotators == "simulated" else 0
        if self.sampling.prompts < needed + gold_prompts and not self.labeling.responses:
            also = f" and {gold_prompts} for gold tasks" if gold_prompts else ""
            yield (
                f"sampling.prompts is {self.sampling.prompts}, but labeling asks for {needed} judged prompts{also}: "
                "raise sampling.prompts, or lower labeling.rankings.prompts and labeling.pairwise.prompts"
            )

    def _town(self) -> Iterator[str]:
        if self.town is not None:
            return
        for key, path in self.paths():
            if path.startswith(TOWN_SCHEME):
                yield f"{key} is {path}, but there is no town: add `town: {{}}`, or name a file"

    def _sources(self) -> Iterator[str]:
        """Formats and columns hold what their section needs."""
        for section in SOURCES[1:]:
            for number, source in enumerate(getattr(self, section).sources):
                try:
                    check_kind(source, section)
                except ConfigError as error:
                    yield f"{section}.sources.{number}: {error}"

    def paths(self) -> Iterator[tuple[str, str]]:
        """The files and data sets that are read as rows or text, by option."""
        for section in SOURCES:
            for number, source in enumerate(getattr(self, section).sources):
                yield f"{section}.sources.{number}.path", source.path
        if self.corpus.decontamination is not None:
            for number, source in enumerate(self.corpus.decontamination.sources):
                yield f"corpus.decontamination.sources.{number}.path", source.path

    def _lengths(self) -> Iterator[str]:
        """Check lengths against the context of a model from scratch; a checkpoint's is checked when it is loaded."""
        if self.pretrain.checkpoint is not None:
            return
        context = self.pretrain.model.context_length
        stages: tuple[Stage[Any], ...] = (SFT, REWARD, self.align.chosen, RESPONSES, EVALUATE)
        for stage in stages:
            for key in _full_names(stage, stage.sequence_options):
                if (length := attrgetter(key)(self)) > context:
                    yield (
                        f"{key} {length} is more than pretrain.model.context_length {context}: lower it, or raise that"
                    )
            for key in _full_names(stage, stage.response_options):
                if (length := attrgetter(key)(self)) >= context:
                    yield (
                        f"{key} {length} leaves no room for a prompt in pretrain.model.context_length {context}: "
                        "lower it"
                    )

    def _processes(self) -> Iterator[str]:
        """Every process gets at least one row of each batch."""
        processes, method = self.compute.processes, self.align.chosen
        if processes > 1 and not method.distributed:
            yield f"align.method {method.name} runs in one process: set compute.processes: 1, or align.method: ppo"
        stages: tuple[Stage[Any], ...] = (PRETRAIN, SFT, REWARD, method)
        for stage in stages:
            for key in _full_names(stage, (stage.batch_option,) if stage.distributed else ()):
                if (size := attrgetter(key)(self)) < processes:
                    yield (
                        f"{key} {size} leaves some of the {processes} processes without work: raise it, "
                        "or lower compute.processes"
                    )


def _full_names(stage: Stage[Any], options: Sequence[str]) -> list[str]:
    """Options of a stage by their full names in a recipe."""
    return [f"{stage.section}.{option}" for option in options]


def load_recipe(name_or_path: str, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe by name or path and apply `KEY=VALUE` overrides. Raises ConfigError."""
    path = find_recipe(name_or_path)
    values = raw_values(path)
    for override in overrides:
        apply_override(values, override)
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        raise ConfigError(
            f"the recipe {path.name} cannot be run:\n{validation_message(error, Recipe, values)}"
        ) from error


def _with_data(value: Any, root: str) -> Any:
    """The options with every data://NAME as a path below `root`."""
    if isinstance(value, dict):
        return {name: _with_data(item, root) for name, item in value.items()}
    if isinstance(value, list):
        return [_with_data(item, root) for item in value]
    if isinstance(value, str) and value.startswith(DATA_SCHEME):
        return (Path(root) / inside(value, DATA_SCHEME)).as_posix()
    return value


def check_files(recipe: Recipe) -> None:
    """Check before anything runs that this machine has the recipe's device and every file. Raises DataError for the
    first missing file, and ConfigError for the device or an unsupported launch file."""
    check_compute(recipe.compute)
    for section in SOURCES:
        options = getattr(recipe, section)
        for source in options.files if section == "corpus" else options.sources:
            locate(source.path, Path(), source.origin)
    if recipe.pretrain.checkpoint is not None:
        locate(recipe.pretrain.checkpoint, None)
    if recipe.labeling is None:
        return
    for key, path in recipe.labeling.files.items():
        if not exists(path):
            raise DataError(f"labeling.{key} {path} does not exist: name {EXPECTED_FILES[key.split('.')[0]]}")
    screens(recipe.labeling)  # raises GuidelinesError


def check_judged(recipe: Recipe) -> None:
    """Raise ConfigError for a recipe whose labelling asks for demonstrations only: a run needs judgements."""
    if recipe.labeling is not None and not recipe.labeling.judged:
        raise ConfigError(
            "labeling asks for demonstrations only, which `rlhf label open` collects, but a run needs judgements: set "
            "labeling.rankings.prompts or labeling.pairwise.prompts, or remove `labeling` and name comparisons.sources"
        )


def raw_values(path: Path) -> dict[str, Any]:
    """The options in a recipe's file, before validation; the default name is the file's."""
    return {"name": path.stem, **_read(path)}


def recipes() -> dict[str, str]:
    """The recipes of the package with their descriptions."""
    return {path.stem: str(_read(path).get("description", "")) for path in sorted(RECIPES.glob("*.yaml"))}


def find_recipe(name_or_path: str) -> Path:
    """The file of a recipe. Raises ConfigError with the available names."""
    own = RECIPES / f"{name_or_path}.yaml"
    if len(name_or_path) <= LONGEST_NAME and is_file(own):
        return own
    path = Path(name_or_path)
    if is_file(path):
        return path
    known = ", ".join(sorted(path.stem for path in RECIPES.glob("*.yaml")))
    raise ConfigError(
        f"there is no recipe '{name_or_path[:LONGEST_NAME]}': name a YAML file, or one of {known or '(none installed)'}"
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        values = plain_yaml(read_bounded(path, LONGEST_BYTES).decode("utf-8-sig"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} is not readable YAML: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must hold a mapping of options, not {type(values).__name__}; see flows/recipes/")
    return values
