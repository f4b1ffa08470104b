"""Small files that expand, files without an end, and rows that cannot be kept: refused at once, with the neighbours."""

import gzip
import itertools
import json
import os
import random
import resource
import socket
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from alignment import bounded
from alignment.bounded import UnreadableFileError, list_items, open_regular, read_bounded, read_json
from alignment.config.stages import ComputeConfig, RowSource, TextSource
from alignment.data import files, parquet, readers
from alignment.data.readers import read_as, read_comparisons, read_documents, to_prompt
from alignment.errors import ConfigError, DataError, PathError
from alignment.plain_yaml import plain_yaml
from flows.recipe.compute import launch_options
from flows.recipe.schema import load_recipe
from labeling.errors import TaskError
from labeling.judgements.imports import import_export

MOST_SECONDS, MOST_BYTES = 60.0, 1 << 30  # of the processor, and of memory


@contextmanager
def cheaply() -> Iterator[None]:
    """Fails if the body takes long, or hundreds of megabytes."""
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    yield
    assert time.process_time() - start < MOST_SECONDS
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < MOST_BYTES


def prompts(path: Path) -> tuple[list[str], list[tuple[int, str]]]:
    """The prompts of a file, and what is put aside."""
    good, bad = read_as(RowSource(path=str(path)), to_prompt, None)
    return [row.text for row in good], [(row.line, row.reason) for row in bad]


# --- YAML ------------------------------------------------------------------------------------------------------------

LETTERS = "abcdefghijklmn"
MERGES = "a: &a {k0: x, k1: x, k2: x}\n" + "".join(
    f"{now}: &{now}\n  <<: [{', '.join([f'*{before}'] * 9)}]\n" for before, now in itertools.pairwise(LETTERS)
)
DOUBLED = "a: &a {<<: {x: 1}}\n" + "".join(
    f"k{i}: &k{i} {{? {{<<: [*{b}, *{b}]}} : {{<<: [*{b}, *{b}]}}}}\n"
    for i, b in enumerate(["a", *[f"k{n}" for n in range(40)]])
)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (MERGES, "expands to more than 100000 values"),
        (DOUBLED, "expands to more than 100000 values|deeper"),
        ("a: &a {<<: *a}", "nested deeper"),
        ("a: &a\n  b: {<<: [*a, *a]}", "nested deeper"),
        ("[" * 100_000, "nested deeper"),
        ("- " * 100_000, "nested deeper"),
        ("{a: " * 100_000, "nested deeper"),
        ("x: [" + "a," * 100_000 + "]", "more than 20000 values"),
        ("x: " + "9" * 5000, "more than 300 digits"),
        ("x: 0x" + "f" * 100_000, "more than 300 digits"),
        ("x: " + "1:" * 100_000 + "1", "more than 300 digits"),
        ('x: !!int "' + "1:" * 100_000 + '1"', "more than 300 digits"),
        ("x: 1e999999", None),  # text: no dot
        ("x: 1.0e+999999", "is inf, which is not finite"),
        ("x: .nan", "is nan, which is not finite"),
        ('x: {y: "\\uD800"}', r"x\.y holds a lone surrogate"),
        ("x: !!timestamp no", "does not fit its tag"),
        ('x: !!int ""', "does not fit its tag"),
        ("x: !!bool perhaps", "does not fit its tag"),
        ("x: !!float no", "could not convert"),
        ("? [1, 2]\n: x", "unhashable key"),
        ("x: 9999-99-99", "month must be"),
    ],
)
def test_yaml_that_expands_or_does_not_fit_is_refused_at_once(tmp_path: Path, text: str, words: str | None) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with cheaply(), pytest.raises(ConfigError, match=words):
        load_recipe(str(path))


def test_merges_that_only_save_words_are_read() -> None:
    text = "base: &base {a: 1, b: [1, 2]}\none: {<<: *base, b: 3}\ntwo: {<<: [*base, {c: 4}]}"
    values = plain_yaml(text)
    assert values["one"] == {"a": 1, "b": 3} and values["two"] == {"a": 1, "b": [1, 2], "c": 4}
    assert plain_yaml("") is None and plain_yaml("[[" * 24 + "]]" * 24)


def test_options_of_accelerate_are_read_by_the_same_rules(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(MERGES)
    with cheaply(), pytest.raises(ConfigError, match=r"cannot be read .*more than 100000 values"):
        launch_options(ComputeConfig(processes=2, accelerate_config=str(tmp_path / "a.yaml")))
    os.mkfifo(tmp_path / "b.yaml")
    with cheaply(), pytest.raises(ConfigError, match="not a file but a pipe"):
        launch_options(ComputeConfig(processes=2, accelerate_config=str(tmp_path / "b.yaml")))


# --- what is no regular file -----------------------------------------------------------------------------------------


def fifo(path: Path) -> None:
    os.mkfifo(path)


def listening(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


def zeros(path: Path) -> None:
    path.symlink_to("/dev/zero")


STRANGE: list[Callable[[Path], None]] = [fifo, listening, zeros]


@pytest.mark.parametrize("make", STRANGE)
def test_what_is_no_file_is_refused_at_once(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(path := tmp_path / "rows.jsonl")
    with cheaply():
        with pytest.raises(OSError):
            read_bounded(path)
        with pytest.raises(DataError, match=r"rows\.jsonl"):
            prompts(path)
        with pytest.raises(DataError, match=r"rows\.jsonl"):
            read_documents(TextSource(path=str(path)))
        with pytest.raises(TaskError, match=r"rows\.jsonl"):
            import_export(path)


@pytest.mark.parametrize("make", STRANGE)
def test_a_directory_with_what_is_no_file_is_refused_at_once(tmp_path: Path, make: Callable[[Path], None]) -> None:
    (tmp_path / "train.jsonl").write_text('{"prompt": "Q?"}\n')
    (tmp_path / ".git").mkdir()
    make(tmp_path / ".git" / "socket")  # hidden files are not read
    assert prompts(tmp_path)[0] == ["Q?"]
    (tmp_path / "data").mkdir()
    make(tmp_path / "data" / "test.jsonl")
    with cheaply(), pytest.raises(DataError, match=r"test\.jsonl is not a file but a pipe, a device or a socket"):
        prompts(tmp_path)


def test_circles_of_links_and_links_to_nowhere_are_named(tmp_path: Path) -> None:
    for name, target in {"loop": ".", "self.jsonl": "self.jsonl", "gone.jsonl": "nowhere"}.items():
        directory = tmp_path / name.partition(".")[0]
        directory.mkdir()
        (directory / "train.jsonl").write_text('{"prompt": "Q?"}\n')
        (directory / name).symlink_to(target)
        with cheaply(), pytest.raises(DataError, match=name):
            prompts(directory)
    with pytest.raises(DataError, match=r"gone\.jsonl' does not exist"):
        prompts(tmp_path / "gone" / "gone.jsonl")


@pytest.mark.parametrize("name", ["a\0b.jsonl", "x" * 5000 + ".jsonl"])
def test_a_name_that_no_file_can_have_is_an_error_in_words(name: str) -> None:
    with pytest.raises(PathError, match="cannot be looked up"):
        prompts(Path(name))
    with pytest.raises(OSError):
        open_regular(Path(name))


# --- compression -----------------------------------------------------------------------------------------------------


def bomb(path: Path, start: bytes, filler: bytes, size: int) -> Path:
    """A gzip file of these bytes, repeated."""
    block = filler * ((1 << 20) // len(filler))
    with gzip.open(path, "wb", compresslevel=9) as file:
        file.write(start)
        for _ in range(size // len(block)):
            file.write(block)
    return path


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.json.gz", "a.csv.gz", "a.txt.gz", "a.parquet.gz"])
@pytest.mark.parametrize("filler", [b"x", b"\n", b"[],", b"[]\n"])
def test_a_gzip_file_that_expands_without_measure_is_refused(
    tmp_path: Path, name: str, filler: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounded, "MOST_EXPANDED", 1 << 18)
    monkeypatch.setattr(bounded, "MOST_RATIO", 10)
    monkeypatch.setattr(readers, "MOST_REJECTED", 1000)
    start = {"a.json.gz": b'[{"prompt": "', "a.parquet.gz": b"PAR1", "a.csv.gz": b"prompt\n"}.get(name, b'{"prompt": "')
    path = bomb(tmp_path / name, start, filler, 16 << 20)
    assert path.stat().st_size < 1 << 17
    with (
        cheaply(),
        pytest.raises(DataError, match=rf"{name}.*(more than|used|plain text|not valid|damaged)"),
    ):
        prompts(path)
    with cheaply(), pytest.raises(DataError, match=name):
        readers.convert_parts(TextSource(path=str(path)), path, readers.to_document, None, None)


def test_the_error_of_a_gzip_bomb_names_limit_and_next_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded, "MOST_EXPANDED", 1 << 20)
    path = bomb(tmp_path / "a.jsonl.gz", b"", b'{"prompt": "' + b"Q?" * 5000 + b'"}\n', 8 << 20)
    with pytest.raises(DataError, match=r"a\.jsonl\.gz: it holds more than .*; if that is right, unzip it"):
        prompts(path)
    good = gzip.compress(json.dumps({"prompt": os.urandom(1 << 20).hex()}).encode())
    (tmp_path / "fine.jsonl.gz").write_bytes(good)
    assert len(prompts(tmp_path / "fine.jsonl.gz")[0][0]) == 2 << 20


def test_a_gzipped_export_of_label_studio_that_expands_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounded, "MOST_EXPANDED", 8 << 20)
    path = bomb(tmp_path / "export.json.gz", b"[", b" ", 64 << 20)
    with cheaply(), pytest.raises(TaskError, match=r"export\.json\.gz .*more than"):
        import_export(path)


# --- long lines and many rows ----------------------------------------------------------------------------------------


def test_a_line_that_is_too_long_is_put_aside_with_its_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded.bounded_lines, "__defaults__", (1 << 20,))
    long = json.dumps({"prompt": "x" * (3 << 20)})
    path = tmp_path / "a.jsonl"
    path.write_text(f'{{"prompt": "one"}}\n{long}\n{{"prompt": "three"}}\n{long}')
    good, bad = prompts(path)
    reason = "the line has more than 1 MiB; split the row"
    assert good == ["one", "three"] and bad == [(2, reason), (4, reason)]


def test_a_line_of_ten_megabytes_is_read(tmp_path: Path) -> None:
    text = "word " * (2 << 20)
    (tmp_path / "a.jsonl").write_text(json.dumps({"prompt": text}) + "\n")
    (tmp_path / "a.csv").write_text(f'prompt\n"{text}"\n')
    pyarrow.parquet.write_table(pyarrow.table({"prompt": [text]}), tmp_path / "a.parquet")
    for name in ("a.jsonl", "a.csv", "a.parquet"):
        assert [len(prompt) for prompt in prompts(tmp_path / name)[0]] == [len(text)], name


def test_a_row_of_delimited_text_that_never_ends_is_an_error_with_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "LONGEST_LINE", 1 << 20)
    (tmp_path / "a.csv").write_text('prompt,b\nQ?,1\n"' + "x\n" * (2 << 20))
    with pytest.raises(DataError, match=r"a\.csv line 3: a row has more than 1 MiB before its end"):
        prompts(tmp_path / "a.csv")


def test_a_file_without_end_in_size_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded.open_bounded.__wrapped__, "__kwdefaults__", {"zipped": False, "most": 256 << 20})
    with (tmp_path / "a.jsonl").open("wb") as file:
        file.write(b'{"prompt": "Q?"}\n')
        file.truncate(1 << 40)  # a hole
    with cheaply(), pytest.raises(DataError, match=r"a\.jsonl: it holds more than 256 MiB; split it"):
        prompts(tmp_path / "a.jsonl")


def test_rows_that_cannot_be_used_do_not_fill_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "MOST_REJECTED", 100)
    monkeypatch.setattr(readers, "MOST_ROWS", 1000)
    (tmp_path / "bad.jsonl").write_text("x\n" * 500)
    with pytest.raises(DataError, match=r"101 of the first 101 rows cannot be used; the first is line 1: not a line"):
        prompts(tmp_path / "bad.jsonl")
    (tmp_path / "many.jsonl").write_text('{"prompt": "Q?"}\n' * 1001)
    with pytest.raises(DataError, match="more than 1,000 rows; split it"):
        prompts(tmp_path / "many.jsonl")


def test_json_of_nothing_but_brackets_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "one"}\n{"prompt": "two", "more": [' + "[]," * 1_500_000 + "0]}\n")
    with cheaply():
        good, bad = prompts(path)
    assert good == ["one"] and [line for line, _ in bad] == [2] and "lists and objects" in bad[0][1]
    (tmp_path / "a.json").write_text("[" + "{}," * 1_500_000 + "{}]")
    with cheaply(), pytest.raises(DataError, match=r"lists and objects; give JSON lines"):
        prompts(tmp_path / "a.json")


# --- Parquet ---------------------------------------------------------------------------------------------------------


def test_a_dictionary_that_expands_is_read_row_by_row(tmp_path: Path) -> None:
    text = "x" * (20 << 20)
    indices = pyarrow.array([0] * 1024, pyarrow.int32())
    column = pyarrow.DictionaryArray.from_arrays(indices, pyarrow.array([text]))
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(
        pyarrow.table({"prompt": column}), path, dictionary_pagesize_limit=1 << 30, compression="zstd"
    )
    with path.open("rb") as file:
        group = pyarrow.parquet.ParquetFile(file).metadata.row_group(0)
        assert parquet._dictionary_bytes(file, group.column(0)) == len(text) + 4  # its length before it
        assert parquet._batch_size(path, file, group, 0) == 25
    rows = parquet.parquet_rows(path, path.open("rb"))
    with cheaply():
        assert len(next(rows)[1]["prompt"]) == len(text)
    rows.close()


def test_a_column_that_is_too_large_is_refused_and_a_row_is_put_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = pyarrow.table({"prompt": ["one", "x" * (4 << 20), "three"]})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet", compression="zstd")
    monkeypatch.setattr(parquet, "LONGEST_LINE", 1 << 20)
    good, bad = prompts(tmp_path / "a.parquet")
    assert good == ["one", "three"] and bad == [(2, "the row has 4 MiB, more than 1 MiB; split it")]
    monkeypatch.setattr(parquet, "LARGEST_CHUNK", 1 << 20)
    with pytest.raises(DataError, match=r"a\.parquet: row group 0 has .* values of 'prompt' .*row_group_size"):
        prompts(tmp_path / "a.parquet")


def test_damaged_parquet_is_an_error_in_words(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"prompt": ["Q?"] * 200, "n": list(range(200))}), path)
    whole = path.read_bytes()
    for position in range(4, len(whole), 61):
        path.write_bytes(whole[:position] + b"\xff\xfe\x7f" + whole[position + 3 :])
        with cheaply():
            try:
                read_comparisons(RowSource(path=str(path)), None)
            except DataError as error:
                assert str(path) in str(error)
        path.write_bytes(whole[:position])
        with pytest.raises(DataError, match=r"a\.parquet"):
            prompts(path)


# --- JSON ------------------------------------------------------------------------------------------------------------

BROKEN = {
    "nested": "[" * 100_000 + "]" * 100_000,
    "digits": "9" * 5000,
    "infinity": "1e999",
    "nan": "NaN",
    "surrogate": '"\\ud800"',
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_task_of_an_export_that_cannot_be_kept_is_put_aside_alone(tmp_path: Path, kind: str) -> None:
    data = '{"id": %d, "data": {"uid": "task_0123456789ab", "before": [], "prompt": "Q?"%s}, "annotations": []}'
    more = f', "more": {BROKEN[kind]}'
    (tmp_path / "export.json").write_text("[" + ",".join(data % (i, more if i == 2 else "") for i in (1, 2, 3)) + "]")
    with cheaply():
        imported = import_export(tmp_path / "export.json")
    reasons = {row.line: row.reason for row in imported.quarantined}
    assert 2 in reasons
    words = {"nested": "nested too deeply", "surrogate": "surrogate"}.get(kind, "cannot be kept")
    assert words in reasons[2] and words not in reasons.get(1, "") + reasons.get(3, "")


def test_a_document_that_cannot_be_kept_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    for kind, text in BROKEN.items():
        path.write_text(f'{{"a": [{text}]}}')
        if kind != "surrogate":
            with cheaply(), pytest.raises(ValueError, match=r"nested|cannot be kept"):
                read_json(path)
    path.write_bytes(b"\xff")
    with pytest.raises(ValueError):
        read_json(path)
    path.write_bytes(b" " * 101)
    with pytest.raises(UnreadableFileError, match="more than 100 bytes"):
        read_json(path, 100)


@pytest.mark.parametrize(
    "values", [[], [1], [1, "a,]b", {"x": [1, {"y": '"'}]}, "\\", '\\"', None, [[], {}]], [[[]], ["["], {"{": "}"}]]
)
def test_the_items_of_a_list_are_those_that_json_finds(values: list[object]) -> None:
    for indent in (None, 2):
        items = list_items(json.dumps(values, indent=indent))
        assert [json.loads(item) for item in items] == values
    for broken in ("[1, 2", "{}", ""):
        with pytest.raises(ValueError):
            list(list_items(broken))


def test_gzip_of_many_members_and_long_headers_is_read_at_once(tmp_path: Path) -> None:
    """5,000 empty members, 100,000 of a row, and a name of 30 MB in the header; zeros may follow a member."""
    row, started = b'{"prompt": "Q one?"}\n', time.process_time()
    empty, full, name = (
        gzip.compress(b""),
        gzip.compress(row),
        b"\x1f\x8b\x08\x08" + bytes(6) + b"n" * (30 << 20) + b"\0",
    )
    contents = {
        empty * 5000: b"",
        full * 100_000: row * 100_000,
        name + full[10:]: row,
        full + bytes(20_000) + full + bytes(9): row * 2,
        b"": b"",
    }
    for zipped, content in contents.items():
        (tmp_path / "a.gz").write_bytes(zipped)
        assert read_bounded(tmp_path / "a.gz", zipped=True) == content
    (tmp_path / "a.gz").write_bytes(empty * 1_000_000)
    with pytest.raises(UnreadableFileError, match="more than 10,000 empty gzip members"):
        read_bounded(tmp_path / "a.gz", zipped=True)
    assert time.process_time() - started < 20
    big = random.Random(0).randbytes(300_000) + bytes(3_000_000)
    for times in (1, 2):
        zipped = gzip.compress(big) * times
        (tmp_path / "a.gz").write_bytes(zipped)
        assert read_bounded(tmp_path / "a.gz", zipped=True) == big * times
        for broken in (zipped[:-1], zipped[:5], zipped + b"garbage", zipped[:-5] + b"\0" + zipped[-4:]):
            (tmp_path / "a.gz").write_bytes(broken)
            with pytest.raises((EOFError, zlib.error)):
                read_bounded(tmp_path / "a.gz", zipped=True)
