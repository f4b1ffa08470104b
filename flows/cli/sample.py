"""`rlhf sample`: responses of models for the next collection."""

import shlex
from contextlib import nullcontext
from enum import StrEnum
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, get_args

import typer
from pydantic import ValidationError

from alignment.config.stages import ComputeConfig, Format
from alignment.errors import ConfigError
from alignment.paths import is_directory
from alignment.records import Split
from flows.cli.common import queries
from flows.cli.data import mapping, row_source
from flows.console import configure_logging, echo


class Which(StrEnum):
    """Which prompts are answered."""

    train = "train"
    heldout = "heldout"
    both = "both"


def sample(
    models: Annotated[
        list[str],
        typer.Argument(metavar="MODEL", help="NAME@ALIAS, NAME/VERSION, as in town-policy@champion, or a directory."),
    ],
    prompts: Annotated[str, typer.Option(help="A file of prompts, in any format of recipes.")],
    responses: Annotated[int, typer.Option("--n", min=1, max=9, help="Responses of each model to a prompt.")] = 4,
    greedy: Annotated[bool, typer.Option("--greedy", help="The most likely response of each model.")] = False,
    temperature: Annotated[float, typer.Option(min=0.01, help="Sampling temperature.")] = 1.0,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Maximum response length in tokens.")] = 128,
    seed: Annotated[int, typer.Option(min=0, help="Random seed.")] = 0,
    split: Annotated[Which, typer.Option(help="Which prompts of a file that has splits.")] = Which.train,
    form: Annotated[str, typer.Option("--format", help=f"One of {', '.join(get_args(Format))}.")] = "auto",
    columns: Annotated[str, typer.Option(help="Which column holds what, as in '{prompt: question}'.")] = "",
    batch_size: Annotated[int, typer.Option(min=1, help="Responses generated at a time.")] = 64,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    out: Annotated[Path | None, typer.Option(help="Directory to write; by default one of the home.")] = None,
) -> None:
    """Write responses of models to prompts, as response sets for `labeling.responses`.

    The same command goes on where it was stopped. Prompts that cannot be answered are put aside with the reason.
    """
    source = row_source({"path": prompts, "format": form, "columns": mapping(columns)})
    options = {
        "responses": 1 if greedy else responses,
        "temperature": 0.0 if greedy else temperature,
        "max_new_tokens": max_new_tokens,
        "batch_size": batch_size,
        "seed": seed,
    }
    try:
        compute = ComputeConfig.model_validate({"device": device})
    except ValidationError:
        raise ConfigError(f"--device {device[:50]!r}: write auto, cpu or cuda") from None
    configure_logging()
    chosen: Split | None = None if split is Which.both else "train" if split is Which.train else "heldout"
    needs_registry = not all(is_directory(model) for model in models)
    with TemporaryDirectory(prefix="rlhf-models-") as downloads:
        with queries("mlflow") if needs_registry else nullcontext():
            from flows.releases.sample import find_model
            from flows.releases.sample import sample as sample_responses

            checkpoints = [find_model(model, Path(downloads)) for model in models]
        directory, counts = sample_responses(checkpoints, source, chosen, options, compute, out)
    echo(", ".join(f"{count} {name}" for name, count in counts.items() if count))
    echo(f"label them with: --set {shlex.quote(f'labeling.responses=[{directory}]')}")
    if counts["put aside"]:
        echo(f"why prompts were put aside: {directory / 'rejected.jsonl'}")
