"""PPO-RLHF: trains a fine-tuned policy to maximize a reward under a KL penalty to a reference.

Each step: (1) sample responses, (2) score them, compare them with the reference and estimate advantages, (3) update
policy and value model, (4) adapt the KL coefficient, (5) log, (6) snapshot and checkpoint. All randomness is drawn
from (seed, purpose, step), separately for each episode. A killed run therefore resumes from its last checkpoint and
yields bit for bit the same policy on the same type of processor, with the same libraries and the same number of threads
and processes; with another number of either it yields the same policy up to rounding.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from alignment.distributed import collectives as processes
from alignment.distributed import sharding
from alignment.errors import TrainingError
from alignment.journal import Journal
from alignment.models.chat import eos_token_ids
from alignment.models.ensembles import Ensemble
from alignment.ppo.advantages import explained_variance
from alignment.ppo.checkpoint import changes, fingerprint, last_checkpoint, read_checkpoint, restore, save_checkpoint
from alignment.ppo.config import PPOConfig
from alignment.ppo.episodes import Rollout, Scored
from alignment.ppo.importance import mismatch
from alignment.ppo.kl import adapted_kl_coef
from alignment.ppo.learner import Learner, set_learning_rates
from alignment.ppo.models import Models, lay_out
from alignment.ppo.prompts import check_inputs, check_ptx, cycled_rows, seeded, tokenized_prompts
from alignment.ppo.rollout import recomputes_logprobs, rollout_of, sample_episodes, score_episodes
from alignment.ppo.shares import whole
from alignment.ppo.snapshots import Snapshot, copy_snapshot, last_within, publish, snapshot_path
from alignment.ppo.update import update
from alignment.progress import progress
from alignment.rewards.components import Component, ModelReward, Reward, named_models, reward_components, with_columns
from alignment.rollout.build import open_engine
from alignment.rollout.engine import Engine


@dataclass(frozen=True)
class PPOResult:
    """The directory of the policy and the outcome of the run. `policy_step` is the step of the policy's weights."""

    model_dir: Path
    steps: int
    policy_step: int
    stopped_early: bool
    snapshots: list[Snapshot]
    metrics: dict[str, float]


@dataclass
class _Run:
    """The fixed parts of a run, and the state that it carries from step to step."""

    config: PPOConfig
    learner: Learner
    reference: PreTrainedModel
    components: list[Component]
    tokenizer: PreTrainedTokenizerBase
    prompts: list[list[int]]
    ptx_sequences: Sequence[Sequence[int]] | None
    eos_token_ids: frozenset[int]
    out: Path
    identity: dict[str, str]
    kl_coef: float
    step: int = 0
    steps_above_limit: int = 0
    snapshot_kl: dict[int, float | None] = field(default_factory=dict)

    @property
    def stopped_early(self) -> bool:
        return self.config.early_stop_kl is not None and self.steps_above_limit >= self.config.early_stop_patience


def train_ppo(
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]] | Dataset,
    reward: Reward,
    config: PPOConfig,
    *,
    value_model: PreTrainedModel | None = None,
    reference: PreTrainedModel | None = None,
    ptx_sequences: Sequence[Sequence[int]] | None = None,
    out: str | Path,
    journal: Journal | None = None,
) -> PPOResult:
    """Train a copy of `policy`; write `out/model`, `out/snapshots/step-*` and `out/checkpoint`.

    `prompts` are token ids, or a dataset with a column "prompt" (text or messages). `reward` is a model, a function of
    (prompts, responses) or in TRL's signature, an `Ensemble`, or a list of `RuleReward` and `ModelReward`. Without
    `value_model` it starts as a copy of the first reward model (of the policy's trunk if there is none); without
    `reference`, `policy` is the reference. `config.layout` sets which of them share weights. The arguments' weights are
    not changed. If `out` holds an unfinished run, it resumes from its checkpoint.

    In a script that `accelerate launch` starts several times, every process passes the same arguments with models on
    its own device, and gets the same result. `batch_size` counts the episodes of all processes; a reward function gets
    the responses of its own process. The main process writes to `out`, from which all resume; a resumed run may have
    another number of processes.
    """
    processes.connect(config.batch_size, policy.device)
    out = Path(out)
    run = _prepare(policy, tokenizer, prompts, reward, config, value_model, reference, ptx_sequences, out)
    journal = journal or Journal(out)
    _resume(run, journal)
    if run.step >= config.steps or run.stopped_early:
        return _finish(run, _last_metrics(journal, run.step))
    with open_engine(config.rollout, out / "rollout", policy, tokenizer) as engine:
        metrics = _train(run, engine, journal)
    return _finish(run, metrics)


def _train(run: _Run, engine: Engine, journal: Journal) -> dict[str, float]:
    """All steps that are left; returns the metrics of the last one."""
    config, metrics = run.config, dict[str, float]()
    with progress("ppo", config.steps, "steps") as shown:
        shown.skip(run.step)
        while run.step < config.steps and not run.stopped_early:
            with _errors_with_last_checkpoint(run):
                metrics = _one_step(run, engine)
            run.step += 1
            processes.on_main(journal.log, metrics, run.step)
            last = run.step == config.steps or run.stopped_early
            if not run.stopped_early and (run.step % config.snapshot_every_steps == 0 or last):
                _snapshot(run)
            if run.step % config.checkpoint_every_steps == 0 or last:
                _checkpoint(run)
            shown.describe(f"reward {metrics['reward']:.3g}, KL {metrics['kl']:.3g}")
            shown.add(1)
    return metrics


def _prepare(
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]] | Dataset,
    reward: Reward,
    config: PPOConfig,
    value_model: PreTrainedModel | None,
    reference: PreTrainedModel | None,
    ptx_sequences: Sequence[Sequence[int]] | None,
    out: Path,
) -> _Run:
    """Check the inputs and copy the models to train."""
    components = reward_components(reward, tokenizer)
    tokens = tokenized_prompts(prompts, tokenizer)
    components = with_columns(components, prompts if isinstance(prompts, Dataset) else [], tokens, tokenizer)
    check_inputs(policy, tokenizer, tokens, config.max_new_tokens)
    check_ptx(policy, ptx_sequences, config.ptx_coef)
    models = lay_out(config, policy, value_model, reference, components)
    identity = _identity(config, tokens, ptx_sequences, policy, models)
    return _Run(
        config=config,
        learner=Learner.of(models.policy, models.value_model, config),
        reference=models.reference,
        components=models.components,
        tokenizer=tokenizer,
        prompts=tokens,
        ptx_sequences=ptx_sequences,
        eos_token_ids=eos_token_ids(tokenizer, policy.generation_config),
        out=out,
        identity=identity,
        kl_coef=config.kl_coef,
    )


def _one_step(run: _Run, engine: Engine) -> dict[str, float]:
    """Steps (1) to (4) of the loop; returns the metrics."""
    config, learner = run.config, run.learner
    seconds: dict[str, float] = {}
    rows = cycled_rows(len(run.prompts), config.batch_size, run.step, config.seed, "prompts")
    if engine.has_own_weights:
        with (
            _timed("weights", seconds),
            sharding.whole_models(learner.shards, learner.policy) as (policy,),
        ):
            processes.on_main(engine.update_weights, run.step, policy)
    scored = whole(lambda: _scored_share(run, engine, rows, seconds), learner.policy.device)
    rollout = rollout_of(scored, run.components, config, run.kl_coef)
    metrics = processes.from_main(_rollout_metrics(rollout, run))
    _track_kl(run, metrics["kl"])
    if not run.stopped_early:
        rates = set_learning_rates(learner, config, run.step)
        metrics |= {"policy_learning_rate": rates[0], "value_learning_rate": rates[1]}
        with _timed("update", seconds):
            metrics |= update(learner, rollout, config, run.step, run.ptx_sequences)
        if run.step >= config.value_warmup_steps:
            run.kl_coef = adapted_kl_coef(run.kl_coef, metrics["kl"], config.kl_target, config.kl_gain)
    total = sum(seconds.values())
    metrics |= {f"seconds_{name}": value for name, value in seconds.items()}
    metrics["episodes_per_second"] = len(rows) / total
    metrics["tokens_per_second"] = sum(map(len, rollout.episodes.sequences)) / total
    return metrics


def _scored_share(run: _Run, engine: Engine, rows: Sequence[int], seconds: dict[str, float]) -> Scored:
    """Steps (1) and (2) for this process's share of the rows, each row with its own random numbers."""
    config, learner = run.config, run.learner
    uniforms = torch.rand(
        (len(rows), config.max_new_tokens), generator=seeded(config.seed, "sampling", run.step), dtype=torch.float64
    )
    indices = processes.share_of(range(len(rows)))
    prompts = [run.prompts[rows[index]] for index in indices]
    with _timed("sampling", seconds), sharding.whole_models(learner.shards, learner.policy) as (policy,):
        episodes = sample_episodes(policy, prompts, config, run.eos_token_ids, uniforms[indices], engine)
    read = [learner.value_model, *([learner.policy] if recomputes_logprobs(learner.policy, config) else [])]
    with _timed("scoring", seconds), sharding.whole_models(learner.shards, *read) as (value_model, *policies):
        models = (run.reference, policies[0] if policies else learner.policy, value_model)
        return score_episodes(episodes, run.components, *models, run.tokenizer, config)


def _rollout_metrics(rollout: Rollout, run: _Run) -> dict[str, float]:
    episodes, options = rollout.episodes, run.config.rollout
    kl = float(rollout.kl.mean())
    sampled = (episodes.logprobs, episodes.sampler_logprobs, episodes.response_mask, options.truncation)
    return {
        "reward": float(rollout.reward.mean()),
        "reward_std": float(rollout.reward.std(correction=0)),
        **{f"reward/{name}": float(scores.mean()) for name, scores in rollout.components.items()},
        "score": float(rollout.score.mean()),
        "objective": float(rollout.score.mean()) - run.kl_coef * kl,
        "kl": kl,
        "kl_coef": run.kl_coef,
        "length": float(episodes.lengths.double().mean()),
        "missing_eos": 1.0 - float(episodes.ended.double().mean()),
        "explained_variance": explained_variance(rollout.values, rollout.returns, episodes.response_mask),
        "padding_share": rollout.padding_share,
        **({} if options.engine == "native" else mismatch(*sampled)),
    }


def _track_kl(run: _Run, kl: float) -> None:
    """Record the KL of the snapshot that this rollout was sampled from, and count steps above the limit."""
    if run.step in run.snapshot_kl:
        run.snapshot_kl[run.step] = kl
    limit = run.config.early_stop_kl
    run.steps_above_limit = run.steps_above_limit + 1 if limit is not None and kl > limit else 0


@contextmanager
def _timed(name: str, seconds: dict[str, float]) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - start


@contextmanager
def _errors_with_last_checkpoint(run: _Run) -> Iterator[None]:
    try:
        yield
    except TrainingError as error:
        last = last_checkpoint(run.out / "checkpoint")
        raise TrainingError(f"step {run.step + 1}: {error}. Last good checkpoint: {last or 'none yet'}") from error


def _identity(
    config: PPOConfig,
    prompts: Sequence[Sequence[int]],
    ptx: Sequence[Sequence[int]] | None,
    policy: PreTrainedModel,
    laid_out: Models,
) -> dict[str, str]:
    components = laid_out.components
    models = {"policy": policy, "reference": laid_out.reference, "value_model": laid_out.value_model}
    rewards = {f"reward {name}": model for name, model in named_models(components)}
    rules = {f"reward {c.name} weight": str(c.weight) for c in components}
    ensembles = {c.name: c.model for c in components if isinstance(c, ModelReward) and isinstance(c.model, Ensemble)}
    rules |= {f"reward {name} combine": f"{model.combine} {model.coef}" for name, model in ensembles.items()}
    return fingerprint(config, prompts, {**models, **rewards}, ptx) | rules


def _resume(run: _Run, journal: Journal) -> None:
    """Resume from the last checkpoint in `out`, or start with a snapshot of step 0, the fallback of an early stop."""
    processes.check_same(run.identity, changes)
    state = read_checkpoint(run.out / "checkpoint", run.identity)
    step = 0 if state is None else state["step"]
    processes.check_same(step, lambda a, b: f"the checkpoint in {run.out} is of step {a} there and of step {b} here")
    if state is None:
        processes.on_main(journal.rewind, 0)
        _snapshot(run)
        return
    restore(state, run.learner)
    extra: dict[str, Any] = state["extra"]
    run.step, run.kl_coef = step, extra["kl_coef"]
    run.steps_above_limit, run.snapshot_kl = extra["steps_above_limit"], dict(extra["snapshot_kl"])
    processes.on_main(journal.rewind, run.step)


def _last_metrics(journal: Journal, step: int) -> dict[str, float]:
    """The metrics logged for `step`: a finished run that is started again returns the same metrics."""
    return next((line["values"] for line in reversed(journal.read()) if line["step"] == step), {})


def _checkpoint(run: _Run) -> None:
    extra = {
        "fingerprint": run.identity,
        "kl_coef": run.kl_coef,
        "steps_above_limit": run.steps_above_limit,
        "snapshot_kl": run.snapshot_kl,
    }
    save_checkpoint(run.out / "checkpoint", run.step, run.learner, extra)


def _snapshot(run: _Run) -> None:
    publish(run.learner, run.tokenizer, snapshot_path(run.out, run.step))
    run.snapshot_kl[run.step] = None


def _finish(run: _Run, metrics: dict[str, float]) -> PPOResult:
    """Publish the final policy, or after an early stop the last snapshot whose KL was within the limit."""
    policy_step = run.step
    model_dir = run.out / "model"
    if run.stopped_early:
        assert run.config.early_stop_kl is not None
        policy_step = last_within(run.snapshot_kl, run.config.early_stop_kl)
        processes.on_main(copy_snapshot, run.out, policy_step, model_dir)
    else:
        publish(run.learner, run.tokenizer, model_dir)
    snapshots = [Snapshot(step, snapshot_path(run.out, step), kl) for step, kl in sorted(run.snapshot_kl.items())]
    return PPOResult(model_dir, run.step, policy_step, run.stopped_early, snapshots, metrics)
