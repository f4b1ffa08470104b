"""Stage `reward`: a reward model from comparisons, by Bradley-Terry over all pairs of a prompt.

Every response of a prompt is forwarded once, regardless of the number of its pairs, and all pairs of a prompt are a
single batch element (Ouyang 2022, section 3.5): K responses cost K forward passes, not K(K-1), and all pairs of a
prompt are in the same step.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from alignment import progress
from alignment.config.stages import RewardConfig
from alignment.distributed.collectives import share_of
from alignment.distributed.devices import autocast
from alignment.distributed.sharding import split, whole, whole_tensor
from alignment.errors import DataError
from alignment.journal import Journal
from alignment.models.chat import Turn, load_chat
from alignment.models.encoding import Pair, encode_comparison, encode_demonstrations, encode_file, put_aside
from alignment.models.heads import Head, log_likelihoods
from alignment.models.likelihood import add_likelihood, likelihood_head
from alignment.models.logprobs import length_batches, right_pad
from alignment.models.quantized import load_base
from alignment.models.recomputation import recompute_layers
from alignment.models.reward_adapters import scalar_adapter_over
from alignment.models.scalar import (
    check_context,
    decoder_config,
    raw_scores,
    reward_scores,
    scalar_head,
    scalar_model_from,
    set_normalisation,
)
from alignment.plots import curve
from alignment.records import Comparison
from alignment.reward_model.ensemble_training import member_seed, shake_head, train_members
from alignment.reward_model.evaluate import TESTS, examine, transposed
from alignment.reward_model.loss import bradley_terry_loss
from alignment.training.loop import TrainingState, backward, cosine_schedule, is_small, token_budget
from alignment.training.pretrain import parameter_groups

COEFFICIENT_SPEED = 10.0  # a scalar must change by more than each of the head's weights


@dataclass(frozen=True)
class PromptGroup:
    """The distinct responses of a prompt as token ids with the prompt, and the judged pairs (chosen, rejected), each
    with its weight."""

    sequences: list[list[int]]
    pairs: list[tuple[int, int]]
    prompt_length: int
    weights: list[float]


def train_reward_model(
    config: RewardConfig,
    out: Path,
    journal: Journal,
    *,
    seed: int,
    sft: Path,
    comparisons: Path,
    demonstrations: Path,
    swapped: bool = False,
) -> dict[str, float]:
    """Train on `train.jsonl`, test on held-out prompts and annotators, and write `model/`, normalised so that
    demonstrations score 0 on average with a spread of 1 over the judged responses. With several members, the
    others are `model-1/`, …, each normalised by itself, and the test is of the ensemble. `swapped` trains on the
    held-out comparisons and tests on `train.jsonl`: a second reward model from other labels."""
    chat = load_chat(sft / "model")
    check_context(decoder_config(sft / "model"), config.max_length_tokens, "reward.max_length_tokens")
    encode = partial(encode_comparison, chat, max_length=config.max_length_tokens)
    encoded = {name: encode_file(comparisons / f"{name}.jsonl", Comparison, encode) for name in ("train", *TESTS)}
    put_aside(out, *encoded.values())
    rows = {name: part.rows for name, part in encoded.items()}
    if swapped:
        rows = {"train": rows[TESTS[0]] + rows[TESTS[1]], TESTS[0]: rows["train"], TESTS[1]: []}
    groups = group_by_prompt(rows["train"])
    if not groups:
        raise DataError(
            f"no comparison fits into {config.max_length_tokens} tokens; raise `reward.max_length_tokens`. "
            f"{encoded['train'].first_reason}"
        )
    zero = encode_demonstrations(demonstrations, chat, config.max_length_tokens, "reward.max_length_tokens")

    def member(number: int, directory: Path, member_journal: Journal) -> PreTrainedModel:
        language_model = load_base(sft / "model", config.lora_rank, config.quantize).requires_grad_(False)
        model, language_head = untrained(language_model, config, number)
        del language_model  # of a full reward model only the head is needed
        model = train_groups(model, language_head, groups, config, directory, member_journal, member_seed(seed, number))
        normalise(model, groups, [turn for _, turn in zero.rows])
        return model

    torch.manual_seed(seed)
    model = train_members(member, config, chat.tokenizer, out, journal)
    figures = {
        "train_pairs": float(sum(len(g.pairs) for g in groups)),
        "train_prompts": float(len(groups)),
        **encoded["train"].counts,
        **{f"too_long_{name}": float(encoded[name].too_long) for name in TESTS},
    }
    return figures | examine(model, rows, out, journal)


def untrained(language_model: PreTrainedModel, config: RewardConfig, number: int) -> tuple[PreTrainedModel, nn.Module]:
    """An untrained reward model, full or an adapter over the language model, and the frozen language head."""
    if config.lora_rank is None:
        model = scalar_model_from(language_model)
    else:
        model = scalar_adapter_over(language_model, config.lora_rank, config.lora_alpha, config.lora_targets, number)
        scalar_head(model).requires_grad_(True)
    if number > 0:
        shake_head(model, number)
    language_head = language_model.get_output_embeddings()
    assert isinstance(language_head, nn.Module), "a causal language model has a head"
    if config.likelihood:
        add_likelihood(model, language_head)
    return model, language_head


def group_by_prompt(rows: Sequence[tuple[Comparison, Pair]]) -> list[PromptGroup]:
    """A group per prompt; comparisons without weight are dropped."""
    by_prompt: dict[str, list[tuple[Comparison, Pair]]] = defaultdict(list)
    for row, pair in rows:
        if row.weight > 0:
            by_prompt[row.prompt.id].append((row, pair))
    groups = []
    for same_prompt in by_prompt.values():
        prompt = same_prompt[0][1].prompt
        indices: dict[str, int] = {}
        sequences: list[list[int]] = []
        for row, pair in same_prompt:
            for response, tokens in ((row.chosen, pair.chosen), (row.rejected, pair.rejected)):
                if response.id not in indices:
                    indices[response.id] = len(sequences)
                    sequences.append(prompt + tokens)
        pairs = [(indices[row.chosen.id], indices[row.rejected.id]) for row, _ in same_prompt]
        groups.append(PromptGroup(sequences, pairs, len(prompt), [row.weight for row, _ in same_prompt]))
    return groups


def train_groups(
    model: PreTrainedModel,
    language_head: nn.Module,
    groups: list[PromptGroup],
    config: RewardConfig,
    out: Path,
    journal: Journal,
    seed: int,
) -> PreTrainedModel:
    """The training loop over batches of prompts: resume, step, log. Each process takes its share of every batch.

    Returns the trained model: `model` itself, unless its weights were sharded over the processes.
    """
    if config.gradient_checkpointing:
        recompute_layers(model)
    shards = split((model,))
    per_epoch = math.ceil(len(groups) / config.batch_prompts)
    steps = max(1, round(per_epoch * config.epochs))
    budget = token_budget(config.micro_batch_tokens, model, recompute=config.gradient_checkpointing)
    weights, grouped = list(model.parameters()), groups_with_head(model, config)
    optimizer = torch.optim.AdamW(grouped, lr=config.learning_rate, betas=(0.9, 0.98), fused=True)
    schedule = cosine_schedule(optimizer, steps, config.warmup_share, 0.1)
    state = TrainingState(out / "checkpoint", model, optimizer, schedule)
    first = state.resume()
    journal.rewind(first)
    for step in progress.steps("reward model", first, steps):
        epoch, number = divmod(step - 1, per_epoch)
        order = torch.randperm(len(groups), generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch)).tolist()
        batch = [groups[i] for i in order[number * config.batch_prompts : (number + 1) * config.batch_prompts]]
        parts = micro_batches(share_of(batch), budget, in_halves=is_small(weights))
        losses = [partial(batch_loss, model, part, language_head, config.lm_coef, batch) for part in parts]
        idle = partial(no_loss, model, batch[:1], language_head, config.lm_coef, batch)
        loss, accuracy = backward(losses, weights, shards, idle)
        norm = whole_tensor(torch.nn.utils.clip_grad_norm_(weights, config.max_grad_norm))
        state.check(loss, norm, step, "reward.learning_rate")
        optimizer.step()
        schedule.step()
        if step % config.log_every_steps == 0 or step == steps:
            metrics = {"loss": float(loss), "train_accuracy": float(accuracy), "grad_norm": float(norm)}
            journal.log(metrics | {"learning_rate": float(schedule.get_last_lr()[0])}, step)
        if step % per_epoch == 0 and step < steps:
            state.save(step)
    journal.figure(
        "loss", curve(journal.read(), ["loss", "train_accuracy"], "reward model: loss and accuracy in training")
    )
    return whole(shards, model)


def micro_batches(groups: Sequence[PromptGroup], token_budget: int, *, in_halves: bool) -> list[list[PromptGroup]]:
    """The prompts of a batch in parts of at most so many padded tokens; a prompt above the budget is a part by itself.

    `in_halves` leaves a batch that fits the budget in two halves for `backward`.
    """
    lengths = [max(map(len, group.sequences)) for group in groups]
    rows = [len(group.sequences) for group in groups]
    if in_halves and groups and max(lengths) * sum(rows) <= token_budget:
        return [half for half in (list(groups[::2]), list(groups[1::2])) if half]
    return [[groups[i] for i in part] for part in length_batches(lengths, token_budget, rows)]


def groups_with_head(model: PreTrainedModel, config: RewardConfig) -> list[dict[str, object]]:
    """The trunk (or its adapter) at `learning_rate`, so that its knowledge is kept; new weights, which start at 0,
    at a higher rate."""
    rate = config.learning_rate * config.head_speed
    new, likelihood = [scalar_head(model).weight], likelihood_head(model)
    groups = parameter_groups(model.base_model, config.weight_decay)
    groups.append({"params": new, "weight_decay": 0.0, "lr": rate})
    if likelihood is not None:
        new.append(likelihood.coef.weight)
        groups.append({"params": [likelihood.coef.bias], "weight_decay": 0.0, "lr": rate * COEFFICIENT_SPEED})
    return groups


def batch_loss(
    model: PreTrainedModel,
    part: Sequence[PromptGroup],
    language_head: nn.Module | None = None,
    lm_coef: float = 0.0,
    batch: Sequence[PromptGroup] | None = None,
) -> Tensor:
    """Bradley-Terry loss with equal weight for every prompt, up to the weights of its comparisons (a pair weighs
    w / number of the prompt's pairs), and the share of correctly ordered pairs. Returns both, shape (2,).

    For a `part` of a `batch` it is the part's share: the results of the parts sum to that of the batch.

    With `lm_coef` the trunk is also trained to predict the next token through SFT's frozen head, which preserves its
    knowledge of prompts and answers (Yang et al. 2024, "Regularizing Hidden States", text regularisation on chosen
    responses): each response is weighted by the share of its comparisons that it won.
    """
    batch = batch or part
    sequences = [sequence for group in part for sequence in group.sequences]
    tokens = right_pad(sequences).to(model.device)
    lengths = torch.tensor([len(sequence) for sequence in sequences], device=model.device)
    prompts = torch.tensor([group.prompt_length for group in part for _ in group.sequences], device=model.device)
    with autocast():
        hidden = model.base_model(input_ids=tokens, use_cache=False).last_hidden_state
        scores = raw_scores(model, hidden, tokens, prompts, lengths)
    pairs, per_prompt, start = [], [], 0
    for group in part:
        pairs += [(start + chosen, start + rejected) for chosen, rejected in group.pairs]
        per_prompt += [weight / len(group.pairs) for weight in group.weights]
        start += len(group.sequences)
    index = torch.tensor(pairs, device=model.device)
    in_order = (scores[index[:, 0]] > scores[index[:, 1]]).sum() / sum(len(group.pairs) for group in batch)
    loss = bradley_terry_loss(scores, index, weights=torch.tensor(per_prompt, device=model.device))
    loss = loss * (sum(per_prompt) / sum(map(weight_of_pairs, batch)))
    if language_head is not None and lm_coef > 0:
        won = torch.tensor([share for group in part for share in won_shares(group)], device=model.device)
        weights = won.unsqueeze(-1) * (torch.arange(1, tokens.shape[1], device=model.device) < lengths.unsqueeze(-1))
        counts = weights > 0
        with autocast():
            losses = -log_likelihoods(Head.linear(language_head), hidden[:, :-1][counts], tokens[:, 1:][counts])
        loss = loss + lm_coef * (weights[counts] * losses).sum() / sum(map(weight_of_tokens, batch))
    return torch.stack([loss, in_order.to(loss)])


def no_loss(model: PreTrainedModel, part: Sequence[PromptGroup], *options: Any) -> Tensor:
    """`batch_loss` of a process that has no part of a batch: 0, as are its gradients."""
    return 0 * batch_loss(model, part, *options)


def weight_of_pairs(group: PromptGroup) -> float:
    """The weight of a prompt's comparisons together: 1 if each has the weight 1."""
    return sum(group.weights) / len(group.pairs)


def weight_of_tokens(group: PromptGroup) -> float:
    """The number of predicted tokens of a prompt's responses, each weighted by its share of won comparisons."""
    return sum(share * (len(tokens) - 1) for share, tokens in zip(won_shares(group), group.sequences, strict=True))


def won_shares(group: PromptGroup) -> list[float]:
    """The share of its comparisons that each response of a prompt won, by weight. Shape: (sequences,)."""
    won, judged = [0.0] * len(group.sequences), [0.0] * len(group.sequences)
    for (chosen, rejected), weight in zip(group.pairs, group.weights, strict=True):
        won[chosen] += weight
        judged[chosen] += weight
        judged[rejected] += weight
    return [wins / count if count else 0.0 for wins, count in zip(won, judged, strict=True)]


def normalise(model: PreTrainedModel, groups: Sequence[PromptGroup], demonstrations: Sequence[Turn]) -> None:
    """Shift so that demonstrations score 0 on average (Ouyang 2022); scale so that judged responses spread by 1."""
    judged = [(sequence, group.prompt_length) for group in groups for sequence in group.sequences]
    raw = reward_scores(model, *transposed(judged))
    zero = [(turn.ids, len(turn.prompt)) for turn in demonstrations]
    bias = float(reward_scores(model, *transposed(zero)).mean())
    set_normalisation(model, bias=bias, scale=max(float(raw.std()), 1e-6))
