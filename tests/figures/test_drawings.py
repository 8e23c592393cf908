"""Can every picture of every exhibit be read: its width, its letters, nothing over anything else, a caption?"""

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib import import_module
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from figures.catalogue import DATA, Exhibit, committed, find
from figures.catalogue import EXHIBITS as ALL
from figures.drawings import figure_3
from figures.drawings.style import ERRORS, SMALLEST, STRATEGIES, STYLE, WIDTH, styled
from figures.text import first_sentence
from realmodels.families import DENSE_KINDS
from theory.evidence import Result
from theory.hardware import Hardware, relative_output_error

EXHIBITS = [exhibit for exhibit in ALL if committed(exhibit, DATA) is not None]
DPI = 100
TOLERANCE = 1.0  # pixels by which two texts, or a text and the border, may overlap
TALLEST = 8.2  # inches: a taller picture is shrunk to fit a printed page, and its letters with it
SENTENCE = (30, 200)  # letters that the first sentence of a caption may have: it stands in for the picture

Draw = Callable[[Result], Figure]


def pictures(exhibit: Exhibit) -> Iterator[tuple[str, Draw, str]]:
    """Part, drawing function and caption of every picture of the exhibit."""
    drawing = import_module(exhibit.drawing)
    yield "", drawing.draw, drawing.CAPTION
    for part, (draw, caption) in getattr(drawing, "PARTS", {}).items():
        yield part, draw, caption


PICTURES = [
    pytest.param(exhibit, draw, name, id=name)
    for exhibit in EXHIBITS
    for part, draw, _ in pictures(exhibit)
    for name in (f"{exhibit.name}-{part}".rstrip("-"),)
]


def texts(figure: Figure) -> list[Text]:
    """Every text that is seen: not those of axes that are switched off, nor tick labels outside their axes."""
    hidden: set[Text] = set()
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            for tick in [*axis.get_major_ticks(), *axis.get_minor_ticks()]:
                shown = axes.axison and axes.get_visible() and low - 1e-9 <= tick.get_loc() <= high + 1e-9
                if not shown:
                    hidden |= {tick.label1, tick.label2}
            if not axes.axison:
                hidden |= {axis.label, axis.offsetText}
    return [
        text
        for text in figure.findobj(Text)
        if text.get_visible() and text.get_text().strip() and text not in hidden and seen(text)
    ]


def seen(artist: Any) -> bool:
    """True if what holds the artist is visible, too."""
    return artist.axes is None or bool(artist.axes.get_visible())


def faults(figure: Figure) -> list[str]:
    """What keeps the picture from being read, each in a line."""
    canvas = FigureCanvasAgg(figure)
    figure.set_dpi(DPI)
    canvas.draw()
    found = []
    if figure.get_figwidth() != WIDTH:
        found.append(f"it is {figure.get_figwidth()} inches wide, not {WIDTH}")
    boxes = [(text.get_text(), text.get_window_extent()) for text in texts(figure)]
    if figure.get_figheight() > TALLEST:
        found.append(f"it is {figure.get_figheight():g} inches high, more than {TALLEST}")
    found += [
        f"{text.get_text()!r} has {text.get_fontsize():g} pt"
        for text in texts(figure)
        if float(text.get_fontsize()) < SMALLEST
    ]
    whole = figure.bbox.padded(TOLERANCE)
    for words, box in boxes:
        if box.x0 < whole.x0 or box.x1 > whole.x1 or box.y0 < whole.y0 or box.y1 > whole.y1:
            found.append(f"{words!r} is cut at the border")
    found += [
        f"{one!r} and {other!r} overlap"
        for (one, first), (other, second) in combinations(boxes, 2)
        if overlap(first, second)
    ]
    for legend in figure.findobj(Legend):
        for axes in figure.axes:
            if np.any(inside(points(axes), legend.get_window_extent())):
                found.append(f"a legend lies over data of {axes.get_title(loc='left')!r}")
    return found


def overlap(one: Bbox, other: Bbox) -> bool:
    shared = Bbox.intersection(one, other)
    return shared is not None and min(shared.width, shared.height) > TOLERANCE


def points(axes: Axes) -> Any:
    """Drawn points, and points along drawn lines, in pixels."""
    drawn = [np.empty((0, 2))]
    for line in axes.lines:
        path = line.get_transform().transform(np.column_stack(line.get_data()).astype(float))
        steps = np.linspace(0, 1, 20)[:, None, None]
        drawn += [path, (path[:-1] + steps * (path[1:] - path[:-1])).reshape(-1, 2)]
    for collection in axes.collections:
        offsets: Any = np.ma.filled(np.ma.asarray(collection.get_offsets(), float), math.nan)
        if len(offsets) and np.any(offsets):
            drawn.append(collection.get_offset_transform().transform(offsets))
    drawn += [patch.get_window_extent().get_points() for patch in axes.patches]
    every = np.concatenate(drawn)
    return every[np.isfinite(every).all(1)]


def inside(where: Any, box: Bbox) -> Any:
    return (where[:, 0] > box.x0) & (where[:, 0] < box.x1) & (where[:, 1] > box.y0) & (where[:, 1] < box.y1)


@pytest.mark.parametrize(("exhibit", "draw", "name"), PICTURES)
def test_pictures_can_be_read(exhibit: Exhibit, draw: Draw, name: str) -> None:
    """And those are committed that have something to draw."""
    result = committed(exhibit, DATA)
    assert result is not None
    figure: Figure | None = draw(result)
    assert (DATA / f"{name}.png").is_file() == (figure is not None)
    assert figure is not None or name != exhibit.name
    assert figure is None or faults(figure) == []


@pytest.mark.parametrize("exhibit", EXHIBITS, ids=lambda exhibit: exhibit.name)
def test_captions_begin_with_a_sentence_of_what_is_seen(exhibit: Exhibit) -> None:
    for part, _, caption in pictures(exhibit):
        first = first_sentence(caption)
        least, most = SENTENCE
        assert least <= len(first) <= most and first[0].isupper(), (part, len(first))
        assert first.endswith(".") and not re.search(r"[.?!] ", first), part  # a next one that begins small
        assert caption.endswith(".") and "  " not in caption, part


@pytest.mark.parametrize("kinds", range(1, len(DENSE_KINDS) + 1))
def test_figure_3_has_a_look_for_every_kind_of_dense_module(kinds: int) -> None:
    """DeepSeekMoE has four; each curve has a colour and a marker of its own."""
    result = committed(find("figure-3", ALL), DATA)
    assert result is not None
    parts = {part["label"]: part for part in result.data["parts"]}
    labels = ["attention", "LM head", "all dense modules"]
    like, others = [label for label in parts if label not in labels], labels
    own = [*DENSE_KINDS[:kinds], *labels[-1:]] if kinds > 1 else [DENSE_KINDS[0]]
    new = [parts["attention"] | {"label": label} for label in own] + [parts[label] for label in like]
    curves = [each for each in result.data["curves"] if each["part"] not in others]
    curves += [
        each | {"part": label}
        for each in result.data["curves"]
        if each["part"] == "attention"
        for label in own
    ]
    drawn = figure_3.draw(replace(result, data=result.data | {"parts": new, "curves": curves}))
    lines = [line for line in drawn.axes[0].lines if line.get_label() in own]
    assert len(lines) == len(own) == len({(line.get_color(), line.get_marker()) for line in lines})


def test_strategies_differ_in_colour_marker_and_line() -> None:
    looks = STRATEGIES.values()
    for names in ("label", "marker"):
        assert len({getattr(look, names) for look in looks}) == len(looks)
    assert len({(look.colour, str(look.line)) for look in looks}) == len(looks)


# The test itself


def plain(**changes: Any) -> Figure:
    """A picture without fault, but for the changes."""

    @styled
    def draw(_: Any) -> Figure:
        figure = Figure(figsize=(changes.get("width", WIDTH), changes.get("height", 3)))
        axes = figure.subplots()
        axes.plot([0, 1], [0, 1], label="a line")
        axes.text(0.5, 0.2, "words", fontsize=changes.get("size", SMALLEST))
        if "over" in changes:
            axes.text(0.51, 0.21, "more words")
        if "beyond" in changes:
            figure.text(0.95, 0.5, "beyond the border")
        if "legend" in changes:
            axes.legend(loc=changes["legend"])
        return figure

    return draw(None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, []),
        ({"legend": "upper left"}, []),
        ({"legend": "upper right"}, ["a legend lies over data of ''"]),
        ({"width": 6.0}, ["it is 6.0 inches wide, not 7.0"]),
        ({"height": 9}, ["it is 9 inches high, more than 8.2"]),
        ({"size": 7.5}, ["'words' has 7.5 pt"]),
        ({"over": True}, ["'words' and 'more words' overlap"]),
        ({"beyond": True}, ["'beyond the border' is cut at the border"]),
    ],
)
def test_every_fault_is_found(changes: dict[str, Any], expected: list[str]) -> None:
    assert STYLE["font.size"] >= SMALLEST
    assert faults(plain(**changes)) == expected


def test_errors_that_captions_state_are_theorys() -> None:
    for (programming, w_max), error in ERRORS.items():
        hardware = Hardware(programming=programming, c=1.0, w_max=w_max)  # type: ignore[arg-type]
        assert error == pytest.approx(relative_output_error(hardware), abs=1e-4)
