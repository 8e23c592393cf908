"""Draws what each score recovers of the loss, how near that is to the best placement known, and the remedies."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from figures.drawings.rows import with_bounds
from figures.drawings.style import (
    BLACK,
    BROWN,
    C_AXIS,
    GRANULARITIES,
    OCHRE,
    SCORE,
    STRATEGIES,
    W_MAX,
    WIDTH,
    Look,
    heat,
    legend_below,
    lengths,
    styled,
    titled,
)
from figures.drawings.style import C as MEANING_OF_C
from theory.evidence import Result

Row = dict[str, Any]

ACROSS = " across layers"
LABELS = {
    "maxnn": "MaxNNScore",
    "activation_weight": "activation weight",
    "activation_frequency": "activation frequency",
    "damage": "expected damage",
    "damage with gradient": "damage with gradient",
    "measured": "measured damage",
    "random": "random choice",
    "reference": "best placement known",
}
# The form in which each score is compared: the paper's inside layers, ours across them.
LOOKS = {
    "maxnn": STRATEGIES["maxnn"],
    "activation_weight": STRATEGIES["activation_weight"],
    "damage" + ACROSS: Look("expected damage, across layers", OCHRE, "P", (0, (6, 2))),  # type: ignore[arg-type]
    "damage with gradient" + ACROSS: Look("damage with gradient, across layers", BROWN, "*", "-"),
    "random": STRATEGIES["random"],
    "reference": Look("best placement known", BLACK, "h", ":"),
}
REMEDIES = {
    "none": "nothing",
    "shift subtracted": "mean shift subtracted",
    "copied": "second copies",
    "damage" + ACROSS: "digital",
    "digital and copied": "digital, copies of the next",
    "digital, shift subtracted": "digital, mean shift subtracted",
}
C = 2.5  # magnitude in the map and the remedies
FRACTION = 0.125  # budget in the curves over c
MEANING = (
    f"{SCORE}. Expected damage of an expert is the loss that the expert's noise is expected to add, by a formula (claim"
    " D), with gradient by its second form, which needs a backward pass; measured damage is that of each expert alone."
    " Scores rank experts in each layer, or those of all layers together (across layers). The best placement known is"
    f" found by search. {MEANING_OF_C}. {W_MAX}."
)
CAPTION = (
    "Curves of the part of the loss that digital experts recover, one for each score, against the number of digital"
    f" experts and against programming noise. Bands are 95 % intervals over noise draws and documents. {MEANING}"
)


@styled
def draw(result: Result) -> Figure:
    """Recovered loss against budget, and against magnitude where there are several, a row for each granularity."""
    judged = _judged(result)
    granularities = list(dict.fromkeys(row["w_max"] for row in judged))
    several = len({row["c"] for row in judged}) > 1
    figure = Figure(figsize=(WIDTH, 2.4 * len(granularities) + 1.5))
    axes = figure.subplots(len(granularities), 1 + several, squeeze=False, sharex="col", sharey=True)
    for line, w_max in zip(axes, granularities, strict=True):
        mine = [row for row in judged if row["w_max"] == w_max and row["label"] in LOOKS]
        _curves(line[0], [row for row in mine if row["c"] == C], "fraction")
        line[0].set_ylabel("part of the loss recovered")
        line[0].set_title(f"{GRANULARITIES[w_max]}, c = {C:g}")
        if several:
            _curves(line[1], [row for row in mine if row["fraction"] == FRACTION], "c")
            line[1].set_title(f"{100 * FRACTION:g} % of experts digital")
    axes[-1, 0].set_xlabel("digital experts")
    if several:
        axes[-1, 1].set_xlabel(C_AXIS)
    legend_below(figure, axes[0, 0], columns=2)
    titled(figure, "What each score recovers of the loss that noise on experts costs", _measured(result))
    return figure


@styled
def draw_hardware(result: Result) -> Figure:
    """Share of the reference's gain: scores by kinds of hardware and budgets."""
    names = {
        label + form: name for label, name in LABELS.items() for form in ("", ACROSS) if label != "reference"
    }
    rows = [
        row
        for row in result.data["rows"]
        if row["c"] == C and row["share"] is not None and row["label"] in names
    ]
    keys = ("w_max", "programming", "bits", "fraction")
    columns = list(dict.fromkeys(tuple(row[key] for key in keys) for row in rows))
    labels = [label for label in names if any(row["label"] == label for row in rows)]
    values = np.full((len(labels), len(columns)), np.nan)
    for row in rows:
        values[labels.index(row["label"]), columns.index(tuple(row[key] for key in keys))] = row["share"]
    figure = Figure(figsize=(WIDTH, 0.3 * len(labels) + 2.6))
    axis = figure.subplots()
    image = heat(
        axis,
        values,
        rows=[names[label] + (",\nacross layers" if label.endswith(ACROSS) else "") for label in labels],
        columns=[
            f"{w_max}, {noise}, {bits} bit, {100 * fraction:.3g} %"
            for w_max, noise, bits, fraction in columns
        ],
        norm=Normalize(0, 1),
        colours="viridis",
        form=_short,
    )
    axis.tick_params(axis="x", labelrotation=90)
    figure.colorbar(image, ax=axis, label="share of the best known gain", pad=0.01, fraction=0.03)
    titled(figure, f"How near each score is to the best placement known, at c = {C:g}")
    return figure


@styled
def draw_remedies(result: Result) -> Figure:
    """Loss with each remedy; where a budget plays a part, once for each."""
    judged = [row for row in _judged(result) if row["c"] == C]
    granularities = list(dict.fromkeys(row["w_max"] for row in judged))
    figure = Figure(figsize=(WIDTH, 3.4))
    axes = figure.subplots(1, len(granularities), squeeze=False, sharex=True, sharey=True)[0]
    for axis, w_max in zip(axes, granularities, strict=True):
        bars = [
            (f"{name} ({100 * row['fraction']:g} %)" if row["fraction"] else name, row)
            for label, name in REMEDIES.items()
            for row in judged
            if row["w_max"] == w_max and row["label"] == label and row["fraction"] in (0.0, 0.125, 0.25)
        ]
        middle = [row["loss_change"] for _, row in bars]
        axis.errorbar(
            middle,
            range(len(bars)),
            xerr=lengths(middle, [row["loss_change_interval"] for _, row in bars]),
            fmt="o",
            color=BLACK,
            capsize=2,
        )
        axis.set_yticks(range(len(bars)), [name for name, _ in bars])
        axis.set_title(GRANULARITIES[w_max])
        axis.set_xlabel("loss increase, nats per token")
    axes[0].invert_yaxis()
    titled(figure, f"What remedies leave of the loss at c = {C:g} (percent of experts)", _measured(result))
    return figure


PARTS = {
    "hardware": (
        draw_hardware,
        (
            "A heat map of scores by kinds of hardware: the share of the best known gain that each score reaches."
            " The gain is the loss of no digital expert minus that of the placement. Columns say over what w_max is"
            " the largest weight, the model of programming noise, bits of the converters, and digital experts. Other"
            f" noises have the root mean square of pcm; grey cells were not measured. {MEANING}"
        ),
    ),
    "remedies": (
        draw_remedies,
        (
            "Points with bars: the loss increase that is left by each remedy, for several budgets of experts."
            " Digital: the experts of largest expected damage are digital. Second copies: those experts are analog,"
            " but programmed twice and averaged. Copies of the next: those experts are digital, and as many that"
            " follow by expected damage have second copies. Mean shift subtracted: from the output of every analog"
            " expert its mean error is taken, which is measured on calibration text after programming; this needs no"
            f" digital expert. Bars are 95 % intervals over noise draws and documents. {MEANING}"
        ),
    ),
}


def table(result: Result) -> list[Row]:
    """One row for each placement, magnitude and kind of hardware."""
    return with_bounds(result.data["rows"])


def _judged(result: Result) -> list[Row]:
    """Rows of the hardware that the rules are about."""
    return [row for row in result.data["rows"] if row["programming"] == "pcm" and row["bits"] == 8]


def _measured(result: Result) -> str:
    data = result.data
    return (
        f"{data['model']}, dense modules digital; all digital: loss {data['digital']['mean']:.3f} nats per token;"
        f" {data['blocks']} blocks of {data['block_tokens']} tokens"
    )


def _curves(axis: Axes, rows: list[Row], x: str) -> None:
    for label, look in LOOKS.items():
        # An unbounded ratio has no band.
        line = sorted(
            (row for row in rows if row["label"] == label and row["recovered_interval"]),
            key=lambda row: float(row[x]),
        )
        if not line:
            continue
        at = [row[x] for row in line]
        low, high = zip(*(row["recovered_interval"] for row in line), strict=True)
        axis.plot(at, [row["recovered"] for row in line], **look.kwargs)
        axis.fill_between(at, low, high, color=look.colour, alpha=0.1, linewidth=0)
    axis.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))
    if x == "fraction":
        axis.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))


def _short(value: float) -> str:
    """Two digits, without a leading 0."""
    return f"{value:.1f}" if round(value, 2) >= 1 else f"{value:.2f}".replace("0.", ".", 1)
