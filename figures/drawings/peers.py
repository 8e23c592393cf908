"""Draws Figure 3's findings on three simulators, and how far the peers are from ours."""

import math
from textwrap import fill
from typing import Any

import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from figures.drawings.rows import with_bounds
from theory.evidence import Result

SIMULATORS = {"ours": "this project", "aihwkit": "aihwkit", "lightning": "aihwkit-lightning"}
TITLES = {"tile": "w_max per tile (our default)", "column": "w_max per column of a tile"}
EQUIVALENT = 0.02  # rule 2
CONVERTERS = 0.01  # figure 3's rule 3, nats per token
LABEL_WIDTH = 10  # characters


def draw(result: Result) -> Figure:
    """A row of panels for each granularity of w_max; bars are 95 % intervals."""
    granularities = list(dict.fromkeys(curve["w_max"] for curve in result.data["curves"]))
    colours = dict(zip(SIMULATORS, sns.color_palette("colorblind"), strict=False))
    with sns.axes_style("whitegrid"), sns.plotting_context("paper"):
        figure = Figure(figsize=(11, 3.3 * len(granularities) + 1.2), layout="constrained")
        axes = figure.subplots(
            len(granularities), 3, squeeze=False, sharex="col", sharey="col", width_ratios=(5, 4, 2)
        )
    for row, w_max in zip(axes, granularities, strict=True):
        curves = [curve for curve in result.data["curves"] if curve["w_max"] == w_max]
        differences = [each for each in result.data["differences"] if each["w_max"] == w_max]
        with_noise = [curve for curve in curves if curve["c"]]
        _points(row[0], with_noise, "loss_change", "loss_change_interval", colours)
        row[0].set_ylabel("loss increase, nats per token")
        row[0].set_title(TITLES[w_max], loc="left", fontweight="bold")
        _points(row[1], [each for each in differences if each["c"]], "share", "share_interval", colours)
        row[1].axhspan(-EQUIVALENT, EQUIVALENT, color="grey", alpha=0.15, linewidth=0)
        row[1].set_ylabel("(loss on peer - on ours)\n/ loss increase on ours")
        row[1].yaxis.set_major_formatter(PercentFormatter(1.0, decimals=1))
        without = [curve for curve in curves if not curve["c"]]
        _points(row[2], without, "loss_change", "loss_change_interval", colours)
        row[2].axhline(CONVERTERS, color="grey", linestyle="--")
        row[2].set_ylabel("loss increase, nats per token")
    handles, names = axes[0, 0].get_legend_handles_labels()
    labels = [f"{SIMULATORS[name]} {result.data['versions'][name]}".strip() for name in names]
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    figure.suptitle(_title(result), fontsize="small")
    return figure


def table(result: Result) -> list[dict[str, Any]]:
    """The loss increases, one row for each simulator, granularity, part and magnitude."""
    return with_bounds(result.data["curves"])


def _title(result: Result) -> str:
    verdicts: dict[str, set[str]] = {}
    for finding in result.findings:
        rule, on, _ = finding.claim.partition("; on ")
        if on:
            verdicts.setdefault(rule, set()).add(finding.verdict)
    same = sum(len(found) == 1 for found in verdicts.values())
    return (
        f"{result.data['model']}, {result.data['blocks']} blocks of {result.data['block_tokens']} tokens; the same"
        f" programmed weights on three simulators. {same} of {len(verdicts)} of figure 3's findings have the same"
        " verdict on all.\nLeft: increases with programming noise; middle: differences, the band is what counts as"
        " equal; right: converters alone, the line is figure 3's rule."
    )


def _points(
    axis: Axes, rows: list[dict[str, Any]], value: str, interval: str, colours: dict[str, Any]
) -> None:
    """Each part and magnitude a place on the x axis, the simulators side by side."""
    places = list(dict.fromkeys((row["part"], row["c"]) for row in rows))
    names = [name for name in SIMULATORS if any(row["simulator"] == name for row in rows)]
    for number, name in enumerate(names):
        shift = 0.2 * (number - (len(names) - 1) / 2)
        mine = [row for row in rows if row["simulator"] == name]
        x = [places.index((row["part"], row["c"])) + shift for row in mine]
        middle = [row[value] for row in mine]
        intervals = [
            row[interval] or (math.nan, math.nan) for row in mine
        ]  # unbounded: a point without a bar
        low = [centre - bounds[0] for centre, bounds in zip(middle, intervals, strict=True)]
        high = [bounds[1] - centre for centre, bounds in zip(middle, intervals, strict=True)]
        axis.errorbar(
            x, middle, (low, high), fmt="o", markersize=4, capsize=2, color=colours[name], label=name
        )
    labels = [fill(part, LABEL_WIDTH) + f"\nc = {c:g}" for part, c in places]
    axis.set_xticks(range(len(places)), labels)
    axis.set_xlim(-0.5, len(places) - 0.5)
    axis.grid(False, axis="x")
