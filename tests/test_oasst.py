"""The recipe `oasst`, reduced: external rankings train a reward model; skipped without the data."""

import json
from pathlib import Path

import pytest

from alignment.artifacts import Artifact
from flows.pipeline.flow import run_stage_alone
from flows.recipe.schema import check_files, load_recipe
from tests.alignment.tiny_world import write_lines
from tests.conftest import SHARED_DATA

pytestmark = pytest.mark.slow

FILES = ("oasst-en100", "hh-rlhf-harmless-test")
SMALL = {
    "tokenizer.vocab_size": 600,
    "corpus.near_duplicate_similarity": 1,
    "pretrain.epochs": 0.1,
    "pretrain.model": "{hidden_size: 16, layers: 1, heads: 2, intermediate_size: 32, context_length: 256}",
    "sft.epochs": 0.2,
    "sft.max_length_tokens": 256,
    "reward.epochs": 0.3,
    "reward.max_length_tokens": 256,
    "ppo.max_new_tokens": 16,
}


@pytest.mark.server
@pytest.mark.skipif(not all((SHARED_DATA / name).is_dir() for name in FILES), reason=f"no data in {SHARED_DATA}")
def test_ranked_trees_train_a_reward_model(workplace: Path, tmp_path: Path) -> None:
    text = (SHARED_DATA / "oasst-en100" / "en_100_tree.jsonl").read_text(encoding="utf-8")
    few = tmp_path / "few.jsonl"
    write_lines(few, [{"text": line[:400]} for line in text.splitlines()[:60]])
    small = [f"{name}={value}" for name, value in SMALL.items()]
    corpus = [f"corpus.sources.0.path={few}", "corpus.sources.0.text_field=text"]
    recipe = load_recipe("oasst", [*small, *corpus, f"data_root={SHARED_DATA}"])
    check_files(recipe)
    reward: Artifact = run_stage_alone(recipe, "reward")
    assert 0 <= reward.result()["accuracy_heldout_prompts"] <= 1
    (place,) = workplace.glob("artifacts/comparisons-*")
    card = json.loads((place / "card.json").read_text())
    assert (card["comparisons"], card["ties"], card["prompts"]) == (754, 0, 212)
    assert card["quarantined"] == {"a reply without a rank among several": 6}
    assert card["sources"].keys() == {"en_100_tree.jsonl"} and not card["annotators"]
    rejected = [json.loads(line) for line in (place / "rejected.jsonl").read_text().splitlines()]
    assert all(row["file"].endswith("en_100_tree.jsonl") and row["line"] for row in rejected)
