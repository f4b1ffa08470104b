"""Shared by the commands: options, tables, and short requests to the servers."""

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from alignment.errors import RLHFError
from flows.console import console
from flows.stack import outages
from flows.stack.environment import addresses, load_clients, use_stack, waiting
from flows.stack.processes import NotReady, StackError
from flows.stack.services import NAMES, Name
from labeling.errors import LabelingError

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override an option, as in --set ppo.kl_coef=0.1")
]
GOOD, BAD = "green", "red"


@contextmanager
def queries(*needed: Name, label_studio: str | None = None) -> Iterator[None]:
    """For the body of a command that asks the servers in `needed` and ends: says what it waits for, and gives up soon.

    The arguments are those of `use_stack`. Raises NotReady when a server stops answering.
    """
    patience = outages.for_queries()
    use_stack(*needed, label_studio=label_studio)
    os.environ.update(patience)
    load_clients(*needed)
    with waiting(f"waiting for {addresses(needed or NAMES)}"):
        try:
            yield
        except (RLHFError, LabelingError, typer.Exit, typer.Abort):
            raise
        except Exception as error:
            from flows.failures import refusing_server, unreachable_server

            if refusal := refusing_server(error):
                raise StackError(refusal) from error
            if server := unreachable_server(error):
                raise NotReady(
                    f"{server} does not answer: `rlhf status` shows the servers, `rlhf up` starts those of this home"
                ) from error
            raise


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str | Text]]) -> None:
    """A table on the terminal. Strings are printed as they are, never as markup."""
    table = Table(*columns)
    for row in rows:
        table.add_row(*(Text(cell, overflow="fold") if isinstance(cell, str) else cell for cell in row))
    console().print(table)
