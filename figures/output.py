"""What files a result becomes, what they are called, and how they are written whole or not at all.

The files of a run are named after the exhibit, the preset and the options that change the numbers:
`figure-3.quick.json`, `figure-3.full.seeds-8.json`. What is redrawn from committed data is called
`figure-3.committed.json`. So no result replaces one that was made in another way.
"""

import csv
import hashlib
import io
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, TextIO

from figures.catalogue import DECIDES_NOTHING, NUMBERS_OPTIONS, PRESETS, Exhibit, committed, stored
from figures.drawings.rows import with_bounds
from figures.files import keep_file, remove_halves
from theory.errors import InputError
from theory.evidence import Result

FORMATS = ("png", "pdf", "svg")
DPI = 200
COMMITTED = "committed"
LONGEST_WORD = 40  # letters of an option's value in a file's name
LONGEST_LABEL = 160  # letters of all options there; file systems allow about 255 in a name
# A palette is used if nobody would see it: all but one pixel in a thousand keep their colour within this (of 255).
PALETTE_COLOURS, PALETTE_ERROR, PALETTE_SHARE = 256, 16, 0.999


@dataclass(frozen=True)
class Picture:
    """A picture of an exhibit.

    part: "" for the exhibit's own picture, else the name of the part in the drawing's PARTS.
    caption: what is seen, in words; the first sentence stands in for the picture.
    formats: content of the file, by the name of its format.
    """

    part: str
    caption: str
    formats: Mapping[str, bytes]

    def name(self, exhibit: Exhibit) -> str:
        """Beginning of the names of the picture's files."""
        return f"{exhibit.name}-{self.part}" if self.part else exhibit.name


def label(preset: str, options: Mapping[str, Any]) -> str:
    """What tells the files of this run from those of others: the preset, and the options that change the numbers."""
    given = [name for name in NUMBERS_OPTIONS if name in options]
    words = [f"{name.replace('_', '-')}-{_word(_as_text(options[name]))}" for name in given]
    whole = ".".join(words)
    if len(whole) > LONGEST_LABEL:
        whole = f"options-{hashlib.sha256(whole.encode()).hexdigest()[:8]}"
    return f"{preset}.{whole}" if words else preset


def _as_text(value: Any) -> str:
    """An option's value; that of fields of hardware is as c-2.0-tile_size-256."""
    if not isinstance(value, Mapping):
        return str(value)
    return "-".join(f"{name}-{each}" for name, each in sorted(value.items()))


def _word(value: str) -> str:
    """The value if a file's name can hold it, else what it ends with and a hash of the whole."""
    word = re.sub(r"[^A-Za-z0-9_-]+", "-", Path(value).name).strip("-")
    if word == value and len(word) <= LONGEST_WORD:
        return word
    return f"{word[-LONGEST_WORD:]}-{hashlib.sha256(value.encode()).hexdigest()[:8]}".strip("-")


def output_folder(out: Path) -> Path:
    """The folder, made if needed and known to be writable; absolute, as a worker may run elsewhere."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            remove_halves(out)
            return out.resolve()
    except OSError as error:
        raise InputError(
            f"--out {out}: cannot be written ({error.strerror}); give a folder that can"
        ) from None


def check_places(out: Path, *patterns: str) -> None:
    """InputError, before anything is computed, if a folder is in the place of a file that is to be written."""
    for path in (path for pattern in patterns for path in out.glob(pattern)):
        if path.is_dir():
            raise InputError(f"{path} is a folder where a file is to be written; move it away")


class NoResultError(InputError):
    """No result of an exhibit is committed."""


def committed_result(exhibit: Exhibit, data: Traversable) -> Result:
    """The committed result; NoResultError if there is none."""
    result = committed(exhibit, data)
    if result is None:
        raise NoResultError(
            f"--from-data: no result of {exhibit.option} is committed yet; run it without --from-data"
        )
    return result


def computed_result(exhibit: Exhibit, out: Path) -> Result | None:
    """The result that a run with no further options left in `out`, of the largest preset; None if there is none."""
    for preset in reversed(PRESETS):
        file = out / f"{exhibit.name}.{label(preset, {})}.json"
        if file.is_file():
            return stored(file, exhibit, (preset,))
    return None


def pictures(result: Result, exhibit: Exhibit, formats: Iterable[str]) -> list[Picture]:
    """The exhibit's picture and those of its parts, each drawn once, in each of the formats."""
    import matplotlib as mpl  # here, so that --list and --help start at once

    from figures.drawings.style import STYLE

    mpl.use("Agg")
    drawing = import_module(exhibit.drawing)
    caption: str = getattr(drawing, "CAPTION", exhibit.sentence)
    parts: dict[str, tuple[Callable[[Result], Any], str]] = getattr(drawing, "PARTS", {})
    # The same result gives the same bytes: neither dates nor random ids. Text in a PDF stays text (type 42).
    # The style applies to saving, too: some letters are made only then.
    settings: Any = STYLE | {"svg.hashsalt": exhibit.name, "pdf.fonttype": 42, "savefig.dpi": DPI}
    if result.preset == "quick":
        settings["savefig.bbox"] = "tight"  # makes room for the line above the picture
    drawn = []
    with mpl.rc_context(settings):
        for part, (draw, words) in {"": (drawing.draw, caption), **parts}.items():
            if (figure := draw(result)) is None:
                continue
            if result.preset == "quick":
                figure.text(0.5, 1, DECIDES_NOTHING, ha="center", va="bottom", weight="bold")
            drawn.append(Picture(part, words, {name: _saved(figure, name) for name in formats}))
    return drawn


def saved_png(figure: Any) -> bytes:
    """The picture of a matplotlib figure that is no exhibit's, without a date."""
    import matplotlib as mpl

    from figures.drawings.style import STYLE

    with mpl.rc_context(STYLE | {"savefig.dpi": DPI}):
        return _saved(figure, "png")


def _saved(figure: Any, name: str) -> bytes:
    undated = {"png": {}, "pdf": {"CreationDate": None}, "svg": {"Date": None}}
    buffer = io.BytesIO()
    figure.savefig(buffer, format=name, metadata=undated[name])
    return _compressed(buffer.getvalue()) if name == "png" else buffer.getvalue()


def _compressed(png: bytes) -> bytes:
    """The picture with a palette, a fraction of the size, unless that would be seen; then without transparency."""
    import numpy as np
    from PIL import Image

    with Image.open(io.BytesIO(png)) as opened:
        picture = opened.convert("RGB")
    reduced = picture.quantize(PALETTE_COLOURS, Image.Quantize.MEDIANCUT, kmeans=1, dither=Image.Dither.NONE)
    error = np.abs(np.asarray(picture, np.int16) - np.asarray(reduced.convert("RGB"), np.int16)).max(axis=2)
    chosen = reduced if np.quantile(error, PALETTE_SHARE) <= PALETTE_ERROR else picture
    buffer = io.BytesIO()
    chosen.save(buffer, "PNG", optimize=True, dpi=(DPI, DPI))
    return buffer.getvalue()


def write(
    result: Result, exhibit: Exhibit, drawn: Sequence[Picture], formats: Iterable[str], out: Path, name: str
) -> list[Path]:
    """Write numbers, rows and pictures into `out`, with the label `name`; the paths."""
    contents = {
        f"{exhibit.name}.{name}.json": result.to_json().encode(),
        f"{exhibit.name}.{name}.csv": as_csv(rows(result, exhibit)),
    }
    for picture in drawn:
        for suffix in formats:
            contents[f"{picture.name(exhibit)}.{name}.{suffix}"] = picture.formats[suffix]
    for file, content in contents.items():
        keep_file(out / file, content, "a result")
    return [out / file for file in contents]


def rows(result: Result, exhibit: Exhibit) -> list[dict[str, Any]]:
    """Rows of the CSV: the drawing's table, else the findings."""
    drawing = import_module(exhibit.drawing)
    if hasattr(drawing, "table"):
        table: list[dict[str, Any]] = drawing.table(result)
        return table
    return with_bounds(map(asdict, result.findings))


class Steady:
    """A text stream whose reader may go away and whose disk may be full: what cannot be shown is dropped."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        # A path need not be text.
        shown = text.encode(self.encoding, "backslashreplace").decode(self.encoding)
        self._try(lambda stream: stream.write(shown))
        return len(text)

    def flush(self) -> None:
        self._try(lambda stream: stream.flush())

    @property
    def encoding(self) -> str:
        return getattr(self._stream, "encoding", None) or "utf-8"

    def isatty(self) -> bool:
        return self._stream is not None and self._stream.isatty()

    def _try(self, call: Callable[[TextIO], object]) -> None:
        if self._stream is None:
            return
        try:
            call(self._stream)
        except OSError:
            # Nor is it shown at the exit of the process, where that would fail again.
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())
            self._stream = None


def as_csv(table: Sequence[dict[str, Any]]) -> bytes:
    """The rows, below a header of their keys."""
    text = io.StringIO()
    if table:
        writer = csv.DictWriter(text, fieldnames=list(table[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(table)
    return text.getvalue().encode()
