"""Draws the map of where MaxNN pays, how it depends on frequency, the rule of thumb, and every region's reason."""

import math
from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator, StrMethodFormatter

from figures.drawings.rows import with_bounds
from theory.evidence import Result

Row = dict[str, Any]

ROWS, COLUMNS = ("expert", "routing", "loss"), ("optimiser", "length")
WORDS = {
    "sgd": "SGD", "momentum": "momentum", "adamw": "AdamW",
    "one_layer": "one layer", "two_layer": "two layers", "gated": "gated",
    "expert_choice": "expert ch.", "token_choice": "token ch.",
}  # fmt: skip
NOT_LEARNED = 0.5  # of the seeds: a cell with fewer learned models is marked


def draw(result: Result) -> Figure:
    """Six maps, below them what depends on the frequency, the rule of thumb, and the reasons."""
    panels: list[tuple[str, str, Callable[[Row], float], float, bool]] = [
        # title, w_max, value, where the colours end (a factor, or a difference), whether it is a gain in c*
        ("norms: $(\\nu_F/\\nu_R)/ρ$", "layer", lambda row: float(row["ratio"] / row["rho"]), 8.0, False),
        (
            "Spearman of MaxNNScore and frequency (Zipf)",
            "layer",
            lambda row: float(row["spearman"]),
            1.0,
            False,
        ),
        ("gain of MaxNN over none", "layer", lambda row: float(row["gain over none"]), 4.0, True),
        ("gain of MaxNN over random", "layer", lambda row: float(row["gain over random"]), 4.0, True),
        ("gain of MaxNN over random", "column", lambda row: float(row["gain over random"]), 4.0, True),
        ("MaxNN against the oracle", "layer", lambda row: float(row["gain over oracle"]), 4.0, True),
    ]
    with sns.axes_style("white"), sns.plotting_context("paper"):
        figure = Figure(figsize=(15, 15.5), layout="constrained")
        axes = figure.subplots(4, 3, height_ratios=(1, 1, 0.75, 0.45))
    for axis, (title, w_max, value, end, gain) in zip(axes[:2].flat, panels, strict=True):
        rows = [row for row in result.data["map"] if row["w_max"] == w_max]
        _map(axis, rows, value, end, gain, labelled=axis in axes[:, 0])
        axis.set_title(f"{title}, w_max per {w_max}" if gain else title, fontsize="medium")
    for axis, quantity, label in (
        (axes[2, 0], "ratio", "$\\nu_F/\\nu_R$"),
        (axes[2, 1], "gain over random", "gain of MaxNN over random"),
    ):
        _by_frequency(axis, result.data["map"], quantity, label)
    _rule_of_thumb(axes[2, 2], result.data["rule of thumb"])
    for axis in axes[3]:
        axis.set_axis_off()
    reasons = "\n".join(f"{region}: {reason}." for region, reason in result.data["reasons"].items())
    text = axes[3, 0].text(0, 1, reasons, transform=axes[3, 0].transAxes, va="top", fontsize="medium")
    text.set_in_layout(False)  # it runs over into the empty neighbours
    alphas = ", ".join(f"{alpha:g}" for alpha in sorted({row["alpha"] for row in result.data["map"]}))
    figure.suptitle(
        f"Where the claim lives; means over {result.data['seeds']} training seeds and α = {alphas}. Columns: optimiser"
        " and length of training, in units of that to the stop rule.\n× after a number: fewer than half of the models"
        " have learned both classes",
        fontsize="medium",
    )
    return figure


def table(result: Result) -> list[Row]:
    """The map, one row for each cell."""
    return with_bounds(result.data["map"], separator=", ")


def _map(
    axis: Axes, rows: list[Row], value: Callable[[Row], float], end: float, gain: bool, labelled: bool
) -> None:
    """Colours of the logarithm (a correlation's own value), blue below 1 and red above."""
    down, across = (
        list(dict.fromkeys(tuple(row[name] for name in names) for row in rows)) for names in (ROWS, COLUMNS)
    )
    down.sort(key=lambda key: [list(WORDS).index(each) if each in WORDS else 0 for each in key])
    across.sort(key=lambda key: (list(WORDS).index(key[0]), key[1]))
    colours, texts = np.zeros((len(down), len(across))), np.full((len(down), len(across)), "", dtype=object)
    correlation = end == 1.0
    for (i, key), (j, top) in product(enumerate(down), enumerate(across)):
        cell = [
            row
            for row in rows
            if tuple(row[name] for name in ROWS) == key and tuple(row[name] for name in COLUMNS) == top
        ]
        # Over the alphas the mean of what the colours show.
        mean = float(np.mean([value(row) if correlation else math.log(value(row)) for row in cell]))
        colours[i, j] = mean
        learned = np.mean([row["learned"] for row in cell])
        texts[i, j] = f"{mean if correlation else math.exp(mean):.2g}" + (
            " ×" if gain and learned < NOT_LEARNED else ""
        )
    limit = end if correlation else math.log(end)
    sns.heatmap(
        colours, ax=axis, annot=texts, fmt="", cmap="vlag", vmin=-limit, vmax=limit, cbar=False, linewidths=0.5,
        annot_kws={"fontsize": "small"},
        xticklabels=_columns(across),
        yticklabels=[", ".join(WORDS.get(each, each) for each in key) for key in down] if labelled else False,
    )  # fmt: skip
    axis.tick_params(labelrotation=0, labelsize="small", length=0)
    for column in range(1, len(across)):
        if across[column][0] != across[column - 1][0]:
            axis.axvline(column, color="white", linewidth=3)


def _columns(across: list[tuple[Any, ...]]) -> list[str]:
    """The length of every column, and below the middle one of every optimiser its name."""
    labels = []
    for optimiser, length in across:
        lengths = [other for name, other in across if name == optimiser]
        middle = lengths[len(lengths) // 2]
        labels.append(f"{length}×" + (f"\n{WORDS[optimiser]}" if length == middle else ""))
    return labels


def _by_frequency(axis: Axes, rows: list[Row], quantity: str, label: str) -> None:
    """Against rho, with 95 % intervals: one layer, hinge, expert choice, w_max per layer."""
    wanted = {"expert": "one_layer", "loss": "hinge", "routing": "expert_choice", "w_max": "layer"}
    chosen = [row for row in rows if all(row[name] == value for name, value in wanted.items())]
    optimisers = list(dict.fromkeys(row["optimiser"] for row in chosen))
    lengths = sorted({row["length"] for row in chosen})
    for (optimiser, colour), (length, style) in product(
        zip(optimisers, sns.color_palette("deep", len(optimisers)), strict=True),
        zip(lengths, ("-", "--", ":")[: len(lengths)], strict=True),
    ):
        line = sorted(
            (row["rho"], row[quantity], *row[f"{quantity}_interval"])
            for row in chosen
            if (row["optimiser"], row["length"]) == (optimiser, length)
        )
        rho, centre, low, high = np.array(line).T
        axis.errorbar(
            rho, centre, [centre - low, high - centre], color=colour, linestyle=style, marker=".", capsize=2,
            linewidth=1, label=f"{WORDS[optimiser]}, {length}×",
        )  # fmt: skip
    if quantity == "ratio":
        rhos = sorted({row["rho"] for row in chosen})
        axis.plot(rhos, rhos, color="black", linewidth=0.8, label="ρ")
    else:
        axis.axhline(1, color="black", linewidth=0.8)
    axis.set(xscale="log", yscale="log", xlabel="ρ = (1 - α)/α", ylabel=label)
    for each in (axis.xaxis, axis.yaxis):
        each.set_major_locator(FixedLocator((0.25, 0.5, 1, 2, 3, 5, 10, 20, 50)))
        each.set_minor_locator(NullLocator())
        each.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_title("one layer, hinge, expert choice, w_max per layer", fontsize="medium")
    axis.legend(fontsize="x-small", ncols=2)


def _rule_of_thumb(axis: Axes, choice: Row) -> None:
    name = choice["statistic"]
    styles = {True: ("design", "white", 14), False: ("test", None, 14)}
    for design, (label, face, size) in styles.items():
        points = [point for point in choice["points"] if point["design"] == design]
        for optimiser, colour in zip(("sgd", "momentum", "adamw"), sns.color_palette("deep", 3), strict=True):
            mine = [point for point in points if point["optimiser"] == optimiser]
            axis.scatter(
                [point[name] for point in mine], [point["gain"] for point in mine], s=size, linewidth=0.7,
                facecolor=face or colour, edgecolor=colour, label=f"{WORDS[optimiser]}, {label} cells",
            )  # fmt: skip
    axis.axvline(choice["threshold"], color="black", linewidth=0.9, linestyle="--")
    axis.axhline(choice["pays"], color="black", linewidth=0.9, linestyle=":")
    axis.set(xscale="log", yscale="log", xlabel=name, ylabel="gain of MaxNN over random")
    for each, ticks in (
        (axis.xaxis, (0.01, 0.1, 1, 2, 3, 5, 10, 20, 50)),
        (axis.yaxis, (0.1, 0.25, 0.5, 1, 2, 4, 8, 16)),
    ):
        each.set_major_locator(FixedLocator(ticks))
        each.set_minor_locator(NullLocator())
        each.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_title(
        f"Rule of thumb: MaxNN pays ({choice['pays']:g} times random or more)\n"
        f"where {name} ≥ {choice['threshold']:.2g}",
        fontsize="medium",
    )
    axis.legend(fontsize="x-small", frameon=True, loc="lower right")
