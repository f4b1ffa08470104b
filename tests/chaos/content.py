"""What of a stage's output is its content, and what is only a record of the run that made it.

Content is the same however often a run was killed: every file but `provenance.json`, byte for byte, in which nothing
but the words of `RECORDS` is passed over: times, durations, and names that a server or a run hands out.
"""

import hashlib
import re
from pathlib import Path

PROVENANCE = "provenance.json"  # who made it, when, in how many seconds, by which run: a record as a whole
TEXT = {".json", ".jsonl", ".md", ".txt", ".xml", ".jinja"}
RECORDS = [
    re.compile(pattern)
    for pattern in (
        r'"timestamp_ms": \d+',  # when a metric was logged
        r'"(seconds_\w+|\w+_per_second)": [-+.\de]+',  # how fast a step was
        r'"created_at":"[^"]+"',  # when somebody judged
        r'"annotation_ids?":("[\d,]+"|\[[^\]]*\])',  # an annotation's number on the server
        r"cmp_[0-9a-f]{12}",  # a comparison's name, made from that number
        r'"task_[0-9a-f]{12}":\d+',  # a task's number on the server
        r'"project":\{"id":\d+,"kind":"\w+","title":"[^"]+"',  # a project's number, and the title that a test gives it
        r'"key":"collection_[0-9a-f]{12}"',  # a collection's key, in which the title counts
        r"http://[\w.]+:\d+(/projects/\d+[\w/?=]*)?",  # where the servers are
        r"comparisons-[0-9a-f]{16}",  # an output's directory, named by its key, in which the title counts
    )
]


def content(directory: Path) -> dict[str, str]:
    """The digest of each file's content below a stage's output, by its relative path."""
    files = sorted(path for path in directory.rglob("*") if path.is_file() and path.name != PROVENANCE)
    return {path.relative_to(directory).as_posix(): _digest(path) for path in files}


def contents(home: Path) -> dict[str, dict[str, str]]:
    """The content of every published output of a home, by stage."""
    return {path.name.rpartition("-")[0]: content(path) for path in sorted((home / "artifacts").iterdir())}


def _digest(path: Path) -> str:
    if path.suffix not in TEXT:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    text = path.read_text(encoding="utf-8")
    for record in RECORDS:
        text = record.sub("", text)
    return hashlib.sha256(text.encode()).hexdigest()
