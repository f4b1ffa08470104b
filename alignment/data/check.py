"""What a source would become: counts, columns, lengths, duplicates and what is put aside, before anything runs."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Literal, get_args

from alignment.config.stages import (
    ComparisonsConfig,
    CorpusConfig,
    DemonstrationsConfig,
    PromptsConfig,
    RowSource,
    TextSource,
)
from alignment.data.formats import check_kind
from alignment.data.readers import read_as, read_comparisons, read_documents, to_demonstration, to_prompt
from alignment.data.used_columns import SourceNotes
from alignment.errors import ConfigError, DataError
from alignment.records import Comparison, Demonstration, Document, Prompt, Rejected

Kind = Literal["corpus", "prompts", "demonstrations", "comparisons"]
KINDS: tuple[Kind, ...] = get_args(Kind)
ALLOWED: dict[Kind, float] = {
    "corpus": CorpusConfig().max_rejected_share,
    "prompts": PromptsConfig().max_rejected_share,
    "demonstrations": DemonstrationsConfig().max_rejected_share,
    "comparisons": ComparisonsConfig().max_rejected_share,
}
Measure = Callable[[str], int]


@dataclass(frozen=True)
class Lengths:
    """The shortest, the median and the longest of texts, in characters or tokens."""

    shortest: int
    median: float
    longest: int


@dataclass(frozen=True)
class SourceCheck:
    """What a source is as records of a kind. A record's texts have names: prompt, and chosen beside rejected."""

    path: str
    kind: Kind
    formats: dict[str, int]
    records: int
    duplicates: int
    ties: int
    read: dict[str, int]
    unread: dict[str, int]
    notes: list[str]
    characters: dict[str, Lengths]
    tokens: dict[str, Lengths]
    allowed_share: float
    rejected: list[Rejected] = field(repr=False)
    samples: list[dict[str, str]] = field(repr=False)

    @property
    def rejected_share(self) -> float:
        """The share that is put aside, as the stage counts it."""
        return len(self.rejected) / max(1, self.records + len(self.rejected))

    @property
    def fits(self) -> bool:
        """Whether a stage would take the source."""
        return self.records > 0 and self.rejected_share <= self.allowed_share

    @property
    def reasons(self) -> list[tuple[str, int, int]]:
        """Each reason with its count and the line of its first row, the most frequent first."""
        counts = Counter(row.reason for row in self.rejected)
        first = {row.reason: row.line for row in reversed(self.rejected)}
        return [(reason, count, first[reason]) for reason, count in counts.most_common()]


def check_source(
    source: RowSource | TextSource,
    kind: Kind,
    *,
    tokens: Measure | None = None,
    samples: int = 10,
    allowed_share: float | None = None,
) -> SourceCheck:
    """Read a source as records of a kind. Raises DataError or ConfigError where it cannot be read as such."""
    if isinstance(source, RowSource):
        check_kind(source, kind)
    notes = SourceNotes(kind)
    records, rejected = _read(source, kind, notes)
    texts = [shown_texts(record) for record in records]
    columns = {name: [row[name] for row in texts] for name in (texts[0] if texts else {})}
    return SourceCheck(
        path=source.path,
        kind=kind,
        formats=dict(notes.formats.most_common()),
        records=len(records),
        duplicates=len(texts) - len({tuple(row.values()) for row in texts}),
        ties=sum(isinstance(record, Comparison) and record.strength == 0 for record in records),
        read=dict(notes.read.most_common()),
        unread=dict(notes.unread.most_common()),
        notes=notes.lines(source.path),
        characters={name: _lengths(values, len) for name, values in columns.items()},
        tokens={} if tokens is None else {name: _lengths(values, tokens) for name, values in columns.items()},
        allowed_share=ALLOWED[kind] if allowed_share is None else allowed_share,
        rejected=rejected,
        samples=[_sample(record, row) for record, row in zip(records[:samples], texts, strict=False)],
    )


def check_kinds(
    source: RowSource, text_field: str, *, tokens: Measure | None = None, samples: int = 10
) -> list[SourceCheck]:
    """The source as every kind of which it has records; if there is none, as comparisons, with the reasons.

    Raises DataError if it can be read as none.
    """
    checks: list[SourceCheck] = []
    problems: list[DataError | ConfigError] = []
    for kind in KINDS:
        if kind == "corpus" and (source.format != "auto" or source.columns):
            continue
        try:
            checks.append(check_source(as_kind(source, kind, text_field), kind, tokens=tokens, samples=samples))
        except (DataError, ConfigError) as error:
            problems.append(error)
    if not checks:
        raise problems[-1]
    return [check for check in checks if check.records] or checks[-1:]


def as_kind(source: RowSource, kind: Kind, text_field: str) -> RowSource | TextSource:
    """The source with the options of a kind: text for the corpus, rows for the others."""
    if kind != "corpus":
        return source
    options = source.model_dump(include={"path", "split", "name", "revision"})
    return TextSource(**options, origin=source.origin, text_field=text_field)


def shown_texts(record: Document | Prompt | Demonstration | Comparison) -> dict[str, str]:
    """The texts of a record by name."""
    if isinstance(record, Document):
        return {"text": record.plain}
    if isinstance(record, Prompt):
        return {"prompt": record.text}
    if isinstance(record, Demonstration):
        return {"prompt": Prompt(id="-", messages=record.messages).text, "completion": record.completion}
    return {"prompt": record.prompt.text, "chosen": record.chosen.text, "rejected": record.rejected.text}


def _sample(record: Document | Prompt | Demonstration | Comparison, texts: dict[str, str]) -> dict[str, str]:
    if not isinstance(record, Comparison):
        return texts
    strength = str(record.strength) if record.strength else "tie"
    return {**texts, "strength": f"{strength} ({record.annotator_id})" if record.annotator_id else strength}


def _read(
    source: RowSource | TextSource, kind: Kind, notes: SourceNotes
) -> tuple[Sequence[Document | Prompt | Demonstration | Comparison], list[Rejected]]:
    if isinstance(source, TextSource):
        return read_documents(source, None, notes)
    if kind == "comparisons":
        return read_comparisons(source, None, notes)
    if kind == "prompts":
        return read_as(source, to_prompt, None, notes)
    return read_as(source, to_demonstration, None, notes)


def _lengths(texts: Sequence[str], measure: Measure) -> Lengths:
    sizes = sorted(map(measure, texts))
    return Lengths(sizes[0], median(sizes), sizes[-1])


def token_counter(path: str | Path) -> Measure:
    """Counts the tokens of a text with the tokenizer of a checkpoint."""
    from alignment.models.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(path)
    return lambda text: len(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
