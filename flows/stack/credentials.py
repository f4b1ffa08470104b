"""The file with the accounts of a stack: created on the first start, readable by its owner only."""

import secrets
from pathlib import Path

from pydantic import ValidationError

from alignment.artifacts import PRIVATE, write_text
from flows.stack.processes import StackError
from flows.stack.services import Credentials, Profile, Secrets

FILE = "credentials.json"


def ensure(home: Path, profile: Profile = "default") -> Credentials:
    """The accounts of the stack in `home`, created on its first start; a missing password of Prefect is added."""
    existing = read(home)
    if existing is not None and (existing.prefect_auth or existing.production):
        return existing
    if existing is not None:  # made before Prefect had a password in every profile
        accounts = existing.model_copy(update={"prefect_auth": _prefect_auth()})
    else:
        accounts = _accounts(profile)
    write_text(home / FILE, accounts.model_dump_json(indent=2, exclude_none=True) + "\n", PRIVATE)
    return accounts


def _accounts(profile: Profile) -> Credentials:
    production = profile == "production"
    return Credentials(
        label_studio_email="owner@rlhf.local",
        label_studio_password=secrets.token_urlsafe(12),
        label_studio_token=secrets.token_hex(20),
        label_studio_secret_key=secrets.token_urlsafe(40),
        prefect_auth="" if production else _prefect_auth(),
        production=_passwords() if production else None,
    )


def _prefect_auth() -> str:
    return f"rlhf:{secrets.token_urlsafe(18)}"


def _passwords() -> Secrets:
    return Secrets(
        postgres_password=secrets.token_urlsafe(24),
        prefect_database_password=secrets.token_urlsafe(24),
        mlflow_database_password=secrets.token_urlsafe(24),
        label_studio_database_password=secrets.token_urlsafe(24),
        prefect_auth=_prefect_auth(),
        mlflow_username="rlhf",
        mlflow_password=secrets.token_urlsafe(18),
        mlflow_secret_key=secrets.token_urlsafe(40),
    )


def read(home: Path) -> Credentials | None:
    """The accounts, or None before the first start. Raises StackError for a file that cannot be read."""
    path = home / FILE
    if not path.exists():
        return None
    try:
        return Credentials.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise StackError(
            f"{path} cannot be read: {error.errors()[0]['msg']}; restore it, or remove {home} to start over"
        ) from error
