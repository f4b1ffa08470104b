"""Third-party checkpoints, adapted for conversations or refused."""

import json

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PhiConfig, PhiForCausalLM, PreTrainedTokenizerFast

from alignment.errors import CheckpointError
from alignment.models.importing import grow_embeddings, import_checkpoint
from alignment.models.tokenizer import ASSISTANT, CHAT_TEMPLATE, PAD, SYSTEM, USER, load_tokenizer
from tests.alignment.tiny_world import make_base, prompt_tokens, user

OTHERS = "{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"


def foreign(directory, *, rows=8, tied=True, template=None, **special):
    """A checkpoint as others leave it: words w0 … w7, the last one `<end>`."""
    vocab = {**{f"w{i}": i for i in range(7)}, "<end>": 7}
    backend = Tokenizer(models.WordLevel(vocab, unk_token="w0"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **special)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(directory)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=rows,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        tie_word_embeddings=tied,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=None,
    )
    model = LlamaForCausalLM(config)
    model.save_pretrained(directory)
    return model


@pytest.mark.parametrize("tied", [True, False])
def test_pad_and_turns_are_added_and_new_rows_are_the_mean_of_the_old(tmp_path, tied) -> None:
    before = foreign(tmp_path, tied=tied, eos_token="<end>")
    model, tokenizer, changes = import_checkpoint(tmp_path)
    assert [line.split(";")[0] for line in changes[:2]] == ["no chat template", "PAD was missing"]
    assert changes[2].startswith("an answer ends at w1 or <end>,") and len(changes) == 3
    assert tokenizer.convert_tokens_to_ids([USER, ASSISTANT, SYSTEM, PAD]) == [8, 9, 10, 11]
    for old, new in (
        (before.get_input_embeddings(), model.get_input_embeddings()),
        (before.get_output_embeddings(), model.get_output_embeddings()),
    ):
        assert new.weight.shape == (12, 8) and torch.equal(new.weight[:8], old.weight)
        assert torch.allclose(new.weight[8:], old.weight.mean(0).expand(4, 8), atol=1e-7)
    assert (model.get_input_embeddings().weight is model.get_output_embeddings().weight) is tied
    assert (model.config.pad_token_id, model.config.eos_token_id, model.config.vocab_size) == (11, [1, 7], 12)
    assert prompt_tokens(tokenizer, user("w3 w4")) == [8, 3, 4, 9]


def test_a_pad_that_is_eos_gets_a_token_of_its_own(tmp_path) -> None:
    foreign(tmp_path, eos_token="<end>", pad_token="<end>", template=OTHERS)
    model, tokenizer, changes = import_checkpoint(tmp_path)
    assert changes[0] == f"PAD was the same as EOS; {PAD} added" and len(changes) == 2
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id) == (7, 8) and tokenizer.chat_template == OTHERS
    assert model.generation_config.pad_token_id == 8


def test_an_own_template_and_pad_stay_and_nothing_grows(tmp_path) -> None:
    foreign(tmp_path, rows=10, eos_token="<end>", pad_token="w0", template=OTHERS)
    model, tokenizer, changes = import_checkpoint(tmp_path)
    assert [change.split(",")[0] for change in changes] == ["an answer ends at w1 or <end>"]
    assert tokenizer.chat_template == OTHERS and len(model.get_input_embeddings().weight) == 10


def test_spare_rows_are_used_before_new_ones_are_made(tmp_path) -> None:
    before = foreign(tmp_path, rows=20, eos_token="<end>")
    model, tokenizer, _ = import_checkpoint(tmp_path)
    new, old = model.get_input_embeddings().weight, before.get_input_embeddings().weight
    assert new.shape == (20, 8) and len(tokenizer) == 12
    assert torch.equal(new[:8], old[:8]) and torch.equal(new[12:], old[12:])
    assert torch.allclose(new[8:12], old[:8].mean(0).expand(4, 8), atol=1e-7)


def test_a_checkpoint_that_can_never_end_is_refused(tmp_path) -> None:
    foreign(tmp_path)
    for name in ("config.json", "generation_config.json"):
        values = json.loads((tmp_path / name).read_text())
        (tmp_path / name).write_text(json.dumps(values | {"eos_token_id": None}))
    with pytest.raises(CheckpointError, match="no EOS token"):
        import_checkpoint(tmp_path)


def test_a_tokenizer_with_more_tokens_than_the_model_embeds_is_refused(tmp_path) -> None:
    foreign(tmp_path, rows=6, eos_token="<end>")
    with pytest.raises(CheckpointError, match="has 8 tokens but the model embeds only 6"):
        import_checkpoint(tmp_path)


def test_no_checkpoint_is_an_error_in_words(tmp_path) -> None:
    with pytest.raises(CheckpointError, match="no causal language model"):
        import_checkpoint(tmp_path)


def test_what_was_made_here_is_imported_as_it_is(tmp_path) -> None:
    model, tokenizer = make_base(tmp_path)
    again, words, changes = import_checkpoint(tmp_path / "model")
    assert changes == [] and words.chat_template == CHAT_TEMPLATE == load_tokenizer(tmp_path / "model").chat_template
    assert words.get_vocab() == tokenizer.get_vocab()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_embeddings_never_shrink(tmp_path) -> None:
    model = foreign(tmp_path)
    grow_embeddings(model, 3, 3)
    assert len(model.get_input_embeddings().weight) == 8


@pytest.mark.parametrize("rows", [3, 6])
def test_a_new_token_is_as_likely_as_the_mean_of_the_old_logits(rows) -> None:
    """Three known tokens have the rows (1, 0), (2, 3), (0, 3) and the biases −5, −6, −7; spare rows are 9."""
    config = PhiConfig(
        vocab_size=rows,
        hidden_size=2,
        intermediate_size=4,
        num_hidden_layers=1,
        num_attention_heads=1,
        pad_token_id=None,
    )
    model = PhiForCausalLM(config)
    known = torch.tensor([[1.0, 0], [2, 3], [0, 3]])
    with torch.no_grad():
        for layer in (model.get_input_embeddings(), model.lm_head):
            layer.weight[:] = 9
            layer.weight[:3] = known
        model.lm_head.bias[:] = 0
        model.lm_head.bias[:3] = torch.tensor([-5.0, -6, -7])
    grow_embeddings(model, 3, 5)
    for layer in (model.get_input_embeddings(), model.lm_head):
        assert layer.weight[:5].tolist() == [*known.tolist(), [1, 2], [1, 2]]
        assert layer.weight[5:].tolist() == [[9, 9]] * (rows - 5)
    assert model.lm_head.bias[:5].tolist() == [-5, -6, -7, -6, -6]
    hidden = torch.tensor([2.0, 1.0])  # logits 2 − 5, 7 − 6, 3 − 7: the mean is −2, of a new token 4 − 6
    assert model.lm_head(hidden)[:5].tolist() == [-3, 1, -4, -2, -2]
