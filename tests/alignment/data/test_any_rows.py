"""Rows of any shape through every reader: each is either used or put aside with a reason, and nothing crashes."""

import csv
import gzip
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, get_args

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from alignment.config.stages import Columns, Format, RowSource, TextSource
from alignment.data.formats import FORMATS, suits
from alignment.data.readers import read_as, read_documents, to_comparisons, to_demonstration, to_prompt
from alignment.data.used_columns import SourceNotes

NAMES = sorted(
    {name.split(".")[0] for columns in FORMATS.values() for name in columns.names.values()}
    | {"messages", "conversations", "system", "text", "replies", "role", "content", "score", "id", "comparison_id"}
    | {"scores", "rank", "from", "value", "prompt_id", "chosen_id", "rejected_id", "type", "full_text", "post"}
)
CHARACTERS = st.sampled_from(
    [*"ab \n", "é", "漢", "\u200d", "\x00", "\x1b", "\ud83d", "\udcff", "{", "\n\nHuman: ", "\n\nAssistant:"]
)
TEXTS = st.one_of(
    st.lists(CHARACTERS, max_size=6).map("".join),
    st.sampled_from(
        ["", "N/A", "model_a", "tie", "1", "1e999", "<extra_id_1>Assistant\nx", '["a"]', "user", "assistant"]
    ),
)
NUMBERS = st.one_of(st.integers(-3, 4), st.floats(width=32), st.sampled_from([10**400, -(10**19), True, False, None]))
MESSAGES = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["system", "user", "assistant", "tool", "", "GPT"]), "content": TEXTS},
        optional={"tool_calls": NUMBERS, "from": TEXTS},
    ),
    max_size=4,
)
NESTED = st.recursive(
    TEXTS | NUMBERS | MESSAGES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=3),
    max_leaves=6,
)
ROWS = st.one_of(
    st.dictionaries(st.sampled_from(NAMES) | TEXTS, NESTED, max_size=6),
    st.sampled_from([*FORMATS]).flatmap(
        lambda name: st.fixed_dictionaries(
            {column.split(".")[0]: TEXTS | NUMBERS | MESSAGES | NESTED for column in FORMATS[name].names.values()}
        )
    ),
    NESTED,
)
OPTIONS: dict[str, dict[str, Any]] = {
    **{name: {"format": name} for name in get_args(Format)},
    "scores": {"format": "scores", "columns": {"prompt": "prompt", "completion": "answer", "responses": "answers"}},
    "template": {"format": "template", "prompt": "{prompt}{messages[0]}", "completion": "{answer}"},
    "columns": {"columns": {"prompt": "text", "a": "content.0", "b": "value", "winner": "rank", "strength": "score"}},
    "answers": {"columns": {"prompt": "prompt", "system": "id", "input": "from", "completion": "content.0"}},
    "listed": {"columns": {"messages": "value", "responses": "messages", "text": "content", "rank": "role"}},
}  # fmt: skip
KINDS = {"prompts": to_prompt, "demonstrations": to_demonstration, "comparisons": to_comparisons}
QUICK = settings(max_examples=25, deadline=None, database=None, derandomize=True, suppress_health_check=[*HealthCheck])
SOME_FORMS = st.lists(st.sampled_from([*OPTIONS]), min_size=4, max_size=4)
FIRST = [{"prompt": "Q?", "chosen": "a", "rejected": "b"}, {"messages": [{"role": "user", "content": None}]}]


def holds(form: str, kind: str) -> bool:
    """Whether a format has the columns of a kind; the others are refused."""
    columns = OPTIONS[form].get("columns") or FORMATS.get(OPTIONS[form]["format"])
    return columns is None or suits(Columns.model_validate(columns), kind)


def read_all(path: Path, count: int, forms: Iterable[str]) -> None:
    """Read a file as every kind in several formats; no row may be lost, and what is kept or put aside can be stored."""
    for form in sorted({"auto", *forms}):
        for kind, convert in KINDS.items():
            if not holds(form, kind):
                continue
            notes = SourceNotes(kind)
            good, bad = read_as(RowSource(path=str(path), **OPTIONS[form]), convert, None, notes)
            assert len(good) + len(bad) == count, (form, kind)
            assert all(row.reason for row in bad) and len({row.line for row in bad}) == len(bad)
            assert sum(notes.formats.values()) == len(good) and isinstance(notes.lines("x"), list)
            for group in good if kind == "comparisons" else ():
                bad += group.rejected
            for record in (*good, *bad):  # what a stage writes, it can read
                type(record).model_validate_json(record.model_dump_json())
    documents, bad = read_documents(TextSource(path=str(path)))
    assert len(documents) + len(bad) == count


@QUICK
@given(rows=st.lists(ROWS, min_size=30, max_size=60), forms=SOME_FORMS)
@example(rows=FIRST, forms=[*OPTIONS])
def test_no_row_of_json_lines_is_lost(
    rows: list[Any], forms: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    read_all(path, len(rows), forms)


@QUICK
@given(rows=st.lists(ROWS, max_size=40), forms=SOME_FORMS, zipped=st.booleans())
def test_no_row_of_a_json_list_is_lost(
    rows: list[Any], forms: list[str], zipped: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("rows") / "rows.json"
    text = json.dumps({"data": rows}).encode()
    path.write_bytes(gzip.compress(text) if zipped else text)
    for form in forms:
        source = RowSource(path=str(path), rows="data", **OPTIONS[form])
        if holds(form, "prompts"):
            good, bad = read_as(source, to_prompt, None)
            assert len(good) + len(bad) == len(rows)


@QUICK
@given(cells=st.lists(st.tuples(*3 * [TEXTS]), max_size=40), forms=SOME_FORMS, tab=st.booleans(), data=st.data())
def test_no_row_of_delimited_text_is_lost(
    cells: list[tuple[str, str, str]],
    forms: list[str],
    tab: bool,
    data: st.DataObject,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    header = data.draw(st.lists(st.sampled_from(NAMES), min_size=3, max_size=3, unique=True))
    path = tmp_path_factory.mktemp("rows") / f"rows.{'tsv' if tab else 'csv'}"
    with path.open("w", encoding="utf-8", errors="surrogatepass", newline="") as file:
        csv.writer(file, delimiter="\t" if tab else ",", quoting=csv.QUOTE_ALL).writerows([header, *cells])
    read_all(path, len(cells), forms)


WHOLE = TEXTS.map(lambda text: text.encode("utf-8", "replace").decode())
TURNS = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant"]), "content": WHOLE | st.none()}), max_size=3
)
ANSWERS = st.lists(st.fixed_dictionaries({"text": WHOLE, "score": st.floats() | st.none()}), max_size=3)
COLUMNS = st.fixed_dictionaries(
    {"prompt": WHOLE, "completion": WHOLE, "chosen": TURNS, "rejected": TURNS},
    optional={"system": WHOLE, "score": st.floats(), "answers": ANSWERS},
)


@QUICK
@given(rows=st.lists(COLUMNS, min_size=1, max_size=40), forms=SOME_FORMS)
def test_no_row_of_parquet_is_lost(rows: list[Any], forms: list[str], tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("rows") / "rows.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    read_all(path, len(rows), forms)
