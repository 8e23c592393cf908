"""Time of one OLMoE expert layer in bf16 on an NVIDIA GPU: analog experts against transformers' grouped_mm.

    python benchmarks/gpu_experts.py --out benchmarks/data/gpu_experts.json

All experts analog, and a quarter digital; called, and as CUDA graphs. The contestants take turns; times are medians. A
call's includes what the host needs to launch it. Weights are random, routing is uniform, converters saturate rarely.
Target: at most as long as grouped_mm. Beside it the roofline: the active experts' weights over the card's bandwidth, or
the multiplications over its rate, whichever is longer; both rates are measured first.
"""

import argparse
import statistics
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers.models.olmoe.configuration_olmoe import OlmoeConfig
from transformers.models.olmoe.modeling_olmoe import OlmoeExperts

sys.path.insert(
    0, str(Path(__file__).resolve().parents[1])
)  # run from a checkout, whatever the working directory
import record

from realmodels.analog import AnalogExperts, LayerCalibration
from theory.hardware import Hardware
from theory.paper import OLMOE

DEVICE = "cuda"
EXPERTS, HIDDEN, INNER, TOP_K = OLMOE.experts, OLMOE.hidden, OLMOE.expert_width, OLMOE.top_k
WEIGHT_STD = 0.02  # OLMoE's initialisation
# Bounds at about three standard deviations of what each converter sees here.
CALIBRATION = {
    "gate_up_proj": LayerCalibration(1.0, kappa=3.0, lam=5.0),
    "down_proj": LayerCalibration(0.4, kappa=3.0, lam=5.0),
}
AT_MOST = 1.0  # of the time of grouped_mm
COPIED, MULTIPLIED = (
    2**31,
    8192,
)  # bytes, and rows of square matrices, from which the card's rates are measured

Inputs = tuple[Tensor, ...]
Forward = Callable[..., Tensor]


def contestants(generator: torch.Generator) -> dict[str, Forward]:
    config = OlmoeConfig(
        hidden_size=HIDDEN, intermediate_size=INNER, num_experts=EXPERTS, num_experts_per_tok=TOP_K
    )
    config._experts_implementation = "grouped_mm"
    experts = OlmoeExperts(config).to(DEVICE, torch.bfloat16)
    for parameter in experts.parameters():
        parameter.normal_(0, WEIGHT_STD, generator=generator)
    forwards: dict[str, Forward] = {"digital": experts}
    for name, digital in {"analog": [], "quarter": list(range(0, EXPERTS, 4))}.items():
        layer = AnalogExperts(experts, digital, Hardware(c=1.0), CALIBRATION)
        layer.program(generator)
        assert layer.why_not_fused is None, layer.why_not_fused
        forwards[name] = layer
    return forwards


def inputs_of(tokens: int, generator: torch.Generator) -> Inputs:
    hidden = torch.randn(tokens, HIDDEN, generator=generator, device=DEVICE).bfloat16()
    probabilities = torch.randn(tokens, EXPERTS, generator=generator, device=DEVICE).softmax(-1)
    weights, index = probabilities.topk(TOP_K)
    return hidden, index, weights.bfloat16()


def captured(forward: Forward, inputs: Inputs) -> Callable[[], None]:
    """A CUDA graph of the forward pass, as a function."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        forward(*inputs)
    return graph.replay


def milliseconds(actions: dict[str, Callable[[], object]], runs: int) -> dict[str, float]:
    """Median times of actions that take turns; the first rounds are a warm-up and do not count."""
    times: dict[str, list[float]] = {name: [] for name in actions}
    for run in range(runs + 3):
        for name, action in actions.items():
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda.synchronize()
            start.record()
            action()
            end.record()
            torch.cuda.synchronize()
            if run >= 3:
                times[name].append(start.elapsed_time(end))
    return {name: statistics.median(each) for name, each in times.items()}


def rates(runs: int) -> tuple[float, float]:
    """Bytes and floating-point operations of the card in a millisecond."""
    source = torch.empty(COPIED, dtype=torch.uint8, device=DEVICE)
    target, matrix = torch.empty_like(source), torch.randn(MULTIPLIED, MULTIPLIED, device=DEVICE).bfloat16()
    took = milliseconds({"copy": lambda: target.copy_(source), "product": lambda: matrix @ matrix}, runs)
    return 2 * COPIED / took["copy"], 2 * MULTIPLIED**3 / took["product"]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 16, 64, 512, 2048, 8192])
    parser.add_argument("--runs", type=int, default=41, help="timed runs of each contestant (default 41)")
    parser.add_argument("--out", type=Path, help="JSON with all numbers, and where they come from")
    options = parser.parse_args()
    torch.set_grad_enabled(False)
    generator = torch.Generator(DEVICE).manual_seed(0)
    bandwidth, rate = rates(options.runs)
    forwards = contestants(generator)
    table = Table(
        title=f"One OLMoE expert layer, bf16, {torch.cuda.get_device_name()}, ms, medians of {options.runs}"
    )
    columns = ("digital", "analog", "analog / digital", "quarter digital", "quarter / digital", "roofline")
    for column in ("tokens", "", *columns):
        table.add_column(column, justify="right")
    rows = []
    for tokens in options.tokens:
        inputs = inputs_of(tokens, generator)
        calls: dict[str, Callable[[], object]] = {
            name: partial(forward, *inputs) for name, forward in forwards.items()
        }
        for call in calls.values():
            call()  # compiles
        graphs: dict[str, Callable[[], object]] = {
            name: captured(forward, inputs) for name, forward in forwards.items()
        }
        weights = 3 * HIDDEN * INNER
        roofline = max(
            2 * weights * inputs[1].unique().numel() / bandwidth, 2 * weights * tokens * TOP_K / rate
        )
        for way, actions in {"call": calls, "graph": graphs}.items():
            times = milliseconds(actions, options.runs)
            ratios = {name: times[name] / times["digital"] for name in ("analog", "quarter")}
            rows.append(
                {"tokens": tokens, "way": way, **times, "roofline": roofline}
                | {f"{name}_ratio": ratio for name, ratio in ratios.items()}
            )
            cells = (f"{times[name]:.3f}" for name in forwards)
            digital, analog, quarter = cells
            judged = [f"{each:.2f} {'met' if each <= AT_MOST else 'missed'}" for each in ratios.values()]
            table.add_row(str(tokens), way, digital, analog, judged[0], quarter, judged[1], f"{roofline:.3f}")
    Console(width=max(120, Console().width)).print(table)
    settings = {"runs": options.runs, "terabytes_per_s": bandwidth / 1e9, "teraflops": rate / 1e9}
    record.write(options.out, rows, settings, DEVICE)


if __name__ == "__main__":
    main()
