"""Token files: packed as a list in memory would be, mapped, and continued after a kill."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignment.models.encoding import Unfit
from alignment.records import Document, Rejected
from alignment.training.tokens import Encoded, TokenRows, in_temporary_file, remove_leftovers, write_tokens

ROWS = st.lists(st.lists(st.integers(0, 200_000), max_size=9), max_size=8)


def encoded(rows: list[list[int]]) -> list[Encoded]:
    return [(Document(text=f"text of {len(ids)}"), ids) for ids in rows]


def packed(rows: list[list[int]], context: int) -> list[list[int]]:
    """The rows by a plain reading of what they are."""
    stream = [token for ids in rows for token in ids]
    while len(stream) % context:
        stream.append(stream[len(stream) - sum(map(len, rows))])
    return [stream[start : start + context] for start in range(0, len(stream), context)]


@given(shards=st.lists(ROWS, max_size=3), context=st.integers(1, 12))
def test_any_shards_are_packed_as_a_list_would_be(
    tmp_path_factory: pytest.TempPathFactory, shards: list[list[list[int]]], context: int
) -> None:
    path = tmp_path_factory.mktemp("tokens") / "train"
    file = write_tokens([lambda shard=shard: encoded(shard) for shard in shards], path, context)  # type: ignore[misc]
    rows = [ids for shard in shards for ids in shard]
    assert (file.documents, file.tokens) == (len(rows), sum(map(len, rows)))
    assert file.text_bytes == sum(len(f"text of {len(ids)}") for ids in rows)
    if file.tokens:
        mapped, filling = file.rows(context)
        assert mapped.tolist() == list(TokenRows(mapped)) == packed(rows, context)
        assert filling == mapped.numel() - file.tokens
        alone, unnamed, _ = in_temporary_file(encoded(rows), context)
        assert unnamed.tolist() == mapped.tolist() and not alone.path.exists()


def test_a_killed_run_goes_on_after_the_last_whole_shard(tmp_path: Path) -> None:
    bad = Unfit(Rejected(file="a", line=3, reason="a template that refuses it"))
    read: list[int] = []

    def shard(number: int, fails: bool = False) -> Iterator[Encoded]:
        read.append(number)
        yield Document(text="one"), [number] * 3
        yield bad
        if fails:
            raise KeyboardInterrupt
        yield Document(text="two"), [number] * 2

    path = tmp_path / "tokens" / "train"
    with pytest.raises(KeyboardInterrupt):
        write_tokens([lambda: shard(1), lambda: shard(2, fails=True), lambda: shard(3)], path, 4)
    assert json.loads(path.with_suffix(".json").read_text())["shards"] == 1
    for _ in range(2):  # the second time nothing is left to do
        file = write_tokens([lambda: shard(1), lambda: shard(2), lambda: shard(3)], path, 4)
        assert file.rows(4)[0].flatten().tolist() == [1] * 5 + [2] * 5 + [3] * 5 + [1]
        assert [*file.rejected] == [bad.rejected] * 3
    assert read == [1, 2, 2, 3]


def test_leftovers_of_a_killed_run_are_removed(tmp_path: Path) -> None:
    (tmp_path / ".tokens-x").mkdir()
    (tmp_path / "model").mkdir()
    remove_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
