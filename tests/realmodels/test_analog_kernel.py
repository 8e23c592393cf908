"""The fused kernel programs what theory.hardware and realmodels.analog do, with normals of a weight's place alone.

On an NVIDIA GPU; or, with TRITON_INTERPRET=1 and Triton installed, in Triton's interpreter on the CPU.
"""

import itertools
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from monte_carlo import assert_normal, assert_uncorrelated
from test_analog import LAYOUTS, PLAIN, fused_experts, in_layout, seeded
from torch import Tensor, nn

import realmodels.analog.crossbars as analog_crossbars
import realmodels.analog.layers as analog_layers
from realmodels.analog import AnalogExperts, AnalogLinear, LayerCalibration
from theory.hardware import (
    PROGRAMMING_NOISE,
    Granularity,
    Hardware,
    largest_of_columns,
    largest_weights,
    program,
    programming_sigma,
)

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
if not (INTERPRETED or torch.cuda.is_available()):
    pytest.skip("no CUDA device here, and TRITON_INTERPRET is not 1", allow_module_level=True)
pytest.importorskip("triton")

from realmodels.analog import kernel  # noqa: E402
from realmodels.analog.kernel import fused_program, tl, triton  # noqa: E402

DEVICE = "cpu" if INTERPRETED else "cuda"
GRANULARITIES: list[Granularity] = ["tile", "column", "layer"]
UNIT = 2.0**-24  # rounding of fp32
ROUNDING: dict[str, Any] = {
    "rtol": 4 * UNIT,
    "atol": 4 * UNIT,
}  # compiled for other sizes, a kernel may round otherwise


@pytest.fixture(autouse=True)
def few_programs() -> Iterator[None]:
    """The interpreter takes as long for a large block as for a small one."""
    with pytest.MonkeyPatch.context() as patch:
        if INTERPRETED:
            patch.setattr(kernel, "ROWS", 64)
        yield


def generator(seed: int) -> torch.Generator:
    return torch.Generator(DEVICE).manual_seed(seed)


def weights(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=seeded(seed)).to(DEVICE, dtype)


def by_generator(
    target: Tensor, hardware: Hardware, source: torch.Generator, *, mirrored: bool = False, **_: Any
) -> Tensor:
    """Program as theory.hardware.program does, for (experts, matrices, out, in) and with the kernel's draws."""
    w_max = largest_weights(target, hardware).float()
    programmed = torch.full(target.shape, math.nan, device=DEVICE)
    everyone = torch.arange(len(target), device=DEVICE)
    arguments = target, w_max, torch.ones_like(w_max), everyone, programmed, hardware, source
    fused_program(*arguments, mirrored=mirrored)
    return programmed


def by_kernel(target: Tensor, hardware: Hardware, seed: int = 0, *, mirrored: bool = False) -> Tensor:
    return by_generator(target, hardware, generator(seed), mirrored=mirrored)


def normals(*shape: int, seed: int = 0, mirrored: bool = False) -> Tensor:
    """The kernel's unit noise: weights of 0 in a tile whose largest is 1, and a noise of c * w_max."""
    programmed, ones = torch.full(shape, math.nan, device=DEVICE), torch.ones(*shape[:3], 1, device=DEVICE)
    hardware = Hardware(programming="constant", c=1.0, tile_size=2**40)
    everyone = torch.arange(shape[0], device=DEVICE)
    target = torch.zeros(shape, device=DEVICE)
    fused_program(target, ones, ones, everyone, programmed, hardware, generator(seed), mirrored=mirrored)
    return programmed


def assert_programmed(programmed: Tensor, target: Tensor, noise: Tensor, hardware: Hardware) -> None:
    """Weights are target + sigma * noise, to the rounding of fp32; in a dead zone exactly 0."""
    target, noise = target.double(), noise.double()
    sigma = programming_sigma(target, hardware)
    r_max = largest_weights(target, hardware).repeat_interleave(
        min(hardware.tile_size, target.shape[-1]), -1
    )[..., : target.shape[-1]]
    # At most 16 roundings of a term of sigma (as counted in tests/theory/test_hardware.py), 4 of the rest.
    model = PROGRAMMING_NOISE[hardware.programming]
    pieces = tuple({power: abs(each) for power, each in piece.items()} for piece in model.pieces)
    r = torch.where(r_max > 0, target.abs() / r_max, 0)
    terms = hardware.c * r_max * replace(model, pieces=pieces).sigma(r)
    dead = r < model.dead_zone
    expected = torch.where(dead, 0, target + sigma * noise)
    bound = 20 * UNIT * (target.abs() + terms * noise.abs())
    assert ((programmed.double() - expected).abs() <= torch.where(dead, 0, bound)).all()


# ------------------------------------------------------------------------------ the reference's formula


@pytest.mark.parametrize("w_max", GRANULARITIES)
@pytest.mark.parametrize("programming", sorted(PROGRAMMING_NOISE))
def test_noise_is_the_same_whatever_the_hardware(programming: str, w_max: Granularity) -> None:
    """Covers slices of whole runs and others, one slice, and widths that are no multiple of anything; bf16, too."""
    noise = normals(2, 2, 19, 150)
    for tile_size, dtype in zip((3, 32, 48, 64, 512), itertools.cycle((torch.float32, torch.bfloat16))):
        target = weights(2, 2, 19, 150, dtype=dtype)
        target[0, 1, :3] = 0
        hardware = Hardware(programming=programming, c=1.5, w_max=w_max, tile_size=tile_size)
        assert_programmed(by_kernel(target, hardware), target, noise, hardware)


@pytest.mark.parametrize("rows", [16, 32])
def test_noise_does_not_depend_on_the_block_size(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = normals(1, 2, 40, 70)
    monkeypatch.setattr(kernel, "ROWS", rows)
    torch.testing.assert_close(normals(1, 2, 40, 70), expected, **ROUNDING)


def test_noise_of_a_weight_depends_on_its_place_alone() -> None:
    """The numbers of experts, matrices, outputs and inputs make no difference."""
    all_of_them = normals(3, 2, 20, 300)
    torch.testing.assert_close(normals(2, 1, 9, 131), all_of_them[:2, :1, :9, :131], **ROUNDING)


def test_noise_is_the_generators() -> None:
    target, hardware, source = weights(1, 1, 8, 40), Hardware(c=1.0, tile_size=16), generator(5)
    first, second = (by_generator(target, hardware, source) for _ in range(2))
    assert torch.equal(by_kernel(target, hardware, 5), first)
    assert (first != second).all() and (first != by_kernel(target, hardware, 6)).all()


def test_a_mirror_image_is_the_same_noise_with_the_opposite_sign() -> None:
    assert torch.equal(normals(1, 2, 9, 140, mirrored=True), -normals(1, 2, 9, 140))
    target, hardware = weights(2, 1, 9, 140), Hardware(programming="hermes", c=1.5, tile_size=64)
    mirrored = by_kernel(target, hardware, mirrored=True)
    assert_programmed(mirrored, target, -normals(2, 1, 9, 140), hardware)


def test_borders_of_hermes_are_the_references_to_the_last_bit() -> None:
    """Tries neighbouring numbers around the end of the dead zone and around the step between the two polynomials."""
    largest = 1.37
    target = torch.tensor([[[[largest] + [0.0] * 65]]], device=DEVICE)
    for place, border in ((1, 0.6 / 180), (34, 52.5 / 180)):
        near = torch.tensor(border * largest, device=DEVICE)
        bits = near.view(torch.int32) + torch.arange(-16, 16, device=DEVICE, dtype=torch.int32)
        target[..., place : place + 32] = bits.view(torch.float32)
    hardware = Hardware(programming="hermes", c=1.0)
    programmed, noise = by_kernel(target, hardware).flatten(), normals(1, 1, 1, 66).flatten()
    reference = program(target, hardware, generator(0)).flatten()
    assert torch.equal(programmed == 0, reference == 0)
    assert 0 < (reference[1:33] == 0).sum() < 32
    # In fp32: the reference's own choice of a polynomial, and the step between them.
    sigma, around = programming_sigma(target, hardware).flatten(), slice(34, 66)
    error = (programmed - target.flatten() - sigma * noise).abs()[around]
    bound = 40 * UNIT * (target.flatten().abs() + 12 * sigma * noise.abs())[around]
    assert (error <= bound).all()
    seen = bound < sigma[around].diff().abs().max() * noise[around].abs()
    assert seen[:16].any() and seen[16:].any()


@pytest.mark.parametrize("programming", sorted(PROGRAMMING_NOISE))
def test_tiles_of_zeros_stay_zeros(programming: str) -> None:
    target = weights(1, 1, 20, 40)
    target[..., :10, :20] = 0
    programmed = by_kernel(target, Hardware(programming=programming, c=2.0, tile_size=10))
    assert (programmed[..., :10, :20] == 0).all() and programmed[..., 10:, :].isfinite().all()


@pytest.mark.parametrize("transposed", [False, True])
def test_largest_weights_are_the_references(transposed: bool) -> None:
    """Also of weights that are no numbers."""
    for tile_size, w_max in zip((1, 5, 32, 64, 512, 2**40), 2 * GRANULARITIES, strict=True):
        target = weights(2, 2, 150, 19).mT if transposed else weights(2, 2, 19, 150)
        target[1, 1, 7, 3] = -9.0
        target[0, 1, 2, 11] = math.nan
        hardware = Hardware(tile_size=tile_size, w_max=w_max)
        for each in (target, target.bfloat16()):
            found = largest_of_columns(kernel.fused_largest(each, tile_size), hardware)
            assert torch.equal(
                found.nan_to_num(-1.0), largest_weights(each, hardware).float().nan_to_num(-1.0)
            )
            assert found.isnan().any()


# ------------------------------------------------------------------------------------ unit normals


@triton.jit
def _bits(seed, ours, philox):
    place = tl.arange(0, 64)
    counters = place, 3 * place, place + 2**20, -place
    one = kernel._philox(tl.load(seed), *counters, 10)
    other = tl.philox(tl.load(seed), *counters, 10)
    for number in tl.static_range(4):
        tl.store(ours + 64 * number + place, one[number].to(tl.int32, bitcast=True))
        tl.store(philox + 64 * number + place, other[number].to(tl.int32, bitcast=True))


def test_bits_are_philoxs() -> None:
    for seed in (0, 1, 2**32 - 1, 2**40 + 7, 2**63 - 1):
        ours, philox = (torch.zeros(256, dtype=torch.int32, device=DEVICE) for _ in range(2))
        _bits[1,](torch.tensor([seed], device=DEVICE), ours, philox)
        assert torch.equal(ours, philox) and ours.unique().numel() > 250


def test_noise_is_normal_and_independent() -> None:
    """Judges all in one sample; between experts, matrices, neighbouring outputs, inputs of one counter; and sizes."""
    noise = normals(4, 2, 128, 256, seed=11)
    assert_normal(noise.flatten()[:, None], torch.zeros(1), torch.ones(1))
    sizes = torch.special.ndtri(torch.erf(noise.double().abs() / math.sqrt(2)))  # of a normal's |z|: a normal
    for each in (noise, sizes):
        assert_uncorrelated(each.flatten(0, 1).flatten(1).T)
        assert_uncorrelated(each[..., :128].unflatten(-1, (4, 32)).movedim(-2, 0).flatten(1).T)
        assert_uncorrelated(each.unflatten(2, (-1, 8)).movedim(3, 0).flatten(1).T)
        assert_uncorrelated(each.unflatten(3, (-1, 8)).movedim(4, 0).flatten(1).T)
        assert_uncorrelated(torch.stack([each[..., :128], each[..., 128:]]).flatten(1).T)


@triton.jit
def _normals_of_bits(first, second, x, y):
    place = tl.arange(0, 64)
    one, other = kernel._normals(tl.load(first + place), tl.load(second + place))
    tl.store(x + place, one)
    tl.store(y + place, other)


def test_normals_of_given_bits() -> None:
    """The radius is sqrt(-2 log u) for u from 2^-33 to 1; angles cover each eighth of a turn, ends included."""
    smallest, largest = 0, 2**32 - 1
    sample = torch.randint(2**32, (56,), generator=seeded(0)).tolist()
    first = [smallest, 1, 2**16, 2**31, 2**32 - 2**9, largest, 12345, 2**30, *sample]
    second = [*(eighth * 2**29 for eighth in range(8)), *sample[::-1]]
    bits = [torch.tensor(each, dtype=torch.uint32, device=DEVICE) for each in (first, second)]
    x, y = (torch.empty(64, device=DEVICE) for _ in range(2))
    _normals_of_bits[1,](*bits, x, y)
    for number, (one, other) in enumerate(zip(first, second, strict=True)):
        uniform = min(one * 2.0**-32 + 2.0**-33, 1.0)
        radius = math.sqrt(-2 * math.log(uniform))
        within = (other % 2**30 - (2**30 if other >> 29 & 1 else 0)) * 2.0**-29 * math.pi / 4
        axes = (math.cos(within), math.sin(within))[:: -1 if other >> 30 & 1 else 1]
        sign = -1 if other >> 31 else 1
        # The sum of u rounds to 2^-25 below 1, whose log is the square of a small radius.
        error = 2e-6 * radius + math.sqrt(2 * 2.0**-24) * (uniform > 0.9)
        assert math.isclose(x[number].item(), sign * radius * axes[0], abs_tol=error)
        assert math.isclose(y[number].item(), sign * radius * axes[1], abs_tol=error)
    assert float(x[0].square() + y[0].square()) == pytest.approx(66 * math.log(2), rel=1e-5)


# --------------------------------------------------------------------------------- in analog layers


def both_ways(program_layers: Callable[[], Any]) -> tuple[Any, Any]:
    """The same crossbars, programmed by the kernel and by theory.hardware's way of storing."""
    with pytest.MonkeyPatch.context() as patch:
        if INTERPRETED:
            patch.setattr(analog_layers, "takes_kernel", lambda *_: True)
        fused = program_layers()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(analog_layers, "takes_kernel", lambda *_: False)
        # The kernel's draws are for all experts at once, and come in memory of their own.
        patch.setattr(analog_crossbars, "drawn_in_parts", lambda *_: False)
        for module in (analog_layers, analog_crossbars):
            patch.setattr(module, "program", by_generator)
        return fused, program_layers()


def assert_same_crossbars(fused: analog_layers._Analog, expected: analog_layers._Analog) -> None:
    for name, crossbars in fused.crossbars.items():
        other = expected.crossbars[name]
        assert crossbars.programmed().shape == other.programmed().shape
        assert crossbars.programmed().stride() == other.programmed().stride()
        assert crossbars.programmed().dtype == other.programmed().dtype == torch.float32
        # Two roundings each: of the sum and of the product.
        torch.testing.assert_close(crossbars.programmed(), other.programmed(), rtol=4 * UNIT, atol=0)
        if crossbars.has_converters:
            assert torch.equal(crossbars.scale, other.scale)


CONVERTERS = [(8, 8), (8, None), (None, 6), (None, None)]


@pytest.mark.parametrize("bits", CONVERTERS, ids=str)
@pytest.mark.parametrize("digital", [[], [0, 2], [0, 1, 2, 3]], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_experts_are_stored_as_without_the_kernel(
    layout: str, digital: list[int], bits: tuple[int | None, int | None]
) -> None:
    """Covers experts with a calibration each, and weights that take the place of ones programmed before."""
    each = [LayerCalibration(1.0 + expert, 2.5, 0.2) for expert in range(4)]
    experts = in_layout(fused_experts(4, 20, 12, seeded(0)), layout).to(DEVICE)
    hardware = Hardware(c=1.5, tile_size=16, w_max="column", dac_bits=bits[0], adc_bits=bits[1])

    def layer() -> AnalogExperts:
        result = AnalogExperts(
            experts, digital, hardware, {"gate_up_proj": PLAIN, "down_proj": each}, fp32=True
        )
        result.program(generator(4))
        result.program(generator(3), mirrored=True)
        return result

    assert_same_crossbars(*both_ways(layer))


def test_weights_in_bf16_are_programmed_in_fp32() -> None:
    experts = fused_experts(3, 40, 24, seeded(0), torch.bfloat16).to(DEVICE)

    def layer() -> AnalogExperts:
        result = AnalogExperts(
            experts, [1], Hardware(), {"gate_up_proj": PLAIN, "down_proj": PLAIN}, fp32=True
        )
        result.program(generator(3))
        return result

    assert_same_crossbars(*both_ways(layer))


@pytest.mark.parametrize("bits", CONVERTERS, ids=str)
@pytest.mark.parametrize("transposed", [False, True])
def test_linear_layers_are_stored_as_without_the_kernel(
    transposed: bool, bits: tuple[int | None, int | None]
) -> None:
    linear = nn.Linear(70, 30, device=DEVICE)
    weight = weights(70, 30).T if transposed else weights(30, 70)
    linear.weight = nn.Parameter(weight)
    hardware = Hardware(programming="hermes", c=1.5, tile_size=32, dac_bits=bits[0], adc_bits=bits[1])

    def layer() -> AnalogLinear:
        result = AnalogLinear(linear, hardware, PLAIN, fp32=True)
        result.program(generator(3))
        return result

    fused, expected = both_ways(layer)
    if bits == (None, None):  # a buffer as the parameter is, in whatever order in memory
        torch.testing.assert_close(fused.crossbars["weight"].weight, expected.crossbars["weight"].weight)
    else:
        assert_same_crossbars(fused, expected)


def test_programming_again_takes_the_same_memory_and_leaves_nothing_behind() -> None:
    linear, hardware = nn.Linear(70, 30, device=DEVICE), Hardware(tile_size=32)

    def layer() -> AnalogLinear:
        result = AnalogLinear(linear, hardware, PLAIN, fp32=True)
        result.program(generator(3))
        before = result.crossbars["weight"].programmed()
        address = before.data_ptr()
        before[-1, ..., 6:] = math.nan
        result.program(generator(4))
        assert result.crossbars["weight"].programmed().data_ptr() == address
        return result

    fused, expected = both_ways(layer)
    assert_same_crossbars(fused, expected)
    assert (fused.crossbars["weight"].programmed()[-1, ..., 6:] == 0).all()


# ----------------------------------------------------------------------------------- on a GPU alone


@pytest.mark.skipif(INTERPRETED, reason="not on a GPU")
def test_which_weights_take_the_kernel() -> None:
    target, hardware = weights(1, 1, 4, 4), Hardware()
    assert analog_crossbars.takes_kernel(target, hardware, generator(0))
    assert analog_crossbars.takes_kernel(target.bfloat16(), hardware, generator(0))
    assert not analog_crossbars.takes_kernel(target.double(), hardware, generator(0))
    assert not analog_crossbars.takes_kernel(target, replace(hardware, c=0), generator(0))
    assert not analog_crossbars.takes_kernel(target, hardware, seeded(0))
    assert not analog_crossbars.takes_kernel(target.cpu(), hardware, generator(0))


@pytest.mark.skipif(INTERPRETED, reason="not on a GPU")
@pytest.mark.parametrize("bits", [8, None])
def test_programming_takes_no_memory_but_the_weights(bits: int | None) -> None:
    experts = fused_experts(8, 512, 1024, seeded(0), torch.bfloat16).to(DEVICE)
    hardware = Hardware(dac_bits=bits, adc_bits=bits)
    layer = AnalogExperts(experts, [0], hardware, {"gate_up_proj": PLAIN, "down_proj": PLAIN}, fp32=True)
    layer.program(generator(0))  # compiles, and makes what stays
    for crossbars in layer.crossbars.values():
        crossbars.weight = None
    torch.cuda.synchronize()
    held = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    layer.program(generator(0))
    programmed = 7 * 3 * 512 * 1024 * 4
    assert programmed <= torch.cuda.max_memory_allocated() - held <= 1.1 * programmed


@pytest.mark.skipif(INTERPRETED, reason="not on a GPU")
def test_parameters_of_more_than_2_to_the_31_weights() -> None:
    size, c = 32768, 2.0**-10
    if torch.cuda.mem_get_info()[0] < 14 * 2**30:
        pytest.skip("needs 14 GiB of GPU memory")
    target = torch.zeros(3, 1, size, size, dtype=torch.bfloat16, device=DEVICE)
    target[2] = 1
    hardware = Hardware(programming="constant", c=c, w_max="column", tile_size=size)
    w_max, programmed = (
        largest_weights(target, hardware).float(),
        torch.empty(1, 1, size, size, device=DEVICE),
    )
    last = torch.tensor([2], device=DEVICE)
    fused_program(target, w_max, torch.ones_like(w_max[last]), last, programmed, hardware, generator(0))
    least, most = programmed.aminmax()
    assert 1 - 7 * c < least < 1 - 5 * c and 1 + 5 * c < most < 1 + 7 * c
