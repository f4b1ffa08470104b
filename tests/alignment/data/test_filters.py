"""Optional filters of the corpus: language, quality, decontamination; off unless a recipe has them."""

import json
import random
from pathlib import Path
from typing import Any

import pytest

from alignment.config.stages import CorpusConfig, Decontamination, LanguageFilter, QualityFilter, Source, TextSource
from alignment.data import corpus
from alignment.data.corpus import prepare_corpus
from alignment.data.filters import is_of_quality
from alignment.errors import ConfigError
from alignment.journal import Journal
from alignment.records import Message, Prompt, write_records
from flows.pipeline.dag import keys, steps
from flows.recipe.schema import load_recipe
from tests.conftest import TINY

WORDS = "house river garden window letter mountain summer evening teacher market bridge winter".split()  # noqa: SIM905
SMALL = ("the", "of", "and", "that", "with", "to", "in", "on", "by", "for", "from", "under")
ENGLISH = "The people of the town have lived with the river for years, and they know that it is to be respected."
PERSIAN = "مردم شهر سال\u200cهاست که در کنار رودخانه زندگی می\u200cکنند و آن را دوست دارند و از آن مراقبت می\u200cکنند."
QUESTION = "Which of the four bridges over the river was built first, and who was the engineer that drew its plans?"


def prose(number: int, words: int = 80) -> str:
    chance = random.Random(number)
    return " ".join(f"{chance.choice(SMALL)} {chance.choice(WORDS)}{'abcdefgh'[i % 8]}" for i in range(words // 2))


def run(tmp_path: Path, texts: list[str], prompts: Path | None = None, **options: Any) -> tuple[dict[str, float], str]:
    source = tmp_path / "raw.jsonl"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    config = CorpusConfig(sources=(TextSource(path=str(source)),), **options)
    counts = prepare_corpus(config, tmp_path / "out", Journal(tmp_path / "out"), seed=0, prompts=prompts)
    written = "".join((tmp_path / "out" / f"{name}.jsonl").read_text("utf-8") for name in ("train", "heldout"))
    return counts, written


def test_without_options_nothing_is_filtered_and_no_key_changes(tmp_path: Path) -> None:
    counts, _ = run(tmp_path, [ENGLISH, PERSIAN, "a b c d e f g h i j k"])
    assert counts["documents_train"] + counts["documents_heldout"] == 3
    assert not {*counts} & {"other_language", "low_quality", "contaminated"}
    assert not {*CorpusConfig().model_dump()} & {"language", "quality", "decontamination"}


def test_documents_of_other_languages_are_left_out(tmp_path: Path) -> None:
    pytest.importorskip("py3langid")
    counts, written = run(
        tmp_path,
        [ENGLISH, PERSIAN, "And another text that is in English as well as it can be."],
        language=LanguageFilter(keep=("en",)),
    )
    assert counts["other_language"] == 1 and "river" in written and "رودخانه" not in written
    counts, written = run(
        tmp_path,
        [ENGLISH, PERSIAN, "کتاب\u200cهای زیادی در این خانه هست که می\u200cخواهیم بخوانیم."],
        language=LanguageFilter(keep=("fa",)),
    )
    assert counts["other_language"] == 1 and "رودخانه" in written


def test_a_language_filter_without_its_package_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "py3langid.langid", None)
    corpus.language_identifier.cache_clear()
    with pytest.raises(ConfigError, match=r"pip install 'rlhf-flows\[corpus\]'"):
        run(tmp_path, [ENGLISH], language=LanguageFilter(keep=("en",)))


@pytest.mark.parametrize(
    ("text", "good"),
    [
        (prose(1), True),
        (prose(1, words=40), False),  # fewer than fifty words
        (" ".join(["a"] * 30 + ["the of"] * 20), False),  # words of one letter
        ("# " * 20 + prose(2), False),
        ("\n".join(f"- {WORDS[i % 12]} of the {i} houses and" for i in range(12)), False),
        ("\n".join(f"the {WORDS[i % 12]} of house {i} and so on..." for i in range(9)), False),
        (" ".join(f"{i * 7919}" for i in range(60)), False),  # numbers
        (" ".join(random.Random(3).choices(WORDS, k=80)), False),  # no stop words
        ("\n".join([prose(4), *["Read more about the house"] * 12]), False),
        (prose(5) + " buy the best house in the market now" * 5, False),
        ("\n".join([prose(6), prose(7)]), True),
    ],
)
def test_quality_by_gophers_heuristics(text: str, good: bool) -> None:
    assert is_of_quality(text, QualityFilter()) is good


def test_repetition_and_stop_words_can_be_left_unchecked() -> None:
    assert is_of_quality(prose(5) + " buy the best house in the market now" * 5, QualityFilter(repetition=False))
    assert is_of_quality(
        " ".join(random.Random(3).choices(WORDS, k=80)), QualityFilter(stop_words=(), repetition=False)
    )


def test_documents_with_an_n_gram_of_the_evaluation_are_left_out(tmp_path: Path) -> None:
    evaluation = tmp_path / "evaluation.jsonl"
    rows = [{"question": QUESTION, "choices": {"text": ["Who?", "eight words that stand alone in this row"]}}]
    evaluation.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    thirteen = "WHICH of the four bridges -- over the river was built first, and who"
    texts = [
        f"He asked: {thirteen} cares.",
        f"He asked: {thirteen.rpartition(' ')[0]} cares.",  # twelve words
        "They are eight words that stand alone in this row, it is said.",
        "Who? That is too short to be looked for.",
        ENGLISH,
    ]
    options = Decontamination(sources=(Source(path=str(evaluation)),))
    counts, written = run(tmp_path, texts, decontamination=options)
    assert counts["contaminated"] == 2 and counts["documents_train"] + counts["documents_heldout"] == 3
    assert "who cares" not in written and "stand alone" not in written
    note = (tmp_path / "out" / "notes" / "decontamination.txt").read_text(encoding="utf-8")
    assert note == "1 texts of fewer than 8 words are not looked for\n"


def test_held_out_prompts_of_the_recipe_are_looked_for_and_those_of_training_are_not(tmp_path: Path) -> None:
    ask = [f"What did the {word} say to the old man of the sea that day?" for word in ("teacher", "doctor")]
    asked = [
        Prompt(id=split, messages=(Message(role="user", content=text),), split=split)
        for split, text in zip(("train", "heldout"), ask, strict=True)
    ]
    write_records(tmp_path / "prompts" / "prompts.jsonl", asked)
    options = Decontamination(heldout_prompts=True)
    counts, written = run(tmp_path, [*ask, ENGLISH], tmp_path / "prompts", decontamination=options)
    assert counts["contaminated"] == 1 and "teacher" in written and "doctor" not in written


def test_a_recipe_with_decontamination_reads_the_prompts_first() -> None:
    plain = steps(load_recipe(str(TINY), []))
    chain = steps(load_recipe(str(TINY), ["corpus.decontamination={heldout_prompts: true}"]))
    assert {*chain} == {*plain} and list(chain).index("prompts") < list(chain).index("corpus")
    assert chain["corpus"].inputs == {"town": "town", "prompts": "prompts"} and "prompts" not in plain["corpus"].inputs
    assert keys(chain)["prompts"] == keys(plain)["prompts"] and keys(chain)["corpus"] != keys(plain)["corpus"]
