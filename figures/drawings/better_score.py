"""Draws what each score recovers of the loss, how near that is to the best placement known, and the remedies."""

from typing import Any

import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from figures.drawings.rows import with_bounds
from theory.evidence import Result

Row = dict[str, Any]

ACROSS = " across layers"
LABELS = {
    "maxnn": "MaxNNScore",
    "activation_weight": "activation weight",
    "activation_frequency": "activation frequency",
    "damage": "expected damage (claim D)",
    "damage with gradient": "expected damage with gradient",
    "measured": "measured damage of one expert",
    "random": "random",
    "reference": "reference: best known",
}
REMEDIES = {
    "none": "nothing",
    "shift subtracted": "mean shift subtracted",
    "copied": "second copies",
    "damage" + ACROSS: "digital",
    "digital and copied": "digital, copies of the next",
    "digital, shift subtracted": "digital, mean shift subtracted",
}
C = 2.5  # of the map and the remedies

SHORT = {"proportional": "prop.", "constant": "const."}


def draw(result: Result) -> Figure:
    """Recovered loss against budget and magnitude, the map of shares, the remedies; bands are 95 % intervals."""
    rows = result.data["rows"]
    judged = [row for row in rows if row["programming"] == "pcm" and row["bits"] == 8]
    granularities = list(dict.fromkeys(row["w_max"] for row in judged))
    with sns.axes_style("whitegrid"), sns.plotting_context("paper"):
        figure = Figure(figsize=(14, 4 * len(granularities) + 5), layout="constrained")
        ratios = (*(1 for _ in granularities), 1.35)
        axes = figure.subplots(len(granularities) + 1, 3, squeeze=False, height_ratios=ratios)
    for line, w_max in zip(axes, granularities, strict=False):
        mine = [row for row in judged if row["w_max"] == w_max]
        _curves(line[0], [row for row in mine if row["c"] == C and row["label"] in _shown()], "fraction")
        _curves(line[1], [row for row in mine if row["fraction"] == 0.125 and row["label"] in _shown()], "c")
        line[0].set_title(f"w_max per {w_max}, c = {C:g}", loc="left", fontweight="bold")
        line[1].set_title("12.5 % of experts digital", loc="left")
        _remedies(line[2], [row for row in mine if row["c"] == C])
    gridded = figure.add_subplot(axes[-1, 0].get_gridspec()[-1, :])
    for axis in axes[-1]:
        axis.remove()
    _shares(gridded, [row for row in rows if row["c"] == C])
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    digital = result.data["digital"]
    figure.suptitle(
        f"{result.data['model']}, dense modules digital, experts' loss recovered by digital experts; loss"
        f" {digital['mean']:.3f} nats per token when all digital; {result.data['blocks']} blocks of"
        f" {result.data['block_tokens']} tokens",
        fontsize="medium",
    )
    return figure


def table(result: Result) -> list[Row]:
    """One row for each placement, magnitude and kind of hardware."""
    return with_bounds(result.data["rows"])


def _shown() -> list[str]:
    """Of each score the form that is compared: the paper's inside layers, ours across them."""
    return [
        "maxnn",
        "activation_weight",
        "damage" + ACROSS,
        "damage with gradient" + ACROSS,
        "random",
        "reference",
    ]


def _name(label: str) -> str:
    base = label.removesuffix(ACROSS)
    return LABELS[base] + (", across layers" if label != base else "")


def _curves(axis: Axes, rows: list[Row], x: str) -> None:
    styles = dict(zip(_shown(), sns.color_palette("colorblind", len(_shown())), strict=True))
    for label, colour in styles.items():
        # An unbounded ratio has no band.
        line = sorted(
            (row for row in rows if row["label"] == label and row["recovered_interval"]),
            key=lambda row: float(row[x]),
        )
        if not line:
            continue
        at = [row[x] for row in line]
        low, high = zip(*(row["recovered_interval"] for row in line), strict=True)
        style = ":" if label == "reference" else "-"
        axis.plot(
            at,
            [row["recovered"] for row in line],
            color=colour,
            marker="o",
            markersize=3,
            label=_name(label),
            linestyle=style,
        )
        axis.fill_between(at, low, high, color=colour, alpha=0.1, linewidth=0)
    axis.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axis.set_ylabel("recovered part of the loss")
    if x == "fraction":
        axis.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axis.set_xlabel("digital experts")
    else:
        axis.set_xlabel("magnitude c of the programming noise (pcm)")


def _remedies(axis: Axes, rows: list[Row]) -> None:
    """Loss with each remedy; where a budget plays a part, once for each."""
    bars = [
        (f"{name} ({row['fraction']:.1%})" if row["fraction"] else name, row)
        for label, name in REMEDIES.items()
        for row in rows
        if row["label"] == label and row["fraction"] in (0.0, 0.125, 0.25)
    ]
    positions = np.arange(len(bars))[::-1]
    for position, (_, row) in zip(positions, bars, strict=True):
        low, high = row["loss_change_interval"]
        axis.plot([low, high], [position] * 2, color="0.4", linewidth=1.5)
        axis.plot(row["loss_change"], position, "o", color="black", markersize=4)
    axis.set_yticks(positions, [name for name, _ in bars], fontsize="small")
    axis.set_xlabel("loss increase, nats per token")
    axis.set_title("remedies, c = 2.5", loc="left")


def _shares(axis: Axes, rows: list[Row]) -> None:
    """Share of the reference's gain: scores by kinds of hardware and budgets."""
    rows = [row for row in rows if row["share"] is not None and row["label"].removesuffix(ACROSS) in LABELS]
    columns = list(
        dict.fromkeys((row["w_max"], row["programming"], row["bits"], row["fraction"]) for row in rows)
    )
    labels = [label + form for label in LABELS for form in ("", ACROSS)]
    labels = [
        label for label in labels if any(row["label"] == label for row in rows) and label != "reference"
    ]
    values = np.full((len(labels), len(columns)), np.nan)
    for row in rows:
        if row["label"] in labels:
            key = row["w_max"], row["programming"], row["bits"], row["fraction"]
            values[labels.index(row["label"]), columns.index(key)] = row["share"]
    sns.heatmap(
        values, ax=axis, annot=True, fmt=".2f", cmap="viridis", vmin=0, vmax=1, cbar=False, linewidths=0.5,
        annot_kws={"fontsize": "small"},
        yticklabels=[_name(label) for label in labels],
        xticklabels=[
            f"{w_max}\n{SHORT.get(noise, noise)}\n{bits} bit\n{fraction:.3g}"
            for w_max, noise, bits, fraction in columns
        ],
    )  # fmt: skip
    axis.tick_params(labelrotation=0, labelsize="small", length=0)
    axis.set_title(
        "share of the reference's gain at c = 2.5 (other noises at pcm's root mean square); columns: w_max, noise,"
        " converters, digital fraction",
        fontsize="medium",
    )
