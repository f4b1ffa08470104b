"""Stage `corpus`: raw text to clean, deduplicated, split documents."""

import random
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from textwrap import dedent

from datasketch import MinHash, MinHashLSH

from alignment.config.stages import CorpusConfig
from alignment.data.readers import read_documents
from alignment.data.rejected import write_rejected
from alignment.data.used_columns import SourceNotes, write_notes
from alignment.errors import DataError
from alignment.journal import Journal
from alignment.records import Document, Rejected, write_records

# Control characters, surrogates, private use and noncharacters; and of the format characters, which join letters
# (Persian, Hindi), emoji and digits or set the direction, those that say nothing: soft hyphens, byte order marks, and
# zero-width spaces except in the scripts that part words by them (Thai, Lao, Burmese, Khmer).
MEANINGLESS = re.compile(
    "[\x00-\x08\x0e-\x1f\x7f-\x9f\xad\ufeff\ufdd0-\ufdef\ufffe\uffff\ud800-\udfff\ue000-\uf8ff"
    "\U000f0000-\U0010ffff]|(?<![\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff])\u200b"
)
SHINGLE_WORDS = 5
PERMUTATIONS = 64
RECALL = 0.99


def prepare_corpus(
    config: CorpusConfig, out: Path, journal: Journal, *, seed: int, town: Path | None = None
) -> dict[str, float]:
    """Read all sources, clean them, drop exact and near copies, and write `train.jsonl` and `heldout.jsonl`.

    Rows that cannot be read go to `rejected.jsonl`; more of them than `max_rejected_share` is an error.
    """
    documents: list[Document] = []
    rejected: list[Rejected] = []
    notes = [(source.path, SourceNotes("corpus")) for source in config.sources]
    for source, (_, note) in zip(config.sources, notes, strict=True):
        more, bad = read_documents(source, town, note)
        documents += more
        rejected += bad
    write_notes(journal, notes)
    write_rejected(rejected, len(documents), config.max_rejected_share, out, "corpus")
    cleaned = [
        document
        for document in map(clean_document, documents)
        if document is not None and len(document.plain) >= config.min_characters
    ]
    distinct = list({document.plain: document for document in reversed(cleaned)}.values())[::-1]
    kept = drop_near_duplicates(distinct, config.near_duplicate_similarity)
    if len(kept) < 2:
        raise DataError(
            f"only {len(kept)} documents are left of {len(documents)}; check `corpus.sources` and `min_characters`"
        )
    random.Random(f"corpus-{seed}").shuffle(kept)
    heldout = max(1, round(len(kept) * config.heldout_share))
    write_records(out / "heldout.jsonl", kept[:heldout])
    write_records(out / "train.jsonl", kept[heldout:])
    counts = {
        "read": len(documents),
        "rejected": len(rejected),
        "too_short": len(documents) - len(cleaned),
        "exact_copies": len(cleaned) - len(distinct),
        "near_copies": len(distinct) - len(kept),
        "documents_train": len(kept) - heldout,
        "documents_heldout": heldout,
        "characters": sum(len(document.plain) for document in kept),
    }
    journal.log(counts, step=0)
    return {name: float(count) for name, count in counts.items()}


def clean_document(document: Document) -> Document | None:
    """The document with cleaned text; None if it, or any of its turns, is empty then."""
    if document.text:
        text = clean(document.text)
        return Document(text=text) if text else None
    turns = tuple(m.model_copy(update={"content": clean(m.content)}) for m in document.messages)
    return Document(messages=turns) if all(m.content for m in turns) else None


def clean(text: str) -> str:
    """Normalise to NFC, drop characters without meaning, empty lines and runs of blanks; keep indentation and tabs.

    The indentation that all lines share is dropped.
    """
    text = re.sub("\r\n?|[\v\f\x85]", "\n", unicodedata.normalize("NFC", text))
    lines = [clean_line(line) for line in MEANINGLESS.sub("", text).split("\n")]
    return dedent("\n".join(line for line in lines if line.strip()))


def clean_line(line: str) -> str:
    """A line with its indentation, without runs of blanks after it; a run with a tab becomes a tab."""
    words = line.lstrip(" \t")
    indentation = line[: len(line) - len(words)]
    return indentation + re.sub(r"[ \t]{2,}", lambda run: "\t" if "\t" in run.group() else " ", words.rstrip())


def shingles(text: str) -> set[str]:
    """The word 5-grams of a text, in lower case; a shorter text is a single shingle."""
    words = text.lower().split()
    return {" ".join(words[i : i + SHINGLE_WORDS]) for i in range(max(1, len(words) - SHINGLE_WORDS + 1))}


def drop_near_duplicates(documents: Sequence[Document], similarity: float) -> list[Document]:
    """Keep the first of each group of documents whose shingles have a Jaccard similarity of `similarity` or more.

    MinHash with banding finds the candidates (Broder 1997); the exact similarity decides, so that no distinct text is
    dropped.
    """
    if similarity >= 1:
        return list(documents)
    index = MinHashLSH(params=bands(similarity), num_perm=PERMUTATIONS)
    kept: list[Document] = []
    sets = [shingles(document.plain) for document in documents]
    hashes = MinHash.bulk([[s.encode() for s in group] for group in sets], num_perm=PERMUTATIONS, seed=1)
    for number, (document, minhash) in enumerate(zip(documents, hashes, strict=True)):
        if any(jaccard(sets[number], sets[int(other)]) >= similarity for other in index.query(minhash)):
            continue
        index.insert(str(number), minhash)
        kept.append(document)
    return kept


def bands(similarity: float) -> tuple[int, int]:
    """The number b of bands and r of hashes in each: the widest bands that find `RECALL` of the pairs at the threshold.

    A pair of similarity s shares a band with probability 1 − (1 − s^r)^b; wider bands give fewer false candidates.
    """
    for rows in range(PERMUTATIONS, 1, -1):
        count = PERMUTATIONS // rows
        if 1 - (1 - similarity**rows) ** count >= RECALL:
            return count, rows
    return PERMUTATIONS, 1


def jaccard(a: set[str], b: set[str]) -> float:
    """|a ∩ b| / |a ∪ b|."""
    return len(a & b) / len(a | b)
