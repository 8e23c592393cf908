"""Draws the growth of neurons: how fast, until when, and what separates the ratio of norms from that of frequencies."""

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from figures.drawings.style import (
    BLACK,
    BLUE,
    BROWN,
    GREEN,
    GREY,
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

KINDS = {"frequent": (BLUE, "o"), "rare": (VERMILLION, "s")}
NETWORKS = ((GREEN, "o", "-"), (BROWN, "s", "--"))
ASIDE = (0.97, 1.03)  # a network's points are shifted by this factor, so that both are seen
ALPHAS = ((BLUE, "-"), (GREEN, "-"), (VERMILLION, "-"))  # looks of the curves past the stop rule
DECADES = [10.0**power for power in range(-3, 5)]
RATIOS = (1, 2, 3, 5, 10, 20, 50)
FACTORS = {
    "own, unsaturated": "(G) itself: weights on\nthe own token, over ρ",
    "saturation": "(i) signs with more active\nneurons stop earlier",
    "leakage": "(ii) rare specialists learn\nthe frequent token, too",
    "other tokens": "all other tokens, and the\nlargest of m neurons",
    "death": "(iii) specialists without\nan active neuron",
}
PRODUCT = "product of the five: ratio\nof norms over ρ"
SYMBOLS = (
    "α is the probability of the rare class and ρ = (1 - α)/α that of the frequent over that of the rare one; N_F and"
    " N_R are the numbers of frequent and rare specialists (experts) of each sign. Geometric means and 95 % intervals"
    " over seeds. (G) is the closed form of docs/theory.md, computed from each network's start, nothing fitted."
)
CAPTION = (
    "Left, weights of frequent and rare specialists over training; right, the ratio of frequent to rare weights"
    " against the ratio of frequencies. Left: weight of a neuron on the token of its own expert; by the theory the"
    " frequent ones stop growing at the knee t_F, the rare ones at t_R. Right: at the end of training by the paper's"
    " stop rule; filled: weights on the own token, hollow: the largest norms of a neuron, ν_F/ν_R, which MaxNNScore"
    f" sees; the points of the two networks stand a little aside. {SYMBOLS}"
)
OVER_TIME = (
    "Curves of the ratio of frequent to rare weights over training, one for each ratio of frequencies, a panel for"
    " each network. Coloured: weights on the own token; dotted: norms ν_F/ν_R of neurons; dashed black: (G)."
    " Triangles: the knee t_F; by the theory the ratio is ρ until then and ρ t_F/t afterwards. Grey line: N_R/N_F,"
    f" where it ends by the theory. {SYMBOLS}"
)
EFFECTS = (
    "Panels of factors against the rarity α of a class: what each effect does to the ratio of the norms of frequent"
    " and rare neurons at the stop rule, and their product. A factor of 1 is no effect; the product is the ratio of"
    f" norms over the ratio of frequencies. {SYMBOLS}"
)


@styled
def draw(result: Result) -> Figure:
    """Weights over time, and the ratios at the stop rule."""
    rows, curves = result.data["at the stop rule"], result.data["curves"]
    pairs = _pairs(rows)
    # The smallest alpha for which the first pair of specialists is trained past the stop rule shows most.
    shown = min((each for each in curves if _pair(each) == pairs[0]), key=lambda each: float(each["alpha"]))
    figure = Figure(figsize=(WIDTH, 3.7))
    growth, ratios = figure.subplots(1, 2)
    _growth(growth, shown)
    _ratio_over_rho(ratios, rows, pairs)
    titled(
        figure,
        "Do neurons grow in proportion to how often their token occurs?",
        f"{result.data['seeds']} training seeds; lines: theory, nothing fitted",
    )
    legend_below(figure, ratios, columns=2)
    return figure


@styled
def draw_over_time(result: Result) -> Figure:
    """The ratio over time, a panel for each network."""
    curves = result.data["curves"]
    pairs = _pairs(curves)
    figure = Figure(figsize=(WIDTH, 3.8))
    axes = figure.subplots(1, len(pairs), squeeze=False)[0]
    for axis, pair in zip(axes, pairs, strict=True):
        _ratio_over_time(axis, [each for each in curves if _pair(each) == pair])
    axes[0].set_ylabel("frequent / rare")
    titled(
        figure,
        "How the ratio of frequent to rare weights changes over training",
        f"{result.data['seeds']} training seeds; bands: 95 % intervals",
    )
    legend_below(figure, axes[0], columns=3)
    return figure


@styled
def draw_effects(result: Result) -> Figure:
    """Each factor between rho and the ratio of norms, and their product."""
    rows = result.data["at the stop rule"]
    figure = Figure(figsize=(WIDTH, 4.9))
    axes = figure.subplots(2, 3, sharex=True, sharey=True)
    for axis, (key, title) in zip(axes.flat, [*FACTORS.items(), ("", PRODUCT)], strict=True):
        axis.axhline(1, color=BLACK, linewidth=0.8)
        for pair, (colour, marker, line) in zip(_pairs(rows), NETWORKS, strict=False):
            mine = sorted((row for row in rows if _pair(row) == pair), key=lambda row: float(row["alpha"]))
            factors = [row["factors"][key] if key else _over_rho(row) for row in mine]
            middle = [each["mean"] for each in factors]
            axis.errorbar(
                [row["alpha"] for row in mine],
                middle,
                lengths(middle, [each["interval"] for each in factors]),
                color=colour,
                marker=marker,
                linestyle=line,
                capsize=2,
                label=_name(mine[0]),
            )
        axis.set_title(title, fontweight="bold" if not key else "normal")
    for axis in axes[:, 0]:
        axis.set_ylabel("factor")
    axes[-1, 1].set_xlabel("α, probability of the rare class")
    titled(figure, "By which effects does the ratio of norms differ from that of frequencies?")
    legend_below(figure, axes[0, 0], columns=2)
    return figure


PARTS = {"over-time": (draw_over_time, OVER_TIME), "effects": (draw_effects, EFFECTS)}


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


def _pairs(rows: list[Row]) -> list[tuple[int, int]]:
    return sorted({_pair(row) for row in rows})


def _name(row: Row) -> str:
    return f"$N_F$ = {row['N_F']}, $N_R$ = {row['N_R']}"


def _over_rho(row: Row) -> Row:
    """nu_F/nu_R over rho."""
    ratio = row["norm_ratio"]
    return {
        "mean": ratio["mean"] / row["rho"],
        "interval": [bound / row["rho"] for bound in ratio["interval"]],
    }


def _growth(axis: Axes, curve: Row) -> None:
    """Weights on the own token, measured and in closed form, with the knees."""
    middle = len(curve["steps"]) // 3
    for kind, (colour, marker) in KINDS.items():
        measured = curve["curves"][f"own_{kind}"]
        axis.fill_between(
            curve["steps"], measured["low"], measured["high"], color=colour, alpha=0.2, linewidth=0
        )
        axis.plot(
            curve["steps"], measured["mean"], color=colour, marker=marker, markersize=3, linestyle="none"
        )
        axis.plot(
            curve["steps"], curve["curves"][f"own_{kind}_closed_form"]["mean"], color=BLACK, linewidth=0.9
        )
        axis.annotate(
            kind,
            (curve["steps"][middle], measured["mean"][middle]),
            xytext=(6, -12),
            textcoords="offset points",
            color=colour,
            fontweight="bold",
        )
    for step, letter in zip(curve["knees"], "FR", strict=True):
        axis.axvline(step, color=GREY, linewidth=0.8, linestyle=":")
        axis.annotate(
            f"$t_{letter}$", (step, 0.02), xycoords=("data", "axes fraction"), xytext=(3, 0),
            textcoords="offset points", va="bottom",
        )  # fmt: skip
    axis.set(xscale="log", yscale="log", xlabel="SGD step", ylabel="weight on the own token")
    log_ticks(axis.xaxis, DECADES)
    log_ticks(axis.yaxis, DECADES)
    axis.set_title(f"{_name(curve)}, α = {curve['alpha']:g}, ρ = {curve['rho']:g}")


def _ratio_over_rho(axis: Axes, rows: list[Row], pairs: list[tuple[int, int]]) -> None:
    ends = [min(row["rho"] for row in rows), max(row["rho"] for row in rows)]
    axis.plot(ends, ends, color=BLACK, linewidth=0.9, label="theory: ρ (left: (G))")
    for pair, (colour, marker, _), aside in zip(pairs, NETWORKS, ASIDE, strict=False):
        mine = sorted((row for row in rows if _pair(row) == pair), key=lambda row: float(row["rho"]))
        rho = [aside * row["rho"] for row in mine]
        for key, label, face, size in (
            ("own_ratio", "weights on own token", colour, 4),
            ("norm_ratio", "norms", "none", 7.5),
        ):
            middle = [row[key]["mean"] for row in mine]
            axis.errorbar(
                rho, middle, lengths(middle, [row[key]["interval"] for row in mine]), color=colour,
                marker=marker, markersize=size, markerfacecolor=face, linestyle="none", capsize=2,
                label=f"{_name(mine[0])}: {label}",
            )  # fmt: skip
    axis.set(xscale="log", yscale="log", xlabel="ρ, frequent / rare tokens", ylabel="frequent / rare weights")
    log_ticks(axis.xaxis, RATIOS)
    log_ticks(axis.yaxis, RATIOS)
    axis.set_title("at the stop rule")


def _ratio_over_time(axis: Axes, curves: list[Row]) -> None:
    for curve, (colour, line) in zip(
        sorted(curves, key=lambda each: float(each["alpha"])), ALPHAS, strict=False
    ):
        own, norms = curve["curves"]["own_ratio"], curve["curves"]["norm_ratio"]
        label = f"α = {curve['alpha']:g}, ρ = {curve['rho']:.3g}"
        axis.annotate(
            f"ρ = {curve['rho']:.3g}",
            (curve["steps"][0], curve["rho"]),
            xytext=(0, -13),
            textcoords="offset points",
        )
        axis.fill_between(curve["steps"], own["low"], own["high"], color=colour, alpha=0.2, linewidth=0)
        axis.plot(curve["steps"], own["mean"], color=colour, linestyle=line, linewidth=2, label=label)
        axis.plot(curve["steps"], norms["mean"], color=colour, linestyle=":", linewidth=2)
        closed = curve["curves"]["own_ratio_closed_form"]["mean"]
        axis.plot(curve["steps"], closed, color=BLACK, linewidth=0.9, linestyle="--")
        axis.plot(
            curve["knees"][0], curve["rho"], marker="v", color=colour, markeredgecolor=BLACK, markersize=7
        )
    axis.axhline(curves[0]["late_ratio"], color=GREY, linewidth=0.8)
    axis.plot([], [], color=GREY, linestyle=":", linewidth=2, label="ratio of norms $\\nu_F/\\nu_R$")
    axis.plot([], [], color=BLACK, linestyle="--", linewidth=0.9, label="closed form (G)")
    axis.plot(
        [],
        [],
        marker="v",
        color=GREY,
        markeredgecolor=BLACK,
        linestyle="none",
        markersize=7,
        label="knee $t_F$",
    )
    axis.set(xscale="log", yscale="log", xlabel="SGD step")
    log_ticks(axis.xaxis, DECADES)
    log_ticks(axis.yaxis, (0.3, 0.5, *RATIOS))
    axis.set_title(_name(curves[0]))
