"""What this home planned for each project: the server may say something else."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import ValidationError

from flows.annotation.accounts import accounts_by_server, addresses_by_server
from flows.annotation.select import COLLECTIONS
from flows.home import home_directory
from labeling.authors import Account, author
from labeling.collection import ADJUDICATION, COLLECTION_FILE, Batch, Collection, read_collection
from labeling.config import Annotators
from labeling.reports.report import Plan, Plans
from labeling.store.store import Store
from labeling.tasks.projects import Project

Place = tuple[str, int]  # the server's address and the project's number
Accounts = Mapping[Annotators, Mapping[str, frozenset[int]]]  # by annotators and server


def plans_of(collection: Collection) -> Plans:
    """The plan of each project of a collection."""
    return _plans([collection], _invited([*_collections(), collection]))


def plans() -> Plans:
    """The plans of all collections that were opened from this home; the newest of a project counts.

    A collection of written answers has the prompts of all. A file that cannot be read plans nothing.
    """
    collections = _collections()
    return _plans(collections, _invited(collections))


def _plans(collections: Sequence[Collection], invited: Mapping[Place, dict[int, str]]) -> Plans:
    counting: Accounts = {"people": accounts_by_server("people"), "simulated": accounts_by_server("simulated")}
    known: Plans = {}
    for batch in (batch for collection in collections for batch in collection.batches):
        project, uids = batch.project, frozenset(batch.task_ids)
        place = (project.url, project.id)
        if project.kind == "demonstration" and place in known:
            uids |= known[place].uids
        known[place] = Plan(
            overlap=project.overlap,
            uids=uids,
            known=_counted(project, counting),
            invited=invited.get(place, {}),
            project=project,
        )
    return known


def _counted(project: Project, counting: Accounts) -> frozenset[Account] | None:
    """The accounts whose judgements count in a project; None if the home knows no account of the server.

    A project of an earlier version does not say who is to judge in it: everybody's judgements count.
    """
    groups: tuple[Annotators, ...] = ("people", "simulated") if project.origin is None else (project.origin.annotators,)
    if project.url not in counting["people"]:
        return None
    return frozenset[Account]().union(*(counting[group].get(project.url, ()) for group in groups))


def _invited(collections: Sequence[Collection]) -> dict[Place, dict[int, str]]:
    """The people whom `rlhf label open` invited to each project: e-mail addresses by account."""
    addresses, invited = addresses_by_server(), dict[Place, dict[int, str]]()
    for collection in collections:
        for project in (batch.project for batch in collection.batches):
            accounts = addresses.get(project.url, {})
            people = {number: email for number, email in accounts.items() if email in collection.people}
            invited[project.url, project.id] = invited.get((project.url, project.id), {}) | people
    return invited


def _collections() -> list[Collection]:
    """All collections that were opened from this home, the oldest file first; outputs of unfinished stages, too."""
    home = home_directory()
    folders = [*home.glob(f"{COLLECTIONS}/*"), *home.glob("artifacts/labeling-*")]
    files = [folder / part / COLLECTION_FILE for folder in folders for part in ("", ADJUDICATION)]
    found = []
    for path in sorted((path for path in files if path.is_file()), key=_age):
        try:
            found.append(read_collection(path.parent))
        except (OSError, ValidationError):
            continue
    return found


def _age(path: Path) -> float:
    return path.stat().st_mtime


def earlier_batches(store: Store, annotators: Annotators) -> list[Batch]:
    """Batches in projects of an earlier version, which had one project for all collections of a title.

    People go on in theirs, unless simulated annotators judged the same tasks there; a crew starts anew.
    """
    batches = [batch for collection in _collections() for batch in collection.batches if not batch.project.key]
    old = [batch for batch in batches if annotators == "people" or batch.project.kind == "demonstration"]
    crew = accounts_by_server("simulated")
    return [batch for batch in old if not _judged_by(crew.get(batch.project.url, frozenset()), batch, store)]


def _judged_by(accounts: frozenset[int], batch: Batch, store: Store) -> bool:
    project = store.project(batch.project.id, batch.project.url)
    rows = [] if project is None else store.current(project.project)
    ids = {*batch.task_ids.values()}
    return any(author(raw) in accounts for row in rows if row["id"] in ids for raw in row["annotations"])
