"""What is there, and is the chain from each statement to its verdicts whole? `--list` and `--claims` print it.

The chain of a statement: formula and assumptions, the steps of the derivation, the tests marked with the
statement's id, and the findings of committed results that test it.
"""

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from figures.catalogue import NO_RESULT, PRESETS, Exhibit, committed
from figures.shown import counts
from figures.text import listed, wrapped
from theory.claims import Claim, marked_tests, sources
from theory.derivations import AXIOMS, KINDS, NOT_RUN, Step
from theory.errors import InputError
from theory.evidence import Finding, Result

PROVED_BY = {
    "exact": "proved by SymPy",
    "certified": "certified by z3 or ball arithmetic",
    "kernel": "proved in Coq and checked by coqchk",
    "cited": "the theorem itself is cited",
}


@dataclass(frozen=True)
class CheckedStep:
    """A step of a derivation.

    failure: why it fails or is not run; None if it is proved.
    shared_with: the claim that shows the step first and for which it counts; "" for the claim itself.
    """

    equation: str
    kind: str
    reference: str
    failure: str | None
    shared_with: str = ""

    @property
    def is_run(self) -> bool:
        return not (self.failure or "").startswith(NOT_RUN)


@dataclass(frozen=True)
class Verdicts:
    """What an exhibit says about a statement: the counted verdicts of the statement's own findings.

    committed: False if there is no committed result yet.
    findings: how many there are of each verdict.
    counted: the same in words, "" where there is no finding.
    """

    exhibit: str
    committed: bool
    findings: Mapping[str, int]
    counted: str


@dataclass(frozen=True)
class Entry:
    """A statement with all of its chain."""

    claim: Claim
    steps: Sequence[CheckedStep]
    tests: Sequence[str]
    verdicts: Sequence[Verdicts]

    @property
    def is_lemma(self) -> bool:
        """True if every exhibit has a committed result and no finding there tests this statement itself."""
        return all(each.committed and not each.findings for each in self.verdicts)


@dataclass(frozen=True)
class Ledger:
    """Every statement; what is broken, a line each; and how long the derivations took."""

    entries: Sequence[Entry]
    broken: Sequence[str]
    seconds: float

    def as_json(self) -> dict[str, Any]:
        """The ledger in JSON types.

        claims: for each its id, statement, origin, formula (LaTeX), assumptions, derivation (a module), steps
            (equation, kind, reference, failure, shared_with: the claim before it that has the step, too, or ""),
            tests, and verdicts (exhibit, committed, findings). A failure is null if the step is proved, and begins
            with "not run" if it cannot be checked here.
        broken: the broken links in words.
        seconds: how long the derivations took.
        """
        return {
            "claims": [
                {
                    "id": entry.claim.id,
                    "statement": entry.claim.statement,
                    "origin": entry.claim.origin,
                    "formula": entry.claim.latex,
                    "assumptions": list(entry.claim.assumptions),
                    "derivation": entry.claim.derivation,
                    "steps": [asdict(step) for step in entry.steps],
                    "tests": list(entry.tests),
                    "verdicts": [
                        {
                            "exhibit": each.exhibit,
                            "committed": each.committed,
                            "findings": dict(each.findings),
                        }
                        for each in entry.verdicts
                    ],
                }
                for entry in self.entries
            ],
            "broken": list(self.broken),
            "seconds": round(self.seconds, 1),
        }

    def as_text(self, width: int) -> str:
        """The ledger in lines of at most `width` columns, as long as no single word is longer."""
        lines = [line for entry in self.entries for line in (*_shown(entry, width), "")]
        steps = [step for entry in self.entries for step in entry.steps]
        distinct = [step for step in steps if not step.shared_with]
        lines += wrapped(
            f"{len(distinct)} distinct steps in {self.seconds:.0f} s: {', '.join(_counted(distinct).values())}",
            width,
        )
        if any(step.kind == "kernel" and step.failure is None for step in distinct):
            lines += wrapped(f"kernel: on Coq's axioms {', '.join(sorted(AXIOMS))}, and no other", width)
        missing = dict.fromkeys(step.failure for step in distinct if not step.is_run)
        lines += [line for failure in missing for line in wrapped(str(failure), width)]
        lines += [f"broken: {line}" for line in self.broken]  # one line each, for grep
        return "\n".join(lines)


@dataclass(frozen=True)
class Catalogue:
    """Every exhibit with its committed result; None where there is none yet."""

    results: Sequence[tuple[Exhibit, Result | None]]
    broken: Sequence[str] = ()

    def as_json(self) -> dict[str, Any]:
        """The catalogue in JSON types.

        exhibits: for each its exhibit (name), option, title, times (by preset), and of the committed result the
            preset and the findings (how many of each verdict), both null where nothing is committed.
        """
        return {
            "exhibits": [
                {
                    "exhibit": exhibit.name,
                    "option": exhibit.option,
                    "title": exhibit.title,
                    "times": dict(exhibit.times),
                    "preset": result.preset if result else None,
                    "findings": _of_each_verdict(result.findings) if result else None,
                }
                for exhibit, result in self.results
            ]
        }

    def as_text(self, width: int) -> str:
        """The catalogue in lines of at most `width` columns, as long as no single word is longer."""
        lines = []
        for exhibit, result in self.results:
            times = "; ".join(f"{preset}: {exhibit.times[preset]}" for preset in PRESETS)
            lines.append(exhibit.option)
            for text in (exhibit.title, times, counts(result) if result else NO_RESULT):
                lines += wrapped(text, width, "  ")
            lines.append("")
        return "\n".join(lines[:-1])


def catalogue(exhibits: Sequence[Exhibit], data: Traversable) -> Catalogue:
    """Every exhibit with what is committed of it in `data`."""
    return Catalogue([(exhibit, committed(exhibit, data)) for exhibit in exhibits])


def ledger(claims: Sequence[Claim], exhibits: Sequence[Exhibit], data: Traversable, tests: Path) -> Ledger:
    """Check every derivation, and follow every statement to tests and findings.

    exhibits: the catalogue.
    data: folder of the committed results.
    tests: folder of the tests.
    """
    if not (tests / "theory").is_dir():  # a folder `tests` beside an installed copy is someone else's
        raise InputError(
            "--claims: an installed copy has no tests to show; run it in a checkout of the repository"
        )
    started = time.monotonic()
    derivations = sources(claims)
    failures = {step: step.failure() for steps in derivations.values() for step in steps}
    seconds = time.monotonic() - started
    tested = marked_tests(tests)
    results = {exhibit.name: committed(exhibit, data) for exhibit in exhibits}
    entries = [
        Entry(
            claim,
            [_checked(step, failures[step], source, claim) for step, source in derivations[claim.id].items()],
            tested.get(claim.id, []),
            [verdicts for name in results if (verdicts := _verdicts(claim, name, results[name]))],
        )
        for claim in claims
    ]
    broken = [f"tests name the claim {name}, which does not exist" for name in tested.keys() - {*derivations}]
    for name, result in results.items():
        stated = {finding.statement for finding in result.findings} if result else set()
        broken += [
            f"findings of {name} name the claim {unknown}, which does not exist"
            for unknown in stated - {*derivations, None}
        ]
    broken += [f"{entry.claim.id}: {each}" for entry in entries for each in _missing(entry, results)]
    return Ledger(entries, sorted(broken), seconds)


def _checked(step: Step, failure: str | None, source: str, claim: Claim) -> CheckedStep:
    shared = "" if source == claim.id else source
    return CheckedStep(step.equation, step.kind, step.reference, failure, shared)


def _verdicts(claim: Claim, name: str, result: Result | None) -> Verdicts | None:
    """None if the exhibit has nothing to do with the claim."""
    own = tuple(finding for finding in result.findings if finding.statement == claim.id) if result else ()
    if not own and name not in claim.exhibits:
        return None
    counted = counts(replace(result, findings=own)) if result and own else ""
    return Verdicts(name, result is not None, _of_each_verdict(own), counted)


def _of_each_verdict(findings: Sequence[Finding]) -> dict[str, int]:
    return dict(Counter(finding.verdict for finding in findings))


def _missing(entry: Entry, results: Mapping[str, Result | None]) -> Iterator[str]:
    """The broken links of a statement."""
    claim = entry.claim
    if not entry.steps:
        yield "no derivation"
    if not entry.tests:
        yield "no test"
    if claim.by_tests_alone == bool(claim.exhibits):
        yield "an exhibit, and by tests alone" if claim.exhibits else "no exhibit"
    yield from (f"{name} is not in the catalogue" for name in claim.exhibits if name not in results)
    for each in entry.verdicts:
        if each.exhibit not in claim.exhibits:
            yield f"{each.exhibit} has findings of it, but is not among the claim's exhibits"
    for step in entry.steps:
        if step.failure and step.is_run:
            yield f"step fails: {step.equation} ({step.failure})"


def _shown(entry: Entry, width: int) -> Iterator[str]:
    claim = entry.claim
    yield f"{claim.id} ({claim.origin})"
    yield from wrapped(claim.statement, width, "  ")
    yield "  formula"
    yield from wrapped(claim.latex, width, "    ")
    yield "  assumptions" if claim.assumptions else "  assumptions: none"
    yield from listed(claim.assumptions, width, "    ")
    yield f"  derivation: {claim.derivation}"
    for kind, count in _counted(entry.steps).items():
        yield from wrapped(f"{count} ({PROVED_BY[kind]})", width, "    ")
        steps = [step for step in entry.steps if step.kind == kind]
        yield from listed(map(_described, steps), width, "      ")
    yield f"  tests: {len(entry.tests)}"
    file = ""
    for test in entry.tests:
        if test.partition("::")[0] != file:
            file = test.partition("::")[0]
            yield f"    {file}"
        yield f"     {test.partition('::')[2]}"
    yield "  verdicts: lemma: no finding of its own" if entry.is_lemma else "  verdicts"
    for each in entry.verdicts:
        said = each.counted or ("no finding of its own" if each.committed else NO_RESULT)
        yield from wrapped(f"{each.exhibit}: {said}", width, "    ")


def _described(step: CheckedStep) -> str:
    reference = f" [{step.reference}]" if step.reference else ""
    reference += f" (shared with {step.shared_with})" if step.shared_with else ""
    failure = f": FAILS, {step.failure}" if step.is_run else f": {NOT_RUN}"
    return f"{step.equation}{reference}{failure if step.failure else ''}"


def _counted(steps: Sequence[CheckedStep]) -> dict[str, str]:
    """How many steps there are of each kind and how many of them pass; of cited ones, their hypotheses."""
    found: dict[str, str] = {}
    for kind in KINDS:
        own = [step for step in steps if step.kind == kind]
        if own:
            what = "hypotheses checked of" if kind == "cited" else "of"
            skipped = sum(not step.is_run for step in own)
            found[kind] = f"{kind}: {sum(step.failure is None for step in own)} {what} {len(own)}"
            found[kind] += f", {skipped} {NOT_RUN}" if skipped else ""
    return found
