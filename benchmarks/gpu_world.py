"""What `benchmarks.gpu` runs the stages on: a Llama with random weights, a reward model of it, and random words.

All rows of a kind have the same length, so that the tokens per step are known in advance.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from alignment.models.scalar import save_model, scalar_head, scalar_model_from, set_normalisation
from alignment.models.tokenizer import ASSISTANT, CHAT_TEMPLATE, EOS, PAD, SYSTEM, USER
from alignment.records import Comparison, Demonstration, Document, Message, Prompt, Record, Response, write_records

SPECIAL = (PAD, EOS, USER, ASSISTANT, SYSTEM)
ANSWERS = 4  # of each compared prompt


@dataclass(frozen=True)
class Size:
    """Shape of the model, and how much data there is (rows) of which length (words)."""

    vocab_size: int
    hidden_size: int
    layers: int
    heads: int
    key_value_heads: int
    intermediate_size: int
    context: int
    prompt_words: int
    response_words: int
    documents: int
    prompts: int
    demonstrations: int
    compared_prompts: int
    batch: int

    @property
    def prompt_tokens(self) -> int:
        """<|user|> words <|assistant|>"""
        return self.prompt_words + 2

    @property
    def response_tokens(self) -> int:
        """Words and EOS."""
        return self.response_words + 1

    @property
    def sequence_tokens(self) -> int:
        """A prompt with its response."""
        return self.prompt_tokens + self.response_tokens


SIZES = {
    "tiny": Size(320, 64, 2, 4, 2, 128, 128, 8, 16, 40, 24, 24, 12, 8),
    "half": Size(151936, 896, 24, 14, 2, 4864, 512, 24, 48, 160, 96, 128, 48, 16),
}


def make_world(out: Path, size: Size) -> Path:
    """Write the directories that stages read, with weights from a seed; nothing where they are already."""
    if (out / "done").exists():
        return out
    torch.manual_seed(0)
    tokenizer = make_tokenizer(size)
    model = LlamaForCausalLM(llama(size)).eval()
    save_model(model, out / "base" / "model", tokenizer)
    reward = scalar_model_from(model)
    nn.init.normal_(scalar_head(reward).weight, std=0.02, generator=torch.Generator().manual_seed(1))
    set_normalisation(reward, 0.1, 0.5)
    save_model(reward, out / "reward" / "model", tokenizer)
    write_rows(out, size)
    (out / "done").touch()
    return out


def llama(size: Size) -> LlamaConfig:
    """A Llama in the shape of Qwen2.5-0.5B, or smaller."""
    return LlamaConfig(
        vocab_size=size.vocab_size,
        hidden_size=size.hidden_size,
        intermediate_size=size.intermediate_size,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.key_value_heads,
        max_position_embeddings=size.context,
        tie_word_embeddings=True,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
    )


def make_tokenizer(size: Size) -> PreTrainedTokenizerFast:
    """One token a word, and the project's special tokens and chat template."""
    words = {word: number for number, word in enumerate((*SPECIAL, *all_words(size)))}
    backend = Tokenizer(models.WordLevel(words, unk_token="w5"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD,
        eos_token=EOS,
        additional_special_tokens=[USER, ASSISTANT, SYSTEM],
        model_max_length=size.context,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def all_words(size: Size) -> list[str]:
    """The words that are no special token: their number is their id."""
    return [f"w{number}" for number in range(len(SPECIAL), size.vocab_size)]


def write_rows(out: Path, size: Size) -> None:
    """Text, demonstrations, prompts and comparisons of random words."""
    random, words = Random(0), all_words(size)

    def text(count: int) -> str:
        return " ".join(random.choices(words, k=count))

    def prompt(number: int, split: str = "train") -> Prompt:
        message = Message(role="user", content=text(size.prompt_words))
        return Prompt.model_validate({"id": f"p{number}", "messages": (message,), "split": split})

    def compared(start: int, count: int) -> Iterable[Comparison]:
        for number in range(start, start + count):
            asked = prompt(number)
            answers = [Response(id=f"r{number}-{k}", text=text(size.response_words)) for k in range(ANSWERS)]
            for k, chosen in enumerate(answers):
                for rejected in answers[k + 1 :]:
                    identity = f"{chosen.id}{rejected.id}"
                    yield Comparison(id=identity, prompt=asked, chosen=chosen, rejected=rejected)

    def demonstration(number: int) -> Demonstration:
        return Demonstration(
            id=f"d{number}", messages=prompt(number).messages, completion=text(size.response_words), source="random"
        )

    splits = ["train"] * size.prompts + ["heldout"] * max(4, size.prompts // 6)
    files: dict[str, Iterable[Record]] = {
        "corpus/train": [Document(text=text(size.context - 1)) for _ in range(size.documents)],
        "corpus/heldout": [Document(text=text(size.context - 1)) for _ in range(size.batch)],
        "demonstrations/demonstrations": [demonstration(number) for number in range(size.demonstrations)],
        "prompts/prompts": [prompt(number, split) for number, split in enumerate(splits)],
        "comparisons/train": list(compared(0, size.compared_prompts)),
        "comparisons/heldout_prompts": list(compared(10_000, 4)),
        "comparisons/heldout_annotators": [],
    }
    for name, rows in files.items():
        path = out / f"{name}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_records(path, rows)


def read_json(path: Path) -> dict[str, dict[str, object]]:
    """Results by name; none where a process did not come to write any."""
    results: dict[str, dict[str, object]] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return results
