"""300 faults against the command line; 3,000 with `make faults`."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("faults.py")
COUNT = 300


def test_no_fault_changes_a_number(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(COUNT), "--json", str(report)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    table = json.loads(report.read_text())
    assert sum(row["tried"] for row in table.values()) >= COUNT
    assert len(table) == 16 and all(row["tried"] for row in table.values())


# What each change makes fail: the harness has to see it.
SABOTAGE = {
    "killed with workers": ("figures.run", "remove_leftovers", "lambda: None"),
    "worker killed": ("figures.run", "_told", "lambda calls, key: 1 / 0"),
    "damaged result": ("figures.output", "stored", "lambda *_: 1 / 0"),
    "damaged placement": ("theory.placement", "loads", "lambda text: 1 / 0"),
    "command line by grammar": ("paper_repro", "InputError", "ZeroDivisionError"),
    "kill by moment": ("figures.cache", "Unit.read", "lambda self: None"),
    "damage by byte": ("figures.cache", "_checksum", "lambda key, record: ''"),
    "hostile cache": ("figures.cache", "read_regular", "lambda path, most, follow: path.read_bytes()"),
    "disk by size": ("figures.files", "is_disk_full", "lambda error: 1 / 0"),
    "signal by moment": ("paper_repro", "_fail", "lambda message, status: status"),
    "output that ends": ("paper_repro", "Steady", "lambda stream: stream"),
    "two runs at once": (
        "figures.cache",
        "FileLock",
        "lambda *a, **b: __import__('contextlib').nullcontext()",
    ),
    "hostile model": ("realmodels.load", "_try", "lambda model: 1 / 0"),
    "hostile hardware": (
        "theory.hardware_files",
        "read_regular",
        "lambda path, most: path.read_bytes()",
    ),
    "hostile chip": ("realmodels.chip", "_content", "lambda text: 1 / 0"),
    "hostile text": ("realmodels.text", "read_regular", "lambda path, most: path.read_bytes()"),
}


COUNTS = {"hostile model": "60", "worker killed": "4", "killed with workers": "6"}


@pytest.mark.slow
@pytest.mark.parametrize("kind", SABOTAGE)
def test_the_harness_sees_what_it_is_there_for(kind: str) -> None:
    module, name, change = SABOTAGE[kind]
    code = (
        f"import sys; sys.path.insert(0, {str(SCRIPT.parent)!r}); import faults, {module}\n"
        f"faults.SECONDS = 5\nfaults.undisturbed(); faults.duration()\nsys.modules[{module!r}].{name} = {change}\n"
        f"sys.exit(faults.main([{COUNTS.get(kind, '20')!r}, '--kind', {kind!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and f"{kind} " in done.stderr, done.stderr[-2000:]
