"""A thin HTTP client of the Label Studio API: raw JSON in and out, retries of network faults and 5xx only."""

import json as jsonlib
import time
from collections.abc import Iterator
from datetime import datetime
from email.utils import parsedate_to_datetime
from types import TracebackType
from typing import Any, TypeVar

import httpx

from labeling.errors import BadCredentials, RequestRefused, ServerUnavailable, UnexpectedAnswer

PAGE_SIZE = 1000
FULL_PAGE_SIZE = 500
IMPORT_BATCH = 250
DEAR = (  # what the data manager works out for its columns; without it a list of tasks takes half the time
    *("annotations_results", "predictions_results", "annotations_ids", "drafts", "predictions", "avg_lead_time"),
    *("annotators", "storage_filename", "file_upload", "comment_authors", "predictions_model_versions", "created_ago"),
    *("predictions_score", "draft_exists", "completed_at", "inner_id", "total_predictions", "state", "is_labeled"),
)
NEVER_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)
T = TypeVar("T")


class LabelStudio:
    """One account's access to a server.

    Connections are not kept alive: the server writes an answer in two pieces, and on a kept connection the second waits
    40 ms for a delayed acknowledgement, which doubles the price of a small request.

    `server_time` is the server's clock at its latest answer (its `Date`, in whole seconds); None before the first.

    A request that may have done its work before it failed is repeated only where repeating is harmless: `get` and
    `patch` are, `post` only when it never reached the server or found it busy (503).
    """

    def __init__(
        self, url: str, token: str, *, timeout_seconds: float = 60.0, attempts: int = 4, backoff_seconds: float = 0.5
    ) -> None:
        self.url = url.rstrip("/")
        self.token = token
        self.server_time: datetime | None = None
        self._attempts = attempts
        self._backoff_seconds = backoff_seconds
        self._http = httpx.Client(
            base_url=self.url,
            headers={"Authorization": f"Token {token}"},
            timeout=timeout_seconds,
            trust_env=False,
            limits=httpx.Limits(max_keepalive_connections=0),
        )

    def __enter__(self) -> "LabelStudio":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def get(self, path: str, **params: Any) -> Any:
        """GET a JSON value."""
        return self._request("GET", path, params=params)

    def post(self, path: str, json: Any, **params: Any) -> Any:
        """POST a JSON value; see the class for when it is repeated."""
        return self._request("POST", path, json=json, params=params)

    def patch(self, path: str, json: Any) -> Any:
        """PATCH with a JSON value."""
        return self._request("PATCH", path, json=json)

    def delete(self, path: str) -> None:
        """DELETE; an answer without content is right."""
        self._request("DELETE", path)

    def _request(self, method: str, path: str, **arguments: Any) -> Any:
        cause: object = "no attempt"
        for attempt in range(self._attempts):
            if attempt:
                time.sleep(self._backoff_seconds * 2 ** (attempt - 1))
            try:
                answer = self._http.request(method, path, **arguments)
            except httpx.TransportError as error:
                cause = str(error) or type(error).__name__
                if method == "POST" and not isinstance(error, NEVER_SENT):
                    break
                continue
            self._read_clock(answer)
            if answer.status_code < 500:
                return self._value(answer)
            cause = f"{method} {path} answers {answer.status_code}"
            if method == "POST" and answer.status_code != 503:
                break
        raise ServerUnavailable(self.url, cause)

    def _read_clock(self, answer: httpx.Response) -> None:
        try:
            self.server_time = parsedate_to_datetime(answer.headers["Date"])
        except (KeyError, ValueError):
            return  # an answer without a date tells nothing

    def _value(self, answer: httpx.Response) -> Any:
        request = answer.request
        if answer.status_code == 401:
            raise BadCredentials(self.url, "the given token")
        if answer.status_code >= 300:
            raise RequestRefused(request.method, place(request.url), answer.status_code, answer.text)
        if not answer.content:
            return None
        try:
            return answer.json()
        except ValueError as error:
            told = f"{request.method} {place(request.url)}"
            raise UnexpectedAnswer(f"{told} did not answer with JSON: {error}") from error

    def whoami(self) -> dict[str, Any]:
        """The account of the token."""
        return expect(self.get("/api/current-user/whoami"), dict, "whoami")

    def projects(self) -> Iterator[dict[str, Any]]:
        """All projects, with all their fields."""
        page = 1
        while True:
            answer = expect(self.get("/api/projects", page=page, page_size=100), dict, "the list of projects")
            yield from answer["results"]
            if not answer.get("next"):
                return
            page += 1

    def project(self, project_id: int) -> dict[str, Any]:
        """A project with its settings and the present numbers of its tasks and annotations."""
        return expect(self.get(f"/api/projects/{project_id}/"), dict, "a project")

    def tasks(self, project_id: int, *fields: str) -> list[dict[str, Any]]:
        """All tasks of a project by id, with the given `fields` of each and without annotations."""
        wanted = ",".join({"id": None} | dict.fromkeys(fields))
        return list(self._walk(project_id, PAGE_SIZE, None, fields="task_only", include=wanted))

    def tasks_with_annotations(
        self, project_id: int, changed_after: datetime | None = None
    ) -> Iterator[dict[str, Any]]:
        """`id`, `data`, `updated_at` and all `annotations` (skips too) of the tasks, by id.

        With `changed_after` only of those that were changed later than that, themselves or in an annotation that was
        made, edited, skipped or deleted. A task that was deleted is simply not there.
        """
        omit = ",".join(DEAR)
        return self._walk(project_id, FULL_PAGE_SIZE, changed_after, fields="all", omit=omit, resolve_uri="false")

    def _walk(
        self, project_id: int, page_size: int, changed_after: datetime | None, **params: str
    ) -> Iterator[dict[str, Any]]:
        """Tasks by id, a page at a time, each page asked for by the id before it.

        Numbered pages would move when a task is deleted or changed between two requests, and pass over others.
        """
        last = 0
        while True:
            filters = [_filter("id", "Number", last)]
            if changed_after is not None:
                filters.append(_filter("updated_at", "Datetime", f"{changed_after:%Y-%m-%dT%H:%M:%S.%fZ}"))
            query = jsonlib.dumps({"filters": {"conjunction": "and", "items": filters}})
            answer = self.get("/api/tasks", project=project_id, page_size=page_size, query=query, **params)
            found = expect(answer, dict, "the list of tasks")
            rows = expect(found.get("tasks"), list, "the list of tasks")
            yield from rows
            if len(rows) >= int(found["total"]):
                return
            if max((row["id"] for row in rows), default=last) <= last:
                raise UnexpectedAnswer(f"{self.url} ignores the filter in a list of tasks: is it Label Studio 1.23?")
            last = rows[-1]["id"]

    def import_tasks(self, project_id: int, tasks: list[dict[str, Any]]) -> list[int]:
        """Add tasks (`{"data": …}`) in batches; return their ids in the order given. Does not look for duplicates."""
        ids: list[int] = []
        for first in range(0, len(tasks), IMPORT_BATCH):
            batch = tasks[first : first + IMPORT_BATCH]
            answer = self.post(f"/api/projects/{project_id}/import", batch, return_task_ids="true")
            ids += expect(answer, dict, "the answer to an import")["task_ids"]
        if len(ids) != len(tasks):
            raise UnexpectedAnswer(f"{len(tasks)} tasks were sent to project {project_id}, {len(ids)} were stored")
        return ids

    def delete_tasks(self, project_id: int, task_ids: list[int]) -> None:
        """Delete tasks with all their annotations; ids that are not there do not matter."""
        selected = {"all": False, "included": task_ids}
        self.post("/api/dm/actions", {"selectedItems": selected}, id="delete_tasks", project=project_id)

    def annotate(self, task_id: int, result: list[dict[str, Any]], lead_time: float, *, skip: bool = False) -> int:
        """Submit (or skip) a task as the account of this client; return the annotation's id."""
        body = {"result": result, "lead_time": lead_time, "was_cancelled": skip, "ground_truth": False}
        answer = self.post(f"/api/tasks/{task_id}/annotations/", body)
        return int(expect(answer, dict, "the answer to an annotation")["id"])


def place(url: httpx.URL) -> str:
    """An address for error messages: without its query, which may hold an invitation, and without user and password."""
    return str(url.copy_with(query=None, username="", password=""))


def _filter(column: str, kind: str, greater_than: Any) -> dict[str, Any]:
    """A filter of the data manager."""
    return {"filter": f"filter:tasks:{column}", "operator": "greater", "type": kind, "value": greater_than}


def expect(value: Any, kind: type[T], what: str) -> T:
    """`value`, if it is of `kind`. Raises UnexpectedAnswer."""
    if not isinstance(value, kind):
        raise UnexpectedAnswer(f"{what} is {type(value).__name__}, not {kind.__name__}: {str(value)[:200]}")
    return value
