"""Columns of public data that decide what a row means: scores beside chosen, judged turns, labels, histories."""

from pathlib import Path
from typing import Any

import pytest

from alignment.config.stages import RowSource
from alignment.data.check import check_source
from alignment.data.readers import read_as, read_comparisons, to_demonstration, to_prompt
from tests.alignment.tiny_world import write_lines

PAIR = {"prompt": "Q?", "chosen": "good", "rejected": "bad"}


def source(tmp_path: Path, *rows: Any, **options: Any) -> RowSource:
    return RowSource(path=str(write_lines(tmp_path / "rows.jsonl", rows)), **options)


def turns(*texts: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(texts)]


def contents(record: Any) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in record.messages]


# --- what stands beside chosen and rejected --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("beside", "strength"),
    [
        ({"score_chosen": 8.0, "score_rejected": 3.0}, 1),
        ({"score_chosen": 3, "score_rejected": "3.0"}, 0),
        ({"chosen_rating": 2.0, "rejected_rating": 2.0}, 0),
        ({"score_chosen": "N/A", "score_rejected": 3.0}, 1),
        ({"score_chosen": None, "score_rejected": 3.0}, 1),
        ({"chosen_score": 9.0}, 1),
        ({"status": "tie"}, 0),
        ({"status": "swapped"}, 1),
        ({"winner": "Tie"}, 0),
        ({"winner": "chosen"}, 1),
        ({"winner": None}, 1),
        ({"winner": "model_b"}, 1),
        ({"tie": True}, 0),
        ({"tie": False}, 1),
        ({"score_chosen": 2.0, "score_rejected": 3.0}, "`score_chosen` is 2 and `score_rejected` 3"),
        ({"chosen_score": 1.0, "rejected_score": 2.0}, "`chosen_score` is 1 and `rejected_score` 2"),
        ({"preference": "rejected"}, "`preference` is 'rejected', which contradicts `chosen`"),
    ],
)
def test_scores_and_verdicts_beside_chosen_and_rejected(tmp_path: Path, beside: Any, strength: int | str) -> None:
    rows = source(tmp_path, PAIR | beside)
    good, bad = read_comparisons(rows, None)
    if isinstance(strength, str):
        assert not good and strength in bad[0].reason and "name `chosen` and `rejected` in `columns`" in bad[0].reason
    else:
        assert [row.strength for row in good] == [strength] and not bad
    columns = {name: name for name in PAIR}
    settled = source(tmp_path, PAIR | beside, columns=columns)
    assert [row.strength for row in read_comparisons(settled, None)[0]] == [1]


def test_the_ratings_of_a_named_format_and_what_is_read(tmp_path: Path) -> None:
    row = {"instruction": "Q?", "chosen_response": "good", "rejected_response": "bad", "chosen_model": "m"}
    check = check_source(source(tmp_path, row | {"chosen_avg_rating": 4, "rejected_avg_rating": 4}), "comparisons")
    assert (check.ties, [*check.unread]) == (1, ["chosen_model"])
    check = check_source(source(tmp_path, row | {"chosen_avg_rating": 4, "rejected_avg_rating": 5}), "comparisons")
    assert "`chosen_avg_rating` is 4 and `rejected_avg_rating` 5" in check.rejected[0].reason


# --- MT-Bench and Chatbot Arena --------------------------------------------------------------------------------------


def judged(first: list[str], second: list[str], **more: Any) -> dict[str, Any]:
    return {"conversation_a": turns(*first), "conversation_b": turns(*second), "winner": "model_b", **more}


def test_a_judgement_of_the_second_turn_compares_the_second_answers(tmp_path: Path) -> None:
    parted = ["Q?", "A1", "And?", "A2"], ["Q?", "B1", "And?", "B2"]
    shared = ["Q?", "A1", "And?", "A2"], ["Q?", "A1", "And?", "B2"]
    rows = source(
        tmp_path,
        judged(*parted, turn=1, judge="e1"),
        judged(*parted, turn=2, judge="e1"),
        judged(*shared, turn=2, judge=["e2"]),
        judged(*parted, turn=3),
        judged(*parted, turn=2, anony=True, judge=["gpt-4", "pair-v2"]),
    )
    good, bad = read_comparisons(rows, None)
    assert [
        (row.prompt.messages[-1].content, row.chosen.text, row.rejected.text, row.annotator_id) for row in good
    ] == [
        ("Q?", "B1", "A1", "e1"),
        ("And?", "B2", "A2", "e2"),
        ("Q?", "B1", "A1", "gpt-4,pair-v2"),  # of Chatbot Arena, where `turn` is the number of turns
    ]
    assert [(row.line, row.reason) for row in bad] == [
        (2, "answer 2 was judged, but the conversations part before it, so its questions differ"),
        (4, "the judgement is about answer 3, but there are 2"),
    ]


@pytest.mark.parametrize(("won", "strength"), [(("True", "False"), 1), (("0", "0"), 0), ((False, False), 0)])
def test_flags_of_the_winner_in_arena_55k(tmp_path: Path, won: tuple[Any, Any], strength: int) -> None:
    row = {"prompt": '["Q?"]', "response_a": '["A"]', "response_b": '["B"]', "winner_tie": not strength}
    flags = {"winner_model_a": won[0], "winner_model_b": won[1]}
    (good,), _ = read_comparisons(source(tmp_path, row | flags), None)
    assert (good.chosen.text, good.strength) == ("A", strength)
    _, (bad,) = read_comparisons(source(tmp_path, row | flags | {"prompt": '["Q?", "And?"]'}), None)
    assert bad.reason.endswith("not JSON lists of as many turns: the prompt has 2, the response 1")


# --- contexts, histories and system turns ----------------------------------------------------------------------------


def test_the_context_of_dolly_is_part_of_the_question(tmp_path: Path) -> None:
    rows = source(tmp_path, *({"instruction": "Q?", "context": text, "response": "A."} for text in ("In 1815.", "")))
    for records in (read_as(rows, to_demonstration, None)[0], read_as(rows, to_prompt, None)[0]):
        assert [contents(record) for record in records] == [[("user", "Q?\n\nIn 1815.")], [("user", "Q?")]]


@pytest.mark.parametrize("form", ["auto", "alpaca"])
def test_the_history_of_llama_factory_is_earlier_turns(tmp_path: Path, form: str) -> None:
    row = {"instruction": "And?", "input": "", "output": "B.", "system": "Be kind.", "history": [["Q?", "A."]]}
    (good, plain), bad = read_as(source(tmp_path, row, row | {"history": []}, format=form), to_demonstration, None)
    assert contents(good) == [("system", "Be kind."), ("user", "Q?"), ("assistant", "A."), ("user", "And?")]
    assert contents(plain) == [("system", "Be kind."), ("user", "And?")] and not bad
    broken = source(tmp_path, row | {"history": ["Q?"]}, format="alpaca")
    assert "not a list of pairs of question and answer" in read_as(broken, to_demonstration, None)[1][0].reason


def test_a_system_column_counts_beside_columns_of_the_recipe(tmp_path: Path) -> None:
    columns = {"prompt": "q", "chosen": "yes", "rejected": "no"}
    row = {"q": "Q?", "yes": "good", "no": "bad", "system": "Be kind."}
    (good,), _ = read_comparisons(source(tmp_path, row, columns=columns), None)
    assert contents(good.prompt) == [("system", "Be kind."), ("user", "Q?")]
    asked = [{"role": "system", "content": "Be rude."}, *turns("Q?")]
    (good,), _ = read_comparisons(source(tmp_path, row | {"q": asked}, columns=columns), None)
    assert contents(good.prompt)[0] == ("system", "Be rude.")
    (good,), _ = read_comparisons(source(tmp_path, row, columns=columns | {"annotator": "system"}), None)
    assert (contents(good.prompt), good.annotator_id) == ([("user", "Q?")], "Be kind.")


def test_columns_without_the_prompt_name_the_column_that_the_row_has(tmp_path: Path) -> None:
    columns = {"a": "chosen", "b": "rejected", "winner": "won"}
    _, (bad,) = read_comparisons(source(tmp_path, PAIR | {"won": "a"}, columns=columns), None)
    assert bad.reason.endswith("the row has 'prompt': name it as `prompt` in `columns`")


def test_articles_are_the_prompts_of_summaries_of_news(tmp_path: Path) -> None:
    row = {"summaries": [{"text": "a"}, {"text": "b"}], "choice": 0, "info": {"article": "News.", "post": None}}
    for form in ("auto", "summarize-from-feedback"):
        (good,), _ = read_comparisons(source(tmp_path, row, format=form), None)
        assert (good.prompt.text, good.chosen.text) == ("News.", "a")


# --- answers that are marked as bad ----------------------------------------------------------------------------------


def test_answers_that_are_marked_as_bad_are_no_demonstrations(tmp_path: Path) -> None:
    answered = {"prompt": "Q?", "completion": "A."}
    rows = [answered | {"label": label} for label in (True, False, "False", "news", 0)]
    good, bad = read_as(source(tmp_path, *rows), to_demonstration, None)
    assert len(good) == 3 and [row.line for row in bad] == [2, 3]
    assert bad[0].reason.startswith("`label` is false: the answer is marked as bad")
    columns = {"prompt": "prompt", "completion": "completion"}
    assert len(read_as(source(tmp_path, *rows, columns=columns), to_demonstration, None)[0]) == 5
    assert len(read_as(source(tmp_path, *rows), to_prompt, None)[0]) == 5


def test_an_answer_of_weight_0_is_no_demonstration(tmp_path: Path) -> None:
    asked, answered, more, last = turns("Q?", "A.", "And?", "B.")
    rows = [{"messages": [asked, answered | {"weight": first}, more, last | {"weight": 1 - first}]} for first in (0, 1)]
    (good,), (bad,) = read_as(source(tmp_path, *rows), to_demonstration, None)
    assert good.completion == "B." and (bad.line, bad.reason.split(",")[0]) == (2, "the answer has `weight: 0`")


def test_columns_are_listed_in_the_order_of_the_rows(tmp_path: Path) -> None:
    names = [f"extra {number}" for number in range(12)]
    assert [*check_source(source(tmp_path, PAIR | dict.fromkeys(names, 1)), "comparisons").unread] == names


# --- null in a column that decides -----------------------------------------------------------------------------------


def test_a_column_that_is_null_is_told_from_one_that_is_not_there(tmp_path: Path) -> None:
    row = {"history": "Q?", "human_ref_A": "a", "human_ref_B": "b", "labels": None}
    for form in ("auto", "shp"):
        _, (bad,) = read_comparisons(source(tmp_path, row, format=form), None)
        assert bad.reason.endswith("(`labels` is null)")
    del row["labels"]
    assert "null" not in read_comparisons(source(tmp_path, row), None)[1][0].reason
