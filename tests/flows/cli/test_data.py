"""`rlhf data check`: what a source would become, in tables and as JSON, with an exit code for scripts."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from alignment.config.stages import RowSource
from alignment.data.check import KINDS, Lengths, check_kinds, check_source
from alignment.errors import ConfigError, DataError
from flows.cli.data import visible
from flows.cli.main import app
from tests.alignment.tiny_world import write_lines
from tests.conftest import SHARED_DATA

CASES = SHARED_DATA.parent / "cases" / "formats"
PAIR = {"prompt": "Q?", "chosen": "good", "rejected": "bad"}


def run(*words: str) -> Any:
    return CliRunner().invoke(app, ["data", "check", *words], env={"COLUMNS": "160"})


def test_a_check_counts_what_a_stage_would_count(tmp_path: Path) -> None:
    long = PAIR | {"prompt": "A longer question?", "strength": 2}
    rows = [PAIR, PAIR, long, {"prompt": "Q?"}, PAIR | {"chosen": "bad"}]
    source = RowSource(path=str(write_lines(tmp_path / "rows.jsonl", rows)))
    check = check_source(source, "comparisons", tokens=lambda text: 2 * len(text), samples=2)
    assert (check.records, check.duplicates, check.ties, check.formats) == (3, 1, 0, {"chosen and rejected": 3})
    assert check.read == {"prompt": 3, "chosen": 3, "rejected": 3} and check.unread == {"strength": 1}
    assert check.characters["prompt"] == Lengths(2, 2, 18) and check.tokens["chosen"] == Lengths(8, 8, 8)
    assert check.rejected_share == 2 / 5 and not check.fits and check.allowed_share == 0.05
    assert [line for _, _, line in check.reasons] == [4, 5]
    assert check.samples == [{**PAIR, "strength": "1"}] * 2


def test_a_source_is_checked_as_every_kind_that_it_holds(tmp_path: Path) -> None:
    talk = [{"role": "user", "content": "Q?"}, {"role": "assistant", "content": "A."}]
    for row, kinds in (
        ({"messages": talk}, ["corpus", "prompts", "demonstrations"]),
        (PAIR, ["prompts", "comparisons"]),
        ({"text": "words"}, ["corpus"]),
        ({"nothing": 1}, ["comparisons"]),  # the reasons are shown for one
    ):
        source = RowSource(path=str(write_lines(tmp_path / "rows.jsonl", [row])))
        assert [check.kind for check in check_kinds(source, "text")] == kinds
    (tmp_path / "a.txt").write_text("One.\n\nTwo.")
    assert [check.kind for check in check_kinds(RowSource(path=str(tmp_path / "a.txt")), "text")] == ["corpus"]
    with pytest.raises(DataError, match="does not exist"):
        check_kinds(RowSource(path="none.jsonl"), "text")


def test_the_command_shows_both_sides_and_ends_with_0(tmp_path: Path) -> None:
    file = write_lines(tmp_path / "rows.jsonl", [PAIR | {"note": "x"}] * 3)
    result = run(str(file), "--as", "comparisons", "--show", "2")
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert any(all(word in line for word in ("Q?", "good", "bad", "1")) for line in lines)
    for words in ("fits", "not read", "note", "3; 2 duplicates", "characters, chosen", "4 to 4, median 4", "first 2"):
        assert words in result.output


def test_the_command_ends_with_1_when_too_much_is_put_aside(tmp_path: Path) -> None:
    file = write_lines(tmp_path / "rows.jsonl", [PAIR, PAIR | {"chosen": "bad"}])
    result = run(str(file), "--as", "comparisons")
    assert result.exit_code == 1 and "more is put aside than the allowed share 0.05" in result.output
    assert "chosen and rejected are the same" in result.output
    nothing = run(str(write_lines(tmp_path / "none.jsonl", [{"a": 1}])))
    assert nothing.exit_code == 1 and "nothing can be read" in nothing.output and "among ['a']" in nothing.output


def test_json_has_everything(tmp_path: Path) -> None:
    row = {"prompt": "Q?", "response_0": "a", "response_1": "\x1b[31mb"}
    row |= {"better_response_id": 0, "safer_response_id": 1}
    file = write_lines(tmp_path / "rows.jsonl", [row, {"prompt": "Q?"}])
    columns = "{winner: safer_response_id}"
    result = run(str(file), "--format", "pku", "--columns", columns, "--as", "comparisons", "--json")
    assert result.exit_code == 1 and "\x1b" not in result.output
    (check,) = json.loads(result.output)
    assert check["samples"] == [{"prompt": "Q?", "chosen": "\x1b[31mb", "rejected": "a", "strength": "1"}]
    assert check["fits"] is False and check["rejected_share"] == 0.5 and check["rejected"][0]["line"] == 2


def test_no_control_character_reaches_the_terminal(tmp_path: Path) -> None:
    wild = "\x1b]0;title\x07\x9b31m\u202e[red]x[/red]\ud83d"
    rows = [PAIR | {"chosen": wild[:-1], "\x1b[2J": 1}, {"prompt": "\x1b[2J", "\x1b[1m": wild}]
    result = run(str(write_lines(tmp_path / "rows.jsonl", rows)), "--as", "comparisons")
    assert not {"\x1b", "\x07", "\x9b", "\u202e"} & {*result.output}
    assert "␛]0;title␇⟨U+009B⟩31m⟨U+202E⟩[red]x[/red]" in result.output
    assert visible("a\tb\nc\x00\x7f می\u200cخ 👨\u200d👩") == "a→b\nc␀␡ می\u200cخ 👨\u200d👩"


def test_the_sources_of_a_recipe_are_checked(tmp_path: Path) -> None:
    write_lines(tmp_path / "pairs.jsonl", [PAIR] * 2)
    write_lines(tmp_path / "demos.jsonl", [{"prompt": "Q?", "completion": "A."}, {"prompt": "Q?"}])
    recipe = tmp_path / "mine.yaml"
    swapped = {"chosen": "rejected", "rejected": "chosen", "prompt": "prompt"}
    values = {
        "name": "mine",
        "town": None,
        "pretrain": {"checkpoint": str(tmp_path), "epochs": 0},
        "data_root": str(tmp_path),
        "corpus": {"sources": [{"path": "data://pairs.jsonl", "text_field": "prompt"}]},
        "prompts": {"sources": [{"path": "data://pairs.jsonl"}]},
        "demonstrations": {"sources": [{"path": "data://demos.jsonl"}], "max_rejected_share": 0.5},
        "comparisons": {"sources": [{"path": "data://pairs.jsonl", "columns": swapped}]},
    }
    recipe.write_text(json.dumps(values))
    result = run("--recipe", str(recipe), "--json")
    assert result.exit_code == 0, result.output
    checks = json.loads(result.output)
    assert [check["kind"] for check in checks] == [*KINDS]
    assert checks[2]["allowed_share"] == 0.5 and checks[3]["samples"][0]["chosen"] == "bad"
    assert run("--recipe", str(recipe), "--set", "demonstrations.max_rejected_share=0.1").exit_code == 1


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ([], "name a source, or a recipe"),
        (["x.jsonl", "--recipe", "town"], "name a source, or a recipe"),
        (["--recipe", "town"], "reads no files of its own"),
        (["x.jsonl", "--format", "none"], "format: Input should be 'auto'"),
        (["x.jsonl", "--columns", "{a: b"], "is not YAML"),
        (["x.jsonl", "--columns", "{promt: b}"], "columns.promt: Extra inputs"),
        (["x.jsonl", "--columns", "{winner: b}"], "columns.winner needs columns.a too"),
    ],
)
def test_options_that_do_not_fit_are_errors_in_words(words: list[str], problem: str) -> None:
    result = run(*words)
    assert isinstance(result.exception, ConfigError) and problem in str(result.exception)


@pytest.mark.skipif(not CASES.is_dir(), reason=f"no data at {CASES}")
def test_every_shape_of_the_cases_is_shown() -> None:
    for file in sorted(CASES.glob("*.jsonl")):
        result = run(str(file), "--as", "comparisons")
        assert result.exit_code == (1 if "raw" in file.name else 0), result.output
        assert "Put it in boiling water for eight minutes." in result.output and "the first 4" in result.output


TREE = {"message_tree_id": "t", "prompt": {"role": "prompter", "text": "Q?", "replies": [], "message_id": "m"}}
MESSAGE = {"message_id": "m", "parent_id": None, "text": "Q?", "role": "prompter", "rank": None}
ASKED = {"id": "p", "messages": [{"role": "user", "content": "Q?"}]}


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (TREE, "set `format: oasst`"),
        (MESSAGE | {"parent_id": "p"}, "take the file of whole trees, with `format: oasst`"),
        ({"id": "c", "prompt": ASKED, "chosen": {"id": "r", "text": "A"}, "rejected": {}}, "set `format: records`"),
        ({**ASKED, "completion": "A.", "source": "s"}, "set `format: records`"),
        ({"id": 1, "data": {"prompt": "Q?"}, "annotations": []}, "`rlhf label import FILE --format label-studio`"),
    ],
)
def test_the_reader_of_another_form_is_named(tmp_path: Path, row: Any, words: str) -> None:
    file = str(write_lines(tmp_path / "rows.jsonl", [row]))
    for kind in ("comparisons", "demonstrations"):
        (check,) = json.loads(run(file, "--as", kind, "--json").output)
        assert words in check["rejected"][0]["reason"]
    shown = run(file)
    assert shown.exit_code in (0, 1) and (shown.exit_code == 0 or words in " ".join(shown.output.split()))


@pytest.mark.skipif(not (SHARED_DATA / "oasst-en100").is_dir(), reason=f"no data in {SHARED_DATA}")
def test_trees_without_their_format_name_it() -> None:
    result = run(str(SHARED_DATA / "oasst-en100" / "en_100_tree.jsonl"))
    assert result.exit_code == 1 and "set `format: oasst`" in result.output


def test_a_format_that_does_not_hold_the_kind_is_refused(tmp_path: Path) -> None:
    source = RowSource(path=str(write_lines(tmp_path / "rows.jsonl", [PAIR])), format="hh")
    with pytest.raises(ConfigError, match="format 'hh' holds no demonstrations"):
        check_source(source, "demonstrations")
