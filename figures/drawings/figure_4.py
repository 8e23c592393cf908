"""Draws figures 4 and 5: which experts to keep digital, and how far each choice is from MaxNNScore's.

Where there are tasks, accuracy on them, too.
"""

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from figures.drawings.rows import with_bounds
from figures.drawings.style import (
    GREY,
    HERMES,
    NOISE_AXIS,
    SCORE,
    STRATEGIES,
    W_MAX,
    WIDTH,
    C,
    legend_below,
    lengths,
    noise_name,
    noise_of,
    noises_of,
    other_hardware,
    percentage_points,
    styled,
    titled,
)
from theory.evidence import Finding, Result
from theory.paper import MAXNN_IS_BEST, RECOVERED, RECOVERED_AT

LABELS = {
    name: STRATEGIES[name].label
    for name in (
        "none",
        "maxnn",
        "activation_frequency",
        "activation_weight",
        "router_norm",
        "random",
        "minnn",
    )
}
DIFFERENCE = "loss of MaxNN - loss of "  # how the statistic of a paired difference begins
MEANING = (
    "Each strategy says which of the experts of a layer stay digital, and how many do is in the panel's title; all"
    f" other experts are on simulated analog hardware, the dense modules are digital. {SCORE}; router norm is the norm"
    " of an expert's row of the router; activation frequency and weight are how often and with how much routing weight"
    f" an expert is used. {C}. {W_MAX}. Bands and bars are 95 % intervals over noise draws and documents."
)
CAPTION = (
    "Left, curves of the recovered loss against programming noise, one for each strategy that keeps experts digital;"
    f" right, how much more each loses than MaxNNScore at c = {RECOVERED_AT.value:g}. A strategy right of 0 loses"
    " more than MaxNNScore, draw by draw and block by block; the number beside a bar is that difference, with its"
    " interval. Recovered is the loss increase with no expert digital, minus that with the strategy, over the"
    f" former. The grey bar is what is published for OLMoE and DeepSeekMoE, of accuracy. {MEANING}"
    f" {MAXNN_IS_BEST.cited}"
)
Panel = tuple[tuple[str, str], float]  # a noise and a budget


@styled
def draw(result: Result) -> Figure:
    """A row for each w_max and budget, under pcm: recovered loss, paired difference to MaxNN, tasks if any.

    Where pcm was not measured, it is the first noise that was.
    """
    return _recovered(result, _rows(result, _first(result)))


@styled
def draw_hermes(result: Result) -> Figure | None:
    """The same under hermes; None if the result has none."""
    rows = _rows(result, "hermes")
    return _recovered(result, rows) if rows and _first(result) != "hermes" else None


def _recovered(result: Result, rows: Sequence[Panel]) -> Figure:
    data = result.data
    tasks = data["digital"].get("tasks")
    figure = _figure(rows)
    widths = (1.15, 1, 1) if tasks else (1.15, 1)
    axes = figure.subplots(len(rows), len(widths), squeeze=False, width_ratios=widths)
    first: dict[tuple[str, str], Axes] = {}  # differences share their scale within a noise
    for row, panel, below in zip(axes, rows, (*rows[1:], None), strict=True):
        row[1].sharex(first.setdefault(panel[0], row[1]))
        row[1].tick_params(labelbottom=below is None or below[0] != panel[0])
        row[0].sharex(axes[0][0])
        row[0].sharey(axes[0][0])
        row[0].tick_params(labelbottom=below is None)
        _curves(row[0], result, panel, "recovered")
        row[0].yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))
        row[0].plot(
            [RECOVERED_AT.value] * 2, RECOVERED.value, color=GREY, alpha=0.35, linewidth=7, solid_capstyle="butt",
            label=f"published for accuracy: {RECOVERED.said}",
        )  # fmt: skip
        row[0].set_ylabel("loss recovered")
        row[0].set_title(_title(panel))
        _differences(row[1], result.findings, panel)
        if tasks:
            _curves(row[2], result, panel, "tasks_accuracy")
            row[2].axhline(tasks["mean"], color=GREY, linewidth=0.8)
            row[2].yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))
            row[2].set_ylabel("accuracy on the tasks")
            row[2].set_xlabel(NOISE_AXIS if row is axes[-1] else "")
    axes[0][1].set_title("Loss beyond MaxNNScore's")
    axes[-1][0].set_xlabel(NOISE_AXIS)
    axes[-1][1].set_xlabel("thousandths of a nat per token")
    legend_below(figure, axes[0][0], columns=2)
    titled(figure, _message(result, rows), _measured(result))
    return figure


@styled
def draw_loss(result: Result) -> Figure:
    """The loss increase and the change of accuracy, under the same noise as `draw`."""
    rows = _rows(result, _first(result))
    figure = _figure(rows)
    axes = figure.subplots(len(rows), 2, squeeze=False, sharex=True)
    first: dict[tuple[str, str], Sequence[Axes]] = {}  # panels share their scale within a noise
    for row, panel in zip(axes, rows, strict=True):
        for axis, other, quantity in zip(
            row, first.setdefault(panel[0], row), ("loss_change", "accuracy_change"), strict=True
        ):
            axis.sharey(other)
            _curves(axis, result, panel, quantity)
        row[0].set_ylabel("loss increase,\nnats per token")
        row[1].set_ylabel("change of accuracy,\npercentage points")
        row[1].yaxis.set_major_formatter(percentage_points())
        row[0].set_title(_title(panel))
    for axis in axes[-1]:
        axis.set_xlabel(NOISE_AXIS)
    legend_below(figure, axes[0][0], columns=4)
    titled(figure, "What noise on the experts costs, by which experts stay digital", _measured(result))
    return figure


PARTS = {
    "hermes": (
        draw_hermes,
        (
            "Curves of the recovered loss against the programming noise of another chip, hermes, and beside them"
            f" how much more each strategy loses than MaxNNScore. {HERMES}. All else is as in the picture before."
        ),
    ),
    "loss": (
        draw_loss,
        (
            "Curves of the loss increase and of next-token top-1 accuracy against programming noise, one for each"
            f" strategy that keeps experts digital. {MEANING}"
        ),
    ),
}


def table(result: Result) -> list[dict[str, Any]]:
    """The curves, one row for each placement, magnitude and noise."""
    return with_bounds(result.data["curves"])


def _first(result: Result) -> str:
    return noises_of(result.data["curves"])[0][0]


def _rows(result: Result, programming: str) -> list[Panel]:
    """The panels of one programming noise, in order."""
    panels = dict.fromkeys(
        (noise_of(curve), curve["digital_fraction"])
        for curve in result.data["curves"]
        if curve["strategy"] != "none"
    )
    return [panel for panel in panels if panel[0][0] == programming]


def _figure(rows: Sequence[Panel]) -> Figure:
    """A figure with room for so many rows of panels."""
    return Figure(figsize=(WIDTH, 1.65 * len(rows) + 1.5))


def _title(panel: Panel) -> str:
    noise, fraction = panel
    return f"{noise_name(noise)}, {100 * fraction:g} % digital"


def _message(result: Result, rows: Sequence[Panel]) -> str:
    """What MaxNN recovers at least and at most, at the c of the rules, or else at the largest."""
    magnitudes = {curve["c"] for curve in result.data["curves"]}
    c = RECOVERED_AT.value if RECOVERED_AT.value in magnitudes else max(magnitudes)
    found = [
        curve["recovered"]
        for curve in result.data["curves"]
        if curve["strategy"] == "maxnn"
        and curve["c"] == c
        and (noise_of(curve), curve["digital_fraction"]) in rows
    ]
    return (
        f"At c = {c:g}, digital experts chosen by MaxNNScore recover {100 * min(found):.0f} to"
        f" {100 * max(found):.0f} % of the loss"
    )


def _measured(result: Result) -> str:
    data = result.data
    digital = data["digital"]
    text = (
        f"{data['model']}; all digital: loss {digital['loss']['mean']:.3f} nats per token, top-1 accuracy"
        f" {100 * digital['accuracy']['mean']:.1f} %; {data['blocks']} blocks of {data['block_tokens']} tokens"
        f"{other_hardware(result)}"
    )
    if "tasks" in digital:
        tasks = digital["tasks"]
        each = ", ".join(f"{name} ({found['questions']})" for name, found in tasks["each"].items())
        text += f". Tasks (questions): {each}; accuracy {tasks['mean']:.1%} when all digital (grey line)"
    return text


def _differences(axis: Axes, findings: Sequence[Finding], panel: Panel) -> None:
    """How much more each strategy loses than MaxNN, from the findings that judge it."""
    (programming, w_max), fraction = panel
    other = "" if programming == "pcm" else f", {programming}"
    where = f"w_max per {w_max}{other}, {fraction:.1%} of experts digital"
    found = {
        finding.statistic.removeprefix(DIFFERENCE).partition(" at c")[0]: finding
        for finding in findings
        if finding.statistic.startswith(DIFFERENCE) and finding.claim.endswith(where)
    }
    shown = [strategy for strategy in LABELS if strategy in found]
    for place, strategy in enumerate(shown):
        middle = -1000 * found[strategy].estimate
        bounds = found[strategy].interval
        interval = None if bounds is None else (-1000 * bounds[1], -1000 * bounds[0])
        look = STRATEGIES[strategy]
        axis.errorbar(
            [middle],
            [place],
            xerr=lengths([middle], [interval]),
            fmt=look.marker,
            color=look.colour,
            capsize=2,
        )
        written = f"{middle:+.1f}"
        if interval:
            written += " [{:+.1f}, {:+.1f}]".format(*interval)
        axis.annotate(
            written.replace("-", "\N{MINUS SIGN}"),
            (1.0, place),
            xycoords=("axes fraction", "data"),
            ha="left",
            va="center",
            fontsize=8,
        )
    axis.axvline(0, color=STRATEGIES["maxnn"].colour, linewidth=1.4)
    axis.set_yticks(range(len(shown)), [LABELS[strategy] for strategy in shown])
    axis.set_ylim(len(shown) - 0.4, -0.6)
    axis.grid(visible=False, axis="y")


def _curves(axis: Axes, result: Result, panel: Panel, quantity: str) -> None:
    noise, fraction = panel
    for strategy in LABELS:
        if quantity == "recovered" and strategy == "none":
            continue
        curve = sorted(
            (
                each
                for each in result.data["curves"]
                if (noise_of(each), each["strategy"]) == (noise, strategy)
                and (strategy == "none" or each["digital_fraction"] == fraction)
            ),
            key=lambda each: float(each["c"]),
        )
        # An unbounded ratio has no band; where nothing was lost there is nothing to recover.
        curve = [each for each in curve if each[f"{quantity}_interval"] is not None]
        c = [each["c"] for each in curve]
        look = STRATEGIES[strategy]
        axis.plot(c, [each[quantity] for each in curve], **look.kwargs)
        low = [each[f"{quantity}_interval"][0] for each in curve]
        high = [each[f"{quantity}_interval"][1] for each in curve]
        axis.fill_between(c, low, high, color=look.colour, alpha=0.1, linewidth=0)
