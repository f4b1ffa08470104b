"""Method `best_of_n`: rejection sampling. SFT answers each training prompt n times and is fine-tuned on the best.

Best by the reward that PPO would maximize; as in Touvron et al. 2023, "Llama 2", section 3.2.3. The stage
`evaluate` measures best-of-n sampling without training, and its KL from SFT.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from alignment.config.base import Config, Count, Natural, Positive
from alignment.config.stages import SFTConfig
from alignment.errors import DataError
from alignment.footprint import peaks
from alignment.footprint.model import Footprint
from alignment.journal import Journal
from alignment.records import Demonstration, Prompt, write_records
from alignment.rules.options import AlignOptions
from alignment.stage import Method, Sizes, Tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from alignment.models.generation import Sample
    from alignment.rewards.components import Component

TOKEN_BUDGET = 8192
CHOSEN = "demonstrations.jsonl"


class BestOfNConfig(Config):
    """Rejection sampling: fine-tune SFT on the best of its n responses to each training prompt, by the reward."""

    samples: Annotated[int, Field(ge=2)] = Field(8, description="n, responses per prompt")
    prompts: Natural = Field(0, description="use at most this many training prompts, 0 for all")
    temperature: Positive = Field(1.0, description="sampling temperature")
    max_new_tokens: Count = Field(48, description="maximum response length in tokens")
    batch_size: Count = Field(128, description="responses generated at a time")
    finetune: SFTConfig = SFTConfig(epochs=2, learning_rate=1e-4)


def best_of_n(
    config: BestOfNConfig,
    out: Path,
    journal: Journal,
    *,
    seed: int,
    sft: Path,
    reward: Path,
    prompts: Path,
    align: AlignOptions,
) -> dict[str, float]:
    """Write the best responses as `demonstrations.jsonl`, and the policy fine-tuned on them as `model/`."""
    from alignment.training.sft import finetune

    if not journal.read():  # a resumed run reuses the choice of the killed one, if that was complete
        journal.log(choose(config, out, seed, sft, reward, prompts, align), step=0)
    chosen: dict[str, float] = journal.read()[0]["values"]
    return chosen | finetune(config.finetune, out, journal, seed=seed, base=sft, demonstrations=out)


def choose(
    config: BestOfNConfig,
    out: Path,
    seed: int,
    sft: Path,
    reward: Path,
    prompts: Path,
    align: AlignOptions,
) -> dict[str, float]:
    """Sample, score and keep the best finished response to each prompt; prompts without one are counted."""
    from alignment.data.prompts import encode_prompts
    from alignment.data.responses import sample
    from alignment.distributed.devices import frozen_dtype
    from alignment.models.architecture import longest_sequence
    from alignment.models.chat import load_chat
    from alignment.models.encoding import put_aside
    from alignment.models.scalar import load_causal_model
    from alignment.rewards.build import reward_parts, rule_rewards
    from alignment.rewards.components import reward_components

    model, chat = load_causal_model(sft / "model", frozen_dtype()), load_chat(sft / "model")
    context = longest_sequence(model)
    encoded = encode_prompts(prompts, "train", chat, context, config.max_new_tokens, "align.best_of_n.max_new_tokens")
    put_aside(out, encoded)
    selected = encoded.rows[: config.prompts or None]
    repeated = [tokens for _, tokens in selected for _ in range(config.samples)]
    samples = sample(config, model, chat, repeated, seed)
    components = reward_components(reward_parts(reward, rule_rewards(align)), chat.tokenizer)
    scores = score_samples(components, chat.tokenizer, repeated, samples)
    texts = [chat.decode(drawn.tokens) for drawn in samples]
    usable = [drawn.ended and bool(text) for drawn, text in zip(samples, texts, strict=True)]
    best = best_indices(scores, usable, config.samples)
    rows = [demonstration(selected[index // config.samples][0], texts[index]) for index in best]
    if not rows:
        raise DataError("no response ended; raise `align.best_of_n.max_new_tokens`, or train SFT longer")
    write_records(out / CHOSEN, rows)
    return {
        "prompts": float(len(selected)),
        "prompts_too_long": float(encoded.too_long),
        "prompts_rejected": encoded.counts["rejected"],
        "prompts_without_answer": float(len(selected) - len(rows)),
        "reward_of_all": sum(scores) / len(scores),
        "reward_of_best": sum(scores[index] for index in best) / len(best),
    }


def score_samples(
    components: Sequence["Component"],
    tokenizer: "PreTrainedTokenizerBase",
    prompts: Sequence[list[int]],
    samples: Sequence["Sample"],
) -> list[float]:
    """The total score of each response."""
    from alignment.rewards.components import component_scores, total_score

    sequences = [prompt + sample.tokens for prompt, sample in zip(prompts, samples, strict=True)]
    parts = component_scores(components, tokenizer, sequences, [len(p) for p in prompts], TOKEN_BUDGET)
    return list(total_score(components, parts).tolist())


def best_indices(scores: Sequence[float], usable: Sequence[bool], n: int) -> list[int]:
    """The index of the best usable response in each group of n; groups without a usable response are skipped."""
    best = []
    for start in range(0, len(scores), n):
        candidates = [index for index in range(start, start + n) if usable[index]]
        best += [max(candidates, key=lambda index: scores[index])] if candidates else []
    return best


def demonstration(prompt: Prompt, text: str) -> Demonstration:
    """A chosen response as a demonstration."""
    return Demonstration(id=prompt.id, messages=prompt.messages, completion=text, source="best_of_n")


def cost(config: BestOfNConfig, sizes: Sizes) -> Tokens:
    """Every response is sampled and scored; the best of each prompt is trained on."""
    prompts = config.prompts or sizes.prompts
    sampled = prompts * config.samples * sizes.episode_tokens(config.max_new_tokens)
    return Tokens(trained=prompts * config.finetune.max_length_tokens * config.finetune.epochs, read=2 * sampled)


def memory(config: BestOfNConfig, model: Footprint, sizes: Sizes) -> int:
    """Sampling beside the reward model, or the fine-tuning."""
    tuning = config.finetune
    sampling = peaks.of_reading(model, 2, config.batch_size, sizes.episode_tokens(config.max_new_tokens))
    return max(sampling, peaks.of_adapter_training(tuning, model, tuning.batch_size, tuning.max_length_tokens))


METHOD = Method(
    "best_of_n",
    run=best_of_n,
    config=BestOfNConfig,
    section="align.best_of_n",
    inputs=("sft", "reward", "prompts"),
    cost=cost,
    memory=memory,
    sequence_options=("finetune.max_length_tokens",),
    response_options=("max_new_tokens",),
    less_memory="lower align.best_of_n.batch_size, align.best_of_n.finetune.batch_size",
)
