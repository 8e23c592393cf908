"""Draws whether the bounds on tolerable noise are valid, and how tight they are."""

from collections.abc import Callable
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from figures.drawings.style import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    VERMILLION,
    WIDTH,
    legend_below,
    lengths,
    log_ticks,
    styled,
    titled,
)
from theory.evidence import Result

Row = dict[str, Any]

BOUNDS: dict[str, tuple[str, dict[str, Any]]] = {
    "Bu": ("all inputs at once (Bu)", {"color": GREY, "marker": "v", "linestyle": "-"}),
    "B": ("one input, worst bias (B)", {"color": ORANGE, "marker": "^", "linestyle": ":"}),
    "B-mean": ("one input, exact mean (B-mean)", {"color": BLUE, "marker": "o", "linestyle": "-."}),
    "B-exp": ("one input, exact moments (B-exp)", {"color": GREEN, "marker": "s", "linestyle": "--"}),
    "U": ("one input, upper bound (U)", {"color": PURPLE, "marker": "D", "linestyle": (0, (6, 2))}),
}
DELTAS = (("o", BLUE), ("s", VERMILLION), ("^", GREEN))  # marker and colour of each delta
PLACEMENTS = {"none": "all analog", "frequent": "frequent digital"}
GRAINS = {"layer": "expert", "column": "neuron"}
DELTA, ALPHA, M = 0.05, 0.1, 8  # their values where something else varies
ASIDE = 0.22  # rows, between what belongs to the same row
TIGHTNESS = (1, 2, 5, 10, 20, 50, 100, 1000, 10_000)
SYMBOLS = (
    "Up to the noise magnitude that a lower bound gives, an input errs with probability δ at most: B by the worst"
    " bias, B-mean by the exact mean of the noisy output, B-exp by exact exponential moments; Bu bounds all inputs at"
    " once. From the upper bound U on, an input errs more often than δ. All are statements of docs/theory.md. A cell"
    " is one network, placement of experts, δ, bound and, except for Bu, input."
)
CAPTION = (
    "Failure rates at the noise that each bound allows, divided by the allowed rate δ, in the worst cell, a row for"
    " each bound and for each kind of hardware. A lower bound holds left of 1, the upper bound U right of 1. Bars"
    " are 95 % limits that hold for all cells together. The weight w_max is the largest, to which the noise is"
    f" relative. {SYMBOLS}"
)
TIGHT = (
    "How far each bound is from the noise at which inputs really begin to fail, against the rarity α of a class and"
    " the number m of neurons of an expert. A factor of 1 is a bound that could not be better: the measured c over a"
    " lower bound, and U over the measured c. Lines: medians over rare inputs and seeds; bands: quartiles. δ ="
    f" {DELTA:g}; α = {ALPHA:g} and m = {M} where they do not vary. {SYMBOLS}"
)
HARDWARE = (
    "How far each bound is from the noise at which inputs really begin to fail, a row for each kind of hardware. A"
    " factor of 1 is a bound that could not be better: the measured c over a lower bound, and U over the measured c."
    " Points: medians over rare inputs and seeds; bars: quartiles. Constant: the theory's noise; proportional: to"
    " the weight; pcm and hermes: models of phase-change memory; per expert or per neuron: the largest weight to"
    f" which noise is relative; bits: of the converters. Bounds that say nothing there are left out. δ = {DELTA:g}, α"
    f" = {ALPHA:g}, m = {M}, frequent experts digital. {SYMBOLS}"
)


@styled
def draw(result: Result) -> Figure:
    """Worst failure rate over delta, on the theory's noise for each delta and on other hardware."""
    data = result.data
    by_delta = [name for name in BOUNDS if any(row["bound"] == name for row in data["by_delta"])]
    others = [row for row in data["validity"] if row["group"] != "theory"]
    groups = list(dict.fromkeys(row["group"] for row in others))
    figure = Figure(figsize=(WIDTH, 1.9 + 0.42 * len(by_delta) + 0.34 * len(groups)))
    theory, other = figure.subplots(
        2, 1, sharex=True, height_ratios=(1.3 * len(by_delta), max(1, len(groups)))
    )
    deltas = sorted({row["delta"] for row in data["by_delta"]})
    for delta, aside, (marker, colour) in zip(deltas, _around(len(deltas)), DELTAS, strict=False):
        rows = [row for row in data["by_delta"] if row["delta"] == delta]
        heights = [by_delta.index(row["bound"]) + aside for row in rows]
        _worst(theory, rows, heights, color=colour, marker=marker, label=f"δ = {delta:g}")
    theory.set_yticks(range(len(by_delta)), [BOUNDS[name][0] for name in by_delta])
    theory.set_title("the theory's noise")
    for upper, marker, colour, label in (
        (False, "h", BLACK, "all lower bounds (Bu, B, B-mean, B-exp)"),
        (True, BOUNDS["U"][1]["marker"], BOUNDS["U"][1]["color"], "upper bound (U)"),
    ):
        rows = [row for row in others if ("U" in row["bounds"]) is upper]
        _worst(
            other,
            rows,
            [groups.index(row["group"]) for row in rows],
            color=colour,
            marker=marker,
            label=label,
        )
    other.set_yticks(range(len(groups)), groups)
    other.set_title("other hardware, every δ")
    for axis in (theory, other):
        axis.axvline(1, color=BLACK, linewidth=1)
        axis.invert_yaxis()
        axis.set_xscale("symlog", linthresh=0.1)
        axis.set_xlim(left=-0.005)
        axis.xaxis.set_major_locator(FixedLocator([0, 0.05, 0.1, 0.2, 0.5, 1, 2]))
        axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.xaxis.set_minor_locator(NullLocator())
    other.set_xlabel(
        "failure rate / δ of the worst cell\n(lower bounds are valid left of 1, the upper bound right of 1)"
    )
    titled(
        figure,
        "Is any bound on the tolerable noise violated?",
        f"{data['seeds']} training seeds, {data['draws']} noise draws",
    )
    keys = [pair for axis in (theory, other) for pair in zip(*axis.get_legend_handles_labels(), strict=True)]
    figure.legend(*zip(*keys, strict=True), loc="outside lower center", ncols=3, columnspacing=1.2)
    return figure


@styled
def draw_tightness(result: Result) -> Figure:
    """Tightness over alpha for both placements, and over m."""
    data = result.data
    figure = Figure(figsize=(WIDTH, 3.8))
    axes = figure.subplots(1, 3, sharey=True)
    for axis, placement in zip(axes, PLACEMENTS, strict=False):
        rows = _select(data, lambda row: row["group"] == "theory" and row["m"] == M, placement)
        _lines(axis, rows, "alpha", "α, probability of the rare class", PLACEMENTS[placement])
    rows = _select(data, lambda row: row["group"] == "theory" and row["alpha"] == ALPHA, "none")
    _lines(axes[2], rows, "m", "m, neurons of an expert", PLACEMENTS["none"])
    axes[0].set_ylabel("how far from the measured c, factor")
    titled(
        figure,
        "How near each bound comes to the noise that is really tolerated",
        f"δ = {DELTA:g}, rare inputs; 1: could not be better",
    )
    legend_below(figure, axes[0], columns=2)
    return figure


@styled
def draw_hardware(result: Result) -> Figure:
    """Tightness on every kind of hardware."""
    rows = _select(result.data, lambda row: (row["alpha"], row["m"]) == (ALPHA, M), "frequent")
    names = list(dict.fromkeys(_hardware(row) for row in rows))
    figure = Figure(figsize=(WIDTH, 1.7 + 0.32 * len(names)))
    axis = figure.subplots()
    shifts = dict(zip(BOUNDS, np.linspace(-0.3, 0.3, len(BOUNDS)), strict=True))
    for bound, (label, style) in BOUNDS.items():
        mine = [row for row in rows if row["bound"] == bound]
        if mine:
            middle = [row["rare"][1] for row in mine]
            axis.errorbar(
                middle,
                [names.index(_hardware(row)) + shifts[bound] for row in mine],
                xerr=lengths(middle, [(row["rare"][0], row["rare"][2]) for row in mine]),
                **(style | {"linestyle": "none", "markersize": 4, "label": label}),
            )
    for border in range(1, len(names)):
        axis.axhline(border - 0.5, color="#dddddd", linewidth=0.6)
    axis.grid(visible=False, axis="y")
    axis.set_yticks(range(len(names)), names)
    axis.set_ylim(len(names) - 0.5, -0.5)
    axis.set(xscale="log", xlabel="how far from the measured c, factor (1: could not be better)")
    log_ticks(axis.xaxis, TIGHTNESS)
    titled(figure, "How near each bound comes to the tolerated noise on other hardware")
    legend_below(figure, axis, columns=2)
    return figure


PARTS = {"tightness": (draw_tightness, TIGHT), "hardware": (draw_hardware, HARDWARE)}


def table(result: Result) -> list[Row]:
    """Tightness, one row for each case, placement, delta and bound."""
    rows = []
    for entry in result.data["tightness"]:
        row = {name: value for name, value in entry.items() if name not in ("frequent", "rare")}
        for kind in ("frequent", "rare"):
            quartiles = entry[kind] or (None, None, None)
            row |= {
                f"{kind}_{name}": each
                for name, each in zip(("low", "median", "high"), quartiles, strict=True)
            }
        rows.append(row)
    return rows


def _worst(axis: Axes, rows: list[Row], heights: list[float], **style: Any) -> None:
    """Failure rate over delta of the worst cell, with its limits."""
    worst = [row["worst"] for row in rows]
    axis.errorbar(
        worst,
        heights,
        xerr=lengths(worst, [row["interval"] for row in rows]),
        linestyle="none",
        capsize=2,
        **style,
    )


def _around(count: int) -> list[float]:
    """Shifts of things that share a row."""
    return [ASIDE * (number - (count - 1) / 2) for number in range(count)]


def _select(data: Row, keep: Callable[[Row], bool], placement: str) -> list[Row]:
    """Rows of a placement at DELTA that say something about rare inputs."""
    return [
        row
        for row in data["tightness"]
        if (row["placement"], row["delta"]) == (placement, DELTA) and row["rare"] and keep(row)
    ]


def _lines(axis: Axes, rows: list[Row], over: str, label: str, title: str) -> None:
    for bound, (name, style) in BOUNDS.items():
        mine = sorted((row for row in rows if row["bound"] == bound), key=lambda row: row[over])
        if mine:
            x = [row[over] for row in mine]
            low, middle, high = np.array([row["rare"] for row in mine]).T
            axis.plot(x, middle, label=name, **style)
            axis.fill_between(x, low, high, color=style["color"], alpha=0.15, linewidth=0)
    axis.set(xscale="log", yscale="log", xlabel=label)
    log_ticks(axis.xaxis, _apart(sorted({row[over] for row in rows})))
    log_ticks(axis.yaxis, TIGHTNESS)
    axis.set_title(title)


def _hardware(row: Row) -> str:
    converters = f", {row['bits']} bits" if row["bits"] else ""
    return f"{row['programming']}, per {GRAINS[row['w_max']]}{converters}"


def _apart(values: list[float]) -> list[float]:
    """Those whose labels do not run into each other on a logarithmic axis."""
    kept: list[float] = []
    for value in reversed(values):
        if not kept or kept[-1] / value > 1.4:
            kept.append(value)
    return kept
