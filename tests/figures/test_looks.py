"""Every committed result is in the log of looks, once, and no row is ever lost."""

import json
import re
from pathlib import Path

import pytest

from figures.catalogue import DATA, EXHIBITS, needed, with_results
from figures.looks import completed, run, seeds
from theory.evidence import Result

LOG = Path(__file__).parents[2] / "rules" / "looks.md"
EXHIBIT = EXHIBITS[0]


def section(page: str, name: str) -> list[str]:
    return page.partition(f"\n## {name}\n")[2].partition("\n## ")[0].splitlines()


def test_the_log_has_every_committed_result() -> None:
    """If this fails: python -m figures.results."""
    page = LOG.read_text(encoding="utf-8")
    for exhibit, result in with_results(EXHIBITS, DATA):
        start = f"| {run(result)} |"
        assert sum(line.startswith(start) for line in section(page, exhibit.name)) == 1, exhibit.name
    assert completed(page, EXHIBITS, DATA) == page


def test_every_row_says_what_was_seen() -> None:
    rows = [line for line in LOG.read_text(encoding="utf-8").splitlines() if line.startswith("| 2")]
    assert len(rows) >= 26  # the runs until 2026-11-26
    for row in rows:
        date, code, _, verdicts, changed = (cell.strip() for cell in row.strip("|").split("|"))
        assert re.fullmatch(r"[-\d]{10} [:\d]{8}(, judged again [-\d]{10} [:\d]{8})?", date)
        assert re.fullmatch(r"[0-9a-f]{8}", code)
        assert re.match(r"\d+ (hold|fail|inconclusive)", verdicts) and changed


def stored(folder: Path, **provenance: object) -> None:
    content = json.loads((DATA / f"{EXHIBIT.name}.json").read_text(encoding="utf-8"))
    content["provenance"] |= provenance
    (folder / f"{EXHIBIT.name}.json").write_text(json.dumps(content), encoding="utf-8")


def test_a_new_run_is_a_new_row_in_its_own_section(tmp_path: Path) -> None:
    page = LOG.read_text(encoding="utf-8")
    git = {"commit": "0123456789", "dirty": False}
    rules = [{"file": "rules/a.md", "sha256": "0"}]
    stored(tmp_path, date="2030-01-02T03:04:05+00:00", git=git, seeds=[5, 7, 6, 9], rules=rules)
    new = completed(page, [EXHIBIT], tmp_path)
    assert completed(new, [EXHIBIT], tmp_path) == new
    added = [line for line in new.splitlines() if line not in page.splitlines()]
    assert len(added) == 1
    assert added[0].startswith("| 2030-01-02 03:04:05 | 01234567 | 5 to 7, 9 | ")
    assert added[0].endswith(" | rules: [a.md](a.md) |")
    assert section(new, EXHIBIT.name)[-1] in (added[0], "") and added[0] in section(new, EXHIBIT.name)
    kept = [line for line in new.splitlines() if line != added[0]]
    assert kept == page.splitlines()


def test_a_new_exhibit_has_a_section_of_its_own(tmp_path: Path) -> None:
    stored(tmp_path)
    new = completed("# Looks\n\n## figure-0\n\nrows\n", [EXHIBIT], tmp_path)
    assert section(new, "figure-0") == ["", "rows"]
    assert len([line for line in section(new, EXHIBIT.name) if line.startswith("| 2")]) == 1


def test_an_exhibit_that_was_not_run_was_not_looked_at(tmp_path: Path) -> None:
    assert completed("# Looks\n", [EXHIBIT], tmp_path) == "# Looks\n"


def test_a_result_that_is_judged_again_is_looked_at_again(tmp_path: Path) -> None:
    result = needed(EXHIBIT, DATA)
    old = {"date": "2026-01-02T03:04:05+00:00", "git": {"commit": "a" * 40, "dirty": False}}
    again = {"date": "2026-02-03T04:05:06+00:00", "git": {"commit": "b" * 40, "dirty": False}, "rules": []}
    first = Result(data={}, findings=result.findings, provenance=old)
    second = Result(data={}, findings=result.findings, provenance=old | {"judged": again})
    assert run(first) == "2026-01-02 03:04:05 | aaaaaaaa"
    assert run(second) == "2026-01-02 03:04:05, judged again 2026-02-03 04:05:06 | bbbbbbbb"


@pytest.mark.parametrize(
    ("found", "words"), [([], "-"), ([3], "3"), ([2, 0, 1], "0 to 2"), ([1, 3, 4, 9], "1, 3 to 4, 9")]
)
def test_seeds_in_words(found: list[int], words: str) -> None:
    assert seeds(found) == words
