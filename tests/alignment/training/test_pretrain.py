"""Pretraining: packing keeps every token, the loss is exact, and resuming is bit-identical."""

import math

import pytest
import torch
from safetensors.torch import load_file

from alignment.config.stages import PretrainConfig
from alignment.errors import DataError, TrainingError
from alignment.journal import Journal
from alignment.models.chat import ChatFormat
from alignment.models.tokenizer import load_tokenizer
from alignment.records import Document, Message
from alignment.training.loop import TrainingState
from alignment.training.pretrain import (
    PackedText,
    batch_rows,
    heldout_loss,
    next_token_loss,
    pack,
    parameter_groups,
    pretrain,
)
from tests.alignment.tiny_world import LINES, SIZES, document_tokens, make_base, make_model, make_tokenizer, user, write

TALK = Document(messages=(*user("What does Ada play?"), Message(role="assistant", content="Ada plays the violin.")))
DOCUMENTS = [*(Document(text=line) for line in LINES * 12), TALK]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A corpus and a tokenizer."""
    place = tmp_path_factory.mktemp("pretrain")
    make_tokenizer(place)
    write(place / "corpus" / "train.jsonl", DOCUMENTS)
    write(place / "corpus" / "heldout.jsonl", DOCUMENTS[:4])
    return place


@pytest.fixture(scope="module")
def tokenizer(place):

    return load_tokenizer(place / "tokenizer")


def config(**options) -> PretrainConfig:
    sizes = {"model": SIZES, "epochs": 3, "batch_sequences": 8, "checkpoint_every_steps": 4, "log_every_steps": 1}
    return PretrainConfig(**{**sizes, **options})


def run(place, out, **options):
    told = {"corpus": place / "corpus", "tokenizer": place / "tokenizer"}
    return pretrain(config(**options), out, Journal(out), seed=3, **told)


def test_packing_lays_every_document_end_to_end_and_loses_none(place, tokenizer) -> None:
    packed = pack(place / "corpus" / "train.jsonl", ChatFormat.of(tokenizer), 16)
    stream = [token for document in DOCUMENTS for token in document_tokens(tokenizer, document)]
    flat = packed.rows.flatten().tolist()
    assert packed.rows.shape == (math.ceil(len(stream) / 16), 16)
    assert flat[: len(stream)] == stream and flat[len(stream) :] == stream[: len(flat) - len(stream)]
    written = sum(len(text.encode()) for text in LINES * 12) + len(b"What does Ada play?\nAda plays the violin.")
    assert packed.bytes_per_token == pytest.approx(written / len(stream))


def test_a_text_shorter_than_one_row_is_repeated_to_fill_it(tmp_path, tokenizer) -> None:
    write(tmp_path / "one.jsonl", [Document(text="Ada.")])
    stream = document_tokens(tokenizer, Document(text="Ada."))
    packed = pack(tmp_path / "one.jsonl", ChatFormat.of(tokenizer), 4 * len(stream) + 1)
    assert packed.rows.tolist() == [stream * 4 + stream[:1]]


def test_a_corpus_without_text_is_an_error_in_words(tmp_path, tokenizer) -> None:
    write(tmp_path / "none.jsonl", [])
    with pytest.raises(DataError, match="has no text"):
        pack(tmp_path / "none.jsonl", ChatFormat.of(tokenizer), 16)


def test_text_that_fills_up_the_last_row_is_not_measured(place, tokenizer) -> None:
    model = make_model(tokenizer)
    rows = pack(place / "corpus" / "train.jsonl", ChatFormat.of(tokenizer), 16).rows[:2]
    filled = PackedText(torch.stack([rows[0], torch.cat([rows[1, :5], rows[0, :11]])]), 1.0, filling=11)
    apart = [next_token_loss(model, rows[:1]), next_token_loss(model, rows[1:2, :5])]
    assert heldout_loss(model, filled) == pytest.approx(float(apart[0] * 15 + apart[1] * 4) / 19, abs=1e-5)


def test_heldout_loss_is_the_mean_of_minus_log_p(place, tokenizer) -> None:
    model = make_model(tokenizer)
    text = pack(place / "corpus" / "train.jsonl", ChatFormat.of(tokenizer), 16).first(5)
    rows = text.rows
    total = 0.0
    with torch.no_grad():
        for row in rows:
            logits = model(input_ids=row.unsqueeze(0)).logits[0].double()
            for t in range(1, 16):
                total -= float(logits[t - 1, row[t]] - torch.logsumexp(logits[t - 1], 0))
    for batch in (2, 32):  # a short last batch weighs less
        assert heldout_loss(model, text, batch) == pytest.approx(total / (5 * 15), abs=1e-5)
    assert next_token_loss(model, rows).item() == pytest.approx(total / (5 * 15), abs=1e-5)


def test_every_row_is_seen_once_an_epoch_and_epochs_differ() -> None:
    epochs = [[row for step in (1, 2, 3) for row in batch_rows(3 * epoch + step, 8, 3, seed=5)] for epoch in (0, 1)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(8)) and epochs[0] != epochs[1]
    assert batch_rows(4, 8, 3, seed=5) == epochs[1][:3] and batch_rows(1, 8, 3, seed=6) != epochs[0][:3]


def test_gains_do_not_decay(tokenizer) -> None:
    matrices, vectors = parameter_groups(make_model(tokenizer), 0.1)
    assert (matrices["weight_decay"], vectors["weight_decay"]) == (0.1, 0.0)
    assert {p.dim() for p in matrices["params"]} == {2} and {p.dim() for p in vectors["params"]} == {1}


def test_the_loss_falls_and_the_figures_agree_with_the_model(place, tmp_path) -> None:
    figures = run(place, tmp_path, learning_rate=1e-2, epochs=20)
    lines = [line["values"]["loss"] for line in Journal(tmp_path).read() if "loss" in line["values"]]
    assert lines[0] == pytest.approx(math.log(300), abs=0.3)  # it knows nothing: uniform over 300 tokens
    assert lines[-1] < 0.6 * lines[0] and figures["heldout_loss"] < 0.7 * lines[0]
    weights = load_file(tmp_path / "model" / "model.safetensors")
    assert figures["parameters"] == sum(w.numel() for name, w in weights.items() if name != "lm_head.weight")
    assert figures["tokens_per_epoch"] % SIZES.context_length == 0
    assert (tmp_path / "figures" / "loss.png").exists()


class Killed(BaseException):
    """Not an error that anybody handles."""


def test_killed_and_resumed_gives_the_same_weights_bit_for_bit(place, tmp_path, monkeypatch) -> None:
    run(place, tmp_path / "whole")
    save = TrainingState.save

    def save_and_die(state, step) -> None:
        save(state, step)
        if step == 4:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(TrainingState, "save", save_and_die)
        with pytest.raises(Killed):
            run(place, tmp_path / "killed")
    assert not (tmp_path / "killed" / "model").exists()
    run(place, tmp_path / "killed")
    whole, resumed = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "killed"))
    assert whole.keys() == resumed.keys() and all(torch.equal(whole[name], resumed[name]) for name in whole)
    logs = [
        [(line["step"], line["values"]) for line in Journal(tmp_path / name).read()] for name in ("whole", "killed")
    ]
    assert logs[0] == logs[1]


def test_a_loss_that_is_not_finite_stops_the_run_in_words(place, tmp_path) -> None:
    with pytest.raises(TrainingError, match="lower `pretrain"):
        run(place, tmp_path, learning_rate=1e30, epochs=20, max_grad_norm=1e30)


def test_a_checkpoint_can_be_taken_as_it_is(place, tmp_path) -> None:
    model, _ = make_base(tmp_path)
    out = tmp_path / "out"
    options = PretrainConfig(checkpoint=str(tmp_path / "model"), epochs=0)
    pretrain(options, out, Journal(out), seed=0, corpus=place / "corpus")
    weights = load_file(out / "model" / "model.safetensors")
    assert torch.equal(weights["model.embed_tokens.weight"], model.get_input_embeddings().weight)
    assert (out / "notes" / "imported.txt").read_text().startswith(f"from {tmp_path / 'model'}")
