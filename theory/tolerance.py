"""How much programming noise a network tolerates: proved bounds and a prediction [THEORY.md, B, B', Bu, U, P, H, C].

f(X) = sum_s a_s sum_t G_st (1/m) sum_r ReLU(w_sr . x_t), and every weight of an analog expert gets independent noise
N(0, c^2 sigma^2). A label y = +1 or -1 is predicted correctly if y f~(X) > 0. Everything here is for given inputs, and
over the noise: an accuracy is a probability, or the mean of several inputs' probabilities.

The noise magnitude c is dimensionless. B, B', Bu hold for all c from 0 to what they return, U for all c from what it
returns. Ranges of c are never sampled: variance, third moment and the slope of the mean are monotone in what changes,
so that their values at both ends of a range bound them inside [derivations/bound, derivations/upper]. In float64.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, TypeVar, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from theory.errors import InputError, require
from theory.functions import Phi, Q, Value, exp, log, phi, pi, sqrt
from theory.growth import own_gate
from theory.hardware import PROGRAMMING_NOISE, Hardware, largest_weights, programming_sigma, quantise_input
from theory.moments import relu_bias, relu_mean, relu_third_moment, relu_variance
from theory.setting import Setting

WMax = Literal["layer", "column"]
T = TypeVar("T")
Gates = Float[Tensor, "inputs experts tokens"]

# Of the Berry-Esseen theorem for independent summands that need not be identically distributed: Shevtsova, "An
# improvement of convergence rate estimates in the Lyapunov theorem", Doklady Mathematics 82 (2010) 862-864.
BERRY_ESSEEN = 0.56
FAILURE = 0.05  # of the tolerance's accuracy of .95
OWN_SCORE = 6.0  # of a specialised router for its own token; for the others 0 [THEORY.md, section 1]
ROUNDS = 64  # of a search, which leave a relative error of about 2^-20
TINY = 1e-30  # in place of a margin of 0; and its inverse in place of infinity
ORTHOGONAL = 1e-9  # largest |x . x'| of tokens that count as orthogonal


# The formulas, for symbols and tensors alike


def concentration(delta: Value) -> Value:
    """tau with exp(-tau^2/2) = delta: a function of Lipschitz constant L falls tau L below its mean so rarely."""
    return sqrt(2 * log(1 / delta))


def tolerable_noise(margin: Value, bias: Value, lipschitz: Value, tau: Value) -> Value:
    """c = margin/(bias + tau lipschitz)   [(B)]."""
    return margin / (bias + tau * lipschitz)


def tail_events(analog: Value, tokens: Value, one_label: Value) -> Value:
    """Pairs of an analog expert and a token, two tails each; one for tokens that come with one label   [(Bu)]."""
    return analog * (2 * tokens - one_label)


def failure_bound(mean: Value, lipschitz: Value) -> Value:
    """exp(-(mean/lipschitz)^2/2), an upper bound on P(y f~ <= 0) for a mean above 0   [(B')]."""
    return exp(-((mean / lipschitz) ** 2) / 2)


def error_bound(ratio: Value, third: Value, sd: Value) -> Value:
    """Q(mean/sd) - BERRY_ESSEEN third/sd^3, a lower bound on P(y f~ <= 0)   [(U)]."""
    return Q(ratio) - BERRY_ESSEEN * third / sd**3


def relu_exponential(theta: Value, a: Value, sigma: Value) -> Value:
    """E exp(theta ReLU(a + sigma z)): Q(a/sigma) where it is off, a shifted normal where it is on   [(B'')].

    sigma above 0.
    """
    return Q(a / sigma) + exp(theta * a + (theta * sigma) ** 2 / 2) * Phi(a / sigma + theta * sigma)


@dataclass(frozen=True)
class Network:
    """One layer of experts with fixed output signs, some of them on analog hardware.

    weights (k, m, d); tokens (T, d), the distinct ones; signs (k,), +1 or -1; analog (k,), bool.
    w_max: the largest |w| that noise is relative to, of the expert's "layer" (M_s) or of a neuron, the layer's
        "column" (M_sr).
    programming: the name of a model of theory.hardware.PROGRAMMING_NOISE; the theory's is "constant".
    analog_tokens (T, d): what the DAC makes of the tokens; None for no DAC.
    adc_step, adc_bound (k, m): an output of an analog neuron is clipped to +-adc_bound and then rounded by half an
        adc_step at most; None for no ADC.
    """

    weights: Float[Tensor, "experts neurons inputs"]
    tokens: Float[Tensor, "tokens inputs"]
    signs: Float[Tensor, " experts"]
    analog: Bool[Tensor, " experts"]
    w_max: WMax = "layer"
    programming: str = "constant"
    analog_tokens: Float[Tensor, "tokens inputs"] | None = None
    adc_step: Float[Tensor, "experts neurons"] | None = None
    adc_bound: Float[Tensor, "experts neurons"] | None = None

    def __post_init__(self) -> None:
        for name in ("weights", "tokens", "signs", "analog_tokens", "adc_step", "adc_bound"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, torch.as_tensor(value, dtype=torch.float64))
        object.__setattr__(self, "analog", torch.as_tensor(self.analog, device=self.weights.device))
        if self.weights.ndim != 3 or not self.weights.numel() or not self.weights.isfinite().all():
            raise InputError("network.weights: give finite numbers of shape (experts, neurons, inputs)")
        k, m, d = self.weights.shape
        shapes = {
            "tokens": (*self.tokens.shape[:1], d),
            "signs": (k,),
            "analog": (k,),
            "analog_tokens": self.tokens.shape,
            "adc_step": (k, m),
            "adc_bound": (k, m),
        }
        for name, shape in shapes.items():
            value = getattr(self, name)
            if value is not None and tuple(value.shape) != tuple(shape):
                raise InputError(f"network.{name} of shape {tuple(value.shape)}: give {tuple(shape)}")
        if (self.signs.abs() != 1).any():
            raise InputError("network.signs: give +1 or -1 for each expert")
        if self.analog.dtype != torch.bool:
            raise InputError("network.analog: give True or False for each expert")
        choices = {"w_max": get_args(WMax), "programming": tuple(PROGRAMMING_NOISE)}
        checks = {
            name: (getattr(self, name) in allowed, f"one of {', '.join(allowed)}")
            for name, allowed in choices.items()
        }
        require(self, "network", checks)
        if (self.adc_step is None) != (self.adc_bound is None):
            raise InputError("network.adc_step and network.adc_bound: give both or neither")

    def with_converters(
        self, *, dac_bits: int | None, adc_bits: int | None, input_bound: float, lam: float
    ) -> "Network":
        """The same with converters: DAC bound `input_bound`, ADC bound lam * input_bound * w_max."""
        hardware = replace(self._hardware, dac_bits=dac_bits, adc_bits=adc_bits)
        bound = lam * input_bound * largest_weights(self.weights, hardware).squeeze(-1)
        return replace(
            self,
            analog_tokens=quantise_input(self.tokens, input_bound, dac_bits),
            adc_bound=None if adc_bits is None else bound,
            adc_step=None if adc_bits is None else bound / (2 ** (adc_bits - 1) - 1),
        )

    @cached_property
    def correlated(self) -> Bool[Tensor, "tokens tokens"]:
        """Of which pairs of different tokens the noises w~ . x of some analog neuron are not independent."""
        scaled = self.noise[:, :, None, :] * self._inputs[:, None]
        size = sqrt((scaled**2).sum(-1))
        product = torch.einsum("kmtd,kmud->kmtu", scaled, scaled).abs()
        exceeds = product > ORTHOGONAL * size[..., None] * size[:, :, None]
        return exceeds.flatten(0, 1).any(0).fill_diagonal_(False)

    @property
    def _hardware(self) -> Hardware:
        return Hardware(self.programming, w_max=self.w_max, tile_size=max(self.weights.shape))

    @cached_property
    def noise(self) -> Float[Tensor, "experts neurons inputs"]:
        """Standard deviation of every weight at c = 1, in units of the weights; 0 in digital experts."""
        return programming_sigma(self.weights, self._hardware) * self.analog[:, None, None]

    @cached_property
    def _inputs(self) -> Float[Tensor, "experts tokens inputs"]:
        analog = self.tokens if self.analog_tokens is None else self.analog_tokens
        return torch.where(self.analog[:, None, None], analog, self.tokens)

    @cached_property
    def preactivations(self) -> Float[Tensor, "experts neurons tokens"]:
        """w . x without noise: of the programmed target, in a dead zone 0, and of the tokens as the DAC gives them."""
        written = (self.noise > 0) | ~self.analog[:, None, None]
        return torch.einsum("kmd,ktd->kmt", self.weights * written, self._inputs)

    @cached_property
    def token_noise(self) -> Float[Tensor, "experts neurons tokens"]:
        """Standard deviation of w~ . x at c = 1; with constant noise M_sr |x|."""
        return sqrt(torch.einsum("kmd,ktd->kmt", self.noise**2, self._inputs**2))

    @cached_property
    def lipschitz_squared(self) -> Float[Tensor, "experts tokens tokens"]:
        """P with G' P G the squared Lipschitz constant, at c = 1, of sum_t G_t (1/m) sum_r ReLU(w~_r . x_t).

        (1/m^2) sum_r of the positive parts of Cov(w~_r . x_t, w~_r . x_u): which ReLUs are active may be any set,
        and leaving out what is negative exceeds all of them. For orthonormal tokens and constant noise it is
        diagonal with M_s^2/m, or sum_r M_sr^2/m^2   [(B); (H) bounds it with the largest sigma].
        """
        scaled = self.noise[:, :, None, :] * self._inputs[:, None]
        covariance = torch.einsum("kmtd,kmud->kmtu", scaled, scaled)
        return covariance.clamp(min=0).sum(1) / self.weights.shape[1] ** 2


@dataclass(frozen=True)
class _Terms:
    """y f~ of every input as `constant` + sum over terms of coefficient ReLU(a + c sigma z), (inputs, terms) each.

    lipschitz: of y f~ at c = 1. independent: whether the terms' z are; not where an ADC clips or tokens correlate.
    correct: whether each term's bias is subtracted, which makes the mean the clean margin   [(C)].
    """

    constant: Tensor
    coefficient: Tensor
    a: Tensor
    sigma: Tensor
    lipschitz: Tensor
    independent: bool
    correct: bool

    @cached_property
    def margin(self) -> Tensor:
        return self.constant + (self.coefficient * torch.relu(self.a)).sum(-1)

    @cached_property
    def bias(self) -> Tensor:
        """At c = 1, the most by which noise lowers the mean: a ReLU gains sigma/sqrt(2 pi) at most."""
        if self.correct:
            return torch.zeros_like(self.margin)
        return (self.coefficient.clamp(max=0).abs() * self.sigma).sum(-1) / sqrt(2 * pi(self.sigma))

    def mean(self, c: Tensor) -> Tensor:
        shift = self.coefficient * relu_bias(self.a, c[:, None] * self.sigma)
        return self.margin if self.correct else self.margin + shift.sum(-1)

    def least_mean(self, low: Tensor, high: Tensor) -> Tensor:
        """A lower bound on the mean for every c from low to high: the mean at low, and its least slope in between.

        A bias has the slope sigma phi(a/(c sigma)), which grows with c.
        """
        if self.correct:
            return self.margin
        end = torch.where(self.coefficient > 0, low[:, None], high[:, None])
        ratio = (self.a / (end * self.sigma)).nan_to_num(nan=0.0)
        slope = (self.coefficient * self.sigma * phi(ratio)).sum(-1)
        return self.mean(low) + slope.clamp(max=0) * (high - low)

    def variance(self, c: Tensor) -> Tensor:
        return self._variance(self.a, c[:, None] * self.sigma)

    def _variance(self, a: Tensor, sigma: Tensor) -> Tensor:
        variance = relu_variance(a, sigma).clamp(min=0)
        return (self.coefficient**2 * torch.minimum(variance, sigma**2)).sum(
            -1
        )  # which rounding exceeds for a >> sigma

    def most_error(self, low: Tensor, high: Tensor) -> Tensor:
        """An upper bound on P(y f~ <= 0) for every c from low to high   [(B'); (B'') where terms are independent]."""
        mean = self.least_mean(low, high).clamp(min=0)
        error = failure_bound(mean, self.lipschitz * high)
        return torch.minimum(error, self._exponential(1 / high, 1 / low)) if self.independent else error

    def _exponential(self, low: Tensor, high: Tensor) -> Tensor:
        """E exp(-kappa y f~/c) at most, for every 1/c from low to high, with one good kappa for all of them   [(B'')].

        A term exp(-kappa coefficient ReLU(a/c + sigma z)) is monotone in 1/c; so is its bias, in |a|/c.
        """
        kappa = (self.mean(1 / low) * low / (self.variance(1 / low) * low**2)).clamp(min=0)[:, None]
        ends = self.a * low[:, None], self.a * high[:, None]
        least, most = torch.minimum(*ends), torch.maximum(*ends)
        worst = torch.where(self.coefficient > 0, least, most)
        noisy = self.sigma > 0
        theta = -kappa * self.coefficient
        noise = log(relu_exponential(theta, worst, self.sigma.where(noisy, 1)).clamp(min=1e-300))
        exponent = torch.where(noisy, noise, theta * torch.relu(worst)).sum(-1)
        constant = torch.minimum(self.constant * low, self.constant * high)
        if self.correct:
            near = torch.where(self.coefficient > 0, low[:, None], high[:, None])
            constant = constant - (self.coefficient * relu_bias(self.a * near, self.sigma)).sum(-1)
        return exp(exponent - kappa[:, 0] * constant).nan_to_num(nan=1.0)

    def least_error(self, low: Tensor, high: Tensor) -> Tensor:
        """A lower bound on P(y f~ <= 0) for every c with 1/c from low to high   [(U)].

        Of y f~/c, whose terms coefficient ReLU(a/c + sigma z) have a limit for c to infinity, where 1/c is 0.
        """
        ends = self.a * low[:, None], self.a * high[:, None]
        least, most = torch.minimum(*ends), torch.maximum(*ends)
        if self.correct:
            mean = torch.maximum(self.margin * low, self.margin * high)
        else:
            # A term's slope in 1/c is a Phi(a/(c sigma)), monotone; of the ends, the larger.
            slopes = [
                torch.where(self.sigma > 0, self.a * Phi(each / self.sigma), torch.relu(self.a))
                for each in ends
            ]
            slope = self.constant + torch.maximum(*(self.coefficient * each for each in slopes)).sum(-1)
            start = self.constant * low + (self.coefficient * relu_mean(ends[0], self.sigma)).sum(-1)
            mean = start + slope.clamp(min=0) * (high - low)
        sds = [sqrt(self._variance(each, self.sigma)) for each in (least, most)]
        third = (self.coefficient.abs() ** 3 * relu_third_moment(most, self.sigma)).sum(-1)
        # Q(mean/sd) is smallest for the largest mean; for the smaller sd if that is positive, else for the larger.
        error = error_bound(mean / torch.where(mean > 0, sds[0], sds[1]), third, sds[0])
        return error.nan_to_num(nan=0.0).clamp(min=0)  # without any noise 0/0: nothing is proved


def margins(network: Network, gates: Gates, labels: Tensor) -> Float[Tensor, " inputs"]:
    """Clean y f(X): converters are on, weights are exact but for dead zones, and the ADC's rounding costs its most."""
    return _terms(network, gates, labels).margin


def mean_shift(network: Network, c: float) -> Float[Tensor, "experts tokens"]:
    """How much noise raises each expert's mean output for each token: (1/m) sum_r b(w_r . x_t)   [(M1), (C)]."""
    shift = relu_bias(network.preactivations, c * network.token_noise)
    if network.adc_bound is not None:
        excess = network.preactivations - network.adc_bound[..., None]
        shift = shift - relu_bias(excess, c * network.token_noise)
    return shift.mean(1) * network.analog[:, None]


def pointwise_bound(network: Network, gates: Gates, labels: Tensor, delta: float) -> Float[Tensor, " inputs"]:
    """c up to which each input is classified correctly with probability 1 - delta at least   [(B)].

    0 for a margin that is not positive, inf where no noise reaches the output.
    """
    return _pointwise(_terms(network, gates, labels), _probability("delta", delta))


def exact_mean_bound(
    network: Network, gates: Gates, labels: Tensor, delta: float
) -> Float[Tensor, " inputs"]:
    """The same with the exact mean of y f~ in place of its worst bias: never below B   [(B')].

    The first c at which the mean is no longer tau L c; beyond, the condition may hold again. At most 2^64 B.
    """
    terms, tau = _terms(network, gates, labels), concentration(_probability("delta", delta))

    def holds(low: Tensor, high: Tensor) -> Tensor:
        return terms.least_mean(low, high) >= tau * terms.lipschitz * high

    return _largest(holds, _pointwise(terms, delta))


def exponential_bound(
    network: Network, gates: Gates, labels: Tensor, delta: float, *, bias_correction: bool = False
) -> Float[Tensor, " inputs"]:
    """The same by Markov's inequality for exp(-kappa y f~), whose mean is known exactly: tighter yet   [(B'')].

    Where tokens correlate or an ADC clips, which makes terms depend on each other, this is B'.
    """
    terms = _terms(network, gates, labels, bias_correction=bias_correction)
    bound = _pointwise(terms, _probability("delta", delta))
    return _largest(lambda low, high: terms.most_error(low, high) <= delta, bound)


def corrected_bound(network: Network, gates: Gates, labels: Tensor, delta: float) -> Float[Tensor, " inputs"]:
    """B when every analog expert's known `mean_shift` is subtracted digitally: no bias remains   [(C)]."""
    return _pointwise(_terms(network, gates, labels, bias_correction=True), _probability("delta", delta))


def uniform_bound(network: Network, margin: float, delta: float, *, one_label: int = 0) -> float:
    """c up to which, with probability 1 - delta of the programming, *every* input of such a margin is correct   [(Bu)].

    For gates that sum to at most 1 for each expert (expert choice). one_label: how many of the tokens occur with one
    of the labels only, the discriminative ones, so that for them one tail counts; 4 in the reference task.
    """
    _probability("delta", delta)
    tokens = len(network.tokens)
    if not 0 <= one_label <= tokens:
        raise InputError(f"one_label is {one_label!r}: give 0 to {tokens}, the number of tokens")
    if margin <= 0 or not network.analog.any():
        return 0.0 if margin <= 0 else math.inf
    events = tail_events(int(network.analog.sum()), tokens, one_label)
    lipschitz = sqrt(network.lipschitz_squared.diagonal(dim1=1, dim2=2)).amax(-1).sum()
    shifts = network.token_noise.mean(1).amax(-1) / sqrt(2 * pi(network.signs))
    if network.adc_bound is None:
        bias = torch.stack([shifts[network.signs == sign].sum() for sign in (1, -1)]).max()
    else:
        bias = shifts.sum()  # an ADC that clips lowers the mean of the other sign
    loss = _adc_loss(network).sum() if network.adc_step is not None else 0.0
    return float(tolerable_noise(margin - loss, bias, lipschitz, concentration(delta / events)).clamp(min=0))


def upper_bound(
    network: Network, gates: Gates, labels: Tensor, failure: float, *, bias_correction: bool = False
) -> Float[Tensor, " inputs"]:
    """c_U such that for every c >= c_U each input is misclassified with probability above `failure`   [(U)].

    inf where that is not proved of any c: in particular if the bias of experts of the label's sign prevails.
    Tokens that an expert weighs in one input have to be orthogonal; no ADC.
    """
    terms = _independent(_terms(network, gates, labels, bias_correction=bias_correction))
    _probability("failure", failure)
    return 1 / _largest(lambda low, high: terms.least_error(low, high) > failure, _inverse_scale(terms))


def predicted_accuracy(
    network: Network, gates: Gates, labels: Tensor, c: float | Tensor, *, bias_correction: bool = False
) -> Float[Tensor, " inputs"]:
    """P(y f~ > 0) of each input at its c, or at one c, if y f~ were normal: exact mean and variance   [(P)]."""
    terms = _independent(_terms(network, gates, labels, bias_correction=bias_correction))
    c = torch.as_tensor(c, dtype=torch.float64, device=terms.margin.device).expand_as(terms.margin)
    mean, sd = terms.mean(c), sqrt(terms.variance(c))
    return Phi(torch.where(sd > 0, mean / sd, mean.sign() * math.inf).nan_to_num(nan=-math.inf))


# Of classes: the least of the kinds' mean accuracies has to be 1 - failure


def tolerance_floor(
    network: Network,
    gates: Gates,
    labels: Tensor,
    kinds: Tensor,
    failure: float = FAILURE,
    *,
    bias_correction: bool = False,
) -> float:
    """c up to which every kind of input (kinds (inputs,), any whole numbers) has mean accuracy 1 - failure at least.

    Of exactly these inputs, in expectation over the noise   [(B') for every input, averaged].
    """
    _probability("failure", failure)

    def floor(terms: _Terms) -> Tensor:
        def holds(low: Tensor, high: Tensor) -> Tensor:
            ends = low.expand_as(terms.margin), high.expand_as(terms.margin)
            return terms.most_error(*ends).mean(0, keepdim=True) <= failure

        each = _pointwise(terms, failure)
        noisy = each[each.isfinite()]
        return _largest(holds, noisy.mean(0, keepdim=True) if len(noisy) else each[:1])

    return min(map(float, _by_kind(floor, network, gates, labels, kinds, bias_correction)))


def tolerance_ceiling(
    network: Network,
    gates: Gates,
    labels: Tensor,
    kinds: Tensor,
    failure: float = FAILURE,
    *,
    bias_correction: bool = False,
) -> float:
    """c from which on some kind of input has a mean accuracy below 1 - failure   [(U) for every input, averaged]."""
    _probability("failure", failure)

    def ceiling(terms: _Terms) -> Tensor:
        def holds(low: Tensor, high: Tensor) -> Tensor:
            ends = low.expand_as(terms.margin), high.expand_as(terms.margin)
            return _independent(terms).least_error(*ends).mean(0, keepdim=True) > failure

        return 1 / _largest(holds, _inverse_scale(terms).mean(0, keepdim=True))

    return min(map(float, _by_kind(ceiling, network, gates, labels, kinds, bias_correction)))


def predicted_tolerance(
    network: Network,
    gates: Gates,
    labels: Tensor,
    kinds: Tensor,
    failure: float = FAILURE,
    *,
    bias_correction: bool = False,
) -> float:
    """c at which a kind's predicted mean accuracy falls below 1 - failure: by steps of 10 %, then to 2^-20   [(P)]."""
    _probability("failure", failure)
    parts = _by_kind(_independent, network, gates, labels, kinds, bias_correction)

    def passes(c: float) -> bool:
        for terms in parts:
            at = torch.full_like(terms.margin, c)
            error = Q((terms.mean(at) / sqrt(terms.variance(at))).nan_to_num(nan=-math.inf))
            if float(error.mean()) > failure:
                return False
        return True

    low, factor = (
        tolerance_floor(network, gates, labels, kinds, failure, bias_correction=bias_correction),
        1.1,
    )
    if low == 0 or math.isinf(low):
        return low
    while factor > 1 + 2**-20:  # steps up while it passes, then finer ones
        if passes(low * factor):
            low *= factor
            if low > 1 / TINY:
                return math.inf
        else:
            factor = sqrt(factor)
    return float(low)


def proved_gain(
    network: Network,
    digital: Bool[Tensor, " experts"],
    gates: Gates,
    labels: Tensor,
    kinds: Tensor,
    failure: float = FAILURE,
) -> float:
    """A proved lower bound on the factor by which making `digital` experts digital raises the tolerance   [(Cor), (U)].

    `network` holds the placement to compare with, usually all analog; 0 if its tolerance is not bounded.
    """
    placed = replace(network, analog=network.analog & ~digital)
    ceiling = tolerance_ceiling(network, gates, labels, kinds, failure)
    return tolerance_floor(placed, gates, labels, kinds, failure) / ceiling


def ideal_frequent_sd(terms: Value, m: Value, l: Value, variance: Value) -> Value:  # noqa: E741
    """Standard deviation of y f~/(c rho) that `terms` idealised ReLUs of frequent specialists give   [(Cor)]."""
    return sqrt(terms * variance) / (m * l)


def ideal_third(terms: Value, m: Value, l: Value, third: Value, rare: Value, rho: Value) -> Value:  # noqa: E741
    """At least the sum of third moments of y f~/(c rho): of frequent specialists, and of the others   [(Cor)].

    rare: the sum of |coefficient|^3 of the others, whose noise is 1/rho. ReLU(a + sigma z) differs by at most
    sigma |z - z'| from an independent copy: E |.|^3 <= sigma^3 E |z - z'|^3 = 8/sqrt(pi) sigma^3.
    """
    return terms * third / (m * l) ** 3 + rare * 8 / sqrt(pi(third)) / rho**3


def linear_gain(
    setting: Setting, w_max: WMax = "layer", active: int | None = None, failure: float = FAILURE
) -> float:
    """gamma with MaxNN's gain at least gamma rho for every rho >= setting.rho, in `idealised` networks   [(Cor)].

    All analog, a rare input errs with probability above `failure` for all c >= margin/(rho sd q), q below; with the
    frequent specialists digital the tolerance is at least a constant, whatever rho. 0 where Berry-Esseen says nothing.
    """
    network, gates, labels, kinds = idealised(setting, w_max, active)
    frequent = torch.tensor(([True] * setting.N_F + [False] * setting.N_R) * 2)
    noisy = int((network.token_noise[0, :, 4] > 0).sum())
    terms = 2 * setting.N_F * noisy * setting.l
    rare = noisy * float((gates[2, ~frequent] ** 3).sum()) / setting.m**3
    zero, one = torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64)
    sd = ideal_frequent_sd(terms, setting.m, setting.l, relu_variance(zero, one))
    third = ideal_third(terms, setting.m, setting.l, relu_third_moment(zero, one), rare, setting.rho)
    # The largest ratio of mean and sd at which error_bound is still `failure`.
    quantile = float(-torch.special.ndtri(failure - error_bound(torch.inf * one, third, sd)))
    if not quantile > 0:
        return 0.0
    placed = replace(network, analog=~frequent)
    floor = tolerance_floor(placed, gates, labels, kinds, failure)
    return floor * float(sd) * quantile / float(margins(network, gates, labels)[2])


def idealised(
    setting: Setting, w_max: WMax = "layer", active: int | None = None
) -> tuple[Network, Float[Tensor, "4 experts tokens"], Float[Tensor, " 4"], Tensor]:
    """The network that (G) tends to, all analog: network, gates, labels, kinds of its four kinds of input.

    Of a specialist's neurons `active` (default: half of them, the mean at random initialisation, rounded up) are its
    own token, times rho for the frequent ones, and the others 0. A specialist that does not find its token takes l
    others, with equal gates. Inputs: frequent (kind 0) and rare (kind 1), of either label.
    """
    active = (setting.m + 1) // 2 if active is None else active
    if not 1 <= active <= setting.m:
        raise InputError(f"active is {active!r}: give 1 to {setting.m}, the number of neurons")
    if setting.d - 2 < setting.l:
        raise InputError(f"setting.l is {setting.l}: there are only d - 2 = {setting.d - 2} other tokens")
    basis = torch.eye(setting.d, dtype=torch.float64)
    tokens = torch.stack([basis[0], -basis[0], basis[1], -basis[1], *basis[2:]])
    kind = torch.tensor([0] * setting.N_F + [1] * setting.N_R).repeat(2)
    signs = torch.tensor([1.0, -1.0], dtype=torch.float64).repeat_interleave(setting.N_F + setting.N_R)
    own = 2 * kind + (signs < 0)
    size = torch.where(kind == 0, setting.rho, 1.0)
    weights = torch.zeros(setting.experts, setting.m, setting.d, dtype=torch.float64)
    weights[:, :active] = (size[:, None] * tokens[own])[:, None]
    gates = torch.zeros(4, setting.experts, setting.tokens, dtype=torch.float64)
    gates[..., 4 : 4 + setting.l] = 1 / setting.l
    others = [0.0] * (setting.l - 1)
    for token in range(4):
        found = own == token
        gates[token, found] = 0
        gates[token, found, 4 : 4 + setting.l - 1] = float(own_gate(0.0, [OWN_SCORE, *others[1:]]))
        gates[token, found, token] = float(own_gate(OWN_SCORE, others))
    analog = torch.ones(setting.experts, dtype=torch.bool)
    labels = torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=torch.float64)
    return Network(weights, tokens, signs, analog, w_max), gates, labels, torch.tensor([0, 0, 1, 1])


# How


def _terms(network: Network, gates: Gates, labels: Tensor, *, bias_correction: bool = False) -> _Terms:
    gates, labels = _checked(network, gates, labels)
    k, m, _ = network.weights.shape
    selected = int((gates > 0).sum(-1).max()) if gates.numel() else 0
    weight, token = gates.topk(selected, -1)  # the other tokens have no weight
    expert = torch.arange(k, device=token.device)[:, None]
    a, sigma = (
        table.transpose(1, 2)[expert, token]  # (inputs, experts, selected, neurons)
        for table in (network.preactivations, network.token_noise)
    )
    coefficient = (
        labels[:, None, None, None] * network.signs[:, None, None] * weight[..., None] / m
    ).expand_as(a)
    digital = (coefficient * torch.relu(a))[:, ~network.analog]
    constant = digital.sum((1, 2, 3))
    parts = [each[:, network.analog].flatten(1) for each in (coefficient, a, sigma)]
    if network.adc_bound is not None:
        # min(ReLU(u), bound) = ReLU(u) - ReLU(u - bound)
        excess = (a - network.adc_bound[:, None])[:, network.analog].flatten(1)
        parts = [torch.cat(pair, 1) for pair in zip(parts, (-parts[0], excess, parts[2]), strict=True)]
        constant = constant - gates.sum(-1) @ _adc_loss(network)
    squared = torch.einsum("nkt,ktu,nku->n", gates, network.lipschitz_squared, gates)
    weighed = gates[:, network.analog].flatten(0, 1) > 0
    together = weighed.double().T @ weighed.double() > 0
    independent = network.adc_bound is None and not (together & network.correlated).any()
    coefficient, a, sigma = parts
    return _Terms(constant, coefficient, a, sigma, sqrt(squared), independent, bias_correction)


def _adc_loss(network: Network) -> Float[Tensor, " experts"]:
    """The most that rounding takes from an analog expert's output: half a step, on average over its neurons   [(H)]."""
    assert network.adc_step is not None
    return network.adc_step.mean(1) / 2 * network.analog


def _checked(network: Network, gates: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    gates = torch.as_tensor(gates, dtype=torch.float64)
    labels = torch.as_tensor(labels, dtype=torch.float64)
    shape = (len(labels), len(network.weights), len(network.tokens))
    if labels.ndim != 1 or (labels.abs() != 1).any():
        raise InputError("labels: give +1 or -1 for each input")
    if tuple(gates.shape) != shape:
        raise InputError(f"gates of shape {tuple(gates.shape)}: give {shape}, (inputs, experts, tokens)")
    if not (gates >= 0).all() or not gates.isfinite().all():
        raise InputError("gates: give finite numbers of at least 0")
    return gates, labels


def _probability(name: str, value: float) -> float:
    if not 0 < value < 1:
        raise InputError(f"{name} is {value!r}: give a number above 0 and below 1")
    return value


def _independent(terms: _Terms) -> _Terms:
    """The terms, which U and P need to be independent."""
    if not terms.independent:
        raise InputError("network: U and P need no ADC, and tokens of one input whose noises are independent")
    return terms


def _pointwise(terms: _Terms, delta: float) -> Tensor:
    """B of the terms: 0 for a margin that is not positive."""
    bound = tolerable_noise(terms.margin, terms.bias, terms.lipschitz, concentration(delta))
    return torch.where(terms.margin > 0, bound, 0.0)


def _inverse_scale(terms: _Terms) -> Tensor:
    """1/c for a c at which the noise is about the margin: where the search for U begins."""
    return terms.lipschitz / terms.margin.abs().clamp(min=TINY)


def _largest(holds: Callable[[Tensor, Tensor], Tensor], scale: Tensor) -> Tensor:
    """The largest x found such that `holds` of every part of a cover of [0, x] by intervals; elementwise.

    Steps double where they succeed and halve where they do not, from just below `scale`: where that is the bound
    itself, rounding must not fail the first step.
    """
    low, step = torch.zeros_like(scale), scale * (1 - 1e-12)
    for _ in range(ROUNDS):
        further = step.isfinite() & holds(low, low + step)
        low = torch.where(further, low + step, low)
        step = torch.where(further, 2 * step, step / 2)
    return torch.where(scale.isfinite(), low, scale)


def _by_kind(
    bound: Callable[[_Terms], T],
    network: Network,
    gates: Gates,
    labels: Tensor,
    kinds: Tensor,
    bias_correction: bool,
) -> list[T]:
    return [
        bound(_terms(network, gates[kinds == kind], labels[kinds == kind], bias_correction=bias_correction))
        for kind in kinds.unique()
    ]
