"""Figure 4 on OLMoE-1B-7B at full size on an NVIDIA GPU: minutes of the default preset, hours of the paper's grid.

    python benchmarks/full_figure.py --out benchmarks/data/full_figure.json

Weights are random, so that no hub is needed. The figure is computed by the command line, from a checkpoint in bf16
that it loads in fp32, as users do: at most 10 minutes. The paper's grid has two budgets of six strategies and no
digital expert at all, five magnitudes, some draws, and eight tasks of about ten million tokens each time. Its hours
follow from what the model does in bf16: tokens/s under three placements in turn, seconds to place and to program. They
are at most 24.
"""

import argparse
import statistics
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
from full_size import CONFIGS, DEVICE, write
from gpu_models import seconds

from realmodels import load, scores
from realmodels.calibrate import calibrate
from realmodels.deploy import Chip
from realmodels.evaluate import block_results, token_blocks
from realmodels.experiments.figure_4 import FRACTIONS, PRESETS, STRATEGIES
from theory.hardware import Hardware
from theory.placement import place

ROOT = Path(__file__).resolve().parents[1]
MOST_MINUTES, MOST_HOURS = 10, 24
MAGNITUDES, DRAWS, TOKENS = len(PRESETS["full"].magnitudes), 8, 10_000_000
PLACEMENTS = 1 + len(FRACTIONS) * len(STRATEGIES)
BLOCKS, LENGTH = 128, 512


def figure(folder: Path) -> float:
    """Minutes of the command line for the whole figure, default preset."""
    command = [sys.executable, "-u", "paper_repro.py", "--figure", "4", "--model", str(folder)]
    with tempfile.TemporaryDirectory() as out:
        start = time.perf_counter()
        subprocess.run([*command, "--device", DEVICE, "--format", "png", "--out", out], cwd=ROOT, check=True)
        return (time.perf_counter() - start) / 60


def paper_grid(folder: Path, runs: int) -> dict[str, Any]:
    """Tokens/s, seconds to place and to program, and the hours of the paper's grid that follow from them."""
    model = load(folder, DEVICE, torch.bfloat16)
    tokens = token_blocks(model, model.texts("evaluation"), LENGTH, BLOCKS).tokens
    maxnn = scores(model, "maxnn")
    placements = [place(maxnn, fraction) for fraction in (0.0, *FRACTIONS)]
    hardware = Hardware(c=1.0)
    calibration = calibrate(model, model.texts("calibration"), hardware)
    chip, another = (Chip(model, hardware, calibration, seed) for seed in range(2))
    read, placed = [], []
    for run in range(runs + 1):
        for placement in placements:
            start = time.perf_counter()
            with chip.placed(placement):
                torch.cuda.synchronize()
                if run > 0:  # the first run programs and compiles
                    placed.append(time.perf_counter() - start)
                took = seconds(lambda: block_results(model.network, tokens))
                if run > 0:
                    read.append(took)

    def program() -> None:
        with another.placed(placements[0]):
            pass

    program_s, place_s = seconds(program), statistics.median(placed)
    tokens_per_s = len(tokens) * LENGTH / statistics.mean(read)
    of_a_chip = program_s + PLACEMENTS * (place_s + TOKENS / tokens_per_s)
    return {
        "tokens_per_s": tokens_per_s,
        "place_s": place_s,
        "program_s": program_s,
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30,
        "hours": MAGNITUDES * DRAWS * of_a_chip / 3600,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--runs", type=int, default=3, help="timed runs of each placement (default 3)")
    parser.add_argument("--out", type=Path, help="JSON with all numbers")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "olmoe"
        write(CONFIGS["olmoe"], folder)
        torch.cuda.empty_cache()  # the command line needs the card
        minutes = figure(folder)
        with torch.no_grad():
            row = {"minutes": minutes, **paper_grid(folder, options.runs)}
    print(row)
    settings = {
        "placements": PLACEMENTS,
        "magnitudes": MAGNITUDES,
        "draws": DRAWS,
        "tokens": TOKENS,
        "blocks": BLOCKS,
        "block_tokens": LENGTH,
        "runs": options.runs,
    }
    record.write(options.out, [row], settings, DEVICE)
    met = minutes <= MOST_MINUTES and row["hours"] <= MOST_HOURS
    print(
        f"figure 4, default preset: {minutes:.1f} minutes; the paper's grid, {PLACEMENTS} placements, {MAGNITUDES}"
        f" magnitudes, {DRAWS} draws, {TOKENS:,} tokens each: {row['hours']:.1f} hours"
    )
    print("targets met" if met else f"targets: {MOST_MINUTES} minutes, {MOST_HOURS} hours: not met")
    return 0 if met else 1


if __name__ == "__main__":
    raise SystemExit(main())
