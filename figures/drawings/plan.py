"""The pictures of `plan`: what quality costs, and which experts were chosen."""

import math
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FixedLocator, MaxNLocator, NullLocator, PercentFormatter
from numpy.typing import NDArray

from figures.drawings.style import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    SKY,
    STYLE,
    VERMILLION,
    WIDTH,
    lengths,
    titled,
)
from figures.plan import names
from realmodels.items import MAXNN, RANDOM
from realmodels.plan_file import THE_PLAN, Plan

LABELS = {
    "share": "digital share of parameters",
    "energy": "energy per token",
    "throughput": "throughput, tokens/s",
}
LOOKS: dict[str, dict[str, Any]] = {
    MAXNN: {"color": BLUE, "linestyle": "--", "label": "MaxNNScore, dense digital"},
    RANDOM: {"color": GREY, "linestyle": ":", "label": "random choice, dense digital"},
}
COLOURS = (VERMILLION, ORANGE, PURPLE, GREEN, SKY)  # of further plans
MARKERS = ("o", "s", "D", "^", "v")
BELOW = -0.02  # start of the axis of losses, of its end
LAYER_INCHES = 0.11  # of a row of the heat map
LEGEND_COLUMNS, LEGEND_INCHES = 3, 0.17  # of a row of the legend
LONGEST = 22  # letters of a plan's name in a legend


def frontier(plans: Sequence[Plan]) -> Figure:
    """Predicted loss increase against share, energy and throughput: lines; measured placements: points.

    plans: the plan, and others to compare it with.
    """
    with mpl.rc_context(STYLE):
        first = plans[0]
        labels = 1 + len(LOOKS) + len(first.outcomes) + 2 * len(plans[1:])
        height = 3.3 + LEGEND_INCHES * math.ceil(labels / LEGEND_COLUMNS)
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        panels = figure.subplots(1, 3, sharey=True)
        for axis, panel in zip(LABELS, panels, strict=True):
            _line(panel, first, first.score, axis, color=BLACK, label=f"best by {first.score}")
            for score, look in LOOKS.items():
                _line(panel, first, score, axis, **look)
            for other, name, colour in zip(
                plans[1:], map(_short, names(plans)[1:]), COLOURS * len(plans), strict=False
            ):
                look = {"color": colour, "linestyle": "-", "label": f"best for {name}"}
                _line(panel, other, other.score, axis, **look)
                _point(panel, other, THE_PLAN, axis, color=colour, marker="*", label=f"its plan: {name}")
            for (name, _), marker in zip(first.outcomes.items(), MARKERS, strict=False):
                colour = BLACK if name == THE_PLAN else BLUE
                _point(panel, first, name, axis, color=colour, marker=marker, label=f"{name}, measured")
            panel.set_xlabel(LABELS[axis])
            if axis == "share":
                panel.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
            else:
                _log_axis(panel, "J" if axis == "energy" else "")
        panels[0].set_ylabel("loss increase, nats per token")
        points = [each.measured for plan in plans for each in plan.outcomes.values()]
        top, low = panels[0].get_ylim()[1], min(0.0, *points)
        panels[0].set_ylim(bottom=low + BELOW * (top - low))  # a line at 0 is seen, and every point
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=LEGEND_COLUMNS)
        found, name = first.outcome, _plain(first.model)
        titled(
            figure,
            f"{name}: {found.share:.1%} of the parameters digital cost {found.measured:.3f} nats per token",
            f"Lines: predicted. Points: measured, held-out text, 95 % intervals. {_hardware(first)}",
        )
        return figure


def _plain(text: str) -> str:
    """The text, of which matplotlib takes nothing for mathematics."""
    return text.replace("$", r"\$")


def _short(name: str) -> str:
    """With its end, which tells equal ones apart."""
    return _plain(name if len(name) <= LONGEST else f"{name[: LONGEST - 11]}...{name[-8:]}")


def _log_axis(panel: Axes, unit: str) -> None:
    """Few ticks, in units such as mJ."""
    panel.set_xscale("log")
    low, high = panel.get_xlim()
    few = high / low > 30
    step = max(1, round(math.log10(high / low) / 3))
    ticks = [
        digit * 10.0**power
        for power in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        if not few or power % step == 0
        for digit in ((1,) if few else (1, 2, 5))
    ]
    panel.xaxis.set_major_locator(FixedLocator([tick for tick in ticks if low <= tick <= high]))
    panel.xaxis.set_major_formatter(EngFormatter(unit, sep="" if not unit else " "))
    panel.xaxis.set_minor_locator(NullLocator())


def _line(panel: Axes, plan: Plan, score: str, axis: str, **look: Any) -> None:
    """The least loss within a budget stays until the next choice fits; a score's energy can fall as its share rises."""
    x, y = np.array(plan.frontiers[score][axis]).T
    steps = score == plan.score or axis == "share"
    panel.plot(x, y, drawstyle="steps-post" if steps else "default", **look)


def _point(panel: Axes, plan: Plan, name: str, axis: str, **look: Any) -> None:
    each = plan.outcomes[name]
    panel.errorbar(
        [getattr(each, axis)],
        [each.measured],
        yerr=lengths([each.measured], [each.interval]),
        linestyle="none",
        capsize=2,
        zorder=3,
        **look,
    )


def experts(plan: Plan) -> Figure:
    """Score, load and choice of every expert: layers from top to bottom, experts from left to right."""
    with mpl.rc_context(STYLE):
        score, load = np.array(plan.ranking), np.array(plan.load)
        chosen = np.zeros(score.shape)
        for row, digital in zip(chosen, plan.placement.digital_experts, strict=True):
            row[list(digital)] = 1
        figure = Figure(figsize=(WIDTH, 1.3 + 3 * max(0.85, LAYER_INCHES * len(score))), layout="constrained")
        panels = figure.subplots(3, 1, sharex=True)
        unit = ", nats per token" if plan.ranking == plan.damage else ""
        drawn: tuple[tuple[str, Any, dict[str, Any]], ...] = (
            (f"score: {plan.score}{unit}", score, {"norm": _norm(score)}),
            ("load: share of the tokens", load, {"vmin": 0.0}),
            ("choice", chosen, {"cmap": ListedColormap(["#e4e4e4", BLACK]), "vmin": 0, "vmax": 1}),
        )
        for panel, (title, values, look) in zip(panels, drawn, strict=True):
            image = panel.imshow(
                values, aspect="auto", interpolation="nearest", **{"cmap": "viridis", **look}
            )
            panel.set_title(title)
            panel.set_ylabel("layer")
            panel.grid(visible=False)
            panel.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
            bar = figure.colorbar(
                image, ax=panel, pad=0.01, ticks=[0.25, 0.75] if title == "choice" else None
            )
            if title == "choice":
                bar.ax.set_yticklabels(["analog", "digital"])
        panels[-1].set_xlabel("expert")
        panels[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
        titled(
            figure,
            f"{_plain(plan.model)}: {plan.outcome.digital_experts} of {score.size} experts are digital",
            _hardware(plan),
        )
        return figure


def _norm(score: NDArray[np.float64]) -> Normalize:
    """Logarithmic if no score is negative and some differ by a factor."""
    positive = score[score > 0]
    if not positive.size or score.min() < 0:
        return Normalize()
    low, high = positive.min(), positive.max()
    return LogNorm(low, max(high, low * 1.01))


def _hardware(plan: Plan) -> str:
    hardware = plan.hardware
    return (
        f"Noise {hardware.programming}, c = {hardware.c:g}, w_max per {hardware.w_max}; batch {plan.batch}."
    )
