"""Do findings that are made today say what the committed ones and the rules say, for the tests of every layer?"""

import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from theory.evidence import Result

ROOT = Path(__file__).parents[2]
DATA, RULES = ROOT / "figures" / "data", ROOT / "rules"
NUMBER = re.compile(r"(?<![\w.])-?(?:\d+\.?\d*|\.\d+)(?:e-?\d+)?")


def assert_as_committed(
    exhibit: str, result: Result, new: Sequence[str] = (), computed: Sequence[str] = ()
) -> None:
    """Each claim is made once, as figures/data/EXHIBIT.json has it: origin, statement, family; thresholds of rules.

    exhibit: name as in the catalogue, "figure-growth".
    new: words of those claims that need not occur there, because their text depends on what was measured.
    computed: words of those claims whose thresholds the rules give as a formula.
    """
    claims = [finding.claim for finding in result.findings]
    assert len(set(claims)) == len(claims)
    assert_thresholds(
        exhibit, [f.rule for f in result.findings if not any(words in f.claim for words in computed)]
    )
    committed = Result.from_json((DATA / f"{exhibit}.json").read_text(encoding="utf-8"), exhibit)
    known, made = (
        {each.claim: (each.origin, each.statement, each.family, each.exploratory) for each in findings}
        for findings in (
            committed.findings,
            [each for each in result.findings if not any(words in each.claim for words in new)],
        )
    )
    assert made
    assert made == {claim: known.get(claim, "no such claim is committed") for claim in made}


def assert_thresholds(exhibit: str, rules: Sequence[str]) -> None:
    """Every number in the rules of findings stands in rules/EXHIBIT.md, or in rules that this file names."""
    known = set(_numbers_of(exhibit))
    known |= {math.log(number) for number in known if 0.5 < number < 1.5} | {0.0}  # thresholds of ratios
    for rule in rules:
        for number in NUMBER.findall(rule.replace("95 % interval", "")):
            close = (math.isclose(abs(float(number)), abs(each), rel_tol=5e-3) for each in known)
            assert any(close), f"rules/{exhibit}.md has no {number} of: {rule}"


def _numbers_of(exhibit: str) -> Iterator[float]:
    text = (RULES / f"{exhibit}.md").read_text(encoding="utf-8")
    for number, per_cent in re.findall(rf"({NUMBER.pattern})( %)?", text):
        yield float(number) / (100 if per_cent else 1)
    for above, below in re.findall(r"\b(\d+)/(\d+)\b", text):
        yield int(above) / int(below)
    if "third" in text:
        yield 1 / 3
    for other in set(re.findall(r"\(([a-z0-9-]+)\.md\)", text)) - {exhibit}:
        yield from _numbers_of(other)
