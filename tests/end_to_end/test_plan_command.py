"""`paper_repro.py plan`: three questions of a user answered from files alone, and what is refused in one line."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import paper_repro
from realmodels.load import load
from theory.placement import Placement, read_placement

PROGRAM = Path(paper_repro.__file__)


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ((), ["plan needs a budget: give one or several of digital_experts, "]),
        (("--digital-experts", "120%"), ["budget digital_experts is '120%'", "give a share"]),
        (
            ("--digital-expert", "10%"),
            ["--digital-expert: no such option", "did you mean --digital-experts?"],
        ),
        (("--energy", "little"), ["budget energy is 'little': give a number above 0"]),
        (("--throughput", "0"), ["budget throughput is 0: give a number above 0"]),
        (("--loss-increase", "x%"), ["budget loss_increase is 'x%': give nats"]),
        (
            ("--accuracy-drop", "1"),
            ["budget accuracy_drop: of which tasks?", "such as paper or continuation"],
        ),
        (("--loss-increase", "1%", "--questions", "100"), ["--questions: of which tasks? Give --tasks"]),
        (("--accuracy-drop", "1%"), ["budget accuracy_drop is '1%': give points of accuracy"]),
        (("--loss-increase", "1%", "--tasks", "papr"), ["task 'papr': no such task", "did you mean paper?"]),
        (("--loss-increase", "1%", "--score", "maxn"), ["score is 'maxn'", "did you mean maxnn?"]),
        (("--digital-experts", "3", "--c", "loud"), ["--c: 'loud' is not allowed"]),
        (("--digital-experts", "3", "--from", "missing.json"), ["plan file missing.json cannot be read"]),
        (("--digital-experts", "3", "--seeds", "1"), ["--seeds 1: an interval needs at least 2"]),
        (("--digital-experts", "3", "--hardware", "ideal"), ["hardware.c is 0", "give c above 0"]),
        (("--digital-experts", "3", "--model", "tiny-olmo"), ["did you mean tiny-olmoe?"]),
    ],
)
def test_bad_usage(
    options: tuple[str, ...], parts: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert paper_repro.main(["plan", *options, "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("paper_repro.py: error: ") and error.count("\n") == 1, error
    for part in parts:
        assert part in error
    assert not list(tmp_path.iterdir())


def run(out: Path, *options: str) -> str:
    done = subprocess.run(
        [sys.executable, str(PROGRAM), "plan", "--model", "tiny-olmoe", "--c", "1.5", *options, "--out", out],
        check=False,
        capture_output=True,
        text=True,
        timeout=550,
    )
    assert done.returncode == 0 and not done.stderr, done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(600)  # 2 min on two idle cores
def test_ten_per_cent_of_the_parameters_may_be_digital_and_which_experts_are(tmp_path: Path) -> None:
    """The chosen experts are in three files, which agree; another model's placement is refused."""
    shown = run(tmp_path, "--digital-parameters", "10%", "--seeds", "2")
    assert "predicted loss increase" in shown and "measured on held-out text" in shown
    content = json.loads((tmp_path / "plan.json").read_text())
    outcome = content["outcomes"]["plan"]
    assert 0.09 < outcome["share"] <= 0.1
    placement = Placement.load(tmp_path / "placement.json", load("tiny-olmoe"))
    saved = read_placement(tmp_path / "placement.json")
    assert saved.score == "expected damage" and saved.hardware is not None and saved.hardware.c == 1.5
    with (tmp_path / "experts.csv").open() as file:
        rows = list(csv.DictReader(file))
    chosen = [(int(row["layer"]), int(row["expert"])) for row in rows if row["digital"] == "True"]
    assert len(rows) == 128 and len(chosen) == outcome["digital_experts"] > 0
    assert chosen == [
        (layer, expert) for layer, each in enumerate(placement.digital_experts) for expert in each
    ]
    scores = {(int(row["layer"]), int(row["expert"])): float(row["score"]) for row in rows}
    assert min(scores[each] for each in chosen) >= max(
        score for each, score in scores.items() if each not in chosen
    )
    from theory.errors import InputError

    with pytest.raises(InputError, match="is of the model 'tiny-olmoe'"):
        Placement.load(tmp_path / "placement.json", load("tiny-deepseek-moe"))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_one_per_cent_of_the_loss_may_be_lost(tmp_path: Path) -> None:
    """Predicted within the budget, measured as far as the interval tells; and no smaller placement is predicted to."""
    run(tmp_path, "--loss-increase", "1%", "--seeds", "2")
    content = json.loads((tmp_path / "plan.json").read_text())
    outcome, most = content["outcomes"]["plan"], 0.01 * content["digital_loss"]
    assert 0.9 * most < outcome["predicted"] <= most and outcome["interval"][0] <= most
    smaller = [
        increase
        for share, increase in content["frontiers"]["expected damage"]["share"]
        if share < outcome["share"] - 1e-9
    ]
    assert min(smaller) > most


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_three_points_of_accuracy_may_be_lost(tmp_path: Path) -> None:
    options = ("--tasks", "continuation", "--questions", "48", "--seeds", "2")
    shown = run(tmp_path, "--accuracy-drop", "3", "--c", "2.5", *options)
    assert "points of accuracy lost on continuation: " in shown and "accuracy on tasks" in shown
    content = json.loads((tmp_path / "plan.json").read_text())
    outcome, decline = content["outcomes"]["plan"], content["decline"]
    drop = outcome["accuracy"]
    assert drop["predicted"] <= 0.03 and drop["interval"][0] <= drop["measured"] <= drop["interval"][1]
    assert decline["digital"] > 0.4 > decline["chance"] == 0.25 and decline["lost"] > 0
    smaller = [
        increase
        for share, increase in content["frontiers"]["expected damage"]["share"]
        if share < outcome["share"] - 1e-9
    ]
    assert min(smaller) > outcome["predicted"]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_what_cannot_be_had_is_said_with_what_is_nearest(tmp_path: Path) -> None:
    budgets = ("--loss-increase", "1%", "--digital-experts", "0", "--digital-parameters", "20%")
    done = subprocess.run(
        [sys.executable, str(PROGRAM), "plan", *budgets, "--c", "2.5", "--out", str(tmp_path)],
        check=False,
        capture_output=True,
        text=True,
        timeout=550,
        env=os.environ,
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "error: a loss increase of 0.0" in done.stderr and "of the parameters digital" in done.stderr
    assert "the nearest within the budget of digital_experts and digital_parameters is " in done.stderr
    assert not list(tmp_path.iterdir())
