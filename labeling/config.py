"""The options of the labeling stage: annotators, tasks of each kind, quality checks, and the stopping rule."""

import re
from collections.abc import Mapping
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Kind = Literal["ranking", "pairwise", "demonstration"]
Annotators = Literal["simulated", "people"]
DEFAULT_TITLE = "rlhf"
LANGUAGES = ("en", "fr", "es", "ar", "zh")  # of the package's guidelines
EMAIL = re.compile(r"{0}+@{0}+\.{0}+".format(r"[!#-;=?A-~]"))  # ASCII: others can be invisible or look alike


class Options(BaseModel):
    """Frozen options; unknown names are errors. Forms show the key itself, as in recipes."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, field_title_generator=lambda name, _: name
    )


class RankingTasks(Options):
    """Tasks in which all responses to a prompt are ranked."""

    prompts: int = Field(default=120, ge=0, description="prompts whose responses are ranked")
    overlap: int = Field(default=2, ge=1, le=9, description="annotators per task")
    ratings: bool = Field(
        default=False,
        exclude_if=lambda value: not value,  # unset, it changes no stage's key
        description="ask for stars by criterion for each response as well",
    )


class PairwiseTasks(Options):
    """Tasks that show two responses side by side, with ratings by criterion."""

    prompts: int = Field(default=60, ge=0, description="prompts for which two responses are compared")
    overlap: int = Field(default=2, ge=1, le=9, description="annotators per task")


class WritingTasks(Options):
    """Tasks that ask for the ideal answer, with `draft` starting from one of the prompt's sampled responses."""

    prompts: int = Field(default=0, ge=0, description="prompts for which annotators write the answer")
    overlap: int = Field(default=1, ge=1, le=9, description="annotators per task")
    draft: bool = Field(default=False, description="start from one of the prompt's sampled responses")


class Choice(Options):
    """Which prompts are labeled, and how many.

    `given`: the first prompts of the input. `random`: sampled with `labeling.seed`. `disagreement`: the prompts on
    which the reward models of an ensemble disagree most; `reward` is the output directory of a `reward` stage with 2
    or more `members`. `policies`: the prompts that the policies behind two files of `labeling.responses` answer most
    differently. `hours` is a budget of annotator hours: no more tasks are opened than it covers.
    """

    by: Literal["given", "random", "disagreement", "policies"] = Field(
        default="given", description="how prompts are selected"
    )
    reward: str | None = Field(
        default=None, description="output directory of a reward stage with several members; only for by: disagreement"
    )
    hours: float | None = Field(default=None, gt=0.0, description="budget in annotator hours; null: unlimited")

    @model_validator(mode="after")
    def _check_reward_directory(self) -> "Choice":
        if (self.by == "disagreement") != (self.reward is not None):
            raise ValueError(
                "`by: disagreement` requires `reward` (a reward stage's directory), and `reward` requires it: set both"
            )
        return self


class CrewConfig(Options):
    """The simulated annotators.

    `agreement` is the target rate at which two of them agree on a pair (InstructGPT's labelers: 0.73); the noise that
    achieves it is fitted to the responses, unless `temperature` sets it. `bias` scales the spread of personal
    preferences (length, politeness, weights of the criteria); with 0 all annotators have the same preferences.
    """

    annotators: int = Field(default=6, ge=2, le=50, description="simulated annotators")
    agreement: float = Field(
        default=0.73, gt=0.5, lt=1.0, description="target rate at which two annotators agree on a pair"
    )
    temperature: float | None = Field(
        default=None, gt=0.0, description="noise of the judgements; null: fitted to `agreement`"
    )
    bias: float = Field(default=1.0, ge=0.0, description="spread of preferences between annotators; 0: none")
    threads: int = Field(default=3, ge=1, le=16, description="annotators that work concurrently")
    seed: int = Field(default=0, description="random seed of preferences and noise")
    careless: int = Field(
        default=0, ge=0, description="annotators who judge at random in `careless_rate` of their tasks"
    )
    careless_rate: float = Field(
        default=0.9, gt=0.0, le=1.0, description="share of tasks that careless and colluding annotators judge at random"
    )
    side_biased: int = Field(default=0, ge=0, description="annotators who mostly prefer the first response shown")
    spamming: int = Field(default=0, ge=0, description="annotators who submit tasks unchanged, within seconds")
    colluding: int = Field(default=0, ge=0, description="annotators who all submit one shared, mostly random, answer")

    @model_validator(mode="after")
    def _check_habits_fit_crew(self) -> "CrewConfig":
        bad = self.careless + self.side_biased + self.spamming + self.colluding
        if bad > self.annotators:
            raise ValueError(
                f"careless + side_biased + spamming + colluding is {bad}, but the crew has only "
                f"{self.annotators} annotators: raise annotators"
            )
        return self


class GoldTasks(Options):
    """Tasks with a known answer, mixed in with the others. Their judgements are not used in training.

    `path` is a JSONL file of comparisons (`prompt`, `chosen`, `rejected`, as the comparisons stage writes them) for
    people; with simulated annotators the town provides the answers.
    """

    share: float = Field(default=0.0, ge=0.0, le=0.5, description="gold tasks per ordinary task")
    path: str | None = Field(
        default=None, description="JSONL file of comparisons with known answers; only for annotators: people"
    )


class Screening(Options):
    """Limits beyond which a figure of an annotator raises a concern. `apply` excludes their judgements, reversibly.

    A share beyond its limit is a concern only if it is significant: the whole 95 % interval is beyond the limit, or
    the p-value is below `significance`. `keep` and `exclude` are annotator ids; they override all figures.
    """

    apply: bool = Field(default=False, description="exclude judgements of annotators with concerns")
    minimum_judgements: int = Field(default=10, ge=1, description="annotators with fewer are not screened")
    minimum_agreement: float = Field(
        default=0.5, ge=0.0, le=1.0, description="least agreement above chance, as a share of the median annotator's"
    )
    minimum_gold: float = Field(default=0.7, ge=0.0, le=1.0, description="least accuracy on gold tasks")
    maximum_position: float = Field(
        default=0.15, ge=0.0, le=1.0, description="greatest correlation with the order shown"
    )
    maximum_untouched: float = Field(
        default=0.1, ge=0.0, le=1.0, description="greatest share of rankings left as shown"
    )
    maximum_contradictions: float = Field(
        default=0.5,
        ge=0.0,
        le=1.0,
        description="greatest share of preferences that contradict the annotator's own ratings",
    )
    maximum_hasty: float = Field(
        default=0.3, ge=0.0, le=1.0, description="greatest share of tasks done in under a quarter of the usual time"
    )
    maximum_pair_agreement: float = Field(
        default=0.95, ge=0.0, le=1.0, description="greatest agreement with any one annotator"
    )
    significance: float = Field(default=0.001, gt=0.0, lt=1.0, description="p-value below which a habit is a concern")
    keep: tuple[str, ...] = Field(default=(), description="annotator ids that are never excluded")
    exclude: tuple[str, ...] = Field(default=(), description="annotator ids that are always excluded")

    @model_validator(mode="after")
    def _check_keep_and_exclude_disjoint(self) -> "Screening":
        if both := sorted({*self.keep} & {*self.exclude}):
            raise ValueError(f"{', '.join(both)}: in both `keep` and `exclude`; remove it from one")
        return self


class QualityOptions(Options):
    """Gold tasks, screening, and adjudication of strong disagreement.

    A ranking is disputed if on average two annotators order at least `dispute_ranking` of its pairs differently, a pair
    if two annotators' answers are at least `dispute_steps` of the seven-point scale apart. With `adjudicate` disputed
    tasks go to a second project, whose judgements replace the others.
    """

    gold: GoldTasks = GoldTasks()
    screening: Screening = Screening()
    dispute_ranking: float = Field(
        default=0.6, gt=0.0, le=1.0, description="a ranking is disputed from this share of pairs ordered differently"
    )
    dispute_steps: int = Field(
        default=4, ge=1, le=6, description="a pair is disputed from this distance between two answers"
    )
    adjudicate: bool = Field(
        default=False, description="send disputed tasks to a second project for a senior annotator"
    )


class LabelingConfig(Options):
    """How judgements are collected. `url: null` is the local stack's server.

    `responses` are files of response sets, or directories with a `responses.jsonl`; they replace the output of the
    recipe's stage `responses`. `people` are e-mail addresses for which `rlhf label open` creates accounts; `webhook` is
    the address of `rlhf label listen`. Collection from people ends when `minimum_share` of the judgements are done and,
    with `minimum_agreement`, two annotators name the same winner in at least that share of double judgements; at the
    latest `deadline_hours` after the collection was opened, including restarts.
    """

    annotators: Annotators = Field(
        default="simulated", description="people, or annotators simulated from the town's facts"
    )
    url: str | None = Field(
        default=None, description="URL of Label Studio; null: LABEL_STUDIO_URL, else the local stack's"
    )
    title: str = Field(
        default=DEFAULT_TITLE,
        min_length=3,
        max_length=24,
        description="first word of the collections' names in Label Studio; unless set, the recipe's name",
    )
    rankings: RankingTasks = RankingTasks()
    pairwise: PairwiseTasks = PairwiseTasks()
    demonstrations: WritingTasks = WritingTasks()
    responses: tuple[str, ...] = Field(
        default=(), description="files of response sets, instead of the stage `responses`"
    )
    guidelines: str = Field(
        default="en",
        min_length=1,
        exclude_if=lambda value: value == "en",  # the default changes no stage's key
        description="what annotators are told and asked: a language (en, fr, es, ar, zh), or a directory",
    )
    choose: Choice = Choice()
    people: tuple[str, ...] = Field(default=(), description="e-mail addresses of annotators to create accounts for")
    webhook: str | None = Field(default=None, description="URL that Label Studio calls on changes")
    crew: CrewConfig = CrewConfig()
    quality: QualityOptions = QualityOptions()
    poll_seconds: float = Field(default=15.0, gt=0.0, description="seconds between polls of the server")
    deadline_hours: float = Field(
        default=72.0, gt=0.0, description="hours after which labeling ends with the judgements made so far"
    )
    minimum_share: float = Field(
        default=0.9, gt=0.0, le=1.0, description="labeling ends when this share of judgements is done"
    )
    minimum_agreement: float | None = Field(
        default=None,
        gt=0.0,
        le=1.0,
        exclude_if=lambda value: value is None,  # unset, it changes no stage's key
        description="agreement also required before labeling ends; null: none",
    )
    seed: int = Field(default=0, description="random seed of prompt selection and of the order of responses")

    @model_validator(mode="after")
    def _check_tasks_and_annotators(self) -> "LabelingConfig":
        if self.judged + self.demonstrations.prompts == 0:
            raise ValueError(
                "rankings.prompts, pairwise.prompts and demonstrations.prompts are all 0: set at least one"
            )
        if self.choose.by == "policies" and len(self.responses) != 2:
            raise ValueError(f"choose.by: policies compares two files in `responses`; got {len(self.responses)}")
        if invalid := [address for address in self.people if not EMAIL.fullmatch(address)]:
            raise ValueError(f"people: {invalid[0]!r} is not an e-mail address in ASCII such as paula@example.org")
        if self.webhook is not None and not self.webhook.startswith(("http://", "https://")):
            raise ValueError(f"webhook {self.webhook!r} is not a URL such as http://127.0.0.1:8099/")
        overlap = max(self.rankings.overlap, self.pairwise.overlap)
        if self.minimum_agreement is not None and overlap == 1:
            raise ValueError(
                "minimum_agreement needs an overlap of at least 2: raise rankings.overlap or pairwise.overlap, "
                "or remove minimum_agreement"
            )
        if self.annotators == "simulated" and self.crew.annotators < overlap:
            raise ValueError(
                f"an overlap of {overlap} needs at least as many crew.annotators; got {self.crew.annotators}"
            )
        if self.annotators == "simulated" and self.quality.gold.path is not None:
            raise ValueError(
                "quality.gold.path needs annotators: people; simulated annotators get the town's answers; remove it"
            )
        if self.annotators == "simulated" and self.quality.adjudicate:
            raise ValueError(
                "quality.adjudicate needs people: set labeling.annotators: people, or quality.adjudicate: false"
            )
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
        paths = {"quality.gold.path": self.quality.gold.path, "choose.reward": self.choose.reward}
        paths |= {f"responses.{number}": path for number, path in enumerate(self.responses)}
        paths["guidelines"] = None if self.guidelines in LANGUAGES else self.guidelines
        return {option: path for option, path in paths.items() if path is not None}

    @property
    def judging(self) -> "LabelingConfig":
        """The options that determine what is judged: without accounts, webhook and demonstrations."""
        return self.model_copy(update={"people": (), "webhook": None, "demonstrations": WritingTasks()})

    def with_prompts(self, counts: Mapping[Kind, int]) -> "LabelingConfig":
        """A copy with the given numbers of prompts, by kind."""
        kinds: dict[str, Kind] = {"rankings": "ranking", "pairwise": "pairwise", "demonstrations": "demonstration"}
        sections = {
            name: getattr(self, name).model_copy(update={"prompts": counts[kind]})
            for name, kind in kinds.items()
            if kind in counts
        }
        return self.model_copy(update=sections)
