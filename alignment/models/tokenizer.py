"""Stage `tokenizer`: a byte-level BPE with the special tokens and the chat template that every later stage uses."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from alignment.config.stages import TokenizerConfig
from alignment.journal import Journal
from alignment.records import Document, Message, read_records

PAD, EOS, USER, ASSISTANT, SYSTEM = "<|pad|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"
PLACE = "\ue000"  # a private character of Unicode: placeholder for a turn's text in a rendered template

# <|user|>question<|assistant|>answer EOS, after BOS if the tokenizer has one. Only an answer ends with EOS: in
# pretraining EOS separates unrelated documents, and an answer is related to its question.
# The answer and its EOS are marked for the loss.
CHAT_TEMPLATE = (
    "{{- bos_token if bos_token is defined and bos_token else '' }}"
    "{%- for message in messages %}"
    "{%- if message['role'] == 'assistant' %}<|assistant|>"
    "{% generation %}{{ message['content'] + eos_token }}{% endgeneration %}"
    "{%- else %}{{ '<|' + message['role'] + '|>' + message['content'] }}"
    "{%- endif %}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}<|assistant|>{% endif %}"
)


def train_tokenizer(
    config: TokenizerConfig, out: Path, journal: Journal, *, corpus: Path, context_length: int
) -> dict[str, float]:
    """Train a byte-level BPE on the training documents and save it with its chat template; PAD and EOS differ."""
    tokenizer = Tokenizer(models.BPE())
    # A word is the same token at the start of an answer as inside a sentence: it shares an embedding in both positions.
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab_size,
        special_tokens=[PAD, EOS, USER, ASSISTANT, SYSTEM],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = [document.plain for document in read_records(corpus / "train.jsonl", Document)[0]]
    tokenizer.train_from_iterator(texts, trainer=trainer)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=EOS,
        additional_special_tokens=[USER, ASSISTANT, SYSTEM],
        model_max_length=context_length,
        clean_up_tokenization_spaces=False,
    )
    wrapped.chat_template = CHAT_TEMPLATE
    wrapped.save_pretrained(out)
    sample = texts[:2000]
    tokens = sum(map(len, wrapped(sample)["input_ids"]))
    figures = {"vocab_size": float(len(wrapped)), "bytes_per_token": sum(len(t.encode()) for t in sample) / tokens}
    journal.log(figures, step=0)
    return figures


def prompt_tokens(tokenizer: PreTrainedTokenizerBase, messages: Iterable[Message]) -> list[int]:
    """The token ids of a conversation, ready for the assistant's answer."""
    return conversation_tokens(tokenizer, tuple(messages), add_generation_prompt=True)


def document_tokens(tokenizer: PreTrainedTokenizerBase, document: Document) -> list[int]:
    """The token ids of a document for pretraining: text between BOS (if any) and EOS, or turns."""
    if document.messages:
        return conversation_tokens(tokenizer, document.messages, add_generation_prompt=False)
    bos = [] if tokenizer.bos_token_id is None else [int(tokenizer.bos_token_id)]
    return [*bos, *plain_tokens(tokenizer, document.text), int(tokenizer.eos_token_id)]


def response_tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """The token ids of an answer, with EOS."""
    return [*plain_tokens(tokenizer, text), int(tokenizer.eos_token_id)]


def plain_tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """The token ids of user text: "<|assistant|>" in it is thirteen characters, never the special token."""
    return list(tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"])


def conversation_tokens(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], *, add_generation_prompt: bool
) -> list[int]:
    """The token ids of turns under the chat template; special tokens come only from the template.

    The text of a turn that contains one (to impersonate the assistant, say) is inserted as plain tokens.
    """
    special = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    if not any(token in message.content for message in messages for token in special):
        turns = [{"role": m.role, "content": m.content} for m in messages]
        return as_ids(tokenizer.apply_chat_template(turns, add_generation_prompt=add_generation_prompt, tokenize=True))
    placeholders = [{"role": m.role, "content": f"{PLACE}{number}{PLACE}"} for number, m in enumerate(messages)]
    frame = tokenizer.apply_chat_template(placeholders, add_generation_prompt=add_generation_prompt, tokenize=False)
    ids: list[int] = []
    for number, piece in enumerate(re.split(f"{PLACE}(\\d+){PLACE}", str(frame))):
        if number % 2:
            ids += plain_tokens(tokenizer, messages[int(piece)].content)
        else:
            ids += tokenizer(piece, add_special_tokens=False)["input_ids"]
    return ids


def decode_response(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int]) -> str:
    """The text of an answer without EOS."""
    return str(tokenizer.decode(list(tokens), skip_special_tokens=True)).strip()


def as_ids(encoded: Any) -> list[int]:
    """Token ids from what `apply_chat_template` returns (a list, or a mapping in newer releases)."""
    return list(encoded["input_ids"] if hasattr(encoded, "keys") else encoded)
