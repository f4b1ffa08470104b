"""Stage `prompts`: the prompts that responses are sampled for, split into training and held-out ones."""

from pathlib import Path

from alignment.config.stages import PromptsConfig
from alignment.data.readers import read_as, to_prompt
from alignment.data.rejected import write_rejected
from alignment.data.used_columns import SourceNotes, write_notes
from alignment.errors import DataError
from alignment.journal import Journal
from alignment.models.chat import ChatFormat
from alignment.models.encoding import Encoded, check_length, encode_file
from alignment.records import Prompt, Rejected, Split, stable_id, write_records


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
    write_rejected(rejected, len(prompts), config.max_rejected_share, out, "prompts")
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


def encode_prompts(
    prompts: Path, split: Split, chat: ChatFormat, context: float, max_new_tokens: int, option: str
) -> Encoded[Prompt, list[int]]:
    """Prompts of a split with their token ids; those that leave no room for a response are put aside.

    Raises DataError, which names `option`, if none is left.
    """

    def encode(prompt: Prompt) -> list[int]:
        tokens = chat.prompt(prompt.messages)
        check_length(len(tokens), context - max_new_tokens)
        return tokens

    encoded = encode_file(prompts / "prompts.jsonl", Prompt, encode, lambda prompt: prompt.split == split)
    if not encoded.rows:
        name = "held-out" if split == "heldout" else "training"
        raise DataError(
            f"no {name} prompt leaves room for {max_new_tokens} tokens in a context of {context}; lower `{option}`. "
            f"{encoded.first_reason}"
        )
    return encoded
