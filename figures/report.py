"""Exhibits on one HTML page that needs no other file: `paper_repro.py --all --report` writes it."""

from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files

import jinja2

from figures.catalogue import Exhibit
from figures.results import counts, origin
from theory.evidence import Result

TEMPLATE = files("figures") / "report.html"


@dataclass(frozen=True)
class Section:
    """An exhibit, its result and its picture (PNG); or, if there is no result, the error that says why."""

    exhibit: Exhibit
    result: Result | None
    picture: bytes = b""
    error: str = ""


def page(sections: Sequence[Section]) -> str:
    """An overview, every finding with its rule, every picture, and what each comes from."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.filters |= {"base64": lambda content: b64encode(content).decode()}
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    return template.render(sections=sections, counts=counts, origin=origin)
