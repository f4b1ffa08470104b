"""Stage `best_of_n`: rejection sampling. SFT answers each training prompt n times and is fine-tuned on the best.

Best by the reward that PPO would follow; as in Touvron et al. 2023, "Llama 2", section 3.2.3. What best-of-n sampling
reaches without training, and at which distance from SFT, is measured by the stage `evaluate`.
"""

from collections.abc import Sequence
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from alignment.config.methods import BestOfNConfig
from alignment.data.prompts import training_prompts
from alignment.data.responses import sample
from alignment.errors import DataError
from alignment.journal import Journal
from alignment.models.generation import Sample
from alignment.models.importing import load_tokenizer
from alignment.models.scalar import load_causal_model
from alignment.models.tokenizer import decode_response
from alignment.records import Demonstration, Prompt, write_records
from alignment.rewards.build import reward_parts
from alignment.rewards.components import Component, RuleReward, component_scores, reward_components, total_score
from alignment.training.sft import finetune

TOKEN_BUDGET = 8192
CHOSEN = "demonstrations.jsonl"


def best_of_n(
    config: BestOfNConfig,
    out: Path,
    journal: Journal,
    *,
    seed: int,
    sft: Path,
    reward: Path,
    prompts: Path,
    rules: Sequence[RuleReward] = (),
) -> dict[str, float]:
    """Write the best answers as `demonstrations.jsonl`, and the policy that was fine-tuned on them as `model/`."""
    if not journal.read():  # a killed run goes on with what it had chosen, if it had written down all of it
        journal.log(choose(config, out, seed, sft, reward, prompts, rules), step=0)
    chosen: dict[str, float] = journal.read()[0]["values"]
    return chosen | finetune(config.finetune, out, journal, seed=seed, base=sft, demonstrations=out)


def choose(
    config: BestOfNConfig,
    out: Path,
    seed: int,
    sft: Path,
    reward: Path,
    prompts: Path,
    rules: Sequence[RuleReward],
) -> dict[str, float]:
    """Sample, score and keep the best finished answer of each prompt; prompts without a finished one are counted."""
    model, tokenizer = load_causal_model(sft / "model"), load_tokenizer(sft / "model")
    context = int(model.config.max_position_embeddings)
    fitting, too_long = training_prompts(
        prompts, tokenizer, context, config.max_new_tokens, "align.best_of_n.max_new_tokens"
    )
    asked = fitting[: config.prompts or None]
    repeated = [tokens for _, tokens in asked for _ in range(config.samples)]
    samples = sample(config, model, tokenizer, repeated, seed)
    scores = scored(reward_components(reward_parts(reward, rules), tokenizer), tokenizer, repeated, samples)
    texts = [decode_response(tokenizer, one.tokens) for one in samples]
    usable = [one.ended and bool(text) for one, text in zip(samples, texts, strict=True)]
    places = best_places(scores, usable, config.samples)
    rows = [demonstration(asked[place // config.samples][0], texts[place]) for place in places]
    if not rows:
        raise DataError("no response ended; raise `align.best_of_n.max_new_tokens`, or train SFT longer")
    write_records(out / CHOSEN, rows)
    return {
        "prompts": float(len(asked)),
        "prompts_too_long": float(too_long),
        "prompts_without_answer": float(len(asked) - len(rows)),
        "reward_of_all": sum(scores) / len(scores),
        "reward_of_best": sum(scores[place] for place in places) / len(places),
    }


def scored(
    components: Sequence[Component],
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[list[int]],
    samples: Sequence[Sample],
) -> list[float]:
    """The total score of each response."""
    sequences = [prompt + one.tokens for prompt, one in zip(prompts, samples, strict=True)]
    parts = component_scores(components, tokenizer, sequences, [len(p) for p in prompts], TOKEN_BUDGET)
    return list(total_score(components, parts).tolist())


def best_places(scores: Sequence[float], usable: Sequence[bool], n: int) -> list[int]:
    """The place of the best usable response in each run of n; none where no response is usable."""
    found = []
    for start in range(0, len(scores), n):
        places = [place for place in range(start, start + n) if usable[place]]
        found += [max(places, key=lambda place: scores[place])] if places else []
    return found


def demonstration(prompt: Prompt, text: str) -> Demonstration:
    """A chosen answer as if a person had written it."""
    return Demonstration(id=prompt.id, messages=prompt.messages, completion=text, source="best_of_n")
