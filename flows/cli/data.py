"""`rlhf data check`: what a source would become, before a run."""

import json
import unicodedata
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict
from enum import StrEnum
from typing import Annotated, Any, get_args

import typer
import yaml
from pydantic import ValidationError
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from alignment.config.stages import Format, RowSource, TextSource
from alignment.data.check import (
    KINDS,
    Kind,
    Lengths,
    Measure,
    SourceCheck,
    as_kind,
    check_kinds,
    check_source,
    token_counter,
)
from alignment.errors import ConfigError
from alignment.hub import hub_host
from alignment.paths import exists
from alignment.plain_yaml import plain_yaml
from flows.cli.common import BAD, GOOD, AsJson, Overrides
from flows.console import console, echo
from flows.recipe.schema import TOWN_SCHEME, Recipe, load_recipe
from flows.stack.environment import waiting

app = typer.Typer(help="Data of your own: what a file or a data set would become.", no_args_is_help=True)
LONGEST_SHOWN = 400  # characters of a text in a table
NAMED = 20  # columns and reasons that are listed


class As(StrEnum):
    """What a source can be read as."""

    corpus = "corpus"
    prompts = "prompts"
    demonstrations = "demonstrations"
    comparisons = "comparisons"


@app.callback()
def data() -> None:
    """Data of your own: what a file or a data set would become."""


@app.command()
def check(
    source: Annotated[str, typer.Argument(help="A file, a directory, or a data set of the hub as owner/name.")] = "",
    recipe: Annotated[str, typer.Option(help="Check the sources of this recipe instead.")] = "",
    overrides: Overrides = None,
    kind: Annotated[As | None, typer.Option("--as", help="What to read it as; by default all that fit.")] = None,
    form: Annotated[str, typer.Option("--format", help=f"One of {', '.join(get_args(Format))}.")] = "auto",
    columns: Annotated[
        str, typer.Option(help="Which column holds what, as in a recipe: '{prompt: q, chosen: good, rejected: bad}'.")
    ] = "",
    split: Annotated[str, typer.Option(help="Split of a data set.")] = "",
    name: Annotated[str, typer.Option(help="Configuration of a data set.")] = "",
    revision: Annotated[str, typer.Option(help="Revision of a data set of the hub.")] = "",
    rows: Annotated[str, typer.Option(help="Key of the rows in a JSON file that is an object.")] = "",
    text_field: Annotated[str, typer.Option(help="Column of the text, for the corpus.")] = "text",
    tokenizer: Annotated[str, typer.Option(help="A checkpoint; lengths are also counted in its tokens.")] = "",
    show: Annotated[int, typer.Option(min=0, help="Rows to show.")] = 10,
    as_json: AsJson = False,
) -> None:
    """Show what a source would become: counts, columns, rows side by side, lengths, duplicates, what is put aside.

    Exit code 1 if nothing can be read, or more than the allowed share is put aside.
    """
    if bool(source) == bool(recipe):
        raise ConfigError("name a source, or a recipe with --recipe")
    tokens = None
    if tokenizer:
        with _reading(tokenizer):
            tokens = token_counter(tokenizer)
    if recipe:
        checks = list(_of_recipe(load_recipe(recipe, overrides or []), tokens, show))
    else:
        options = {"format": form, "split": split, "name": name, "revision": revision, "rows": rows}
        rows_source = row_source({"path": source, **options, "columns": mapping(columns)})
        checks = _of_source(rows_source, None if kind is None else kind.value, text_field, tokens, show)
    if as_json:
        echo(json.dumps([_plain(item) for item in checks], indent=2), lines=True)
    else:
        out = console()
        for item in checks:
            out.print(check_view(item))
    if not all(item.fits for item in checks):
        raise typer.Exit(1)


def _of_source(
    source: RowSource, kind: Kind | None, text_field: str, tokens: Measure | None, show: int
) -> list[SourceCheck]:
    with _reading(source.path):
        if kind is None:
            return check_kinds(source, text_field, tokens=tokens, samples=show)
        return [check_source(as_kind(source, kind, text_field), kind, tokens=tokens, samples=show)]


def _of_recipe(recipe: Recipe, tokens: Measure | None, show: int) -> Iterator[SourceCheck]:
    """The sources of a recipe; the town's files are made by the run."""
    read = 0
    for section in KINDS:
        options = getattr(recipe, section)
        sources: tuple[RowSource | TextSource, ...] = options.sources
        for source in sources:
            if not source.path.startswith(TOWN_SCHEME):
                read += 1
                share = options.max_rejected_share
                with _reading(source.path):
                    result = check_source(source, section, tokens=tokens, samples=show, allowed_share=share)
                yield result
    if not read:
        raise ConfigError(f"the recipe {recipe.name} reads no files of its own: the town makes them all")


def _reading(path: str) -> AbstractContextManager[None]:
    """Says on stderr what is read, and from where, if that takes seconds."""
    return waiting(f"reading {visible(path)}" + ("" if exists(path) else f" from the hub ({hub_host()})"))


def mapping(columns: str) -> Any:
    """The option --columns as values. Raises ConfigError."""
    try:
        return plain_yaml(columns) if columns else None
    except (ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"--columns {columns} is not YAML ({error}); write '{{prompt: question}}'") from error


def row_source(options: Mapping[str, Any]) -> RowSource:
    """A source with these options. Raises ConfigError."""
    try:
        return RowSource.model_validate(options)
    except ValidationError as error:
        detail = error.errors()[0]
        place = ".".join(map(str, detail["loc"])) or "the source"
        raise ConfigError(f"{place}: {detail['msg'].removeprefix('Value error, ')}") from error


# --- output ----------------------------------------------------------------------------------------------------------


def visible(text: str) -> str:
    """A text whose control characters are shown instead of obeyed; joiners of letters and emoji stay."""
    return "".join(map(_visible, text))


def _visible(character: str) -> str:
    if character in "\n\u200c\u200d" or unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Zl", "Zp"):
        return character
    code = ord(character)
    return (
        "→" if character == "\t" else chr(0x2400 + code) if code < 0x20 else "␡" if code == 0x7F else f"⟨U+{code:04X}⟩"
    )


def check_view(check: SourceCheck) -> RenderableType:
    """The check as tables."""
    mark = Text("fits", style=GOOD) if check.fits else Text(_why_not(check), style=BAD)
    parts: list[RenderableType] = [_facts(check, mark)]
    if check.rejected:
        parts.append(_reasons(check))
    if check.samples:
        parts.append(_samples(check))
    return Panel(Group(*parts), title=Text(visible(f"{check.path} as {check.kind}")), title_align="left")


def _why_not(check: SourceCheck) -> str:
    if not check.records:
        return "nothing can be read"
    return f"more is put aside than the allowed share {check.allowed_share:g}"


def _facts(check: SourceCheck, mark: Text) -> Table:
    table = Table.grid(padding=(0, 2))
    ties = f", of which {check.ties} ties" if check.ties else ""
    table.add_row("result", mark)
    table.add_row(check.kind, Text(f"{check.records:,}{ties}; {check.duplicates:,} duplicates"))
    table.add_row("put aside", Text(f"{len(check.rejected):,} ({check.rejected_share:.1%})"))
    forms = ", ".join(f"{name} ({count:,})" for name, count in check.formats.items())
    table.add_row("read as", Text(visible(forms) or "nothing"))
    table.add_row("columns read", Text(_names(check.read)))
    table.add_row("not read", Text(_names(check.unread)))
    for unit, lengths in (("characters", check.characters), ("tokens", check.tokens)):
        for name, length in lengths.items():
            table.add_row(f"{unit}, {name}", Text(_length(length)))
    for note in check.notes:
        if "no option reads" not in note:
            table.add_row("note", Text(visible(note.removeprefix(f"{check.path}: "))))
    return table


def _names(columns: Mapping[str, int]) -> str:
    names = list(columns)
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return visible(", ".join(names[:NAMED]) + more) or "none"


def _length(length: Lengths) -> str:
    return f"{length.shortest:,} to {length.longest:,}, median {length.median:,.0f}"


def _reasons(check: SourceCheck) -> Table:
    table = Table("rows", "first line", "reason", title="put aside", title_justify="left")
    for reason, count, line in check.reasons[:NAMED]:
        table.add_row(f"{count:,}", str(line), Text(visible(reason), overflow="fold"))
    return table


def _samples(check: SourceCheck) -> Table:
    names = list(check.samples[0])
    table = Table(show_lines=True, title=f"the first {len(check.samples)}", title_justify="left")
    for name in names:
        narrow = name == "strength"
        table.add_column(name, ratio=None if narrow else 1, overflow="fold", no_wrap=False)
    for row in check.samples:
        table.add_row(*(Text(_cut(visible(row[name])), overflow="fold") for name in names))
    return table


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}… ({len(text):,} characters)"


def _plain(check: SourceCheck) -> dict[str, Any]:
    values = asdict(check)
    rejected = [row.model_dump(mode="json") for row in check.rejected]
    return {**values, "rejected": rejected, "rejected_share": check.rejected_share, "fits": check.fits}
