"""Stage `prompts`: the prompts that responses are sampled for, split into training and held-out ones."""

from pathlib import Path

from transformers import PreTrainedTokenizerBase

from alignment.config.stages import PromptsConfig
from alignment.data.readers import read_as, to_prompt
from alignment.data.rejected import write_rejected
from alignment.data.used_columns import SourceNotes, write_notes
from alignment.errors import DataError
from alignment.journal import Journal
from alignment.models.tokenizer import prompt_tokens
from alignment.records import Prompt, Rejected, Split, read_records, stable_id, write_records


def collect_prompts(
    config: PromptsConfig, out: Path, journal: Journal, *, seed: int, town: Path | None = None
) -> dict[str, float]:
    """Read all sources into `prompts.jsonl`, without duplicates; prompts without a split are split by a hash."""
    prompts: dict[str, Prompt] = {}
    rejected: list[Rejected] = []
    notes = [(source.path, SourceNotes("prompts")) for source in config.sources]
    for source, (_, note) in zip(config.sources, notes, strict=True):
        good, bad = read_as(source, to_prompt, town, note)
        rejected += bad
        for prompt in good:
            if source.format != "records":
                prompt = prompt.model_copy(update={"split": hashed_split(prompt.id, config.heldout_share, seed)})
            prompts.setdefault(prompt.id, prompt)
    write_notes(journal, notes)
    write_rejected(rejected, len(prompts), config.max_rejected_share, out)
    heldout = sum(prompt.split == "heldout" for prompt in prompts.values())
    if heldout in (0, len(prompts)):
        raise DataError(
            f"{heldout} of {len(prompts)} prompts are held out, but evaluation and training both need some: "
            "give more prompts, or set `prompts.heldout_share`"
        )
    write_records(out / "prompts.jsonl", prompts.values())
    counts = {
        "prompts_train": float(len(prompts) - heldout),
        "prompts_heldout": float(heldout),
        "rejected": float(len(rejected)),
    }
    journal.log(counts, step=0)
    return counts


def hashed_split(identity: str, heldout_share: float, seed: int) -> Split:
    """`heldout` for a share of all ids; a function of the id alone, regardless of other data."""
    draw = int(stable_id("s", seed, identity)[2:], 16) / 16**12
    return "heldout" if draw < heldout_share else "train"


def training_prompts(
    prompts: Path, tokenizer: PreTrainedTokenizerBase, context: int, max_new_tokens: int, option: str
) -> tuple[list[tuple[Prompt, list[int]]], int]:
    """Prompts of the training split with their token ids, and the number of those that leave no room for a response.

    Raises DataError, which names `option`, if none leaves room.
    """
    rows, _ = read_records(prompts / "prompts.jsonl", Prompt)
    encoded = [(row, prompt_tokens(tokenizer, row.messages)) for row in rows if row.split == "train"]
    fitting = [(row, tokens) for row, tokens in encoded if len(tokens) + max_new_tokens <= context]
    if not fitting:
        raise DataError(
            f"no prompt leaves room for {max_new_tokens} tokens in a context of {context}; lower `{option}`"
        )
    return fitting, len(encoded) - len(fitting)
