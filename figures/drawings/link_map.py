"""Draws the map of trainings: what MaxNNScore follows, where MaxNN pays, and the statistic that tells in advance."""

from typing import Any

import numpy as np
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from figures.drawings.rows import with_bounds
from figures.drawings.style import (
    BLACK,
    BLUE,
    BROWN,
    GREEN,
    GREY,
    OCHRE,
    PURPLE,
    SCORE,
    STRATEGIES,
    VERMILLION,
    WIDTH,
    Look,
    heat,
    legend_below,
    styled,
    titled,
)
from theory.evidence import Result

Row = dict[str, Any]

FRACTION = "25.0%"
GAIN_LIMIT = 0.5  # recovered fraction where the colours end
KINDS = (
    (BLUE, "o"),
    (VERMILLION, "s"),
    (GREEN, "^"),
    (OCHRE, "D"),
    (PURPLE, "v"),
    (BLACK, "x"),
)  # of hardware
PLACEMENTS = {
    "maxnn": STRATEGIES["maxnn"],
    "random": STRATEGIES["random"],
    "load": STRATEGIES["activation_frequency"],
    "weight": STRATEGIES["activation_weight"],
    "minnn": STRATEGIES["minnn"],
    "expected damage": Look("expected damage", OCHRE, "P", "-"),
    "measured damage": Look("measured damage", BROWN, "*", "-"),
}
MEANING = (
    "A cell is a training that differs in one thing from the first (Muon); * marks fresh cells, of two changes, which"
    " only test what was found on the others. In brackets is the loss in nats per token; + says that experts are dead"
    f" in some seed. {SCORE}. Hardware is named by its model of programming noise (pcm: phase-change memory) and by the"
    " weights of which the largest is w_max, to which noise is relative: those of a tile, a column of a tile or the"
    " layer. Means are over training seeds."
)
CAPTION = (
    "A heat map with a row for each training: rank correlations of MaxNNScore with token frequency, load and"
    " measured damage. Frequency and load are looked at in order of length, 1/3 being the shortest training; damage"
    f" is the loss that an expert's noise alone adds, at the end of training, on each hardware. {MEANING}"
)


@styled
def draw(result: Result) -> Figure:
    """Spearman's correlations of MaxNNScore, a row for each cell."""
    rows, kinds = result.data["map"], result.data["kinds"]
    last = _last(rows)
    length_count = max(len(_looks(rows, row["cell"])) for row in last)
    labels, values = [], []
    for name in ("frequency", "load", *(f"damage, {kind}" for kind in kinds)):
        for part in range(length_count) if name in ("frequency", "load") else (length_count - 1,):
            found = [_looks(rows, row["cell"])[part] for row in last]
            values.append([look[f"spearman {name}"] for look in found])
            looked = f" {part + 1}/{length_count}" if length_count > 1 and "," not in name else ""
            labels.append(name.replace("damage, ", "damage by ") + looked)
    figure = Figure(figsize=(WIDTH, 0.23 * len(last) + 2.6))
    axis = figure.subplots()
    image = heat(
        axis, np.array(values).T, rows=[_label(row) for row in last], columns=labels,
        norm=Normalize(-1, 1), colours="RdBu_r", form=_two,
    )  # fmt: skip
    axis.tick_params(axis="x", labelrotation=90)
    figure.colorbar(image, ax=axis, label="rank correlation of MaxNNScore", pad=0.01, fraction=0.04)
    titled(
        figure,
        "What MaxNNScore follows, training by training",
        f"means over {result.data['seeds']} training seeds",
    )
    return figure


@styled
def draw_gains(result: Result) -> Figure:
    """What MaxNN recovers more than random choice and than load, a row for each cell."""
    rows, kinds = result.data["map"], result.data["kinds"]
    last, hurts = _last(rows), result.data["hurts"]
    figure = Figure(figsize=(WIDTH, 0.23 * len(last) + 2.3))
    axes = figure.subplots(1, 2, sharey=True)
    for axis, (other, title) in zip(
        axes, (("random", "than random choice"), ("load", "than load")), strict=True
    ):
        gains = [
            [
                row[f"maxnn {FRACTION}, {kind}"] - row[f"{other} {FRACTION}, {kind}"]
                if row[f"loss increase, {kind}"] >= hurts
                else np.nan
                for kind in kinds
            ]
            for row in last
        ]
        image = heat(
            axis, np.array(gains), rows=[_label(row) for row in last], columns=kinds,
            norm=Normalize(-GAIN_LIMIT, GAIN_LIMIT, clip=True), colours="RdBu_r", form=_two,
        )  # fmt: skip
        axis.tick_params(axis="x", labelrotation=90)
        axis.set_title(title)
    figure.colorbar(
        image,
        ax=list(axes),
        label="difference of recovered fractions",
        extend="both",
        pad=0.01,
        fraction=0.04,
    )
    titled(
        figure,
        "Where MaxNNScore recovers more ...",
        f"25 % of experts digital; grey: noise costs less than {hurts:g} nats per token, there is nothing to recover",
    )
    return figure


@styled
def draw_statistic(result: Result) -> Figure:
    """The statistic, if it could be tested, against the gain over load: design cells left, fresh ones right."""
    choice, kinds = result.data["statistic"], result.data["kinds"]
    figure = Figure(figsize=(WIDTH, 3.7))
    if not choice["points"]:
        axis = figure.subplots()
        axis.set_axis_off()
        axis.text(0.5, 0.5, "no statistic: noise hurts too few of these models", ha="center")
        return figure
    axes = figure.subplots(1, 2, sharex=True, sharey=True)
    # A spread is 1 at least, and most are near it.
    shift = 1.0 if choice["name"].startswith("spread") else 0.0
    for axis, (design, title) in zip(axes, ((True, "design cells"), (False, "fresh cells")), strict=True):
        for kind, (colour, marker) in zip(kinds, KINDS, strict=False):
            points = [
                point for point in choice["points"] if (point["kind"], point["design"]) == (kind, design)
            ]
            axis.scatter(
                [point[choice["name"]] - shift for point in points], [point["gain"] for point in points],
                s=14, color=colour, marker=marker, alpha=0.7, linewidth=1 if marker == "x" else 0, label=kind,
            )  # fmt: skip
        axis.axvline(choice["threshold"] - shift, color=BLACK, linewidth=0.9, linestyle="--")
        axis.axhline(0, color=GREY, linewidth=0.9)
        accuracy = choice["design accuracy"] if design else np.mean(choice["fresh accuracy"])
        axis.set_title(f"{title}: balanced accuracy {accuracy:.2f}")
        axis.set_xlabel(choice["name"] + (" \N{MINUS SIGN} 1" if shift else ""))
    if min(point[choice["name"]] for point in choice["points"]) > shift and shift:
        axes[0].set_xscale("log")
    axes[0].set_ylabel("recovered by MaxNN minus by load")
    legend_below(figure, axes[0], columns=3)
    titled(
        figure,
        f"Rule from the design cells: MaxNN beats load {choice['side']} the dashed line ({choice['threshold']:.3g})",
        "a balanced accuracy of 0.5 is chance",
    )
    return figure


@styled
def draw_placements(result: Result) -> Figure:
    """What every placement recovers: median and middle half of the design cells."""
    kinds = result.data["kinds"]
    rows = [row for row in _last(result.data["map"]) if not row["fresh"]]
    names = [name for name in PLACEMENTS if f"{name} {FRACTION}, {kinds[0]}" in rows[0]]
    figure = Figure(figsize=(WIDTH, 3.6))
    axis = figure.subplots()
    for number, name in enumerate(names):
        found = [[row[f"{name} {FRACTION}, {kind}"] for row in rows] for kind in kinds]
        low, middle, high = np.percentile(found, (25, 50, 75), axis=1)
        look = PLACEMENTS[name]
        axis.errorbar(
            np.arange(len(kinds)) + 0.11 * (number - (len(names) - 1) / 2),
            middle,
            yerr=(middle - low, high - middle),
            fmt=look.marker,
            color=look.colour,
            capsize=2,
            label={"load": "load", "weight": "routing weight"}.get(name, look.label),
        )
    axis.axhline(0, color=GREY, linewidth=0.8)
    axis.set_xticks(range(len(kinds)), [kind.replace(", ", ",\n") for kind in kinds])
    axis.grid(visible=False, axis="x")
    axis.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))
    axis.set_ylabel("part of the loss recovered")
    legend_below(figure, axis, columns=4)
    titled(
        figure,
        "What each placement recovers, over the trainings",
        "25 % of experts digital; median and middle half of the design cells",
    )
    return figure


PARTS = {
    "gains": (
        draw_gains,
        (
            "Two heat maps with a row for each training: how much more of the loss MaxNNScore recovers than random"
            f" choice and than load, with 25 % digital experts, by kinds of hardware. {MEANING}"
        ),
    ),
    "statistic": (
        draw_statistic,
        (
            "Two panels of points, design and fresh cells: how much more MaxNNScore recovers than load, against a"
            " statistic of the checkpoint. The rule in the title is chosen on the design cells. The spread of MaxNN"
            f" is its largest over its median score, mean over layers. {MEANING}"
        ),
    ),
    "placements": (
        draw_placements,
        (
            "Points with bars: the part of the loss that each placement recovers, on each hardware. A point is the"
            " median of the design cells, a bar their middle half, which is no confidence interval: the cells were"
            f" chosen, not drawn. Where noise costs hardly anything the part is 0. {MEANING}"
        ),
    ),
}


def table(result: Result) -> list[Row]:
    """The map, one row for each cell and length."""
    return with_bounds(result.data["map"], separator=", ")


def _last(rows: list[Row]) -> list[Row]:
    """Rows at the end of training."""
    return [row for row in rows if row["last"]]


def _looks(rows: list[Row], cell: str) -> list[Row]:
    return [row for row in rows if row["cell"] == cell]


def _label(row: Row) -> str:
    return (
        f"{row['cell']}{' *' if row['fresh'] else ''} ({row['loss']:.2f}{'' if row['alive'] == 1 else ' +'})"
    )


def _two(value: float) -> str:
    """Two decimals, without a leading 0."""
    return f"{round(value, 2) + 0.0:.2f}".replace("0.", ".", 1).replace("-", "\N{MINUS SIGN}")
