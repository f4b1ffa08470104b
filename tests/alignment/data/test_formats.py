"""Data sets of others by name and by columns: which turns are the prompt, which answer is better, and by how much."""

from typing import get_args

import pytest
from pydantic import ValidationError

from alignment.config.stages import Columns, Format, RowSource
from alignment.data.formats import FORMATS
from alignment.data.readers import read_as, read_comparisons, to_demonstration, to_prompt
from alignment.data.used_columns import SourceNotes
from alignment.errors import ConfigError
from tests.alignment.tiny_world import write_lines
from tests.conftest import SHARED_DATA

CASES = SHARED_DATA.parent / "cases"
Q = "How do I boil an egg?"
GOOD, POOR = "Eight minutes.", "No."


def turns(*texts, system=""):
    """A conversation of user and assistant turns."""
    said = [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(texts)]
    return [{"role": "system", "content": system}, *said] if system else said


def source(tmp_path, rows, **options):
    return RowSource(path=str(write_lines(tmp_path / "rows.jsonl", rows)), **options)


def compared(tmp_path, row, **options):
    """The only comparison of a row: roles and texts of the prompt, chosen, rejected, strength."""
    (good,), bad = read_comparisons(source(tmp_path, [row], **options), None)
    assert not bad
    prompt = [(message.role, message.content) for message in good.prompt.messages]
    return prompt, good.chosen.text, good.rejected.text, good.strength


def reason(tmp_path, row, **options):
    good, (bad,) = read_comparisons(source(tmp_path, [row], **options), None)
    assert not good
    return bad.reason


def test_every_named_format_is_an_option_and_has_columns() -> None:
    built_in = {"auto", "hh", "oasst", "scores", "template", "records"}
    assert FORMATS.keys() == {*get_args(Format)} - built_in
    assert all(columns.missing() is None for columns in FORMATS.values())


SETS = {
    "ultrafeedback binarized": {
        "prompt": Q,
        "prompt_id": "0",
        "chosen": turns(Q, GOOD),
        "rejected": turns(Q, POOR),
        "messages": turns(Q, GOOD),
        "score_chosen": 8.0,
        "score_rejected": 4.0,
    },
    "trl implicit prompt": {"chosen": turns(Q, GOOD), "rejected": turns(Q, POOR)},
    "argilla": {"instruction": Q, "chosen_response": GOOD, "rejected_response": POOR, "chosen_rating": 4.0},
    "alpaca with preferences": {"instruction": Q, "input": "", "chosen": GOOD, "rejected": POOR},
    "nulls of arrow": {
        "prompt": [{"role": "user", "content": Q, "name": None}],
        "chosen": [{"role": "assistant", "content": GOOD, "tool_calls": None}],
        "rejected": [{"role": "assistant", "content": POOR, "tool_calls": None}],
        "system": None,
    },
    "one message": {"prompt": Q, "chosen": turns(Q, GOOD)[1], "rejected": turns(Q, POOR)[1]},
    "sharegpt": {
        "conversations": [{"from": "human", "value": Q}],
        "chosen": [{"from": "human", "value": Q}, {"from": "gpt", "value": GOOD}],
        "rejected": [{"from": "human", "value": Q}, {"from": "gpt", "value": POOR}],
    },
    "sharegpt with one message": {
        "conversations": [{"from": "human", "value": Q}],
        "chosen": {"from": "gpt", "value": GOOD},
        "rejected": {"from": "gpt", "value": POOR},
    },
    "parts": {
        "prompt": [
            {"role": "user", "content": [{"type": "text", "text": "How do I "}, {"type": "text", "text": Q[9:]}]}
        ],
        "chosen": GOOD,
        "rejected": [{"role": "assistant", "content": [{"type": "text", "text": POOR, "image": None}]}],
    },
    "empty system turn": {
        "chosen": [{"role": "system", "content": " "}, *turns(Q, GOOD)],
        "rejected": [{"role": "system", "content": ""}, *turns(Q, POOR)],
    },
    "helpsteer2": {"prompt": Q, "response_1": GOOD, "response_2": POOR, "preference_strength": -1},
    "helpsteer3": {"context": turns(Q), "response1": POOR, "response2": GOOD, "overall_preference": 1},
    "shp": {"history": Q, "human_ref_A": GOOD, "human_ref_B": POOR, "labels": 1, "score_A": 9},
    "arena": {"conversation_a": turns(Q, POOR), "conversation_b": turns(Q, GOOD), "winner": "model_b", "turn": 1},
    "arena 55k": {
        "prompt": f'["{Q}"]',
        "response_a": f'["{GOOD}"]',
        "response_b": f'["{POOR}"]',
        "winner_model_a": 1,
        "winner_model_b": 0,
        "winner_tie": 0,
    },
    "pku": {"prompt": Q, "response_0": POOR, "response_1": GOOD, "better_response_id": 1, "safer_response_id": 0},
    "webgpt": {"question": {"full_text": Q}, "answer_0": GOOD, "answer_1": POOR, "score_0": 0.5, "score_1": -0.5},
    "summaries": {"info": {"post": Q}, "summaries": [{"text": POOR}, {"text": GOOD}], "choice": 1, "worker": "w"},
    "ultrafeedback": {
        "instruction": Q,
        "completions": [{"response": GOOD, "overall_score": 8.5}, {"response": POOR, "overall_score": 3}],
    },
    "nectar": {
        "prompt": f"\n\nHuman: {Q}\n\nAssistant: ",
        "answers": [{"answer": POOR, "rank": 2.0}, {"answer": GOOD, "rank": 1.0}],
    },
    "generations": {"input": Q, "generations": [GOOD, POOR], "ratings": [5, 1]},
}


@pytest.mark.parametrize("name", SETS)
def test_the_same_comparison_comes_out_of_every_set(tmp_path, name) -> None:
    assert compared(tmp_path, SETS[name]) == ([("user", Q)], GOOD, POOR, 1)
    (prompt,), bad = read_as(source(tmp_path, [SETS[name]]), to_prompt, None)
    assert not bad and prompt.text == Q


@pytest.mark.parametrize("prompt", ["prompt", "question", "instruction", "input"])
def test_a_system_column_is_a_system_turn(tmp_path, prompt) -> None:
    row = {"system": "Be brief.", prompt: Q, "chosen": GOOD, "rejected": POOR}
    assert compared(tmp_path, row) == ([("system", "Be brief."), ("user", Q)], GOOD, POOR, 1)
    assert compared(tmp_path, row | {"system": ""})[0] == [("user", Q)]
    (asked,), _ = read_as(source(tmp_path, [row]), to_prompt, None)
    assert [message.role for message in asked.messages] == ["system", "user"]
    (shown,), _ = read_as(source(tmp_path, [{**row, "response": GOOD}]), to_demonstration, None)
    assert ([m.role for m in shown.messages], shown.completion) == (["system", "user"], GOOD)


def test_a_system_turn_of_the_conversations_stays(tmp_path) -> None:
    row = {"prompt": Q, **{side: turns(Q, text, system="S") for side, text in (("chosen", GOOD), ("rejected", POOR))}}
    assert compared(tmp_path, row)[0] == [("system", "S"), ("user", Q)]
    del row["prompt"]
    assert compared(tmp_path, row | {"system": " S\n"})[0] == [("system", "S"), ("user", Q)]


# --- conversations that part -----------------------------------------------------------------------------------------


def test_of_conversations_that_part_early_the_answers_there_are_compared(tmp_path) -> None:
    row = {"chosen": turns(Q, GOOD, "And then?", "Eat it."), "rejected": turns(Q, POOR, "And then?", "Nothing.")}
    assert compared(tmp_path, row) == ([("user", Q)], GOOD, POOR, 1)
    notes = SourceNotes("comparisons")
    read_comparisons(source(tmp_path, [row, SETS["trl implicit prompt"]]), None, notes)
    assert notes.lines("x") == ["x: 1 conversations go on after the compared answers; later turns are left out"]


def test_a_longer_conversation_is_compared_at_its_last_answer(tmp_path) -> None:
    talk = turns(Q, GOOD, "And then?")
    sides = {"chosen": [*talk, *turns("", "Eat it.")[1:]], "rejected": [*talk, *turns("", "Nothing.")[1:]]}
    wanted = ([(turn["role"], turn["content"]) for turn in talk], "Eat it.", "Nothing.", 1)
    assert compared(tmp_path, sides) == wanted
    for prompt in (Q, "And then?", talk, turns(Q)):
        assert compared(tmp_path, sides | {"prompt": prompt}) == wanted


@pytest.mark.parametrize(
    ("chosen", "rejected", "words"),
    [
        (turns(Q, GOOD, "a?", "b"), turns(Q, GOOD, "other?", "b"), "do not share the same prompt"),
        (turns(Q, GOOD), turns("Other?", GOOD), "do not share the same prompt"),
        (turns(Q, GOOD), turns(Q, GOOD, "a?", "b"), "one conversation, cut at different turns"),
        (turns(Q, GOOD), turns(Q, f" {GOOD}\n"), "are the same"),
        (turns(Q, GOOD), turns(Q, GOOD)[1:], "begins with an assistant turn"),
        (turns(Q, GOOD), [{"role": "tool", "content": "x"}], "the role of a turn is 'tool'"),
        (turns(Q, GOOD), [{"role": "assistant", "content": None, "tool_calls": [1]}], "calls of tools"),
        (turns(Q, GOOD), [{"role": "assistant", "content": [{"type": "image"}]}], "a part of a turn is 'image'"),
    ],
)
def test_conversations_that_cannot_be_compared_are_put_aside(tmp_path, chosen, rejected, words) -> None:
    assert words in reason(tmp_path, {"chosen": chosen, "rejected": rejected})


def test_a_prompt_that_is_not_in_the_conversations_is_told(tmp_path) -> None:
    row = {"prompt": "Other?", "chosen": turns(Q, GOOD), "rejected": turns(Q, POOR)}
    assert "does not contain the prompt" in reason(tmp_path, row)
    assert compared(tmp_path, row, columns={"chosen": "chosen", "rejected": "rejected"})[0] == [("user", Q)]


def test_nemos_markers_part_turns(tmp_path) -> None:
    prompt = f"{Q}\n<extra_id_1>Assistant\n{GOOD}\n<extra_id_1>User\nAnd then?"
    row = {"prompt": prompt, "response_1": "Eat.", "response_2": "?", "preference_strength": -3}
    assert compared(tmp_path, row) == ([("user", Q), ("assistant", GOOD), ("user", "And then?")], "Eat.", "?", 3)


# --- judgements ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "wanted"),
    [(-3, ("a", "b", 3)), (-1, ("a", "b", 1)), (0, ("a", "b", 0)), (2, ("b", "a", 2)), (9, ("b", "a", 3))],
)
def test_a_signed_strength_says_which_is_better_and_how_much(tmp_path, size, wanted) -> None:
    row = {"prompt": Q, "response_1": "a", "response_2": "b", "preference_strength": size}
    assert compared(tmp_path, row, format="helpsteer")[1:] == wanted
    assert compared(tmp_path, row | {"preference_strength": str(size)}, format="helpsteer")[1:] == wanted


@pytest.mark.parametrize(
    ("winner", "wanted"),
    [
        ("model_a", ("a", "b", 1)),
        ("model_b", ("b", "a", 1)),
        ("tie", ("a", "b", 0)),
        ("tie (bothbad)", ("a", "b", 0)),
        ("both_bad", ("a", "b", 0)),
        ("conversation_b", ("b", "a", 1)),
    ],
)
def test_winners_of_the_arena(tmp_path, winner, wanted) -> None:
    row = {"conversation_a": turns(Q, "a"), "conversation_b": turns(Q, "b"), "winner": winner, "judge": "u7"}
    assert compared(tmp_path, row, format="arena")[1:] == wanted
    (good,), _ = read_comparisons(source(tmp_path, [row], format="arena"), None)
    assert good.annotator_id == "u7"
    del row["judge"]
    assert read_comparisons(source(tmp_path, [row], format="arena"), None)[0][0].annotator_id == ""


def test_what_is_chosen_in_pku_is_an_option(tmp_path) -> None:
    row = {"prompt": Q, "response_0": "a", "response_1": "b", "better_response_id": 0, "safer_response_id": 1}
    assert compared(tmp_path, row, format="pku")[1:] == ("a", "b", 1)
    assert compared(tmp_path, row, format="pku", columns={"winner": "safer_response_id"})[1:] == ("b", "a", 1)


def test_columns_of_other_names(tmp_path) -> None:
    row = {"question": {"text": Q}, "sys": "S", "good": GOOD, "bad": POOR, "by": 7, "how": "2"}
    columns = {"prompt": "question.text", "system": "sys", "chosen": "good", "rejected": "bad"}
    prompt = [("system", "S"), ("user", Q)]
    assert compared(tmp_path, row, columns=columns) == (prompt, GOOD, POOR, 1)
    assert compared(tmp_path, row, columns=columns | {"strength": "how"}) == (prompt, GOOD, POOR, 2)
    (good,), _ = read_comparisons(source(tmp_path, [row], columns=columns | {"annotator": "by"}), None)
    assert good.annotator_id == "7"
    pair = {
        "prompt": "question.text",
        "a": "good",
        "b": "bad",
        "winner": "by",
        "a_wins": [7],
        "b_wins": [8],
        "tie": [0],
    }
    assert compared(tmp_path, row, columns=pair)[1:] == (GOOD, POOR, 1)
    assert compared(tmp_path, row | {"by": 8.0}, columns=pair | {"strength": "how"})[1:] == (POOR, GOOD, 2)
    assert compared(tmp_path, row | {"by": "0"}, columns=pair)[1:] == (GOOD, POOR, 0)
    assert "'by' is 'x', which is not among a_wins [7], b_wins [8] or tie [0]" in reason(
        tmp_path, row | {"by": "x"}, columns=pair
    )


def test_a_column_that_is_not_there_is_named_beside_those_that_are(tmp_path) -> None:
    row = {"question": Q, "good": GOOD, "bad": POOR}
    columns = {"prompt": "asked", "chosen": "good", "rejected": "bad"}
    assert reason(tmp_path, row, columns=columns) == "no column 'asked' (prompt) among ['bad', 'good', 'question']"
    words = reason(tmp_path, {"labels": 1, "history": Q}, format="shp")
    assert words == "no column 'human_ref_A' (a) among ['history', 'labels']"


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"prompt": "p", "chosen": "c"}, "columns.chosen needs columns.rejected too"),
        ({"prompt": "p", "a": "x", "b": "y", "winner": ""}, None),
        ({"prompt": "p", "winner": "w"}, "columns.winner needs columns.a too"),
        ({"promt": "p"}, "Extra inputs"),
    ],
)
def test_columns_that_act_only_together(tmp_path, columns, words) -> None:
    if words:
        with pytest.raises(ValidationError, match=words):
            RowSource(path="x", columns=columns)
    else:
        with pytest.raises(ConfigError, match="`columns` holds no comparisons; they need"):
            read_comparisons(source(tmp_path, [{"p": Q}], columns=columns), None)


def test_columns_need_a_format_that_has_them() -> None:
    with pytest.raises(ValidationError, match="no effect on format 'hh'"):
        RowSource(path="x", format="hh", columns=Columns(prompt="p"))
    with pytest.raises(ValidationError, match="Input should be 'auto', 'hh'"):
        RowSource(path="x", format="helpster")  # type: ignore[arg-type]


def test_a_format_without_comparisons_is_refused_as_such(tmp_path) -> None:
    with pytest.raises(ConfigError, match="format 'alpaca' holds no comparisons; they need"):
        read_comparisons(source(tmp_path, [{"instruction": Q, "output": GOOD}], format="alpaca"), None)


# --- demonstrations --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        ({"instruction": Q, "input": "", "output": GOOD}, Q),
        ({"instruction": Q, "input": "It is large.", "output": GOOD}, f"{Q}\n\nIt is large."),
        ({"instruction": Q, "context": "It is large.", "response": GOOD}, f"{Q}\n\nIt is large."),
        ({"conversations": [{"from": "human", "value": Q}, {"from": "gpt", "value": GOOD}], "id": 1}, Q),
        ({"conversation": [{"role": "user", "content": Q, "toxic": False}, *turns("", GOOD)[1:]], "model": "m"}, Q),
        ({"prompt": Q, "completion": turns("", GOOD)[1:]}, Q),
    ],
)
def test_demonstrations_of_other_sets(tmp_path, row, prompt) -> None:
    (good,), bad = read_as(source(tmp_path, [row]), to_demonstration, None)
    assert not bad and [m.content for m in good.messages] == [prompt] and good.completion == GOOD


def test_the_context_of_dolly_belongs_to_the_prompt(tmp_path) -> None:
    row = {"instruction": Q, "context": "It is large.", "response": GOOD}
    (good,), _ = read_as(source(tmp_path, [row], format="dolly"), to_demonstration, None)
    assert good.messages[0].content == f"{Q}\n\nIt is large."


def test_a_chosen_conversation_can_be_a_demonstration(tmp_path) -> None:
    row = SETS["ultrafeedback binarized"]
    (good,), _ = read_as(source(tmp_path, [row], columns={"messages": "rejected"}), to_demonstration, None)
    assert good.completion == POOR


def test_messages_that_end_with_the_user_are_a_prompt(tmp_path) -> None:
    (good,), bad = read_as(source(tmp_path, [{"messages": turns(Q, GOOD, "And then?")}]), to_prompt, None)
    assert not bad and [m.content for m in good.messages] == [Q, GOOD, "And then?"]


# --- columns that nobody reads ---------------------------------------------------------------------------------------


def test_a_column_that_nobody_reads_is_told_once(tmp_path) -> None:
    notes = SourceNotes("comparisons")
    read_comparisons(source(tmp_path, [SETS["shp"], SETS["shp"] | {"domain": "x"}]), None, notes)
    assert notes.formats == {"shp": 2} and notes.unread == {"score_A": 2, "domain": 1}
    assert notes.lines("rows") == ["rows: no option reads 'score_A', 'domain'"]


def test_an_optional_column_that_no_row_has_is_told(tmp_path) -> None:
    notes = SourceNotes("comparisons")
    columns = {"prompt": "prompt", "chosen": "chosen", "rejected": "rejected", "annotator": "wroker"}
    rows = [{"prompt": Q, "chosen": GOOD, "rejected": POOR}] * 2
    assert len(read_comparisons(source(tmp_path, rows, columns=columns), None, notes)[0]) == 2
    assert notes.lines("rows") == ["rows: no row has 'wroker', which `columns` names"]


# --- the files of the cases ------------------------------------------------------------------------------------------

FIRST = [("user", Q)]
BRIEF = [("system", "You are brief."), ("user", Q)]
BOILED = "Put it in boiling water for eight minutes."


@pytest.mark.skipif(not CASES.is_dir(), reason=f"no data at {CASES}")
@pytest.mark.parametrize(
    ("name", "form", "prompt", "rejected", "strength"),
    [
        ("a_ultrafeedback", "auto", FIRST, "No.", 1),
        ("a2_trl", "auto", FIRST, "No.", 1),
        ("b_helpsteer", "helpsteer", FIRST, "No.", 2),
        ("c_shp", "shp", FIRST, "No.", 1),
        ("d_arena", "arena", FIRST, "No.", 1),
        ("e_pku", "pku", FIRST, "No.", 1),
        ("h_extra_keys", "auto", FIRST, "No.", 1),
        ("k2_orca_prompt", "auto", BRIEF, "No.", 1),
        ("k_orca", "orca", BRIEF, "No.", 1),
        ("m_part_early", "auto", FIRST, "No.", 1),
        ("o_ultrafeedback_raw", "ultrafeedback", FIRST, "Maybe.", 1),
    ],
)
def test_the_files_of_the_cases(name, form, prompt, rejected, strength) -> None:
    for chosen_form in dict.fromkeys((form, "auto")):
        good, bad = read_comparisons(RowSource(path=str(CASES / f"formats/{name}.jsonl"), format=chosen_form), None)
        first = good[0]
        assert len(good) == 4 and [(m.role, m.content) for m in first.prompt.messages] == prompt
        assert (first.chosen.text, first.rejected.text, first.strength) == (BOILED, rejected, strength)
        assert len(bad) == (4 if form == "ultrafeedback" else 0)
