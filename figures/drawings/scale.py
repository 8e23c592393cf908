"""Draws what was measured of each model of the ladder against its size, with lines that predict larger ones.

And against the length of training.
"""

import math
from collections.abc import Sequence
from statistics import mean
from textwrap import fill
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from figures.drawings.rows import with_bounds
from figures.drawings.style import (
    BLACK,
    BLUE,
    GRANULARITIES,
    GREY,
    SCORE,
    SMALLEST,
    VERMILLION,
    W_MAX,
    WIDTH,
    board,
    styled,
    titled,
)
from figures.drawings.style import C as MEANING_OF_C
from figures.shown import is_size
from theory.evidence import Result, mean_interval
from theory.trend import Line

Row = dict[str, Any]
PANELS = 6
# What is drawn after what changes sign.
SHOWN = (
    "loss that the dense modules cost more than 87.5 % of experts at c = 2.5, nats per token",
    "log10 of what a dense parameter costs over what one of 87.5 % of experts does at c = 2.5",
    "fraction of the loss that MaxNNScore recovers, 25.0% of experts digital",
    "fraction of the loss that MaxNNScore recovers more than activation weight, 25.0% of experts digital",
    (
        "fraction of the loss that expected damage with gradient across layers recovers more than MaxNNScore,"
        " 25.0% of experts digital"
    ),
    "Spearman's correlation of MaxNNScore and token frequency",
)
SHOWN_OF_LENGTHS = (
    *SHOWN[:3],
    SHOWN[-1],
    "loss that 8-bit converters alone cost with experts analog, nats per token",
    "largest input over the standard deviation of inputs, median layer",
)
ASIDE = {"tile": 0.87, "column": 1.15, None: 1.0}  # so that points do not hide each other
COLOURS = {"tile": BLUE, "column": VERMILLION, None: BLACK}
# By axis: what its rungs begin with, marker, line.
FAMILIES: dict[str, tuple[str, str, Any]] = {
    "OLMoE": ("olmoe", "o", "-"),
    "DeepSeekMoE": ("deepseek", "^", "--"),
}
BEYOND = 16e9  # parameters, where the lines end
LENGTHS, MUON = (
    "olmoe-16m",
    "-muon",
)  # rungs that begin so differ in length of training or optimiser; Muon's end so
CAPTION = (
    "Six quantities of each model of a ladder against its number of parameters, a point for each training. Lines are"
    " fitted to models up to 64M alone; beyond them, bands are 95 % prediction intervals for one model. Rings are means"
    " of larger sizes that lie inside the interval predicted for them, crosses means outside. Squares are the models"
    " that ship, which no line is fitted to. All is a mean over docstrings and prose. What lies beyond the largest"
    " model is an extrapolation, on to the paper's models of"
    f" 7B and 16B. {SCORE}. {MEANING_OF_C}. {W_MAX}."
)
TRAINED_FOR = (
    "Six quantities of one size, OLMoE of 17M parameters, against the number of tokens that it was trained on:"
    " a quarter of the ladder's, the ladder's, and four times as many. A point is a training. Lines are"
    " fitted to all that AdamW trained. Where noise adds little to the loss, as after a short training, fractions of it"
    f" vary much from one training to another. {SCORE}. {MEANING_OF_C}. {W_MAX}."
)
EXTRAPOLATED = (
    "What lines through models up to 64M say of models of 7B and 16B parameters, beside what the paper publishes of its"
    " models of that size. This is an extrapolation over a factor of a hundred and more, and judged by no rule."
    " Brackets are 95 % prediction intervals for one model; they do not count that the line may be bent. Our numbers"
    " are losses and top-1 accuracies on text, the paper's are accuracies on tasks."
)


@styled
def draw(result: Result) -> Figure:
    """A panel for each quantity, first those that change sign."""
    every = result.data["models"]
    models = [each for each in every if each["rung"] is None or is_size(each["rung"])] or every
    largest = max(model["parameters"] for model in models)
    figure = _panels(result, [*_turning(result), *SHOWN], models, "parameters")
    figure.axes[0].set_xlim((2.5e6, 1.3 * BEYOND) if _has_lines(result) else (1e6, 4 * largest))
    missing = len(result.data["missing"])
    titled(
        figure,
        message(result),
        f"what was measured of {len(models)} models"
        + (f"; {missing} rungs of the ladder lack models" if missing else ""),
    )
    return figure


@styled
def draw_lengths(result: Result) -> Figure | None:
    """The same of one size, against the number of tokens; None without a line."""
    models = [each for each in result.data["models"] if (each["rung"] or "").startswith(LENGTHS)]
    findings = [finding for finding in result.findings if finding.family == "trend with tokens"]
    if not findings:
        return None
    figure = _panels(result, SHOWN_OF_LENGTHS, models, "tokens")
    lengths = sorted({model["tokens"] for model in models})
    figure.axes[0].set_xlim(lengths[0] / 2, 2 * lengths[-1])
    for axis in figure.axes:
        axis.set_xticks(lengths, [f"{length / 1e6:.0f}M" for length in lengths])
        axis.set_xticks([], minor=True)
    clear = sum(finding.verdict != "inconclusive" for finding in findings)
    titled(
        figure,
        f"{clear} of {len(findings)} trends with the length of training are clear",
        f"what was measured of {len(models)} models of {models[0]['parameters'] / 1e6:.0f}M parameters, built as OLMoE",
    )
    return figure


def _panels(result: Result, quantities: Sequence[str], models: list[Row], along: str) -> Figure:
    """The first of these quantities that were measured, of these models, along their parameters or tokens."""
    series = result.data["series"]
    known = {each["quantity"] for each in series}
    names = [name for name in dict.fromkeys(quantities) if name in known][:PANELS]
    figure = Figure(figsize=(WIDTH, 5.9))
    axes = figure.subplots(2, PANELS // 2, sharex=True, squeeze=False).flat
    for axis, name in zip(axes, names, strict=False):
        for each in series:
            if each["quantity"] == name:
                _panel(axis, each, {model["name"]: model for model in models}, along)
        axis.axhline(0, color=GREY, linewidth=0.8)
        axis.set_title(_wrapped(name, 33), fontsize=SMALLEST, fontweight="normal")
        axis.set_xscale("log")
        axis.tick_params(labelbottom=True)
    for axis in list(figure.axes)[-(PANELS // 2) :]:
        axis.set_xlabel(along if along == "parameters" else "tokens of training")
    for axis in list(figure.axes)[len(names) :]:
        axis.set_visible(False)
    figure.legend(handles=_legend(figure), loc="outside lower center", ncols=4)
    return figure


def message(result: Result) -> str:
    """What changes sign along the ladder, and how many predictions held."""
    turning = _turning(result)
    judged = [finding for finding in result.findings if finding.family == "predictions"]
    held = sum(finding.verdict == "holds" for finding in judged)
    said = f"{held} of {len(judged)} predictions from models up to 64M held" if judged else ""
    if turning:
        return f"{len(turning)} quantities change sign along the ladder" + (said and f"; {said}")
    if _has_lines(result):
        return "No quantity changes sign along the ladder" + (said and f"; {said}")
    return "Too few sizes for a trend"


def _turning(result: Result) -> list[str]:
    """The quantities that change sign."""
    turning = [
        each["quantity"]
        for each in result.data["series"]
        if each["followed"] and any(line["changes_sign"] for line in each["lines"])
    ]
    return list(dict.fromkeys(turning))


def _has_lines(result: Result) -> bool:
    return any(each["lines"] for each in result.data["series"])


def _panel(axis: Axes, series: Row, models: dict[str, Row], along: str) -> None:
    colour = COLOURS[series["w_max"]]
    for name, value in series["values"].items():
        if name in models:
            place = models[name][along] * ASIDE[series["w_max"]]
            axis.plot(place, value, color=colour, linestyle="none", **_look(models[name]["rung"]))
    for line in series["lines"]:
        if "fitted" in line and line["along"] == along:
            if along == "parameters":
                _line(axis, series, models, line, colour)
            else:
                places = [model["tokens"] for model in models.values()]
                ends = [min(places), max(places)]
                fitted = Line(**line["fitted"])
                axis.plot(ends, [fitted.at(math.log10(end)) for end in ends], color=colour, linewidth=1)


def _look(rung: str | None) -> dict[str, Any]:
    if rung is None:
        return {"marker": "s", "fillstyle": "none", "markersize": 5}
    if rung.endswith(MUON):
        return {"marker": "D", "fillstyle": "none", "markersize": 4}
    marker = next(marker for family, marker, _ in FAMILIES.values() if rung.startswith(family))
    return {"marker": marker, "markersize": 4, "alpha": 0.8}


def _line(axis: Axes, series: Row, models: dict[str, Row], row: Row, colour: str) -> None:
    """The line of a family, its band beyond the models that it is fitted to, and whether larger ones are inside."""
    line, (family, _, style) = Line(**row["fitted"]), FAMILIES[row["axis"]]
    of_size: dict[float, list[float]] = {}
    for name, value in series["values"].items():
        if name in models and (models[name]["rung"] or "").startswith(family):
            of_size.setdefault(models[name]["parameters"], []).append(value)
    places = np.geomspace(min(of_size), BEYOND, 60)
    axis.plot(
        places, [line.at(math.log10(place)) for place in places], color=colour, linewidth=1, linestyle=style
    )
    beyond = places[places > max(size for size in of_size if size <= row["largest"])]
    low, high = zip(*(line.prediction_interval(math.log10(place)) for place in beyond), strict=True)
    axis.fill_between(beyond, low, high, color=colour, alpha=0.12, linewidth=0)
    for size, values in of_size.items():
        if size > row["largest"]:
            least, most = line.prediction_interval(math.log10(size), len(values))
            marker = "o" if least <= mean(values) <= most else "x"
            place = size * ASIDE[series["w_max"]]
            ring: Row = {"marker": marker, "markersize": 9, "fillstyle": "none"}
            axis.plot(place, mean(values), color=colour, linestyle="none", **ring)


def _legend(figure: Figure) -> list[Artist]:
    """What colours, markers and lines mean, of those that are drawn."""
    lines = [line for axis in figure.axes for line in axis.lines]
    drawn = [line for line in lines if line.get_color() in COLOURS.values()]  # not the lines at 0
    colours = {line.get_color() for line in drawn}
    styles = {line.get_linestyle() for line in drawn}
    markers = {(line.get_marker(), line.get_fillstyle()) for line in drawn}
    found: list[Artist] = [
        Patch(color=COLOURS[w_max], label=label)
        for w_max, label in GRANULARITIES.items()
        if COLOURS.get(w_max) in colours
    ]
    dots = [
        *(
            Line2D([], [], marker=marker, linestyle=line if line in styles else "none", label=name)
            for name, (_, marker, line) in FAMILIES.items()
        ),
        Line2D([], [], linestyle="none", marker="s", fillstyle="none", label="shipped"),
        Line2D([], [], linestyle="none", marker="D", fillstyle="none", label="Muon"),
        Line2D([], [], linestyle="none", marker="o", markersize=9, fillstyle="none", label="predicted"),
        Line2D([], [], linestyle="none", marker="x", markersize=9, fillstyle="none", label="not predicted"),
    ]
    for dot in dots:
        dot.set_color(GREY)
    return [*found, *(dot for dot in dots if (dot.get_marker(), dot.get_fillstyle()) in markers)]


@styled
def draw_extrapolations(result: Result) -> Figure | None:
    """A table of quantities that the paper publishes something of; None without any line."""
    found: dict[tuple[str, str], dict[str, tuple[str, str]]] = {}
    for each in result.data["series"]:
        for line in each["lines"]:
            for at in line.get("extrapolations", []):
                if at["published"] and at["model"] == line["axis"]:
                    low, high = at["interval"]
                    said = f"{at['value']:z.3f} [{low:z.3f}, {high:z.3f}]"
                    cells = found.setdefault((each["quantity"], each["w_max"] or ""), {})
                    cells[line["axis"]] = said, at["published"]
    if not found:
        return None
    rows = []
    for name in dict.fromkeys(quantity for quantity, _ in found):
        own = {w_max: cells for (quantity, w_max), cells in found.items() if quantity == name}
        row = [_wrapped(name, 34), "\n".join(own)]
        for family in FAMILIES:
            told = [by_family.get(family, ("", "")) for by_family in own.values()]
            published = next((words for _, words in told if words), "")  # the same for every w_max
            row += ["\n".join(said for said, _ in told), fill(published, 13)]
        rows.append(row)
    figure = Figure(figsize=(WIDTH, 1.1 + 0.6 * len(rows)))
    header = ["quantity", "w_max", "line at 7B", "OLMoE", "line at 16B", "DeepSeekMoE"]
    board(figure.subplots(), header, rows, (3.2, 0.8, 2.0, 1.3, 2.0, 1.4))
    titled(
        figure,
        "An extrapolation: what lines through models up to 64M say of larger ones",
        "beside it what the paper publishes of OLMoE (7B) and DeepSeekMoE (16B)",
    )
    return figure


def _wrapped(name: str, letters: int) -> str:
    return fill(name.replace(" = ", "\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}"), letters)


PARTS = {"lengths": (draw_lengths, TRAINED_FOR), "extrapolations": (draw_extrapolations, EXTRAPOLATED)}


def table(result: Result) -> list[Row]:
    """One row for each rung or other model and each quantity: the mean over models with its interval."""
    rungs = {model["name"]: model["rung"] or model["name"] for model in result.data["models"]}
    rows = []
    for each in result.data["series"]:
        for rung in dict.fromkeys(rungs.values()):
            values = [value for name, value in each["values"].items() if rungs[name] == rung]
            if values:
                rows.append(
                    {
                        "rung": rung,
                        "quantity": each["quantity"],
                        "w_max": each["w_max"],
                        "models": len(values),
                        "mean": mean(values),
                        "interval": mean_interval(values) if len(values) > 1 else None,
                    }
                )
    return with_bounds(rows)
