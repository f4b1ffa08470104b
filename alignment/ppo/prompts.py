"""Prompts as token ids, and which of them a step uses."""

import hashlib
from collections.abc import Sequence

import torch
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from alignment.errors import ConfigError, DataError
from alignment.sampling import check_prompts_fit


def tokenized_prompts(
    prompts: Sequence[Sequence[int]] | Dataset, tokenizer: PreTrainedTokenizerBase
) -> list[list[int]]:
    """Token ids of prompts given as ids, or of a dataset with a column "prompt": text, or messages of a chat."""
    if not isinstance(prompts, Dataset):
        return [list(prompt) for prompt in prompts]
    if "prompt" not in prompts.column_names:
        raise DataError(f"the prompts have the columns {prompts.column_names}; name the one to use 'prompt'")
    return [_tokens(prompt, tokenizer) for prompt in prompts["prompt"]]


def _tokens(prompt: object, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    if isinstance(prompt, str):
        return list(tokenizer(prompt)["input_ids"])
    if not isinstance(prompt, list):
        raise DataError(f"a prompt is text or a list of messages, not {type(prompt).__name__}: {prompt!r}")
    if tokenizer.chat_template is None:
        raise ConfigError("the prompts are messages and the tokenizer has no chat template: set chat_template")
    return list(tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=False))


def check_inputs(
    policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Sequence[int]], max_new_tokens: int
) -> None:
    """Refuse what would train quietly in the wrong way."""
    if not prompts:
        raise ConfigError("there are no prompts; give at least one")
    if tokenizer.eos_token_id is None:
        raise ConfigError("the tokenizer has no EOS token, so no response could end: set tokenizer.eos_token")
    if tokenizer.pad_token_id == tokenizer.eos_token_id:
        raise ConfigError(
            f"PAD and EOS are the same token ({tokenizer.eos_token!r}), so models trained with this tokenizer may have "
            "learnt never to end: tokenizer.add_special_tokens({'pad_token': '<|pad|>'}), and resize the embeddings"
        )
    check_prompts_fit(policy, prompts, max_new_tokens)


def seeded(seed: int, purpose: str, number: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator of its own for each purpose and step: a resumed run draws the same without any saved state."""
    digest = hashlib.sha256(f"{seed}/{purpose}/{number}".encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:7], "big"))


def cycled_rows(count: int, batch_size: int, step: int, seed: int, purpose: str) -> list[int]:
    """Rows of batch number `step` (from 0) when `count` rows are gone through in ever new random orders."""
    orders: dict[int, list[int]] = {}
    rows = []
    for place in range(step * batch_size, (step + 1) * batch_size):
        epoch = place // count
        if epoch not in orders:
            orders[epoch] = torch.randperm(count, generator=seeded(seed, purpose, epoch)).tolist()
        rows.append(orders[epoch][place % count])
    return rows
