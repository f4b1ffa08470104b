"""Fine-tuning: loss on the response and its EOS only, and a checkpoint that loads anywhere."""

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from alignment.config.stages import SFTConfig
from alignment.errors import DataError, TrainingError
from alignment.journal import Journal
from alignment.models.chat import ChatFormat
from alignment.models.encoding import encode_demonstrations
from alignment.models.tokenizer import load_tokenizer
from alignment.training.sft import finetune, masked
from alignment.training.trl import JournalCallback
from tests.alignment.tiny_world import demonstration, make_base, prompt_tokens, response_tokens, user, write

ANSWERS = [demonstration(f"What does Ada play {i}?", "Ada plays the violin.") for i in range(12)]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("sft")
    make_base(place)
    return place


@pytest.fixture(scope="module")
def tokenizer(place):
    return load_tokenizer(place / "model")


def run(place, out, rows, **options):
    write(out / "in" / "demonstrations.jsonl", rows)
    config = SFTConfig(**{"epochs": 1, "batch_size": 4, "max_length_tokens": 64, "log_every_steps": 1, **options})
    return finetune(config, out / "out", Journal(out / "out"), seed=0, base=place, demonstrations=out / "in")


def test_the_mask_covers_the_response_and_its_eos(tokenizer) -> None:
    (row,) = masked([ChatFormat.of(tokenizer).turn(ANSWERS[0].messages, ANSWERS[0].completion)])
    prompt, response = (
        prompt_tokens(tokenizer, user(ANSWERS[0].messages[0].content)),
        response_tokens(tokenizer, "Ada plays the violin."),
    )
    assert row["input_ids"] == prompt + response
    marked = [token for token, kept in zip(row["input_ids"], row["completion_mask"], strict=True) if kept]
    assert marked == response and marked[-1] == tokenizer.eos_token_id


def test_what_is_too_long_is_put_aside(tokenizer, tmp_path) -> None:
    chat = ChatFormat.of(tokenizer)
    length = len(chat.turn(ANSWERS[0].messages, ANSWERS[0].completion).ids)
    write(tmp_path / "demonstrations.jsonl", [demonstration("Q?", "word " * 80), ANSWERS[0]])
    part = encode_demonstrations(tmp_path, chat, length, "sft.max_length_tokens")
    assert [row for row, _ in part.rows] == ANSWERS[:1] and part.counts == {"too_long": 1, "rejected": 0}
    assert part.rejected[0].line == 1 and f"tokens, more than {length}" in part.rejected[0].reason
    with pytest.raises(DataError, match=f"fits into {length - 1} tokens; raise `sft.max_length_tokens`"):
        encode_demonstrations(tmp_path, chat, length - 1, "sft.max_length_tokens")


def test_the_first_loss_is_that_of_the_response_alone(place, tokenizer, tmp_path) -> None:
    rows = ANSWERS[:4]
    run(place, tmp_path, rows, learning_rate=1e-6)
    model = AutoModelForCausalLM.from_pretrained(place / "model").eval()
    losses = []
    for row in rows:
        prompt, response = prompt_tokens(tokenizer, row.messages), response_tokens(tokenizer, row.completion)
        with torch.no_grad():
            logs = model(torch.tensor([prompt + response])).logits[0].log_softmax(-1)
        losses += [-float(logs[len(prompt) + t - 1, token]) for t, token in enumerate(response)]
    (first,) = [line["values"]["loss"] for line in Journal(tmp_path / "out").read() if "loss" in line["values"]]
    assert first == pytest.approx(sum(losses) / len(losses), abs=1e-3)  # the trainer rounds what it logs


def test_a_tiny_run_learns_and_leaves_a_model_that_loads_anywhere(place, tmp_path) -> None:
    figures = run(place, tmp_path, [*ANSWERS, demonstration("Q?", "word " * 80)], epochs=6, learning_rate=1e-2)
    out = tmp_path / "out"
    losses = [line["values"]["loss"] for line in Journal(out).read() if "loss" in line["values"]]
    assert losses[-1] < 0.7 * losses[0] and figures["loss"] == losses[-1]
    assert (figures["demonstrations"], figures["too_long"]) == (12, 1)
    assert load_file(out / "model" / "model.safetensors")
    assert AutoModelForCausalLM.from_pretrained(out / "model").config.eos_token_id == 1
    assert (out / "figures" / "loss.png").exists()


def test_weights_that_are_spoilt_stop_the_training_before_the_step_and_the_checkpoint_is_from_before(
    place, tmp_path, monkeypatch
) -> None:
    def spoil(self, args, state, control, model=None, **_) -> None:
        if state.epoch >= 1:
            model.get_input_embeddings().weight.data.fill_(float("inf"))

    monkeypatch.setattr(JournalCallback, "on_epoch_begin", spoil)
    with pytest.raises(TrainingError, match=r"gradient is not finite at step 4; .*Last good: .*checkpoint-3"):
        run(place, tmp_path, ANSWERS, epochs=2)
    kept = tmp_path / "out" / "checkpoint" / "checkpoint-3"
    assert all(value.isfinite().all() for value in load_file(kept / "model.safetensors").values())


UNEVEN = [demonstration(f"What does Ada play {i}?", "Ada plays the violin." * (1 + i % 3)) for i in range(10)]


def weights_of(path):
    return load_file(path / "out" / "model" / "model.safetensors")


@pytest.mark.parametrize("options", [{"micro_batch_tokens": 70}, {"gradient_checkpointing": True}])
def test_micro_batches_and_recomputation_leave_the_same_weights(place, tmp_path, options) -> None:
    """Ten rows in batches of four: three steps, the last with two rows."""
    common = {"learning_rate": 1e-2, "lora_rank": None}
    plain = run(place, tmp_path / "plain", UNEVEN, **common)
    parts = run(place, tmp_path / "parts", UNEVEN, **common, **options)
    whole, other = weights_of(tmp_path / "plain"), weights_of(tmp_path / "parts")
    assert all(torch.allclose(whole[name], other[name], atol=2e-6) for name in whole)
    assert parts["loss"] == pytest.approx(plain["loss"], abs=2e-4)


def test_an_adapter_leaves_a_plain_checkpoint_that_differs_by_its_rank(place, tmp_path) -> None:
    figures = run(place, tmp_path, ANSWERS, epochs=6, learning_rate=3e-2, lora_rank=2, micro_batch_tokens=64)
    losses = [line["values"]["loss"] for line in Journal(tmp_path / "out").read() if "loss" in line["values"]]
    assert figures["loss"] == losses[-1] < losses[0] - 0.1
    before, after = load_file(place / "model" / "model.safetensors"), weights_of(tmp_path)
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all("_proj" in name for name in changed)
    assert all(torch.linalg.matrix_rank(after[n] - before[n], rtol=1e-3) <= 2 for n in changed)


def test_an_adapter_that_is_resumed_gives_the_weights_of_one_run(place, tmp_path, monkeypatch) -> None:
    options = {"epochs": 2, "learning_rate": 1e-2, "lora_rank": 2}
    run(place, tmp_path / "whole", ANSWERS, **options)

    def stop(self, args, state, control, **_) -> None:
        if state.epoch > 1:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(JournalCallback, "on_step_begin", stop)
        run(place, tmp_path / "killed", ANSWERS, **options)
    run(place, tmp_path / "killed", ANSWERS, **options)
    whole, resumed = weights_of(tmp_path / "whole"), weights_of(tmp_path / "killed")
    assert all(torch.allclose(whole[name], resumed[name], atol=1e-7) for name in whole)
