"""The status page: content, escaping, and rendering in Chromium, light and dark."""

import random
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from labeling.reports.figures import progress_chart
from labeling.reports.guidelines import periods
from labeling.reports.page import status_page
from labeling.reports.report import Plan, reports
from labeling.reports.today import Item, facts, today
from labeling.screens.guidelines import shipped
from labeling.screens.render import screen
from labeling.simulation.crew import pairwise_result, ranking_result
from labeling.store.store import Store
from labeling.store.versions import SeenProject, Sync
from labeling.tasks.tasks import build_tasks
from tests.labeling.browser import chromium
from tests.labeling.helpers import response_set
from tests.labeling.screens.test_browser import luminance

START = datetime(2026, 3, 2, 9, tzinfo=UTC)
EVIL = "<script>document.title = 'executed'</script> $\\frac{x"
NAMES = [EVIL, "Ada Krüger ada@example.org", "佐藤 花子 hanako@example.org", "Omar o@example.org", "Kim k@example.org"]


def annotation(number: int, task: int, person: int, result: list[Any], seconds: float) -> dict[str, Any]:
    when = f"{START + timedelta(minutes=7 * number):%Y-%m-%dT%H:%M:%S.000000Z}"
    return {
        "id": number,
        "task": task,
        "result": result,
        "completed_by": person,
        "was_cancelled": number % 29 == 0,
        "created_at": when,
        "updated_at": when,
        "lead_time": seconds,
        "created_username": f" {NAMES[person]}, {person}",
    }


def filled(store: Store, tasks: int = 40) -> None:
    """Four who mostly agree judge rankings, and one who leaves each as it was shown; a pairwise project is new."""
    rng, number = random.Random(0), 0
    ranked, _ = build_tasks("ranking", [response_set(n) for n in range(tasks)], 0)
    rows = []
    for place, task in enumerate(ranked, start=1):
        said = []
        for person in rng.sample(range(5), 3):
            number += 1
            order = sorted(task.shown, key=lambda one: len(task.responses[one].text) + rng.gauss(0, 12))
            result = ranking_result(task.shown if person == 3 else order)
            said.append(annotation(number, place, person, result, 4.0 if person == 3 else rng.uniform(60, 240)))
        stamp = max((one["updated_at"] for one in said), default="2026-03-02T09:00:00Z")
        rows.append({"id": place, "data": task.data, "updated_at": stamp, "annotations": said if place < 31 else []})
    end = START + timedelta(hours=12)
    record(store, 1, "town & country <b> ranking", rows, end)
    paired, _ = build_tasks("pairwise", [response_set(n) for n in range(3)], 0)
    said = [annotation(95, 1, 1, pairwise_result(2.0, [(5, 5, 5), (2, 4, 5)]), 30.0)]
    rows = [
        {"id": n, "data": task.data, "updated_at": said[0]["updated_at"], "annotations": said if n == 1 else []}
        for n, task in enumerate(paired, start=1)
    ]
    record(store, 2, "town pairwise", rows, end)


def record(store: Store, number: int, title: str, rows: list[dict[str, Any]], when: datetime) -> None:
    project = SeenProject(
        project=f"{number}@x",
        number=number,
        url="http://127.0.0.1:8080",
        title=title,
        overlap=3,
        config_hash="1a2b3c4d",
        config="",
    )
    store.record(project, rows, Sync(seen_at=when, whole=True, newest=when, cursor=when, tasks_read=len(rows)))


@pytest.fixture(scope="module")
def page() -> str:
    store = Store()
    filled(store)
    return status_page(reports(store), START + timedelta(hours=12))


def test_the_page_says_how_it_goes_and_who_is_a_concern(page: str) -> None:
    store = Store()
    filled(store)
    pairwise, ranking = reports(store)
    done = ranking.status.done
    assert done == 87 and ranking.status.needed == 120  # 90 annotations, 3 of them skips
    assert f"{done} of 120" in page and "Krippendorff" in page and "1 of 9" in page
    (doubted,) = [one for one in ranking.crew if one.concerns]
    assert doubted.annotator_id == "3" and "leaves 100% of rankings as shown" in page
    rate = ranking.agreement.overall
    assert f"{rate.share:.0%} ({rate.low:.0%} to {rate.high:.0%})" in page
    assert 'href="http://127.0.0.1:8080/projects/1/data?labeling=1"' in page
    assert pairwise.crew[0].judgements == 1 and not pairwise.crew[0].concerns


def test_the_list_of_today_comes_from_the_report_and_the_time() -> None:
    """Two of opposite minds about one ranking, one whom nobody named, and one who was invited and never came."""
    (task,), _ = build_tasks("ranking", [response_set(1)], 0)
    orders = {1: task.shown, 3: task.shown[::-1], 4: task.shown}
    said = [annotation(number, 7, number, ranking_result(order), 60.0) for number, order in orders.items()]
    store, now = Store(), START + timedelta(hours=30)
    record(
        store,
        5,
        "town ranking",
        [{"id": 7, "data": task.data, "updated_at": said[-1]["updated_at"], "annotations": said}],
        now,
    )
    plan = Plan(overlap=3, uids=frozenset({task.uid}), known=frozenset({1, 3, 9}), invited={1: "ada@x", 9: "quinn@x"})
    (report,) = reports(store, plans={("http://127.0.0.1:8080", 5): plan})
    url = "http://127.0.0.1:8080/projects/5/data?task=7"
    found = today(report, now, UTC)
    assert found.disputed == (
        Item(text=f"task 7, 100% of the pairs: {NAMES[1]}, {NAMES[3]}: “Who is the baker of town 1?”", url=url),
    )
    ((reason, items),) = [(group.reason, group.items) for group in found.set_aside]
    assert (
        items == (Item(text=f"annotation 4 of {NAMES[4]}", url=url),) and "is no annotator of this collection" in reason
    )
    first, *silent = found.quiet
    assert first == Item(text="quinn@x has judged nothing here yet")
    assert [item.text.partition(" judged last on ")[0] for item in silent] == [NAMES[1], NAMES[3]]
    assert silent[0].text.endswith(", 1 day ago")
    (day,) = found.days
    assert (day.day, day.judgements) == (START.date(), {"1": 1, "3": 1})
    assert today(report, START + timedelta(hours=20)).quiet == (first,)
    assert today(report.model_copy(update={"disputes": (), "aside": ()}), START).empty is False
    assert facts(report) == "ranking tasks, 3 annotators per task; not opened from here, or by an earlier version"


def test_every_text_stays_text_and_nothing_is_loaded(page: str) -> None:
    assert "<script" not in page and "&lt;script&gt;document.title" in page
    assert "town &amp; country &lt;b&gt; ranking" in page and "佐藤 花子" in page
    assert "default-src 'none'" in page and "src=" not in page and "@import" not in page and "url(http" not in page
    drawings = page.split("<svg")[1:]
    assert len(drawings) == 4  # a new project has no figures of people yet
    for drawing in drawings:
        ElementTree.fromstring("<svg" + drawing.partition("</svg>")[0] + "</svg>")


def test_nothing_yet_is_a_page_too() -> None:
    assert "No collections are known yet" in status_page([])
    store = Store()
    record(store, 1, "empty ranking", [], START)
    assert "0 of 0" in status_page(reports(store)) and "no recent activity" in status_page(reports(store))


def test_the_line_ends_at_the_last_reading_and_the_way_on_is_dotted() -> None:
    times = [START, START + timedelta(hours=1)]
    (axes,) = progress_chart(times, 2, 5, START + timedelta(hours=2), START + timedelta(hours=5)).axes
    needed, line, ahead = axes.lines
    assert list(needed.get_ydata()) == [5, 5] and list(line.get_ydata()) == [1, 2, 2]
    assert list(ahead.get_ydata()) == [2, 5] and ahead.get_linestyle() == ":"


@pytest.mark.browser
def test_it_is_readable_in_chromium_light_and_dark(page: str, tmp_path: Path) -> None:
    file = tmp_path / "status.html"
    file.write_text(page, encoding="utf-8")
    asked: list[str] = []
    with chromium() as browser:
        for scheme in ("light", "dark"):
            shown = browser.new_page(viewport={"width": 1280, "height": 900}, color_scheme=scheme)  # type: ignore[arg-type]
            shown.on("request", lambda request: asked.append(request.url))
            shown.goto(file.as_uri())
            assert shown.title() == "Labeling status"
            assert shown.locator("section:visible h2").inner_text() == "town pairwise"
            shown.get_by_role("link", name="town & country <b> ranking").click()
            assert shown.locator("section:visible h2").inner_text() == "town & country <b> ranking"  # one at a time
            assert EVIL in shown.locator("table:visible").first.inner_text()
            assert shown.evaluate("document.documentElement.scrollWidth") <= 1280
            back, ink = luminance(shown, "body", "backgroundColor"), luminance(shown, "section:target svg text", "fill")
            contrast = (max(back, ink) + 0.05) / (min(back, ink) + 0.05)
            assert contrast > 7 and (back > 0.9) is (scheme == "light")  # WCAG 2.2, 1.4.6
            shown.screenshot(path=tmp_path / f"status-{scheme}.png", full_page=True)
            shown.close()
    assert set(asked) == {file.as_uri()}


def test_questions_come_first_and_agreement_is_told_by_version_of_the_guidelines() -> None:
    store, tasks = Store(), build_tasks("pairwise", [response_set(n) for n in range(3)], 0)[0]
    for number, guidelines in ((1, shipped("en")), (2, shipped("fr"))):
        config = screen("pairwise", guidelines).label_config
        asked = {"type": "textarea", "from_name": "question", "to_name": "prompt", "value": {"text": ["<b>Why</b>?"]}}
        result = pairwise_result(2.0 * (3 - 2 * number), [(5, 5, 5)] * 2)
        said = [annotation(100 * number + i, 7, i, result, 9.0) for i in (1, 2)]
        said[0]["result"] = [*said[0]["result"], asked]
        row = {"id": 7, "data": tasks[0].data, "updated_at": said[0]["updated_at"], "annotations": said}
        fields = {"project": f"{number}@x", "number": number, "url": "http://x", "overlap": 2, "config_hash": ""}
        project = SeenProject(title="town pairwise", config=config, **fields)
        store.record(project, [row], Sync(seen_at=START, whole=True, newest=START, cursor=START, tasks_read=1))
    found = reports(store)
    (changed,) = periods(found)
    assert [period.guidelines for period in changed] == [shipped("en").version, shipped("fr").version]
    assert [(period.judgements, period.agreement.share) for period in changed] == [(2, 1.0), (2, 1.0)]
    assert {judgement.text for report in found for judgement in report.questions} == {"<b>Why</b>?"}
    page = status_page(found)
    assert "1 questions of annotators" in page and "task 7, " in page and "&lt;b&gt;Why&lt;/b&gt;?" in page
    assert "Agreement before and after a change of guidelines" in page and shipped("fr").version in page
