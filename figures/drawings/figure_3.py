"""Draws Figure 3 from its result: dense modules against experts on analog hardware."""

from typing import Any

import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from figures.drawings.rows import with_bounds
from theory.evidence import Result

TITLES = {"tile": "w_max per tile (our default)", "column": "w_max per column of a tile"}
COLUMNS = (
    # key of the quantity in a curve, its axis, divided by the millions of analog parameters
    ("loss_change", "loss increase, nats per token", False),
    ("accuracy_change", "change of top-1 accuracy", False),
    ("loss_change", "loss increase per million\nanalog parameters, nats per token", True),
)
PAPER = (
    "Published (arXiv 2603.02633, Fig. 3): putting the dense modules, about 5 % of the parameters, on analog hardware"
    " hurts more than putting 80-90 % of the experts there."
)


def draw(result: Result) -> Figure:
    """A row of panels for each granularity of w_max; bands are 95 % intervals."""
    granularities = list(dict.fromkeys(curve["w_max"] for curve in result.data["curves"]))
    styles = _styles(result.data["parts"])
    with sns.axes_style("whitegrid"), sns.plotting_context("paper"):
        figure = Figure(figsize=(11, 3.3 * len(granularities) + 1.2), layout="constrained")
        axes = figure.subplots(len(granularities), len(COLUMNS), squeeze=False, sharex=True, sharey="col")
    for row, w_max in zip(axes, granularities, strict=True):
        for axis, (quantity, label, per_million) in zip(row, COLUMNS, strict=True):
            _curves(axis, result, w_max, quantity, per_million, styles)
            axis.set_ylabel(label)
            if axis in axes[-1]:
                axis.set_xlabel("magnitude c of the programming noise (pcm)")
        row[0].set_title(TITLES[w_max], loc="left", fontweight="bold")
    for axis in axes[:, 1]:
        axis.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=1))
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, frameon=False)
    digital = result.data["digital"]
    figure.suptitle(
        f"{result.data['model']}: loss {digital['loss']['mean']:.3f} nats per token, accuracy"
        f" {digital['accuracy']['mean']:.1%} when all digital; {result.data['blocks']} blocks of"
        f" {result.data['block_tokens']} tokens\n{PAPER}",
        fontsize="small",
    )
    return figure


def table(result: Result) -> list[dict[str, Any]]:
    """The curves, one row for each part, magnitude and granularity."""
    return with_bounds(result.data["curves"])


def _styles(parts: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Dense modules warm, experts blue and darker the more of them are analog, both together black."""
    dense = [part["label"] for part in parts if not part["analog_experts"]]
    experts = [part["label"] for part in parts if not part["analog_modules"]]
    styles: dict[str, dict[str, Any]] = {}
    for label, colour in zip(dense, sns.color_palette("YlOrRd", len(dense) + 1)[1:], strict=True):
        styles[label] = {"color": colour, "marker": "s"}
    for label, colour in zip(experts, sns.color_palette("Blues", len(experts) + 1)[1:], strict=True):
        styles[label] = {"color": colour, "marker": "o"}
    for part in parts:
        styles.setdefault(part["label"], {"color": "black", "marker": "D", "linestyle": "--"})
    return styles


def _curves(
    axis: Axes,
    result: Result,
    w_max: str,
    quantity: str,
    per_million: bool,
    styles: dict[str, dict[str, Any]],
) -> None:
    for label, style in styles.items():
        curve = [each for each in result.data["curves"] if each["w_max"] == w_max and each["part"] == label]
        curve.sort(key=lambda each: each["c"])
        units = [each["analog_millions"] if per_million else 1.0 for each in curve]
        c = [each["c"] for each in curve]
        middle = [each[quantity] / unit for each, unit in zip(curve, units, strict=True)]
        bands = [
            [bound / unit for bound in each[f"{quantity}_interval"]]
            for each, unit in zip(curve, units, strict=True)
        ]
        low, high = zip(*bands, strict=True)
        axis.plot(c, middle, label=label, markersize=4, **style)
        axis.fill_between(c, low, high, color=style["color"], alpha=0.15, linewidth=0)
