"""What replaces an `nn.Linear` and a fused experts module when they go analog?

For inference only: no gradient flows through these modules.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from realmodels.analog.crossbars import Crossbars, Saturation, takes_kernel, why_not_fused
from realmodels.analog.ranges import LayerCalibration, Ranges, for_experts
from realmodels.devices import device_of, hook_of, weights_of, without_hook
from realmodels.fused import apply_gate, fused_layout, grouped_matmul
from theory.errors import InputError
from theory.hardware import Hardware, program


class Target(NamedTuple):
    """What is programmed: a parameter, as matrices, and which of its experts; and how it is kept without converters."""

    name: str
    matrices: Float[Tensor, "all_experts matrices out in"]
    experts: Int[Tensor, " experts"]
    stored: Callable[[Tensor], Tensor]


class _Analog(nn.Module):
    """A module with crossbars in the place of another one, whose parameters it holds under the same names.

    If accelerate has a hook on the replaced module, calls run as the hook would run that module's calls.

    On an NVIDIA GPU the module computes in `fused_linear` or `fused_experts`, and programmed weights are stored in
    fp16: rounded by at most 2^-11 of themselves, far below any programming noise. `why_not_fused` says why it does not.

    fp32: keep programmed weights in fp32, and compute as elsewhere.
    """

    crossbars: Mapping[str, Crossbars]  # the name is that of the parameter
    deployment: Any = None  # of the model [realmodels.model.Deployment], once the module is part of it
    needs_parameters: bool  # True if a call computes with any parameter of the replaced module
    why_not_fused: str | None  # since the last programming

    def __init__(
        self,
        original: nn.Module,
        hardware: Hardware,
        calibration: Mapping[str, Sequence[LayerCalibration]],
        fp32: bool,
    ) -> None:
        super().__init__()
        self._original = (original,)  # in a tuple: as a submodule its parameters would be counted twice
        self._digital = (without_hook(original),)
        self._parameters = original._parameters  # one dict: moved or fetched, they are the same for both
        if (hook := hook_of(original)) is not None:
            self._hf_hook = hook
        crossbars = {name: Crossbars(hardware, each) for name, each in calibration.items()}
        self.crossbars = nn.ModuleDict(crossbars)  # type: ignore[assignment]
        self.hardware = hardware
        self.fp32, self.why_not_fused = fp32, "not programmed yet"
        self.train(original.training)

    @property
    def is_analog(self) -> bool:
        """True if the module has anything to program."""
        return len(self.crossbars) > 0

    @property
    def is_programmed(self) -> bool:
        """True if there are programmed weights in all crossbars."""
        return all(each.is_programmed for each in self.crossbars.values())

    @property
    def original(self) -> nn.Module:
        """The replaced module, with the parameters that this one holds now."""
        return self._original[0]

    def __call__(self, *inputs: Any, **named: Any) -> Any:
        hook = self.__dict__.get("_hf_hook")  # what `hook_of` finds, but slowly
        if hook is None:
            return super().__call__(*inputs, **named)
        if self.needs_parameters:
            inputs, named = hook.pre_forward(self, *inputs, **named)
            return hook.post_forward(self, super().__call__(*inputs, **named))
        device = device_of(self)  # nothing has to be fetched, but inputs may be elsewhere
        there = {name: each.to(device) for name, each in named.items()}
        return super().__call__(*(each.to(device) for each in inputs), **there)

    def targets(self) -> Iterator[Target]:
        """What `program` programs; decides how that is stored."""
        raise NotImplementedError

    @torch.no_grad()
    def program(self, generator: torch.Generator, *, mirrored: bool = False) -> None:
        """Program all analog weights with fresh noise."""
        for target in self.targets():
            self._program(*target[:3], generator, target.stored, mirrored=mirrored)

    def _choose_path(self, target: Tensor, why_not: str | None = None) -> bool:
        """Find out if the module with these weights computes fused, and tell the crossbars.

        why_not: a reason of the module's own why it does not.
        """
        self.why_not_fused = "fp32" if self.fp32 else why_not or why_not_fused(target, self.hardware)
        for each in self.crossbars.values():
            each.is_fp16 = self.why_not_fused is None
        return self.why_not_fused is None

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
        """Program the given experts of a parameter with fresh noise, drawn for all experts.

        stored: how programmed weights are kept without converters.
        """
        crossbars = self.crossbars[name]
        # The tiles of a peer are no Crossbars.
        if isinstance(crossbars, Crossbars) and takes_kernel(target, self.hardware, generator):
            crossbars.program_fused(target, experts, generator, stored, mirrored=mirrored)
            return
        if isinstance(crossbars, Crossbars) and crossbars.has_converters:
            crossbars.program(target, experts, generator, mirrored=mirrored)
            return
        programmed = program(target, self.hardware, generator, mirrored=mirrored)
        if len(experts) < len(target):
            target, programmed = target[experts], programmed[experts]
        if isinstance(crossbars, Crossbars):
            crossbars.weight = stored(programmed)
        else:
            crossbars.program(target, programmed)

    @property
    def count_saturation(self) -> bool:
        """True if forward counts saturated conversions. Off by default: it costs a pass over the outputs."""
        return all(each.count_saturation for each in self.crossbars.values())

    @count_saturation.setter
    def count_saturation(self, count: bool) -> None:
        for each in self.crossbars.values():
            each.count_saturation = count

    def saturation(self) -> dict[str, Saturation]:
        """The fractions of conversions beyond their bound since the last reset, by parameter name."""
        return {name: each.saturation() for name, each in self.crossbars.items()}

    def reset_saturation(self) -> None:
        for each in self.crossbars.values():
            each.reset_saturation()


class AnalogLinear(_Analog):
    """An `nn.Linear` whose weight is on analog tiles; the bias is added digitally.

    Source: the hardware model of docs/paper.md. Programmed weights are buffers outside the state dict.

    calibration: None for a module that stays digital, as part of a layer with analog parts.
    """

    weight: nn.Parameter
    bias: nn.Parameter | None

    def __init__(
        self, linear: nn.Linear, hardware: Hardware, calibration: Ranges | None, *, fp32: bool = False
    ) -> None:
        ranges = {} if calibration is None else {"weight": for_experts(calibration, 1)}
        super().__init__(linear, hardware, ranges, fp32)
        self.needs_parameters = not self.is_analog or linear.bias is not None
        self.in_features, self.out_features = linear.in_features, linear.out_features

    def targets(self) -> Iterator[Target]:
        target = weights_of(self)["weight"][None, None]
        self._choose_path(target)
        only = torch.zeros(1, dtype=torch.int64, device=target.device)
        yield Target("weight", target, only, lambda matrices: matrices[0, 0])

    def forward(self, input: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch out"]:
        """The same as `nn.Linear.forward`, in the dtype of `input`."""
        modules: Any = self._modules["crossbars"]  # as attributes, modules are found slowly
        crossbars = modules._modules.get("weight")
        if crossbars is not None and crossbars.is_fp16:
            from realmodels.analog.fused_linear import fused_linear

            return fused_linear(crossbars, self._parameters["bias"], input)
        return self._forward(input)

    @torch.no_grad()
    def _forward(self, input: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch out"]:
        if not self.is_analog:
            return self._digital[0](input)
        crossbars = self.crossbars["weight"]
        if not crossbars.has_converters:
            weight = crossbars.programmed().to(self.weight.dtype)
            return functional_call(self._digital[0], {"weight": weight}, (input,))
        rows = input.reshape(-1, self.in_features)
        output = rows.new_empty(rows.shape[0], self.out_features, dtype=crossbars.dtype)
        for part in _passes([0, rows.shape[0]], crossbars.rows_per_pass()):
            codes = crossbars.quantise(rows[part])
            if crossbars.packed:
                crossbars.product(codes, 0, output[part])
            else:
                products = torch.bmm(codes, crossbars.programmed()[:, 0].transpose(1, 2))
                output[part] = crossbars.read(products, crossbars.scale)
        if self.bias is not None:
            output += self.bias
        return output.to(input.dtype).view(*input.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None},"
            f" why_not_fused={self.why_not_fused!r}"
        )


class AnalogExperts(_Analog):
    """A fused experts module of transformers with all experts but the `digital` ones on analog tiles.

    gate, up and down are separate matrices with tiles of their own. Biases are added digitally. gate and up of all
    experts read the same inputs through one DAC and have one calibration; `down_proj` may have one for each expert.
    Between DAC and final result analog experts compute in fp32 (fp64 if their weights are), digital experts in the
    model's dtype. InputError for a layout of `experts` that `fused.fused_layout` does not know.

    `keep_digital` chooses other digital experts later. fp32: as for `_Analog`.
    """

    down_proj: nn.Parameter
    groups: Tensor  # the expert of each group of rows: first as the crossbars hold them, then all, as digital experts
    place: Tensor  # the group that each expert computes in now
    gate: Any  # the activation as `fused_experts` knows it
    number: int  # of the replaced module, as `fused_experts` knows it

    def __init__(
        self,
        experts: nn.Module,
        digital: Sequence[int],
        hardware: Hardware,
        calibration: Mapping[str, Ranges],
        *,
        fp32: bool = False,
    ) -> None:
        self.layout = fused_layout(experts)
        self.num_experts = experts.get_parameter("down_proj").shape[0]
        self._require_experts(digital)
        self.held = [expert for expert in range(self.num_experts) if expert not in set(digital)]
        first, _ = self.layout.weights
        shared, down = calibration[first], for_experts(calibration["down_proj"], self.num_experts)
        if not isinstance(shared, LayerCalibration):
            raise InputError(f"{first} has {len(shared)} calibrations: give one, its experts share a DAC")
        super().__init__(
            experts,
            hardware,
            {first: [shared], "down_proj": [down[expert] for expert in self.held]},
            fp32,
        )
        groups = torch.tensor([*self.held, *range(self.num_experts)], device=device_of(experts))
        self.register_buffer("groups", groups, persistent=False)
        # An expert without weights computes in none.
        places = self.num_experts + (1 if self.layout.weighted_inputs else self.layout.identities)
        place = torch.full((places,), len(groups), dtype=torch.int32, device=groups.device)
        self.register_buffer("place", place, persistent=False)
        self.keep_digital(digital)

    def keep_digital(self, digital: Sequence[int]) -> None:
        """Make these experts digital and all others analog, with the weights that are programmed.

        InputError for an expert that would be analog, but was digital when the layer was made: no crossbar holds it.
        """
        self._require_experts(digital)
        if missing := set(range(self.num_experts)) - set(digital) - set(self.held):
            raise InputError(f"experts {sorted(missing)} are on no crossbar: they have to stay digital")
        self.digital = sorted(digital)
        self.analog = [expert for expert in self.held if expert not in set(digital)]
        self.needs_parameters = bool(self.digital) or self.layout.biased
        groups = {expert: group for group, expert in enumerate(self.held)}
        groups |= {expert: len(self.held) + expert for expert in digital}
        place = [groups[expert] for expert in range(self.num_experts)]
        self.place[: self.num_experts].copy_(torch.tensor(place))  # where a graph of CUDA sees it, too

    def _require_experts(self, digital: Sequence[int]) -> None:
        if len(set(digital)) < len(digital) or not set(digital) <= set(range(self.num_experts)):
            raise InputError(
                f"digital experts {list(digital)}: give each at most once, from 0 to {self.num_experts - 1}"
            )

    @property
    def is_analog(self) -> bool:
        return bool(self.analog)

    def targets(self) -> Iterator[Target]:
        """gate and up of each expert, then down of each.

        Noise is drawn for all experts in this order, so that it depends neither on the placement nor on the layout.
        """
        weights = weights_of(self)
        known = self.layout.gated and not self.layout.identities and not self.layout.weighted_inputs
        if self._choose_path(weights["down_proj"], None if known else "their layout"):
            from realmodels.analog.fused_experts import known_gate, numbered

            self.gate, self.number = known_gate(self.original), numbered(self.original)
        for name in self.layout.weights:
            target, stored = self.layout.matrices(name, weights[name]), partial(self.layout.stored, name)
            yield Target(name, target, self.groups[: len(self.held)].to(target.device), stored)

    @torch.no_grad()
    def forward(self, *inputs: Tensor) -> Float[Tensor, "tokens hidden"]:
        """The same as the forward of the replaced module, in the dtype of its first input [FusedLayout.routing]."""
        if not self.analog:
            return self._digital[0](*inputs)
        first, second = self.layout.weights
        gate_up, down = self.crossbars[first], self.crossbars[second]
        if not gate_up.has_converters:
            weights = {name: self._swapped(name) for name in self.crossbars}
            return functional_call(self._digital[0], weights, inputs)
        hidden_states, top_k_index, top_k_weights = self.layout.routing(inputs, self.num_experts)
        if gate_up.is_fp16:
            from realmodels.analog.fused_experts import fused_experts

            return fused_experts(self, hidden_states, top_k_index, top_k_weights)
        tokens, k = top_k_index.shape

        # One sort groups the (token, expert) pairs: of analog experts, of digital ones, of those without weights.
        groups, order = torch.sort(self.place[top_k_index.reshape(-1)])
        numbers = torch.arange(len(self.groups), dtype=groups.dtype, device=groups.device)
        ends = torch.searchsorted(groups, numbers, right=True, out_int32=True)
        analog_ends, digital_ends = ends[: len(self.held)], ends[len(self.held) :]
        analog_pairs, weighted_pairs = int(analog_ends[-1]), int(digital_ends[-1])
        token, weight = order // k, top_k_weights.reshape(-1, 1)

        uses = (self.place[top_k_index] < len(self.held)).sum(-1)
        codes = gate_up.quantise(hidden_states, uses=uses)
        results = codes.new_empty(tokens * k, hidden_states.shape[1])
        # Packed tiles are multiplied one expert at a time.
        borders = [0, *analog_ends.tolist()] if gate_up.packed or down.packed else [0, analog_pairs]
        for part in _passes(borders, gate_up.rows_per_pass()):
            expert = groups[part]
            part_ends = (analog_ends - part.start).clamp_(0, len(expert))
            part_codes = codes.index_select(1, token[part])
            both = _expert_products(gate_up, part_codes, expert, part_ends)
            both = self.layout.stored_order(both) if self.layout.gated else both
            inner = apply_gate(self._original[0], self._biased(first, both, expert))
            result = _expert_products(down, down.quantise(inner, expert=expert), expert, part_ends)
            result = self._biased(second, result, expert)
            results[part] = result.mul_(weight[order[part]])
        if analog_pairs < weighted_pairs:
            # The products take the whole parameter; the analog experts are groups without rows.
            digital_ends = digital_ends - analog_pairs
            part = slice(analog_pairs, weighted_pairs)
            rest, expert = token[part], groups[part]
            rows = {name: self.layout.rows(name, self.get_parameter(name)) for name in self.layout.weights}
            both = grouped_matmul(hidden_states[rest], rows[first], digital_ends)
            inner = apply_gate(self._original[0], self._biased(first, both, expert))
            result = grouped_matmul(inner, rows[second], digital_ends)
            results[part] = self._biased(second, result, expert) * weight[order[part]]
        if weighted_pairs < tokens * k:
            rest = order[weighted_pairs:]
            results[weighted_pairs:] = hidden_states[rest // k] * weight[rest]
        # The sum of each token's results, gathered in one pass.
        pairs = order.argsort().view(tokens, k)
        return F.embedding_bag(pairs, results, mode="sum").to(hidden_states.dtype)

    def _biased(
        self, name: str, outputs: Float[Tensor, "rows out"], group: Int[Tensor, " rows"]
    ) -> Float[Tensor, "rows out"]:
        """The outputs of the stored product with the bias, if there is one; group: of each row."""
        if not self.layout.biased:
            return outputs
        return outputs + self.get_parameter(f"{name}_bias")[self.groups[group]]

    def _swapped(self, name: str) -> Tensor:
        """The layer's weights, in which those of the analog experts are the programmed ones."""
        digital: Tensor = self._parameters[name]  # type: ignore[assignment]
        programmed = self.crossbars[name].programmed().to(digital.dtype)
        if not self.digital and len(programmed) == len(digital):
            return programmed
        if len(self.analog) < len(self.held):
            programmed = programmed[self.place[self.analog]]
        return digital.index_copy(0, torch.tensor(self.analog, device=digital.device), programmed)

    def extra_repr(self) -> str:
        return f"experts={self.num_experts}, digital={self.digital}, why_not_fused={self.why_not_fused!r}"


def _expert_products(
    crossbars: Crossbars,
    codes: Float[Tensor, "slices rows width"],
    expert: Int[Tensor, " rows"],
    ends: Int[Tensor, " experts"],
) -> Float[Tensor, "rows out"]:
    """Multiply rows, sorted by expert, by the tiles of their experts; all slices in one grouped product."""
    slices, rows, _ = codes.shape
    if crossbars.packed:
        result = codes.new_empty(rows, crossbars.packed[0][0].shape[0])
        for number, (first, last) in enumerate(pairwise([0, *ends.tolist()])):
            if first < last:
                crossbars.product(codes[:, first:last], number, result[first:last])
        return result
    shift = rows * torch.arange(slices, dtype=torch.int32, device=codes.device)
    products = grouped_matmul(
        codes.flatten(0, 1), crossbars.programmed().flatten(0, 1), (shift[:, None] + ends).flatten()
    )
    return crossbars.read(products.unflatten(0, (slices, rows)), crossbars.scale[:, expert])


def _passes(borders: Sequence[int], rows_per_pass: int) -> list[slice]:
    """The rows of each pass, which crosses no border."""
    return [
        slice(start, min(start + rows_per_pass, last))
        for first, last in pairwise(borders)
        for start in range(first, last, rows_per_pass)
    ]
