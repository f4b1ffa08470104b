"""A real browser, and one logged in to Label Studio."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from playwright.sync_api import Browser, Page, expect, sync_playwright

from labeling.server.client import LabelStudio
from labeling.server.users import ensure_account

CHROMIUM = os.environ.get("RLHF_CHROMIUM", "/usr/bin/chromium")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
EMAIL, PASSWORD = "paula@rlhf.local", "password-of-paula"


@contextmanager
def chromium() -> Iterator[Browser]:
    """A browser without windows."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@contextmanager
def logged_in(owner: LabelStudio, *, seconds: float = 30, width: int = 1360, height: int = 860) -> Iterator[Page]:
    """Paula's browser, with an account of her own. It waits so long for what it looks for."""
    ensure_account(owner, EMAIL, PASSWORD, "Paula")
    expect.set_options(timeout=1000 * seconds)
    with chromium() as browser:
        page = browser.new_page(viewport={"width": width, "height": height})
        page.set_default_timeout(1000 * seconds)
        page.goto(f"{owner.url}/user/login/")
        page.fill("input[name=email]", EMAIL)
        page.fill("input[name=password]", PASSWORD)
        page.click("button[type=submit]")
        page.wait_for_url(lambda url: "login" not in url)
        yield page
