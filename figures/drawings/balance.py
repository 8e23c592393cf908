"""Draws what MaxNNScore follows with and without a load-balancing loss, and how it grew, expert by expert."""

from typing import Any

import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from figures.drawings.rows import with_bounds
from theory.evidence import Result

Row = dict[str, Any]

SIDES = ("with", "without")
FOLLOWED = (
    ("spearman load", "load"),
    ("spearman load among alive", "load, among alive experts alone"),
    ("spearman frequency", "token frequency"),
)
COLOURS = dict(zip(SIDES, sns.color_palette("colorblind", 2), strict=True))
OFFSETS = {"with": -0.15, "without": 0.15}  # so that bars do not hide each other
LEAST_RANGE = (0.5, 12.0)  # of an axis of growth, so that none looks like none
UNUSED = 1e-3  # fair shares, where experts of less load are drawn


def draw(result: Result) -> Figure:
    """Above, correlations with 95 % intervals; below, the experts of one seed, a panel for each optimiser."""
    rows, experts = result.data["runs"], result.data["experts"]
    with sns.axes_style("whitegrid"), sns.plotting_context("paper"):
        figure = Figure(figsize=(13, 7.2), layout="constrained")
        parts: Any = figure.subfigures(2, 1, height_ratios=(1, 1.05))
        above = parts[0].subplots(1, len(FOLLOWED), sharey=True)
        below = parts[1].subplots(1, len(experts))
    for axis, (quantity, name) in zip(above, FOLLOWED, strict=True):
        _correlations(axis, rows, quantity)
        axis.set_title(f"with {name}", fontsize="medium")
    optimisers = [each["optimiser"] for each in experts]
    above[0].set_yticks(range(len(optimisers)), optimisers)
    above[0].invert_yaxis()
    for axis, each in zip(below, experts, strict=True):
        _experts(axis, each)
    below[0].set_ylabel("MaxNNScore over the layer's first mean")
    handles, labels = above[0].get_legend_handles_labels()
    parts[0].legend(handles, labels, loc="outside lower center", ncols=len(SIDES), frameon=False)
    parts[1].suptitle(
        f"Experts of all layers, seed {result.data['seeds'][0]}; dotted: the mean before the first step",
        fontsize="medium",
    )
    figure.suptitle(
        f"Spearman's correlation of MaxNNScore, mean over layers; means and 95 % intervals over"
        f" {len(result.data['seeds'])} training seeds",
        fontsize="medium",
    )
    return figure


def table(result: Result) -> list[Row]:
    """One row for each optimiser, with and without the loss."""
    return with_bounds(result.data["runs"], separator=", ")


def _correlations(axis: Axes, rows: list[Row], quantity: str) -> None:
    for side in SIDES:
        found = [row for row in rows if row["balancing"] == side]
        values = np.array([row[quantity] for row in found])
        bounds = np.array([row[f"{quantity}_interval"] for row in found])
        axis.errorbar(
            values, np.arange(len(found)) + OFFSETS[side], xerr=np.abs(bounds.T - values), fmt="o",
            markersize=4, capsize=3, color=COLOURS[side], label=f"{side} load-balancing loss",
        )  # fmt: skip
    axis.axvline(0, color="grey", linewidth=0.8)
    axis.set_xlim(-1.1, 1.1)  # an interval may go beyond


def _experts(axis: Axes, each: Row) -> None:
    for side in SIDES:
        layers = each[side]
        load = np.concatenate([layer["load"] for layer in layers])
        score = np.concatenate([np.array(layer["score"]) / np.mean(layer["first"]) for layer in layers])
        axis.scatter(load.clip(min=UNUSED), score, s=14, color=COLOURS[side], alpha=0.8, linewidth=0)
    axis.axhline(1, color="black", linewidth=0.9, linestyle=":")
    axis.set(xscale="log", yscale="log", xlabel="load in fair shares")
    low, high = axis.get_ylim()
    axis.set_ylim(min(low, LEAST_RANGE[0]), max(high, LEAST_RANGE[1]))
    axis.yaxis.set_major_formatter("{x:g}")
    axis.yaxis.set_minor_formatter(NullFormatter())
    axis.set_title(each["optimiser"], fontsize="medium")
