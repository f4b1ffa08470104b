# mypy: ignore-errors
"""Label Studio's settings with our guard as the outermost middleware; read by Label Studio, not by this package."""

from core.settings.base import *  # noqa: F403

SENTRY_DSN = FRONTEND_SENTRY_DSN = ""  # the next module asks for them while it is imported

from core.settings.label_studio import *  # noqa: E402, F403

MIDDLEWARE = ["rlhf_guard.Guard", *MIDDLEWARE]  # noqa: F405

ROOT_URLCONF = "rlhf_urls"
