"""Draws whether the bounds on tolerable noise are valid, and how tight they are."""

from collections.abc import Callable
from typing import Any

import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from theory.evidence import Result

BOUNDS = ("Bu", "B", "B-mean", "B-exp", "U")
COLOURS = dict(zip(BOUNDS, sns.color_palette("deep"), strict=False))
MARKERS = dict(zip(BOUNDS, "v^osD", strict=True))
PLACEMENTS = {"none": "all analog", "frequent": "frequent digital"}
DELTA, ALPHA, M = 0.05, 0.1, 8  # of the panels in which something else varies
Row = dict[str, Any]


def draw(result: Result) -> Figure:
    """Left: worst failure rate against delta. Right: tightness over alpha, m and hardware."""
    data = result.data
    with sns.axes_style("whitegrid"), sns.plotting_context("paper"):
        figure = Figure(figsize=(14, 9), layout="constrained")
        grid = figure.add_gridspec(2, 3, width_ratios=(1.25, 1, 1))
        validity = figure.add_subplot(grid[:, 0])
        over_alpha = figure.add_subplot(grid[0, 1])
        over_alpha_placed = figure.add_subplot(grid[1, 1], sharey=over_alpha)
        over_m, hardware = figure.add_subplot(grid[0, 2]), figure.add_subplot(grid[1, 2])
    _validity(validity, data)
    for axis, placement in ((over_alpha, "none"), (over_alpha_placed, "frequent")):
        rows = _select(data, lambda row: row["group"] == "theory" and row["m"] == M, placement)
        _lines(axis, rows, "alpha", f"tightness over alpha, {PLACEMENTS[placement]}")
    rows = _select(data, lambda row: row["group"] == "theory" and row["alpha"] == ALPHA, "none")
    _lines(over_m, rows, "m", "tightness over m, all analog")
    _hardware(hardware, _select(data, lambda row: (row["alpha"], row["m"]) == (ALPHA, M), "frequent"))
    handles, labels = over_alpha.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower right", ncols=len(labels), frameon=False)
    figure.suptitle(
        "Are the bounds on the tolerable noise valid, and how tight are they?\n"
        f"{data['seeds']} training seeds, {data['draws']} noise draws; tightness: empirical c / bound (U: bound /"
        f" empirical c) at failure delta = {DELTA:g}, rare inputs: median and quartiles; alpha = {ALPHA:g} and"
        f" m = {M} where they do not vary",
        fontsize="small",
    )
    return figure


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


def _validity(axis: Axes, data: Row) -> None:
    """A line for each bound and delta with the theory's noise, and for each group of other hardware."""
    lines: list[tuple[str, str, Row]] = [
        (f"{row['bound']}, delta = {row['delta']:g}", row["bound"], row) for row in data["by_delta"]
    ]
    for row in data["validity"]:
        if row["group"] != "theory":
            bound, words = ("U", "U") if "U" in row["bounds"] else ("", "Bu, B, B-mean, B-exp")
            lines.append((f"{row['group']}: {words}", bound, row))
    for height, (_, bound, row) in enumerate(lines):
        low, high = row["interval"]
        axis.errorbar(
            row["worst"],
            height,
            xerr=[[row["worst"] - low], [high - row["worst"]]],
            color=COLOURS.get(bound, "black"),
            marker=MARKERS.get(bound, "o"),
            markersize=5,
            capsize=2,
            linestyle="none",
        )
    axis.axvline(1, color="black", linewidth=1)
    axis.set_xlim(left=-0.02)
    axis.set_xscale("symlog", linthresh=0.1)
    axis.xaxis.set_major_locator(FixedLocator([0, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20]))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.set_yticks(range(len(lines)), [label for label, _, _ in lines])
    axis.invert_yaxis()
    axis.set_xlabel(
        "failure rate / delta of the worst cell,\nwith simultaneous 95 % limits;\n"
        "valid: Bu, B, B-mean, B-exp left of 1, U right"
    )
    axis.set_title("validity", loc="left", fontweight="bold")


def _select(data: Row, keep: Callable[[Row], bool], placement: str) -> list[Row]:
    """Rows of a placement at DELTA that say something about rare inputs."""
    return [
        row
        for row in data["tightness"]
        if (row["placement"], row["delta"]) == (placement, DELTA) and row["rare"] and keep(row)
    ]


def _lines(axis: Axes, rows: list[Row], over: str, title: str) -> None:
    for bound in BOUNDS:
        mine = sorted((row for row in rows if row["bound"] == bound), key=lambda row: row[over])
        if mine:
            x = [row[over] for row in mine]
            low, middle, high = np.array([row["rare"] for row in mine]).T
            axis.plot(x, middle, color=COLOURS[bound], marker=MARKERS[bound], markersize=4, label=bound)
            axis.fill_between(x, low, high, color=COLOURS[bound], alpha=0.15, linewidth=0)
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(FixedLocator(_apart(sorted({row[over] for row in rows}))))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.xaxis.set_minor_locator(NullLocator())
    _ratio_axis(axis, "y")
    axis.set_xlabel("m, neurons of an expert" if over == "m" else "probability alpha of the rare class")
    axis.set_title(title, loc="left", fontweight="bold")


def _hardware(axis: Axes, rows: list[Row]) -> None:
    def name(row: Row) -> str:
        converters = f", {row['bits']} bits" if row["bits"] else ""
        return (
            f"{row['programming']}, {'per neuron' if row['w_max'] == 'column' else 'per expert'}{converters}"
        )

    names = list(dict.fromkeys(name(row) for row in rows))
    for row in rows:
        height = names.index(name(row)) + 0.14 * (BOUNDS.index(row["bound"]) - 2)
        low, middle, high = row["rare"]
        axis.errorbar(
            middle,
            height,
            xerr=[[middle - low], [high - middle]],
            color=COLOURS[row["bound"]],
            marker=MARKERS[row["bound"]],
            markersize=3.5,
            linewidth=0.8,
        )
    axis.set_yticks(range(len(names)), names)
    axis.invert_yaxis()
    _ratio_axis(axis, "x")
    axis.set_title("over hardware, frequent digital", loc="left", fontweight="bold")


def _apart(values: list[float]) -> list[float]:
    """Those whose labels do not run into each other on a logarithmic axis."""
    kept: list[float] = []
    for value in reversed(values):
        if not kept or kept[-1] / value > 1.3:
            kept.append(value)
    return kept


def _ratio_axis(axis: Axes, which: str) -> None:
    """From 1, a bound that could not be better."""
    (axis.set_xscale if which == "x" else axis.set_yscale)("log")
    mine = axis.xaxis if which == "x" else axis.yaxis
    mine.set_major_locator(FixedLocator([1, 2, 5, 10, 20, 50, 100, 1000, 10_000]))
    mine.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    mine.set_minor_locator(NullLocator())
