"""Converter ranges from text: kappa and lambda of every layer [PAPER.md, hardware model].

The digital model reads a few blocks of calibration text, which must not be used for evaluation, once forward and
once backward. For each linear layer (all experts of a layer together) kappa is the DAC bound, in units of the
standard deviation of its inputs, and then lambda the ADC bound, that adds least to the loss: the squared error of the
layer's outputs, each weighted by the squared gradient of the loss at that output, which to second order is what
independent errors cost [the diagonal of the empirical Fisher matrix]. Without the weights a few very large activations
would set the range, and everything else would round to zero. For the same reason each expert's down projection, a
linear layer with inputs of its own, has a standard deviation of its own. The search is on a geometric grid that
begins where nothing saturates.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from realmodels.analog import LayerCalibration, Ranges, apply_gate, grouped_matmul
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

    layers: Mapping[str, Ranges]
    hardware: Hardware

    def __getitem__(self, parameter: str) -> Ranges:
        if parameter not in self.layers:
            raise InputError(
                f"calibration has no {parameter}: it is of another model, or this one never calls that module;"
                " calibrate this very model, or keep the module digital"
            )
        return self.layers[parameter]


@dataclass(frozen=True)
class _Layer:
    """What the search needs of a layer: rows grouped by expert, expert e's ending before row ends[e].

    sensitivity: squared gradient of the loss at each output of each row. matrices: how many matrices with tiles
    of their own each expert's weight stacks. own_inputs: whether each expert has a DAC of its own.
    """

    rows: Float[Tensor, "rows in"]
    weight: Float[Tensor, "experts out in"]
    ends: Int[Tensor, " experts"]
    sensitivity: Float[Tensor, "rows out"]
    matrices: int = 1
    own_inputs: bool = False


@torch.inference_mode(False)  # gradients are needed, in whatever mode the caller is
def calibrate(model: Model, texts: Sequence[str], hardware: Hardware) -> Calibration:
    """Ranges for every layer that can be analog, from CALIBRATION_TOKENS tokens spread over `texts`.

    InputError if the model is deployed. Programming noise plays no part, so that one calibration serves every c.
    """
    model.require_digital()
    length = min(BLOCK_TOKENS, model.context)
    tokens = token_blocks(model, texts, length, max(2, CALIBRATION_TOKENS // length)).tokens
    names = [*model.map.linears, *(layer.experts for layer in model.map.moe_layers)]
    inputs, outputs = _record(model.network, names, tokens.to(model.network.device))
    layers: dict[str, _Layer] = {}
    for name in model.map.linears:
        if name in outputs:  # a network may have parts that it does not call
            rows, gradient = _spread(inputs[name][0]).float(), _spread(_gradient(outputs[name])).float()
            ends = torch.tensor([len(rows)], dtype=torch.int32, device=rows.device)
            weight = model.network.get_parameter(f"{name}.weight").detach().float()
            layers[f"{name}.weight"] = _Layer(rows, weight[None], ends, gradient.square())
    for layer in model.map.moe_layers:
        experts = model.network.get_submodule(layer.experts)
        gate_up, down = _expert_layers(experts, inputs[layer.experts], _gradient(outputs[layer.experts]))
        layers |= {f"{layer.experts}.gate_up_proj": gate_up, f"{layer.experts}.down_proj": down}
    return Calibration({name: _search(name, layer, hardware) for name, layer in layers.items()}, hardware)


def _record(
    network: PreTrainedModel, names: Sequence[str], tokens: Int[Tensor, "blocks tokens_plus_1"]
) -> tuple[dict[str, tuple[Tensor, ...]], dict[str, Tensor]]:
    """Inputs of the named modules, and their outputs with the gradient of the summed loss in `grad`."""
    inputs: dict[str, tuple[Tensor, ...]] = {}
    outputs: dict[str, Tensor] = {}

    def hook(name: str) -> Any:
        def record(module: nn.Module, given: tuple[Any, ...], output: Tensor) -> None:
            inputs[name] = tuple(each.detach() for each in given)
            outputs[name] = output
            output.retain_grad()

        return record

    handles = [network.get_submodule(name).register_forward_hook(hook(name)) for name in names]
    try:
        with torch.enable_grad():
            # Parameters need no gradient, but what is computed from these embeddings has one.
            embedded = network.get_input_embeddings()(tokens[:, :-1]).requires_grad_()
            logits = network(inputs_embeds=embedded, use_cache=False).logits
            F.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten(), reduction="sum").backward()
    finally:
        for handle in handles:
            handle.remove()
    return inputs, outputs


def _expert_layers(experts: nn.Module, inputs: tuple[Tensor, ...], gradient: Tensor) -> tuple[_Layer, _Layer]:
    """gate_up and down of a fused experts module, from the gradient at its output."""
    hidden, index, weights, gradient = (_spread(each) for each in (*inputs[:3], gradient))
    gate_up, down = (experts.get_parameter(name).detach().float() for name in ("gate_up_proj", "down_proj"))
    expert, order = index.flatten().sort()
    token = order // index.shape[1]
    ends = expert.bincount(minlength=len(down)).cumsum(0).int()
    rows = hidden.float()[token]
    down_gradient = gradient.float()[token] * weights.float().flatten()[order, None]
    with torch.enable_grad():
        both = grouped_matmul(rows, gate_up, ends).requires_grad_()
        inner = apply_gate(experts, both)
        inner_gradient = grouped_matmul(down_gradient, down.mT.contiguous(), ends)
        (both_gradient,) = torch.autograd.grad(inner, both, inner_gradient)
    # gate and up have tiles of their own, with the same inputs and one calibration for both
    return (
        _Layer(rows, gate_up, ends, both_gradient.square(), matrices=2),
        _Layer(inner.detach(), down, ends, down_gradient.square(), own_inputs=True),
    )


def _gradient(output: Tensor) -> Tensor:
    assert output.grad is not None  # every layer is on the way to the loss
    return output.grad


def _spread(values: Float[Tensor, "*tokens width"]) -> Float[Tensor, "rows width"]:
    rows = values.reshape(-1, values.shape[-1])
    count = min(ROWS, len(rows))
    return rows[torch.arange(count, device=rows.device) * len(rows) // count]


@torch.no_grad()
def _search(name: str, layer: _Layer, hardware: Hardware) -> Ranges:
    rows, weight, ends = layer.rows, layer.weight, layer.ends
    expert = torch.searchsorted(ends.long(), torch.arange(len(rows), device=rows.device), right=True)
    std = _input_std(name, layer, expert)
    spread = std[expert, None]

    def cost(error: Float[Tensor, "rows out"]) -> Tensor:
        return (error.square() * layer.sensitivity).sum()

    def input_cost(kappa: float) -> Tensor:
        error = quantise_input(rows, kappa * spread, hardware.dac_bits) - rows
        return cost(grouped_matmul(error, weight, ends))

    largest = float((rows.abs() / spread).max())
    kappa = largest if hardware.dac_bits is None else _best(largest, input_cost)
    bound = spread * (kappa if hardware.kappa is None else hardware.kappa)
    codes = quantise_input(rows, bound, hardware.dac_bits)
    w_max = largest_weights(weight.unflatten(1, (layer.matrices, -1)), hardware).flatten(1, 2)
    products, units = [], []
    for number, start in enumerate(range(0, rows.shape[1], hardware.tile_size)):
        part = slice(start, start + hardware.tile_size)
        products.append(grouped_matmul(codes[:, part].contiguous(), weight[..., part].contiguous(), ends))
        units.append(bound * w_max[expert, :, number])  # an ADC bound is lam times its unit
    product, unit = torch.stack(products), torch.stack(units)
    largest = float((product.abs() / unit).nan_to_num(0.0).max())  # a tile of zeros has neither

    def output_cost(lam: float) -> Tensor:
        return cost((quantise_output(product, lam * unit, hardware.adc_bits) - product).sum(0))

    lam = largest if hardware.adc_bits is None else _best(largest, output_cost)
    each = tuple(LayerCalibration(value, kappa, lam) for value in std.tolist())
    return each if layer.own_inputs else each[0]


def _input_std(name: str, layer: _Layer, expert: Int[Tensor, " rows"]) -> Float[Tensor, " experts"]:
    """Standard deviation of the inputs of each expert, or of all together: also for experts without any."""
    together = layer.rows.std()
    if not together > 0:
        raise InputError(f"calibration: the inputs of {name} do not vary; give text that reaches this layer")
    if not layer.own_inputs:
        return together.expand(len(layer.ends))
    rows = layer.rows.double()
    sums = rows.new_zeros(len(layer.ends), 2)
    sums.index_add_(0, expert, torch.stack([rows.sum(1), rows.square().sum(1)], 1))
    numbers = rows.shape[1] * expert.bincount(minlength=len(sums))[:, None].clamp(min=1)
    mean, square = (sums / numbers).T
    own = (square - mean.square()).clamp(min=0).sqrt().to(together.dtype)
    return torch.where(own > 0, own, together)


def _best(largest: float, cost: Callable[[float], Tensor]) -> float:
    bounds = [largest * factor for factor in GRID]
    return bounds[int(torch.stack([cost(bound) for bound in bounds]).argmin())]
