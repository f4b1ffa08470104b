"""Label Studio for production: under gunicorn, on PostgreSQL, with its content security policy enforced."""

import shlex
from pathlib import Path

from labeling.server.process import ServerSettings

CONFIGURATION = Path(__file__).with_name("gunicorn_settings.py")


def command(settings: ServerSettings, configuration: Path = CONFIGURATION) -> list[str]:
    """Migrate the database, create the first account if there is none, then serve."""
    program = settings.executable
    init = [str(program), "init", "--quiet", "--log-level", "WARNING", "--enable-legacy-api-token"]
    serve = [
        str(program.with_name("gunicorn")),
        "--config",
        str(configuration),
        "--bind",
        f"{settings.host}:{settings.port}",
        "core.wsgi:application",
    ]
    return ["sh", "-c", f"{shlex.join(init)} && exec {shlex.join(serve)}"]


def switches(settings: ServerSettings, host: str, port: str, role: str, password: str) -> dict[str, str]:
    """The variables in addition to `process.switches`: PostgreSQL, and stricter security."""
    return {
        "DJANGO_DB": "default",
        "POSTGRE_HOST": host,
        "POSTGRE_PORT": port,
        "POSTGRE_NAME": role,
        "POSTGRE_USER": role,
        "POSTGRE_PASSWORD": password,
        "LABEL_STUDIO_BASE_DATA_DIR": str(settings.data_dir),
        "LABEL_STUDIO_LS_CSP_REPORT_ONLY": "false",
    }
