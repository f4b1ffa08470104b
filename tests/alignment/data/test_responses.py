"""Responses to be judged: distinct, blind, from training prompts only."""

import pytest

from alignment.config.stages import SamplingConfig
from alignment.data import responses as stage
from alignment.data.responses import blind, sample_responses
from alignment.errors import DataError
from alignment.journal import Journal
from alignment.models.generation import Sample
from alignment.models.tokenizer import load_tokenizer
from alignment.records import ResponseSet, read_records
from tests.alignment.tiny_world import make_base, prompt, response_tokens, write

ASKED = [prompt("What does Ada play?"), prompt("Who keeps a cat?"), prompt("Held out?", split="heldout")]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("responses")
    make_base(place)
    write(place / "prompts.jsonl", [*ASKED, prompt("long " * 60)])
    return place


def run(place, out, seed=0, **options):
    config = SamplingConfig(**{"max_new_tokens": 12, **options})
    counts = sample_responses(config, out, Journal(out), seed=seed, model=place, prompts=place)
    return counts, read_records(out / "responses.jsonl", ResponseSet)[0]


def test_each_training_prompt_that_fits_gets_distinct_answers(place, tmp_path) -> None:
    counts, sets = run(place, tmp_path)
    assert [one.prompt for one in sets] == ASKED[:2]
    assert (counts["prompts"], counts["responses"], counts["prompts_without_choice"]) == (2, 8, 0)
    for one in sets:
        assert len({r.text for r in one.responses}) == len({r.id for r in one.responses}) == 4
    assert 0 < counts["mean_length_tokens"] <= 12 and 0 <= counts["ended_share"] <= 1


def test_a_seed_gives_the_same_answers_and_another_seed_others(place, tmp_path) -> None:
    first, again, other = (run(place, tmp_path / str(n), seed)[1] for n, seed in enumerate((0, 0, 1)))
    assert first == again != other


def test_no_more_prompts_than_asked_for(place, tmp_path) -> None:
    assert len(run(place, tmp_path, prompts=1)[1]) == 1


def fixed(monkeypatch, place, *texts) -> None:
    """The policy answers with these texts in turn."""
    words = load_tokenizer(place / "model")

    def generate(model, prompts, **options):
        return [
            Sample(response_tokens(words, texts[i % len(texts)]), [0.0], ended=i % 2 == 0) for i in range(len(prompts))
        ]

    monkeypatch.setattr(stage, "generate", generate)


def test_equal_and_empty_answers_count_once_and_not_at_all(place, tmp_path, monkeypatch) -> None:
    fixed(monkeypatch, place, "Ada.", "Bo.", "Ada.", "", "same", "same", "same", "")
    counts, (only,) = run(place, tmp_path)
    assert {r.text for r in only.responses} == {"Ada.", "Bo."} and only.prompt == ASKED[0]
    assert (counts["prompts"], counts["prompts_without_choice"], counts["ended_share"]) == (1, 1, 0.5)


def test_nothing_to_compare_is_an_error_in_words(place, tmp_path, monkeypatch) -> None:
    fixed(monkeypatch, place, "same")
    with pytest.raises(DataError, match="no prompt has two different responses"):
        run(place, tmp_path)


def test_order_and_ids_say_nothing_of_where_an_answer_came_from() -> None:
    texts = {f"answer {i}": True for i in range(4)}
    orders = {tuple(r.text for r in blind(prompt(f"q{n}"), texts, seed=0)) for n in range(40)}
    assert len(orders) > 12 and {order[0] for order in orders} == set(texts)  # of 24 orders
    one, other = blind(ASKED[0], texts, seed=0), blind(ASKED[0], dict(reversed(texts.items())), seed=1)
    assert {r.id: r.text for r in one} == {r.id: r.text for r in other}  # an id is the text's under its prompt
    assert not {r.id for r in one} & {r.id for r in blind(ASKED[1], texts, seed=0)}
