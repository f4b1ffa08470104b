"""The streamed corpus stage against a reference in memory, on any documents; and killed at any time."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alignment.config.stages import CorpusConfig, TextSource
from alignment.data import cleaned, corpus, deduplication
from alignment.data.cleaning import clean
from alignment.data.corpus import prepare_corpus
from alignment.data.near_copies import jaccard, shingles
from alignment.journal import Journal
from alignment.records import Document, as_line, shard_files

WORDS = [f"w{number}" for number in range(30)]


def stage(rows: Sequence[dict[str, object]], out: Path, **options: float) -> dict[str, float]:
    """The stage on these rows."""
    out.mkdir(parents=True, exist_ok=True)
    source = out / "raw.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    config = CorpusConfig(sources=(TextSource(path=str(source)),), **options)  # type: ignore[arg-type]
    return prepare_corpus(config, out / "out", Journal(out / "out"), seed=3)


def reference(documents: Sequence[Document], similarity: float, share: float) -> tuple[str, str]:
    """The held-out and the training file, by a plain reading of what they are: quadratic, and all in memory."""
    tidy = [document.model_copy(update={"text": clean(document.text)}) for document in documents]
    last = {document.plain: number for number, document in enumerate(tidy)}
    first = {document.plain: document for document in reversed(tidy)}
    kept: list[Document] = []
    for plain in sorted(last, key=last.__getitem__):
        if similarity == 1 or all(jaccard(shingles(plain), shingles(other.plain)) < similarity for other in kept):
            kept.append(first[plain])
    random.Random("corpus-3").shuffle(kept)
    heldout = max(1, round(len(kept) * share))
    lines = [as_line(document) + "\n" for document in kept]
    return "".join(lines[:heldout]), "".join(lines[heldout:])


@st.composite
def corpora(draw: st.DrawFn) -> list[Document]:
    """Texts of random words, with exact and near copies of earlier ones."""
    documents: list[Document] = []
    chance = random.Random(draw(st.integers(0, 2**32)))
    for number in range(draw(st.integers(2, 40))):
        words = [f"{chance.choice(WORDS)}x{number}" for _ in range(chance.randint(1, 60))]
        if documents and chance.random() < 0.6:
            words = chance.choice(documents).text.split(" ")
            for _ in range(chance.randint(0, 2)):
                words[chance.randrange(len(words))] = chance.choice(WORDS)
        documents.append(Document(text=" ".join(words)))
    return [*documents, Document(text="another text"), Document(text="and one more")]


@given(documents=corpora(), similarity=st.sampled_from([0.5, 0.8, 0.9, 1.0]), partition=st.sampled_from([3, 1 << 21]))
@settings(max_examples=25, deadline=None)
def test_any_documents_become_what_the_reference_says(
    tmp_path_factory: pytest.TempPathFactory, documents: list[Document], similarity: float, partition: int
) -> None:
    directory = tmp_path_factory.mktemp("stage")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(deduplication, "PARTITION", partition)
        patch.setattr(deduplication, "BLOCK", 7)
        patch.setattr(cleaned, "BLOCK", 5)
        patch.setattr(corpus, "ordered_map", map)
        patch.setattr(corpus, "BATCH_CHARACTERS", 500)
        rows = [document.model_dump(include={"text"}) for document in documents]
        stage(rows, directory, near_duplicate_similarity=similarity, heldout_share=0.2, min_characters=0)
    heldout, train = reference(documents, similarity, 0.2)
    assert (directory / "out" / "heldout.jsonl").read_text(encoding="utf-8") == heldout
    assert (directory / "out" / "train.jsonl").read_text(encoding="utf-8") == train


def test_a_group_of_many_copies_leaves_one_and_a_text_that_is_a_conversation_too_keeps_the_first(
    tmp_path: Path,
) -> None:
    text = " ".join(f"w{number}" for number in range(200))
    near = [{"text": text.replace(f"w{number} ", "other ")} for number in range(0, 200, 2)]
    turns = [{"role": "user", "content": "Who plays the violin?"}]
    both = [{"messages": turns}, {"text": "Who plays the violin?"}]
    counts = stage([{"text": text}, *near, *both, {"text": "and something else entirely"}], tmp_path)
    assert (counts["near_copies"], counts["exact_copies"], counts["documents_train"]) == (100, 1, 2)
    lines = [line for name in ("train", "heldout") for line in (tmp_path / "out" / f"{name}.jsonl").open()]
    assert [json.loads(line)["messages"] for line in lines if "violin" in line] == [turns]


def texts(count: int) -> list[dict[str, object]]:
    chance = random.Random(0)
    rows: list[dict[str, object]] = [{"text": " ".join(f"w{chance.random()}" for _ in range(20))} for _ in range(count)]
    return [*rows, {"title": "no text"}]


def test_batches_in_processes_and_shards_give_the_documents_of_a_single_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = stage(texts(400), tmp_path / "one", max_rejected_share=0.1)
    monkeypatch.setattr(corpus, "BATCH_CHARACTERS", 20_000)
    monkeypatch.setattr(corpus, "SHARD_BYTES", 50_000)
    assert stage(texts(400), tmp_path / "many", max_rejected_share=0.1) == counts
    shards = shard_files(tmp_path / "many" / "out" / "train.jsonl")
    assert [path.name for path in shards] == [
        "train.jsonl",
        "train-00001.jsonl",
        "train-00002.jsonl",
        "train-00003.jsonl",
    ]
    (whole,) = shard_files(tmp_path / "one" / "out" / "train.jsonl")
    assert b"".join(path.read_bytes() for path in shards) == whole.read_bytes()
    names = [path.name for path in sorted((tmp_path / "many" / "out").iterdir()) if path not in shards]
    assert names == ["heldout.jsonl", "metrics.jsonl", "rejected.jsonl"]


KILLED = """
import os, sys
from pathlib import Path
from alignment.config.stages import CorpusConfig, TextSource
from alignment.data import cleaned, corpus
from alignment.journal import Journal
cleaned.COMMIT_SECONDS, corpus.BATCH_CHARACTERS, corpus.SHARD_BYTES = 0, 20_000, 50_000
corpus.ordered_map = map
source, out, moment = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
done = 0
def killing(function, last):
    def call(*args):
        global done
        done += 1
        if done == last:
            os.kill(os.getpid(), 9)
        return function(*args)
    return call
if moment == "cleaning":
    corpus.clean_batch = killing(corpus.clean_batch, 6)
elif moment == "copies":
    corpus.mark_copies = killing(corpus.mark_copies, 1)
elif moment == "shards":
    corpus.write_lines = killing(corpus.write_lines, 4)
config = CorpusConfig(sources=(TextSource(path=str(source)),), max_rejected_share=0.1)
print(corpus.prepare_corpus(config, out, Journal(out), seed=3)["read"], done)
"""


@pytest.mark.parametrize("moment", ["cleaning", "copies", "shards"])
def test_a_killed_stage_goes_on_and_writes_the_same(
    tmp_path: Path, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpus, "SHARD_BYTES", 50_000)
    stage(texts(400), tmp_path, max_rejected_share=0.1)

    def run(moment: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", KILLED, str(tmp_path / "raw.jsonl"), str(tmp_path / "killed"), moment]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    assert run(moment).returncode == -signal.SIGKILL
    state = json.loads((tmp_path / "killed" / "work" / "state.json").read_text(encoding="utf-8"))
    assert state["documents"] > 100 if moment == "cleaning" else state["documents"] == 400
    again = run(moment if moment == "cleaning" else "")
    assert again.stdout.startswith("400"), again.stderr
    for path in (tmp_path / "out").glob("*.jsonl"):
        if path.name != "metrics.jsonl":
            assert path.read_bytes() == (tmp_path / "killed" / path.name).read_bytes()
    assert not (tmp_path / "killed" / "work").exists()


def test_work_on_other_text_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(corpus, "mark_copies", stop)
        stage([{"text": "a text that will change"}, {"text": "a text that stays as it is"}], tmp_path)
    rows = [{"text": "a text that has changed"}, {"text": "a text that stays as it is"}]
    assert stage(rows, tmp_path)["read"] == 2
    lines = "".join((tmp_path / "out" / f"{name}.jsonl").read_text(encoding="utf-8") for name in ("train", "heldout"))
    assert "has changed" in lines and "will change" not in lines


def test_processes_end_with_the_one_that_started_them(tmp_path: Path) -> None:
    script = (
        "import time\nfrom alignment.parallel import ordered_map\n"
        "for pid in ordered_map(eval, ['__import__(\"os\").getpid()'] * 4): print(pid, flush=True), time.sleep(9)"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        worker = int(process.stdout.readline())
        process.kill()
    if worker == process.pid:
        return  # a machine with one core
    deadline = time.monotonic() + 10
    while Path(f"/proc/{worker}").exists() and time.monotonic() < deadline:
        time.sleep(0.2)
    with pytest.raises(ProcessLookupError):
        os.kill(worker, 0)
