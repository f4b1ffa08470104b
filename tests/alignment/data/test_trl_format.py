"""Comparisons exported as TRL preference data, and imported back unchanged."""

import datasets
import pyarrow.parquet
import pytest
from trl.data_utils import is_conversational, maybe_extract_prompt

from alignment.config.stages import RowSource
from alignment.data.readers import read_comparisons
from alignment.data.trl_format import ties_file, to_preference, write_preferences
from alignment.records import Comparison, Message, Prompt, Response
from tests.alignment.tiny_world import comparison, write_lines

TALK = Prompt(
    id="p_1",
    messages=(
        Message(role="system", content="Be kind.\n"),
        Message(role="user", content="Who plays 漢字? "),
        Message(role="assistant", content="Ada"),
        Message(role="user", content="<b>What?</b>"),
    ),
    kind="fact",
    split="heldout",
    meta={"n": [1, None]},
)
ROWS = [
    Comparison(
        id="cmp_1",
        prompt=TALK,
        chosen=Response(id="r_a", text=" The “violin”.\n"),
        rejected=Response(id="r_b", text="-"),
        strength=3,
        criteria={"helpful": -2, "harmless": 0},
        annotation_id="7",
        annotator_id="3",
        task_uid="task_1",
        chosen_first=False,
    ),
    comparison("Q?", "a", "b", chosen_first=True),
    comparison("Q?", "a", "c", strength=2),
    comparison("Q?", "a", "d", strength=0, annotator_id="9"),
]


@pytest.mark.parametrize("form", ["parquet", "jsonl"])
def test_what_goes_out_comes_back_whole(tmp_path, form, monkeypatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    file = tmp_path / "new" / f"pairs.{form}"
    assert write_preferences(ROWS, file, form) == {str(file): 3, str(ties_file(file)): 1}
    back = []
    for name in (file, ties_file(file)):
        good, bad = read_comparisons(RowSource(path=str(name)), None)
        assert not bad
        back += good
    assert back == ROWS


@pytest.mark.parametrize("form", ["parquet", "jsonl"])
def test_trl_takes_the_rows_for_conversational_preferences(tmp_path, form) -> None:
    write_preferences(ROWS, tmp_path / f"pairs.{form}", form)
    kind = {"parquet": "parquet", "jsonl": "json"}[form]
    rows = datasets.load_dataset(
        kind, data_files=str(tmp_path / f"pairs.{form}"), split="train", cache_dir=str(tmp_path / "cache")
    )
    row = rows[0]
    assert is_conversational(row) and maybe_extract_prompt(row)["prompt"] == row["prompt"]
    assert row["chosen"] == [{"role": "assistant", "content": " The “violin”.\n"}]
    assert rows["margin"] == [3.0, 1.0, 2.0]
    assert [turn["role"] for turn in row["prompt"]] == ["system", "user", "assistant", "user"]


def test_no_ties_leave_no_file_of_ties_and_an_old_one_goes(tmp_path) -> None:
    file = tmp_path / "pairs.jsonl"
    write_preferences(ROWS, file, "jsonl")
    assert ties_file(file).is_file()
    assert write_preferences(ROWS[:3], file, "jsonl") == {str(file): 3} and not ties_file(file).exists()


def test_an_empty_data_set_has_its_columns(tmp_path) -> None:
    write_preferences([], tmp_path / "none.parquet", "parquet")
    table = pyarrow.parquet.read_table(tmp_path / "none.parquet")
    assert table.num_rows == 0 and {"prompt", "chosen", "rejected", "margin", "annotator_id"} <= {*table.column_names}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"prompt_id": None}, "but without prompt_id"),
        ({"criteria": "{"}, "an exported row that was changed"),
        ({"strength": 7}, "strength: Input should be less than or equal to 3"),
        ({"chosen": []}, "expected text or a list of messages"),
    ],
)
def test_an_exported_row_that_was_changed_is_put_aside(tmp_path, change, reason) -> None:
    row = to_preference(ROWS[0]) | change
    good, (bad,) = read_comparisons(RowSource(path=str(write_lines(tmp_path / "rows.jsonl", [row]))), None)
    assert not good and reason in bad.reason


def test_a_row_of_ours_without_its_ids_is_put_aside(tmp_path) -> None:
    row = {name: value for name, value in to_preference(ROWS[0]).items() if name != "chosen_id"}
    _, (bad,) = read_comparisons(RowSource(path=str(write_lines(tmp_path / "rows.jsonl", [row]))), None)
    assert bad.reason == "a row with comparison_id, but without chosen_id"
