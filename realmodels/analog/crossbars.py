"""How do tiles with a DAC in front and an ADC behind them multiply, and fast?"""

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from realmodels.analog.ranges import LayerCalibration
from theory.errors import InputError
from theory.hardware import (
    PROGRAMMING_NOISE,
    Hardware,
    drawn_in_parts,
    largest_of_columns,
    largest_weights,
    program,
)

# Rows are processed in passes whose ADC outputs fill about this many bytes. On a CPU a pass then stays in the
# last-level cache and malloc hands the same pages out again (first touches of fresh pages cost more than the
# arithmetic); an accelerator wants fewer, larger kernels.
PASS_BYTES = {"cpu": 2**24}
ACCELERATOR_PASS_BYTES = 2**28
# On a CPU, tiles of at least so many numbers are packed once for oneDNN, for which smaller ones are too small.
PACKED_FROM = 2**16
PACKED_PASS_BYTES = 2**22  # of the product of a slice, which is converted while it is in the cache
MIN_PASS_ROWS = 64  # below this every pass would be spent on reading the weights
# In fp16, w_max is stored as this number: weights up to 4094 w_max are finite, and those above 4e-6 w_max have all of
# fp16's 11 bits. Rows are filled up with zeros to a multiple of FP16_ROW, 32 bytes.
FP16_UNIT, FP16_ROW = 16.0, 16
# Without a DAC, inputs at the bound become numbers of about this size: 22 bits down to 2^-9 of the bound.
FP16_INPUT = 2**4
OLDEST_GPU = (8, 0)  # with products in bf16
MOST_NOISE = 500.0  # sigma is at most c * w_max, and 8 sigma are within 4094 w_max


@dataclass(frozen=True)
class Saturation:
    """Fraction of DAC inputs and of ADC outputs beyond their bound; nan where nothing was converted."""

    input: float
    output: float


class Crossbars(nn.Module):
    """Programmed tiles and converters of equally shaped matrices: `experts` times `matrices` of (out, in).

    All tensors are buffers, neither saved nor converted to another dtype.

    input_bound, lam: fp64, (calibrations, slices or 1) and (calibrations,). There is one of the `calibrations` for all
        experts, or one for each.
    weight: with converters (slices, experts, matrices * out, width), in units of one ADC step per DAC code; without
        converters as programmed, stored as the parameter is.
    packed: the same in oneDNN's own layout, slices of experts of matrices (matrices * out, width), instead of `weight`;
        for large tiles in fp32 on a CPU.
    scale: the value of one ADC code, (slices, experts, blocks, 1). A block is a run of outputs that share it.
    counts: int64, how many inputs were beyond the DAC's bound, of how many, and the same of outputs and the ADC.

    What `fused_linear` and `fused_experts` read is stored otherwise, and `is_fp16` says so:

    weight: fp16 (slices, experts, out * matrices, width), w_max being FP16_UNIT; the first two outputs are gate 0 and
        up 0. Each row is filled up with zeros.
    scale: without an ADC the value of a DAC code times a stored 1.
    by_expert: fp32 (experts, slices or 1, 3): DAC codes per unit of an input, ADC codes per DAC code times a stored 1,
        DAC bound.
    step: fp32 (experts, 1, 1, slices or 1): the value of one ADC code, over w_max.
    """

    weight: Tensor | None
    scale: Tensor
    input_bound: Tensor
    lam: Tensor
    counts: Tensor
    by_expert: Tensor
    step: Tensor

    def __init__(self, hardware: Hardware, calibrations: Sequence[LayerCalibration]) -> None:
        super().__init__()
        self.hardware = hardware
        bounds = [each.bounds(hardware) for each in calibrations]
        slices = {len(input_bounds) for input_bounds, _ in bounds}
        if len(slices) > 1:
            raise InputError(f"calibrations have {sorted(slices)} input slices: give as many for each expert")
        input_bound = torch.tensor([each for each, _ in bounds], dtype=torch.float64)
        self.register_buffer(
            "input_bound", input_bound.view(len(bounds), -1 if bounds else 1), persistent=False
        )
        self.register_buffer(
            "lam", torch.tensor([lam for _, lam in bounds], dtype=torch.float64), persistent=False
        )
        self.dac_levels = None if hardware.dac_bits is None else 2 ** (hardware.dac_bits - 1) - 1
        self.adc_levels = None if hardware.adc_bits is None else 2 ** (hardware.adc_bits - 1) - 1
        self.count_saturation = False
        self.is_fp16 = False
        self.packed: list[list[Tensor]] = []
        self.register_buffer("counts", torch.zeros(4, dtype=torch.int64), persistent=False)
        for name in ("weight", "scale", "by_expert", "step"):
            self.register_buffer(name, None, persistent=False)

    @property
    def has_converters(self) -> bool:
        return self.dac_levels is not None or self.adc_levels is not None

    @property
    def is_programmed(self) -> bool:
        return bool(self.packed) or self.weight is not None

    def program(
        self,
        target: Float[Tensor, "all_experts matrices out in"],
        experts: Int[Tensor, " experts"],
        generator: torch.Generator,
        *,
        mirrored: bool,
    ) -> None:
        """Draw noise for all experts, and store the noisy weights of the given ones.

        Where draws allow it, expert by expert: the weights are then stored while they are in the cache.
        """
        dtype, device = torch.promote_types(target.dtype, torch.float32), target.device
        w_max = largest_weights(target, self.hardware).to(dtype)
        gain = self._set_scale(w_max[experts]).unsqueeze(-1)
        room = self._room((len(experts), *target.shape[1:]), dtype, device)
        places = {expert: place for place, expert in enumerate(experts.tolist())}
        at_once = 1 if drawn_in_parts(target[0].numel(), generator) else len(target)
        out = torch.empty(at_once, *target.shape[1:], dtype=dtype) if device.type == "cpu" else None
        for first in range(0, len(target), at_once):
            part = slice(first, first + at_once)
            programmed = program(
                target[part], self.hardware, generator, mirrored=mirrored, w_max=w_max[part], out=out
            )
            for expert, weights in enumerate(programmed, first):
                if expert not in places:
                    continue
                place = places[expert]
                tiles = _cut(weights, gain.shape[-2], min(self.hardware.tile_size, weights.shape[-1]))
                if room is None:
                    self._pack(place, tiles, gain[place])
                else:
                    torch.mul(tiles.permute(2, 0, 1, 3), gain[place].permute(2, 0, 1, 3), out=room[:, place])

    def program_fused(
        self,
        target: Float[Tensor, "all_experts matrices out in"],
        experts: Int[Tensor, " experts"],
        generator: torch.Generator,
        stored: Callable[[Tensor], Tensor],
        *,
        mirrored: bool,
    ) -> None:
        """Make noise and store the noisy weights in one pass; `takes_kernel` says for which weights that works.

        stored: how programmed weights are kept without converters.
        mirrored: take the opposite noise.
        """
        from realmodels.analog.kernel import fused_largest, fused_program

        w_max = largest_of_columns(fused_largest(target, self.hardware.tile_size), self.hardware)
        inputs = target.shape[-1]
        if self.has_converters:
            weight = self._tiles((len(experts), *target.shape[1:]), w_max.dtype, w_max.device)
            if inputs < len(weight) * weight.shape[-1]:
                weight[-1, ..., inputs - (len(weight) - 1) * weight.shape[-1] :] = 0
            gain = self._set_scale(w_max if len(experts) == len(target) else w_max[experts])
        else:  # with the target's strides, so that `stored` is a view
            weight = torch.empty_like(target[: len(experts)], dtype=w_max.dtype)
            gain = torch.ones_like(w_max[experts])
        fused_program(target, w_max, gain, experts, weight, self.hardware, generator, mirrored=mirrored)
        if not self.has_converters:
            self.weight = stored(weight)

    def form(
        self, shape: Sequence[int], stored: Callable[[Tensor], Tensor], dtype: torch.dtype
    ) -> tuple[torch.dtype, tuple[int, ...]]:
        """Of weights (experts, matrices, out, in) of this dtype as they are stored here, dtype and shape."""
        dtype = torch.promote_types(dtype, torch.float32)
        if not self.has_converters:
            return dtype, tuple(stored(torch.empty(*shape, device="meta")).shape)
        width = min(self.hardware.tile_size, shape[-1])
        row = math.ceil(width / FP16_ROW) * FP16_ROW if self.is_fp16 else width
        sizes = math.ceil(shape[-1] / width), shape[0], shape[1] * shape[2], row
        return torch.half if self.is_fp16 else dtype, sizes

    @property
    def stored_form(self) -> tuple[torch.dtype, tuple[int, ...]]:
        """Of the weights that are stored now, dtype and shape."""
        if self.packed:
            tile = self.packed[0][0]
            return tile.dtype, (len(self.packed), len(self.packed[0]), *tile.shape)
        weight = self.programmed()
        return weight.dtype, tuple(weight.shape)

    def parts(self) -> Iterator[Tensor]:
        """The stored weights in parts, in the order of their memory; dense, and each copied only if it has to be."""
        if self.packed:
            yield from (tile.to_dense() for tiles in self.packed for tile in tiles)
        else:
            yield self.programmed()

    def restore(
        self,
        target: Float[Tensor, "all_experts matrices out in"],
        experts: Int[Tensor, " experts"],
        read: Callable[..., Tensor],
    ) -> None:
        """Take weights that were stored here before, of the given experts of these target weights.

        read: gives all of them, or those of the slices and the experts that it is given.
        """
        shape = (len(experts), *target.shape[1:])
        dtype = torch.promote_types(target.dtype, torch.float32)
        if not self.has_converters:
            self.weight = read().to(target.device)
            return
        self._set_scale(largest_weights(target, self.hardware).to(dtype)[experts])
        if self.is_fp16 or self._room(shape, dtype, target.device) is not None:
            self.packed, self.weight = [], read().to(target.device)
            return
        for number, tiles in enumerate(self.packed):
            for place in range(len(tiles)):
                tiles[place] = _packed(read(slice(number, number + 1), slice(place, place + 1))[0, 0])

    def _room(
        self, shape: Sequence[int], dtype: torch.dtype, device: torch.device
    ) -> Float[Tensor, "slices experts matrices out width"] | None:
        """Where weights (experts, matrices, out, in) with converters go; None where they are packed."""
        width = min(self.hardware.tile_size, shape[-1])
        slices, experts = math.ceil(shape[-1] / width), shape[0]
        if self.is_fp16 or not _is_packed(math.prod(shape[1:3]) * width, dtype, device):
            self.packed = []
            return self._tiles(shape, dtype, device)
        self.weight = None
        if [len(each) for each in self.packed] != [experts] * slices:
            self.packed = [[torch.empty(0)] * experts for _ in range(slices)]
        return None

    def _pack(
        self,
        place: int,
        tiles: Float[Tensor, "matrices out slices width"],
        gain: Float[Tensor, "matrices out slices 1"],
    ) -> None:
        """Store weights of an expert in the layout of oneDNN."""
        tile = torch.empty(tiles.shape[:2] + tiles.shape[3:])
        for number, packed in enumerate(self.packed):
            torch.mul(tiles[:, :, number], gain[:, :, number], out=tile)
            packed[place] = _packed(tile.flatten(0, 1))

    def _tiles(
        self, shape: Sequence[int], dtype: torch.dtype, device: torch.device
    ) -> Float[Tensor, "slices experts matrices out width"]:
        """Make weights (experts, matrices, out, in) with converters, in the present weights' memory if it fits."""
        width = min(self.hardware.tile_size, shape[-1])
        experts, matrices, outputs = shape[:-1]
        if self.is_fp16:
            rows = math.ceil(shape[-1] / width), experts, outputs * matrices
            row = math.ceil(width / FP16_ROW) * FP16_ROW
            own = self.weight
            if own is None or (own.shape, own.dtype, own.device) != ((*rows, row), torch.half, device):
                self.weight = own = torch.zeros(*rows, row, dtype=torch.half, device=device)
            return own.unflatten(2, (outputs, matrices)).transpose(2, 3)[..., :width]
        sizes = (math.ceil(shape[-1] / width), *shape[:-1], width)
        weight = None if self.weight is None else self.weight.unflatten(2, shape[1:3])
        if weight is None or (weight.shape, weight.dtype, weight.device) != (sizes, dtype, device):
            weight = torch.empty(sizes, dtype=dtype, device=device)
        self.weight = weight.flatten(2, 3)
        return weight

    def _set_scale(
        self, w_max: Float[Tensor, "experts matrices out slices"]
    ) -> Float[Tensor, "experts matrices out slices"]:
        """Set the value of an ADC code; return the factor from programmed to stored weights."""
        if self.input_bound.shape[1] not in (1, w_max.shape[3]):
            raise InputError(
                f"calibration has {self.input_bound.shape[1]} input slices, the layer {w_max.shape[3]}: calibrate for"
                f" tile_size {self.hardware.tile_size}"
            )
        if self.counts.device != w_max.device:
            for name in ("input_bound", "lam", "counts"):
                setattr(self, name, getattr(self, name).to(w_max.device))
        if self.is_fp16:
            return self._set_fp16_scale(w_max)

        def per_expert(values: Float[Tensor, "calibrations slices_or_1"]) -> Tensor:
            return values.to(w_max.dtype).expand(len(w_max), -1)[:, None, None]

        no_dac = torch.ones_like(self.input_bound)
        code_value = per_expert(no_dac if self.dac_levels is None else self.input_bound / self.dac_levels)
        if self.adc_levels is None:
            self.scale = code_value.permute(3, 0, 1, 2)
            return torch.ones_like(w_max)
        step = w_max * per_expert(self.lam[:, None] * self.input_bound / self.adc_levels)
        self.scale = self._by_block(step)
        return torch.where(step > 0, code_value / step, 0)  # a tile of zeros has no scale and gives zeros

    def _set_fp16_scale(
        self, w_max: Float[Tensor, "experts matrices out slices"]
    ) -> Float[Tensor, "experts matrices out slices"]:
        """The same for weights in fp16: one step of the ADC is as many of them in all tiles of an expert."""
        if self.by_expert is None or self.by_expert.device != w_max.device:
            self._set_by_expert(len(w_max))
        self.scale = self._by_block(w_max * self.step)
        return (FP16_UNIT / w_max).nan_to_num_(
            posinf=0.0
        )  # a tile of zeros stays one; w_max may be no number

    def _set_by_expert(self, experts: int) -> None:
        """What does not depend on the weights."""
        if self.dac_levels is None:
            codes = torch.exp2(torch.round(torch.log2(FP16_INPUT / self.input_bound)))  # exact in any product
        else:
            codes = self.dac_levels / self.input_bound
        # Without an ADC the step is one of a DAC code times a stored 1.
        step = (
            1 / (codes * FP16_UNIT)
            if self.adc_levels is None
            else self.lam[:, None] * self.input_bound / self.adc_levels
        )
        by_expert = torch.stack([codes, 1 / (codes * step * FP16_UNIT), self.input_bound], -1).float()
        self.by_expert = by_expert.expand(experts, -1, -1).contiguous()
        self.step = step.float().expand(experts, -1)[:, None, None]

    def _by_block(
        self, step: Float[Tensor, "experts matrices out slices"]
    ) -> Float[Tensor, "slices experts blocks 1"]:
        # Runs of outputs with one step: what divides both tile and outputs crosses no border of a tile.
        outputs = step.shape[2]
        block = {"column": 1, "layer": outputs, "tile": math.gcd(outputs, self.hardware.tile_size)}
        by_block = step[:, :, :: block[self.hardware.w_max]].flatten(1, 2)
        return by_block.permute(2, 0, 1).unsqueeze(-1).contiguous()

    def quantise(
        self,
        x: Float[Tensor, "rows in"],
        *,
        expert: Int[Tensor, " rows"] | None = None,
        uses: Tensor | None = None,
    ) -> Float[Tensor, "slices rows width"]:
        """DAC codes of x, cut into slices.

        expert: the expert that reads each row, where each expert has a bound of its own.
        uses: how often each row is used, by which its saturation counts; default: once.
        """
        dtype, (slices, _, width) = self._form()
        codes = x.to(dtype)
        if self.dac_levels is not None:
            bound = of_inputs(
                self.input_bound if expert is None else self.input_bound[expert], width, x.shape[1]
            )
            if self.count_saturation:
                count_inputs(self.counts, codes, bound, uses)
            codes = codes * (self.dac_levels / bound).to(codes.dtype)
            codes.round_().clamp_(-self.dac_levels, self.dac_levels)
        return _cut(codes, slices, width).transpose(0, 1).contiguous()

    def read(
        self, partial: Float[Tensor, "slices rows out"], scale: Float[Tensor, "slices rows_or_1 blocks 1"]
    ) -> Float[Tensor, "rows out"]:
        """Convert the product of each slice, in place, and add the slices digitally."""
        self._convert(partial)
        partial.unflatten(-1, (scale.shape[2], -1)).mul_(scale)
        return partial[0] if len(partial) == 1 else partial.sum(0)

    def _convert(self, partial: Float[Tensor, "*slices rows out"], clamped: bool = False) -> None:
        """ADC codes of products, in place; clamped: they are within the bound."""
        if self.adc_levels is None:
            return
        if self.count_saturation:
            self.counts[2] += (partial.abs() > self.adc_levels).sum()
            self.counts[3] += partial.numel()
        partial.round_()
        if not clamped:
            partial.clamp_(-self.adc_levels, self.adc_levels)

    def product(
        self,
        codes: Float[Tensor, "slices rows width"],
        expert: int,
        out: Float[Tensor, "rows out"],
    ) -> None:
        """Multiply rows by the packed tiles of one expert and `read`: slice by slice, while each is in the cache."""
        # Before or after rounding, clamping is the same, as the bound is a whole number; here it costs no pass.
        bound, clamped = self.adc_levels, self.adc_levels is not None and not self.count_saturation
        then = ("hardtanh", [-bound, bound]) if bound is not None and clamped else ("none", [])
        scales = self.scale[:, expert].expand(len(self.packed), -1, -1)
        outputs = out.unflatten(-1, (scales.shape[1], -1))
        for number, (each, tiles, scale) in enumerate(zip(codes, self.packed, scales, strict=True)):
            partial = torch.ops.mkldnn._linear_pointwise(each, tiles[expert], None, *then, "")
            self._convert(partial, clamped)
            blocks = partial.view_as(outputs)
            if number == 0:
                torch.mul(blocks, scale, out=outputs)
            else:
                outputs.addcmul_(blocks, scale)

    def programmed(self) -> Tensor:
        """The stored weights, unpacked."""
        if self.packed:
            return torch.stack([torch.stack([tile.to_dense() for tile in tiles]) for tiles in self.packed])
        if self.weight is None:
            raise RuntimeError("no weights have been programmed yet: call program(generator) first")
        return self.weight

    def _form(self) -> tuple[torch.dtype, tuple[int, int, int]]:
        """Of the stored weights: dtype, and number of slices, outputs and inputs of a slice."""
        if self.packed:
            tile = self.packed[0][0]
            return tile.dtype, (len(self.packed), *tile.shape)
        weight = self.programmed()
        return weight.dtype, (weight.shape[0], *weight.shape[2:])

    @property
    def dtype(self) -> torch.dtype:
        """In which codes are multiplied."""
        return self._form()[0]

    def rows_per_pass(self) -> int:
        dtype, (slices, outputs, _) = self._form()
        if self.packed:
            return max(MIN_PASS_ROWS, PACKED_PASS_BYTES // (outputs * dtype.itemsize))
        budget = PASS_BYTES.get(self.programmed().device.type, ACCELERATOR_PASS_BYTES)
        return max(MIN_PASS_ROWS, budget // (slices * outputs * dtype.itemsize))

    def __getstate__(self) -> dict[str, Any]:
        """What is copied and pickled; torch can do neither with packed tiles."""
        return {**self.__dict__, "packed": [[tile.to_dense() for tile in tiles] for tiles in self.packed]}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.packed = [[_packed(tile) for tile in tiles] for tiles in self.packed]

    def saturation(self) -> Saturation:
        beyond_input, inputs, beyond_output, outputs = self.counts.tolist()
        return Saturation(
            beyond_input / inputs if inputs else math.nan, beyond_output / outputs if outputs else math.nan
        )

    def reset_saturation(self) -> None:
        self.counts.zero_()

    def _apply(self, fn: Any, recurse: bool = True) -> "Crossbars":
        """Move programmed weights to another device with the model, but never to another precision."""
        if self.packed and fn(torch.empty(0, dtype=torch.int64)).device.type != "cpu":
            self.weight, self.packed = self.programmed(), []
        for name, buffer in self._buffers.items():
            if buffer is not None:
                # What fn does to an empty tensor tells the device without touching the weights.
                device = fn(torch.empty(0, dtype=torch.int64, device=buffer.device)).device
                self._buffers[name] = buffer.to(device)
        return self


def of_inputs(
    bound: Float[Tensor, "rows slices_or_1"], width: int, inputs: int
) -> Float[Tensor, "rows in_or_1"]:
    """The DAC bound of every input; width: of a slice."""
    return bound if bound.shape[1] == 1 else bound.repeat_interleave(width, 1)[:, :inputs]


def count_inputs(
    counts: Int[Tensor, " 4"],
    x: Float[Tensor, "rows in"],
    bound: Float[Tensor, "rows_or_1 in_or_1"],
    uses: Tensor | None,
) -> None:
    """Count the inputs beyond the DAC's bound; uses: how often each row is converted, by default once."""
    uses = x.new_ones(len(x), dtype=torch.int64) if uses is None else uses
    counts[0] += ((x.abs() > bound).sum(-1) * uses).sum()
    counts[1] += x.shape[-1] * uses.sum()


def takes_kernel(target: Tensor, hardware: Hardware, generator: torch.Generator) -> bool:
    """True if `realmodels.analog.kernel` makes the noise, with draws of its own.

    It does where both weights and generator are on an NVIDIA GPU that Triton can compile for, unless there is no noise,
    fp64 is wanted, or the noise is no polynomial. A generator elsewhere means the same draws on every machine.
    """
    return (
        hardware.c > 0
        and PROGRAMMING_NOISE[hardware.programming].function is None
        and target.dtype in (torch.float32, torch.bfloat16, torch.float16)
        and target.device.type == generator.device.type == "cuda"
        and torch.version.hip is None
        and _kernel_runs(target.device)
    )


def why_not_fused(target: Tensor, hardware: Hardware) -> str | None:
    """Why a module with these weights does not compute in `fused_linear` or `fused_experts`; None if it does."""
    reasons = {
        "they have no converters": hardware.dac_bits is None and hardware.adc_bits is None,
        "they are not on an NVIDIA GPU": target.device.type != "cuda" or torch.version.hip is not None,
        "they are in fp64": target.dtype == torch.float64,
        f"noise of c > {MOST_NOISE:g} is beyond fp16": hardware.c > MOST_NOISE,
    }
    for reason, holds in reasons.items():
        if holds:
            return reason
    if torch.cuda.get_device_capability(target.device) < OLDEST_GPU:
        return f"the GPU is older than compute capability {OLDEST_GPU[0]}.{OLDEST_GPU[1]}"
    return None if _kernel_runs(target.device) else "Triton does not work there"


@cache
def _kernel_runs(device: torch.device) -> bool:
    """True if the kernel works on the device, tried once.

    What stands in its way differs between machines: a missing C compiler, the driver, the GPU's age.
    """
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
        from realmodels.analog.kernel import fused_program

        fused_program(*arguments, torch.Generator(device))
    except Exception as error:
        warnings.warn(
            "analog layers take a slower way, with other draws of noise: Triton does not work on"
            f" {device}: {type(error).__name__}: {error}",
            RuntimeWarning,
            stacklevel=2,
        )
        return False
    return True


def _packed(tile: Float[Tensor, "out width"]) -> Tensor:
    """The tile in the layout of oneDNN. Such tensors are never written to."""
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(tile)
    return packed


def _is_packed(numbers: int, dtype: torch.dtype, device: torch.device) -> bool:
    """True if oneDNN multiplies by tiles of so many numbers in its own layout."""
    return (
        device.type == "cpu"
        and dtype == torch.float32
        and numbers >= PACKED_FROM
        and torch.backends.mkldnn.is_available()
    )


def _cut(x: Float[Tensor, "*batch in"], slices: int, width: int) -> Float[Tensor, "*batch slices width"]:
    """x cut into slices, the last slice filled up with zeros."""
    missing = slices * width - x.shape[-1]
    return (F.pad(x, (0, missing)) if missing else x).unflatten(-1, (slices, width))
