"""Optional filters of the corpus: language, quality, and texts that the evaluation asks for. Each gives a reason.

The figures of quality and repetition are those of Gopher (Rae et al. 2021, table A1), without the rules on paragraphs,
which cleaned text does not have.
"""

import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from functools import cache, lru_cache
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from alignment.config.stages import CorpusConfig, Decontamination, LanguageFilter, QualityFilter
from alignment.data.near_copies import Hashes, gram_hashes, word_hashes
from alignment.data.readers import locate, read_rows
from alignment.errors import ConfigError
from alignment.records import Prompt, read_records

if TYPE_CHECKING:
    from py3langid.langid import LanguageIdentifier

MEAN_WORD_LENGTHS = (3, 10)
MOST_SYMBOLS, MOST_BULLETS, MOST_ELLIPSES, FEWEST_ALPHABETIC = 0.1, 0.9, 0.3, 0.8
BULLETS = ("•", "‣", "▪", "-", "*")
MOST_DUPLICATE_LINES, MOST_DUPLICATE_LINE_CHARACTERS = 0.3, 0.2
MOST_OF_ONE_GRAM = {2: 0.2, 3: 0.18, 4: 0.16}
MOST_OF_REPEATED_GRAMS = {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.1}
WORD = re.compile(r"\w+")
REASONS = ("other_language", "low_quality", "contaminated")


def reasons(config: CorpusConfig) -> tuple[str, ...]:
    """The reasons that the filters of a recipe can give."""
    options = (config.language, config.quality, config.decontamination)
    return tuple(reason for reason, option in zip(REASONS, options, strict=True) if option is not None)


def reason_to_leave_out(text: str, config: CorpusConfig, evaluation: Path) -> str:
    """Why a text is left out of the corpus; "" if it is not. `evaluation` is a file that `write_evaluation` wrote."""
    if config.language is not None and not is_in_language(text, config.language):
        return "other_language"
    if config.quality is not None and not is_of_quality(text, config.quality):
        return "low_quality"
    if config.decontamination is not None and is_contaminated(text, _evaluation(evaluation)):
        return "contaminated"
    return ""


# --- language --------------------------------------------------------------------------------------------------------


@cache
def language_identifier() -> "LanguageIdentifier":
    """The model of py3langid, for 97 languages."""
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError as error:
        raise ConfigError(
            "corpus.language needs the package py3langid: pip install 'rlhf-flows[corpus]', or remove the option"
        ) from error
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def is_in_language(text: str, config: LanguageFilter) -> bool:
    """Whether a text is in one of the languages, as probably as the recipe wants it."""
    language, probability = language_identifier().classify(text)
    return language in config.keep and float(probability) >= config.min_probability


# --- quality ---------------------------------------------------------------------------------------------------------


def is_of_quality(text: str, config: QualityFilter) -> bool:
    """Whether a text has the words of one, and does not repeat itself."""
    words = text.split()
    if not config.min_words <= len(words) <= config.max_words or not words:
        return False
    lengths = np.array([len(word) for word in words])
    if not MEAN_WORD_LENGTHS[0] <= lengths.mean() <= MEAN_WORD_LENGTHS[1]:
        return False
    if text.count("#") + text.count("...") + text.count("…") > MOST_SYMBOLS * len(words):
        return False
    if sum(any(map(str.isalpha, word)) for word in words) < FEWEST_ALPHABETIC * len(words):
        return False
    known = {word.strip(".,;:!?\"'()").lower() for word in words}
    if len(known & {*config.stop_words}) < min(config.min_stop_words, len(config.stop_words)):
        return False
    lines = [line for line in text.split("\n") if line.strip()]
    return _lines_are_text(lines) and not (config.repetition and repeats_itself(text, lines, lengths))


def _lines_are_text(lines: list[str]) -> bool:
    bullets = sum(line.lstrip().startswith(BULLETS) for line in lines)
    ellipses = sum(line.rstrip().endswith(("...", "…")) for line in lines)
    return bullets <= MOST_BULLETS * len(lines) and ellipses <= MOST_ELLIPSES * len(lines)


def repeats_itself(text: str, lines: list[str], lengths: NDArray[np.int64]) -> bool:
    """Whether too much of a text are lines or n-grams that stood in it before. `lengths` are those of its words."""
    repeated = list(_repeated(lines))
    if len(repeated) > MOST_DUPLICATE_LINES * len(lines):
        return True
    if sum(map(len, repeated)) > MOST_DUPLICATE_LINE_CHARACTERS * len(text):
        return True
    words, total = word_hashes(text), int(lengths.sum())
    for length, most in MOST_OF_ONE_GRAM.items():
        if len(words) > length and _share_of_one_gram(words, lengths, length) > most * total:
            return True
    return any(
        len(words) > length and _in_repeated_grams(words, lengths, length) > most * total
        for length, most in MOST_OF_REPEATED_GRAMS.items()
    )


def _repeated(lines: Iterable[str]) -> Iterator[str]:
    seen: set[str] = set()
    for line in lines:
        if line in seen:
            yield line
        seen.add(line)


def _share_of_one_gram(words: Hashes, lengths: NDArray[np.int64], length: int) -> int:
    """The characters of the n-gram that is most frequent, in all its places; 0 if none comes twice."""
    _, first, counts = np.unique(gram_hashes(words, length), return_index=True, return_counts=True)
    most = int(counts.argmax())
    return 0 if counts[most] < 2 else int(counts[most] * lengths[first[most] : first[most] + length].sum())


def _in_repeated_grams(words: Hashes, lengths: NDArray[np.int64], length: int) -> int:
    """The characters of words in n-grams that stood before."""
    grams = gram_hashes(words, length)
    _, first = np.unique(grams, return_index=True)
    is_repeated = np.ones(len(grams), bool)
    is_repeated[first] = False
    covered = np.zeros(len(words) + 1, np.int64)
    np.add.at(covered, np.flatnonzero(is_repeated), 1)
    np.add.at(covered, np.flatnonzero(is_repeated) + length, -1)
    return int(lengths[np.cumsum(covered)[:-1] > 0].sum())


# --- decontamination -------------------------------------------------------------------------------------------------


def write_evaluation(config: Decontamination, path: Path, town: Path | None, prompts: Path | None) -> int:
    """Write the hashes of what the evaluation asks for, by the number of words; return how many texts are too short to
    be looked for."""
    rows = (row for source in config.sources for _, row, _ in read_rows(source, locate(source.path, town), []))
    asked = () if prompts is None else read_records(prompts / "prompts.jsonl", Prompt)[0]
    heldout = (m.content for prompt in asked if prompt.split == "heldout" for m in prompt.messages)
    grams: dict[int, list[Hashes]] = {}
    short = 0
    for text in chain(_strings(rows), heldout):
        words = plain_words(text)
        length = min(len(words), config.words)
        if length < config.min_words:
            short += 1
            continue
        grams.setdefault(length, []).append(gram_hashes(words, length))
    with path.open("wb") as file:
        arrays: dict[str, Any] = {str(n): np.unique(np.concatenate(parts)) for n, parts in grams.items()}
        np.savez(file, **arrays)
    return short


def _strings(value: Any) -> Iterator[str]:
    """All texts within rows."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from _strings(value.values())
    elif isinstance(value, Iterable) and not isinstance(value, bytes):
        for item in value:
            yield from _strings(item)


def plain_words(text: str) -> Hashes:
    """Hashes of the words of a text, in lower case and without punctuation."""
    return np.fromiter((zlib.crc32(word.encode()) for word in WORD.findall(text.lower())), np.uint64)


@lru_cache(1)
def _evaluation(path: Path) -> dict[int, Hashes]:
    with np.load(path) as grams:
        return {int(length): grams[length] for length in grams.files}


def is_contaminated(text: str, evaluation: Mapping[int, Hashes]) -> bool:
    """Whether a text has an n-gram, or the whole of a shorter text, of the evaluation."""
    words = plain_words(text)
    return any(
        len(words) >= length and bool(np.isin(gram_hashes(words, length), grams).any())
        for length, grams in evaluation.items()
    )
