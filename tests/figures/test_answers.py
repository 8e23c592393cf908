"""The answers follow from the committed results: another result, another answer."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from figures.answers import QUESTIONS, Answer, answers, only, said, starting
from figures.catalogue import DATA, EXHIBITS, needed
from theory.errors import InputError
from theory.evidence import Finding

NAMES = sorted({name for _, names, _ in QUESTIONS for name in names})
BY_NAME = {exhibit.name: exhibit for exhibit in EXHIBITS}
FAILING = {"verdict": "fails", "alone": "fails", "p": 1e-12, "n": 9, "interval": [-2.0, -1.0]}
WORDS = ("Yes", "Mostly", "Partly", "No", "Open")


def changed(folder: Path, name: str, **changes: Any) -> list[Answer]:
    """The answers from a copy of the committed results in which every finding of `name` has changed."""
    for each in NAMES:
        text = (DATA / f"{each}.json").read_text(encoding="utf-8")
        if each == name:
            content = json.loads(text)
            content["findings"] = [finding | changes for finding in content["findings"]]
            text = json.dumps(content)
        (folder / f"{each}.json").write_text(text, encoding="utf-8")
    return answers(EXHIBITS, folder)


def test_there_are_seven_and_each_has_a_verdict_and_a_number() -> None:
    found = answers(EXHIBITS, DATA)
    assert len(found) == 7
    assert len({answer.question for answer in found}) == 7
    for answer in found:
        assert answer.exhibit in BY_NAME
        assert answer.answer.startswith(tuple(f"{word}: " for word in WORDS))
        assert any(letter.isdigit() for letter in answer.answer)


@pytest.mark.parametrize("name", NAMES)
def test_another_verdict_is_another_answer(name: str, tmp_path: Path) -> None:
    """All answers of the exhibit change, and no other."""
    now = changed(tmp_path, name, **FAILING)
    for (_, names, _), old, new in zip(QUESTIONS, answers(EXHIBITS, DATA), now, strict=True):
        assert (new == old) == (name not in names or old.answer.startswith("No"))
        if names == (name,):
            assert new.answer.startswith("No: ")


@pytest.mark.parametrize("name", [names[0] for _, names, _ in QUESTIONS])
def test_another_estimate_is_another_number(name: str, tmp_path: Path) -> None:
    """The answer's first exhibit gives an estimate."""
    estimate = -7.7
    for (_, names, _), old, new in zip(
        QUESTIONS, answers(EXHIBITS, DATA), changed(tmp_path, name, estimate=estimate), strict=True
    ):
        if name not in names:
            assert new == old
        elif name == names[0]:
            assert new != old
            assert "7.7" in new.answer or "770" in new.answer


@pytest.mark.parametrize("name", NAMES)
def test_a_finding_that_is_gone_is_an_error(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=rf"{name}: (no finding claims|0 findings claim) .*mend what asks"):
        changed(tmp_path, name, claim="something else")


def test_a_finding_that_is_there_twice_is_an_error() -> None:
    result = needed(BY_NAME["figure-3"], DATA)
    claim = result.findings[1].claim
    assert only(claim, result) == result.findings[1]
    with pytest.raises(InputError, match="figure-3: 2 findings claim"):
        only(claim, replace(result, findings=(*result.findings, result.findings[1])))
    with pytest.raises(InputError, match="figure-3: no finding claims 'nothing'"):
        starting("nothing", result)


def test_a_result_that_is_gone_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no figure-scale.json: run --figure scale"):
        answers(EXHIBITS, tmp_path)


def test_what_is_not_shown_is_not_answered() -> None:
    assert [answer.exhibit for answer in answers([BY_NAME["figure-peers"], BY_NAME["figure-4"]], DATA)] == [
        "figure-peers"
    ]
    assert answers([], DATA) == []


@pytest.mark.parametrize(
    ("verdicts", "word"),
    [
        (["holds", "holds"], "Yes"),
        (["holds", "holds", "fails"], "Mostly"),
        (["holds", "fails"], "Partly"),
        (["holds", "inconclusive", "inconclusive"], "Partly"),
        (["fails", "fails"], "No"),
        (["fails", "inconclusive"], "Open"),
        (["inconclusive"], "Open"),
    ],
)
def test_verdicts_in_a_word(verdicts: list[str], word: str) -> None:
    findings = [
        Finding(
            claim="a claim",
            origin="ours",
            statistic="a share",
            estimate=0.5,
            interval=(0.0, 1.0),
            n=9,
            rule="a rule",
            family="a family",
            p=0.5,
            alone=verdict,  # type: ignore[arg-type]
            verdict=verdict,  # type: ignore[arg-type]
        )
        for verdict in verdicts
    ]
    assert said(findings) == word


@pytest.mark.parametrize("name", ["figure-3", "figure-4", "figure-5"])
def test_hermes_has_the_verdicts_of_pcm_per_column(name: str) -> None:
    """As docs/findings.md says."""
    findings = json.loads((DATA / f"{name}.json").read_text(encoding="utf-8"))["findings"]
    verdicts = {finding["claim"]: finding["verdict"] for finding in findings}
    hermes = [claim for claim in verdicts if ", hermes" in claim]
    assert len(hermes) == len(verdicts) / 3
    assert all(verdicts[claim] == verdicts[claim.replace(", hermes", "")] for claim in hermes)
