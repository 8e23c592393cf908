"""Time of a noisy evaluation through the table of expert outputs against a loop over draws and experts.

`make benchmark`, or `python benchmarks/noise_table.py --draws 64 --runs 9`. Both draw the same noise for random
weights, evaluate the same inputs and have to agree; routing, which noise leaves alone, is done beforehand. They
take turns, so a burst of load on the machine hits both; the ratios are of medians over runs.
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

sys.path.insert(
    0, str(Path(__file__).resolve().parents[1])
)  # run from a checkout, whatever the working directory
import record

from synthetic.data import Task, evaluation_samples, stream
from synthetic.model import ModelConfig, MoE, initialise
from synthetic.robustness import noisy_outputs, program
from theory.hardware import Hardware

SEED = 0
C = 0.2  # of the order of the reference instance's tolerance
NOISE = Hardware(programming="constant", w_max="layer", dac_bits=None, adc_bits=None)
TARGET = 7.0  # loop over table
WORLDS = {
    "reference": (Task(), ModelConfig(init_std=1.0)),
    "m = 32": (Task(), ModelConfig(m=32, init_std=1.0)),
    "Zipf, V = 16": (Task.zipf(16, 1.0), ModelConfig((1,) * 16, init_std=1.0)),
    "token choice": (Task(), ModelConfig(routing="token_choice", selected=2, init_std=1.0)),
}


def contestants(model: MoE, inputs: Tensor, draws: int) -> dict[str, Callable[[], Tensor]]:
    """The outputs (draws, inputs) of the one model under noise, all experts analog, in both forms."""
    gates = model.gates(inputs)
    analog = torch.ones(model.config.experts, dtype=torch.bool)
    index, weights = (each[0].transpose(1, 2) for each in model.route(inputs))
    vectors = [model.tokens[0, chosen] for chosen in index]  # of every expert, (inputs, l, d)

    def through_table() -> Tensor:
        return noisy_outputs(program(model, NOISE, draws, [SEED]), gates, C, analog)[:, 0]

    def in_loops() -> Tensor:
        rng = stream(SEED, "noise")
        exact = model.weights["up"][0]
        outputs = exact.new_zeros(draws, inputs.shape[1])
        for draw in range(draws):
            normal = torch.from_numpy(rng.standard_normal(exact.shape)).to(exact)
            for expert, weight in enumerate(exact):
                noisy = weight + C * weight.abs().max() * normal[expert]
                neurons = (vectors[expert] @ noisy.T).relu()
                outputs[draw] += model.output_signs[expert] * (weights[expert] * neurons.mean(-1)).sum(-1)
        return outputs

    return {"table": through_table, "loops": in_loops}


def measure(
    forms: dict[str, Callable[[], Tensor]], runs: int, advance: Callable[[], None]
) -> dict[str, float]:
    """Median seconds of both; the first round of runs is a warm-up, in which the outputs are compared."""
    torch.testing.assert_close(*(form() for form in forms.values()), rtol=1e-4, atol=1e-4)
    advance()
    seconds: dict[str, list[float]] = {name: [] for name in forms}
    for _ in range(runs):
        for name, form in forms.items():
            start = time.perf_counter()
            form()
            seconds[name].append(time.perf_counter() - start)
        advance()
    return {name: statistics.median(each) for name, each in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--inputs", type=int, default=1000, help="inputs that are evaluated (default 1000)")
    parser.add_argument("--draws", type=int, default=64, help="programming events (default 64)")
    parser.add_argument("--runs", type=int, default=9, help="timed runs of each form (default 9)")
    parser.add_argument("--threads", type=int, default=1, help="threads of PyTorch (default 1)")
    parser.add_argument("--out", type=Path, help="JSON with all numbers, and where they come from")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.set_grad_enabled(False)
    table = Table(
        title=f"{arguments.draws} noise draws x {arguments.inputs} inputs, fp32, {arguments.threads} thread(s),"
        f" medians of {arguments.runs}"
    )
    for column in ("world", "table", "loops", "loops / table", "target"):
        table.add_column(column, justify="right")
    rows = []
    with Progress() as progress:
        task = progress.add_task("runs", total=len(WORLDS) * (arguments.runs + 1))
        for name, (data, config) in WORLDS.items():
            model = initialise(data, config, (SEED,))
            inputs = evaluation_samples(data, arguments.inputs, (SEED,)).tokens
            forms = contestants(model, inputs, arguments.draws)
            times = measure(forms, arguments.runs, lambda: progress.advance(task))
            speedup = times["loops"] / times["table"]
            rows.append({"world": name, **times, "speedup": speedup})
            table.add_row(
                name,
                *(f"{1000 * value:.0f} ms" for value in times.values()),
                f"{speedup:.1f}",
                f">= {TARGET:g} {'met' if speedup >= TARGET else 'missed'}",
            )
    Console(width=max(100, Console().width)).print(table)
    settings = {name: getattr(arguments, name) for name in ("inputs", "draws", "runs", "threads")}
    record.write(arguments.out, rows, settings)


if __name__ == "__main__":
    main()
