"""Linear layers and fused experts on simulated analog hardware: the fast form of theory.hardware.

The reference is `theory.hardware.analog_matmul`. What makes this form fast: programmed weights are stored as
W' = W~ * (L_out / L_in) / (lam * w_max), so that the DAC bound cancels and a product of DAC codes and W' is
already in units of one ADC step: an ADC code is clamp(round(q @ W'.T)). What remains per forward pass is one
grouped matrix product over (input slice, expert) pairs, a rounding, and the digital sum over slices. A
property test holds every configuration to the reference, on ADC codes.

    ranges          between which bounds the converters of a layer work
    crossbars       programmed tiles, with a DAC in front of them and an ADC behind them
    layers          what replaces an `nn.Linear` and a fused experts module

On an NVIDIA GPU:

    kernel          programming noise, in one pass
    fused_experts   a layer of experts in five launches, with programmed weights in fp16
    experts_kernel  what their programs compute

For inference only: no gradient flows through these modules.
"""

from realmodels.analog.crossbars import Saturation
from realmodels.analog.layers import AnalogExperts, AnalogLinear
from realmodels.analog.ranges import LayerCalibration, Ranges, for_experts
from realmodels.fused import apply_gate, grouped_matmul

__all__ = [
    "AnalogExperts",
    "AnalogLinear",
    "LayerCalibration",
    "Ranges",
    "Saturation",
    "apply_gate",
    "for_experts",
    "grouped_matmul",
]
