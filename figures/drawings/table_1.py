"""Draws Table 1: the published rows beside ours, loss against bits, and heat maps around the calibrated point."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from figures.drawings.style import (
    BLUE,
    VERMILLION,
    W_MAX,
    WIDTH,
    board,
    heat,
    legend_below,
    lengths,
    styled,
    titled,
)
from theory.evidence import Result
from theory.paper import ARXIV, TABLE_1

COLUMNS = (
    "model",
    "ranges\nper",
    "w_max",
    "bits",
    "all\ndigital, %",
    "experts\nanalog",
    "+ dense\nanalog",
    "experts\nanalog",
    "+ dense\nanalog",
)
WIDTHS = (0.25, 0.08, 0.08, 0.05, 0.1, 0.15, 0.155, 0.165, 0.165)  # columns, as shares of the board's width
COLUMNS_OF_FILE = (
    *("whose", "model", "part", "calibration", "w_max", "bits", "analog", "kappa_factor", "lam_factor"),
    *("loss_change", "loss_change_low", "loss_change_high"),
    *("accuracy_change", "accuracy_change_low", "accuracy_change_high"),
)
METHODS = {"layer": "ranges per layer", "model": "ranges per model"}
LABELS = {"experts": "experts analog", "everything": "experts and dense modules analog"}
LOOKS: dict[tuple[str, str], dict[str, Any]] = {  # by what is analog and w_max
    ("experts", "tile"): {"color": BLUE, "marker": "o", "linestyle": "-"},
    ("experts", "column"): {"color": BLUE, "marker": "o", "linestyle": "--", "markerfacecolor": "white"},
    ("everything", "tile"): {"color": VERMILLION, "marker": "s", "linestyle": "-"},
    ("everything", "column"): {
        "color": VERMILLION,
        "marker": "s",
        "linestyle": "--",
        "markerfacecolor": "white",
    },
}
SMALLEST_LOSS = 1e-4  # nats per token, below which the colours of a heat map never begin
MEANING = (
    f"DACs and ADCs have the given bits, and there is no programming noise. {W_MAX}. Dense modules are attention and"
    " LM head."
)
RANGES = " Ranges of DACs and ADCs are set by a kappa and a lambda of every layer, or one of each for the whole model."
CAPTION = (
    "A table of what converters of few bits alone cost, published rows above ours, with the experts and with the"
    f" dense modules, too, on analog hardware. Published (arXiv {ARXIV}, {TABLE_1.source}): average accuracy of eight"
    " tasks. Ours: next-token top-1 accuracy and loss. All but the accuracy all digital are changes against it; +-"
    f" is half of a 95 % interval over documents. {MEANING}{RANGES}"
)


@styled
def draw(result: Result) -> Figure:
    """The published rows beside ours, as a table."""
    data = result.data
    cells = _published(result) + [line for model in data["models"] for line in _lines(model)]
    figure = Figure(figsize=(WIDTH, 0.2 * (len(cells) + 3) + 1.0))
    axis = figure.subplots()
    board(axis, COLUMNS, cells, WIDTHS)
    for left, title in ((4, "accuracy, percentage points"), (7, "loss, nats per token")):
        axis.text(
            (sum(WIDTHS[:left]) + sum(WIDTHS[: left + 3 if left == 4 else None])) / 2 / sum(WIDTHS),
            1.02, title, transform=axis.transAxes, ha="center", va="bottom", fontweight="bold",
        )  # fmt: skip
    titled(
        figure,
        "What converters cost without noise: published, and measured here",
        f"ours: {data['blocks']} blocks of {data['block_tokens']} tokens",
    )
    return figure


@styled
def draw_bits(result: Result) -> Figure:
    """The loss increase against the bits of the converters: a column for each model, a row for each calibration."""
    models = result.data["models"]
    figure = Figure(figsize=(WIDTH, 5.4))
    axes = figure.subplots(len(METHODS), len(models), squeeze=False, sharex=True, sharey=True)
    for row, (calibration, words) in zip(axes, METHODS.items(), strict=True):
        for axis, model in zip(row, models, strict=True):
            _curves(axis, model, calibration)
            axis.set_title(f"{model['model']}, {words}")
        row[0].set_ylabel("loss increase, nats per token")
    for axis in axes[-1]:
        axis.set_xlabel("bits of DAC and ADC")
    legend_below(figure, axes[0, 0], columns=2)
    titled(figure, "What fewer bits of DAC and ADC cost, without programming noise")
    return figure


@styled
def draw_heat_map(result: Result) -> Figure:
    """The loss increase around the calibrated ranges of the converters, a panel for each model."""
    data = result.data
    models = data["models"]
    figure = Figure(figsize=(WIDTH, 3.6))
    axes = figure.subplots(1, len(models), squeeze=False, sharey=True)[0]
    largest = max(cell["loss_change"] for model in models for cell in model["heat_map"])
    least = min(cell["loss_change"] for model in models for cell in model["heat_map"])
    norm = LogNorm(max(least, SMALLEST_LOSS), max(largest, 10 * SMALLEST_LOSS), clip=True)
    for axis, model in zip(axes, models, strict=True):
        image = _heat_map(axis, model, norm)
        axis.set_title(model["model"])
        axis.set_xlabel("ADC range: lam / calibrated lam")
    axes[0].set_ylabel("DAC range: kappa / calibrated kappa")
    figure.colorbar(image, ax=list(axes), label="loss increase, nats per token", pad=0.02)
    titled(
        figure,
        "Loss around the converter ranges calibrated for every layer (red frame), everything analog",
        f"{data['heat_map_bits']} bits, w_max per {data['heat_map_w_max']}; {data['heat_map_blocks']} blocks of"
        f" {data['block_tokens']} tokens",
    )
    return figure


PARTS = {
    "bits": (
        draw_bits,
        (
            "Curves of the loss increase against the bits of the converters, by what is on analog hardware. Below a"
            f" thousandth the axis is linear. Bars are 95 % intervals over documents. {MEANING}{RANGES}"
        ),
    ),
    "heat-map": (
        draw_heat_map,
        (
            "Two heat maps of the loss increase, by factors on the ranges of the DAC and of the ADC; a red frame"
            " marks the calibrated ranges. The range kappa is the bound of the DAC in units of the standard"
            " deviation of the input, lam that of the ADC in units of the DAC's bound times w_max; those"
            f" found for every layer are multiplied by the factors at the axes. Colours are logarithmic. {MEANING}"
        ),
    ),
}


def table(result: Result) -> list[dict[str, Any]]:
    """Published changes of accuracy (fractions of 1), and our rows: the table's, then the heat map's."""
    empty = dict.fromkeys(COLUMNS_OF_FILE)
    rows = [
        empty
        | {"whose": "published", "model": name, "part": "table", "bits": 8, "analog": analog}
        | {"accuracy_change": (accuracy[analog] - accuracy["nothing"]) / 100}
        for name, accuracy in result.data["published"].items()
        for analog in LABELS
    ]
    for model in result.data["models"]:
        shared = {"whose": "ours", "model": model["model"]}
        heat_map = {
            "calibration": "layer",
            "w_max": result.data["heat_map_w_max"],
            "bits": result.data["heat_map_bits"],
        }
        for part, entries in (
            ("table", model["rows"]),
            ("heat map", [heat_map | {"analog": "everything"} | cell for cell in model["heat_map"]]),
        ):
            for entry in entries:
                row = empty | shared | {"part": part}
                row |= {name: value for name, value in entry.items() if name in empty}
                for name in ("loss_change", "accuracy_change"):
                    if f"{name}_interval" in entry:
                        row[f"{name}_low"], row[f"{name}_high"] = entry[f"{name}_interval"]
                rows.append(row)
    return rows


def _published(result: Result) -> list[list[str]]:
    return [
        [
            f"published: {name}",
            "",
            "",
            "8",
            f"{accuracy['nothing']:.2f}",
            _signed(accuracy["experts"] - accuracy["nothing"], 2),
            _signed(accuracy["everything"] - accuracy["nothing"], 2),
            "",
            "",
        ]
        for name, accuracy in result.data["published"].items()
    ]


def _lines(model: dict[str, Any]) -> list[list[str]]:
    names = ("calibration", "w_max", "bits")
    rows: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in model["rows"]:
        rows.setdefault(tuple(row[name] for name in names), {})[row["analog"]] = row
    return [
        [
            f"ours: {model['model']}",
            *map(str, key),
            f"{100 * model['digital']['accuracy']['mean']:.2f}",
            *(_number(found[analog], "accuracy_change", 100, 2) for analog in LABELS),
            *(_number(found[analog], "loss_change", 1, 3) for analog in LABELS),
        ]
        for key, found in rows.items()
    ]


def _signed(value: float, digits: int) -> str:
    return f"{value:+.{digits}f}".replace("-", "\N{MINUS SIGN}")


def _number(row: dict[str, Any], quantity: str, unit: float, digits: int) -> str:
    low, high = row[f"{quantity}_interval"]
    return f"{_signed(unit * row[quantity], digits)} \N{PLUS-MINUS SIGN} {unit * (high - low) / 2:.{digits}f}"


def _curves(axis: Axes, model: dict[str, Any], calibration: str) -> None:
    shown = [row for row in model["rows"] if row["calibration"] == calibration]
    for w_max in dict.fromkeys(row["w_max"] for row in shown):
        for analog, label in LABELS.items():
            rows = [row for row in shown if (row["w_max"], row["analog"]) == (w_max, analog)]
            means = [row["loss_change"] for row in rows]
            axis.errorbar(
                [row["bits"] for row in rows],
                means,
                yerr=lengths(means, [row["loss_change_interval"] for row in rows]),
                capsize=3,
                label=f"{label}, w_max per {w_max}",
                **LOOKS[analog, w_max],
            )
    axis.set_yscale("symlog", linthresh=1e-3)
    axis.set_xticks(sorted({row["bits"] for row in model["rows"]}))


def _heat_map(axis: Axes, model: dict[str, Any], norm: LogNorm) -> Any:
    cells = {(cell["kappa_factor"], cell["lam_factor"]): cell["loss_change"] for cell in model["heat_map"]}
    factors = sorted({kappa for kappa, _ in cells})
    values = np.array([[cells[kappa, lam] for lam in factors] for kappa in factors])
    names = [f"{factor:g}" for factor in factors]
    image = heat(axis, values, rows=names, columns=names, norm=norm, colours="viridis", form="{:.3f}".format)
    axis.invert_yaxis()
    place = factors.index(1.0)
    axis.add_patch(Rectangle((place, place), 1, 1, fill=False, edgecolor="red", linewidth=2))
    return image
