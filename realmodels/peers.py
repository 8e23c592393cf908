"""The same layers on IBM's two simulators, aihwkit and aihwkit-lightning, for parity tests and benchmarks.

Both are brought to the hardware of `theory.hardware.Hardware`: per input slice a DAC with a fixed range, a
product, an ADC whose bound is lam * DAC bound * w_max, a digital sum. What does not carry over:

- Programming noise: neither applies it in evaluation without being asked, so the weights given are computed
  with as they are. Pass programmed weights to compare these.
- Cuts: both divide inputs evenly where the last of our tiles would be shorter. Such shapes are refused.
- w_max: lightning's default is the largest weight of an input slice over all outputs, which is ours per tile
  only while the outputs fit in one tile. Per column both agree.
- Input ranges are not calibrated in evaluation mode (lightning's stay at 3.0): they are set here.
"""

from collections.abc import Mapping
from typing import Any

import torch
from aihwkit.nn import AnalogLinear as AihwkitLinear
from aihwkit.simulator.configs import BoundManagementType, NoiseManagementType
from aihwkit.simulator.configs import TorchInferenceRPUConfig as AihwkitConfig
from aihwkit_lightning.nn import AnalogLinear as LightningLinear
from aihwkit_lightning.simulator.configs import TorchInferenceRPUConfig as LightningConfig
from aihwkit_lightning.simulator.configs import WeightClipType
from jaxtyping import Float, Int
from torch import Tensor, nn

from realmodels.analog import LayerCalibration, Ranges, for_experts
from theory.errors import InputError
from theory.hardware import Hardware


def aihwkit_linear(linear: nn.Linear, hardware: Hardware, calibration: LayerCalibration) -> AihwkitLinear:
    """`linear` on aihwkit's PyTorch tiles, in evaluation mode; w_max per tile or per column of a tile."""
    _check(linear, hardware, ("tile", "column"), linear.in_features, linear.out_features)
    input_bound, lam, dac_states, adc_states = _ranges(hardware, calibration)
    config = AihwkitConfig()
    config.mapping.weight_scaling_omega = 1.0  # largest weight to the largest conductance
    config.mapping.weight_scaling_columnwise = hardware.w_max == "column"
    config.mapping.max_input_size = config.mapping.max_output_size = hardware.tile_size
    config.forward.inp_noise = config.forward.out_noise = config.forward.w_noise = 0.0
    config.forward.noise_management = NoiseManagementType.NONE
    config.forward.bound_management = BoundManagementType.NONE
    config.forward.inp_bound, config.forward.inp_res = 1.0, 1 / dac_states
    config.forward.out_bound, config.forward.out_res = lam, 1 / adc_states
    config.pre_post.input_range.enable = True
    layer = AihwkitLinear.from_digital(linear, config).eval()
    for tile in layer.analog_tiles():
        tile.input_range.data.fill_(input_bound)
    return layer


def lightning_linear(linear: nn.Linear, hardware: Hardware, calibration: LayerCalibration) -> LightningLinear:
    """`linear` on aihwkit-lightning, for evaluation; w_max per input slice (`tile`) or column of it."""
    _check(linear, hardware, ("tile", "column"), linear.in_features)
    input_bound, lam, dac_states, adc_states = _ranges(hardware, calibration)
    config = LightningConfig()
    config.mapping.max_input_size = hardware.tile_size
    config.forward.inp_res, config.forward.out_res, config.forward.out_bound = dac_states, adc_states, lam
    config.pre_post.input_range.enable = True
    config.pre_post.input_range.init_value = input_bound
    if hardware.w_max == "column":  # the forward pass only reads the granularity from it; nothing is clipped
        config.clip.type = WeightClipType.LAYER_GAUSSIAN_PER_CHANNEL
    return LightningLinear.from_digital(linear, config).eval()


class LightningExperts(nn.Module):
    """A fused experts module of transformers as lightning layers, in a loop like transformers' eager one.

    gate and up of an expert are one lightning layer, which costs lightning less than two. The weights are
    copies.
    """

    def __init__(self, experts: nn.Module, hardware: Hardware, calibration: Mapping[str, Ranges]) -> None:
        super().__init__()
        self.act_fn: Any = experts.act_fn

        def layers(name: str) -> nn.ModuleList:
            weights = experts.get_parameter(name).detach()
            ranges = for_experts(calibration[name], len(weights))
            return nn.ModuleList(
                lightning_linear(_linear(weight), hardware, each)
                for weight, each in zip(weights, ranges, strict=True)
            )

        self.gate_up_proj, self.down_proj = layers("gate_up_proj"), layers("down_proj")

    @torch.no_grad()
    def forward(
        self,
        hidden_states: Float[Tensor, "tokens hidden"],
        top_k_index: Int[Tensor, "tokens k"],
        top_k_weights: Float[Tensor, "tokens k"],
    ) -> Float[Tensor, "tokens hidden"]:
        result = torch.zeros_like(hidden_states)
        for expert in top_k_index.unique().tolist():
            token, choice = torch.where(top_k_index == expert)
            gate, up = self.gate_up_proj[expert](hidden_states[token]).chunk(2, dim=-1)
            output = self.down_proj[expert](self.act_fn(gate) * up)
            result.index_add_(0, token, output * top_k_weights[token, choice, None])
        return result


def _linear(weight: Float[Tensor, "out in"]) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    linear.weight = nn.Parameter(weight, requires_grad=False)
    return linear


def _ranges(hardware: Hardware, calibration: LayerCalibration) -> tuple[float, float, int, int]:
    """DAC bound, lam, and the numbers of DAC and ADC steps from bound to bound."""
    if hardware.dac_bits is None or hardware.adc_bits is None:
        raise InputError(
            "Hardware.dac_bits and adc_bits: the peers have both converters; give 2 to 16 bits for each"
        )
    kappa = calibration.kappa if hardware.kappa is None else hardware.kappa
    lam = calibration.lam if hardware.lam is None else hardware.lam
    return kappa * calibration.input_std, lam, 2**hardware.dac_bits - 2, 2**hardware.adc_bits - 2


def _check(linear: nn.Linear, hardware: Hardware, granularities: tuple[str, ...], *sizes: int) -> None:
    if hardware.w_max not in granularities:
        raise InputError(f"Hardware.w_max is {hardware.w_max}; this peer knows {' and '.join(granularities)}")
    for size in sizes:
        if size > hardware.tile_size and size % hardware.tile_size:
            raise InputError(
                f"{linear} has a dimension of {size}, which this peer cuts evenly; choose a"
                f" Hardware.tile_size that divides it, not {hardware.tile_size}"
            )
