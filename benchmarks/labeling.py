"""How long it takes to push tasks to a real Label Studio on SQLite, to pull all annotations, and to pull what changed.

    python -m benchmarks.labeling --count 10000

The server is started with a fresh database. The annotations are created by an import, one per task, in a separate
project; then one in a hundred is edited. The incremental sync is timed twice: in the first minute after all those
annotations came, when the overlap makes it read them again, and after that minute. Results go to
`.bench/labeling.json`.
"""

import json
import os
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from pydantic import SecretStr
from rich.console import Console
from rich.table import Table

from alignment.records import Message, Prompt, Response, ResponseSet
from benchmarks.machine import processor
from flows.stack.processes import choose_port
from flows.stack.services import label_studio_executable
from labeling.server.client import IMPORT_BATCH, LabelStudio
from labeling.server.process import ServerSettings, running_server
from labeling.simulation.crew import ranking_result
from labeling.store.store import Store
from labeling.store.sync import OVERLAP, sync_project
from labeling.tasks.projects import Project, open_project
from labeling.tasks.tasks import Task, build_tasks
from labeling.tasks.upload import push

HOME = Path(__file__).parent.parent / ".bench"
TOKEN = "5" * 40
RESPONSES, WORDS, SHARE_CHANGED = 4, 40, 0.01
T = TypeVar("T")


def main(
    count: Annotated[int, typer.Option(min=100, help="how many tasks, and how many annotations")] = 10_000,
    out: Annotated[Path, typer.Option(help="where labeling.json goes")] = HOME,
) -> None:
    """Start a server, measure, and report."""
    with tempfile.TemporaryDirectory() as folder:
        settings = ServerSettings(
            executable=label_studio_executable(),
            data_dir=Path(folder) / "server",
            port=choose_port("127.0.0.1", 8180),
            password=SecretStr("password of the owner"),
            token=SecretStr(TOKEN),
        )
        with running_server(settings) as url, LabelStudio(url, TOKEN) as client:
            seconds = measure(client, Store(Path(folder) / "annotations.db"), count)
    facts = {"processor": processor(), "cores": len(os.sched_getaffinity(0)), "count": count}
    out.mkdir(parents=True, exist_ok=True)
    (out / "labeling.json").write_text(json.dumps({"machine": facts, "seconds": seconds}, indent=1), encoding="utf-8")
    table = Table("", "seconds", title=f"{count} tasks of {RESPONSES} responses, as many annotations, SQLite")
    for name, value in seconds.items():
        table.add_row(name, f"{value:.2f}")
    Console().print(table)


def measure(client: LabelStudio, store: Store, count: int) -> dict[str, float]:
    """The seconds of each step, by name."""
    seconds: dict[str, float] = {}

    def timed(name: str, work: Callable[[], T]) -> T:
        start = time.perf_counter()
        done = work()
        seconds[name] = time.perf_counter() - start
        print(f"{name}: {seconds[name]:.2f} s", flush=True)
        return done

    tasks = make_tasks(count)
    pushed = open_project(client, "ranking", "push", 2)
    timed("push all tasks", lambda: push(client, pushed, tasks))
    timed("push them again, all there", lambda: push(client, pushed, tasks))
    project = open_project(client, "ranking", "pull", 2)
    import_annotated(client, project, tasks)

    def pull() -> int:
        done = sync_project(client, store, project.id)
        assert done is not None
        return done.changes.added + done.changes.changed

    assert timed("pull all annotations", pull) == count
    assert timed("pull in the minute after, nothing changed", pull) == 0
    time.sleep(OVERLAP.total_seconds())
    assert pull() == 0
    assert timed("pull, nothing changed", pull) == 0
    changed = edit_some(client, store, round(count * SHARE_CHANGED))
    assert timed(f"pull, {SHARE_CHANGED:.0%} changed", pull) == changed
    key = store.projects()[0].project
    timed("read all current rows from the store", lambda: store.current(key))
    return seconds


def make_tasks(count: int) -> list[Task]:
    """Ranking tasks of four responses with forty words each."""
    rng = random.Random(0)

    def text(words: int) -> str:
        return " ".join(f"word{rng.randrange(1000)}" for _ in range(words))

    sets = [
        ResponseSet(
            prompt=Prompt(id=f"prompt_{i}", messages=(Message(role="user", content=f"{i} {text(12)}"),)),
            responses=tuple(Response(id=f"response_{i}_{k}", text=text(WORDS)) for k in range(RESPONSES)),
        )
        for i in range(count)
    ]
    return build_tasks("ranking", sets, 0)[0]


def import_annotated(client: LabelStudio, project: Project, tasks: list[Task]) -> None:
    """Store tasks that have an annotation already."""
    owner = client.whoami()["id"]
    rows: list[dict[str, Any]] = [
        {
            "data": task.data,
            "annotations": [
                {"result": ranking_result(task.shown), "completed_by": owner, "ground_truth": False, "lead_time": 20.0}
            ],
        }
        for task in tasks
    ]
    for first in range(0, len(rows), IMPORT_BATCH):
        client.post(f"/api/projects/{project.id}/import", rows[first : first + IMPORT_BATCH])


def edit_some(client: LabelStudio, store: Store, count: int) -> int:
    """Turn some rankings around on the server."""
    rows = store.current(store.projects()[0].project)
    for row in random.Random(1).sample(rows, count):
        order = [item["id"] for item in row["data"]["responses"]]
        client.patch(f"/api/annotations/{row['annotations'][0]['id']}/", {"result": ranking_result(order[::-1])})
    return count


if __name__ == "__main__":
    typer.run(main)
