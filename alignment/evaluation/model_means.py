"""Means over each model's responses: reward, length, share that ended, KL to SFT, and the gold criteria."""

from matplotlib.figure import Figure

from alignment.criteria import GOLD_FIGURES
from alignment.evaluation.bench import Bench, Figures, Models, Report
from alignment.evaluation.judged_responses import means
from alignment.plots import new_figure


def measure_model_means(bench: Bench, models: Models) -> Figures:
    """`models`: the means of each model; with a gold judge also the plot `criteria`."""
    report = {"models": {name: means(bench.responses(model)) for name, model in models.by_name().items()}}
    return Figures(report, plots={} if bench.judge is None else {"criteria": plot_criteria})


def plot_criteria(report: Report) -> Figure:
    """The gold criteria and the gold score of each model, side by side."""
    models = report["models"]
    figure, axes = new_figure("gold judge on held-out prompts")
    width = 0.8 / len(models)
    for number, (model, values) in enumerate(models.items()):
        bars = axes.bar(
            [i + number * width for i in range(len(GOLD_FIGURES))],
            [values[n] for n in GOLD_FIGURES],
            width=width * 0.92,
            label=model,
        )
        axes.bar_label(bars, fmt="%.2f", fontsize=8)
    axes.set_xticks([i + width * (len(models) - 1) / 2 for i in range(len(GOLD_FIGURES))], GOLD_FIGURES)
    axes.set_ylim(0, 1.12)
    axes.legend(frameon=False, ncols=len(models), loc="upper center")
    return figure
