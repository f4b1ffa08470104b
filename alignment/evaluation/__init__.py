"""The evaluators, in the order in which they run.

A new evaluator is a function `(Bench, Models) -> Figures` in a file of its own, one import and one entry here. What it
measures is then in `evaluation.json`, among the stage's metrics (in MLflow too) and, if it draws something, among the
figures.
"""

from alignment.evaluation.alignment_tax import measure_alignment_tax
from alignment.evaluation.bench import Evaluator
from alignment.evaluation.best_of_n import measure_best_of_n
from alignment.evaluation.gold_curve import measure_gold_curve
from alignment.evaluation.kind_means import measure_kind_means
from alignment.evaluation.kl_to_sft import measure_kl_to_sft
from alignment.evaluation.model_means import measure_model_means
from alignment.evaluation.win_rate import measure_win_rate

EVALUATORS: tuple[Evaluator, ...] = (
    measure_model_means,
    measure_kind_means,
    measure_win_rate,
    measure_kl_to_sft,
    measure_alignment_tax,
    measure_gold_curve,
    measure_best_of_n,
)
