"""The command line on a small real exhibit: kills, full disks, workers, redrawing, bad input."""

import base64
import csv
import importlib.util
import io
import json
import os
import random
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import figures.run
import paper_repro
from figures.catalogue import DATA, EXHIBITS, with_results
from figures.files import SHARED_MEMORY
from figures.output import label
from figures.provenance import seeds
from figures.run import OF_THE_TRACKER, code_hash
from paper_repro import INTERRUPTS
from theory.evidence import Result

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import toy_exhibit  # noqa: E402  (found through the path above, as in the worker processes)

START = "import sys, paper_repro, toy_exhibit; sys.exit(paper_repro.main(exhibits=toy_exhibit.EXHIBITS))"
PI = ("--figure", "pi")


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the units of this test note that they are executed."""
    monkeypatch.setenv("COLUMNS", "200")  # so that no table is wrapped
    monkeypatch.setenv("TOY_LOG", str(tmp_path / "log"))
    return tmp_path / "log"


def start(
    out: Path, *options: str, limit: Callable[[], None] | None = None, **environment: str
) -> subprocess.Popen[str]:
    """The toy exhibit in a process (and process group) of its own, started from the root folder."""
    paths = os.pathsep.join([str(HERE), str(HERE.parents[1])])
    strict = ["-W", "error", "-W", OF_THE_TRACKER]
    return subprocess.Popen(
        [sys.executable, *strict, "-c", START, *PI, "--preset", "quick", "--out", str(out), *options],
        env=os.environ | {"PYTHONPATH": paths} | environment,
        cwd="/",
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=limit,  # noqa: PLW1509 (this process has no other threads)
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str], status: int = 0) -> str:
    _, errors = process.communicate(timeout=120)
    assert process.returncode == status, errors
    return errors


def stored(out: Path) -> list[int]:
    """The seeds of the finished units."""
    return sorted(json.loads(file.read_text())["record"]["seed"] for file in (out / ".cache").rglob("*.json"))


def executed(log: Path) -> list[int]:
    return [int(line) for line in log.read_text().split()] if log.exists() else []


def result(out: Path, name: str = "quick") -> Result:
    return Result.from_json((out / f"figure-pi.{name}.json").read_text())


def expect_one_line(errors: str, *parts: str) -> None:
    assert errors.startswith("paper_repro.py: error: "), errors
    assert errors.count("\n") == 1 and errors.endswith("\n"), errors
    for part in parts:
        assert part in errors


def run(out: Path, *options: str, exhibits: Sequence[Any] = toy_exhibit.EXHIBITS, **settings: Any) -> int:
    return paper_repro.main([*PI, "--preset", "quick", "--out", str(out), *options], exhibits, **settings)


def test_a_run_writes_everything_and_a_second_one_computes_nothing(
    tmp_path: Path, log: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, "--workers", "1", "--format", "png,pdf,svg") == 0
    shown = capsys.readouterr().out
    assert "holds" in shown and "pi is below 4 [ours]" in shown and "Family: pi" in shown
    assert "quick preset: decides nothing; verdicts need --preset full" in shown
    assert not {"PYTHONSAFEPATH", "PYTHONWARNINGS"} & os.environ.keys()  # workers alone have them
    first = result(tmp_path)
    assert executed(log) == stored(tmp_path) == list(range(6))  # units that two arms share are computed once
    assert (first.exhibit, first.preset) == ("figure-pi", "quick")
    assert first.provenance["units"] == {"computed": 6, "from_cache": 0}
    assert first.provenance["seeds"] == list(range(6))
    assert first.provenance["rules"] == []  # it has none
    assert first.provenance["shared"] == {"throws": 1000, "text": "none"}
    assert first.provenance["command"].startswith("paper_repro.py --figure pi --preset quick")
    assert str(tmp_path) not in first.to_json()
    assert first.provenance["versions"]["torch"] == torch.__version__
    with (tmp_path / "figure-pi.quick.csv").open() as rows:
        assert [float(row["pi"]) for row in csv.DictReader(rows)] == first.data["values"]
    assert (tmp_path / "figure-pi.quick.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "figure-pi.quick.pdf").read_bytes().startswith(b"%PDF")
    assert b"<svg" in (tmp_path / "figure-pi.quick.svg").read_bytes()

    (tmp_path / "link").hardlink_to(tmp_path / "figure-pi.quick.json")
    assert run(tmp_path, "--workers", "1") == 0
    assert executed(log) == list(range(6))
    # The old file was replaced as a whole, never written into.
    assert Result.from_json((tmp_path / "link").read_text()) == first
    again = result(tmp_path)
    assert again.provenance["units"] == {"computed": 0, "from_cache": 6}
    assert (again.data, again.findings) == (first.data, first.findings)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".") and path.name != ".cache"]


@pytest.mark.usefixtures("log")
def test_a_run_is_joined_with_the_committed_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By an experiment that can: it gets the whole result of the run, and the committed one or None."""

    def joined(found: Result, earlier: Result | None) -> Result:
        return replace(found, data=found.data | {"earlier": earlier and earlier.preset, "run": found.preset})

    monkeypatch.setattr(toy_exhibit, "joined", joined, raising=False)
    for expected in (None, "full"):
        assert run(tmp_path, "--workers", "1", data=tmp_path) == 0
        assert (result(tmp_path).data["earlier"], result(tmp_path).data["run"]) == (expected, "quick")
        (tmp_path / "figure-pi.json").write_text(replace(result(tmp_path), preset="full").to_json())


def test_damaged_records_are_computed_again(
    tmp_path: Path, log: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, "--workers", "1") == 0
    first = result(tmp_path)
    files = sorted((tmp_path / ".cache").rglob("*.json"))
    files[0].write_bytes(files[0].read_bytes()[:-20])
    files[1].write_text(files[1].read_text().replace('"pi": 3', '"pi": 2'))
    files[2].write_bytes(b"\x80\x04.")
    files[3].unlink()
    (tmp_path / ".cache" / "joblib").mkdir()
    assert run(tmp_path, "--workers", "1") == 0
    shown = capsys.readouterr().out
    assert "figure-pi: 3 damaged records were computed again" in shown
    assert "kept by an earlier version, not read" in shown
    again = result(tmp_path)
    assert (again.data, again.provenance["units"]) == (first.data, {"computed": 4, "from_cache": 2})


def test_two_runs_share_their_units(tmp_path: Path, log: Path) -> None:
    options = ("--workers", "2", "--seeds", "12")
    together = [start(tmp_path, *options, TOY_PAUSE="0.2") for _ in range(2)]
    for process in together:
        finish(process)
    assert sorted(executed(log)) == list(range(12))
    assert not list((tmp_path / ".cache").rglob("*.lock"))


def test_forgetting(tmp_path: Path, log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, "--workers", "1") == 0
    capsys.readouterr()
    assert run(tmp_path, "--forget") == 0
    assert capsys.readouterr().out == "--figure pi: 6 finished units deleted, 0.0 MB\n"
    assert stored(tmp_path) == [] and (tmp_path / "figure-pi.quick.json").is_file()
    assert run(tmp_path, "--forget", "--report") == 2
    expect_one_line(capsys.readouterr().err, "--forget deletes and runs nothing")


def test_another_config_or_other_source_is_computed_anew(
    tmp_path: Path, log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(tmp_path, "--workers", "1") == 0
    assert run(tmp_path, "--workers", "1", "--text", "other") == 0
    assert len(executed(log)) == 12
    monkeypatch.setattr(figures.run, "code_hash", lambda module: "edited")
    assert run(tmp_path, "--workers", "1") == 0
    assert len(executed(log)) == 18
    monkeypatch.setattr(figures.run, "processor", lambda device: "another")
    assert run(tmp_path, "--workers", "1") == 0
    assert len(executed(log)) == 24


def test_the_code_hash_follows_the_sources_that_compute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "some_experiments" / "inner"
    package.mkdir(parents=True)
    for folder in (package.parent, package):
        (folder / "__init__.py").write_text("")
    (package / "one.py").write_text("x = 1\n")
    monkeypatch.syspath_prepend(tmp_path)

    def of_a_new_process() -> str:
        figures.run._package_hash.cache_clear()
        return code_hash("some_experiments.inner.one")

    hashes = [code_hash("toy_exhibit"), of_a_new_process()]
    (package / "one.py").write_text("x = 2\n")
    assert code_hash("some_experiments.inner.one") == hashes[1]  # what this process has imported
    hashes.append(of_a_new_process())
    (package / "one.py").rename(package / "two.py")
    hashes.append(of_a_new_process())
    assert len(set(hashes)) == 4
    assert hashes[3] == of_a_new_process()


def test_workers_do_not_change_the_numbers(tmp_path: Path, log: Path) -> None:
    for workers in ("1", "2"):
        finish(start(tmp_path / workers, "--workers", workers))
    assert result(tmp_path / "1").data == result(tmp_path / "2").data
    assert sorted(executed(log)) == sorted([*range(6), *range(6)])


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_killed_run_continues_and_repeats_nothing(tmp_path: Path, log: Path, workers: str) -> None:
    kills = random.Random(int(workers))
    options = ("--workers", workers, "--seeds", "30")  # more units than are finished before the last kill
    for _ in range(4):
        before, noted = stored(tmp_path), len(executed(log))
        process = start(tmp_path, *options, TOY_PAUSE="0.3")
        deadline = time.monotonic() + 60
        while len(executed(log)) == noted and time.monotonic() < deadline:  # until it computes
            time.sleep(0.01)
        time.sleep(kills.uniform(0, 0.6))
        process.kill()
        process.communicate(timeout=30)  # until its workers, which hold its output open, are gone as well
        assert process.returncode == -signal.SIGKILL
        assert not set(executed(log)[noted:]) & set(before)
        assert set(before) <= set(stored(tmp_path))
    before, noted = stored(tmp_path), len(executed(log))
    finish(start(tmp_path, *options))
    assert sorted([*executed(log)[noted:], *before]) == list(range(30))
    assert result(tmp_path, "quick.seeds-30").provenance["units"] == {
        "computed": 30 - len(before),
        "from_cache": len(before),
    }

    assert run(tmp_path / "undisturbed", *options) == 0
    continued, undisturbed = (result(out, "quick.seeds-30") for out in (tmp_path, tmp_path / "undisturbed"))
    assert continued.data == undisturbed.data
    assert continued.findings == undisturbed.findings


@pytest.mark.parametrize("workers", ["1", "2"])
def test_ctrl_c_keeps_finished_units(tmp_path: Path, log: Path, workers: str) -> None:
    process = start(tmp_path, "--workers", workers, "--seeds", "40", TOY_PAUSE="0.2")
    deadline = time.monotonic() + 60
    while not (tmp_path / ".cache").is_dir() or not stored(tmp_path):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)  # as the terminal does: to the workers as well
    expect_one_line(finish(process, 130), "interrupted", "kept")
    assert 0 < len(stored(tmp_path)) < 40


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("workers", ["1", "2"])
def test_other_signals_are_as_ctrl_c(tmp_path: Path, log: Path, workers: str, number: signal.Signals) -> None:
    process = start(tmp_path, "--workers", workers, "--seeds", "40", TOY_PAUSE="0.2")
    deadline = time.monotonic() + 60
    while not stored(tmp_path):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(process.pid, number)
    expect_one_line(finish(process, 130), "interrupted", "kept")
    assert 0 < len(stored(tmp_path)) < 40


@pytest.mark.skipif(not SHARED_MEMORY.is_dir(), reason="this machine has no /dev/shm")
def test_the_next_run_removes_what_a_killed_one_left_in_shared_memory(
    tmp_path: Path, log: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Killed with all its processes, the one that removes semaphores among them."""
    process = start(tmp_path, "--workers", "2", "--seeds", "40", TOY_PAUSE="0.2")
    deadline = time.monotonic() + 60
    while not stored(tmp_path):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=30)

    def left() -> list[Path]:
        return [path for path in SHARED_MEMORY.iterdir() if f"-{process.pid}-" in path.name.replace("_", "-")]

    assert left()
    assert run(tmp_path, "--workers", "1") == 0
    assert not left()


@pytest.mark.parametrize("number", INTERRUPTS)
def test_a_signal_while_it_is_imported(number: signal.Signals) -> None:
    for after in (0.15, 0.4, 1.0):
        process = subprocess.Popen(
            [sys.executable, "paper_repro.py", "--figure", "3", "--preset", "quick"],
            cwd=HERE.parents[1],
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        time.sleep(after)
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
        # Before its first line runs, Python itself answers.
        assert process.returncode in (130, -number)
        if process.returncode == 130:
            expect_one_line(errors, "interrupted")


@pytest.mark.parametrize("after", [0.0, 0.3])
def test_workers_end_with_their_parent(tmp_path: Path, log: Path, after: float) -> None:
    """Also while they are still importing; they hold the output open until they are gone."""
    process = start(tmp_path, "--workers", "2", TOY_PAUSE="60")
    deadline = time.monotonic() + 60
    while (
        b"LokyProcess"
        not in subprocess.run(
            ["ps", "--no-headers", "-o", "args", "-s", str(process.pid)], capture_output=True, check=False
        ).stdout
    ):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(after)
    process.kill()
    process.communicate(timeout=5)


@pytest.mark.parametrize("kills", [1, 2])
def test_a_killed_worker(tmp_path: Path, log: Path, kills: int) -> None:
    """Its unit is tried once more; then it is named."""
    process = start(tmp_path, "--workers", "2", TOY_KILLED="3", TOY_KILLS=str(kills))
    errors = finish(process, 0 if kills == 1 else 2)
    assert executed(log).count(3) == 2
    if kills == 1:
        assert stored(tmp_path) == list(range(6))
    else:
        expect_one_line(errors, "the process of the unit seed 3 was killed twice", "use fewer --workers")
        assert stored(tmp_path) == [0, 1, 2, 4, 5]


def test_nothing_in_the_current_folder_is_executed(tmp_path: Path, log: Path) -> None:
    for name in ("socket", "json", "numpy", "toy"):
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'w')")
    done = subprocess.run(
        [
            sys.executable,
            str(HERE.parents[1] / "paper_repro.py"),
            "--table",
            "2",
            "--preset",
            "quick",
            "--workers",
            "2",
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("lost", ["closed", "full", "gone"])
def test_results_are_written_whatever_becomes_of_the_output(tmp_path: Path, log: Path, lost: str) -> None:
    redirect = {"closed": ">&-", "full": ">/dev/full", "gone": "| true"}[lost]
    options = " ".join([*PI, "--preset quick --workers 1 --out", f"'{tmp_path}'"])
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; '{sys.executable}' -c '{START}' {options} {redirect}"],
        env=os.environ
        | {"PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parents[1])]), "TOY_PAUSE": "0.1"},
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert len(result(tmp_path).data["values"]) == 8


def limit_files(size: int) -> Callable[[], None]:
    """Files of at most `size` bytes: the kernel refuses to write on, as it does when a disk is full."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_full_disk_stops_the_run_and_keeps_finished_units(tmp_path: Path, log: Path, workers: str) -> None:
    process = start(tmp_path, "--workers", workers, limit=limit_files(100_000), TOY_LARGE="4")
    expect_one_line(finish(process, 2), "free space", "kept")
    kept = stored(tmp_path)
    assert kept == list(range(4)) or (workers == "2" and kept and 4 not in kept)
    noted = len(executed(log))
    finish(start(tmp_path, "--workers", workers))
    assert sorted([*executed(log)[noted:], *kept]) == list(range(6))


def test_a_disk_that_is_full_when_the_outputs_are_written(tmp_path: Path, log: Path) -> None:
    out = tmp_path / "out"
    finish(start(out))
    before = {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}
    expect_one_line(finish(start(out, limit=limit_files(5_000)), 2), "free space")
    after = {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}
    assert before.keys() == after.keys()  # no partial file is left
    assert before["figure-pi.quick.png"] == after["figure-pi.quick.png"]


def test_bad_input_found_by_a_worker(tmp_path: Path, log: Path) -> None:
    process = start(tmp_path, "--workers", "2", TOY_BAD="3")
    expect_one_line(finish(process, 2), "seed 3: bad input; give a good one")
    assert 3 not in stored(tmp_path) and stored(tmp_path)


def test_an_unexpected_exception_keeps_its_traceback(tmp_path: Path, log: Path) -> None:
    errors = finish(start(tmp_path, TOY_PAUSE="not a number"), 1)
    assert "Traceback" in errors and "could not convert string to float" in errors


def test_redrawing_from_committed_data(tmp_path: Path, log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path / "run") == 0
    data = tmp_path / "data"
    data.mkdir()
    options = [*PI, "--from-data", "--out", str(tmp_path / "redrawn")]
    assert paper_repro.main(options, toy_exhibit.EXHIBITS, data) == 2
    expect_one_line(capsys.readouterr().err, "--figure pi", "--from-data")
    (data / "figure-pi.json").write_bytes((tmp_path / "run" / "figure-pi.quick.json").read_bytes())
    noted = len(executed(log))
    assert paper_repro.main(options, toy_exhibit.EXHIBITS, data) == 0
    assert len(executed(log)) == noted
    for suffix in ("json", "csv", "png", "pdf"):
        redrawn = tmp_path / "redrawn" / f"figure-pi.committed.{suffix}"
        assert redrawn.read_bytes() == (tmp_path / "run" / f"figure-pi.quick.{suffix}").read_bytes()

    assert paper_repro.main(["--list"], toy_exhibit.EXHIBITS, data) == 0
    shown = capsys.readouterr().out
    assert "1 holds" in shown and "no result yet" in shown and "--table lost" in shown

    tampered = json.loads((data / "figure-pi.json").read_text())
    tampered["findings"][0]["verdict"] = "proved"
    (data / "figure-pi.json").write_text(json.dumps(tampered))
    assert paper_repro.main(options, toy_exhibit.EXHIBITS, data) == 2
    expect_one_line(capsys.readouterr().err, "figure-pi.json", "verdict", "proved")


def test_all_exhibits_and_a_report(tmp_path: Path, log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pi, lost = toy_exhibit.EXHIBITS
    options = ["--all", "--preset", "quick", "--workers", "1", "--out", str(tmp_path), "--report"]
    # Its grid knows no device: --all gives one to those exhibits alone that do.
    assert paper_repro.main([*options, "--device", "cpu", "--format", "svg"], [pi]) == 0
    assert executed(log) == list(range(6))
    assert str(tmp_path / "report.html") in capsys.readouterr().out
    assert (tmp_path / "figure-pi.quick.svg").is_file() and not list(tmp_path.glob("*.png"))
    first = (tmp_path / "report.html").read_text()
    assert "1 holds" in first and "95 % interval below 4" in first and "no result" not in first

    data = tmp_path / "data"
    data.mkdir()
    (data / "figure-pi.json").write_bytes((tmp_path / "figure-pi.quick.json").read_bytes())
    options = ["--all", "--from-data", "--out", str(tmp_path / "redrawn"), "--report"]
    assert paper_repro.main(options, [lost, pi], data) == 0  # whatever becomes of the first
    assert "--table lost is left out: no result yet; run" in capsys.readouterr().out
    report = (tmp_path / "redrawn" / "report.html").read_text()
    assert "left out: no result yet; run" in report
    pictures = [re.findall(r'src="(data:image/webp;base64,[^"]+)"', each) for each in (report, first)]
    assert pictures[0] == pictures[1] and len(pictures[0]) == 1
    shown_there = Image.open(io.BytesIO(base64.b64decode(pictures[0][0].partition(",")[2])))
    written = Image.open(tmp_path / "redrawn" / "figure-pi.committed.png")
    assert shown_there.convert("RGB").tobytes() == written.convert("RGB").tobytes()
    assert len(executed(log)) == 6


def test_all_leaves_out_what_needs_a_model_that_is_not_there(
    tmp_path: Path, log: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked for alone, it says so in an error."""
    pi = toy_exhibit.EXHIBITS[0]
    monkeypatch.setattr(
        importlib.import_module("realmodels.load"), "MADE", {"smol-moe": tmp_path / "smol-moe"}
    )
    needy = replace(pi, name="figure-needy", like=pi.name, needs="smol-moe")
    options = ["--all", "--preset", "quick", "--workers", "1", "--out", str(tmp_path / "out")]
    assert paper_repro.main(options, [needy, pi]) == 0
    shown = capsys.readouterr()
    assert (
        "--figure needy is left out: it needs the model smol-moe" in shown.out
        and "make smol-moe" in shown.out
    )
    assert not shown.err and executed(log) == list(range(6))
    (tmp_path / "smol-moe").mkdir()
    assert paper_repro.main(options, [needy]) == 0
    assert "left out" not in capsys.readouterr().out


def test_a_report_of_one_exhibit(tmp_path: Path, log: Path) -> None:
    assert run(tmp_path) == 0
    assert not (tmp_path / "report.html").exists()
    assert run(tmp_path, "--report") == 0
    assert "pi by throwing darts" in (tmp_path / "report.html").read_text()


def test_other_seeds_are_other_draws(tmp_path: Path, log: Path) -> None:
    """--all gives the first seed to every exhibit that knows it."""
    one = ("--workers", "1")  # other workers may have the log of another test
    assert run(tmp_path, "--first-seed", "5000", *one) == 0
    assert result(tmp_path, "quick.first-seed-5000").provenance["seeds"] == list(range(5000, 5006))
    options = ["--all", "--first-seed", "7000", "--preset", "quick", "--out", str(tmp_path), *one]
    assert paper_repro.main(options, toy_exhibit.EXHIBITS[:1]) == 0
    assert result(tmp_path, "quick.first-seed-7000").provenance["seeds"] == list(range(7000, 7006))
    assert sorted(executed(log)) == [*range(5000, 5006), *range(7000, 7006)]


@pytest.mark.parametrize(
    ("configs", "found"),
    [
        ([{"seed": 2}, {"seed": 1}, {"seed": 2}], [1, 2]),
        ([{"seeds": (4, 3)}, {"seeds": [3, 5]}], [3, 4, 5]),
        ([{"seed": 1, "seeds": 8}, {"draws": 3}], [1]),  # a number of seeds is none
    ],
)
def test_seeds_of_the_provenance(configs: list[dict[str, Any]], found: list[int]) -> None:
    assert seeds(configs) == found


@pytest.mark.parametrize("preset", ["quick", "default"])
def test_a_picture_of_the_quick_preset_says_that_it_decides_nothing(
    preset: str, tmp_path: Path, log: Path
) -> None:
    options = [*PI, "--preset", preset, "--format", "svg", "--out", str(tmp_path)]
    assert paper_repro.main(options, toy_exhibit.EXHIBITS) == 0
    picture = (tmp_path / f"figure-pi.{preset}.svg").read_text()
    assert ("quick preset: decides nothing" in picture) == (preset == "quick")


def test_results_of_other_options_stand_beside_each_other(tmp_path: Path, log: Path) -> None:
    assert run(tmp_path) == 0
    first = {path: path.read_bytes() for path in tmp_path.glob("figure-pi.*")}
    assert run(tmp_path, "--seeds", "3") == 0
    assert run(tmp_path, "--seeds", "3", "--text", "a/b") == 0
    assert run(tmp_path, "--seeds", "3", "--text", "c/b") == 0
    assert paper_repro.main([*PI, "--preset", "full", "--out", str(tmp_path)], toy_exhibit.EXHIBITS) == 0
    names = sorted(path.name for path in tmp_path.glob("figure-pi.*.json"))
    assert len(names) == 5 and "figure-pi.full.json" in names and "figure-pi.quick.seeds-3.json" in names
    assert len([name for name in names if name.startswith("figure-pi.quick.text-b-")]) == 2
    assert all(path.read_bytes() == content for path, content in first.items())


@given(
    options=st.lists(
        st.fixed_dictionaries(
            {},
            optional={
                "model": st.text(),
                "text": st.text(),
                "seeds": st.integers(1),
                "first_seed": st.integers(0),
                "tasks": st.text(),
                "calibration": st.text(),
                "hardware": st.dictionaries(st.sampled_from(["c", "kappa"]), st.none() | st.floats(0, 9)),
            },
        ),
        min_size=2,
        max_size=2,
        unique_by=repr,
    )
)
def test_labels_are_file_names_and_differ(options: list[dict[str, Any]]) -> None:
    labels = [label("quick", each) for each in options]
    assert labels[0] != labels[1]
    for each in labels:
        assert re.fullmatch(r"[\w.-]+", each, re.ASCII) and len(each) < 200


def test_a_report_prefers_what_was_computed_here(tmp_path: Path, log: Path) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    data.mkdir()
    assert run(tmp_path / "first") == 0
    (data / "figure-pi.json").write_bytes((tmp_path / "first" / "figure-pi.quick.json").read_bytes())
    options = [*PI, "--from-data", "--report", "--out", str(out)]
    assert paper_repro.main(options, toy_exhibit.EXHIBITS, data) == 0
    assert "The committed result" in (out / "report.html").read_text()
    assert run(out, "--seeds", "3") == 0  # another experiment than the plain one
    assert paper_repro.main(options, toy_exhibit.EXHIBITS, data) == 0
    assert "The committed result" in (out / "report.html").read_text()
    assert run(out) == 0
    assert paper_repro.main(options, toy_exhibit.EXHIBITS, data) == 0
    page = (out / "report.html").read_text()
    assert "The committed result" not in page and "Computed here: figure-pi.quick.json" in page


def test_a_report_of_everything_takes_one_line_an_exhibit(
    tmp_path: Path, log: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--all", "--preset", "quick", "--workers", "1", "--out", str(tmp_path), "--report"]
    assert paper_repro.main(options, toy_exhibit.EXHIBITS[:1]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "--figure pi: 1 holds (quick preset: decides nothing); figure-pi.quick.json",
        str(tmp_path / "report.html"),
    ]


def test_parts_are_further_pictures(tmp_path: Path, log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        toy_exhibit, "PARTS", {"again": (toy_exhibit.draw, "The same. Once more.")}, raising=False
    )
    assert run(tmp_path, "--report", "--format", "svg") == 0
    for name in ("figure-pi.quick.svg", "figure-pi-again.quick.svg"):
        assert b"<svg" in (tmp_path / name).read_bytes()
    assert "The same. Once more." in (tmp_path / "report.html").read_text()


def test_pictures_are_always_the_same_bytes(tmp_path: Path, log: Path) -> None:
    for out in ("one", "two"):
        assert run(tmp_path / out, "--format", "png,pdf,svg") == 0
    for name in ("png", "pdf", "svg"):
        one, two = ((tmp_path / out / f"figure-pi.quick.{name}").read_bytes() for out in ("one", "two"))
        assert one == two


def test_the_list_for_programs(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert paper_repro.main(["--list", "--json"], toy_exhibit.EXHIBITS, tmp_path) == 0
    shown = json.loads(capsys.readouterr().out)
    times = dict.fromkeys(("quick", "default", "full"), "seconds")
    first = {"exhibit": "figure-pi", "option": "--figure pi", "title": "pi by throwing darts", "times": times}
    assert shown["exhibits"][0] == first | {"preset": None, "findings": None}
    assert paper_repro.main(["--list", "--json"]) == 0
    ours = json.loads(capsys.readouterr().out)["exhibits"]
    assert [each["exhibit"] for each in ours] == [exhibit.name for exhibit in EXHIBITS]
    run = {exhibit.name for exhibit, _ in with_results(EXHIBITS, DATA)}
    for each in ours:
        assert (each["preset"], bool(each["findings"])) == (
            ("full", True) if each["exhibit"] in run else (None, False)
        )


@pytest.mark.parametrize("columns", [None, "50", "120"])
def test_the_list_fits_the_terminal_and_loses_nothing(
    columns: str | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if columns is None:
        monkeypatch.delenv("COLUMNS", raising=False)
    else:
        monkeypatch.setenv("COLUMNS", columns)
    assert paper_repro.main(["--list"]) == 0
    shown = capsys.readouterr().out
    assert all(len(line) <= int(columns or 80) for line in shown.splitlines())
    for exhibit in EXHIBITS:
        assert " ".join(exhibit.title.split()) in " ".join(shown.split())


@pytest.mark.parametrize("name", ["theory", "realmodels"])
def test_somebody_elses_package(name: str, tmp_path: Path) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").write_text("")
    code = f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(HERE.parents[1])!r}]; import paper_repro"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode == 2
    expect_one_line(done.stderr, f"`import {name}` finds {tmp_path / name}", "PYTHONPATH", "uninstall")


@pytest.mark.parametrize("layer", ["realmodels", "synthetic"])
def test_another_theory_is_told_when_a_layer_is_imported(layer: str, tmp_path: Path) -> None:
    (tmp_path / "theory").mkdir()
    (tmp_path / "theory" / "__init__.py").write_text("")
    done = subprocess.run(
        [sys.executable, "-c", f"import {layer}"],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(HERE.parents[1])])},
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert (
        last.startswith(f"ImportError: `import theory` finds {tmp_path / 'theory'}") and "PYTHONPATH" in last
    )


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        paper_repro.main(["--version"])
    assert end.value.code == 0 and re.fullmatch(r"paper-repro \d+\.\d+\S*\n", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (["--figure", "99"], ["--figure 99", "--figure pi", "--table lost"]),
        (["--table", "pi"], ["--table pi"]),
        (["--figure", ""], ["--figure"]),
        ([], ["--figure", "--table", "--all", "--list"]),
        (["--all", "--figure", "pi"], ["not allowed with"]),
        (["--all", "--text", "x"], ["--all", "--text"]),
        (["--all", "--seeds", "3"], ["--all", "--seeds"]),
        ([*PI, "--first-seed", "-1"], ["--first-seed", "-1", "at least 0"]),
        ([*PI, "--first-seed", "x"], ["--first-seed", "x", "at least 0"]),
        ([*PI, "--from-data", "--first-seed", "3"], ["leave out --first-seed"]),
        (["--all", "--device", "auto"], ["--all", "--device auto", "cuda"]),
        (["--all", "--from-data", "--preset", "quick"], ["--from-data", "--preset"]),
        (["--figure", "pi", "--table", "lost"], ["not allowed with"]),
        ([*PI, "--workers", "0"], ["--workers", "0", "at least 1"]),
        ([*PI, "--workers", "two"], ["--workers", "two", "at least 1"]),
        ([*PI, "--seeds", "0"], ["--seeds", "0", "at least 1"]),
        ([*PI, "--seeds", "-1"], ["--seeds", "-1", "at least 1"]),
        ([*PI, "--preset", "huge"], ["--preset", "huge", "quick"]),
        ([*PI, "--format", "png,gif"], ["--format", "gif", "png,pdf,svg"]),
        ([*PI, "--format", ""], ["--format", "png,pdf,svg"]),
        ([*PI, "--model", "x"], ["--model", "--figure pi does not use it"]),
        ([*PI, "--text", ""], ["--text", "give a text"]),
        ([*PI, "--from-data", "--seeds", "3"], ["--from-data", "--seeds"]),
        ([*PI, "--cluster", "nonsense"], ["--cluster", "nonsense", "HOST:PORT"]),
        ([*PI, "--calibration", "x"], ["--calibration: --figure pi does not use it"]),
        ([*PI, "--c", "2"], ["--hardware, or a field of it: --figure pi does not use it; leave it out"]),
        ([*PI, "--c", "-2"], ["--c: '-2' is not allowed", "a number from 0 to 100000"]),
        ([*PI, "--bits", "none", "--dac-bits", "8"], ["--bits and --dac-bits both give dac_bits"]),
        ([*PI, "--adc-bits", "8", "--bits", "8"], ["--bits and --adc-bits both give adc_bits"]),
        ([*PI, "--adc-bits", "17"], ["--adc-bits: '17' is not allowed", "2 to 16, or none for no converter"]),
        ([*PI, "--noise", "hermess"], ["--noise: 'hermess'", "pcm, hermes, proportional, constant"]),
        ([*PI, "--hardware", "pmc"], ["'pmc'", "pcm, hermes, ideal, paper", "did you mean pcm?"]),
        ([*PI, "--hardware", "missing.toml"], ["hardware file missing.toml", "No such file"]),
        ([*PI, "--hardware", ""], ["--hardware", "give a text"]),
        ([*PI, "--from-data", "--tile", "64"], ["--from-data", "leave out --tile"]),
        ([*PI, "--from-data", "--hardware", "pcm"], ["--from-data", "leave out --hardware"]),
        (["--all", "--w-max", "tile"], ["--all: --w-max means something else"]),
        (["--all", "--calibration", "x"], ["--all: --calibration means something else"]),
        ([*PI, "--nonsense"], ["--nonsense"]),
        ([*PI, "--json"], ["--json", "--list", "--claims"]),
        (["--figure", "pie"], ["--figure pie", "did you mean --figure pi?"]),
        (["--figure", "lost"], ["--figure lost", "did you mean --table lost?"]),
        (["--figur", "pi"], ["--figur", "did you mean --figure?"]),
        (["--figur=pi"], ["--figur", "did you mean --figure?"]),
        ([*PI, "--preset", "quik"], ["--preset", "quik", "did you mean quick?"]),
        ([*PI, "--device", "cdua"], ["--device", "cdua", "did you mean cuda?"]),
    ],
)
def test_bad_usage(
    options: list[str],
    parts: list[str],
    tmp_path: Path,
    log: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)  # where the default output folder goes
    assert paper_repro.main(options, toy_exhibit.EXHIBITS) == 2
    expect_one_line(capsys.readouterr().err, *parts)
    assert not executed(log)


def test_what_units_share_is_computed_once_and_survives(
    tmp_path: Path, log: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run that is stopped in its first unit has kept what all units share; damaged, it is computed again."""
    parts = tmp_path / "parts"
    monkeypatch.setenv("TOY_PARTS", str(parts))
    monkeypatch.setenv("TOY_BAD", "0")
    out = tmp_path / "out"
    assert run(out, "--workers", "1") == 2
    assert parts.read_text() == "4\n" and len(executed(log)) == 1
    monkeypatch.delenv("TOY_BAD")
    assert run(out, "--workers", "1") == 0
    assert parts.read_text() == "4\n"
    expected = result(out).data
    [kept] = [
        file for file in (out / ".cache").rglob("*.json") if "part" in json.loads(file.read_text())["key"]
    ]
    kept.write_text(kept.read_text().replace("4.0", "5.0"))
    for file in (out / ".cache").rglob("*.json"):
        if file != kept:
            file.unlink()
    capsys.readouterr()
    assert run(out, "--workers", "1") == 0
    assert "figure-pi: 1 damaged records were computed again" in capsys.readouterr().out
    assert parts.read_text() == "4\n4\n" and result(out).data == expected


STRANGE_NAMES = {
    "not UTF-8": os.fsdecode(b"out\xff\xfe"),
    "spaces and quotes": "a 'folder' \"of\" mine; $(touch x) %s {0} [bold]",
    "a new line": "one\ntwo",
    "letters of everywhere": "résultats-結果-🧪",
    "a minus": "--out",
    "255 bytes": "x" * 255,
    "a glob": "*?[a]",
}


@pytest.mark.parametrize("name", STRANGE_NAMES)
def test_an_output_folder_may_have_any_name(
    name: str, tmp_path: Path, log: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / STRANGE_NAMES[name]
    assert run(out, "--workers", "1", "--report") == 0
    assert capfd.readouterr().err == ""
    assert result(out).data["values"] and (out / "report.html").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([out.name, "log"])


def test_a_home_is_a_home(tmp_path: Path, log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert paper_repro.main([*PI, "--preset=quick", "--out=~/out", "--workers=1"], toy_exhibit.EXHIBITS) == 0
    assert result(tmp_path / "out").data["values"]


def loop(folder: Path) -> str:
    (folder / "loop").symlink_to("loop")
    return str(folder / "loop")


BAD_FOLDERS: dict[str, Callable[[Path], str]] = {
    "empty": lambda folder: "",
    "too long": lambda folder: str(folder / ("x" * 300)),
    "a path too long": lambda folder: str(folder / "/".join(["x" * 200] * 30)),
    "links in a loop": loop,
    "below links in a loop": lambda folder: f"{loop(folder)}/out",
    "no such home": lambda folder: "~nobody-at-all/out",
    "a device": lambda folder: "/dev/null",
    "below a device": lambda folder: "/dev/null/out",
}


@pytest.mark.parametrize("name", BAD_FOLDERS)
def test_a_folder_that_cannot_be(
    name: str, tmp_path: Path, log: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert paper_repro.main([*PI, "--out", BAD_FOLDERS[name](tmp_path)], toy_exhibit.EXHIBITS) == 2
    expect_one_line(capsys.readouterr().err, "--out")
    assert not executed(log)


@pytest.mark.parametrize(
    "place", ["figure-pi.quick.json", "figure-pi.quick.csv", "figure-pi.quick.pdf", "report.html", ".cache"]
)
def test_a_folder_or_a_file_in_the_place_of_another_is_found_before_computing(
    place: str, tmp_path: Path, log: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if place == ".cache":
        (tmp_path / place).write_text("")
    else:
        (tmp_path / place).mkdir()
    assert run(tmp_path, "--report", "--workers", "1") == 2
    expect_one_line(capsys.readouterr().err, str(tmp_path / place))
    assert not executed(log)


@pytest.mark.parametrize("option", ["--model", "--text", "--tasks", "--hardware", "--calibration", "--c"])
def test_what_a_result_records_is_text(
    option: str, tmp_path: Path, log: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for value, advice in ((os.fsdecode(b"\xff"), "is not UTF-8"), ("", "give a text"), (" ", "give a text")):
        assert run(tmp_path, option, value) == 2
        expect_one_line(capsys.readouterr().err, option, advice)
    assert not executed(log)


def test_links_to_elsewhere_are_replaced_and_never_followed(tmp_path: Path, log: Path) -> None:
    """Somebody else's links, in the places of what a run writes: what they point to stays as it is."""
    assert run(tmp_path, "--workers", "1") == 0
    written = [path for path in tmp_path.rglob("*") if path.is_file() and path != log]
    assert len(written) == 6 + 4
    precious = tmp_path / "precious"
    precious.write_text("mine")
    for path in written:
        path.unlink()
        path.symlink_to(precious)
    assert run(tmp_path, "--workers", "1") == 0
    assert precious.read_text() == "mine" and not any(path.is_symlink() for path in written)


def test_a_claim_that_is_a_link_is_refused(
    tmp_path: Path, log: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, "--workers", "1") == 0
    precious = tmp_path / "precious"
    precious.write_text("mine")
    for path in list((tmp_path / ".cache").rglob("*.json")):
        path.with_suffix(".lock").symlink_to(precious)
        path.unlink()
    capsys.readouterr()
    assert run(tmp_path, "--workers", "1") == 2
    expect_one_line(capsys.readouterr().err, "the cache cannot be written", ".lock")
    assert precious.read_text() == "mine"


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_cuda_without_cuda(tmp_path: Path, log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, "--device", "cuda") == 2
    expect_one_line(capsys.readouterr().err, "--device cuda", "--device cpu")


def test_an_output_folder_that_cannot_be_written_is_found_before_computing(
    tmp_path: Path, log: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    folders = [tmp_path / "file", tmp_path / "file" / "out"]
    if os.geteuid() != 0:  # root may write anywhere
        (tmp_path / "locked").mkdir(mode=0o500)
        folders.append(tmp_path / "locked")
    for folder in folders:
        assert run(folder) == 2
        expect_one_line(capsys.readouterr().err, "--out", str(folder), "cannot be written")
    assert not executed(log)


def test_a_cluster_without_its_package(
    tmp_path: Path, log: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "distributed" else find(name)
    )
    assert run(tmp_path, "--cluster", "tcp://127.0.0.1:1") == 2
    expect_one_line(capsys.readouterr().err, "--cluster", "distributed", "pip install")


HEAVY = ("torch", "transformers", "scipy", "sympy", "matplotlib", "joblib", "rich", "jinja2")


@pytest.mark.parametrize("option", ["--list", "--help", "--version"])
def test_what_computes_nothing_loads_nothing_heavy(option: str, tmp_path: Path) -> None:
    program = Path(paper_repro.__file__)
    code = (
        "import sys, paper_repro\n"
        f"try: status = paper_repro.main([{option!r}])\n"
        "except SystemExit as end: status = end.code\n"
        f"print(*[name for name in {HEAVY} if name in sys.modules], file=sys.stderr)\n"
        "sys.exit(status)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(program.parent)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "\n") and done.stdout


def test_the_program_lists_from_any_folder(tmp_path: Path) -> None:
    command = [sys.executable, paper_repro.__file__, "--list"]
    shown = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    for exhibit in EXHIBITS:
        assert exhibit.option in shown.stdout
    assert not shown.stderr


def test_the_data_folder_belongs_to_the_package() -> None:
    assert DATA.is_dir()


@pytest.mark.parametrize("content", [b"\xff\xfe", b"{}", b"[]"])
def test_a_damaged_result_stops_no_other_exhibit(
    content: bytes, tmp_path: Path, log: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A result that a run left in --out, damaged since: one line, and the report has the rest."""
    pi, other = toy_exhibit.EXHIBITS[0], replace(toy_exhibit.EXHIBITS[0], name="figure-other")
    assert run(tmp_path) == 0
    (tmp_path / "figure-other.full.json").write_bytes(content)
    options = ["--all", "--from-data", "--report", "--out", str(tmp_path)]
    capsys.readouterr()
    assert paper_repro.main(options, [other, pi], tmp_path / "nothing") == 2
    expect_one_line(capsys.readouterr().err, "--figure other", "figure-other.full.json")
    assert "pi by throwing darts" in (tmp_path / "report.html").read_text()


def test_a_stored_result_that_cannot_be_drawn_is_one_line(
    tmp_path: Path, log: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path) == 0
    file = tmp_path / "figure-pi.quick.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"data": {}}))
    capsys.readouterr()
    assert (
        paper_repro.main([*PI, "--from-data", "--report", "--out", str(tmp_path)], toy_exhibit.EXHIBITS) == 2
    )
    expect_one_line(capsys.readouterr().err, "lacks what the drawing needs", "values", "--figure pi")


def test_a_reader_may_stop_reading() -> None:
    """`--list | head -1` is no failure, and writes no traceback."""
    command = [sys.executable, str(HERE.parents[1] / "paper_repro.py"), "--list"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert (process.wait(timeout=60), process.stderr.read()) == (0, "")
