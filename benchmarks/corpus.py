"""The corpus stage on text that does not fit in memory: speed, memory, a kill in between, and what is found and kept.

    python -m benchmarks.corpus --megabytes 1000 --directory DIRECTORY

Writes distinct text of made-up words with planted copies, and texts of which every byte must stay (Persian, Hindi,
emoji families, Python). The stage runs once whole, and once killed at half of the text and started again; the outputs
are compared with each other and with what was planted. Prints JSON: megabytes of text per second and per second of
processor time, the peak of the resident memory of all processes together (mapped files included), recall of the planted
copies.
"""

import argparse
import json
import random
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil

from alignment.config.stages import CorpusConfig, TextSource
from alignment.data.corpus import prepare_corpus
from alignment.data.near_copies import jaccard, shingles
from alignment.journal import Journal
from alignment.records import shard_files

MB = 1_000_000
SIMILARITY = 0.9
VERBATIM = (
    "می\u200cخواهم این کتاب\u200cها را بخوانم؛ خانه\u200cی ما کنار رودخانه است.",
    "क्\u200dष और क्\u200cष अलग दिखते हैं; लड़का पढ़ रहा है, क़लम मेज़ पर है।".replace("ड़", "\u095c").replace("क़", "\u0958"),
    "Families: 👨\u200d👩\u200d👧\u200d👦 👩🏽\u200d🚀 🏳️\u200d🌈 and hearts ❤️\u200d🔥, "
    "🏴\U000e0067\U000e0062\U000e0073\U000e0063\U000e0074\U000e007f.",
    'def scale(values,  factor = 2):\n\n    total  = 0      # aligned\n    label  = "a  b"  # comments\n\n'
    "    for value in values:\n\ttotal += value *  factor\n    return total,   label\n",
)


def words(generator: np.random.Generator, count: int) -> list[str]:
    """Distinct made-up words of two to four syllables."""
    syllables = np.array([a + b for a in "bdfgklmnprstvz" for b in ("a", "e", "i", "o", "u", "an", "er", "is")])
    made: dict[str, None] = {}
    while len(made) < count:
        made |= dict.fromkeys("".join(generator.choice(syllables, generator.integers(2, 5))) for _ in range(1000))
    return list(made)[:count]


def documents(megabytes: float, counts: dict[str, int]) -> Iterator[str]:
    """Texts of about as many bytes together; what is planted is counted in `counts`."""
    generator, chance = np.random.default_rng(0), random.Random(0)
    vocabulary = np.array(words(generator, 20_000))
    shares = 1 / np.arange(10, 10 + len(vocabulary))
    cumulative = np.cumsum(shares / shares.sum())
    size, recent = 0, list[str]()
    yield from VERBATIM
    while size < megabytes * MB:
        text = " ".join(vocabulary[np.searchsorted(cumulative, generator.random(generator.integers(20, 400)))])
        kind = chance.random()
        if kind < 0.02 and len(recent) > 100:
            original = recent.pop(chance.randrange(len(recent)))
            text = original if kind < 0.01 else with_another_word(original, chance)
            counts["exact"] += text == original
            counts["near"] += text != original and jaccard(shingles(text), shingles(original)) >= SIMILARITY
        elif len(recent) < 500:
            recent.append(text)
        size += len(text)
        counts["documents"] += 1
        yield text
    counts["bytes"] = size


def with_another_word(text: str, chance: random.Random) -> str:
    """A text with one word replaced."""
    parts = text.split()
    parts[chance.randrange(len(parts))] = "replaced"
    return " ".join(parts)


def write_source(path: Path, megabytes: float) -> dict[str, int]:
    """Write the rows of the benchmark, and return what is planted among them."""
    counts = {"documents": len(VERBATIM), "near": 0, "exact": 0, "bytes": 0}
    with path.open("w", encoding="utf-8") as file:
        for text in documents(megabytes, counts):
            file.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
    return counts


def run_stage(source: Path, out: Path) -> None:
    """The stage in this process and its own; prints its figures and its processor time."""
    config = CorpusConfig(sources=(TextSource(path=str(source)),), near_duplicate_similarity=SIMILARITY)
    figures = prepare_corpus(config, out, Journal(out), seed=0)
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    print(json.dumps({**figures, "cpu_seconds": sum(usage.ru_utime + usage.ru_stime for usage in used)}))


def watch(source: Path, out: Path, kill_when: int | None = None) -> dict[str, float]:
    """Run the stage in a process of its own; its figures, seconds and peak memory. `kill_when` bytes of cleaned text
    are there, it is killed."""
    command = [sys.executable, "-m", "benchmarks.corpus", "--stage", str(source), "--directory", str(out)]
    start, peak, text = time.monotonic(), 0, out / "work" / "documents.jsonl"
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        whole = psutil.Process(process.pid)
        while process.poll() is None:
            peak = max(peak, resident(whole))
            if kill_when is not None and text.exists() and text.stat().st_size >= kill_when:
                process.kill()
            time.sleep(0.2)
        assert process.stdout is not None
        figures: dict[str, float] = json.loads(process.stdout.read() or "{}")
    return {**figures, "seconds": time.monotonic() - start, "peak_bytes": peak}


def resident(process: psutil.Process) -> int:
    """The resident memory of a process and all that it started."""
    total = 0
    try:
        for part in (process, *process.children(recursive=True)):
            total += part.memory_info().rss
    except psutil.NoSuchProcess:
        pass
    return total


def verbatim_kept(out: Path) -> int:
    """How many of the texts of which every byte must stay are in the output."""
    wanted = {*VERBATIM}
    for path in (file for name in ("train", "heldout") for file in shard_files(out / f"{name}.jsonl")):
        with path.open(encoding="utf-8") as lines:
            for line in lines:
                if not line.isascii() or "aligned" in line:
                    wanted.discard(json.loads(line)["text"])
    return len(VERBATIM) - len(wanted)


def compare(megabytes: float, directory: Path) -> dict[str, float]:
    """Write the text, run the stage whole, and again with a kill; both must give the same files."""
    directory.mkdir(parents=True, exist_ok=True)
    source = directory / "source.jsonl"
    planted = write_source(source, megabytes)
    whole = watch(source, directory / "whole")
    killed = watch(source, directory / "killed", kill_when=planted["bytes"] // 2)
    resumed = watch(source, directory / "killed")
    names = [file.name for file in sorted((directory / "whole").glob("*.jsonl")) if file.name != "metrics.jsonl"]
    same = all((directory / "whole" / n).read_bytes() == (directory / "killed" / n).read_bytes() for n in names)
    size = planted["bytes"] / MB
    return {
        "megabytes": size,
        "documents": planted["documents"],
        "seconds": whole["seconds"],
        "megabytes_per_second": size / whole["seconds"],
        "megabytes_per_cpu_second": size / whole["cpu_seconds"],
        "peak_mebibytes": max(run["peak_bytes"] for run in (whole, killed, resumed)) / 2**20,
        "seconds_until_killed": killed["seconds"],
        "seconds_of_the_resumed_run": resumed["seconds"],
        "the_same_after_a_kill": float(same),
        "near_copies_recall": whole["near_copies"] / planted["near"],
        "exact_copies_recall": whole["exact_copies"] / planted["exact"],
        "documents_lost": planted["documents"]
        - whole["documents_train"]
        - whole["documents_heldout"]
        - planted["near"]
        - planted["exact"],
        "verbatim_texts_kept": verbatim_kept(directory / "killed"),
    }


def main() -> None:
    """Run the benchmark, or the stage alone."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=float, default=1000)
    parser.add_argument("--directory", type=Path, required=True)
    parser.add_argument("--stage", type=Path, help="run the stage on this file and write to the directory")
    options = parser.parse_args()
    if options.stage:
        run_stage(options.stage, options.directory)
    else:
        print(json.dumps(compare(options.megabytes, options.directory), indent=1))


if __name__ == "__main__":
    main()
