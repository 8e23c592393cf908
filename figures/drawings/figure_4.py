"""Draws figures 4 and 5: loss, accuracy and recovered loss against the magnitude of programming noise.

Where there are tasks, accuracy on them, too.
"""

from typing import Any

import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from figures.drawings.rows import with_bounds
from theory.evidence import Result

TITLES = {"tile": "w_max per tile (our default)", "column": "w_max per column of a tile"}
LABELS = {
    "none": "no expert digital",
    "maxnn": "MaxNNScore",
    "activation_frequency": "activation frequency",
    "activation_weight": "activation weight",
    "router_norm": "router norm",
    "random": "random",
    "minnn": "smallest MaxNNScore",
}
COLUMNS = (
    ("loss_change", "loss increase, nats per token", False),
    ("accuracy_change", "change of top-1 accuracy", True),
    ("recovered", "recovered part of the loss", True),
)
TASKS_COLUMN = ("tasks_accuracy", "accuracy on the tasks", True)
PAPER = (
    "Published (arXiv 2603.02633, Figs. 4 and 5): MaxNNScore is best, and recovers a third to more than a half of the"
    " loss at c = 2.5."
)


def draw(result: Result) -> Figure:
    """A row of panels for each granularity of w_max and budget of digital experts; bands are 95 % intervals."""
    curves = result.data["curves"]
    rows = list(
        dict.fromkeys(
            (curve["w_max"], curve["digital_fraction"]) for curve in curves if curve["strategy"] != "none"
        )
    )
    digital = result.data["digital"]
    columns = (*COLUMNS, TASKS_COLUMN) if "tasks" in digital else COLUMNS
    palette = dict(zip(LABELS, ["black", *sns.color_palette("colorblind", len(LABELS) - 1)], strict=True))
    with sns.axes_style("whitegrid"), sns.plotting_context("paper"):
        figure = Figure(figsize=(11 / 3 * len(columns), 2.6 * len(rows) + 1.2), layout="constrained")
        axes = figure.subplots(len(rows), len(columns), squeeze=False, sharex=True, sharey="col")
    for row, (w_max, fraction) in zip(axes, rows, strict=True):
        shown = [
            curve
            for curve in curves
            if curve["w_max"] == w_max
            and (curve["strategy"] == "none" or curve["digital_fraction"] == fraction)
        ]
        for axis, (quantity, label, percent) in zip(row, columns, strict=True):
            _curves(axis, shown, quantity, palette)
            if quantity == "tasks_accuracy":
                axis.axhline(digital["tasks"]["mean"], color="grey", linewidth=0.8)
            axis.set_ylabel(label)
            if percent:
                axis.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=1))
            if axis in axes[-1]:
                axis.set_xlabel("magnitude c of the programming noise (pcm)")
        row[0].set_title(f"{TITLES[w_max]}, {fraction:.1%} of experts digital", loc="left", fontweight="bold")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    figure.suptitle(
        f"{result.data['model']}, dense modules digital: loss {digital['loss']['mean']:.3f} nats per token, accuracy"
        f" {digital['accuracy']['mean']:.1%} when all digital; {result.data['blocks']} blocks of"
        f" {result.data['block_tokens']} tokens\n{_tasks(digital) if 'tasks' in digital else ''}{PAPER}",
        fontsize="small",
    )
    return figure


def table(result: Result) -> list[dict[str, Any]]:
    """The curves, one row for each placement, magnitude and granularity."""
    return with_bounds(result.data["curves"])


def _tasks(digital: dict[str, Any]) -> str:
    tasks = digital["tasks"]
    each = ", ".join(f"{name} ({found['questions']})" for name, found in tasks["each"].items())
    return f"Tasks (questions): {each}; accuracy {tasks['mean']:.1%} when all digital (grey line)\n"


def _curves(axis: Axes, curves: list[dict[str, Any]], quantity: str, palette: dict[str, Any]) -> None:
    for strategy, label in LABELS.items():
        curve = sorted((each for each in curves if each["strategy"] == strategy), key=lambda each: each["c"])
        # An unbounded ratio has no band; where nothing was lost there is nothing to recover.
        curve = [each for each in curve if each[f"{quantity}_interval"] is not None]
        if quantity == "recovered" and strategy == "none":
            continue
        c = [each["c"] for each in curve]
        style = {"color": palette[strategy], "linestyle": "--" if strategy in ("none", "minnn") else "-"}
        axis.plot(c, [each[quantity] for each in curve], marker="o", markersize=3, label=label, **style)
        low = [each[f"{quantity}_interval"][0] for each in curve]
        high = [each[f"{quantity}_interval"][1] for each in curve]
        axis.fill_between(c, low, high, color=palette[strategy], alpha=0.1, linewidth=0)
