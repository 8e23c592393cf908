"""How many digital experts do I need, and in which layers?  python examples/own_budget.py

`across_layers=True` ranks all layers together, so that the budget goes where scores are highest. A `Placement` can
also be written by hand.
"""

from realmodels import calibrate, deploy, evaluate, expected_damage, load, withdraw
from theory.hardware import Hardware
from theory.placement import Placement, place

model = load("tiny-olmoe")
hardware = Hardware(c=2.5)
calibration = calibrate(model, model.texts("calibration"), hardware)
damage = expected_damage(model, model.texts("calibration"), hardware)
layers, experts = damage.shape
placements = {
    f"{fraction:.1%} {where}": place(damage, fraction, across_layers=where == "of all experts")
    for fraction in (0.0, 0.125, 0.25)
    for where in ("of each layer", "of all experts")
}
by_hand = (tuple(range(experts)), *[()] * (layers - 1))
placements["the first layer"] = Placement((experts,) * layers, by_hand)
for name, placement in placements.items():
    sizes = ", ".join(str(len(chosen)) for chosen in placement.digital_experts)
    deploy(model, placement, hardware, calibration, seed=0)
    print(f"{name} ({sizes} by layer): {evaluate(model, model.texts('evaluation'), blocks=8)}")
    withdraw(model)
