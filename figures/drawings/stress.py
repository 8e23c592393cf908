"""Draws where MaxNN pays, why, how that depends on frequency, and the rule of thumb."""

import math
from collections.abc import Callable
from itertools import product
from textwrap import fill
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm
from matplotlib.figure import Figure

from figures.drawings.rows import with_bounds
from figures.drawings.style import (
    BLACK,
    BLUE,
    GREEN,
    SMALLEST,
    VERMILLION,
    WIDTH,
    heat,
    legend_below,
    lengths,
    log_ticks,
    styled,
    titled,
)
from theory.evidence import Result

Row = dict[str, Any]

ROWS, COLUMNS = ("expert", "routing", "loss"), ("optimiser", "length")
OPTIMISERS = {
    "sgd": ("SGD", BLUE, "o", "-"),
    "momentum": ("momentum", GREEN, "s", "--"),
    "adamw": ("AdamW", VERMILLION, "^", ":"),
}
WORDS = {
    **{name: look[0] for name, look in OPTIMISERS.items()},
    "one_layer": "one layer", "two_layer": "two layers", "gated": "gated",
    "expert_choice": "expert choice", "token_choice": "token choice",
}  # fmt: skip
NOT_LEARNED = 0.5  # a cell is marked where fewer of the seeds have learned
END = 8.0  # factor at which the colours of a map end
FACTORS = (0.125, 0.25, 0.5, 1, 2, 4, 8)
SHADES, COLOURS = 25, 256  # shades in a map, the middle one white; colours they are taken from
LINE_LETTERS = 112  # longest line of reasons
SETTING = (
    "Rows: type of expert, routing (expert choice: experts take tokens; token choice: tokens take experts) and loss."
    " Columns: optimiser and length of training, in units of that to the paper's stop rule."
)
GAIN = (
    "The tolerance c* is the largest magnitude of programming noise at which the worse class keeps an accuracy of 95"
    " %; a gain is c* with the four experts of the largest MaxNNScore digital over c* of the choice named, 1 where a"
    " model has not learned. The largest weight w_max, to which noise is relative, is that of an expert (layer) or"
    " of a neuron (column)."
)
MEANS = "Means over training seeds and over the probabilities α of the rare class; ρ = (1 - α)/α."
CAPTION = (
    "A map of the gain of MaxNN over random choice, a row for each type of expert, routing and loss, a column for"
    " each optimiser and length of training. Crosses: fewer than half of the models have learned both classes."
    f" {GAIN} {SETTING} {MEANS}"
)
GAINS_CAPTION = (
    "Four maps of MaxNN's gain: over random choice with the largest weight taken per expert and per neuron, over"
    f" nothing digital, and over the frequent specialists. {GAIN} {SETTING} {MEANS}"
)
NORMS = (
    "Two maps, left of the ratio of the norms of frequent and rare neurons, right of the rank correlation of"
    " MaxNNScore with frequency, by kind of network and training. Left: ν_F/ν_R over the ratio ρ of frequencies."
    " Right: Spearman's correlation among four kinds of token whose frequencies follow Zipf's law. Below: the"
    f" theory's reason for each region; letters in brackets are statements of docs/theory.md. {SETTING} {MEANS}"
)
FREQUENCY = (
    "Curves of the ratio of norms and of the gain of MaxNN against the ratio ρ of frequencies, one for each"
    " optimiser, a column for each length of training. Top: ratio of the norms of frequent and rare neurons; black:"
    " ρ. Bottom: gain over random choice; 1 is no gain. Length 1× is the paper's stop rule. Experts of one layer,"
    " hinge loss, expert choice, w_max per expert; bars are 95 % intervals over training seeds. ρ = (1 - α)/α with α"
    f" the probability of the rare class. {GAIN}"
)
RULE = (
    "Gain of MaxNN over random choice against a statistic of the scores, a point for each trained network that has"
    " learned both classes. Dashed: the threshold of the rule in the title; dotted: the gain from which on MaxNN"
    " pays. Top over rest is the mean MaxNNScore of the experts that would be digital over that of the others; it"
    " needs no frequencies. Threshold and statistic are chosen on the design networks (hollow) and tested on the"
    f" others (filled). {GAIN}"
)


@styled
def draw(result: Result) -> Figure:
    """The gain over random choice."""
    figure = Figure(figsize=(WIDTH, 4.6))
    axis = figure.subplots()
    image = _map(axis, result, "layer", _gain("gain over random"), END, learned=True)
    bar = figure.colorbar(image, ax=axis, pad=0.02, aspect=30)
    _bar_ticks(bar, FACTORS)
    bar.set_label("c* of MaxNN / c* of random choice")
    titled(
        figure,
        "How much more noise is tolerated with MaxNN than with random choice",
        f"w_max per expert; {_means(result)}",
    )
    return figure


@styled
def draw_gains(result: Result) -> Figure:
    """The gain with w_max per neuron, over nothing digital, and over the oracle."""
    figure = Figure(figsize=(WIDTH, 7.2))
    axes = figure.subplots(2, 2)
    panels = (
        ("over random, w_max per expert", "layer", "gain over random"),
        ("over random, w_max per neuron", "column", "gain over random"),
        ("over nothing digital", "layer", "gain over none"),
        ("over frequent specialists", "layer", "gain over oracle"),
    )
    for axis, (title, w_max, name) in zip(axes.flat, panels, strict=True):
        image = _map(axis, result, w_max, _gain(name), END, rows=axis in axes[:, 0])
        axis.set_title(title)
    bar = figure.colorbar(image, ax=axes, location="bottom", aspect=45, pad=0.02)
    _bar_ticks(bar, FACTORS)
    bar.set_label("c* of MaxNN / c* of the choice in the title; w_max per expert but for one")
    titled(
        figure,
        "How much more noise is tolerated with MaxNN than with other choices",
        _means(result),
    )
    return figure


@styled
def draw_norms(result: Result) -> Figure:
    """Ratio of norms over rho, rank correlation of score and frequency, and the reasons."""
    figure = Figure(figsize=(WIDTH, 6.6))
    ratios, ranks = figure.subplots(1, 2)
    panels: tuple[tuple[Axes, str, Callable[[Row], float], float | None, tuple[float, ...]], ...] = (
        (ratios, "norms: $(\\nu_F/\\nu_R)/ρ$", lambda row: math.log(row["ratio"] / row["rho"]), END, FACTORS),
        (ranks, "rank correlation with frequency", lambda row: row["spearman"], None, (-1, -0.5, 0, 0.5, 1)),
    )
    for axis, title, value, end, ticks in panels:
        image = _map(axis, result, "layer", value, end, rows=axis is ratios)
        axis.set_title(title)
        bar = figure.colorbar(image, ax=axis, location="bottom", aspect=25, pad=0.02)
        _bar_ticks(bar, ticks, logarithmic=end is not None)
    titled(
        figure,
        "Do norms and MaxNNScore follow frequency?",
        _means(result),
    )
    _below(
        figure,
        "\n".join(
            fill(f"{region}: {reason}.", LINE_LETTERS, subsequent_indent="   ")
            for region, reason in result.data["reasons"].items()
        ),
    )
    return figure


@styled
def draw_frequency(result: Result) -> Figure:
    """Ratio of norms and gain against rho: a column for each length, a line for each optimiser."""
    wanted = {"expert": "one_layer", "loss": "hinge", "routing": "expert_choice", "w_max": "layer"}
    chosen = [row for row in result.data["map"] if all(row[name] == value for name, value in wanted.items())]
    spans = sorted({row["length"] for row in chosen})
    figure = Figure(figsize=(WIDTH, 5.0))
    axes = figure.subplots(2, len(spans), squeeze=False, sharex=True, sharey="row")
    rhos = sorted({row["rho"] for row in chosen})
    for column, length in enumerate(spans):
        axes[0, column].set_title(
            f"{length}× the stop rule's steps" if length > 1 else "at the stop rule (1×)"
        )
        axes[0, column].plot(rhos, rhos, color=BLACK, linewidth=0.8, label="ρ")
        axes[1, column].axhline(1, color=BLACK, linewidth=0.8)
        for axis, quantity in zip(axes[:, column], ("ratio", "gain over random"), strict=True):
            for optimiser, (name, colour, marker, line) in OPTIMISERS.items():
                rows = [row for row in chosen if (row["optimiser"], row["length"]) == (optimiser, length)]
                rows.sort(key=lambda row: float(row["rho"]))
                middle = [row[quantity] for row in rows]
                axis.errorbar(
                    [row["rho"] for row in rows],
                    middle,
                    lengths(middle, [row[f"{quantity}_interval"] for row in rows]),
                    color=colour,
                    marker=marker,
                    linestyle=line,
                    capsize=2,
                    label=name,
                )
            axis.set(xscale="log", yscale="log")
            log_ticks(axis.xaxis, (3, 5, 10, 20, 50))
            log_ticks(axis.yaxis, (0.5, 1, 2, 5, 10, 20, 50))
        axes[1, column].set_xlabel("ρ, frequent / rare class")
    axes[0, 0].set_ylabel("ratio of norms $\\nu_F/\\nu_R$")
    axes[1, 0].set_ylabel("gain over random choice")
    titled(
        figure,
        "Do norms and gains grow with the ratio of frequencies?",
        f"experts of one layer, hinge loss, expert choice, w_max per expert; {result.data['seeds']} training seeds",
    )
    legend_below(figure, axes[0, 0], columns=4)
    return figure


@styled
def draw_rule(result: Result) -> Figure:
    """Every network's gain against the statistic, a panel for each optimiser."""
    choice = result.data["rule of thumb"]
    name = choice["statistic"]
    figure = Figure(figsize=(WIDTH, 3.6))
    axes = figure.subplots(1, len(OPTIMISERS), sharex=True, sharey=True)
    for axis, (optimiser, (title, colour, marker, _)) in zip(axes, OPTIMISERS.items(), strict=True):
        for design, label in ((True, "design networks"), (False, "test networks")):
            points = [
                point
                for point in choice["points"]
                if (point["optimiser"], point["design"]) == (optimiser, design)
            ]
            axis.scatter(
                [point[name] for point in points],
                [point["gain"] for point in points],
                marker=marker,
                s=9 if design else 5,
                linewidth=0.5,
                facecolor="none" if design else colour,
                edgecolor=colour if design else "none",
                alpha=0.5,
                rasterized=True,
                label=label,
            )
        axis.axvline(
            choice["threshold"],
            color=BLACK,
            linewidth=1,
            linestyle="--",
            label=f"{name} = {choice['threshold']:.2g}",
        )
        axis.axhline(
            choice["pays"],
            color=BLACK,
            linewidth=1.2,
            linestyle=":",
            label=f"from here on MaxNN pays ({choice['pays']:g})",
        )
        axis.set(xscale="log", yscale="log", xlabel=name)
        log_ticks(axis.xaxis, (0.01, 0.1, 1, 2, 5, 10, 20, 50))
        log_ticks(axis.yaxis, (*FACTORS, 16, 32, 64))
        axis.set_title(title)
    axes[0].set_ylabel("gain over random choice")
    titled(
        figure,
        f"A rule of thumb: MaxNN pays where {name} is at least {choice['threshold']:.2g}",
    )
    legend_below(figure, axes[0], columns=2)
    return figure


PARTS = {
    "gains": (draw_gains, GAINS_CAPTION),
    "norms": (draw_norms, NORMS),
    "frequency": (draw_frequency, FREQUENCY),
    "rule": (draw_rule, RULE),
}


def table(result: Result) -> list[Row]:
    """The map, one row for each cell."""
    return with_bounds(result.data["map"], separator=", ")


def _means(result: Result) -> str:
    alphas = ", ".join(f"{alpha:g}" for alpha in sorted({row["alpha"] for row in result.data["map"]}))
    return f"means over {result.data['seeds']} training seeds and α = {alphas}"


def _below(figure: Figure, text: str) -> None:
    """Lines of text under the panels, which make room."""
    inches = 0.14 + 1.25 * SMALLEST / 72 * (1 + text.count("\n"))
    bottom = inches / figure.get_figheight()
    figure.text(0.08 / WIDTH, bottom, text, fontsize=SMALLEST, va="top", linespacing=1.2)
    engine: Any = figure.get_layout_engine()
    left, _, width, height = engine.get()["rect"]
    engine.set(rect=(left, bottom, width, height - bottom))


def _gain(name: str) -> Callable[[Row], float]:
    return lambda row: math.log(row[name])


def _map(
    axis: Axes,
    result: Result,
    w_max: str,
    value: Callable[[Row], float],
    end: float | None,
    *,
    learned: bool = False,
    rows: bool = True,
) -> Any:
    """A cell is the mean of `value` over the alphas, a logarithm unless `end` is None, blue below 0 and red above.

    end: the factor at which the colours end; None: at correlations of 1.
    learned: mark cells in which few models have learned.
    rows: name the rows.
    """
    cells: dict[tuple[Any, ...], list[Row]] = {}
    for row in result.data["map"]:
        if row["w_max"] == w_max:
            cells.setdefault(tuple(row[name] for name in (*ROWS, *COLUMNS)), []).append(row)
    order = list(WORDS)
    down = sorted({key[:3] for key in cells}, key=lambda key: (*map(order.index, key[:2]), key[2]))
    across = sorted({key[3:] for key in cells}, key=lambda key: (order.index(key[0]), key[1]))
    values = np.array(
        [[np.mean([value(row) for row in cells[*key, *top]]) for top in across] for key in down]
    )
    limit = 1.0 if end is None else math.log(end)
    image = heat(
        axis,
        values,
        rows=[", ".join(WORDS.get(each, each) for each in key) for key in down] if rows else [""] * len(down),
        columns=[f"{length}×" for _, length in across],
        norm=BoundaryNorm(np.linspace(-limit, limit, SHADES + 1), COLOURS),
        colours="RdBu_r",
        form=_correlation if end is None else _factor,
    )
    for optimiser in dict.fromkeys(name for name, _ in across):
        mine = [column for column, (name, _) in enumerate(across) if name == optimiser]
        axis.annotate(
            WORDS[optimiser],
            (sum(mine) / len(mine) + 0.5, 0),
            xycoords=("data", "axes fraction"),
            xytext=(0, -16),  # below the lengths
            textcoords="offset points",
            ha="center",
            va="top",
            fontsize=SMALLEST,
        )
    for border in range(1, len(across)):
        if across[border][0] != across[border - 1][0]:
            axis.axvline(border, color="white", linewidth=4)
    if learned:
        few = [
            (column, row)
            for (row, key), (column, top) in product(enumerate(down), enumerate(across))
            if np.mean([each["learned"] for each in cells[*key, *top]]) < NOT_LEARNED
        ]
        axis.scatter(
            [column + 0.9 for column, _ in few],
            [row + 0.22 for _, row in few],
            marker="x",
            s=7,
            color=BLACK,
            linewidth=0.7,
        )
    return image


def _factor(logarithm: float) -> str:
    """Two digits of the factor, without the zero before the point."""
    factor = math.exp(logarithm)
    return f"{factor:.1f}" if factor >= 0.995 else f"{factor:.2f}".removeprefix("0")


def _correlation(value: float) -> str:
    return f"{value:.2f}".replace("0.", ".")


def _bar_ticks(bar: Any, ticks: tuple[float, ...], *, logarithmic: bool = True) -> None:
    bar.minorticks_off()
    bar.set_ticks(
        [math.log(tick) if logarithmic else tick for tick in ticks], labels=[f"{tick:g}" for tick in ticks]
    )
    bar.outline.set_visible(False)
