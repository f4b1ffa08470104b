# mypy: ignore-errors
"""Label Studio's settings with our guard as the outermost middleware and our script in its pages, read by it."""

from core.settings.base import *  # noqa: F403

SENTRY_DSN = FRONTEND_SENTRY_DSN = ""  # the next module asks for them while it is imported

from core.settings.label_studio import *  # noqa: E402, F403

MIDDLEWARE = ["rlhf_guard.Guard", "rlhf_pages.Pages", *MIDDLEWARE]  # noqa: F405

ROOT_URLCONF = "rlhf_urls"
