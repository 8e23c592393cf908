"""The README says what the committed results say."""

import re
from pathlib import Path

import pytest

from figures.catalogue import DATA, EXHIBITS, Exhibit, committed
from theory.evidence import Finding

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"


def row(exhibit: Exhibit, finding: Finding) -> str:
    """A finding as a row of the README's table of exhibits."""
    interval = "unbounded" if finding.interval is None else "{:.4g}, {:.4g}".format(*finding.interval)
    value = f"{finding.statistic}: {finding.estimate:.4g} [{interval}]"
    return f"| `{exhibit.option}` | {finding.claim} | {value} | {finding.n} | **{finding.verdict}** |"


@pytest.mark.parametrize("exhibit", EXHIBITS, ids=lambda exhibit: exhibit.name)
def test_every_verdict_is_in_the_readme(exhibit: Exhibit) -> None:
    result = committed(exhibit, DATA)
    assert result is not None
    shown = [line for line in README.read_text().splitlines() if line.startswith(f"| `{exhibit.option}` |")]
    assert shown == [row(exhibit, finding) for finding in result.findings]


def test_links_and_pictures_exist() -> None:
    targets = re.findall(r"\]\(([^)#]+)\)", README.read_text())
    assert targets
    for target in targets:
        assert (ROOT / target).is_file(), target


def test_the_code_of_the_readme_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    exec(compile(code, "README.md", "exec"), {})  # what it says is what a user would paste
    assert "bits per byte" in capsys.readouterr().out
