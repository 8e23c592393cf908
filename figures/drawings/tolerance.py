"""Draws what a network tolerates: c* against the rarity of a class, the gain, accuracies, and the bounds."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from figures.drawings.style import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    PURPLE,
    SKY,
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

ALPHA = 0.1  # where accuracy is drawn, or the nearest there is
LEVEL = 0.95  # the accuracy that defines the tolerance
NOISE = (0.001, 0.01, 0.1, 1, 10)
GAINS = (0.5, 1, 2, 5, 10, 20, 50)
PLACEMENTS: dict[str, tuple[str, dict[str, Any]]] = {
    "none": ("all analog", {"color": VERMILLION, "marker": "o", "markersize": 4.5}),
    "oracle": ("frequent specialists digital", {"color": BLUE, "marker": "s", "markersize": 4}),
    # Hollow and larger, as it often coincides with the oracle.
    "maxnn": (
        "MaxNN's choice digital",
        {"color": GREEN, "marker": "D", "markersize": 8, "markerfacecolor": "none"},
    ),
}
BOUNDS: dict[str, tuple[str, dict[str, Any]]] = {  # from above to below
    "ceiling": ("ceiling (U)", {"color": PURPLE, "linestyle": "--", "marker": "D"}),
    "floor": ("floor (B-mean, B-exp)", {"color": GREEN, "linestyle": "--", "marker": "s"}),
    "B-mean": ("exact mean (B-mean), worst input", {"color": BLUE, "linestyle": "-.", "marker": "o"}),
    "B": ("worst bias (B), worst input", {"color": SKY, "linestyle": ":", "marker": "^"}),
    "Bu": ("all inputs at once (Bu)", {"color": GREY, "linestyle": "-", "marker": "v"}),
}
SYMBOLS = (
    "c is the magnitude of programming noise, relative to the largest weight of an expert; the tolerance c* is the"
    f" largest c at which the worse class keeps an accuracy of {LEVEL:.0%}. α is the probability of the rare class and"
    " ρ = (1 - α)/α; N_F and N_R are the numbers of frequent and rare specialists (experts) of each sign. MaxNN makes"
    " the 2 N_F experts of the largest MaxNNScore digital. Points: geometric means with 95 % intervals over training"
    " seeds."
)
FLOOR = "Floors and ceilings are proved formulas in float64, on the sampled inputs and without bounds on rounding."
CAPTION = (
    "Tolerable noise against the rarity of a class, one curve for each choice of digital experts, a panel for each"
    " network. Lines: what the theory predicts (P of docs/theory.md: exact moments and a normal approximation)."
    f" {SYMBOLS}"
)
GAIN = (
    "The factor by which digital frequent experts raise the tolerated noise, against the ratio of frequencies,"
    " measured and predicted, with its floor. Blue line: prediction P for the trained networks; black: P for the"
    " idealised, untrained network, from which the rules take g; dotted: √(1 + (gρ)²) with g fitted; dashed: the floor"
    " of the gain, by B-exp and U; dash-dotted (if above 1): the floor γρ of the idealised network; grey: ρ itself."
    f" {FLOOR} {SYMBOLS}"
)
ACCURACY = (
    "Curves of the accuracy of the rare and of the frequent class against noise, one for each choice of digital"
    f" experts. Bands: 95 % intervals. {SYMBOLS}"
)
BOUNDED = (
    "Measured tolerances (points) and bounds on them (lines) against the rarity of the class, a row for each"
    " choice of digital experts. Floor and ceiling are averages over a class's inputs; the other bounds are those of"
    " the worst input, or of all at once, at a failure probability of 5 %. All are statements of docs/theory.md,"
    f" named in brackets. {FLOOR} {SYMBOLS}"
)


@styled
def draw(result: Result) -> Figure:
    """c* of every placement, a panel for each (N_F, N_R)."""
    figure, axes = _panels(result, 3.6)
    for axis, law in zip(axes, result.data["law"], strict=True):
        for placement, (label, style) in PLACEMENTS.items():
            rows = _rows(result, law, placement)
            if "P" in rows[0]:
                axis.plot(
                    [row["alpha"] for row in rows],
                    _numbers(rows, "P"),
                    color=style["color"],
                    label=f"{label}: predicted (P)",
                )
        for placement in PLACEMENTS:
            rows = _rows(result, law, placement)
            _points(axis, [row["alpha"] for row in rows], rows, "tolerance", placement)
        _alphas(axis, result, law)
    axes[0].set_ylabel("tolerated noise c*")
    titled(
        figure,
        "How much noise is tolerated, by the rarity of a class",
        f"{result.data['draws']} noise draws, {result.data['inputs']} test inputs",
    )
    legend_below(figure, axes[0], columns=2)
    return figure


@styled
def draw_gain(result: Result) -> Figure:
    """The gain of both placements with digital experts, a panel for each (N_F, N_R)."""
    figure, axes = _panels(result, 4.2)
    shown = [law["idealised_gain_floor"] * max(_rho(result, law)) > 1 for law in result.data["law"]]
    for axis, law in zip(axes, result.data["law"], strict=True):
        rows = [row for row in result.data["gain"] if row["specialists"] == law["specialists"]]
        rho = _rho(result, law)
        axis.plot(rho, rho, color=GREY, linewidth=0.8, label="ρ")
        for placement in ("oracle", "maxnn"):
            _points(axis, rho, rows, placement, placement)
        axis.plot(rho, _numbers(rows, "predicted"), color=BLUE, label="predicted (P)")
        axis.plot(rho, law["idealised"], color=BLACK, linewidth=1.0, label="P, idealised network")
        axis.plot(
            rho,
            np.hypot(1, law["g"] * np.array(rho)),
            color=BLACK,
            linestyle=":",
            label="√(1 + (gρ)²), g fitted",
        )
        axis.plot(rho, _numbers(rows, "gain_floor"), color=BLUE, linestyle="--", label="floor (B-exp, U)")
        if any(shown):  # else it says nothing here
            axis.plot(
                rho,
                law["idealised_gain_floor"] * np.array(rho)
                if shown[list(axes).index(axis)]
                else [np.nan] * len(rho),
                color=GREY,
                linestyle="-.",
                label="floor, idealised network",
            )
        axis.set(xscale="log", yscale="log", xlabel="ρ, frequent / rare class")
        log_ticks(axis.xaxis, (3, *GAINS))
        log_ticks(axis.yaxis, GAINS)
    axes[0].set_ylabel("c* / c* all analog")
    titled(figure, "How many times more noise is tolerated with frequent experts digital")
    legend_below(figure, axes[0], columns=3)
    return figure


@styled
def draw_accuracy(result: Result) -> Figure:
    """Accuracies of both classes at one alpha, a panel for each (N_F, N_R)."""
    alpha = min((row["alpha"] for row in result.data["accuracy"]), key=lambda each: abs(each - ALPHA))
    figure, axes = _panels(result, 3.8)
    for axis, law in zip(axes, result.data["law"], strict=True):
        for row in result.data["accuracy"]:
            if (row["specialists"], row["alpha"]) == (law["specialists"], alpha):
                _accuracy(axis, result.data["c"], row)
        axis.axhline(LEVEL, color=BLACK, linewidth=0.8, linestyle=":", label=f"{LEVEL:.0%}: defines c*")
        axis.set(xscale="log", xlabel="noise magnitude c", ylim=(0.45, 1.02))
        log_ticks(axis.xaxis, (0.01, 0.03, 0.1, 0.3, 1, 3))
        axis.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes[0].set_ylabel("accuracy of a class")
    titled(figure, "Which class fails first, and at how much noise?", f"α = {alpha:g}")
    legend_below(figure, axes[0], columns=2)
    return figure


@styled
def draw_bounds(result: Result) -> Figure:
    """Measured c* between the bounds: a row for each placement, a column for each (N_F, N_R)."""
    laws, judged = result.data["law"], ("none", "oracle")
    figure = Figure(figsize=(WIDTH, 5.6))
    axes = figure.subplots(2, len(laws), squeeze=False, sharex=True, sharey="row")
    for down, placement in zip(axes, judged, strict=True):
        for axis, law in zip(down, laws, strict=True):
            rows = _rows(result, law, placement)
            alphas = [row["alpha"] for row in rows]
            for bound, (label, style) in BOUNDS.items():
                axis.plot(alphas, _numbers(rows, bound), **(style | {"markersize": 3.5, "label": label}))
            middle = [row["tolerance"] for row in rows]
            axis.errorbar(
                alphas,
                middle,
                lengths(middle, [row["tolerance_interval"] for row in rows]),
                color=BLACK,
                marker="x",
                linestyle="none",
                capsize=2,
                label="measured c*",
            )
            _alphas(axis, result, law)
            axis.set_xlabel("")
            axis.set_title(f"{_name(law)}, {PLACEMENTS[placement][0]}")
        down[0].set_ylabel("tolerated noise c*")
    for axis in axes[-1]:
        axis.set_xlabel("α, probability of the rare class")
    titled(figure, "Does the measured tolerance lie between floor and ceiling?")
    legend_below(figure, axes[0, 0], columns=2)
    return figure


PARTS = {
    "gain": (draw_gain, GAIN),
    "accuracy": (draw_accuracy, ACCURACY),
    "bounds": (draw_bounds, BOUNDED),
}


def table(result: Result) -> list[Row]:
    """Tolerances and bounds, one row for each (N_F, N_R), alpha and placement, with the gains at that alpha."""
    gains = {(tuple(row["specialists"]), row["alpha"]): row for row in result.data["gain"]}
    rows = []
    for entry in result.data["tolerance"]:
        row = {
            name: value for name, value in entry.items() if name not in ("specialists", "tolerance_interval")
        }
        row["tolerance_low"], row["tolerance_high"] = entry["tolerance_interval"]
        gain = gains[tuple(entry["specialists"]), entry["alpha"]]
        n_f, n_r = entry["specialists"]
        rows.append(
            {"N_F": n_f, "N_R": n_r, "rho": gain["rho"], **row}
            | {name: gain[name] for name in ("score_ratio", "predicted", "gain_floor")}
            | {"gain": gain.get(entry["placement"], 1.0)}
        )
    names = list(dict.fromkeys(name for row in rows for name in row))
    return [{name: row.get(name) for name in names} for row in rows]


def _panels(result: Result, height: float) -> tuple[Figure, Any]:
    """A panel for each (N_F, N_R), which share their vertical axis."""
    laws = result.data["law"]
    figure = Figure(figsize=(WIDTH, height))
    axes = figure.subplots(1, len(laws), squeeze=False, sharey=True)[0]
    for axis, law in zip(axes, laws, strict=True):
        axis.set_title(f"{_name(law)}: {law['seeds']} training seeds")
    return figure, axes


def _name(law: Row) -> str:
    return "$N_F$ = {}, $N_R$ = {}".format(*law["specialists"])


def _rows(result: Result, law: Row, placement: str) -> list[Row]:
    return [
        row
        for row in result.data["tolerance"]
        if row["specialists"] == law["specialists"] and row["placement"] == placement
    ]


def _rho(result: Result, law: Row) -> list[float]:
    return [row["rho"] for row in result.data["gain"] if row["specialists"] == law["specialists"]]


def _accuracy(axis: Axes, c: list[float], row: Row) -> None:
    label, style = PLACEMENTS[row["placement"]]
    wide = row["placement"] == "oracle"  # where it agrees with MaxNN, both are seen
    axis.plot(
        c,
        row["mean"],
        color=style["color"],
        linewidth=4 if wide else 1.4,
        alpha=0.4 if wide else 1.0,
        linestyle="-" if row["kind"] == "rare" else "--",
        label=f"{label}: {row['kind']} class",
    )
    axis.fill_between(c, row["low"], row["high"], color=style["color"], alpha=0.12, linewidth=0)


def _points(axis: Axes, x: list[float], rows: list[Row], name: str, placement: str) -> None:
    label, style = PLACEMENTS[placement]
    middle = [row[name] for row in rows]
    errors = lengths(middle, [row[f"{name}_interval"] for row in rows])
    axis.errorbar(x, middle, errors, linestyle="none", capsize=2, label=label, **style)


def _numbers(rows: list[Row], name: str) -> list[float]:
    return [np.nan if row[name] is None else row[name] for row in rows]


def _alphas(axis: Axes, result: Result, law: Row) -> None:
    axis.set(xscale="log", yscale="log", xlabel="α, probability of the rare class")
    log_ticks(axis.xaxis, sorted({row["alpha"] for row in _rows(result, law, "none")}))
    log_ticks(axis.yaxis, NOISE)
