"""A person at work in a real browser: log in, read, rank, compare, write, skip."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect, sync_playwright

from labeling.client import LabelStudio
from labeling.collection import open_collection, open_demonstrations, pull_collection, pull_demonstrations
from labeling.config import LabelingConfig, PairwiseTasks, RankingTasks
from labeling.users import ensure_account
from tests.labeling.helpers import TEXTS, response_set

pytestmark = [pytest.mark.server, pytest.mark.browser]
CHROMIUM = os.environ.get("RLHF_CHROMIUM", "/usr/bin/chromium")
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
EMAIL, PASSWORD = "paula@rlhf.local", "password-of-paula"
MARKUP = "Mara <b>Lind</b>.\n    on Mill Lane <img src='http://127.0.0.1:9/x.png'>"
SUBMIT = "Control+Enter"


@pytest.fixture(scope="module")
def page(owner: LabelStudio) -> Iterator[Page]:
    """Paula's browser, logged in."""
    ensure_account(owner, EMAIL, PASSWORD, "Paula")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport={"width": 1360, "height": 860})
        page.set_default_timeout(30_000)
        page.goto(f"{owner.url}/user/login/")
        page.fill("input[name=email]", EMAIL)
        page.fill("input[name=password]", PASSWORD)
        page.click("button[type=submit]")
        page.wait_for_url(lambda url: "login" not in url)
        yield page
        browser.close()


def begin(page: Page, url: str) -> None:
    """Open the labeling stream, read the instructions, and put the focus on the page."""
    page.goto(url)
    dialog = page.locator("[class*=modal]").filter(has_text="Labeling Instructions").first
    expect(dialog).to_contain_text("When they pull in different directions")
    page.locator("[class*=modal] button").last.click()
    expect(page.get_by_text("Labeling Instructions")).to_have_count(0)
    page.get_by_text("Who is the baker of town").first.click()


def submit(page: Page) -> None:
    """Submit by key and wait until the server has it."""
    with page.expect_response(lambda r: "/annotations" in r.url and r.request.method == "POST") as answer:
        page.keyboard.press(SUBMIT)
    assert answer.value.status == 201


def move_to_top(page: Page, text: str) -> None:
    """Move the response with this text to the top of the list by keyboard."""
    item = page.locator(".htx-ranker-item").filter(has_text=text)
    place = [text in shown for shown in page.locator(".htx-ranker-item").all_inner_texts()].index(True)
    item.focus()
    page.keyboard.press("Space")
    page.wait_for_timeout(300)
    for _ in range(place):
        page.keyboard.press("ArrowUp")
        page.wait_for_timeout(300)
    page.keyboard.press("Space")
    expect(page.locator(".htx-ranker-item").first).to_contain_text(text)
    page.wait_for_timeout(300)


def test_a_person_ranks_by_keyboard_and_skips(owner: LabelStudio, page: Page, tmp_path: Path) -> None:
    ranking, none = RankingTasks(prompts=2, overlap=1), PairwiseTasks(prompts=0)
    config = LabelingConfig(title="by hand", rankings=ranking, pairwise=none)
    opened = open_collection(owner, config, [response_set(1), response_set(2)], tmp_path)
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
    page.keyboard.press("Escape")
    page.get_by_text("This is my order").click()
    submit(page)
    page.wait_for_timeout(800)
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
    opened = open_collection(owner, config, [response_set(3, (MARKUP, "Tom Berg."))], tmp_path)
    begin(page, opened.urls["pairwise"])
    assert "<b>Lind</b>" in page.locator(".desk").inner_text() and page.locator(".desk img").count() == 0
    task = opened.batches[0].tasks[0]
    side = "ab"[[response.text for response in task.responses.values()].index(MARKUP)]
    for key, presses in (("q" if side == "a" else "a", 5), ("a" if side == "a" else "q", 2)):
        for _ in range(presses):
            page.keyboard.press(key)
    page.keyboard.press("2" if side == "a" else "6")
    submit(page)
    pulled = pull_collection(owner, opened)
    (row,) = pulled.comparisons
    assert not pulled.quarantined
    assert (row.chosen.text, row.rejected.text, row.strength) == (MARKUP, "Tom Berg.", 2)
    assert row.criteria == {"helpful": 3}


def test_a_person_writes_an_answer(owner: LabelStudio, page: Page, tmp_path: Path) -> None:
    opened = open_demonstrations(owner, "by hand", [response_set(4).prompt], tmp_path)
    begin(page, opened.urls["demonstration"])
    page.keyboard.press("1")
    page.locator("textarea").first.fill("Mara Lind is the baker.\nShe lives on Mill Lane.")
    with page.expect_response(lambda r: "/annotations" in r.url and r.request.method == "POST") as answer:
        page.get_by_role("button", name="Submit").first.click()
    assert answer.value.status == 201
    pulled = pull_demonstrations(owner, opened)
    assert not pulled.quarantined
    assert [row.completion for row in pulled.demonstrations] == ["Mara Lind is the baker.\nShe lives on Mill Lane."]
