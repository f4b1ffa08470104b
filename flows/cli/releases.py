"""`rlhf report`, `releases`, `compare`, `promote`, `rollback` and `lineage`: what reviewers ask of a registry."""

import json
from typing import Annotated

import typer
from rich.text import Text

from flows.cli.common import AsJson, print_table, queries
from flows.console import console, echo


def report(
    release: Annotated[str, typer.Argument(help="A release; the newest by default.")] = "",
    as_json: AsJson = False,
) -> None:
    """Print the figures of a release, and where MLflow shows it."""
    with queries("mlflow"):
        from flows.releases.report import load_release, pages, report_view

        manifest = load_release(release)
        addresses = pages(manifest)
    if as_json:
        echo(json.dumps(manifest, indent=2), lines=True)
        return
    console().print(report_view(manifest))
    for title, address in addresses.items():
        echo(f"{title}: {address}")


def releases(
    recipe: Annotated[str, typer.Argument(help="Only releases of this recipe.")] = "",
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="How many, the newest first.")] = 20,
    log: Annotated[bool, typer.Option("--log", help="Print also who promoted and rolled back what, and why.")] = False,
    as_json: AsJson = False,
) -> None:
    """List the releases with their figures, their gate, and which of them is champion."""
    with queries("mlflow"):
        from flows.releases.listing import change_log, list_releases

        rows = list_releases(recipe, count)
        changes = change_log(rows) if log else []
    if as_json:
        echo(json.dumps({"releases": [row.model_dump() for row in rows], "log": changes}, indent=2), lines=True)
        return
    columns = ["release", "policy", "standing", "score", "wins over SFT", "KL", "tax", "finished", "gate"]
    print_table(columns, [_cells(row.texts()) for row in rows])
    for line in changes:
        echo(line)


def _cells(texts: tuple[str, ...]) -> list[str | Text]:
    return [texts[0], *(Text(text, style="bold" if text == "champion" else "") for text in texts[1:])]


def compare(
    ours: Annotated[str, typer.Argument(metavar="A", help="NAME/VERSION, NAME@ALIAS, or a release.")],
    theirs: Annotated[str, typer.Argument(metavar="B", help="NAME/VERSION, NAME@ALIAS, or a release.")],
) -> None:
    """Compare two policies: figures, wins on the held-out prompts that they share, options; a table and a picture."""
    with queries("mlflow"):
        from flows.releases.compare import compare as compare_releases
        from flows.releases.compare import compare_view

        comparison = compare_releases(ours, theirs)
    console().print(compare_view(comparison))
    for title, where in comparison.written.items():
        echo(f"{title}: {where}")


def promote(
    model: Annotated[str, typer.Argument(help="NAME/VERSION or NAME@ALIAS, as in town-policy@candidate.")],
    alias: Annotated[str, typer.Option(help="The alias to set.")] = "champion",
    despite: Annotated[str, typer.Option(help="The reason to promote a version that missed a gate; logged.")] = "",
) -> None:
    """Set an alias, `champion` by default, on a registered version that passes its gates and beats the champion."""
    with queries("mlflow"):
        from flows.releases.promote import promote_version

        echo(f"{promote_version(model, alias, despite)} is now {alias}")


def rollback(
    model: Annotated[str, typer.Argument(metavar="NAME", help="A registered model, as in town-policy.")],
    why: Annotated[str, typer.Option(help="The reason, in three words or more; logged.")],
    to: Annotated[
        str, typer.Option(metavar="VERSION", help="The version to go back to, or none; by default the last champion.")
    ] = "",
) -> None:
    """Make an earlier version champion again. The version that was champion is rejected: no run promotes it."""
    with queries("mlflow"):
        from flows.releases.promote import roll_back

        champion = roll_back(model, why, to)
    echo(f"{champion} is champion again" if champion else f"{model} has no champion now")


def lineage(
    model: Annotated[str, typer.Argument(help="NAME, NAME@ALIAS or NAME/VERSION, as in town-policy@candidate.")],
    as_json: AsJson = False,
) -> None:
    """Trace a registered model back to annotation ids and the corpus."""
    with queries("mlflow"):
        from flows.releases.lineage import lineage as ancestors
        from flows.releases.lineage import lineage_tree

        tree = ancestors(model)
    if as_json:
        echo(json.dumps(tree, indent=2), lines=True)
    else:
        console().print(lineage_tree(tree))
