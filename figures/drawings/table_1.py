"""Draws Table 1: the published rows beside ours, loss against bits, and heat maps around the calibrated point."""

from typing import Any

import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from theory.evidence import Result

COLUMNS = (
    "model",
    "w_max per",
    "bits",
    "accuracy\nall digital",
    "accuracy change,\nexperts analog",
    "accuracy change,\nexperts + dense analog",
    "loss increase,\nexperts analog",
    "loss increase,\nexperts + dense analog",
)
WIDTHS = (0.14, 0.07, 0.05, 0.08, 0.15, 0.15, 0.18, 0.18)  # of the columns, of the board's width
COLUMNS_OF_FILE = (
    *("whose", "model", "part", "w_max", "bits", "analog", "kappa_factor", "lam_factor"),
    *("loss_change", "loss_change_low", "loss_change_high"),
    *("accuracy_change", "accuracy_change_low", "accuracy_change_high"),
)
LABELS = {"experts": "experts analog", "everything": "experts + dense analog"}
STYLES = {"tile": "-", "column": "--"}
SMALLEST_LOSS = 1e-4  # nats per token, where the colours of a heat map begin


def draw(result: Result) -> Figure:
    """The table above; below it for each model the loss increase over bits, and its heat map."""
    models = result.data["models"]
    cells = _published(result) + [line for model in models for line in _lines(model)]
    with sns.axes_style("whitegrid"), sns.plotting_context("paper"):
        figure = Figure(figsize=(12, 0.36 * len(cells) + 5.2), layout="constrained")
        grid = figure.add_gridspec(2, 2 * len(models), height_ratios=(0.36 * len(cells) + 1, 4))
        board = figure.add_subplot(grid[0, :])
        axes = [figure.add_subplot(grid[1, column]) for column in range(2 * len(models))]
    board.axis("off")
    drawn = board.table(cells, colLabels=COLUMNS, loc="center", cellLoc="center", colWidths=WIDTHS)
    drawn.auto_set_font_size(False)
    drawn.set_fontsize(7)
    drawn.scale(1, 1.25)
    for column in range(len(COLUMNS)):
        drawn[0, column].set_height(1.7 * drawn[0, column].get_height())
    board.set_title(
        "Published (arXiv 2603.02633, Table 1): average accuracy of 8 tasks. Ours: next-token top-1 accuracy, and"
        f" loss in nats per token,\nwith 95 % intervals over {result.data['blocks']} blocks of"
        f" {result.data['block_tokens']} tokens; changes of accuracy in percentage points",
        fontsize="small",
    )
    for model, left, right in zip(models, axes[::2], axes[1::2], strict=True):
        _curves(left, model)
        _heat_map(right, model)
        right.set_xlabel(
            f"lam / calibrated ({result.data['heat_map_bits']} bits, {result.data['heat_map_w_max']})"
        )
    return figure


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
        heat_map = {"w_max": result.data["heat_map_w_max"], "bits": result.data["heat_map_bits"]}
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
            "-",
            "8",
            f"{accuracy['nothing']:.2f} %",
            f"{accuracy['experts'] - accuracy['nothing']:+.2f}",
            f"{accuracy['everything'] - accuracy['nothing']:+.2f}",
            "-",
            "-",
        ]
        for name, accuracy in result.data["published"].items()
    ]


def _lines(model: dict[str, Any]) -> list[list[str]]:
    rows = {(row["w_max"], row["bits"], row["analog"]): row for row in model["rows"]}
    return [
        [
            f"ours: {model['model']}",
            w_max,
            str(bits),
            f"{model['digital']['accuracy']['mean']:.2%}",
            *(_number(rows[w_max, bits, analog], "accuracy_change", 100, 2) for analog in LABELS),
            *(_number(rows[w_max, bits, analog], "loss_change", 1, 4) for analog in LABELS),
        ]
        for w_max, bits in dict.fromkeys((row["w_max"], row["bits"]) for row in model["rows"])
    ]


def _number(row: dict[str, Any], quantity: str, unit: float, digits: int) -> str:
    low, high = row[f"{quantity}_interval"]
    form = f"+.{digits}f"
    return f"{unit * row[quantity]:{form}} [{unit * low:{form}}, {unit * high:{form}}]"


def _curves(axis: Axes, model: dict[str, Any]) -> None:
    palette = dict(zip(LABELS, sns.color_palette("colorblind", len(LABELS)), strict=True))
    for w_max in dict.fromkeys(row["w_max"] for row in model["rows"]):
        for analog, label in LABELS.items():
            rows = [row for row in model["rows"] if (row["w_max"], row["analog"]) == (w_max, analog)]
            means = np.array([row["loss_change"] for row in rows])
            low, high = np.array([row["loss_change_interval"] for row in rows]).T
            axis.errorbar(
                [row["bits"] for row in rows],
                means,
                yerr=[means - low, high - means],
                fmt=STYLES[w_max],
                marker="o",
                capsize=3,
                color=palette[analog],
                label=f"{label}, {w_max}",
            )
    axis.set_yscale("symlog", linthresh=1e-3)
    axis.set_xticks(sorted({row["bits"] for row in model["rows"]}))
    axis.set_xlabel("bits of DAC and ADC")
    axis.set_ylabel("loss increase, nats per token")
    axis.set_title(model["model"], fontsize="small", fontweight="bold")
    axis.legend(fontsize="x-small")


def _heat_map(axis: Axes, model: dict[str, Any]) -> None:
    cells = {(cell["kappa_factor"], cell["lam_factor"]): cell["loss_change"] for cell in model["heat_map"]}
    factors = sorted({kappa for kappa, _ in cells})
    values = np.array([[cells[kappa, lam] for lam in factors] for kappa in factors])
    sns.heatmap(
        values.clip(min=SMALLEST_LOSS),
        ax=axis,
        annot=values,
        fmt=".3f",
        annot_kws={"fontsize": 6},
        norm=LogNorm(SMALLEST_LOSS, max(float(values.max()), 10 * SMALLEST_LOSS)),
        cmap="viridis",
        xticklabels=[f"{factor:g}" for factor in factors],
        yticklabels=[f"{factor:g}" for factor in factors],
        cbar=False,
    )
    axis.invert_yaxis()
    place = factors.index(1.0)
    axis.add_patch(Rectangle((place, place), 1, 1, fill=False, edgecolor="red", linewidth=2))
    axis.set_ylabel("kappa / calibrated")
    axis.set_title("loss increase, everything analog\n(red: the calibrated point)", fontsize="small")
