"""Answers written in Label Studio, read from the store of annotations as demonstrations."""

from collections.abc import Collection

from alignment.records import Demonstration, Rejected
from flows.annotation.accounts import accounts_by_server
from labeling.judgements.comparisons import demonstrations
from labeling.judgements.controls import controls_of
from labeling.judgements.imports import tasks_of
from labeling.judgements.parse import parse
from labeling.store.store import Store


def written_demonstrations(store: Store, projects: Collection[int] = ()) -> tuple[list[Demonstration], list[Rejected]]:
    """The answers written in these projects (all if empty) as of the last sync, and the quarantined annotations."""
    known = accounts_by_server()
    rows: list[Demonstration] = []
    rejected: list[Rejected] = []
    for project in store.projects():
        if not projects or project.number in projects:
            annotations = store.current(project.project, known.get(project.url))
            tasks = tasks_of(annotations)
            source, controls = f"label-studio/project/{project.number}", controls_of(project.config)
            parsed = parse(annotations, tasks.values(), project.overlap, source, controls)
            rows += demonstrations(parsed.judgements, tasks)
            rejected += parsed.quarantined
    return rows, rejected
