"""Rows that a model cannot read are named by where they come from."""

from pathlib import Path

from alignment.config.stages import RowSource
from alignment.data.readers import read_as, to_demonstration
from alignment.errors import TooLongError
from alignment.models.encoding import encode_file
from alignment.records import Demonstration, write_records
from tests.alignment.tiny_world import write_lines


def refuse(row: Demonstration) -> None:
    raise TooLongError("9 tokens, more than 8")


def test_a_demonstration_is_named_by_its_line_in_the_source(tmp_path: Path) -> None:
    rows = [{"prompt": "Q?"}, {"prompt": "Q?", "completion": "A."}]
    source = RowSource(path=str(write_lines(tmp_path / "demos.jsonl", rows)))
    good, _ = read_as(source, to_demonstration, None)
    elsewhere = Demonstration(id="d", messages=good[0].messages, completion="A.")
    output = tmp_path / "demonstrations-1a2b" / "demonstrations.jsonl"
    write_records(output, [*good, elsewhere])
    encoded = encode_file(output, Demonstration, refuse)
    assert [(row.file, row.line) for row in encoded.rejected] == [
        (source.path, 2),
        ("demonstrations-1a2b/demonstrations.jsonl", 2),
    ]
    assert '"line"' not in output.read_text().splitlines()[1] and encoded.too_long == 2
