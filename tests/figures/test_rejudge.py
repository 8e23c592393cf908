"""Judging a kept result again: where it writes, what it keeps, and what it refuses."""

import shutil
from pathlib import Path

import pytest

from figures import rejudge
from figures.catalogue import DATA, EXHIBITS, find, needed
from figures.rules import faults
from theory.errors import InputError

LINK_MAP = find("figure-link-map", EXHIBITS)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for exhibit in ("figure-link-map", "figure-3"):
        shutil.copy(str(DATA / f"{exhibit}.json"), tmp_path)
    monkeypatch.setattr(rejudge, "git_state", lambda: {"commit": "c", "dirty": False})
    return tmp_path


def test_the_run_keeps_its_provenance_and_the_judgement_has_its_own(folder: Path) -> None:
    before = needed(LINK_MAP, folder)
    assert rejudge.rejudge("figure-link-map", folder) == folder / "figure-link-map.json"
    after = needed(LINK_MAP, folder)
    run = {name: value for name, value in after.provenance.items() if name != "judged"}
    assert run == {name: value for name, value in before.provenance.items() if name != "judged"}
    assert after.provenance["judged"]["date"] > run["date"] and not faults(after, LINK_MAP)
    assert {finding.verdict for finding in after.findings} == {"inconclusive"}  # three seeds decide nothing
    assert {path.name for path in folder.glob("*.png")} >= {
        "figure-link-map.png",
        "figure-link-map-gains.png",
    }


def test_what_cannot_be_judged_again_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="figure-3: its result does not keep enough to be judged again"):
        rejudge.rejudge("figure-3", folder)
    monkeypatch.setattr(rejudge, "git_state", lambda: {"commit": "c", "dirty": True})
    with pytest.raises(InputError, match="the rules are not committed"):
        rejudge.rejudge("figure-link-map", folder)
