"""An annotator in a real browser: log in, read, rank, compare, flag, correct, write, skip."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from alignment.records import Message, Prompt, Response, ResponseSet
from labeling.collection import (
    Collection,
    open_planned,
    pull_collection,
)
from labeling.config import LabelingConfig, PairwiseTasks, RankingTasks
from labeling.judgements.comparisons import demonstrations
from labeling.judgements.judgement import PairwiseJudgement, RankingJudgement
from labeling.screens.guidelines import shipped
from labeling.server.client import LabelStudio
from labeling.tasks.plan import Planned
from labeling.tasks.tasks import build_writing_tasks
from tests.labeling.browser import logged_in
from tests.labeling.helpers import TEXTS, open_sets, response_set

pytestmark = [pytest.mark.server, pytest.mark.browser]
MARKUP = "Mara <b>Lind</b>.\n    on Mill Lane <img src='http://127.0.0.1:9/x.png'>"
SUBMIT = "Control+Enter"
SCRIPT = "<script>document.title = 'executed'; fetch('http://127.0.0.1:9/s')</script> said the page"
IMAGE = "<img src='http://127.0.0.1:9/x.png' onerror='document.title=1'> ![y](http://127.0.0.1:9/y.png) <b>bold</b>"
LONG = "".join(f"{number:3} The river runs down from the hills. " for number in range(101))[:4000]
ARABIC = "خبازة البلدة هي مارا ليند.\nتسكن في شارع الطاحونة رقم 5."
CHINESE = "镇上的面包师是玛拉·林德。\n她住在磨坊巷。"
PYTHON = 'def total(values):\n    if not values:\n        return 0\n\treturn sum(values)  # <- & "quotes" {braces}'
FAITHFUL = (SCRIPT, IMAGE, LONG, ARABIC, CHINESE, PYTHON)
FREE = """p => {
    const range = document.createRange(), box = p.getBoundingClientRect();
    range.selectNodeContents(p);
    const lines = [...range.getClientRects()];
    const left = Math.min(...lines.map(l => l.left)), right = Math.max(...lines.map(l => l.right));
    return {left: left - box.left, right: box.right - right};
}"""
TALK = ("Who is the baker of town 8?", "Mara Lind. <b>She</b> bakes.", "Where does she live?")


@pytest.fixture(scope="module")
def page(owner: LabelStudio) -> Iterator[Page]:
    """Paula's browser, logged in."""
    with logged_in(owner) as page:
        yield page


def begin(page: Page, url: str) -> None:
    """Open the labeling stream, read the instructions, and put the focus on the page."""
    page.goto(url)
    dialog = page.locator("[class*=modal]").filter(has_text="Labeling Instructions").first
    expect(dialog).to_contain_text(re.compile("When they pull in different directions|Step by step|حين تتعارض"))
    page.locator("[class*=modal] button").last.click()
    expect(page.get_by_text("Labeling Instructions")).to_have_count(0)
    page.get_by_text("Who is the baker of town").first.click()


def submit(page: Page) -> None:
    """Submit by key and wait until the server has it."""
    with page.expect_response(lambda r: "/annotations" in r.url and r.request.method == "POST") as answer:
        page.keyboard.press(SUBMIT)
    assert answer.value.status == 201


def correct(page: Page, opened: Collection, key: str) -> None:
    """Open the only task again, change the verdict by key, and update."""
    (batch,) = opened.batches
    (number,) = batch.task_ids.values()
    page.goto(f"{batch.project.url}/projects/{batch.project.id}/data?task={number}")
    page.locator(".question").click()
    page.keyboard.press(key)
    with page.expect_response(lambda r: "/api/annotations/" in r.url and r.request.method == "PATCH") as answer:
        page.keyboard.press(SUBMIT)
    assert answer.value.status == 200


def luminance(page: Page, selector: str, of: str) -> float:
    """Relative luminance (WCAG 2.2) of the first match's colour `of`, 0 black to 1 white."""
    colour = page.locator(selector).first.evaluate(f"e => getComputedStyle(e).{of}")
    channels = [int(value) / 255 for value in re.findall(r"\d+", colour)[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def move_to_top(page: Page, text: str) -> None:
    """Move the response with this text to the top of the list by keyboard."""
    item = page.locator(".htx-ranker-item").filter(has_text=text)
    place = [text in shown for shown in page.locator(".htx-ranker-item").all_inner_texts()].index(True)
    said = page.locator("[id^=rbd-announcement]")  # what the list tells screen readers
    item.focus()
    page.keyboard.press("Space")
    expect(said).to_contain_text(f"lifted an item in position {place + 1}")
    for position in range(place, 0, -1):
        page.keyboard.press("ArrowUp")
        expect(said).to_contain_text(f"to position {position}")
    page.keyboard.press("Space")
    expect(said).to_contain_text("dropped the item")
    expect(page.locator(".htx-ranker-item").first).to_contain_text(text)


def test_a_person_ranks_by_keyboard_and_skips(owner: LabelStudio, page: Page, tmp_path: Path) -> None:
    ranking, none = RankingTasks(prompts=2, overlap=1), PairwiseTasks(prompts=0)
    config = LabelingConfig(title="by hand", rankings=ranking, pairwise=none)
    opened = open_sets(owner, config, [response_set(1), response_set(2)], tmp_path)
    begin(page, opened.urls["ranking"])
    page.get_by_text("Guidelines (click").click()
    expect(page.get_by_role("heading", name="When they pull in different directions")).to_be_visible()
    page.get_by_text("Guidelines (click").click()
    expect(page.locator(".htx-ranker-item")).to_have_count(4)
    wanted = list(TEXTS)
    for text in reversed(wanted):
        move_to_top(page, text)
    page.get_by_text("Who is the baker of town").first.click()
    page.keyboard.press(SUBMIT)
    expect(page.get_by_text("Please say whether the order is yours").first).to_be_visible()
    page.locator(".ant-modal-wrap").get_by_role("button").last.click()
    expect(page.locator(".ant-modal-wrap")).to_be_hidden()
    page.get_by_text("This is my order").click()
    asked = page.locator(".question").inner_text()
    submit(page)
    expect(page.locator(".question")).not_to_have_text(asked, use_inner_text=True)
    expect(page.locator(".question")).to_contain_text("Who is the baker of town")
    with page.expect_response(lambda r: "/annotations" in r.url and r.request.method == "POST"):
        page.get_by_role("button", name="Skip").click()
    pulled = pull_collection(owner, opened)
    assert not pulled.quarantined and pulled.skips == 1
    assert [(row.chosen.text, row.rejected.text, row.strength) for row in pulled.comparisons] == [
        (wanted[i], wanted[j], j - i) for i in range(4) for j in range(i + 1, 4)
    ]
    assert pulled.quality[0].untouched_share is not None and pulled.quality[0].median_lead_time_seconds


def test_a_person_compares_two_and_text_stays_text(owner: LabelStudio, page: Page, tmp_path: Path) -> None:
    none, pairwise = RankingTasks(prompts=0), PairwiseTasks(prompts=1, overlap=1)
    config = LabelingConfig(title="by hand", rankings=none, pairwise=pairwise)
    opened = open_sets(owner, config, [response_set(3, (MARKUP, "Tom Berg."))], tmp_path)
    begin(page, opened.urls["pairwise"])
    expect(page.locator(".desk")).to_contain_text("<b>Lind</b>")
    assert "<b>Lind</b>" in page.locator(".desk").inner_text() and page.locator(".desk img").count() == 0
    task = opened.batches[0].tasks[0]
    side = "ab"[[response.text for response in task.responses.values()].index(MARKUP)]
    for key, presses in (("q" if side == "a" else "a", 5), ("a" if side == "a" else "q", 2)):
        for _ in range(presses):
            page.keyboard.press(key)
    page.keyboard.press("y" if side == "b" else "h")  # the other one has a made-up fact
    page.keyboard.press("o" if side == "b" else "l")  # and harmful advice
    page.locator(".answer").filter(has_text="Tom Berg").locator(".lsf-richtext__line").click()  # no control
    page.keyboard.press("2" if side == "a" else "6")
    page.get_by_placeholder("A word on why").fill("Tom does not bake.")
    page.get_by_text("Ask the team lead (optional)").click()
    page.get_by_placeholder("Your question goes to the team lead").fill("May it joke?")
    page.keyboard.press("Tab")
    submit(page)
    pulled = pull_collection(owner, opened)
    (row,), (said,) = pulled.comparisons, pulled.all_judgements
    assert isinstance(said, PairwiseJudgement)
    assert (said.rationale, said.question) == ("Tom does not bake.", "May it joke?")
    assert said.flags == {f"{'b' if side == 'a' else 'a'}_flags": ("made_up_fact", "harmful_advice")}
    assert said.guidelines == shipped("en").version
    correct(page, opened, "6" if side == "a" else "2")
    (corrected,) = pull_collection(owner, opened).comparisons
    assert (corrected.chosen.text, corrected.annotation_id) == ("Tom Berg.", row.annotation_id)
    assert not pulled.quarantined
    assert (row.chosen.text, row.rejected.text, row.strength) == (MARKUP, "Tom Berg.", 2)
    assert row.criteria == {"helpful": 3}


def test_a_person_who_cannot_judge_takes_stars_back_and_asks_with_a_skip(
    owner: LabelStudio, page: Page, tmp_path: Path
) -> None:
    none, pairwise = RankingTasks(prompts=0), PairwiseTasks(prompts=2, overlap=1)
    config = LabelingConfig(title="cannot", rankings=none, pairwise=pairwise)
    opened = open_sets(owner, config, [response_set(n, ("Mara Lind.", "Tom Berg.")) for n in (11, 12)], tmp_path)
    begin(page, opened.urls["pairwise"])
    for key in "qqqqqqrr8":  # five stars, and none again; a flag, and none again
        page.keyboard.press(key)
    submit(page)
    page.get_by_text("Ask the team lead (optional)").click()
    page.get_by_placeholder("Your question goes to the team lead").fill("Which town?")
    page.keyboard.press("Tab")
    with page.expect_response(lambda r: "/annotations" in r.url and r.request.method == "POST"):
        page.get_by_role("button", name="Skip").click()
    pulled = pull_collection(owner, opened)
    (said,) = pulled.all_judgements
    assert isinstance(said, PairwiseJudgement) and said.cannot_judge and not said.ratings
    assert not (pulled.quarantined or pulled.comparisons or pulled.ties) and pulled.skips == 1
    assert [(asked.text, asked.skipped) for asked in pulled.questions] == [("Which town?", True)]


@pytest.mark.long
def test_a_person_ranks_stars_and_flags_single_answers(owner: LabelStudio, page: Page, tmp_path: Path) -> None:
    ranking = RankingTasks(prompts=1, overlap=1, ratings=True)
    config = LabelingConfig(title="stars", rankings=ranking, pairwise=PairwiseTasks(prompts=0), annotators="people")
    opened = open_sets(owner, config, [response_set(13)], tmp_path)
    (task,) = opened.batches[0].tasks
    begin(page, opened.urls["ranking"])
    rows = page.locator(".each .one")
    expect(rows).to_have_count(4)
    assert [row.split("\n")[0] for row in rows.all_inner_texts()] == [f"Answer {letter}" for letter in "ABCD"]
    rows.nth(2).locator(".mark").first.locator(".ant-rate-star").nth(3).click()
    rows.nth(0).locator(".mark").first.locator(".ant-rate-star").nth(0).click()
    rows.nth(1).get_by_text("C: Refuses wrongly").or_(rows.nth(1).get_by_text("B: Refuses wrongly")).click()
    page.get_by_text("This is my order").click()
    page.locator(".question").click()
    submit(page)
    pulled = pull_collection(owner, opened)
    (said,) = pulled.all_judgements
    assert isinstance(said, RankingJudgement) and not pulled.quarantined
    assert said.ratings == {task.shown[2]: {"helpful": 4}, task.shown[0]: {"helpful": 1}}
    assert said.flags == {task.shown[1]: ("refuses_wrongly",)}
    assert [row.criteria for row in pulled.comparisons if row.criteria] == [{"helpful": -3}]


def open_writing(
    owner: LabelStudio, title: str, prompts: list[Prompt], out: Path, drafts: dict[str, str] | None = None
) -> Collection:
    """A collection that asks for answers to prompts."""
    planned = Planned({"demonstration": build_writing_tasks(prompts, drafts)})
    return open_planned(owner, LabelingConfig(title=title), planned, out)


def test_a_person_writes_an_answer(owner: LabelStudio, page: Page, tmp_path: Path) -> None:
    opened = open_writing(owner, "by hand", [response_set(4).prompt], tmp_path)
    begin(page, opened.urls["demonstration"])
    page.keyboard.press("1")
    page.locator("textarea").first.fill("Mara Lind is the baker.\nShe lives on Mill Lane.")
    page.keyboard.press("Tab")
    submit(page)
    pulled = pull_collection(owner, opened)
    assert not pulled.quarantined
    assert [row.completion for row in demonstrations(pulled.all_judgements, opened.tasks)] == [
        "Mara Lind is the baker.\nShe lives on Mill Lane."
    ]


def typed(page: Page) -> str:
    """What the answer's field holds."""
    return page.locator(".writing textarea").first.input_value()


def close_dialog(page: Page) -> None:
    """Close the instructions, which Label Studio shows once for each visit of a project."""
    page.wait_for_selector(".desk textarea")
    if page.locator("[class*=modal] button").count():
        page.locator("[class*=modal] button").last.click()


@pytest.mark.long
def test_typed_text_is_there_after_a_reload_the_way_to_projects_and_another_task(
    owner: LabelStudio, page: Page, tmp_path: Path
) -> None:
    opened = open_writing(owner, "kept", [response_set(n).prompt for n in (14, 15)], tmp_path)
    begin(page, opened.urls["demonstration"])
    asked = page.locator(".question").inner_text()
    page.locator(".writing textarea").first.click()
    page.keyboard.type("Mara Lind")
    expect(
        page.locator(".writing [data-testid=htx-textbox-input]")
    ).to_be_focused()  # a pause made it a part of the draft
    page.keyboard.type(" is the baker.")
    page.reload()  # at once
    close_dialog(page)
    expect(page.locator(".writing textarea").first).to_have_value("Mara Lind is the baker.")
    page.locator(".writing textarea").first.click()
    page.keyboard.press("Control+End")
    page.keyboard.type("\nShe lives")
    page.get_by_role("link", name="Projects").first.click()  # at once
    page.wait_for_url(lambda url: "/data" not in url)
    page.goto(opened.urls["demonstration"])
    close_dialog(page)
    expect(page.locator(".question")).to_have_text(asked, use_inner_text=True)
    expect(page.locator(".writing textarea").first).to_have_value("Mara Lind is the baker.\nShe lives")
    page.locator(".writing textarea").first.click()
    page.keyboard.press("Control+End")
    page.keyboard.type(" on Mill Lane.")
    page.keyboard.press("Escape")  # takes nothing back
    page.locator("[data-testid=next-task]").click()
    expect(page.locator(".question")).not_to_have_text(asked, use_inner_text=True)
    assert typed(page) == ""
    page.locator("[data-testid=prev-task]").click()
    expect(page.locator(".question")).to_have_text(asked, use_inner_text=True)
    expect(page.locator(".writing textarea").first).to_have_value("Mara Lind is the baker.\nShe lives on Mill Lane.")
    page.locator(".question").click()
    submit(page)
    pulled = pull_collection(owner, opened)
    assert not pulled.quarantined
    (row,) = demonstrations(pulled.all_judgements, opened.tasks)
    assert row.completion == "Mara Lind is the baker.\nShe lives on Mill Lane."


@pytest.mark.long
def test_an_answer_of_spaces_or_one_that_was_emptied_cannot_be_submitted(
    owner: LabelStudio, page: Page, tmp_path: Path
) -> None:
    opened = open_writing(owner, "empty", [response_set(16).prompt], tmp_path)
    begin(page, opened.urls["demonstration"])
    for text in ("   ", "Mara"):
        page.locator(".writing textarea").first.fill(text)
        page.wait_for_timeout(1000)  # longer than the pause after which a text is kept
        page.locator(".writing textarea").first.fill(text.strip() and "")
        page.locator(".question").click()
        page.keyboard.press(SUBMIT)
        expect(page.get_by_text("Please write an answer").first).to_be_visible()
        page.locator(".ant-modal-wrap").get_by_role("button").last.click()
        expect(page.locator(".ant-modal-wrap")).to_be_hidden()
    assert not pull_collection(owner, opened).all_judgements


def names_and_fits(page: Page, width: int) -> None:
    """Every control of an answer names it, there is one scroll, and nothing is beyond the sides of the window."""
    page.set_viewport_size({"width": width, "height": 844})
    for side, colour in (("a", "rgb(37, 99, 176)"), ("b", "rgb(180, 83, 9)")):
        letter, block = side.upper(), page.locator(f".side_{side}")
        expect(block.get_by_text(f"Answer {letter}", exact=True)).to_be_visible()
        titles = block.locator(".mark h4, .mark h5").all_inner_texts()
        assert len(titles) == 3 and all(f", {letter} (key " in title for title in titles)
        assert {text[:3] for text in block.locator(".lsf-choice").all_inner_texts()} == {f"{letter}: "}
        assert block.locator(".marks").evaluate("e => getComputedStyle(e).borderTopColor") == colour
    tops = "all => all.map(e => e.getBoundingClientRect().top)"
    marks, answer = page.locator(".side_a .marks, .side_b .answer").evaluate_all(tops)
    assert (marks < answer) == (width <= 1000)  # one under the other, each answer with its marks
    scrolls = "e => /auto|scroll/.test(getComputedStyle(e).overflowY) && e.scrollHeight > e.clientHeight + 9"
    boxes = page.locator(".desk, .desk *").evaluate_all(f"all => all.filter({scrolls}).map(e => e.className)")
    assert boxes == []  # one scroll, that of the page
    rights = page.locator(".desk *").evaluate_all("all => all.map(one => one.getBoundingClientRect().right)")
    assert max(rights) <= width
    box = page.get_by_role("button", name="Submit").first.bounding_box()
    assert box is not None and box["x"] >= 0 and box["x"] + box["width"] <= width


@pytest.mark.long
def test_everything_names_its_answer_and_fits_the_window(owner: LabelStudio, page: Page, tmp_path: Path) -> None:
    one = {"rankings": RankingTasks(prompts=0), "pairwise": PairwiseTasks(prompts=1, overlap=9)}
    config = LabelingConfig(title="widths", annotators="people", **one)
    opened = open_sets(owner, config, [response_set(17, (LONG, PYTHON))], tmp_path)
    begin(page, opened.urls["pairwise"])
    for width in (1920, 1440, 1280, 820, 390):
        names_and_fits(page, width)
    page.get_by_role("button", name="Instructions").first.click(force=True)
    inside = "box => box.left >= 0 && box.right <= 390"
    dialog = "document.querySelector('.lsf-modal-ls_visible .lsf-modal-ls__content')"
    page.wait_for_function(f"{dialog} && ({inside})({dialog}.getBoundingClientRect())")  # it grows to its size
    page.locator("[class*=modal] button").last.click()


@pytest.mark.long
@pytest.mark.parametrize("language", ["ar", "en"])
def test_a_screen_runs_in_the_direction_of_its_language_and_text_in_its_own(
    owner: LabelStudio, page: Page, tmp_path: Path, language: str
) -> None:
    one = {"rankings": RankingTasks(prompts=0), "pairwise": PairwiseTasks(prompts=1, overlap=9)}
    config = LabelingConfig(title="directions", annotators="people", guidelines=language, **one)
    opened = open_sets(owner, config, [response_set(18, (ARABIC, "Mara Lind."))], tmp_path)
    page.set_viewport_size({"width": 1280, "height": 844})
    begin(page, opened.urls["pairwise"])
    direction, verdict = {"ar": ("rtl", "لا أستطيع الحكم"), "en": ("ltr", "I cannot judge this")}[language]
    assert page.locator(".desk").evaluate("e => getComputedStyle(e).direction") == direction
    expect(page.locator(".verdict").get_by_text(verdict)).to_be_visible()
    left = page.locator(".side_a .answer").evaluate("e => e.getBoundingClientRect().left")
    assert (left > 640) == (language == "ar")  # the first answer is on the right
    edges = "e => {const r = document.createRange(); r.selectNodeContents(e); const b = r.getBoundingClientRect(),"
    edges += " c = e.closest('.answer').getBoundingClientRect(); return [b.left - c.left, c.right - b.right]}"
    arabic = page.locator(".answer .lsf-richtext__line").filter(has_text="خبازة").first.evaluate(edges)
    english = page.locator(".answer .lsf-richtext__line").filter(has_text="Mara Lind.").first.evaluate(edges)
    assert arabic[1] < 60 < arabic[0] and english[0] < 60 < english[1]
    page.get_by_role("textbox").first.fill("سبب")
    field = page.get_by_role("textbox").first
    assert field.evaluate("e => [getComputedStyle(e).unicodeBidi, getComputedStyle(e).textAlign]") == [
        "plaintext",
        "start",
    ]


def test_a_person_corrects_a_draft(owner: LabelStudio, page: Page, tmp_path: Path) -> None:
    prompt = response_set(6).prompt
    draft = "Mara <b>Lind</b> is the bakr.\n    She lives on Mill Lane."
    opened = open_writing(owner, "from drafts", [prompt], tmp_path, {prompt.id: draft})
    begin(page, opened.urls["demonstration"])
    text = page.locator(".desk textarea").first
    expect(text).to_have_value(draft)
    text.fill(draft.replace("bakr", "baker"))
    page.keyboard.press("Tab")
    submit(page)
    pulled = pull_collection(owner, opened)
    assert not pulled.quarantined
    assert [row.completion for row in demonstrations(pulled.all_judgements, opened.tasks)] == [
        draft.replace("bakr", "baker")
    ]


def test_any_text_is_shown_faithfully_in_the_dark_at_1280_and_loads_nothing(
    owner: LabelStudio, page: Page, tmp_path: Path
) -> None:
    roles = ("user", "assistant", "user")
    messages = [Message.model_validate({"role": role, "content": text}) for role, text in zip(roles, TALK, strict=True)]
    asked = response_set(8).prompt.model_copy(update={"messages": tuple(messages)})
    sets = [
        ResponseSet(prompt=asked, responses=tuple(Response(id=f"x{i}", text=text) for i, text in enumerate(FAITHFUL))),
        ResponseSet(prompt=asked, responses=(Response(id="p", text=PYTHON), Response(id="i", text=IMAGE + SCRIPT))),
    ]
    one = {"rankings": RankingTasks(prompts=1, overlap=1), "pairwise": PairwiseTasks(prompts=1, overlap=1)}
    opened = open_sets(owner, LabelingConfig(title="in the dark", **one), sets, tmp_path)
    requested: list[str] = []
    page.on("request", lambda request: requested.append(request.url))
    page.set_viewport_size({"width": 1280, "height": 800})
    page.evaluate("localStorage.setItem('preferred-color-scheme', 'Dark')")

    begin(page, opened.urls["ranking"])
    expect(page.locator(".htx-ranker-item")).to_have_count(len(FAITHFUL))
    shown = page.locator(".htx-ranker-item").evaluate_all("items => items.map(i => i.querySelector('p').textContent)")
    assert sorted(shown) == sorted(FAITHFUL)
    code = page.locator(".htx-ranker-item p").filter(has_text="return sum(values)")
    assert code.evaluate("e => getComputedStyle(e).fontFamily") == "monospace"
    assert "monospace" not in page.locator(".htx-ranker-item p").filter(has_text="river").evaluate(
        "e => getComputedStyle(e).fontFamily"
    )
    turns = page.locator(".question .lsf-richtext__line").evaluate_all("lines => lines.map(l => l.textContent)")
    assert turns == list(TALK)
    free = page.locator(".htx-ranker-item p").filter(has_text="خبازة").evaluate(FREE)
    assert free["right"] < 20 < free["left"]  # its lines start at the right
    expect(page.locator(".ties .lsf-choice:visible")).to_have_count(5)  # six answers have five neighbours
    assert looks_well(page)
    for key in ("1", "w"):
        page.keyboard.press(key)
    submit(page)

    begin(page, opened.urls["pairwise"])
    for text in ("return sum(values)", "said the page"):
        expect(page.locator(".answer").filter(has_text=text)).to_have_count(1)
    code = page.locator(".answer .lsf-richtext__line").filter(has_text="return sum(values)").first
    assert code.evaluate("e => getComputedStyle(e).fontFamily") == "monospace"
    lines = page.locator(".answer .lsf-richtext__line").evaluate_all("lines => lines.map(l => l.innerText)")
    assert "\n".join(lines).replace("\r", "").count("        return 0\n\treturn sum(values)") == 1
    assert any(IMAGE + SCRIPT in line for line in lines)
    assert looks_well(page)
    page.keyboard.press("4")
    submit(page)

    assert page.title() not in ("executed", "1") and page.locator(".desk img, .desk script").count() == 0
    assert [url for url in requested if not url.startswith((owner.url, "data:", "blob:"))] == []
    pulled = pull_collection(owner, opened)
    assert not pulled.quarantined
    ranked = next(said for said in pulled.all_judgements if isinstance(said, RankingJudgement))
    assert ranked.ties == (2,) and len(pulled.comparisons) == 14 and len(pulled.ties) == 2


def looks_well(page: Page) -> bool:
    """Light text on dark sheets with a contrast of 7 or more, and nothing beyond the sides of the window."""
    light = luminance(page, ".desk .sheet h4", "color")
    dark = luminance(page, ".desk .sheet", "backgroundColor")
    assert dark < 0.1 and (light + 0.05) / (dark + 0.05) >= 7
    rights = page.locator(".desk *").evaluate_all("all => all.map(one => one.getBoundingClientRect().right)")
    assert max(rights) <= 1280 and page.evaluate("document.scrollingElement.scrollWidth") <= 1280
    return True
