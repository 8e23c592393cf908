"""Do the bounds hold, are they as loose as they are said to be, and do they obey the laws that follow from them?

Draws are made by the definitions: weights programmed by theory.hardware, experts one after the other.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monte_carlo import FAILURE, assert_plausible
from scipy import integrate, stats
from torch import Tensor

from theory.errors import InputError
from theory.hardware import PROGRAMMING_NOISE, Hardware, programming_sigma, quantise_output
from theory.moments import relu_mean, relu_third_moment, relu_variance
from theory.setting import Setting
from theory.tolerance import (
    Network,
    concentration,
    corrected_bound,
    error_bound,
    exact_mean_bound,
    exponential_bound,
    failure_bound,
    gain_floor,
    idealised,
    linear_gain,
    margins,
    mean_shift,
    pointwise_bound,
    predicted_accuracy,
    predicted_tolerance,
    relu_exponential,
    tolerance_ceiling,
    tolerance_floor,
    uniform_bound,
    upper_bound,
)
from theory.tolerance.bounds import inverse_scale, largest
from theory.tolerance.terms import terms_of

seeds = st.integers(0, 2**31)
granularities = pytest.mark.parametrize("w_max", ["layer", "column"])
models = pytest.mark.parametrize("programming", list(PROGRAMMING_NOISE))
any_w_max = st.sampled_from(["layer", "column"])
any_model = st.sampled_from(list(PROGRAMMING_NOISE))
few, fewer = settings(max_examples=10), settings(max_examples=5)  # of those that draw or search much

DELTA = 0.2
LOWER: list[Callable[..., Tensor]] = [pointwise_bound, exact_mean_bound, exponential_bound, corrected_bound]
DIMENSION = 6
SEARCHED: Any = {"rtol": 1e-4, "atol": 0}  # what a search leaves; it ends below the bound


def case(
    seed: int,
    w_max: Any = "layer",
    programming: str = "constant",
    *,
    rotated: bool = False,
    inputs: int = 4,
    many: bool = False,
) -> tuple[Network, Tensor, Tensor]:
    """A random network, tokens +-o_1, +-o_2, o_3 ... o_6, random gates for three of them, labels that it gets right.

    many: True for two experts of either sign with 16 neurons of similar size, False for experts with 1, 2 or 8 neurons
        of very different size.
    """
    generator = torch.Generator().manual_seed(seed)

    def whole(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=generator))

    k, m, spread, share = (4, 16, 0.1, 0.9) if many else (whole(2, 5), (1, 2, 8)[whole(0, 2)], 1.0, 0.7)
    basis = torch.eye(DIMENSION, dtype=torch.float64)
    if rotated:
        square = torch.randn(DIMENSION, DIMENSION, dtype=torch.float64, generator=generator)
        basis = torch.linalg.qr(square)[0]
    tokens = torch.stack([basis[0], -basis[0], basis[1], -basis[1], *basis[2:]])
    sizes = 10 ** (spread * torch.randn(k, m, 1, dtype=torch.float64, generator=generator))
    weights = sizes * torch.randn(k, m, DIMENSION, dtype=torch.float64, generator=generator)
    signs = torch.ones(k, dtype=torch.float64)
    signs[k // 2 if many else whole(1, k) :] = -1
    analog = torch.rand(k, generator=generator) < share
    analog[whole(0, k - 1)] = True
    gates = torch.zeros(inputs, k, len(tokens), dtype=torch.float64)
    for number in range(inputs):
        present = [whole(0, 3), *(4 + torch.randperm(DIMENSION - 2, generator=generator)[:3]).tolist()]
        for expert in range(k):
            chosen = [present[i] for i in torch.randperm(4, generator=generator)[:3].tolist()]
            scores = 2 * torch.randn(3, dtype=torch.float64, generator=generator)
            gates[number, expert, chosen] = scores.softmax(0)
    network = Network(weights, tokens, signs, analog, w_max, programming)
    labels = torch.ones(inputs, dtype=torch.float64)
    return network, gates, torch.where(margins(network, gates, labels) < 0, -1.0, 1.0).double()


def hardware_of(network: Network) -> Hardware:
    return Hardware(network.programming, w_max=network.w_max, tile_size=64)


def outputs(network: Network, gates: Tensor, c: Tensor, draws: int, seed: int) -> Tensor:
    """f~ (draws, inputs), expert by expert; each input has its own noise magnitude, c (inputs,)."""
    generator = torch.Generator().manual_seed(seed)
    total = torch.zeros(draws, len(gates), dtype=torch.float64)
    hardware = hardware_of(network)
    for s, weight in enumerate(network.weights):
        table_shape = (draws, len(gates), *weight.shape)
        if network.analog[s]:
            sigma = programming_sigma(weight, hardware)
            target = torch.where(sigma > 0, weight, 0) if network.programming == "hermes" else weight
            noise = torch.randn(draws, 1, *weight.shape, dtype=torch.float64, generator=generator)
            programmed = target + c[:, None, None] * sigma * noise
            tokens = network.tokens if network.analog_tokens is None else network.analog_tokens
        else:
            programmed, tokens = weight.expand(table_shape), network.tokens
        received = torch.einsum("bnmd,td->bnmt", programmed, tokens)
        if network.analog[s] and network.adc_step is not None and network.adc_bound is not None:
            bits = int((network.adc_bound[s] / network.adc_step[s]).max().round()).bit_length() + 1
            received = quantise_output(received, network.adc_bound[s, :, None], bits)
        table = received.relu().mean(2)
        total += network.signs[s] * (gates[:, s] * table).sum(-1)
    return total


def error_rates(
    network: Network, gates: Tensor, labels: Tensor, c: Tensor, draws: int, seed: int
) -> list[int]:
    errors: list[int] = ((labels * outputs(network, gates, c, draws, seed)) <= 0).sum(0).tolist()
    return errors


def assert_rarely_wrong(
    network: Network, gates: Tensor, labels: Tensor, c: Tensor, delta: float, seed: int, draws: int = 1000
) -> int:
    """Every input's probability of an error at its c is at most delta: one-sided and exactly binomial.

    Returns the number of inputs that were judged: a bound of 0 says nothing.
    """
    used = (c > 0) & (c < 1e9)
    if used.any():
        counts = error_rates(network, gates[used], labels[used], c[used], draws, seed)
        assert_plausible([stats.binomtest(n, draws, delta, alternative="greater").pvalue for n in counts])
    return int(used.sum())


# The network is what its definition says


@few
@given(seed=seeds, rotated=st.booleans())
def test_margins_are_the_clean_output(seed: int, rotated: bool) -> None:
    network, gates, labels = case(seed, rotated=rotated)
    clean = labels * outputs(network, gates, torch.zeros(len(gates)), 1, seed)[0]
    torch.testing.assert_close(margins(network, gates, labels), clean)
    assert (margins(network, gates, -labels) == -margins(network, gates, labels)).all()


@pytest.mark.claim("B")
@few
@given(seed=seeds, rotated=st.booleans())
def test_b_is_the_theorys_formula(seed: int, rotated: bool) -> None:
    """The case is written out expert by expert from M_s and g_s, with M_sr for the column."""
    for w_max in ("layer", "column"):
        network, gates, labels = case(seed, w_max, rotated=rotated)
        k, m, _ = network.weights.shape
        largest = network.weights.abs().amax((1, 2))[:, None].expand(k, m)
        if w_max == "column":
            largest = network.weights.abs().amax(2)
        clean = margins(network, gates, labels)
        for number, y in enumerate(labels.tolist()):
            bias, squares = 0.0, 0.0
            for s in range(k):
                if network.analog[s]:
                    bias += float(largest[s].mean()) if network.signs[s] == -y else 0.0
                    mixed = gates[number, s] @ network.tokens
                    squares += float((largest[s] ** 2).mean() * (mixed @ mixed))
            expected = clean[number] / (
                bias / math.sqrt(2 * math.pi) + math.sqrt(2 * math.log(1 / DELTA) / m) * math.sqrt(squares)
            )
            bound = pointwise_bound(network, gates, labels, DELTA)[number]
            torch.testing.assert_close(bound, expected)


@pytest.mark.claim("H")
@pytest.mark.claim("B")
@few
@given(seed=seeds, w_max=any_w_max, programming=any_model, rotated=st.booleans(), correlated=st.booleans())
def test_the_lipschitz_constant_by_autograd(
    seed: int, w_max: Any, programming: str, rotated: bool, correlated: bool
) -> None:
    """No gradient in the noise is longer. With all ReLUs active and no negative products one is exactly as long."""
    network, gates, labels = case(seed, w_max, programming, rotated=rotated)
    generator = torch.Generator().manual_seed(seed)
    if correlated:
        shift = torch.randn(1, DIMENSION, dtype=torch.float64, generator=generator)
        network = dataclasses.replace(network, tokens=network.tokens + shift)
    sigma = torch.stack([programming_sigma(each, hardware_of(network)) for each in network.weights])
    sigma = sigma * network.analog[:, None, None]

    def slope(base: float, scale: float) -> Tensor:
        noise = scale * torch.randn(network.weights.shape, dtype=torch.float64, generator=generator)
        noise.requires_grad_()
        received = torch.einsum("kmd,td->kmt", network.weights + sigma * noise, network.tokens) + base
        value = (network.signs[:, None] * gates[0] * received.relu().mean(1)).sum()
        return torch.autograd.grad(value, noise)[0].norm()

    terms = terms_of(network, gates[:1], labels[:1])
    bound = float(terms.lipschitz[0])
    assert all(slope(0.0, scale) <= bound * (1 + 1e-12) for scale in (0.1, 1.0, 10.0, 100.0))
    if not correlated and (programming == "constant" or not rotated):
        torch.testing.assert_close(float(slope(1e9, 1.0)), bound)
        largest = sigma.amax(2)[..., None]  # H: the largest sigma of a neuron
        mixed = torch.einsum("kt,td->kd", gates[0], network.tokens).norm(dim=1)
        simple = ((largest[..., 0] ** 2).sum(1) * mixed**2).sum().sqrt() / network.weights.shape[1]
        assert bound <= simple * (1 + 1e-12)
        if programming == "constant":
            torch.testing.assert_close(bound, float(simple))


# Validity


@pytest.mark.claim("B")
@pytest.mark.claim("B-mean")
@pytest.mark.claim("B-exp")
@granularities
def test_lower_bounds_hold(w_max: Any) -> None:
    for seed in range(8):
        network, gates, labels = case(seed, w_max, rotated=seed % 2 == 1)
        for bound in (pointwise_bound, exact_mean_bound, exponential_bound):
            assert_rarely_wrong(network, gates, labels, bound(network, gates, labels, DELTA), DELTA, seed)


@pytest.mark.claim("B-mean")
@pytest.mark.claim("B-exp")
@few
@given(seed=seeds, w_max=any_w_max, fraction=st.floats(0.01, 1))
def test_they_hold_at_every_smaller_noise_too(seed: int, w_max: Any, fraction: float) -> None:
    network, gates, labels = case(seed, w_max)
    for bound in (exact_mean_bound, exponential_bound):
        c = fraction * bound(network, gates, labels, DELTA)
        assert_rarely_wrong(network, gates, labels, c, DELTA, seed, draws=300)


@pytest.mark.claim("B")
@few
@given(seed=seeds, w_max=any_w_max)
def test_b_holds_for_correlated_tokens(seed: int, w_max: Any) -> None:
    network, gates, labels = case(seed, w_max)
    network = dataclasses.replace(network, tokens=network.tokens + 0.4)
    labels = torch.where(margins(network, gates, labels) < 0, -labels, labels)
    for bound in (pointwise_bound, exact_mean_bound, exponential_bound):
        assert_rarely_wrong(
            network, gates, labels, bound(network, gates, labels, DELTA), DELTA, seed, draws=300
        )


@pytest.mark.claim("H")
@models
@granularities
def test_lower_bounds_hold_for_every_programming_noise(programming: str, w_max: Any) -> None:
    for seed in range(3):
        network, gates, labels = case(seed, w_max, programming, rotated=seed == 2)
        for bound in (pointwise_bound, exact_mean_bound, exponential_bound):
            assert_rarely_wrong(network, gates, labels, bound(network, gates, labels, DELTA), DELTA, seed)


@pytest.mark.claim("H")
@pytest.mark.parametrize("bits", [8, 6, 4])
@granularities
def test_lower_bounds_hold_with_converters(bits: int, w_max: Any) -> None:
    """One ADC clips (lam = 1/2), the other hardly does."""
    tested = 0
    for seed in range(3):
        for lam in (0.5, 3.0):
            network, gates, labels = case(seed, w_max, "pcm", rotated=True)
            network = network.with_converters(dac_bits=bits, adc_bits=bits, input_bound=1.0, lam=lam)
            labels = torch.where(margins(network, gates, labels) < 0, -labels, labels)
            for bound in (pointwise_bound, exact_mean_bound):
                c = bound(network, gates, labels, DELTA)
                tested += assert_rarely_wrong(network, gates, labels, c, DELTA, seed)
    assert tested >= 10


@pytest.mark.claim("H")
@few
@given(seed=seeds, bits=st.integers(3, 8), lam=st.floats(0.2, 4))
def test_converters_take_from_the_margin_what_they_may(seed: int, bits: int, lam: float) -> None:
    """The clean output is at least `margins`, which are at most the losses of H below the digital output."""
    network, gates, labels = case(seed, rotated=True)
    converted = network.with_converters(dac_bits=bits, adc_bits=bits, input_bound=1.0, lam=lam)
    real = labels * outputs(converted, gates, torch.zeros(len(gates)), 1, seed)[0]
    assert (real >= margins(converted, gates, labels) - 1e-9).all()
    dac = network.with_converters(dac_bits=bits, adc_bits=None, input_bound=1.0, lam=lam)
    assert dac.analog_tokens is not None
    shifts = (dac.analog_tokens - network.tokens).norm(dim=1)
    norms = network.weights.norm(dim=2).mean(1) * network.analog
    loss = torch.einsum("nkt,k,t->n", gates, norms, shifts)
    assert (margins(dac, gates, labels) >= margins(network, gates, labels) - loss - 1e-9).all()
    wide = network.with_converters(dac_bits=None, adc_bits=bits, input_bound=1.0, lam=1e3)
    assert wide.adc_step is not None
    steps = (wide.adc_step.mean(1) / 2 * network.analog).sum()
    torch.testing.assert_close(margins(wide, gates, labels), margins(network, gates, labels) - steps)


@pytest.mark.claim("Bu")
@granularities
def test_the_uniform_bound_holds_for_all_inputs_at_once(w_max: Any) -> None:
    """Programming events are counted in which *any* input is misclassified; all inputs see the same event."""
    draws = 1000
    for seed in range(8):
        network, gates, labels = case(seed, w_max, inputs=64)
        clean = margins(network, gates, labels)
        used = clean >= clean.median()
        bound = uniform_bound(network, float(clean.median()), DELTA)
        wrong = (
            labels[used] * outputs(network, gates[used], torch.full((int(used.sum()),), bound), draws, seed)
            <= 0
        )
        count = int(wrong.any(1).sum())
        assert_plausible([stats.binomtest(count, draws, DELTA, alternative="greater").pvalue])


@pytest.mark.claim("Bu")
@few
@given(seed=seeds, delta=st.floats(0.001, 0.5))
def test_bu_is_the_theorys_formula(seed: int, delta: float) -> None:
    network, gates, labels = case(seed)
    m, largest = network.weights.shape[1], network.weights.abs().amax((1, 2)) * network.analog
    bias = max(float(largest[network.signs == sign].sum()) for sign in (1, -1))
    union = 2 * int(network.analog.sum()) * DIMENSION / delta
    expected = 1 / (bias / math.sqrt(2 * math.pi) + math.sqrt(2 * math.log(union) / m) * float(largest.sum()))
    assert math.isclose(uniform_bound(network, 1.0, delta, one_label=4), expected, rel_tol=1e-12)
    clean = margins(network, gates, labels)
    each = uniform_bound(network, 1.0, delta, one_label=4) * clean
    assert (each <= pointwise_bound(network, gates, labels, delta) * (1 + 1e-12)).all()


# Tightness, where it is known


@pytest.mark.claim("B")
@given(a=st.floats(0.1, 100), delta=st.floats(0.001, 0.1))
def test_how_loose_b_is_for_one_linear_neuron(a: float, delta: float) -> None:
    """a + c M z > 0 with M = a fails with probability Q(1/c), so that c is 1/Q^-1(delta): B has 1/tau instead."""
    weights = torch.tensor([[[a, 0.0]]], dtype=torch.float64)
    network = Network(weights, torch.eye(2).double(), torch.ones(1), torch.tensor([True]))
    gates = torch.tensor([[[1.0, 0.0]]])
    bound = float(pointwise_bound(network, gates, torch.ones(1), delta)[0])
    looseness = 1 / stats.norm.isf(delta) / bound
    assert math.isclose(looseness, concentration(delta) / stats.norm.isf(delta), rel_tol=1e-9)
    assert 1.19 < looseness < 1.68  # from delta = .001 to delta = .1


@pytest.mark.claim("B")
@pytest.mark.claim("B-mean")
@pytest.mark.claim("B-exp")
@few
@given(margin=st.floats(1e-3, 1e3), m=st.integers(1, 6), delta=st.floats(0.01, 0.3))
def test_a_digital_margin_against_analog_noise(margin: float, m: int, delta: float) -> None:
    """A digital expert gives all of the margin, an analog one of the other sign nothing but noise.

    y f~ = margin - (1/m) sum_r ReLU(c z_r). For m = 1 an error has probability Q(margin/c), so that the exact c is
    margin/z_delta. Every bound is in proportion to the margin, and B-exp is within 30 % of its optimum over kappa.
    """
    weights = torch.zeros(2, m, 3)
    weights[0, :, 0] = 1.0
    weights[1, :, 1] = 1.0  # sets the noise, and is orthogonal to the only token
    gates, labels = torch.ones(1, 2, 1), torch.ones(1)
    analog = torch.tensor([False, True])

    def bounds(scale: float) -> list[float]:
        scaled = weights.clone()
        scaled[0] *= scale
        network = Network(scaled, torch.eye(3)[:1], torch.tensor([1.0, -1.0]), analog)
        lower = (pointwise_bound, exact_mean_bound, exponential_bound)
        return [float(bound(network, gates, labels, delta)) for bound in lower]

    found = bounds(margin)
    assert found == pytest.approx([margin * each for each in bounds(1.0)], rel=1e-4)
    exact = margin / stats.norm.isf(delta)
    if m == 1:
        assert max(found) <= exact

    def least_error(c: float) -> float:
        """Logarithm of the smallest Markov bound on P(y f~ <= 0), by the moment of exp(kappa ReLU(c z)/m)."""
        kappa = np.logspace(-2, 2, 400) / margin
        theta = kappa * c / m
        moment = np.logaddexp(math.log(0.5), theta**2 / 2 + stats.norm.logcdf(theta))
        return float((m * moment - kappa * margin).min())

    assert least_error(found[2]) <= math.log(delta) + 1e-2 and least_error(1.3 * found[2]) > math.log(delta)


@pytest.mark.claim("B")
@pytest.mark.claim("B-mean")
@pytest.mark.parametrize("m", [64, 4096])
def test_the_bias_of_b_is_attained(m: int) -> None:
    """A digital margin of 1 stands against m neurons at a = 0 of a token of their own.

    Half of all programmings fail at about c = sqrt(2 pi)/M, which B approaches as 1 + tau sqrt(2 pi/m). B-mean is B,
    as the mean is linear in c.
    """
    weights = torch.zeros(2, m, 3, dtype=torch.float64)
    weights[0, :, 0], weights[1, :, 1] = 1.0, 1.0
    network = Network(weights, torch.eye(3).double(), torch.tensor([1.0, -1.0]), torch.tensor([False, True]))
    gates = torch.tensor([[[1.0, 0, 0], [0, 0, 1.0]]])
    bound = pointwise_bound(network, gates, torch.ones(1), 0.05)
    ratio = math.sqrt(2 * math.pi) / float(bound[0])
    assert math.isclose(ratio, 1 + concentration(0.05) * math.sqrt(2 * math.pi / m), rel_tol=1e-9)
    torch.testing.assert_close(exact_mean_bound(network, gates, torch.ones(1), 0.05), bound, **SEARCHED)
    c = torch.tensor([math.sqrt(2 * math.pi)], dtype=torch.float64)
    assert math.isclose(float(predicted_accuracy(network, gates, torch.ones(1), c)[0]), 0.5, abs_tol=1e-9)


@pytest.mark.claim("U")
@pytest.mark.claim("Gain")
@pytest.mark.parametrize(("N_F", "m"), [(2, 8), (3, 8), (2, 32)])
def test_u_and_p_where_the_frequent_noise_is_all(N_F: int, m: int) -> None:  # noqa: N803
    """For rho to infinity both are margin/(rho sd x), with x = Q^-1(.05) for P and Q^-1(.05 + BE) for U."""
    setting = Setting(alpha=1e-4, N_F=N_F, m=m)
    network, gates, labels, kinds = idealised(setting)
    rare = kinds == 1
    c_u = tolerance_ceiling(network, gates[rare], labels[rare], kinds[rare])
    c_p = predicted_tolerance(network, gates[rare], labels[rare], kinds[rare])
    terms = 2 * N_F * m * setting.l
    zero, one = torch.zeros(1).double(), torch.ones(1).double()
    lyapunov = float(relu_third_moment(zero, one) / relu_variance(zero, one) ** 1.5)
    error = 0.56 * lyapunov / math.sqrt(terms)
    assert math.isclose(0.56 * 1.985 / math.sqrt(terms), error, rel_tol=1e-3)
    sd = math.sqrt(terms * 0.3408) / (m * setting.l)
    margin = float(margins(network, gates, labels)[2])
    assert math.isclose(c_u, margin / (setting.rho * sd * stats.norm.isf(0.05 + error)), rel_tol=1e-2)
    assert math.isclose(c_p, margin / (setting.rho * sd * stats.norm.isf(0.05)), rel_tol=1e-2)
    assert 1.2 < c_u / c_p < 1.7


# U and P


@pytest.mark.claim("U")
@granularities
def test_above_u_errors_are_frequent(w_max: Any) -> None:
    """Errors are counted at c_U and beyond, and are binomial. c_U is finite where there are terms enough."""
    draws, bounded = 1000, 0
    for seed in range(6):
        network, gates, labels = case(seed, w_max, many=True)
        c = upper_bound(network, gates, labels, 0.05)
        finite = c.isfinite()
        bounded += int(finite.sum())
        for factor in (1.0, 1.7, 1e4):
            if finite.any():
                counts = error_rates(network, gates[finite], labels[finite], factor * c[finite], draws, seed)
                assert_plausible([stats.binomtest(n, draws, 0.05, alternative="less").pvalue for n in counts])
    assert bounded >= 12  # the other half have the prevailing bias on their side


@pytest.mark.claim("U")
@pytest.mark.claim("B-mean")
@pytest.mark.claim("B-exp")
@granularities
@pytest.mark.parametrize("correct", [False, True])
def test_ranges_enclose_what_is_inside(w_max: Any, correct: bool) -> None:
    """Mean and error bounds of a range of c hold at its points, for wide and narrow, low and high ranges."""
    for seed, width, factor in itertools.product(range(12), (0.05, 2.0), (1.0, 10.0)):
        network, gates, labels = case(seed, w_max, many=seed % 2 == 1)
        for terms in (terms_of(network, gates, y, bias_correction=correct) for y in (labels, -labels)):
            scale = terms.margin.abs() / (terms.lipschitz + terms.bias)
            low, high = factor * scale, factor * (1 + width) * scale
            least, most = terms.least_mean(low, high), terms.most_error(low, high)
            exponential, error = terms._exponential(1 / high, 1 / low), terms.least_error(1 / high, 1 / low)
            slack = 1e-9 * (1 + terms.margin.abs())
            for where in (0.0, 0.3, 0.7, 1.0):
                c = low + where * (high - low)
                mean, sd = terms.mean(c), terms.variance(c).sqrt()
                moments = relu_third_moment(terms.a, c[:, None] * terms.sigma)
                third = (terms.coefficient.abs() ** 3 * moments).sum(-1)
                normal = error_bound(mean / sd, third, sd).clamp(min=0)
                assert (least <= mean + slack).all()
                assert (error <= normal + 1e-6).all()
                assert (most >= torch.minimum(failure_bound(mean, terms.lipschitz * c), exponential)).all()
                # The same exponential moment, at a point, with the kappa that the range has.
                kappa = terms.mean(high) / high / (terms.variance(high) / high**2)
                theta = -kappa.clamp(min=0)[:, None] * terms.coefficient / c[:, None]
                noisy = terms.sigma > 0
                sigma = torch.where(noisy, c[:, None] * terms.sigma, 1)
                exact = torch.where(
                    noisy, relu_exponential(theta, terms.a, sigma), (theta * terms.a.relu()).exp()
                )
                constant = terms.constant
                if correct:
                    constant = constant + (terms.margin - terms.constant)
                    shift = terms.coefficient * (relu_mean(terms.a, c[:, None] * terms.sigma))
                    constant = constant - shift.sum(-1)
                point = exact.log().sum(-1) - kappa.clamp(min=0) * constant / c
                assert (exponential.log() >= point - 1e-6 * (1 + point.abs()))[point.abs() < 600].all()


@pytest.mark.claim("B-exp")
@given(a=st.floats(-5, 5), sigma=st.floats(0.1, 3), theta=st.floats(-2, 2))
def test_the_exponential_moment_by_quadrature(a: float, sigma: float, theta: float) -> None:
    def integrand(z: float) -> float:
        return math.exp(theta * max(a + sigma * z, 0.0) - z * z / 2) / math.sqrt(2 * math.pi)

    parts = sorted({-12.0, min(max(-a / sigma, -12.0), 12.0), 20.0})
    expected = sum(integrate.quad(integrand, *ends)[0] for ends in itertools.pairwise(parts))
    assert math.isclose(relu_exponential(theta, a, sigma), expected, rel_tol=1e-6)


# Searches for c


@pytest.mark.claim("B-mean")
@pytest.mark.claim("B-exp")
@pytest.mark.claim("U")
@pytest.mark.claim("P")
def test_a_search_doubles_its_steps_and_halves_them_where_they_fail() -> None:
    tried: list[tuple[float, float]] = []

    def holds(low: Tensor, high: Tensor) -> Tensor:
        tried.append((float(low), float(high)))
        return high <= 9

    scale = torch.tensor([1.0], dtype=torch.float64)
    assert math.isclose(float(largest(holds, scale)), 9, rel_tol=1e-6)
    first = [(0, 1), (1, 3), (3, 7), (7, 15), (7, 11), (7, 9)]
    assert torch.allclose(torch.tensor(tried[:6]), torch.tensor(first).float(), rtol=1e-6)
    assert tried[0][1] < 1  # at the scale itself rounding may fail
    assert largest(holds, torch.tensor([math.inf])).isinf()
    assert not largest(lambda low, high: high < 0, scale)


@pytest.mark.claim("U")
def test_the_search_for_u_begins_where_the_noise_is_about_the_margin() -> None:
    for seed in range(4):
        network, gates, labels = case(seed)
        terms = terms_of(network, gates, labels)
        c = 1 / inverse_scale(dataclasses.replace(terms, constant=terms.constant - 3 * terms.margin))
        assert torch.allclose(terms.lipschitz * c, 2 * terms.margin)
    nothing = dataclasses.replace(terms, constant=terms.constant - terms.margin)
    assert inverse_scale(nothing).isfinite().all()


@pytest.mark.claim("U")
@granularities
def test_u_is_the_least_c_that_its_inequality_gives(w_max: Any) -> None:
    bounded = 0
    for seed in range(6):
        network, gates, labels = case(seed, w_max, many=True)
        c = upper_bound(network, gates, labels, 0.05)
        terms, inverse = terms_of(network, gates, labels), 1 / c
        finite = c.isfinite()
        assert (terms.least_error(inverse, inverse) > 0.05)[finite].all()
        assert (terms.least_error(1.001 * inverse, 1.001 * inverse) <= 0.05)[finite].all()
        bounded += int(finite.sum())
    assert bounded >= 12


@pytest.mark.claim("P")
@granularities
def test_predicted_accuracy_is_within_berry_esseen_of_the_frequency(w_max: Any) -> None:
    """Counts are exactly binomial, and their probability is within BE of the prediction at every c."""
    draws = 4000
    for seed in range(6):
        network, gates, labels = case(seed, w_max)
        terms = terms_of(network, gates, labels)
        for factor in (1.0, 4.0):
            c = factor * exact_mean_bound(network, gates, labels, 0.05).clamp(max=1e6)
            used = c > 0
            accuracy = predicted_accuracy(network, gates, labels, c)
            third = (terms.coefficient.abs() ** 3 * relu_third_moment(terms.a, c[:, None] * terms.sigma)).sum(
                -1
            )
            error = 0.56 * third / terms.variance(c) ** 1.5
            wrong = error_rates(network, gates[used], labels[used], c[used], draws, seed)
            for count, p, be in zip(wrong, accuracy[used].tolist(), error[used].tolist(), strict=True):
                interval = stats.binomtest(draws - count, draws).proportion_ci(1 - FAILURE / 100)
                assert interval.low - be <= p <= interval.high + be


@pytest.mark.claim("P")
def test_predicted_accuracy_with_many_neurons() -> None:
    """2 N_F m l = 1024 terms make BE .035."""
    setting = Setting(d=6, n=4, m=64)
    network, gates, labels, kinds = idealised(setting)
    c = predicted_tolerance(network, gates, labels, kinds)
    draws = 4000
    assert math.isclose(float(predicted_accuracy(network, gates, labels, c)[2:].mean()), 0.95, abs_tol=1e-4)
    wrong = error_rates(network, gates[2:], labels[2:], torch.full((2,), c), draws, 0)
    for count in wrong:
        interval = stats.binomtest(count, draws).proportion_ci(1 - FAILURE)
        assert interval.low - 0.035 <= 0.05 <= interval.high + 0.035


# Cor and Gain: what digital frequent experts gain


@pytest.mark.claim("Cor")
@granularities
@pytest.mark.parametrize(("N_F", "N_R"), [(2, 2), (3, 1)])
def test_the_ratio_of_bounds_is_of_the_order_of_rho(w_max: Any, N_F: int, N_R: int) -> None:  # noqa: N803
    kappa, slopes = None, []
    for alpha in (0.25, 0.1, 0.02, 0.001):
        setting = Setting(alpha=alpha, N_F=N_F, N_R=N_R)
        network, gates, labels, kinds = idealised(setting, w_max)
        frequent = torch.tensor(([True] * N_F + [False] * N_R) * 2)
        parts = [
            pointwise_bound(dataclasses.replace(network, analog=analog), gates, labels, 0.05)[2]
            for analog in (~frequent, frequent, network.analog)
        ]
        digital, alone, analog = (float(part) for part in parts)
        kappa = digital / alone / setting.rho  # its weights are rho times as large
        assert kappa * setting.rho * (1 - 1e-9) <= digital / analog <= 1 + kappa * setting.rho + 1e-9
        slopes.append(digital / analog / setting.rho)
        assert kinds.tolist() == [0, 0, 1, 1]
    assert kappa is not None and math.isclose(slopes[-1], kappa, rel_tol=0.01)


@pytest.mark.claim("Gain")
@pytest.mark.claim("U")
@pytest.mark.parametrize(("w_max", "N_F", "N_R"), [("layer", 2, 2), ("column", 3, 1)])
def test_the_floor_of_the_gain(w_max: Any, N_F: int, N_R: int) -> None:  # noqa: N803
    """The gain is linear in rho, above 1 from alpha = .05 on, and less than a factor of 2.6 below the prediction."""
    floors, last = [], 0.0
    for alpha in (0.05, 0.02, 0.005):
        setting = Setting(alpha=alpha, N_F=N_F, N_R=N_R)
        network, gates, labels, kinds = idealised(setting, w_max)
        frequent = torch.tensor(([True] * N_F + [False] * N_R) * 2)
        floor = gain_floor(network, frequent, gates, labels, kinds)
        linear = linear_gain(setting, w_max)
        placed = dataclasses.replace(network, analog=~frequent)
        digital, analog = (predicted_tolerance(each, gates, labels, kinds) for each in (placed, network))
        assert last <= linear and linear * setting.rho <= floor * (1 + 1e-6)
        assert digital / analog / 2.6 < floor < digital / analog
        last = linear
        floors.append(floor)
    assert floors == sorted(floors) and floors[0] > 1
    assert math.isclose(floors[2] / floors[1], 199 / 49, rel_tol=0.1)


@pytest.mark.claim("Gain")
@pytest.mark.parametrize(
    ("w_max", "alpha", "N_F", "m"),
    [("layer", 0.02, 2, 8), ("column", 0.02, 2, 8), ("layer", 0.1, 3, 8), ("layer", 0.5, 3, 512)],
)
def test_the_linear_gain_from_the_terms_of_the_network(w_max: Any, alpha: float, N_F: int, m: int) -> None:  # noqa: N803
    """The sums of the formula, over the noisy ReLUs that the network has for a rare input."""
    setting = Setting(alpha=alpha, N_F=N_F, N_R=4 - N_F, m=m)
    network, gates, labels, kinds = idealised(setting, w_max)
    terms = terms_of(network, gates[2:3], labels[2:3])
    frequent = torch.tensor(([True] * N_F + [False] * (4 - N_F)) * 2)
    size = (terms.coefficient.abs() * terms.sigma / setting.rho).reshape(setting.experts, -1)
    zero, one = torch.zeros(1).double(), torch.ones(1).double()
    sd = math.sqrt((size[frequent] ** 2).sum() * relu_variance(zero, one))
    third = (size[frequent] ** 3).sum() * relu_third_moment(zero, one)
    third += (size[~frequent] ** 3).sum() * 8 / math.sqrt(math.pi)
    quantile = stats.norm.isf(0.05 + 0.56 * float(third) / sd**3)
    assert quantile > 0
    placed = dataclasses.replace(network, analog=~frequent)
    floor = tolerance_floor(placed, gates, labels, kinds)
    expected = floor * sd * quantile / float(terms.margin[0])
    assert math.isclose(linear_gain(setting, w_max), expected, rel_tol=1e-12)


@pytest.mark.claim("Gain")
def test_no_gain_is_promised_where_berry_esseen_says_nothing() -> None:
    assert linear_gain(Setting(alpha=0.02, m=1, N_F=1, N_R=1, l=2)) == 0


@pytest.mark.claim("Gain")
def test_the_floor_of_the_gain_against_draws() -> None:
    """All analog errs in more than 5 % at its ceiling, frequent digital in at most 5 % at its floor."""
    setting = Setting(alpha=0.02)
    network, gates, labels, kinds = idealised(setting)
    frequent = torch.tensor(([True] * 2 + [False] * 2) * 2)
    placed = dataclasses.replace(network, analog=~frequent)
    draws = 2000
    ceiling = torch.full((2,), tolerance_ceiling(network, gates, labels, kinds))
    floor = torch.full((2,), tolerance_floor(placed, gates, labels, kinds))
    many = error_rates(network, gates[2:], labels[2:], ceiling, draws, 0)
    few_errors = error_rates(placed, gates[2:], labels[2:], floor, draws, 1)
    assert_plausible([stats.binomtest(sum(many), 2 * draws, 0.05, alternative="less").pvalue])
    assert_plausible([stats.binomtest(sum(few_errors), 2 * draws, 0.05, alternative="greater").pvalue])


@pytest.mark.claim("Gain")
@fewer
@given(seed=seeds, w_max=any_w_max, correct=st.booleans())
def test_floor_prediction_and_ceiling_of_classes(seed: int, w_max: Any, correct: bool) -> None:
    network, gates, labels = case(seed, w_max, inputs=6)
    kinds = torch.tensor([0, 0, 1, 1, 1, 1])
    arguments = (network, gates, labels, kinds)
    floor = tolerance_floor(*arguments, bias_correction=correct)
    ceiling = tolerance_ceiling(*arguments, bias_correction=correct)
    assert 0 <= floor <= ceiling
    bound = corrected_bound if correct else pointwise_bound
    least = bound(network, gates, labels, 0.05).clamp(max=1e9).min()
    assert floor >= least * (1 - 1e-4)  # where every input errs rarely enough, so does every class
    order = torch.tensor([3, 0, 5, 1, 2, 4])
    again = tolerance_floor(network, gates[order], labels[order], kinds[order], bias_correction=correct)
    assert math.isclose(min(again, 1e9), min(floor, 1e9), rel_tol=1e-4)


# C: bias correction


@pytest.mark.claim("C")
@granularities
def test_mean_shift_and_its_correction(w_max: Any) -> None:
    """Means of many draws are within 6.5 standard errors each (one of them exceeds that with probability 1e-10)."""
    draws = 4000
    for seed in range(4):
        network, gates, labels = case(seed, w_max)
        c = torch.full((len(gates),), 0.7).double()
        value = labels * outputs(network, gates, c, draws, seed)
        shift = labels * torch.einsum("nkt,kt,k->n", gates, mean_shift(network, 0.7), network.signs)
        error = 6.5 * value.std(0) / math.sqrt(draws)
        clean = margins(network, gates, labels)
        assert ((value.mean(0) - shift - clean).abs() <= error).all()
        corrected = value - shift
        bound = corrected_bound(network, gates, labels, DELTA)
        finite = bound < 1e9
        at_bound = labels * outputs(network, gates, bound.clamp(max=1e9), draws, seed)
        parts = torch.stack([mean_shift(network, float(each)) for each in bound.clamp(max=1e9)])
        at_bound = at_bound - labels * torch.einsum("nkt,nkt,k->n", gates, parts, network.signs)
        wrong = (at_bound <= 0).sum(0)[finite].tolist()
        assert_plausible([stats.binomtest(n, draws, DELTA, alternative="greater").pvalue for n in wrong])
        assert (corrected.mean(0) - clean).abs().le(error).all()


@pytest.mark.claim("C")
@few
@given(seed=seeds, w_max=any_w_max, c=st.floats(0.01, 10))
def test_sign_balance(seed: int, w_max: Any, c: float) -> None:
    """Every expert has a twin of the other sign, so that the mean is the margin, for either label."""
    network, gates, labels = case(seed, w_max)
    twins = Network(
        network.weights.repeat(2, 1, 1),
        network.tokens,
        torch.cat([network.signs, -network.signs]),
        network.analog.repeat(2),
        network.w_max,
    )
    both = gates.repeat(1, 2, 1)
    terms = terms_of(twins, both, labels)
    size = float(twins.weights.abs().max())
    at = torch.full_like(labels, c)
    torch.testing.assert_close(terms.mean(at), terms.margin, atol=1e-9 * size * (1 + c), rtol=0)
    # With one twin digital, |beta| is what the other adds, and one label loses it.
    first = int(network.analog.nonzero()[0])
    analog = twins.analog.clone()
    analog[first] = False
    one = dataclasses.replace(twins, analog=analog)
    lost = torch.einsum("nt,t->n", gates[:, first], mean_shift(network, c)[first])
    shifted = terms_of(one, both, labels).mean(at) - terms_of(one, both, labels).margin
    expected = -labels * network.signs[first] * lost
    torch.testing.assert_close(shifted, expected, atol=1e-9 * size * (1 + c), rtol=0)


@pytest.mark.claim("C")
@few
@given(seed=seeds, w_max=any_w_max)
def test_correction_cannot_harm(seed: int, w_max: Any) -> None:
    """The corrected bound is never below B.

    Where B-mean holds for an input and for one of opposite bias, its condition holds with the correction too.
    """
    network, gates, labels = case(seed, w_max)
    corrected = corrected_bound(network, gates, labels, DELTA)
    assert (corrected >= pointwise_bound(network, gates, labels, DELTA)).all()
    terms = terms_of(network, gates, labels)
    c = torch.nan_to_num(corrected, posinf=1.0) * 1.01
    shift = terms.mean(c) - terms.margin
    needed = concentration(DELTA) * terms.lipschitz * c
    both = (terms.margin + shift >= needed) & (terms.margin - shift >= needed)
    assert not (both & corrected.isfinite() & (corrected > 0)).any()


# Laws


@given(seed=seeds, w_max=any_w_max, programming=any_model, exponent=st.integers(-8, 8))
@pytest.mark.claim("B")
@pytest.mark.claim("Bu")
@pytest.mark.claim("U")
@fewer
def test_the_scale_of_the_weights_does_not_count(
    seed: int, w_max: Any, programming: str, exponent: int
) -> None:
    network, gates, labels = case(seed, w_max, programming)
    scaled = dataclasses.replace(network, weights=network.weights * 2.0**exponent)
    for bound in (*LOWER, upper_bound):
        torch.testing.assert_close(
            bound(scaled, gates, labels, 0.05), bound(network, gates, labels, 0.05), **SEARCHED
        )
    assert math.isclose(
        uniform_bound(scaled, 2.0**exponent, 0.05), uniform_bound(network, 1.0, 0.05), rel_tol=1e-9
    )


@given(seed=seeds, w_max=any_w_max)
@pytest.mark.claim("B")
@pytest.mark.claim("B-mean")
@pytest.mark.claim("Bu")
@pytest.mark.claim("P")
@fewer
def test_order_of_neurons_and_experts_does_not_count(seed: int, w_max: Any) -> None:
    network, gates, labels = case(seed, w_max)
    generator = torch.Generator().manual_seed(seed)
    k, m, _ = network.weights.shape
    order, neurons = torch.randperm(k, generator=generator), torch.randperm(m, generator=generator)
    other = Network(
        network.weights[order][:, neurons], network.tokens, network.signs[order], network.analog[order], w_max
    )
    for bound in (*LOWER, upper_bound, predicted_accuracy):
        torch.testing.assert_close(
            bound(other, gates[:, order], labels, 0.05),
            bound(network, gates, labels, 0.05),
            **SEARCHED,
        )
    assert math.isclose(uniform_bound(other, 1.0, 0.05), uniform_bound(network, 1.0, 0.05), rel_tol=1e-9)


@given(seed=seeds, w_max=any_w_max, delta=st.floats(0.001, 0.4), more=st.floats(1.01, 2))
@pytest.mark.claim("B")
@pytest.mark.claim("Bu")
@pytest.mark.claim("B-mean")
@pytest.mark.claim("B-exp")
@fewer
def test_monotonicity(seed: int, w_max: Any, delta: float, more: float) -> None:
    network, gates, labels = case(seed, w_max)
    b = pointwise_bound(network, gates, labels, delta)
    mean = exact_mean_bound(network, gates, labels, delta)
    exponential = exponential_bound(network, gates, labels, delta)
    assert (mean >= b * (1 - 1e-9)).all()
    assert (exponential >= b * (1 - 1e-9)).all() and (exponential >= mean * (1 - 1e-4)).all()
    for bound in LOWER:  # a larger delta permits more noise
        assert (
            bound(network, gates, labels, delta * more) >= bound(network, gates, labels, delta) * (1 - 1e-6)
        ).all()
    uniform = uniform_bound(network, 1.0, delta)
    assert uniform <= uniform_bound(network, 1.0, delta * more) and uniform <= uniform_bound(
        network, more, delta
    )
    # One more expert is analog.
    for s in (~network.analog).nonzero()[:, 0].tolist():
        analog = network.analog.clone()
        analog[s] = True
        worse = dataclasses.replace(network, analog=analog)
        assert (pointwise_bound(worse, gates, labels, delta) <= b).all()
        assert uniform_bound(worse, 1.0, delta) <= uniform
    # M is made larger by a weight on a direction that no token has.
    wide = torch.nn.functional.pad(network.weights, (0, 1))
    tokens = torch.nn.functional.pad(network.tokens, (0, 1))
    largest = network.weights.abs().amax((1, 2), keepdim=True).squeeze(2)
    wide[..., -1] = more * largest
    louder = Network(wide, tokens, network.signs, network.analog, w_max)
    quieter = Network(
        wide * torch.tensor([1.0] * DIMENSION + [0.0]), tokens, network.signs, network.analog, w_max
    )
    torch.testing.assert_close(pointwise_bound(quieter, gates, labels, delta), b)
    assert (pointwise_bound(louder, gates, labels, delta) <= b).all()


@few
@given(seed=seeds, delta=st.floats(0.001, 0.4))
@pytest.mark.claim("B")
@pytest.mark.claim("Bu")
def test_columns_tolerate_at_least_as_much(seed: int, delta: float) -> None:
    network, gates, labels = case(seed)
    column = dataclasses.replace(network, w_max="column")
    assert (
        pointwise_bound(column, gates, labels, delta)
        >= pointwise_bound(network, gates, labels, delta) * (1 - 1e-12)
    ).all()
    assert uniform_bound(column, 1.0, delta) >= uniform_bound(network, 1.0, delta) * (1 - 1e-12)


def test_no_noise_and_no_margin() -> None:
    network, gates, labels = case(1)
    digital = dataclasses.replace(network, analog=torch.zeros_like(network.analog))
    for bound in (pointwise_bound, exact_mean_bound, exponential_bound, corrected_bound):
        assert (bound(digital, gates, labels, 0.05) == math.inf).all()
        assert (bound(network, gates, -labels, 0.05) == 0).all()
        assert (bound(digital, gates, -labels, 0.05) == 0).all()
    assert (upper_bound(digital, gates, labels, 0.05) == math.inf).all()
    assert uniform_bound(digital, 1.0, 0.05) == math.inf and uniform_bound(network, 0.0, 0.05) == 0
    assert predicted_accuracy(digital, gates, labels, 1.0).tolist() == [1.0] * len(labels)
    kinds = torch.zeros(len(labels))
    assert tolerance_floor(digital, gates, labels, kinds) == math.inf
    assert predicted_tolerance(digital, gates, labels, kinds) == math.inf


# Bad input


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights": torch.zeros(2, 3)}, "network.weights: give finite numbers"),
        ({"weights": torch.full((2, 1, 3), math.nan)}, "network.weights: give finite numbers"),
        ({"tokens": torch.eye(4)}, r"network.tokens of shape \(4, 4\): give \(4, 3\)"),
        ({"signs": torch.ones(3)}, r"network.signs of shape \(3,\)"),
        ({"signs": torch.zeros(2)}, "network.signs: give [+]1 or -1"),
        ({"analog": torch.ones(2)}, "network.analog: give True or False"),
        ({"w_max": "tile"}, "network.w_max is 'tile': give one of layer, column"),
        ({"programming": "none"}, "network.programming is 'none': give one of pcm"),
        ({"adc_step": torch.ones(2, 1)}, "give both or neither"),
    ],
)
def test_unusable_networks(change: dict[str, Any], message: str) -> None:
    good: dict[str, Any] = {
        "weights": torch.ones(2, 1, 3),
        "tokens": torch.eye(3),
        "signs": torch.tensor([1.0, -1.0]),
        "analog": torch.tensor([True, False]),
    }
    with pytest.raises(InputError, match=message):
        Network(**good | change)


def test_unusable_inputs() -> None:
    network, gates, labels = case(0)
    kinds = torch.zeros(len(labels))
    for delta in (0.0, 1.0, -0.1, math.nan):
        for bound in (*LOWER, upper_bound):
            with pytest.raises(InputError, match="(delta|failure) is .*: give a number above 0 and below 1"):
                bound(network, gates, labels, delta)
        for of_classes in (tolerance_floor, tolerance_ceiling, predicted_tolerance):
            with pytest.raises(InputError, match="failure is"):
                of_classes(network, gates, labels, kinds, delta)
        with pytest.raises(InputError, match="delta is"):
            uniform_bound(network, 1.0, delta)
    with pytest.raises(InputError, match="labels: give"):
        margins(network, gates, labels * 2)
    with pytest.raises(InputError, match=r"gates of shape"):
        margins(network, gates[:, :1], labels)
    with pytest.raises(InputError, match="gates: give finite numbers of at least 0"):
        margins(network, -gates, labels)
    with pytest.raises(InputError, match="one_label is 99"):
        uniform_bound(network, 1.0, 0.1, one_label=99)
    correlated = dataclasses.replace(network, tokens=network.tokens + 0.1)
    converted = network.with_converters(dac_bits=None, adc_bits=8, input_bound=1.0, lam=1.0)
    for other in (correlated, converted):
        with pytest.raises(InputError, match="noises are independent"):
            upper_bound(other, gates, labels, 0.05)
        with pytest.raises(InputError, match="noises are independent"):
            predicted_accuracy(other, gates, labels, 1.0)
    with pytest.raises(InputError, match=r"setting.l is 4: there are only d - 2 = 3"):
        idealised(Setting(d=5))
    with pytest.raises(InputError, match="active is 9: give 1 to 8"):
        idealised(Setting(), active=9)
