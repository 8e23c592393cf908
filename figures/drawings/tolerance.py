"""Draws what a network tolerates: accuracies against noise, tolerance against alpha, gain against rho."""

from typing import Any

import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator, PercentFormatter

from theory.evidence import Result

ALPHA = 0.1  # of the accuracy curves, or the nearest there is
LEVEL = 0.95  # the accuracy that defines the tolerance
BLUE, ORANGE, GREEN, *_ = sns.color_palette("deep")
PLACEMENTS: dict[str, tuple[str, dict[str, Any]]] = {
    "none": ("all analog", {"color": ORANGE, "marker": "o", "markersize": 5}),
    "oracle": ("frequent specialists digital", {"color": BLUE, "marker": "s", "markersize": 5}),
    # Hollow and larger, as it often coincides with the oracle.
    "maxnn": (
        "MaxNN's choice digital",
        {"color": GREEN, "marker": "D", "markersize": 9, "markerfacecolor": "none"},
    ),
}
THEORY: dict[str, tuple[str | None, dict[str, Any]]] = {
    "P": ("prediction P", {"linestyle": "-", "linewidth": 1.2}),
    "floor": ("proved floor (B-mean, B-exp) and ceiling (U)", {"linestyle": "--", "linewidth": 1.0}),
    "ceiling": (None, {"linestyle": "--", "linewidth": 1.0}),
    "B-mean": ("B-mean, worst input", {"linestyle": "-.", "linewidth": 0.8}),
    "B": ("B, worst input", {"linestyle": ":", "linewidth": 1.2}),
    "Bu": ("Bu, all inputs", {"linestyle": (0, (1, 4)), "linewidth": 1.2}),
}


def draw(result: Result) -> Figure:
    """A column for each (N_F, N_R); bands and bars are 95 % intervals over training seeds."""
    laws = result.data["law"]
    alpha = min((row["alpha"] for row in result.data["accuracy"]), key=lambda each: abs(each - ALPHA))
    with sns.axes_style("whitegrid"), sns.plotting_context("paper"):
        figure = Figure(figsize=(5.6 * len(laws), 12.5), layout="constrained")
        axes = figure.subplots(3, len(laws), squeeze=False, sharey="row")
    for column, law in enumerate(laws):
        accuracy, star, gain = axes[:, column]
        _accuracies(accuracy, result.data, law["specialists"], alpha)
        _tolerances(star, result.data, law["specialists"])
        _gains(gain, result.data, law)
        name = "(N_F, N_R) = ({}, {})".format(*law["specialists"])
        accuracy.set_title(f"{name}: {law['seeds']} training seeds", loc="left", fontweight="bold")
    for axis, label in zip(
        axes[:, 0],
        (f"accuracy of a class at alpha = {alpha:g}", "tolerance c*", "gain of tolerance"),
        strict=True,
    ):
        axis.set_ylabel(label)
    for row in axes:
        entries: dict[str, Any] = {}
        for axis in row:
            handles, labels = axis.get_legend_handles_labels()
            entries |= zip(labels, handles, strict=True)
        row[-1].legend(
            entries.values(),
            entries.keys(),
            fontsize="x-small",
            loc="upper left",
            bbox_to_anchor=(1.01, 1.0),
            frameon=False,
        )
    figure.suptitle(
        "How much programming noise a network tolerates, and how much more with its frequent experts digital\n"
        f"{result.data['draws']} noise draws, {result.data['inputs']} test inputs; symbols: measured, with 95 %"
        " intervals over training seeds; lines: theory",
        fontsize="small",
    )
    return figure


def table(result: Result) -> list[dict[str, Any]]:
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
            | {name: gain[name] for name in ("score_ratio", "predicted", "proved")}
            | {"gain": gain.get(entry["placement"], 1.0)}
        )
    names = list(dict.fromkeys(name for row in rows for name in row))
    return [{name: row.get(name) for name in names} for row in rows]


def _accuracies(axis: Axes, data: dict[str, Any], specialists: list[int], alpha: float) -> None:
    for row in data["accuracy"]:
        if (row["specialists"], row["alpha"]) == (specialists, alpha):
            label, style = PLACEMENTS[row["placement"]]
            colour = style["color"]
            wide = 3.5 if row["placement"] == "oracle" else 1.4  # where they agree, both are seen
            axis.plot(
                data["c"],
                row["mean"],
                color=colour,
                linewidth=wide,
                alpha=0.5 if wide > 2 else 1.0,
                linestyle="-" if row["kind"] == "rare" else "--",
                label=f"{label}: {row['kind']} class",
            )
            axis.fill_between(data["c"], row["low"], row["high"], color=colour, alpha=0.12, linewidth=0)
    axis.axhline(LEVEL, color="black", linewidth=0.8, linestyle=":", label=f"accuracy {LEVEL:g}")
    axis.set_xscale("log")
    axis.set_ylim(0.4, 1.02)
    axis.yaxis.set_major_formatter(PercentFormatter(1.0))
    axis.set_xlabel("noise magnitude c")


def _tolerances(axis: Axes, data: dict[str, Any], specialists: list[int]) -> None:
    for placement, (label, style) in PLACEMENTS.items():
        rows = [
            row
            for row in data["tolerance"]
            if row["specialists"] == specialists and row["placement"] == placement
        ]
        alphas = [row["alpha"] for row in rows]
        _points(axis, alphas, rows, "tolerance", label=label, **style)
        for bound, (name, line) in THEORY.items():
            if bound in rows[0]:
                shown = name if placement == "none" else None
                axis.plot(alphas, _numbers(rows, bound), color=style["color"], label=shown, **line)
    _log_log(axis, alphas)
    axis.set_xlabel("probability alpha of the rare class")


def _gains(axis: Axes, data: dict[str, Any], law: dict[str, Any]) -> None:
    rows = [row for row in data["gain"] if row["specialists"] == law["specialists"]]
    rho = [row["rho"] for row in rows]
    for placement in ("oracle", "maxnn"):
        label, style = PLACEMENTS[placement]
        _points(axis, rho, rows, placement, label=label, **style)
    axis.plot(rho, _numbers(rows, "predicted"), color=BLUE, label="prediction P", linewidth=1.2)
    axis.plot(
        rho, law["idealised"], color="black", linewidth=1.0, label="P of the idealised network, untrained"
    )
    axis.plot(
        rho,
        np.hypot(1, law["g"] * np.array(rho)),
        color="black",
        linestyle=":",
        label="sqrt(1 + (g rho)^2), g fitted",
    )
    axis.plot(
        rho,
        _numbers(rows, "proved"),
        color=BLUE,
        linestyle="--",
        linewidth=1.0,
        label="proved gain (B-exp, U)",
    )
    if law["proved_for_every_rho"] * max(rho) > 1:  # else it says nothing here
        axis.plot(
            rho,
            law["proved_for_every_rho"] * np.array(rho),
            color="grey",
            linestyle="--",
            linewidth=1.0,
            label="proved for the idealised network",
        )
    axis.plot(rho, rho, color="grey", linewidth=0.8, label="rho")
    _log_log(axis, rho)
    axis.set_xlabel("rho = (1 - alpha)/alpha")


def _points(axis: Axes, x: list[float], rows: list[dict[str, Any]], name: str, **style: Any) -> None:
    centre = np.array([row[name] for row in rows])
    low, high = np.array([row[f"{name}_interval"] for row in rows]).T
    axis.errorbar(x, centre, yerr=(centre - low, high - centre), linestyle="none", capsize=2, **style)


def _numbers(rows: list[dict[str, Any]], name: str) -> list[float]:
    return [np.nan if row[name] is None else row[name] for row in rows]


def _log_log(axis: Axes, x: list[float]) -> None:
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.xaxis.set_major_locator(FixedLocator(x))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_minor_formatter(NullFormatter())
