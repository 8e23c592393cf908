"""How do tiles with a DAC in front and an ADC behind them multiply, and fast?"""

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from realmodels.analog.ranges import LayerCalibration
from theory.hardware import Hardware, largest_weights

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
class Saturation:
    """Fraction of DAC inputs and of ADC outputs beyond their bound; nan where nothing was converted."""

    input: float
    output: float


class Crossbars(nn.Module):
    """Programmed tiles and converters of equally shaped matrices: `experts` times `matrices` of (out, in).

    All tensors are buffers, neither saved nor converted to another dtype.

    input_bound, lam: fp64, one number for each of the `calibrations`: one for all experts, or one for each.
    weight: with converters (slices, experts, matrices * out, width), in units of one ADC step per DAC code; without
        converters as programmed, stored as the parameter is.
    scale: the value of one ADC code, (slices, experts, blocks, 1). A block is a run of outputs that share it.
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
        """Store programmed weights in the form that `quantise` and `read` need."""
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
        """Make noise and store the noisy weights in one pass; `takes_kernel` says for which weights that works.

        stored: how programmed weights are kept without converters.
        mirrored: take the opposite noise.
        """
        from realmodels.analog.kernel import fused_program

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
        """Memory for weights (experts, matrices, out, in) with converters: the present weights' memory, if it fits."""
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
        """Set the value of an ADC code; return the factor from programmed to stored weights."""
        self.input_bound, self.lam = self.input_bound.to(w_max.device), self.lam.to(w_max.device)

        def per_expert(values: Tensor) -> Tensor:
            return values.to(w_max.dtype).expand(len(w_max)).view(-1, 1, 1, 1)

        no_dac = torch.ones_like(self.input_bound)
        code_value = per_expert(no_dac if self.dac_levels is None else self.input_bound / self.dac_levels)
        if self.adc_levels is None:
            self.scale = code_value.transpose(0, 1)
            return torch.ones_like(w_max)
        step = w_max * per_expert(self.lam * self.input_bound / self.adc_levels)
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

        expert: the expert that reads each row, where each expert has a bound of its own.
        uses: how often each row is used, by which its saturation counts; default: once.
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
        """Convert the product of each slice, in place, and add the slices digitally."""
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

    def _apply(self, fn: Any, recurse: bool = True) -> "Crossbars":
        """Move programmed weights to another device with the model, but never to another precision."""
        for name, buffer in self._buffers.items():
            if buffer is not None:
                # What fn does to an empty tensor tells the device without touching the weights.
                device = fn(torch.empty(0, dtype=torch.int64, device=buffer.device)).device
                self._buffers[name] = buffer.to(device)
        return self


def takes_kernel(target: Tensor, hardware: Hardware, generator: torch.Generator) -> bool:
    """True if `realmodels.analog.kernel` makes the noise, with draws of its own.

    It does where both weights and generator are on an NVIDIA GPU that Triton can compile for, unless there is no noise
    or fp64 is wanted. A generator elsewhere means the same draws on every machine.
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
            "programming noise takes a slower way, with other draws: Triton does not work on"
            f" {device}: {type(error).__name__}: {error}",
            RuntimeWarning,
            stacklevel=2,
        )
        return False
    return True


def _cut(x: Float[Tensor, "*batch in"], slices: int, width: int) -> Float[Tensor, "*batch slices width"]:
    """x cut into slices, the last slice filled up with zeros."""
    missing = slices * width - x.shape[-1]
    return (F.pad(x, (0, missing)) if missing else x).unflatten(-1, (slices, width))
