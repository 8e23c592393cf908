"""How every picture looks: its width, its letters, and one look for each placement strategy.

A picture is `WIDTH` inches wide, the width at which it is read, and nothing on it is smaller than `SMALLEST` points.
Strategies differ by colour (Okabe and Ito's, safe for colour-blind readers), by marker and by line, and look the
same in every figure.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import wraps
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from theory.evidence import Result

WIDTH = 7.0  # inches: the text width of a page, and of a README on a laptop
SMALLEST = 8.0  # points
BLACK, GREY = "#000000", "#6b6b6b"
BLUE, VERMILLION, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
SKY, ORANGE, BROWN = "#56B4E9", "#E69F00", "#7A4B00"

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
}


def styled(draw: Callable[[Result], Figure]) -> Callable[[Result], Figure]:
    """The drawing function, run under `STYLE`."""

    @wraps(draw)
    def under_style(result: Result) -> Figure:
        with mpl.rc_context(STYLE):
            return draw(result)

    return under_style
