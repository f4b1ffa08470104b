"""Stage `demonstrations`: human answers from files, hub data sets or the town."""

from pathlib import Path

from alignment.config.stages import DemonstrationsConfig
from alignment.data.readers import read_as, to_demonstration
from alignment.data.rejected import write_rejected
from alignment.data.used_columns import SourceNotes, write_notes
from alignment.journal import Journal
from alignment.records import Demonstration, Rejected, write_records


def collect_demonstrations(
    config: DemonstrationsConfig, out: Path, journal: Journal, *, town: Path | None = None
) -> dict[str, float]:
    """Read all sources into `demonstrations.jsonl`; invalid rows go to `rejected.jsonl`."""
    rows: list[Demonstration] = []
    rejected: list[Rejected] = []
    notes = [(source.path, SourceNotes("demonstrations")) for source in config.sources]
    for source, (_, note) in zip(config.sources, notes, strict=True):
        good, bad = read_as(source, to_demonstration, town, note)
        rows += good
        rejected += bad
    write_notes(journal, notes)
    write_rejected(rejected, len(rows), config.max_rejected_share, out, "demonstrations")
    write_records(out / "demonstrations.jsonl", rows)
    counts = {"demonstrations": float(len(rows)), "rejected": float(len(rejected))}
    journal.log(counts, step=0)
    return counts
