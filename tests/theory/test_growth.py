"""Does growth in closed form agree with gradient descent on the network, over all samples of the task at once?"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from monte_carlo import FAILURE
from scipy import stats
from torch import Tensor

from theory.growth import (
    adam_moments,
    adam_rate,
    adam_step,
    class_margin,
    dead_probability,
    growth_rate,
    knee,
    late_ratio,
    leakage,
    logistic_time,
    momentum_step,
    norm_ratio,
    own_gate,
    own_token_weight,
    ratio_correction,
    saturating_weight,
    token_choice_gate,
    weight_ratio,
)

D = 5
OWN_SCORE = 2.0
seeds = st.integers(0, 2**32 - 1)
alphas = st.floats(0.05, 0.45)
sizes = st.integers(1, 3)  # of specialists and neurons
Loss = Callable[[Tensor], Tensor]


def hinge(margins: Tensor) -> Tensor:
    return torch.relu(1 - margins)


def logistic(margins: Tensor) -> Tensor:
    return torch.nn.functional.softplus(-margins)


@dataclass
class Network:
    """The setting with n = l = 2 in float64: a sample is (y o_1 or y o_2, one of the others).

    Experts are in this order: frequent specialists of sign +, of sign -, then rare specialists likewise.
    """

    alpha: float
    frequent: int = 1
    rare: int = 1
    m: int = 2
    chosen: int | None = None  # experts of a token under token choice; None: expert choice
    spread: float = 0.0  # of the router's weights on irrelevant tokens
    seed: int = 0
    weights: Tensor = field(init=False)  # (k, m, d)

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(self.seed)
        counts = (self.frequent, self.frequent, self.rare, self.rare)
        self.own = torch.repeat_interleave(torch.tensor([0, 0, 1, 1]), torch.tensor(counts))
        self.signs = torch.repeat_interleave(torch.tensor([1.0, -1, 1, -1]), torch.tensor(counts)).double()
        k = len(self.own)
        self.directions = self.signs[:, None] * torch.eye(D, dtype=torch.float64)[self.own]  # of own tokens
        routers = OWN_SCORE * self.directions
        routers[:, 2:] += self.spread * torch.randn(k, D - 2, generator=generator, dtype=torch.float64)
        labels, kinds, others = torch.cartesian_prod(
            torch.tensor([1, -1]), torch.tensor([0, 1]), torch.arange(2, D)
        ).T
        basis = torch.eye(D, dtype=torch.float64)
        self.labels, self.kinds = labels.double(), kinds
        self.probability = self.frequency(kinds) / (2 * (D - 2))
        self.tokens = torch.stack([self.labels[:, None] * basis[kinds], basis[others]], 1)  # (samples, 2, d)
        scores = torch.einsum("kd,njd->nkj", routers, self.tokens)
        if self.chosen is None:
            self.gates = scores.softmax(2)
        else:
            top = scores.topk(self.chosen, 1)
            self.gates = torch.zeros_like(scores).scatter(1, top.indices, top.values.softmax(1))
        self.weights = 1e-2 * torch.randn(k, self.m, D, generator=generator, dtype=torch.float64)

    def margins(self, weights: Tensor) -> Tensor:
        outputs = torch.relu(torch.einsum("krd,njd->nkjr", weights, self.tokens)).mean(-1)
        return self.labels * torch.einsum("k,nkj,nkj->n", self.signs, self.gates, outputs)

    def descent(self, loss: Loss = hinge) -> Tensor:
        """Minus the gradient of the expected loss."""
        weights = self.weights.clone().requires_grad_()
        (self.probability * loss(self.margins(weights))).sum().backward()
        assert weights.grad is not None
        return -weights.grad

    def train(self, steps: int, eta: float, loss: Loss = hinge) -> None:
        for _ in range(steps):
            self.weights = self.weights + eta * self.descent(loss)

    def along(self, directions: Tensor) -> Tensor:
        """Weights on a token of each expert, (k, m)."""
        return torch.einsum("krd,kd->kr", self.weights, directions)

    def gate_on(self, kind: int) -> Tensor:
        """Mean gate of a_s o_kind over the samples that show it, (k,)."""
        shown = (self.kinds == kind)[:, None] & (self.labels[:, None] == self.signs)
        return (self.gates[:, :, 0] * shown).sum(0) / shown.sum(0)

    def frequency(self, kinds: Tensor) -> Tensor:
        return torch.tensor([1 - self.alpha, self.alpha], dtype=torch.float64)[kinds]

    def gate_on_own(self) -> Tensor:
        return torch.where(self.own == 0, self.gate_on(0), self.gate_on(1))


@pytest.mark.claim("G")
@given(alpha=alphas, frequent=sizes, rare=sizes, m=sizes, seed=seeds, steps=st.integers(1, 12))
def test_active_neurons_grow_linearly_on_their_own_token(
    alpha: float, frequent: int, rare: int, m: int, seed: int, steps: int
) -> None:
    network = Network(alpha, frequent, rare, m, spread=0.5, seed=seed)
    before, eta = network.along(network.directions), 0.05
    network.train(steps, eta)
    assert (network.margins(network.weights) < 1).all()
    rates = growth_rate(network.frequency(network.own), network.gate_on_own(), eta, m)[:, None]
    expected = own_token_weight(steps, rates, before)
    active = before > 0
    assert torch.allclose(network.along(network.directions)[active], expected[active], rtol=1e-11, atol=0)


@pytest.mark.claim("G")
@given(alpha=alphas, seed=seeds, steps=st.integers(1, 12))
def test_effect_two_rare_specialists_learn_the_frequent_token_that_they_select(
    alpha: float, seed: int, steps: int
) -> None:
    network = Network(alpha, 2, 2, 3, spread=0.5, seed=seed)
    frequent = network.signs[:, None] * torch.eye(D, dtype=torch.float64)[0]
    before, own_before = network.along(frequent), network.along(network.directions)
    network.train(steps, 0.05)
    gained = network.along(frequent) - before
    own = network.along(network.directions) - own_before
    both = (before > 0) & (own_before > 0) & (network.own == 1)[:, None]
    expected = leakage((1 - alpha) / alpha, network.gate_on(0), network.gate_on(1))[:, None].expand_as(own)
    assert torch.allclose(gained[both] / own[both], expected[both], rtol=1e-9, atol=0)


@pytest.mark.claim("G")
@given(w=st.floats(0.1, 10), w_rare=st.floats(0.1, 10), leaked=st.floats(0, 5))
def test_effect_two_lowers_the_norm_ratio(w: float, w_rare: float, leaked: float) -> None:
    norms = np.hypot(w, 0), np.hypot(w_rare, leaked * w_rare)
    assert norm_ratio(w / w_rare, leaked) == pytest.approx(norms[0] / norms[1], rel=1e-12)


@pytest.mark.claim("G")
@pytest.mark.parametrize("m", [1, 2, 4])
def test_effect_three_dead_specialists(m: int) -> None:
    own = np.random.default_rng(m).standard_normal((100_000, m))
    dead = int((own <= 0).all(1).sum())
    assert stats.binomtest(dead, len(own), dead_probability(m)).pvalue >= FAILURE


@pytest.mark.claim("G")
@given(
    rho=st.floats(1, 100),
    rate=st.floats(1e-3, 1),
    initial=st.floats(1e-6, 1e-2),
    initial_rare=st.floats(1e-6, 1e-2),
    steps=st.integers(1, 1000),
)
def test_the_correction_separates_the_ratio_from_rho(
    rho: float, rate: float, initial: float, initial_rare: float, steps: int
) -> None:
    frequent = own_token_weight(steps, rho * rate, initial)
    rare = own_token_weight(steps, rate, initial_rare)
    correction = ratio_correction(steps, rho, rate, initial, initial_rare)
    assert frequent / rare == pytest.approx(rho + correction, rel=1e-12)
    assert abs(correction) <= (initial + rho * initial_rare) / (rate * steps)


def aligned(network: Network, active: dict[tuple[int, int], int]) -> None:
    """Weights of 1e-9 on the own token in so many neurons of each (kind, sign). Elsewhere they are 0 and never grow."""
    own = torch.zeros(len(network.own), network.m, dtype=torch.float64)
    for expert, (kind, sign) in enumerate(zip(network.own.tolist(), network.signs.tolist(), strict=True)):
        own[expert, : active[kind, int(sign)]] = 1e-9
    network.weights = own[:, :, None] * network.directions[:, None, :]


@pytest.mark.claim("G")
@given(
    alpha=alphas,
    frequent=sizes,
    rare=sizes,
    active=st.fixed_dictionaries({(kind, sign): st.integers(1, 4) for kind in (0, 1) for sign in (1, -1)}),
    steps=st.integers(1, 400),
)
def test_weights_saturate_at_the_knee_of_their_class_and_sign(
    alpha: float, frequent: int, rare: int, active: dict[tuple[int, int], int], steps: int
) -> None:
    m, eta = 4, 0.5
    network = Network(alpha, frequent, rare, m)
    aligned(network, active)
    gate = float(own_gate(OWN_SCORE, 1.0))
    assert torch.allclose(network.gate_on_own(), torch.full_like(network.signs, gate))
    network.train(steps, eta)
    weights = network.along(network.directions)
    for (kind, sign), neurons in active.items():
        frequency, number = ((1 - alpha), frequent) if kind == 0 else (alpha, rare)
        rate = growth_rate(frequency, gate, eta, m)
        end = knee(frequency, gate, number, neurons / m, eta, m)
        low = float(saturating_weight(steps, rate, end))
        mine = weights[(network.own == kind) & (network.signs == sign), :neurons]
        # A weight is at most one step beyond the knee [derivations/growth]; 1e-8 is for the start.
        assert (mine >= low - 1e-8).all() and (mine <= low + rate + 1e-8).all()
        shown = (network.kinds == kind) & (network.labels == sign)
        margins = network.margins(network.weights)[shown]
        expected = class_margin(mine.mean(), gate, number, neurons / m)
        assert torch.allclose(margins, expected.expand_as(margins), atol=1e-7)


@pytest.mark.claim("G")
@given(
    rho=st.floats(1, 100),
    start=st.floats(1, 100),
    factor=st.floats(1, 1000),
    before=st.floats(1e-6, 1),
    after=st.floats(1, 1000),
)
def test_the_ratio_falls_from_rho_to_its_late_value(
    rho: float, start: float, factor: float, before: float, after: float
) -> None:
    end = start * factor
    assert weight_ratio(start * before, rho, start, end) == pytest.approx(rho)
    between = min(start * after, end)
    assert weight_ratio(between, rho, start, end) == pytest.approx(rho * start / between)
    assert weight_ratio(end * after, rho, start, end) == pytest.approx(rho / factor)


@pytest.mark.claim("G")
@given(alpha=alphas, frequent=sizes, rare=sizes, q=st.floats(0.1, 1), q_rare=st.floats(0.1, 1))
def test_the_late_ratio_is_that_of_the_knees(
    alpha: float, frequent: int, rare: int, q: float, q_rare: float
) -> None:
    gate, gate_rare = 0.9, 0.7
    first = knee(1 - alpha, gate, frequent, q, 0.2, 8)
    last = knee(alpha, gate_rare, rare, q_rare, 0.2, 8)
    rate_ratio = (1 - alpha) / alpha * gate / gate_rare
    expected = late_ratio(frequent, rare, q, q_rare, gate / gate_rare)
    assert weight_ratio(2 * max(first, last), rate_ratio, first, last) == pytest.approx(expected)


@given(scores=st.lists(st.floats(-5, 5), min_size=1, max_size=6))
@pytest.mark.claim("G")
def test_own_gate_is_the_softmax(scores: list[float]) -> None:
    expected = torch.tensor(scores, dtype=torch.float64).softmax(0)[0]
    assert own_gate(scores[0], sum(map(math.exp, scores[1:]))) == pytest.approx(float(expected), rel=1e-12)


gradients = st.lists(st.floats(-1, 1).filter(lambda g: abs(g) > 1e-3), min_size=1, max_size=20)


@pytest.mark.claim("G-linear")
@given(gradients=gradients, momentum=st.floats(0, 0.95), decay=st.floats(0, 0.5), kappa=st.floats(1e-3, 1e3))
def test_momentum_is_that_of_pytorch_and_linear(
    gradients: list[float], momentum: float, decay: float, kappa: float
) -> None:
    eta = 0.1
    parameter = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.SGD([parameter], lr=eta, momentum=momentum, weight_decay=decay)
    state = scaled = (0.0, 0.0)
    for gradient in gradients:
        parameter.grad = torch.tensor([-gradient], dtype=torch.float64)
        optimiser.step()
        state = momentum_step(state, gradient, eta, momentum, decay)
        scaled = momentum_step(scaled, kappa * gradient, eta, momentum, decay)
        assert state[1] == pytest.approx(parameter.item(), rel=1e-9, abs=1e-12)
        assert scaled[1] == pytest.approx(kappa * state[1], rel=1e-9, abs=1e-12 * kappa)


@pytest.mark.claim("G-logistic")
@given(alpha=alphas, frequent=sizes, eta=st.floats(0.05, 1), steps=st.integers(1, 60))
def test_logistic_growth(alpha: float, frequent: int, eta: float, steps: int) -> None:
    network = Network(alpha, frequent, 1, 1)
    aligned(network, dict.fromkeys(((0, 1), (0, -1), (1, 1), (1, -1)), 1))
    network.train(steps, eta, logistic)
    gate = float(own_gate(OWN_SCORE, 1.0))
    weights = network.along(network.directions)[:, 0]
    for kind, (frequency, number) in enumerate(((1 - alpha, frequent), (alpha, 1))):
        rate, slope = growth_rate(frequency, gate, eta, 1), class_margin(1.0, gate, number, 1.0)
        weight = float(weights[network.own == kind][0])
        # dt/dw rises with w: a step in w, at most rate/2 long, takes between 1 and exp(slope rate/2) units of t.
        time = float(logistic_time(weight, rate, slope))
        assert steps - 1e-6 * steps <= time <= steps * math.exp(slope * rate / 2) * (1 + 1e-6)


@pytest.mark.claim("G-logistic")
@given(rho=st.floats(1, 100), weight=st.floats(1e-3, 3), slope=st.floats(0.1, 2))  # exp(600) is finite
def test_the_logistic_ratio_is_at_most_rho(rho: float, weight: float, slope: float) -> None:
    rare = logistic_time(weight, 1.0, slope)
    assert logistic_time(rho * weight, rho, slope) >= rare * (1 - 1e-12)


@pytest.mark.claim("G-logistic")
def test_the_logistic_ratio_ends_at_the_late_ratio() -> None:
    slope, slope_rare, weight = 2.0, 0.5, 300.0  # of the frequent neurons
    time = float(logistic_time(weight, 9.0, slope))
    rare = np.linspace(0, 4.3 * weight, 100_001)[1:]
    late = rare[np.searchsorted(logistic_time(rare, 1.0, slope_rare), time)]
    assert weight / late == pytest.approx(slope_rare / slope, rel=0.02)  # logarithms of rho remain
    assert slope_rare / slope == late_ratio(4, 1, 0.5, 0.5)


@pytest.mark.claim("G-adam")
@given(gradients=gradients, kappa=st.floats(1e-2, 1))
def test_adam_is_that_of_pytorch_and_blind_to_scale(gradients: list[float], kappa: float) -> None:
    eta, betas, epsilon = 0.1, (0.9, 0.999), 1e-8
    parameter = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.Adam([parameter], lr=eta, betas=betas, eps=epsilon)
    weight, moments, scaled = 0.0, (0.0, 0.0), (0.0, 0.0)
    for number, gradient in enumerate(gradients, 1):
        parameter.grad = torch.tensor([-gradient], dtype=torch.float64)
        optimiser.step()
        moments = adam_moments(moments, gradient, *betas)
        scaled = adam_moments(scaled, kappa * gradient, *betas)
        weight += float(adam_step(moments, number, eta, *betas, epsilon))
        assert weight == pytest.approx(parameter.item(), rel=1e-9, abs=1e-9)
        assert adam_step(scaled, number, eta, *betas, kappa * epsilon) == pytest.approx(
            adam_step(moments, number, eta, *betas, epsilon), rel=1e-9
        )


@pytest.mark.claim("G-adam")
@given(
    gradient=st.floats(1e-6, 1) | st.floats(-1, -1e-6),
    rho=st.floats(1, 100),
    epsilon=st.floats(1e-12, 1e-2),
    steps=st.integers(1, 50),
)
def test_adam_takes_steps_of_size_eta_for_constant_gradients(
    gradient: float, rho: float, epsilon: float, steps: int
) -> None:
    moments = (0.0, 0.0)
    for number in range(1, steps + 1):
        moments = adam_moments(moments, gradient, 0.9, 0.999)
        step = adam_step(moments, number, 0.1, 0.9, 0.999, epsilon)
        assert step == pytest.approx(adam_rate(gradient, 0.1, epsilon), rel=1e-9)
    ratio = adam_rate(rho * gradient, 0.1, epsilon) / adam_rate(gradient, 0.1, epsilon)
    assert 1 - 1e-12 <= ratio <= min(rho, 1 + epsilon / abs(gradient)) * (1 + 1e-12)


@pytest.mark.claim("G-adam")
@given(alpha=alphas)
def test_under_adam_own_weights_grow_equally(alpha: float) -> None:
    eta, m = 1e-3, 2
    network = Network(alpha, 1, 1, m)
    aligned(network, dict.fromkeys(((0, 1), (0, -1), (1, 1), (1, -1)), m))
    gradient = torch.einsum("krd,kd->kr", network.descent(), network.directions)
    expected = growth_rate(network.frequency(network.own), network.gate_on_own(), 1.0, m)[:, None].expand_as(
        gradient
    )
    assert torch.allclose(gradient, expected, rtol=1e-12)  # the gradient that Adam sees
    parameter = network.weights.clone().requires_grad_()
    optimiser = torch.optim.Adam([parameter], lr=eta, eps=1e-15)  # so that 0 gradients make no steps
    for _ in range(20):
        network.weights = parameter.detach().clone()
        parameter.grad = -network.descent()
        optimiser.step()
    network.weights = parameter.detach()
    grown = network.along(network.directions)
    assert torch.allclose(grown, torch.full_like(grown, 20 * eta), rtol=1e-6)


@pytest.mark.claim("G-token")
@given(alpha=alphas, frequent=sizes, rare=sizes, extra=st.integers(0, 2), m=sizes, seed=seeds)
def test_token_choice_grows_by_the_gate_of_the_token(
    alpha: float, frequent: int, rare: int, extra: int, m: int, seed: int
) -> None:
    # Beyond its specialists a token also chooses experts of the other kind, score 0, but none of the other sign.
    chosen = min(max(frequent, rare) + extra, frequent + 2 * rare, rare + 2 * frequent)
    network = Network(alpha, frequent, rare, m, chosen, spread=0.2, seed=seed)
    numbers = torch.tensor([frequent, rare], dtype=torch.float64)[network.own]
    gates = token_choice_gate(torch.tensor(OWN_SCORE, dtype=torch.float64), numbers, chosen)
    assert torch.allclose(network.gate_on_own(), gates, rtol=1e-12)
    before = network.along(network.directions)
    network.train(5, 0.05)
    rates = growth_rate(network.frequency(network.own), gates, 0.05, m)[:, None]
    expected, active = own_token_weight(5, rates, before), before > 0
    assert torch.allclose(network.along(network.directions)[active], expected[active], rtol=1e-11, atol=0)


@pytest.mark.claim("G-token")
@given(score=st.floats(0, 20), rare=st.integers(1, 4), more=st.integers(0, 4), others=st.integers(0, 4))
def test_the_ratio_of_the_gates(score: float, rare: int, more: int, others: int) -> None:
    frequent, chosen = rare + more, rare + more + others
    gate, gate_rare = (token_choice_gate(score, number, chosen) for number in (frequent, rare))
    scores = torch.tensor([score] * frequent + [0.0] * others, dtype=torch.float64)
    assert gate == pytest.approx(float(scores.softmax(0)[0]), rel=1e-12)
    assert rare / frequent * (1 - 1e-12) <= gate / gate_rare <= 1 + 1e-12
