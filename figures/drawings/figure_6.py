"""Draws Figure 6: MaxNNScore against how frequent the tokens of an expert are, and which tokens these are."""

from typing import Any

import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from theory.evidence import Result

QUANTITIES = {
    "log_frequency": "mean log frequency of its tokens",
    "load": "load: share of tokens it serves",
    "weight": "mean routing weight",
}
LAYERS_WITH_TOKENS, TOKENS = 4, 6  # how many are printed
PAPER = (
    "Published (arXiv 2603.02633, Fig. 6): experts with high scores serve frequent tokens, those with low scores"
    " rare ones."
)
DEVIATION = (
    "Deviation: frequencies are those of calibration text with add-one smoothing, not of the training text, which is"
    " not shipped; evaluation text is routed."
)


def draw(result: Result) -> Figure:
    """A row for each model: every expert, correlations with 95 % intervals, tokens of the extreme experts."""
    models = result.data["models"]
    with sns.axes_style("whitegrid"), sns.plotting_context("paper"):
        figure = Figure(figsize=(14, 3.9 * len(models) + 0.8), layout="constrained")
        axes = figure.subplots(len(models), 3, squeeze=False, width_ratios=(1, 1, 1.75))
    for row, model in zip(axes, models, strict=True):
        layers = range(1 + max(expert["layer"] for expert in model["experts"]))
        palette = dict(zip(layers, sns.color_palette("viridis", len(layers)), strict=True))
        _experts(row[0], model, palette)
        _correlations(row[1], model, palette)
        _tokens(row[2], model)
    figure.suptitle(f"{PAPER}\n{DEVIATION}", fontsize="small")
    return figure


def table(result: Result) -> list[dict[str, Any]]:
    """One row for each expert."""
    return [
        {"model": model["model"], **expert} for model in result.data["models"] for expert in model["experts"]
    ]


def _experts(axis: Axes, model: dict[str, Any], palette: dict[int, Any]) -> None:
    for layer, colour in palette.items():
        experts = [each for each in model["experts"] if each["layer"] == layer]
        middle = np.median([each["score"] for each in experts])
        shown = [each for each in experts if each["log_frequency"] is not None]
        axis.scatter(
            [each["score"] / middle for each in shown],
            [each["log_frequency"] for each in shown],
            s=14,
            color=colour,
            label=f"MoE layer {layer + 1}",
        )
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(FixedLocator([0.5, 0.7, 1, 1.5, 2, 3]))
    axis.xaxis.set_major_formatter("{x:g}")
    axis.xaxis.set_minor_locator(NullLocator())
    axis.set_xlabel("MaxNNScore / median of the layer")
    axis.set_ylabel("mean log frequency of the expert's tokens, nats")
    axis.set_title(
        f"{model['model']}, {model['blocks']} blocks of {model['block_tokens']} tokens",
        loc="left",
        fontweight="bold",
    )
    axis.legend(fontsize="x-small")


def _correlations(axis: Axes, model: dict[str, Any], palette: dict[int, Any]) -> None:
    """Layers in their colours, all of them together black."""
    for place, quantity in enumerate(QUANTITIES):
        rows = model["correlations"][quantity]
        for number, row in enumerate(rows):
            low, high = row["interval"]
            whole = row["layer"] is None
            axis.errorbar(
                row["spearman"],
                place + 0.7 * (number + 0.5) / len(rows) - 0.35,
                xerr=[[row["spearman"] - low], [high - row["spearman"]]],
                color="black" if whole else palette[row["layer"]],
                marker="D" if whole else "o",
                markersize=4,
                capsize=2,
                label="all layers" if whole and not place else None,
            )
    axis.axvline(0, color="grey", linewidth=0.8)
    axis.axvline(0.5, color="grey", linewidth=0.8, linestyle="--")
    axis.set_xlim(-1, 1)
    axis.set_ylim(len(QUANTITIES) - 0.3, -0.5)
    axis.set_yticks(range(len(QUANTITIES)), ["\n".join(_wrapped(label)) for label in QUANTITIES.values()])
    axis.grid(visible=False, axis="y")
    low, high = model["text_interval"]
    axis.set_xlabel(
        f"Spearman's correlation with MaxNNScore\n(chance of the text alone: {low:.2f} to {high:.2f})"
    )
    axis.legend(fontsize="x-small", loc="lower right")


def _tokens(axis: Axes, model: dict[str, Any]) -> None:
    """The extremes of the layers, of at most LAYERS_WITH_TOKENS evenly chosen ones, a line each."""
    axis.axis("off")
    step = -(-len(model["extremes"]) // LAYERS_WITH_TOKENS)
    lines = []
    for layer, extremes in list(enumerate(model["extremes"]))[::step]:
        lines.append(f"MoE layer {layer + 1}")
        for number, extreme in enumerate(extremes):
            end = "high" if number < len(extremes) / 2 else "low"
            shown = "  ".join(f"{token['text']} {token['count']}" for token in extreme["tokens"][:TOKENS])
            lines.append(f"  {end:4} #{extreme['expert']:<3} {shown}")
    axis.set_title(
        "tokens that the experts with the highest and lowest scores serve most, and how often",
        loc="left",
        fontsize="small",
    )
    axis.text(
        0,
        0.99,
        "\n".join(lines),
        transform=axis.transAxes,
        va="top",
        family="monospace",
        fontsize=6.5,
        linespacing=1.25,
        parse_math=False,
    )


def _wrapped(label: str) -> list[str]:
    """In two halves."""
    words = label.split()
    half = (len(words) + 1) // 2
    return [" ".join(words[:half]), " ".join(words[half:])]
