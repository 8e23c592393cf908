"""Rules were there before the run that they judge: the committed results against rules/, and what would be caught."""

import subprocess
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from figures.catalogue import DATA, EXHIBITS, Exhibit, committed
from figures.rules import ROOT, faults, faults_of_history, files, read, stamps
from theory.errors import InputError
from theory.evidence import Result, mean_finding

BY_NAME = {exhibit.name: exhibit for exhibit in EXHIBITS}
PAGE = """# figure-4: rules

Written 2026-01-02, before the run that they judge. Nothing had been seen.

## Families
| family | question | rules |
|---|---|---|
| recovers | Does it? | 1 |
| tasks | Does it on tasks (with `--tasks`)? | 2 |

## Rules
1. | not | a family |
"""


def git(root: Path, *arguments: str) -> str:
    names = ["-c", "user.name=a", "-c", "user.email=a@b"]
    command = ["git", "-C", str(root), *names, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A repository with committed rules of figures 4 and 5."""
    (tmp_path / "rules").mkdir()
    (tmp_path / "rules" / "figure-4.md").write_text(PAGE)
    own = PAGE.replace("recovers", "recovers too").replace("01-02", "01-03")
    (tmp_path / "rules" / "figure-5.md").write_text(own)
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "rules")
    return tmp_path


def made(
    root: Path, exhibit: str = "figure-4", families: tuple[str, ...] = ("recovers",), **changes: Any
) -> Result:
    """A result of a run on the repository as it is."""
    found = tuple(
        mean_finding(f"a claim of {family}", "a share", [1, 2, 3, 4, 5.0], origin="ours", family=family)
        for family in families
    )
    own = {
        "date": "2026-01-04T05:06:07+00:00",
        "git": {"commit": git(root, "rev-parse", "HEAD"), "dirty": False},
        "rules": stamps(BY_NAME[exhibit], root),
    }
    return Result(exhibit=exhibit, preset="full", data={}, findings=found, provenance=own | changes)


def both(result: Result, root: Path) -> list[str]:
    exhibit = BY_NAME[result.exhibit]
    return faults(result, exhibit, root) + faults_of_history(result, root)


@pytest.mark.parametrize("exhibit", EXHIBITS, ids=lambda exhibit: exhibit.name)
def test_committed_results_are_judged_by_the_rules_that_are_there(exhibit: Exhibit) -> None:
    """If this fails because a rule was changed: the exhibit has to be run again."""
    result = committed(exhibit, DATA)
    if result is None:
        assert [each["file"] for each in stamps(exhibit)] == files(exhibit)  # there before the run
        return
    assert faults(result, exhibit) == []
    if git(ROOT, "rev-parse", "--is-shallow-repository") == "true":
        pytest.skip("a shallow clone has not the commits that results name")
    assert faults_of_history(result) == []


def test_what_the_rules_say(root: Path) -> None:
    rules = read(BY_NAME["figure-4"], root)
    assert rules.written == date(2026, 1, 2)
    assert rules.families == {"recovers": "Does it?", "tasks": "Does it on tasks (with `--tasks`)?"}
    assert files(BY_NAME["figure-5"]) == ["rules/figure-5.md", "rules/figure-4.md"]
    other = read(BY_NAME["figure-5"], root)
    assert (other.written, list(other.families)) == (date(2026, 1, 3), ["recovers too", "tasks"])
    again = "| tasks |", '| the same names with "on three tasks" | The same there? | 2 |\n| tasks |'
    (root / "rules" / "figure-4.md").write_text(PAGE.replace(*again))
    assert read(BY_NAME["figure-4"], root).families == {
        "recovers": "Does it?",
        "recovers on three tasks": "The same there?",
        "tasks": "Does it on tasks (with `--tasks`)?",
    }


def test_a_result_of_the_rules_has_no_faults(root: Path) -> None:
    assert both(made(root), root) == []
    assert both(made(root, families=("recovers", "tasks")), root) == []
    assert both(made(root, "figure-5", ("recovers too",)), root) == []


def test_a_rule_that_changes_after_the_run_is_caught(root: Path) -> None:
    result, other = made(root), made(root, "figure-5", ("recovers too",))
    file = root / "rules" / "figure-4.md"
    file.write_text(PAGE.replace("Does it?", "Does it not?"))
    for each in (result, other):  # 5 is judged by the rules of 4, too
        (fault,) = both(each, root)
        assert fault.startswith("rules/figure-4.md was changed after the run")
    git(root, "commit", "-qam", "changed")  # a commit makes it no better
    assert len(both(result, root)) == 1
    later = replace(result, provenance=result.provenance | {"rules": stamps(BY_NAME["figure-4"], root)})
    (fault,) = both(later, root)  # nor does a stamp that was written by hand
    assert "at commit" in fault and "is not the one that judged" in fault


def test_a_rule_that_came_after_the_run_is_caught(root: Path) -> None:
    (fault,) = both(made(root, date="2026-01-01T23:59:59+00:00"), root)
    assert fault == "the run of 2026-01-01 is older than its rules of 2026-01-02"
    commit = made(root).provenance["git"]["commit"]
    (root / "rules" / "figure-3.md").write_text(PAGE)
    git(root, "add", ".")
    git(root, "commit", "-qm", "more")
    result = made(root, "figure-3", git={"commit": commit, "dirty": False})
    (fault,) = both(result, root)
    assert fault.startswith("rules/figure-3.md at commit")


def test_families_are_those_of_the_rules(root: Path) -> None:
    assert both(made(root, families=("recovers", "control")), root) == [
        "findings are of the family 'control', which the rules lack"
    ]
    assert both(made(root, families=("tasks",)), root) == [
        "no finding is of the family 'recovers' of the rules"
    ]


def test_without_rules_or_commit_there_is_no_verdict(root: Path) -> None:
    assert both(made(root, "figure-3"), root) == [
        "rules/figure-3.md is missing: write the rules of --figure 3 before its run"
    ]
    assert both(made(root, rules=[]), root) == ["the result names no rules: run it again"]
    assert both(made(root, git=None), root) == [
        "no commit says which rules there were: run it again in a checkout"
    ]
    unknown = {"commit": "0" * 40, "dirty": False}
    assert len(both(made(root, git=unknown), root)) == 1


def test_what_is_judged_again_is_judged_by_the_rules_of_then(root: Path) -> None:
    old = {"date": "2025-01-01T00:00:00+00:00", "git": None}
    result = made(root)
    again = {name: result.provenance[name] for name in ("date", "git", "rules")}
    assert both(replace(result, provenance=old | {"judged": again}), root) == []
    assert both(replace(result, provenance=old), root)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (PAGE.replace("Written", "Noted"), "figure-3.md has no date"),
        (PAGE.replace("before the run", "after it"), "figure-3.md has no date"),
        (PAGE.replace("## Families", "## Sets"), "figure-3.md names no family"),
    ],
)
def test_unusable_rules(text: str, message: str, root: Path) -> None:
    (root / "rules" / "figure-3.md").write_text(text)
    with pytest.raises(InputError, match=message):
        read(BY_NAME["figure-3"], root)
