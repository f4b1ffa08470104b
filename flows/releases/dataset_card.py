"""The dataset card of a comparisons stage, from its output and that of the labelling stage."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from alignment.artifacts import content_digest
from alignment.records import Comparison, Rejected, read_records
from labeling.collection import COLLECTION_FILE, read_collection
from labeling.quality.screening import SetAside
from labeling.reports.card import Card, as_markdown, make_card

PARTS = ("train", "heldout_prompts", "heldout_annotators", "aside")


def write_card(out: Path, name: str, *, labelled: Path | None, files: Sequence[Path]) -> Card:
    """Write `card.json` and `card.md` next to the comparisons in `out`. `labelled` is the labelling stage's output."""
    rows, _ = read_records(out / "comparisons.jsonl", Comparison)
    rejected, _ = read_records(out / "rejected.jsonl", Rejected)
    guidelines: Mapping[str, str] = {}
    projects: Mapping[str, str] = {}
    aside: Sequence[SetAside] = ()
    if labelled is not None:
        rejected += read_records(labelled / "quarantine.jsonl", Rejected)[0]
    if labelled is not None and (labelled / "set_aside.jsonl").is_file():
        aside, _ = read_records(labelled / "set_aside.jsonl", SetAside)
    if labelled is not None and (labelled / COLLECTION_FILE).is_file():
        opened = read_collection(labelled)
        guidelines = {batch.project.kind: batch.project.screen_hash for batch in opened.batches}
        projects = opened.urls
    splits = {part: _lines(out / f"{part}.jsonl") for part in PARTS}
    sources = {path.name: content_digest(path) for path in files}
    card = make_card(
        name, rows, rejected, splits=splits, guidelines=guidelines, projects=projects, sources=sources, aside=aside
    )
    (out / "card.json").write_text(card.model_dump_json(indent=1) + "\n", encoding="utf-8")
    (out / "card.md").write_text(as_markdown(card), encoding="utf-8")
    return card


def _lines(path: Path) -> int:
    with path.open("rb") as file:
        return sum(1 for _ in file)
