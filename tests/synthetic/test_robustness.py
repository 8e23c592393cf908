"""Is noise in the table theory.hardware's noise on every matrix, and is the tolerance where it is said to be?"""

import functools
import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, get_args

import pytest
import torch
from direct import ROUNDING, assert_same
from hypothesis import given, settings
from hypothesis import strategies as st
from monte_carlo import FAILURE, assert_normal, assert_plausible, assert_uncorrelated
from scipy import integrate, stats
from torch import Tensor

from synthetic.data import Samples, Task, evaluation_samples, stream
from synthetic.model import Expert, ModelConfig, MoE, Routing, initialise
from synthetic.robustness import (
    HALVINGS,
    LARGEST_C,
    LEVEL,
    SMALLEST_C,
    Programmed,
    class_accuracy,
    noisy_outputs,
    program,
    tolerance,
)
from theory.errors import InputError
from theory.hardware import (
    PROGRAMMING_NOISE,
    Granularity,
    Hardware,
    analog_matmul,
    largest_weights,
    programming_sigma,
)

SEEDS = (3, 8)
CONSTANT = Hardware(programming="constant", w_max="layer", dac_bits=None, adc_bits=None)
EXPERTS: tuple[Any, ...] = get_args(Expert)

every_expert = pytest.mark.parametrize("expert", EXPERTS)
noise_models = st.builds(
    Hardware,
    programming=st.sampled_from(sorted(PROGRAMMING_NOISE)),
    w_max=st.sampled_from(get_args(Granularity)),
    dac_bits=st.none(),
    adc_bits=st.none(),
)
magnitudes = st.floats(1e-3, 3)


def random_model(expert: Any = "one_layer", routing: Any = "expert_choice", **task: Any) -> MoE:
    """A model with weights of order one, some within the dead zone of hermes, which is 1/300 of w_max wide."""
    config = ModelConfig((2, 1), 3, routing, 2, expert, init_std=1.0)
    model = initialise(Task(d=7, n=4, **task), config, SEEDS, dtype=torch.float64)
    sparse = {
        name: torch.where(weight.abs() < 0.2, weight / 200, weight) for name, weight in model.weights.items()
    }
    return model.with_weights(sparse)


def random_samples(count: int = 40, **task: Any) -> Samples:
    return evaluation_samples(Task(d=7, n=4, **task), count, SEEDS)


def written_out(model: MoE, hardware: Hardware, c: float, draws: int) -> Tensor:
    """The noisy tables (draws, seeds, experts, tokens), by one analog_matmul after the other."""
    tables = [_of_one_seed(model.seed(number), seed, hardware, c, draws) for number, seed in enumerate(SEEDS)]
    return torch.stack(tables, 1)


def _of_one_seed(model: MoE, seed: int, hardware: Hardware, c: float, draws: int) -> Tensor:
    weights, tokens, config = (
        {name: weight[0] for name, weight in model.weights.items()},
        model.tokens[0],
        model.config,
    )
    sizes = [weight.numel() for weight in weights.values()]
    normal = torch.from_numpy(stream(seed, "noise").standard_normal((draws, sum(sizes)))).split(sizes, 1)
    noise = {name: part.unflatten(1, weights[name].shape) for name, part in zip(weights, normal, strict=True)}
    clean = {name: tokens @ weight.mT for name, weight in weights.items() if name != "down"}
    hidden = activated(clean)
    calibration = {name: calibrated(hardware, tokens, clean[name], weights[name]) for name in clean}
    if "down" in weights:
        calibration["down"] = calibrated(hardware, hidden, hidden @ weights["down"].mT, weights["down"])

    def analog(name: str, draw: int, expert: int, x: Tensor) -> Tensor:
        weight = weights[name][expert]
        programmed = programmed_weight(weight, replace(hardware, c=c), noise[name][draw, expert])
        return analog_matmul(x, weight, hardware, **calibration[name], programmed=programmed).output

    rows = []
    for draw, expert in itertools.product(range(draws), range(config.experts)):
        sent = activated({name: analog(name, draw, expert, tokens) for name in clean})
        if "down" in weights:
            rows.append(analog("down", draw, expert, sent)[:, 0] / config.m)
        else:
            rows.append(int(config.signs[expert]) * sent.mean(1))
    return torch.stack(rows).unflatten(0, (draws, config.experts))


def activated(received: dict[str, Tensor]) -> Tensor:
    if "gate" in received:
        return received["gate"] * received["gate"].sigmoid() * received["up"]
    return received["up"].clamp(min=0)


def programmed_weight(weight: Tensor, hardware: Hardware, normal: Tensor) -> Tensor:
    if hardware.c == 0:
        return weight
    r = weight.abs() / largest_weights(weight, hardware)
    target = torch.where(r < PROGRAMMING_NOISE[hardware.programming].dead_zone, 0, weight)
    return target + programming_sigma(weight, hardware) * normal


def calibrated(hardware: Hardware, x: Tensor, y: Tensor, weight: Tensor) -> dict[str, float]:
    """The calibration that `program` promises, as arguments of `analog_matmul`.

    x: inputs (..., in).
    y: clean outputs (k, T, out).
    weight: weights (k, out, in).
    """
    std = float(x.std(correction=0))
    kappa = float(x.abs().max()) / std if hardware.kappa is None else hardware.kappa
    w_max = largest_weights(weight, hardware).mT
    lam = float((y.abs() / w_max).max()) / (kappa * std) if hardware.lam is None else hardware.lam
    return {"input_std": std, "kappa": kappa, "lam": lam}


@settings(max_examples=40)
@given(st.sampled_from(EXPERTS), noise_models, st.one_of(st.just(0.0), magnitudes))
def test_noisy_tables_are_those_of_programmed_weights(expert: Any, hardware: Hardware, c: float) -> None:
    model = random_model(expert, dictionary="rotated")
    table = program(model, hardware, 3, SEEDS).table(c)
    assert_same(table, written_out(model, hardware, c, 3))


@settings(max_examples=60)
@given(
    st.sampled_from(EXPERTS),
    st.sampled_from(sorted(PROGRAMMING_NOISE)),
    st.sampled_from(get_args(Granularity)),
    st.sampled_from([(8, 8), (6, 6), (4, 4), (None, 4), (4, None)]),
    st.sampled_from([(None, None), (1.5, 0.7)]),
    st.one_of(st.just(0.0), magnitudes),
)
def test_converters_are_those_of_the_reference(
    expert: Any, programming: str, w_max: Any, bits: tuple[Any, Any], bounds: tuple[Any, Any], c: float
) -> None:
    """Table and reference may be one level apart where rounding decides between two levels, which is rare."""
    hardware = Hardware(programming, 1.0, w_max, 512, *bits, *bounds)
    model = random_model(expert, dictionary="rotated")
    table = program(model, hardware, 3, SEEDS).table(c)
    expected = written_out(model, hardware, c, 3)
    different = ~torch.isclose(table, expected, rtol=ROUNDING, atol=ROUNDING)
    assert different.double().mean() < 0.01


def test_calibrated_bounds_are_the_smallest_that_no_clean_value_exceeds() -> None:
    model = random_model("two_layer", dictionary="rotated")
    programmed = program(model, replace(CONSTANT, dac_bits=8, adc_bits=8), 1, SEEDS)
    hidden = model.hidden({"up": torch.einsum("skmd,std->skmt", model.weights["up"], model.tokens)})
    for name, inputs, outputs in (
        ("up", model.tokens, torch.einsum("skmd,std->skmt", model.weights["up"], model.tokens)),
        ("down", hidden, model.weights["down"] @ hidden),
    ):
        converters = programmed.converters[name]
        assert torch.equal(inputs.flatten(1).abs().amax(1), converters.input_bound.flatten())
        used = (outputs.abs() / converters.output_bound).flatten(1).amax(1)
        torch.testing.assert_close(used, torch.ones_like(used))


@every_expert
@pytest.mark.parametrize("programming", sorted(PROGRAMMING_NOISE))
def test_no_noise_is_exactly_the_digital_model(expert: Any, programming: str) -> None:
    """This is so where a dead zone would write weights as 0, too, and for every seed by itself."""
    model, samples = random_model(expert), random_samples()
    programmed = program(model, replace(CONSTANT, programming=programming), 4, SEEDS)
    assert torch.equal(programmed.table(0.0), model.table().expand(4, -1, -1, -1))
    mixed = programmed.table(torch.tensor([0.0, 0.5]))
    assert torch.equal(mixed[:, 0], model.table()[0].expand(4, -1, -1))
    assert torch.equal(mixed[:, 1], programmed.table(0.5)[:, 1])
    outputs = noisy_outputs(programmed, model.gates(samples.tokens), 0.0, torch.ones(6, dtype=torch.bool))
    assert_same(outputs, model.forward(samples.tokens).expand(4, -1, -1))


@given(st.lists(st.booleans(), min_size=6, max_size=6), st.sampled_from(EXPERTS), st.booleans(), magnitudes)
def test_digital_experts_are_exact_and_analog_ones_noisy(
    analog: list[bool], expert: Any, corrected: bool, c: float
) -> None:
    model, samples = random_model(expert), random_samples(10)
    programmed, gates = program(model, CONSTANT, 2, SEEDS), model.gates(samples.tokens)
    mask = torch.tensor(analog)
    outputs = noisy_outputs(programmed, gates, c, mask, bias_correction=corrected)
    noisy = programmed.table(c, bias_correction=corrected)
    expected = torch.zeros_like(outputs)
    for number, is_analog in enumerate(analog):
        table = noisy[:, :, number] if is_analog else model.table()[None, :, number]
        expected += torch.einsum("snt,dst->dsn", gates[:, :, number], table)
    assert_same(outputs, expected)


@pytest.mark.parametrize("routing", get_args(Routing))
def test_masks_may_differ_between_seeds(routing: Any) -> None:
    model, samples = random_model(routing=routing), random_samples(10)
    programmed, gates = program(model, CONSTANT, 2, SEEDS), model.gates(samples.tokens)
    mask = torch.tensor([[True] * 6, [False] * 6])
    outputs = noisy_outputs(programmed, gates, 0.5, mask)
    everything = noisy_outputs(programmed, gates, 0.5, torch.ones(6, dtype=torch.bool))
    assert torch.equal(outputs[:, 0], everything[:, 0])
    assert_same(outputs[:, 1], model.forward(samples.tokens)[1].expand(2, -1))


@pytest.mark.parametrize("w_max", ["layer", "column"])
def test_constant_noise_has_the_theory_s_distribution(w_max: Any) -> None:
    """Noise is N(0, (c M)^2) on every neuron and direction, with M the largest |w| of the expert or of the neuron."""
    model = random_model()
    up = program(model, replace(CONSTANT, w_max=w_max), 2000, SEEDS).received["up"]
    largest = model.weights["up"].abs().amax((-2, -1) if w_max == "layer" else -1, keepdim=True)
    sd = largest.reshape(2, 6, -1, 1).expand(2, 6, 3, 9)
    assert_normal(up.noise, torch.zeros_like(sd), sd)
    assert_same(up.deviation, sd)
    # Noise of different directions, neurons, experts and seeds. A token and its negative share their noise.
    assert_uncorrelated(
        torch.cat((up.noise[:, :, :2, :2, ::2].flatten(1), up.noise[:, :, 4, 0, 5:7].flatten(1)), 1)
    )
    assert torch.equal(up.noise[..., 0], -up.noise[..., 1])


def test_more_draws_and_more_seeds_change_no_earlier_ones() -> None:
    model = random_model("gated")
    many, few = program(model, CONSTANT, 7, SEEDS).table(0.3), program(model, CONSTANT, 3, SEEDS).table(0.3)
    assert_same(many[:3], few)
    alone = program(model.seed(1), CONSTANT, 3, SEEDS[1:]).table(0.3)
    assert_same(alone[:, 0], few[:, 1])


@given(noise_models, magnitudes)
def test_noise_grows_in_proportion_to_c(hardware: Hardware, c: float) -> None:
    """Every c has the same random numbers, so what neurons receive moves along a line."""
    programmed = program(random_model(), hardware, 2, SEEDS)
    up = programmed.received["up"]

    def at(value: float) -> Tensor:
        return up.draws(torch.full((2, 1, 1, 1), value, dtype=torch.float64))

    torch.testing.assert_close(at(2 * c) - at(c), at(c) - up.target, rtol=1e-9, atol=1e-12)


@pytest.mark.claim("C")
@settings(max_examples=15)
@given(noise_models, st.floats(0.01, 1))
def test_the_mean_shift_is_the_mean_over_the_noise(hardware: Hardware, c: float) -> None:
    """An entry is (c/m) (sum_r deviation_r^2)^(1/2)-Lipschitz in its standard normals: Gaussian concentration."""
    draws, model = 400, random_model(dictionary="rotated")
    programmed = program(model, hardware, draws, SEEDS)
    table = programmed.table(c)
    lipschitz = c / model.config.m * programmed.received["up"].deviation.square().sum(-2).sqrt()
    error = table.mean(0) - programmed.clean - programmed.mean_shift(c)
    assert (
        error.abs() <= lipschitz * math.sqrt(2 * math.log(2 * table[0].numel() / FAILURE) / draws) + 1e-12
    ).all()
    torch.testing.assert_close(programmed.table(c, bias_correction=True), table - programmed.mean_shift(c))


@pytest.mark.claim("C")
@pytest.mark.parametrize("expert", ["two_layer", "gated"])
def test_the_mean_shift_of_products_is_the_mean_over_the_noise(expert: Any) -> None:
    """Every entry is tested by Student's test: the mean of 4000 draws is normal enough."""
    model = random_model(expert, dictionary="rotated")
    programmed = program(model, replace(CONSTANT, programming="hermes"), 4000, SEEDS)
    error = programmed.table(20.0, bias_correction=True) - programmed.clean
    assert_plausible(stats.ttest_1samp(error.flatten(1).numpy(), 0.0).pvalue)
    shift = programmed.mean_shift(20.0).abs() / error.std(0)
    assert shift.max() > 8 / math.sqrt(4000)  # the test would see it if it were left out


@given(st.floats(-5, 5), st.floats(0.01, 2))
def test_the_mean_of_silu_is_its_integral(a: float, sigma: float) -> None:
    config = ModelConfig((1,), 1, selected=1, expert="gated")
    model = initialise(Task(d=3, n=1, frequencies=(1.0,)), config, (0,), dtype=torch.float64)
    up, gate, down = (torch.zeros_like(model.weights[name]) for name in ("up", "gate", "down"))
    gate[..., 0], up[..., 1], down[...] = a, 1.0, 1.0
    up[..., 0] = 1.0
    model = model.with_weights({"up": up, "gate": gate, "down": down})
    programmed = program(model, CONSTANT, 1, (0,))
    # Token +o_1: gate a with deviation c |a|, up 1 with mean 1.
    c = sigma / max(abs(a), 1e-3)
    expected, _ = integrate.quad(
        lambda z: (x := a + c * abs(a) * z) / (1 + math.exp(-x)) * stats.norm.pdf(z), -12, 12, epsabs=1e-12
    )
    mean = programmed.clean[0, 0, 0] + programmed.mean_shift(c)[0, 0, 0]
    assert float(mean) == pytest.approx(expected, abs=1e-6)


def test_accuracies_are_fractions_of_each_kind_and_zero_is_no_answer() -> None:
    samples = Samples(
        torch.zeros(1, 5, 1, dtype=torch.int64),
        torch.tensor([[1, -1, 1, 1, -1]]),
        torch.tensor([[0, 0, 0, 1, 1]]),
    )
    outputs = torch.tensor([[[1.0, -0.5, -2.0, 0.0, -1.0]], [[1.0, 1.0, 1.0, 1.0, 1.0]]])
    accuracy = class_accuracy(outputs, samples, 3)
    torch.testing.assert_close(accuracy[:, 0, :2], torch.tensor([[2 / 3, 1 / 2], [2 / 3, 1 / 2]]))
    assert accuracy[..., 2].isnan().all()


def accurate_model() -> tuple[MoE, Samples]:
    """A model as if trained: two neurons of each expert point along its own token, larger in frequent experts."""
    task, config = Task(d=8, n=4), ModelConfig((2, 1), 3, selected=2, init_std=0.01)
    model = initialise(task, config, SEEDS, dtype=torch.float64)
    up = model.weights["up"].clone()
    own = model.tokens[:, model.own_tokens]
    size = torch.where(config.kinds == 0, 5.0, 1.0).double()[:, None, None]
    up[:, :, :2] += (own * size[..., 0])[:, :, None]
    return model.with_weights({"up": up}), evaluation_samples(task, 60, SEEDS)


@functools.cache  # no fixture, which hypothesis would print in full where a test fails
def world() -> tuple[Programmed, Samples]:
    model, samples = accurate_model()
    return program(model, CONSTANT, 16, SEEDS), samples


def worst_accuracy(
    programmed: Programmed, samples: Samples, c: Tensor, analog: Tensor, **options: Any
) -> Tensor:
    outputs = noisy_outputs(programmed, programmed.model.gates(samples.tokens), c, analog, **options)
    return class_accuracy(outputs, samples, 2).mean(0).amin(-1)


@settings(max_examples=40)
@given(st.lists(st.booleans(), min_size=6, max_size=6), st.booleans(), st.floats(0.6, 1.0))
def test_the_tolerance_is_bracketed(analog: list[bool], corrected: bool, level: float) -> None:
    programmed, samples = world()
    mask, options = torch.tensor(analog), {"bias_correction": corrected}
    c = tolerance(programmed, samples, mask, level=level, **options)
    found = c.isfinite() & (c > 0)
    inside = torch.where(found, c, torch.where(c > 0, LARGEST_C, 0.0))
    assert (worst_accuracy(programmed, samples, inside, mask, **options) >= level)[c > 0].all()
    beyond = torch.where(found, 1.001 * c, SMALLEST_C)
    assert (worst_accuracy(programmed, samples, beyond, mask, **options) < level)[c.isfinite()].all()


def test_the_bracket_is_as_narrow_as_documented() -> None:
    factors = [(LARGEST_C / SMALLEST_C) ** (0.5**halvings) for halvings in (HALVINGS, HALVINGS - 1)]
    assert factors[0] < 1.001 < factors[1]  # as many as it takes


@settings(max_examples=30)
@given(st.floats(0.6, 1.0), st.floats(0.6, 1.0))
def test_a_stricter_level_tolerates_no_more(one: float, other: float) -> None:
    programmed, samples = world()
    everything = torch.ones(6, dtype=torch.bool)
    strict, lax = (
        tolerance(programmed, samples, everything, level=level)
        for level in (max(one, other), min(one, other))
    )
    assert (strict <= lax).all()


@settings(max_examples=20)
@given(st.integers(-20, 20), noise_models)
def test_the_unit_of_the_weights_does_not_matter(exponent: int, hardware: Hardware) -> None:
    """Noise is relative to w_max. For powers of two this holds exactly."""
    model, samples = accurate_model()
    scaled = model.with_weights({"up": model.weights["up"] * 2.0**exponent})
    everything = torch.ones(6, dtype=torch.bool)
    one, other = (
        tolerance(program(each, hardware, 8, SEEDS), samples, everything) for each in (model, scaled)
    )
    assert torch.equal(one, other)


def test_placements_and_seeds_are_as_if_alone() -> None:
    programmed, samples = world()
    frequent = programmed.model.config.kinds == 0
    masks = torch.stack([torch.ones(2, 6, dtype=torch.bool), (~frequent).expand(2, 6)])
    together = tolerance(programmed, samples, masks)
    assert together.shape == (2, 2)
    for mask, row in zip(masks, together, strict=True):
        assert torch.equal(tolerance(programmed, samples, mask), row)
        for number, seed in enumerate(SEEDS):
            part = slice(number, number + 1)
            alone = program(programmed.model.seed(number), CONSTANT, 16, (seed,))
            own = Samples(samples.tokens[part], samples.labels[part], samples.kinds[part])
            torch.testing.assert_close(tolerance(alone, own, mask[part]), row[part], rtol=1e-3, atol=0)
    # Larger neurons are noisier, and the rare kind depends on small ones.
    assert (together[1] > together[0]).all()


def test_tolerances_without_end_and_of_nothing() -> None:
    programmed, samples = world()
    nothing = torch.zeros(6, dtype=torch.bool)
    assert tolerance(programmed, samples, nothing).isinf().all()
    assert tolerance(programmed, samples, nothing, level=1.0).isinf().all()  # the level itself is enough
    wrong = Samples(samples.tokens, -samples.labels, samples.kinds)
    assert (tolerance(programmed, wrong, nothing) == 0).all()
    assert LEVEL == 0.95


@every_expert
def test_the_widest_matrix_is_one_tile(expert: Any) -> None:
    """However many experts there are."""
    many = initialise(Task(d=7, n=4), ModelConfig((6, 6), 3, "expert_choice", 2, expert, init_std=1.0), SEEDS)
    assert program(many, replace(CONSTANT, tile_size=7), 1, SEEDS).table(0.0).shape[2] == 24
    with pytest.raises(InputError, match="tile_size is 6: give at least 7"):
        program(many, replace(CONSTANT, tile_size=6), 1, SEEDS)


def test_an_expert_of_zeros_has_converters_and_no_output() -> None:
    model = random_model()
    weights = {name: weight.clone() for name, weight in model.weights.items()}
    for weight in weights.values():
        weight[:, 0] = 0
    programmed = program(model.with_weights(weights), replace(CONSTANT, dac_bits=8, adc_bits=8), 2, SEEDS)
    table = programmed.table(1.0)
    assert table.isfinite().all() and not table[:, :, 0].any() and table[:, :, 1].any()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@every_expert
def test_cuda_gives_the_same_outputs(expert: Any) -> None:
    model, samples = random_model(expert), random_samples()
    hardware = Hardware(programming="pcm", dac_bits=None, adc_bits=None)

    def outputs(device: str) -> Tensor:
        moved, inputs = model.to(device), samples.to(device).tokens
        programmed = program(moved, hardware, 5, SEEDS)
        everything = torch.ones(6, dtype=torch.bool)
        return noisy_outputs(programmed, moved.gates(inputs), 2.0, everything, bias_correction=True).cpu()

    assert_same(outputs("cuda"), outputs("cpu"))
    programmed = program(model.to("cuda"), hardware, 5, SEEDS)
    assert tolerance(programmed, samples.to("cuda"), torch.ones(6, dtype=torch.bool)).is_cuda


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda model: program(model, CONSTANT, 0, SEEDS), "draws is 0: give a whole number of at least 1"),
        (lambda model: program(model, CONSTANT, 2, (1,)), "seeds has 1 entries: give one for each of the 2"),
        (
            lambda model: program(model, replace(CONSTANT, tile_size=6), 2, SEEDS),
            "hardware.tile_size is 6: give at least 7",
        ),
        (lambda model: program(model, CONSTANT, 2, SEEDS).table(-0.1), "c is -0.1: give a finite number"),
        (lambda model: program(model, CONSTANT, 2, SEEDS).table(math.inf), "c is inf: give a finite number"),
    ],
)
def test_bad_input(call: Callable[[MoE], Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        call(random_model())
