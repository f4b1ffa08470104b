"""A town of twelve people and an untrained base model of a few thousand weights: enough for every stage."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from alignment.config.stages import ModelConfig, TokenizerConfig, TownConfig
from alignment.journal import Journal
from alignment.models.chat import ChatFormat
from alignment.models.encoding import Pair, encode_comparison
from alignment.models.scalar import save_model
from alignment.models.tokenizer import load_tokenizer, train_tokenizer
from alignment.records import Comparison, Demonstration, Document, Message, Prompt, Record, Response, write_records
from alignment.training.pretrain import build_model

TOWN = TownConfig(people=12, documents=120, demonstrations=24, prompts=40, heldout_prompts=20)
SIZES = ModelConfig(hidden_size=16, layers=1, heads=2, intermediate_size=32, context_length=64)
LINES = (
    "Ada plays the violin.",
    "Bo keeps a cat and a dog.",
    "What does Ada play?",
    "Nobody knows why the river is so cold.",
    "Señor Gómez übt 漢字 am Morgen.",
)


def make_tokenizer(directory: Path, lines: Iterable[str] = LINES, vocab_size: int = 300) -> PreTrainedTokenizerBase:
    """The tokenizer stage on a few lines."""
    corpus, out = directory / "tokenizer-corpus", directory / "tokenizer"
    corpus.mkdir(parents=True)
    write_records(corpus / "train.jsonl", [Document(text=line) for line in lines])
    config = TokenizerConfig(vocab_size=vocab_size)
    train_tokenizer(config, out, Journal(out), corpus=corpus, context_length=SIZES.context_length)
    return load_tokenizer(out)


def make_model(tokenizer: PreTrainedTokenizerBase, seed: int = 0, sizes: ModelConfig = SIZES) -> PreTrainedModel:
    """A random Llama for the tokenizer."""
    torch.manual_seed(seed)
    return build_model(sizes, tokenizer).eval()


def make_base(directory: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """`directory/model` as the pretraining stage leaves it, and what is in it."""
    tokenizer = make_tokenizer(directory)
    model = make_model(tokenizer)
    save_model(model, directory / "model", tokenizer)
    return model, tokenizer


def user(text: str) -> tuple[Message, ...]:
    """One question."""
    return (Message(role="user", content=text),)


def prompt(text: str, **options: object) -> Prompt:
    """A prompt whose id is its text."""
    return Prompt(id=text, messages=user(text), **options)


def demonstration(question: str, answer: str) -> Demonstration:
    """An answered question."""
    return Demonstration(id=question + answer, messages=user(question), completion=answer)


def comparison(question: str, chosen: str, rejected: str, **options: object) -> Comparison:
    """A judgement; responses are known by their text."""
    sides = {"chosen": Response(id=chosen, text=chosen), "rejected": Response(id=rejected, text=rejected)}
    return Comparison(id=f"{question}{chosen}{rejected}{options}", prompt=prompt(question), **sides, **options)


def write(path: Path, rows: Iterable[Record]) -> Path:
    """Records as a file, and its directory."""
    write_records(path, rows)
    return path.parent


def write_lines(path: Path, rows: Iterable[object]) -> Path:
    """JSON, one value a line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def prompt_tokens(tokenizer: PreTrainedTokenizerBase, messages: Iterable[Message]) -> list[int]:
    """A prompt under the tokenizer's own chat format."""
    return ChatFormat.of(tokenizer).prompt(messages)


def response_tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """An answer to some question, with the token that ends it."""
    return ChatFormat.of(tokenizer).turn(user("Q?"), text).response


def document_tokens(tokenizer: PreTrainedTokenizerBase, document: Document) -> list[int]:
    """A document for pretraining."""
    return ChatFormat.of(tokenizer).document(document)


def decode_response(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int]) -> str:
    """The text of an answer."""
    return ChatFormat.of(tokenizer).decode(tokens)


def encoded(
    tokenizer: PreTrainedTokenizerBase, rows: Iterable[Comparison], max_length: int = 64
) -> list[tuple[Comparison, Pair]]:
    """Comparisons as the stages encode them."""
    chat = ChatFormat.of(tokenizer)
    return [(row, encode_comparison(chat, row, max_length)) for row in rows]
