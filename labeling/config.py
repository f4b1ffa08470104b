"""The options of the labeling stage: who judges, how many prompts in which way, and when that is enough."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Kind = Literal["ranking", "pairwise", "demonstration"]


class Options(BaseModel):
    """Frozen options with no room for misspelt names."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class RankingTasks(Options):
    """Tasks that show all responses to a prompt, to be put in order."""

    prompts: int = Field(default=120, ge=0)
    overlap: int = Field(default=2, ge=1, le=9)


class PairwiseTasks(Options):
    """Tasks that show two responses side by side, with ratings by criterion."""

    prompts: int = Field(default=60, ge=0)
    overlap: int = Field(default=2, ge=1, le=9)


class CrewConfig(Options):
    """The simulated annotators.

    `agreement` is how often two of them should agree on a pair (InstructGPT's labelers: 0.73); the noise that gives it
    is worked out for the responses at hand, unless `temperature` sets it. `bias` scales the spread of personal taste
    (length, politeness, differing weights of the criteria); 0 makes everyone judge by the same measure.
    """

    annotators: int = Field(default=6, ge=2, le=50)
    agreement: float = Field(default=0.73, gt=0.5, lt=1.0)
    temperature: float | None = Field(default=None, gt=0.0)
    bias: float = Field(default=1.0, ge=0.0)
    threads: int = Field(default=3, ge=1, le=16)
    seed: int = 0


class LabelingConfig(Options):
    """How judgements are collected. `url: None` is the local stack's server."""

    annotators: Literal["simulated", "people"] = "simulated"
    url: str | None = None
    title: str = Field(default="rlhf", min_length=3, max_length=24)
    rankings: RankingTasks = RankingTasks()
    pairwise: PairwiseTasks = PairwiseTasks()
    crew: CrewConfig = CrewConfig()
    poll_seconds: float = Field(default=15.0, gt=0.0)
    deadline_hours: float = Field(default=72.0, gt=0.0)
    minimum_share: float = Field(default=0.9, gt=0.0, le=1.0)
    seed: int = 0

    @model_validator(mode="after")
    def _something_to_do_and_enough_hands(self) -> "LabelingConfig":
        if self.rankings.prompts + self.pairwise.prompts == 0:
            raise ValueError("rankings.prompts and pairwise.prompts are both 0: nothing would be judged")
        overlap = max(self.rankings.overlap, self.pairwise.overlap)
        if self.annotators == "simulated" and self.crew.annotators < overlap:
            raise ValueError(f"an overlap of {overlap} needs as many crew.annotators, not {self.crew.annotators}")
        return self
