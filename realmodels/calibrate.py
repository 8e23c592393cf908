"""Which kappa and lambda do the converters need, judged by text [hardware model, docs/paper.md]?

The digital model reads a few blocks of calibration text, once forward and once backward. That text must not be used
for evaluation. There are two methods, and neither draws anything at random.

"layer": a kappa and a lambda for every layer. For each linear layer (all experts of a layer together) the search takes
first the DAC bound kappa, in units of the standard deviation of the layer's inputs, and then the ADC bound lambda. Each
is the bound that adds least to the loss. What a bound adds is the squared error of the layer's outputs, each output
weighted by the squared gradient of the loss there; to second order that is the cost of independent errors [the diagonal
of the empirical Fisher matrix]. Without the weights a few very large activations would set the range, and everything
else would round to zero. For the same reason a linear layer with inputs of its own has a standard deviation of its own:
each expert's down projection, and each linear layer of experts in an `nn.ModuleList`. The search is on a geometric grid
that begins where nothing saturates.

The search looks at a sample of the tokens, and other text may have larger inputs than any of them. So the largest
inputs and outputs of all tokens, UNSEEN times as large, count together as much as one token: where more bits leave less
to round, the bounds widen until nothing is clipped.

"model": one kappa and one lambda for the whole model, as in AIHWKIT-Lightning, the paper's simulator. A DAC bound is
kappa times the standard deviation of the layer's inputs in one input slice. Which inputs have one of their own is as
above. Everything that has ranges is made analog, with exact weights, and reads the same text: kappa is what adds least
to the next-token loss while there are no ADCs, and lambda what adds least with that kappa. Each is the best of OCTAVES
bounds, each half of the one before, from where nothing saturates; then of these and the bounds beside it by a half
octave; then by a quarter.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, NamedTuple, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from realmodels.analog.crossbars import of_inputs
from realmodels.analog.layers import AnalogExperts, AnalogLinear
from realmodels.analog.ranges import Calibration, LayerCalibration, Ranges, for_experts
from realmodels.devices import device_of, weights_of
from realmodels.evaluate import block_results
from realmodels.fused import apply_gate, fused_layout, grouped_matmul
from realmodels.model import Model, require_model
from realmodels.record import CALIBRATION_TOKENS, Call, calibration_tokens, record
from theory.errors import InputError
from theory.hardware import (
    Hardware,
    largest_weights,
    quantise_input,
    quantise_output,
    require_hardware,
)

ROWS = 1024  # tokens that the search looks at
# Times the largest of all tokens: so large may be what other text has. It lies between steps of GRID: at half of a
# bound, 63.5 of 127 codes, the largest would be on the edge of two codes, and rounding errors would choose.
UNSEEN = 2.0 ** (9 / 8)
WEIGHT = ROWS / CALIBRATION_TOKENS  # of what is unseen: one token among all
GRID = [2.0 ** (-step / 4) for step in range(28)]  # bounds, in units of the largest magnitude
OCTAVES = 10  # bounds of the whole model, each half of the one before

Method = Literal["layer", "model"]
METHODS: tuple[Method, ...] = get_args(Method)


class _Extremes(NamedTuple):
    """Of all tokens, the row with the largest input of each expert and the one with the largest product.

    sizes: the largest input of each row, and its largest product in units of w_max.
    """

    rows: Float[Tensor, "extremes in"]
    expert: Int[Tensor, " extremes"]
    sizes: Float[Tensor, "extremes 2"]


@dataclass(frozen=True)
class _Layer:
    """What the search needs of a layer.

    rows: inputs, grouped by expert.
    ends: the rows of expert e end before row ends[e].
    sensitivity: squared gradient of the loss at each output of each row.
    extremes: those of all tokens.
    matrices: how many matrices with tiles of their own each expert's weight stacks.
    own_inputs: each expert has a DAC of its own.
    """

    rows: Float[Tensor, "rows in"]
    weight: Float[Tensor, "experts out in"]
    ends: Int[Tensor, " experts"]
    sensitivity: Float[Tensor, "rows out"]
    extremes: _Extremes
    matrices: int = 1
    own_inputs: bool = False

    def expert(self) -> Int[Tensor, " rows"]:
        """The expert that reads each row."""
        numbers = torch.arange(len(self.rows), device=self.rows.device)
        return torch.searchsorted(self.ends.long(), numbers, right=True)

    def with_extremes(self, times: float) -> "_Layer":
        """The layer with its extremes, `times` as large, as further rows.

        A relative error of their outputs costs together as much as one token's does on average.
        """
        numbers = torch.arange(len(self.ends), device=self.ends.device)

        def ends(expert: Tensor) -> Tensor:
            return torch.searchsorted(expert, numbers, right=True).int()

        further, mean = times * self.extremes.rows, self.sensitivity.mean(0)
        products = grouped_matmul(self.rows, self.weight, self.ends)
        of_further = grouped_matmul(further, self.weight, ends(self.extremes.expert))
        cost = (products.square() * self.sensitivity).sum() / len(products)
        share = WEIGHT * cost / len(further) / (of_further.square() @ mean)
        sensitivity = share.nan_to_num(0, 0, 0)[:, None] * mean
        expert, order = torch.cat([self.expert(), self.extremes.expert]).sort(stable=True)
        return replace(
            self,
            rows=torch.cat([self.rows, further])[order],
            ends=ends(expert),
            sensitivity=torch.cat([self.sensitivity, sensitivity])[order],
        )


@torch.inference_mode(False)  # gradients are needed, in whatever mode the caller is
def calibrate(
    model: Model,
    texts: Sequence[str],
    hardware: Hardware,
    method: Method = "layer",
    *,
    each: Callable[[str, Callable[[], Ranges]], Ranges] = lambda name, search: search(),
) -> Calibration:
    """Ranges for every layer that can be analog, from CALIBRATION_TOKENS tokens spread over `texts`.

    method: "layer" for a kappa and a lambda of each layer, "model" for one of each [the module's docstring].
    each: for "layer", gets the name of every layer and what searches for its ranges, and returns these: a cache, say.
    InputError for another method, or if the model is deployed. Programming noise plays no part, so that one
    calibration serves every c.
    """
    if method not in METHODS:
        raise InputError(f"method is {method!r}: give one of {', '.join(METHODS)}")
    require_model(model)
    require_hardware(hardware)
    model.require_digital()
    layers = model.map.moe_layers
    modules = [*model.map.linears, *(layer.experts for layer in layers if not layer.linears)]
    modules += [name for layer in layers for expert in layer.linears for name in expert]
    tokens = calibration_tokens(model, texts)
    calls = record(model, modules, tokens, rows=ROWS, look=partial(_look, hardware))
    if method == "model":
        return _one_for_all(model, calls, tokens, hardware)
    found: dict[str, Ranges] = {}
    for names, layer in _layers(model, calls):
        found |= _by_name(names, each(names[0], partial(_search, names[0], layer, hardware)))
    return Calibration(found, hardware)


def _by_name(names: Sequence[str], ranges: Ranges) -> dict[str, Ranges]:
    return dict(zip(names, (ranges,) if len(names) == 1 else for_experts(ranges, len(names)), strict=True))


def _layers(model: Model, calls: Mapping[str, list[Call]]) -> Iterator[tuple[tuple[str, ...], _Layer]]:
    """Every layer with a search of its own, and the names of its parameters: one, or one for each expert."""
    for name in model.map.linears:
        if name in calls:  # a network may have parts that it does not call
            yield (f"{name}.weight",), _linear_layer(model, (name,), calls)
    for layer in model.map.moe_layers:
        for projection in zip(*layer.linears, strict=True):
            if any(name in calls for name in projection):
                names = tuple(f"{name}.weight" for name in projection)
                yield names, _linear_layer(model, projection, calls, own_inputs=True)
        if layer.experts in calls:
            experts = model.network.get_submodule(layer.experts)
            both = _fused_layers(experts, calls[layer.experts])
            for name, each in zip(layer.weights, both, strict=True):
                yield (name,), each


def _linear_layer(
    model: Model, names: Sequence[str], calls: Mapping[str, list[Call]], own_inputs: bool = False
) -> _Layer:
    """Equally shaped `nn.Linear` modules as one layer; each module is called with rows of its own."""
    parts = [calls.get(name, []) for name in names]
    counts = torch.tensor([sum(len(call.inputs[0]) for call in part) for part in parts])
    (rows, *_), gradient = _joined([call for part in parts for call in part])
    weights = [weights_of(model.network.get_submodule(name))["weight"] for name in names]
    weight = torch.stack(weights).float()
    ends = counts.cumsum(0).int().to(rows.device)
    seen = [
        each._replace(expert=each.expert + number)
        for number, part in enumerate(parts)
        for call in part
        for each in call.seen
    ]
    extremes = _extremes(*map(torch.cat, zip(*seen, strict=True)))
    return _Layer(rows.float(), weight, ends, gradient.float().square(), extremes, own_inputs=own_inputs)


def _fused_layers(experts: nn.Module, calls: Sequence[Call]) -> tuple[_Layer, _Layer]:
    """gate_up and down of a fused experts module, from the gradient at its output."""
    inputs, gradient = _joined(calls)
    of_first, of_down = (
        _extremes(*map(torch.cat, zip(*each, strict=True)))
        for each in zip(*(call.seen for call in calls), strict=True)
    )
    layout = fused_layout(experts)
    first, second = layout.weights
    weight = {name: each.float() for name, each in weights_of(experts).items()}
    number = len(weight[second])
    routing = layout.routing(inputs, number)
    expert, token, routing_weight, ends = routing.by_expert(number)
    rows, down = routing.hidden.float()[token], layout.rows(second, weight[second])
    down_gradient = gradient.float()[token] * routing_weight.float()[:, None]
    with torch.enable_grad():
        both = grouped_matmul(rows, layout.rows(first, weight[first]), ends)
        if layout.biased:
            both = both + weight[f"{first}_bias"][expert]
        inner = apply_gate(experts, both.requires_grad_())
        inner_gradient = grouped_matmul(down_gradient, down.mT.contiguous(), ends)
        (both_gradient,) = torch.autograd.grad(inner, both, inner_gradient)
    # gate and up have tiles of their own, with the same inputs and one calibration for both
    matrices = layout.matrices(first, weight[first])
    if layout.gated:
        both_gradient = layout.gate_then_up(both_gradient)
    return (
        _Layer(rows, matrices.flatten(1, 2), ends, both_gradient.square(), of_first, matrices.shape[1]),
        _Layer(inner.detach(), down, ends, down_gradient.square(), of_down, own_inputs=True),
    )


def _look(
    hardware: Hardware, module: nn.Module, inputs: tuple[Tensor, ...], outputs: Tensor
) -> tuple[_Extremes, ...]:
    """The extremes of each weight of a module in a call."""
    weights = weights_of(module)

    def extremes(rows: Tensor, expert: Tensor, matrices: Tensor, products: Tensor) -> _Extremes:
        w_max = largest_weights(matrices, hardware).amax(-1).flatten(1)  # of the largest slice
        w_max = w_max.where(w_max > 0, math.inf)  # tiles of zeros have no say
        products = products / (w_max if len(w_max) == 1 else w_max[expert])
        sizes = torch.stack([rows.abs().amax(1), products.abs_().amax(1)], 1)
        return _extremes(rows, expert, sizes)

    if isinstance(module, nn.Linear):
        products = outputs - weights["bias"] if "bias" in weights else outputs
        rows, products = inputs[0].flatten(0, -2), products.flatten(0, -2)
        expert = torch.zeros(len(rows), dtype=torch.long, device=rows.device)
        return (extremes(rows, expert, weights["weight"][None, None], products),)
    layout = fused_layout(module)
    first, second = layout.weights
    down = layout.rows(second, weights[second])
    routing = layout.routing(inputs, len(down))
    expert, token, _, ends = routing.by_expert(len(down))
    rows = routing.hidden[token]
    both = grouped_matmul(rows, layout.rows(first, weights[first]), ends)
    inner = apply_gate(module, both + weights[f"{first}_bias"][expert] if layout.biased else both)
    both = layout.gate_then_up(both) if layout.gated else both
    return (
        extremes(rows, expert, layout.matrices(first, weights[first]), both),
        extremes(inner, expert, down[:, None], grouped_matmul(inner, down, ends)),
    )


def _extremes(
    rows: Float[Tensor, "rows in"], expert: Int[Tensor, " rows"], sizes: Float[Tensor, "rows 2"]
) -> _Extremes:
    """Of each expert, the row that is largest by each size."""
    found = []
    for size in sizes.T:
        order = size.argsort()
        order = order[expert[order].argsort(stable=True)]
        last = expert[order].diff(append=expert.new_tensor([-1])) != 0  # of each expert
        found.append(order[last])
    index = torch.cat(found)
    index = index[expert[index].argsort()]
    return _Extremes(rows[index].float(), expert[index], sizes[index])


def _joined(calls: Sequence[Call]) -> tuple[tuple[Tensor, ...], Tensor]:
    """The inputs of all calls, one call after the other, and the gradients at their outputs."""
    gradients = [call.gradient for call in calls if call.gradient is not None]
    assert len(gradients) == len(calls)  # `record` was asked for them
    return tuple(map(torch.cat, zip(*(call.inputs for call in calls), strict=True))), torch.cat(gradients)


@torch.no_grad()
def _search(name: str, layer: _Layer, hardware: Hardware) -> Ranges:
    std = _input_std(name, layer, layer.rows.shape[1])
    layer = layer.with_extremes(UNSEEN)
    rows, weight, ends, expert = layer.rows, layer.weight, layer.ends, layer.expert()
    spread = std[expert]

    def cost(error: Float[Tensor, "rows out"]) -> Tensor:
        return (error.square() * layer.sensitivity).sum()

    def input_cost(kappa: float) -> Tensor:
        error = quantise_input(rows, kappa * spread, hardware.dac_bits) - rows
        return cost(grouped_matmul(error, weight, ends))

    largest = float((rows.abs() / spread).max())
    kappa = largest if hardware.dac_bits is None else _best(largest, input_cost)
    bound = spread * (kappa if hardware.kappa is None else hardware.kappa)
    product, unit = _products(layer, expert, bound, hardware)
    if hardware.kappa is not None and weight.any() and not product.any():
        raise InputError(
            f"hardware.kappa is {hardware.kappa:g}: DACs of {hardware.dac_bits} bits round all inputs of {name} to 0;"
            " give a smaller one, or more bits"
        )
    largest = _largest_output(product, unit)

    def output_cost(lam: float) -> Tensor:
        return cost((quantise_output(product, lam * unit, hardware.adc_bits) - product).sum(0))

    lam = largest if hardware.adc_bits is None else _best(largest, output_cost)
    return _ranges(layer, std, kappa, lam)


@torch.no_grad()
def _one_for_all(
    model: Model,
    calls: Mapping[str, list[Call]],
    tokens: Int[Tensor, "blocks tokens_plus_1"],
    hardware: Hardware,
) -> Calibration:
    """The method "model"."""
    exact, width = replace(hardware, c=0.0), hardware.tile_size
    stds: dict[tuple[str, ...], Float[Tensor, "experts slices"]] = {}
    units: dict[str, Ranges] = {}  # with kappa and lam 1, which those of the hardware replace
    largest = 0.0
    for names, sample in _layers(model, calls):
        layer = sample.with_extremes(1.0)
        expert = layer.expert()
        stds[names] = std = _input_std(names[0], sample, width)
        units |= _by_name(names, _ranges(layer, std, 1.0, 1.0))
        spread = of_inputs(std[expert], width, layer.rows.shape[1])
        largest = max(largest, float((layer.rows.abs() / spread).max()))

    def loss(tried: Hardware) -> float:
        with _all_analog(model, units, tried):
            return float(block_results(model.network, tokens)[0].mean())

    kappa = largest if hardware.kappa is None else hardware.kappa
    if hardware.kappa is None and hardware.dac_bits is not None:
        kappa = _best_octave(largest, lambda kappa: loss(replace(exact, kappa=kappa, adc_bits=None)))
    largest = 0.0
    for names, sample in _layers(model, calls):
        layer = sample.with_extremes(1.0)
        expert = layer.expert()
        largest = max(
            largest, _largest_output(*_products(layer, expert, kappa * stds[names][expert], hardware))
        )
    lam = largest
    if hardware.adc_bits is not None:
        lam = _best_octave(largest, lambda lam: loss(replace(exact, kappa=kappa, lam=lam)))

    def chosen(each: LayerCalibration) -> LayerCalibration:
        return replace(each, kappa=kappa, lam=lam)

    found = {
        name: chosen(each) if isinstance(each, LayerCalibration) else tuple(map(chosen, each))
        for name, each in units.items()
    }
    return Calibration(found, hardware)


@contextmanager
def _all_analog(model: Model, ranges: Mapping[str, Ranges], hardware: Hardware) -> Iterator[None]:
    """Everything that has ranges is analog for the length of a `with` block."""
    analog: dict[str, AnalogLinear | AnalogExperts] = {}
    for name in dict.fromkeys(parameter.rpartition(".")[0] for parameter in ranges):
        original = model.network.get_submodule(name)
        if isinstance(original, nn.Linear):
            analog[name] = AnalogLinear(original, hardware, ranges[f"{name}.weight"])
        else:
            both = {each: ranges[f"{name}.{each}"] for each in fused_layout(original).weights}
            analog[name] = AnalogExperts(original, (), hardware, both)
        analog[name].program(torch.Generator(device_of(original)))
    try:
        for name, module in analog.items():
            model.network.set_submodule(name, module)
        yield
    finally:
        for name, module in analog.items():
            model.network.set_submodule(name, module.original)


def _products(
    layer: _Layer, expert: Int[Tensor, " rows"], bound: Float[Tensor, "rows slices_or_1"], hardware: Hardware
) -> tuple[Float[Tensor, "slices rows out"], Float[Tensor, "slices rows out"]]:
    """What the ADCs of every input slice are given, and the unit of their bounds: an ADC bound is lam times that."""
    weight = layer.weight
    codes = quantise_input(
        layer.rows, of_inputs(bound, hardware.tile_size, layer.rows.shape[1]), hardware.dac_bits
    )
    w_max = largest_weights(weight.unflatten(1, (layer.matrices, -1)), hardware).flatten(1, 2)
    products, units = [], []
    for number, start in enumerate(range(0, codes.shape[1], hardware.tile_size)):
        part = slice(start, start + hardware.tile_size)
        products.append(
            grouped_matmul(codes[:, part].contiguous(), weight[..., part].contiguous(), layer.ends)
        )
        own = bound if bound.shape[1] == 1 else bound[:, number, None]
        units.append(own * w_max[expert, :, number])
    return torch.stack(products), torch.stack(units)


def _largest_output(
    product: Float[Tensor, "slices rows out"], unit: Float[Tensor, "slices rows out"]
) -> float:
    """The least lam with which no ADC saturates."""
    return float((product.abs() / unit).nan_to_num(0.0).max())  # a tile of zeros has neither


def _ranges(layer: _Layer, std: Float[Tensor, "experts slices"], kappa: float, lam: float) -> Ranges:
    stds = (tuple(each) if len(each) > 1 else each[0] for each in std.tolist())
    each = tuple(LayerCalibration(value, kappa, lam) for value in stds)
    return each if layer.own_inputs else each[0]


def _input_std(name: str, layer: _Layer, width: int) -> Float[Tensor, "experts slices"]:
    """Standard deviation of the inputs of each expert, with its extremes; of all experts' inputs if they share a DAC.

    width: inputs in a slice.
    Experts without varying inputs in a slice get the standard deviation of all inputs there, or of all of the layer's.
    """
    expert = torch.cat([layer.expert(), layer.extremes.expert])
    inputs = torch.cat([layer.rows, layer.extremes.rows])
    whole = inputs.std()
    if not whole > 0:
        raise InputError(f"calibration: the inputs of {name} do not vary; give text that reaches this layer")
    stds = []
    for part in inputs.split(width, 1):
        together = part.std()
        together = torch.where(together > 0, together, whole)
        if not layer.own_inputs:
            stds.append(together.expand(len(layer.ends)))
            continue
        rows = part.double()
        sums = rows.new_zeros(len(layer.ends), 2)
        sums.index_add_(0, expert, torch.stack([rows.sum(1), rows.square().sum(1)], 1))
        numbers = rows.shape[1] * expert.bincount(minlength=len(sums))[:, None].clamp(min=1)
        mean, square = (sums / numbers).T
        own = (square - mean.square()).clamp(min=0).sqrt().to(together.dtype)
        stds.append(torch.where(own > 0, own, together))
    return torch.stack(stds, 1)


def _best(largest: float, cost: Callable[[float], Tensor]) -> float:
    bounds = [largest * factor for factor in GRID]
    return bounds[int(torch.stack([cost(bound) for bound in bounds]).argmin())]


def _best_octave(largest: float, cost: Callable[[float], float]) -> float:
    """The bound of least cost, to a quarter octave; a cost that is no number is the highest."""
    costs: dict[float, float] = {}

    def best_with(bounds: Sequence[float]) -> float:
        for bound in bounds:
            found = cost(bound)
            costs[bound] = math.inf if math.isnan(found) else found
        return min(costs, key=lambda bound: costs[bound])

    best = best_with([largest * 2.0**-octave for octave in range(OCTAVES)])
    for step in (0.5, 0.25):
        best = best_with([best * 2.0**-step, best * 2.0**step])
    return best
