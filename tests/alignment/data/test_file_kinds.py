"""Files that are not what their reader expects: named once, as what they are, or read."""

import json
from pathlib import Path

import pytest

from alignment.config.stages import RowSource
from alignment.data.check import check_source
from alignment.data.files import read_file
from alignment.errors import DataError

ROWS = [{"prompt": f"Q{n}", "chosen": f"good {n}", "rejected": f"bad {n}"} for n in range(4)]
NAMES = [*ROWS[0]]


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({name: [row[name] for row in ROWS] for name in NAMES}, "a list for each column"),
        ({name: {str(n): row[name] for n, row in enumerate(ROWS)} for name in NAMES}, "an object of objects"),
        ({str(n): row for n, row in enumerate(ROWS)}, "an object of objects"),
    ],
)
def test_a_table_by_columns_or_ids_is_named(tmp_path: Path, content: object, words: str, indent: int | None) -> None:
    (tmp_path / "rows.json").write_text(json.dumps(content, indent=indent))
    with pytest.raises(DataError, match=f"the file is {words}.*orient='records'"):
        [*read_file(tmp_path / "rows.json")]


@pytest.mark.parametrize(
    "row",
    [
        {"chosen": {"role": "user", "content": "a"}, "rejected": {"role": "user", "content": "b"}},
        {"prompt": "Q?", "responses": ["a", "b"], "scores": [1, 2]},
        {side: [{"role": "user", "content": "Q?"}, {"role": "assistant", "content": side}] for side in NAMES[1:]},
    ],
)
def test_a_single_row_is_no_table(tmp_path: Path, row: object) -> None:
    (tmp_path / "rows.json").write_text(json.dumps(row))
    assert [value for _, value, _ in read_file(tmp_path / "rows.json")] == [row]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("rows.json", "<!DOCTYPE html><html><body>404</body></html>", "a web page"),
        ("rows.jsonl", "\n<html>\n", "a web page"),
        ("rows.json", "\n".join(json.dumps(row, indent=2) for row in ROWS), "one JSON object after another"),
        ("rows.jsonl", json.dumps(ROWS[0]).encode("utf-32"), "text in UTF-32"),
    ],
)
def test_a_file_of_another_kind_is_named_once(tmp_path: Path, name: str, content: str | bytes, words: str) -> None:
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=words):
        [*read_file(tmp_path / name)]


@pytest.mark.parametrize(("mark", "above"), [(";", "sep=;\n"), ("|", ""), (",", "sep=,\r\n")])
def test_tables_of_excel_and_with_bars(tmp_path: Path, mark: str, above: str) -> None:
    lines = [mark.join(NAMES), *(mark.join(row.values()) for row in ROWS)]
    (tmp_path / "rows.csv").write_text(above + "\n".join(lines))
    assert [row for _, row, _ in read_file(tmp_path / "rows.csv")] == ROWS
    assert next(number for number, _, _ in read_file(tmp_path / "rows.csv")) == (3 if above else 2)


def test_lines_that_end_with_a_comma(tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text(",\n".join(map(json.dumps, ROWS)))
    reasons = [reason for _, _, reason in read_file(tmp_path / "rows.json")]
    assert [reason.endswith("as in a list: write it with its brackets") for reason in reasons] == [True] * 3 + [False]


@pytest.mark.parametrize(("name", "mark"), [("rows.tsv", "\t"), ("rows.csv", ",")])
@pytest.mark.parametrize(("column", "rows"), [(0, 3), (1, 3), (2, 3), (1, 2)])
def test_a_quotation_mark_that_swallows_rows_is_noted(
    tmp_path: Path, name: str, mark: str, column: int, rows: int
) -> None:
    cells = [[*row.values()] for row in ROWS]
    cells[1][column] = '"' + cells[1][column]
    cells[rows][column] += '"'
    (tmp_path / name).write_text("\n".join(mark.join(row) for row in [NAMES, *cells]))
    check = check_source(RowSource(path=str(tmp_path / name)), "comparisons")
    (note,) = check.notes
    assert "1 cells hold whole rows of the table" in note and f"(first: line 3, '{NAMES[column]}')" in note


def test_prose_of_several_lines_is_no_row(tmp_path: Path) -> None:
    text = 'prompt,chosen,rejected\nQ,"Well, yes.\nNo, really, not, at all.\nSo, bye",bad\n"Two\nlines",good,bad\n'
    (tmp_path / "rows.csv").write_text(text)
    check = check_source(RowSource(path=str(tmp_path / "rows.csv")), "comparisons")
    assert (check.records, check.notes) == (2, [])


@pytest.mark.parametrize(("name", "text"), [("rows.jsonl", ""), ("rows.csv", ",".join(NAMES)), ("rows.json", "[]")])
def test_a_file_without_rows_is_noted(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    check = check_source(RowSource(path=str(tmp_path / name)), "comparisons")
    assert check.notes == [f"{tmp_path / name}: no rows; the file is empty, or has a header alone"]
