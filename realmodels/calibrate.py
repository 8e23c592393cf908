"""Converter ranges from text: kappa and lambda of every layer [PAPER.md, hardware model].

The digital model reads a few blocks of calibration text, which must not be used for evaluation. For each linear
layer (all experts of a layer together) kappa is the DAC bound that minimises the squared error of its inputs
after the DAC, and then lambda the ADC bound that minimises the squared error of its outputs after the ADC. Both
are searched on a geometric grid that begins where nothing saturates.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from realmodels.analog import LayerCalibration, apply_gate, grouped_matmul
from realmodels.evaluate import BLOCK_TOKENS, token_blocks
from realmodels.load import Model
from theory.errors import InputError
from theory.hardware import Hardware, largest_weights, quantise_input, quantise_output

CALIBRATION_TOKENS = 4096
ROWS = 1024  # tokens that the search looks at, spread evenly over the calibration tokens
GRID = [2.0 ** (-step / 4) for step in range(28)]  # bounds, in units of the largest magnitude


@dataclass(frozen=True)
class Calibration:
    """By parameter name ("lm_head.weight", "model.layers.0.mlp.experts.down_proj"), for one kind of hardware."""

    layers: Mapping[str, LayerCalibration]
    hardware: Hardware

    def __getitem__(self, parameter: str) -> LayerCalibration:
        if parameter not in self.layers:
            raise InputError(
                f"calibration has no {parameter}: it is of another model, or this one never calls that module;"
                " calibrate this very model, or keep the module digital"
            )
        return self.layers[parameter]


@torch.no_grad()
def calibrate(model: Model, texts: Sequence[str], hardware: Hardware) -> Calibration:
    """Ranges for every layer that can be analog, from CALIBRATION_TOKENS tokens spread over `texts`.

    InputError if the model is deployed. Programming noise plays no part, so that one calibration serves every c.
    """
    model.require_digital()
    length = min(BLOCK_TOKENS, model.context)
    tokens = token_blocks(model, texts, length, max(2, CALIBRATION_TOKENS // length)).tokens
    layers: dict[str, LayerCalibration] = {}
    handles = []
    try:
        for name in model.map.linears:
            hook = _linear_hook(name, hardware, layers)
            handles.append(model.network.get_submodule(name).register_forward_pre_hook(hook))
        for layer in model.map.moe_layers:
            hook = _experts_hook(layer.experts, hardware, layers)
            handles.append(model.network.get_submodule(layer.experts).register_forward_pre_hook(hook))
        device = next(model.network.parameters()).device
        model.network(input_ids=tokens[:, :-1].to(device), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return Calibration(layers, hardware)


Hook = Callable[[nn.Module, tuple[Any, ...]], None]


def _linear_hook(name: str, hardware: Hardware, layers: dict[str, LayerCalibration]) -> Hook:
    def hook(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        rows = _spread(inputs[0].reshape(-1, inputs[0].shape[-1])).float()
        ends = torch.tensor([len(rows)], dtype=torch.int32, device=rows.device)
        weight = module.get_parameter("weight").detach().float()
        layers[f"{name}.weight"] = _search(f"{name}.weight", rows, weight[None], ends, hardware)

    return hook


def _experts_hook(name: str, hardware: Hardware, layers: dict[str, LayerCalibration]) -> Hook:
    def hook(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        hidden, index = (_spread(each) for each in inputs[:2])
        gate_up, down = (
            module.get_parameter(each).detach().float() for each in ("gate_up_proj", "down_proj")
        )
        expert, order = index.flatten().sort()
        rows = hidden.float()[order // index.shape[1]]
        ends = expert.bincount(minlength=len(down)).cumsum(0).int()
        inner = apply_gate(module, grouped_matmul(rows, gate_up, ends))
        # gate and up have tiles of their own, with the same inputs and one calibration for both
        layers[f"{name}.gate_up_proj"] = _search(
            f"{name}.gate_up_proj", rows, gate_up, ends, hardware, matrices=2
        )
        layers[f"{name}.down_proj"] = _search(f"{name}.down_proj", inner, down, ends, hardware)

    return hook


def _spread(rows: Tensor) -> Tensor:
    count = min(ROWS, len(rows))
    return rows[torch.arange(count, device=rows.device) * len(rows) // count]


def _search(
    name: str,
    rows: Float[Tensor, "rows in"],
    weight: Float[Tensor, "experts out in"],
    ends: Int[Tensor, " experts"],
    hardware: Hardware,
    matrices: int = 1,
) -> LayerCalibration:
    """Ranges of one layer from rows grouped by expert, expert e's ending before row ends[e]."""
    std, largest = float(rows.std()), float(rows.abs().max())
    if not std > 0:
        raise InputError(f"calibration: the inputs of {name} do not vary; give text that reaches this layer")
    bound = (
        largest
        if hardware.dac_bits is None
        else _best(
            largest, lambda bound: (quantise_input(rows, bound, hardware.dac_bits) - rows).square().sum()
        )
    )
    kappa = bound / std
    bound = bound if hardware.kappa is None else hardware.kappa * std
    codes = quantise_input(rows, bound, hardware.dac_bits)
    w_max = largest_weights(weight.unflatten(1, (matrices, -1)), hardware).flatten(1, 2)
    expert = torch.searchsorted(ends, torch.arange(len(rows), device=rows.device), right=True)
    products, units = [], []
    for number, start in enumerate(range(0, rows.shape[1], hardware.tile_size)):
        part = slice(start, start + hardware.tile_size)
        products.append(grouped_matmul(codes[:, part].contiguous(), weight[..., part].contiguous(), ends))
        units.append(bound * w_max[expert, :, number])  # an ADC bound is lam times its unit
    product, unit = torch.stack(products), torch.stack(units)
    largest = float((product.abs() / unit).nan_to_num(0.0).max())  # a tile of zeros has neither
    lam = (
        largest
        if hardware.adc_bits is None
        else _best(
            largest,
            lambda lam: (quantise_output(product, lam * unit, hardware.adc_bits) - product).square().sum(),
        )
    )
    return LayerCalibration(std, kappa, lam)


def _best(largest: float, error: Callable[[float], Tensor]) -> float:
    bounds = [largest * factor for factor in GRID]
    return bounds[int(torch.stack([error(bound) for bound in bounds]).argmin())]
