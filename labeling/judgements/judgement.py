"""Judgements of annotators, one type for each kind of task."""

from itertools import accumulate

from pydantic import Field

from alignment.records import Record


class Judgement(Record):
    """One annotator's judgement of one task. `lead_time` is in seconds, 0 if unknown.

    `annotator_id` made the last version of the annotation. If another account made the first one, that is
    `first_annotator_id`, and `created_at` is the time of the change. `guidelines` is the version that was shown, ""
    if unknown; `question` is what the annotator asked the team lead.
    """

    annotation_id: str
    annotator_id: str
    task_uid: str
    created_at: str
    lead_time: float = 0.0
    first_annotator_id: str = ""
    guidelines: str = ""
    question: str = ""


class RankingJudgement(Judgement):
    """An order of the task's opaque ids, best first; empty when the annotator saw no difference.

    `ties` are positions, counted from 1, that tie with the next one. With `cannot_judge` both are empty and no
    comparison follows. `ratings` and `flags` are by opaque id.
    """

    ranking: tuple[str, ...]
    ties: tuple[int, ...] = ()
    cannot_judge: bool = False
    ratings: dict[str, dict[str, int]] = Field(default_factory=dict)
    flags: dict[str, tuple[str, ...]] = Field(default_factory=dict)

    @property
    def ranks(self) -> dict[str, int]:
        """The rank of each id, the best 0; ids of a tie share theirs."""
        steps = [position not in self.ties for position in range(1, len(self.ranking))]
        return dict(zip(self.ranking, accumulate(steps, initial=0), strict=False))


class PairwiseJudgement(Judgement):
    """A preference from 3 (A much better) to -3 (B much better), with ratings and flags by control name.

    With `cannot_judge` the preference is 0, and no comparison follows.
    """

    preference: int = Field(ge=-3, le=3)
    cannot_judge: bool = False
    ratings: dict[str, int] = Field(default_factory=dict)
    flags: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    rationale: str = ""


class WrittenAnswer(Judgement):
    """A demonstration: the answer that an annotator wrote."""

    answer: str = Field(min_length=1)
    prompt_quality: str = ""


class Question(Record):
    """What an annotator asked the team lead about a task, with a judgement or with a skip."""

    annotation_id: str
    annotator_id: str
    task_uid: str
    asked_at: str
    text: str
    skipped: bool = False


Judged = RankingJudgement | PairwiseJudgement | WrittenAnswer
