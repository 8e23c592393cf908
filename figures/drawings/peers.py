"""Draws Figure 3's findings on three simulators, and how far the peers are from ours."""

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from figures.drawings.rows import with_bounds
from figures.drawings.style import (
    BLUE,
    GRANULARITIES,
    GREEN,
    GREY,
    VERMILLION,
    W_MAX,
    WIDTH,
    C,
    lengths,
    styled,
    titled,
)
from theory.evidence import Result

SIMULATORS = {"ours": "this project", "aihwkit": "aihwkit", "lightning": "aihwkit-lightning"}
LOOKS: dict[str, dict[str, Any]] = {
    "ours": {"color": BLUE, "fmt": "o"},
    "aihwkit": {"color": VERMILLION, "fmt": "s"},
    "lightning": {"color": GREEN, "fmt": "^"},
}
EQUIVALENT = 0.02  # rule 2
CONVERTERS = 0.01  # figure 3's rule 3, nats per token
MEANING = (
    "The same programmed weights, placement and text are on three simulators: ours and two of IBM's. The named part is"
    f" on simulated analog hardware. {C}. {W_MAX}. Bars are 95 % intervals over noise draws and documents."
)
CAPTION = (
    "Points with bars: the loss on each of IBM's simulators minus that on ours, relative to the loss increase on"
    f" ours, a row for each analog part and magnitude of noise. The grey band is the {100 * EQUIVALENT:g} percent"
    f" that count as equal. {MEANING}"
)


@styled
def draw(result: Result) -> Figure:
    """Differences of the peers to ours, relative to the loss increase, a panel for each granularity."""
    rows = [each for each in result.data["differences"] if each["c"]]
    figure, axes = _panels(result, rows, "share", "share_interval")
    for axis in axes:
        axis.axvspan(-EQUIVALENT, EQUIVALENT, color=GREY, alpha=0.15, linewidth=0)
        axis.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))
    return _finished(
        figure, axes, result, "difference, over our loss increase", "How far IBM's simulators are from ours"
    )


@styled
def draw_loss(result: Result) -> Figure:
    """The loss increase with programming noise."""
    rows = [each for each in result.data["curves"] if each["c"]]
    figure, axes = _panels(result, rows, "loss_change", "loss_change_interval")
    return _finished(
        figure,
        axes,
        result,
        "loss increase, nats per token",
        "What programming noise costs, on three simulators",
    )


@styled
def draw_converters(result: Result) -> Figure:
    """The loss increase by converters alone."""
    rows = [each for each in result.data["curves"] if not each["c"]]
    figure, axes = _panels(result, rows, "loss_change", "loss_change_interval")
    for axis in axes:
        axis.axvline(CONVERTERS, color=GREY, linestyle="--")
        axis.xaxis.set_major_locator(MaxNLocator(4))  # long numbers
    return _finished(
        figure,
        axes,
        result,
        "loss increase, nats per token",
        "What 8-bit converters alone cost, on three simulators",
    )


PARTS = {
    "loss": (
        draw_loss,
        (
            "Points for three simulators, one over the other: the loss increase with programming noise, a row for"
            f" each analog part and magnitude of noise. {MEANING}"
        ),
    ),
    "converters": (
        draw_converters,
        (
            "Points for three simulators, one over the other: the loss increase by converters alone, without"
            f" programming noise. The dashed line is the most that figure 3's rule on converters allows. {MEANING}"
        ),
    ),
}


def table(result: Result) -> list[dict[str, Any]]:
    """The loss increases, one row for each simulator, granularity, part and magnitude."""
    return with_bounds(result.data["curves"])


def _panels(result: Result, rows: list[dict[str, Any]], value: str, interval: str) -> tuple[Figure, Any]:
    """A panel for each granularity, a line for each part and magnitude, the simulators one below the other."""
    granularities = list(dict.fromkeys(curve["w_max"] for curve in result.data["curves"]))
    places = list(dict.fromkeys((row["part"], row["c"]) for row in rows))
    figure = Figure(figsize=(WIDTH, 0.45 * len(places) + 1.9))
    axes = figure.subplots(1, len(granularities), squeeze=False, sharex=True, sharey=True)[0]
    for axis, w_max in zip(axes, granularities, strict=True):
        _points(axis, [row for row in rows if row["w_max"] == w_max], places, value, interval)
        axis.axvline(0, color=GREY, linewidth=0.8)
        axis.set_title(GRANULARITIES[w_max])
        axis.grid(visible=False, axis="y")
    axes[0].set_yticks(range(len(places)), [f"{part}\nc = {c:g}" for part, c in places])
    axes[0].set_ylim(len(places) - 0.5, -0.5)
    return figure, axes


def _points(
    axis: Axes, rows: list[dict[str, Any]], places: Sequence[tuple[str, float]], value: str, interval: str
) -> None:
    names = [name for name in SIMULATORS if any(row["simulator"] == name for row in rows)]
    for number, name in enumerate(names):
        shift = 0.22 * (number - (len(names) - 1) / 2)
        mine = [row for row in rows if row["simulator"] == name]
        middle = [row[value] for row in mine]
        axis.errorbar(
            middle,
            [places.index((row["part"], row["c"])) + shift for row in mine],
            xerr=lengths(middle, [row[interval] for row in mine]),  # unbounded: a point without a bar
            capsize=2,
            label=name,
            **LOOKS[name],
        )


def _finished(figure: Figure, axes: Any, result: Result, label: str, message: str) -> Figure:
    """The figure with labels, legend and title."""
    for axis in axes:
        axis.set_xlabel(label)
    handles, names = axes[0].get_legend_handles_labels()
    labels = [f"{SIMULATORS[name]} {result.data['versions'][name]}".strip() for name in names]
    figure.legend(handles, labels, loc="outside lower center", ncols=3)
    verdicts: dict[str, set[str]] = {}
    for finding in result.findings:
        rule, on, _ = finding.claim.partition("; on ")
        if on:
            verdicts.setdefault(rule, set()).add(finding.verdict)
    same = sum(len(found) == 1 for found in verdicts.values())
    titled(
        figure,
        message,
        f"{result.data['model']}, {result.data['blocks']} blocks of {result.data['block_tokens']} tokens. {same} of"
        f" {len(verdicts)} of figure 3's findings have the same verdict on all three",
    )
    return figure
