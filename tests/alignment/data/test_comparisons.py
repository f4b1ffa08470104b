"""Judgements split by prompt and by annotator: every row in exactly one split."""

from pathlib import Path

import pytest

from alignment.config.stages import ComparisonsConfig, RowSource
from alignment.data.comparisons import aggregated, build_comparisons, choose_annotators, split_comparisons
from alignment.errors import DataError
from alignment.journal import Journal
from alignment.records import Comparison, Message, Prompt, Response, read_records, write_records
from tests.alignment.tiny_world import comparison, write, write_lines

CREW = ("ann", "ben", "cy", "dot")
# every prompt is judged by two of four people; every tenth judgement is a tie
ROWS = [
    comparison(f"q{i}", "good", "bad", annotator_id=CREW[(i + k) % 4], strength=0 if (2 * i + k) % 10 == 0 else 1)
    for i in range(40)
    for k in (0, 1)
]
PARTS = ("train", "heldout_prompts", "heldout_annotators", "aside")


def split(rows=ROWS, seed=0, **options):
    return split_comparisons(rows, ComparisonsConfig(**options), seed)


def asked(rows) -> set[str]:
    return {row.prompt.id for row in rows}


def people(rows) -> set[str]:
    return {row.annotator_id for row in rows}


@pytest.mark.parametrize("seed", range(5))
def test_prompts_are_on_one_side_and_no_judgement_is_lost(seed) -> None:
    parts = split(seed=seed, heldout_share=0.3)
    assert not asked(parts.train) & (asked(parts.heldout_prompts) | asked(parts.heldout_annotators))
    together = [row.id for name in PARTS for row in getattr(parts, name)]
    assert sorted(together) == sorted(row.id for row in ROWS)


@pytest.mark.parametrize("seed", range(5))
def test_a_held_out_annotator_is_in_one_test_alone(seed) -> None:
    parts = split(seed=seed, heldout_share=0.3)
    (held,) = choose_annotators(ROWS, 1, seed)
    assert people(parts.heldout_annotators) == {held}
    assert held not in people(parts.train) | people(parts.heldout_prompts)
    # of 40 prompts 12 are held out, and each person judged 20: all 12 can be prompts that the held-out one judged
    assert len(asked(parts.heldout_prompts) | asked(parts.heldout_annotators)) <= 12
    assert len(asked([r for r in ROWS if r.annotator_id == held]) & asked(parts.heldout_annotators)) >= 9


@pytest.mark.parametrize("senior", ["ann", "ben", "cy"])
def test_prompts_that_a_senior_decided_alone_leave_the_others_their_test(senior) -> None:
    """Half of the prompts went to a senior, whose judgement replaced the others'. Whoever is held out, the others' test
    has rows; the held-out one's has none if that is the senior, who shares no prompt with anybody."""
    others = {"ann", "ben", "cy"} - {senior}
    rows = [
        comparison(f"q{i}", "good", "bad", annotator_id=who)
        for i in range(8)
        for who in ({senior} if i % 2 else others)
    ]
    parts, held = split(rows, heldout_share=0.4), choose_annotators(rows, 1, 0)
    assert parts.train and people(parts.heldout_prompts) == others - held
    assert people(parts.heldout_annotators) == held or held == {senior}


def test_ties_are_set_aside_and_nothing_else_but_what_the_held_out_said_elsewhere() -> None:
    parts = split(heldout_share=0.3)
    (held,) = choose_annotators(ROWS, 1, 0)
    ties = [row for row in parts.aside if row.strength == 0]
    assert len(ties) == sum(row.strength == 0 for row in ROWS) == 8
    others = [row for row in parts.aside if row.strength]
    assert people(others) == {held} and not asked(others) & asked(parts.heldout_annotators)
    assert all(row.strength for name in PARTS[:3] for row in getattr(parts, name))


def test_without_annotators_a_hash_of_the_prompt_decides_whatever_else_is_there() -> None:
    rows = [comparison(f"q{i}", "good", "bad") for i in range(400)]
    parts, fewer = split(rows, heldout_share=0.25), split(rows[:200], heldout_share=0.25)
    assert not parts.heldout_annotators and not parts.aside
    assert 70 <= len(parts.heldout_prompts) <= 130  # 100 ± 3.5 standard deviations of √(400·¼·¾) = 8.7
    assert asked(fewer.heldout_prompts) == asked(parts.heldout_prompts) & asked(rows[:200])
    assert split(rows, heldout_share=0.25) == parts
    assert asked(split(rows, seed=1, heldout_share=0.25).heldout_prompts) != asked(parts.heldout_prompts)


@pytest.mark.parametrize(("crew", "wanted", "held"), [(4, 1, 1), (4, 3, 1), (6, 3, 2), (2, 1, 0), (0, 1, 0), (9, 0, 0)])
def test_never_more_than_a_third_of_the_annotators_is_held_out(crew, wanted, held) -> None:
    rows = [comparison(f"q{i}", "a", "b", annotator_id=f"a{i}") for i in range(crew)] or [comparison("q", "a", "b")]
    assert len(choose_annotators(rows, wanted, 0)) == held


@pytest.mark.parametrize("first", [8, 97])
def test_the_same_person_is_held_out_wherever_a_server_begins_to_count(first) -> None:
    def places(start: int) -> list[set[int]]:
        rows = [comparison(f"q{i}", "a", "b", annotator_id=str(start + i)) for i in range(6)]
        return [{int(name) - start for name in choose_annotators(rows, 1, seed)} for seed in range(6)]

    assert places(first) == places(2)


def test_the_stage_writes_its_parts_and_counts_them(tmp_path) -> None:
    labelled = write(tmp_path / "in" / "comparisons.jsonl", ROWS) / "comparisons.jsonl"
    out = tmp_path / "out"
    counts = build_comparisons(ComparisonsConfig(heldout_share=0.3), out, Journal(out), seed=0, labelled=labelled)
    parts = split(heldout_share=0.3)
    for name in PARTS[:3]:
        assert read_records(out / f"{name}.jsonl", Comparison)[0] == getattr(parts, name)
        assert counts[name] == len(getattr(parts, name))
    assert (counts["comparisons"], counts["prompts"], counts["annotators"], counts["ties"]) == (80, 40, 4, 8)


def test_comparisons_of_others_are_read_and_bad_rows_counted(tmp_path) -> None:
    rows = [{"prompt": f"q{i}", "chosen": "a", "rejected": "b"} for i in range(30)] + [{"prompt": "q"}]
    source = RowSource(path=str(write_lines(tmp_path / "rows.jsonl", rows)))
    counts = build_comparisons(ComparisonsConfig(sources=(source,)), tmp_path, Journal(tmp_path), seed=0)
    assert (counts["comparisons"], counts["rejected"], counts["annotators"]) == (30, 1, 0)
    with pytest.raises(DataError, match=r"1 of 31 rows .* line 31"):
        strict = ComparisonsConfig(sources=(source,), max_rejected_share=0.01)
        build_comparisons(strict, tmp_path, Journal(tmp_path), seed=0)


def test_too_few_comparisons_to_test_on_are_an_error_in_words(tmp_path) -> None:
    labelled = write(tmp_path / "comparisons.jsonl", [comparison("q", "a", "b")]) / "comparisons.jsonl"
    with pytest.raises(DataError, match="1 comparisons leave"):
        build_comparisons(ComparisonsConfig(), tmp_path / "o", Journal(tmp_path / "o"), seed=0, labelled=labelled)


def vote(chosen: str, by: str, weight: float = 1.0, other: str = "") -> Comparison:
    """`by` prefers `chosen` of the responses a and b (or of `other`)."""
    rejected = other or ("b" if chosen == "a" else "a")
    prompt = Prompt(id="p", messages=(Message(role="user", content="?"),))
    sides = {name: Response(id=name, text=f"answer {name}") for name in (chosen, rejected)}
    return Comparison(
        id=f"c-{chosen}-{rejected}-{by}",
        prompt=prompt,
        chosen=sides[chosen],
        rejected=sides[rejected],
        weight=weight,
        annotation_id=f"1{by}",
        annotator_id=by,
    )


def test_majority_by_weight() -> None:
    said = [vote("a", "1", 0.5), vote("a", "2", 0.4), vote("b", "3", 1.6), vote("c", "1", other="d")]
    first, second = aggregated(said, "majority")
    assert (first.chosen.id, first.weight, first.annotator_id) == ("b", 1.0, "3") and second.id == said[3].id
    (joined,) = aggregated([vote("a", "1"), vote("a", "2"), vote("b", "3")], "majority")
    assert (joined.chosen.id, joined.annotator_id, joined.annotation_id) == ("a", "1,2", "11,12")
    assert aggregated([vote("a", "1"), vote("b", "2")], "majority") == []
    shown = [vote("a", by).model_copy(update={"chosen_first": by < "3", "task_uid": f"t{by}"}) for by in "123"]
    assert [aggregated(shown[:n], "majority")[0].chosen_first for n in (2, 3)] == [True, None]
    for ours, theirs, decided in ((1.0, 0.5, True), (1.2, 0.8, False), (0.4, 0.0, False), (0.0, 0.5, True)):
        some = [vote("a", "1", ours), vote("b", "2", theirs)]  # a lead of half a judgement decides
        assert bool(aggregated(some, "majority")) == decided
    assert aggregated(shown, "soft")[0].task_uid == "t1,t2,t3"
    assert aggregated(said, "each") == said


def test_soft_labels_by_hand() -> None:
    # shares 3/4 and 1/4 of one pair, 1 of the other: sum 2 over three rows, so each times 3/2
    said = [vote("a", "1", 1.5), vote("b", "2", 0.5), vote("c", "1", other="d")]
    found = {(row.chosen.id, row.rejected.id): row.weight for row in aggregated(said, "soft")}
    assert found == pytest.approx({("a", "b"): 1.125, ("b", "a"): 0.375, ("c", "d"): 1.5})


def test_weights_are_used_when_asked_for(tmp_path: Path) -> None:
    rows = [row.model_copy(update={"weight": 0.0 if row.annotator_id == "ann" else 1.5}) for row in ROWS]
    write_records(tmp_path / "in.jsonl", rows)
    found = {}
    for weights in ("none", "reliability"):
        out = tmp_path / weights
        out.mkdir()
        config = ComparisonsConfig(weights=weights, heldout_annotators=0)  # type: ignore[arg-type]
        build_comparisons(config, out, Journal(out), seed=0, labelled=tmp_path / "in.jsonl")
        found[weights] = {row.weight for row in read_records(out / "train.jsonl", Comparison)[0]}
    assert found == {"none": {1.0}, "reliability": {1.5}}


def test_columns_that_nobody_reads_are_in_the_notes_of_the_stage(tmp_path) -> None:
    rows = [{"prompt": f"q{n}", "chosen": "a", "rejected": "b", "score_chosen": 7} for n in range(20)]
    sources = (RowSource(path=str(write_lines(tmp_path / "rows.jsonl", rows))),)
    out = tmp_path / "out"
    build_comparisons(ComparisonsConfig(sources=sources), out, Journal(out), seed=0)
    assert (out / "notes" / "sources.txt").read_text() == f"{sources[0].path}: no option reads 'score_chosen'\n"
