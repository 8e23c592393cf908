"""How every picture looks: its width, its letters, and one look for each placement strategy.

A picture is `WIDTH` inches wide, the width at which it is read, and nothing on it is smaller than `SMALLEST` points.
Strategies differ by colour (Okabe and Ito's, safe for colour-blind readers), by marker and by line, and look the
same in every figure.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from textwrap import fill
from typing import Any, TypeVar

import matplotlib as mpl
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from matplotlib.transforms import Bbox
from numpy.typing import NDArray

from theory.evidence import Result
from theory.paper import CONVERTER_BITS, TILE_SIZE

WIDTH = 7.0  # inches: the text width of a page, and of a README on a laptop
SMALLEST = 8.0  # points
BLACK, GREY = "#000000", "#6b6b6b"
BLUE, VERMILLION, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
SKY, ORANGE, BROWN, OCHRE = "#56B4E9", "#E69F00", "#7A4B00", "#BF7F00"

# At c = 1, the relative error of a product with a Gaussian matrix of one tile, by programming noise and w_max
# [theory.hardware.relative_output_error]: numbers, so that a caption needs no torch.
ERRORS = {("pcm", "tile"): 0.1084, ("pcm", "column"): 0.0875, ("hermes", "column"): 0.1296}
# What recurs in captions.
C = (
    "c is the magnitude of programming noise: it multiplies the standard deviation with which weights are written, as"
    " measured on phase-change memory (pcm). At c = 1 the product with a Gaussian matrix then errs by"
    f" {ERRORS['pcm', 'tile']:.1%} of its size for w_max per tile, by {ERRORS['pcm', 'column']:.1%} per column"
)
HERMES = (
    "hermes is the other published noise that the paper may mean, measured on IBM's HERMES chip, with w_max per column:"
    f" at c = 1 that product errs by {ERRORS['hermes', 'column']:.1%}"
)
W_MAX = (
    "w_max is the weight to which that noise is relative: the largest weight of a tile of an analog crossbar, or of"
    " each single column of a tile, which is finer"
)
SCORE = "MaxNNScore of an expert is the product, over the expert's linear layers, of the largest L2 norm of a neuron"
C_AXIS = "noise c (1: as measured on PCM)"
NOISE_AXIS = "noise c (1: as measured)"  # of whichever noise
NOISES = {
    ("pcm", "tile"): "pcm, w_max per tile",
    ("pcm", "column"): "pcm, per tile column",
    ("hermes", "column"): "hermes, per tile column",
}
GRANULARITIES = {"tile": "w_max per tile", "column": "w_max per tile column", "layer": "w_max per layer"}

TITLE_SIZE, DETAIL_SIZE = 10.0, SMALLEST  # points
TITLE_LETTERS, DETAIL_LETTERS = 80, 116  # that fit a line of a picture
NO_VALUE = "#d4d4d4"  # colour of a cell of a heat map without a value

STYLE: Any = {  # of keys that matplotlib knows
    "font.size": 8.5,
    "axes.titlesize": 9,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 8.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "xtick.labelsize": SMALLEST,
    "ytick.labelsize": SMALLEST,
    "legend.fontsize": SMALLEST,
    "legend.frameon": False,
    "lines.linewidth": 1.4,
    "lines.markersize": 4.5,
    "figure.constrained_layout.use": True,
}


@dataclass(frozen=True)
class Look:
    """How a strategy is named and drawn."""

    label: str
    colour: str
    marker: str
    line: str

    @property
    def kwargs(self) -> dict[str, Any]:
        """Arguments of `Axes.plot` and `Axes.errorbar`."""
        return {"color": self.colour, "marker": self.marker, "linestyle": self.line, "label": self.label}


STRATEGIES: Mapping[str, Look] = {
    "none": Look("no expert digital", BLACK, "x", (0, (1, 1))),  # type: ignore[arg-type]
    "maxnn": Look("MaxNNScore", BLUE, "o", "-"),
    "activation_weight": Look("activation weight", VERMILLION, "s", "--"),
    "activation_frequency": Look("activation frequency", GREEN, "^", "-."),
    "router_norm": Look("router norm", PURPLE, "D", ":"),
    "random": Look("random choice", GREY, "+", (0, (5, 3))),  # type: ignore[arg-type]
    "minnn": Look("smallest MaxNNScore", SKY, "v", (0, (3, 1, 1, 1))),  # type: ignore[arg-type]
    "balanced_maxnn": Look("MaxNNScore, signs balanced", ORANGE, "P", (0, (6, 2))),  # type: ignore[arg-type]
    "oracle": Look("frequent specialists", BROWN, "d", (0, (4, 1, 1, 1, 1, 1))),  # type: ignore[arg-type]
    "best": Look("best subset found", BLACK, "*", "-"),
}


Drawn = TypeVar("Drawn", Figure, Figure | None)


def styled(draw: Callable[[Result], Drawn]) -> Callable[[Result], Drawn]:
    """The drawing function, run under `STYLE`."""

    @wraps(draw)
    def under_style(result: Result) -> Drawn:
        with mpl.rc_context(STYLE):
            return draw(result)

    return under_style


def noise_of(row: Mapping[str, Any]) -> tuple[str, str]:
    """Programming noise and w_max of a row of a result; those before there were two noises are of pcm."""
    return row.get("programming", "pcm"), row["w_max"]


def noises_of(rows: Iterable[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """The noises of rows, those of NOISES in its order, a user's own last."""
    found = dict.fromkeys(map(noise_of, rows))
    return [noise for noise in dict.fromkeys((*NOISES, *found)) if noise in found]


def noise_name(noise: tuple[str, str]) -> str:
    return NOISES.get(noise, f"{noise[0]}, w_max per {noise[1]}")


def other_hardware(result: Result) -> str:
    """What tiles, converters and their ranges are where they are not the paper's, to end a line with."""
    usual = {"tile_size": TILE_SIZE.value, "dac_bits": CONVERTER_BITS.value, "adc_bits": CONVERTER_BITS.value}
    first = (result.provenance.get("hardware") or [{}])[0]
    return "".join(
        f"; {name} {first[name]}"
        for name in (*usual, "kappa", "lam")
        if name in first and first[name] != usual.get(name)
    )


def titled(figure: Figure, message: str, detail: str = "") -> None:
    """What the picture says in a bold line or two, below them what was measured; the panels make room."""
    lines = [
        (fill(message, TITLE_LETTERS), TITLE_SIZE, "bold"),
        (fill(detail, DETAIL_LETTERS), DETAIL_SIZE, "normal"),
    ]
    inches = figure.get_figheight()
    below = 0.06  # inches from the top
    for text, size, weight in lines:
        if text:
            figure.text(
                0.08 / WIDTH,
                1 - below / inches,
                text,
                fontsize=size,
                fontweight=weight,
                va="top",
                linespacing=1.2,
            )
            below += 1.3 * size / 72 * (1 + text.count("\n")) + 0.03
    engine: Any = figure.get_layout_engine()
    engine.set(rect=(0, 0, 1, 1 - below / inches))


def legend_below(figure: Figure, axis: Axes, columns: int, **options: Any) -> None:
    """One legend for all panels, below them, with the labels of one panel."""
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, **options)


def lengths(middle: Sequence[float], intervals: Sequence[Sequence[float] | None]) -> NDArray[np.float64]:
    """Lengths of error bars, (2, points); none where an interval is unbounded."""
    bounds = [interval or (math.nan, math.nan) for interval in intervals]
    return np.array(
        [[value - low, high - value] for value, (low, high) in zip(middle, bounds, strict=True)]
    ).T.clip(min=0)


def percentage_points() -> FuncFormatter:
    """Tick labels of a change of a fraction in percentage points, with the change's sign."""
    return FuncFormatter(
        lambda value, _: f"{100 * value:+.3g}".replace("-", "\N{MINUS SIGN}") if value else "0"
    )


def heat(
    axis: Axes,
    values: NDArray[np.float64],
    *,
    rows: Sequence[str],
    columns: Sequence[str],
    norm: Normalize,
    colours: str,
    form: Callable[[float], str],
) -> Any:
    """A heat map with a number in each cell, the first row on top; cells without a value are grey.

    The middle of the first cell is at (0.5, 0.5).
    """
    numbers = [[form(value) if math.isfinite(value) else "" for value in row] for row in values]
    sns.heatmap(
        values,
        mask=~np.isfinite(values),
        annot=np.array(numbers),
        fmt="",
        annot_kws={"fontsize": SMALLEST},
        norm=norm,
        cmap=colours,
        cbar=False,
        ax=axis,
    )
    axis.set_facecolor(NO_VALUE)
    axis.grid(visible=False)
    axis.set_xticks(np.arange(len(columns)) + 0.5, list(columns), rotation=0)
    axis.set_yticks(np.arange(len(rows)) + 0.5, list(rows), rotation=0)
    axis.tick_params(length=0)
    return axis.collections[0]


def board(axis: Axes, header: Sequence[str], rows: Sequence[Sequence[str]], widths: Sequence[float]) -> None:
    """A table of text over the whole panel: a bold header, thin lines between rows, the first column to the left."""
    axis.axis("off")
    tall = 1 + max(line.count("\n") for line in header)
    height = 1 / (len(rows) + tall)
    drawn = axis.table(
        [list(row) for row in rows],
        colLabels=list(header),
        colWidths=[width / sum(widths) for width in widths],
        cellLoc="center",
        bbox=Bbox.unit(),
        edges="horizontal",
    )
    drawn.auto_set_font_size(False)
    drawn.set_fontsize(SMALLEST)
    for (row, column), cell in drawn.get_celld().items():
        cell.set_height(height * (1 if row else tall))
        cell.set_edgecolor("#cccccc")
        cell.PAD = 0.02
        if not row:
            cell.get_text().set_fontweight("bold")
        if not column:
            cell.get_text().set_horizontalalignment("left")


def log_ticks(axis: Axis, ticks: Sequence[float]) -> None:
    """Ticks of a logarithmic axis, written as plain numbers; it has no others."""
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())
