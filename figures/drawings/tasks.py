"""Draws the accuracy on a multiple-choice task: what noise takes, and what digital experts give back."""

from typing import Any

from matplotlib.figure import Figure

from figures.drawings.rows import with_bounds
from figures.drawings.style import (
    GREY,
    HERMES,
    NOISES,
    SCORE,
    STRATEGIES,
    W_MAX,
    WIDTH,
    C,
    legend_below,
    lengths,
    noise_of,
    percentage_points,
    styled,
    titled,
)
from theory.evidence import Result
from theory.paper import MAXNN_IS_BEST

LABELS = {
    ("none", 0.0): "no expert digital",
    ("maxnn", 0.125): "MaxNNScore, 12.5 % digital",
    ("maxnn", 0.25): "MaxNNScore, 25 % digital",
    ("random", 0.25): "random choice, 25 % digital",
}
HOLLOW = ("maxnn", 0.125)  # the smaller budget of a strategy that is drawn twice
COLUMNS = (
    # key of the quantity in a curve, what it is relative to, whether that is no digital expert
    ("accuracy_change", "all digital", False),
    ("gain", "no digital expert", True),
)
CAPTION = (
    "Points with bars: how accuracy on a task changes with noise on the experts, by which experts stay digital. The"
    f" task: which of four texts continues a text. Dense modules are digital. {SCORE}. {C}. {W_MAX}. {HERMES}. Bars are"
    f" 95 % intervals over noise draws and documents, from which questions come. {MAXNN_IS_BEST.cited} That is the mean"
    " of eight other tasks."
)


@styled
def draw(result: Result) -> Figure:
    """A row for each noise: one panel against the digital model, one against no digital expert."""
    data = result.data
    magnitudes = sorted({curve["c"] for curve in data["curves"]})
    noises = list(dict.fromkeys(map(noise_of, data["curves"])))
    figure = Figure(figsize=(WIDTH, 1.5 + 2 * len(noises)))
    axes = figure.subplots(len(noises), len(COLUMNS), squeeze=False, sharex=True, sharey="col")
    for row, noise in zip(axes, noises, strict=True):
        for axis, (quantity, other, against_none) in zip(row, COLUMNS, strict=True):
            for index, (key, name) in enumerate(LABELS.items()):
                if against_none and key[0] == "none":
                    continue
                curve = sorted(
                    (
                        each
                        for each in data["curves"]
                        if (noise_of(each), each["strategy"], each["digital_fraction"]) == (noise, *key)
                    ),
                    key=lambda each: float(each["c"]),
                )
                offset = 0.12 * (index - (len(LABELS) - 1) / 2)  # so that bars do not hide each other
                values = [each[quantity] for each in curve]
                look = STRATEGIES[key[0]]
                axis.errorbar(
                    [magnitudes.index(each["c"]) + offset for each in curve],
                    values,
                    yerr=lengths(values, [each[f"{quantity}_interval"] for each in curve]),
                    fmt=look.marker,
                    markerfacecolor="white" if key == HOLLOW else look.colour,
                    capsize=3,
                    color=look.colour,
                    label=name,
                )
            axis.axhline(0.0, color=GREY, linewidth=0.8)
            axis.set_xticks(range(len(magnitudes)), [f"c = {c:g}" for c in magnitudes])
            axis.set_xlim(-0.5, len(magnitudes) - 0.5)
            axis.grid(visible=False, axis="x")
            axis.yaxis.set_major_formatter(percentage_points())
            axis.set_title(NOISES[noise])
            axis.set_ylabel(f"points of accuracy\nagainst {other}")
    legend_below(figure, axes[0][0], columns=2)
    low, high = data["digital"]["accuracy_interval"]
    titled(
        figure,
        "What noise takes from accuracy on a task, and what digital experts give back",
        f"{data['model']}; {data['questions']} questions of the task {data['task']}:"
        f" {100 * data['digital']['accuracy']:.1f} % [{100 * low:.1f}, {100 * high:.1f}] right when all digital,"
        f" {100 * data['chance']:.0f} % by chance",
    )
    return figure


def table(result: Result) -> list[dict[str, Any]]:
    """One row for each placement and magnitude."""
    return with_bounds(result.data["curves"])
