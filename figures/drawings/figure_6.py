"""Draws Figure 6: MaxNNScore against how frequent the tokens of an expert are, and which tokens these are."""

from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from figures.drawings.style import BLACK, GREY, SCORE, SMALLEST, WIDTH, legend_below, lengths, styled, titled
from theory.evidence import Result
from theory.paper import FREQUENT_TOKENS

QUANTITIES = {
    "log_frequency": "frequency\nof its tokens",
    "load": "load",
    "weight": "routing weight",
}
MARKERS = "os^vD<>pP*"  # one for each layer, in order; a model of more layers has colours alone
LAYERS_WITH_TOKENS, TOKENS = 4, 4  # how many are printed
TOKEN_LETTERS = 17  # longest token
MEANING = (
    "An expert's tokens are those that the router sends to it; their mean log frequency is that in calibration text,"
    " with add-one smoothing, as the training text is not shipped: a deviation. Load is the share of tokens that an"
    f" expert serves, routing weight is its mean. {SCORE}."
)
CAPTION = (
    "Left, a dot for each expert, its score against how frequent its tokens are; right, rank correlations of the score"
    " with that frequency, with load and with routing weight, by layer and over all layers. Bars are 95 % intervals"
    " over experts and documents of text, of these two trained models alone. Dashed: .5, above which the"
    f" relation counts as clear. {MEANING} {FREQUENT_TOKENS.cited}"
)


@styled
def draw(result: Result) -> Figure:
    """A row for each model: every expert, and correlations."""
    models = result.data["models"]
    heights = [4.4 if _layers(each) > len(MARKERS) else 2.7 for each in models]
    figure = Figure(figsize=(WIDTH, sum(heights) + 1.0))
    axes = figure.subplots(len(models), 2, squeeze=False, width_ratios=(1.15, 1), height_ratios=heights)
    named = [each for each in models if _layers(each) <= len(MARKERS)]
    for row, model in zip(axes, models, strict=True):
        looks = _looks(_layers(model))
        _experts(row[0], model, looks)
        _correlations(row[1], model, looks)
    if named:
        legend_below(figure, axes[models.index(max(named, key=_layers))][0], columns=5)
    titled(
        figure,
        "Do experts with large neurons serve frequent tokens?",
        "; ".join(
            f"{each['model']}: {each['blocks']} blocks of {each['block_tokens']} tokens" for each in models
        ),
    )
    return figure


@styled
def draw_tokens(result: Result) -> Figure:
    """The tokens of the experts with the highest and lowest scores of at most LAYERS_WITH_TOKENS layers, as a table."""
    lines = [line for model in result.data["models"] for line in _tokens(model)]
    figure = Figure(figsize=(WIDTH, 0.185 * len(lines) + 0.75))
    axis = figure.subplots()
    axis.axis("off")
    axis.set(xlim=(0, 1), ylim=(len(lines), 0))
    for place, (end, *tokens) in enumerate(lines):
        axis.text(
            0, place + 0.5, end, va="center", fontweight="normal" if tokens else "bold", parse_math=False
        )
        for column, token in enumerate(tokens):
            axis.text(
                0.17 + 0.205 * column, place + 0.5, token,
                va="center", family="monospace", fontsize=SMALLEST, parse_math=False,
            )  # fmt: skip
    titled(figure, "The tokens that experts of the highest and lowest scores serve most")
    return figure


PARTS = {
    "tokens": (
        draw_tokens,
        (
            "A table of tokens: for each layer the two experts with the highest and the two with the lowest MaxNNScore,"
            " with the tokens that each serves most. A number says how often the expert serves the token; long tokens"
            f" are cut. {MEANING}"
        ),
    ),
}


def table(result: Result) -> list[dict[str, Any]]:
    """One row for each expert."""
    return [
        {"model": model["model"], **expert} for model in result.data["models"] for expert in model["experts"]
    ]


def _layers(model: dict[str, Any]) -> int:
    return 1 + max(int(expert["layer"]) for expert in model["experts"])


def _looks(layers: int) -> list[dict[str, Any]]:
    """A colour and a marker for each layer."""
    colours = mpl.colormaps["viridis"](np.linspace(0, 0.75, layers))
    markers = MARKERS if layers <= len(MARKERS) else "." * layers
    return [
        {"color": to_hex(colour), "marker": marker} for colour, marker in zip(colours, markers, strict=False)
    ]


def _experts(axis: Axes, model: dict[str, Any], looks: list[dict[str, Any]]) -> None:
    for layer, look in enumerate(looks):
        experts = [each for each in model["experts"] if each["layer"] == layer]
        middle = np.median([each["score"] for each in experts])
        shown = [each for each in experts if each["log_frequency"] is not None]
        axis.scatter(
            [each["score"] / middle for each in shown],
            [each["log_frequency"] for each in shown],
            s=16,
            alpha=0.85,
            linewidth=0,
            label=f"MoE layer {layer + 1}",
            **look,
        )
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(
        FixedLocator([0.5, 0.7, 1, 1.5, 2, 3] if axis.get_xlim()[1] < 4 else [0.5, 1, 2, 4, 8, 16])
    )
    axis.xaxis.set_major_formatter("{x:g}")
    axis.xaxis.set_minor_locator(NullLocator())
    axis.set_xlabel("MaxNNScore over the layer's median")
    axis.set_ylabel("mean log frequency\nof its tokens")
    order = f", MoE layers 1 (dark) to {len(looks)} (light)" if len(looks) > len(MARKERS) else ""
    axis.set_title(model["model"] + order)


def _correlations(axis: Axes, model: dict[str, Any], looks: list[dict[str, Any]]) -> None:
    """Layers in their colours, all of them together black."""
    bars: dict[str, Any] = {"capsize": 2} if len(looks) <= len(MARKERS) else {"capsize": 0, "elinewidth": 0.6}
    for place, quantity in enumerate(QUANTITIES):
        rows = model["correlations"][quantity]
        for number, row in enumerate(rows):
            look = (
                {"color": BLACK, "marker": "X", "zorder": 3} if row["layer"] is None else looks[row["layer"]]
            )
            axis.errorbar(
                row["spearman"],
                place + 0.7 * (number + 0.5) / len(rows) - 0.35,
                xerr=lengths([row["spearman"]], [row["interval"]]),
                **bars,
                **look,
            )
    axis.axvline(0, color=GREY, linewidth=0.8)
    axis.axvline(0.5, color=GREY, linewidth=0.8, linestyle="--")
    axis.set_xlim(-1, 1)
    axis.set_ylim(len(QUANTITIES) - 0.45, -0.55)
    axis.set_yticks(range(len(QUANTITIES)), list(QUANTITIES.values()))
    axis.grid(visible=False, axis="y")
    axis.set_xlabel("rank correlation (black: all layers)")
    axis.set_title("MaxNNScore follows ...")


def _tokens(model: dict[str, Any]) -> list[tuple[str, ...]]:
    """Lines of the table: a heading for each layer, then its experts."""
    step = -(-len(model["extremes"]) // LAYERS_WITH_TOKENS)
    lines: list[tuple[str, ...]] = []
    for layer, extremes in list(enumerate(model["extremes"]))[::step]:
        lines.append((f"{model['model']}, MoE layer {layer + 1}",))
        for number, extreme in enumerate(extremes):
            end = "high" if number < len(extremes) / 2 else "low"
            lines.append(
                (
                    f"{end}, expert {extreme['expert']}",
                    *(
                        f"{token['text'][:TOKEN_LETTERS]} {token['count']}"
                        for token in extreme["tokens"][:TOKENS]
                    ),
                )
            )
    return lines
