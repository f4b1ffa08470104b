"""Parameters, tokens and FLOPs of a recipe, worked out before anything runs.

A forward pass is 2·N FLOPs a token and training 6·N (Kaplan et al. 2020, section 2.1; attention is left out). What
depends on data that is not there yet is estimated from sizes, and lengths are taken at their limit.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from flows.recipe.schema import TOWN_SCHEME, Recipe

BYTES_PER_TOKEN = 3.5  # byte-level BPE of about a thousand tokens on English
TOWN_DOCUMENT_BYTES = 110
ROW_BYTES = 400  # a prompt with its answer, in files of others


@dataclass(frozen=True)
class Cost:
    """What a stage takes. `parameters` of the model it trains or runs; None where it is not known before."""

    parameters: int | None = None
    tokens: int | None = None
    flops: int | None = None


def llama_parameters(vocab: int, hidden: int, layers: int, heads: int, kv_heads: int, ffn: int, *, tied: bool) -> int:
    """Parameters of a Llama-style decoder.

    Embeddings V·h (twice when untied); a layer has q and o (2h²), k and v (2·h·h·kv/heads), the gated MLP (3·h·f) and
    two norms (2h); one norm at the end.
    """
    attention = 2 * hidden**2 + 2 * hidden * (hidden // heads) * kv_heads
    layer = attention + 3 * hidden * ffn + 2 * hidden
    return vocab * hidden * (1 if tied else 2) + layers * layer + hidden


def parameters(recipe: Recipe) -> int | None:
    """Parameters of the recipe's language model; None for a checkpoint that is not here yet."""
    if recipe.pretrain.checkpoint is not None:
        return checkpoint_parameters(Path(recipe.pretrain.checkpoint))
    model = recipe.pretrain.model
    return llama_parameters(
        recipe.tokenizer.vocab_size,
        model.hidden_size,
        model.layers,
        model.heads,
        model.heads,
        model.intermediate_size,
        tied=True,
    )


def checkpoint_parameters(directory: Path) -> int | None:
    """Numbers in the safetensors files of a directory, read from their headers alone."""
    files = sorted(directory.glob("*.safetensors")) if directory.is_dir() else []
    return sum(_numbers_in(file) for file in files) or None


def _numbers_in(file: Path) -> int:
    with file.open("rb") as stream:
        header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
    total = 0
    for name, entry in header.items():
        size = 1
        for length in entry["shape"] if name != "__metadata__" else [0]:
            size *= length
        total += size
    return total


def costs(recipe: Recipe) -> dict[str, Cost]:
    """The cost of every stage that runs a model."""
    n = parameters(recipe)
    pretrain_tokens = _round(_corpus_tokens(recipe), recipe.pretrain.epochs)
    sft_tokens = round(_rows(recipe, "demonstrations") * recipe.sft.max_length_tokens * recipe.sft.epochs)
    return {
        "pretrain": _training(n, pretrain_tokens),
        "sft": _training(n, sft_tokens),
        "responses": _forward(n, _sampled_tokens(recipe)),
        "reward": _training(n, _reward_tokens(recipe)),
        "validation": _training(n, _validation_tokens(recipe)),
        recipe.align.method: _alignment(recipe, n),
        "evaluate": _evaluation(recipe, n),
    }


def _training(n: int | None, tokens: int | None) -> Cost:
    return Cost(n, tokens, None if n is None or tokens is None else 6 * n * tokens)


def _forward(n: int | None, tokens: int | None) -> Cost:
    return Cost(n, tokens, None if n is None or tokens is None else 2 * n * tokens)


def _round(value: int | None, factor: float) -> int | None:
    return None if value is None else round(value * factor)


def _prompt_tokens(recipe: Recipe, new: int) -> int:
    """A prompt may fill what the response leaves of the SFT length."""
    return max(1, recipe.sft.max_length_tokens - new)


def _corpus_tokens(recipe: Recipe) -> int | None:
    sizes = [_source_bytes(recipe, source.path) for source in recipe.corpus.sources]
    known = [size for size in sizes if size is not None]
    return round(sum(known) / BYTES_PER_TOKEN) if len(known) == len(sizes) else None


def _source_bytes(recipe: Recipe, path: str) -> int | None:
    if path.startswith(TOWN_SCHEME):
        return recipe.town.documents * TOWN_DOCUMENT_BYTES if recipe.town else None
    return Path(path).stat().st_size if Path(path).is_file() else None


def _rows(recipe: Recipe, section: str) -> int:
    """About how many rows the sources of a section bring."""
    total = 0
    for source in getattr(recipe, section).sources:
        if source.path.startswith(TOWN_SCHEME):
            total += getattr(recipe.town, section, 0)
        elif source.limit:
            total += source.limit
        elif Path(source.path).is_file():
            total += Path(source.path).stat().st_size // ROW_BYTES
    return total


def _sampled_tokens(recipe: Recipe) -> int:
    sampling = recipe.sampling
    length = _prompt_tokens(recipe, sampling.max_new_tokens) + sampling.max_new_tokens
    return sampling.prompts * sampling.responses_per_prompt * length


def _validation_tokens(recipe: Recipe) -> int:
    """A reward model on what was held out from the others."""
    held = recipe.comparisons.heldout_share
    return round(_reward_tokens(recipe) / recipe.reward.members * held / (1 - held))


def _reward_tokens(recipe: Recipe) -> int:
    """Each response is forwarded once an epoch, whatever the number of its pairs."""
    if recipe.labeling is None:
        responses = 2 * _rows(recipe, "comparisons")
    else:
        ranked, paired = recipe.labeling.rankings.prompts, recipe.labeling.pairwise.prompts
        responses = ranked * recipe.sampling.responses_per_prompt + 2 * paired
    kept = 1 - recipe.comparisons.heldout_share
    return round(responses * kept * recipe.reward.max_length_tokens * recipe.reward.epochs * recipe.reward.members)


def _alignment(recipe: Recipe, n: int | None) -> Cost:
    """The chosen method: what is sampled, read by other models and trained on."""
    align = recipe.align
    if align.method == "ppo":
        return _ppo(recipe, n)
    if align.method == "dpo":  # a pair is two sequences, read by the reference and trained on
        pairs = _judged_pairs(recipe) * (1 - recipe.comparisons.heldout_share)
        tokens = round(2 * pairs * align.dpo.max_length_tokens * align.dpo.epochs)
        return Cost(n, tokens, None if n is None else (6 + 2) * n * tokens)
    if align.method == "rloo":  # sampled, scored, read by policy and reference, trained on
        length = _prompt_tokens(recipe, align.rloo.max_new_tokens) + align.rloo.max_new_tokens
        tokens = align.rloo.steps * align.rloo.batch_size * length
        return Cost(n, tokens, None if n is None else (6 + 4 * 2) * n * tokens)
    told = align.best_of_n
    prompts = told.prompts or _rows(recipe, "prompts")
    length = _prompt_tokens(recipe, told.max_new_tokens) + told.max_new_tokens
    sampled = prompts * told.samples * length
    tuned = round(prompts * told.finetune.max_length_tokens * told.finetune.epochs)
    return Cost(n, sampled + tuned, None if n is None else n * (2 * 2 * sampled + 6 * tuned))


def _judged_pairs(recipe: Recipe) -> int:
    """Comparisons that come out of the labelling, or stand in files: all pairs of a ranking, each by its judges."""
    if recipe.labeling is None:
        return _rows(recipe, "comparisons")
    responses, labeling = recipe.sampling.responses_per_prompt, recipe.labeling
    ranked = labeling.rankings.prompts * labeling.rankings.overlap * responses * (responses - 1) // 2
    return ranked + labeling.pairwise.prompts * labeling.pairwise.overlap


def _ppo(recipe: Recipe, n: int | None) -> Cost:
    """A rollout: one forward each for sampling, old policy, reference, value and reward; then `epochs` of training of
    policy and value model, and of the policy on pretraining text when `ptx_coef` is set."""
    ppo = recipe.ppo
    length = _prompt_tokens(recipe, ppo.max_new_tokens) + ppo.max_new_tokens
    rollout = ppo.steps * ppo.batch_size * length
    minibatches = ppo.steps * ppo.epochs * (ppo.batch_size // ppo.minibatch_size)
    context = recipe.pretrain.model.context_length
    ptx = minibatches * ppo.ptx_batch_size * context if ppo.ptx_coef else 0
    passes = 5 * 2 * rollout + 2 * 6 * rollout * ppo.epochs + 6 * ptx
    return Cost(n, rollout + ptx, None if n is None else n * passes)


def _evaluation(recipe: Recipe, n: int | None) -> Cost:
    """Three models answer; each answer is scored by policy, reference and reward model."""
    options = recipe.evaluation
    prompts = options.prompts or (recipe.town.heldout_prompts if recipe.town else _rows(recipe, "prompts") // 5)
    length = _prompt_tokens(recipe, options.max_new_tokens) + options.max_new_tokens
    points = recipe.ppo.steps // recipe.ppo.snapshot_every_steps if recipe.align.method == "ppo" else 0
    points += max(options.best_of_n, default=0)
    tokens = (3 * prompts * options.samples_per_prompt + points * options.curve_prompts) * length
    return Cost(n, tokens, None if n is None else 4 * 2 * n * tokens)


def short(value: int | None) -> str:
    """A number for people: 1234567 is 1.2 M."""
    if value is None:
        return "?"
    number = float(value)
    for unit in ("", " k", " M", " G", " T", " P"):
        if number < 999.5:
            return f"{number:.3g}{unit}"
        number /= 1000
    return f"{number:.3g} E"
