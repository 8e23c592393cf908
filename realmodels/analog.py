"""Linear layers and fused experts on simulated analog hardware: the fast form of theory.hardware.

The reference is `theory.hardware.analog_matmul`. What makes this form fast: programmed weights are stored as
W' = W~ * (L_out / L_in) / (lam * w_max), so that the DAC bound cancels and a product of DAC codes and W' is
already in units of one ADC step: an ADC code is clamp(round(q @ W'.T)). What remains per forward pass is one
grouped matrix product over (input slice, expert) pairs, a rounding, and the digital sum over slices. A
property test holds every configuration to the reference, on ADC codes.

For inference only: no gradient flows through these modules.
"""

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache, partial
from importlib.util import find_spec
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from realmodels.devices import device_of, hook_of, weights_of, without_hook
from realmodels.fused import FUSED_WEIGHTS, apply_gate, fused_layout, grouped_matmul
from theory.errors import InputError
from theory.hardware import Hardware, largest_weights, program

# Rows are processed in passes whose ADC outputs fill about this many bytes. On a CPU a pass then stays in the
# last-level cache and malloc hands the same pages out again (first touches of fresh pages cost more than the
# arithmetic); an accelerator wants fewer, larger kernels.
PASS_BYTES = {"cpu": 2**24}
ACCELERATOR_PASS_BYTES = 2**28
# Rows of weights whose length is a multiple of 1 KiB fall into the same few cache sets: 8 numbers between
# them make the product of few rows with many weights about 8 % faster.
ROW_GAP, ROW_GAP_PERIOD = 8, 256
MIN_PASS_ROWS = 64  # below this every pass would be spent on reading the weights


@dataclass(frozen=True)
class LayerCalibration:
    """Calibrated converter ranges of one linear layer.

    input_std: standard deviation of the layer's inputs; kappa: DAC bound in units of it; lam: ADC bound in
    units of DAC bound times w_max [PAPER.md, hardware model]. `Hardware.kappa` and `Hardware.lam`, where
    given, win.
    """

    input_std: float
    kappa: float
    lam: float

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not (math.isfinite(value) and value > 0):
                raise InputError(
                    f"LayerCalibration.{field.name} is {value}; it must be finite and > 0: calibrate on text"
                    " that reaches this layer"
                )

    def bounds(self, hardware: Hardware) -> tuple[float, float]:
        """DAC bound, in units of the inputs, and lam; `hardware.kappa` and `hardware.lam`, where given, win."""
        kappa = self.kappa if hardware.kappa is None else hardware.kappa
        return self.input_std * kappa, self.lam if hardware.lam is None else hardware.lam


# Experts that read the same inputs share one calibration; one for each expert where they do not.
Ranges = LayerCalibration | Sequence[LayerCalibration]


def for_experts(ranges: Ranges, num_experts: int) -> tuple[LayerCalibration, ...]:
    """The calibration of each expert."""
    each = (ranges,) * num_experts if isinstance(ranges, LayerCalibration) else tuple(ranges)
    if len(each) != num_experts:
        raise InputError(f"{len(each)} calibrations: give one for all {num_experts} experts, or one for each")
    return each


@dataclass(frozen=True)
class Saturation:
    """Fraction of DAC inputs and of ADC outputs beyond their bound; nan where nothing was converted."""

    input: float
    output: float


class _Crossbars(nn.Module):
    """Programmed tiles and converters of equally shaped matrices: `experts` times `matrices` of (out, in).

    `calibrations`: one for all experts, or one for each. `input_bound` and `lam` are fp64, of as many numbers.
    Buffers, neither saved nor converted to another dtype. With a converter: `weight` (slices, experts,
    matrices * out, width), in units of one ADC step per DAC code, and `scale` (slices, experts, blocks, 1),
    the value of one ADC code, where a block is a run of outputs that share it. Without: `weight` as programmed,
    stored as the parameter is.
    """

    weight: Tensor | None
    scale: Tensor
    input_bound: Tensor
    lam: Tensor

    def __init__(self, hardware: Hardware, calibrations: Sequence[LayerCalibration]) -> None:
        super().__init__()
        self.hardware = hardware
        bounds = torch.tensor([each.bounds(hardware) for each in calibrations], dtype=torch.float64).view(
            -1, 2
        )
        self.register_buffer("input_bound", bounds[:, 0].contiguous(), persistent=False)
        self.register_buffer("lam", bounds[:, 1].contiguous(), persistent=False)
        self.dac_levels = None if hardware.dac_bits is None else 2 ** (hardware.dac_bits - 1) - 1
        self.adc_levels = None if hardware.adc_bits is None else 2 ** (hardware.adc_bits - 1) - 1
        self.count_saturation = False
        self.reset_saturation()
        self.register_buffer("weight", None, persistent=False)
        self.register_buffer("scale", None, persistent=False)

    @property
    def has_converters(self) -> bool:
        return self.dac_levels is not None or self.adc_levels is not None

    def program(
        self,
        target: Float[Tensor, "experts matrices out in"],
        programmed: Float[Tensor, "experts matrices out in"],
    ) -> None:
        """Stores the weights that came out of programming in the form that `quantise` and `read` need."""
        weight = self._tiles(target.shape, programmed.dtype, programmed.device)
        gain = self._set_scale(largest_weights(target, self.hardware).to(weight.dtype))
        tiles = _cut(programmed, weight.shape[0], weight.shape[-1]).permute(3, 0, 1, 2, 4)
        torch.mul(tiles, gain.permute(3, 0, 1, 2).unsqueeze(-1), out=weight)
        self.weight = weight.flatten(2, 3)

    def program_fused(
        self,
        target: Float[Tensor, "all_experts matrices out in"],
        experts: Int[Tensor, " experts"],
        generator: torch.Generator,
        stored: Callable[[Tensor], Tensor],
        *,
        mirrored: bool,
    ) -> None:
        """Noise and `program`, or without converters `stored`, in one pass over the weights that `_takes_kernel`."""
        from realmodels.fused_programming import fused_program

        w_max = largest_weights(target, self.hardware).float()
        inputs = target.shape[-1]
        if self.has_converters:
            weight = self._tiles((len(experts), *target.shape[1:]), w_max.dtype, w_max.device)
            weight[-1, ..., inputs - (len(weight) - 1) * weight.shape[-1] :] = 0
            gain = self._set_scale(w_max[experts])
        else:  # with the target's strides, so that `stored` is a view
            weight = torch.empty_like(target[: len(experts)], dtype=w_max.dtype)
            gain = torch.ones_like(w_max[experts])
        fused_program(target, w_max, gain, experts, weight, self.hardware, generator, mirrored=mirrored)
        self.weight = weight.flatten(2, 3) if self.has_converters else stored(weight)

    def _tiles(
        self, shape: Sequence[int], dtype: torch.dtype, device: torch.device
    ) -> Float[Tensor, "slices experts matrices out width"]:
        """Where weights (experts, matrices, out, in) are kept with converters: the present ones' memory, if it fits."""
        width = min(self.hardware.tile_size, shape[-1])
        sizes = (math.ceil(shape[-1] / width), *shape[:-1], width)
        weight = None if self.weight is None else self.weight.unflatten(2, shape[1:3])
        if weight is None or (weight.shape, weight.dtype, weight.device) != (sizes, dtype, device):
            gap = ROW_GAP if width % ROW_GAP_PERIOD == 0 else 0
            weight = torch.empty(*sizes[:-1], width + gap, dtype=dtype, device=device)[..., :width]
        return weight

    def _set_scale(
        self, w_max: Float[Tensor, "experts matrices out slices"]
    ) -> Float[Tensor, "experts matrices out slices"]:
        """Sets the value of an ADC code; returns the stored weights in units of the programmed ones."""
        self.input_bound, self.lam = self.input_bound.to(w_max.device), self.lam.to(w_max.device)

        def of_experts(values: Tensor) -> Tensor:
            return values.to(w_max.dtype).expand(len(w_max)).view(-1, 1, 1, 1)

        no_dac = torch.ones_like(self.input_bound)
        code_value = of_experts(no_dac if self.dac_levels is None else self.input_bound / self.dac_levels)
        if self.adc_levels is None:
            self.scale = code_value.transpose(0, 1)
            return torch.ones_like(w_max)
        step = w_max * of_experts(self.lam * self.input_bound / self.adc_levels)
        # Runs of outputs with one step: what divides both tile and outputs crosses no border of a tile.
        outputs = w_max.shape[2]
        block = {"column": 1, "layer": outputs, "tile": math.gcd(outputs, self.hardware.tile_size)}
        by_block = step[:, :, :: block[self.hardware.w_max]].flatten(1, 2)
        self.scale = by_block.permute(2, 0, 1).unsqueeze(-1).contiguous()
        return torch.where(step > 0, code_value / step, 0)  # a tile of zeros has no scale and gives zeros

    def quantise(
        self,
        x: Float[Tensor, "rows in"],
        *,
        expert: Int[Tensor, " rows"] | None = None,
        uses: Tensor | None = None,
    ) -> Float[Tensor, "slices rows width"]:
        """DAC codes of x, cut into slices.

        expert: whose inputs the rows are, where each has a bound of its own. uses: of each row (default: one
        each), by which its saturation counts.
        """
        weight = self.programmed()
        slices, width = weight.shape[0], weight.shape[-1]
        codes = x.to(weight.dtype)
        if self.dac_levels is not None:
            bound = self.input_bound if expert is None else self.input_bound[expert, None]
            if self.count_saturation:
                beyond = (codes.abs() > bound).sum(-1)
                self.saturated_inputs += int((beyond if uses is None else beyond * uses).sum())
                self.converted_inputs += x.shape[-1] * (x.shape[0] if uses is None else int(uses.sum()))
            codes = codes * (self.dac_levels / bound).to(codes.dtype)
            codes.round_().clamp_(-self.dac_levels, self.dac_levels)
        return _cut(codes, slices, width).transpose(0, 1).contiguous()

    def read(
        self, partial: Float[Tensor, "slices rows out"], scale: Float[Tensor, "slices rows_or_1 blocks 1"]
    ) -> Float[Tensor, "rows out"]:
        """ADC of each slice's product, in place, and their digital sum."""
        if self.adc_levels is not None:
            if self.count_saturation:
                self.saturated_outputs += int((partial.abs() > self.adc_levels).sum())
                self.converted_outputs += partial.numel()
            partial.round_().clamp_(-self.adc_levels, self.adc_levels)
        partial.unflatten(-1, (scale.shape[2], -1)).mul_(scale)
        return partial.sum(0)

    def programmed(self) -> Tensor:
        if self.weight is None:
            raise RuntimeError("no weights have been programmed yet: call program(generator) first")
        return self.weight

    def rows_per_pass(self) -> int:
        weight = self.programmed()
        budget = PASS_BYTES.get(weight.device.type, ACCELERATOR_PASS_BYTES)
        return max(MIN_PASS_ROWS, budget // (weight.shape[0] * weight.shape[2] * weight.element_size()))

    def saturation(self) -> Saturation:
        return Saturation(
            self.saturated_inputs / self.converted_inputs if self.converted_inputs else math.nan,
            self.saturated_outputs / self.converted_outputs if self.converted_outputs else math.nan,
        )

    def reset_saturation(self) -> None:
        self.saturated_inputs = self.converted_inputs = self.saturated_outputs = self.converted_outputs = 0

    def _apply(self, fn: Any, recurse: bool = True) -> "_Crossbars":
        """Programmed weights follow the model to another device but never to another precision."""
        for name, buffer in self._buffers.items():
            if buffer is not None:
                # What fn does to an empty tensor tells the device without touching the weights.
                device = fn(torch.empty(0, dtype=torch.int64, device=buffer.device)).device
                self._buffers[name] = buffer.to(device)
        return self


def _takes_kernel(target: Tensor, hardware: Hardware, generator: torch.Generator) -> bool:
    """Whether noise is made by `realmodels.fused_programming`, with draws of its own.

    Where both weights and generator are on an NVIDIA GPU that Triton can compile for, unless there is no noise, or fp64
    is wanted. A generator elsewhere means the same draws on every machine.
    """
    return (
        hardware.c > 0
        and target.dtype in (torch.float32, torch.bfloat16, torch.float16)
        and target.device.type == generator.device.type == "cuda"
        and torch.version.hip is None
        and _kernel_runs(target.device)
    )


@cache
def _kernel_runs(device: torch.device) -> bool:
    """Tries it once; what stands in its way differs between machines: a C compiler, the driver, the GPU's age."""
    if find_spec("triton") is None:
        return False
    weight = torch.ones(1, 1, 1, 1, device=device)
    arguments = (
        weight,
        weight,
        weight,
        torch.zeros(1, dtype=torch.int64, device=device),
        weight.clone(),
        Hardware(),
    )
    try:
        from realmodels.fused_programming import fused_program

        fused_program(*arguments, torch.Generator(device))
    except Exception as error:
        warnings.warn(
            "programming noise takes a slower way, with other draws: Triton does not work on"
            f" {device}: {type(error).__name__}: {error}",
            RuntimeWarning,
            stacklevel=2,
        )
        return False
    return True


class _Analog(nn.Module):
    """What analog layers share: the replaced module's own parameters under their names, and crossbars.

    If accelerate has a hook on the replaced module, calls run as that hook would run the module's.
    """

    crossbars: Mapping[str, _Crossbars]  # by name of the parameter
    needs_parameters: bool  # whether a call computes with any of the replaced module's

    def __init__(
        self, original: nn.Module, hardware: Hardware, calibration: dict[str, Sequence[LayerCalibration]]
    ) -> None:
        super().__init__()
        self._original = (original,)  # in a tuple: as a submodule its parameters would be counted twice
        self._digital = (without_hook(original),)
        self._parameters = original._parameters  # one dict: moved or fetched, they are the same for both
        if (hook := hook_of(original)) is not None:
            self._hf_hook = hook
        crossbars = {name: _Crossbars(hardware, each) for name, each in calibration.items()}
        self.crossbars = nn.ModuleDict(crossbars)  # type: ignore[assignment]
        self.hardware = hardware
        self.train(original.training)

    @property
    def is_analog(self) -> bool:
        """Whether it has anything to program."""
        return bool(self.crossbars)

    @property
    def original(self) -> nn.Module:
        """The replaced module, with the parameters that this one holds now."""
        return self._original[0]

    def __call__(self, *inputs: Any, **named: Any) -> Any:
        hook = hook_of(self)
        if hook is None:
            return super().__call__(*inputs, **named)
        if self.needs_parameters:
            inputs, named = hook.pre_forward(self, *inputs, **named)
            return hook.post_forward(self, super().__call__(*inputs, **named))
        device = device_of(self)  # nothing has to be fetched, but inputs may be elsewhere
        there = {name: each.to(device) for name, each in named.items()}
        return super().__call__(*(each.to(device) for each in inputs), **there)

    def _program(
        self,
        name: str,
        target: Float[Tensor, "all_experts matrices out in"],
        experts: Int[Tensor, " experts"],
        generator: torch.Generator,
        stored: Callable[[Tensor], Tensor],
        *,
        mirrored: bool,
    ) -> None:
        """Programs the given experts of a parameter with fresh noise, drawn for all of them.

        stored: how programmed weights are kept without converters.
        """
        crossbars = self.crossbars[name]
        # Not a peer's tiles.
        if isinstance(crossbars, _Crossbars) and _takes_kernel(target, self.hardware, generator):
            crossbars.program_fused(target, experts, generator, stored, mirrored=mirrored)
            return
        programmed = program(target, self.hardware, generator, mirrored=mirrored)
        if len(experts) < len(target):
            target, programmed = target[experts], programmed[experts]
        if crossbars.has_converters:
            crossbars.program(target, programmed)
        else:
            crossbars.weight = stored(programmed)

    @property
    def count_saturation(self) -> bool:
        """Whether forward counts saturated conversions; off by default: it costs a pass over the outputs."""
        return all(each.count_saturation for each in self.crossbars.values())

    @count_saturation.setter
    def count_saturation(self, count: bool) -> None:
        for each in self.crossbars.values():
            each.count_saturation = count

    def saturation(self) -> dict[str, Saturation]:
        """By parameter name, the fractions of conversions beyond the bound counted since the last reset."""
        return {name: each.saturation() for name, each in self.crossbars.items()}

    def reset_saturation(self) -> None:
        for each in self.crossbars.values():
            each.reset_saturation()


class AnalogLinear(_Analog):
    """An `nn.Linear` whose weight is on analog tiles; the bias is added digitally.

    Source: PAPER.md, hardware model. Programmed weights are buffers outside the state dict. calibration: None for one
    that stays digital, as part of a layer of which other parts need not.
    """

    weight: nn.Parameter
    bias: nn.Parameter | None

    def __init__(self, linear: nn.Linear, hardware: Hardware, calibration: LayerCalibration | None) -> None:
        super().__init__(linear, hardware, {} if calibration is None else {"weight": [calibration]})
        self.needs_parameters = not self.is_analog or linear.bias is not None
        self.in_features, self.out_features = linear.in_features, linear.out_features

    @torch.no_grad()
    def program(self, generator: torch.Generator, *, mirrored: bool = False) -> None:
        """Programs the weights with fresh noise."""
        target = weights_of(self)["weight"][None, None]
        only = torch.zeros(1, dtype=torch.int64, device=target.device)
        self._program("weight", target, only, generator, lambda matrices: matrices[0, 0], mirrored=mirrored)

    @torch.no_grad()
    def forward(self, input: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch out"]:
        """As `nn.Linear.forward`, in the dtype of `input`."""
        if not self.is_analog:
            return self._digital[0](input)
        crossbars = self.crossbars["weight"]
        weight = crossbars.programmed()
        if not crossbars.has_converters:
            return functional_call(self._digital[0], {"weight": weight.to(self.weight.dtype)}, (input,))
        rows = input.reshape(-1, self.in_features)
        output = rows.new_empty(rows.shape[0], self.out_features)
        for part in _passes(rows.shape[0], crossbars.rows_per_pass()):
            products = torch.bmm(crossbars.quantise(rows[part]), weight[:, 0].transpose(1, 2))
            result = crossbars.read(products, crossbars.scale)
            output[part] = result if self.bias is None else result + self.bias
        return output.view(*input.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"
        )


class AnalogExperts(_Analog):
    """A fused experts module of transformers with all experts but the `digital` ones on analog tiles.

    `experts` has `gate_up_proj` and `down_proj` in a layout that `families.fused_layout` knows; another raises
    InputError. gate, up and down are separate matrices with tiles of their own; biases are added digitally. gate and
    up of all experts read the same inputs through one DAC and have one calibration; `down_proj` may have one for each
    expert. Between DAC and final result analog experts compute in fp32 (fp64 if their weights are), digital ones in
    the model's dtype.
    """

    gate_up_proj: nn.Parameter
    down_proj: nn.Parameter
    sequence: Tensor  # all experts, the analog ones first

    def __init__(
        self,
        experts: nn.Module,
        digital: Sequence[int],
        hardware: Hardware,
        calibration: Mapping[str, Ranges],
    ) -> None:
        self.layout = fused_layout(experts)
        self.num_experts = experts.get_parameter("gate_up_proj").shape[0]
        if len(set(digital)) < len(digital) or not set(digital) <= set(range(self.num_experts)):
            raise InputError(
                f"digital experts {list(digital)}: give each at most once, from 0 to {self.num_experts - 1}"
            )
        self.digital = sorted(digital)
        self.analog = [expert for expert in range(self.num_experts) if expert not in set(digital)]
        gate_up, down = calibration["gate_up_proj"], for_experts(calibration["down_proj"], self.num_experts)
        if not isinstance(gate_up, LayerCalibration):
            raise InputError(
                f"gate_up_proj has {len(gate_up)} calibrations: give one, its experts share a DAC"
            )
        super().__init__(
            experts,
            hardware,
            {"gate_up_proj": [gate_up], "down_proj": [down[expert] for expert in self.analog]},
        )
        self.needs_parameters = bool(self.digital) or self.layout.biased
        sequence = torch.tensor(self.analog + self.digital, device=device_of(experts))
        self.register_buffer("sequence", sequence, persistent=False)

    @property
    def is_analog(self) -> bool:
        return bool(self.analog)

    @torch.no_grad()
    def program(self, generator: torch.Generator, *, mirrored: bool = False) -> None:
        """Programs the analog experts with fresh noise.

        Noise is drawn for all experts, gate and up of each and then down of each: it depends neither on the placement
        nor on the layout.
        """
        weights = weights_of(self)
        for name in FUSED_WEIGHTS:
            target, stored = self.layout.matrices(name, weights[name]), partial(self.layout.stored, name)
            experts = self.sequence[: len(self.analog)].to(target.device)
            self._program(name, target, experts, generator, stored, mirrored=mirrored)

    @torch.no_grad()
    def forward(
        self,
        hidden_states: Float[Tensor, "tokens hidden"],
        top_k_index: Int[Tensor, "tokens k"],
        top_k_weights: Float[Tensor, "tokens k"],
    ) -> Float[Tensor, "tokens hidden"]:
        """As the replaced module's forward, in the dtype of `hidden_states`."""
        gate_up, down = self.crossbars["gate_up_proj"], self.crossbars["down_proj"]
        if not self.analog:
            return self._digital[0](hidden_states, top_k_index, top_k_weights)
        if not gate_up.has_converters:
            weights = {name: self._swapped(name) for name in self.crossbars}
            return functional_call(self._digital[0], weights, (hidden_states, top_k_index, top_k_weights))
        tokens, k = top_k_index.shape

        # One sort groups the (token, expert) pairs, those of analog experts first.
        position = self.sequence.argsort()
        groups, order = torch.sort(position[top_k_index.reshape(-1)])
        numbers = torch.arange(self.num_experts, device=groups.device)
        ends = torch.searchsorted(groups, numbers, right=True, out_int32=True)
        analog_ends, digital_ends = ends[: len(self.analog)], ends[len(self.analog) :]
        analog_pairs = int(analog_ends[-1])
        token, weight = order // k, top_k_weights.reshape(-1, 1)

        uses = (position[top_k_index] < len(self.analog)).sum(-1)
        codes = gate_up.quantise(hidden_states, uses=uses)
        results = codes.new_empty(tokens * k, hidden_states.shape[1])
        for part in _passes(analog_pairs, gate_up.rows_per_pass()):
            expert = groups[part]
            part_ends = (analog_ends - part.start).clamp_(0, len(expert))
            part_codes = codes.index_select(1, token[part])
            both = self.layout.stored_order(_expert_products(gate_up, part_codes, expert, part_ends))
            inner = apply_gate(self._original[0], self._biased("gate_up_proj", both, expert))
            result = _expert_products(down, down.quantise(inner, expert=expert), expert, part_ends)
            result = self._biased("down_proj", result, expert)
            results.index_copy_(0, order[part], result.mul_(weight[order[part]]))
        if analog_pairs < tokens * k:
            # The products take the whole parameter; the analog experts are groups without rows.
            all_ends = torch.zeros_like(ends)
            all_ends[self.digital] = digital_ends - analog_pairs
            all_ends = all_ends.cummax(0).values
            rest, expert = order[analog_pairs:], groups[analog_pairs:]
            both = grouped_matmul(hidden_states[rest // k], self.layout.rows(self.gate_up_proj), all_ends)
            inner = apply_gate(self._original[0], self._biased("gate_up_proj", both, expert))
            result = grouped_matmul(inner, self.layout.rows(self.down_proj), all_ends)
            result = self._biased("down_proj", result, expert) * weight[rest]
            results.index_copy_(0, rest, result.to(results.dtype))
        return results.view(tokens, k, hidden_states.shape[1]).sum(1).to(hidden_states.dtype)

    def _biased(
        self, name: str, outputs: Float[Tensor, "rows out"], group: Int[Tensor, " rows"]
    ) -> Float[Tensor, "rows out"]:
        """The stored product's outputs with its bias, if there is one; group: places in `sequence`."""
        if not self.layout.biased:
            return outputs
        return outputs + self.get_parameter(f"{name}_bias")[self.sequence[group]]

    def _swapped(self, name: str) -> Tensor:
        """The layer's weights with the analog experts' programmed ones in place."""
        digital: Tensor = self._parameters[name]  # type: ignore[assignment]
        programmed = self.crossbars[name].programmed().to(digital.dtype)
        if not self.digital:
            return programmed
        return digital.index_copy(0, self.sequence[: len(self.analog)], programmed)

    def extra_repr(self) -> str:
        return f"experts={self.num_experts}, digital={self.digital}"


def _expert_products(
    crossbars: _Crossbars,
    codes: Float[Tensor, "slices rows width"],
    expert: Int[Tensor, " rows"],
    ends: Int[Tensor, " experts"],
) -> Float[Tensor, "rows out"]:
    """Analog products of rows, sorted by expert, with their experts; all slices in one grouped product."""
    slices, rows, _ = codes.shape
    shift = rows * torch.arange(slices, dtype=torch.int32, device=codes.device)
    products = grouped_matmul(
        codes.flatten(0, 1), crossbars.programmed().flatten(0, 1), (shift[:, None] + ends).flatten()
    )
    return crossbars.read(products.unflatten(0, (slices, rows)), crossbars.scale[:, expert])


def _cut(x: Float[Tensor, "*batch in"], slices: int, width: int) -> Float[Tensor, "*batch slices width"]:
    """x in slices, the last one filled up with zeros."""
    missing = slices * width - x.shape[-1]
    return (F.pad(x, (0, missing)) if missing else x).unflatten(-1, (slices, width))


def _passes(rows: int, rows_per_pass: int) -> list[slice]:
    return [slice(start, min(start + rows_per_pass, rows)) for start in range(0, rows, rows_per_pass)]
