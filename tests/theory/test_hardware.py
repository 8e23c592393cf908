"""Are tiles, converters and programming noise what docs/paper.md says, number by number and draw by draw?"""

import dataclasses
import itertools
import math
from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from monte_carlo import assert_normal, assert_uncorrelated
from torch import Tensor

from theory.errors import InputError
from theory.hardware import (
    PROGRAMMED_AT_ONCE,
    PROGRAMMING_NOISE,
    AnalogProduct,
    Granularity,
    Hardware,
    analog_matmul,
    largest_weights,
    program,
    programming_sigma,
    quantise_input,
    quantise_output,
    relative_output_error,
)

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
MODELS = ["pcm", "hermes", "proportional", "constant"]
GRANULARITIES: list[Granularity] = ["tile", "column", "layer"]
DTYPES = [torch.float32, torch.bfloat16, torch.float64]

devices = pytest.mark.parametrize("device", DEVICES)
models = pytest.mark.parametrize("model", MODELS)
granularities = pytest.mark.parametrize("w_max", GRANULARITIES)
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)
seeds = st.integers(0, 2**31)
any_bits = st.integers(2, 16)
any_w_max = st.sampled_from(GRANULARITIES)
tile_sizes = st.integers(1, 9)
# Exact in fp32, and far from where squares or products leave its range.
numbers = st.floats(-1e6, 1e6, width=32, allow_subnormal=False).filter(lambda x: x == 0 or abs(x) > 1e-6)
bounds = st.floats(2**-10, 2**10, width=32)


def gamma(roundings: int, dtype: torch.dtype = torch.float64) -> float:
    """Relative error of this many roundings [Higham, Accuracy and Stability of Numerical Algorithms, section 3.1]."""
    unit = torch.finfo(dtype).eps / 2
    return roundings * unit / (1 - roundings * unit)


def seeded(seed: int, device: str = "cpu") -> torch.Generator:
    return torch.Generator(device).manual_seed(seed)


@st.composite
def whole_weights(draw: st.DrawFn, largest: int = 400) -> Tensor:
    """Matrices of whole numbers, some with whole rows, columns or all of zeros."""
    rows, columns = draw(st.integers(1, 8)), draw(st.integers(1, 8))
    weight = torch.randint(-largest, largest + 1, (rows, columns), generator=seeded(draw(seeds)))
    for axis, size in enumerate((rows, columns)):
        weight.index_fill_(axis, torch.tensor(draw(st.lists(st.integers(0, size - 1), max_size=2))).long(), 0)
    return weight.double()


def w_max_by_hand(weight: Tensor, w_max: Granularity, size: int) -> list[list[float]]:
    """For every weight, the largest |w| that it shares a tile, a column of a tile or the matrix with."""
    rows, columns = map(range, weight.shape)

    def counts(row: int, column: int, other_row: int, other_column: int) -> bool:
        same_slice = column // size == other_column // size
        return {
            "tile": same_slice and row // size == other_row // size,
            "column": same_slice and row == other_row,
            "layer": True,
        }[w_max]

    values = [(row, column, abs(weight[row, column].item())) for row in rows for column in columns]
    return [
        [max(value for *other, value in values if counts(row, column, *other)) for column in columns]
        for row in rows
    ]


# sigma/w_max = sum of coefficient * r^k; hermes in r = h/180.
PCM = [0.0105392, 0.0786, -0.046924]
HERMES_ONE = [2.579741 / 180, 0.2241969, -3.715812e-3 * 180, 2.939751e-5 * 180**2]
HERMES_TWO = [2.110296 / 180, 0.2453487, -3.054993e-3 * 180, 1.232976e-5 * 180**2]


def terms_of_sigma(model: str, r: float) -> list[float]:
    """Terms of sigma/w_max; none in the dead zone."""
    if model == "hermes" and r < 0.6 / 180:
        return []
    hermes = HERMES_ONE if r <= 52.5 / 180 else HERMES_TWO
    coefficients = {"pcm": PCM, "hermes": hermes, "proportional": [0, 1.0], "constant": [1.0]}[model]
    return [coefficient * r**power for power, coefficient in enumerate(coefficients)]


def sigma_by_hand(weight: Tensor, hardware: Hardware) -> tuple[Tensor, Tensor]:
    """Standard deviations, and their size if no terms cancelled, to which rounding is relative."""
    exact, magnitude = torch.zeros_like(weight), torch.zeros_like(weight)
    largest = w_max_by_hand(weight, hardware.w_max, hardware.tile_size)
    for row, column in itertools.product(*map(range, weight.shape)):
        if scale := hardware.c * largest[row][column]:
            r = abs(weight[row, column].item()) / largest[row][column]
            terms = terms_of_sigma(hardware.programming, r)
            exact[row, column] = scale * math.fsum(terms)
            magnitude[row, column] = scale * math.fsum(map(abs, terms))
    return exact, magnitude


# w_max


@devices
@dtypes
@given(w_max=any_w_max, weight=whole_weights(), size=tile_sizes)
def test_largest_weights_are_those_of_a_loop(
    device: str, dtype: torch.dtype, w_max: Granularity, weight: Tensor, size: int
) -> None:
    hardware = Hardware(w_max=w_max, tile_size=size)
    largest = largest_weights(weight.to(device, dtype), hardware)
    by_hand = torch.tensor(w_max_by_hand(weight.to(dtype), w_max, size))[:, ::size]
    assert largest.shape == (weight.shape[0], math.ceil(weight.shape[1] / size))
    assert torch.equal(largest.cpu(), by_hand.to(dtype))


@given(weight=whole_weights(), size=tile_sizes)
def test_a_column_of_a_tile_is_within_a_tile_is_within_the_layer(weight: Tensor, size: int) -> None:
    column, tile, layer = (
        largest_weights(weight, Hardware(w_max=w_max, tile_size=size))
        for w_max in ("column", "tile", "layer")
    )
    assert (column <= tile).all() and (tile <= layer).all()
    assert (layer == weight.abs().max()).all()


@devices
@models
@granularities
def test_leading_axes_are_separate_matrices(device: str, model: str, w_max: Granularity) -> None:
    hardware = Hardware(programming=model, w_max=w_max, tile_size=4, c=1.5)
    weight = torch.randn(2, 3, 5, 10, generator=seeded(0)).to(device)
    for function in (largest_weights, programming_sigma):
        fused = function(weight, hardware)
        for index in itertools.product(range(2), range(3)):
            assert torch.equal(fused[index], function(weight[index], hardware))


# Programming noise


@devices
@dtypes
@models
@given(w_max=any_w_max, weight=whole_weights(), size=tile_sizes, c=st.floats(0, 4, width=16))
def test_sigma_is_the_models(
    device: str, dtype: torch.dtype, model: str, w_max: Granularity, weight: Tensor, size: int, c: float
) -> None:
    hardware = Hardware(programming=model, c=c, w_max=w_max, tile_size=size)
    weight = weight.to(dtype).double()
    largest = torch.tensor(w_max_by_hand(weight, w_max, size))
    # On a border of hermes rounding decides; other whole numbers are far from it.
    assume(((24 * weight.abs() != 7 * largest) & (300 * weight.abs() != largest) | (largest == 0)).all())
    sigma = programming_sigma(weight.to(device, dtype), hardware)
    precision = torch.promote_types(dtype, torch.float32)
    assert sigma.dtype == precision and sigma.device.type == device
    exact, magnitude = sigma_by_hand(weight, hardware)
    # Per term at most: 3 for r = |w|/w_max and h = 180 r, cubed, 2 for the powers, 2 for the coefficient, 3 for
    # the sum, 3 for g_max, c and w_max; and as many for the other side.
    assert ((sigma.double().cpu() - exact).abs() <= gamma(2 * 19, precision) * magnitude).all()


def test_models_are_at_most_two_cubics() -> None:
    """realmodels.analog.kernel takes no others."""
    assert list(PROGRAMMING_NOISE) == MODELS
    for noise in PROGRAMMING_NOISE.values():
        assert 1 <= len(noise.pieces) <= 2 and (len(noise.pieces) == 2) == math.isfinite(noise.border)
        for piece in noise.pieces:
            assert max(piece) >= 1 and set(piece) <= {0, 1, 2, 3}


@models
def test_sigma_leaves_its_argument_alone(model: str) -> None:
    r = torch.linspace(0, 1, 20)
    before = r.clone()
    PROGRAMMING_NOISE[model].sigma(r).zero_()
    assert torch.equal(r, before)


def test_hermes_borders() -> None:
    """With w_max = 180 a weight is its own conductance: from 0.6 it is written, up to 52.5 on one device."""
    weight = torch.tensor([[180.0, 0.6, 0.59, 52.5, 52.51, 0.0, -0.6, -0.59, -52.5]], dtype=torch.float64)
    sigma = programming_sigma(weight, Hardware(programming="hermes"))
    one_device = [(2.579741 + 0.2241969 * h - 3.715812e-3 * h**2 + 2.939751e-5 * h**3) for h in (0.6, 52.5)]
    two_devices = [(2.110296 + 0.2453487 * h - 3.054993e-3 * h**2 + 1.232976e-5 * h**3) for h in (180, 52.51)]
    expected = [
        two_devices[0],
        one_device[0],
        0,
        one_device[1],
        two_devices[1],
        0,
        one_device[0],
        0,
        one_device[1],
    ]
    assert sigma[0].tolist() == pytest.approx(expected, rel=gamma(100))
    programmed = program(weight, Hardware(programming="hermes"), seeded(0))[0]
    dead = [sd == 0 for sd in expected]
    assert (programmed == 0).tolist() == dead


@devices
@models
@granularities
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_noise_is_normal_with_the_models_sd_and_independent(
    device: str, model: str, w_max: Granularity, dtype: torch.dtype
) -> None:
    """A matrix of six tiles has zeros, small weights, and one tile of nothing else."""
    hardware = Hardware(programming=model, c=1.5, w_max=w_max, tile_size=3)
    weight = torch.tensor(
        [
            [200, 3, -50, 1, -1, 7, -2],
            [0, -300, 80, 0, 0, -9, 5],
            [-10, 120, -150, 4, 90, -90, 1],
            [-60, 60, 0, -4, 2, -1, 0],
            [30, -20, 10, 0, 1, 3, 0],
        ],
        dtype=torch.float64,
    )
    draws = program(weight.to(device, dtype).expand(20_000, -1, -1), hardware, seeded(7, device))
    assert draws.dtype == torch.float32
    sd = sigma_by_hand(weight, hardware)[0]
    written = weight.clone()
    if model == "hermes":  # what the dead zone swallows is written as 0
        written[sd == 0] = 0
    assert_normal(draws, written, sd)
    noisy = draws[:, sd > 0]
    assert_uncorrelated(noisy)
    # One matrix and the next, weight by weight: pairs of draws are draws of twice as many quantities.
    assert_uncorrelated(torch.stack([noisy[::2, :3], noisy[1::2, :3]], 1))


@devices
@models
@dtypes
def test_noise_follows_from_its_generator_alone(device: str, model: str, dtype: torch.dtype) -> None:
    hardware = Hardware(programming=model)
    weight = torch.randn(2, 5, 10, generator=seeded(0)).to(device, dtype)
    before = weight.clone()
    generator = seeded(3, device)
    first, second = (program(weight, hardware, generator) for _ in range(2))
    torch.manual_seed(0)
    assert torch.equal(program(weight, hardware, seeded(3, device)), first)
    written = programming_sigma(weight, hardware) > 0
    assert (first != second)[written].all()  # equal with probability 2^-24 or so: not with this seed
    assert (first != program(weight, hardware, seeded(4, device)))[written].all()
    assert torch.equal(weight, before)


@devices
def test_noise_is_drawn_where_the_generator_is(device: str) -> None:
    """A seed then means the same programmed weights on every machine."""
    weight = torch.randn(5, 10, generator=seeded(0), dtype=torch.float64)
    here, there = (program(each, Hardware(), seeded(3)) for each in (weight, weight.to(device)))
    assert there.device.type == device
    # The same draws times sigmas of at most 20 roundings each, which are less than half of w_max.
    assert ((here - there.cpu()).abs() <= gamma(2 * 20) * 10 * weight.abs().max()).all()


@devices
@models
@given(w_max=any_w_max, weight=whole_weights(), seed=seeds, c=st.tuples(*2 * [st.floats(2**-6, 4)]))
def test_noise_is_linear_in_c(
    device: str, model: str, w_max: Granularity, weight: Tensor, seed: int, c: tuple[float, float]
) -> None:
    first, second = (Hardware(programming=model, c=each, w_max=w_max, tile_size=4) for each in c)
    weight = weight.to(device)
    written = torch.where(programming_sigma(weight, first) > 0, weight, 0)
    noise = [program(weight, hardware, seeded(seed, device)) - written for hardware in (first, second)]
    cross = [noise[0] * c[1], noise[1] * c[0]]
    # Each noise is c sigma z with 3 roundings, and has passed through a sum with the weight and back.
    sizes = (c[1] * (weight.abs() + noise[0].abs()), c[0] * (weight.abs() + noise[1].abs()))
    assert ((cross[0] - cross[1]).abs() <= gamma(8) * sum(sizes)).all()
    doubled = programming_sigma(weight, dataclasses.replace(first, c=2 * first.c))
    assert torch.equal(doubled, 2 * programming_sigma(weight, first))


@devices
@models
@dtypes
@granularities
def test_no_noise_is_bit_exact(device: str, model: str, dtype: torch.dtype, w_max: Granularity) -> None:
    """c = 0 is the ideal device, in a dead zone too."""
    hardware = Hardware(programming=model, c=0, w_max=w_max, tile_size=4)
    weight = torch.randn(3, 6, 9, generator=seeded(0)).to(device, dtype)
    weight[0] *= 1e-3
    weight[0, 0, 0] = 1
    programmed = program(weight, hardware, seeded(0, device))
    assert programmed.dtype == torch.promote_types(dtype, torch.float32)
    assert torch.equal(programmed, weight.to(programmed.dtype))
    assert (programming_sigma(weight, hardware) == 0).all()
    programmed.zero_()
    assert weight.any()  # the target is still there to be programmed again


@devices
@models
@granularities
def test_weights_of_zero_alone_stay_zero(device: str, model: str, w_max: Granularity) -> None:
    weight = torch.zeros(2, 5, 6, device=device)
    assert not program(weight, Hardware(programming=model, w_max=w_max), seeded(0, device)).any()


def test_a_tile_larger_than_any_matrix_takes_no_memory() -> None:
    weight, x = torch.randn(3, 4, generator=seeded(0)), torch.ones(2, 4)
    for w_max in GRANULARITIES:
        huge, just = (Hardware(w_max=w_max, tile_size=size) for size in (2**62, 4))
        programmed = [program(weight, hardware, seeded(1)) for hardware in (huge, just)]
        assert torch.equal(*programmed)
        products = [
            analog_matmul(x, weight, hardware, input_std=1.0, kappa=2.0, lam=0.5) for hardware in (huge, just)
        ]
        assert torch.equal(products[0].output, products[1].output)


# aihwkit's PCMLikeNoiseModel. Its converter puts a second device beside each, the reference: that is set aside.


def aihwkit_draws(conductances: Tensor, seed: int) -> Tensor:
    noise = pytest.importorskip("aihwkit.inference.noise.pcm")
    model = noise.PCMLikeNoiseModel(g_max=25.0, prog_noise_scale=1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return model.apply_programming_noise_to_conductance(conductances.clone())


@given(
    conductances=st.lists(st.floats(0, 25), min_size=1, max_size=50).map(lambda g: [*g, 25.0]),
    signs=seeds,
    seed=seeds,
)
def test_pcm_is_aihwkits_draw_by_draw(conductances: list[float], signs: int, seed: int) -> None:
    """Both get the same standard normal numbers. A negative weight is a conductance of the other device."""
    target = torch.tensor([conductances], dtype=torch.float64)
    sign = 2.0 * torch.randint(2, target.shape, generator=seeded(signs)) - 1
    theirs = aihwkit_draws(target, seed)
    hardware = Hardware(programming="pcm", c=1.0, w_max="layer", tile_size=7)
    z = torch.randn(target.shape, generator=seeded(seed), dtype=torch.float64)
    ours = target + programming_sigma(sign * target, hardware) * z
    assert torch.equal(program(target, hardware, seeded(seed)), ours)
    # Theirs is clamped at 0. Each of 3 terms has at most 8 roundings on either side, then z and the sum.
    r = target / 25
    magnitude = target + (0.26348 + 1.9650 * r + 1.1731 * r**2) * z.abs()
    assert ((theirs - ours.clamp(min=0)).abs() <= gamma(2 * 10) * magnitude).all()


def test_pcm_is_aihwkits_in_distribution() -> None:
    """Weights are so far from 0 that nothing is clamped: 6 microsiemens are 9 standard deviations."""
    conductances = torch.linspace(6, 25, 39, dtype=torch.float64)
    sd = programming_sigma(conductances[None], Hardware(programming="pcm", c=1.0))[0]
    assert (conductances > 8.9 * sd).all()
    assert_normal(aihwkit_draws(conductances.expand(20_000, -1), seed=0), conductances, sd)


# Converters


def convert(x: Tensor, bound: float, bits: int, which: str) -> Tensor:
    if which == "DAC":
        return quantise_input(x, bound, bits)
    if which == "ADC":
        return quantise_output(x, bound, bits)
    return quantise_output(x, torch.full_like(x, bound), bits)


converters = pytest.mark.parametrize("which", ["DAC", "ADC", "ADC of many bounds"])
precisions = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
vectors = st.lists(numbers, min_size=1, max_size=50)


@devices
@converters
@precisions
@given(values=vectors, bound=bounds, bits=any_bits)
def test_converters_are_idempotent_monotone_and_odd(
    device: str, which: str, dtype: torch.dtype, values: list[float], bound: float, bits: int
) -> None:
    x = torch.tensor([*values, -bound, 0.0, bound, *(bound * v / 1e6 for v in values)]).to(device, dtype)
    x = x.sort().values
    converted = convert(x, bound, bits, which)
    assert converted.dtype == dtype
    # A level comes back to its code but for some roundings of at most 2^15: far from the next one.
    assert torch.equal(convert(converted, bound, bits, which), converted)
    assert (converted.diff() >= 0).all()
    assert torch.equal(convert(-x, bound, bits, which), -converted)


@devices
@converters
@precisions
@given(parts=st.lists(st.floats(-1, 1), min_size=1, max_size=50), bound=bounds, bits=any_bits)
def test_converters_are_off_by_at_most_half_a_step(
    device: str, which: str, dtype: torch.dtype, parts: list[float], bound: float, bits: int
) -> None:
    x = (bound * torch.tensor(parts, dtype=torch.float64)).to(device, dtype).clamp(-bound, bound)
    error = (convert(x, bound, bits, which).double() - x.double()).abs()
    # The code before it is rounded has 3 roundings (on a GPU a quotient has two), and so has the level.
    assert (error <= bound / (2**bits - 2) + gamma(6, dtype) * bound).all()


@devices
@converters
@precisions
@given(beyond=st.lists(st.floats(1, 1e30), min_size=1, max_size=20), bound=bounds, bits=any_bits)
def test_converters_saturate_at_their_bound(
    device: str, which: str, dtype: torch.dtype, beyond: list[float], bound: float, bits: int
) -> None:
    x = torch.tensor([*(bound * factor for factor in beyond), math.inf]).to(device, dtype).clamp(min=bound)
    top = convert(torch.tensor([bound], device=device, dtype=dtype), bound, bits, which)
    assert abs(top.item() - bound) <= gamma(3, dtype) * bound
    assert torch.equal(convert(x, bound, bits, which), top.expand_as(x))
    assert torch.equal(convert(-x, bound, bits, which), -top.expand_as(x))


@devices
@converters
@precisions
@pytest.mark.parametrize("bits", [2, 3, 8, 10, 16])
def test_converters_have_evenly_spaced_levels_zero_among_them(
    device: str, which: str, dtype: torch.dtype, bits: int
) -> None:
    bound, codes = 3.0, 2 ** (bits - 1) - 1
    x = torch.linspace(-2 * bound, 2 * bound, 12 * codes, device=device, dtype=dtype)
    levels = convert(torch.cat([x, x.new_zeros(1)]), bound, bits, which).unique().double()
    assert len(levels) == 2**bits - 1
    even = torch.arange(-codes, codes + 1, device=device).double() * bound / codes
    assert ((levels - even).abs() <= gamma(4, dtype) * even.abs()).all()


@devices
@converters
@precisions
@given(values=vectors, bound=bounds, bits=any_bits, exponent=st.integers(-10, 10))
def test_converters_know_no_units(
    device: str, which: str, dtype: torch.dtype, values: list[float], bound: float, bits: int, exponent: int
) -> None:
    x, scale = torch.tensor(values).to(device, dtype), 2.0**exponent
    assert torch.equal(convert(scale * x, scale * bound, bits, which), scale * convert(x, bound, bits, which))


@devices
@converters
@given(values=vectors, bound=bounds, bits=any_bits)
def test_converters_of_bfloat16_work_in_fp32(
    device: str, which: str, values: list[float], bound: float, bits: int
) -> None:
    x = torch.tensor(values).to(device, torch.bfloat16)
    bound = torch.tensor(bound).bfloat16().item()
    converted = convert(x, bound, bits, which)
    assert converted.dtype == torch.float32
    assert torch.equal(converted, convert(x.float(), bound, bits, which))


@precisions
@given(values=vectors, bound=st.floats(2**-10, 2**10), bits=any_bits)
def test_a_bound_has_the_precision_of_what_it_bounds(
    dtype: torch.dtype, values: list[float], bound: float, bits: int
) -> None:
    """This holds for ADC and DAC, with a number or a tensor of numbers."""
    x = torch.tensor(values, dtype=dtype)
    each = torch.full(x.shape, bound, dtype=torch.float64)
    assert torch.equal(quantise_output(x, bound, bits), quantise_input(x, bound, bits))
    assert torch.equal(quantise_output(x, each, bits), quantise_input(x, bound, bits))


@devices
@given(values=vectors)
def test_no_converter_changes_nothing(device: str, values: list[float]) -> None:
    x = torch.tensor(values, device=device)
    assert torch.equal(quantise_input(x, 1.0, None), x)
    assert torch.equal(quantise_output(x, torch.zeros_like(x), None), x)


@devices
@given(values=vectors, bits=any_bits)
def test_adc_bounds_of_zero_give_zero(device: str, values: list[float], bits: int) -> None:
    x = torch.tensor([*values, math.inf], device=device)
    bound = torch.arange(len(x), device=device) % 2 * 3.0
    expected = torch.where(bound > 0, quantise_output(x, 3.0, bits), 0)
    assert torch.equal(quantise_output(x, bound, bits), expected)
    assert not quantise_output(x, 0.0, bits).any()


# Products


PLAIN: dict[str, Any] = {"input_std": 1.0, "kappa": 2.0, "lam": 0.5}


@devices
@given(w_max=any_w_max, weight=whole_weights(), size=tile_sizes, rows=st.integers(0, 4), seed=seeds)
def test_without_converters_it_is_the_product(
    device: str, w_max: Granularity, weight: Tensor, size: int, rows: int, seed: int
) -> None:
    """Whole numbers have sums that are exact in any order."""
    x = torch.randint(-50, 51, (rows, weight.shape[1]), generator=seeded(seed)).double().to(device)
    hardware = Hardware(w_max=w_max, tile_size=size, dac_bits=None, adc_bits=None)
    product = analog_matmul(x, weight.to(device), hardware, **PLAIN)
    assert torch.equal(product.output, x @ weight.to(device).T)
    assert product.input_saturation == product.output_saturation == 0


@devices
@precisions
@pytest.mark.parametrize("dac_bits", [None, 8])
@given(size=st.integers(1, 40), inputs=st.integers(1, 40), seed=seeds)
def test_tiles_without_adc_are_one_tile(
    device: str, dtype: torch.dtype, dac_bits: int | None, size: int, inputs: int, seed: int
) -> None:
    x = torch.randn(5, inputs, generator=seeded(seed), dtype=torch.float64).to(device, dtype)
    weight = torch.randn(6, inputs, generator=seeded(seed + 1), dtype=torch.float64).to(device, dtype)
    many, one = (
        analog_matmul(x, weight, Hardware(tile_size=each, dac_bits=dac_bits, adc_bits=None), **PLAIN)
        for each in (size, inputs)
    )
    assert many.input_saturation == one.input_saturation
    # Inner products of the same terms, each summed in some order.
    codes = quantise_input(x, 2.0, dac_bits)
    terms = codes.double().abs() @ weight.double().abs().T
    assert ((many.output - one.output).abs() <= 2 * gamma(inputs, dtype) * terms).all()


@given(size=st.integers(1, 64), seed=seeds)
def test_tiles_are_one_tile_where_no_bound_binds_and_no_step_shows(size: int, seed: int) -> None:
    """Whole numbers, and ADCs of 16 bits whose step is 1 and whose bound is never reached."""
    x = torch.randint(-9, 10, (4, 64), generator=seeded(seed)).double()
    weight = torch.randint(-8, 9, (5, 64), generator=seeded(seed + 1)).double()
    weight[0, 0] = 8
    hardware = Hardware(w_max="layer", tile_size=size, dac_bits=None, adc_bits=16, kappa=1.0, lam=32767 / 8)
    product = analog_matmul(x, weight, hardware, input_std=1.0, kappa=3.0, lam=3.0)
    assert torch.equal(product.output, x @ weight.T)
    assert product.output_saturation == 0


def by_hand(
    x: Tensor, weight: Tensor, programmed: Tensor, hardware: Hardware
) -> tuple[Tensor, Fraction, Fraction]:
    """Output and saturation, number by number in exact arithmetic, with input_std 1."""
    assert hardware.kappa is not None and hardware.lam is not None
    input_bound = Fraction(hardware.kappa)
    largest = w_max_by_hand(weight, hardware.w_max, hardware.tile_size)
    inputs_beyond, outputs_beyond, conversions = 0, 0, 0

    def converted(value: Fraction, bound: Fraction, bits: int | None) -> Fraction:
        if bits is None:
            return value
        codes = 2 ** (bits - 1) - 1
        if bound == 0:
            return Fraction(0)
        return max(-codes, min(codes, round(value * codes / bound))) * bound / codes

    rows, (outputs, inputs) = len(x), weight.shape
    result = torch.zeros(rows, outputs, dtype=torch.float64)
    for row, column in itertools.product(range(rows), range(inputs)):
        inputs_beyond += abs(Fraction(x[row, column].item())) > input_bound
    for row, output in itertools.product(range(rows), range(outputs)):
        total = Fraction(0)
        for start in range(0, inputs, hardware.tile_size):
            bound = Fraction(hardware.lam) * input_bound * Fraction(largest[output][start])
            partial = sum(
                (
                    converted(Fraction(x[row, column].item()), input_bound, hardware.dac_bits)
                    * Fraction(programmed[output, column].item())
                    for column in range(start, min(start + hardware.tile_size, inputs))
                ),
                Fraction(0),
            )
            conversions += 1
            outputs_beyond += abs(partial) > bound
            total += converted(partial, bound, hardware.adc_bits)
        result[row, output] = float(total)
        assert Fraction(result[row, output].item()) == total
    none = Fraction(0)
    input_fraction = none if hardware.dac_bits is None else Fraction(inputs_beyond, x.numel())
    output_fraction = none if hardware.adc_bits is None else Fraction(outputs_beyond, conversions)
    return result, input_fraction, output_fraction


# (dac_bits, adc_bits): the number of ADC codes is a multiple of that of DAC codes, which keeps lam exact.
BITS = [(2, 2), (3, 5), (4, 7), (2, 8), (3, None), (None, 6), (None, None)]


def exact_hardware(
    bits: tuple[int | None, int | None], exponent: int, w_max: Granularity, tile_size: int
) -> Hardware:
    """DAC step 1/2 and ADC step w_max 2^-exponent: nothing is rounded but by a converter, ties included."""
    dac_codes, adc_codes = (1 if each is None else 2 ** (each - 1) - 1 for each in bits)
    kappa, lam = dac_codes / 2, adc_codes / dac_codes * 2.0 ** (1 - exponent)
    dac_bits, adc_bits = bits
    return Hardware(
        w_max=w_max, tile_size=tile_size, dac_bits=dac_bits, adc_bits=adc_bits, kappa=kappa, lam=lam
    )


def exact_inputs(columns: int, hardware: Hardware, seed: int) -> Tensor:
    """Inputs in eighths, up to one and a half times the bound of the DAC."""
    assert hardware.kappa is not None
    largest = int(12 * hardware.kappa)
    return torch.randint(-largest, largest + 1, (3, columns), generator=seeded(seed)) / 8.0


@pytest.mark.parametrize("bits", BITS, ids=str)
@given(
    exponent=st.integers(1, 8),
    w_max=any_w_max,
    weight=whole_weights(largest=8),
    size=tile_sizes,
    noise=st.integers(0, 4),
    calibrated=st.booleans(),
    input_std=st.sampled_from([1.0, 4.0]),
    seed=seeds,
)
def test_partial_sums_are_those_of_a_loop(
    bits: tuple[int | None, int | None],
    exponent: int,
    w_max: Granularity,
    weight: Tensor,
    size: int,
    noise: int,
    calibrated: bool,
    input_std: float,
    seed: int,
) -> None:
    """Kappa and lam of the hardware win over those of a calibration, and everything scales with input_std."""
    hardware = exact_hardware(bits, exponent, w_max, size)
    programmed = weight + torch.randint(-noise, noise + 1, weight.shape, generator=seeded(seed)) / 4
    x = exact_inputs(weight.shape[1], hardware, seed + 1).double()
    output, input_saturation, output_saturation = by_hand(x, weight, programmed, hardware)
    calibration: dict[str, Any] = {"kappa": 9.0, "lam": 9.0}
    if calibrated:
        calibration = {"kappa": hardware.kappa, "lam": hardware.lam}
        hardware = dataclasses.replace(hardware, kappa=None, lam=None)
    product = analog_matmul(
        input_std * x,
        weight,
        hardware,
        input_std=input_std,
        programmed=programmed if noise else None,
        **calibration,
    )
    assert torch.equal(product.output, input_std * output)
    assert product.input_saturation == float(input_saturation)
    assert product.output_saturation == float(output_saturation)


@pytest.mark.parametrize("bits", BITS[:4], ids=str)
def test_loops_reach_both_sides_of_every_bound(bits: tuple[int, int]) -> None:
    """Otherwise the test above would miss a wrong clamp."""
    weight = torch.randint(-8, 9, (4, 8), generator=seeded(0)).double()
    reached = 0
    for exponent in range(1, 9):
        hardware = exact_hardware(bits, exponent, "tile", 4)
        x = exact_inputs(8, hardware, seed=1).double()
        _, input_saturation, output_saturation = by_hand(x, weight, weight, hardware)
        reached += 0 < input_saturation < 1 and 0 < output_saturation < 1
    assert reached


@devices
@granularities
def test_outputs_without_weights_are_zero(device: str, w_max: Granularity) -> None:
    """Outputs are 0 whatever else is on their tile, and though the bound of a column of zeros is 0."""
    weight = torch.randn(6, 16, generator=seeded(0)).to(device)
    weight[1] = 0
    weight[4, 8:] = 0
    x = torch.randn(5, 16, generator=seeded(1)).to(device)
    product = analog_matmul(x, weight, Hardware(w_max=w_max, tile_size=8), **PLAIN)
    assert not product.output[:, 1].any() and product.output[:, [0, 2, 3, 4, 5]].any(0).all()
    x[:, :8] = 0
    product = analog_matmul(x, weight, Hardware(w_max=w_max, tile_size=8), **PLAIN)
    assert not product.output[:, [1, 4]].any() and product.output[:, [0, 2, 3, 5]].any(0).all()


@devices
def test_no_rows_and_zero_weights(device: str) -> None:
    empty = analog_matmul(
        torch.zeros(0, 4, device=device), torch.ones(3, 4, device=device), Hardware(), **PLAIN
    )
    assert empty.output.shape == (0, 3) and empty.input_saturation == empty.output_saturation == 0
    nothing = analog_matmul(
        torch.ones(2, 4, device=device), torch.zeros(3, 4, device=device), Hardware(), **PLAIN
    )
    assert torch.equal(nothing.output, torch.zeros(2, 3, device=device)) and nothing.output_saturation == 0


@devices
@granularities
def test_bfloat16_products_are_those_of_fp32(device: str, w_max: Granularity) -> None:
    """This holds with weights that `program` returns in fp32, too."""
    hardware = Hardware(w_max=w_max, tile_size=8)
    x, weight = (torch.randn(6, 16, generator=seeded(seed)).to(device, torch.bfloat16) for seed in (0, 1))
    for programmed in (None, weight, program(weight, hardware, seeded(2, device))):
        in_bf16 = analog_matmul(x, weight, hardware, programmed=programmed, **PLAIN)
        in_fp32 = analog_matmul(x.float(), weight.float(), hardware, programmed=programmed, **PLAIN)
        assert in_bf16.output.dtype == torch.float32 and torch.equal(in_bf16.output, in_fp32.output)
        assert in_bf16.input_saturation == in_fp32.input_saturation
        assert in_bf16.output_saturation == in_fp32.output_saturation


@devices
@granularities
@given(size=st.integers(1, 9), inputs=st.integers(1, 30), data=st.data(), seed=seeds)
def test_every_slice_may_have_a_range_of_its_own(
    device: str, w_max: Granularity, size: int, inputs: int, data: st.DataObject, seed: int
) -> None:
    """Slices are products of their own, whose outputs and counts add up; equal ranges are one range."""
    x, weight = (
        torch.randn(rows, inputs, generator=seeded(seed), dtype=torch.float64).to(device) for rows in (4, 7)
    )
    hardware = Hardware(w_max=w_max, tile_size=size, dac_bits=5, adc_bits=6)
    starts = range(0, inputs, size)
    stds = tuple(data.draw(st.floats(0.1, 3), label="std") for _ in starts)
    if w_max == "layer":  # the largest weight of a layer is not that of its slices
        weight[:, ::size] = 5.0
    whole = analog_matmul(x, weight, hardware, **PLAIN | {"input_std": stds})
    output, beyond_input, beyond_output = torch.zeros_like(whole.output), 0.0, 0.0
    for start, std in zip(starts, stds, strict=True):
        part = slice(start, start + size)
        each = analog_matmul(x[:, part], weight[:, part], hardware, **PLAIN | {"input_std": std})
        output += each.output
        beyond_input += each.input_saturation * x[:, part].numel()
        beyond_output += each.output_saturation
    assert torch.equal(whole.output, output)
    assert whole.input_saturation == pytest.approx(beyond_input / x.numel())
    assert whole.output_saturation == pytest.approx(beyond_output / len(starts))
    same = [
        analog_matmul(x, weight, hardware, **PLAIN | {"input_std": std})
        for std in (0.7, (0.7,) * len(starts))
    ]
    assert torch.equal(same[0].output, same[1].output)


# Bad input


@pytest.mark.parametrize("name", ["input_std", "kappa", "lam"])
@pytest.mark.parametrize("value", [0, -1.0, math.nan, math.inf, True, None, "1"])
def test_unusable_calibrations(name: str, value: Any) -> None:
    with pytest.raises(InputError, match=f"^{name} is .*: give a finite number above 0$"):
        analog_matmul(torch.ones(2, 4), torch.ones(3, 4), Hardware(), **(PLAIN | {name: value}))


def test_unusable_ranges_of_slices() -> None:
    x, weight, hardware = torch.ones(2, 4), torch.ones(3, 4), Hardware(tile_size=2)
    with pytest.raises(InputError, match="^input_std is -1.0: give a finite number above 0$"):
        analog_matmul(x, weight, hardware, **PLAIN | {"input_std": (1.0, -1.0)})
    with pytest.raises(InputError, match="^input_std has 3 numbers: give one, or one for each of 2 slices$"):
        analog_matmul(x, weight, hardware, **PLAIN | {"input_std": (1.0, 1.0, 1.0)})


@pytest.mark.parametrize(
    ("x", "weight", "programmed"),
    [
        ((4,), (3, 4), None),
        ((1, 2, 4), (3, 4), None),
        ((2, 4), (4,), None),
        ((2, 4), (1, 3, 4), None),
        ((2, 6), (3, 4), None),  # two inputs that no tile of size 2 takes
        ((2, 3), (3, 4), None),
        ((2, 4), (3, 4), (3, 6)),
        ((2, 4), (3, 4), (1, 4)),
    ],
)
def test_shapes_that_do_not_fit(
    x: tuple[int, ...], weight: tuple[int, ...], programmed: tuple[int, ...] | None
) -> None:
    with pytest.raises(InputError, match="x, weight, programmed of shapes"):
        analog_matmul(
            torch.ones(x),
            torch.ones(weight),
            Hardware(tile_size=2),
            programmed=None if programmed is None else torch.ones(programmed),
            **PLAIN,
        )


NOT_NUMBERS: list[Any] = [math.nan, math.inf, -math.inf, True, "1", [1.0], 1j]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("programming", value) for value in ("PCM", "", None, 1, ["pcm"])],
        *[("c", value) for value in (*NOT_NUMBERS, -0.1, -1, 1.1e5, 1e308, None, torch.tensor(1.0))],
        *[("w_max", value) for value in ("row", "", None, 1, ["tile"])],
        *[("tile_size", value) for value in (*NOT_NUMBERS, 0, -1, 512.0, None)],
        *[(name, value) for name in ("dac_bits", "adc_bits") for value in (*NOT_NUMBERS, 0, 1, 17, 8.0, -8)],
        *[(name, value) for name in ("kappa", "lam") for value in (*NOT_NUMBERS, 0, 0.0, -1, 5e-324, 1e308)],
    ],
)
def test_unusable_hardware(name: str, value: Any) -> None:
    with pytest.raises(InputError, match=rf"^hardware\.{name} is .*: give "):
        Hardware(**{name: value})


@pytest.mark.parametrize(
    "fields",
    [
        *[{"programming": model} for model in MODELS],
        *[{"w_max": w_max} for w_max in GRANULARITIES],
        *[{"c": c} for c in (0, 0.0, 2.5, 3, 1e5)],
        *[{"tile_size": size} for size in (1, 512, 10**9)],
        *[{name: bits} for name in ("dac_bits", "adc_bits") for bits in (2, 16, None)],
        *[{name: value} for name in ("kappa", "lam") for value in (1e-5, 3, 1e5, None)],
    ],
    ids=str,
)
def test_usable_hardware(fields: dict[str, Any]) -> None:
    hardware = Hardware(**fields)
    assert fields.items() <= dataclasses.asdict(hardware).items()
    assert Hardware(**dataclasses.asdict(hardware)) == hardware
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(hardware, *next(iter(fields.items())))


def test_hardware_by_default_is_the_papers() -> None:
    expected = {
        "programming": "pcm",
        "c": 1.0,
        "w_max": "tile",
        "tile_size": 512,
        "dac_bits": 8,
        "adc_bits": 8,
    }
    assert dataclasses.asdict(Hardware()) == expected | {"kappa": None, "lam": None}


def test_a_product_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        AnalogProduct(torch.zeros(1, 1), 0.0, 0.0).output = torch.ones(1, 1)  # type: ignore[misc]


@models
@given(
    weight=whole_weights(),
    w_max=any_w_max,
    tile_size=tile_sizes,
    seed=seeds,
    c=st.just(0.0) | st.floats(0.01, 4),
)
def test_a_mirror_image_is_the_same_noise_with_the_opposite_sign(
    model: str, weight: Tensor, w_max: Granularity, tile_size: int, seed: int, c: float
) -> None:
    """Noise is mirrored around the target, which is 0 in a dead zone. Without noise there is nothing to mirror."""
    hardware = Hardware(programming=model, c=c, w_max=w_max, tile_size=tile_size)
    first, second = (program(weight, hardware, seeded(seed), mirrored=mirrored) for mirrored in (False, True))
    sigma = programming_sigma(weight, hardware)
    if c == 0:
        assert torch.equal(first, weight) and torch.equal(second, weight)
        return
    target = (first + second) / 2
    dead = (sigma == 0) & (target == 0)
    torch.testing.assert_close(target, torch.where(dead, 0, weight), rtol=1e-12, atol=1e-9)
    torch.testing.assert_close(first - target, target - second, rtol=1e-9, atol=1e-9)
    assert ((first != second) | (sigma == 0)).all()


@models
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shape", [(3, 5, 32), (3, 5, 31), (2, 48), (1, 3), (4, 16)], ids=str)
@pytest.mark.parametrize("mirrored", [False, True])
def test_draws_are_those_of_one_call(
    model: str, dtype: torch.dtype, shape: tuple[int, ...], mirrored: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many weights are programmed at once; the generator ends where one call leaves it."""
    weight = torch.randn(shape, generator=seeded(0), dtype=dtype)
    hardware = Hardware(programming=model, tile_size=16)
    generator = seeded(1)
    noise = torch.randn(shape, generator=generator, dtype=dtype) * (-1 if mirrored else 1)
    sigma = programming_sigma(weight, hardware)
    expected = torch.where(sigma > 0, weight + sigma * noise, 0)
    for at_once in (1, 64, 2**19):
        monkeypatch.setitem(PROGRAMMED_AT_ONCE, "cpu", at_once)
        other, out = seeded(1), torch.empty_like(weight)
        for into in (None, out):
            found = program(weight, hardware, other.manual_seed(1), mirrored=mirrored, out=into)
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
        assert torch.equal(out, found) and torch.equal(other.get_state(), generator.get_state())


# ----------------------------------------------------------------------------- noise of a Gaussian matrix


@models
@pytest.mark.parametrize("w_max", ["tile", "column"])
def test_relative_output_error_is_that_of_gaussian_tiles(model: str, w_max: Granularity) -> None:
    """Over independent tiles, the mean of their mean squared errors is within 6 standard errors (2e-9)."""
    hardware = Hardware(programming=model, c=1.5, w_max=w_max, tile_size=24)
    weight = torch.randn(4000, 24, 24, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    sigma = programming_sigma(weight, hardware)
    # A weight in a dead zone is written as 0: its error is itself.
    r = weight.abs() / largest_weights(weight, hardware).repeat_interleave(24, -1)
    dead = r < PROGRAMMING_NOISE[model].dead_zone
    errors = torch.where(dead, weight, sigma).square().mean((1, 2))
    standard_error = float(errors.std()) / len(errors) ** 0.5
    assert abs(float(errors.mean()) - relative_output_error(hardware) ** 2) < 6 * standard_error


@given(c=st.floats(0.01, 10.0), model=st.sampled_from(["pcm", "proportional", "constant"]))
def test_relative_output_error_grows_as_c(c: float, model: str) -> None:
    unit = relative_output_error(Hardware(programming=model, c=1.0))
    assert relative_output_error(Hardware(programming=model, c=c)) == pytest.approx(c * unit, rel=1e-12)


@models
def test_relative_output_error_where_it_is_known(model: str) -> None:
    """Noise in proportion to a weight errs by c. A tile of one weight has sigma(1)."""
    assert relative_output_error(Hardware(programming=model, c=0.0)) == 0.0
    proportional = Hardware(programming="proportional", c=0.7, tile_size=8)
    assert relative_output_error(proportional) == pytest.approx(0.7, rel=1e-4)
    single = Hardware(programming=model, c=2.0, tile_size=1)
    at_most = 2.0 * float(
        torch.as_tensor(PROGRAMMING_NOISE[model].sigma(torch.tensor(1.0, dtype=torch.float64)))
    )
    assert relative_output_error(single) == pytest.approx(at_most, rel=1e-3)
    with pytest.raises(InputError, match="w_max is 'layer'"):
        relative_output_error(Hardware(w_max="layer"))


@pytest.mark.parametrize(
    ("model", "w_max", "error"),
    [
        ("pcm", "column", 0.0875),
        ("pcm", "tile", 0.1084),
        ("hermes", "column", 0.1296),
        ("hermes", "tile", 0.1692),
    ],
)
def test_relative_output_errors_that_captions_state(model: str, w_max: Granularity, error: float) -> None:
    found = relative_output_error(Hardware(programming=model, c=1.0, w_max=w_max))
    assert found == pytest.approx(error, abs=1e-4)
