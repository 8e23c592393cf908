"""Draws the map of trainings: what MaxNNScore follows, where MaxNN pays, and the statistic that tells in advance."""

from typing import Any

import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from figures.drawings.rows import with_bounds
from theory.evidence import Result

Row = dict[str, Any]

FRACTION = "25.0%"
GAIN_LIMIT = 0.5  # of the recovered fraction, where the colours end
HURTS = 0.01  # nats per token, of realmodels.experiments.link_map
WIDE = 30.0  # largest over smallest value beyond which an axis is logarithmic


def draw(result: Result) -> Figure:
    """Three heat maps with a row for each cell, and the statistic against what MaxNN recovers more than load."""
    rows, kinds = result.data["map"], result.data["kinds"]
    last = [row for row in rows if row["last"]]
    lengths = max(sum(row["cell"] == each["cell"] for row in rows) for each in last)
    followed = ["frequency", "load", *(f"damage, {kind}" for kind in kinds)]
    with sns.axes_style("white"), sns.plotting_context("paper"):
        figure = Figure(figsize=(17, 4.5 + 0.32 * len(last)), layout="constrained")
        parts: Any = figure.subfigures(2, 1, height_ratios=(0.32 * len(last) + 1.5, 3.5))
        above, below = parts
        correlations, random, load = above.subplots(
            1, 3, width_ratios=(2 * lengths + len(kinds), len(kinds), len(kinds))
        )
    labels, values = [], []
    for name in followed:
        for part in range(lengths) if name in ("frequency", "load") else (lengths - 1,):
            found = [_looks(rows, row["cell"])[part] for row in last]
            values.append([look[f"spearman {name}"] for look in found])
            labels.append(name.replace(", ", "\n") + (f"\n{part + 1}/{lengths}" if lengths > 1 else ""))
    _heat(correlations, np.array(values).T, 1.0, labels, [_label(row) for row in last])
    correlations.set_title(
        "Spearman's correlation of MaxNNScore with ... (looks in order of length)", fontsize="medium"
    )
    for axis, other in ((random, "random"), (load, "load")):
        gains = [
            [
                row[f"maxnn {FRACTION}, {kind}"] - row[f"{other} {FRACTION}, {kind}"]
                if row[f"loss increase, {kind}"] >= HURTS
                else np.nan
                for kind in kinds
            ]
            for row in last
        ]
        _heat(axis, np.array(gains), GAIN_LIMIT, [kind.replace(", ", "\n") for kind in kinds], None)
        axis.set_title(
            f"MaxNN recovers more than {other}, 25 %\n(grey: noise costs less than {HURTS:g} nats)",
            fontsize="medium",
        )
    _statistic(below.subplots(1, 2), result.data["statistic"], last, kinds)
    figure.suptitle(
        f"What MaxNNScore follows and where it pays; means over {result.data['seeds']} training seeds. * fresh cells;"
        " in brackets the loss in nats per token, and † where experts are dead in some seed",
        fontsize="medium",
    )
    return figure


def table(result: Result) -> list[Row]:
    """The map, one row for each cell and length."""
    return with_bounds(result.data["map"], separator=", ")


def _looks(rows: list[Row], cell: str) -> list[Row]:
    return [row for row in rows if row["cell"] == cell]


def _label(row: Row) -> str:
    return (
        f"{row['cell']}{' *' if row['fresh'] else ''} ({row['loss']:.2f}{'' if row['alive'] == 1 else ' †'})"
    )


def _heat(axis: Axes, values: Any, end: float, columns: list[str], rows: list[str] | None) -> None:
    sns.heatmap(
        values, ax=axis, annot=True, fmt=".2f", cmap="vlag", vmin=-end, vmax=end, cbar=False, linewidths=0.5,
        annot_kws={"fontsize": "small"}, xticklabels=columns, yticklabels=rows or False,
    )  # fmt: skip
    axis.set_facecolor("0.85")
    axis.tick_params(labelrotation=0, labelsize="x-small", length=0)


def _statistic(axes: Any, choice: Row, last: list[Row], kinds: list[str]) -> None:
    """Left the statistic, if it could be tested, right what every placement recovers, mean over the design cells."""
    left, right = axes
    if choice["points"]:
        _points(left, choice, kinds)
    else:
        left.set_axis_off()
        left.text(0.5, 0.5, "no statistic: noise hurts too few of these models", ha="center")
    names = [key.partition(f" {FRACTION}")[0] for key in last[0] if key.endswith(f"{FRACTION}, {kinds[0]}")]
    design_rows = [row for row in last if not row["fresh"]]
    width = 0.8 / len(names)
    for number, (name, colour) in enumerate(zip(names, sns.color_palette("deep", len(names)), strict=True)):
        means = [np.mean([row[f"{name} {FRACTION}, {kind}"] for row in design_rows]) for kind in kinds]
        right.bar(
            np.arange(len(kinds)) + (number - len(names) / 2 + 0.5) * width,
            means,
            width,
            color=colour,
            label=name,
        )
    right.set_xticks(range(len(kinds)), kinds, fontsize="small")
    right.set(ylabel="recovered fraction of the loss")
    right.set_title("25 % digital, mean over the design cells", fontsize="medium")
    right.legend(fontsize="x-small", loc="upper left", bbox_to_anchor=(1, 1), frameon=False)


def _points(left: Any, choice: Row, kinds: list[str]) -> None:
    for kind, colour in zip(kinds, sns.color_palette("deep", len(kinds)), strict=True):
        for design, face in ((True, "white"), (False, colour)):
            points = [
                point for point in choice["points"] if (point["kind"], point["design"]) == (kind, design)
            ]
            left.scatter(
                [point[choice["name"]] for point in points], [point["gain"] for point in points], s=12,
                linewidth=0.7, facecolor=face, edgecolor=colour, label=f"{kind}, {'design' if design else 'fresh'}",
            )  # fmt: skip
    left.axvline(choice["threshold"], color="black", linewidth=0.9, linestyle="--")
    left.axhline(0, color="black", linewidth=0.9, linestyle=":")
    left.set(xlabel=choice["name"], ylabel="recovered by MaxNN minus by load")
    accuracy = np.mean(choice["fresh accuracy"])
    left.set_title(
        f"MaxNN beats load where {choice['name']} is {choice['side']} {choice['threshold']:.3g}; balanced accuracy"
        f" {choice['design accuracy']:.2f} on design cells, {accuracy:.2f} on fresh ones",
        fontsize="medium",
    )
    values = [point[choice["name"]] for point in choice["points"]]
    if min(values) > 0 and max(values) > WIDE * min(values):
        left.set_xscale("log")
    left.legend(fontsize="x-small", loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
