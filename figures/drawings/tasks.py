"""Draws the accuracy on a multiple-choice task: what noise takes, and what digital experts give back."""

from typing import Any

import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from figures.drawings.rows import with_bounds
from theory.evidence import Result

LABELS = {
    ("none", 0.0): "no expert digital",
    ("maxnn", 0.125): "MaxNNScore, 12.5 % digital",
    ("maxnn", 0.25): "MaxNNScore, 25 % digital",
    ("random", 0.25): "random, 25 % digital",
}
COLUMNS = (
    # key of the quantity in a curve, its axis, whether it is 0 by definition with no digital expert
    ("accuracy_change", "change of accuracy against all digital", False),
    ("gain", "gain of accuracy against no digital expert", True),
)
PAPER = (
    "Published (arXiv 2603.02633, Figs. 4 and 5), mean of eight other tasks: at c = 2.5 MaxNNScore recovers a third to"
    " more than a half of the lost accuracy."
)


def draw(result: Result) -> Figure:
    """One panel against the digital model, one against no digital expert; bars are 95 % intervals."""
    data = result.data
    magnitudes = sorted({curve["c"] for curve in data["curves"]})
    palette = dict(zip(LABELS, ["black", *sns.color_palette("colorblind", len(LABELS) - 1)], strict=True))
    with sns.axes_style("whitegrid"), sns.plotting_context("paper"):
        figure = Figure(figsize=(9, 3.8), layout="constrained")
        axes = figure.subplots(1, len(COLUMNS), squeeze=False)[0]
    for axis, (quantity, label, against_none) in zip(axes, COLUMNS, strict=True):
        for index, (key, name) in enumerate(LABELS.items()):
            if against_none and key[0] == "none":
                continue
            curve = sorted(
                (each for each in data["curves"] if (each["strategy"], each["digital_fraction"]) == key),
                key=lambda each: each["c"],
            )
            offset = 0.1 * (index - (len(LABELS) - 1) / 2)  # so that bars do not hide each other
            values = [each[quantity] for each in curve]
            bounds = [each[f"{quantity}_interval"] for each in curve]
            axis.errorbar(
                [magnitudes.index(each["c"]) + offset for each in curve],
                values,
                yerr=[
                    [value - low for value, (low, _) in zip(values, bounds, strict=True)],
                    [high - value for value, (_, high) in zip(values, bounds, strict=True)],
                ],
                fmt="o",
                markersize=4,
                capsize=3,
                color=palette[key],
                label=name,
            )
        axis.axhline(0.0, color="grey", linewidth=0.8)
        axis.set_xticks(range(len(magnitudes)), [f"c = {c:g}" for c in magnitudes])
        axis.set_xlim(-0.5, len(magnitudes) - 0.5)
        axis.set_ylabel(label)
        axis.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=1))
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    low, high = data["digital"]["accuracy_interval"]
    figure.suptitle(
        f"{data['model']}, dense modules digital, w_max per {data['w_max']}: accuracy"
        f" {data['digital']['accuracy']:.1%} [{low:.1%}, {high:.1%}] when all digital, chance {data['chance']:.0%};"
        f" {data['questions']} questions of the task {data['task']}\n{PAPER}",
        fontsize="small",
    )
    return figure


def table(result: Result) -> list[dict[str, Any]]:
    """One row for each placement and magnitude."""
    return with_bounds(result.data["curves"])
