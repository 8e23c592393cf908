"""Time of programming one OLMoE expert layer on a CPU against `torch.randn_like` over as many numbers.

`make benchmark`, or `python benchmarks/programming.py --experts 8 --runs 9`. Both take turns, so a burst of load on
the machine hits both; the ratio is of medians over runs. Programming draws as many normal numbers, makes noise of
them, adds it to the weights and stores these for products; memory is that of the programming before.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from transformers.models.olmoe.configuration_olmoe import OlmoeConfig
from transformers.models.olmoe.modeling_olmoe import OlmoeExperts

sys.path.insert(
    0, str(Path(__file__).resolve().parents[1])
)  # run from a checkout, whatever the working directory
import record

from realmodels.analog import AnalogExperts, LayerCalibration
from theory.hardware import Hardware
from theory.paper import OLMOE

WEIGHT_STD = 0.02  # OLMoE's initialisation
AT_MOST = 1.5  # programming over randn_like


def measure(actions: dict[str, Callable[[], object]], runs: int) -> dict[str, float]:
    """Median seconds of each action; the first round of runs is a warm-up and does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in actions}
    for run in range(runs + 1):
        for name, action in actions.items():
            start = time.perf_counter()
            action()
            if run > 0:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(each) for name, each in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--experts", type=int, default=OLMOE.experts)
    parser.add_argument("--runs", type=int, default=9, help="timed runs of each (default 9)")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="threads of PyTorch")
    parser.add_argument("--out", type=Path, help="JSON with all numbers, and where they come from")
    arguments = parser.parse_args()
    torch.set_grad_enabled(False)
    generator = torch.Generator().manual_seed(0)
    experts = OlmoeExperts(
        OlmoeConfig(
            hidden_size=OLMOE.hidden, intermediate_size=OLMOE.expert_width, num_experts=arguments.experts
        )
    )
    for parameter in experts.parameters():
        parameter.normal_(0, WEIGHT_STD, generator=generator)
    calibration = {name: LayerCalibration(1.0, kappa=3.0, lam=0.1) for name in ("gate_up_proj", "down_proj")}
    layer = AnalogExperts(experts, [], Hardware(), calibration)
    actions: dict[str, Callable[[], object]] = {  # `shape` holds no memory
        "program": lambda: layer.program(generator),
        "randn_like": lambda: [torch.randn_like(parameter).shape for parameter in experts.parameters()],
    }
    numbers = sum(parameter.numel() for parameter in experts.parameters())
    table = Table(title=f"{numbers:,} weights of {arguments.experts} experts, medians of {arguments.runs}")
    for column in ("threads", "program", "randn_like", "program / randn_like", "target"):
        table.add_column(column, justify="right")
    rows = []
    for threads in arguments.threads:
        torch.set_num_threads(threads)
        times = measure(actions, arguments.runs)
        ratio = times["program"] / times["randn_like"]
        rows.append({"threads": threads, **times, "ratio": ratio})
        met = "met" if ratio <= AT_MOST else "missed"
        shown = (f"{1000 * value:.0f} ms" for value in times.values())
        table.add_row(str(threads), *shown, f"{ratio:.2f}", f"<= {AT_MOST:g} {met}")
    Console(width=max(100, Console().width)).print(table)
    settings = {"experts": arguments.experts, "weights": numbers, "runs": arguments.runs}
    record.write(arguments.out, rows, settings)


if __name__ == "__main__":
    main()
