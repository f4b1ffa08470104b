"""What every place makes of a fourth criterion; `python -m tests.fourth_criterion` prints it as JSON.

The table is read with one row more before anything else is imported, as if the row stood in `alignment/criteria.py`.
"""

import json
import sys
import tempfile
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

ROW = """
    Criterion(
        name="concise",
        weight=0.5,
        annotator_weight=1.0,
    ),
)
CRITERION_NAMES"""


def add_row() -> None:
    """Import `alignment.criteria` with one row more."""
    source = (Path(__file__).parents[1] / "alignment" / "criteria.py").read_text(encoding="utf-8")
    assert source.count("\n)\nCRITERION_NAMES") == 1
    module = ModuleType("alignment.criteria")
    sys.modules["alignment.criteria"] = module
    exec(compile(source.replace("\n)\nCRITERION_NAMES", ROW), "criteria.py", "exec"), module.__dict__)


def on_screen() -> dict[str, object]:
    import yaml

    from labeling.screens.guidelines import read_guidelines, shipped
    from labeling.screens.render import screen

    question = "is it as short as it can be?"
    row = {"name": "concise", "title": "Concise", "question": question, "keys": ["z", "x"]}
    criteria = [criterion.model_dump(mode="json") for criterion in shipped("en").criteria]
    with tempfile.TemporaryDirectory() as directory:
        (Path(directory) / "screen.yaml").write_text(yaml.safe_dump({"criteria": [*criteria, row]}))
        guidelines = read_guidelines(directory)
    root = ElementTree.fromstring(screen("pairwise", guidelines).label_config)
    keys = [element.get("hotkey") for element in root.iter() if element.get("hotkey")]
    markdown = "\n".join(str(element.get("value")) for element in root.iter("Markdown")).splitlines()
    return {
        "ratings": [element.get("name") for element in root.iter("Rating")],
        "headers": [element.get("value") for element in root.iter("Header")],
        "every key once": len(keys) == len({*keys}),
        "guidelines": [line for line in markdown if "**Concise**" in line],
        "keys": [line for line in markdown if "Concise, " in line],
    }


def in_judge() -> dict[str, object]:
    from alignment.config.stages import TownConfig
    from alignment.errors import ConfigError
    from alignment.town import Judge, draw_world, judge
    from tests.alignment.tiny_world import prompt

    world = draw_world(TownConfig(), 0)
    try:
        Judge(world)
        refusal = ""
    except ConfigError as error:
        refusal = str(error)
    judge.SCORING["concise"] = lambda _, reading, reasons: judge.note(len(reading.text) < 60, reasons, "short", "long")
    verdict = Judge(world)(prompt("How do I rob a bank?", kind="harmful"), judge.words.REFUSALS[0])
    return {"refusal": refusal, "scores": verdict.scores, "score": verdict.score, "reasons": verdict.reasons}


def collected() -> dict[str, object]:
    """Two simulated annotators judge six pairs; what they said goes through store, parser, reports and page."""
    from labeling.config import CrewConfig
    from labeling.reports.page import status_page
    from labeling.reports.report import reports
    from labeling.simulation.crew import make_crew, work_on
    from labeling.store.store import Store
    from labeling.store.versions import SeenProject, Sync, moment
    from labeling.tasks.tasks import build_tasks
    from tests.labeling.helpers import judge, response_set

    def with_concise(prompt_id: str, text: str) -> dict[str, float]:
        return {**judge(prompt_id, text), "concise": float(len(text) < 20)}

    crew, when, rows = make_crew(CrewConfig(annotators=2)), "2026-03-02T09:00:00.000000Z", []
    tasks, _ = build_tasks("pairwise", [response_set(n) for n in range(6)], 0)
    for number, task in enumerate(tasks, start=1):
        annotations = []
        for person, annotator in enumerate(crew):
            result, seconds = work_on(annotator, task.data, task.prompt.id, with_concise, 0.01, 0)
            times = {"created_at": when, "updated_at": when, "lead_time": seconds, "was_cancelled": False}
            who = {"id": 10 * number + person, "task": number, "completed_by": person}
            annotations.append({**who, **times, "result": result, "created_username": annotator.name})
        rows.append({"id": number, "data": task.data, "updated_at": when, "annotations": annotations})
    store, title = Store(), "trial pairwise [0a1b2c3d]"
    project = SeenProject(
        project="1@x", number=1, url="http://x", title=title, overlap=2, config_hash="0a1b2c3d", config=""
    )
    now = moment(when)
    store.record(project, rows, Sync(seen_at=now, whole=True, newest=now, cursor=now, tasks_read=len(rows)))
    (report,) = reports(store)
    page = status_page([report])
    note = next(line for line in page.splitlines() if "agreement by criterion" in line)
    return {
        "weights": [len(annotator.weights) for annotator in crew],
        "quarantined": report.status.quarantined,
        "counts": {name: rate.count for name, rate in report.agreement.criteria.items()},
        "alpha": [name for name, alpha in report.agreement.criteria_alpha.items() if alpha is not None],
        "page": [name for name in report.agreement.criteria if f"{name} " in note],
    }


def in_figures() -> dict[str, object]:
    import torch

    from alignment.criteria import GOLD_FIGURES
    from alignment.evaluation.judged_responses import Gold, JudgedResponse, means
    from alignment.evaluation.model_means import plot_criteria
    from alignment.reward_model.evaluate import accuracy_by_criterion
    from flows.releases.gate import gate_figures
    from flows.releases.report import report_view
    from tests.alignment.tiny_world import comparison

    criteria = {"helpful": 1.0, "truthful": 1.0, "harmless": 1.0, "concise": 0.25}
    response = JudgedResponse("p", "fact", "Q?", "A.", 4, True, reward=1.0, kl=0.5, gold=Gold(criteria, 0.75, ""))
    policy = means([response])
    chart = plot_criteria({"models": {"policy": policy}}).axes[0]
    gold = {"sft": {**policy, "concise": 0.5}, "policy": policy}
    manifest = {"gold": gold, "tax": {"sft": 2.0, "policy": 2.0}, "win_rate_vs_sft": {"rate": 0.6, "low": 0.5}}
    gate = gate_figures(manifest)
    rated = [comparison("a", "x", "y", criteria={"concise": 2})]
    return {
        "means": {name: policy[name] for name in GOLD_FIGURES},
        "chart": [label.get_text() for label in chart.get_xticklabels()],
        "bars": len(chart.patches),
        "reward model": accuracy_by_criterion(torch.tensor([0.5]), rated, "t"),
        "gate": {name: value for name, value in gate.items() if "concise" in name},
        "release": [str(column.header) for column in report_view(manifest).renderables[1].columns],  # type: ignore[union-attr]
    }


if __name__ == "__main__":
    add_row()
    print(json.dumps([on_screen(), in_judge(), collected(), in_figures()]))
