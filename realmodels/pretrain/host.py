"""How are the ladder's models trained on one host?

A large model is trained by all GPUs together, under torchrun, one after the other. The others are trained side by side,
each by a process of its own, several on a GPU. All are `python -m realmodels.pretrain train`.
"""

import json
import math
import os
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final, NamedTuple

import torch

from realmodels.pretrain.ladder import LADDER
from realmodels.pretrain.recipe import Recipe, entries
from realmodels.pretrain.runs import is_finished, matmul_rate
from realmodels.pretrain.size import size_of
from theory.errors import InputError

TOGETHER_FROM: Final = 100_000_000  # parameters of a model that all GPUs train together
SIDE_BY_SIDE: Final = 6  # smaller models on one GPU
EVALUATED: Final = ("evaluation", "prose")  # splits on which a finished model is evaluated
COMPILE_THREADS: Final = 4  # of a training
OUTPUT: Final = "output.txt"  # what a training writes, in the model's folder
POLL_SECONDS: Final = 0.2


class Job(NamedTuple):
    """The training of one model into a folder, which belongs to nothing else."""

    folder: Path
    recipe: Recipe

    @property
    def together(self) -> bool:
        """True if all GPUs train the model."""
        return size_of(self.recipe).total >= TOGETHER_FROM

    def last_line(self) -> str:
        written = (self.folder / OUTPUT).read_text(encoding="utf-8", errors="replace").strip()
        return written.rpartition("\n")[2]

    def told(self, status: int) -> str:
        """What is said of a training that ended."""
        if status:
            return f"{self.folder.name}: failed with status {status}: {self.last_line()}"
        entry = json.loads((self.folder / "log.jsonl").read_text().splitlines()[-1])
        state = "finished" if is_finished(self.folder) else "stopped: the same command goes on"
        return (
            f"{self.folder.name}: {entry['step']} of {self.recipe.steps} steps,"
            f" loss on calibration text {entry['calibration_loss']:.4f}, {entry['tokens_per_second']:.0f} tokens/s,"
            f" {state}"
        )


def jobs(
    out: Path, names: Sequence[str] = (), seeds: Sequence[int] | None = None, rates: Sequence[float] = ()
) -> list[Job]:
    """The trainings of the models with these names, of all without any; those that take longest first.

    seeds: default: as many as the rung says.
    rates: learning rates at the ladder's base width, instead of the recipe's, to choose one of them.
    """
    for name in names:
        if name not in LADDER:
            raise InputError(f"the ladder has no model {name!r}; give some of {', '.join(LADDER)}")
    named = dict.fromkeys(names or LADDER)
    chosen = sorted(((name, LADDER[name]) for name in named), key=lambda each: -each[1].flops)
    found = []
    for name, rung in chosen:
        for seed in dict.fromkeys(range(rung.seeds) if seeds is None else seeds):
            recipe = replace(rung.recipe, seed=seed)
            found += [
                Job(out / "trials" / f"{name}-{rate:g}-{seed}", with_rate(recipe, rate))
                for rate in dict.fromkeys(rates)
            ] or [Job(out / "ladder" / f"{name}-{seed}", recipe)]
    return found


def with_rate(recipe: Recipe, rate: float) -> Recipe:
    """The recipe with another base rate: of everything under AdamW, of the matrices alone under Muon."""
    if recipe.optimiser == "muon":
        return replace(recipe, matrix_learning_rate=rate)
    return replace(recipe, matrix_learning_rate=rate, learning_rate=rate)


class Host(NamedTuple):
    """What trains models here.

    gpus: how many; 0: models are trained on the CPU.
    side_by_side: models that are trained on one GPU, or on the CPU, at the same time.
    compiled: whether to use torch.compile.
    """

    gpus: int
    side_by_side: int
    compiled: bool

    @classmethod
    def here(cls, device: str, side_by_side: int | None, compiled: bool) -> "Host":
        """All GPUs of this host, or its CPU."""
        gpus = torch.cuda.device_count() if device == "cuda" else 0
        if device != "cpu" and not gpus:
            raise InputError(
                f"the device is {device!r}: give cpu, or cuda where there is a GPU; it means all GPUs"
            )
        if side_by_side is not None and side_by_side < 1:
            raise InputError(f"{side_by_side} models side by side: give at least 1")
        return cls(gpus, side_by_side or (SIDE_BY_SIDE if gpus else 1), compiled or gpus > 0)

    @property
    def device(self) -> torch.device:
        return torch.device("cuda" if self.gpus else "cpu")

    def command(self, job: Job, tokens: Path, *options: str) -> list[str]:
        command = [sys.executable, "-m"]
        if job.together and self.gpus > 1:
            command += ["torch.distributed.run", "--standalone", f"--nproc-per-node={self.gpus}", "-m"]
        command += ["realmodels.pretrain", "train", str(tokens), str(job.folder), *entries(job.recipe)]
        command += ["--device", self.device.type, "--evaluate", *EVALUATED, *options]
        return command + ["--compile"] * self.compiled

    def start(self, job: Job, gpus: Iterable[int], command: list[str]) -> subprocess.Popen[bytes]:
        job.folder.mkdir(parents=True, exist_ok=True)
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(self.gpus)))).split(",")
        seen = ",".join(visible[gpu] for gpu in sorted(set(gpus))) if self.gpus else ""
        environment = os.environ | {
            "CUDA_VISIBLE_DEVICES": seen,
            "OMP_NUM_THREADS": "1",
            "TORCHINDUCTOR_COMPILE_THREADS": str(COMPILE_THREADS),  # else one for each core, in each process
        }
        with (job.folder / OUTPUT).open("ab") as output:
            return subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)

    def train(self, chosen: Sequence[Job], tokens: Path, minutes: float | None = None) -> bool:
        """Train models in this order, or go on with them, for so many minutes. True if all are finished.

        Trainings end with this process.
        """
        until = math.inf if minutes is None else time.monotonic() + 60 * minutes
        rate = str(matmul_rate(self.device))
        waiting = deque(job for job in chosen if not is_finished(job.folder))
        slots = [gpu for _ in range(self.side_by_side) for gpu in range(max(self.gpus, 1))]
        free, running = deque(slots), dict[subprocess.Popen[bytes], tuple[Job, list[int]]]()
        try:
            while running or (waiting and time.monotonic() < until):
                while waiting and len(free) >= (needed := len(slots) if waiting[0].together else 1):
                    if (left := (until - time.monotonic()) / 60) <= 0:
                        break
                    job, taken = waiting.popleft(), [free.popleft() for _ in range(needed)]
                    limit = [] if minutes is None else ["--minutes", f"{left:.3f}"]
                    command = self.command(job, tokens, "--matmul-rate", rate, *limit)
                    running[self.start(job, taken, command)] = job, taken
                for process in [each for each in running if each.poll() is not None]:
                    job, taken = running.pop(process)
                    free.extend(taken)
                    print(job.told(process.returncode), flush=True)
                time.sleep(POLL_SECONDS)
        finally:
            for process in running:
                process.terminate()
                process.wait()
        return all(is_finished(job.folder) for job in chosen)
