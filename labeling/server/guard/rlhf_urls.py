# mypy: ignore-errors
"""Label Studio's addresses, and one of ours for the accounts that may write annotations."""

from core.urls import *  # noqa: F403
from core.urls import urlpatterns as label_studio
from django.contrib.auth.models import Group
from django.urls import path
from rest_framework.response import Response
from rest_framework.views import APIView
from rlhf_guard import GROUP
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


urlpatterns = [path("api/rlhf/annotators", AnnotatorsAPI.as_view()), *label_studio]
