"""Draws what MaxNNScore follows with and without a load-balancing loss, and how it grew, expert by expert."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from figures.drawings.rows import with_bounds
from figures.drawings.style import (
    BLACK,
    BLUE,
    GREY,
    SCORE,
    VERMILLION,
    WIDTH,
    legend_below,
    lengths,
    styled,
    titled,
)
from theory.evidence import Result

Row = dict[str, Any]

SIDES = ("with", "without")
FOLLOWED = (
    ("spearman load", "load"),
    ("spearman load among alive", "load, used experts"),
    ("spearman frequency", "token frequency"),
)
LOOKS = {"with": (BLUE, "o"), "without": (VERMILLION, "^")}
OFFSETS = {"with": -0.15, "without": 0.15}  # so that bars do not hide each other
UNUSED = 1e-3  # fair shares, where experts of less load are drawn
MEANING = (
    "Each optimiser trained the same small language model with and without a load-balancing loss, from the same"
    " weights on the same text. Load is the share of tokens that an expert serves, in fair shares (1: as many as all"
    " experts get on average). Experts SGD and experts one RMS: AdamW, but the experts have SGD, or one second moment"
    f" for all experts of a layer. {SCORE}."
)
CAPTION = (
    "Rank correlations of MaxNNScore with load and with token frequency, a row for each optimiser, with and without"
    " a load-balancing loss. Points are means over training seeds, bars 95 % intervals, both on Fisher's scale. Used"
    f" experts are those with more than a small part of a fair share. {MEANING}"
)


@styled
def draw(result: Result) -> Figure:
    """Correlations with 95 % intervals."""
    rows = result.data["runs"]
    optimisers = list(dict.fromkeys(row["optimiser"] for row in rows))
    figure = Figure(figsize=(WIDTH, 0.42 * len(optimisers) + 1.6))
    axes = figure.subplots(1, len(FOLLOWED), sharey=True)
    for axis, (quantity, name) in zip(axes, FOLLOWED, strict=True):
        _correlations(axis, rows, quantity)
        axis.set_title(name)
    axes[0].set_yticks(range(len(optimisers)), [name.replace("muon", "Muon") for name in optimisers])
    axes[0].invert_yaxis()
    axes[1].set_xlabel("rank correlation of MaxNNScore with it, mean over layers")
    legend_below(figure, axes[0], columns=len(SIDES))
    titled(
        figure,
        "What MaxNNScore follows, with and without a load-balancing loss",
        f"means over {len(result.data['seeds'])} training seeds",
    )
    return figure


@styled
def draw_experts(result: Result) -> Figure:
    """The experts of one seed, a panel for each optimiser, all on the same axes."""
    experts = result.data["experts"]
    figure = Figure(figsize=(WIDTH, 3.3))
    axes = figure.subplots(1, len(experts), sharex=True, sharey=True, squeeze=False)[0]
    for axis, each in zip(axes, experts, strict=True):
        _experts(axis, each)
        axis.set_title(
            each["optimiser"].replace("muon", "Muon").replace(", ", ",\n").replace(" one RMS", "\none RMS"),
            fontsize=8.5,
        )
    axes[0].set(xscale="log", yscale="log")
    axes[0].set_ylabel("MaxNNScore / layer's mean at the start")
    axes[0].xaxis.set_major_locator(FixedLocator([UNUSED, 0.1, 10]))
    axes[0].set_xticklabels(["0", "0.1", "10"])
    axes[0].xaxis.set_minor_locator(NullLocator())
    axes[len(axes) // 2].set_xlabel("load in fair shares")
    legend_below(figure, axes[0], columns=len(SIDES))
    titled(
        figure,
        "How each expert's score grew, by the load that it has",
        f"experts of all layers, seed {result.data['seeds'][0]}",
    )
    return figure


PARTS = {
    "experts": (
        draw_experts,
        (
            "A dot for each expert, its MaxNNScore against its load, a panel for each optimiser, with and without a"
            " load-balancing loss. Experts with less than a thousandth of a fair share are drawn at 0; dotted: the"
            f" mean before the first step. {MEANING}"
        ),
    ),
}


def table(result: Result) -> list[Row]:
    """One row for each optimiser, with and without the loss."""
    return with_bounds(result.data["runs"], separator=", ")


def _correlations(axis: Axes, rows: list[Row], quantity: str) -> None:
    for side in SIDES:
        found = [row for row in rows if row["balancing"] == side]
        values = [row[quantity] for row in found]
        colour, marker = LOOKS[side]
        axis.errorbar(
            np.array(values),
            np.arange(len(found)) + OFFSETS[side],
            xerr=lengths(values, [row[f"{quantity}_interval"] for row in found]),
            fmt=marker,
            capsize=3,
            color=colour,
            label=f"{side} load-balancing loss",
        )
    axis.axvline(0, color=GREY, linewidth=0.8)
    axis.set_xlim(-1.1, 1.1)  # an interval may go beyond
    axis.grid(visible=False, axis="y")


def _experts(axis: Axes, each: Row) -> None:
    for side in SIDES:
        layers = each[side]
        load = np.concatenate([layer["load"] for layer in layers])
        score = np.concatenate([np.array(layer["score"]) / np.mean(layer["first"]) for layer in layers])
        colour, marker = LOOKS[side]
        axis.scatter(
            load.clip(min=UNUSED), score, s=14, color=colour, marker=marker, alpha=0.7, linewidth=0,
            label=f"{side} load-balancing loss",
        )  # fmt: skip
    axis.axhline(1, color=BLACK, linewidth=0.9, linestyle=":")
