"""Every stage as a Prefect task: what it reads, what it is told, and the one function that does its work.

No science here. `run_stage` decides whether there is anything to do; the libraries a stage needs are imported by its
work, so that a run in which everything is cached does not load torch.
"""

from collections.abc import Callable, Mapping
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas import State
from prefect.states import Completed

from alignment import stages as jobs
from alignment.artifacts import Artifact
from flows.pipeline.accelerate import launch
from flows.recipe.dag import Step
from flows.tracking import links
from flows.tracking.runner import Work, as_state, run_stage
from flows.tracking.runs import NotYet

P = ParamSpec("P")


def stage(function: Callable[P, Artifact]) -> Callable[P, Artifact]:
    """A stage as a Prefect task. MLflow is the cache, so Prefect keeps nothing; a stage found done shows as Cached, and
    one that waits for people as Waiting.

    A task that returns a state hands that state, and not its data, to whoever called it; so the caller asks for it.
    """

    @task(name=function.__name__.replace("_", "-"), cache_policy=NO_CACHE, persist_result=False)
    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> Any:
        try:
            return as_state(function(*args, **kwargs))
        except NotYet as waiting:
            return Completed(name="Waiting", message=str(waiting), data=waiting)

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> Artifact:
        state: State[Artifact | NotYet] = run(*args, **kwargs, return_state=True)
        made = state.result()
        if isinstance(made, NotYet):
            raise made
        return made

    return call


def carry_out(step: Step, inputs: Mapping[str, Artifact | None], work: Work) -> Artifact:
    """Run a step's work on its inputs, unless it was done before."""
    given = {name: artifact for name, artifact in inputs.items() if artifact is not None}
    assert given.keys() == step.inputs.keys(), f"{step.stage} needs {sorted(step.inputs)}, got {sorted(given)}"
    return run_stage(
        step.stage,
        work,
        config=step.config,
        inputs=given,
        files=step.files,
        seed=step.seed,
        version=step.version,
        model=step.model,
        compute=step.compute.model_dump(),
    )


def train(step: Step, inputs: Mapping[str, Artifact | None]) -> Artifact:
    """A stage that trains: in this process, or in as many as the recipe's `compute` says."""
    given = {name: artifact for name, artifact in inputs.items() if artifact is not None and name in step.inputs}

    def work(out: Path, journal: Any) -> Mapping[str, float]:
        paths = {name: artifact.path for name, artifact in given.items()}
        job = jobs.Job(
            stage=step.stage, config=step.config, seed=step.seed, paths=paths, processes=step.compute.processes
        )
        return jobs.train(job, out, journal) if job.processes == 1 else launch(job, step.compute, out)

    return carry_out(step, given, work)


def path(artifact: Artifact | None) -> Path | None:
    """Where an artifact lies, if there is one."""
    return None if artifact is None else artifact.path


@stage
def build_town(step: Step) -> Artifact:
    """The embedded world of the seed."""

    def work(out: Path, _: Any) -> Mapping[str, float]:
        from alignment import town

        return town.build_town(step.config, step.seed, out)

    return carry_out(step, {}, work)


@stage
def prepare_corpus(step: Step, town: Artifact | None) -> Artifact:
    """Raw text to clean, deduplicated, split documents."""

    def work(out: Path, journal: Any) -> Mapping[str, float]:
        from alignment.data import corpus

        return corpus.prepare_corpus(step.config, out, journal, seed=step.seed, town=path(town))

    return carry_out(step, {"town": town}, work)


@stage
def train_tokenizer(step: Step, corpus: Artifact) -> Artifact:
    """A byte-level BPE with a chat template."""

    def work(out: Path, journal: Any) -> Mapping[str, float]:
        from alignment.models import tokenizer

        told = step.config
        return tokenizer.train_tokenizer(
            told["tokenizer"], out, journal, corpus=corpus.path, context_length=told["context_length"]
        )

    return carry_out(step, {"corpus": corpus}, work)


@stage
def pretrain(step: Step, corpus: Artifact, tokenizer: Artifact | None) -> Artifact:
    """A base model, from scratch or from a checkpoint."""
    return train(step, {"corpus": corpus, "tokenizer": tokenizer})


@stage
def collect_demonstrations(step: Step, town: Artifact | None) -> Artifact:
    """Human answers from files."""

    def work(out: Path, journal: Any) -> Mapping[str, float]:
        from alignment.data import demonstrations

        return demonstrations.collect_demonstrations(step.config, out, journal, town=path(town))

    return carry_out(step, {"town": town}, work)


@stage
def collect_prompts(step: Step, town: Artifact | None) -> Artifact:
    """Prompts for sampling, PPO and evaluation."""

    def work(out: Path, journal: Any) -> Mapping[str, float]:
        from alignment.data import prompts

        return prompts.collect_prompts(step.config, out, journal, seed=step.seed, town=path(town))

    return carry_out(step, {"town": town}, work)


@stage
def finetune(step: Step, base: Artifact, demonstrations: Artifact) -> Artifact:
    """Supervised fine-tuning on the demonstrations."""
    return train(step, {"base": base, "demonstrations": demonstrations})


@stage
def sample_responses(step: Step, model: Artifact, prompts: Artifact) -> Artifact:
    """K responses a prompt, to be judged blind."""

    def work(out: Path, journal: Any) -> Mapping[str, float]:
        from alignment.data import responses

        return responses.sample_responses(
            step.config, out, journal, seed=step.seed, model=model.path, prompts=prompts.path
        )

    return carry_out(step, {"model": model, "prompts": prompts}, work)


@stage
def collect_judgements(step: Step, responses: Artifact | None, town: Artifact | None) -> Artifact:
    """People, or the town's simulated crew, judge the responses in Label Studio."""

    def work(out: Path, journal: Any) -> Mapping[str, float]:
        from flows.annotation.collect import collect

        return collect(step.config, out, journal, responses=path(responses), town=path(town))

    judged = carry_out(step, {"responses": responses, "town": town}, work)
    if judged.cached:
        links.link_known_projects(judged.run_id)
    return judged


@stage
def build_comparisons(step: Step, labelled: Artifact | None, town: Artifact | None) -> Artifact:
    """Comparisons split by prompt and annotator."""
    source = {"labelled": labelled} if labelled is not None else {"town": town}

    def work(out: Path, journal: Any) -> Mapping[str, float]:
        from alignment.data import comparisons
        from flows.releases.dataset_card import write_card

        judged = None if labelled is None else labelled.file("comparisons.jsonl")
        figures = comparisons.build_comparisons(
            step.config, out, journal, seed=step.seed, labelled=judged, town=path(town)
        )
        write_card(out, out.name.removesuffix(".partial"), labelled=path(labelled), files=step.files)
        return figures

    return carry_out(step, source, work)


@stage
def train_reward_model(step: Step, sft: Artifact, comparisons: Artifact, demonstrations: Artifact) -> Artifact:
    """A reward model from the comparisons; `validation` is one from those that were held out."""
    return train(step, {"sft": sft, "comparisons": comparisons, "demonstrations": demonstrations})


@stage
def align(
    step: Step,
    sft: Artifact,
    comparisons: Artifact,
    reward: Artifact,
    validation: Artifact | None,
    prompts: Artifact,
    corpus: Artifact,
) -> Artifact:
    """The policy: SFT moved towards what people prefer, and not too far, by the method that the recipe names."""
    given = {
        "sft": sft,
        "comparisons": comparisons,
        "reward": reward,
        "validation": validation,
        "prompts": prompts,
        "corpus": corpus,
    }
    return train(step, given)


@stage
def evaluate(
    step: Step,
    base: Artifact,
    sft: Artifact,
    policy: Artifact,
    reward: Artifact,
    prompts: Artifact,
    corpus: Artifact,
    town: Artifact | None,
) -> Artifact:
    """Base, SFT and policy side by side."""
    inputs = {"base": base, "sft": sft, "policy": policy, "reward": reward, "prompts": prompts, "corpus": corpus}

    def work(out: Path, journal: Any) -> Mapping[str, float]:
        from alignment.evaluation import run as science
        from alignment.town import Judge

        judge = None if town is None else Judge.load(town.file("facts.json"))
        paths = {name: artifact.path for name, artifact in inputs.items()}
        return science.evaluate(step.config, out, journal, seed=step.seed, judge=judge, **paths)

    return carry_out(step, {**inputs, "town": town}, work)
