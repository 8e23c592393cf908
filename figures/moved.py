"""Which verdicts moved since a commit, and why? `python -m figures.moved COMMIT` writes rules/moved.md.

Findings are matched by claim. A claim whose words changed is matched with the likest claim that is left in its exhibit.
"""

import argparse
import json
import subprocess
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from importlib.resources.abc import Traversable
from typing import Any

from figures.catalogue import DATA, EXHIBITS, Exhibit, with_results
from figures.results import cell, table
from figures.rules import ROOT
from figures.shown import needs, reason
from theory.errors import InputError, run
from theory.evidence import Finding, Result

PAGE = ROOT / "rules" / "moved.md"
MODELS = ("tiny-olmoe, ", "tiny-deepseek-moe, ")  # a condition that claims did not name before
LIKE = 0.7  # least likeness of two claims of which one has new words


@dataclass(frozen=True)
class Before:
    """A committed result of any version of the code: its findings as JSON has them, and the seeds of its units."""

    findings: Sequence[dict[str, Any]]
    seeds: Sequence[int]


def before(exhibit: Exhibit, commit: str) -> Before:
    """The result at the commit, without findings if there was none; InputError if there is no such commit."""
    command = ["git", "--no-optional-locks", "-C", str(ROOT), "cat-file", "-e", f"{commit}^{{commit}}"]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        raise InputError(f"{commit}: no such commit here; give one that `git log` shows")
    command[-2:] = [f"{commit}:figures/data/{exhibit.name}.json"]
    command[command.index("cat-file")] = "show"
    shown = subprocess.run(command, capture_output=True, check=False)
    content = json.loads(shown.stdout) if shown.returncode == 0 else {"findings": [], "provenance": {}}
    return Before(content["findings"], content["provenance"].get("seeds", []))


def pairs(old: Before, new: Result) -> Iterator[tuple[dict[str, Any] | None, Finding | None]]:
    """Every finding of then with that of now; None where one of them is missing."""
    left = {finding.claim: finding for finding in new.findings}
    others = [then for then in old.findings if then["claim"] not in left]
    yield from ((then, left.pop(then["claim"])) for then in old.findings if then["claim"] in left)
    for then in others:
        likeness = {claim: _likeness(then["claim"], claim) for claim in left}
        likest = max(likeness, key=likeness.__getitem__, default="")
        yield then, left.pop(likest) if likest and likeness[likest] >= LIKE else None
    yield from ((None, now) for now in left.values())


def _likeness(then: str, now: str) -> float:
    """1 if the claim of now names a model, and else nothing has changed."""
    if then == _plain(now):
        return 1.0
    return SequenceMatcher(None, then, _plain(now)).ratio()


def _plain(claim: str) -> str:
    for model in MODELS:
        claim = claim.replace(model, "")
    return claim


def why(then: dict[str, Any], now: Finding, old: Before, new: Result) -> str:
    """What can have moved the verdict: too few units, the family, other units, another rule, other draws."""
    if reason(now):
        return reason(now)
    found = []
    if then["n"] != now.n:
        found.append(f"{then['n']} independent units then, {now.n} now")
    if needs(then["rule"]) != needs(now.rule):
        found.append(f"the claim held if {needs(then['rule'])}")
    if then["statistic"] != now.statistic:
        found.append("another statistic")
    if list(old.seeds) != new.provenance.get("seeds"):
        found.append("fresh draws")
    return "; ".join(found) or "another interval of the same numbers"


def page(exhibits: Sequence[Exhibit], data: Traversable, olds: Sequence[Before], commit: str) -> str:
    """The list of verdicts that moved, of origins that moved, and of claims that came or went."""
    moved, origins, gone, came, same = [], Counter[tuple[str, str, str, str]](), [], [], 0
    results = {exhibit.name: result for exhibit, result in with_results(exhibits, data)}
    for exhibit, old in zip(exhibits, olds, strict=True):
        if (new := results.get(exhibit.name)) is None:
            continue
        for then, now in pairs(old, new):
            if then is None:
                assert now is not None
                came.append([exhibit.name, cell(now.claim), now.verdict])
            elif now is None:
                gone.append([exhibit.name, cell(then["claim"]), then["verdict"]])
            else:
                if then["origin"] != now.origin:
                    origins[exhibit.name, then["origin"], now.origin, now.verdict] += 1
                if then["verdict"] == now.verdict:
                    same += 1
                    continue
                words = cell(now.claim)
                if then["claim"] not in (now.claim, _plain(now.claim)):
                    words += f" (then: {cell(then['claim'])})"
                cells = [exhibit.name, words, _said(then), _said(vars(now)), cell(why(then, now, old, new))]
                moved.append(cells)
    known = (
        f"{same} findings keep their verdict, {len(moved)} have another one, {len(gone)} are judged no longer"
    )
    counted = [[*key, str(count)] for key, count in sorted(origins.items())]
    sections = [
        ("Other verdicts", ["exhibit", "claim", "then", "now", "why"], moved),
        ("Other origins", ["exhibit", "then", "now", "verdict now", "findings"], counted),
        ("Judged no longer", ["exhibit", "claim", "verdict then"], gone),
        ("New", ["exhibit", "claim", "verdict"], came),
    ]
    parts = [
        "# Verdicts that moved",
        f"Written by `python -m figures.moved {commit}`: the results of commit {commit} against those of today.",
        f"{known}, {len(came)} are new.",
        *(f"## {heading}\n\n{table(names, rows)}" for heading, names, rows in sections if rows),
    ]
    return "\n\n".join(parts) + "\n"


def _said(finding: dict[str, Any]) -> str:
    ends = finding["interval"]
    interval = "unbounded" if ends is None else "{:.4g}, {:.4g}".format(*ends)
    return f"{finding['verdict']}: {finding['estimate']:.4g} [{interval}]"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m figures.moved", description=__doc__)
    parser.add_argument("commit", help="commit whose results are those of then")
    commit = parser.parse_args().commit
    olds = [before(exhibit, commit) for exhibit in EXHIBITS]
    PAGE.write_text(page(EXHIBITS, DATA, olds, commit), encoding="utf-8")


if __name__ == "__main__":
    run(main)
