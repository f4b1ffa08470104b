"""Stage `labeling`: people or simulated annotators judge responses in Label Studio."""

import json
import logging
from collections.abc import Mapping, Sequence
from contextlib import closing
from functools import cache
from itertools import permutations
from pathlib import Path

from alignment.artifacts import write_json
from alignment.errors import DataError
from alignment.journal import Journal
from alignment.records import Comparison, Rejected, ResponseSet, read_records, stable_id, write_records
from alignment.town import Judge
from flows.annotation.accounts import known_accounts, remember
from flows.annotation.collections import already_judged
from flows.annotation.label_studio import annotation_store, client
from flows.annotation.planned import earlier_batches
from flows.annotation.publish import publish_status
from flows.annotation.select import Material, informed, read_material, with_facts, within_budget
from flows.annotation.wait import sync_annotations, wait_for_people
from flows.stack.outages import through_outages
from flows.tracking.links import link_projects
from labeling.collection import (
    ADJUDICATION,
    Collection,
    CrewReport,
    Pulled,
    open_adjudication,
    open_planned,
    pull_collection,
    simulate_collection,
)
from labeling.config import LabelingConfig
from labeling.reports.figures import crew_figures
from labeling.screens.render import screens
from labeling.server.client import LabelStudio
from labeling.store.store import Store
from labeling.tasks.balance import balance
from labeling.tasks.plan import Planned, plan_tasks

log = logging.getLogger(__name__)
SCREENS = "screens"
CLEAR = 0.5  # of a gold score from 0 to 1


def collect(
    config: LabelingConfig,
    out: Path,
    journal: Journal,
    *,
    responses: Path | None,
    town: Path | None,
    recipe: str = "",
    seed: int = 0,
) -> Mapping[str, float]:
    """Open the projects, wait until enough is judged, and write the results. `recipe` and `seed` name the projects.

    Every annotation is stored locally, and the output is derived from the store. After a kill, existing projects and
    judgements are reused, and only the missing ones are collected. Raises WaitingForPeople to suspend the run.
    """
    material = with_facts(config, read_material(config, responses), town)
    with closing(annotation_store()) as store, client(config) as label_studio:
        config, _ = within_budget(config, material, store, responses)
        known, unread = known_answers(config, material.sets, town)
        planned = plan_tasks(config, material.sets, known, material.pairs)
        through_outages(label_studio, lambda: remember(label_studio))
        earlier = earlier_batches(store, config.annotators)
        collection = through_outages(
            label_studio, lambda: open_planned(label_studio, config, planned, out, recipe, seed, earlier)
        )
        write_balance(planned, material, out)
        link_projects(collection.urls)
        through_outages(label_studio, lambda: say_what_is_there(label_studio, collection, store))
        if config.annotators == "simulated":
            assert town is not None, "the recipe rejects simulated annotators without a town"
            crew = through_outages(
                label_studio, lambda: run_simulated_annotators(label_studio, collection, config, material.sets, town)
            )
            remember(label_studio, map(int, crew.annotators), "simulated")
        else:
            wait_for_people(label_studio, collection, config, store, out)
        pulled = through_outages(label_studio, lambda: pull(label_studio, collection, store, config))
        if config.quality.adjudicate and pulled.disputes:
            disputes = pulled.disputes
            second = through_outages(
                label_studio,
                lambda: open_adjudication(label_studio, config, collection, disputes, out / ADJUDICATION, earlier),
            )
            alone = config.model_copy(
                update={"minimum_agreement": None}
            )  # a single person judges, so there is no agreement
            wait_for_people(label_studio, second, alone, store, out / ADJUDICATION)
            pulled = through_outages(label_studio, lambda: pull(label_studio, collection, store, config, second))
        if config.annotators == "people":
            publish_status(collection, store, config.quality, out)
    figures = write_output(pulled, config, collection, out, journal, [*material.rejected, *unread])
    return {**figures, "collapsed_responses": float(planned.collapsed)}


def say_what_is_there(label_studio: LabelStudio, collection: Collection, store: Store) -> None:
    """Say what is judged already and by whom, here and in other collections of the recipe."""
    sync_annotations(label_studio, collection, store)
    for line in already_judged(store, collection):
        log.info("%s", line)


def known_answers(
    config: LabelingConfig, sets: list[ResponseSet], town: Path | None
) -> tuple[list[Comparison], list[Rejected]]:
    """Comparisons with known answers for gold tasks: from the configured file, or from the town's judge on responses
    that are not ranked by people, if their gold scores differ by at least CLEAR.
    """
    gold = config.quality.gold
    if not gold.share:
        return [], []
    if gold.path is not None:
        known, unread = read_records(Path(gold.path), Comparison)
        if not known:
            why = f"; of the {len(unread)} rows the first has: {unread[0].reason}" if unread else ""
            raise DataError(
                f"labeling.quality.gold.path {gold.path} has no comparisons{why}; write lines as in comparisons.jsonl "
                "of a comparisons stage, or set labeling.quality.gold.share: 0"
            )
        return [_informed(config, row, town) for row in known], unread
    assert town is not None, "the recipe rejects gold tasks without known answers"
    judge = Judge.load(town / "facts.json")
    return town_answers(sets[config.rankings.prompts + config.pairwise.prompts :], judge), []


def _informed(config: LabelingConfig, row: Comparison, town: Path | None) -> Comparison:
    """A known answer that shows the same facts as other tasks, so that nobody recognises it."""
    prompt = informed(config, row.prompt, (row.chosen, row.rejected), town)
    return row.model_copy(update={"prompt": prompt})


def town_answers(sets: list[ResponseSet], judge: Judge) -> list[Comparison]:
    """The pairs of each set whose gold scores are at least CLEAR apart, as comparisons."""
    known = []
    for response_set in sets:
        scored = [(judge(response_set.prompt, response.text).score, response) for response in response_set.responses]
        for (score, better), (other, worse) in permutations(scored, 2):
            if score - other >= CLEAR:
                identity = stable_id("gold", response_set.prompt.id, better.id, worse.id)
                strength = 3 if score - other > 1.5 * CLEAR else 2
                known.append(
                    Comparison(
                        id=identity, prompt=response_set.prompt, chosen=better, rejected=worse, strength=strength
                    )
                )
    return known


def run_simulated_annotators(
    label_studio: LabelStudio, collection: Collection, config: LabelingConfig, sets: list[ResponseSet], town: Path
) -> CrewReport:
    """Run simulated annotators, who judge by the gold criteria with individual noise and preferences."""
    gold = Judge.load(town / "facts.json")
    prompts = {response_set.prompt.id: response_set.prompt for response_set in sets}

    @cache
    def judge(prompt_id: str, text: str) -> Mapping[str, float]:
        return gold(prompts[prompt_id], text).scores

    return simulate_collection(label_studio, collection, config.crew, judge)


def pull(
    label_studio: LabelStudio,
    collection: Collection,
    store: Store,
    config: LabelingConfig,
    senior: Collection | None = None,
) -> Pulled:
    """All judgements so far of the annotators that the collection asks."""
    known = known_accounts(label_studio, config.annotators)
    return pull_collection(label_studio, collection, store, config.quality, senior, known)


def write_balance(planned: Planned, material: Material, out: Path) -> None:
    """Write `balance.json`: the positions of responses on the screens, and the worth by which prompts were selected."""
    positions = {
        kind: [counts.model_dump(mode="json") for counts in balance(tasks, material.origins)]
        for kind, tasks in planned.tasks.items()
    }
    write_json(out / "balance.json", {"shown": positions, "worth": material.worth})


def write_screens(config: LabelingConfig, collection: Collection, out: Path) -> None:
    """Write the screens with their guidelines as shown to people, named by the hash in the dataset card."""
    (out / SCREENS).mkdir(exist_ok=True)
    shown = screens(config)
    for batch in collection.batches:
        screen, digest = shown[batch.project.kind], batch.project.screen_hash
        if digest == screen.hash:  # an older project has an older one, on the server only
            (out / SCREENS / f"{screen.kind}-{digest}.xml").write_text(screen.label_config, encoding="utf-8")


def write_output(
    pulled: Pulled,
    config: LabelingConfig,
    collection: Collection,
    out: Path,
    journal: Journal,
    unread: Sequence[Rejected] = (),
) -> Mapping[str, float]:
    """Write `comparisons.jsonl` (including ties), the excluded rows (`gold.jsonl`, `set_aside.jsonl`,
    `quarantine.jsonl`), all judgements (`judgements.jsonl`), `disputed.jsonl`, statistics with plots, and screens."""
    quarantined = [*unread, *collection.rejected, *pulled.quarantined]
    write_records(out / "comparisons.jsonl", [*pulled.comparisons, *pulled.ties])
    write_records(out / "judgements.jsonl", pulled.all_judgements)
    write_records(out / "quarantine.jsonl", quarantined)
    write_records(out / "gold.jsonl", pulled.gold)
    write_records(out / "set_aside.jsonl", pulled.set_aside)
    write_records(out / "disputed.jsonl", pulled.disputes)
    write_screens(config, collection, out)
    (out / "agreement.json").write_text(pulled.agreement.model_dump_json(indent=1), encoding="utf-8")
    rows = [annotator.model_dump(mode="json") for annotator in pulled.quality]
    (out / "annotators.json").write_text(json.dumps(rows, indent=1), encoding="utf-8")
    for name, plot in crew_figures(pulled.quality).items():
        journal.figure(name, plot)
    figures = {
        "judgements": float(pulled.judgements),
        "comparisons": float(len(pulled.comparisons)),
        "ties": float(len(pulled.ties)),
        "skips": float(pulled.skips),
        "annotators": float(len(pulled.quality)),
        "quarantined": float(len(quarantined)),
        "gold_tasks": float(len(collection.answers)),
        "gold_comparisons": float(len(pulled.gold)),
        "set_aside": float(len(pulled.set_aside)),
        "annotators_set_aside": float(sum(annotator.set_aside for annotator in pulled.quality)),
        "annotators_of_concern": float(sum(bool(annotator.concerns) for annotator in pulled.quality)),
        "disputed": float(len(pulled.disputes)),
    }
    overall = pulled.agreement.overall
    agreement_figures = {
        "agreement": overall.share,
        "agreement_low": overall.low,
        "agreement_high": overall.high,
        "alpha": pulled.agreement.alpha,
        "alpha_low": pulled.agreement.alpha_low,
        "alpha_high": pulled.agreement.alpha_high,
    }
    figures |= {name: value for name, value in agreement_figures.items() if value is not None}
    journal.log(figures, step=0)
    return figures
