"""`make publish`: a full result becomes the committed one, with its pictures; nothing else does."""

import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import figures.publish
from figures.catalogue import DATA, EXHIBITS, committed, needed
from figures.publish import commit_of, main, publish
from figures.rules import stamps
from theory.errors import InputError
from theory.evidence import Result

EXHIBIT = next(exhibit for exhibit in EXHIBITS if exhibit.name == "figure-tasks")  # the smallest
ROOT = Path(__file__).parents[2]


RULES = """Written 2026-01-02, before the run that they judge.

## Families
| family | question |
|---|---|
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with the rules of the committed findings."""
    found = needed(EXHIBIT, DATA)
    (tmp_path / "root" / "rules").mkdir(parents=True)
    rows = "".join(f"| {family} | ? |\n" for family in {finding.family for finding in found.findings})
    (tmp_path / "root" / "rules" / f"{EXHIBIT.name}.md").write_text(RULES + rows)
    return tmp_path / "root"


@pytest.fixture
def result(root: Path) -> Result:
    """The committed result, as if these rules had judged it in no checkout."""
    found = needed(EXHIBIT, DATA)
    changes = {"git": None, "rules": stamps(EXHIBIT, root), "date": "2026-01-02T00:00:00+00:00"}
    return replace(found, provenance=found.provenance | changes)


def test_a_full_result_is_copied_and_drawn(
    result: Result,
    root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out, data = tmp_path / "out", tmp_path / "data"
    out.mkdir()
    data.mkdir()
    (out / f"{EXHIBIT.name}.full.json").write_text(result.to_json())
    pages: list[bool] = []
    monkeypatch.setattr(figures.publish.results, "main", lambda: pages.append(True))
    main([EXHIBIT.name, "--out", str(out)], EXHIBITS, data, root)
    assert committed(EXHIBIT, data) == result and pages == [True]
    assert (data / f"{EXHIBIT.name}.png").read_bytes().startswith(b"\x89PNG")
    assert "no commit says how" in capsys.readouterr().out


def test_no_path_of_one_machine_is_published(result: Result, root: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    given = "paper_repro.py --figure 3 --model /home/me/my-models --text ./prose.txt --c 2.5"
    mine = replace(result, provenance=result.provenance | {"command": given})
    (tmp_path / f"{EXHIBIT.name}.full.json").write_text(mine.to_json())
    publish(EXHIBIT, tmp_path, data, root)
    published = committed(EXHIBIT, data)
    assert published is not None
    assert published.provenance["command"] == given.replace("/home/me/my-models", "my-models")


def test_only_full_results_are_published(result: Result, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"full.json is missing: run --figure tasks --preset full"):
        publish(EXHIBIT, tmp_path, tmp_path)
    (tmp_path / f"{EXHIBIT.name}.full.json").write_text(replace(result, preset="quick").to_json())
    with pytest.raises(InputError, match="preset is 'quick': full is needed"):
        publish(EXHIBIT, tmp_path, tmp_path / "data")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"git": {"commit": "abc", "dirty": True}}, "commit abc with uncommitted changes"),
        (
            {"judged": {"git": {"commit": "abc", "dirty": True}, "rules": []}},
            "commit abc with uncommitted changes",
        ),
        ({"rules": []}, "the result names no rules: run it again"),
        ({"rules": [{"file": f"rules/{EXHIBIT.name}.md", "sha256": "0"}]}, "was changed after the run"),
        ({"date": "2026-01-01T00:00:00+00:00"}, "older than its rules"),
        ({"git": {"commit": "0" * 40, "dirty": False}}, "at commit 00000000 is not the one"),
    ],
)
def test_what_no_commit_says_or_other_rules_judged_is_not_published(
    changes: dict[str, Any], message: str, result: Result, root: Path, tmp_path: Path
) -> None:
    file = tmp_path / f"{EXHIBIT.name}.full.json"
    file.write_text(replace(result, provenance=result.provenance | changes).to_json())
    before = sorted(tmp_path.iterdir())
    with pytest.raises(InputError, match=message):
        publish(EXHIBIT, tmp_path, tmp_path, root)
    assert sorted(tmp_path.iterdir()) == before


def test_what_is_no_text_is_one_line(tmp_path: Path) -> None:
    (tmp_path / f"{EXHIBIT.name}.full.json").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match=r"figure-tasks\.full\.json: it is no text"):
        publish(EXHIBIT, tmp_path, tmp_path)


def test_the_commit_is_told(result: Result) -> None:
    for state, said in (({"commit": "abc", "dirty": False}, "from commit abc"), (None, "no commit")):
        assert said in commit_of(replace(result, provenance={"git": state}))


def test_a_wrong_name_is_one_line() -> None:
    for name, said in (("figure-9", "no such exhibit"), ("three", "give figure-NAME or table-NAME")):
        with pytest.raises(InputError, match=said):
            main([name])


def test_make_lists_its_targets_and_publish_wants_a_name() -> None:
    listed = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for target in ("figure-3", "test", "test-all", "publish", "clean"):
        assert f"make {target} " in listed
    planned = subprocess.run(
        ["make", "-n", "figure-growth"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "paper_repro.py --figure growth" in planned.stdout
