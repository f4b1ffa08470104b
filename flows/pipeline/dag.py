"""The pipeline as a DAG: the stages of a recipe in the order in which they run, and what feeds what.

The pipeline runs these steps and `rlhf run --plan` prints them; both use the keys from here.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from operator import attrgetter
from pathlib import Path

from alignment.artifacts import content_digest
from alignment.config.stages import Source
from alignment.errors import ConfigError
from alignment.paths import exists
from alignment.stage import Step
from alignment.stages import (
    CORPUS,
    DEMONSTRATIONS,
    EVALUATE,
    PRETRAIN,
    PROMPTS,
    RESPONSES,
    REWARD,
    SFT,
    TOKENIZER,
    TOWN,
    VALIDATION,
    TokenizerOptions,
)
from flows.annotation.stages import COMPARISONS, labeling_of
from flows.recipe.schema import TOWN_SCHEME, Recipe


def steps(recipe: Recipe) -> dict[str, Step]:
    """The steps of a recipe by their names, in the order in which they run."""
    alone = recipe.compute.in_one_process()
    chain = {
        step.name: replace(
            step,
            seed=recipe.seed,
            compute=recipe.compute if step.stage.distributed else alone,
            registry=recipe.registered_name,
        )
        for step in _steps(recipe)
    }
    for name, step in chain.items():
        missing = set(step.stage.inputs) - step.inputs.keys()
        assert not missing, f"nothing feeds {sorted(missing)} of stage {name}"
    return chain


def _steps(recipe: Recipe) -> Iterator[Step]:
    """All steps, from the corpus to the evaluated policy."""
    town = {} if recipe.town is None else {"town": "town"}
    if recipe.town is not None:
        yield Step(TOWN, recipe.town)
    prompts = Step(PROMPTS, recipe.prompts, town, _files(recipe.prompts.sources))
    asked = _same("prompts") if recipe.corpus.needs_prompts else {}
    if asked:
        yield prompts
    yield Step(CORPUS, recipe.corpus, {**town, **asked}, _files(recipe.corpus.files))
    yield from _base(recipe)
    yield Step(DEMONSTRATIONS, recipe.demonstrations, town, _files(recipe.demonstrations.sources))
    if not asked:
        yield prompts
    yield Step(SFT, recipe.sft, {"base": "pretrain", **_same("demonstrations")})
    yield from _judgements(recipe, town)
    yield Step(REWARD, recipe.reward, _same("sft", "comparisons", "demonstrations"))
    yield from _policy(recipe)
    inputs = {"base": "pretrain", "policy": recipe.align.method, **_same("sft", "reward", "prompts", "corpus"), **town}
    yield Step(EVALUATE, recipe.evaluation, inputs)


def _base(recipe: Recipe) -> Iterator[Step]:
    """The base model, from scratch or from a checkpoint with its own tokenizer."""
    checkpoint = recipe.pretrain.checkpoint
    if checkpoint is None:
        context_length = recipe.pretrain.model.context_length
        yield Step(
            TOKENIZER, TokenizerOptions(tokenizer=recipe.tokenizer, context_length=context_length), _same("corpus")
        )
        yield Step(PRETRAIN, recipe.pretrain, _same("corpus", "tokenizer"))
    else:
        yield Step(PRETRAIN, recipe.pretrain, _same("corpus"), _existing([checkpoint]))


def _judgements(recipe: Recipe, town: Mapping[str, str]) -> Iterator[Step]:
    """Comparisons, from people who judge sampled responses, or from files."""
    if recipe.labeling is None:
        yield Step(COMPARISONS, recipe.comparisons, town, _files(recipe.comparisons.sources))
        return
    responses: dict[str, str] = {}
    if not recipe.labeling.responses:
        yield Step(RESPONSES, recipe.sampling, {"model": "sft", **_same("prompts")})
        responses = _same("responses")
    files = _existing(recipe.labeling.files.values())
    yield Step(labeling_of(recipe.name), recipe.labeling.judging, {**responses, **town}, files)
    yield Step(COMPARISONS, recipe.comparisons, {"labelled": "labeling"})


def _policy(recipe: Recipe) -> Iterator[Step]:
    """The policy, by the method of the recipe, which is also the step's name."""
    method, align = recipe.align.chosen, recipe.align
    inputs = _same(*method.inputs)
    if align.select == "heldout_reward":
        single = recipe.reward.model_copy(update={"members": 1, "combine": "mean"})
        yield Step(VALIDATION, single, _same("sft", "comparisons", "demonstrations"))
        inputs |= _same("validation")
    yield Step(method, attrgetter(method.section)(recipe), inputs, align=align.options())


def _same(*names: str) -> dict[str, str]:
    """Inputs with the same names as the stages that produce them."""
    return {name: name for name in names}


def _files(sources: Sequence[Source]) -> tuple[Path, ...]:
    """Local files among the sources; the town's files are an input, and data sets of the hub have no local file."""
    return _existing(source.path for source in sources if not source.path.startswith(TOWN_SCHEME))


def _existing(paths: Iterable[str]) -> tuple[Path, ...]:
    return tuple(path for path in map(Path, paths) if exists(path))


def keys(chain: Mapping[str, Step]) -> dict[str, str]:
    """The key of every stage, computed without running any."""
    keys_by_stage: dict[str, str] = {}
    for name, step in chain.items():
        inputs = {input_name: keys_by_stage[source] for input_name, source in step.inputs.items()}
        keys_by_stage[name] = step.key(inputs, [content_digest(path) for path in step.files])
    return keys_by_stage


def needed(chain: Mapping[str, Step], stage: str) -> list[str]:
    """A stage and, transitively, its inputs, in the order in which they run."""
    if stage not in chain:
        raise ConfigError(f"the recipe has no stage '{stage}'; it has {', '.join(chain)}")
    names = {stage}
    for name in reversed(list(chain)):
        if name in names:
            names |= set(chain[name].inputs.values())
    return [name for name in chain if name in names]
