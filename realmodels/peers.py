"""What do IBM's two simulators, aihwkit and aihwkit-lightning, compute for the same layers and models?

Both are brought to the hardware of `theory.hardware.Hardware`: per input slice a DAC with a fixed range, a product,
an ADC whose bound is lam * DAC bound * w_max, a digital sum.

Single layers (`aihwkit_linear`, `lightning_linear`, `LightningExperts`) use a peer as it comes. These differences
remain:

- Programming noise: neither peer applies it in evaluation without being asked. Both compute with the given weights as
  they are, and take w_max from these.
- Cuts: both peers cut evenly where the last of our tiles would be shorter. Where that matters it is refused.
- w_max: lightning's default is the largest weight of an input slice over all outputs. It equals ours per tile only
  while the outputs fit in one tile. Per column both agree.
- Input ranges: no peer calibrates them in evaluation mode (lightning's stay at 3.0). They are set here.

Whole models (`deployed_on`) are programmed by our noise, with the generators of `realmodels.deploy`. A peer does the
rest, from the DACs to the digital sum. ADC bounds have to follow from the target weights, while a peer takes the
largest weight of a column as it finds it. Therefore every slice gets one more input, always 0. The weights of that
input are 2^n * w_max, for whatever granularity, and at least the largest programmed weight. lam / 2^n then gives the
same bound, and as a power of two it rounds nothing. Inputs are filled up with zeros to whole slices.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import replace
from functools import partial
from io import StringIO
from typing import Literal, get_args

import torch
from aihwkit.nn import AnalogLinear as AihwkitLinear
from aihwkit.simulator.configs import BoundManagementType, NoiseManagementType
from aihwkit.simulator.configs import TorchInferenceRPUConfig as AihwkitConfig
from aihwkit.simulator.parameters.enums import RPUDataType
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from realmodels.analog import AnalogExperts, AnalogLinear, LayerCalibration, Ranges, for_experts
from realmodels.calibrate import Calibration, calibrate
from realmodels.deploy import DeploymentReport, deploy, reprogram, withdraw
from realmodels.fused import FusedLayout, apply_gate, fused_layout
from realmodels.model import Model
from theory.errors import InputError
from theory.hardware import Hardware, largest_weights
from theory.placement import Placement

with redirect_stdout(StringIO()):  # it prints that there is no GPU
    from aihwkit_lightning.nn import AnalogLinear as LightningLinear
    from aihwkit_lightning.simulator.configs import TorchInferenceRPUConfig as LightningConfig
    from aihwkit_lightning.simulator.configs import WeightClipType

Simulator = Literal["aihwkit", "lightning"]
SIMULATORS: tuple[Simulator, ...] = get_args(Simulator)
AIHWKIT_TYPES = {torch.float32: RPUDataType.FLOAT, torch.float64: RPUDataType.DOUBLE}

Product = Callable[[Float[Tensor, "*batch in"]], Float[Tensor, "*batch out"]]


# Single layers


def aihwkit_linear(linear: nn.Linear, hardware: Hardware, calibration: LayerCalibration) -> AihwkitLinear:
    """`linear` on aihwkit's PyTorch tiles, in evaluation mode; w_max per tile or per column of a tile."""
    # Per column it makes no difference which outputs share a tile.
    sizes = (linear.in_features, linear.out_features) if hardware.w_max == "tile" else (linear.in_features,)
    _check(linear, hardware, ("tile", "column"), *sizes)
    input_bounds, lam, dac_states, adc_states = _ranges(hardware, calibration)
    config = AihwkitConfig()
    config.runtime.data_type = AIHWKIT_TYPES[linear.weight.dtype]
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
    tiles = list(layer.analog_tiles())  # those of an input slice follow each other
    for number, tile in enumerate(tiles):
        tile.input_range.data.fill_(input_bounds[number * len(input_bounds) // len(tiles)])
    return layer


def lightning_linear(linear: nn.Linear, hardware: Hardware, calibration: LayerCalibration) -> LightningLinear:
    """`linear` on aihwkit-lightning, for evaluation; w_max per input slice (`tile`) or column of it."""
    _check(linear, hardware, ("tile", "column"), linear.in_features)
    input_bounds, lam, dac_states, adc_states = _ranges(hardware, calibration)
    config = LightningConfig()
    config.mapping.max_input_size = hardware.tile_size
    config.forward.inp_res, config.forward.out_res, config.forward.out_bound = dac_states, adc_states, lam
    config.pre_post.input_range.enable = True
    if hardware.w_max == "column":  # the forward pass only reads the granularity from it; nothing is clipped
        config.clip.type = WeightClipType.LAYER_GAUSSIAN_PER_CHANNEL
    layer = LightningLinear.from_digital(linear, config).eval()
    layer.input_range.data.copy_(torch.tensor(input_bounds, dtype=torch.float64))
    return layer


class LightningExperts(nn.Module):
    """A fused experts module of transformers as lightning layers, in a loop like transformers' eager one.

    gate and up of an expert are one lightning layer, which costs less than two. The weights are copies.
    """

    def __init__(self, experts: nn.Module, hardware: Hardware, calibration: Mapping[str, Ranges]) -> None:
        super().__init__()
        self._experts = (experts,)  # for its activation; in a tuple it is no submodule

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
        gate_up, down = list(self.gate_up_proj), list(self.down_proj)
        return _one_by_one(self._experts[0], gate_up, down, hidden_states, top_k_index, top_k_weights)


# Whole models


@contextmanager
def deployed_on(
    simulator: Simulator,
    model: Model,
    placement: Placement,
    hardware: Hardware,
    calibration: Sequence[str] | Calibration,
    seed: int = 0,
) -> Iterator[DeploymentReport]:
    """Deploy for the length of a `with` block: `deploy`'s programmed weights on a peer's DACs, tiles and ADCs.

    `reprogram` works inside, too. The experts of a layer with analog experts are computed one after the other, the
    digital ones as well.
    InputError, before anything is changed, for what `deploy` refuses, for hardware without both converters, for a
    model that is neither in fp32 nor fp64, and for experts with another layout than OLMoE's.
    """
    if simulator not in SIMULATORS:
        raise InputError(f"simulator is {simulator!r}: give one of {', '.join(SIMULATORS)}")
    _check_converters(hardware)
    model.require_digital()
    if model.network.dtype not in AIHWKIT_TYPES:
        raise InputError(
            f"model {model.name} is in {model.network.dtype}: load it in torch.float32 for the peers"
        )
    _check_layout(model)
    if not isinstance(calibration, Calibration):
        calibration = calibrate(model, calibration, hardware)
    report = deploy(model, placement, hardware, calibration, seed)
    try:
        for name, module in model.analog_modules.items():
            peer: PeerLinear | PeerExperts
            if not module.is_analog:
                continue  # nothing to compute
            if isinstance(module, AnalogExperts):
                both = {each: calibration[f"{name}.{each}"] for each in FusedLayout().weights}
                peer = PeerExperts(simulator, module.original, module.digital, hardware, both)
            else:
                assert isinstance(module.original, nn.Linear)
                peer = PeerLinear(simulator, module.original, hardware, calibration[f"{name}.weight"])
            peer.deployment = module.deployment
            model.network.set_submodule(name, peer)
        reprogram(model, seed)
        yield report
    finally:
        withdraw(model)


class PeerLinear(AnalogLinear):
    """`AnalogLinear`, computed by a peer."""

    def __init__(
        self, simulator: Simulator, linear: nn.Linear, hardware: Hardware, calibration: Ranges
    ) -> None:
        super().__init__(linear, hardware, calibration)
        self.tiles = _take_over(self, simulator, {"weight": for_experts(calibration, 1)})

    @torch.no_grad()
    def forward(self, input: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch out"]:
        """The same as `nn.Linear.forward`, computed by the peer."""
        output = self.tiles["weight"].products[0](input)
        return output if self.bias is None else output + self.bias


class PeerExperts(AnalogExperts):
    """`AnalogExperts`, computed by a peer: each analog expert is two of its layers, one of them gate and up."""

    def __init__(
        self,
        simulator: Simulator,
        experts: nn.Module,
        digital: Sequence[int],
        hardware: Hardware,
        calibration: Mapping[str, Ranges],
    ) -> None:
        super().__init__(experts, digital, hardware, calibration)
        each = {name: for_experts(ranges, self.num_experts) for name, ranges in calibration.items()}
        of_held = {name: [ranges[expert] for expert in self.held] for name, ranges in each.items()}
        self.tiles = _take_over(self, simulator, of_held)

    def products(self, name: str) -> list[Product]:
        """Products with the matrix `name` of each expert."""
        weight = self.get_parameter(name)
        on_tiles = dict(zip(self.held, self.tiles[name].products, strict=True))
        return [
            partial(F.linear, weight=weight[expert]) if expert in self.digital else on_tiles[expert]
            for expert in range(self.num_experts)
        ]

    @torch.no_grad()
    def forward(self, *inputs: Tensor) -> Float[Tensor, "tokens hidden"]:
        """The same as the forward of the replaced module, computed by the peer."""
        gate_up, down = self.products("gate_up_proj"), self.products("down_proj")
        return _one_by_one(self.original, gate_up, down, *inputs)


class _Tiles(nn.Module):
    """A peer's tiles in the place of crossbars, programmed like them. Saturation is not counted."""

    has_converters = True

    def __init__(
        self, simulator: Simulator, hardware: Hardware, calibrations: Sequence[LayerCalibration]
    ) -> None:
        super().__init__()
        self.simulator: Simulator = simulator
        self.hardware, self.calibrations = hardware, calibrations
        self.products: list[Product] = []  # one for each expert

    def program(
        self,
        target: Float[Tensor, "experts matrices out in"],
        programmed: Float[Tensor, "experts matrices out in"],
    ) -> None:
        """Put the programmed matrices of each expert, each with w_max of its own, on one layer of the peer."""
        w_max = largest_weights(target, self.hardware).flatten(1, 2)
        self.products = [
            _on_tiles(self.simulator, weights, largest, self.hardware, calibration)
            for weights, largest, calibration in zip(
                programmed.flatten(1, 2), w_max, self.calibrations, strict=True
            )
        ]


def _take_over(
    module: AnalogLinear | AnalogExperts,
    simulator: Simulator,
    calibrations: Mapping[str, Sequence[LayerCalibration]],
) -> dict[str, _Tiles]:
    """Put the peer's tiles in the place of the module's crossbars."""
    tiles = {name: _Tiles(simulator, module.hardware, each) for name, each in calibrations.items()}
    module.crossbars = nn.ModuleDict(tiles)  # type: ignore[assignment]
    return tiles


def _on_tiles(
    simulator: Simulator,
    programmed: Float[Tensor, "out in"],
    w_max: Float[Tensor, "out slices"],
    hardware: Hardware,
    calibration: LayerCalibration,
) -> Product:
    """Product with programmed weights on a peer's tiles, with ADC bounds by w_max [module's docstring]."""
    slices, missing = w_max.shape[1], 0
    if slices > 1:
        missing = slices * hardware.tile_size - programmed.shape[1]
    tiles = F.pad(programmed, (0, missing)).unflatten(1, (slices, -1))
    ratio = float((tiles.abs().amax(-1) / w_max).nan_to_num(0.0).max())  # a column of zeros has neither
    factor = 2.0 ** max(0, math.ceil(math.log2(ratio))) if ratio > 0 else 1.0
    with_w_max = torch.cat([tiles, factor * w_max.unsqueeze(-1)], -1).flatten(1)
    _, lam = calibration.bounds(hardware)
    guarded = replace(hardware, w_max="column", tile_size=hardware.tile_size + 1, lam=lam / factor)
    build = aihwkit_linear if simulator == "aihwkit" else lightning_linear
    layer = build(_linear(with_w_max), guarded, calibration)

    def product(x: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch out"]:
        parts = F.pad(x, (0, missing)).unflatten(-1, (slices, -1))
        output: Tensor = layer(F.pad(parts, (0, 1)).flatten(-2))
        return output

    return product


def _one_by_one(
    experts: nn.Module,
    gate_up: Sequence[Product],
    down: Sequence[Product],
    hidden_states: Float[Tensor, "tokens hidden"],
    top_k_index: Int[Tensor, "tokens k"],
    top_k_weights: Float[Tensor, "tokens k"],
) -> Float[Tensor, "tokens hidden"]:
    """The output of `experts`, computed with other products, in a loop like transformers' eager one."""
    result = torch.zeros_like(hidden_states)
    for expert in top_k_index.unique().tolist():
        token, choice = torch.where(top_k_index == expert)
        output = down[expert](apply_gate(experts, gate_up[expert](hidden_states[token])))
        result.index_add_(0, token, output * top_k_weights[token, choice, None])
    return result


def _linear(weight: Float[Tensor, "out in"]) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    linear.weight = nn.Parameter(weight, requires_grad=False)
    return linear


def _ranges(hardware: Hardware, calibration: LayerCalibration) -> tuple[tuple[float, ...], float, int, int]:
    """DAC bounds, lam, and the numbers of DAC and ADC steps from bound to bound."""
    _check_converters(hardware)
    assert hardware.dac_bits is not None and hardware.adc_bits is not None
    return *calibration.bounds(hardware), 2**hardware.dac_bits - 2, 2**hardware.adc_bits - 2


def _check(linear: nn.Linear, hardware: Hardware, granularities: tuple[str, ...], *sizes: int) -> None:
    if hardware.w_max not in granularities:
        raise InputError(f"Hardware.w_max is {hardware.w_max}; this peer knows {' and '.join(granularities)}")
    for size in sizes:
        if size > hardware.tile_size and size % hardware.tile_size:
            raise InputError(
                f"{linear} has a dimension of {size}, which this peer cuts evenly; choose a"
                f" Hardware.tile_size that divides it, not {hardware.tile_size}"
            )


def _check_converters(hardware: Hardware) -> None:
    if hardware.dac_bits is None or hardware.adc_bits is None:
        raise InputError(
            "Hardware.dac_bits and adc_bits: the peers have both converters; give 2 to 16 bits for each"
        )


def _check_layout(model: Model) -> None:
    for layer in model.map.moe_layers:
        if layer.linears or fused_layout(model.network.get_submodule(layer.experts)) != FusedLayout():
            raise InputError(
                f"model {model.name}: {layer.experts} is not laid out as in OLMoE and DeepSeekMoE, the layout that"
                " can be deployed on the peers; use realmodels.deploy"
            )
