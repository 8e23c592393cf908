"""Time of an analog linear layer on an NVIDIA GPU against F.linear in the model's dtype.

    python benchmarks/gpu_linear.py --out benchmarks/data/gpu_linear.json

The shapes are those of OLMoE-1B-7B's attention and LM head, and a small one; called, and as CUDA graphs. The
contestants take turns; times are medians. A call's includes what the host needs to launch it. Weights are random,
converters saturate rarely. Target: at most 1.2 times the time of F.linear. Beside it the roofline: weights, inputs and
outputs in 16 bits over the card's bandwidth, or the multiplications over its rate, whichever is longer.
"""

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

sys.path.insert(
    0, str(Path(__file__).resolve().parents[1])
)  # run from a checkout, whatever the working directory
import record
from gpu_experts import DEVICE, WEIGHT_STD, captured, milliseconds, rates

from realmodels.analog import AnalogLinear, LayerCalibration
from theory.hardware import Hardware
from theory.paper import OLMOE

WORDS = 50304  # OLMoE's vocabulary
SHAPES = {"attention": (OLMOE.hidden, OLMOE.hidden), "LM head": (OLMOE.hidden, WORDS), "small": (512, 512)}
CALIBRATION = LayerCalibration(1.0, kappa=3.0, lam=5.0)
AT_MOST = 1.2  # of the time of F.linear


def contestants(
    inputs: int, outputs: int, dtype: torch.dtype, generator: torch.Generator
) -> dict[str, Callable[[Tensor], Tensor]]:
    linear = nn.Linear(inputs, outputs, bias=False, device=DEVICE, dtype=dtype)
    linear.weight.normal_(0, WEIGHT_STD, generator=generator)
    layer = AnalogLinear(linear, Hardware(c=1.0), CALIBRATION)
    layer.program(generator)
    assert layer.why_not_fused is None, layer.why_not_fused
    return {"digital": linear, "analog": layer}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 16, 64, 512, 2048, 8192])
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--runs", type=int, default=41, help="timed runs of each contestant (default 41)")
    parser.add_argument("--out", type=Path, help="JSON with all numbers, and where they come from")
    options = parser.parse_args()
    torch.set_grad_enabled(False)
    generator, dtype = torch.Generator(DEVICE).manual_seed(0), getattr(torch, options.dtype)
    bandwidth, rate = rates(options.runs)
    table = Table(title=f"Linear layers, {options.dtype}, {torch.cuda.get_device_name()}, ms")
    for column in ("layer", "tokens", "", "F.linear", "analog", "analog / F.linear", "roofline"):
        table.add_column(column, justify="right")
    rows = []
    for name, (inputs, outputs) in SHAPES.items():
        forwards = contestants(inputs, outputs, dtype, generator)
        for tokens in options.tokens:
            x = torch.randn(tokens, inputs, generator=generator, device=DEVICE).to(dtype)
            calls: dict[str, Callable[[], object]] = {
                each: partial(forward, x) for each, forward in forwards.items()
            }
            for call in calls.values():
                call()  # compiles
            graphs: dict[str, Callable[[], object]] = {
                each: captured(forward, (x,)) for each, forward in forwards.items()
            }
            moved = 2 * (inputs * outputs + tokens * (inputs + outputs))
            roofline = max(moved / bandwidth, 2 * tokens * inputs * outputs / rate)
            for way, actions in {"call": calls, "graph": graphs}.items():
                times = milliseconds(actions, options.runs)
                ratio = times["analog"] / times["digital"]
                rows.append(
                    {"layer": name, "inputs": inputs, "outputs": outputs, "tokens": tokens, "way": way}
                    | {**times, "ratio": ratio, "roofline": roofline}
                )
                judged = f"{ratio:.2f} {'met' if ratio <= AT_MOST else 'missed'}"
                cells = (f"{times[each]:.3f}" for each in forwards)
                table.add_row(name, str(tokens), way, *cells, judged, f"{roofline:.3f}")
    Console(width=max(120, Console().width)).print(table)
    settings = {
        "runs": options.runs, "dtype": options.dtype, "terabytes_per_s": bandwidth / 1e9, "teraflops": rate / 1e9
    }  # fmt: skip
    record.write(options.out, rows, settings, DEVICE)


if __name__ == "__main__":
    main()
