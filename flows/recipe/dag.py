"""The stages of a recipe as data: what each is told, what it reads, and which stages it needs.

The pipeline runs them and `rlhf run --plan` prints them; both take their keys from here.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from alignment.artifacts import content_digest, stage_key
from alignment.config.methods import Method
from flows.recipe.compute import LAUNCHED, ComputeConfig
from flows.recipe.schema import TOWN_SCHEME, Recipe

METHOD_INPUTS: dict[Method, tuple[str, ...]] = {
    "ppo": ("sft", "reward", "prompts", "corpus"),
    "dpo": ("sft", "comparisons"),
    "rloo": ("sft", "reward", "prompts"),
    "best_of_n": ("sft", "reward", "prompts"),
}
METHOD_VERSIONS: dict[Method, int] = {"ppo": 3, "dpo": 1, "rloo": 1, "best_of_n": 1}


class Step(BaseModel):
    """One stage of a recipe. `inputs` maps the name an input has in the stage to the stage that makes it; `compute`
    says in how many processes it runs, and is no part of its key."""

    model_config = ConfigDict(frozen=True, arbitrary_types_allowed=True)

    stage: str
    config: Any
    inputs: dict[str, str] = {}
    files: tuple[Path, ...] = ()
    seed: int = 0
    version: int = 1
    model: str | None = None
    compute: ComputeConfig = ComputeConfig()


def steps(recipe: Recipe) -> dict[str, Step]:
    """The stages in the order in which they run."""
    alone = ComputeConfig()
    return {
        step.stage: step.model_copy(
            update={"seed": recipe.seed, "compute": recipe.compute if step.stage in LAUNCHED else alone}
        )
        for step in _steps(recipe)
    }


def _steps(recipe: Recipe) -> Iterator[Step]:
    yield from _data(recipe)
    yield from _judgements(recipe)
    yield Step(
        stage="reward",
        version=3,
        config=recipe.reward,
        model="reward",
        inputs=_same("sft", "comparisons", "demonstrations"),
    )
    if recipe.align.select == "heldout_reward":
        one = recipe.reward.model_copy(update={"members": 1, "combine": "mean"})
        yield Step(stage="validation", version=2, config=one, inputs=_same("sft", "comparisons", "demonstrations"))
    yield _align(recipe)
    measured = _same("sft", "reward", "prompts", "corpus")
    yield Step(
        stage="evaluate",
        version=2,
        config=recipe.evaluation,
        inputs={"base": "pretrain", "policy": recipe.align.method, **measured, **_town(recipe)},
    )


def _align(recipe: Recipe) -> Step:
    """From SFT to the policy, by the method that the recipe names; that is the stage's name too."""
    align, inputs = recipe.align, _same(*METHOD_INPUTS[recipe.align.method])
    told: dict[str, Any] = {align.method: recipe.ppo if align.method == "ppo" else getattr(align, align.method)}
    if align.rules and "rules" not in align.idle:
        told |= {"rules": align.rules, "safety": align.safety, "format": align.format}
    if align.ptx_min_reward is not None and "ptx_min_reward" not in align.idle:
        told["ptx_min_reward"] = align.ptx_min_reward
    if align.select == "heldout_reward":
        inputs, told = inputs | _same("validation"), told | {"select_prompts": align.select_prompts}
    return Step(stage=align.method, version=METHOD_VERSIONS[align.method], config=told, model="policy", inputs=inputs)


def _data(recipe: Recipe) -> Iterator[Step]:
    """From the town or files to a model that answers."""
    town = _town(recipe)
    if recipe.town is not None:
        yield Step(stage="town", version=2, config=recipe.town)
    yield Step(stage="corpus", config=recipe.corpus, inputs=town, files=_files(recipe.corpus.sources))
    inputs, files = _same("corpus"), tuple[Path, ...]()
    if recipe.pretrain.checkpoint is None:
        told = {"tokenizer": recipe.tokenizer, "context_length": recipe.pretrain.model.context_length}
        yield Step(stage="tokenizer", config=told, inputs=_same("corpus"))
        inputs = _same("corpus", "tokenizer")
    elif (path := Path(recipe.pretrain.checkpoint)).exists():
        files = (path,)
    yield Step(stage="pretrain", version=2, config=recipe.pretrain, inputs=inputs, files=files, model="base")
    for stage, config in (("demonstrations", recipe.demonstrations), ("prompts", recipe.prompts)):
        yield Step(stage=stage, config=config, inputs=town, files=_files(config.sources))
    yield Step(stage="sft", config=recipe.sft, inputs={"base": "pretrain", **_same("demonstrations")}, model="sft")


def _judgements(recipe: Recipe) -> Iterator[Step]:
    """Comparisons, by people who look at sampled responses or from files."""
    if recipe.labeling is None:
        files = _files(recipe.comparisons.sources)
        yield Step(stage="comparisons", version=5, config=recipe.comparisons, inputs=_town(recipe), files=files)
        return
    sampled: dict[str, str] = {}
    if not recipe.labeling.responses:
        yield Step(stage="responses", config=recipe.sampling, inputs={"model": "sft", **_same("prompts")})
        sampled = _same("responses")
    yield Step(
        stage="labeling",
        version=4,
        config=recipe.labeling.judging,
        inputs={**sampled, **_town(recipe)},
        files=tuple(path for path in map(Path, recipe.labeling.files.values()) if path.exists()),
    )
    yield Step(stage="comparisons", version=5, config=recipe.comparisons, inputs={"labelled": "labeling"})


def _same(*names: str) -> dict[str, str]:
    return {name: name for name in names}


def _town(recipe: Recipe) -> dict[str, str]:
    return {} if recipe.town is None else {"town": "town"}


def _files(sources: Any) -> tuple[Path, ...]:
    """Local files among the sources; files of the town are an input, and data sets of the hub have no file here."""
    paths = [Path(source.path) for source in sources if not source.path.startswith(TOWN_SCHEME)]
    return tuple(path for path in paths if path.exists())


def keys(chain: Mapping[str, Step]) -> dict[str, str]:
    """The key of every stage, worked out without running any."""
    found: dict[str, str] = {}
    for stage, step in chain.items():
        found[stage] = stage_key(
            stage,
            version=step.version,
            config=step.config,
            seed=step.seed,
            inputs={name: found[source] for name, source in step.inputs.items()},
            file_digests=[content_digest(path) for path in step.files],
        )
    return found
