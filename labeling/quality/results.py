"""Result types: rates with intervals, agreement, and the figures of one annotator."""

from pydantic import Field

from alignment.records import Record


class Rate(Record):
    """A share of `count` double judgements with its 95 % interval; None without double judgements."""

    count: int
    share: float | None = None
    low: float | None = None
    high: float | None = None


NOTHING = Rate(count=0)


class Agreement(Record):
    """Agreement overall, by criterion (of those rated), and between every two annotators ("3 and 7")."""

    overall: Rate
    alpha: float | None
    alpha_low: float | None = None
    alpha_high: float | None = None
    criteria: dict[str, Rate]
    criteria_alpha: dict[str, float | None]
    annotators: dict[str, Rate]
    annotators_alpha: dict[str, float | None] = Field(default_factory=dict)


class AnnotatorQuality(Record):
    """One annotator's figures; None where not measured.

    `agreement` is with all other annotators (its count is of double judgements), `kappa` is Cohen's (ties are a value),
    `gold` the accuracy on gold tasks. `first_position_share` is how often the response shown first (top or left) won,
    divided by the rate expected by chance: 1 is unbiased. `labeling.quality.habits` defines the tests of habits,
    `labeling.quality.reliability` defines `reliability` (η) and `weight`. `concerns` are the open concerns about the
    annotator; `set_aside` is true if their judgements are excluded.
    """

    annotator_id: str
    judgements: int
    skips: int
    agreement_with_others: float | None
    first_position_share: float | None
    untouched_share: float | None
    median_lead_time_seconds: float | None
    agreement: Rate = NOTHING
    kappa: float | None = None
    gold: Rate = NOTHING
    left_share: float | None = None
    left_p_value: float | None = None
    position_correlation: float | None = None
    position_p_value: float | None = None
    untouched_p_value: float | None = None
    contradiction_share: float | None = None
    contradictable: int = 0
    intransitive_share: float | None = None
    triples: int = 0
    hasty_share: float | None = None
    reliability: float | None = None
    weight: float | None = None
    concerns: tuple[str, ...] = ()
    set_aside: bool = False
