"""Answers that were cut off at the limit of tokens: marked on the screen, and known in the comparisons."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import pytest
from playwright.sync_api import Locator, expect

from alignment.records import Response, ResponseSet
from labeling.collection import open_adjudication, pull_collection
from labeling.config import LabelingConfig, PairwiseTasks, RankingTasks
from labeling.judgements.imports import import_export, task_of
from labeling.quality.screening import Dispute
from labeling.screens.render import screen
from labeling.server.client import LabelStudio
from labeling.tasks.tasks import CUT_OFF, Task, is_cut_off, make_task
from tests.labeling.browser import logged_in
from tests.labeling.helpers import open_sets, response_set
from tests.labeling.judgements.test_imports import write
from tests.labeling.judgements.test_parse import RANKED, annotation, exported, preference, ranker

Ended = bool | None


def ended_set(number: int, ended: Sequence[Ended]) -> ResponseSet:
    row = response_set(number)
    responses = tuple(r.model_copy(update={"ended": e}) for r, e in zip(row.responses, ended, strict=False))
    return row.model_copy(update={"responses": responses})


def task(kind: Literal["pairwise", "ranking"], *ended: Ended) -> Task:
    row = ended_set(3, ended)
    return make_task(kind, row.prompt, row.responses, 0)


@pytest.mark.parametrize("kind", ["pairwise", "ranking"])
def test_only_a_task_with_an_answer_that_was_cut_off_is_another_one(kind: Literal["pairwise", "ranking"]) -> None:
    unknown, ended, cut = task(kind, None, None), task(kind, True, True), task(kind, True, False)
    assert unknown.uid == ended.uid != cut.uid
    assert unknown.data == ended.data and CUT_OFF not in str(unknown.data)
    assert str(cut.data).count(CUT_OFF) == 1 and (cut.cut_off, ended.cut_off) == (True, False)


def test_the_mark_is_at_the_answer_and_not_in_its_text() -> None:
    pair = task("pairwise", False, True)
    for side, response in zip("ab", pair.responses.values(), strict=True):
        assert pair.data[f"response_{side}"] == response.text
        assert pair.data[f"{side}_cut"] == ([CUT_OFF] if response.ended is False else [])
    ranking = task("ranking", False, True, None)
    for item, response in zip(ranking.data["responses"], ranking.responses.values(), strict=True):
        assert item["body"] == response.text and is_cut_off(item) == (response.ended is False)


def test_an_export_knows_which_answers_were_cut_off(tmp_path: Path) -> None:
    pair, ranking = task("pairwise", False, True), task("ranking", False, True, None)
    rows = [
        *exported(pair, annotation([preference("a_1")], 1)),
        *exported(ranking, annotation([ranker(list(ranking.shown)), RANKED], 2)),
    ]
    found = import_export(write(tmp_path / "export.json", rows))
    texts = {
        response.text for response in (*pair.responses.values(), *ranking.responses.values()) if not response.ended
    }
    cut = {r.text: r.ended for row in found.comparisons for r in (row.chosen, row.rejected)}
    assert not found.quarantined and {*cut.values()} == {None, False}
    assert {text for text, ended in cut.items() if ended is False} <= texts
    assert task_of(rows[0]).data == pair.data


def text_of(answer: Locator) -> str:
    """The text of an answer with what a style adds at its end."""
    added = "e => [...e.querySelectorAll('p:has(em)')].map(p => getComputedStyle(p, '::after').content).join('')"
    return (answer.inner_text().strip() + answer.evaluate(added).strip('"')).strip()


@pytest.mark.server
@pytest.mark.browser
def test_people_see_where_an_answer_was_cut_off(owner: LabelStudio, tmp_path: Path) -> None:
    """Also beside tasks without such answers, in the same project; comparisons have `ended` again."""
    config = LabelingConfig(
        title="cut off",
        rankings=RankingTasks(prompts=2, overlap=1),
        pairwise=PairwiseTasks(prompts=2, overlap=1),
    )
    cut, whole = (True, False, True), (None, None, None)
    sets = [ended_set(n, cut[: 2 + (n < 3)] if n % 2 else whole) for n in (1, 2, 3, 4)]
    sets[2] = sets[2].model_copy(update={"responses": ended_set(3, (False, True)).responses})
    opened = open_sets(owner, config, sets, tmp_path)
    shown_as_cut = 0
    with logged_in(owner) as page:
        for batch in opened.batches:
            for uid, task_id in batch.task_ids.items():
                page.goto(f"{owner.url}/projects/{batch.project.id}/data?task={task_id}")
                answers = page.locator(".answer" if batch.project.kind == "pairwise" else ".htx-ranker-item")
                of_task = opened.tasks[uid]
                cut_texts = [response.text for response in of_task.responses.values() if response.ended is False]
                expect(answers).to_have_count(len(of_task.responses), timeout=60_000)
                marked = answers.filter(has_text=CUT_OFF)
                expect(marked).to_have_count(len(cut_texts), timeout=60_000)
                for text in cut_texts:
                    expect(marked).to_contain_text(text)
                    assert text_of(marked).endswith(CUT_OFF)
                shown_as_cut += len(cut_texts)
    assert shown_as_cut == 2
    for batch in opened.batches:
        for of_task in batch.tasks:
            result = [preference("a_2")] if of_task.kind == "pairwise" else [ranker(list(of_task.shown)), RANKED]
            owner.annotate(batch.task_ids[of_task.uid], result, 3.0)
    pulled = pull_collection(owner, opened)
    sides: dict[str, Response] = {r.id: r for row in pulled.comparisons for r in (row.chosen, row.rejected)}
    assert not pulled.quarantined and sum(response.ended is False for response in sides.values()) == 2
    uncut = next(t for t in opened.tasks.values() if t.kind == "pairwise" and not t.cut_off)
    fields = {"distance": 6.0, "prompt": "", "annotation_ids": (), "annotator_ids": ()}
    disputed = [Dispute(task_uid=uncut.uid, kind="pairwise", **fields)]  # type: ignore[arg-type]
    final = open_adjudication(owner, config, opened, disputed, tmp_path / "final")
    assert final.batches[0].project.screen_hash == screen("pairwise").hash
