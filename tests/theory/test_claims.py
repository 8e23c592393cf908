"""Is the list of claims complete, and are the tests that carry a claim's id found?"""

import re
import subprocess
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest

from figures.catalogue import DATA, EXHIBITS, committed
from theory.claims import CLAIMS, NOTATION, Claim, marked_tests
from theory.errors import InputError

TESTS = Path(__file__).parents[1]
# Commands of the formulas, each of them in https://katex.org/docs/supported and in MathJax.
COMMANDS = """
    alpha gamma delta Delta epsilon eta kappa mu Phi pi rho sigma theta Theta varphi zeta
    mathrm text textstyle frac tfrac sqrt hat tilde top
    sum int infty max min ln cdot in le ge approx sim to mapsto Rightarrow quad qquad
    ast bigl bigr Bigl Bigr lVert rVert
"""
MARKED = '''
import pytest
from pytest import mark

pytestmark = [pytest.mark.slow, pytest.mark.claim("everywhere")]

@pytest.mark.claim("A")
@pytest.mark.claim("B")
@pytest.mark.parametrize("x", [1, 2])
def test_two(x): ...

@pytest.mark.claim("A")
def helper(): ...

class TestGroup:
    pytestmark = pytest.mark.claim("C")

    @pytest.mark.claim("A")
    def test_inside(self): ...

@pytest.mark.claim("D")
class TestOther:
    def test_inside(self): ...

def test_none():
    """pytest.mark.claim("text is no mark")"""
'''


def test_ids_are_unique_and_every_derivation_is_claimed() -> None:
    ids = [claim.id for claim in CLAIMS]
    assert len(ids) == len(set(ids))
    for module in {claim.derivation for claim in CLAIMS}:
        assert set(import_module(module).STEPS) == {
            claim.id for claim in CLAIMS if claim.derivation == module
        }


def test_claims_are_found_on_functions_classes_and_modules(tmp_path: Path) -> None:
    (tmp_path / "theory").mkdir()
    (tmp_path / "theory" / "test_marked.py").write_text(MARKED)
    (tmp_path / "other.py").write_text(MARKED)  # pytest would not collect it
    two, inside, other, none = (
        f"theory/test_marked.py::{name}"
        for name in ("test_two", "TestGroup::test_inside", "TestOther::test_inside", "test_none")
    )
    assert marked_tests(tmp_path) == {
        "everywhere": [two, inside, other, none],
        "A": [two, inside],
        "B": [two],
        "C": [inside],
        "D": [other],
    }


def test_what_is_found_is_what_pytest_runs(tmp_path: Path) -> None:
    (tmp_path / "test_marked.py").write_text(MARKED)
    (tmp_path / "conftest.py").write_text(
        "def pytest_collection_modifyitems(items):\n"
        "    for item in items:\n"
        "        for mark in item.iter_markers('claim'):\n"
        "            print('MARK', mark.args[0], item.nodeid.split('[')[0])\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", "--collect-only", "-c", "/dev/null", "--rootdir", "."]
    shown = subprocess.run(
        [*command, "-W", "ignore"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    collected: dict[str, set[str]] = {}
    for line in shown.stdout.splitlines():
        if line.startswith("MARK"):
            _, claim, test = line.split(" ", 2)
            collected.setdefault(claim, set()).add(test)
    assert collected == {claim: set(tests) for claim, tests in marked_tests(tmp_path).items()}


def test_every_claim_carried_by_a_test_exists_and_every_claim_is_tested() -> None:
    assert set(marked_tests(TESTS)) == {claim.id for claim in CLAIMS}


def test_committed_findings_name_claims_that_name_their_exhibit() -> None:
    results = [committed(exhibit, DATA) for exhibit in EXHIBITS]
    found = {
        (finding.statement, result.exhibit)
        for result in results
        if result is not None
        for finding in result.findings
        if finding.statement is not None
    }
    assert {"D", "G", "U"} <= {claim for claim, _ in found}  # the results were read
    assert found <= {(claim.id, exhibit) for claim in CLAIMS for exhibit in claim.exhibits}


def test_exhibits_of_claims_are_in_the_catalogue() -> None:
    assert {exhibit for claim in CLAIMS for exhibit in claim.exhibits} <= {each.name for each in EXHIBITS}


def inline(text: str) -> list[str]:
    """The formulas between `$` in Markdown text."""
    assert text.count("$") % 2 == 0, text
    return text.split("$")[1::2]


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.id)
def test_formulas_survive_markdown_and_are_known_to_katex(claim: Claim) -> None:
    assert claim.assumptions and not set("$\\") & set(claim.statement)
    assert not claim.statement.endswith(".")
    within = [formula for text in claim.assumptions for formula in inline(text)]
    for formula in [claim.latex, *within]:
        assert_renders(formula)


def test_notation_renders() -> None:
    for symbol, meaning in NOTATION.items():
        for formula in [symbol, *inline(meaning)]:
            assert_renders(formula)


def assert_renders(formula: str) -> None:
    """No escape that Markdown would eat, balanced braces and delimiters, only commands of KaTeX and MathJax."""
    assert formula == formula.strip() and formula
    assert not re.findall(r"\\[^A-Za-z ]", formula), formula
    commands = set(re.findall(r"\\([A-Za-z]+)", formula))
    assert commands <= set(COMMANDS.split()), commands
    depth = 0
    for character in formula:
        depth += {"{": 1, "}": -1}.get(character, 0)
        assert depth >= 0, formula
    assert depth == 0, formula
    assert formula.count("(") == formula.count(")") and formula.count("[") == formula.count("]"), formula
    assert formula.count(r"\lVert") == formula.count(r"\rVert")


def test_a_claim_without_derivation_has_no_steps() -> None:
    assert replace(CLAIMS[0], id="M99").steps() == ()
    assert replace(CLAIMS[0], derivation="theory.derivations.nothing").steps() == ()


def test_malformed_claims() -> None:
    with pytest.raises(InputError, match=r"claim\.statement of 'M1' is empty"):
        replace(CLAIMS[0], statement=" ")
    with pytest.raises(
        InputError, match=r"claim\.origin of M1 is 'folklore': give paper, extension, reconstruction, ours"
    ):
        replace(CLAIMS[0], origin="folklore")  # type: ignore[arg-type]
