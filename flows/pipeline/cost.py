"""Parameters, tokens and FLOPs of a recipe, estimated before anything runs.

A forward pass is 2·N FLOPs a token and training 6·N (Kaplan et al. 2020, section 2.1; attention is ignored). Data that
does not exist yet is estimated from file sizes, and lengths are taken at their maximum.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

from alignment.footprint import peaks
from alignment.footprint.model import Footprint, Shape, shape_of
from alignment.models.checkpoint_files import count_parameters, is_gguf, read_config
from alignment.paths import is_file
from alignment.stage import Sizes, Step
from flows.recipe.schema import TOWN_SCHEME, Recipe

BYTES_PER_TOKEN = 3.5  # byte-level BPE of about a thousand tokens on English
TOWN_DOCUMENT_BYTES = 110
LONGEST_ROW = 2048  # of packed text, as in alignment.models.architecture
ROW_BYTES = 400  # a prompt with its answer, in external files


@dataclass(frozen=True)
class Cost:
    """The cost of a stage: parameters of its model, tokens trained on, tokens read, and the process's peak memory in
    bytes. None if not known yet."""

    parameters: int | None = None
    trained: int | None = None
    read: int | None = None
    peak_bytes: int | None = None

    @property
    def flops(self) -> int | None:
        """6·N a trained token, 2·N a read one (Kaplan et al. 2020, section 2.1)."""
        if self.parameters is None or self.trained is None or self.read is None:
            return None
        return self.parameters * (6 * self.trained + 2 * self.read)


def llama_parameters(vocab: int, hidden: int, layers: int, heads: int, kv_heads: int, ffn: int, *, tied: bool) -> int:
    """Parameters of a Llama-style decoder.

    Embeddings V·h (twice when untied); a layer has q and o (2h²), k and v (2·h·h·kv/heads), the gated MLP (3·h·f) and
    two norms (2h); one norm at the end.
    """
    attention = 2 * hidden**2 + 2 * hidden * (hidden // heads) * kv_heads
    layer = attention + 3 * hidden * ffn + 2 * hidden
    return vocab * hidden * (1 if tied else 2) + layers * layer + hidden


def parameters(recipe: Recipe) -> int | None:
    """Parameters of the recipe's language model; None for a checkpoint that is not available locally."""
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


def checkpoint_shape(path: Path) -> Shape:
    """The sizes of the decoder in a directory or a GGUF file."""
    if is_gguf(path):
        from alignment.models import gguf_files  # with torch, which is slow to import

        return shape_of(gguf_files.load_config(path))
    config = read_config(path / "config.json")
    return shape_of(SimpleNamespace(**(config.get("text_config") or config)))


def checkpoint_parameters(path: Path) -> int | None:
    """Number of parameters of a checkpoint in a directory or a GGUF file, from the headers of its weights."""
    if is_gguf(path) and path.is_file():
        from alignment.models import gguf_files  # with torch, which is slow to import

        return gguf_files.count_parameters(path)
    return count_parameters(path) or None if path.is_dir() else None


def footprint(recipe: Recipe) -> Footprint | None:
    """The sizes of the recipe's language model; None for a checkpoint that is not available locally."""
    count = parameters(recipe)
    if count is None:
        return None
    if recipe.pretrain.checkpoint is not None:
        return Footprint(count, checkpoint_shape(Path(recipe.pretrain.checkpoint)))
    model = recipe.pretrain.model
    vocabulary = recipe.tokenizer.vocab_size
    return Footprint(
        count, Shape(model.layers, model.hidden_size, model.intermediate_size, model.hidden_size, vocabulary)
    )


def peak_bytes(step: Step, model: Footprint | None, known: Sizes) -> int | None:
    """The peak memory of a process of a stage: models, batches and libraries."""
    if model is None or step.stage.memory is None:
        return None
    return int(step.stage.memory(step.config, model, known)) + peaks.LIBRARIES


def costs(recipe: Recipe, chain: Mapping[str, Step]) -> dict[str, Cost]:
    """The cost of every stage that runs a model."""
    n, known, model = parameters(recipe), sizes(recipe), footprint(recipe)
    costs_by_stage = {}
    for name, step in chain.items():
        if step.stage.cost is None:
            continue
        tokens = step.stage.cost(step.config, known)
        trained, read = (None, None) if tokens is None else (round(tokens.trained), round(tokens.read))
        costs_by_stage[name] = Cost(n, trained, read, peak_bytes(step, model, known))
    return costs_by_stage


def sizes(recipe: Recipe) -> Sizes:
    """Sizes of the recipe's models and data, from which stages estimate their cost."""
    ppo = recipe.ppo if recipe.align.method == "ppo" else None
    return Sizes(
        conversation_tokens=recipe.sft.max_length_tokens,
        context_length=_row_length(recipe),
        corpus_tokens=_corpus_tokens(recipe),
        demonstrations=_rows(recipe, "demonstrations"),
        prompts=_rows(recipe, "prompts"),
        heldout_prompts=recipe.town.heldout_prompts if recipe.town else _rows(recipe, "prompts") // 5,
        comparisons=_judged_pairs(recipe),
        judged_responses=_judged_responses(recipe),
        heldout_share=recipe.comparisons.heldout_share,
        responses_per_prompt=2 if recipe.labeling is None else recipe.sampling.responses_per_prompt,
        snapshots=ppo.steps // ppo.snapshot_every_steps if ppo else 0,
    )


def _row_length(recipe: Recipe) -> int:
    """Tokens of a packed row; a checkpoint's context where it is available locally."""
    if recipe.pretrain.checkpoint is None or not Path(recipe.pretrain.checkpoint).is_dir():
        return recipe.pretrain.model.context_length
    config = read_config(Path(recipe.pretrain.checkpoint) / "config.json")
    return min(int((config.get("text_config") or config).get("max_position_embeddings", LONGEST_ROW)), LONGEST_ROW)


def _corpus_tokens(recipe: Recipe) -> int | None:
    sizes = [_source_bytes(recipe, source.path) for source in recipe.corpus.sources]
    known = [size for size in sizes if size is not None]
    return round(sum(known) / BYTES_PER_TOKEN) if len(known) == len(sizes) else None


def _source_bytes(recipe: Recipe, path: str) -> int | None:
    if path.startswith(TOWN_SCHEME):
        return recipe.town.documents * TOWN_DOCUMENT_BYTES if recipe.town else None
    return Path(path).stat().st_size if is_file(path) else None


def _rows(recipe: Recipe, section: str) -> int:
    """Estimated number of rows in the sources of a section."""
    total = 0
    for source in getattr(recipe, section).sources:
        if source.path.startswith(TOWN_SCHEME):
            total += getattr(recipe.town, section, 0)
        elif source.limit:
            total += source.limit
        elif is_file(source.path):
            total += Path(source.path).stat().st_size // ROW_BYTES
    return total


def _judged_pairs(recipe: Recipe) -> int:
    """Number of comparisons from labelling or files: all pairs of each ranking, times its annotators."""
    if recipe.labeling is None:
        return _rows(recipe, "comparisons")
    responses, labeling = recipe.sampling.responses_per_prompt, recipe.labeling
    ranked = labeling.rankings.prompts * labeling.rankings.overlap * responses * (responses - 1) // 2
    return ranked + labeling.pairwise.prompts * labeling.pairwise.overlap


def _judged_responses(recipe: Recipe) -> int:
    """Number of judged responses, each counted once."""
    if recipe.labeling is None:
        return 2 * _rows(recipe, "comparisons")
    ranked, paired = recipe.labeling.rankings.prompts, recipe.labeling.pairwise.prompts
    return ranked * recipe.sampling.responses_per_prompt + 2 * paired


def format_count(value: int | None) -> str:
    """A number with an SI suffix and three digits: 1234567 is 1.23 M."""
    if value is None:
        return "?"
    number = float(value)
    for unit in ("", " k", " M", " G", " T", " P"):
        if number < 999.5:
            return f"{number:.3g}{unit}"
        number /= 1000
    return f"{number:.3g} E"
