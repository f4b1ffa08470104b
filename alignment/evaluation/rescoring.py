"""Stage `rescore`: the policy's responses of one release, scored by the reward model of another.

Rewards of two reward models are on different scales. Where there is no gold judge, one reward model has to score the
responses of both policies.
"""

import json
from pathlib import Path

from alignment.errors import UnfitRowError
from alignment.journal import Journal
from alignment.models.architecture import longest_sequence
from alignment.models.chat import load_chat
from alignment.models.ensembles import Ensemble
from alignment.models.scalar import load_rewards, reward_scores
from alignment.records import Prompt, read_lines, read_records

SCORES = "scores.jsonl"


def rescore(out: Path, journal: Journal, *, evaluation: Path, prompts: Path, reward: Path) -> dict[str, float]:
    """Write `scores.jsonl`: the reward of each response in `evaluation` to a held-out prompt of `prompts`.

    A response that does not fit into the reward model's context, or that its template refuses, is left out and counted.
    """
    heldout = {row.id: row for row in read_records(prompts / "prompts.jsonl", Prompt)[0] if row.split == "heldout"}
    sampled = [row for _, row, _ in read_lines(evaluation / "samples.jsonl") if row is not None]
    rows = [row for row in sampled if row["model"] == "policy" and row["prompt_id"] in heldout]
    model, chat = load_rewards(reward), load_chat(reward / "model")
    context = longest_sequence(*(model.models if isinstance(model, Ensemble) else (model,)))
    turns, names, unfit = [], [], 0
    for row in rows:
        try:
            turn = chat.turn(heldout[row["prompt_id"]].messages, row["response"], ended=bool(row["ended"]))
        except UnfitRowError:
            unfit += 1
            continue
        unfit += len(turn.ids) > context
        if len(turn.ids) <= context:
            turns.append(turn)
            names.append(row["prompt_id"])
    rewards = reward_scores(model, [turn.ids for turn in turns], [len(turn.prompt) for turn in turns]).tolist()
    with (out / SCORES).open("w", encoding="utf-8") as file:
        lines = ({"prompt_id": name, "reward": value} for name, value in zip(names, rewards, strict=True))
        file.writelines(json.dumps(line) + "\n" for line in lines)
    counts = {"responses": float(len(turns)), "unfit": float(unfit)}
    journal.log(counts, step=0)
    return counts
