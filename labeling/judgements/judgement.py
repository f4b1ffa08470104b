"""What people say of a task, as typed rows."""

from itertools import accumulate

from pydantic import Field

from alignment.records import Record


class Judgement(Record):
    """What one person said about one task. `task_uid` leads back to the task, `lead_time` is in seconds."""

    annotation_id: str
    annotator_id: str
    task_uid: str
    created_at: str
    lead_time: float = 0.0


class RankingJudgement(Judgement):
    """An order of the task's opaque ids, best first; empty when the annotator found them all alike.

    `ties` are places, counted from 1, that are as good as the next one. `cannot_judge` leaves both empty: the annotator
    looked and could not say, so nothing follows about the responses.
    """

    ranking: tuple[str, ...]
    ties: tuple[int, ...] = ()
    cannot_judge: bool = False

    @property
    def ranks(self) -> dict[str, int]:
        """The rank of each id, the best 0; ids of a tie share theirs."""
        steps = [place not in self.ties for place in range(1, len(self.ranking))]
        return dict(zip(self.ranking, accumulate(steps, initial=0), strict=False))


class PairwiseJudgement(Judgement):
    """3 (A much better) to -3 (B much better), and the stars and flags that were given, by control name."""

    preference: int = Field(ge=-3, le=3)
    ratings: dict[str, int] = Field(default_factory=dict)
    flags: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    rationale: str = ""


class WrittenAnswer(Judgement):
    """An answer that a person wrote."""

    answer: str = Field(min_length=1)
    prompt_quality: str = ""


Judged = RankingJudgement | PairwiseJudgement | WrittenAnswer
