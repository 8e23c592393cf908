"""Draws Table 2: the published rows beside ours, and cost against quality over placements."""

import math
from collections.abc import Sequence
from textwrap import fill
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from figures.drawings.style import (
    BLACK,
    BLUE,
    DETAIL_LETTERS,
    GREEN,
    GREY,
    HERMES,
    OCHRE,
    PURPLE,
    SMALLEST,
    VERMILLION,
    W_MAX,
    WIDTH,
    C,
    board,
    legend_below,
    lengths,
    noise_name,
    noise_of,
    noises_of,
    other_hardware,
    styled,
    titled,
)
from theory.evidence import Result
from theory.paper import ARXIV

QUANTITIES = ("tokens\nper s", "tokens\nper W s", "accuracy,\n%")
DIGITS = (0, 2, 2)  # after the point
LOOKS = ((BLUE, "o"), (VERMILLION, "s"), (GREEN, "^"), (PURPLE, "D"), (OCHRE, "v"), (BLACK, "X"))
OLMOE = "OLMoE"  # whose costs are published, and those of a result that names no model
CAPTION = (
    "A table of the throughput, energy and accuracy of each placement, for OLMoE published numbers beside ours."
    f" Published (arXiv {ARXIV}, Table 2): OLMoE, average accuracy of eight tasks. Ours: throughput and"
    " energy by a model of the components, next-token top-1 accuracy of a model of ours, which"
    f" cannot be compared with theirs. Tokens per W s are tokens per joule. {C}. {W_MAX}."
)


@styled
def draw(result: Result) -> Figure:
    """The placements as a table; beside ours the published numbers, if there are any."""
    data, noise = result.data, noises_of(result.data["rows"])[0]
    rows = _rows(result, noise)
    cost_of = data.get("cost_of", OLMOE)
    whose = ("published", "ours") if any(row["published"] for row in rows) else ("ours",)
    cells = [
        [
            row["placement"],
            f"{100 * row['digital_parameters']:.1f} %",
            *_numbers(row, whose),
        ]
        for row in rows
    ]
    names = [f"{quantity}\n{each}" for quantity in QUANTITIES for each in whose]
    widths = [0.11 if name.endswith("published") else 0.1 for name in names]
    figure = Figure(figsize=(WIDTH, 0.24 * (len(cells) + 3) + 0.8))
    board(figure.subplots(), ("placement", "digital\nparameters", *names), cells, (0.29, 0.12, *widths))
    titled(
        figure,
        f"What a placement of {cost_of} costs and how good it is"
        + (": published, and ours" if "published" in whose else ""),
        f"batch {data['batch']}, c = {data['c']:g}; our accuracy: {data['model']}, {noise_name(noise)},"
        f" {data['blocks']} blocks of {data['block_tokens']} tokens{other_hardware(result)}",
    )
    figure.supxlabel(_left_out(result), x=0.01, ha="left", fontsize=SMALLEST)
    return figure


@styled
def draw_cost(result: Result) -> Figure:
    """Throughput and energy over the share of digital experts."""
    curves = result.data["curves"]
    batches = sorted({curve["batch"] for curve in curves})
    cost_of = result.data.get("cost_of", OLMOE)
    shapes = (OLMOE, "DeepSeekMoE" if cost_of == OLMOE else cost_of)
    figure = Figure(figsize=(WIDTH, 3.6))
    axes = figure.subplots(1, 2)
    for axis, quantity, label in zip(
        axes, ("tokens_per_second", "tokens_per_joule"), ("tokens/s", "tokens per joule"), strict=True
    ):
        for shape, line in zip(shapes, ("-", "--"), strict=True):
            for batch, (colour, marker) in zip(batches, LOOKS, strict=False):
                curve = [each for each in curves if each["shape"] == shape and each["batch"] == batch]
                axis.plot(
                    [each["digital_fraction"] for each in curve],
                    [each[quantity] for each in curve],
                    color=colour,
                    marker=marker,
                    markevery=4,
                    linestyle=line,
                    label=f"{shape}, batch {batch}",
                )
        axis.set_yscale("log")
        axis.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))
        axis.set_xlabel("digital experts (dense modules digital)")
        axis.set_ylabel(label)
    legend_below(figure, axes[0], columns=2)
    titled(figure, "What digital experts cost, by our cost model")
    return figure


@styled
def draw_components(result: Result) -> Figure:
    """The energy of a token and the time for which each component is busy in a step, placement by placement."""
    data = result.data
    rows = _rows(result, noises_of(data["rows"])[0])
    figure = Figure(figsize=(WIDTH, 4.6))
    axes = figure.subplots(1, 2, sharey=True)
    places = np.arange(len(rows))
    for axis, quantity, scale, label in (
        (axes[0], "joules", data["batch"], "energy of a token, J"),
        (axes[1], "seconds", 1, "busy in a step, s"),
    ):
        for number, ((colour, marker), part) in enumerate(zip(LOOKS, rows[0]["parts"], strict=True)):
            axis.plot(
                [row["parts"][number][quantity] / scale or math.nan for row in rows],
                places + 0.12 * (number - 2.5),  # none hides another
                color=colour,
                marker=marker,
                linestyle="none",
                label=part["component"],
            )
        total = [data["batch"] / row[f"tokens_per_{quantity.removesuffix('s')}"] / scale for row in rows]
        axis.plot(
            total, places, color=GREY, marker="|", markersize=16, linestyle="none", label="in all", zorder=1
        )
        axis.set_xscale("log")
        axis.set_xlabel(label)
        axis.set_yticks(places[1:] - 0.5, minor=True)  # lines between placements
        axis.grid(axis="y", visible=False)
        axis.grid(axis="y", which="minor")
        axis.tick_params(axis="y", which="minor", length=0)
        axis.set_ylim(len(rows) - 0.5, -0.5)
    axes[0].set_yticks(places, [row["placement"] for row in rows])
    legend_below(
        figure, axes[0], columns=4, title=_left_out(result), title_fontsize=SMALLEST, alignment="left"
    )
    served = "even loads" if data["loads"] is None else "loads measured on text"
    titled(
        figure,
        f"Where energy and time of {data['cost_of']} go, component by component",
        f"batch {data['batch']}, {served}; components work side by side, so that times do not add up",
    )
    return figure


def _left_out(result: Result) -> str:
    """What the cost model leaves out, in lines as long as a picture is wide."""
    return fill(result.data["not_modelled"], DETAIL_LETTERS)


@styled
def draw_quality(result: Result) -> Figure:
    """The loss increase of a placement against its energy, a panel for each noise."""
    data = result.data
    noises = noises_of(data["rows"])
    figure = Figure(figsize=(WIDTH, 3.4))
    axes = figure.subplots(1, len(noises), squeeze=False, sharex=True, sharey=True)[0]
    for axis, noise in zip(axes, noises, strict=True):
        for row, (colour, marker) in zip(_rows(result, noise), LOOKS, strict=False):
            axis.errorbar(
                row["tokens_per_joule"],
                row["loss_change"],
                yerr=lengths([row["loss_change"]], [row["loss_change_interval"]]),
                color=colour,
                marker=marker,
                linestyle="none",
                capsize=3,
                label=row["placement"],
            )
        axis.set_title(noise_name(noise))
        axis.set_xscale("log")
    axes[len(axes) // 2].set_xlabel(
        f"tokens per joule of {data.get('cost_of', OLMOE)}, batch {data['batch']} (more is cheaper)"
    )
    axes[0].set_ylabel(f"loss increase of {data['model']},\nnats per token")
    legend_below(figure, axes[0], columns=3)
    titled(figure, f"Energy against quality at c = {data['c']:g}")
    return figure


def _rows(result: Result, noise: tuple[str, str]) -> list[dict[str, Any]]:
    return [row for row in result.data["rows"] if noise_of(row) == noise]


PARTS = {
    "components": (
        draw_components,
        (
            "Points, one for each component of the digital and the analog hardware and each placement: the energy of a"
            " token, and the time for which the component is busy in a step. Bars are the sum of the energies, and the"
            " time of the step. Units and sources of the components are in docs/choices.md."
        ),
    ),
    "cost": (
        draw_cost,
        (
            "Curves of throughput and of tokens per joule against the share of digital experts, one for each batch"
            " size of two models, by our cost model."
        ),
    ),
    "quality": (
        draw_quality,
        (
            "Points with bars, one for each placement: the loss increase against tokens per joule, a panel for each"
            f" programming noise. Bars are 95 % intervals over noise draws and documents. {C}. {HERMES}. {W_MAX}."
        ),
    ),
}


def table(result: Result) -> list[dict[str, Any]]:
    """The rows for each noise, published numbers beside ours."""
    rows = []
    for row in result.data["rows"]:
        seconds, joules, accuracy = row["published"] or (None, None, None)
        entry = {
            name: value
            for name, value in row.items()
            if name not in ("published", "parts") and "interval" not in name
        }
        for part in row["parts"]:
            name = part["component"].replace(" ", "_")
            entry |= {f"{name}_joules": part["joules"], f"{name}_seconds": part["seconds"]}
        entry["loss_change_low"], entry["loss_change_high"] = row["loss_change_interval"]
        entry |= {
            "published_tokens_per_second": seconds,
            "published_tokens_per_joule": joules,
            "published_accuracy_percent": accuracy,
        }
        rows.append(entry)
    return rows


def _numbers(row: dict[str, Any], whose: Sequence[str]) -> list[str]:
    """What QUANTITIES are, in words; for each the numbers of `whose`."""
    known = {
        "published": row["published"] or (None,) * len(QUANTITIES),
        "ours": (row["tokens_per_second"], row["tokens_per_joule"], 100 * row["accuracy"]),
    }
    numbers = zip(DIGITS, *(known[each] for each in whose), strict=True)
    return [_short(value, digits) for digits, *values in numbers for value in values]


def _short(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:,.{0 if value >= 1e4 else digits}f}"
