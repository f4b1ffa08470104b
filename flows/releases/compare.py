"""`rlhf compare`: two policies side by side, as a table, as a picture and as Markdown with their samples."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from matplotlib.figure import Figure
from mlflow import MlflowClient
from rich.console import Group
from rich.table import Table
from rich.text import Text

from alignment.artifacts import write_text
from alignment.errors import ConfigError
from alignment.markdown import plain, table
from alignment.plots import STYLE
from flows.home import home_directory
from flows.releases.head_to_head import HeadToHead, Release, head_to_head, read_release, release_of
from flows.releases.report import release_run
from flows.releases.versions import resolve
from flows.tracking import links
from flows.tracking.registry import name_and_number

FOLDER = "compare"
SHOWN = 20  # prompts side by side in the file
MODELS = ("a", "b")


@dataclass(frozen=True)
class Compared:
    """Two releases with their rows of figures, the options that differ, and the files that were written."""

    releases: tuple[Release, Release]
    figures: Sequence[tuple[str, str, str]]
    options: Sequence[tuple[str, str, str]]
    wins: HeadToHead
    written: dict[str, str] = field(default_factory=dict)


def compare(ours: str, theirs: str) -> Compared:
    """Compare two versions or releases, and write table, samples and picture into the home."""
    a, b = find_release(ours), find_release(theirs)
    if a.manifest["release"] == b.manifest["release"]:
        raise ConfigError(f"{ours} and {theirs} are both release {a.manifest['release']}: name two releases")
    wins = head_to_head(a, b)
    compared = Compared((a, b), [*figure_rows(a.manifest, b.manifest)], [*option_rows(a, b)], wins)
    directory = home_directory() / FOLDER / "-vs-".join(release.policy.replace("/", "-") for release in (a, b))
    directory.mkdir(parents=True, exist_ok=True)
    write_text(directory / "compare.md", markdown(compared))
    picture(compared).savefig(directory / "compare.png", dpi=110)
    page = _mlflow_page(a, b)
    paths = {"table and samples": str(directory / "compare.md"), "picture": str(directory / "compare.png")}
    compared.written.update(paths | ({"MLflow": page} if page else {}))
    return compared


def find_release(text: str) -> Release:
    """The release of a version (NAME/VERSION, NAME@ALIAS), or by its name."""
    if "/" in text or "@" in text:
        return release_of("/".join(resolve(text)))
    return read_release(release_run(text))


def figure_rows(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """The headline figures of two manifests, with intervals where they are known."""
    names = [name for name in ("score", "helpful", "truthful", "harmless") if a.get("gold") and b.get("gold")]
    rows = [(name, _gold(a, name), _gold(b, name)) for name in names]
    readings: dict[str, Any] = {
        "reward": lambda m: _number(m["reward"]["policy"], _interval(m, "reward")),
        "tokens": lambda m: _number(m["length_tokens"]["policy"], _interval(m, "tokens")),
        "wins over its SFT": lambda m: _number(
            m["win_rate_vs_sft"]["rate"], (m["win_rate_vs_sft"]["low"], m["win_rate_vs_sft"]["high"])
        ),
        "KL to SFT": lambda m: _number(m["kl_to_sft"]),
        "held-out loss": lambda m: _number(m["tax"]["policy"]),
        "held-out loss, of SFT's": lambda m: _number(m["tax"]["policy"] / m["tax"]["sft"]),
        "reward model's accuracy": lambda m: _number(m["reward_model"].get("accuracy_heldout_prompts")),
        "comparisons": lambda m: f"{m['comparisons']:,}",
        "labelled by": lambda m: str((m.get("labels") or {}).get("by", "–")),
        "minutes of computation": lambda m: f"{sum(m['seconds'].values()) / 60:.1f}",
        "gate": lambda m: "passed" if m["gate"]["passed"] else "missed",
    }
    return rows + [(name, read(a), read(b)) for name, read in readings.items()]


def _gold(manifest: Mapping[str, Any], name: str) -> str:
    return _number(manifest["gold"]["policy"][name], _interval(manifest, name))


def _interval(manifest: Mapping[str, Any], name: str) -> Sequence[float] | None:
    interval: Sequence[float] | None = (manifest.get("intervals") or {}).get("policy", {}).get(name)
    return interval


def _number(value: float | None, interval: Sequence[float] | None = None) -> str:
    if value is None:
        return "–"
    return f"{value:.3f}" + ("" if interval is None else f" ({interval[0]:.3f} to {interval[1]:.3f})")


def option_rows(a: Release, b: Release) -> list[tuple[str, str, str]]:
    """The options of the recipes that differ."""
    client = MlflowClient()
    ours, theirs = (client.get_run(release.manifest["mlflow_run_id"]).data.params for release in (a, b))
    names = [name for name in sorted(ours.keys() | theirs.keys()) if ours.get(name) != theirs.get(name)]
    return [(name, ours.get(name, "–"), theirs.get(name, "–")) for name in names]


def compare_view(compared: Compared) -> Group:
    """The comparison for the terminal."""
    titles = [f"{release.policy} ({release.manifest['release']})" for release in compared.releases]
    parts: list[Table | Text] = []
    for head, rows in (("figure", compared.figures), ("option that differs", compared.options)):
        shown = Table(head)
        for title in titles:
            shown.add_column(Text(title))
        for row in rows:
            shown.add_row(*(Text(cell, overflow="fold") for cell in row))
        parts += [shown] if rows else []
    return Group(*parts, Text(f"{compared.releases[0].policy} {compared.wins.sentence()}"))


def markdown(compared: Compared) -> str:
    """The comparison as Markdown, with the first response of both to the prompts that they share."""
    a, b = compared.releases
    titles = [f"{release.policy} ({release.manifest['release']})" for release in (a, b)]
    lines = [f"# {titles[0]} and {titles[1]}", "", f"{a.policy} {compared.wins.sentence()}.", ""]
    lines += ["![figures and curves](compare.png)", ""]
    for head, rows in (("figure", compared.figures), ("option that differs", compared.options)):
        lines += [*table([head, *titles], [[plain(cell) for cell in row] for row in rows]), ""] if rows else []
    ours, theirs = (release.samples.get("policy", {}) for release in (a, b))
    shared = [prompt for prompt in ours if prompt in theirs][:SHOWN]
    lines += ["## The same prompts", ""] if shared else []
    for prompt in shared:
        lines += [f"### {plain(str(ours[prompt][0].get('prompt', '')))}", ""]
        for release, responses in ((a, ours[prompt]), (b, theirs[prompt])):
            first = responses[0]
            lines.append(f"- **{release.policy}** ({_scores(first)}): {plain(str(first['response']))}")
        lines.append("")
    return "\n".join(lines)


def _scores(row: Mapping[str, object]) -> str:
    score = row.get("score")
    gold = f", gold {score:.2f}" if isinstance(score, float) else ""
    return f"reward {row['reward']:+.2f}{gold}"


def picture(compared: Compared) -> Figure:
    """Both policies' means with their intervals, and their curves of reward or gold score over √KL."""
    figure = Figure(figsize=(11, 4), layout="constrained")
    means, curves = figure.subplots(1, 2)
    manifests = [release.manifest for release in compared.releases]
    titles = [f"{r.policy}, seed {r.manifest['seed']}" for r in compared.releases]
    gold = all(manifest.get("gold") for manifest in manifests)
    names = ("score", "helpful", "truthful", "harmless") if gold else ("reward",)
    for number, (manifest, title) in enumerate(zip(manifests, titles, strict=True)):
        values = [manifest["gold"]["policy"][name] if gold else manifest["reward"]["policy"] for name in names]
        known = [_interval(manifest, name) or (value, value) for name, value in zip(names, values, strict=True)]
        errors = [[max(0.0, value - low) for value, (low, _) in zip(values, known, strict=True)]]
        errors.append([max(0.0, high - value) for value, (_, high) in zip(values, known, strict=True)])
        places = [place + (number - 0.5) * 0.36 for place in range(len(names))]
        means.bar(places, values, width=0.34, yerr=errors, capsize=3, label=title)
        key = "score" if gold else "reward"
        points = [point for point in manifest["curve"] if key in point]
        distances = [max(0.0, point["kl"]) ** 0.5 for point in points]
        curves.plot(distances, [point[key] for point in points], marker="o", label=title, **STYLE)
    means.set_xticks(range(len(names)), names)
    means.set_title("held-out prompts, 95 % intervals over prompts")
    curves.set_title(f"{'gold score' if gold else 'reward'} on the way")
    curves.set_xlabel("√KL(policy ‖ SFT), nats½ a response")
    for axes in (means, curves):
        axes.grid(alpha=0.25)
    curves.legend(frameon=False, fontsize=8)
    return figure


def _mlflow_page(a: Release, b: Release) -> str | None:
    """MLflow's page that compares two versions of one model; None for two models."""
    versions = [name_and_number(release.policy) for release in (a, b)]
    if versions[0][0] != versions[1][0]:
        return None
    runs_by_version = {
        number: str(release.manifest["runs"][release.manifest["method"]])
        for release, (_, number) in zip((a, b), versions, strict=True)
    }
    return links.compare_page(versions[0][0], runs_by_version)
