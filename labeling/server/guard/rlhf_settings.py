"""Label Studio's settings with our guard as the outermost middleware; read by Label Studio, not by this package."""

from core.settings.label_studio import *  # type: ignore[import-not-found]  # noqa: F403

MIDDLEWARE = ["rlhf_guard.Guard", *MIDDLEWARE]  # type: ignore[name-defined]  # noqa: F405
