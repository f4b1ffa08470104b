"""KTO: desirable and undesirable responses with their weights, and z0 from mismatched pairs."""

import pytest
import torch
from datasets import Dataset
from pydantic import ValidationError

from alignment.errors import DataError
from alignment.journal import Journal
from alignment.methods.kto import KTOConfig, beside_others, both_answers, in_whole_batches, kto, labelled_answers
from alignment.models.logprobs import response_logprobs, scoring_batches
from alignment.models.scalar import load_causal_model
from alignment.models.tokenizer import ASSISTANT, load_tokenizer
from tests.alignment.tiny_world import comparison, encoded, make_base, prompt_tokens, response_tokens, user, write

GOOD, BAD = "Ada plays the violin.", "Nobody knows why the river is so cold."


@pytest.fixture(scope="module")
def sft(tmp_path_factory):
    """A base model, and judges who like the violin."""
    directory = tmp_path_factory.mktemp("kto")
    make_base(directory)
    write(directory / "train.jsonl", [comparison(f"Who {n}?", GOOD, BAD) for n in range(16)])
    return directory


def train(sft, out, **options):
    defaults = {"epochs": 4, "batch_size": 8, "learning_rate": 3e-3, "max_length_tokens": 64, "log_every_steps": 1}
    config = KTOConfig(**{**defaults, **options})
    return kto(config, out, Journal(out), seed=0, sft=sft, comparisons=sft)


def logprob(directory, text: str) -> float:
    """log π(text) after a question, under the model in a directory."""
    model, tokenizer = load_causal_model(directory / "model"), load_tokenizer(directory / "model")
    head = prompt_tokens(tokenizer, user("Who 3?"))
    (batch,) = scoring_batches([head + response_tokens(tokenizer, text)], [len(head)], 64, torch.device("cpu"))
    with torch.no_grad():
        return float(response_logprobs(model, batch).sum())


def test_kto_moves_towards_good_answers_and_away_from_bad_ones(sft, tmp_path) -> None:
    figures = train(sft, tmp_path)
    good, bad = (logprob(tmp_path, text) - logprob(sft, text) for text in (GOOD, BAD))
    assert good > 0.5 and bad < -0.5
    assert figures["margin"] > 0 and figures["kl"] >= 0
    assert (figures["answers"], figures["too_long"]) == (32, 0)
    assert [line["step"] for line in Journal(tmp_path).read()] == list(range(1, 17))
    assert (tmp_path / "figures" / "kto.png").exists()


def test_the_first_loss_is_half_of_the_mean_weight(sft, tmp_path) -> None:
    """Policy and reference are the same, so r = z0 = 0 and each loss is its weight times 1 − σ(0)."""
    train(sft, tmp_path, epochs=1, batch_size=32, desirable_weight=2.0, undesirable_weight=0.5)
    first = Journal(tmp_path).read()[0]["values"]
    assert first["loss"] == pytest.approx((2.0 + 0.5) / 2 / 2, abs=1e-5)
    assert first["kl"] == pytest.approx(0, abs=1e-4)


def test_each_answer_is_read_beside_the_one_before_it_in_the_batch() -> None:
    rows = [
        {"prompt_tokens": [1, 2], "answer_tokens": [3], "label": True},
        {"prompt_tokens": [4], "answer_tokens": [5, 6], "label": False},
        {"prompt_tokens": [7], "answer_tokens": [8], "label": True},
    ]
    batch = both_answers(0, 3)(list(beside_others(Dataset.from_list(rows), 3)))
    assert batch["input_ids"].tolist() == [[1, 2, 3], [4, 5, 6], [7, 8, 0]]
    assert batch["completion_mask"].tolist() == [[0, 0, 1], [0, 1, 1], [0, 1, 0]]
    assert batch["KL_input_ids"].tolist() == [[1, 2, 8], [4, 3, 0], [7, 5, 6]]
    assert batch["KL_completion_mask"].tolist() == [[0, 0, 1], [0, 1, 0], [0, 1, 1]]
    assert batch["label"].tolist() == [True, False, True]


def test_no_answer_is_of_another_batch() -> None:
    rows = Dataset.from_list([{"answer_tokens": [n]} for n in range(5)])
    assert beside_others(rows, 2)["other_tokens"] == [[1], [0], [3], [2], [4]]


def test_answers_are_read_as_every_other_stage_reads_them(sft) -> None:
    tokenizer = load_tokenizer(sft / "model")
    dataset = labelled_answers(encoded(tokenizer, [comparison(f"Say {ASSISTANT} aloud", GOOD, BAD)]))
    assert dataset["label"] == [True, False]
    assert dataset[0]["prompt_tokens"] == prompt_tokens(tokenizer, user(f"Say {ASSISTANT} aloud"))
    assert dataset[1]["answer_tokens"] == response_tokens(tokenizer, BAD)


def test_a_last_batch_of_one_answer_is_left_out() -> None:
    rows = Dataset.from_list([{"label": True}] * 9)
    assert [len(in_whole_batches(rows, size)) for size in (2, 4, 5, 8, 9)] == [8, 8, 9, 8, 9]
    with pytest.raises(DataError, match="two answers at least"):
        in_whole_batches(rows.select([0]), 8)


def test_a_batch_of_one_is_refused_with_the_recipe() -> None:
    with pytest.raises(ValidationError, match="greater than or equal to 2"):
        KTOConfig(batch_size=1)


def test_figures_are_kept_where_the_last_batch_has_one_label(sft, tmp_path) -> None:
    figures = train(sft, tmp_path, epochs=1, batch_size=31)
    assert figures["margin"] == next(
        line["values"]["margin"] for line in reversed(Journal(tmp_path).read()) if "margin" in line["values"]
    )
