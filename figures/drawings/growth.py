"""Draws the growth of neurons from its result: over time, at the stop rule, and what makes the norms differ."""

from typing import Any

import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from theory.evidence import Result

Row = dict[str, Any]

SPECIALISTS_MARKERS = ("o", "s")
EFFECTS = {
    "own, unsaturated": "own-token weights before the knee / ρ  (G)",
    "saturation": "(i) the sign with more active neurons saturates",
    "leakage": "(ii) rare specialists also learn the frequent token",
    "other tokens": "all other tokens; the largest of m neurons",
    "death": "(iii) dead specialists: {dead:.1%}, expected {expected:.1%}",
}


def draw(result: Result) -> Figure:
    """Curves past the stop rule; ratios against rho at the stop rule; the effects between them."""
    rows, curves = result.data["at the stop rule"], result.data["curves"]
    specialists = list(dict.fromkeys((row["N_F"], row["N_R"]) for row in rows))
    with sns.axes_style("whitegrid"), sns.plotting_context("paper"):
        figure = Figure(figsize=(13, 8), layout="constrained")
        axes = figure.subplots(2, 3)
    # The smallest alpha for which the first pair of specialists is trained past the stop rule shows most.
    shown = min(
        (each for each in curves if _pair(each) == specialists[0]), key=lambda each: float(each["alpha"])
    )
    _growth(axes[0, 0], shown)
    for axis, pair in zip(axes[0, 1:], specialists, strict=False):
        _ratio_over_time(axis, [each for each in curves if _pair(each) == pair])
    _ratio_over_rho(axes[1, 0], rows, specialists)
    for axis, pair in zip(axes[1, 1:], specialists, strict=False):
        _effects(axis, [row for row in rows if _pair(row) == pair])
    for axis in axes[:, 1 + len(specialists) :].flat:
        axis.set_axis_off()
    figure.suptitle(
        f"Growth of specialists' neurons, {result.data['seeds']} training seeds; bands and bars are 95 % intervals."
        " Closed form: statement (G), from the active fractions and gates at the start, nothing fitted",
        fontsize="small",
    )
    return figure


def table(result: Result) -> list[Row]:
    """The ratios at the stop rule, one row for each alpha and pair of specialists."""
    rows = []
    for each in result.data["at the stop rule"]:
        row: Row = {}
        for name, value in each.items():
            if name in ("factors", "leakage"):
                for part, quantity in value.items():
                    row |= _flat(f"{name}: {part}", quantity)
            else:
                row |= _flat(name, value)
        rows.append(row)
    return rows


def _flat(name: str, value: Any) -> Row:
    if not isinstance(value, dict):
        return {name: value}
    low, high = value["interval"]
    return {name: value["mean"], f"{name}, low": low, f"{name}, high": high}


def _pair(row: Row) -> tuple[int, int]:
    return row["N_F"], row["N_R"]


def _growth(axis: Axes, curve: Row) -> None:
    """nu_F, nu_R and the weights on the own token."""
    frequent, rare = sns.color_palette("deep", 4)[3], sns.color_palette("deep", 4)[0]
    for kind, colour in (("frequent", frequent), ("rare", rare)):
        letter = kind[0].upper()
        _band(axis, curve, f"norm_{kind}", f"$\\nu_{letter}$, largest neuron", color=colour, alpha=0.5)
        _band(
            axis,
            curve,
            f"own_{kind}",
            f"{kind}: weight on own token",
            color=colour,
            linestyle="none",
            marker=".",
        )
        closed = curve["curves"][f"own_{kind}_closed_form"]["mean"]
        axis.plot(curve["steps"], closed, color="black", linewidth=0.9, linestyle="--", label=None)
    axis.plot([], [], color="black", linewidth=0.9, linestyle="--", label="closed form (G)")
    for step, letter in zip(curve["knees"], "FR", strict=True):
        axis.axvline(step, color="grey", linewidth=0.8, linestyle=":")
        axis.annotate(
            f"$t_{letter}$", (step, 0.95), xycoords=("data", "axes fraction"), ha="right", fontsize="small"
        )
    axis.set(xscale="log", yscale="log", xlabel="SGD step", ylabel="weight")
    axis.set_title(f"{_name(curve)}, α = {curve['alpha']:g}: growth stops at the knees", fontsize="medium")
    axis.legend(frameon=True, fontsize="x-small", loc="lower right")


def _ratio_over_time(axis: Axes, curves: list[Row]) -> None:
    for curve, colour in zip(curves, sns.color_palette("viridis", len(curves)), strict=True):
        _band(axis, curve, "own_ratio", f"α = {curve['alpha']:g}, ρ = {curve['rho']:.3g}", color=colour)
        _band(axis, curve, "norm_ratio", None, color=colour, linestyle=":")
        closed = curve["curves"]["own_ratio_closed_form"]["mean"]
        axis.plot(curve["steps"], closed, color="black", linewidth=0.9, linestyle="--")
        axis.plot(
            curve["knees"][0],
            curve["rho"],
            marker="v",
            color=colour,
            markeredgecolor="black",
            linestyle="none",
        )
    axis.axhline(curves[0]["late_ratio"], color="grey", linewidth=0.8)
    axis.plot([], [], color="grey", linestyle=":", label="ratio of norms $\\nu_F/\\nu_R$")
    axis.plot([], [], color="black", linestyle="--", linewidth=0.9, label="closed form (G)")
    axis.plot([], [], marker="v", color="grey", markeredgecolor="black", linestyle="none", label="$(t_F, ρ)$")
    axis.plot([], [], color="grey", linewidth=0.8, label="$N_R/N_F$")
    axis.set(xscale="log", yscale="log", xlabel="SGD step", ylabel="frequent / rare")
    _ticks(axis.yaxis)
    axis.set_title(f"{_name(curves[0])}: own-token ratio ρ until $t_F$, then ρ $t_F/t$", fontsize="medium")
    axis.legend(frameon=True, fontsize="x-small")


def _ratio_over_rho(axis: Axes, rows: list[Row], specialists: list[tuple[int, int]]) -> None:
    colours = sns.color_palette("deep", len(specialists))
    for pair, colour, marker in zip(specialists, colours, SPECIALISTS_MARKERS, strict=False):
        mine = sorted((row for row in rows if _pair(row) == pair), key=lambda row: float(row["rho"]))
        rho = [row["rho"] for row in mine]
        for key, label, face in (
            ("own_ratio", "own-token weights before the knee", colour),
            ("norm_ratio", "norms $\\nu_F/\\nu_R$", "white"),
        ):
            middle = [row[key]["mean"] for row in mine]
            errors = [[abs(row[key]["interval"][end] - row[key]["mean"]) for row in mine] for end in (0, 1)]
            axis.errorbar(
                rho, middle, errors, color=colour, marker=marker, markerfacecolor=face, linestyle="none",
                capsize=2, label=f"{_name(mine[0])}: {label}",
            )  # fmt: skip
        axis.plot(
            rho, [row["predicted_norm_ratio"]["mean"] for row in mine], color=colour, linestyle="--",
            linewidth=0.9, label=f"{_name(mine[0])}: norms predicted by (G, i-iii)",
        )  # fmt: skip
    ends = [min(row["rho"] for row in rows), max(row["rho"] for row in rows)]
    axis.plot(ends, ends, color="black", linewidth=0.9, label="ρ")
    axis.set(xscale="log", yscale="log", xlabel="ρ = (1 - α)/α", ylabel="frequent / rare")
    axis.set_ylim(bottom=ends[0] / 8)  # room for the legend
    axis.set_title("At the stop rule", fontsize="medium")
    _ticks(axis.xaxis)
    _ticks(axis.yaxis)
    axis.legend(frameon=True, fontsize="x-small", loc="lower right")


def _effects(axis: Axes, rows: list[Row]) -> None:
    """Each factor between rho and the ratio of norms."""
    rows = sorted(rows, key=lambda row: float(row["alpha"]))
    alphas = [row["alpha"] for row in rows]
    # Which specialists are dead does not depend on alpha.
    dead = {"dead": rows[0]["dead_fraction"], "expected": rows[0]["dead_probability"]}
    for (key, label), colour in zip(EFFECTS.items(), sns.color_palette("deep", len(EFFECTS)), strict=True):
        factors = [row["factors"][key] for row in rows]
        middle = [each["mean"] for each in factors]
        axis.plot(alphas, middle, marker="o", markersize=4, color=colour, label=label.format(**dead))
        low, high = zip(*(each["interval"] for each in factors), strict=True)
        axis.fill_between(alphas, low, high, color=colour, alpha=0.12, linewidth=0)
    total = [row["norm_ratio"]["mean"] / row["rho"] for row in rows]
    axis.plot(
        alphas,
        total,
        color="black",
        marker="D",
        markersize=4,
        linestyle="--",
        label="product: $(\\nu_F/\\nu_R)/ρ$",
    )
    axis.set(xlabel="α", ylabel="factor")
    axis.set_title(f"{_name(rows[0])}: from ρ to the ratio of norms", fontsize="medium")
    axis.legend(frameon=True, fontsize="x-small")


def _band(axis: Axes, curve: Row, key: str, label: str | None, **style: Any) -> None:
    values = curve["curves"][key]
    axis.plot(curve["steps"], values["mean"], label=label, **style)
    axis.fill_between(
        curve["steps"], values["low"], values["high"], color=style["color"], alpha=0.15, linewidth=0
    )


def _ticks(axis: Axis) -> None:
    """1, 2, 5, 10 and so on, and not powers of ten alone."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_formatter(NullFormatter())


def _name(row: Row) -> str:
    return f"$N_F, N_R$ = {row['N_F']}, {row['N_R']}"
