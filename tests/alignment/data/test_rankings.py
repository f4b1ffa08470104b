"""External rankings and scores become all pairs; invalid rows are reported with line and reason."""

from collections import Counter

import pytest

from alignment.config.stages import RowSource
from alignment.data.readers import read_as, read_comparisons, to_demonstration, to_prompt
from tests.alignment.tiny_world import user, write_lines
from tests.conftest import SHARED_DATA

OASST = SHARED_DATA / "oasst-en100" / "en_100_tree.jsonl"
HH = SHARED_DATA / "hh-rlhf-harmless-test" / "harmless-base_test.jsonl.gz"


def read(tmp_path, rows, form):
    return read_comparisons(RowSource(path=str(write_lines(tmp_path / "rows.jsonl", rows)), format=form), None)


def reply(text, rank=None, replies=(), **more):
    return {"role": "assistant", "text": text, "replies": list(replies), "rank": rank, "message_id": text, **more}


def asked(text, *replies, **more):
    return {"role": "prompter", "text": text, "replies": list(replies), "message_id": text, **more}


def pairs(rows):
    return [(row.chosen.text, row.rejected.text, row.strength) for row in rows]


# --- trees -----------------------------------------------------------------------------------------------------------


def test_siblings_make_all_pairs_under_the_turns_that_lead_to_them(tmp_path) -> None:
    deeper = asked("And then?", reply("Home.", 1), reply("To bed.", 0))
    tree = {"message_tree_id": "t", "prompt": asked("Who?", reply("Bo", 1, [deeper]), reply("Ada", 0), reply("Cy", 2))}
    good, bad = read(tmp_path, [tree], "oasst")
    assert not bad
    assert pairs(good) == [("Ada", "Bo", 1), ("Ada", "Cy", 2), ("Bo", "Cy", 1), ("To bed.", "Home.", 1)]
    assert [message.content for message in good[3].prompt.messages] == ["Who?", "Bo", "And then?"]
    assert [message.role for message in good[3].prompt.messages] == ["user", "assistant", "user"]
    assert good[0].annotation_id == "rows.jsonl:1:Who?" and good[3].annotation_id == "rows.jsonl:1:And then?"
    assert len({row.id for row in good}) == 4


def test_equal_ranks_are_ties_and_strength_ends_at_three(tmp_path) -> None:
    replies = [reply(name, rank) for name, rank in zip("abcdef", (0, 0, 1, 2, 3, 9), strict=True)]
    tree = {"prompt": asked("Who?", *replies)}
    good, _ = read(tmp_path, [tree], "oasst")
    assert len(good) == 15  # 6·5/2
    assert Counter(row.strength for row in good) == {0: 1, 1: 5, 2: 4, 3: 5}  # distances in places 0 0 1 2 3 4
    assert [row.chosen.text + row.rejected.text for row in good if not row.strength] == ["ab"]


def test_what_is_wrong_in_a_tree_is_put_aside_alone(tmp_path) -> None:
    below = asked("lost", reply("x", 0), reply("y", 1))
    replies = [
        reply("a", 0),
        reply("b", 1),
        reply("c"),
        reply(" ", 2, [below]),
        reply("d", 3, deleted=True),
        "e",
        reply("a", 4),
        reply("f", True),
        asked("g"),
    ]
    good, bad = read(tmp_path, [{"prompt": asked("Who?", *replies)}], "oasst")
    assert pairs(good) == [("a", "b", 1)]
    assert Counter(row.reason for row in bad) == {
        "a reply without a rank among several": 2,
        "an empty assistant message": 1,
        "a deleted message": 1,
        "expected a message of role assistant with `text`": 2,
        "two replies to a message are the same": 1,
    }
    (empty,) = (row for row in bad if "empty" in row.reason)
    assert empty.line == 1 and empty.row["replies"] == [below]  # nothing is lost


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "Who?"}, "no tree"),
        ({"messages": []}, "no tree"),
        ({"prompt": reply("Ada", 0)}, "expected a message of role prompter"),
        ({"prompt": asked("Who?") | {"replies": "none"}}, "`replies` is not a list"),
        ({"prompt": asked("Who?", reply("a", 0) | {"replies": 3})}, "`replies` is not a list"),
        (["Who?"], "expected an object, not list"),
    ],
)
def test_a_row_that_is_no_tree_is_rejected(tmp_path, row, reason) -> None:
    good, (bad,) = read(tmp_path, [{"prompt": asked("Q", reply("a", 0), reply("b", 1))}, row], "oasst")
    assert len(good) == 1 and bad.line == 2 and reason in bad.reason


def test_a_tree_is_a_prompt_and_its_best_first_reply_a_demonstration(tmp_path) -> None:
    tree = {"prompt": asked("Who?", reply("Bo", 1), reply("Ada", 0))}
    file = write_lines(tmp_path / "t.jsonl", [tree, {"prompt": asked("?", reply("x"))}])
    source = RowSource(path=str(file), format="oasst")
    (written,), (unranked,) = read_as(source, to_demonstration, None)
    assert (written.messages, written.completion) == (user("Who?"), "Ada")
    assert unranked.line == 2 and "ranked best" in unranked.reason
    assert [prompt.text for prompt in read_as(source, to_prompt, None)[0]] == ["Who?", "?"]


# --- scores ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Q?", "responses": ["a", "b", "c"], "scores": [1, 7.5, 1]},
        {
            "instruction": "Q?",
            "completions": [
                {"response": text, "overall_score": score, "model": "m"}
                for text, score in (("a", 1), ("b", 7.5), ("c", 1))
            ],
        },
        {
            "prompt": [{"role": "user", "content": "Q?"}],
            "answers": [{"text": text, "score": score} for text, score in (("a", 1), ("b", 7.5), ("c", 1))],
        },
    ],
)
def test_scores_make_all_pairs_and_ties_are_marked(tmp_path, row) -> None:
    good, bad = read(tmp_path, [row], "scores")
    assert not bad and {one.prompt.messages for one in good} == {user("Q?")}
    assert pairs(good) == [("b", "a", 1), ("b", "c", 1), ("a", "c", 0)]
    assert good[0].annotation_id == "rows.jsonl:1"


def test_a_response_without_a_score_is_put_aside_and_the_others_count(tmp_path) -> None:
    scored = [("a", 1), ("b", None), ("c", "9"), ("d", True), (" ", 2), ("a ", 3), (5, 1), ("e", 2)]
    row = {"prompt": "Q?", "responses": [{"text": text, "score": score} for text, score in scored]}
    good, bad = read(tmp_path, [row], "scores")
    assert pairs(good) == [("c", "e", 1), ("c", "a", 2), ("e", "a", 1)]  # "9" is a number
    assert Counter(one.reason for one in bad) == {
        "a response without 'score'": 1,
        "the score of a response is not a number but True": 1,
        "an empty response": 1,
        "two responses to a prompt are the same": 1,
        "a response is not text but int": 1,
    }


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"responses": ["a"], "scores": [1]}, "no prompt: none of prompt, instruction, question"),
        ({"prompt": "Q?"}, "no responses: none of"),
        ({"prompt": "Q?", "responses": "ab"}, "not a list but str"),
        ({"prompt": "Q?", "responses": ["a", "b"], "scores": [1]}, "not a list of the same length"),
        ({"prompt": "Q?", "responses": ["a"], "scores": [1]}, "fewer than two usable responses"),
        ({"prompt": " ", "responses": ["a", "b"], "scores": [1, 2]}, "an empty user turn"),
        (
            {"prompt": "Q?", "responses": [{"score": 1}, {"text": "b", "score": 2}]},
            "no text: no 'text' among ['score']",
        ),
    ],
)
def test_a_row_without_scores_is_rejected(tmp_path, row, reason) -> None:
    good, bad = read(tmp_path, [row], "scores")
    assert not good and reason in bad[0].reason and bad[0].line == 1


# --- files of others -------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not OASST.is_file(), reason=f"no data at {OASST}")
def test_open_assistants_hundred_trees_are_754_pairs() -> None:
    good, bad = read_comparisons(RowSource(path=str(OASST), format="oasst"), None)
    assert len(good) == len({row.id for row in good}) == 754
    assert len({row.prompt.id for row in good}) == 212
    assert Counter(row.reason for row in bad) == {"a reply without a rank among several": 6}


@pytest.mark.skipif(not HH.is_file(), reason=f"no data at {HH}")
def test_anthropics_transcripts_are_2303_pairs_and_nine_broken_rows() -> None:
    good, bad = read_comparisons(RowSource(path=str(HH), format="hh"), None)
    assert len(good) == 2303
    assert Counter(row.reason for row in bad) == {
        "chosen and rejected do not share the same prompt": 5,
        "an empty response": 4,
    }
