"""What accounts may do: the owner of the organisation everything, annotators what is theirs, all others read."""

from contextlib import suppress
from typing import Any

from .bodies import account_refusal, body_refusal, filter_refusal, name_refusal, values
from .browsers import SAFE

SECRET = ("organizations.invite", "storages.", "webhooks.", "model_provider_connection.")  # only the owner reads them
WRITABLE = ("annotations.", "views.create", "views.change", "views.delete", "avatar.", "users.token.")
JUDGING = ("annotations.", "views.")  # what only annotators write
OWN_ACCOUNT = ("UserAPI", "UserHotkeysAPI", "ProductTourAPI", "DecoratedTokenRefreshView", "LSTokenBlacklistView")
OWN_ANNOTATION = ("AnnotationAPI", "AnnotationConvertAPI")
OWNERS_MODULES = ("data_export.api",)  # an export reads a whole project at once
LARGEST = 1_500_000  # bytes of an annotation or a picture
LARGEST_SETTING = 50_000  # bytes of a tab of the data manager, or of one's own account, which lists of accounts show
LONGEST_QUERY = 20_000  # characters of a query string
LARGEST_PAGE = 1000  # rows
GROUP = "annotators"


def guard_accounts() -> None:
    """Put our rules into Label Studio's views, filters, tabs, forms and answers."""
    _guard_views()
    _guard_filters()
    _guard_tabs()
    _guard_drafts()
    _guard_forms()
    _hide_invitation()
    _restore_token()


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
        if filters and not by_owner and (reason := filter_refusal(item.model_dump() for item in filters.items)):
            raise PermissionDenied(reason)
        return own_apply(queryset, filters, project, request)

    managers.apply_filters = apply_filters


def _guard_tabs() -> None:
    """Let no tab be stored, and none that is not the owner's be opened, whose filters annotators may not use.

    The owner would run them by opening the tab.
    """
    from data_manager.models import View  # type: ignore[import-not-found]
    from data_manager.serializers import ViewSerializer  # type: ignore[import-not-found]
    from rest_framework.exceptions import PermissionDenied

    own_validate, own_params = ViewSerializer.validate, View.get_prepare_tasks_params

    def validate(serializer: Any, attributes: Any) -> Any:
        filters = (attributes.get("filter_group") or {}).get("filters") or []
        if not _is_owner(serializer.context["request"].user) and (reason := filter_refusal(filters)):
            raise PermissionDenied(reason)
        return own_validate(serializer, attributes)

    def get_prepare_tasks_params(view: Any, *arguments: Any, **options: Any) -> Any:
        params = own_params(view, *arguments, **options)
        filters = params.filters.items if params.filters else []
        of_owner = view.user_id is not None and view.user_id == view.project.organization.created_by_id
        if not of_owner and (reason := filter_refusal(item.model_dump() for item in filters)):
            raise PermissionDenied(f"this tab is of account {view.user_id}, and {reason}: delete it")
        return params

    ViewSerializer.validate = validate
    View.get_prepare_tasks_params = get_prepare_tasks_params


def _guard_drafts() -> None:
    """Show annotators their own drafts only."""
    from tasks.api import AnnotationDraftListAPI  # type: ignore[import-not-found]

    own_filter = AnnotationDraftListAPI.filter_queryset

    def filter_queryset(view: Any, queryset: Any) -> Any:
        drafts = own_filter(view, queryset)
        return drafts if _is_owner(view.request.user) else drafts.filter(user=view.request.user)

    AnnotationDraftListAPI.filter_queryset = filter_queryset


def _guard_forms() -> None:
    """Let the pages of signing up and of one's own account take no name that looks like another account's."""
    from django.forms import ValidationError  # type: ignore[import-not-found]
    from users.forms import UserProfileForm, UserSignupForm  # type: ignore[import-not-found]

    own_clean_email, own_clean = UserSignupForm.clean_email, UserProfileForm.clean

    def clean_email(form: Any) -> Any:
        email = own_clean_email(form)
        if not email.isascii():
            raise ValidationError("Write the address in ASCII: other characters can be invisible or look alike")
        return email

    def clean(form: Any) -> Any:
        cleaned = own_clean(form) or form.cleaned_data
        if reason := name_refusal(cleaned.get(field, "") for field in ("first_name", "last_name")):
            raise ValidationError(reason)
        return cleaned

    UserSignupForm.clean_email, UserProfileForm.clean = clean_email, clean


def _hide_invitation() -> None:
    """Keep the token of the invitation out of what is said of the organisation, which every account may read."""
    from organizations.serializers import OrganizationSerializer  # type: ignore[import-not-found]

    own_representation = OrganizationSerializer.to_representation

    def to_representation(serializer: Any, organization: Any) -> Any:
        shown = own_representation(serializer, organization)
        shown.pop("token", None)
        return shown

    OrganizationSerializer.to_representation = to_representation


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
    largest = LARGEST if permission.startswith(("annotations.", "avatar.")) else LARGEST_SETTING
    if int(request.META.get("CONTENT_LENGTH") or 0) > largest or request.META.get("HTTP_TRANSFER_ENCODING"):
        return f"a request may have {largest} bytes"
    if permission.startswith("avatar."):
        return ""
    annotates = permission.startswith("annotations.")
    if reason := body_refusal(request.data, request.user.id, _controls(_task(view, name)) if annotates else {}):
        return reason
    if name == "UserAPI":
        return account_refusal(request.data, _fixed(request.user))
    annotation = values(request.data, "annotation")
    if any(value not in (None, "") and not _owns(request.user, "annotation", str(value)) for value in annotation):
        return "this is the annotation of another user"
    if annotates and not _stays(_task(view, name), request.data):
        return "an annotation or a draft stays with its task"
    return ""


def _fixed(user: Any) -> dict[str, object]:
    """The fields of one's own account that Label Studio lets everybody write, and we do not, as it shows them."""
    joined = user.date_joined.isoformat().replace("+00:00", "Z")
    return {"username": user.username, "active_organization": user.active_organization_id, "date_joined": joined}


def _task(view: Any, name: str) -> Any:
    """The id of the task that a request about an annotation or a draft is about; None if there is none."""
    from tasks.models import Annotation, AnnotationDraft  # type: ignore[import-not-found]

    models = {"AnnotationAPI": Annotation, "AnnotationConvertAPI": Annotation, "AnnotationDraftAPI": AnnotationDraft}
    number, model = view.kwargs.get("pk"), models.get(name)
    return number if model is None else model.objects.filter(id=number).values_list("task_id", flat=True).first()


def _controls(task: Any) -> dict[str, str]:
    """The types of the controls of a task's project, by name."""
    from projects.models import Project  # type: ignore[import-not-found]

    project = None if task is None else Project.objects.filter(tasks__id=task).first()
    controls = {} if project is None else project.get_parsed_config()
    return {control: str(info.get("type")) for control, info in (controls or {}).items()}


def _stays(task: Any, data: Any) -> bool:
    """Whether the body names the task, and the project of the task, that the annotation or draft has."""
    named = {field: {str(value) for value in values(data, field)} - {"", "None"} for field in ("task", "project")}
    if not any(named.values()):
        return True
    from tasks.models import Task

    project = Task.objects.filter(id=task).values_list("project_id", flat=True).first()
    return named["task"] <= {str(task)} and named["project"] <= {str(project)}


def _permission(view: Any, method: str) -> str:
    required = getattr(view, "permission_required", None)
    if required is not None and not isinstance(required, str):
        required = getattr(required, "GET" if method in SAFE else method, None)
    return required or ""


def _owns(user: Any, kind: str, number: str) -> bool:
    """Whether an annotation, draft or tab is the user's; one that does not exist is nobody else's."""
    from data_manager.models import View
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
