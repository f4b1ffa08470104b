"""Method `ppo`: PPO from the fine-tuned policy, with the reward model and the prompts, by `alignment.ppo`."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from alignment.errors import DataError, UnfitRowError
from alignment.footprint.model import Footprint
from alignment.journal import Journal
from alignment.ppo.config import PPOConfig
from alignment.records import Document, shard_files
from alignment.rules.options import AlignOptions
from alignment.stage import Method, Sizes, Tokens

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from alignment.models.chat import ChatFormat
    from alignment.models.ensembles import Ensemble
    from alignment.training.pretrain import PackedText

CURVES = (
    "reward",
    "objective",
    "kl",
    "kl_coef",
    "entropy",
    "length",
    "missing_eos",
    "clip_fraction",
    "approx_kl",
    "policy_loss",
    "value_loss",
    "explained_variance",
    "ptx_loss",
    "policy_grad_norm",
    "value_grad_norm",
    "sampler_kl",
    "truncated_share",
)
SCORED_DOCUMENTS = 1 << 14  # of PPO-ptx's text, at a time
FIGURES = ("reward", "objective", "kl", "entropy", "length", "missing_eos", "explained_variance")


def ppo(
    config: PPOConfig,
    out: Path,
    journal: Journal,
    *,
    seed: int,
    sft: Path,
    reward: Path,
    prompts: Path,
    corpus: Path,
    align: AlignOptions,
    validation: Path | None = None,
) -> dict[str, float]:
    """Run PPO from `sft/model` against the reward model and the rules on the training prompts; the value model starts
    as the reward model.

    PPO-ptx reads the corpus without conversations that have an answer below `align.ptx_min_reward`: many answers of
    the web are wrong, rude or harmful by people's judgement, and would be learned again.

    With `validation`, a reward model from other labels, the policy is the snapshot that it selects by answers to
    `align.select_prompts` of the prompts; see `alignment.methods.selection`. Writes `model/`, `snapshots/step-*/`,
    `snapshots.json` (their steps, in order) and, after a selection, `selection.json`.
    """
    from functools import partial

    import torch

    from alignment.artifacts import write_json
    from alignment.data.prompts import encode_prompts
    from alignment.distributed.collectives import on_main
    from alignment.distributed.devices import in_bfloat16
    from alignment.methods.selection import select_snapshot
    from alignment.models.architecture import longest_sequence, row_length
    from alignment.models.chat import load_chat
    from alignment.models.encoding import put_aside
    from alignment.models.reward_adapters import load_reward
    from alignment.models.scalar import load_causal_model, load_rewards
    from alignment.plots import panels
    from alignment.ppo.train import train_ppo
    from alignment.rewards.build import reward_parts, rule_rewards
    from alignment.training.tokens import TokenRows

    config = config.model_copy(update={"seed": seed, "bfloat16": config.bfloat16 or in_bfloat16()})
    chat = load_chat(sft / "model")
    frozen = torch.bfloat16 if config.bfloat16 else torch.float32
    lora = config.layout == "lora"
    policy = load_causal_model(sft / "model", frozen if lora else torch.float32)
    context = longest_sequence(policy)
    encoded = encode_prompts(prompts, "train", chat, context, config.max_new_tokens, "ppo.max_new_tokens")
    put_aside(out, encoded)
    prompt_ids = [tokens for _, tokens in encoded.rows]
    load = partial(load_reward, language_model=policy, dtype=frozen, shared=lora)
    text = None
    if config.ptx_coef:
        rewards = partial(load_rewards, reward, load)
        text = pretraining_text(corpus, out, chat, row_length(policy), context, rewards, align.ptx_min_reward)
    result = train_ppo(
        policy,
        chat.tokenizer,
        prompt_ids,
        reward_parts(reward, rule_rewards(align), load),
        config,
        ptx_sequences=None if text is None else TokenRows(text.rows),
        out=out,
        journal=journal,
    )
    steps = [snapshot.step for snapshot in result.snapshots if snapshot.step <= result.policy_step]
    policy_step = result.policy_step
    if validation is not None:
        selected = prompt_ids[: align.select_prompts]
        policy_step = select_snapshot(
            config, out, journal, steps=steps, validation=validation, prompts=selected, chat=chat
        )
    on_main(write_json, out / "snapshots.json", steps)
    journal.figure("ppo", panels(journal.read(), CURVES, "PPO"))
    counts = {"prompts": len(prompt_ids), "ptx_documents": 0 if text is None else text.documents, "steps": result.steps}
    counts |= {"policy_step": policy_step, "stopped_early": result.stopped_early}
    figures = {name: result.metrics[name] for name in FIGURES if name in result.metrics}
    figures |= {f"prompts_{name}": count for name, count in encoded.counts.items()}
    return figures | {name: float(count) for name, count in counts.items()}


def pretraining_text(
    corpus: Path,
    out: Path,
    chat: "ChatFormat",
    row_tokens: int,
    context: float,
    load_rewards: "Callable[[], PreTrainedModel | Ensemble]",
    minimum: float | None,
) -> "PackedText":
    """The training documents as rows of token ids, without conversations whose rewards are below `minimum`.

    The reward model is held while it scores, and no longer."""
    from alignment.distributed.collectives import on_main
    from alignment.training.pretrain import packed
    from alignment.training.tokens import remove_leftovers

    documents = encoded_corpus(corpus, chat)
    if minimum is not None:
        documents = without_low_rewards(documents, chat, context, load_rewards(), minimum)
    on_main(remove_leftovers, out)
    return packed(documents, row_tokens, corpus / "train.jsonl", out)


def encoded_corpus(corpus: Path, chat: "ChatFormat") -> Iterator[tuple[Document, list[int]]]:
    """The training documents that the chat template takes, with their tokens."""
    from alignment.models.encoding import Unfit
    from alignment.training.pretrain import encoded_documents

    rows = (row for shard in shard_files(corpus / "train.jsonl") for row in encoded_documents(shard, chat))
    yield from (row for row in rows if not isinstance(row, Unfit))


def without_low_rewards(
    documents: Iterator[tuple[Document, list[int]]],
    chat: "ChatFormat",
    context: float,
    reward: "PreTrainedModel | Ensemble",
    minimum: float,
) -> Iterator[tuple[Document, list[int]]]:
    """`drop_low_reward_conversations` of a bounded number of documents at a time. Raises DataError if nothing is left
    of all."""
    total = 0
    while block := list(islice(documents, SCORED_DOCUMENTS)):
        kept = drop_low_reward_conversations(block, chat, context, reward, minimum)
        total += len(kept)
        yield from kept
    if not total:
        raise DataError(f"the reward of every answer in the corpus is below {minimum}; lower `align.ptx_min_reward`")


def drop_low_reward_conversations(
    documents: "Sequence[tuple[Document, list[int]]]",
    chat: "ChatFormat",
    context: float,
    reward: "PreTrainedModel | Ensemble",
    minimum: float,
) -> list[tuple[Document, list[int]]]:
    """The documents, each with its tokens, without the conversations in which an answer scores below `minimum`.

    Plain text is kept, and so are answers that cannot be scored."""
    from alignment.distributed.collectives import from_main
    from alignment.models.encoding import check_length
    from alignment.models.scalar import reward_scores
    from alignment.reward_model.evaluate import transposed

    indices: list[int] = []
    answers: list[tuple[list[int], int]] = []
    for index, (document, _) in enumerate(documents):
        for turn, message in enumerate(document.messages):
            if message.role == "assistant" and turn > 0:
                with suppress(UnfitRowError):
                    encoded = chat.turn(document.messages[:turn], message.content)
                    check_length(len(encoded.ids), context)
                    indices.append(index)
                    answers.append((encoded.ids, len(encoded.prompt)))
    if not answers:
        return list(documents)
    scores = reward_scores(reward, *transposed(answers)).tolist()
    low = from_main({index for index, score in zip(indices, scores, strict=True) if score < minimum})
    return [document for index, document in enumerate(documents) if index not in low]


def cost(config: PPOConfig, sizes: Sizes) -> Tokens:
    """A rollout is read five times (sampling, old policy, reference, value, reward); policy and value model are trained
    on it for `epochs`, and the policy on pretraining text when `ptx_coef` is set."""
    rollout = config.steps * config.batch_size * sizes.episode_tokens(config.max_new_tokens)
    minibatches = config.steps * config.epochs * (config.batch_size // config.minibatch_size)
    ptx = minibatches * config.ptx_batch_size * sizes.context_length if config.ptx_coef else 0
    return Tokens(trained=2 * config.epochs * rollout + ptx, read=5 * rollout)


def memory(config: PPOConfig, model: Footprint, sizes: Sizes) -> int:
    """Sampling, or the update of policy and value model, which work at the same time."""
    row_tokens = sizes.episode_tokens(config.max_new_tokens)
    frozen = model.weights // 2 if config.bfloat16 else model.weights
    lora, apart = config.layout == "lora", config.layout == "separate"
    rank = config.lora_rank if lora else None
    models = 2 if lora or apart else 1
    if lora:
        weights = frozen + frozen  # the base, which is the reference, and the reward model
    else:
        weights = models * model.weights + 2 * frozen
    state = models * model.training_state(rank)
    recompute, tokens = config.gradient_checkpointing, max(config.micro_batch_tokens, row_tokens)
    activations = models * model.activations(tokens, recompute=recompute, adapter=lora)
    update = activations + model.logits(tokens)
    rows = min(config.generation_batch_size, config.batch_size)
    return weights + state + max(update, model.cache(rows, row_tokens))


METHOD = Method(
    "ppo",
    run=ppo,
    config=PPOConfig,
    section="ppo",
    inputs=("sft", "reward", "prompts", "corpus"),
    version=3,
    cost=cost,
    memory=memory,
    response_options=("max_new_tokens",),
    batch_option="batch_size",
    less_memory="lower ppo.micro_batch_tokens, ppo.generation_batch_size, ppo.batch_size, set ppo.layout: lora",
    keeps_snapshots=True,
)
