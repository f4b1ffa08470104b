"""The model card of a registered version: its description in MLflow, as Markdown, and its headline figures as tags.

It is written from the manifest of the newest release with the version and from the log of promotions, so that it can be
written again at any time. What reviewers write below NOTES is kept.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mlflow import MlflowClient

from alignment.errors import ArtifactError
from alignment.markdown import plain, table
from flows.releases import history
from flows.releases.gate import Check
from flows.releases.head_to_head import HeadToHead
from flows.releases.report import read_manifest
from flows.releases.versions import CHAMPION, release_run_of
from flows.tracking.links import RunPages
from flows.tracking.registry import name_and_number

LONGEST = 5000  # MLflow's column for descriptions in PostgreSQL
LONGEST_STATUS = 400  # the section on the gate has all of it
NOTES = "### Notes of reviewers"
NO_NOTES = "Below this line, notes are kept when the card is written again."
SAMPLES = ((5, 220), (5, 150), (5, 100), (4, 80), (3, 60), (1, 60), (0, 0))  # prompts, characters of a text
FIGURES = ("helpful", "truthful", "harmless", "score", "reward", "tokens")
TITLES = {"base": "base model", "sft": "SFT model", "reward": "reward model", "policy": "policy"}
LABELLED_BY = {
    "people": "people in Label Studio",
    "simulated": "a simulated crew in Label Studio, no people",
    "files": "whoever made the files that the recipe names",
}
SERVE = "mlflow models serve -m models:/{} --env-manager local"
Manifest = Mapping[str, Any]


def write_cards(manifest: Manifest) -> None:
    """Write the cards of all models of a release that was just logged."""
    for model in manifest["models"].values():
        write_card(*name_and_number(str(model)))


def write_card(name: str, number: str) -> None:
    """Write the description and the tags of a version; one that is in no release keeps what it has."""
    try:
        run = release_run_of(name, number)
    except ArtifactError:
        return
    manifest, client = read_manifest(run), MlflowClient()
    model = f"{name}/{number}"
    role = next((role for role, registered in manifest["models"].items() if registered == f"models:/{model}"), "")
    if not role or "keys" not in manifest:
        return
    status = _status(name, number, manifest) if role == "policy" else ""
    pages = RunPages(str(run.info.experiment_id), manifest["runs"] | {"release": str(run.info.run_id)})
    notes = _notes(client.get_model_version(name, number).description or "")
    client.update_model_version(name, number, fitting_card(manifest, role, model, status, pages, notes))
    for tag, value in headline_tags(manifest, role).items():
        client.set_model_version_tag(name, number, tag, value)


def write_history(name: str) -> None:
    """Write who promoted and rolled back what into the description of a registered model, the newest first."""
    champion, log = history.standing(name)
    client = MlflowClient()
    notes = _notes(client.get_registered_model(name).description or "")
    below = f"\n\n{NOTES}\n\n{notes or NO_NOTES}"
    text = f"The champion is {f'version {champion}' if champion else 'none of the versions'}.\n\n### Promotions\n"
    for change in reversed(log):
        line = f"\n- {plain(change.sentence())}"
        if len(text) + len(line) + len(below) > LONGEST:
            break
        text += line
    client.update_registered_model(name, text + below)


def _notes(description: str) -> str:
    """What reviewers wrote below the card; a description that is no card is all theirs."""
    _, heading, notes = description.partition(NOTES)
    return notes.strip().removeprefix(NO_NOTES).strip() if heading else description.strip()


def _status(name: str, number: str, manifest: Manifest) -> str:
    """The standing of a policy, in a sentence."""
    champion, log = history.standing(name)
    ours = [change for change in log if change.alias == CHAMPION and change.after == number]
    if number == champion and ours:
        return f"Champion since {ours[-1].time[:10]}, by {plain(ours[-1].who)}: {plain(ours[-1].why)}."
    rejection = history.rejected(log).get(number)
    if rejection is not None:
        return f"Rejected on {rejection.time[:10]} by {plain(rejection.who)}: {plain(rejection.why)}."
    if ours:
        return f"Former champion; the champion is {f'version {champion}' if champion else 'none'} now."
    missed = manifest["gate"]["missed"]
    return f"Candidate, not champion: {plain('; '.join(missed) or 'it was not promoted', LONGEST_STATUS)}."


def headline_tags(manifest: Manifest, role: str) -> dict[str, str]:
    """The headline figures, short enough for the list of versions."""
    origin = {"seed": str(manifest["seed"]), "release": str(manifest["release"])}
    if role == "reward":
        accuracy = manifest["reward_model"].get("accuracy_heldout_prompts")
        return ({} if accuracy is None else {"accuracy": f"{accuracy:.3f}"}) | origin
    figure = "score" if manifest["gold"] else "reward"
    values = (manifest["gold"] or {}).get(role) or manifest["reward"]
    tags = {figure: f"{values.get(figure, values.get(role)):.3f}"}
    if role == "policy":
        win = manifest["win_rate_vs_sft"]
        tags |= {"wins": f"{win['rate']:.2f} ({win['low']:.2f} to {win['high']:.2f})"}
        tags |= {"gate": "passed" if manifest["gate"]["passed"] else "missed", "kl": f"{manifest['kl_to_sft']:.2f}"}
    return tags | {"loss": f"{manifest['tax'][role]:.3f}"} | origin


def fitting_card(manifest: Manifest, role: str, model: str, status: str, pages: RunPages, notes: str = "") -> str:
    """The card with as many samples as MLflow has room for, above the reviewers' notes."""
    below = f"\n\n{NOTES}\n\n{notes or NO_NOTES}"
    for count, longest in SAMPLES:
        text = card(manifest, role, model, status, pages, (count, longest))
        if len(text) + len(below) <= LONGEST:
            break
    return text[: max(0, LONGEST - len(below))] + below


def card(
    manifest: Manifest, role: str, model: str, status: str, pages: RunPages, shown: tuple[int, int] = SAMPLES[0]
) -> str:
    """The card of a version; `shown` is how many prompts with how long texts."""
    sections: dict[str, Sequence[str]] = {"": [_headline(manifest, role, status), "", _links(manifest, pages)]}
    sections["Figures on held-out prompts"] = [*_figures(manifest), *_wins(manifest, role)]
    if role == "policy":
        sections["Gate"] = _gate(manifest)
        sections["Samples"] = [] if not shown[0] else [*_samples(manifest, *shown)]
        sections["Curve"] = [pages.image("gold_curve", "reward and gold score over KL")] if manifest["curve"] else []
    sections["Data and labels"] = [*_data(manifest)]
    sections["Use"] = [*_use(manifest, role, model)]
    sections["Cost"] = [_cost(manifest)]
    blocks = [[*([f"### {title}", ""] if title else []), *lines] for title, lines in sections.items() if lines]
    return "\n\n".join("\n".join(block) for block in blocks)


def _headline(manifest: Manifest, role: str, status: str) -> str:
    of = f"{TITLES[role].capitalize()} of the recipe {manifest['recipe']}, seed {manifest['seed']}"
    return f"{status} {of}." if status else f"{of}."


def _links(manifest: Manifest, pages: RunPages) -> str:
    stages = [pages.link(stage, stage) for stage in manifest["runs"] if stage in (*_trained(manifest), "comparisons")]
    report = pages.link(f"release {manifest['release']}", "release")
    return (
        f"{report} ({pages.link('report, all samples', 'release', '/artifacts')}) · lineage: {' ← '.join(stages[::-1])}"
    )


def _trained(manifest: Manifest) -> tuple[str, ...]:
    return ("corpus", "pretrain", "sft", "reward", str(manifest["method"]), "evaluate")


def _figures(manifest: Manifest) -> list[str]:
    """Every model's means with their 95 % intervals."""
    gold, known = manifest["gold"] or {}, manifest.get("intervals") or {}
    names = [name for name in FIGURES if name in ("reward", "tokens") or gold]
    rows = []
    for model in ("base", "sft", "policy"):
        means = {**gold.get(model, {}), "reward": manifest["reward"][model], "tokens": manifest["length_tokens"][model]}
        cells = [_with_interval(means.get(name), known.get(model, {}).get(name)) for name in names]
        rows.append([model, *cells, f"{manifest['tax'][model]:.3f}"])
    return table(["model", *names, "held-out loss"], rows)


def _with_interval(value: float | None, interval: Sequence[float] | None) -> str:
    if value is None:
        return "–"
    digits = 1 if abs(value) >= 10 else 2
    half = f"\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}{(interval[1] - interval[0]) / 2:.{digits}f}" if interval else ""
    return f"{value:.{digits}f}{half}"


def _wins(manifest: Manifest, role: str) -> list[str]:
    """What the table has no column for."""
    if role == "reward":
        figures = manifest["reward_model"]
        named = {name: figures.get(name) for name in ("accuracy_heldout_prompts", "annotator_agreement", "ece")}
        return ["", " · ".join(f"{name.replace('_', ' ')} {value:.3f}" for name, value in named.items() if value)]
    win = manifest["win_rate_vs_sft"]
    judge = "gold judge" if manifest["gold"] else "reward model, which the policy was trained to please"
    return [
        "",
        f"The policy beats SFT on {win['rate']:.3f} of {win['decided']:.0f} decided prompts (95 % interval "
        f"{win['low']:.3f} to {win['high']:.3f}; {judge}). KL to SFT {manifest['kl_to_sft']:.2f} nats per response. "
        "Intervals are 95 %, over prompts.",
    ]


def _gate(manifest: Manifest) -> list[str]:
    """Each limit with its figure and margin, the comparison with the champion, and the verdict."""
    gate = manifest["gate"]
    checks = [Check.model_validate(check) for check in gate["checks"]]
    rows = [[check.name, f"{check.limit:g}", *_measured(check)] for check in checks]
    lines = table(["limit", "asked", "measured", ""], rows) if rows else []
    if gate["against"] is not None:
        lines += ["", f"Against the champion of that time: it {plain(HeadToHead(**gate['against']).sentence())}."]
    verdict = "passed" if gate["passed"] else f"missed: {plain('; '.join(gate['missed']))}"
    return [*lines, "", f"Verdict: {verdict}."]


def _measured(check: Check) -> tuple[str, str]:
    if check.value is None:
        return "–", "not measured"
    return f"{check.value:.3f}", f"{'passed' if check.passed else 'missed'} by {abs(check.margin):.3f}"


def _samples(manifest: Manifest, count: int, longest: int) -> Iterator[str]:
    for sample in (manifest.get("samples") or [])[:count]:
        yield f"- **{plain(sample['prompt'], longest)}** {plain(sample['kind'])}"
        for model in ("sft", "policy"):
            if response := sample["responses"].get(model):
                gold = "" if response["score"] is None else f", gold {response['score']:.2f}"
                yield f"  - {model} ({response['reward']:+.2f}{gold}): {plain(response['text'], longest)}"


def _data(manifest: Manifest) -> Iterator[str]:
    for section, data in manifest["data"].items():
        count = "–" if data["count"] is None else f"{data['count']:,}"
        licence = plain(data["licence"]) or "licence not stated"
        sources = ", ".join(plain(source, 60) for source in data["sources"])
        yield f"- {section}: {count}{f' from {sources}' if sources else ''}; {licence}"
    labels = manifest["labels"]
    who = LABELLED_BY.get(labels["by"], plain(str(labels["by"])))
    counts = f", {labels['annotators']} annotators, {labels['annotations']} annotations" if labels["annotators"] else ""
    versions = ", ".join(f"{kind} `{version}`" for kind, version in labels["guidelines"].items())
    yield f"- labelled by {who}{counts}" + (f"; guidelines {versions}" if versions else "")


def _use(manifest: Manifest, role: str, model: str) -> Iterator[str]:
    if role == "policy":
        yield f"- intended use: {plain(manifest['intended_use']) or 'not stated'}"
        yield f"- limits: {plain(manifest['limits']) or 'not stated'}"
    inputs = '{"prompt": […], "response": […]}' if role == "reward" else '{"prompt": […]}'
    yield f'- load: `mlflow.pyfunc.load_model("models:/{model}").predict({inputs})`'
    yield f"- serve: `{SERVE.format(model)}`"


def _cost(manifest: Manifest) -> str:
    seconds, compute, hours = sum(manifest["seconds"].values()), manifest["compute"], manifest["labels"]["hours"]
    where = " ".join(str(compute[name]) for name in ("device", "gpu", "precision") if compute.get(name))
    people = "" if hours is None else f"; {hours:.1f} hours of judging"
    commit = f"; code {manifest['git_commit'][:12]}" if manifest["git_commit"] else ""
    return f"{seconds / 60:.1f} minutes of computation on {where or 'an unknown device'}{people}{commit}"
