"""What if my device is noisier, or has another noise?  python examples/own_noise.py

A programming noise is any function: the standard deviation of a weight, in units of w_max, over r = |w|/w_max. A
polynomial is faster on a GPU.
"""

import torch

from realmodels import calibrate, deploy, evaluate, load, scores, withdraw
from theory.hardware import PROGRAMMING_NOISE, Hardware, ProgrammingNoise
from theory.placement import place

# 1 % of w_max for a weight of 0, 6 % for the largest.
PROGRAMMING_NOISE["mine"] = ProgrammingNoise(pieces=({0: 0.01, 1: 0.08, 2: -0.03},))
PROGRAMMING_NOISE["a function"] = ProgrammingNoise((), function=lambda r: 0.01 + 0.05 * torch.tanh(3 * r))

model = load("tiny-olmoe")
placement = place(scores(model, "maxnn"), digital_fraction=0.25)
calibration = calibrate(model, model.texts("calibration"), Hardware())
for programming in ("mine", "a function", "pcm"):
    for c in (1.0, 2.5):
        deploy(model, placement, Hardware(programming=programming, c=c), calibration, seed=0)
        print(f"{programming}, c = {c}: {evaluate(model, model.texts('evaluation'), blocks=8)}")
        withdraw(model)
