"""Draws the tolerable noise against the number of digital experts, for every strategy that chooses them."""

from collections.abc import Mapping
from typing import Any

import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MultipleLocator, NullFormatter

from figures.drawings.rows import with_bounds
from theory.evidence import Result

_COLOURS = sns.color_palette("deep")
STRATEGIES: Mapping[str, tuple[str, dict[str, Any]]] = {
    "best": ("best subset found", {"color": "black", "linestyle": ":", "marker": "*", "markersize": 7}),
    "oracle": ("oracle: frequent specialists", {"color": "black", "marker": "s"}),
    "maxnn": ("MaxNN", {"color": _COLOURS[3], "marker": "o", "linewidth": 2.2}),
    "balanced_maxnn": ("MaxNN, signs balanced", {"color": _COLOURS[1], "marker": "D", "linewidth": 1.8}),
    "activation_weight": ("activation weight", {"color": _COLOURS[0], "marker": "^"}),
    "activation_frequency": (
        "activation frequency",
        {"color": _COLOURS[9], "linestyle": "--", "marker": "v"},
    ),
    "router_norm": ("router norm", {"color": _COLOURS[2], "marker": "P"}),
    "random": ("random", {"color": _COLOURS[7], "linestyle": "--", "marker": "x"}),
    "minnn": ("MinNN (control)", {"color": _COLOURS[4], "marker": "."}),
}
ROUTINGS = {"expert_choice": "expert choice", "token_choice": "token choice"}
CORRECTIONS = {False: "as it is", True: "bias corrected"}


def draw(result: Result) -> Figure:
    """Rows: c* for both routings, then MaxNN's gain for both; columns: networks, without and with correction."""
    curves = result.data["curves"]
    networks = list(dict.fromkeys((curve["N_F"], curve["N_R"]) for curve in curves))
    columns = [(network, correction) for network in networks for correction in CORRECTIONS]
    alpha = result.data["rules_alpha"]
    with sns.axes_style("whitegrid"), sns.plotting_context("paper"):
        figure = Figure(figsize=(3.1 * len(columns) + 2, 12.5), layout="constrained")
        axes = figure.subplots(4, len(columns), squeeze=False, sharex="col", sharey="row")
    for row, routing in enumerate(ROUTINGS):
        for column, ((frequent, rare), correction) in enumerate(columns):
            here = [
                curve
                for curve in curves
                if (curve["routing"], curve["N_F"], curve["N_R"], curve["bias_correction"])
                == (routing, frequent, rare, correction)
            ]
            _tolerances(axes[row, column], [curve for curve in here if curve["alpha"] == alpha])
            _gains(axes[row + 2, column], here, result.data["alphas"])
            for axis in (axes[row, column], axes[row + 2, column]):
                axis.axvline(2 * frequent, color="black", linestyle=(0, (5, 3)), linewidth=0.9, zorder=1)
    # The intervals of two or three seeds would leave nothing of the gains to be seen.
    gains = [curve["gain"] for curve in curves if curve["strategy"] in ("none", "maxnn")]
    for axis in axes[2:, 0]:
        axis.set_ylim(min(gains) / 2, max(gains) * 2)
    for axis, (network, correction) in zip(axes[0], columns, strict=True):
        axis.set_title(f"$(N_F, N_R)$ = {network}\n{CORRECTIONS[correction]}", fontweight="bold")
    for axis in axes[-1]:
        axis.set_xlabel("digital experts K (dashed: K = |F|)")
        axis.xaxis.set_major_locator(MultipleLocator(1))
    for row, routing in enumerate(ROUTINGS.values()):
        axes[row, 0].set_ylabel(f"{routing}\ntolerance c* at alpha = {alpha:g}")
        axes[row + 2, 0].set_ylabel(f"{routing}\nc* of MaxNN / c* with nothing digital")
    axes[0, -1].legend(loc="upper left", bbox_to_anchor=(1.02, 1.0), frameon=False)
    axes[2, -1].legend(
        handles=_gain_key(result.data["alphas"]),
        loc="upper left",
        bbox_to_anchor=(1.02, 1.0),
        frameon=False,
    )
    data = result.data
    left_out = (
        f" {data['left_out']} of {data['trained']} networks did not learn both classes and are left out."
        if data["left_out"]
        else ""
    )
    figure.suptitle(
        "Tolerable noise against the number of digital experts. Geometric means over"
        f" {max(curve['seeds'] for curve in curves)} training seeds, {data['draws']} noise draws each;"
        f" bands: 95 % intervals.{left_out}\n"
        "Bias corrected: the known mean shift of every analog expert is subtracted digitally, also where nothing is"
        " digital.",
        fontsize="medium",
    )
    return figure


def table(result: Result) -> list[dict[str, Any]]:
    """The curves, one row for each condition, strategy and number of digital experts."""
    return with_bounds(result.data["curves"])


def _tolerances(axis: Axes, curves: list[dict[str, Any]]) -> None:
    """c* of every strategy with w_max per expert; all begin where nothing is digital."""
    curves = [curve for curve in curves if curve["w_max"] == "layer"]
    (none,) = (curve for curve in curves if curve["strategy"] == "none")
    axis.axhline(none["c_star"], color="black", linewidth=0.8, label="nothing digital", zorder=1)
    for strategy, (label, style) in STRATEGIES.items():
        points = sorted(
            (curve["digital"], curve["c_star"]) for curve in curves if curve["strategy"] == strategy
        )
        counts, c_star = zip((0, none["c_star"]), *points, strict=True)
        axis.plot(counts, c_star, label=label, **({"linewidth": 1.2, "markersize": 4} | style))
    _logarithmic(axis)


def _gains(axis: Axes, curves: list[dict[str, Any]], alphas: list[float]) -> None:
    """MaxNN against `none` of the same seeds, for every alpha; bands are 95 % intervals over training seeds."""
    axis.axhline(1.0, color="black", linewidth=0.8, zorder=1)
    for alpha, colour in zip(alphas, _alpha_colours(alphas), strict=True):
        for w_max, line in (("layer", "-"), ("column", ":")):
            points = sorted(
                (curve["digital"], curve["gain"], *curve["gain_interval"])
                for curve in curves
                if (curve["alpha"], curve["w_max"]) == (alpha, w_max)
                and curve["strategy"] in ("none", "maxnn")
            )
            counts, gain, low, high = zip(*points, strict=True)
            axis.plot(counts, gain, color=colour, linestyle=line, linewidth=1.5)
            if w_max == "layer":
                axis.fill_between(counts, low, high, color=colour, alpha=0.15, linewidth=0)
    _logarithmic(axis)


def _gain_key(alphas: list[float]) -> list[Line2D]:
    colours = zip(alphas, _alpha_colours(alphas), strict=True)
    return [
        *(Line2D([], [], color=colour, label=f"alpha = {alpha:g}") for alpha, colour in colours),
        Line2D([], [], color="grey", label="$w_{max}$ per expert"),
        Line2D([], [], color="grey", linestyle=":", label="$w_{max}$ per neuron"),
    ]


def _alpha_colours(alphas: list[float]) -> Any:
    return sns.color_palette("flare_r", len(alphas))


def _logarithmic(axis: Axes) -> None:
    axis.set_yscale("log")
    axis.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.yaxis.set_minor_formatter(NullFormatter())
