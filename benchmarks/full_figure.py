"""Figure 4 on a model of OLMoE-1B-7B's size, on an NVIDIA GPU: how long, and how long the whole grid with tasks?

    python benchmarks/full_figure.py --folder olmoe --out benchmarks/data/full_figure.json

Weights are random, so that no hub is needed; they are written to FOLDER and removed afterwards. First the command line
draws figure 4, default preset, from the checkpoint. Then the model, in bf16, reads texts of TEXT tokens under one
placement after the other. From these tokens/s follow the hours of the paper's whole figure: every strategy, budget and
magnitude, DRAWS noise draws, and eight tasks, which have about TASK_TOKENS tokens. Targets: 10 minutes, 24 hours.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

sys.path.insert(
    0, str(Path(__file__).resolve().parents[1])
)  # run from a checkout, whatever the working directory
import record
from full_size import CONFIGS, write
from gpu_models import in_turns

from realmodels import load, scores
from realmodels.calibrate import calibrate
from realmodels.deploy import Chip
from realmodels.experiments.figure_4 import PRESETS, STRATEGIES
from theory.hardware import Hardware
from theory.paper import DIGITAL_EXPERTS, RECOVERED_AT
from theory.placement import place

ROOT, DEVICE = Path(__file__).resolve().parents[1], "cuda"
MINUTES, HOURS = 10, 24  # targets
TEXTS, TEXT, RUNS = 32, 512, 3
TASK_TOKENS, DRAWS = 10**7, 8
MAGNITUDES = PRESETS["full"].magnitudes


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--folder", type=Path, required=True, help="for the checkpoint; removed afterwards")
    parser.add_argument("--out", type=Path, help="JSON with all numbers")
    options = parser.parse_args()
    try:
        write(CONFIGS["olmoe"], options.folder)
        torch.cuda.empty_cache()
        figure = _figure(options.folder)
        throughput = _throughput(options.folder)
    finally:
        shutil.rmtree(options.folder, ignore_errors=True)
    # Without digital experts there is one placement; the others are of a strategy and a budget.
    placements = 1 + len(STRATEGIES) * len(DIGITAL_EXPERTS.value)
    units = placements * len(MAGNITUDES) * DRAWS
    chips = len(MAGNITUDES) * DRAWS
    hours = (units * TASK_TOKENS / throughput["tokens_per_s"] + chips * throughput["program"]) / 3600
    rows = [figure, throughput, {"step": "whole grid", "units": units, "hours": hours}]
    print(*rows, sep="\n")
    print(f"figure 4, default preset: {figure['seconds'] / 60:.1f} minutes; target {MINUTES}")
    print(f"the whole grid with eight tasks would take {hours:.1f} hours; target {HOURS}")
    shared = {"task_tokens": TASK_TOKENS, "draws": DRAWS, "placements": placements, "magnitudes": MAGNITUDES}
    record.write(options.out, rows, shared, DEVICE)


def _figure(folder: Path) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as out:
        start = time.perf_counter()
        command = ["--figure", "4", "--model", str(folder), "--device", DEVICE, "--out", out]
        subprocess.run([sys.executable, "paper_repro.py", *command], cwd=ROOT, check=True)
        seconds = time.perf_counter() - start
        (result,) = Path(out).glob("figure-4.default*.json")
        found = json.loads(result.read_text(encoding="utf-8"))
    units, data = found["provenance"]["units"]["computed"], found["data"]
    tokens = units * data["blocks"] * data["block_tokens"]
    return {"step": "figure 4", "seconds": seconds, "units": units, "tokens": tokens}


@torch.no_grad()
def _throughput(folder: Path) -> dict[str, Any]:
    """Tokens/s of one chip under its placements in turn; and seconds to program a chip."""
    model = load(folder, DEVICE, torch.bfloat16)
    hardware = Hardware(c=RECOVERED_AT.value)
    ranges = calibrate(model, model.texts("calibration"), hardware)
    score = scores(model, "maxnn")
    placements = [place(score, fraction) for fraction in (0.0, *DIGITAL_EXPERTS.value)]
    chip = Chip(model, hardware, ranges)
    ids = torch.randint(model.network.config.vocab_size, (TEXTS, TEXT), device=DEVICE)

    def read() -> None:
        for placement in placements:
            with chip.placed(placement):
                model.network(input_ids=ids, use_cache=False)

    def program() -> None:
        with Chip(model, hardware, ranges, 1).placed(placements[0]):
            pass

    took = in_turns({"read": read, "program": program}, RUNS)
    tokens_per_s = len(placements) * ids.numel() / took["read"]
    return {"step": "read", "tokens_per_s": tokens_per_s, "program": took["program"]}


if __name__ == "__main__":
    main()
