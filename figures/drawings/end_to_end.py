"""Draws what the theorem from end to end promises beside what is measured, and what becomes of trained routers."""

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

GAINS = (0.5, 1, 2, 5, 10, 20, 50)
EVENTS = {
    "ranking": ("ranking", BLUE, "o"),
    "weights": ("bounds on weights", GREEN, "s"),
    "gain": ("gain of κρ", VERMILLION, "D"),
}
SHARES = {
    "frequent": ("frequent token, own sign", BLUE, "o"),
    "rare": ("rare token, own sign", VERMILLION, "s"),
    "both": ("both of these", SKY, "^"),
    "wrong sign": ("a token of the wrong sign", GREY, "D"),
}
SYMBOLS = (
    "ρ is the ratio of frequencies of the two kinds of inputs; MaxNNScore is the norm of an expert's largest neuron;"
    " the gain is the noise tolerated with the frequent specialists digital over that with all experts analog."
)
CAPTION = (
    "Measured gains and promised ones (left), and the share of trainings in which each promise is kept (right), a row"
    " for each instance of the theorem. Left: points are trainings from fresh seeds, the black bar is the gain κρ that"
    " is proved, the grey one ρ. Right: 95 % intervals by Clopper and Pearson; the black bar is 1 - p, the probability"
    f" that is proved. {SYMBOLS}"
)
EMERGENCE = (
    "Which share of the experts comes to select which token when routers are trained with the experts, a row for each"
    " training. An expert selects a token if its mean gate on it is above 1/2, over inputs that hold it. The base is"
    " the reference instance with random routers, router rate 20, rarity .1, up to the stop rule; each row changes one"
    " thing. Means and 95 % intervals over training seeds; exploratory but for the base and for specialised routers."
)


@styled
def draw(result: Result) -> Figure:
    """Gains, and shares of trainings in which the promises are kept."""
    rows = result.data["instances"]
    figure = Figure(figsize=(WIDTH, 1.6 + 0.5 * len(rows)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for place, row in enumerate(rows):
        _gains(left, place, row)
        for step, (event, (label, colour, marker)) in enumerate(EVENTS.items()):
            if event in row["kept"]:
                kept = row["kept"][event]
                share = kept["count"] / row["seeds"]
                right.errorbar(
                    [share],
                    [place + 0.22 * (step - 1)],
                    xerr=lengths([share], [kept["interval"]]),
                    color=colour,
                    marker=marker,
                    linestyle="none",
                    label=label if place == len(rows) - 1 else None,
                )
        proved = "proved" if place == len(rows) - 1 else None
        right.plot([1 - row["p"]] * 2, [place - 0.4, place + 0.4], color=BLACK, label=proved)
    right.plot([], [], color=GREY, label="ρ, for comparison")
    left.set(xscale="log", xlabel="gain")
    log_ticks(left.xaxis, GAINS)
    left.set_yticks(range(len(rows)), [f"{row['name']}\n{row['seeds']} trainings" for row in rows])
    left.invert_yaxis()
    right.set(xlabel="share of trainings")
    right.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    titled(
        figure,
        "What the theorem promises with probability 1 - p, and what happens",
        f"{result.data['draws']} noise draws, {result.data['inputs']} test inputs",
    )
    legend_below(figure, right, columns=5)
    return figure


def _gains(axis: Axes, place: int, row: Row) -> None:
    """The measured gains of an instance, what is proved, and rho."""
    gains = np.array(row["gains"])
    spread = np.linspace(-0.25, 0.25, len(gains)) if len(gains) > 1 else np.zeros(len(gains))
    axis.plot(gains, place + spread, linestyle="none", marker=".", markersize=2, color=BLUE)
    axis.plot([row["rho"]] * 2, [place - 0.4, place + 0.4], color=GREY)
    if row["promised"] is not None:
        axis.plot([row["promised"]] * 2, [place - 0.4, place + 0.4], color=BLACK)


@styled
def draw_emergence(result: Result) -> Figure:
    """Shares of experts by the token that they select, a row for each training."""
    rows = result.data["joint"]
    figure = Figure(figsize=(WIDTH, 1.6 + 0.28 * len(rows)), layout="constrained")
    axis = figure.subplots()
    for step, (share, (label, colour, marker)) in enumerate(SHARES.items()):
        means = [row[share]["mean"] for row in rows]
        axis.errorbar(
            means,
            np.arange(len(rows)) + 0.16 * (step - 1.5),
            xerr=lengths(means, [row[share]["interval"] for row in rows]),
            color=colour,
            marker=marker,
            linestyle="none",
            label=label,
        )
    axis.set_yticks(range(len(rows)), [_words(row, rows[0]) for row in rows])
    axis.invert_yaxis()
    axis.set(xlabel="share of experts", xlim=(-0.02, 1.02))
    axis.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    titled(
        figure,
        "Which tokens experts select when routers are trained, too",
        f"{rows[0]['seeds']} training seeds",
    )
    legend_below(figure, axis, columns=4)
    return figure


def _words(row: Row, base: Row) -> str:
    """What a training changes of the base."""
    words = {
        "router": lambda value: f"{value} routers",
        "router_rate": lambda value: f"router rate {value:g}",
        "init_std": lambda value: f"initial size {value:g}",
        "alpha": lambda value: f"rarity {value:g}",
        "selected": lambda value: f"{value} token{'s' if value > 1 else ''} selected",
        "steps": lambda value: f"{value} steps",
    }
    changed = [say(row[name]) for name, say in words.items() if row[name] != base[name]]
    return ", ".join(changed) or "base: random routers"


PARTS = {"emergence": (draw_emergence, EMERGENCE)}
