"""Which runs were looked at, and what did each say? rules/looks.md, to which `figures.results` adds every result.

A run that is replaced keeps its row. What changed between two runs is written into the last column by hand.
"""

import re
from collections.abc import Sequence
from importlib.resources.abc import Traversable

from figures.catalogue import Exhibit, with_results
from figures.rules import judged_by
from figures.shown import verdicts
from theory.evidence import Result

HEAD = "| run | code | seeds | verdicts | what changed |\n|---|---|---|---|---|"


def completed(page: str, exhibits: Sequence[Exhibit], data: Traversable) -> str:
    """The page with a row for each committed result that it lacks, below the exhibit's heading."""
    for exhibit, result in with_results(exhibits, data):
        heading = f"## {exhibit.name}\n"
        if f"\n{heading}" not in page:
            page = f"{page.rstrip()}\n\n{heading}\n{HEAD}\n"
        before, _, rest = page.partition(f"\n{heading}")
        section, separator, others = rest.partition("\n## ")
        if f"\n| {run(result)} |" not in section:
            section = f"{section.rstrip()}\n{row(result)}\n"
        page = f"{before}\n{heading}{section}{separator}{others}"
    return page


def run(result: Result) -> str:
    """When the run began, and the commit of its code: the first two cells of its row."""
    own, judged = result.provenance, judged_by(result)
    again = f", judged again {_moment(judged['date'])}" if judged is not own else ""
    git = judged["git"]
    return f"{_moment(own['date'])}{again} | {git['commit'][:8] if git else 'no commit'}"


def row(result: Result) -> str:
    """The row of a result whose rules are in files."""
    rules = ", ".join(f"[{name}]({name})" for name in _rules(result))
    cells = [
        run(result),
        seeds(result.provenance["seeds"]),
        verdicts(result.findings),
        f"rules: {rules or 'none'}",
    ]
    return f"| {' | '.join(cells)} |"


def _rules(result: Result) -> list[str]:
    return [each["file"].removeprefix("rules/") for each in judged_by(result).get("rules", [])]


def seeds(found: Sequence[int]) -> str:
    """Seeds in words: `0 to 2, 100` of 0, 1, 2 and 100."""
    spans: list[list[int]] = []
    for each in sorted(found):
        if spans and each == spans[-1][-1] + 1:
            spans[-1].append(each)
        else:
            spans.append([each])
    return ", ".join(f"{span[0]} to {span[-1]}" if len(span) > 1 else str(span[0]) for span in spans) or "-"


def _moment(date: str) -> str:
    """`2026-11-26 11:58:28` of `2026-11-26T11:58:28+00:00`."""
    return re.sub(r"T(\d\d:\d\d:\d\d).*", r" \1", date)
