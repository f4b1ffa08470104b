"""Shared by the commands: options, tables, and the environment variables of the servers' addresses."""

import os
from collections.abc import Iterable, Sequence
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from flows.stack.services import NAMES, Name
from flows.stack.stack import connect

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override an option, as in --set ppo.kl_coef=0.1")
]
GOOD, BAD = "green", "red"


def use_stack(*needed: Name) -> None:
    """Point Prefect, MLflow and Label Studio at the running stack. Call it before either is imported.

    Raises StackError when a server in `needed` (all three by default) does not answer.
    """
    os.environ.update(connect(needed=needed or NAMES).environment())


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str | Text]]) -> None:
    """A table on the terminal. Strings are printed as they are, never as markup."""
    table = Table(*columns)
    for row in rows:
        table.add_row(*(Text(cell, overflow="fold") if isinstance(cell, str) else cell for cell in row))
    Console().print(table)
