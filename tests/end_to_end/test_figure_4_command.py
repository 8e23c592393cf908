"""`paper_repro.py --figure 4 --tasks`, and 5: from questions to pictures, and what is refused."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import paper_repro
from theory.evidence import Result

PROGRAM = Path(paper_repro.__file__)


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (("--figure", "4", "--tasks", "papers"), ["task 'papers'", "give some of", "did you mean paper?"]),
        (("--figure", "4", "--tasks", "continuatoin"), ["task 'continuatoin'", "did you mean continuation?"]),
        (("--figure", "4", "--model", "tiny-olmo"), ["model tiny-olmo", "did you mean tiny-olmoe?"]),
        (("--figure", "5", "--tasks", "continuation,"), ["task ''", "give some of"]),
        (("--figure", "4", "--tasks", "continuation,mathqa"), ["task mathqa", "HF_HOME"]),
        (("--figure", "3", "--tasks", "continuation"), ["--tasks", "--figure 3 does not use it"]),
        (("--figure", "4", "--tasks", "continuation", "--from-data"), ["--from-data", "--tasks"]),
    ],
)
def test_bad_usage(
    options: tuple[str, ...], parts: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert paper_repro.main([*options, "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("paper_repro.py: error: ") and error.count("\n") == 1, error
    for part in parts:
        assert part in error
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.timeout(600)  # 4 to 6 min on two cores in use by others
def test_a_quick_run_with_tasks(tmp_path: Path) -> None:
    """The shipped DeepSeekMoE is measured in workers."""
    options = ["--figure", "5", "--preset", "quick", "--seeds", "2", "--tasks", "continuation"]
    options += ["--out", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, str(PROGRAM), *options],
        check=False,
        capture_output=True,
        text=True,
        timeout=580,
        env=os.environ | {"COLUMNS": "200"},
    )
    assert done.returncode == 0 and not done.stderr, done.stderr
    result = Result.from_json((tmp_path / "figure-5.quick.seeds-2.tasks-continuation.json").read_text())
    assert result.data["model"] == "tiny-deepseek-moe"
    digital = result.data["digital"]["tasks"]
    assert digital["each"]["continuation"]["questions"] == 40 and 0.25 < digital["mean"] < 1
