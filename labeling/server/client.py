"""The client of the Label Studio API: label-studio-sdk over a retrying transport.

Writes use the SDK's methods. Projects, tasks and annotations are read as raw JSON, through the SDK's HTTP client: its
models parse times into objects, but the annotation store keeps the server's JSON unchanged.
"""

import json as jsonlib
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from email.utils import parsedate_to_datetime
from types import TracebackType
from typing import Any, ParamSpec, TypeVar

import httpx
import label_studio_sdk  # loads its names lazily: about a second, at the first client
from label_studio_sdk.core.api_error import ApiError
from label_studio_sdk.core.parse_error import ParsingError

from labeling.errors import (
    BadCredentials,
    LabelingError,
    RequestRefused,
    ServerFault,
    UnexpectedAnswer,
    UnreadableAnswer,
)
from labeling.server.transport import ONCE, RetryingTransport, raise_for_refusal, shown_url
from labeling.set_aside import unread

PAGE_SIZE = 1000
FULL_PAGE_SIZE = 500
IMPORT_BATCH = 250
IMPORT_CHARACTERS = 8_000_000  # of one request
EXPENSIVE_COLUMNS = (  # computed by the data manager; omitting them halves the time of listing tasks
    *("annotations_results", "predictions_results", "annotations_ids", "drafts", "predictions", "avg_lead_time"),
    *("annotators", "storage_filename", "file_upload", "comment_authors", "predictions_model_versions", "created_ago"),
    *("predictions_score", "draft_exists", "completed_at", "inner_id", "total_predictions", "state", "is_labeled"),
)
UNREADABLE = (ServerFault, UnreadableAnswer)  # a smaller request may succeed
MALFORMED = (ParsingError, AttributeError, KeyError, TypeError, ValueError)  # what reading a wrong response raises
P = ParamSpec("P")
T = TypeVar("T")


class LabelStudio:
    """One account's access to a server.

    Connections are not kept alive: the server writes a response in two segments, and on a persistent connection the
    second waits 40 ms for a delayed acknowledgement, which doubles the latency of a small request.

    `server_time` is the server's clock at its latest response (`Date` header, whole seconds); None before the first.

    Retries are left to `RetryingTransport`; the SDK's own would send a POST twice.
    """

    def __init__(
        self, url: str, token: str, *, timeout_seconds: float = 60.0, attempts: int = 4, backoff_seconds: float = 0.5
    ) -> None:
        self.url = url.rstrip("/")
        self.token = token
        self.server_time: datetime | None = None
        self._request_sent = f"a request to {self.url}"
        transport = httpx.HTTPTransport(trust_env=False, limits=httpx.Limits(max_keepalive_connections=0))
        self._http = httpx.Client(
            transport=RetryingTransport(self.url, transport, attempts, backoff_seconds),
            timeout=timeout_seconds,
            trust_env=False,
            event_hooks={
                "request": [self._note_request],
                "response": [self._read_clock, lambda response: raise_for_refusal(self.url, response)],
            },
        )
        self.sdk = _sdk(self.url, token, self._http)

    def __enter__(self) -> "LabelStudio":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def call(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """What a method of the SDK returns, or a function that reads its result.

        Errors of the SDK are raised as ours, without its frames, whose variables hold the token. Raises
        UnexpectedAnswer for a response that is no JSON, or JSON of another shape than the SDK expects.
        """
        failure: LabelingError
        try:
            return function(*args, **kwargs)
        except LabelingError as error:  # from the transport: a refusal, or an unreachable server
            failure = error.with_traceback(None)
        except ApiError as error:  # no refusal: the transport raises those
            failure = UnexpectedAnswer(f"{self._request_sent} did not respond with JSON: {str(error.body)[:200]}")
        except MALFORMED as error:
            failure = UnexpectedAnswer(
                f"{self._request_sent} sent a response that label-studio-sdk cannot parse: {str(error)[:200]}"
            )
        raise failure

    def get(self, path: str, *, once: bool = False, **params: Any) -> Any:
        """GET a JSON value; `once`: without retries."""
        return self._request("GET", path, params=params, headers={ONCE: "1"} if once else {})

    def post(self, path: str, json: Any, **params: Any) -> Any:
        """POST a JSON value."""
        return self._request("POST", path, params=params, **_json_body(json))

    def patch(self, path: str, json: Any) -> Any:
        """PATCH with a JSON value."""
        return self._request("PATCH", path, **_json_body(json))

    def delete(self, path: str) -> None:
        """DELETE; the response may be empty."""
        self._request("DELETE", path)

    def _request(self, method: str, path: str, **arguments: Any) -> Any:
        """The response body as parsed JSON, None if it is empty."""
        response = self.call(self.sdk._client_wrapper.httpx_client.request, path, method=method, **arguments)
        try:
            return response.json() if response.content else None
        except (ValueError, RecursionError) as error:  # also integers of 5,000 digits, and lists in lists in lists
            request = f"{method} {shown_url(response.request.url)}"
            raise UnreadableAnswer(f"{request} did not respond with JSON: {error}") from error

    def _note_request(self, request: httpx.Request) -> None:
        self._request_sent = f"{request.method} {shown_url(request.url)}"

    def _read_clock(self, response: httpx.Response) -> None:
        try:
            self.server_time = parsedate_to_datetime(response.headers["Date"])
        except (KeyError, ValueError):
            return  # no Date header: keep the previous time

    def whoami(self) -> dict[str, Any]:
        """The account of the token."""
        return expect(self.get("/api/current-user/whoami"), dict, "whoami")

    def projects(self, *fields: str) -> Iterator[dict[str, Any]]:
        """All projects, with these `fields` or all."""
        page = 1
        include: dict[str, Any] = {"include": ",".join(fields)} if fields else {}
        while True:
            answer = self.get("/api/projects", page=page, page_size=100, **include)
            listing = expect(answer, dict, "the list of projects")
            yield from listing["results"]
            if not listing.get("next"):
                return
            page += 1

    def project(self, project_id: int) -> dict[str, Any]:
        """A project with its settings and the current numbers of tasks and annotations."""
        return expect(self.get(f"/api/projects/{project_id}/"), dict, "a project")

    def tasks(self, project_id: int, *fields: str) -> list[dict[str, Any]]:
        """All tasks of a project by id, with these `fields` of each and without annotations."""
        include = ",".join({"id": None} | dict.fromkeys(fields))
        return list(self._walk(project_id, PAGE_SIZE, None, {}, fields="task_only", include=include))

    def tasks_with_annotations(
        self, project_id: int, changed_after: datetime | None = None, unreadable: dict[int, str] | None = None
    ) -> Iterator[dict[str, Any]]:
        """`id`, `data`, `updated_at` and all `annotations` (skips too) of the tasks, by id.

        With `changed_after`, only tasks changed later than that, including by an annotation that was created, edited,
        skipped or deleted. Deleted tasks are missing. A task that cannot be read is added to `unreadable` with the
        reason. An annotation on which the server fails (one that was posted with a lone surrogate or an infinite time,
        say) is replaced by a stand-in. Without `unreadable`, raises ServerFault and UnreadableAnswer.
        """
        omit = ",".join(EXPENSIVE_COLUMNS)
        options = {"fields": "all", "omit": omit, "resolve_uri": "false"}
        return self._walk(project_id, FULL_PAGE_SIZE, changed_after, unreadable, **options)

    def _walk(
        self,
        project_id: int,
        page_size: int,
        changed_after: datetime | None,
        unreadable: dict[int, str] | None,
        **params: Any,
    ) -> Iterator[dict[str, Any]]:
        """Tasks by id, by keyset pagination: each page starts after the last id of the previous one.

        Numbered pages would shift when a task is deleted or changed between two requests, and skip others.
        """
        last = 0
        while True:
            filters = [_filter("id", "greater", "Number", last)]
            if changed_after is not None:
                filters.append(_filter("updated_at", "greater", "Datetime", f"{changed_after:%Y-%m-%dT%H:%M:%S.%fZ}"))
            common: dict[str, Any] = {"project": project_id, "page_size": page_size}
            try:
                rows, total = self._page(filters, once=unreadable is not None, **common, **params)
                ids = [row["id"] for row in rows]
            except UNREADABLE:
                if unreadable is None:
                    raise
                listed, total = self._page(filters, **common, fields="task_only", include="id")
                ids = sorted(row["id"] for row in listed)
                rows = self._readable(ids, filters, unreadable, **common, **params)
            yield from rows
            if len(ids) >= total:
                return
            if max(ids, default=last) <= last:
                raise UnexpectedAnswer(f"{self.url} ignores the filter of a task list; Label Studio 1.23 is required")
            last = ids[-1]

    def _page(
        self, filters: list[dict[str, Any]], *, once: bool = False, **params: Any
    ) -> tuple[list[dict[str, Any]], int]:
        """(Rows, total number) of tasks that match the filters."""
        query = jsonlib.dumps({"filters": {"conjunction": "and", "items": filters}})
        page = expect(self.get("/api/tasks", once=once, query=query, **params), dict, "the list of tasks")
        return expect(page.get("tasks"), list, "the list of tasks"), int(page["total"])

    def _readable(
        self, ids: list[int], filters: list[dict[str, Any]], unreadable: dict[int, str], **params: Any
    ) -> list[dict[str, Any]]:
        """The tasks `ids`, by halves: those on which the server fails are found alone."""
        if not ids:
            return []
        among = [_filter("id", "greater", "Number", ids[0] - 1), _filter("id", "less", "Number", ids[-1] + 1)]
        try:
            rows, _ = self._page([*filters, *among], once=True, **params)
        except UNREADABLE as problem:
            if len(ids) == 1:
                unreadable[ids[0]] = f"it cannot be read: {problem}"
                return self._in_pieces(ids[0], unreadable, **params) if params["fields"] == "all" else []
            middle = len(ids) // 2
            first = self._readable(ids[:middle], filters, unreadable, **params)
            return first + self._readable(ids[middle:], filters, unreadable, **params)
        return [row for row in rows if row["id"] in ids]

    def _in_pieces(self, task_id: int, unreadable: dict[int, str], **params: Any) -> list[dict[str, Any]]:
        """A task with its annotations read one by one; nothing if its data cannot be read."""
        listing = params | {"include": "id,data,updated_at,annotations_ids"}
        del listing["omit"]
        try:
            rows, _ = self._page([_filter("id", "equal", "Number", task_id)], once=True, **listing)
        except UNREADABLE:
            return []
        del unreadable[task_id]
        for row in rows:
            numbers = [int(number) for number in str(row.pop("annotations_ids", "") or "").split(",") if number]
            row["annotations"] = [raw for number in numbers for raw in self._annotation(number, row)]
        return rows

    def _annotation(self, number: int, task: dict[str, Any]) -> list[dict[str, Any]]:
        """One annotation, or its stand-in if it cannot be read; none if it was deleted meanwhile."""
        try:
            return [expect(self.get(f"/api/annotations/{number}/", once=True), dict, "an annotation")]
        except UNREADABLE:
            return [unread(number, int(task["id"]), str(task["updated_at"]))]
        except RequestRefused as refusal:
            if refusal.status != 404:
                raise
            return []

    def import_tasks(self, project_id: int, tasks: list[dict[str, Any]]) -> list[int]:
        """Add tasks (`{"data": …}`) in batches; return their ids in the same order. Does not detect duplicates."""
        ids: list[int] = []
        for batch in import_batches(tasks):
            response = self.post(f"/api/projects/{project_id}/import", batch, return_task_ids="true")
            ids += expect(response, dict, "the response to an import")["task_ids"]
        if len(ids) != len(tasks):
            raise UnexpectedAnswer(f"{len(tasks)} tasks were sent to project {project_id}, {len(ids)} were stored")
        return ids

    def delete_tasks(self, project_id: int, task_ids: list[int]) -> None:
        """Delete tasks with all their annotations; unknown ids are ignored."""
        selected = {"all": False, "included": task_ids}
        self.post("/api/dm/actions", {"selectedItems": selected}, id="delete_tasks", project=project_id)

    def annotate(self, task_id: int, result: list[dict[str, Any]], lead_time: float, *, skip: bool = False) -> int:
        """Submit (or skip) a task as the account of this client; return the annotation's id."""
        create = self.sdk.annotations.create
        annotation_id = self.call(
            lambda: create(task_id, result=result, lead_time=lead_time, was_cancelled=skip, ground_truth=False).id
        )
        return expect(annotation_id, int, "the id of an annotation")


def _sdk(url: str, token: str, http: httpx.Client) -> "label_studio_sdk.LabelStudio":
    """The SDK's client. Raises BadCredentials for a personal access token that has expired or has no expiry date."""
    try:
        return label_studio_sdk.LabelStudio(base_url=url, api_key=token, httpx_client=http, max_retries=0)
    except ApiError:
        pass  # raised below, without the frames of the SDK, whose variables hold the token
    raise BadCredentials(url, "the given token, which has expired or has no expiry date")


def _json_body(value: Any) -> dict[str, Any]:
    """A body encoded as JSON here: the SDK's encoder, in pure Python, takes an eighth of the time of a large import."""
    body = jsonlib.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return {"content": body.encode(), "headers": {"Content-Type": "application/json"}}


def import_batches(tasks: Sequence[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """The tasks in batches of IMPORT_BATCH tasks and IMPORT_CHARACTERS at most; a longer task goes alone."""
    batch: list[dict[str, Any]] = []
    characters = 0
    for task in tasks:
        size = len(jsonlib.dumps(task, ensure_ascii=False))
        if batch and (len(batch) >= IMPORT_BATCH or characters + size > IMPORT_CHARACTERS):
            yield batch
            batch, characters = [], 0
        batch.append(task)
        characters += size
    if batch:
        yield batch


def _filter(column: str, operator: str, kind: str, value: Any) -> dict[str, Any]:
    """A filter of the data manager."""
    return {"filter": f"filter:tasks:{column}", "operator": operator, "type": kind, "value": value}


def expect(value: Any, kind: type[T], what: str) -> T:
    """`value`, if it is of `kind`. Raises UnexpectedAnswer."""
    if not isinstance(value, kind):
        raise UnexpectedAnswer(f"{what} is {type(value).__name__}, not {kind.__name__}: {str(value)[:200]}")
    return value
