"""Text from outside stays text at the terminal and in logs: no cursor movement, title, colour, direction, new line."""

import ast
import io
import logging
import os
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.table import Table
from rich.text import Text
from typer.testing import CliRunner

from flows import console as module
from flows.cli.main import app
from flows.console import TerminalConsole, TerminalLines, echo
from labeling.tasks.characters import terminal_text

ROOT = Path(__file__).parents[2]
HOSTILE = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202egnp\u2028\x08\x00\x7f\ud800\U000e0041"
SHOWN = "\u241b]0;owned\u2407\u241b[2J\\u009b31m\\u202egnp\\u2028\u2408\u2400\u2421\ufffd\ufffd"
WRITES = {"print", "typer.echo", "typer.secho", "click.echo", "Console", "rich.print"}
NOT_OURS_TO_READ = {  # these print texts of our own, addresses and file names of this home
    *("flows/console.py", "flows/stack/environment.py", "flows/stack/postgres.py", "flows/operations/backup.py"),
}


def test_what_moves_the_cursor_is_shown() -> None:
    assert terminal_text(HOSTILE) == SHOWN
    assert terminal_text("one\ntwo\r") == "one\u240atwo\u240d"
    assert terminal_text("one\n\ttwo", lines=True) == "one\n\ttwo"
    assert terminal_text("caf\u00e9 \U0001f468\u200d\U0001f469 \u05e9\u05dc\u05d5\u05dd") == (
        "caf\u00e9 \U0001f468\u200d\U0001f469 \u05e9\u05dc\u05d5\u05dd"
    )


@given(st.text())
def test_no_control_character_is_left(text: str) -> None:
    shown = terminal_text(text)
    assert terminal_text(shown) == shown
    assert not any(unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp") and letter != "\t" for letter in shown)
    assert not any(
        unicodedata.bidirectional(letter) in ("RLO", "LRO", "RLE", "LRE", "RLI", "LRI", "FSI") for letter in shown
    )


def test_commands_print_it_so(capsys: pytest.CaptureFixture[str]) -> None:
    echo(f"{HOSTILE}\nrlhf: another line")
    echo(f"two\n{HOSTILE}", err=True, lines=True)
    out, err = capsys.readouterr()
    assert out == f"{SHOWN}\u240arlhf: another line\n" and err == f"two\n{SHOWN}\n"


@pytest.mark.parametrize("colours", [False, True])
def test_a_console_keeps_its_own_colours_only(colours: bool) -> None:
    table, out = Table("name"), io.StringIO()
    table.add_row(Text(HOSTILE, style="red"))
    TerminalConsole(file=out, force_terminal=colours, color_system="standard" if colours else None, width=200).print(
        table, HOSTILE
    )
    written = out.getvalue()
    assert "]0;owned" in written and "\u241b[2J" in written and "\x9b" not in written and "\u202e" not in written
    assert "\x1b]" not in written and "\x1b[2J" not in written and ("\x1b[31m" in written) == colours


def test_a_log_line_stays_one_line() -> None:
    out = io.StringIO()
    handler, log = logging.StreamHandler(out), logging.Logger("alone")
    handler.setFormatter(TerminalLines(logging.Formatter("%(levelname)s %(message)s")))
    log.addHandler(handler)
    log.warning("the project %s", f"{HOSTILE}\nERROR forged")
    assert out.getvalue() == f"WARNING the project {SHOWN}\n  ERROR forged\n"


def test_boxes_and_notes_about_options_show_it_so(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """typer draws the boxes, with a console of its own."""
    monkeypatch.setenv("HTTPS_PROXY", "\x1b[2J\u202e\x07://proxy")
    for arguments in (["recipes", "--\u202e\x9bx"], ["\u202e\x9bx"], ["deploy", "--slots", "\u202e\x9bx"]):
        result = CliRunner().invoke(app, arguments)
        written = result.output + capsys.readouterr().err
        assert result.exit_code == 2
        assert not {"\u202e", "\x9b", "\x07"} & {*written} and "\x1b[2J" not in written
    assert "HTTPS_PROXY" not in os.environ


def test_every_command_writes_through_the_console() -> None:
    """A new place that prints would show text from outside as it is."""
    for folder in ("flows", "labeling"):
        for path in (ROOT / folder).rglob("*.py"):
            if str(path.relative_to(ROOT)) in NOT_OURS_TO_READ:
                continue
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call) and ast.unparse(node.func) in WRITES:
                    pytest.fail(f"{path}:{node.lineno}: use flows.console.echo or flows.console.console")
    assert "typer.echo(terminal_text(" in Path(module.__file__).read_text(encoding="utf-8")
