"""What this home planned for each project: the server may say something else."""

from pathlib import Path

from pydantic import ValidationError

from flows.annotation.select import COLLECTIONS
from flows.home import home_directory
from labeling.collection import ADJUDICATION, COLLECTION_FILE, Collection, read_collection
from labeling.reports.report import Plan, Plans


def plans_of(collection: Collection) -> Plans:
    """The plan of each project of a collection."""
    return {
        (batch.project.url, batch.project.id): Plan(overlap=batch.project.overlap, uids=frozenset(batch.task_ids))
        for batch in collection.batches
    }


def plans() -> Plans:
    """The plans of all collections that were opened from this home; the newest of a project counts.

    Outputs of unfinished stages are among them. A file that cannot be read plans nothing.
    """
    home = home_directory()
    folders = [*home.glob(f"{COLLECTIONS}/*"), *home.glob("artifacts/labeling-*")]
    files = [folder / part / COLLECTION_FILE for folder in folders for part in ("", ADJUDICATION)]
    known: Plans = {}
    for path in sorted((path for path in files if path.is_file()), key=_age):
        try:
            known |= plans_of(read_collection(path.parent))
        except (OSError, ValidationError):
            continue
    return known


def _age(path: Path) -> float:
    return path.stat().st_mtime
