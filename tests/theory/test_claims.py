"""The list of claims, and how the tests that carry their ids are found."""

import subprocess
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest

from theory.claims import CLAIMS, marked_tests
from theory.errors import InputError

TESTS = Path(__file__).parents[1]
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


def test_a_claim_without_derivation_has_no_steps() -> None:
    assert replace(CLAIMS[0], id="M99").steps() == ()
    assert replace(CLAIMS[0], derivation="theory.derivations.nothing").steps() == ()


def test_malformed_claims() -> None:
    with pytest.raises(InputError, match=r"claim\.statement of 'M1' is empty"):
        replace(CLAIMS[0], statement=" ")
    with pytest.raises(
        InputError, match=r"claim\.origin of M1 is 'folklore': give paper, reconstruction, ours"
    ):
        replace(CLAIMS[0], origin="folklore")  # type: ignore[arg-type]
