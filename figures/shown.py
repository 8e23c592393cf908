"""How is a finding shown, and how are several? The same words on the terminal, in RESULTS.md and in the report."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import get_args

from figures.catalogue import DECIDES_NOTHING
from theory.evidence import LEAST_P, LEAST_UNITS, Finding, Result, Verdict


def outcome(finding: Finding) -> str:
    """The verdict, with the reason where there are too few units or the interval alone says something else."""
    words = [f"alone {finding.alone}"] if finding.verdict != finding.alone else []
    words += [reason(finding)] if reason(finding) else []
    words += ["exploratory"] if finding.exploratory else []
    return f"{finding.verdict} ({'; '.join(words)})" if words else finding.verdict


def reason(finding: Finding) -> str:
    """What forbids a verdict whatever the interval says: too few units, or the other findings of the family."""
    return finding.reason or (f"{finding.n} units: a verdict needs {LEAST_UNITS}" if finding.too_few else "")


def p_value(finding: Finding) -> str:
    """p as tables show it; - where nothing is random."""
    if finding.n is None:
        return "-"
    return f"< {LEAST_P:.0e}" if finding.p <= LEAST_P else f"{finding.p:.2g}"


def units(finding: Finding) -> str:
    """n as tables show it; - where nothing is random."""
    return "-" if finding.n is None else str(finding.n)


def counts(result: Result) -> str:
    """How many findings have which verdict, and the preset if it is a smaller one than full."""
    counted = verdicts(result.findings)
    if result.preset == "full":
        return counted
    return f"{counted} ({DECIDES_NOTHING if result.preset == 'quick' else f'{result.preset} preset only'})"


def verdicts(findings: Iterable[Finding]) -> str:
    """How many of the findings have which verdict: `2 hold, 1 fails`."""
    found = Counter(finding.verdict for finding in findings)
    plural = {"holds": "hold", "fails": "fail"}
    return ", ".join(
        f"{found[verdict]} {verdict if found[verdict] == 1 else plural.get(verdict, verdict)}"
        for verdict in get_args(Verdict)
        if found[verdict]
    )


def head(finding: Finding) -> str:
    """The claim without its conditions, which follow after a semicolon."""
    return finding.claim.partition("; ")[0]


def is_size(rung: str) -> bool:
    """Whether a rung of the ladder is a size, such as olmoe-16m; olmoe-16m-muon is of another recipe."""
    return rung.count("-") == 1


def conditions(finding: Finding) -> str:
    return finding.claim.partition("; ")[2]


def needs(rule: str) -> str:
    """The condition of holding: `above 0.5` of "95 % interval above 0.5: holds; below: fails"."""
    return rule.partition(": holds")[0].removeprefix("95 % interval ")


def span(findings: Sequence[Finding]) -> str:
    """Smallest and largest estimate, with the unit if that is one of losses."""
    ends = [f"{end(finding.estimate for finding in findings):.3g}" for end in (min, max)]
    unit = " nats" if all("nats per token" in finding.statistic for finding in findings) else ""
    return (ends[0] if ends[0] == ends[1] else " to ".join(ends)) + unit
