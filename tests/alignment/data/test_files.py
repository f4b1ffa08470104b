"""Files are read as what they hold: JSON lines, JSON, delimited text and Parquet, zipped or not, and what is broken."""

import csv
import gzip
import json
import os

import pyarrow
import pyarrow.parquet
import pytest

from alignment.config.stages import RowSource, TextSource
from alignment.data.files import read_file
from alignment.data.readers import (
    locate,
    read_as,
    read_comparisons,
    read_documents,
    to_comparisons,
    to_demonstration,
    to_prompt,
)
from alignment.data.used_columns import SourceNotes
from alignment.errors import ConfigError, DataError
from alignment.records import Rejected, read_records, write_records
from tests.conftest import SHARED_DATA

CASES = SHARED_DATA.parent / "cases" / "files"
ROWS = [
    {"prompt": "Who?", "chosen": "Ada.", "rejected": "Bo…"},
    {"prompt": "Ünd?", "chosen": 'a\n"b"', "rejected": "漢"},
]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)


def table(delimiter: str) -> str:
    """The rows as delimited text."""
    cells = [[*ROWS[0]], *([*row.values()] for row in ROWS)]
    return "".join(delimiter.join('"' + cell.replace('"', '""') + '"' for cell in row) + "\r\n" for row in cells)


def rows_of(path, key: str = ""):
    return [row for _, row, reason in read_file(path, key) if not reason]


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


TEXTS = {
    "lines": LINES,
    "no last newline": LINES.rstrip(),
    "crlf": LINES.replace("}\n", "}\r\n"),
    "list": json.dumps(ROWS),
    "pretty list": json.dumps(ROWS, indent=2),
    "bom": "\ufeff" + LINES,
    "bom and list": "\ufeff" + json.dumps(ROWS),
}


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize(
    "name", ["rows.jsonl", "rows.json", "rows.ndjson", "rows", "rows.data", "rows.csv", "rows.txt"]
)
@pytest.mark.parametrize("text", TEXTS)
def test_json_is_read_under_any_name(tmp_path, text, name, zipped) -> None:
    for encoding in ("utf-8", "utf-16"):
        raw = TEXTS[text].removeprefix("\ufeff" if encoding == "utf-16" else "").encode(encoding)
        file = write(tmp_path / (f"{name}.gz" if zipped else name), gzip.compress(raw) if zipped else raw)
        assert rows_of(file) == ROWS


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize(
    ("name", "delimiter"),
    [("a.csv", ","), ("a.tsv", "\t"), ("a.csv", "\t"), ("a.csv", ";"), ("a.csv.gz", ","), ("a.TSV.gz", "\t")],
)
def test_delimited_text(tmp_path, name, delimiter, encoding) -> None:
    raw = table(delimiter).encode(encoding)
    file = write(tmp_path / name, gzip.compress(raw) if name.endswith("gz") else raw)
    assert rows_of(file) == ROWS
    assert [number for number, _, _ in read_file(file)] == [2, 3]  # lines of the file: the header is the first


def test_a_cell_is_the_text_that_it_is_and_an_empty_one_is_absent(tmp_path) -> None:
    file = write(tmp_path / "a.csv", "prompt,chosen,rejected,,\nQ?,None,N/A,,x\n1,42,nan,,\n\n2,true,,y,\n")
    assert rows_of(file) == [
        {"prompt": "Q?", "chosen": "None", "rejected": "N/A", "column 5": "x"},
        {"prompt": "1", "chosen": "42", "rejected": "nan"},
        {"prompt": "2", "chosen": "true", "column 4": "y"},
    ]


def test_rows_of_delimited_text_that_do_not_fit_are_put_aside(tmp_path) -> None:
    raw = b'prompt,chosen,rejected\na,b,c\na,b\na,b,c,d\n"a"x,b,c\nd,\xfc,f\ne,"two\nlines",g\nh,i,j\n'
    source = RowSource(path=str(write(tmp_path / "a.csv", raw)))
    good, bad = read_comparisons(source, None)
    assert [row.prompt.text for row in good] == ["a", "e", "h"]
    assert [(row.line, row.reason) for row in bad] == [
        (3, "2 cells under a header of 3 columns"),
        (4, "4 cells under a header of 3 columns"),
        (5, "not a row of delimited text: ',' expected after '\"'"),
        (6, "'chosen' holds bytes that are not UTF-8 (character 1); save the file as UTF-8"),
    ]
    assert bad[1].row["…"] == ["d"] and good[2].annotation_id == "a.csv:9"


@pytest.mark.parametrize("zipped", [False, True])
def test_parquet_with_nested_columns(tmp_path, zipped) -> None:
    talk = [{"role": "user", "content": "Q?"}, {"role": "assistant", "content": "A.", "tool": None}]
    rows = [{"messages": talk, "n": 1}, {"messages": talk[:1], "when": None}]
    file = tmp_path / ("a.parquet.gz" if zipped else "a.jsonl")  # by its bytes, not by its name
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "plain")
    write(file, gzip.compress((tmp_path / "plain").read_bytes()) if zipped else (tmp_path / "plain").read_bytes())
    good, bad = read_as(RowSource(path=str(file)), to_demonstration, None)
    assert [row.completion for row in good] == ["A."] and bad[0].line == 2


def test_text_in_parquet_that_is_not_utf8_is_put_aside_alone(tmp_path) -> None:
    broken = pyarrow.array([b"good", b"\xff", b"fine"]).cast(pyarrow.binary())
    text = pyarrow.StringArray.from_buffers(3, broken.buffers()[1], broken.buffers()[2])
    pyarrow.parquet.write_table(pyarrow.table({"prompt": text}), tmp_path / "a.parquet")
    good, bad = read_as(RowSource(path=str(tmp_path / "a.parquet")), to_prompt, None)
    assert [row.text for row in good] == ["good", "fine"]
    assert [row.line for row in bad] == [2] and "a value that cannot be read" in bad[0].reason


def test_times_and_bytes_of_parquet_can_be_put_aside(tmp_path) -> None:
    import datetime

    columns = {"prompt": [" "], "when": [datetime.datetime(2024, 1, 2)], "image": [b"\xff\x00"]}
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "a.parquet")
    _, bad = read_as(RowSource(path=str(tmp_path / "a.parquet")), to_prompt, None)
    write_records(tmp_path / "rejected.jsonl", bad)
    (back,) = read_records(tmp_path / "rejected.jsonl", Rejected)[0]
    assert back.row == {"prompt": " ", "when": "2024-01-02 00:00:00", "image": "(2 bytes)"}


def test_bytes_of_parquet_are_the_utf8_text_that_they_are(tmp_path) -> None:
    content = [b"caf\xc3\xa9", b"\xff"]
    pairs = {"prompt": content, "chosen": ["x", "x"], "rejected": ["y", "y"], "image": [b"\xff", b"\xff"]}
    talks = [[{"role": b"user", "content": text}, {"role": b"assistant", "content": b"A."}] for text in content]
    pyarrow.parquet.write_table(pyarrow.table(pairs), tmp_path / "pairs.parquet")
    pyarrow.parquet.write_table(pyarrow.table({"messages": talks}), tmp_path / "talks.parquet")
    good, bad = read_comparisons(RowSource(path=str(tmp_path / "pairs.parquet")), None)
    assert [row.prompt.text for row in good] == ["café"]
    assert [row.reason for row in bad] == ["expected text or a list of messages, not bytes that are not UTF-8"]
    asked, bad = read_as(RowSource(path=str(tmp_path / "talks.parquet")), to_demonstration, None)
    assert [row.messages[0].content for row in asked] == ["café"]
    assert [row.reason for row in bad] == ["a turn's content is bytes that are not UTF-8"]
    filled = RowSource(path=str(tmp_path / "pairs.parquet"), format="template", prompt="{prompt}?")
    good, bad = read_as(filled, to_prompt, None)
    assert [row.text for row in good] == ["café?"] and bad[0].reason == "'prompt' is bytes that are not UTF-8"
    documents, bad = read_documents(TextSource(path=str(tmp_path / "pairs.parquet"), text_field="prompt"))
    assert [row.text for row in documents] == ["café"] and bad[0].reason == "'prompt' is bytes that are not UTF-8"


def test_a_time_of_an_unknown_zone_is_put_aside(tmp_path) -> None:
    times = pyarrow.array([1], pyarrow.timestamp("us", tz="Nowhere/Land"))
    pyarrow.parquet.write_table(pyarrow.table({"prompt": ["a"], "t": times}), tmp_path / "a.parquet")
    good, bad = read_as(RowSource(path=str(tmp_path / "a.parquet")), to_prompt, None)
    assert not good and "a value that cannot be read" in bad[0].reason


def test_a_pipe_or_a_device_is_refused_at_once(tmp_path) -> None:
    os.mkfifo(tmp_path / "rows.jsonl")
    for path in (str(tmp_path / "rows.jsonl"), "/dev/null"):
        with pytest.raises(DataError, match="save it to a file"):
            read_as(RowSource(path=path), to_prompt, None)


# --- what is broken --------------------------------------------------------------------------------------------------

ZIPPED = gzip.compress(LINES.encode() * 100, mtime=0)  # its bytes name tests


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.jsonl.gz", ZIPPED[: len(ZIPPED) // 2], "the gzip file is damaged"),
        ("a.jsonl.gz", ZIPPED[:30] + b"\x00\x01\x02" + ZIPPED[33:], "the gzip file is damaged"),
        ("a.parquet", b"PAR1 and no more", "the Parquet file is damaged"),
        ("a.json", '[{"prompt": "a"}, {"prompt": ', "the file is not valid JSON"),
        ("a.json", '{\n"data": [{"prompt": "a"}]\n', "the file is not valid JSON"),
        ("a.json", '{"data": [{"prompt": "a"}], "n": 1}', r"name the key .* \(lists of rows are under: 'data'\)"),
        ("a.json", "{\n}", "expected a list of rows"),
        ("a.json", "[" * 100_000, "nested too deeply"),
        ("a.csv", "prompt,prompt\na,b\n", "several columns are named 'prompt'"),
        ("a.csv", 'prompt\n"a\nb\n', "line 2: a quotation mark is never closed"),
        ("a.xlsx", b"PK\x03\x04...", "a zip archive or a spreadsheet"),
        ("a.jsonl.zst", b"(\xb5/\xfd...", "compressed with zstd"),
        ("a.bin", b"\x00\x01\x02\x03" * 9, "the file is binary"),
        ("a.jsonl", LINES.encode("utf-16-le"), "UTF-16 without a byte order mark"),
        ("a.jsonl", LINES.encode("utf-16")[:-1], "begins as UTF-16, but is not to its end"),
        ("a.docx", "words", r"the format '\.docx' is not supported"),
        ("a.txt", "words", "plain text, not rows"),
    ],
)
def test_a_file_that_cannot_be_read_is_an_error_in_words(tmp_path, name, content, words) -> None:
    file = write(tmp_path / name, content)
    with pytest.raises(DataError, match=words) as caught:
        read_as(RowSource(path=str(file)), to_prompt, None)
    assert str(file) in str(caught.value)


def test_two_columns_of_one_name_in_parquet(tmp_path) -> None:
    double = pyarrow.table([pyarrow.array(["a"]), pyarrow.array(["b"])], names=["prompt", "prompt"])
    pyarrow.parquet.write_table(double, tmp_path / "a.parquet")
    with pytest.raises(DataError, match="several columns are named 'prompt'"):
        read_as(RowSource(path=str(tmp_path / "a.parquet")), to_prompt, None)


def test_a_key_that_is_not_there(tmp_path) -> None:
    file = write(tmp_path / "a.json", json.dumps({"data": {"rows": ROWS}}))
    assert rows_of(file, "data.rows") == ROWS
    with pytest.raises(DataError, match="no list of rows under 'rows'"):
        rows_of(file, "rows")


# --- rows that cannot be kept ----------------------------------------------------------------------------------------

SURROGATE = "broken \\ud83d emoji"
DEEP = "[" * 500 + "]" * 500
UNKEEPABLE = {
    "a lone surrogate": f'"{SURROGATE}"',
    "a surrogate below": f'{{"a": [{{"b": "{SURROGATE}"}}]}}',
    "a surrogate in a name": f'{{"{SURROGATE}": 1}}',
    "digits": "1" * 5000,
    "nan": "NaN",
    "infinity": "[-Infinity]",
    "too large": "1e999",
    "deep": DEEP,
    "too deep to parse": "[" * 100_000 + "]" * 100_000,
}


@pytest.mark.parametrize("form", ["jsonl", "json"])
@pytest.mark.parametrize("value", UNKEEPABLE)
def test_a_row_that_cannot_be_kept_is_put_aside_and_the_rest_is_used(tmp_path, value, form) -> None:
    fine = '{"prompt": "Q?", "completion": "A.", "chosen": "a", "rejected": "b", "text": "t"}'
    lines = [fine, fine[:-1] + f', "more": {UNKEEPABLE[value]}}}', fine]
    content = "\n".join(lines) if form == "jsonl" else f"[{','.join(lines)}]"
    path = str(write(tmp_path / f"a.{form}", content))
    results = [
        read_as(RowSource(path=path), to_prompt, None),
        read_as(RowSource(path=path), to_demonstration, None),
        read_as(RowSource(path=path), to_comparisons, None),
        read_documents(TextSource(path=path)),
    ]
    for good, bad in results:
        assert len(good) == 2 and [row.line for row in bad] == [2]
        assert "more" in bad[0].reason or "nested" in bad[0].reason
        write_records(tmp_path / "rejected.jsonl", bad)
        (back,) = read_records(tmp_path / "rejected.jsonl", Rejected)[0]
        if "lone" in value:
            assert back.row["more"] == SURROGATE


# --- texts -----------------------------------------------------------------------------------------------------------


def test_a_plain_text_may_be_zipped_and_its_broken_paragraphs_are_put_aside(tmp_path) -> None:
    raw = b"One.\n\nTw\xf6.\n\n[Three] {x}\nand more.\n"
    for name, content in (("a.txt", raw), ("a.md.gz", gzip.compress(raw))):
        documents, bad = read_documents(TextSource(path=str(write(tmp_path / name, content))))
        assert [document.text.strip() for document in documents] == ["One.", "[Three] {x}\nand more."]
        assert [(row.line, "not UTF-8" in row.reason) for row in bad] == [(3, True)]


def test_a_text_that_begins_with_a_bracket_stays_a_text(tmp_path) -> None:
    for text in ("[1] A list.\n\n[2] Of notes.", "{x} is a set.\n\nSo is y.", "[1, 2]\n\nnumbers"):
        assert len(read_documents(TextSource(path=str(write(tmp_path / "a.txt", text))))[0]) == 2


# --- data sets -------------------------------------------------------------------------------------------------------


@pytest.fixture
def data_set(tmp_path, monkeypatch):
    """A directory as the hub lays out a data set: two configurations, with splits of their own names."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    home = tmp_path / "sets" / "mine"
    home.mkdir(parents=True)
    for name in ("train_prefs", "test_prefs", "other"):
        rows = [{"prompt": f"{name} {n}", "chosen": "a", "rejected": "b"} for n in range(2)]
        write(home / f"{name}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    card = {
        "configs": [
            {
                "config_name": "prefs",
                "default": True,
                "data_files": [{"split": name, "path": f"{name}.jsonl"} for name in ("train_prefs", "test_prefs")],
            },
            {"config_name": "more", "data_files": "other.jsonl"},
        ]
    }
    write(home / "README.md", f"---\n{json.dumps(card)}\n---\n")
    return home


def test_splits_and_configurations_of_a_data_set(data_set) -> None:
    def prompts(**options) -> list[str]:
        good, bad = read_as(RowSource(path=str(data_set), **options), to_prompt, None)
        assert not bad
        return [row.text for row in good]

    assert prompts(split="train_prefs") == ["train_prefs 0", "train_prefs 1"]
    assert prompts(split="test_prefs", limit=1) == ["test_prefs 0"]
    assert prompts(name="more") == ["other 0", "other 1"]
    with pytest.raises(DataError, match=r"has no split 'train'.*train_prefs.*name one with `split:`"):
        prompts()
    with pytest.raises(DataError, match=r"BuilderConfig 'none' not found.*`name:`"):
        prompts(name="none")


def test_the_files_of_a_directory_are_read_as_single_files(tmp_path) -> None:
    write(tmp_path / "train-1.csv", "prompt,chosen,rejected\nNone,N/A,007\n")
    write(tmp_path / "train-2.csv", "prompt,chosen,rejected\na,b\nx,y,z\n")
    write(tmp_path / "extra.csv", "prompt,chosen,rejected\na,b,c\n")
    write(tmp_path / "b.jsonl", LINES)
    notes = SourceNotes("comparisons")
    good, bad = read_comparisons(RowSource(path=str(tmp_path)), None, notes)
    assert [(row.prompt.text, row.chosen.text, row.rejected.text) for row in good] == [
        ("None", "N/A", "007"),
        ("x", "y", "z"),
    ]
    assert [(row.file, row.line) for row in bad] == [(str(tmp_path / "train-2.csv"), 2)]
    assert notes.lines("d") == ["d: not in the split, or of another format: b.jsonl, extra.csv"]
    assert len(read_comparisons(RowSource(path=str(tmp_path), limit=1), None)[0]) == 1


def test_a_directory_without_data_is_an_error_in_words(tmp_path) -> None:
    with pytest.raises(DataError, match=r"doesn't contain any data files.*give one of them as the path"):
        read_as(RowSource(path=str(tmp_path)), to_prompt, None)


def test_a_hub_that_is_away_is_an_error_in_words(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    with pytest.raises(DataError, match=r"the data set owner/some-set-v2\.5 cannot be read: .* give the directory"):
        read_as(RowSource(path="owner/some-set-v2.5"), to_prompt, None)


def test_a_file_has_no_splits(tmp_path) -> None:
    file = write(tmp_path / "a.jsonl", LINES)
    with pytest.raises(ConfigError, match="is a file, which has no `split`"):
        read_as(RowSource(path=str(file), split="train"), to_prompt, None)
    with pytest.raises(DataError, match="does not exist"):
        locate("owner/rows.jsonl", None)


# --- the files of the cases ------------------------------------------------------------------------------------------


@pytest.mark.skipif(not CASES.is_dir(), reason=f"no data at {CASES}")
@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("bom.json", 6, []),
        ("bom.jsonl", 6, []),
        ("empty_system_pair.jsonl", 1, []),
        ("lines.json.gz", 6, []),
        ("lines_named.json", 6, []),
        ("none.csv", 4, []),
        ("nul.jsonl", 6, []),
        ("surrogate.jsonl", 4, [3, 4]),
        ("wide.tsv", 1, []),
    ],
)
def test_the_files_of_the_cases(name, good, bad) -> None:
    rows, rejected = read_comparisons(RowSource(path=str(CASES / name)), None)
    assert (len(rows), [row.line for row in rejected]) == (good, bad)
    if name == "none.csv":
        with (CASES / name).open(newline="") as file:
            wanted = [(row["chosen"], row["rejected"]) for row in csv.DictReader(file)]
        assert [(row.chosen.text, row.rejected.text) for row in rows] == wanted


@pytest.mark.skipif(not CASES.is_dir(), reason=f"no data at {CASES}")
def test_the_demonstrations_of_the_cases() -> None:
    (good,), (bad,) = read_as(RowSource(path=str(CASES / "demo_surrogate.jsonl")), to_demonstration, None)
    assert good.completion == "Fine." and (bad.line, "lone surrogate" in bad.reason) == (1, True)
    (good,), _ = read_as(RowSource(path=str(CASES / "empty_system.jsonl")), to_demonstration, None)
    assert [message.role for message in good.messages] == ["user"]


# --- headers, pointers and single rows -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "names", "line"),
    [
        ('"prompt\n(en)",completion\nq,"a\nb"\n', ("prompt\n(en)", "completion"), 3),
        ('id;"prompt\r\n(en)";"the\n""answer"""\r\n1;q;a\r\n', ("id", "prompt\r\n(en)", 'the\n"answer"'), 4),
        ("\n\r\n \nprompt,completion\nq,a\n", ("prompt", "completion"), 5),
        ("\ufeff\nprompt,completion\nq,a\n", ("prompt", "completion"), 3),
        ('size 5",completion\nq,a\n', ('size 5"', "completion"), 2),
    ],
)
def test_blank_lines_above_a_header_and_line_breaks_in_it(tmp_path, text, names, line) -> None:
    ((number, row, reason),) = read_file(write(tmp_path / "rows.csv", text))
    assert (number, tuple(row), reason) == (line, names, "")


def test_a_header_that_does_not_end_is_an_error(tmp_path) -> None:
    with pytest.raises(DataError, match="a quotation mark in the header is never closed"):
        rows_of(write(tmp_path / "rows.csv", 'prompt,"completion\nq,a\n'))


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.parquet", "rows.csv", "rows.txt", "rows.json", "rows.gz", "rows"])
def test_a_pointer_of_git_lfs_is_named(tmp_path, name) -> None:
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0a' * 32}\nsize 12345\n"
    path = write(tmp_path / name, pointer)
    for read in (lambda: rows_of(path), lambda: read_documents(TextSource(path=str(path)))):
        with pytest.raises(DataError, match=r"is a Git LFS pointer.*`git lfs pull`"):
            read()


SCORED = {"prompt": "Q?", "completions": [{"response": "a", "score": 1}, {"response": "b", "score": 2}]}


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("row", [SCORED, {"prompt": "Q?", "completion": "A."}])
def test_a_json_file_with_one_row(tmp_path, row, indent) -> None:
    assert rows_of(write(tmp_path / "row.json", json.dumps(row, indent=indent))) == [row]


def test_a_json_file_with_rows_under_a_key_is_no_row(tmp_path) -> None:
    path = write(tmp_path / "rows.json", json.dumps({"prompt": "of all", "data": ROWS}))
    with pytest.raises(DataError, match=r"name the key that holds them.*'data'"):
        rows_of(path)
    assert rows_of(path, "data") == ROWS
    assert rows_of(write(path, json.dumps(SCORED)), "completions") == SCORED["completions"]
