"""Projects with Label Studio's own templates, and others of that kind, as comparisons."""

from pathlib import Path
from typing import Any

import pytest

from flows.cli.exchange import ImportFormat, import_judgements
from labeling.errors import TaskError
from labeling.judgements.imports import Imported, import_export
from labeling.judgements.layout import LayoutOptions
from tests.conftest import SHARED_DATA
from tests.labeling.judgements.test_imports import write
from tests.labeling.judgements.test_parse import annotation

CASES = SHARED_DATA.parent / "cases" / "label-studio"
EGG = {"prompt": "How do I boil an egg?", "answer1": "Eight minutes in boiling water.", "answer2": "No."}
ITEMS = [{"id": name, "title": name.upper(), "body": f"Answer {name}."} for name in "abc"]
RANKED = {"prompt": "Which?", "items": ITEMS}
PAIRWISE = """<View><Header value="$ask"/><Pairwise name="pw" toName="one,two"/>
<Text name="one" value="$x"/><Text name="two" value="$y"/></View>"""
RATINGS = """<View><Text name="q" value="$prompt"/><Text name="one" value="$x"/><Text name="two" value="$y"/>
<Rating name="r1" toName="one"/><Rating name="r2" toName="two"/></View>"""


def control(kind: str, name: str, value: Any, to: str = "") -> dict[str, Any]:
    key = "selected" if kind == "pairwise" else kind
    return {"type": kind, "from_name": name, "to_name": to or name, "value": {key: value}}


def row(data: dict[str, Any], *results: Any, number: int = 1) -> dict[str, Any]:
    annotations = [annotation(list(result), 10 * number + i, by=5 + i) for i, result in enumerate(results)]
    return {"id": number, "data": data, "annotations": annotations, "predictions": [{"result": [{"foo": 1}]}]}


def imported(path: Path, *rows: Any, **options: Any) -> Imported:
    return import_export(write(path / "export.json", list(rows)), LayoutOptions(**options) if options else None)


def said(found: Imported) -> list[tuple[str, str, int]]:
    return [(row.chosen.text, row.rejected.text, row.strength) for row in [*found.comparisons, *found.ties]]


def test_the_pairwise_template(tmp_path: Path) -> None:
    left, right = [control("pairwise", "comparison", "left")], [control("pairwise", "comparison", "right")]
    found = imported(tmp_path, row(EGG, left, right, [control("pairwise", "comparison", "both")]))
    a, b = EGG["answer1"], EGG["answer2"]
    assert said(found) == [(a, b, 1), (b, a, 1)]
    assert [(r.annotator_id, r.chosen_first, r.prompt.text) for r in found.comparisons] == [
        ("5", True, EGG["prompt"]),
        ("6", False, EGG["prompt"]),
    ]
    assert found.quarantined[0].reason == "'comparison' holds both"
    assert found.layout == (
        "prompt from prompt, left answer from answer1, right answer from answer2, preference from comparison (pairwise)"
    )


@pytest.mark.parametrize("uid", ["task_17", "task_0123456789ab", "17"])
def test_a_project_of_others_may_have_uids(tmp_path: Path, uid: str) -> None:
    rows = row(EGG | {"uid": uid}, [control("pairwise", "comparison", "left")])
    assert said(imported(tmp_path, rows)) == [(EGG["answer1"], EGG["answer2"], 1)]


def test_the_ranker_template_counts_ranks(tmp_path: Path) -> None:
    orders = [[control("ranker", "rank", {"rank": order})] for order in (["b", "a", "c"], ["a", "b"], ["a", "b", "x"])]
    found = imported(tmp_path, row(RANKED, *orders))
    assert said(found) == [("Answer b.", "Answer a.", 1), ("Answer b.", "Answer c.", 2), ("Answer a.", "Answer c.", 1)]
    assert [row.reason for row in found.quarantined] == [
        "{'rank': ['a', 'b']} is not an order of the task's 3 answers",
        "{'rank': ['a', 'b', 'x']} is not an order of the task's 3 answers",
    ]


def test_buckets_are_an_order_only_if_somebody_says_so(tmp_path: Path) -> None:
    values = [{"bad": ["a"], "good": ["b", "c"]}, {"good": ["c"], "bad": [], "_": ["a", "b"]}, {"good": ["a"], "_": []}]
    rows = row(RANKED, *([control("ranker", "rank", value)] for value in values))
    with pytest.raises(TaskError, match=r"rank has the buckets bad, good.*--buckets best,good,bad"):
        imported(tmp_path, rows)
    found = imported(tmp_path, rows, buckets=("good", "bad"))
    assert said(found) == [("Answer b.", "Answer a.", 1), ("Answer c.", "Answer a.", 1), ("Answer b.", "Answer c.", 0)]
    assert [row.reason for row in found.quarantined] == 2 * ["fewer than two answers are in order"]


@pytest.mark.parametrize(
    ("left", "right", "tie"),
    [("left", "right", "tie"), ("Answer 1", "Answer 2", "Both"), ("A is better", "B is better", "No difference")],
)
def test_choices_between_two_answers_with_ties(tmp_path: Path, left: str, right: str, tie: str) -> None:
    flag = control("choices", "flags", ["spam"], "prompt")
    results = [[control("choices", "better", [choice], "prompt"), flag] for choice in (left, right, tie)]
    found = imported(tmp_path, row(EGG, *results))
    a, b = EGG["answer1"], EGG["answer2"]
    assert said(found) == [(a, b, 1), (b, a, 1), (a, b, 0)]


def test_unclear_choices_are_named_and_can_be_explained(tmp_path: Path) -> None:
    rows = row(EGG, *([control("choices", "verdict", [choice], "prompt")] for choice in ("yes", "no", "hm")))
    with pytest.raises(TaskError, match=r"choices of verdict are yes, no, hm.*--choice 'left=yes'"):
        imported(tmp_path, rows)
    found = imported(tmp_path, rows, choices={"yes": "left", "no": "right", "hm": "none"})
    assert len(found.comparisons) == 2 and found.quarantined[0].reason == "'hm' prefers no answer"
    with pytest.raises(TaskError, match="means left, right, tie or none, not up"):
        imported(tmp_path, rows, choices={"yes": "up", "no": "right", "hm": "none"})


ZERO = {"prompt": "Q?", "response_0": "Zero.", "response_1": "One."}


@pytest.mark.parametrize(
    "choices",
    [("Answer 1", "Answer 2"), ("Response 1", "Response 2"), ("response_0", "response_1"), ("Answer 0", "Answer 1")],
)
def test_choices_for_answers_that_count_from_zero(tmp_path: Path, choices: tuple[str, str]) -> None:
    rows = row(ZERO, *([control("choices", "better", [choice], "prompt")] for choice in choices))
    assert said(imported(tmp_path, rows)) == [("Zero.", "One.", 1), ("One.", "Zero.", 1)]


def test_a_choice_that_counts_from_zero_or_from_one_is_not_guessed(tmp_path: Path) -> None:
    rows = row(ZERO, [control("choices", "better", ["Answer 1"], "prompt")])
    reason = r"'Answer 1' is response_1 if the choices count from 0 .* response_0 if .*--choice 'left=Answer 1'"
    with pytest.raises(TaskError, match=reason):
        imported(tmp_path, rows)
    assert said(imported(tmp_path, rows, choices={"Answer 1": "right"})) == [("One.", "Zero.", 1)]
    config = '<View><Choices name="better" toName="prompt">{}</Choices></View>'
    for other, winner in (("Answer 2", "Zero."), ("Answer 0", "One.")):
        screen = config.format(f'<Choice value="Answer 1"/><Choice value="{other}"/>')
        ((chosen, _, _),) = said(imported(tmp_path, rows, label_config=screen))
        assert chosen == winner
    for choices in (("response_1", "response_2"), ("Answer 0", "Answer 1", "Answer 2")):
        several = row(ZERO, *([control("choices", "better", [choice], "prompt")] for choice in choices))
        with pytest.raises(TaskError, match="--choice"):
            imported(tmp_path, several)


def test_ratings_of_each_answer(tmp_path: Path) -> None:
    data = {"prompt": "Q?", "x": "One.", "y": "Two."}
    stars = [(5, 2), (1, 2), (3, 3), (4, None)]
    results = [
        [
            control("rating", f"r{i}", value, to)
            for i, (value, to) in enumerate(zip(pair, ("one", "two"), strict=True), 1)
        ]
        for pair in stars
    ]
    with pytest.raises(TaskError, match=r"no field one; they have prompt, x, y.*--label-config"):
        imported(tmp_path, row(data, *results))
    found = imported(tmp_path, row(data, *results), label_config=RATINGS)
    assert said(found) == [("One.", "Two.", 1), ("Two.", "One.", 1), ("One.", "Two.", 0)]
    assert found.quarantined[0].reason == "y has no rating in 'r2'"


def test_the_label_config_names_sides_and_prompt(tmp_path: Path) -> None:
    data = {"note": "n", "x": "One.", "ask": "Q?", "y": "Two."}
    rows = row(data, [control("pairwise", "pw", "right")])
    with pytest.raises(TaskError, match=r"two answers is unclear; the tasks have note, x, ask, y"):
        imported(tmp_path, rows)
    assert said(imported(tmp_path, rows, label_config=PAIRWISE)) == [("Two.", "One.", 1)]
    assert said(imported(tmp_path, rows, columns={"prompt": "ask", "left": "y", "right": "x"})) == [("One.", "Two.", 1)]
    with pytest.raises(TaskError, match="no field z; they have note, x, ask, y"):
        imported(tmp_path, rows, columns={"prompt": "ask", "left": "y", "right": "z"})
    with pytest.raises(TaskError, match="columns: lft is unknown"):
        imported(tmp_path, rows, columns={"lft": "y"})
    with pytest.raises(TaskError, match="the label config is not XML"):
        imported(tmp_path, rows, label_config="<View")
    with pytest.raises(TaskError, match="shows Image; only texts"):
        imported(tmp_path, rows, label_config=PAIRWISE.replace("<Text", "<Image"))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (
            {"task": "Q?", "answer1": "a", "answer2": "b"},
            r"which field is the prompt is unclear; the tasks have task, ans",
        ),
        ({"prompt": "Q?", "question": "Q", "answer1": "a", "answer2": "b"}, "which field is the prompt is unclear"),
        (EGG | {"answer3": "c"}, r"two answers is unclear; the tasks have prompt, answer1, answer2, answer3"),
        (EGG | {"text1": "a", "text2": "b"}, "two answers is unclear"),
        ({"prompt": "Q?", "source1": "a", "source2": "b"}, "two answers is unclear"),
    ],
)
def test_unclear_fields_are_named(tmp_path: Path, data: dict[str, str], reason: str) -> None:
    with pytest.raises(TaskError, match=reason):
        imported(tmp_path, row(data, [control("pairwise", "comparison", "left")]))


def test_which_control_has_the_preference(tmp_path: Path) -> None:
    both = [control("pairwise", "side", "left"), control("choices", "verdict", ["right"], "prompt")]
    with pytest.raises(TaskError, match=r"unclear: .*side \(pairwise\), verdict \(choices\); name it with --control"):
        imported(tmp_path, row(EGG, both))
    assert said(imported(tmp_path, row(EGG, both), control="verdict")) == [(EGG["answer2"], EGG["answer1"], 1)]
    with pytest.raises(TaskError, match="no annotation has the control other"):
        imported(tmp_path, row(EGG, both), control="other")
    with pytest.raises(TaskError, match="the annotations have the controls none"):
        imported(tmp_path, row(EGG))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"answer2": None}, "two answers or more"),
        ({"answer2": " "}, "two answers or more"),
        ({"answer2": EGG["answer1"]}, "the same text"),
        ({"prompt": ["x"]}, "neither a text nor a list of turns"),
        ({"prompt": [{"role": "robot", "content": "x"}]}, "speaker 'robot'"),
        ({"prompt": [{"role": "assistant", "content": "x"}]}, "must not end with an assistant turn"),
    ],
)
def test_rows_without_two_answers_or_a_prompt_are_put_aside(tmp_path: Path, change: Any, reason: str) -> None:
    left = [control("pairwise", "comparison", "left")]
    found = imported(tmp_path, row(EGG, left), row(EGG | change, left, number=2), 7)
    assert len(found.comparisons) == 1
    assert [bad.line for bad in found.quarantined] == [2, 3] and reason in found.quarantined[0].reason


def test_a_conversation_is_a_prompt(tmp_path: Path) -> None:
    turns = [{"author": "Human", "text": "Hi."}, {"author": "Bot", "text": "Hello."}, {"author": "Human", "text": "Q?"}]
    found = imported(tmp_path, row(EGG | {"prompt": turns}, [control("pairwise", "c", "left")]))
    assert [m.role for m in found.comparisons[0].prompt.messages] == ["user", "assistant", "user"]


def test_the_same_task_in_two_rows_is_one(tmp_path: Path) -> None:
    left = [control("pairwise", "c", "left")]
    found = imported(tmp_path, row(EGG, left), row(EGG, left, left, number=2))
    assert len({row.task_uid for row in found.comparisons}) == 1
    assert [(row.annotator_id, row.annotation_id) for row in found.comparisons] == [("5", "20"), ("6", "21")]


def test_the_command_tells_the_layout(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(
        tmp_path / "export.json", [row({"q": "Q?", "x": "One.", "y": "Two."}, [control("pairwise", "c", "left")])]
    )
    import_judgements(path, tmp_path / "out", ImportFormat.label_studio, columns="prompt=q, left=x,right=y")
    assert "prompt from q, left answer from x, right answer from y" in capsys.readouterr().out
    assert len((tmp_path / "out" / "comparisons.jsonl").read_text().splitlines()) == 1


@pytest.mark.skipif(not CASES.is_dir(), reason=f"no cases in {CASES}")
@pytest.mark.parametrize("name", ["pairwise_template", "ranker_template"])
def test_templates_that_people_really_have(name: str) -> None:
    found = import_export(CASES / f"{name}.json")
    assert said(found) == [("Eight minutes in boiling water.", "No.", 1), ("Lima.", "Bogota.", 1)]
    assert {row.annotator_id for row in found.comparisons} == {"1"} and not found.quarantined
