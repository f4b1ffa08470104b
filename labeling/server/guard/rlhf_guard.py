"""A middleware for Label Studio Community, which treats all users alike and connects to addresses that they name.

- Only the owner of the organisation administers: invitations, projects, tasks, exports, storages, webhooks, other
  accounts. Annotators read, and write annotations, drafts and views: their own, in their own name, and no larger or
  odder than we store. Accounts that the owner did not name as annotators only read.
- Requests of browsers come from Label Studio's own pages: its session cookie goes to every port of a host, and its
  check for forged requests is off for the API. With RLHF_PAGE_HOST pages have a host name of their own, and browsers
  that ask under another get a page that leads there and no cookie.
- Filters by regular expression, which can run for hours, are the owner's.
- With SSRF protection no connection is made to this machine or its network, by whatever library, for anybody. Label
  Studio checks the addresses of storages and webhooks, but not those within credentials (`token_uri`). Its database
  is not concerned: psycopg connects in C.

Written for Label Studio 1.23; imports only what its environment has.
"""

import errno
import ipaddress
import json
import math
import os
import socket
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

SAFE = ("GET", "HEAD", "OPTIONS")
SECRET = ("organizations.invite", "storages.", "webhooks.", "model_provider_connection.")  # only the owner reads them
WRITABLE = ("annotations.", "views.create", "views.change", "views.delete", "avatar.", "users.token.")
JUDGING = ("annotations.", "views.")  # what only annotators write
OWN_ACCOUNT = ("UserAPI", "UserHotkeysAPI", "ProductTourAPI", "DecoratedTokenRefreshView", "LSTokenBlacklistView")
OWN_ANNOTATION = ("AnnotationAPI", "AnnotationConvertAPI")
OWNERS_MODULES = ("data_export.api",)  # an export reads a whole project at once
PEOPLE = ("completed_by", "updated_by", "last_created_by", "user")  # fields that name an account
NO = ("", "0", "false", "f", "no", "n", "off", "none", "null")
LARGEST = 1_500_000  # bytes of a request by an annotator
LARGEST_VIEW = 50_000  # bytes of a tab of the data manager
LONGEST_QUERY = 20_000  # characters of a query string
LARGEST_PAGE = 1000  # rows
MOST_FILTERS = 20
DEEPEST = 50
GREATEST_INTEGER = 2**63 - 1
ENCODED = 3  # a result in a form is JSON text of JSON text at most
GROUP = "annotators"
NAT64 = ipaddress.ip_network("64:ff9b::/96")
SAME_ORIGIN = ("same-origin", "none")  # Sec-Fetch-Site of own pages, and of what a person typed
COOKIES = ("sessionid", "csrftoken")
PROGRAMS = """<!doctype html><meta charset="utf-8"><title>Label Studio</title>
<p>This address is for programs. Open Label Studio's pages by the link that <code>rlhf status</code> prints.</p>
<script>
const name = /^#labels-[0-9a-f]{16}$/.test(location.hash) ? location.hash.slice(1) : localStorage.getItem("name");
if (name) {
  localStorage.setItem("name", name);
  const port = location.port ? ":" + location.port : "";
  location.replace(`http://${name}.localhost${port}${location.pathname}${location.search}`);
}
</script>
"""
PROGRAMS_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; script-src 'unsafe-inline'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
}
_state = threading.local()
_held: list[socket.socket] = []


class Guard:
    """The middleware. It is set up with the first handler, when all of Label Studio is loaded."""

    ready = armed = False

    def __init__(self, get_response: Callable[[Any], Any]) -> None:
        self._get_response = get_response
        self._page_host = os.environ.get("RLHF_PAGE_HOST", "").lower()
        if not Guard.ready:
            _guard_views()
            _guard_filters()
            _guard_drafts()
            _restore_token()
            _hold(self._page_host)
            Guard.ready = True

    def __call__(self, request: Any) -> Any:
        """The response. Connections are guarded from the first request on: starting the server asks its own port."""
        from django.conf import settings  # type: ignore[import-not-found]

        if not Guard.armed:
            Guard.armed = True
            if settings.SSRF_PROTECTION_ENABLED:
                sys.addaudithook(_on_event)
        if elsewhere(self._page_host, request.META):
            return _address_for_programs(request)
        public = urlsplit(settings.HOSTNAME or "").netloc
        if reason := origin_refusal(request.method, request.path, request.META, public, _has_session(request)):
            from django.http import HttpResponse  # type: ignore[import-not-found]

            return HttpResponse(reason, status=403, content_type="text/plain")
        return self._get_response(request)


# --- browsers ----------------------------------------------------------------------------------------------------


def _has_session(request: Any) -> bool:
    return COOKIES[0] in request.COOKIES


def has_token(headers: Mapping[str, str]) -> bool:
    """Whether a request names its account in a header, which pages of others cannot set."""
    return bool(headers.get("HTTP_AUTHORIZATION") or headers.get("HTTP_X_API_KEY"))


def elsewhere(page_host: str, headers: Mapping[str, str]) -> bool:
    """Whether a browser asks under another host name than that of the pages (with its port, "" for any name)."""
    if not page_host or _name(headers.get("HTTP_HOST", "")) == _name(page_host):
        return False
    page = "text/html" in headers.get("HTTP_ACCEPT", "")
    return page or "HTTP_SEC_FETCH_SITE" in headers or "HTTP_ORIGIN" in headers


def origin_refusal(method: str, path: str, headers: Mapping[str, str], public: str, session: bool) -> str:
    """Why a request that a page of another origin caused is refused; "" for all others.

    `headers` are those of WSGI. A proxy may change the Host header: `public` is the host (and port) that browsers see.
    Reading the API counts as well, since a request can keep the server busy for long.
    """
    if not session and (has_token(headers) or method in SAFE):
        return ""
    if method in ("HEAD", "OPTIONS") or (method == "GET" and not path.startswith(("/api/", "/logout"))):
        return ""
    own = {headers.get("HTTP_HOST", "").lower(), public.lower()}
    origin = headers.get("HTTP_ORIGIN")
    if origin is not None and origin.lower().partition("://")[2] not in own - {""}:
        return "requests from pages of another origin are refused"
    if headers.get("HTTP_SEC_FETCH_SITE", "none") not in SAME_ORIGIN:
        return "requests from pages of another site are refused"
    return ""


def _name(host: str) -> str:
    """A host in lower case without its port."""
    name = host.rpartition(":")[0] if ":" in host and not host.endswith("]") else host
    return name.lower().rstrip(".")


def _address_for_programs(request: Any) -> Any:
    """The answer to a browser under another host name: no page of Label Studio, and old cookies are removed."""
    from django.http import HttpResponse

    response = HttpResponse(PROGRAMS, status=403, headers=PROGRAMS_HEADERS)
    for cookie in COOKIES:
        if cookie in request.COOKIES:
            response.delete_cookie(cookie)
    return response


def _hold(page_host: str) -> None:
    """Keep others from listening on the port of the pages on ::1, where browsers look for the name as well."""
    port = page_host.rpartition(":")[2]
    if port.isdigit():
        with suppress(OSError):  # held by another worker, or a machine without IPv6
            held = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
            held.bind(("::1", int(port)))
            _held.append(held)


def _restore_token() -> None:
    """Give the owner the token of this server's environment again: a reset one would lock out what uses it."""
    from core.utils.params import get_env  # type: ignore[import-not-found]
    from django.db import DatabaseError  # type: ignore[import-not-found]
    from jwt_auth.models import JWTSettings  # type: ignore[import-not-found]
    from organizations.models import Organization  # type: ignore[import-not-found]
    from rest_framework.authtoken.models import Token  # type: ignore[import-not-found]

    token = get_env("USER_TOKEN")
    with suppress(DatabaseError):  # not created yet: Label Studio sets the token of a new account
        organization = Organization.objects.order_by("id").first()
        if token and organization is not None:
            Token.objects.filter(user_id=organization.created_by_id).exclude(key=token).update(key=token)
            JWTSettings.objects.filter(organization=organization).update(legacy_api_tokens_enabled=True)


# --- accounts ----------------------------------------------------------------------------------------------------


def _guard_views() -> None:
    """Let every view of the API check our rules after its own."""
    from rest_framework.views import APIView  # type: ignore[import-not-found]

    own_check = APIView.check_permissions

    def check_permissions(view: Any, request: Any) -> None:
        own_check(view, request)
        if request.user.is_authenticated and not _is_owner(request.user) and (reason := _refusal(view, request)):
            view.permission_denied(request, message=reason)

    APIView.check_permissions = check_permissions


def _guard_filters() -> None:
    """Let every query of the data manager, also one of a stored tab, check its filters."""
    from data_manager import managers  # type: ignore[import-not-found]
    from rest_framework.exceptions import PermissionDenied  # type: ignore[import-not-found]

    own_apply = managers.apply_filters

    def apply_filters(queryset: Any, filters: Any, project: Any, request: Any) -> Any:
        by_owner = request is not None and request.user.is_authenticated and _is_owner(request.user)
        if filters and not by_owner and (reason := filter_refusal(filters.items)):
            raise PermissionDenied(reason)
        return own_apply(queryset, filters, project, request)

    managers.apply_filters = apply_filters


def filter_refusal(items: list[Any]) -> str:
    """Why the filters of an annotator are refused; "" if they are not."""
    if len(items) > MOST_FILTERS:
        return f"a query may have {MOST_FILTERS} filters"
    waiting = list(items)
    while waiting:
        item = waiting.pop()
        if "regex" in str(item.operator).lower():
            return "only the owner of this server may filter by regular expressions"
        waiting += [item.child_filter] if item.child_filter else []
    return ""


def _guard_drafts() -> None:
    """Show annotators their own drafts only."""
    from tasks.api import AnnotationDraftListAPI  # type: ignore[import-not-found]

    own_filter = AnnotationDraftListAPI.filter_queryset

    def filter_queryset(view: Any, queryset: Any) -> Any:
        drafts = own_filter(view, queryset)
        return drafts if _is_owner(view.request.user) else drafts.filter(user=view.request.user)

    AnnotationDraftListAPI.filter_queryset = filter_queryset


def _is_owner(user: Any) -> bool:
    organization = user.active_organization
    return organization is not None and organization.created_by_id == user.id


def _refusal(view: Any, request: Any) -> str:
    """Why an annotator may not make a request; "" if it is allowed."""
    name = type(view).__name__
    permission = _permission(view, request.method)
    asks_for_a_task = name == "ProjectActionsAPI" and request.GET.get("id") == "next_task"  # the stream does, by POST
    if type(view).__module__ in OWNERS_MODULES or not (asks_for_a_task or is_open(permission, name, request.method)):
        return "only the owner of this server may do this"
    takes_a_task = asks_for_a_task or name == "ProjectNextTaskAPI"
    judges = request.method not in SAFE and permission.startswith(JUDGING)
    if (takes_a_task or judges) and not request.user.groups.filter(name=GROUP).exists():
        return (
            "this account is not an annotator yet: ask for its address to be named in labeling.people, and for "
            "`rlhf label open` to be run"
        )
    if reason := query_refusal(request.META.get("QUERY_STRING", ""), request.GET.get("page_size", "")):
        return reason
    return _ownership_refusal(view, request, name) or (
        "" if request.method in SAFE else _write_refusal(view, request, name, permission)
    )


def query_refusal(query: str, page_size: str) -> str:
    """Why the query of an annotator's request is refused; "" if it is not."""
    if len(query) > LONGEST_QUERY:
        return f"a query may have {LONGEST_QUERY} characters"
    if page_size.isdigit() and int(page_size) > LARGEST_PAGE:
        return f"a page may have {LARGEST_PAGE} rows"
    return ""


def _ownership_refusal(view: Any, request: Any, name: str) -> str:
    """Why a request is refused for what it is about: an object of somebody else."""
    number = str(view.kwargs.get("pk"))
    writes = request.method not in SAFE
    if name == "AnnotationDraftAPI" and not _owns(request.user, "draft", number):
        return "this is the draft of another user"
    if not writes:
        return ""
    if name == "UserAPI" and getattr(view, "action", "") != "avatar" and number != str(request.user.id):
        return "this is the account of another user"
    if name in OWN_ANNOTATION and not _owns(request.user, "annotation", number):
        return "this is the annotation of another user"
    parent = view.kwargs.get("annotation_id")
    if parent is not None and not _owns(request.user, "annotation", str(parent)):
        return "this is the annotation of another user"
    if name == "ViewAPI" and view.kwargs.get("pk") is not None and not _owns(request.user, "view", number):
        return "this is the tab of another user"
    if name == "ViewAPI" and getattr(view, "action", "") == "update_order":
        return "only the owner of this server may do this"
    return ""


def _write_refusal(view: Any, request: Any, name: str, permission: str) -> str:
    """Why the body of a request is refused; "" if it is not."""
    largest = LARGEST_VIEW if name == "ViewAPI" else LARGEST
    if int(request.META.get("CONTENT_LENGTH") or 0) > largest or request.META.get("HTTP_TRANSFER_ENCODING"):
        return f"a request may have {largest} bytes"
    if permission.startswith("avatar."):
        return ""
    if reason := body_refusal(request.data, request.user.id):
        return reason
    if name == "UserAPI":
        account = {"username": request.user.username, "active_organization": request.user.active_organization_id}
        return account_refusal(request.data, account)
    annotation = values(request.data, "annotation")
    if any(value not in (None, "") and not _owns(request.user, "annotation", str(value)) for value in annotation):
        return "this is the annotation of another user"
    if permission.startswith("annotations.") and not _stays(view, request.data, name):
        return "an annotation or a draft stays with its task"
    return ""


def _stays(view: Any, data: Any, name: str) -> bool:
    """Whether the body names the task, and the project of the task, that the annotation or draft has."""
    named = {field: {str(value) for value in values(data, field)} - {"", "None"} for field in ("task", "project")}
    if not any(named.values()):
        return True
    from tasks.models import Annotation, AnnotationDraft, Task  # type: ignore[import-not-found]

    models = {"AnnotationAPI": Annotation, "AnnotationConvertAPI": Annotation, "AnnotationDraftAPI": AnnotationDraft}
    number = view.kwargs.get("pk")
    model = models.get(name)
    task = number if model is None else model.objects.filter(id=number).values_list("task_id", flat=True).first()
    project = Task.objects.filter(id=task).values_list("project_id", flat=True).first()
    return named["task"] <= {str(task)} and named["project"] <= {str(project)}


def _permission(view: Any, method: str) -> str:
    required = getattr(view, "permission_required", None)
    if required is not None and not isinstance(required, str):
        required = getattr(required, "GET" if method in SAFE else method, None)
    return required or ""


def _owns(user: Any, kind: str, number: str) -> bool:
    """Whether an annotation, draft or tab is the user's; one that does not exist is nobody else's."""
    from data_manager.models import View  # type: ignore[import-not-found]
    from tasks.models import Annotation, AnnotationDraft

    model, field = {
        "annotation": (Annotation, "completed_by_id"),
        "draft": (AnnotationDraft, "user_id"),
        "view": (View, "user_id"),
    }[kind]
    if not number.isdecimal():
        return False
    owners = list(model.objects.filter(id=number).values_list(field, flat=True))
    return not owners or owners[0] == user.id


def is_open(permission: str, view: str, method: str) -> bool:
    """Whether an annotator may use a view of the API; `permission` is the one that Label Studio asks for."""
    if method in SAFE:
        return not permission.startswith(SECRET)
    return permission.startswith(WRITABLE) or view in OWN_ACCOUNT


# --- bodies ------------------------------------------------------------------------------------------------------


def values(data: Any, field: str) -> list[Any]:
    """All values of a field of a body: a form may repeat it."""
    if hasattr(data, "getlist"):
        return list(data.getlist(field))
    return [data[field]] if field in data else []


def body_refusal(data: Any, user: int) -> str:
    """Why the body of an annotation or draft, JSON or a form, is refused; "" if it is taken."""
    if not hasattr(data, "get"):
        return "not an object"
    whole = dict(data.lists()) if hasattr(data, "lists") else data
    if problem := oddity(whole):
        return problem
    for result in values(data, "result"):
        if problem := _result_refusal(result):
            return problem
    if not all(_is_time(time) for time in values(data, "lead_time")):
        return "lead_time is no finite number"
    if any(str(value).strip().lower() not in NO for value in values(data, "ground_truth")):
        return "only the owner of this server may mark ground truths"
    for field in PEOPLE:
        if any(value not in (None, "") and str(value) != str(user) for value in values(data, field)):
            return "an annotation is made in one's own name"
    return ""


def _result_refusal(result: Any) -> str:
    """Why a result, as JSON or as its text, is refused; "" if it is taken."""
    for _ in range(ENCODED):
        if not isinstance(result, str):
            break
        try:
            result = json.loads(result)
        except (ValueError, RecursionError) as error:
            return f"result is not JSON: {error}"
    return oddity(result) if result is None or isinstance(result, list) else "result is no list"


def _is_time(time: Any) -> bool:
    if time is None or time == "":
        return True
    try:
        return math.isfinite(float(time))
    except (TypeError, ValueError, OverflowError):
        return False


def oddity(value: Any) -> str:
    """What is not plain JSON in a value: what databases refuse, or what a page or an export fails on."""
    waiting: list[tuple[Any, int]] = [(value, 0)]
    while waiting:
        item, depth = waiting.pop()
        if depth > DEEPEST:
            return f"nested deeper than {DEEPEST} levels"
        if isinstance(item, str):
            if not item.isascii() and any("\ud800" <= character <= "\udfff" for character in item):
                return "not plain JSON: a lone surrogate"
        elif isinstance(item, Mapping):
            waiting += [(inner, depth + 1) for pair in item.items() for inner in pair]
        elif isinstance(item, list | tuple):
            waiting += [(inner, depth + 1) for inner in item]
        elif isinstance(item, float):
            if not math.isfinite(item):
                return f"not plain JSON: {item}"
        elif isinstance(item, int):
            if abs(item) > GREATEST_INTEGER:
                return "an integer of more than 64 bits"
        elif item is not None:
            return f"not plain JSON: {type(item).__name__}"
    return ""


def account_refusal(data: Any, account: Mapping[str, object]) -> str:
    """Why a change of one's own account is refused: a name that looks like another account's."""
    for field, own in account.items():
        if any(str(value) != str(own) for value in values(data, field)):
            return f"{field} cannot be changed"
    if any("@" in str(name) for field in ("first_name", "last_name") for name in values(data, field)):
        return "a name is no e-mail address"
    return ""


# --- connections -------------------------------------------------------------------------------------------------


def _on_event(event: str, arguments: tuple[Any, ...]) -> None:
    """Refuse a connection to this machine or its network, before a byte is sent."""
    if event in ("socket.connect", "socket.sendto", "socket.sendmsg") and not getattr(_state, "asking", False):
        address = arguments[1]
        if address is not None and not is_outside(address):
            raise PermissionError(errno.EACCES, f"connections to this machine and its network are off: {address!r}")


def is_outside(address: object) -> bool:
    """Whether an address to connect to is a public one, and not one of this machine's."""
    if not isinstance(address, tuple) or not address:
        return False  # a socket in the file system
    try:
        ip = ipaddress.ip_address(str(address[0]).partition("%")[0])
    except ValueError:
        return False  # a name, which libraries resolve before they connect
    if isinstance(ip, ipaddress.IPv6Address):
        if ip in NAT64:
            return False
        ip = ip.ipv4_mapped or ip.sixtofour or ip
    return ip.is_global and not ip.is_multicast and not _is_own(ip)


def _is_own(ip: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    """Whether an address belongs to this machine: a packet to it would come from the same address."""
    family = socket.AF_INET if ip.version == 4 else socket.AF_INET6
    _state.asking = True
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((str(ip), 9))
            return str(probe.getsockname()[0]) == str(ip)
    except OSError:
        return False
    finally:
        _state.asking = False
