"""Draws smol-moe's accuracy on the paper's tasks: against noise, and by which experts stay digital."""

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from figures.drawings.rows import with_bounds
from figures.drawings.style import (
    BLACK,
    BLUE,
    GREY,
    HERMES,
    NOISE_AXIS,
    NOISES,
    SCORE,
    STRATEGIES,
    VERMILLION,
    W_MAX,
    WIDTH,
    C,
    legend_below,
    lengths,
    noise_of,
    percentage_points,
    styled,
    titled,
)
from theory.evidence import Result
from theory.paper import DENSE_HURTS_MORE, MAXNN_IS_BEST, RECOVERED_AT

Row = dict[str, Any]
# What the lines against noise are: strategy, digital fraction, whether the dense modules are digital; their look.
LINES = (
    (("none", 0.0, True), "all experts analog", BLACK, "x", ":"),
    (("maxnn", 0.125, True), "12.5 % of experts digital, by MaxNNScore", BLUE, "o", "--"),
    (("maxnn", 0.25, True), "25 % of experts digital, by MaxNNScore", BLUE, "o", "-"),
    (("maxnn", 1.0, False), "dense modules analog, all experts digital", VERMILLION, "s", "-."),
)
RANKED = (
    "maxnn",
    "activation_weight",
    "activation_frequency",
    "router_norm",
    "random",
    "minnn",
)
MESSAGE = "What noise takes from a pretrained model's accuracy, and what stays"
SETTING = (
    f"All other modules are on simulated analog hardware with 8-bit converters. {SCORE}. {C}. {HERMES}. {W_MAX}. Bars"
    " are 95 % intervals of the difference to the grey line, over noise draws and questions. smol-moe is"
    " SmolLM2-135M-Instruct made into a mixture of experts (docs/smol-moe.md)."
)
CAPTION = (
    "Curves of smol-moe's accuracy, the mean over those of the paper's tasks that are at hand, against programming"
    f" noise, a panel for each kind of noise; the grey line is the digital model. {SETTING} {DENSE_HURTS_MORE.cited}"
)
STRATEGY_CAPTION = (
    f"Points: what each choice of digital experts gives back at c = {RECOVERED_AT.value:g}, in percentage points over"
    " no digital expert, a panel for each kind of noise. The grey line is all that noise took; the dense modules are"
    f" digital. {SETTING.replace('to the grey line', 'to no digital expert')} {MAXNN_IS_BEST.cited}"
)


def _key(row: Row) -> tuple[str, float, bool]:
    return row["strategy"], row["digital_fraction"], row["dense"]


def _panels(
    result: Result, rows: Sequence[Row], height: float
) -> tuple[Figure, list[tuple[Axes, list[Row]]]]:
    noises = [each for each in NOISES if any(noise_of(row) == each for row in rows)]
    figure = Figure(figsize=(WIDTH, height))
    axes = figure.subplots(1, len(noises), squeeze=False, sharex=True, sharey=True)[0]
    for axis, noise in zip(axes, noises, strict=True):
        axis.set_title(NOISES[noise])
    return figure, [
        (axis, [row for row in rows if noise_of(row) == noise])
        for axis, noise in zip(axes, noises, strict=True)
    ]


@styled
def draw(result: Result) -> Figure:
    """A panel for each noise: accuracy against c."""
    digital = result.data["digital"]
    figure, panels = _panels(result, result.data["curves"], 3.6)
    for axis, rows in panels:
        axis.axhline(digital["accuracy"], color=GREY, linewidth=0.8)
        for key, label, colour, marker, line in LINES:
            of_line = sorted((row for row in rows if _key(row) == key and row["c"]), key=lambda row: row["c"])
            axis.errorbar(
                [row["c"] for row in of_line],
                [row["accuracy"] for row in of_line],
                yerr=lengths(
                    [row["accuracy_change"] for row in of_line],
                    [row["accuracy_change_interval"] for row in of_line],
                ),
                color=colour, marker=marker, linestyle=line, capsize=2, label=label,
            )  # fmt: skip
        axis.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))
        axis.set_xlabel(NOISE_AXIS)
    panels[0][0].set_ylabel("accuracy, mean over tasks")
    legend_below(figure, panels[0][0], columns=2)
    titled(
        figure,
        "What noise takes from a pretrained model's accuracy, and what digital experts keep",
        _measured(result),
    )
    return figure


@styled
def draw_strategies(result: Result) -> Figure:
    """A panel for each noise: accuracy given back at the rules' c, by strategy and budget."""
    rows = [row for row in result.data["curves"] if row["c"] == RECOVERED_AT.value and row["dense"]]
    figure, panels = _panels(result, rows, 3.2)
    fractions = sorted({row["digital_fraction"] for row in rows if row["strategy"] != "none"})
    for axis, of_noise in panels:
        (none,) = (row for row in of_noise if row["strategy"] == "none")
        axis.axvline(-none["accuracy_change"], color=GREY, linewidth=0.8)
        axis.axvline(0.0, color=GREY, linewidth=0.8, linestyle=":")
        for number, fraction in enumerate(fractions):
            chosen = {row["strategy"]: row for row in of_noise if row["digital_fraction"] == fraction}
            for place, strategy in enumerate(RANKED):
                row, look = chosen[strategy], STRATEGIES[strategy]
                axis.errorbar(
                    row["gain"],
                    place + 0.18 * (1 - 2 * number),
                    xerr=lengths([row["gain"]], [row["gain_interval"]]),
                    fmt=look.marker, color=look.colour, capsize=2,
                    markerfacecolor=look.colour if number else "white",
                )  # fmt: skip
        axis.xaxis.set_major_formatter(percentage_points())
    first = panels[0][0]
    first.set_yticks(range(len(RANKED)), [STRATEGIES[name].label for name in RANKED])
    first.invert_yaxis()
    figure.supxlabel("accuracy given back, percentage points", fontsize=9)
    titled(
        figure,
        "Which digital experts give accuracy back",
        f"{_measured(result)}; hollow: {fractions[0]:.1%} of experts digital, filled: {fractions[-1]:.0%}",
    )
    return figure


def _measured(result: Result) -> str:
    digital = result.data["digital"]
    questions = sum(each["questions"] for each in digital["each"].values())
    return (
        f"{result.data['model']}: {digital['accuracy']:.1%} right when all digital, of {questions:,} questions in"
        f" {len(digital['each'])} tasks"
    )


PARTS = {"strategies": (draw_strategies, STRATEGY_CAPTION)}


def table(result: Result) -> list[Row]:
    """One row for each noise, placement and magnitude, with a column for each task."""
    return [
        {**{name: value for name, value in row.items() if name != "each"}, **row["each"]}
        for row in with_bounds(result.data["curves"])
    ]
