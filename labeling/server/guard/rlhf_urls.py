# mypy: ignore-errors
"""Label Studio's addresses, and two of ours: the accounts that may write annotations, and our script."""

from core.urls import *  # noqa: F403
from core.urls import urlpatterns as label_studio
from django.contrib.auth.models import Group
from django.http import HttpResponse
from django.urls import path
from rest_framework.response import Response
from rest_framework.views import APIView
from rlhf_guard.accounts import GROUP
from rlhf_pages import ADDRESS, SCRIPT
from users.models import User


class AnnotatorsAPI(APIView):
    """POST {"ids": [...]} of accounts that become annotators; the guard leaves it to the owner."""

    def post(self, request):
        """Add the accounts to the group."""
        ids = request.data.get("ids") if hasattr(request.data, "get") else None
        if not isinstance(ids, list) or not all(isinstance(number, int) for number in ids):
            return Response({"detail": "ids must be a list of the ids of accounts"}, status=400)
        group, _ = Group.objects.get_or_create(name=GROUP)
        group.user_set.add(*User.objects.filter(id__in=ids))
        return Response({"ids": sorted(group.user_set.values_list("id", flat=True))})


def drafts(_):
    """The script that keeps typed text in drafts."""
    return HttpResponse(SCRIPT.read_bytes(), content_type="text/javascript", headers={"Cache-Control": "max-age=3600"})


urlpatterns = [path("api/rlhf/annotators", AnnotatorsAPI.as_view()), path(ADDRESS, drafts), *label_studio]
