"""Time of one OLMoE expert layer on analog hardware against transformers' own experts and aihwkit-lightning.

`make benchmark`, or `python benchmarks/analog_experts.py --tokens 64 --runs 9`. The contestants take turns,
so a burst of load on the machine hits all of them; the ratios are of medians over runs. Weights are random,
routing is uniform.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import Tensor
from transformers.models.olmoe.configuration_olmoe import OlmoeConfig
from transformers.models.olmoe.modeling_olmoe import OlmoeExperts

sys.path.insert(
    0, str(Path(__file__).resolve().parents[1])
)  # run from a checkout, whatever the working directory
import record

from realmodels.analog import AnalogExperts, LayerCalibration
from realmodels.peers import LightningExperts
from theory.hardware import Hardware
from theory.paper import OLMOE

EXPERTS, HIDDEN, INNER, TOP_K = OLMOE.experts, OLMOE.hidden, OLMOE.expert_width, OLMOE.top_k
WEIGHT_STD = 0.02  # OLMoE's initialisation
# Ours over the faster of transformers' two and lightning over ours, by number of tokens.
AT_MOST_OF_DIGITAL = {64: 1.05, 512: 1.05, 2048: 1.05}
AT_LEAST_LIGHTNING = {64: 2.0, 512: 1.6, 2048: 1.4}


def contestants(generator: torch.Generator) -> dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]]:
    """One random layer in four forms, as functions of hidden states, expert indices and routing weights."""
    config = OlmoeConfig(
        hidden_size=HIDDEN, intermediate_size=INNER, num_experts=EXPERTS, num_experts_per_tok=TOP_K
    )
    experts = OlmoeExperts(config)
    for parameter in experts.parameters():
        parameter.normal_(0, WEIGHT_STD, generator=generator)
    # Inputs of each layer are standardised below and in expectation; the bounds only have to be plausible.
    calibration = {name: LayerCalibration(1.0, kappa=3.0, lam=0.1) for name in ("gate_up_proj", "down_proj")}
    hardware = Hardware(c=0.0)
    ours = AnalogExperts(experts, [], hardware, calibration)
    ours.program(generator)
    lightning = LightningExperts(experts, hardware, calibration)

    def transformers(implementation: str) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        def forward(*inputs: Tensor) -> Tensor:
            config._experts_implementation = implementation
            return experts(*inputs)

        return forward

    return {
        "ours": ours,
        "transformers eager": transformers("eager"),
        "transformers grouped_mm": transformers("grouped_mm"),
        "lightning": lightning,
    }


def measure(
    forwards: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]],
    tokens: int,
    runs: int,
    generator: torch.Generator,
    advance: Callable[[], None],
) -> dict[str, float]:
    """Median seconds of each contestant; the first round of runs is a warm-up and does not count."""
    hidden = torch.randn(tokens, HIDDEN, generator=generator)
    probabilities = torch.randn(tokens, EXPERTS, generator=generator).softmax(-1)
    weights, index = probabilities.topk(TOP_K)
    seconds: dict[str, list[float]] = {name: [] for name in forwards}
    for run in range(runs + 1):
        for name, forward in forwards.items():
            start = time.perf_counter()
            forward(hidden, index, weights)
            if run > 0:
                seconds[name].append(time.perf_counter() - start)
        advance()
    return {name: statistics.median(each) for name, each in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, nargs="+", default=[64, 512, 2048])
    parser.add_argument("--runs", type=int, default=9, help="timed runs of each contestant (default 9)")
    parser.add_argument("--threads", type=int, default=1, help="threads of PyTorch (default 1)")
    parser.add_argument("--out", type=Path, help="JSON with all numbers, and where they come from")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.set_grad_enabled(False)
    generator = torch.Generator().manual_seed(0)
    table = Table(
        title=f"One OLMoE expert layer, fp32, {arguments.threads} thread(s), medians of {arguments.runs}"
    )
    columns = (
        "tokens",
        "ours",
        "eager",
        "grouped_mm",
        "lightning",
        "ours / digital",
        "target",
        "lightning / ours",
        "target",
    )
    for column in columns:
        table.add_column(column, justify="right")
    rows = []
    with Progress() as progress:
        task = progress.add_task("runs", total=len(arguments.tokens) * (arguments.runs + 1))
        forwards = contestants(generator)
        for tokens in arguments.tokens:
            times = measure(forwards, tokens, arguments.runs, generator, lambda: progress.advance(task))
            ours, eager, grouped, lightning = times.values()
            slowdown, speedup = ours / min(eager, grouped), lightning / ours
            rows.append({"tokens": tokens, **times, "slowdown": slowdown, "speedup": speedup})
            table.add_row(
                str(tokens),
                *(f"{1000 * value:.0f} ms" for value in times.values()),
                f"{slowdown:.2f}",
                _judge("<=", AT_MOST_OF_DIGITAL.get(tokens), slowdown),
                f"{speedup:.2f}",
                _judge(">=", AT_LEAST_LIGHTNING.get(tokens), speedup),
            )
    Console(width=max(120, Console().width)).print(table)
    settings = {"runs": arguments.runs, "threads": arguments.threads}
    record.write(arguments.out, rows, settings)


def _judge(relation: str, target: float | None, ratio: float) -> str:
    if target is None:
        return "none"
    met = ratio <= target if relation == "<=" else ratio >= target
    return f"{relation} {target:g} {'met' if met else 'missed'}"


if __name__ == "__main__":
    main()
