"""Tokens/s of OLMoE-1B-7B and deepseek-moe-16b-base on an NVIDIA GPU: their experts analog against digital.

    python benchmarks/gpu_models.py --model olmoe --out benchmarks/data/gpu_models-olmoe.json

At full size, in bf16, with random weights; dense modules are digital, and digital experts are transformers' grouped_mm,
which `generate` replaces by batched_mm after the first token.
Read are texts of 512 tokens, one to 32 at a time; generated are 24 tokens after 32, of one text and of 32. The
contestants take turns; times are medians. Target: at least .9 of the digital model's tokens/s. Also: programming all
experts, against randn_like for as many numbers; and the memory of the programmed weights, against two bytes for each.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM

sys.path.insert(
    0, str(Path(__file__).resolve().parents[1])
)  # run from a checkout, whatever the working directory
import record
from full_size import CONFIGS
from gpu_experts import CALIBRATION, DEVICE

from realmodels.analog import AnalogExperts
from realmodels.families import describe
from theory.hardware import Hardware

AT_LEAST = 0.9  # of the digital model's tokens/s
READ, GENERATED, AFTER = (1, 8, 32), 24, 32
LENGTH = 512


def seconds(action: Callable[[], object]) -> float:
    torch.cuda.synchronize()
    start = time.perf_counter()
    action()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def in_turns(actions: dict[str, Callable[[], object]], runs: int) -> dict[str, float]:
    """Median seconds; the first round is a warm-up and does not count."""
    times: dict[str, list[float]] = {name: [] for name in actions}
    for run in range(runs + 1):
        for name, action in actions.items():
            took = seconds(action)
            if run > 0:
                times[name].append(took)
    return {name: statistics.median(each) for name, each in times.items()}


class Contest:
    """The network with its experts digital, analog, and a quarter of them digital."""

    def __init__(self, network: Any, generator: torch.Generator) -> None:
        self.network = network
        names = [layer.experts for layer in describe(network).moe_layers]
        self.digital = {name: network.get_submodule(name) for name in names}
        held, parameters = torch.cuda.memory_allocated(), 0
        self.analog = self.deployed(0, generator)
        for module in self.digital.values():
            parameters += sum(parameter.numel() for parameter in module.parameters())
        self.memory_ratio = (torch.cuda.memory_allocated() - held) / (2 * parameters)
        every: dict[str, dict[str, Any]] = {"digital": self.digital, "analog": self.analog}
        self.experts = every | {"quarter": self.deployed(4, generator)}

    def deployed(self, one_digital_of: int, generator: torch.Generator) -> dict[str, AnalogExperts]:
        """Analog experts, of which each one of so many is digital; none for 0."""
        layers = {}
        for name, module in self.digital.items():
            number = module.get_parameter("down_proj").shape[0]
            digital = list(range(0, number, one_digital_of)) if one_digital_of else []
            layers[name] = AnalogExperts(module, digital, Hardware(c=1.0), CALIBRATION)
            layers[name].program(generator)
        return layers

    def run(self, kind: str, action: Callable[[nn.Module], object]) -> None:
        for name, module in self.experts[kind].items():
            self.network.set_submodule(name, module)
        action(self.network)

    def throughput(self, action: Callable[[nn.Module], object], tokens: int, runs: int) -> dict[str, float]:
        """Tokens/s of each kind, and those of analog experts over the digital ones'."""
        took = in_turns({kind: partial(self.run, kind, action) for kind in self.experts}, runs)
        ratios = {f"{kind}_ratio": took["digital"] / took[kind] for kind in ("analog", "quarter")}
        return {kind: tokens / each for kind, each in took.items()} | ratios


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", choices=CONFIGS, required=True)
    parser.add_argument("--runs", type=int, default=5, help="timed runs of each contestant (default 5)")
    parser.add_argument("--out", type=Path, help="JSON with all numbers")
    options = parser.parse_args()
    torch.set_grad_enabled(False)
    torch.manual_seed(0)
    with torch.device(DEVICE):
        network = AutoModelForCausalLM.from_config(CONFIGS[options.model], dtype=torch.bfloat16).eval()
    network.set_experts_implementation("grouped_mm")
    generator = torch.Generator(DEVICE).manual_seed(0)
    contest, words = Contest(network, generator), network.config.vocab_size
    rows: list[dict[str, Any]] = []

    def add(step: str, texts: int, action: Callable[[Any], object], tokens: int) -> None:
        rows.append({"step": step, "texts": texts, **contest.throughput(action, tokens, options.runs)})
        print(rows[-1], flush=True)

    for texts in READ:
        ids = torch.randint(words, (texts, LENGTH), device=DEVICE)
        add("read", texts, partial(_read, ids), ids.numel())
    for texts in (1, 32):
        ids = torch.randint(words, (texts, AFTER), device=DEVICE)
        add("generate", texts, partial(_generate, ids), texts * GENERATED)
    parameters = [parameter for module in contest.digital.values() for parameter in module.parameters()]
    took = in_turns(
        {
            "program": lambda: [layer.program(generator) for layer in contest.analog.values()],
            "randn_like": lambda: [torch.randn_like(each, dtype=torch.float32) for each in parameters],
        },
        options.runs,
    )
    rows.append(
        {
            "step": "program all experts",
            **took,
            "time_ratio": took["program"] / took["randn_like"],
            "memory_ratio": contest.memory_ratio,
        }
    )
    print(rows[-1])
    missed = [row for row in rows for kind in ("analog", "quarter") if row.get(f"{kind}_ratio", 1) < AT_LEAST]
    print("targets met" if not missed else f"below {AT_LEAST}: {missed}")
    record.write(options.out, rows, {"model": options.model, "runs": options.runs}, DEVICE)


def _read(ids: torch.Tensor, network: Any) -> object:
    return network(input_ids=ids, use_cache=False, logits_to_keep=1)


def _generate(ids: torch.Tensor, network: Any) -> object:
    return network.generate(ids, max_new_tokens=GENERATED, min_new_tokens=GENERATED, do_sample=False)


if __name__ == "__main__":
    main()
