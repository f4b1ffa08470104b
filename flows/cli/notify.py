"""The commands `rlhf notify …`: who is told what becomes of runs."""

import sys
from typing import Annotated

import typer
from pydantic import ValidationError

from alignment.errors import ConfigError
from flows.cli.common import print_table, queries
from flows.console import echo
from flows.home import home_directory
from flows.recipe.channels import EVENTS, KINDS, Channel, home_channels, merged, write_home_channels

app = typer.Typer(help="Notifications: who is told what becomes of runs.", no_args_is_help=True)
To = Annotated[
    str, typer.Argument(metavar="KIND/NAME", help=f"A name such as slack-webhook/team; KIND: {', '.join(KINDS)}.")
]
ADDRESS = {"email": "address (mailtos://USER:PASSWORD@SMTP-HOST?to=ADDRESS)"}


@app.callback()
def notify() -> None:
    """Notifications: who is told what becomes of runs."""


@app.command()
def add(
    block: To,
    events: Annotated[
        str, typer.Option(help=f"What it is told of, with commas between: {', '.join(EVENTS)}.")
    ] = ",".join(EVENTS),
    only_store: Annotated[
        bool, typer.Option("--only-store", help="Do not tell it of all runs of this home; recipes may name it.")
    ] = False,
) -> None:
    """Store a receiver as a notification block of Prefect, and tell it of the runs of this home.

    The address is read from the terminal without being shown, or from standard input: on a command line everybody on
    the machine could read it.
    """
    channel = _channel(block, events)
    home = home_directory()
    others = home_channels(home)
    address = _read_address(channel.to)
    with queries("prefect"):
        from flows.deployments.automations import set_up_automations
        from flows.notifications import store

        store(channel.to, address)
        if not only_store:
            path = write_home_channels(home, merged([*(other for other in others if other.to != channel.to), channel]))
            set_up_automations(home_channels(home))
    echo(f"{channel.to} is stored; `rlhf notify test {channel.to}` sends a message to it")
    if only_store:
        echo(f"a recipe tells it with `notify: [{{to: {channel.to}}}]`")
    else:
        echo(f"it is told of {', '.join(channel.events)} of every run of this home: {path}")


@app.command()
def test(
    block: Annotated[str, typer.Argument(metavar="[KIND/NAME]", help="One block; by default all of the home.")] = "",
) -> None:
    """Send a test message; exit code 1 if a receiver does not take it."""
    channels = (_channel(block, ",".join(EVENTS)),) if block else home_channels(home_directory())
    if not channels:
        raise ConfigError("nobody is told in this home: `rlhf notify add slack-webhook/team` adds a receiver")
    with queries("prefect"):
        from flows.notifications import deliver

        text = "a test message of `rlhf notify test`: nothing happened"
        problems = {channel.to: deliver(channel.to, "rlhf: a test", text) for channel in channels}
    print_table(["block", "result"], [(name, problem or "delivered") for name, problem in problems.items()])
    if any(problems.values()):
        raise typer.Exit(1)


@app.command("list")
def list_channels() -> None:
    """List who is told of the runs of this home; recipes may name more."""
    channels = home_channels(home_directory())
    print_table(["block", "told of"], [(channel.to, ", ".join(channel.events)) for channel in channels])


def _channel(block: str, events: str) -> Channel:
    try:
        return Channel.model_validate({"to": block, "events": [name.strip() for name in events.split(",")]})
    except ValidationError as error:
        problem = error.errors()[0]
        words = problem["msg"].removeprefix("Value error, ")
        raise ConfigError(f"{block[:100]!r} told of {events[:100]}: {words}") from None


def _read_address(block: str) -> str:
    if not sys.stdin.isatty():
        address = sys.stdin.readline().strip()
    else:
        address = typer.prompt(ADDRESS.get(block.partition("/")[0], "address of the webhook"), hide_input=True).strip()
    if "://" not in address:
        raise ConfigError(f"no address was given for {block}: enter one such as https://…, or pipe it into the command")
    return address
