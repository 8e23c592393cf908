"""Draws Figure 3 from its result: dense modules against experts on analog hardware."""

import math
from typing import Any

from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_hex
from matplotlib.figure import Figure

from figures.drawings.rows import with_bounds
from figures.drawings.style import (
    BLACK,
    BROWN,
    GREEN,
    HERMES,
    NOISE_AXIS,
    OCHRE,
    ORANGE,
    PURPLE,
    VERMILLION,
    W_MAX,
    WIDTH,
    C,
    legend_below,
    noise_name,
    noise_of,
    noises_of,
    other_hardware,
    percentage_points,
    styled,
    titled,
)
from theory.evidence import Result
from theory.paper import DENSE_HURTS_MORE

BLUES = LinearSegmentedColormap.from_list("blues", ["#4c93c9", "#08306b"])  # the lightest is 3:1 on white
# Colour, marker, line of the parts without experts: of as many kinds as a model can have, and at last of all of them.
DENSE: tuple[tuple[str, str, Any], ...] = (
    (ORANGE, "h", (0, (5, 1, 1, 1))),
    (PURPLE, "d", (0, (2, 2))),
    (GREEN, "P", (0, (6, 2))),
    (OCHRE, "^", (0, (4, 1.5))),
    (BROWN, "v", (0, (1, 1))),
    (VERMILLION, "s", "-"),
)
EXPERT_MARKERS, EXPERT_LINES = "<>Xpo", ((0, (1, 1)), (0, (3, 1, 1, 1)), "-.", "--", "-")
LEGEND_COLUMNS = 3
MEANING = (
    "Dense modules, such as attention and LM head, are those that every token uses; a token uses only some of the"
    " experts. In each curve the named part is on simulated analog hardware and all else is digital."
    f" {C}; at c = 0 only the converters are left. {W_MAX}. {HERMES}. Bands are 95 % intervals over noise draws and"
    f" documents. {DENSE_HURTS_MORE.cited}"
)
CAPTION = (
    "Curves of the loss increase against programming noise, one for each part of the model that is on analog"
    f" hardware. The factors in the title are those of the panels, from left to right, at the largest c. {MEANING}"
)


@styled
def draw(result: Result) -> Figure:
    """The loss increase, a panel for each noise."""
    return _panels(result, _message(result), "loss_change", "loss increase, nats per token")


@styled
def draw_accuracy(result: Result) -> Figure:
    """The same for accuracy."""
    figure = _panels(
        result,
        "What noise takes from accuracy, by what is on analog hardware",
        "accuracy_change",
        "change of top-1 accuracy,\npercentage points",
    )
    for axis in figure.axes:
        axis.yaxis.set_major_formatter(percentage_points())
    return figure


@styled
def draw_per_parameter(result: Result) -> Figure:
    """The loss increase over the number of parameters that are analog."""
    return _panels(
        result,
        "What noise costs for each million of parameters on analog hardware",
        "loss_change",
        "loss increase per million analog\nparameters, nats per token",
        per_million=True,
    )


PARTS = {
    "accuracy": (
        draw_accuracy,
        (
            "Curves of the change of next-token top-1 accuracy against programming noise, one for each part of the"
            f" model that is on analog hardware. {MEANING}"
        ),
    ),
    "per-parameter": (
        draw_per_parameter,
        (
            "Curves of the loss increase for each million of analog parameters against programming noise, one for"
            f" each part of the model that is on analog hardware. {MEANING}"
        ),
    ),
}


def table(result: Result) -> list[dict[str, Any]]:
    """The curves, one row for each part, magnitude and noise."""
    return with_bounds(result.data["curves"])


def _message(result: Result) -> str:
    """How many times as much the dense modules cost as nearly all experts, at the largest c."""
    data = result.data
    dense = [part["label"] for part in data["parts"] if not part["analog_experts"]][-1]
    experts = [part for part in data["parts"] if not part["analog_modules"] and part["analog_experts"] < 1]
    most = max(experts, key=lambda part: float(part["analog_experts"]))["label"]
    c = max(curve["c"] for curve in data["curves"])
    cost = {
        (noise_of(curve), curve["part"]): curve["loss_change"] for curve in data["curves"] if curve["c"] == c
    }
    shown = list(dict.fromkeys(noise for noise, _ in cost))
    if any(cost[noise, most] <= 0 for noise in shown):
        return "What noise costs, by what is on analog hardware"
    *first, last = (f"{cost[noise, dense] / cost[noise, most]:.1f}" for noise in shown)
    factors = f"{', '.join(first)} and {last}" if first else last
    return f"Noisy dense modules cost {factors} times the loss of {most}"


def _looks(parts: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Dense modules warm, experts blue and darker the more of them are analog, both together black."""
    dense = [part["label"] for part in parts if not part["analog_experts"]]
    experts = [part["label"] for part in parts if not part["analog_modules"]]
    looks: dict[str, dict[str, Any]] = {}
    for label, (colour, marker, line) in zip(dense, DENSE[-len(dense) :], strict=True):
        looks[label] = {"color": colour, "marker": marker, "linestyle": line}
    for index, label in enumerate(experts):
        place = index / max(len(experts) - 1, 1)
        style = round(place * (len(EXPERT_LINES) - 1))
        looks[label] = {
            "color": to_hex(BLUES(place)),
            "marker": EXPERT_MARKERS[style],
            "linestyle": EXPERT_LINES[style],
        }
    for part in parts:
        looks.setdefault(part["label"], {"color": BLACK, "marker": "D", "linestyle": "-"})
    return looks


def _panels(
    result: Result,
    message: str,
    quantity: str,
    label: str,
    per_million: bool = False,
) -> Figure:
    data = result.data
    noises = noises_of(data["curves"])
    rows = math.ceil(len(data["parts"]) / LEGEND_COLUMNS)
    figure = Figure(figsize=(WIDTH, 3.7 + 0.2 * rows))
    axes = figure.subplots(1, len(noises), squeeze=False, sharex=True, sharey=True)[0]
    for axis, noise in zip(axes, noises, strict=True):
        _curves(axis, result, noise, quantity, per_million)
        axis.set_title(noise_name(noise))
        axis.set_xlabel(NOISE_AXIS)
    axes[0].set_ylabel(label)
    legend_below(figure, axes[0], columns=LEGEND_COLUMNS, title="On analog hardware:", columnspacing=3)
    digital = data["digital"]
    titled(
        figure,
        message,
        f"{data['model']}; all digital: loss {digital['loss']['mean']:.3f} nats per token, top-1 accuracy"
        f" {100 * digital['accuracy']['mean']:.1f} %; {data['blocks']} blocks of {data['block_tokens']} tokens"
        f"{other_hardware(result)}",
    )
    return figure


def _curves(axis: Axes, result: Result, noise: tuple[str, str], quantity: str, per_million: bool) -> None:
    for label, look in _looks(result.data["parts"]).items():
        curve = [each for each in result.data["curves"] if noise_of(each) == noise and each["part"] == label]
        curve.sort(key=lambda each: each["c"])
        units = [each["analog_millions"] if per_million else 1.0 for each in curve]
        c = [each["c"] for each in curve]
        middle = [each[quantity] / unit for each, unit in zip(curve, units, strict=True)]
        bands = [
            [bound / unit for bound in each[f"{quantity}_interval"]]
            for each, unit in zip(curve, units, strict=True)
        ]
        low, high = zip(*bands, strict=True)
        axis.plot(c, middle, label=label, **look)
        axis.fill_between(c, low, high, color=look["color"], alpha=0.15, linewidth=0)
