"""Is my score of experts better than MaxNNScore?  python examples/own_score.py

A score is any tensor of shape (layers, experts): the experts with the highest scores stay digital.
"""

import torch

from realmodels import calibrate, deploy, evaluate, load, scores, withdraw
from theory.hardware import Hardware
from theory.placement import place

model = load("tiny-olmoe")
hardware = Hardware(c=2.5)
calibration = calibrate(model, model.texts("calibration"), hardware)


def largest_weight() -> torch.Tensor:
    """The largest |w| of each expert, which noise is relative to."""
    rows = []
    for layer in model.map.moe_layers:
        experts = model.network.get_submodule(layer.experts)
        rows.append(torch.stack([weight.abs().amax((1, 2)) for weight in experts.parameters()]).amax(0))
    return torch.stack(rows).double()


for name, score in {"mine": largest_weight(), "MaxNNScore": scores(model, "maxnn")}.items():
    deploy(model, place(score, digital_fraction=0.25), hardware, calibration, seed=0)
    print(f"{name}: {evaluate(model, model.texts('evaluation'), blocks=8)}")
    withdraw(model)
