"""A small real exhibit for the tests of the command line: pi by Monte Carlo, one unit per seed.

Environment: TOY_LOG is a file to which every execution of a unit appends its seed, TOY_PAUSE the seconds that a unit
takes, TOY_LARGE the seed whose record is larger than 200 kB, TOY_BAD the seed that finds its input to be bad,
TOY_PARTS a file to which every execution of what units share appends a line (without it they share nothing),
TOY_KILLED the seed whose process kills itself the first TOY_KILLS times. None of them changes the numbers.
"""

import os
import random
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

from figures.catalogue import Exhibit
from theory.errors import InputError
from theory.evidence import Result, mean_finding
from theory.kept import kept

UNITS = {"quick": 6, "default": 12, "full": 24}


class Toy(Exhibit):
    """An exhibit whose experiment and drawing are this module."""

    experiment = drawing = "toy_exhibit"


EXHIBITS = (
    Toy("figure-pi", "pi by throwing darts", "synthetic", dict.fromkeys(UNITS, "seconds")),
    Exhibit("table-lost", "modules not written yet", "no_such", dict.fromkeys(UNITS, "never")),
)


@dataclass(frozen=True)
class Config:
    seed: int
    throws: int
    text: str


def grid(
    preset: str, seeds: int | None = None, first_seed: int | None = None, text: str = "none"
) -> list[Config]:
    if text == "":
        raise InputError("--text '': empty; give a text")
    start = first_seed or 0
    configs = [Config(seed, 1000, text) for seed in range(start, start + (seeds or UNITS[preset]))]
    return configs + configs[:2]  # two arms that share units


def whole() -> float:
    """What all units share."""
    with Path(os.environ["TOY_PARTS"]).open("a") as log:
        log.write("4\n")
    return 4.0


def measure(config: Config) -> dict[str, float | str]:
    area = kept("area", {"throws": config.throws}, whole) if "TOY_PARTS" in os.environ else 4.0
    with Path(os.environ["TOY_LOG"]).open("a") as log:
        log.write(f"{config.seed}\n")
    time.sleep(float(os.environ.get("TOY_PAUSE", "0")))
    if os.environ.get("TOY_KILLED") == str(config.seed):
        before = Path(os.environ["TOY_LOG"]).read_text().split().count(str(config.seed))
        if before <= int(os.environ["TOY_KILLS"]):
            os.kill(os.getpid(), signal.SIGKILL)
    if os.environ.get("TOY_BAD") == str(config.seed):
        raise InputError(f"seed {config.seed}: bad input; give a good one")
    generator = random.Random(config.seed)
    hits = sum(generator.random() ** 2 + generator.random() ** 2 < 1 for _ in range(config.throws))
    ballast = "x" * (200_000 if os.environ.get("TOY_LARGE") == str(config.seed) else 0)
    return {"seed": config.seed, "pi": area * hits / config.throws, "ballast": ballast}


def summarise(configs: list[Config], records: list[dict[str, float]]) -> Result:
    assert [config.seed for config in configs] == [record["seed"] for record in records]
    values = [record["pi"] for record in records]
    finding = mean_finding("pi is below 4", "mean", values, 4.0, "below", origin="ours", family="pi")
    return Result(data={"values": values}, findings=(finding,))


def draw(result: Result) -> Figure:
    figure = Figure(figsize=(2, 1.5))  # drawn fast
    figure.subplots().plot(result.data["values"])
    return figure


def table(result: Result) -> list[dict[str, float]]:
    return [{"unit": unit, "pi": value} for unit, value in enumerate(result.data["values"])]
