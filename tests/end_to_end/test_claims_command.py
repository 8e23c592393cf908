"""`paper_repro.py --claims`: the ledger is complete, and every kind of broken link is found."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

import paper_repro
from figures.catalogue import EXHIBITS, PRESETS, Exhibit
from theory.claims import CLAIMS, Claim
from theory.derivations import Step
from theory.evidence import Finding, Result

# A ledger of one claim: its derivation is this module's.
STEPS = {
    "X": (
        Step("1 + 1 = 2", "exact", lambda: True),
        Step("1 < 2", "certified", lambda: True),
        Step("a theorem", "cited", lambda: True, "somebody, 1900"),
    ),
    "false": (Step("1 = 2", "exact", lambda: False), Step("1 = 1", "exact", lambda: True)),
    "error": (Step("1/0 = 0", "certified", lambda: 1 / 0 == 0),),
}
CLAIM = Claim(
    id="X",
    statement="Numbers are numbers",
    latex="1 = 1",
    assumptions=(),
    origin="ours",
    derivation=__name__,
    exhibits=("figure-x",),
)
EXHIBIT = Exhibit("figure-x", "numbers", "no_such", dict.fromkeys(PRESETS, "never"))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of committed results, none yet, and of tests, two of which carry the claim."""
    monkeypatch.setenv("COLUMNS", "250")  # so that no cell is wrapped
    (tmp_path / "theory").mkdir()
    marked = "@pytest.mark.claim('X')\ndef test_{}(): ...\n"
    (tmp_path / "theory" / "test_x.py").write_text(marked.format(1) + marked.format(2))
    return tmp_path


def ledger(folder: Path, claims: Sequence[Claim] = (CLAIM,), exhibits: Sequence[Exhibit] = (EXHIBIT,)) -> int:
    return paper_repro.main(["--claims"], exhibits, folder, claims, folder)


@pytest.mark.slow
def test_our_ledger_is_complete(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "250")
    assert paper_repro.main(["--claims"]) == 0
    shown = capsys.readouterr().out
    assert "broken" not in shown
    for claim in CLAIMS:
        assert f"│ {claim.id} " in shown
        assert set(claim.exhibits) <= {exhibit.name for exhibit in EXHIBITS}


def test_a_complete_ledger(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ledger(folder) == 0
    shown = capsys.readouterr().out
    for part in ("│ X ", "Numbers are numbers", "ours", "exact: 1 of 1", "certified: 1 of 1", "│ 2 "):
        assert part in shown
    assert "cited: 1 hypotheses checked of 1" in shown and "figure-x: no result yet" in shown
    assert "3 steps in" in shown and "broken" not in shown


def test_verdicts_are_those_of_the_committed_result(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    finding = Finding("one is one", "one", 1.0, (0.9, 1.1), 2, "it is", "holds")
    findings = (finding, finding, replace(finding, verdict="fails"))
    result = Result(exhibit="figure-x", preset="full", data={}, findings=findings)
    (folder / "figure-x.json").write_text(result.to_json())
    assert ledger(folder) == 0
    assert "figure-x: 1 fails, 2 holds" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("claim", "broken"),
    [
        (replace(CLAIM, derivation="theory.derivations.nothing"), "X: no derivation"),
        (replace(CLAIM, derivation="theory.derivations.moments"), "X: no derivation"),
        (replace(CLAIM, exhibits=()), "X: no exhibit"),
        (replace(CLAIM, exhibits=("figure-x", "figure-y")), "X: figure-y is not in the catalogue"),
        (replace(CLAIM, id="false"), "false: step fails: 1 = 2 (not proved)"),
        (replace(CLAIM, id="error"), "error: step fails: 1/0 = 0 (ZeroDivisionError: division by zero)"),
        (replace(CLAIM, id="error"), "error: no test"),
        (replace(CLAIM, id="error"), "tests name the claim X, which does not exist"),
    ],
)
def test_broken_links(folder: Path, claim: Claim, broken: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert ledger(folder, [claim]) == 1
    assert f"broken: {broken}\n" in capsys.readouterr().out


def test_steps_that_fail_are_counted(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ledger(folder, [CLAIM, replace(CLAIM, id="false")]) == 1
    shown = capsys.readouterr().out
    assert "exact: 1 of 2" in shown and "exact: 2 of 3" in shown  # of the claim, and of all


def test_an_installed_copy_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert paper_repro.main(["--claims"], tests=tmp_path / "tests") == 2
    (tmp_path / "tests").mkdir()  # a folder of that name beside an installed copy is someone else's
    assert paper_repro.main(["--claims"], tests=tmp_path / "tests") == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 2
    assert errors[0] == errors[1] and "--claims: an installed copy has no tests" in errors[0]


def test_it_stands_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert paper_repro.main(["--claims", "--list"]) == 2
    assert "not allowed with argument" in capsys.readouterr().err
