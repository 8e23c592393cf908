"""`paper_repro.py --claims`: the ledger is complete, and every kind of broken link is found."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

import figures.ledger
import paper_repro
from figures.catalogue import DATA, EXHIBITS, PRESETS, Exhibit
from theory.claims import CLAIMS, Claim
from theory.derivations import NotRunError, Step
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
STEPS["again"] = (*STEPS["X"], STEPS["X"][0], Step("1 = 3 - 2", "exact", lambda: True))
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
    """Folder of committed results, none yet, and of tests, two of which carry the claim."""
    monkeypatch.setenv("COLUMNS", "250")  # so that no line is wrapped
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
        assert f"\n{claim.id} ({claim.origin})\n" in f"\n{shown}"
        assert set(claim.exhibits) <= {exhibit.name for exhibit in EXHIBITS}


def test_a_complete_ledger(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ledger(folder) == 0
    shown = capsys.readouterr().out
    for part in (
        "X (ours)",
        "Numbers are numbers",
        "1 = 1",
        "exact: 1 of 1",
        "certified: 1 of 1",
        "tests: 2",
    ):
        assert part in shown
    assert "cited: 1 hypotheses checked of 1" in shown and "figure-x: no result yet" in shown
    assert "3 distinct steps in" in shown and "broken" not in shown


def test_verdicts_are_those_of_the_committed_result(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    finding = Finding(
        claim="one is one",
        origin="ours",
        statement="X",
        statistic="one",
        estimate=1.0,
        interval=(0.9, 1.1),
        n=8,
        rule="it is",
        family="numbers",
        p=1e-9,
        alone="holds",
        verdict="holds",
    )
    undecided = replace(finding, statement=None, p=1, alone="inconclusive", verdict="inconclusive")
    others = (replace(finding, statement=None), undecided)
    findings = (finding, finding, replace(finding, alone="fails", verdict="fails"), *others)
    result = Result(exhibit="figure-x", preset="full", data={}, findings=findings)
    (folder / "figure-x.json").write_text(result.to_json())
    assert ledger(folder) == 0
    assert "figure-x: 2 hold, 1 fails\n" in capsys.readouterr().out


def write(folder: Path, *statements: str | None) -> None:
    """A committed result with a finding for each of the statements."""
    finding = Finding(
        claim="one is one",
        origin="ours",
        statistic="one",
        estimate=1.0,
        interval=(0.9, 1.1),
        n=8,
        rule="it is",
        family="numbers",
        p=1e-9,
        alone="holds",
        verdict="holds",
    )
    findings = tuple(replace(finding, statement=statement) for statement in statements)
    result = Result(exhibit="figure-x", preset="full", data={}, findings=findings)
    (folder / "figure-x.json").write_text(result.to_json())


def test_everything_about_a_statement_is_shown(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ledger(folder, [replace(CLAIM, assumptions=("numbers exist", "there are two"))]) == 0
    shown = capsys.readouterr().out
    for part in (
        "numbers exist",
        "there are two",
        "1 + 1 = 2",
        "1 < 2",
        "a theorem [somebody, 1900]",
        __name__,
    ):
        assert part in shown
    assert "theory/test_x.py\n" in shown and " test_1\n" in shown and " test_2\n" in shown


def test_a_lemma_has_no_finding_of_its_own(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(folder, None)
    assert ledger(folder) == 0
    assert "verdicts: lemma: no finding of its own" in capsys.readouterr().out


def test_findings_that_name_no_statement_of_ours_are_broken(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(folder, "X", "Y")
    assert ledger(folder) == 1
    assert "broken: findings of figure-x name the claim Y, which does not exist\n" in capsys.readouterr().out


def test_findings_of_an_exhibit_that_the_claim_does_not_name_are_broken(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(folder, "X")
    other = replace(EXHIBIT, name="figure-y")
    assert ledger(folder, [replace(CLAIM, exhibits=("figure-y",))], [EXHIBIT, other]) == 1
    assert "broken: X: figure-x has findings of it, but is not among" in capsys.readouterr().out


def test_the_ledger_for_programs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(folder, "X", None)
    assert paper_repro.main(["--claims", "--json"], [EXHIBIT], folder, [CLAIM], folder) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown.keys() == {"claims", "broken", "seconds"} and shown["broken"] == []
    (claim,) = shown["claims"]
    assert claim["steps"].pop(2) == {
        "equation": "a theorem",
        "kind": "cited",
        "reference": "somebody, 1900",
        "failure": None,
        "shared_with": "",
    }
    assert [step["equation"] for step in claim.pop("steps")] == ["1 + 1 = 2", "1 < 2"]
    assert claim == {
        "id": "X",
        "statement": "Numbers are numbers",
        "origin": "ours",
        "formula": "1 = 1",
        "assumptions": [],
        "derivation": __name__,
        "tests": ["theory/test_x.py::test_1", "theory/test_x.py::test_2"],
        "verdicts": [{"exhibit": "figure-x", "committed": True, "findings": {"holds": 1}}],
    }


def test_a_broken_ledger_for_programs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    claims = [replace(CLAIM, exhibits=())]
    assert paper_repro.main(["--claims", "--json"], [EXHIBIT], folder, claims, folder) == 1
    assert json.loads(capsys.readouterr().out)["broken"] == ["X: no exhibit"]


def test_our_statements_fit_any_width_and_lose_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the derivations, which take seconds."""
    tests = Path(paper_repro.__file__).parent / "tests"
    monkeypatch.setattr(Step, "failure", lambda step: None)
    whole = figures.ledger.ledger(CLAIMS, EXHIBITS, DATA, tests)
    assert not whole.broken
    lines = whole.as_text(80).splitlines()
    assert all(len(line) <= 80 for line in lines)
    words = Counter(whole.as_text(10_000).split())
    assert Counter(whole.as_text(80).split()) == Counter(whole.as_text(50).split()) == words
    for claim in CLAIMS:
        for text in (
            claim.statement,
            claim.latex,
            *claim.assumptions,
            *(step.equation for step in claim.steps()),
        ):
            assert not Counter(text.split()) - words


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


def test_shared_steps_are_counted_once_and_say_so(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    claims = [CLAIM, replace(CLAIM, id="again")]
    ledger(folder, claims)
    shown = capsys.readouterr().out
    again = shown.partition("again (ours)")[2]
    assert again.count("1 + 1 = 2 (shared with X)") == 1 and "1 < 2 (shared with X)" in again
    assert "a theorem [somebody, 1900] (shared with X)" in again and "- 1 = 3 - 2\n" in again
    assert "exact: 2 of 2" in again  # of the claim, which counts each of its own steps
    assert "4 distinct steps in" in shown and "exact: 2 of 2, certified: 1 of 1" in shown


def test_what_cannot_be_checked_here_is_not_run_and_breaks_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing() -> bool:
        raise NotRunError("no coqc")

    steps = (Step("0 < 1", "kernel", missing, "a.v: b"), Step("0 < 2", "kernel", lambda: True, "a.v: c"))
    monkeypatch.setitem(STEPS, "X", steps)
    assert ledger(folder) == 0
    shown = capsys.readouterr().out
    assert "kernel: 1 of 2, 1 not run" in shown and "\nnot run: no coqc\n" in shown
    assert "\nkernel: on Coq's axioms ClassicalDedekindReals.sig_forall_dec, " in shown
    assert "0 < 1 [a.v: b]: not run\n" in shown and "0 < 2 [a.v: c]\n" in shown
    assert paper_repro.main(["--claims", "--json"], [EXHIBIT], folder, [CLAIM], folder) == 0
    (claim,) = json.loads(capsys.readouterr().out)["claims"]
    assert [step["failure"] for step in claim["steps"]] == ["not run: no coqc", None]


def test_a_broken_proof_breaks_the_ledger(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(STEPS, "X", (Step("0 < 0", "kernel", lambda: False, "a.v: b"),))
    assert ledger(folder) == 1
    assert "broken: X: step fails: 0 < 0 (not proved)\n" in capsys.readouterr().out


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
