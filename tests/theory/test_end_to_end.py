"""Do the bounds from end to end hold of exact distributions and networks, and say nothing where nothing is proved?"""

import math
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from flint import arb
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from theory.end_to_end import (
    EVENTS,
    INSTANCES,
    Bounds,
    Choice,
    Instance,
    Kind,
    binomial_tail,
    bounds,
    class_counts,
    deviation,
    evaluate,
    failure_probability,
    gate_rest,
    gaussian_size,
    least_successes,
    longest,
    most_decrease,
    rise_exponent,
    rise_size,
)
from theory.errors import InputError
from theory.moments import relu_third_moment, relu_variance
from theory.setting import Setting
from theory.tolerance import Network, tolerance_ceiling, tolerance_floor

pytestmark = pytest.mark.claim("E")

SMALL = INSTANCES["rho 9"][0]
probabilities = st.floats(0.01, 0.99)
deltas = st.floats(1e-6, 0.3)


def test_p_adds_up_all_that_may_go_wrong() -> None:
    assert float(failure_probability(2, 8, 0.004)) == pytest.approx(8 * 0.004 + 4 / 256)
    assert len(EVENTS) == 8
    assert Instance(Setting(m=1), 8, 8).p == 1.0


# Sums and draws


@given(trials=st.integers(1, 60), most=st.integers(0, 60), success=probabilities)
def test_binomial_tail(trials: int, most: int, success: float) -> None:
    most = min(most, trials)
    assert binomial_tail(trials, most, success) == pytest.approx(
        stats.binom.cdf(most, trials, success), rel=1e-9
    )


@given(trials=st.integers(1, 300), delta=deltas)
def test_least_successes_is_the_largest_allowed(trials: int, delta: float) -> None:
    least = least_successes(trials, delta)
    assert stats.binom.cdf(least - 1, trials, 0.5) <= delta * (1 + 1e-9)
    assert stats.binom.cdf(least, trials, 0.5) > delta * (1 - 1e-9)


@given(samples=st.integers(1, 5000), frequency=probabilities, delta=deltas)
def test_class_counts_hold_of_the_binomial_distribution(samples: int, frequency: float, delta: float) -> None:
    low, high = class_counts(samples, frequency, math.log(1 / delta))
    count = stats.binom(samples, frequency / 2)
    assert count.cdf(math.ceil(low) - 1) <= delta
    assert count.sf(math.floor(high)) <= delta
    assert low < samples * frequency / 2 < high


@given(variance=st.floats(0, 1e6), logarithm=st.floats(0.01, 50))
def test_deviation_solves_bernsteins_equation(variance: float, logarithm: float) -> None:
    x = deviation(variance, logarithm)
    assert x**2 / (2 * (variance + x / 3)) == pytest.approx(logarithm)


@given(
    frequency=probabilities, rest=st.floats(0, 0.9), gates=st.lists(st.floats(0, 1), min_size=1, max_size=5)
)
def test_no_mean_of_the_exponential_exceeds_1(frequency: float, rest: float, gates: list[float]) -> None:
    """With the worst gates that are allowed, u = rest v and g = v, whatever the distribution of v."""
    theta, v = rise_exponent(frequency, rest), np.array(gates)
    own = np.exp(theta * rest * v) + np.exp(-theta * v)
    other = np.exp(theta * v) + np.exp(-theta * v)
    assert np.mean(frequency / 2 * own + (1 - frequency) / 2 * other) <= 1 + 1e-12
    assert theta > 0


@given(frequency=probabilities)
def test_gamblers_ruin_is_exact(frequency: float) -> None:
    """Gates of 0 or 1 and no rest: steps of +1, -1 and 0, which reach a height x with probability exp(-theta x)."""
    up, down = (1 - frequency) / 2, 1 / 2
    assert math.exp(-rise_exponent(frequency, 0.0)) == pytest.approx(up / down)
    assert math.exp(-rise_exponent(frequency, 0.0) * rise_size(50, 0.01, rise_exponent(frequency, 0.0))) == (
        pytest.approx(0.01 / 50)
    )


def test_the_rest_of_a_gate_is_the_worst_possible() -> None:
    """Own score 6, other scores at +-1: u/v at most rest, which l tokens of score 1 reach up to e^6 alone."""
    own, score, l = 6.0, 1.0, 4  # noqa: E741
    rng = np.random.default_rng(0)
    for _ in range(200):
        scores = np.sort(rng.uniform(-score, score, 9))[::-1]
        v = np.exp(scores[:l]) / np.exp(scores[:l]).sum()
        u = np.exp(scores[: l - 1]) / (math.exp(own) + np.exp(scores[: l - 1]).sum())
        assert (u <= gate_rest(own, score, l) * v[: l - 1]).all()
    equal_scores = math.exp(score) / (math.exp(own) + (l - 1) * math.exp(score)) * l
    assert gate_rest(own, score, l) == pytest.approx(equal_scores, rel=0.05)


@given(batch=st.integers(1, 2000), delta=deltas)
def test_one_batch_lowers_no_weight_further(batch: int, delta: float) -> None:
    """l = 1 and a token that every router would select: copies are binomial, a gate is 1 if there is any."""
    n, d = 8, 12
    chance = (1 - (1 - 1 / (d - 2)) ** (n - 1)) / 2
    most = most_decrease(1.0, n, d, batch, math.log(1 / delta))
    assert stats.binom.sf(math.floor(most), batch, chance) <= delta


@given(count=st.integers(1, 10**6), delta=deltas)
def test_normals_stay_within_their_size(count: int, delta: float) -> None:
    assert count * 2 * stats.norm.sf(gaussian_size(1.0, count, delta)) <= delta


# The theorem


@pytest.mark.parametrize("name", INSTANCES)
def test_balls_confirm_every_instance(name: str) -> None:
    instance, kappa = INSTANCES[name]
    found = bounds(instance)
    certain = evaluate(instance, found.choice, arb)
    assert instance.p <= 0.05 and found.ranks and certain.ranks
    assert kappa is None or (certain.kappa > kappa and found.kappa < 1.05 * kappa)
    assert_enclosed(found, certain)


@pytest.mark.parametrize("name", INSTANCES)
def test_every_bound_by_hand(name: str) -> None:
    """Written from the statement and EVENTS: counts of what may go wrong, and sums over experts one by one."""
    instance, found = INSTANCES[name][0], bounds(INSTANCES[name][0])
    setting, choice = instance.setting, found.choice
    d, n, l, m, eta = setting.d, setting.n, setting.l, setting.m, setting.eta  # noqa: E741
    samples, delta = instance.steps * instance.batch, instance.delta
    experts = [
        *[(setting.N_F, 1 - setting.alpha)] * 2,
        *[(setting.N_R, setting.alpha)] * 2,
    ]  # a kind and a sign each
    k = sum(number for number, _ in experts)

    def beyond(count: int) -> float:
        """A size that none of `count` standard normals exceeds."""
        return math.sqrt(2 * math.log(count / delta))

    def bernstein(variance: float, times: int, shared: float = delta) -> float:
        logarithm = math.log(times / shared)
        return float(max(np.roots([1, -2 * logarithm / 3, -2 * logarithm * variance])))

    def fair(trials: int, shared: float) -> float:
        heads = np.arange(trials + 1)
        return int(heads[stats.binom.cdf(heads - 1, trials, 0.5) <= shared].max()) / trials

    score = instance.router_noise * beyond(k * (d - 2))
    own, other = math.exp(6), math.exp(score)
    gate, largest = own / (own + (l - 1) * other), other / (other + (l - 1) / other)
    positive = fair(d - 2, delta / k)
    leak = float(stats.binom.cdf(l - 1, n - 1, positive))
    initial = instance.init_std * beyond(k * m * d)
    unit = eta / m / instance.batch
    copies = (n - 1) / (d - 2)
    second = largest**2 * copies * (1 + (n - 2) / (d - 2))
    fall = unit * (
        instance.batch * largest * copies / 2
        + bernstein(instance.batch * second / 2, instance.steps * k * (d - 2))
    )
    expected = {
        "score": score,
        "gate": gate,
        "positive": positive,
        "leak": leak,
        "initial": initial,
        "step": fall,
    }
    kinds = []
    for number, frequency in (experts[0], experts[2]):
        mean, wrong = samples * frequency / 2, samples * (1 - frequency) * leak
        count = bernstein(mean, 8)
        theta = -math.log(1 - frequency * (1 - l * other / own))
        low, high = unit * (mean - count) * gate, initial + unit * (mean + count)
        leaked = initial + unit * largest * (wrong + bernstein(wrong, k))
        without = initial + unit * math.log(k * (d - 2) / delta) / theta
        kinds.append(
            Kind(low, high, leaked, without, fair(number * m, delta / 8), max(fall, high, leaked, without))
        )
    frequent, rare = kinds
    outputs = [
        number * ((1 - kind.active) * kind.own_high + (1 - gate) * kind.other)
        for (number, _), kind in zip((experts[0], experts[2]), kinds, strict=True)
    ]
    against = sum(
        number * kind.other for (number, _), kind in zip((experts[0], experts[2]), kinds, strict=True)
    )
    margin = min(
        number * kind.active * gate * kind.own_low - against
        for (number, _), kind in zip((experts[0], experts[2]), kinds, strict=True)
    )
    leaks = [
        number * max(kind.leaked, kind.other)
        for (number, _), kind in zip((experts[0], experts[2]), kinds, strict=True)
    ]
    expected["most_margin"] = max(outputs[0] + leaks[1], outputs[1] + leaks[0])
    expected["rare_norm"] = math.hypot(
        rare.own_high, rare.leaked, *[max(initial, fall, rare.other)] * (d - 2)
    )
    expected["margin"] = margin
    tau = math.sqrt(2 * math.log(1 / 0.05))
    noise = [rare.w_max] * (2 * setting.N_R)  # analog, if the frequent ones are digital
    expected["floor"] = margin / (
        sum(noise) / 2 / math.sqrt(2 * math.pi) + tau * math.sqrt(sum(each**2 for each in noise) / m)
    )
    # A frequent specialist on a rare input: l tokens of gate 1/l in the worst case, m neurons.
    variance, third = (
        float(value)
        for value in (
            relu_variance(torch.tensor(-choice.offset).double(), torch.ones(()).double()),
            relu_third_moment(torch.tensor(choice.offset).double(), torch.ones(()).double()),
        )
    )
    least = 2 * setting.N_F * variance * frequent.own_low**2 / (l * m)
    share = frequent.w_max / math.sqrt(frequent.w_max**2 + (2 * setting.N_F - 1) * frequent.own_low**2 / l)
    error = third / variance**1.5 * share / math.sqrt(m)
    error += 2 * setting.N_R * (8 / math.sqrt(math.pi)) * m * (rare.w_max / m) ** 3 / least**1.5
    expected["error"] = 0.56 * error
    lowest = max(initial, fall, frequent.leaked)
    highest = max(frequent.leaked, frequent.other)
    mean = outputs[1] + setting.N_F * highest + k / 2 * lowest / 2
    expected["ceiling"] = max(
        mean / choice.quantile / math.sqrt(least),
        max(lowest, highest) / choice.offset / frequent.own_low,
    )
    for field, value in expected.items():
        assert float(getattr(found, field)) == pytest.approx(value, rel=1e-9), field
    for ours, theirs in zip((found.frequent, found.rare), kinds, strict=True):
        assert [float(each) for each in ours] == pytest.approx([float(each) for each in theirs], rel=1e-9)


def assert_enclosed(found: Bounds, certain: Bounds) -> None:
    """fp64 agrees with balls to 9 digits."""
    for field in fields(Bounds):
        ours, theirs = getattr(found, field.name), getattr(certain, field.name)
        if isinstance(ours, Kind):
            for one, two in zip(ours, theirs, strict=True):
                assert float(two) == pytest.approx(float(one), rel=1e-9)
        elif not isinstance(ours, bool | Choice):
            assert float(theirs) == pytest.approx(float(ours), rel=1e-9)


@pytest.mark.parametrize(
    "change",
    [
        lambda instance: replace(instance, batch=4),  # too few samples to see the classes
        lambda instance: replace(instance, steps=4096),  # margins reach 1
        lambda instance: replace(instance, router_noise=3.0),  # routers that confuse tokens
        lambda instance: replace(instance, init_std=1.0),  # initial weights that drown the growth
    ],
)
def test_nothing_is_claimed_beyond_the_theorem(change: Callable[[Instance], Instance]) -> None:
    found = bounds(change(SMALL))
    assert not found.ranks
    assert found.gain == 0 == found.kappa


def test_a_few_neurons_prove_a_ranking_but_no_gain() -> None:
    found = bounds(INSTANCES["reference"][0])
    assert found.ranks and found.gain == 0


@given(factor=st.integers(2, 6))
def test_more_samples_prove_more(factor: int) -> None:
    few, many = bounds(SMALL), bounds(replace(SMALL, batch=factor * SMALL.batch))
    assert many.kappa > few.kappa
    assert many.rare_norm < few.rare_norm and many.frequent.own_low > few.frequent.own_low


@given(delta=st.floats(1e-9, 0.004))
def test_certainty_costs(delta: float) -> None:
    safer = replace(SMALL, delta=delta)
    assert safer.p < SMALL.p and bounds(safer).kappa < bounds(SMALL).kappa


def test_growth_is_proved_to_be_linear_up_to_the_longest_training() -> None:
    most = longest(SMALL)
    assert bounds(replace(SMALL, steps=most)).linear
    assert not bounds(replace(SMALL, steps=most + 1)).linear
    assert longest(replace(SMALL, init_std=1.0)) == 0


def test_kappa_does_not_fall_with_rho_where_samples_abound() -> None:
    """Theta(rho): steps that grow with rho and batches that grow with rho, at equal steps times learning rate."""

    def kappa(alpha: float) -> float:
        setting = replace(SMALL.setting, alpha=alpha, eta=10 * alpha)
        return float(bounds(Instance(setting, round(4000 / alpha), round(6.4 / alpha), init_std=1e-9)).kappa)

    kappas = [kappa(alpha) for alpha in (0.1, 0.05, 0.02, 0.01)]
    assert max(kappas) / min(kappas) < 1.2


@settings(max_examples=1, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_floor_and_ceiling_enclose_those_of_networks_within_the_bounds(seed: int) -> None:
    """Any network whose weights obey the bounds: its B-exp and U, from its own weights, lie within ours."""
    found, setting = bounds(SMALL), SMALL.setting
    network, gates, labels, kinds = a_network(found, setting, np.random.default_rng(seed))
    frequent = torch.tensor([True, True, True, False] * 2)
    assert tolerance_floor(replace(network, analog=~frequent), gates, labels, kinds) >= float(found.floor)
    assert tolerance_ceiling(network, gates, labels, kinds) <= float(found.ceiling)


def a_network(
    found: Bounds, setting: Setting, rng: np.random.Generator
) -> tuple[Network, torch.Tensor, torch.Tensor, torch.Tensor]:
    """A network with random weights within the bounds, l = 1, on its four kinds of inputs."""
    basis = np.eye(setting.d)
    tokens = np.concatenate([[basis[0], -basis[0], basis[1], -basis[1]], basis[2:]])
    signs = np.repeat([1.0, -1.0], setting.N_F + setting.N_R)
    rare = np.tile([0] * setting.N_F + [1] * setting.N_R, 2)
    low = max(float(found.step), float(found.initial))
    weights = np.empty((setting.experts, setting.m, setting.d))
    for expert in range(setting.experts):
        kind = found.rare if rare[expert] else found.frequent
        weights[expert, :, 2:] = rng.uniform(-low, float(kind.other), (setting.m, setting.d - 2))
        weights[expert, :, 1 - rare[expert]] = (
            rng.uniform(-low, float(kind.leaked), setting.m) * signs[expert]
        )
        active = rng.integers(
            math.ceil(kind.active * setting.m), math.floor((1 - kind.active) * setting.m) + 1
        )
        own = rng.uniform(float(kind.own_low), float(kind.own_high), setting.m)
        own[active:] = rng.uniform(-float(found.initial), 0, setting.m - active)
        weights[expert, :, rare[expert]] = own * signs[expert]
    gates = torch.zeros(4, setting.experts, setting.tokens, dtype=torch.float64)
    for shown, (kind_, label) in enumerate(((0, 1.0), (0, -1.0), (1, 1.0), (1, -1.0))):
        for expert in range(setting.experts):
            own_token = rare[expert] == kind_ and signs[expert] == label
            token = 2 * kind_ + (label < 0) if own_token else rng.integers(4, setting.tokens)
            gates[shown, expert, token] = 1.0
    network = Network(
        torch.from_numpy(weights),
        torch.from_numpy(tokens),
        torch.from_numpy(signs),
        torch.ones(setting.experts, dtype=torch.bool),
    )
    labels = torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=torch.float64)
    return network, gates, labels, torch.tensor([0, 0, 1, 1])


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("batch", 0, r"instance\.batch is 0: give a whole number of at least 1"),
        ("steps", 1.5, r"instance\.steps is 1\.5: give a whole number"),
        ("delta", 1.0, r"instance\.delta is 1\.0: give a number above 0 and below 1"),
        ("init_std", 0.0, r"instance\.init_std is 0\.0: give a finite number above 0"),
        ("router_noise", math.nan, r"instance\.router_noise is nan: give a finite number above 0"),
        ("setting", Setting(n=4), r"setting\.l is 4: the theorem needs fewer than the n = 4 tokens"),
    ],
)
def test_bad_input(field: str, value: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        replace(SMALL, **{field: value})
