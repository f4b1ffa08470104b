"""Label Studio in browsers: pages of others cause nothing there, and its cookie reaches no other port."""

import re
import shutil
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Page, sync_playwright

from labeling.server.client import LabelStudio
from labeling.server.guard.rlhf_guard.browsers import elsewhere, origin_refusal
from labeling.server.process import ServerSettings, page_host, pages_link, running_server
from labeling.server.users import ensure_account
from labeling.tasks.projects import open_project
from labeling.tasks.tasks import build_tasks
from labeling.tasks.upload import push
from tests.labeling.browser import CHROMIUM, FLAGS
from tests.labeling.helpers import TOKEN, response_set, settings

OWN = {"HTTP_HOST": "labels.localhost:8080"}
PASSWORD = "password of rita"
ATTACK = """<!doctype html><body><script>
const [target, task, project] = location.hash.slice(1).split("|");
const form = (path, fields) => new Promise(done => {
  const frame = document.createElement("iframe"), form = document.createElement("form");
  frame.name = "frame" + Math.random();
  frame.onload = done;
  form.method = "POST"; form.action = target + path; form.target = frame.name;
  for (const [name, value] of Object.entries(fields)) {
    const input = document.createElement("input");
    input.name = name; input.value = value; form.append(input);
  }
  document.body.append(frame, form);
  form.submit();
  setTimeout(done, 5000);
});
(async () => {
  await Promise.all([
    form(`/api/tasks/${task}/annotations/`, {result: "[]"}),
    form("/api/projects/", {title: "of a page"}),
    form("/api/current-user/reset-token/", {}),
    form("/api/invite/reset-token", {}),
    fetch(`${target}/api/projects/${project}/import`, {method: "POST", mode: "no-cors", credentials: "include",
      headers: {"Content-Type": "text/plain"}, body: "[{}]"}).catch(() => 0),
  ]);
  document.title = "done";
})();
</script>"""


@pytest.mark.parametrize(
    ("method", "path", "headers", "session", "refused"),
    [
        ("POST", "/api/x", {"HTTP_ORIGIN": "http://labels.localhost:8080"}, True, False),
        ("POST", "/api/x", {"HTTP_ORIGIN": "https://labels.example.org"}, True, False),  # behind a proxy
        ("POST", "/api/x", {"HTTP_ORIGIN": "http://labels.localhost:9000"}, True, True),
        ("POST", "/api/x", {"HTTP_ORIGIN": "http://127.0.0.1:8080"}, True, True),
        ("POST", "/api/x", {"HTTP_ORIGIN": "null"}, True, True),
        ("POST", "/user/login/", {"HTTP_ORIGIN": "http://evil.example"}, False, True),
        ("POST", "/user/login/", {"HTTP_SEC_FETCH_SITE": "cross-site"}, False, True),
        ("POST", "/api/x", {"HTTP_SEC_FETCH_SITE": "same-site"}, True, True),
        ("POST", "/api/x", {"HTTP_SEC_FETCH_SITE": "same-origin"}, True, False),
        ("POST", "/api/x", {"HTTP_ORIGIN": "http://evil.example", "HTTP_AUTHORIZATION": "Token x"}, False, False),
        ("POST", "/api/x", {"HTTP_ORIGIN": "http://evil.example", "HTTP_AUTHORIZATION": "Token x"}, True, True),
        ("DELETE", "/api/x", {}, True, False),  # a program that logged in
        ("GET", "/api/tasks", {"HTTP_SEC_FETCH_SITE": "cross-site"}, True, True),  # a filter that runs for hours
        ("GET", "/logout", {"HTTP_SEC_FETCH_SITE": "cross-site"}, True, True),
        ("GET", "/projects/1/data", {"HTTP_SEC_FETCH_SITE": "cross-site"}, True, False),  # a link
    ],
)
def test_whose_pages_cause_requests(
    method: str, path: str, headers: dict[str, str], session: bool, refused: bool
) -> None:
    assert bool(origin_refusal(method, path, OWN | headers, "labels.example.org", session)) is refused


def test_browsers_ask_under_the_name_of_the_pages_and_programs_under_any() -> None:
    page, program = {"HTTP_ACCEPT": "text/html,*/*"}, {"HTTP_ACCEPT": "*/*"}
    for host in ("127.0.0.1:8080", "localhost:8080", "evil.example:8080", "other.localhost:8080", "[::1]:8080"):
        assert elsewhere("labels.localhost:8080", {"HTTP_HOST": host} | page)
        assert elsewhere("labels.localhost:8080", {"HTTP_HOST": host, "HTTP_SEC_FETCH_SITE": "same-origin"} | program)
        assert not elsewhere("", {"HTTP_HOST": host} | page)
    for host in ("127.0.0.1:8080", "localhost:8080", "LOCALHOST", "[::1]:8080", ""):
        assert not elsewhere("labels.localhost:8080", {"HTTP_HOST": host} | program)
    for host in ("evil.example:8080", "other.localhost:8080", "127.0.0.1.evil.example", "[evil]:80"):
        assert elsewhere("labels.localhost:8080", {"HTTP_HOST": host} | program)  # a page that reads after a rebinding
    assert not elsewhere("labels.localhost:8080", {"HTTP_HOST": "Labels.localhost:9999"} | page)  # a tunnel


@contextmanager
def pages() -> Iterator[tuple[int, list[str]]]:
    """A server of somebody else's pages on another port of this machine, and the cookies that it gets."""
    cookies: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            cookies.append(self.headers.get("Cookie") or "")
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(ATTACK.encode())

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        yield server.server_port, cookies
        server.shutdown()


def log_in(page: Page, link: str) -> None:
    page.goto(link)
    page.wait_for_url(lambda url: "login" in url)
    page.fill("input[name=email]", "owner@rlhf.local")
    page.fill("input[name=password]", "password-of-the-owner")
    page.click("button[type=submit]")
    page.wait_for_url(lambda url: "login" not in url)


def attack(page: Page, named: ServerSettings, task: int, project: int) -> None:
    """Pages on another port, to every name of the server; none gets the cookie."""
    name = named.page_host
    with pages() as (port, cookies):
        for origin in (f"http://127.0.0.1:{port}", f"http://localhost:{port}", f"http://other.localhost:{port}"):
            for target in (named.url, f"http://{name}:{named.port}"):
                page.goto("about:blank")
                page.goto(f"{origin}/#{target}|{task}|{project}")
                page.wait_for_function("document.title === 'done'")
    assert cookies and not any("sessionid" in cookie or "csrftoken" in cookie for cookie in cookies)


@pytest.mark.server
@pytest.mark.browser
def test_pages_of_others_cause_nothing_and_get_no_cookie(tmp_path: Path, label_studio_data: Path) -> None:
    """The owner is logged in, in Chromium. A token that was reset is the owner's again after a restart."""
    if not Path(CHROMIUM).exists():
        pytest.skip("Chromium is not installed: `apt-get install chromium`")
    shutil.copytree(label_studio_data, tmp_path / "data")
    with closing(sqlite3.connect(tmp_path / "data" / "label_studio.sqlite3")) as database:
        database.execute("UPDATE authtoken_token SET key = ?", ("f" * 40,))
        database.commit()
    named = settings(tmp_path / "data").model_copy(update={"page_host": page_host("secret")})
    with running_server(named, timeout_seconds=600) as url, LabelStudio(url, TOKEN) as owner:
        project = open_project(owner, "pairwise", "pages", 2)
        ids = push(owner, project, build_tasks("pairwise", [response_set(0)], 0)[0]).ids
        task, invitation = next(iter(ids.values())), owner.get("/api/invite")
        ensure_account(owner, "rita@pages.local", PASSWORD)  # a program logs in under 127.0.0.1
        with httpx.Client(base_url=url, trust_env=False) as http:
            answer = http.get("/user/login/", headers={"Accept": "text/html", "Cookie": "sessionid=x"})
            assert answer.status_code == 403 and "sessionid" in answer.headers["set-cookie"]
            assert not re.search("labels-[0-9a-f]{16}", answer.text + http.get("/user/login/").text)
            for path in ("/user/login/", "/api/version/", "/health/"):
                led = httpx.get(url + path, headers={"Host": "evil.example"}, trust_env=False)  # as after a rebinding
                assert led.status_code == 403 and "set-cookie" not in led.headers and "version" not in led.text
        with sync_playwright() as playwright:
            chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
            page = chromium.new_page()
            page.set_default_timeout(60_000)
            log_in(page, pages_link(named))
            assert page.url.startswith(f"http://{named.page_host}:{named.port}/")
            attack(page, named, task, project.id)
            page.goto(project.labeling_url)  # printed for programs; the browser remembers the name
            page.wait_for_url(lambda url: named.page_host in url)
            page.get_by_role("button", name="Submit").first.wait_for()
            chromium.close()
        assert owner.whoami()["email"] == "owner@rlhf.local" and owner.get("/api/invite") == invitation
        assert owner.project(project.id)["total_annotations_number"] == 0
        assert [raw["title"] for raw in owner.projects()] == [project.title]
