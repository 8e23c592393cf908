"""The committed results as Markdown: `python -m figures.results` writes RESULTS.md and the tables of README.md.

Text between `<!-- NAME -->` and `<!-- end of NAME -->` in the README is written here; the rest is written by hand.
"""

import re
from collections import Counter
from collections.abc import Sequence
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import get_args

from figures.catalogue import DATA, EXHIBITS, Exhibit, needed
from theory.errors import InputError, run
from theory.evidence import Finding, Result, Verdict

ROOT = Path(__file__).parents[1]
HEADER = "| claim | measured, 95 % interval | n | verdict |\n|---|---|---|---|"


def row(finding: Finding) -> str:
    cells = (finding.claim, finding.measured, str(finding.n), f"**{finding.verdict}**")
    return "| {} |".format(" | ".join(cell.replace("|", "\\|") for cell in cells))


def counts(result: Result) -> str:
    """How many findings have which verdict, and whether they are of a smaller preset than full."""
    found = Counter(finding.verdict for finding in result.findings)
    plural = {"holds": "hold", "fails": "fail"}
    counted = ", ".join(
        f"{found[verdict]} {verdict if found[verdict] == 1 else plural.get(verdict, verdict)}"
        for verdict in get_args(Verdict)
        if found[verdict]
    )
    return counted if result.preset == "full" else f"{counted} ({result.preset} preset only)"


def origin(result: Result) -> str:
    """Commit, device, time and date of the run, from the provenance that the command line adds."""
    provenance = result.provenance
    git, commit = provenance["git"], "no commit"
    if git is not None:
        commit = f"commit {git['commit'][:8]}{' with changes' if git['dirty'] else ''}"
    return f"{commit}, {provenance['device']}, {provenance['wall_seconds']:.0f} s, {provenance['date'][:10]}"


def overview(exhibits: Sequence[Exhibit], data: Traversable) -> str:
    """One row for each exhibit."""
    rows = [
        f"| [`{exhibit.option}`](RESULTS.md#{exhibit.name}) | {exhibit.title} | {counts(needed(exhibit, data))} |"
        for exhibit in exhibits
    ]
    return "\n".join(["| exhibit | shows | findings |", "|---|---|---|", *rows])


def failures(exhibits: Sequence[Exhibit], data: Traversable) -> str:
    """Every finding that fails."""
    rows = [
        f"| `{exhibit.option}` {row(finding)}"
        for exhibit in exhibits
        for finding in needed(exhibit, data).findings
        if finding.verdict == "fails"
    ]
    head, rule = HEADER.split("\n")
    return "\n".join([f"| exhibit {head}", f"|---{rule}", *rows])


def everything(exhibits: Sequence[Exhibit], data: Traversable) -> str:
    """Every finding of every exhibit, with its picture and where it comes from."""
    sections = [
        "# Results",
        "Written by `python -m figures.results` from `figures/data`; rules are in the experiments' docstrings.",
    ]
    for exhibit in exhibits:
        result = needed(exhibit, data)
        sections += [
            f'<a id="{exhibit.name}"></a>\n## `{exhibit.option}`',
            f"{exhibit.title}.",
            f"![{exhibit.title}](figures/data/{exhibit.name}.png)",
            "\n".join([HEADER, *map(row, result.findings)]),
            f"`{result.provenance['command']}`, {origin(result)}.",
        ]
    return "\n\n".join(sections) + "\n"


def filled(readme: str, exhibits: Sequence[Exhibit], data: Traversable) -> str:
    """The README with its tables as the results have them."""
    for name, text in (("overview", overview(exhibits, data)), ("failures", failures(exhibits, data))):
        start, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
        if readme.count(start) != 1 or readme.count(end) != 1:
            raise InputError(f"README.md has to hold {start} and {end} once each")
        pattern = re.compile(re.escape(start) + ".*" + re.escape(end), re.DOTALL)
        replacement = f"{start}\n{text}\n{end}"
        readme = pattern.sub(lambda _, new=replacement: new, readme)  # type: ignore[misc]
    return readme


def main() -> None:
    readme = ROOT / "README.md"
    readme.write_text(filled(readme.read_text(encoding="utf-8"), EXHIBITS, DATA), encoding="utf-8")
    (ROOT / "RESULTS.md").write_text(everything(EXHIBITS, DATA), encoding="utf-8")


if __name__ == "__main__":
    run(main)
