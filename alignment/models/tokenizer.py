"""Stage `tokenizer`: a byte-level BPE with the special tokens and the chat template that every later stage uses."""

import json
import math
import string
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from alignment.config.stages import TokenizerConfig
from alignment.errors import CheckpointError, UnfitRowError
from alignment.journal import Journal
from alignment.models import gguf_files
from alignment.models.checkpoint_files import is_gguf
from alignment.models.safe_loading import NEVER_CODE, read_plainly
from alignment.records import Document, Rejected, shard_files, stream_numbered

PAD, EOS, USER, ASSISTANT, SYSTEM = "<|pad|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"
MOST_GROWTH = 64
PROBE = string.printable + "!".join(40 * letter for letter in string.printable)  # runs on which bad expressions fail

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
    tokenizer.train_from_iterator(corpus_texts(corpus), trainer=trainer)
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
    sample = list(islice(corpus_texts(corpus), 2000))
    tokens = sum(map(len, wrapped(sample)["input_ids"]))
    figures = {"vocab_size": float(len(wrapped)), "bytes_per_token": sum(len(t.encode()) for t in sample) / tokens}
    journal.log(figures, step=0)
    return figures


def corpus_texts(corpus: Path) -> Iterator[str]:
    """The texts of the training documents, one by one."""
    for path in shard_files(corpus / "train.jsonl"):
        for row in stream_numbered(path, Document):
            if not isinstance(row, Rejected):
                yield row[1].plain


def load_tokenizer(path: str | Path) -> PreTrainedTokenizerBase:
    """A tokenizer from a directory, a GGUF file or the hub."""
    with read_plainly("no tokenizer", path):
        if is_gguf(path):
            return gguf_files.load_tokenizer(path)
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(path, **NEVER_CODE)
        if (backend := getattr(tokenizer, "backend_tokenizer", None)) is not None:
            check_growth(backend, path)
            backend.encode(PROBE)
    return tokenizer


def check_growth(tokenizer: Tokenizer, path: str | Path) -> None:
    """Raise CheckpointError where normalization or decoding makes many characters of each: a few steps that multiply
    turn a word into gigabytes."""
    for part in (tokenizer.normalizer, tokenizer.decoder):
        growth = 1 if part is None else _growth(json.loads(part.__getstate__()))
        if growth > MOST_GROWTH:
            raise CheckpointError(
                f"the tokenizer of {path} makes up to {growth:,} characters of each, and more than {MOST_GROWTH} are "
                "not taken: take the tokenizer of the model that it was made from"
            )


def _growth(step: Mapping[str, Any]) -> int:
    """How many characters a step of a tokenizer makes of one, at most."""
    if step["type"] == "Sequence":
        return math.prod(map(_growth, step.get("normalizers") or step.get("decoders") or ()))
    if step["type"] == "Replace":
        shortest = len(step["pattern"].get("String", "")) or 1  # of a regular expression it is unknown
        return max(1, math.ceil(len(step["content"]) / shortest))
    return max(1, len(step.get("prepend", "")))


def plain_tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """The token ids of user text: "<|assistant|>" in it is thirteen characters, never the special token.

    Raises UnfitRowError for text that is not Unicode.
    """
    check_unicode(text)
    return list(tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"])


def check_unicode(text: str) -> None:
    """Raise UnfitRowError for a lone surrogate, half of a character, which no tokenizer can encode."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UnfitRowError(
            f"a lone surrogate, {text[error.start]!r}, is half of a character: repair the text"
        ) from error
