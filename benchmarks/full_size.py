"""OLMoE-1B-7B and deepseek-moe-16b-base at full size, with random weights: time and peak memory of every step.

    python benchmarks/full_size.py --model olmoe --dtype float32 --folder olmoe --out olmoe.json

Weights are random, so that no hub is needed; they are written to FOLDER and loaded from there as a real checkpoint
would be. Then: calibrate, deploy (MaxNNScore, 12.5 % of experts and all dense modules digital), evaluate, reprogram;
and programming noise on all experts against torch.randn_like over them, in turns. Targets: at most 2.5 times its time
and, beside the model, at most 1.1 times the memory of the experts' programmed weights in fp32.
"""

import argparse
import shutil
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, OlmoeConfig, PreTrainedConfig

sys.path.insert(
    0, str(Path(__file__).resolve().parents[1])
)  # run from a checkout, whatever the working directory
import record

from realmodels import evaluate, load, scores
from realmodels.calibrate import calibrate
from realmodels.deepseek_moe import DeepseekConfig
from realmodels.deploy import deploy, reprogram, withdraw
from realmodels.load import DEFAULT_MODEL, Model
from theory.hardware import Hardware
from theory.placement import place

DEVICE = "cuda"
HARDWARE = Hardware(programming="pcm", c=1.5)
DIGITAL = 0.125
BLOCKS = 8
RUNS = 5
MOST_TIME, MOST_MEMORY = 2.5, 1.1
# The published configurations [config.json of allenai/OLMoE-1B-7B-0924 and deepseek-ai/deepseek-moe-16b-base].
CONFIGS: dict[str, PreTrainedConfig] = {
    "olmoe": OlmoeConfig(
        vocab_size=50304, hidden_size=2048, intermediate_size=1024, num_hidden_layers=16, num_attention_heads=16,
        num_experts=64, num_experts_per_tok=8, norm_topk_prob=False, max_position_embeddings=4096, eos_token_id=0,
    ),
    "deepseek": DeepseekConfig(eos_token_id=0),
}  # fmt: skip


class Steps:
    """Seconds and peak GPU memory (GiB) of each step, printed as they come."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        yield
        torch.cuda.synchronize()
        row = {
            "step": name,
            "seconds": time.perf_counter() - start,
            "peak_gib": torch.cuda.max_memory_allocated() / 2**30,
            "held_gib": torch.cuda.memory_allocated() / 2**30,
        }
        self.rows.append(row)
        print(row, flush=True)


def write(config: PreTrainedConfig, folder: Path) -> None:
    """A checkpoint of random weights, in bf16, with tiny-olmoe's tokenizer."""
    torch.manual_seed(0)
    with torch.device(DEVICE):
        network = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    network.save_pretrained(folder, max_shard_size="4GB")
    load(DEFAULT_MODEL).tokenizer.save_pretrained(folder)


def programming(model: Model) -> dict[str, Any]:
    """Programming of all analog experts against randn_like over as many weights, in turns."""
    modules = [model.analog_modules[layer.experts] for layer in model.map.moe_layers]
    generator = torch.Generator(DEVICE).manual_seed(0)
    times: dict[str, list[float]] = {"program": [], "randn_like": []}

    def timed(name: str, action: Any) -> None:
        torch.cuda.synchronize()
        start = time.perf_counter()
        action()
        torch.cuda.synchronize()
        times[name].append(time.perf_counter() - start)

    def randn() -> None:
        for module in modules:
            for parameter in module.parameters():
                torch.randn_like(parameter, dtype=torch.float32)

    def program() -> None:
        for module in modules:
            module.program(generator)

    for _ in range(RUNS):
        timed("randn_like", randn)
        timed("program", program)
    medians = {name: statistics.median(each) for name, each in times.items()}
    return {
        "step": "program all experts",
        **medians,
        "time_ratio": medians["program"] / medians["randn_like"],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", choices=CONFIGS, required=True)
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), default="float32", help="of the loaded model"
    )
    parser.add_argument("--folder", type=Path, required=True, help="for the checkpoint; removed afterwards")
    parser.add_argument("--out", type=Path, required=True, help="JSON with all numbers")
    options = parser.parse_args()
    steps = Steps()
    try:
        with steps.step("write a random checkpoint"):
            write(CONFIGS[options.model], options.folder)
        with steps.step("load"):
            model = load(options.folder, DEVICE, getattr(torch, options.dtype))
    finally:
        shutil.rmtree(options.folder, ignore_errors=True)
    experts = sum(
        model.network.get_parameter(name).numel() for layer in model.map.moe_layers for name in layer.weights
    )
    held = torch.cuda.memory_allocated()
    with steps.step("evaluate, digital"):
        digital = evaluate(model, model.texts("evaluation"), 512, BLOCKS)
    with steps.step("MaxNNScore"):
        placement = place(scores(model, "maxnn"), DIGITAL)
    with steps.step("calibrate"):
        calibration = calibrate(model, model.texts("calibration"), HARDWARE)
    with steps.step("deploy"):
        report = deploy(model, placement, HARDWARE, calibration)
    with steps.step("evaluate, deployed"):
        analog = evaluate(model, model.texts("evaluation"), 512, BLOCKS)
    with steps.step("reprogram"):
        reprogram(model, 1)
    withdraw(model)
    with steps.step("deploy with all experts analog"):
        deploy(model, place(scores(model, "maxnn"), 0.0), HARDWARE, calibration)
    extra = steps.rows[-1]["peak_gib"] - held / 2**30
    ratios = programming(model)
    ratios["memory_ratio"] = extra / (4 * experts / 2**30)
    settings = {
        "model": options.model,
        "dtype": options.dtype,
        "parameters": report.total,
        "expert_parameters": experts,
        "tokens": 512 * BLOCKS,
        "digital_loss": digital.loss,
        "analog_loss": analog.loss,
    }
    record.write(options.out, [*steps.rows, ratios], settings, DEVICE)
    print(report, ratios, sep="\n")
    met = ratios["time_ratio"] <= MOST_TIME and ratios["memory_ratio"] <= MOST_MEMORY
    print("targets met" if met else f"targets: time ratio {MOST_TIME}, memory ratio {MOST_MEMORY}: not met")
    return 0 if met else 1


if __name__ == "__main__":
    raise SystemExit(main())
