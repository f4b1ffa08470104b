"""The stages that use Label Studio or its annotations."""

from dataclasses import replace
from functools import cache, partial
from pathlib import Path

from alignment import stages
from alignment.config.stages import ComparisonsConfig
from alignment.journal import Journal
from alignment.stage import Figures, Stage
from labeling.config import LabelingConfig


def _labeling(
    config: LabelingConfig,
    out: Path,
    journal: Journal,
    *,
    seed: int,
    responses: Path | None = None,
    town: Path | None = None,
    recipe: str = "",
) -> Figures:
    from flows.annotation.collect import collect

    return collect(config, out, journal, responses=responses, town=town, recipe=recipe, seed=seed)


def _comparisons(config: ComparisonsConfig, out: Path, journal: Journal, *, seed: int, **inputs: Path) -> Figures:
    """Run the stage comparisons and write the dataset card next to its output."""
    from flows.releases.dataset_card import write_card

    figures = stages.COMPARISONS.run(config, out, journal, seed=seed, **inputs)
    files = [Path(source.path) for source in config.sources if Path(source.path).exists()]
    write_card(out, out.name.removesuffix(".partial"), labelled=inputs.get("labelled"), files=files)
    return figures


LABELING = Stage("labeling", run=_labeling, config=LabelingConfig, section="labeling", version=4)
COMPARISONS = replace(stages.COMPARISONS, run=_comparisons)


@cache
def labeling_of(recipe: str) -> Stage[LabelingConfig]:
    """The stage `labeling` of a recipe, whose name the collections in Label Studio have; it is no part of the key."""
    return replace(LABELING, run=partial(_labeling, recipe=recipe))
