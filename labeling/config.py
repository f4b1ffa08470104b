"""The options of the labeling stage: annotators, tasks of each kind, quality checks, and the stopping rule."""

import re
from collections.abc import Mapping
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Kind = Literal["ranking", "pairwise", "demonstration"]
EMAIL = re.compile(r"[^@\s<>\"]+@[^@\s<>\"]+\.[^@\s<>\"]+")


class Options(BaseModel):
    """Frozen options that refuse unknown names. Forms show the key itself, as in recipes."""

    model_config = ConfigDict(frozen=True, extra="forbid", field_title_generator=lambda name, _: name)


class RankingTasks(Options):
    """Tasks in which all responses to a prompt are ranked."""

    prompts: int = Field(default=120, ge=0, description="prompts whose responses are ranked")
    overlap: int = Field(default=2, ge=1, le=9, description="annotators per task")


class PairwiseTasks(Options):
    """Tasks that show two responses side by side, with ratings by criterion."""

    prompts: int = Field(default=60, ge=0, description="prompts of which two responses are compared")
    overlap: int = Field(default=2, ge=1, le=9, description="annotators per task")


class WritingTasks(Options):
    """Tasks that ask for the ideal answer, with `draft` starting from one of the prompt's sampled responses."""

    prompts: int = Field(default=0, ge=0, description="prompts for which annotators write the answer")
    overlap: int = Field(default=1, ge=1, le=9, description="annotators per task")
    draft: bool = Field(default=False, description="start from one of the prompt's sampled responses")


class Choice(Options):
    """Which prompts are labeled, and how many.

    `given`: the first ones. `random`: drawn by `labeling.seed`. `disagreement`: those on which the reward models of an
    ensemble disagree most; `reward` is the output directory of a `reward` stage with `members` of 2 or more.
    `policies`: those that the policies behind two files of `labeling.responses` answer most differently. `hours` of
    annotators are a budget: more tasks than they pay for are not opened.
    """

    by: Literal["given", "random", "disagreement", "policies"] = Field(
        default="given", description="how prompts are chosen"
    )
    reward: str | None = Field(
        default=None, description="disagreement: output directory of a reward stage with several members"
    )
    hours: float | None = Field(default=None, gt=0.0, description="budget in annotator hours; null: unlimited")

    @model_validator(mode="after")
    def _models_to_ask(self) -> "Choice":
        if (self.by == "disagreement") != (self.reward is not None):
            raise ValueError("`by: disagreement` and `reward` (a reward stage's directory) go together: give both")
        return self


class CrewConfig(Options):
    """The simulated annotators.

    `agreement` is how often two of them should agree on a pair (InstructGPT's labelers: 0.73); the noise that gives it
    is worked out for the responses at hand, unless `temperature` sets it. `bias` scales the spread of personal taste
    (length, politeness, differing weights of the criteria); 0 makes everyone judge by the same measure.
    """

    annotators: int = Field(default=6, ge=2, le=50, description="simulated annotators")
    agreement: float = Field(default=0.73, gt=0.5, lt=1.0, description="rate at which two of them agree on a pair")
    temperature: float | None = Field(
        default=None, gt=0.0, description="noise of their judgements; null: fitted to `agreement`"
    )
    bias: float = Field(default=1.0, ge=0.0, description="spread of preferences between annotators; 0: none")
    threads: int = Field(default=3, ge=1, le=16, description="annotators that work at the same time")
    seed: int = Field(default=0, description="of preferences and errors")
    careless: int = Field(default=0, ge=0, description="judge at random in `careless_rate` of their tasks")
    careless_rate: float = Field(
        default=0.9, gt=0.0, le=1.0, description="share of tasks that the careless judge at random"
    )
    side_biased: int = Field(default=0, ge=0, description="mostly prefer the first response shown")
    spamming: int = Field(default=0, ge=0, description="submit tasks unchanged, within seconds")
    colluding: int = Field(default=0, ge=0, description="share one careless answer among themselves")

    @model_validator(mode="after")
    def _no_more_bad_than_there_are(self) -> "CrewConfig":
        bad = self.careless + self.side_biased + self.spamming + self.colluding
        if bad > self.annotators:
            raise ValueError(
                f"{bad} of the crew are to be careless, biased, spamming or colluding, and it has "
                f"{self.annotators}: raise annotators"
            )
        return self


class GoldTasks(Options):
    """Tasks whose answer is known, mixed in among the others. Their judgements are not used in training.

    `path` is a JSONL file of comparisons (`prompt`, `chosen`, `rejected`, as the comparisons stage writes them) for
    people; with a simulated crew the town knows the answers.
    """

    share: float = Field(default=0.0, ge=0.0, le=0.5, description="gold tasks per ordinary task")
    path: str | None = Field(default=None, description="people: a JSONL file of comparisons with known answers")


class Screening(Options):
    """Limits beyond which an annotator is a concern. With `apply` their judgements are excluded, reversibly.

    A share is held against its limit only as far as the data allow: by the end of its 95 % interval, or with a p-value
    below `significance`. `keep` and `exclude` are annotator ids: they override every figure.
    """

    apply: bool = Field(default=False, description="exclude judgements of annotators with concerns")
    minimum_judgements: int = Field(default=10, ge=1, description="annotators with fewer are not screened")
    minimum_agreement: float = Field(
        default=0.5, ge=0.0, le=1.0, description="agreement over chance, as a share of the median annotator's"
    )
    minimum_gold: float = Field(default=0.7, ge=0.0, le=1.0, description="accuracy on gold tasks")
    maximum_position: float = Field(default=0.15, ge=0.0, le=1.0, description="correlation with the order shown")
    maximum_untouched: float = Field(default=0.1, ge=0.0, le=1.0, description="share of rankings left as shown")
    maximum_contradictions: float = Field(
        default=0.5, ge=0.0, le=1.0, description="share of preferences against own ratings"
    )
    maximum_hasty: float = Field(
        default=0.3, ge=0.0, le=1.0, description="share done in under a quarter of the usual time"
    )
    maximum_pair_agreement: float = Field(default=0.95, ge=0.0, le=1.0, description="agreement with any one annotator")
    significance: float = Field(default=0.001, gt=0.0, lt=1.0, description="p-value below which a figure is a concern")
    keep: tuple[str, ...] = Field(default=(), description="annotator ids that are never excluded")
    exclude: tuple[str, ...] = Field(default=(), description="annotator ids that are always excluded")

    @model_validator(mode="after")
    def _one_or_the_other(self) -> "Screening":
        if both := sorted({*self.keep} & {*self.exclude}):
            raise ValueError(f"{', '.join(both)} is in `keep` and in `exclude`: take it out of one")
        return self


class QualityOptions(Options):
    """Gold tasks, screening, and adjudication of strong disagreement.

    Rankings are disputed from `dispute_ranking` on (share of pairs that two people order differently, on average),
    pairwise judgements from `dispute_steps` on (distance between two of the seven answers). With `adjudicate` the
    disputed tasks go to a second project, whose judgements replace the others.
    """

    gold: GoldTasks = GoldTasks()
    screening: Screening = Screening()
    dispute_ranking: float = Field(
        default=0.6, gt=0.0, le=1.0, description="share of pairs ordered differently from which a ranking is disputed"
    )
    dispute_steps: int = Field(
        default=4, ge=1, le=6, description="steps between two answers from which a pair is disputed"
    )
    adjudicate: bool = Field(default=False, description="send disputed tasks to a second, final project")


class LabelingConfig(Options):
    """How judgements are collected. `url: None` is the local stack's server.

    `responses` are files of response sets, or directories with a `responses.jsonl`, in the place of the recipe's stage
    `responses`. `people` are e-mail addresses that `rlhf label open` makes accounts for; `webhook` is the address at
    which `rlhf label listen` is told of changes. People are waited for until `minimum_share` of the judgements are
    there and, with `minimum_agreement`, until two people name the same winner of a pair in that share of double
    judgements; at most `deadline_hours` from when the collection was opened, restarts or not.
    """

    annotators: Literal["simulated", "people"] = Field(
        default="simulated", description="people, or simulated annotators of the town"
    )
    url: str | None = Field(
        default=None, description="address of Label Studio; null: LABEL_STUDIO_URL or the local stack's"
    )
    title: str = Field(
        default="rlhf", min_length=3, max_length=24, description="first word of the projects' names in Label Studio"
    )
    rankings: RankingTasks = RankingTasks()
    pairwise: PairwiseTasks = PairwiseTasks()
    demonstrations: WritingTasks = WritingTasks()
    responses: tuple[str, ...] = Field(
        default=(), description="files of response sets, in the place of the stage `responses`"
    )
    choose: Choice = Choice()
    people: tuple[str, ...] = Field(default=(), description="e-mail addresses of annotators to create accounts for")
    webhook: str | None = Field(default=None, description="address that Label Studio calls on changes")
    crew: CrewConfig = CrewConfig()
    quality: QualityOptions = QualityOptions()
    poll_seconds: float = Field(default=15.0, gt=0.0, description="seconds between polls of the server")
    deadline_hours: float = Field(
        default=72.0, gt=0.0, description="hours after which labeling ends with what there is"
    )
    minimum_share: float = Field(default=0.9, gt=0.0, le=1.0, description="share of judgements at which labeling ends")
    minimum_agreement: float | None = Field(
        default=None,
        gt=0.0,
        le=1.0,
        exclude_if=lambda value: value is None,  # unset, it changes no stage's key
        description="agreement required for that; null: none",
    )
    seed: int = Field(default=0, description="of the choice of prompts and the order on the screen")

    @model_validator(mode="after")
    def _something_to_do_and_enough_hands(self) -> "LabelingConfig":
        if self.judged + self.demonstrations.prompts == 0:
            raise ValueError(
                "rankings.prompts, pairwise.prompts and demonstrations.prompts are all 0: nothing would be asked"
            )
        if self.choose.by == "policies" and len(self.responses) != 2:
            raise ValueError(f"choose.by policies compares two files of `responses`; there are {len(self.responses)}")
        if strange := [address for address in self.people if not EMAIL.fullmatch(address)]:
            raise ValueError(f"people: {strange[0]!r} is no e-mail address: give one such as paula@example.org")
        if self.webhook is not None and not self.webhook.startswith(("http://", "https://")):
            raise ValueError(f"webhook {self.webhook!r} is no address: give one such as http://127.0.0.1:8099/")
        overlap = max(self.rankings.overlap, self.pairwise.overlap)
        if self.minimum_agreement is not None and overlap == 1:
            raise ValueError(
                "minimum_agreement needs two people for some tasks: raise rankings.overlap or "
                "pairwise.overlap, or take it out"
            )
        if self.annotators == "simulated" and self.crew.annotators < overlap:
            raise ValueError(f"an overlap of {overlap} needs as many crew.annotators, not {self.crew.annotators}")
        if self.annotators == "simulated" and self.quality.gold.path is not None:
            raise ValueError("quality.gold.path is for people: the town knows what to ask a simulated crew; remove it")
        if self.annotators == "simulated" and self.quality.adjudicate:
            raise ValueError("quality.adjudicate needs people: set labeling.annotators: people, or adjudicate: false")
        return self

    @property
    def judged(self) -> int:
        """Prompts whose responses are judged; 0 if only demonstrations are collected."""
        return self.rankings.prompts + self.pairwise.prompts

    @property
    def gold_tasks(self) -> dict[Kind, int]:
        """Gold tasks by kind."""
        share = self.quality.gold.share
        return {"ranking": round(share * self.rankings.prompts), "pairwise": round(share * self.pairwise.prompts)}

    @property
    def overlaps(self) -> dict[Kind, int]:
        """Annotators per task, by kind."""
        return {
            "ranking": self.rankings.overlap,
            "pairwise": self.pairwise.overlap,
            "demonstration": self.demonstrations.overlap,
        }

    @property
    def files(self) -> dict[str, str]:
        """Input files outside the recipe's stages, by the option that names them."""
        named = {"quality.gold.path": self.quality.gold.path, "choose.reward": self.choose.reward}
        named |= {f"responses.{number}": path for number, path in enumerate(self.responses)}
        return {option: path for option, path in named.items() if path is not None}

    @property
    def judging(self) -> "LabelingConfig":
        """The options that determine what is judged: without accounts, webhook and demonstrations."""
        return self.model_copy(update={"people": (), "webhook": None, "demonstrations": WritingTasks()})

    def with_prompts(self, counts: Mapping[Kind, int]) -> "LabelingConfig":
        """A copy with other numbers of prompts, by kind."""
        kinds: dict[str, Kind] = {"rankings": "ranking", "pairwise": "pairwise", "demonstrations": "demonstration"}
        changed = {
            name: getattr(self, name).model_copy(update={"prompts": counts[kind]})
            for name, kind in kinds.items()
            if kind in counts
        }
        return self.model_copy(update=changed)
