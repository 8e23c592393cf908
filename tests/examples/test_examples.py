"""Every script of examples/ is short, runs, and prints what it promises."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted((ROOT / "examples").glob("*.py"))
PRINTED = {
    "own_budget": ["25.0% of all experts", "the first layer (32, 0, 0, 0 by layer)"],
    "own_model": ["digital by placement", "analog: loss"],
    "own_noise": ["mine, c = 2.5: loss", "a function, c = 2.5: loss", "pcm, c = 1.0: loss"],
    "own_score": ["mine: loss", "MaxNNScore: loss"],
}


def test_every_script_is_known() -> None:
    assert [script.stem for script in SCRIPTS] == sorted(PRINTED)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_scripts_are_short(script: Path) -> None:
    assert len(script.read_text(encoding="utf-8").splitlines()) < 40


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_scripts_run(script: Path, tmp_path: Path) -> None:
    """Run in a folder of its own, as a user's would be."""
    run = subprocess.run(
        [sys.executable, script],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert all(text in run.stdout for text in PRINTED[script.stem])
    assert not list(tmp_path.iterdir())
