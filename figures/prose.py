"""What do the pages say in words? Their numbers are written by name, and filled in from the committed results.

The source of `docs/NAME.md` is `docs/NAME.md.j2`: Markdown in which Jinja's expressions name findings and data.

    {{ finding("figure-tasks", "noise on all experts costs accuracy; tiny-olmoe") | judged(3) }}

Names in expressions:
    finding(exhibit, claim)      the one finding of exactly this claim
    findings(exhibit, start)     all whose claims start so
    data(exhibit)                the data that the exhibit is drawn from
    row(rows, key=value, ...)    the one row with these values; a dict for keys that are no words
    read(file)                   content of a JSON file of this repository
    interval_of_mean(estimates, intervals)   that of theory.evidence

Filters, each of a number or of a finding, with a number of decimals:
    to(2)        .62                     the number, or the estimate
    both(2)      .62 [.50, .73]          with the interval
    judged(2)    .62 [.50, .73], holds   with the verdict
    span(2)      .32 to .63              the smallest and the largest of several
    held         3 of 4 comparisons      how many of several findings hold
    said         Yes                     or Mostly, Partly, No, Open: the verdicts of several findings in one word

What is not found, or not unique, is an InputError: no page is written with a hole.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import jinja2

from figures.answers import held, only, said, starting
from figures.catalogue import Exhibit, find, needed
from theory.errors import InputError
from theory.evidence import Finding, Result, interval_of_mean

ROOT = Path(__file__).parents[1]
SOURCES = ROOT / "docs"
SUFFIX = ".j2"


def written(exhibits: Sequence[Exhibit], data: Traversable, sources: Path = SOURCES) -> dict[str, str]:
    """Every page of which `sources` has a source, by the page's name (`findings.md`), as it has to be.

    Raises InputError where a page asks for what the results lack; it names all pages for which that is so.
    """
    known = names(exhibits, data)
    pages, errors = {}, []
    for source in sorted(sources.glob(f"*{SUFFIX}")):
        try:
            pages[source.name.removesuffix(SUFFIX)] = filled(source.read_text(encoding="utf-8"), known)
        except InputError as error:
            errors.append(f"docs/{source.name}: {error}")
    if errors:
        raise InputError("; ".join(errors))
    return pages


def filled(source: str, known: Mapping[str, Any]) -> str:
    """The text of a source, `known` being what expressions may use; InputError with the line of what is wrong."""
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined,
        extensions=["jinja2.ext.do"],
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
    environment.filters |= {
        "to": to,
        "both": both,
        "judged": judged,
        "span": span,
        "held": held,
        "said": said,
    }
    try:
        return environment.from_string(source).render(known)
    except jinja2.TemplateSyntaxError as error:
        raise InputError(f"line {error.lineno}: {error.message}") from None
    except (jinja2.TemplateError, ValueError, TypeError, LookupError, ArithmeticError) as error:
        raise InputError(f"line {_line(error)}: {error}") from None


def typed_numbers(source: str) -> list[str]:
    """The numbers that a source has by hand: outside of expressions, code and the targets of links."""
    text = re.sub(r"\{#.*?#\}|\{%.*?%\}|```.*?```", " ", source, flags=re.DOTALL)
    # An expression that begins with a number is by hand, too.
    text = re.sub(r"\{\{(?!\s*[-.\d]).*?\}\}", " ", text, flags=re.DOTALL)
    text = re.sub(r"`[^`\n]*`|\]\([^)\n]*\)", " ", text)
    return re.findall(r"(?<![\w.])(?:\d+(?:,\d{3})*(?:\.\d+)?|\.\d+)", text)


def names(exhibits: Sequence[Exhibit], data: Traversable) -> dict[str, Any]:
    """What expressions may use."""

    @cache
    def result(name: str) -> Result:
        return needed(find(name, exhibits), data)

    return {
        "finding": lambda exhibit, claim: only(claim, result(exhibit)),
        "findings": lambda exhibit, start: starting(start, result(exhibit)),
        "data": lambda exhibit: result(exhibit).data,
        "row": row,
        "read": read,
        "interval_of_mean": interval_of_mean,
    }


def read(file: str) -> Any:
    """Content of a JSON file of this repository, named from its root."""
    path = ROOT / file
    if not path.is_file():
        raise InputError(f"{file} is missing")
    return json.loads(path.read_text(encoding="utf-8"))


def row(
    rows: Iterable[Mapping[str, Any]], where: Mapping[str, Any] | None = None, **values: Any
) -> Mapping[str, Any]:
    """The one row that has all these values; InputError unless there is exactly one."""
    wanted = {**(where or {}), **values}
    found = [
        each for each in rows if all(key in each and each[key] == value for key, value in wanted.items())
    ]
    if len(found) != 1:
        raise InputError(f"{len(found)} rows have {wanted}: one is needed")
    return found[0]


def to(value: Finding | float, decimals: int = 0) -> str:
    """A number with so many decimals, without the zero before the point."""
    number = value.estimate if isinstance(value, Finding) else value
    text = f"{number:,.{decimals}f}"
    if not text.strip("-0.,"):
        text = text.removeprefix("-")
    return re.sub(r"^(-?)0\.", r"\1.", text)


def both(value: Finding, decimals: int) -> str:
    """Estimate and interval."""
    ends = "unbounded" if value.interval is None else ", ".join(to(end, decimals) for end in value.interval)
    return f"{to(value, decimals)} [{ends}]"


def judged(value: Finding, decimals: int) -> str:
    """Estimate, interval and verdict."""
    return f"{both(value, decimals)}, {value.verdict}"


def span(values: Iterable[Finding | float], decimals: int) -> str:
    """The smallest and the largest."""
    numbers = [value.estimate if isinstance(value, Finding) else value for value in values]
    ends = [to(end, decimals) for end in (min(numbers), max(numbers))]
    return ends[0] if ends[0] == ends[1] else " to ".join(ends)


def _line(error: BaseException) -> int:
    """The line of the source in which an error occurred while it was filled in."""
    line, trace = 0, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == "<template>":
            line = trace.tb_lineno
        trace = trace.tb_next
    return line
