"""Prompts as token ids, and the selection of prompts for a step."""

import hashlib
from collections.abc import Collection, Mapping, Sequence

import torch
from datasets import Dataset
from pydantic import ValidationError
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from alignment.errors import CheckpointError, ConfigError, DataError
from alignment.models.architecture import cache_argument, check_causal
from alignment.models.chat import ChatFormat, eos_token_ids
from alignment.models.generation import check_prompts_fit
from alignment.records import Message, first_problem

CHECKED_ROWS = 1024  # of pretraining text, which may be larger than the memory, at a time


def tokenized_prompts(
    prompts: Sequence[Sequence[int]] | Dataset, tokenizer: PreTrainedTokenizerBase
) -> list[list[int]]:
    """Token ids of prompts that are token ids, or of a dataset with a column "prompt" of text or messages."""
    if not isinstance(prompts, Dataset):
        return [_token_ids(prompt, number) for number, prompt in enumerate(prompts)]
    if "prompt" not in prompts.column_names:
        raise DataError(
            f"the prompts have the columns {prompts.column_names}; rename the column to 'prompt' if it has text or "
            "messages, or pass the column itself, prompts['input_ids'], if it has token ids"
        )
    rows = list(prompts["prompt"])
    chat = ChatFormat.of(tokenizer) if tokenizer.chat_template and any(isinstance(row, list) for row in rows) else None
    return [_tokens(prompt, number, tokenizer, chat) for number, prompt in enumerate(rows)]


def _token_ids(prompt: object, number: int, name: str = "prompt") -> list[int]:
    """Token ids as a plain list, from any sequence of integers, a tensor or an array."""
    ids = prompt.tolist() if hasattr(prompt, "tolist") else prompt
    if not isinstance(ids, Sequence) or not all(type(token) is int for token in ids):
        raise DataError(
            f"{name} {number} is {prompt!r:.80}, not a list of token ids: pass tokenizer(text)['input_ids'] for each, "
            "or a datasets.Dataset with a column 'prompt'"
        )
    return list(ids)


def _tokens(prompt: object, number: int, tokenizer: PreTrainedTokenizerBase, chat: ChatFormat | None) -> list[int]:
    """Token ids of a text, or of messages in the chat format, in which text never becomes a special token."""
    if isinstance(prompt, str):
        return _text_tokens(prompt, tokenizer)
    if isinstance(prompt, list) and prompt and all(type(token) is int for token in prompt):
        raise DataError(
            f"prompt {number} is {prompt!r:.80}, token ids, and the column 'prompt' is for text or messages: pass the "
            "column itself, prompts['prompt']"
        )
    if not isinstance(prompt, list) or not prompt or not all(isinstance(turn, Mapping) for turn in prompt):
        raise DataError(f"prompt {number} is {prompt!r:.80}, neither text nor a list of messages with role and content")
    if chat is None:
        raise ConfigError("the prompts are messages and the tokenizer has no chat template: set chat_template")
    try:
        return chat.prompt([_message(turn) for turn in prompt])
    except DataError as error:
        raise DataError(f"prompt {number} cannot be used: {error}; it is {prompt!r:.80}") from error


def _message(turn: Mapping[str, object]) -> Message:
    try:
        return Message.model_validate({"role": turn.get("role"), "content": turn.get("content")})
    except ValidationError as error:
        raise DataError(f"in a message, {first_problem(error)}") from error


def _text_tokens(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The text with the special tokens that the tokenizer puts before it: one BOS, also for rendered text that has it.

    What the tokenizer puts after it (an EOS, say) is left out: the response is to follow.
    """
    plain = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    whole = list(tokenizer(text)["input_ids"])
    added = len(whole) - len(plain)
    before = next((count for count in range(added, 0, -1) if whole[count : count + len(plain)] == plain), 0)
    return plain if plain[:before] == whole[:before] else whole[:before] + plain


def check_inputs(
    policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Sequence[int]], max_new_tokens: int
) -> None:
    """Raise for inputs that would train silently in the wrong way."""
    if not prompts:
        raise ConfigError("there are no prompts; pass at least one")
    ends = eos_token_ids(tokenizer, getattr(policy, "generation_config", None))
    if not ends:
        raise ConfigError("the tokenizer has no EOS token, so no response could end: set tokenizer.eos_token")
    if tokenizer.pad_token_id == tokenizer.eos_token_id:
        raise ConfigError(
            f"PAD and EOS are the same token ({tokenizer.eos_token!r}), so models trained with this tokenizer may have "
            "learned never to end: tokenizer.add_special_tokens({'pad_token': '<|pad|>'}), and resize the embeddings"
        )
    check_prompts_fit(policy, prompts, max_new_tokens)
    _check_language_model(policy, ends, prompts)


def _check_language_model(policy: PreTrainedModel, ends: Collection[int], prompts: Sequence[Sequence[int]]) -> None:
    """Raise CheckpointError for a policy without an output head, and for token ids outside its vocabulary."""
    if policy.get_output_embeddings() is None:
        raise CheckpointError(f"{type(policy).__name__} has no output head; load it with AutoModelForCausalLM")
    cache_argument(policy)
    check_causal(policy)
    embeddings = policy.get_input_embeddings().weight
    assert isinstance(embeddings, Tensor)
    rows = len(embeddings)
    check_vocabulary("prompt", prompts, rows)
    if max(ends) >= rows:
        raise CheckpointError(
            f"EOS is token {max(ends)} and the policy has 0 to {rows - 1}, so no response could end: "
            "use the policy's own tokenizer, or resize the embeddings"
        )


def check_vocabulary(name: str, sequences: Sequence[Sequence[int]], rows: int, first: int = 0) -> None:
    """Raise CheckpointError for token ids outside a vocabulary of `rows` tokens. `first` numbers the first sequence."""
    for number, ids in enumerate(sequences, start=first):
        if min(ids) < 0 or max(ids) >= rows:
            raise CheckpointError(
                f"{name} {number} has the token ids {min(ids)} to {max(ids)} and the policy has 0 to {rows - 1}: "
                f"encode it with the policy's own tokenizer"
            )


def check_ptx(policy: PreTrainedModel, sequences: Sequence[Sequence[int]] | None, coef: float) -> None:
    """Raise for sequences of the pretraining loss that are missing, too long or of another vocabulary."""
    if coef and not sequences:
        raise ConfigError(f"ptx_coef is {coef} but there are no ptx_sequences: pass some, or set it to 0")
    embeddings = policy.get_input_embeddings().weight
    assert isinstance(embeddings, Tensor)
    for first in range(0, len(sequences or ()), CHECKED_ROWS):
        part = (sequences or ())[first : first + CHECKED_ROWS]
        plain = [_token_ids(sequence, number, "ptx sequence") for number, sequence in enumerate(part, start=first)]
        check_prompts_fit(policy, plain, 0, first)
        check_vocabulary("ptx sequence", plain, len(embeddings), first)


def seeded(seed: int, purpose: str, number: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A separate generator for each purpose and step: a resumed run draws the same numbers without saved state."""
    digest = hashlib.sha256(f"{seed}/{purpose}/{number}".encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:7], "big"))


def cycled_rows(count: int, batch_size: int, step: int, seed: int, purpose: str) -> list[int]:
    """Rows of batch number `step` (from 0) when `count` rows are traversed in a new random order each epoch."""
    orders: dict[int, Tensor] = {}
    rows = []
    for index in range(step * batch_size, (step + 1) * batch_size):
        epoch = index // count
        if epoch not in orders:
            orders[epoch] = torch.randperm(count, generator=seeded(seed, purpose, epoch))
        rows.append(int(orders[epoch][index % count]))
    return rows
