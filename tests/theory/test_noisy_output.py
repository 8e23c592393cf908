"""Do the noisy output and the bounds made of it agree with their definitions, written out neuron by neuron?"""

import math
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from theory.errors import InputError
from theory.hardware import PROGRAMMING_NOISE
from theory.tolerance import Network, margins, mean_shift, pointwise_bound, predicted_accuracy, uniform_bound

D, M, INPUTS = 6, 3, 3
SIGNS = (1.0, 1.0, -1.0, -1.0)
BASIS = torch.eye(D, dtype=torch.float64)
TOKENS = torch.stack([BASIS[0], -BASIS[0], BASIS[1], -BASIS[1], *BASIS[2:]])
few = settings(max_examples=25)
cases = {
    "seed": st.integers(0, 2**31),
    "w_max": st.sampled_from(["layer", "column"]),
    "programming": st.sampled_from(sorted(PROGRAMMING_NOISE)),
}


@dataclass
class Term:
    """A term coefficient * ReLU(a + c sigma z) of y f~; z belongs to one neuron and token."""

    coefficient: float
    a: float
    sigma: float

    def mean(self, c: float) -> float:
        if self.sigma == 0:
            return self.coefficient * max(self.a, 0.0)
        ratio, sigma = self.a / (c * self.sigma), c * self.sigma
        return self.coefficient * float(self.a * stats.norm.cdf(ratio) + sigma * stats.norm.pdf(ratio))

    def variance(self, c: float) -> float:
        if self.sigma == 0:
            return 0.0
        ratio, sigma = self.a / (c * self.sigma), c * self.sigma
        second = (self.a**2 + sigma**2) * stats.norm.cdf(ratio) + self.a * sigma * stats.norm.pdf(ratio)
        return float(self.coefficient**2 * second) - self.mean(c) ** 2


def case(seed: int, w_max: Any, programming: str, converters: bool = False) -> tuple[Network, Tensor, Tensor]:
    """Four experts, of which the last is digital, and gates on three to five tokens each."""
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn(len(SIGNS), M, D, generator=generator, dtype=torch.float64)
    weights[0] *= 5
    analog = torch.tensor([True, True, True, False])
    network = Network(weights, TOKENS, torch.tensor(SIGNS), analog, w_max, programming)
    if converters:
        network = network.with_converters(dac_bits=3, adc_bits=4, input_bound=0.9, lam=0.7)
    scores = torch.randn(INPUTS, len(SIGNS), len(TOKENS), generator=generator, dtype=torch.float64)
    labels = torch.tensor([1.0, -1.0, 1.0], dtype=torch.float64)
    scores[labels > 0, :, 1:4:2] = -math.inf  # an input shows o_1 and o_2, or both with the other sign
    scores[labels < 0, :, 0:4:2] = -math.inf
    top = scores.topk(3 + seed % 3, -1)
    gates = torch.zeros_like(scores).scatter(-1, top.indices, top.values.softmax(-1))
    return network, gates, labels


def sigmas(network: Network, s: int, r: int) -> tuple[list[float], list[float]]:
    """Target and standard deviation at c = 1 of every weight of a neuron."""
    model, row = PROGRAMMING_NOISE[network.programming], network.weights[s, r]
    largest = float((row if network.w_max == "column" else network.weights[s]).abs().max())
    targets, deviations = [], []
    for w in row.tolist():
        share = torch.tensor(abs(w) / largest, dtype=torch.float64)
        dead = float(share) < model.dead_zone
        targets.append(0.0 if dead and network.analog[s] else w)
        deviations.append(0.0 if dead or not network.analog[s] else largest * float(model.sigma(share)))
    return targets, deviations


def expert_terms(network: Network, s: int, t: int, weight: float) -> list[Term]:
    """Output of expert s for token t, times `weight`. An ADC makes it min(ReLU(u), B) = ReLU(u) - ReLU(u - B)."""
    analog = bool(network.analog[s])
    shown = network.analog_tokens if analog and network.analog_tokens is not None else network.tokens
    terms = []
    for r in range(M):
        targets, deviations = sigmas(network, s, r)
        a = sum(w * x for w, x in zip(targets, shown[t].tolist(), strict=True))
        sigma = math.sqrt(sum((w * x) ** 2 for w, x in zip(deviations, shown[t].tolist(), strict=True)))
        terms.append(Term(weight / M, a, sigma))
        if analog and network.adc_bound is not None:
            terms.append(Term(-weight / M, a - float(network.adc_bound[s, r]), sigma))
    return terms


def written_out(network: Network, gates: Tensor, label: float) -> list[Term]:
    """The terms of y f~ for gates (experts, tokens), but for what an ADC's rounding takes away."""
    return [
        term
        for s, sign in enumerate(SIGNS)
        for t, gate in enumerate(gates[s].tolist())
        if gate > 0
        for term in expert_terms(network, s, t, label * sign * gate)
    ]


def clean(terms: list[Term]) -> float:
    return sum(term.coefficient * max(term.a, 0.0) for term in terms)


def rounding(network: Network, gates: Tensor) -> float:
    if network.adc_step is None:
        return 0.0
    halves = [float(step.mean()) / 2 for step in network.adc_step]
    return sum(float(gates[s].sum()) * halves[s] for s in range(len(SIGNS)) if network.analog[s])


def lipschitz_squared(network: Network, s: int, gates: Tensor) -> float:
    """Squared Lipschitz constant of one expert's output: a sum over pairs of tokens with positive covariance.

    gates: (tokens,).
    """
    shown = (network.tokens if network.analog_tokens is None else network.analog_tokens).tolist()
    total = 0.0
    for r in range(M):
        _, deviations = sigmas(network, s, r)
        for t, x in enumerate(shown):
            for u, other in enumerate(shown):
                products = (w**2 * a * b for w, a, b in zip(deviations, x, other, strict=True))
                total += float(gates[t] * gates[u]) * max(sum(products), 0.0) / M**2
    return total


@pytest.mark.claim("B")
@pytest.mark.claim("H")
@few
@given(converters=st.booleans(), delta=st.floats(0.01, 0.5), **cases)
def test_margin_and_pointwise_bound(
    seed: int, w_max: str, programming: str, converters: bool, delta: float
) -> None:
    network, gates, labels = case(seed, w_max, programming, converters)
    found, bounds = margins(network, gates, labels), pointwise_bound(network, gates, labels, delta)
    for n, label in enumerate(labels.tolist()):
        terms = written_out(network, gates[n], label)
        margin = clean(terms) - rounding(network, gates[n])
        bias = sum(-term.coefficient * term.sigma for term in terms if term.coefficient < 0) / math.sqrt(
            2 * math.pi
        )
        squared = sum(lipschitz_squared(network, s, gates[n, s]) for s in range(len(SIGNS)))
        assert float(found[n]) == pytest.approx(margin, rel=1e-9, abs=1e-12)
        expected = max(margin, 0.0) / (bias + math.sqrt(2 * math.log(1 / delta) * squared))
        assert float(bounds[n]) == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.claim("P")
@pytest.mark.claim("B-mean")
@few
@given(c=st.floats(0.05, 3), **cases)
def test_predicted_accuracy(seed: int, w_max: str, programming: str, c: float) -> None:
    network, gates, labels = case(seed, w_max, programming)
    found = predicted_accuracy(network, gates, labels, c)
    each = predicted_accuracy(network, gates, labels, torch.tensor([c, 2 * c, 3 * c], dtype=torch.float64))
    for n, label in enumerate(labels.tolist()):
        terms = written_out(network, gates[n], label)
        for value, magnitude in ((found[n], c), (each[n], (n + 1) * c)):
            mean, variance = (
                sum(moment(term, magnitude) for term in terms) for moment in (Term.mean, Term.variance)
            )
            expected = stats.norm.cdf(mean / math.sqrt(variance))
            assert float(value) == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.claim("P")
def test_without_noise_the_prediction_is_certain() -> None:
    network, gates, _ = case(0, "layer", "constant")
    gates[2] = 0  # y f = 0, which is no correct answer
    right = margins(network, gates, torch.ones(INPUTS)).sign()
    right[2] = 1
    for labels, accuracy in ((right, [1.0, 1.0, 0.0]), (-right, [0.0, 0.0, 0.0])):
        assert predicted_accuracy(network, gates, labels, 0.0).tolist() == accuracy


@pytest.mark.claim("P")
def test_tokens_of_opposite_sign_in_one_expert_are_refused() -> None:
    network, gates, labels = case(0, "layer", "constant")
    gates[0, 0] = torch.tensor([0.5, 0.5, *[0.0] * D])  # o_1 and -o_1 see the same noise
    with pytest.raises(InputError, match="noises are independent"):
        predicted_accuracy(network, gates, labels, 1.0)
    gates[0, 0, 1] = 0
    assert predicted_accuracy(network, gates, labels, 1.0).isfinite().all()


@pytest.mark.claim("B")
@pytest.mark.claim("Bu")
def test_bounds_without_margin_or_noise() -> None:
    network, gates, _ = case(0, "layer", "constant")
    gates[2] = 0
    right = margins(network, gates, torch.ones(INPUTS)).sign()
    right[2] = 1
    digital = replace(network, analog=torch.zeros(len(SIGNS), dtype=torch.bool))
    right_digital = margins(digital, gates, torch.ones(INPUTS)).sign()
    right_digital[2] = 1
    assert pointwise_bound(digital, gates, right_digital, 0.1).tolist() == [math.inf, math.inf, 0.0]
    assert pointwise_bound(network, gates, -right, 0.1).tolist() == [0.0, 0.0, 0.0]
    assert [uniform_bound(network, margin, 0.1) for margin in (-1.0, 0.0)] == [0.0, 0.0]
    assert [uniform_bound(digital, margin, 0.1) for margin in (-1.0, 0.0, 0.5)] == [0.0, 0.0, math.inf]


@pytest.mark.claim("C")
@few
@given(converters=st.booleans(), c=st.floats(0.05, 3), **cases)
def test_mean_shift(seed: int, w_max: str, programming: str, converters: bool, c: float) -> None:
    network, _, _ = case(seed, w_max, programming, converters)
    found = mean_shift(network, c)
    for s in range(len(SIGNS)):
        for t in range(len(TOKENS)):
            terms = expert_terms(network, s, t, 1.0)
            expected = sum(term.mean(c) for term in terms) - clean(terms)
            assert float(found[s, t]) == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.claim("Bu")
@few
@given(
    converters=st.booleans(),
    margin=st.floats(0.1, 10),
    delta=st.floats(0.01, 0.5),
    one_label=st.integers(0, 6),
    **cases,
)
def test_uniform_bound(
    seed: int, w_max: str, programming: str, converters: bool, margin: float, delta: float, one_label: int
) -> None:
    network, _, _ = case(seed, w_max, programming, converters)
    tokens, analog = range(len(TOKENS)), [s for s in range(len(SIGNS)) if network.analog[s]]
    only = torch.eye(len(TOKENS), dtype=torch.float64)
    noise = {
        s: [
            sum(max(term.coefficient, 0.0) * term.sigma for term in expert_terms(network, s, t, 1.0))
            for t in tokens
        ]
        for s in analog
    }
    shifts = {s: max(noise[s]) / math.sqrt(2 * math.pi) for s in analog}
    by_sign = [sum(shifts[s] for s in analog if SIGNS[s] == sign) for sign in (1, -1)]
    bias = max(by_sign) if network.adc_bound is None else sum(by_sign)
    lipschitz = sum(max(math.sqrt(lipschitz_squared(network, s, only[t])) for t in tokens) for s in analog)
    events = len(analog) * (2 * len(TOKENS) - one_label)
    expected = (margin - rounding(network, torch.ones(len(SIGNS), 1))) / (
        bias + math.sqrt(2 * math.log(events / delta)) * lipschitz
    )
    found = uniform_bound(network, margin, delta, one_label=one_label)
    assert found == pytest.approx(max(expected, 0.0), rel=1e-9)
