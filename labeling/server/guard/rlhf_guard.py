"""A middleware for Label Studio Community, which treats all users alike and connects to addresses that they name.

- Only the owner of the organisation administers: invitations, projects, tasks, storages, webhooks, other accounts.
  Annotators read, and write annotations: their own, in their own name, and no larger or odder than we store.
- With SSRF protection no connection is made to this machine or its network, by whatever library, for anybody. Label
  Studio checks the addresses of storages and webhooks, but not those within credentials (`token_uri`). Its database
  is not concerned: psycopg connects in C.

Written for Label Studio 1.23; imports only what its environment has.
"""

import errno
import ipaddress
import json
import socket
import sys
import threading
from collections.abc import Callable
from typing import Any

SAFE = ("GET", "HEAD", "OPTIONS")
SECRET = ("organizations.invite", "storages.", "webhooks.", "model_provider_connection.")  # only the owner reads them
WRITABLE = ("annotations.", "views.create", "views.change", "views.delete", "avatar.", "users.token.")
OWN_ACCOUNT = ("UserAPI", "UserHotkeysAPI", "ProductTourAPI", "DecoratedTokenRefreshView", "LSTokenBlacklistView")
OWN_ANNOTATION = ("AnnotationAPI", "AnnotationConvertAPI")
LARGEST = 1_500_000  # bytes of a request by an annotator
NAT64 = ipaddress.ip_network("64:ff9b::/96")
_state = threading.local()


class Guard:
    """The middleware. It is set up with the first handler, when all of Label Studio is loaded."""

    ready = armed = False

    def __init__(self, get_response: Callable[[Any], Any]) -> None:
        self._get_response = get_response
        if not Guard.ready:
            _guard_views()
            Guard.ready = True

    def __call__(self, request: Any) -> Any:
        """The response. Connections are guarded from the first request on: starting the server asks its own port."""
        if not Guard.armed:
            from django.conf import settings  # type: ignore[import-not-found]

            Guard.armed = True
            if settings.SSRF_PROTECTION_ENABLED:
                sys.addaudithook(_on_event)
        return self._get_response(request)


def _guard_views() -> None:
    """Let every view of the API check our rules after its own."""
    from rest_framework.views import APIView  # type: ignore[import-not-found]

    own_check = APIView.check_permissions

    def check_permissions(view: Any, request: Any) -> None:
        own_check(view, request)
        if request.user.is_authenticated and not _is_owner(request.user) and (reason := _refusal(view, request)):
            view.permission_denied(request, message=reason)

    APIView.check_permissions = check_permissions


def _is_owner(user: Any) -> bool:
    organization = user.active_organization
    return organization is not None and organization.created_by_id == user.id


def _refusal(view: Any, request: Any) -> str:
    """Why an annotator may not make a request; "" if it is allowed."""
    name, number = type(view).__name__, str(view.kwargs.get("pk"))
    permission = _permission(view, request.method)
    asks_for_a_task = name == "ProjectActionsAPI" and request.GET.get("id") == "next_task"  # the stream does, by POST
    if not asks_for_a_task and not is_open(permission, name, request.method):
        return "only the owner of this server may do this"
    if request.method in SAFE:
        return ""
    if int(request.META.get("CONTENT_LENGTH") or 0) > LARGEST or request.META.get("HTTP_TRANSFER_ENCODING"):
        return f"a request may have {LARGEST} bytes"
    if name == "UserAPI" and not permission.startswith("avatar.") and number != str(request.user.id):
        return "this is the account of another user"
    if name in OWN_ANNOTATION and not _owns(request.user, number):
        return "this is the annotation of another user"
    return "" if permission.startswith("avatar.") else body_refusal(request.data, request.user.id)


def _permission(view: Any, method: str) -> str:
    required = getattr(view, "permission_required", None)
    if required is not None and not isinstance(required, str):
        required = getattr(required, "GET" if method in SAFE else method, None)
    return required or ""


def _owns(user: Any, number: str) -> bool:
    from tasks.models import Annotation  # type: ignore[import-not-found]

    owner = Annotation.objects.filter(id=number).values_list("completed_by_id", flat=True).first()
    return owner is None or owner == user.id


def is_open(permission: str, view: str, method: str) -> bool:
    """Whether an annotator may use a view of the API; `permission` is the one that Label Studio asks for."""
    if method in SAFE:
        return not permission.startswith(SECRET)
    return permission.startswith(WRITABLE) or view in OWN_ACCOUNT


def body_refusal(data: Any, user: int) -> str:
    """Why the body of an annotation or draft is refused; "" if it is taken."""
    try:
        json.dumps(data, ensure_ascii=False, allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        return f"not plain JSON: {error}"
    if not hasattr(data, "get"):
        return "not an object"
    if str(data.get("completed_by", user)) != str(user):
        return "an annotation is made in one's own name"
    return ""


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
