"""The README and RESULTS.md say what the committed results say."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from figures.catalogue import DATA, EXHIBITS, Exhibit, committed
from figures.results import counts, everything, failures, filled, overview, row
from theory.errors import InputError
from theory.evidence import Finding, Result

ROOT = Path(__file__).parents[2]
README, RESULTS = ROOT / "README.md", ROOT / "RESULTS.md"


def finding(verdict: str, claim: str = "a | b") -> Finding:
    interval = None if verdict == "inconclusive" else (0.123456, 0.5)
    return Finding(claim, "share", 0.25, interval, 7, "above 0", verdict)  # type: ignore[arg-type]


@pytest.mark.parametrize("exhibit", EXHIBITS, ids=lambda exhibit: exhibit.name)
def test_every_exhibit_has_a_committed_result_and_picture(exhibit: Exhibit) -> None:
    """Of the full preset; where only the default one has been run, the README says so."""
    result = committed(exhibit, DATA)
    assert result is not None and result.preset == "full" and result.findings
    assert (DATA / f"{exhibit.name}.png").is_file()


def test_tables_are_those_of_the_committed_results() -> None:
    """If this fails: python -m figures.results."""
    text = README.read_text(encoding="utf-8")
    assert filled(text, EXHIBITS, DATA) == text
    assert RESULTS.read_text(encoding="utf-8") == everything(EXHIBITS, DATA)


def test_every_failure_is_in_the_readme() -> None:
    lines = README.read_text(encoding="utf-8").splitlines()
    for exhibit in EXHIBITS:
        result = committed(exhibit, DATA)
        assert result is not None
        for each in result.findings:
            if each.verdict == "fails":
                assert f"| `{exhibit.option}` {row(each)}" in lines


def test_rows_and_counts() -> None:
    assert row(finding("holds")) == r"| a \| b | share: 0.25 [0.1235, 0.5] | 7 | **holds** |"
    assert row(finding("inconclusive", "c")) == "| c | share: 0.25 [unbounded] | 7 | **inconclusive** |"
    verdicts = ["fails", "holds", "inconclusive", "holds"]
    result = Result(preset="full", data={}, findings=tuple(map(finding, verdicts)))
    assert counts(result) == "2 hold, 1 fails, 1 inconclusive"
    assert (
        counts(replace(result, preset="default")) == "2 hold, 1 fails, 1 inconclusive (default preset only)"
    )


def test_a_missing_result_is_named(tmp_path: Path) -> None:
    for make in (overview, failures, everything):
        with pytest.raises(InputError, match=f"no {EXHIBITS[0].name}.json: run {EXHIBITS[0].option}"):
            make(EXHIBITS[:1], tmp_path)


def test_a_readme_without_marks_is_refused() -> None:
    with pytest.raises(InputError, match="has to hold <!-- overview -->"):
        filled("nothing", EXHIBITS, DATA)


@pytest.mark.parametrize("page", [README, RESULTS], ids=lambda page: page.name)
def test_links_and_pictures_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    targets = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text)
    assert targets
    for target in targets:
        assert (ROOT / target).is_file(), target


def test_the_code_of_the_readme_runs(capsys: pytest.CaptureFixture[str]) -> None:
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 2
    exec(compile("\n".join(blocks), "README.md", "exec"), {})  # what it says is what a user would paste
    assert "bits per byte" in capsys.readouterr().out
