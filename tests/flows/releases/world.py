"""Releases without models, whose held-out responses have scores that a test chooses."""

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from alignment.artifacts import output_name
from alignment.config.gates import ChampionGate, ReleaseGate
from flows.releases.card import write_cards
from flows.releases.head_to_head import Release
from flows.releases.promote import promote_if_better
from flows.releases.report import log_release
from flows.releases.samples import excerpt, intervals, read_samples
from flows.tracking import registry, runs

GATE = ReleaseGate(min_win_rate=0.6)
PROMPTS = [f"p{number}" for number in range(20)]
NASTY = "<script>alert(1)</script> [x](javascript:alert(1)) | **b** https://evil.example"
HALF, GOOD, BETTER = 0.5, 0.6, 0.9  # gold scores


def stage_run(stage: str, key: str) -> str:
    """A finished run of a stage with this key; the same one for the same key."""
    tags = {runs.TAG_STAGE: stage, runs.TAG_KEY: key}
    if earlier := runs.search(tags):
        return str(earlier[0].info.run_id)
    return str(MlflowClient().create_run(runs.experiment_id(), tags=tags).info.run_id)


def policy(name: str, key: str) -> str:
    """The version of a model with this key; its files do not matter here."""
    if found := registry.find_version(name, key):
        return found
    with suppress(MlflowException):
        MlflowClient().create_registered_model(name)
    run_id, tags = stage_run("ppo", key), {runs.TAG_STAGE: "ppo", runs.TAG_KEY: key}
    return f"models:/{name}/{MlflowClient().create_model_version(name, f'file:///{key}', run_id, tags=tags).version}"


def evaluation(home: Path, key: str, scores: Mapping[str, float], gold: bool, reward: float) -> Path:
    """The output of a stage `evaluate` with one response of each model to each prompt."""
    out = home / "artifacts" / output_name("evaluate", key)
    out.mkdir(parents=True, exist_ok=True)
    rows = [
        {
            "model": model,
            "prompt_id": prompt,
            "kind": "fact" if number % 2 else "harmful",
            "prompt": f"Question {number}?\n{NASTY}",
            "response": f"{model} says {number} {NASTY}",
            "tokens": 5,
            "reward": reward + score,
            **dict.fromkeys(("helpful", "truthful", "harmless", "score"), score if gold else None),
        }
        for model in ("base", "sft", "policy")
        for number, (prompt, score) in enumerate(scores.items())
    ]
    (out / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return out


def manifest_of(recipe: str, seed: int, keys: Mapping[str, str], out: Path, gold: bool, win: float, tax: float) -> Any:
    """A manifest as `release_manifest` makes it, with these figures."""
    samples = read_samples(out)
    score = {"helpful": 0.5, "truthful": 0.5, "harmless": 0.5, "score": 0.5}
    return {
        "release": f"{recipe}-{seed}-{keys['ppo'][:8]}",
        "recipe": recipe,
        "seed": seed,
        "method": "ppo",
        "gold": dict.fromkeys(("base", "sft", "policy"), score) if gold else None,
        "reward": {"base": 0.0, "sft": 0.1, "policy": 0.2},
        "length_tokens": {"base": 9.0, "sft": 10.0, "policy": 11.5},
        "tax": {"base": 2.0, "sft": 2.0, "policy": tax},
        "win_rate_vs_sft": {"rate": win, "low": win - 0.1, "high": win + 0.1, "decided": 18, "by": "score"},
        "kl_to_sft": 1.25,
        "reward_model": {"accuracy_heldout_prompts": 0.7},
        "comparisons": 1234,
        "curve": [
            {"step": 0, "kl": 0.0, "reward": 0.1, "score": 0.4},
            {"step": 8, "kl": 1.0, "reward": 0.2, "score": 0.5},
        ],
        "intervals": intervals(samples),
        "samples": excerpt(samples, 5),
        "data": {"corpus": {"count": 4775, "sources": ["text.txt"], "licence": "CC0"}},
        "labels": {
            "by": "people",
            "annotators": 3,
            "annotations": 60,
            "guidelines": {"ranking": "a5d4105c"},
            "projects": {},
            "hours": 1.5,
        },
        "compute": {"device": "cpu", "precision": "float32"},
        "git_commit": "0123456789abcdef",
        "intended_use": "a test",
        "limits": "",
        "seconds": {"ppo": 90.0},
        "keys": dict(keys),
        "runs": {stage: stage_run(stage, key) for stage, key in keys.items()},
        "models": {"policy": policy(f"{recipe}-policy", keys["ppo"])},
    }


def finish(
    score: float = GOOD,
    *,
    version: int = 1,
    recipe: str = "tiny",
    seed: int = 0,
    prompts: Sequence[str] = PROMPTS,
    gold: bool = True,
    win: float = 0.8,
    tax: float = 2.0,
    reward: int = 1,
    gate: ReleaseGate = GATE,
) -> dict[str, Any]:
    """Finish a run whose policy is number `version` and scores so on each prompt; returns the release's manifest."""
    keys = {"corpus": f"c{seed}", "pretrain": f"p{seed}", "reward": f"r{reward}", "ppo": f"{version:08}s{seed}"}
    keys["evaluate"] = f"e{keys['ppo']}{recipe}"
    home = Path(os.environ["RLHF_HOME"])
    out = evaluation(home, keys["evaluate"], dict.fromkeys(prompts, score), gold, float(reward))
    client = MlflowClient()
    run_id = str(client.create_run(runs.experiment_id(), tags={runs.TAG_RECIPE: recipe}).info.run_id)
    client.log_param(run_id, "version", version)
    manifest = manifest_of(recipe, seed, keys, out, gold, win, tax) | {"mlflow_run_id": run_id}
    for stage, stage_run_id in manifest["runs"].items():
        client.set_tag(run_id, f"{runs.TAG_STAGE_RUN}{stage}", stage_run_id)
    registry.set_alias(manifest["models"]["policy"], "candidate")
    manifest["gate"] = promote_if_better(Release(manifest, lambda: out), gate, ChampionGate())
    log_release(run_id, manifest)
    write_cards(manifest)
    client.set_terminated(run_id)
    return manifest
