"""The list of verdicts that moved: every finding of then and of now is in it once, with what can have moved it."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from figures.catalogue import EXHIBITS
from figures.moved import Before, before, page, pairs, why
from theory.errors import InputError
from theory.evidence import Finding, Result

EXHIBIT = EXHIBITS[0]


def finding(claim: str, verdict: str = "holds", **changes: Any) -> Finding:
    values: dict[str, Any] = {
        "claim": claim,
        "origin": "paper",
        "statistic": "share",
        "estimate": 0.25,
        "interval": (0.1, 0.5),
        "n": 7,
        "rule": "a rule",
        "family": claim,
        "p": 0.9 if verdict == "inconclusive" else 0.001,
        "alone": verdict,
        "verdict": verdict,
    }
    return Finding(**values | changes)


def then(claim: str, verdict: str = "holds", **changes: Any) -> dict[str, Any]:
    """A finding as the JSON of then has it, which knew no families."""
    fields = ("claim", "origin", "statistic", "estimate", "interval", "n", "rule", "verdict")
    return {name: getattr(finding(claim, verdict), name) for name in fields} | changes


def result(*findings: Finding, seeds: tuple[int, ...] = (0, 1)) -> Result:
    provenance = {"seeds": list(seeds)}
    return Result(exhibit=EXHIBIT.name, preset="full", data={}, findings=findings, provenance=provenance)


def test_claims_are_matched_by_their_words() -> None:
    old = Before(
        [then("a; w_max per tile"), then("the proved gain grows"), then("gone"), then("b; tiny-olmoe, c")], []
    )
    new = result(
        finding("b; tiny-olmoe, c"),
        finding("b; tiny-deepseek-moe, c"),
        finding("the floor of the gain grows"),
        finding("a; tiny-olmoe, w_max per tile"),
    )
    found = {(one and one["claim"], two and two.claim) for one, two in pairs(old, new)}
    assert found == {
        ("a; w_max per tile", "a; tiny-olmoe, w_max per tile"),
        ("the proved gain grows", "the floor of the gain grows"),
        ("gone", None),
        ("b; tiny-olmoe, c", "b; tiny-olmoe, c"),
        (None, "b; tiny-deepseek-moe, c"),
    }


@pytest.mark.parametrize(
    ("changes", "seeds", "said"),
    [
        ({"n": 4}, (0, 1), "4 units: a verdict needs 5"),
        ({"n": 6}, (0, 1), "7 independent units then, 6 now"),
        ({"n": 4, "alone": "inconclusive", "verdict": "inconclusive"}, (0, 1), "4 units: a verdict needs 5"),
        ({"rule": "another"}, (0, 1), "the claim held if a rule"),
        ({"rule": "a rule: holds; else: fails"}, (0, 1), "another interval of the same numbers"),
        ({"statistic": "sum"}, (0, 1), "another statistic"),
        ({}, (1000, 1001), "fresh draws"),
        ({}, (0, 1), "another interval of the same numbers"),
    ],
)
def test_why_a_verdict_moved(changes: dict[str, Any], seeds: tuple[int, ...], said: str) -> None:
    new = result(finding("a", **changes), seeds=seeds)
    assert why(then("a"), new.findings[0], Before([], [0, 1]), new) == said


def test_holms_correction_is_a_reason() -> None:
    new = result(finding("a", family="one", p=0.04), finding("b", "inconclusive", family="one"))
    assert "does not survive Holm" in why(then("a"), new.findings[0], Before([], [0, 1]), new)


def test_the_page_has_what_moved_and_nothing_else(tmp_path: Path) -> None:
    new = result(
        finding("same"), finding("moved_", "fails"), finding("new"), finding("whose", origin="extension")
    )
    (tmp_path / f"{EXHIBIT.name}.json").write_text(new.to_json())
    old = Before([then("same"), then("moved_"), then("gone"), then("whose")], [0, 1])
    text = page([EXHIBIT], tmp_path, [old], "abc")
    assert "2 findings keep their verdict, 1 have another one, 1 are judged no longer, 1 are new." in text
    ends = "0.25 [0.1, 0.5]"
    rows = re.findall(r"^\| figure.*$", text, re.MULTILINE)
    assert rows == [
        rf"| figure-3 | moved\_ | holds: {ends} | fails: {ends} | another interval of the same numbers |",
        "| figure-3 | paper | extension | holds | 1 |",
        "| figure-3 | gone | holds |",
        "| figure-3 | new | holds |",
    ]
    assert re.findall(r"^## (.*)$", text, re.MULTILINE) == [
        "Other verdicts",
        "Other origins",
        "Judged no longer",
        "New",
    ]
    unbounded = replace(
        old, findings=[*old.findings[:1], old.findings[1] | {"interval": None}, *old.findings[2:]]
    )
    assert "holds: 0.25 [unbounded]" in page([EXHIBIT], tmp_path, [unbounded], "abc")


def test_nothing_moved_where_nothing_was_run(tmp_path: Path) -> None:
    text = page([EXHIBIT], tmp_path, [Before([], [])], "abc")
    assert "0 findings keep their verdict, 0 have another one, 0 are judged no longer, 0 are new." in text


def test_a_commit_that_is_not_there() -> None:
    with pytest.raises(InputError, match="no such commit here"):
        before(EXHIBIT, "0" * 40)


def test_the_result_of_a_commit_is_read() -> None:
    here = before(EXHIBIT, "HEAD")
    assert here.findings and json.dumps(here.findings)
    assert before(replace(EXHIBIT, name="figure-none"), "HEAD").findings == []
