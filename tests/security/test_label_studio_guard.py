"""The guard within Label Studio: what an annotator's account may do, and which addresses the server connects to."""

import json
import shutil
import socket
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from labeling.errors import BadCredentials, RequestRefused
from labeling.server import users
from labeling.server.client import LabelStudio
from labeling.server.guard.rlhf_guard.accounts import is_open, query_refusal
from labeling.server.guard.rlhf_guard.bodies import MOST_FILTERS, account_refusal, body_refusal, filter_refusal
from labeling.server.guard.rlhf_guard.connections import is_outside
from labeling.server.guard.rlhf_guard.passwords import FAILURES, Attempts, is_log_in
from labeling.server.process import running_server
from labeling.server.users import ensure_account
from labeling.tasks.projects import open_project
from labeling.tasks.tasks import build_tasks
from labeling.tasks.upload import push
from tests.labeling.helpers import TOKEN, response_set, settings
from tests.labeling.judgements.test_parse import preference

INSIDE = (
    *("127.0.0.1", "127.9.9.9", "0.0.0.0", "10.0.0.1", "172.16.3.4", "192.168.1.1", "169.254.169.254", "100.64.0.1"),
    *("::1", "::", "::ffff:127.0.0.1", "fe80::1%eth0", "fd00::1", "64:ff9b::7f00:1", "2002:7f00:1::", "224.0.0.1"),
    *("localhost", "a.name", "2130706433"),
)


@pytest.mark.parametrize("host", INSIDE)
def test_no_address_of_the_machine_or_its_network_is_connected_to(host: str) -> None:
    assert not is_outside((host, 80))


def test_public_addresses_are_and_sockets_in_the_file_system_are_not() -> None:
    assert is_outside(("1.1.1.1", 443)) and is_outside(("2606:4700::1111", 443, 0, 0))
    assert not is_outside("/var/run/docker.sock") and not is_outside(b"\0abstract")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))
        assert not is_outside((probe.getsockname()[0], 80))


@pytest.mark.parametrize(
    ("permission", "view", "method", "expected"),
    [
        ("projects.view", "ProjectAPI", "GET", True),
        ("projects.view", "ProjectActionsAPI", "POST", False),
        ("organizations.invite", "OrganizationInviteAPI", "GET", False),
        ("storages.view", "AllImportStorageListAPI", "GET", False),
        ("annotations.create", "AnnotationsListAPI", "POST", True),
        ("", "SomethingNew", "POST", False),
    ],
)
def test_what_is_not_named_is_the_owners(permission: str, view: str, method: str, expected: bool) -> None:
    assert is_open(permission, view, method) is expected


def test_bodies_are_plain_and_in_ones_own_name() -> None:
    assert not body_refusal({"result": [], "completed_by": 5}, 5) and not body_refusal({}, 5)
    assert "own name" in body_refusal({"completed_by": 6}, 5)
    assert "plain JSON" in body_refusal({"result": ["\ud800"]}, 5)
    assert "plain JSON" in body_refusal({"lead_time": float("inf")}, 5)
    assert body_refusal([1], 5) == "not an object"
    for field in ("updated_by", "last_created_by", "user"):
        assert "own name" in body_refusal({field: 6}, 5)
    assert "ground truths" in body_refusal({"ground_truth": True}, 5)
    assert not body_refusal({"ground_truth": False, "lead_time": "9.5"}, 5)


class Form(dict[str, list[str]]):
    """A form as Django has it: a field may be repeated."""

    def lists(self) -> list[tuple[str, list[str]]]:
        return [*self.items()]

    def getlist(self, name: str) -> list[str]:
        return self.get(name, [])


SURROGATE = json.dumps([{"x": "\ud800"}])  # ASCII, with an escape
ODD_RESULTS = (
    *(SURROGATE, json.dumps(SURROGATE), "[NaN]", "[1e999]", "[-Infinity]", "[", "{}", '"[]', "7", f"[{2**63}]"),
    *("[" * 60 + "]" * 60, "[" * 100_000, "[" + "9" * 5000 + "]"),
)
ODD_TIMES = (
    *("inf", "-inf", "nan", "Infinity", " inf ", "1e999", "NaN", "x", "\uff11e999", "9" * 400),
    *("1.7e308", "-1.7e308", "1e9"),  # two of the first add up to infinity
)
ODD_ITEMS: tuple[Any, ...] = (  # on which Label Studio's counts or exports fail
    *(True, "x", [], {}, {"from_name": "preference"}, {"from_name": "preference", "value": "x"}),
    *({"from_name": {"a": 1}, "value": {}}, {"from_name": "a", "to_name": [], "value": {}}, {"type": 7, "value": {}}),
    {"from_name": "preference", "to_name": "prompt", "type": "rating", "value": {"rating": 3}},
    {"from_name": "preference", "to_name": "prompt", "type": "choices", "value": {"choices": {"a": 1}}},
    {"from_name": "rationale", "to_name": "prompt", "type": "textarea", "value": {}},
)
CONTROLS = {"preference": "Choices", "rationale": "TextArea"}


@pytest.mark.parametrize("result", ODD_RESULTS)
def test_results_are_decoded_and_plain(result: str) -> None:
    assert body_refusal({"result": result}, 5)
    assert body_refusal(Form(result=["[]", result]), 5)
    assert body_refusal(Form(result=[json.dumps(result)]), 5)


@pytest.mark.parametrize("time", ODD_TIMES)
def test_times_can_be_averaged_also_as_texts(time: str) -> None:
    assert body_refusal({"lead_time": time}, 5) and body_refusal(Form(lead_time=["1.0", time]), 5)


def test_results_as_texts_are_taken() -> None:
    good = [
        preference("a_1"),
        {"from_name": "rationale", "value": {"text": ["\u00e9\U0001f600"], "number": 1e308}},
        {"type": "relation", "from_id": "a", "to_id": "b"},
    ]
    assert not body_refusal({"result": good}, 5, CONTROLS)
    for text in (json.dumps(good), json.dumps(good, ensure_ascii=False), json.dumps(json.dumps(good))):
        assert not body_refusal({"result": text}, 5) and not body_refusal(Form(result=[text], lead_time=["2"]), 5)


@pytest.mark.parametrize("item", ODD_ITEMS)
def test_items_of_results_are_what_label_studio_counts_and_exports(item: Any) -> None:
    assert body_refusal({"result": [preference("a_1"), item]}, 5, CONTROLS)
    assert body_refusal(Form(result=[json.dumps([item])]), 5, CONTROLS)


def test_every_field_that_holds_json_text_is_plain() -> None:
    for field in ("custom_hotkeys", "interaction_data", "data", "filter_group.filters[0].value"):
        for text in (SURROGATE, json.dumps(SURROGATE), "[NaN]", "1e999", "[" * 60 + "]" * 60, "[" * 100_000):
            assert body_refusal(Form({field: ["", text]}), 5), (field, text[:20])
            assert body_refusal({field: text}, 5)
    for text in ('{"a:b": {"key": "x"}}', "Mia [x", "\u00e9", "", "7", '"'):
        assert not body_refusal(Form(first_name=[text]), 5)


def test_regular_expressions_and_huge_queries_are_the_owners() -> None:
    contains = {"filter": "filter:tasks:data.text", "operator": "contains"}
    assert not filter_refusal([contains] * MOST_FILTERS)
    assert "filters" in filter_refusal([contains] * (MOST_FILTERS + 1))
    assert "filters" in filter_refusal([contains | {"child_filter": contains}] * (MOST_FILTERS // 2 + 1))
    nested = {"operator": "less", "child_filter": {"operator": "greater", "child_filter": {"operator": "Regex"}}}
    lookup, stored = {"filter": "filter:tasks:data.text__iregex"}, {"column": "filter:tasks:data.text__regex"}
    dotted = {"operator": "equal", "filter": "filter:tasks:data.iRegex"}
    for items in (
        [{"operator": "regex"}],
        [contains, nested],
        [contains | lookup],
        [{"operator": "equal"} | stored],
        [dotted],
    ):
        assert "regular expressions" in filter_refusal(items)
    assert not query_refusal("project=1", "1000") and query_refusal("", "1001") and query_refusal("x" * 20_001, "")


def test_an_account_has_its_own_name() -> None:
    own = {"username": "mia", "active_organization": 1}
    assert not account_refusal({"first_name": "Mia", "username": "mia", "active_organization": "1"}, own)
    for change in ({"username": "ned"}, {"active_organization": 2}, {"last_name": "ned@guard.local"}):
        assert account_refusal(change, own)
    assert account_refusal({"first_name": "ned\uff20guard.local"}, own)  # a wide @


def test_wrong_passwords_are_limited_by_address_and_account() -> None:
    attempts, who = Attempts(), ("127.0.0.1", "mia@guard.local")
    assert all(attempts.begin(who) for _ in range(FAILURES)) and not attempts.begin(who)
    assert attempts.begin(("127.0.0.1", "ned@guard.local")) and attempts.begin(("127.0.0.2", "mia@guard.local"))
    attempts.forget(who)  # one of them was right
    assert attempts.begin(who) and not attempts.begin(who)
    for path in ("/user/login/", "/admin/login/", "/api-auth/login/", "/user/login"):
        assert is_log_in("POST", path) and not is_log_in("GET", path)
    assert not is_log_in("POST", "/api/tasks/")


@pytest.mark.server
def test_an_annotator_annotates_and_does_not_administer(owner: LabelStudio) -> None:
    project = open_project(owner, "pairwise", "guarded", 2)
    tasks = build_tasks("pairwise", [response_set(number) for number in range(2)], 0)[0]
    first, second = push(owner, project, tasks).ids.values()
    mine, other = (ensure_account(owner, f"{name}@guard.local", f"password of {name}") for name in ("mia", "ned"))
    with (
        LabelStudio(owner.url, mine.token.get_secret_value()) as mia,
        LabelStudio(owner.url, other.token.get_secret_value()) as ned,
    ):
        number, foreign = mia.annotate(first, [preference("a_1")], 1.0), ned.annotate(first, [preference("b_1")], 1.0)
        mia.patch(f"/api/annotations/{number}/", {"result": [preference("a_2")]})
        mia.post(f"/api/tasks/{second}/drafts", {"result": [preference("a_2")]})
        everything = {"selectedItems": {"all": True, "excluded": []}}
        assert mia.post("/api/dm/actions", everything, id="next_task", project=project.id)["id"] == second
        path = f"/api/projects/{project.id}"
        forged = {"result": [preference("b_3")], "completed_by": other.id}
        attempts = (
            lambda: mia.get("/api/invite"),
            lambda: mia.post("/api/invite/reset-token", {}),
            lambda: mia.post("/api/projects", {"title": "mine", "description": "Made by rlhf-flows"}),
            lambda: mia.patch(f"{path}/", {"maximum_annotations": 50}),
            lambda: mia.delete(f"{path}/"),
            lambda: mia.delete(f"/api/tasks/{first}/"),
            lambda: mia.patch(f"/api/tasks/{first}/", {"data": {}}),
            lambda: mia.delete_tasks(project.id, [first]),
            lambda: mia.import_tasks(project.id, [{"data": tasks[0].data}]),
            lambda: mia.post("/api/webhooks/", {"project": project.id, "url": "https://example.org"}),
            lambda: mia.post("/api/storages/gcs/validate", {"project": project.id, "bucket": "b"}),
            lambda: mia.post("/api/ml/", {"project": project.id, "url": "https://example.org"}),
            lambda: mia.patch(f"/api/users/{other.id}/", {"first_name": "Mia"}),
            lambda: mia.post(f"/api/tasks/{second}/annotations/", forged),
            lambda: mia.patch(f"/api/annotations/{number}/", {"completed_by": other.id}),
            lambda: mia.patch(f"/api/annotations/{foreign}/", {"result": []}),
            lambda: mia.delete(f"/api/annotations/{foreign}/"),
            lambda: mia.post(f"/api/tasks/{second}/annotations/", {"result": [{"x": 2_000_000 * "y"}]}),
        )
        for attempt in attempts:
            with pytest.raises(RequestRefused, match="refused with 403"):
                attempt()
    assert owner.project(project.id)["task_number"] == 2


def stranger(owner: LabelStudio, email: str) -> str:
    """The token of somebody who signed up with the invitation, and whom nobody named."""
    with httpx.Client(base_url=owner.url, trust_env=False, timeout=60) as http:
        users._sign_up(owner, http, email, "password of a stranger")
        users._log_in(http, email, "password of a stranger")
        return str(http.get("/api/current-user/token").json()["token"])


@pytest.mark.server
def test_somebody_whom_nobody_named_takes_no_task_from_others(owner: LabelStudio) -> None:
    project = open_project(owner, "pairwise", "strangers", 2)
    (task,) = push(owner, project, build_tasks("pairwise", [response_set(0)], 0)[0]).ids.values()
    mia = ensure_account(owner, "mia@guard.local", "password of mia")
    offer = {"id": "next_task", "project": project.id}
    for number in range(2):
        with LabelStudio(owner.url, stranger(owner, f"sock{number}@puppet.local")) as sock:
            attempts = (
                lambda sock=sock: sock.post(f"/api/tasks/{task}/annotations/", {"result": []}),
                lambda sock=sock: sock.post(f"/api/tasks/{task}/drafts", {"result": []}),
                lambda sock=sock: sock.post("/api/dm/actions", {}, **offer),
                lambda sock=sock: sock.get(f"/api/projects/{project.id}/next"),
                lambda sock=sock: sock.post("/api/dm/views/", {"project": project.id, "data": {}}),
                lambda sock=sock: sock.post("/api/rlhf/annotators", {"ids": [sock.whoami()["id"]]}),
            )
            for attempt in attempts:
                with pytest.raises(RequestRefused, match="refused with 403"):
                    attempt()
    with LabelStudio(owner.url, mia.token.get_secret_value()) as client:
        assert client.post("/api/dm/actions", {}, **offer)["id"] == task
        client.annotate(task, [preference("a_1")], 1.0)


def refused(http: httpx.Client, method: str, path: str, **content: Any) -> None:
    answer = http.request(method, path, **content)
    assert answer.status_code == 403, (method, path, content, answer.status_code, answer.text[:200])


@pytest.mark.server
def test_what_others_started_is_theirs_and_what_pages_fail_on_is_refused(owner: LabelStudio) -> None:
    """Drafts, tabs, stars and names of others; odd values in every content type; filters that run for hours."""
    project = open_project(owner, "pairwise", "drafts", 3)
    tasks = build_tasks("pairwise", [response_set(number) for number in range(2)], 0)[0]
    first, second = push(owner, project, tasks).ids.values()
    mine, other = (ensure_account(owner, f"{name}@guard.local", f"password of {name}") for name in ("mia", "ned"))
    regex = {"filter": "filter:tasks:annotations_results", "operator": "regex", "type": "String", "value": "(a+)+$"}
    filters = {"filters": {"conjunction": "and", "items": [regex]}}
    view = owner.post("/api/dm/views/", {"project": project.id, "data": {"title": "the owner's", **filters}})["id"]
    starred = owner.post(f"/api/tasks/{first}/annotations/", {"result": [preference("a_1")], "ground_truth": True})
    with LabelStudio(owner.url, other.token.get_secret_value()) as ned:
        draft = ned.post(f"/api/tasks/{first}/drafts", {"result": [preference("a_3")]})["id"]
        theirs = ned.annotate(first, [preference("a_3")], 1.0)
        headers = {"Authorization": f"Token {mine.token.get_secret_value()}"}
        with httpx.Client(base_url=owner.url, headers=headers, trust_env=False, timeout=30) as http:
            own = http.post(f"/api/tasks/{first}/drafts", json={"result": [preference("b_1")]}).json()["id"]
            kept = http.post(f"/api/tasks/{first}/annotations/", json={"result": [preference("b_1")]}).json()["id"]
            for method, path, body in (
                ("GET", f"/api/drafts/{draft}/", None),
                ("PATCH", f"/api/drafts/{draft}/", {"result": [preference("b_3")]}),
                ("PUT", f"/api/drafts/{draft}/", {"result": [preference("b_3")]}),
                ("DELETE", f"/api/drafts/{draft}/", None),
                ("PATCH", f"/api/drafts/{own}/", {"task": second}),
                ("PATCH", f"/api/drafts/{own}/", {"annotation": theirs}),
                ("PATCH", f"/api/drafts/{own}/", {"user": other.id}),
                ("POST", f"/api/tasks/{first}/annotations/{theirs}/drafts", {"result": []}),
                ("POST", f"/api/annotations/{theirs}/convert-to-draft", {}),
                ("PATCH", f"/api/annotations/{kept}/", {"task": second}),
                ("PATCH", f"/api/annotations/{kept}/", {"updated_by": other.id}),
                ("PATCH", f"/api/annotations/{kept}/", {"ground_truth": True}),
                ("POST", f"/api/tasks/{first}/annotations/", {"result": [], "ground_truth": "true"}),
                ("PATCH", f"/api/dm/views/{view}/", {"data": {"title": "mine"}}),
                ("DELETE", f"/api/dm/views/{view}/", None),
                ("POST", "/api/dm/views/order/", {"project": project.id, "ids": [view]}),
                ("POST", "/api/dm/views/", {"project": project.id, "data": {"title": "x" * 60_000}}),
                ("DELETE", f"/api/dm/views/reset/?project={project.id}", None),
                ("PATCH", f"/api/users/{mine.id}/", {"username": "ned"}),
                ("PATCH", f"/api/users/{mine.id}/", {"first_name": "ned@guard.local"}),
                ("GET", f"/api/projects/{project.id}/export?exportType=JSON", None),
                ("POST", "/api/predictions/", {"task": first, "result": []}),
            ):
                refused(http, method, path, **({} if body is None else {"json": body}))
            for path in (f"/api/tasks/{second}/annotations/", f"/api/tasks/{second}/drafts"):
                for odd in ({"result": SURROGATE}, {"result": "[]", "lead_time": "inf"}, {"result": "[NaN]"}):
                    refused(http, "POST", path, json=odd)
                    refused(http, "POST", path, data=odd)
                    refused(http, "POST", path, files={name: (None, value) for name, value in odd.items()})
                refused(http, "POST", path, files={"result": ("result.json", "[]")})
            query = {"project": project.id, "query": json.dumps(filters)}
            refused(http, "GET", "/api/tasks", params=query)
            refused(http, "GET", "/api/tasks", params={"project": project.id, "view": view})
            refused(http, "GET", "/api/tasks", params={"project": project.id, "page_size": 100_000})
            refused(http, "POST", f"/api/dm/actions?id=next_task&project={project.id}", json=filters)
            answer = http.post("/api/dm/views/", json={"project": project.id, "data": {"title": "mine"}})
            mine_view = answer.json()["id"]
            assert http.patch(f"/api/dm/views/{mine_view}/", json={"data": {"title": "x"}}).status_code == 200
            assert [row["id"] for row in http.get(f"/api/tasks/{first}/drafts").json()] == [own]
            good = {"result": json.dumps([preference("b_1")]), "lead_time": "2.5"}
            assert http.post(f"/api/tasks/{second}/annotations/", data=good).status_code == 201
        assert ned.get(f"/api/drafts/{draft}/")["result"] == [preference("a_3")]
    assert owner.get(f"/api/annotations/{starred['id']}/")["ground_truth"] is True
    assert owner.get(f"/api/projects/{project.id}/export", exportType="JSON")


@pytest.mark.server
def test_what_an_account_stores_stops_nobody_else(owner: LabelStudio) -> None:
    """Hotkeys, times, tabs and results on which the pages of others, lists and exports would fail."""
    project = open_project(owner, "pairwise", "poison", 3)
    (task,) = push(owner, project, build_tasks("pairwise", [response_set(0)], 0)[0]).ids.values()
    mia = ensure_account(owner, "mia@guard.local", "password of mia")
    me, tab = f"/api/users/{mia.id}/", {"project": project.id}
    column = {"filter": "filter:tasks:data.text", "operator": "regex", "type": "String", "value": "(a+)+$"}
    lookup = column | {"filter": "filter:tasks:data.prompt__regex", "operator": "equal"}
    plain = column | {"operator": "contains", "value": "a"}
    hotkeys = json.dumps({"a:b": {"key": "\ud800"}})
    group = {"filter_group.conjunction": "and", "filter_group.filters[0]column": column["filter"]}
    group |= {f"filter_group.filters[0]{name}": str(column[name]) for name in ("operator", "type", "value")}
    with httpx.Client(base_url=owner.url, trust_env=False, timeout=30) as http:
        http.headers["Authorization"] = f"Token {mia.token.get_secret_value()}"
        refused(http, "PATCH", me, data={"custom_hotkeys": hotkeys})
        refused(http, "PATCH", "/api/current-user/product-tour?name=x", data={"interaction_data": hotkeys})
        refused(http, "PATCH", me, json={"custom_hotkeys": {f"a:{number}": {} for number in range(20_000)}})
        refused(http, "PATCH", me, json={"date_joined": "2020-01-01T00:00:00Z"})
        joined = http.get(me).json()["date_joined"]
        assert http.patch(me, json={"first_name": "Mia", "date_joined": joined}).status_code == 200
        for path in (f"/api/tasks/{task}/annotations/", f"/api/tasks/{task}/drafts"):
            refused(http, "POST", path, json={"result": [], "lead_time": 1.7e308})
            refused(http, "POST", path, data={"result": "[]", "lead_time": "1.7e308"})
            for item in ODD_ITEMS:
                refused(http, "POST", path, json={"result": [item]})
        for hidden in (column, lookup, plain | {"child_filter": column}, plain | {"child_filter": lookup}):
            filters = {"filters": {"conjunction": "and", "items": [plain, hidden]}}
            refused(http, "POST", "/api/dm/views/", json=tab | {"data": {"title": "x"} | filters})
            refused(http, "GET", "/api/tasks", params=tab | {"query": json.dumps(filters)})
        refused(http, "POST", "/api/dm/views/", json=tab | {"data": {}, "filter_group": _group(column)})
        many = {"filters": {"conjunction": "and", "items": [plain] * 21}}
        refused(http, "POST", "/api/dm/views/", json=tab | {"data": many})
        view = http.post("/api/dm/views/", json=tab | {"data": {"title": "mine"}}).json()["id"]
        refused(http, "PATCH", f"/api/dm/views/{view}/", json=tab | {"data": {"filters": filters["filters"]}})
        assert http.post("/api/dm/views/", data=tab | group).status_code >= 400
        assert http.post(f"/api/tasks/{task}/annotations/", json={"result": [preference("a_1")]}).status_code == 201
    assert {row["id"] for row in owner.get("/api/users")} >= {mia.id}
    assert owner.get(f"/api/tasks/{task}/") and owner.tasks_with_annotations(project.id)
    headers = {"Authorization": f"Token {TOKEN}"}
    for kind in ("JSON", "JSON_MIN", "CSV"):
        path = f"{owner.url}/api/projects/{project.id}/export?exportType={kind}"
        assert httpx.get(path, headers=headers, trust_env=False, timeout=60).status_code == 200


def _group(column: dict[str, str]) -> dict[str, Any]:
    return {"conjunction": "and", "filters": [column | {"column": column["filter"]}]}


@pytest.mark.server
def test_the_owner_does_not_run_the_filters_of_a_tab_of_somebody_else(
    owner: LabelStudio, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A tab that was stored before the guard refused it."""
    project = open_project(owner, "pairwise", "tabs", 3)
    push(owner, project, build_tasks("pairwise", [response_set(0)], 0)[0])
    mia = ensure_account(owner, "mia@guard.local", "password of mia")
    regex = {"filter": "filter:tasks:data.prompt", "operator": "regex", "type": "String", "value": "."}
    filters = {"filters": {"conjunction": "and", "items": [regex]}}
    view = owner.post("/api/dm/views/", {"project": project.id, "data": {"title": "x", **filters}})["id"]
    assert owner.get("/api/tasks", project=project.id, view=view)["total"] == 1
    (database,) = tmp_path_factory.getbasetemp().glob("label-studio[0-9]*/data/label_studio.sqlite3")
    with closing(sqlite3.connect(database, timeout=30)) as connection:
        connection.execute("UPDATE data_manager_view SET user_id = ? WHERE id = ?", (mia.id, view))
        connection.commit()
    with pytest.raises(RequestRefused, match=f"of account {mia.id}"):
        owner.get("/api/tasks", project=project.id, view=view)
    assert [row["id"] for row in owner.get("/api/dm/views/", project=project.id)] == [view]
    owner.delete(f"/api/dm/views/{view}/")


@pytest.mark.server
def test_the_invitation_is_the_owners_and_names_do_not_look_alike(owner: LabelStudio) -> None:
    token = owner.get("/api/invite")["token"]
    mia = ensure_account(owner, "mia@guard.local", "password of mia")
    for account in (mia.token.get_secret_value(), stranger(owner, "sock@invited.local")):
        with httpx.Client(base_url=owner.url, trust_env=False, timeout=30) as http:
            http.headers["Authorization"] = f"Token {account}"
            for path in ("/api/organizations/1", "/api/organizations", "/api/organizations/1/memberships", "/people/"):
                answer = http.get(path, follow_redirects=True)
                assert answer.status_code == 200 and token not in answer.text, path
    assert "token" not in owner.get("/api/organizations/1")
    with httpx.Client(base_url=owner.url, trust_env=False, timeout=60) as http:
        for twin in ("mia@guard.local\u200b", "mia@gu\u0430rd.local"):
            with pytest.raises(BadCredentials):
                users._sign_up(owner, http, twin, "password of a twin")
        assert users._log_in(http, "mia@guard.local", "password of mia")
        names = {"first_name": "ned@guard.local", "last_name": "", "phone": ""}
        assert http.post("/user/account/", data=names).status_code == 200  # the form again
        assert http.post("/user/account/", data=names | {"first_name": "Mia"}).status_code == 302
    assert owner.get(f"/api/users/{mia.id}/")["first_name"] == "Mia"


@pytest.mark.server
def test_wrong_passwords_of_an_account_are_limited(owner: LabelStudio) -> None:
    ensure_account(owner, "ned@guard.local", "password of ned")
    with httpx.Client(base_url=owner.url, trust_env=False, timeout=60) as http:
        page = http.get("/user/login/")
        email = f"{'g' * 250}@guard.local"  # too long: refused without the tenths of a second that a password takes
        form = {"email": email, "csrfmiddlewaretoken": users._form_token(page)}
        headers = {"Referer": str(page.request.url)}
        for number in range(FAILURES):
            assert http.post("/user/login/", data=form | {"password": f"{number}"}, headers=headers).status_code == 200
        shut_out = [http.post(path, data=form, headers=headers) for path in ("/user/login/", "/api-auth/login/")]
        assert [answer.status_code for answer in shut_out] == [429, 429] and shut_out[0].headers["Retry-After"] == "60"
        assert users._log_in(http, "ned@guard.local", "password of ned")


@pytest.fixture
def listener() -> Iterator[tuple[int, list[str]]]:
    """A server on loopback that notes who calls it: its port, and the paths."""
    calls: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            calls.append(self.path)
            self.send_error(400)

        do_GET = do_PUT = do_HEAD = do_POST

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield server.server_port, calls
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.long
def test_not_even_the_owner_makes_the_server_call_its_own_machine(
    tmp_path: Path, listener: tuple[int, list[str]], label_studio_data: Path
) -> None:
    port, calls = listener
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()
    account = {"type": "service_account", "private_key": pem, "client_email": "a@b.iam", "private_key_id": "1"}
    shutil.copytree(label_studio_data, tmp_path / "data")
    guarded = settings(tmp_path / "data").model_copy(update={"local_webhooks": False})
    with running_server(guarded, timeout_seconds=600) as url, LabelStudio(url, TOKEN, timeout_seconds=30.0) as owner:
        project = open_project(owner, "pairwise", "addresses", 2)
        headers = {"Authorization": f"Token {TOKEN}"}
        with httpx.Client(base_url=url, headers=headers, trust_env=False, timeout=20) as http:
            for host in ("127.0.0.1", "localhost", "[::ffff:127.0.0.1]"):
                credentials = json.dumps(account | {"token_uri": f"http://{host}:{port}/token"})
                storage = {"project": project.id, "bucket": "b", "google_application_credentials": credentials}
                try:  # Google's library repeats a refused connection for minutes
                    http.post("/api/storages/gcs/validate", json=storage)
                except httpx.ReadTimeout:
                    continue
            s3 = {"project": project.id, "bucket": "b", "s3_endpoint": f"http://127.0.0.1:{port}"}
            http.post("/api/storages/s3/validate", json=s3)
            http.post("/api/webhooks/", json={"project": project.id, "url": f"http://127.0.0.1:{port}/hook"})
            http.post("/api/ml/", json={"project": project.id, "url": f"http://127.0.0.1:{port}/ml"})
            http.post(f"/api/projects/{project.id}/import", json={"url": f"http://127.0.0.1:{port}/rows.json"})
    assert calls == []
