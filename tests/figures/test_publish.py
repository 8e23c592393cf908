"""`make publish`: a full result becomes the committed one, with its pictures; nothing else does."""

import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

import figures.publish
from figures.catalogue import DATA, EXHIBITS, committed
from figures.publish import commit_of, main, publish
from theory.errors import InputError
from theory.evidence import Result

EXHIBIT = next(exhibit for exhibit in EXHIBITS if exhibit.name == "figure-tasks")  # the smallest
ROOT = Path(__file__).parents[2]


@pytest.fixture
def result() -> Result:
    found = committed(EXHIBIT, DATA)
    assert found is not None
    return found


def test_a_full_result_is_copied_and_drawn(
    result: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, data = tmp_path / "out", tmp_path / "data"
    out.mkdir()
    data.mkdir()
    (out / f"{EXHIBIT.name}.full.json").write_text(result.to_json())
    pages: list[bool] = []
    monkeypatch.setattr(figures.publish.results, "main", lambda: pages.append(True))
    main([EXHIBIT.name, "--out", str(out)], EXHIBITS, data)
    assert committed(EXHIBIT, data) == result and pages == [True]
    assert (data / f"{EXHIBIT.name}.png").read_bytes().startswith(b"\x89PNG")
    assert result.provenance["git"]["commit"] in capsys.readouterr().out


def test_only_full_results_are_published(result: Result, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"full.json is missing: run --figure tasks --preset full"):
        publish(EXHIBIT, tmp_path, tmp_path)
    (tmp_path / f"{EXHIBIT.name}.full.json").write_text(replace(result, preset="quick").to_json())
    with pytest.raises(InputError, match="preset is 'quick': full is needed"):
        publish(EXHIBIT, tmp_path, tmp_path / "data")


def test_what_no_commit_says_is_not_published(result: Result, tmp_path: Path) -> None:
    git = {"commit": "abc", "dirty": True}
    file = tmp_path / f"{EXHIBIT.name}.full.json"
    file.write_text(replace(result, provenance=result.provenance | {"git": git}).to_json())
    before = sorted(tmp_path.iterdir())
    with pytest.raises(InputError, match="commit abc with uncommitted changes"):
        publish(EXHIBIT, tmp_path, tmp_path)
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
