"""Analog layers: equal to theory.hardware on every code, and good citizens of a transformers model."""

import copy
import json
import math
import pickle
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from types import SimpleNamespace
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from adc_parity import by_slice, reference, settled
from hypothesis import given, settings
from small_models import Matrix, unfused
from torch import Tensor, nn
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts
from transformers.models.olmoe.configuration_olmoe import OlmoeConfig
from transformers.models.olmoe.modeling_olmoe import OlmoeExperts
from transformers.models.openai_privacy_filter.modeling_openai_privacy_filter import (
    OpenAIPrivacyFilterExperts,
)

import realmodels.analog.crossbars as analog_crossbars
import realmodels.analog.layers as analog_layers
from realmodels.analog import AnalogExperts, AnalogLinear, LayerCalibration, Ranges, for_experts
from realmodels.analog.ranges import ranges_as_json, ranges_from_json
from theory.errors import InputError
from theory.hardware import Granularity, Hardware, analog_matmul, program, programming_sigma

PLAIN = LayerCalibration(input_std=1.0, kappa=2.5, lam=0.2)
NO_CONVERTERS = Hardware(c=0.0, dac_bits=None, adc_bits=None)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def fused_experts(
    experts: int,
    hidden: int,
    inner: int,
    generator: torch.Generator,
    dtype: torch.dtype = torch.float32,
    implementation: str = "eager",
) -> OlmoeExperts:
    config = OlmoeConfig(hidden_size=hidden, intermediate_size=inner, num_experts=experts)
    config._experts_implementation = implementation
    module = OlmoeExperts(config)
    for parameter in module.parameters():
        parameter.data.normal_(generator=generator)
    return module.to(dtype)


LAYOUTS: dict[str, type[Any]] = {
    "olmoe": OlmoeExperts,
    "gpt_oss": GptOssExperts,
    "openai_privacy_filter": OpenAIPrivacyFilterExperts,
}


def in_layout(experts: Any, name: str) -> Any:
    """Experts with the same matrices, as another architecture stores them; biases are zeros."""
    number, hidden, inner = experts.down_proj.shape
    config = SimpleNamespace(
        hidden_size=hidden,
        intermediate_size=inner,
        hidden_act="silu",
        num_experts=number,
        num_local_experts=number,
        swiglu_alpha=1.702,
        swiglu_limit=7.0,
        _experts_implementation=experts.config._experts_implementation,
    )
    other = LAYOUTS[name](config).to(experts.down_proj.dtype)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
        for expert in range(number):
            for mine, theirs in zip(unfused(other, expert), unfused(experts, expert), strict=True):
                mine.weight.copy_(theirs.weight)
    return other


def deployed(
    experts: nn.Module,
    digital: list[int],
    hardware: Hardware,
    seed: int = 0,
    calibration: LayerCalibration = PLAIN,
) -> AnalogExperts:
    layer = AnalogExperts(experts, digital, hardware, {"gate_up_proj": calibration, "down_proj": calibration})
    layer.program(seeded(seed))
    return layer


@st.composite
def hardwares(draw: st.DrawFn, bits: st.SearchStrategy[int | None]) -> Hardware:
    return Hardware(
        c=draw(st.sampled_from([0.0, 1.5])),
        w_max=draw(st.sampled_from(["tile", "column", "layer"])),
        tile_size=draw(st.sampled_from([4, 5, 16, 64, 512])),
        dac_bits=draw(bits),
        adc_bits=draw(bits),
        kappa=draw(st.none() | st.floats(0.5, 4)),
        lam=draw(st.none() | st.floats(0.01, 0.5)),
    )


def has_converters(hardware: Hardware) -> bool:
    return hardware.dac_bits is not None or hardware.adc_bits is not None


def matrix_sizes(tile_size: int) -> st.SearchStrategy[int]:
    """Draw a size below, at or above a whole number of tiles."""
    return st.integers(1, min(3 * tile_size, tile_size + 40))


# Tiles from so many numbers on are packed for oneDNN: all, some, none of the tests' small ones.
packed_from = st.sampled_from([0, 50, 2**18])


@contextmanager
def packing(numbers: int) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(analog_crossbars, "PACKED_FROM", numbers)
        yield


# ------------------------------------------------------------------------------ equal to the reference


@settings(max_examples=500, deadline=None)
@given(
    hardware=hardwares(st.none() | st.integers(2, 10)).filter(has_converters),
    data=st.data(),
    bias=st.booleans(),
    own_ranges=st.booleans(),
    packed_from=packed_from,
    seed=st.integers(0, 2**31),
)
def test_linear_equals_reference(
    hardware: Hardware, data: st.DataObject, bias: bool, own_ranges: bool, packed_from: int, seed: int
) -> None:
    """Try one range for the layer, and one for each input slice."""
    inputs, outputs = (data.draw(matrix_sizes(hardware.tile_size), label=name) for name in ("in", "out"))
    calibration = by_slice(PLAIN, inputs, hardware) if own_ranges else PLAIN
    linear = nn.Linear(inputs, outputs, bias=bias)
    linear.weight.data.normal_(generator=seeded(seed))
    layer = AnalogLinear(linear, hardware, calibration)
    with packing(packed_from):
        layer.program(seeded(seed))
    x = settled(
        torch.randn(data.draw(st.integers(0, 9)), inputs, generator=seeded(seed + 1)), hardware, calibration
    )
    output = layer(x.unsqueeze(1)).squeeze(1)
    if bias:
        output = output.double() - linear.bias.detach().double()
    programmed = program(linear.weight.detach(), hardware, seeded(seed))
    expected = reference(x, linear.weight.detach(), programmed, hardware, calibration)
    if bias:  # rounding of the sum with the bias
        expected.floats.add_(
            2.0**-24 * (expected.output.abs() + expected.flips + 2 * linear.bias.detach().abs())
        )
    expected.assert_agrees(output)


@settings(max_examples=150, deadline=None)
@given(
    hardware=hardwares(st.none() | st.integers(2, 10)).filter(has_converters),
    layout=st.sampled_from(sorted(LAYOUTS)),
    data=st.data(),
    own_ranges=st.booleans(),
    packed_from=packed_from,
    seed=st.integers(0, 2**31),
)
def test_expert_matrices_equal_reference(
    hardware: Hardware, layout: str, data: st.DataObject, own_ranges: bool, packed_from: int, seed: int
) -> None:
    """Compare gate, up and down of each expert, on rows grouped by expert, some experts without rows.

    Noise is the same in every layout.
    """
    hidden, inner = (data.draw(matrix_sizes(min(hardware.tile_size, 64)), label=name) for name in ("H", "I"))
    counts = data.draw(st.lists(st.integers(0, 5), min_size=1, max_size=5), label="rows of each expert")
    experts = fused_experts(len(counts), hidden, inner, seeded(seed))
    ranges = {
        name: by_slice(PLAIN, inputs, hardware) if own_ranges else PLAIN
        for name, inputs in (("gate_up_proj", hidden), ("down_proj", inner))
    }
    with packing(packed_from):
        layer = AnalogExperts(in_layout(experts, layout), [], hardware, ranges)
        layer.program(seeded(seed))
    generator = seeded(seed)
    gate_up, down = experts.gate_up_proj.detach().unflatten(1, (2, inner)), experts.down_proj.detach()
    noisy_gate_up, noisy_down = program(gate_up, hardware, generator), program(down, hardware, generator)
    rows = sum(counts)
    expert = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    ends = torch.tensor(counts).cumsum(0).int()
    matrices = {
        "gate_up_proj": (gate_up, noisy_gate_up),
        "down_proj": (down.unsqueeze(1), noisy_down.unsqueeze(1)),
    }
    for name, (target, programmed) in matrices.items():
        crossbars = layer.crossbars[name]
        x = torch.randn(rows, target.shape[-1], generator=seeded(seed + 1))
        x = settled(x, hardware, ranges[name])
        codes = crossbars.quantise(x, expert=expert if name == "down_proj" else None)
        output = analog_layers._expert_products(crossbars, codes, expert, ends)
        output = output.unflatten(1, (target.shape[1], -1))
        for number in range(len(counts)):
            for matrix in range(target.shape[1]):
                mine = expert == number
                weights = target[number, matrix], programmed[number, matrix]
                expected = reference(x[mine], *weights, hardware, ranges[name])
                expected.assert_agrees(output[mine, matrix])


# Numbers for which all of fp32's arithmetic is exact, so that the whole layer, both products, has to be equal
# bit for bit: weights are quarters and every column of a tile holds a 1 (w_max = 1), W' = 4 W and the codes
# are integers, gate and up multiples of 1/2, their product (identity for SiLU) a multiple of the DAC step 1/4
# of an expert's down, or half of it, or a multiple.
EXACT: dict[str, Ranges] = {
    "gate_up_proj": LayerCalibration(127.0, 2.0, 0.25),
    "down_proj": [LayerCalibration(127.0 * own, 0.25, 0.25) for own in (1.0, 4.0, 0.5, 2.0, 1.0)],
}
EXPERTS, HIDDEN, INNER = 5, 16, 8


def exact_ranges(tile_size: int) -> dict[str, Ranges]:
    """The same with another range, a power of two away, in every input slice."""

    def each(ranges: LayerCalibration, inputs: int) -> LayerCalibration:
        (std,) = ranges.stds
        stds = (2.0 ** (1 - number % 3) * std for number in range(math.ceil(inputs / tile_size)))
        return replace(ranges, input_std=tuple(stds))

    gate_up, down = EXACT["gate_up_proj"], EXACT["down_proj"]
    assert isinstance(gate_up, LayerCalibration) and not isinstance(down, LayerCalibration)
    return {"gate_up_proj": each(gate_up, HIDDEN), "down_proj": [each(one, INNER) for one in down]}


def exact_experts(generator: torch.Generator, layout: str = "olmoe") -> Any:
    """Biases of gate and up are multiples of 1/2, too; biases of down are multiples of 1/4."""
    experts = fused_experts(EXPERTS, HIDDEN, INNER, generator)
    for parameter in experts.parameters():
        parameter.data = torch.randint(-3, 4, parameter.shape, generator=generator) / 4.0
        parameter.data[..., ::4] = 1.0
    experts = in_layout(experts, layout)
    experts.act_fn = nn.Identity()
    if layout == "gpt_oss":
        experts._apply_gate = lambda both: both[..., ::2] * both[..., 1::2]
    if layout == "openai_privacy_filter":
        experts._apply_gate = lambda both: both[..., :INNER] * both[..., INNER:]
    if layout != "olmoe":
        for name, step in (("gate_up_proj_bias", 2), ("down_proj_bias", 4)):
            bias = experts.get_parameter(name)
            bias.data = torch.randint(-5, 6, bias.shape, generator=generator) / step
    return experts


def exact_inputs(tokens: int, k: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of small codes, and rows of one saturating input; all products fit in fp32's 24 bits."""
    hidden = torch.randint(-4, 5, (tokens, HIDDEN), generator=generator) * 2.0
    large = torch.randint(0, HIDDEN, (tokens,), generator=generator)
    hidden[::2] = 256.0 * nn.functional.one_hot(large, HIDDEN)[::2]
    index = torch.randint(0, EXPERTS, (tokens, k), generator=generator)  # an expert may come twice
    return hidden, index, torch.randint(0, 3, (tokens, k), generator=generator) / 2.0


def expected_layer(
    experts: Any,
    digital: list[int],
    hardware: Hardware,
    inputs: tuple[Tensor, Tensor, Tensor],
    ranges: Mapping[str, Ranges] = EXACT,
) -> Tensor:
    """Compute token by token, expert by expert, matrix by matrix through the reference."""

    def product(x: Tensor, matrix: Matrix, name: str, expert: int) -> Tensor:
        weight = matrix.weight.detach()
        if expert in digital:
            return x @ weight.T + matrix.bias
        each = for_experts(ranges[name], EXPERTS)[expert]
        exact = analog_matmul(
            x[None], weight, hardware, input_std=each.input_std, kappa=each.kappa, lam=each.lam
        )
        return exact.output[0] + matrix.bias

    result = torch.zeros(inputs[0].shape)
    for token, (x, index, weights) in enumerate(zip(*inputs, strict=True)):
        for expert, weight in zip(index.tolist(), weights, strict=True):
            gate, up, down = unfused(experts, expert)
            inner = product(x, gate, "gate_up_proj", expert) * product(x, up, "gate_up_proj", expert)
            result[token] += weight * product(inner, down, "down_proj", expert)
    return result.detach()


@settings(max_examples=150, deadline=None)
@given(
    layout=st.sampled_from(sorted(LAYOUTS)),
    digital=st.lists(st.integers(0, EXPERTS - 1), unique=True),
    tokens=st.integers(0, 12),
    k=st.integers(1, 3),
    tile_size=st.sampled_from([4, 8, 512]),
    w_max=st.sampled_from(["tile", "column", "layer"]),
    own_ranges=st.booleans(),
    pass_bytes=st.sampled_from([1, 2**24]),
    packed_from=packed_from,
    seed=st.integers(0, 2**31),
)
def test_whole_layer_equals_reference_bit_for_bit(
    layout: str,
    digital: list[int],
    tokens: int,
    k: int,
    tile_size: int,
    w_max: Granularity,
    own_ranges: bool,
    pass_bytes: int,
    packed_from: int,
    seed: int,
) -> None:
    """Try any layout, placement, pass length and routing: one token, none, idle experts, one expert twice."""
    ranges = exact_ranges(tile_size) if own_ranges else EXACT
    generator = seeded(seed)
    experts, hardware = exact_experts(generator, layout), Hardware(c=0.0, tile_size=tile_size, w_max=w_max)
    inputs = exact_inputs(tokens, k, generator)
    layer = AnalogExperts(experts, digital, hardware, ranges)
    with packing(packed_from):
        layer.program(generator)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(analog_crossbars.PASS_BYTES, "cpu", pass_bytes)
        patch.setattr(analog_crossbars, "PACKED_PASS_BYTES", pass_bytes)
        patch.setattr(analog_crossbars, "MIN_PASS_ROWS", 7)
        output = layer(*inputs)
    assert torch.equal(output, expected_layer(experts, digital, hardware, inputs, ranges))


def test_exact_numbers_reach_both_sides_of_every_bound() -> None:
    """Without saturation the test above would miss a wrong clamp. Counting it changes no output."""
    found = []
    for numbers in (0, 2**18):
        layer = AnalogExperts(exact_experts(seeded(0)), [], Hardware(c=0.0, tile_size=8), EXACT)
        with packing(numbers):
            layer.program(seeded(0))
        assert all(bool(each.packed) == (numbers == 0) for each in layer.crossbars.values())
        plain = layer(*exact_inputs(40, 2, seeded(1)))
        layer.count_saturation = True
        assert torch.equal(layer(*exact_inputs(40, 2, seeded(1))), plain)
        for fractions in layer.saturation().values():
            assert 0 < fractions.input < 1 and 0 < fractions.output < 1
        found.append(layer.saturation())
    assert found[0] == found[1]


@pytest.mark.parametrize("hidden", [16, 12, 15], ids=["expert by expert", "in rows", "at once"])
@pytest.mark.parametrize("numbers", [0, 2**18], ids=["packed", "plain"])
def test_experts_are_programmed_as_all_at_once(hidden: int, numbers: int) -> None:
    """The draws are those of one call of torch for each parameter; the digital experts' are left out."""
    hardware = Hardware(c=1.0, tile_size=8)
    experts, generator = fused_experts(5, hidden, 4, seeded(0)), seeded(2)
    with packing(numbers):
        layer = deployed(experts, [1], hardware, seed=2)
    for name, matrices in (("gate_up_proj", 2), ("down_proj", 1)):
        target = experts.get_parameter(name).detach().unflatten(1, (matrices, -1))
        noise = torch.randn(target.shape, generator=generator)
        expected = (target + programming_sigma(target, hardware) * noise)[[0, 2, 3, 4]].flatten(1, 2)
        crossbars = layer.crossbars[name]
        step = crossbars.scale.repeat_interleave(expected.shape[1] // crossbars.scale.shape[2], 2)
        assert crossbars.dac_levels is not None
        code = (crossbars.input_bound / crossbars.dac_levels).float()[..., None]
        tiles = crossbars.programmed() * step / code
        found = torch.cat(tuple(tiles), -1)[..., : target.shape[-1]]
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_packed_weights_are_copied_pickled_and_moved() -> None:
    experts, inputs = fused_experts(EXPERTS, HIDDEN, INNER, seeded(0)), exact_inputs(9, 2, seeded(1))
    with packing(0):
        layer = deployed(experts, [1], Hardware())
    output = layer(*inputs)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert all(each.packed for each in other.crossbars.values())
        assert torch.equal(other(*inputs), output)
    crossbars = copy.deepcopy(layer.crossbars["down_proj"])
    with packing(2**18):
        plain = deployed(experts, [1], Hardware()).crossbars["down_proj"]
    assert torch.equal(crossbars.programmed(), plain.programmed())
    crossbars.to("meta")
    assert not crossbars.packed and crossbars.programmed().device.type == "meta"


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("digital", [[], [1, 3], list(range(EXPERTS))])
def test_bfloat16_model_computes_codes_in_fp32(digital: list[int], layout: str) -> None:
    experts = exact_experts(seeded(0), layout)
    inputs = exact_inputs(9, 2, seeded(1))
    expected = expected_layer(experts, digital, Hardware(c=0.0), inputs)
    layer = AnalogExperts(experts.to(torch.bfloat16), digital, Hardware(c=0.0), EXACT)
    layer.program(seeded(0))
    hidden, index, weights = inputs
    assert torch.equal(hidden, hidden.to(torch.bfloat16).float())
    output = layer(hidden.to(torch.bfloat16), index, weights.to(torch.bfloat16))
    assert output.dtype == torch.bfloat16
    if not digital:
        assert torch.equal(output, expected.to(torch.bfloat16))
    # A digital expert rounds to bf16 (u = 2^-9) gate, up, their product, that row's product with down, its
    # weighting and the sums of k = 2 terms: 7 roundings, and every path of the triple product adds up to the
    # same in |.|. Adding a bias to gate, up and down is one more each.
    magnitude = expected_layer(_absolute(experts), digital, NO_CONVERTERS, (hidden.abs(), index, weights))
    unit = 2.0**-9 * (7 if layout == "olmoe" else 10)
    assert ((output.double() - expected).abs() <= unit / (1 - unit) * magnitude).all()


def _absolute(experts: Any) -> Any:
    result = copy.deepcopy(experts).float()
    for parameter in result.parameters():
        parameter.data.abs_()
    return result


def test_experts_of_another_library_need_only_an_activation() -> None:
    experts = fused_experts(EXPERTS, HIDDEN, INNER, seeded(0))
    plain = nn.Module()
    plain.gate_up_proj, plain.down_proj, plain.act_fn = experts.gate_up_proj, experts.down_proj, nn.SiLU()
    inputs = exact_inputs(5, 2, seeded(1))
    assert torch.equal(deployed(plain, [2], Hardware())(*inputs), deployed(experts, [2], Hardware())(*inputs))


def test_tiles_of_zeros_give_zeros() -> None:
    linear = nn.Linear(16, 6, bias=False)
    linear.weight.data.normal_(generator=seeded(0))[:3, :8] = 0
    x = torch.randn(4, 16, generator=seeded(1))
    x[:, 8:] = 0
    layer = AnalogLinear(linear, Hardware(c=2.0, tile_size=8, w_max="column"), PLAIN)
    layer.program(seeded(0))
    output = layer(x)
    assert (output[:, :3] == 0).all() and output[:, 3:].any(1).all()


# ----------------------------------------------------------------------------------- no converters


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("digital", [[], [0, 4], list(range(EXPERTS))])
@pytest.mark.parametrize("implementation", ["eager", "grouped_mm", "batched_mm"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_ideal_hardware_equals_digital_bit_for_bit(
    dtype: torch.dtype, digital: list[int], implementation: str, layout: str
) -> None:
    experts = in_layout(fused_experts(EXPERTS, HIDDEN, INNER, seeded(0), dtype, implementation), layout)
    for name, parameter in experts.named_parameters():
        if name.endswith("_bias"):
            parameter.data.normal_(generator=seeded(3))
    hidden = torch.randn(11, HIDDEN, generator=seeded(1)).to(dtype)
    weights, index = torch.rand(11, EXPERTS, generator=seeded(2)).to(dtype).topk(2)
    layer = deployed(experts, digital, NO_CONVERTERS)
    assert torch.equal(layer(hidden, index, weights), experts(hidden, index, weights))
    for bias in (True, False):
        linear = nn.Linear(HIDDEN, INNER, bias=bias, dtype=dtype)
        analog_linear = AnalogLinear(linear, NO_CONVERTERS, PLAIN)
        analog_linear.program(seeded(0))
        assert torch.equal(analog_linear(hidden[None]), linear(hidden[None]))
        assert torch.equal(AnalogLinear(linear, Hardware(c=9.0), None)(hidden[None]), linear(hidden[None]))


def test_linear_takes_any_batch_shape() -> None:
    layer = AnalogLinear(nn.Linear(HIDDEN, INNER), Hardware(), PLAIN)
    layer.program(seeded(0))
    x = torch.randn(2, 3, HIDDEN, generator=seeded(1))
    assert torch.equal(layer(x), layer(x.flatten(0, 1)).view(2, 3, INNER))
    assert torch.equal(layer(x[0, 0]), layer(x[0, :1])[0])
    assert layer(x[:0]).shape == (0, 3, INNER)


def test_without_converters_only_analog_experts_get_noise() -> None:
    hardware = Hardware(c=1.0, dac_bits=None, adc_bits=None)
    experts = fused_experts(EXPERTS, HIDDEN, INNER, seeded(0))
    noisy, generator = copy.deepcopy(experts), seeded(3)
    analog_experts, digital = [0, 2, 3], [4, 1]
    gate_up = program(experts.gate_up_proj.detach().unflatten(1, (2, INNER)), hardware, generator).flatten(
        1, 2
    )
    down = program(experts.down_proj.detach(), hardware, generator)
    noisy.gate_up_proj.data[analog_experts] = gate_up[analog_experts]
    noisy.down_proj.data[analog_experts] = down[analog_experts]
    hidden = torch.randn(11, HIDDEN, generator=seeded(1))
    weights, index = torch.rand(11, EXPERTS, generator=seeded(2)).topk(2)
    layer = deployed(experts, digital, hardware, seed=3)
    assert torch.equal(layer(hidden, index, weights), noisy(hidden, index, weights))
    assert not torch.equal(layer(hidden, index, weights), experts(hidden, index, weights))


# ----------------------------------------------------------------------------------------------- programming


def test_noise_of_an_expert_does_not_depend_on_the_placement() -> None:
    experts = fused_experts(EXPERTS, HIDDEN, INNER, seeded(0))
    everything, some = (
        deployed(experts, [], Hardware(), seed=7),
        deployed(experts, [0, 3], Hardware(), seed=7),
    )
    other = deployed(experts, [], Hardware(), seed=8)
    for name, crossbars in everything.crossbars.items():
        assert torch.equal(crossbars.programmed()[:, [1, 2, 4]], some.crossbars[name].programmed())
        assert not torch.equal(crossbars.programmed(), other.crossbars[name].programmed())


@settings(max_examples=40)
@given(
    layout=st.sampled_from(sorted(LAYOUTS)),
    made=st.sets(st.integers(0, EXPERTS - 1), max_size=EXPERTS - 2),
    later=st.sets(st.integers(0, EXPERTS - 1)),
    hardware=st.sampled_from([Hardware(c=1.0), Hardware(c=1.0, dac_bits=None, adc_bits=None)]),
    seed=st.integers(0, 2**31),
)
def test_other_digital_experts_without_programming(
    layout: str, made: set[int], later: set[int], hardware: Hardware, seed: int
) -> None:
    """The layer is then the one that was made with them, to the last bit; also its counts, and back again."""
    experts = in_layout(fused_experts(EXPERTS, HIDDEN, INNER, seeded(seed)), layout)
    layer, first = (deployed(experts, sorted(made), hardware, seed) for _ in range(2))
    inputs = exact_inputs(9, 2, seeded(seed))
    for digital, other in (
        (made | later, deployed(experts, sorted(made | later), hardware, seed)),
        (made, first),
    ):
        layer.keep_digital(sorted(digital))
        for each in (layer, other):
            each.count_saturation = True
            each.reset_saturation()
        assert torch.equal(layer(*inputs), other(*inputs))
        if hardware.adc_bits and layer.analog:
            assert layer.saturation() == other.saturation()
        assert (layer.digital, layer.analog) == (other.digital, other.analog)


def test_an_expert_on_no_crossbar_stays_digital() -> None:
    layer = deployed(fused_experts(EXPERTS, HIDDEN, INNER, seeded(0)), [1, 3], Hardware())
    with pytest.raises(InputError, match=r"experts \[1\] are on no crossbar: they have to stay digital"):
        layer.keep_digital([3])
    with pytest.raises(InputError, match="give each at most once"):
        layer.keep_digital([1, 3, 3])
    assert layer.digital == [1, 3]


@pytest.mark.parametrize("kind", ["experts", "linear"])
def test_a_mirror_image_has_the_opposite_noise(kind: str) -> None:
    hardware, linear = Hardware(c=1.0, dac_bits=None, adc_bits=None), nn.Linear(HIDDEN, INNER)
    experts = fused_experts(EXPERTS, HIDDEN, INNER, seeded(0))
    layer = AnalogLinear(linear, hardware, PLAIN) if kind == "linear" else deployed(experts, [], hardware)
    programmed = []
    for mirrored in (False, True):
        layer.program(seeded(7), mirrored=mirrored)
        programmed.append([crossbars.programmed().clone() for crossbars in layer.crossbars.values()])
    for name, one, other in zip(layer.crossbars, *programmed, strict=True):
        target = layer.get_parameter(name).detach()
        assert not torch.equal(one, target)
        torch.testing.assert_close(one - target, target - other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_noise_does_not_depend_on_the_layout(layout: str) -> None:
    hardware = Hardware(c=1.0, dac_bits=None, adc_bits=None)
    experts = fused_experts(EXPERTS, HIDDEN, INNER, seeded(0))
    generator, other = seeded(7), in_layout(experts, layout)
    gate_up = program(experts.gate_up_proj.detach().unflatten(1, (2, INNER)), hardware, generator)
    down = program(experts.down_proj.detach(), hardware, generator)
    for name, crossbars in deployed(other, [], hardware, seed=7).crossbars.items():
        assert crossbars.programmed().shape == other.get_parameter(name).shape
        other.get_parameter(name).data = crossbars.programmed()
    for expert in range(EXPERTS):
        expected = *gate_up[expert], down[expert]
        for matrix, weight in zip(unfused(other, expert), expected, strict=True):
            assert torch.equal(matrix.weight, weight)


# (dtype, device of the weights and of the generator, c): fp32 or less, both on one kind of GPU, and noise
KERNELS = [
    (torch.float32, "cuda:1", "cuda:1", 1.0, True),
    (torch.bfloat16, "cuda:0", "cuda:1", 0.5, True),
    (torch.float16, "cuda:0", "cuda:0", 2, True),
    (torch.float64, "cuda:0", "cuda:0", 1.0, False),
    (torch.float32, "cpu", "cpu", 1.0, False),
    (torch.float32, "cuda:0", "cpu", 1.0, False),
    (torch.float32, "mps:0", "mps:0", 1.0, False),
    (torch.float32, "cuda:0", "cuda:0", 0, False),
]


@pytest.mark.parametrize(("dtype", "device", "source", "c", "takes"), KERNELS, ids=str)
def test_which_weights_take_the_kernel(
    dtype: torch.dtype, device: str, source: str, c: float, takes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    target: Any = SimpleNamespace(dtype=dtype, device=torch.device(device))
    generator: Any = SimpleNamespace(device=torch.device(source))
    asked: list[torch.device] = []

    def runs(device: torch.device) -> bool:
        asked.append(device)
        return True

    monkeypatch.setattr(analog_crossbars, "_kernel_runs", runs)
    assert analog_crossbars.takes_kernel(target, Hardware(c=c), generator) is takes
    assert asked == ([target.device] if takes else [])
    monkeypatch.setattr(analog_crossbars, "_kernel_runs", lambda _: False)
    assert not analog_crossbars.takes_kernel(target, Hardware(c=c), generator)


# (dtype, device, hardware, part of the reason that such experts are not fused)
FUSED = [
    (torch.bfloat16, "cuda:1", Hardware(), None),
    (torch.float32, "cuda:0", Hardware(dac_bits=None), None),
    (torch.float16, "cuda:0", Hardware(adc_bits=None, c=0.0), None),
    (torch.bfloat16, "cuda:0", NO_CONVERTERS, "no converters"),
    (torch.bfloat16, "cpu", Hardware(), "not on an NVIDIA GPU"),
    (torch.float64, "cuda:0", Hardware(), "fp64"),
    (torch.bfloat16, "cuda:0", Hardware(c=1e4), "beyond fp16"),
]


@pytest.mark.parametrize(("dtype", "device", "hardware", "reason"), FUSED, ids=str)
def test_which_experts_are_fused(
    dtype: torch.dtype, device: str, hardware: Hardware, reason: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    target: Any = SimpleNamespace(dtype=dtype, device=torch.device(device))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr(analog_crossbars, "_kernel_runs", lambda _: True)
    found = analog_crossbars.why_not_fused(target, hardware)
    assert found is None if reason is None else reason in str(found)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    assert analog_crossbars.why_not_fused(target, hardware)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr(analog_crossbars, "_kernel_runs", lambda _: False)
    assert analog_crossbars.why_not_fused(target, hardware)


def test_on_a_cpu_experts_are_not_fused() -> None:
    layer = deployed(fused_experts(EXPERTS, HIDDEN, INNER, seeded(0)), [], Hardware())
    assert layer.why_not_fused == "they are not on an NVIDIA GPU" in repr(layer)
    assert all(crossbars.programmed().dtype == torch.float32 for crossbars in layer.crossbars.values())


def _with_triton(monkeypatch: pytest.MonkeyPatch, fused_program: Any) -> None:
    monkeypatch.setattr(analog_crossbars, "find_spec", lambda _: object())
    module = SimpleNamespace(fused_program=fused_program)
    monkeypatch.setitem(sys.modules, "realmodels.analog.kernel", module)
    # With a cache of its own.
    monkeypatch.setattr(analog_crossbars, "_kernel_runs", cache(analog_crossbars._kernel_runs.__wrapped__))


def test_a_kernel_that_does_not_compile_is_reported_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("Failed to find C compiler")

    _with_triton(monkeypatch, broken)
    with pytest.warns(RuntimeWarning, match="slower way.*on cpu: RuntimeError: Failed to find C compiler"):
        assert not analog_crossbars._kernel_runs(torch.device("cpu"))
    assert not analog_crossbars._kernel_runs(torch.device("cpu"))  # a second warning would be an error


def test_a_kernel_is_tried_on_each_device_once(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[torch.device] = []
    _with_triton(monkeypatch, lambda target, *_: tried.append(target.device))
    for device in ("cpu", "meta", "cpu"):
        monkeypatch.setattr(torch, "Generator", lambda _: None)
        assert analog_crossbars._kernel_runs(torch.device(device))
    assert tried == [torch.device("cpu"), torch.device("meta")]


def test_without_triton_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    _with_triton(monkeypatch, None)
    monkeypatch.setattr(analog_crossbars, "find_spec", lambda _: None)
    assert not analog_crossbars._kernel_runs(torch.device("cpu"))


def test_forward_before_programming_says_what_to_do() -> None:
    with pytest.raises(RuntimeError, match="program"):
        AnalogLinear(nn.Linear(4, 4), Hardware(), PLAIN)(torch.zeros(1, 4))


# ----------------------------------------------------------------------------------------------- saturation


@settings(max_examples=50, deadline=None)
@given(hardware=hardwares(st.integers(2, 8)), seed=st.integers(0, 2**31))
def test_saturation_of_a_linear_layer_is_the_references(hardware: Hardware, seed: int) -> None:
    linear = nn.Linear(23, 7, bias=False, dtype=torch.float64)
    x = torch.randn(6, 23, generator=seeded(seed), dtype=torch.float64)
    layer = AnalogLinear(linear, hardware, PLAIN)
    layer.program(seeded(seed))
    layer(x)
    assert math.isnan(layer.saturation()["weight"].input)
    layer.count_saturation = True
    layer(x[:2]), layer(x[2:])
    product = analog_matmul(
        x,
        linear.weight.detach(),
        hardware,
        input_std=PLAIN.input_std,
        programmed=program(linear.weight.detach(), hardware, seeded(seed)),
        kappa=PLAIN.kappa,
        lam=PLAIN.lam,
    )
    counted = layer.saturation()["weight"]
    assert math.isclose(counted.input, product.input_saturation, rel_tol=1e-6, abs_tol=1e-12)
    assert math.isclose(counted.output, product.output_saturation, rel_tol=1e-6, abs_tol=1e-12)
    layer.reset_saturation()
    assert math.isnan(layer.saturation()["weight"].output)


def test_saturation_counts_only_what_analog_experts_convert() -> None:
    """The first token has a digital and an analog expert, the second two analog ones: converted twice."""
    layer = AnalogExperts(exact_experts(seeded(0)), [0], Hardware(c=0.0), EXACT)
    layer.program(seeded(0))
    layer.count_saturation = True
    hidden = torch.zeros(2, HIDDEN)
    hidden[0, :3] = 1000
    hidden[1, :5] = -1000
    layer(hidden, torch.tensor([[0, 1], [2, 3]]), torch.ones(2, 2))
    assert layer.saturation()["gate_up_proj"].input == (3 + 2 * 5) / (3 * HIDDEN)


# ----------------------------------------------------------------------------------- life in a model


def layers() -> list[tuple[nn.Module, analog_layers._Analog]]:
    experts, linear = fused_experts(EXPERTS, HIDDEN, INNER, seeded(0)), nn.Linear(HIDDEN, INNER)
    analog_linear = AnalogLinear(linear, Hardware(), PLAIN)
    analog_linear.program(seeded(0))
    transposed = in_layout(experts, "gpt_oss")
    return [
        (experts, deployed(experts, [1], Hardware())),
        (linear, analog_linear),
        (linear, AnalogLinear(linear, Hardware(), None)),
        (transposed, deployed(transposed, [1], Hardware())),
    ]


def test_parameters_stay_the_same_objects_under_the_same_names() -> None:
    for original, layer in layers():
        assert layer.state_dict().keys() == original.state_dict().keys()
        assert dict(layer.named_parameters()).keys() == dict(original.named_parameters()).keys()
        for name, parameter in original.named_parameters():
            assert layer.get_parameter(name) is parameter
        layer.load_state_dict(original.state_dict())
        assert layer.original is original


def test_precision_of_the_model_does_not_touch_programmed_weights() -> None:
    for original, layer in layers():
        before = {name: buffer.clone() for name, buffer in layer.named_buffers()}
        values = {name: parameter.detach().clone() for name, parameter in original.named_parameters()}
        layer.to(torch.bfloat16)
        for name, buffer in layer.named_buffers():
            assert torch.equal(buffer, before[name]) and buffer.dtype == before[name].dtype
        for name, parameter in layer.original.named_parameters():
            assert torch.equal(parameter, values[name].to(torch.bfloat16))
        layer.half()
        assert all(buffer.dtype == before[name].dtype for name, buffer in layer.named_buffers())


def test_programmed_weights_follow_the_model_to_its_device() -> None:
    for _, layer in layers():
        layer.to("meta")
        assert {tensor.device.type for tensor in (*layer.buffers(), *layer.parameters())} == {"meta"}
        assert {parameter.device.type for parameter in layer.original.parameters()} == {"meta"}


def test_a_copy_computes_the_same() -> None:
    x = torch.randn(3, HIDDEN, generator=seeded(1))
    routing = torch.tensor([[0, 1], [1, 2], [3, 4]]), torch.full((3, 2), 0.5)
    for (original, layer), inputs in zip(layers(), [(x, *routing), (x,), (x,), (x, *routing)], strict=True):
        other = copy.deepcopy(layer)
        assert torch.equal(other(*inputs), layer(*inputs))
        assert other.original is not original and not layer(*inputs).requires_grad


# ----------------------------------------------------------------------------------------------- bad input


@given(
    std=st.floats(0.1, 10),
    own=st.floats(0.1, 10),
    kappa=st.none() | st.floats(0.1, 10),
    lam=st.none() | st.floats(0.1, 10),
)
def test_the_hardwares_ranges_win(std: float, own: float, kappa: float | None, lam: float | None) -> None:
    ranges = LayerCalibration(input_std=std, kappa=own, lam=2 * own)
    bounds, output = ranges.bounds(Hardware(kappa=kappa, lam=lam))
    assert bounds == ((own if kappa is None else kappa) * std,)
    assert output == (2 * own if lam is None else lam)


@pytest.mark.parametrize("field", ["input_std", "kappa", "lam"])
@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_calibration_rejects(field: str, value: float) -> None:
    with pytest.raises(InputError, match=field):
        LayerCalibration(**({"input_std": 1.0, "kappa": 1.0, "lam": 1.0} | {field: value}))
    with pytest.raises(InputError, match="input_std"):
        LayerCalibration((1.0, value), 1.0, 1.0)


calibrations = st.builds(
    LayerCalibration,
    st.floats(0.1, 10) | st.lists(st.floats(0.1, 10), min_size=1, max_size=4).map(tuple),
    st.floats(0.1, 10),
    st.floats(0.1, 10),
)


@given(ranges=calibrations | st.lists(calibrations, min_size=1, max_size=4).map(tuple))
def test_ranges_come_back_from_json(ranges: Ranges) -> None:
    assert ranges_from_json(json.loads(json.dumps(ranges_as_json(ranges)))) == ranges


@settings(max_examples=50, deadline=None)
@given(
    hardware=hardwares(st.none() | st.integers(2, 10)).filter(has_converters),
    slices=st.integers(1, 3),
    power=st.integers(-3, 3),
    packed_from=packed_from,
    seed=st.integers(0, 2**31),
)
def test_ranges_scale_with_the_inputs(
    hardware: Hardware, slices: int, power: int, packed_from: int, seed: int
) -> None:
    """Equal ranges of all slices are one range, bit for bit; inputs and ranges times 2^n give outputs times 2^n."""
    inputs = slices * hardware.tile_size if hardware.tile_size < 100 else 30
    linear = nn.Linear(inputs, 7, bias=False)
    linear.weight.data.normal_(generator=seeded(seed))
    x = torch.randn(6, inputs, generator=seeded(seed + 1))

    def output(input_std: float | tuple[float, ...], x: Tensor) -> Tensor:
        layer = AnalogLinear(linear, hardware, replace(PLAIN, input_std=input_std))
        with packing(packed_from):
            layer.program(seeded(seed))
        return layer(x)

    count = math.ceil(inputs / hardware.tile_size)
    assert torch.equal(output((1.3,) * count, x), output(1.3, x))
    stds = tuple(0.5 + number for number in range(count))
    scaled = output(tuple(2.0**power * std for std in stds), 2.0**power * x)
    assert torch.equal(scaled, 2.0**power * output(stds, x))


def test_every_slice_counts_what_is_beyond_its_own_range() -> None:
    linear, hardware = nn.Linear(5, 3, bias=False), Hardware(c=0.0, tile_size=2)
    layer = AnalogLinear(linear, hardware, LayerCalibration((1.0, 3.0, 0.5), 1.0, 1.0))
    layer.program(seeded(0))
    layer.count_saturation = True
    layer(torch.tensor([[2.0, -0.5, 2.0, -4.0, 0.6], [1.0, 1.0, 1.0, 3.0, -0.5]]))
    assert layer.saturation()["weight"].input == 3 / 10


def test_ranges_of_slices_are_counted() -> None:
    layer = AnalogLinear(nn.Linear(5, 3), Hardware(tile_size=2), LayerCalibration((1.0, 3.0), 1.0, 1.0))
    with pytest.raises(
        InputError, match="calibration has 2 input slices, the layer 3: calibrate for tile_size 2"
    ):
        layer.program(seeded(0))
    experts = fused_experts(EXPERTS, HIDDEN, INNER, seeded(0))
    ranges = [PLAIN] * (EXPERTS - 1) + [LayerCalibration((1.0, 1.0), 1.0, 1.0)]
    with pytest.raises(
        InputError, match=r"calibrations have \[1, 2\] input slices: give as many for each expert"
    ):
        AnalogExperts(experts, [], Hardware(tile_size=4), {"gate_up_proj": PLAIN, "down_proj": ranges})


@pytest.mark.parametrize("digital", [[0, 0], [EXPERTS], [-1]])
def test_digital_experts_are_checked(digital: list[int]) -> None:
    with pytest.raises(InputError, match="digital experts"):
        deployed(fused_experts(EXPERTS, HIDDEN, INNER, seeded(0)), digital, Hardware())


@pytest.mark.parametrize(
    ("parameter", "count", "message"),
    [
        ("gate_up_proj", EXPERTS, f"gate_up_proj has {EXPERTS} calibrations"),
        ("down_proj", EXPERTS - 1, f"{EXPERTS - 1} calibrations: give one for all {EXPERTS}"),
    ],
)
def test_calibrations_are_counted(parameter: str, count: int, message: str) -> None:
    experts = fused_experts(EXPERTS, HIDDEN, INNER, seeded(0))
    with pytest.raises(InputError, match=message):
        AnalogExperts(experts, [], Hardware(), EXACT | {parameter: [PLAIN] * count})


@pytest.mark.parametrize("attribute", ["is_transposed", "has_bias", "has_post_expert_norm"])
def test_other_layouts_are_refused(attribute: str) -> None:
    experts = fused_experts(EXPERTS, HIDDEN, INNER, seeded(0))
    setattr(experts, attribute, True)
    with pytest.raises(InputError, match=attribute):
        deployed(experts, [], Hardware())
    swapped = fused_experts(EXPERTS, HIDDEN, INNER, seeded(0))
    swapped.down_proj = nn.Parameter(swapped.down_proj.mT.contiguous())
    with pytest.raises(InputError, match="down_proj"):
        deployed(swapped, [], Hardware())
