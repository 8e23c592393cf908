"""Units/s of whole figures on an NVIDIA GPU, from the lines of progress of the command line.

    python benchmarks/whole_figures.py 3=2 4=3 --out benchmarks/data/whole_figures.json

Each figure is computed in full, by so many processes, into a folder that is removed afterwards. Its first unit is done
when everything is imported, loaded, calibrated and compiled. A run that takes longer than --seconds is stopped.
"""

import argparse
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(
    0, str(Path(__file__).resolve().parents[1])
)  # run from a checkout, whatever the working directory
import record

ROOT, DEVICE = Path(__file__).resolve().parents[1], "cuda"
PROGRESS = re.compile(r": (?P<done>\d+) of (?P<all>\d+) units, (?P<seconds>\d+) s$")


def measured(figure: str, processes: int, options: argparse.Namespace) -> dict[str, Any]:
    """How many units there are, seconds to the first of them, and units/s between the second line and the last."""
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, "-u", "paper_repro.py", "--figure", figure, "--preset", options.preset]
        command += ["--device", options.device, "--workers", str(processes), "--format", "png", "--out", out]
        started = time.monotonic()
        lines = []
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as run:
            assert run.stdout is not None
            for line in run.stdout:
                print(line, end="", flush=True)
                if found := PROGRESS.search(line):
                    lines.append({name: int(each) for name, each in found.groupdict().items()})
                if time.monotonic() - started > options.seconds:
                    run.terminate()
    first, second, *_, last = lines
    seconds = last["seconds"] - second["seconds"]
    return {
        "figure": figure,
        "processes": processes,
        "all_units": first["all"],
        "first_unit": first["seconds"],
        "units_per_s": (last["done"] - second["done"]) / seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("figures", nargs="+", metavar="FIGURE=PROCESSES")
    parser.add_argument("--preset", default="full")
    parser.add_argument("--device", default=DEVICE)
    parser.add_argument("--seconds", type=float, default=600, help="of a run (default 600)")
    parser.add_argument("--out", type=Path, help="JSON with all numbers")
    options = parser.parse_args()
    rows = []
    for each in options.figures:
        figure, _, processes = each.partition("=")
        rows.append(measured(figure, int(processes or 1), options))
        print(rows[-1])
    record.write(options.out, rows, {}, options.device)


if __name__ == "__main__":
    main()
