"""What do all exhibits show, on one HTML page that needs no other file? `paper_repro.py --all --report` writes it."""

import io
from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import jinja2

from figures.answers import Answer
from figures.catalogue import Exhibit
from figures.output import Picture
from figures.results import origin
from figures.rules import questions
from figures.shown import counts, outcome, p_value, units
from figures.text import first_sentence
from theory.evidence import Result


@dataclass(frozen=True)
class Section:
    """An exhibit with its result and pictures, or with the reason why there is none.

    pictures: with PNG among the formats.
    committed: True if the result is the committed one, False if it was computed here.
    file: name of the file that holds the result.
    error: why there is no result.
    """

    exhibit: Exhibit
    result: Result | None
    pictures: Sequence[Picture] = ()
    committed: bool = True
    file: str = ""
    error: str = ""

    @property
    def fails(self) -> bool:
        """True if a finding fails, or if there is no result."""
        return self.result is None or any(finding.verdict == "fails" for finding in self.result.findings)


def page(sections: Sequence[Section], answers: Sequence[Answer]) -> str:
    """The page: what it is about, the answers, the contents, then each exhibit with every finding and its rule."""
    filters: dict[str, Callable[..., Any]] = {
        "first_sentence": first_sentence,
        "outcome": outcome,
        "p_value": p_value,
        "units": units,
        "questions": questions,
    }
    return filled("report.html", filters, sections=sections, answers=answers, counts=counts, origin=origin)


def filled(template: str, filters: Mapping[str, Callable[..., Any]] | None = None, **values: Any) -> str:
    """A page: a template of this package with these values; the filter `embedded` makes PNG bytes part of it."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"embedded": embedded, **(filters or {})}
    text = (files("figures") / template).read_text(encoding="utf-8")
    return environment.from_string(text).render(values)


def embedded(png: bytes) -> str:
    """The picture as a data URI: WebP keeps every pixel in three quarters of the room that PNG takes."""
    from PIL import Image

    buffer = io.BytesIO()
    with Image.open(io.BytesIO(png)) as picture:
        picture.convert("RGB").save(buffer, "WEBP", lossless=True)
    return f"data:image/webp;base64,{b64encode(buffer.getvalue()).decode()}"
