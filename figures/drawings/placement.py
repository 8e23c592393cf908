"""Draws the tolerable noise of every strategy: at the natural budget, against the budget, and against rarity."""

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MultipleLocator

from figures.drawings.rows import with_bounds
from figures.drawings.style import (
    BLACK,
    BLUE,
    GREY,
    STRATEGIES,
    VERMILLION,
    WIDTH,
    legend_below,
    lengths,
    log_ticks,
    styled,
    titled,
)
from theory.evidence import Result

Row = dict[str, Any]

SHOWN = (  # from above to below
    "best",
    "oracle",
    "maxnn",
    "balanced_maxnn",
    "router_norm",
    "activation_weight",
    "activation_frequency",
    "random",
    "minnn",
)
BOLD = ("best", "maxnn", "balanced_maxnn", "random")  # those whose curves over the budget are told apart
PALE = "#c4c4c4"
ROUTINGS = {"expert_choice": "expert choice", "token_choice": "token choice"}
CORRECTIONS = {False: "as it is", True: "bias corrected"}
GRAINS = {"layer": "w_max per expert", "column": "w_max per neuron"}
TOLERANCES = (0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)
GAINS = (0.2, 0.5, 1, 2, 5, 10, 20, 50, 100)
SYMBOLS = (
    "The tolerance c* is the largest magnitude of programming noise, relative to w_max, at which the worse class"
    " keeps an accuracy of 95 %; w_max is the largest weight of an expert (or of a neuron). N_F and N_R are the"
    " numbers of frequent and rare specialists (experts) of each sign: 2 N_F of the 8 experts are frequent"
    " specialists. Expert choice: experts take tokens; token choice: tokens take experts. α is the probability of"
    " the rare class. Geometric means over training seeds; bars are 95 % intervals. The best subset is found by a"
    " search; signs balanced: as many experts of positive as of negative sign."
)
CAPTION = (
    "Points with bars: the tolerated noise, a row for each way to choose the digital experts, which are as many as"
    f" there are frequent specialists. {SYMBOLS}"
)
BUDGET = (
    "Curves of the tolerated noise against the number of digital experts, one for each way to choose them, as it is"
    " and with the bias corrected. Bias corrected: the known mean shift of every analog expert is subtracted"
    " digitally, also where nothing is digital. Dashed line: the budget that suffices for all frequent specialists."
    " Grey: the other strategies, which the table of the results tells apart. The largest weight w_max is per"
    f" expert. {SYMBOLS}"
)
RARITY = (
    "Gain in tolerated noise by MaxNNScore against the rarity of a class, as it is and with the bias corrected. The"
    " digital experts are as many as there are frequent specialists. Bias corrected: the known mean shift of every"
    f" analog expert is subtracted digitally, also where nothing is digital. {SYMBOLS}"
)


@styled
def draw(result: Result) -> Figure:
    """c* at K = |F| of every strategy over that of no digital expert, a panel for each routing and network."""
    figure = Figure(figsize=(WIDTH, 3.5))
    panels = [(routing, pair) for routing in ROUTINGS for pair in _networks(result)]
    axes = figure.subplots(1, len(panels), squeeze=False, sharex=True, sharey=True)[0]
    for axis, (routing, (frequent, rare)) in zip(axes, panels, strict=True):
        curves = [
            curve
            for curve in _curves(result, routing=routing, N_F=frequent, N_R=rare, bias_correction=False)
            if (curve["alpha"], curve["w_max"], curve["digital"])
            == (result.data["rules_alpha"], "layer", 2 * frequent)
        ]
        axis.axvline(1, color=BLACK, linewidth=0.8)
        for height, strategy in enumerate(SHOWN):
            look = STRATEGIES[strategy]
            (curve,) = (each for each in curves if each["strategy"] == strategy)
            axis.errorbar(
                curve["gain"],
                height,
                xerr=lengths([curve["gain"]], [curve["gain_interval"]]),
                color=look.colour,
                marker=look.marker,
                linestyle="none",
                markersize=8 if look.marker in "*+" else 5,
                markeredgewidth=1.6 if look.marker == "+" else 1,
                capsize=2,
                label=look.label,
            )
        axis.set(xscale="log", xlabel="c* / nothing digital")
        log_ticks(axis.xaxis, (0.5, 1, 2, 5, 10, 20))
        axis.set_title(f"{ROUTINGS[routing]}\n{_name((frequent, rare))}")
    axes[0].set_yticks(range(len(SHOWN)), [STRATEGIES[strategy].label for strategy in SHOWN])
    axes[0].invert_yaxis()
    data = result.data
    titled(
        figure,
        "How much noise each choice of digital experts tolerates",
        f"2 $N_F$ of 8 experts digital; α = {data['rules_alpha']:g}; {_seeds(result)}",
    )
    return figure


@styled
def draw_budget(result: Result) -> Figure:
    """c* against K: rows are routings, columns networks without and with correction."""
    pairs = _networks(result)
    columns = [(pair, correction) for pair in pairs for correction in CORRECTIONS]
    figure = Figure(figsize=(WIDTH, 5.2))
    axes = figure.subplots(len(ROUTINGS), len(columns), squeeze=False, sharex=True, sharey="row")
    for down, routing in zip(axes, ROUTINGS, strict=True):
        for axis, ((frequent, rare), correction) in zip(down, columns, strict=True):
            curves = [
                curve
                for curve in _curves(
                    result, routing=routing, N_F=frequent, N_R=rare, bias_correction=correction
                )
                if (curve["alpha"], curve["w_max"]) == (result.data["rules_alpha"], "layer")
            ]
            _over_budget(axis, curves)
            axis.axvline(2 * frequent, color=BLACK, linestyle=(0, (5, 3)), linewidth=0.9, zorder=1)
        down[0].set_ylabel(f"{ROUTINGS[routing]}\ntolerated noise c*")
    for axis, (pair, correction) in zip(axes[0], columns, strict=True):
        axis.set_title(f"{_name(pair)}\n{CORRECTIONS[correction]}")
    for axis in axes[-1]:
        axis.set_xlabel("digital experts")
    titled(
        figure,
        "How much noise is tolerated with few and with many digital experts",
        f"α = {result.data['rules_alpha']:g}; {_seeds(result)}",
    )
    handles, labels = axes[0, 0].get_legend_handles_labels()
    shown = [number for number, label in enumerate(labels) if handles[number].get_color() != PALE]
    pale = next(handle for handle in handles if handle.get_color() == PALE)
    figure.legend(
        [*(handles[number] for number in shown), pale],
        [*(labels[number] for number in shown), "other strategies"],
        loc="outside lower center",
        ncols=3,
    )
    return figure


@styled
def draw_rarity(result: Result) -> Figure:
    """MaxNN's gain at K = |F| against alpha, for both granularities, without and with correction."""
    pairs = _networks(result)
    figure = Figure(figsize=(WIDTH, 5.4))
    axes = figure.subplots(len(ROUTINGS), len(pairs), squeeze=False, sharex=True, sharey=True)
    looks = {
        ("layer", False): (BLUE, "o", "-"),
        ("column", False): (BLUE, "s", ":"),
        ("layer", True): (VERMILLION, "^", "--"),
        ("column", True): (VERMILLION, "v", "-."),
    }
    for down, routing in zip(axes, ROUTINGS, strict=True):
        for axis, (frequent, rare) in zip(down, pairs, strict=True):
            axis.axhline(1, color=BLACK, linewidth=0.8)
            for (w_max, correction), (colour, marker, line) in looks.items():
                points = sorted(
                    (curve["alpha"], curve["gain"], curve["gain_interval"])
                    for curve in _curves(
                        result, routing=routing, N_F=frequent, N_R=rare, bias_correction=correction
                    )
                    if (curve["w_max"], curve["strategy"], curve["digital"]) == (w_max, "maxnn", 2 * frequent)
                )
                alphas, gains, intervals = zip(*points, strict=True)
                axis.errorbar(
                    alphas,
                    gains,
                    lengths(gains, intervals),
                    color=colour,
                    marker=marker,
                    linestyle=line,
                    markerfacecolor="white" if w_max == "column" else colour,
                    capsize=2,
                    label=f"{GRAINS[w_max]}, {CORRECTIONS[correction]}",
                )
            axis.set(xscale="log", yscale="log")
            log_ticks(axis.xaxis, result.data["alphas"])
            log_ticks(axis.yaxis, GAINS)
            axis.set_title(f"{ROUTINGS[routing]}, {_name((frequent, rare))}")
        down[0].set_ylabel("c* / nothing digital")
    for axis in axes[-1]:
        axis.set_xlabel("α, probability of the rare class")
    titled(
        figure,
        "How much tolerance MaxNNScore gains, by the rarity of a class",
        f"2 $N_F$ of 8 experts digital; {_seeds(result)}",
    )
    legend_below(figure, axes[0, 0], columns=2)
    return figure


PARTS = {"budget": (draw_budget, BUDGET), "rarity": (draw_rarity, RARITY)}


def table(result: Result) -> list[Row]:
    """The curves, one row for each condition, strategy and number of digital experts."""
    return with_bounds(result.data["curves"])


def _networks(result: Result) -> list[tuple[int, int]]:
    return list(dict.fromkeys((curve["N_F"], curve["N_R"]) for curve in result.data["curves"]))


def _curves(result: Result, **condition: Any) -> list[Row]:
    return [
        curve
        for curve in result.data["curves"]
        if all(curve[name] == value for name, value in condition.items())
    ]


def _name(pair: tuple[int, int]) -> str:
    return "$N_F$ = {}, $N_R$ = {}".format(*pair)


def _seeds(result: Result) -> str:
    data = result.data
    left_out = (
        f"; {data['left_out']} of {data['trained']} networks left out (not learned)"
        if data["left_out"]
        else ""
    )
    return (
        f"{max(curve['seeds'] for curve in data['curves'])} training seeds, {data['draws']} draws{left_out}"
    )


def _over_budget(axis: Axes, curves: list[Row]) -> None:
    """c* of every strategy; all begin where nothing is digital."""
    (none,) = (curve for curve in curves if curve["strategy"] == "none")
    axis.axhline(none["c_star"], color=GREY, linewidth=1, linestyle=(0, (1, 1)), label="nothing digital")
    for strategy in sorted(SHOWN, key=BOLD.__contains__):
        look, bold = STRATEGIES[strategy], strategy in BOLD
        points = sorted(
            (curve["digital"], curve["c_star"]) for curve in curves if curve["strategy"] == strategy
        )
        counts, c_star = zip((0, none["c_star"]), *points, strict=True)
        axis.plot(
            counts,
            c_star,
            color=look.colour if bold else PALE,
            marker=look.marker if bold else "",
            markersize=6 if look.marker in "*+" else 4,
            linestyle=look.line if bold else "-",
            linewidth=1.4 if bold else 0.8,
            label=look.label,
        )
    axis.set_yscale("log")
    axis.xaxis.set_major_locator(MultipleLocator(2))
    log_ticks(axis.yaxis, TOLERANCES)
