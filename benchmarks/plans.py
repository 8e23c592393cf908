"""How far is the prediction of a plan from what is measured on held-out text, for eleven budgets?

`python benchmarks/plans.py --model tiny-olmoe --out benchmarks/data/plans-olmoe.json`. The budgets share closed forms,
corrections, noise draws and text. `closed` is the sum of the closed forms alone.
"""

import argparse
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

sys.path.insert(
    0, str(Path(__file__).resolve().parents[1])
)  # run from a checkout, whatever the working directory
import record

from realmodels.budgets import Budgets
from realmodels.evaluate import block_results
from realmodels.load import load
from realmodels.plan import DRAWS, blocks_of, decline_of, items_of, measurements
from realmodels.tasks import CONTINUATION
from theory import paper
from theory.hardware import Hardware
from theory.separation import evaluation_seeds

BUDGETS: tuple[dict[str, Any], ...] = (
    *({"digital_parameters": share} for share in ("2.5%", "5%", "10%", "20%", "30%", "40%", "50%")),
    {"digital_experts": "12.5%"},
    {"loss_increase": "1%"},
    {"loss_increase": "3%"},
    {"accuracy_drop": 1},
)
MAGNITUDES = (1.5, 2.5)
QUESTIONS = 200


def measured(name: str, c: float) -> list[dict[str, Any]]:
    """A row for each budget at one magnitude of noise; losses in nats per token."""
    model, hardware = load(name), Hardware(c=c)
    known, tasks = model.texts("calibration"), (CONTINUATION,)

    def silent(*_: object) -> None:
        pass

    items, kinds = items_of(model, hardware, known, paper.TABLE_2_BATCH.value, None, silent)
    decline = decline_of(items, hardware, known, tasks, QUESTIONS, silent)
    closed = items.uncorrected(kinds)
    blocks = blocks_of(model, model.texts("evaluation"), "evaluation")
    digital, _ = block_results(model.network, blocks.tokens)
    loss = float(digital.mean())
    placements = {
        " and ".join(f"{key.replace('_', ' ')} {value}" for key, value in each.items()): items.best(
            Budgets(**each), loss, decline
        )
        for each in BUDGETS
    }
    seeds = evaluation_seeds(DRAWS, DRAWS, None, "noise draws")
    found = measurements(
        model, hardware, items.ranges, placements, seeds, blocks, digital, silent, tasks, QUESTIONS
    )
    rows = []
    for budget, placement in placements.items():
        each = found[budget].of(items.outcome(placement), decline)
        assert each.accuracy is not None  # as there are tasks
        rows.append(
            {
                "model": name,
                "c": c,
                "budget": budget,
                "experts": each.digital_experts,
                "share": each.share,
                "closed": closed.outcome(placement).predicted,
                "predicted": each.predicted,
                "measured": each.measured,
                "interval": each.interval,
                "points": asdict(each.accuracy),
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="tiny-olmoe")
    parser.add_argument("--out", type=Path, help="JSON file of the rows")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = [row for c in MAGNITUDES for row in measured(options.model, c)]
    table = Table("c", "budget", "share", "closed", "predicted", "measured", "predicted/measured")
    for row in rows:
        numbers = (row[each] for each in ("share", "closed", "predicted", "measured"))
        ratio = row["predicted"] / row["measured"]
        table.add_row(f"{row['c']:g}", row["budget"], *(f"{each:.4f}" for each in numbers), f"{ratio:.2f}")
    Console().print(table)
    settings = {"draws": DRAWS, "questions": QUESTIONS, "magnitudes": list(MAGNITUDES), "threads": 1}
    record.write(options.out, rows, settings)


if __name__ == "__main__":
    main()
