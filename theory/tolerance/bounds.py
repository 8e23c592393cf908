"""How much noise does one input tolerate, or every input at once? Bounds and a prediction.

Statements B, B-mean, B-exp, Bu, U, P, H and C of docs/theory.md, for given inputs and over the noise: a label y = +1 or
-1 is predicted correctly if y f~(X) > 0, and an accuracy is the probability of that.

The noise magnitude c is dimensionless. B, B-mean, B-exp and Bu hold for all c from 0 to what they return, U for all c
from what it returns. Ranges of c are never sampled: variance, third moment and the slope of the mean are monotone in
what changes, so that their values at both ends of a range bound them inside [derivations/bound, derivations/upper].
"""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from theory.errors import InputError
from theory.functions import Phi, pi, sqrt
from theory.moments import relu_bias
from theory.tolerance.formulas import concentration, tail_events, tolerable_noise
from theory.tolerance.network import Gates, Network
from theory.tolerance.terms import Terms, adc_loss, terms_of

SEARCH_ROUNDS = 64  # relative error about 2^-20
TINY = 1e-30  # stands for a margin of 0; its inverse stands for infinity


def margins(network: Network, gates: Gates, labels: Tensor) -> Float[Tensor, " inputs"]:
    """Clean y f(X) of each input: exact weights, converters on.

    Weights in a dead zone count as 0, and the rounding of an ADC costs the most that it can.
    """
    return terms_of(network, gates, labels).margin


def mean_shift(network: Network, c: float) -> Float[Tensor, "experts tokens"]:
    """How much noise raises each expert's mean output for each token: (1/m) sum_r b(w_r . x_t)   [M1, C]."""
    shift = relu_bias(network.preactivations, c * network.token_noise)
    if network.adc_bound is not None:
        excess = network.preactivations - network.adc_bound[..., None]
        shift = shift - relu_bias(excess, c * network.token_noise)
    return shift.mean(1) * network.analog[:, None]


def pointwise_bound(network: Network, gates: Gates, labels: Tensor, delta: float) -> Float[Tensor, " inputs"]:
    """c up to which each input is classified correctly with probability 1 - delta at least   [B].

    0 for a margin that is not positive, inf where no noise reaches the output.
    """
    return pointwise(terms_of(network, gates, labels), probability("delta", delta))


def exact_mean_bound(
    network: Network, gates: Gates, labels: Tensor, delta: float
) -> Float[Tensor, " inputs"]:
    """`pointwise_bound` with the exact mean of y f~ in place of the worst bias: never below B   [B-mean].

    The first c at which the mean is no longer tau L c. Beyond it the condition may hold again. At most 2^64 B.
    """
    terms, tau = terms_of(network, gates, labels), concentration(probability("delta", delta))

    def holds(low: Tensor, high: Tensor) -> Tensor:
        return terms.least_mean(low, high) >= tau * terms.lipschitz * high

    return largest(holds, pointwise(terms, delta))


def exponential_bound(
    network: Network, gates: Gates, labels: Tensor, delta: float, *, bias_correction: bool = False
) -> Float[Tensor, " inputs"]:
    """The bound by Markov's inequality for exp(-kappa y f~), whose mean is known exactly: tighter yet   [B-exp].

    Where tokens correlate or an ADC clips, terms depend on each other, and the bound is that of B-mean.
    bias_correction: True if every analog expert's `mean_shift` is subtracted digitally.
    """
    terms = terms_of(network, gates, labels, bias_correction=bias_correction)
    bound = pointwise(terms, probability("delta", delta))
    return largest(lambda low, high: terms.most_error(low, high) <= delta, bound)


def corrected_bound(network: Network, gates: Gates, labels: Tensor, delta: float) -> Float[Tensor, " inputs"]:
    """B when every analog expert's known `mean_shift` is subtracted digitally: no bias remains   [C]."""
    return pointwise(terms_of(network, gates, labels, bias_correction=True), probability("delta", delta))


def uniform_bound(network: Network, margin: float, delta: float, *, one_label: int = 0) -> float:
    """c up to which *every* input of this margin is correct, with probability 1 - delta of the programming   [Bu].

    one_label: how many tokens occur with one of the labels only, so that one tail counts for them. The reference task
        has 4, its discriminative tokens.

    Gates have to sum to at most 1 for each expert, as under expert choice.
    """
    probability("delta", delta)
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
    loss = adc_loss(network).sum() if network.adc_step is not None else 0.0
    return float(tolerable_noise(margin - loss, bias, lipschitz, concentration(delta / events)).clamp(min=0))


def upper_bound(
    network: Network, gates: Gates, labels: Tensor, failure: float, *, bias_correction: bool = False
) -> Float[Tensor, " inputs"]:
    """c_U such that for every c >= c_U each input is misclassified with probability above `failure`   [U].

    inf where no such c is found, in particular if the bias of experts of the label's sign prevails.
    Tokens that an expert weighs in one input have to be orthogonal, and there is no ADC.
    """
    terms = independent(terms_of(network, gates, labels, bias_correction=bias_correction))
    probability("failure", failure)
    return 1 / largest(lambda low, high: terms.least_error(low, high) > failure, inverse_scale(terms))


def predicted_accuracy(
    network: Network, gates: Gates, labels: Tensor, c: float | Tensor, *, bias_correction: bool = False
) -> Float[Tensor, " inputs"]:
    """P(y f~ > 0) of each input if y f~ were normal, with the exact mean and variance   [P].

    c: one magnitude for all inputs, or one for each.
    """
    terms = independent(terms_of(network, gates, labels, bias_correction=bias_correction))
    c = torch.as_tensor(c, dtype=torch.float64, device=terms.margin.device).expand_as(terms.margin)
    mean, sd = terms.mean(c), sqrt(terms.variance(c))
    return Phi(torch.where(sd > 0, mean / sd, mean.sign() * math.inf).nan_to_num(nan=-math.inf))


def probability(name: str, value: float) -> float:
    if not 0 < value < 1:
        raise InputError(f"{name} is {value!r}: give a number above 0 and below 1")
    return value


def independent(terms: Terms) -> Terms:
    """The terms themselves; InputError if they are not independent, as U and P need them."""
    if not terms.independent:
        raise InputError("network: U and P need no ADC, and tokens of one input whose noises are independent")
    return terms


def pointwise(terms: Terms, delta: float) -> Tensor:
    """B of the terms; 0 for a margin that is not positive."""
    bound = tolerable_noise(terms.margin, terms.bias, terms.lipschitz, concentration(delta))
    return torch.where(terms.margin > 0, bound, 0.0)


def inverse_scale(terms: Terms) -> Tensor:
    """1/c for a c at which the noise is about the margin. The search for U begins there."""
    return terms.lipschitz / terms.margin.abs().clamp(min=TINY)


def largest(holds: Callable[[Tensor, Tensor], Tensor], scale: Tensor) -> Tensor:
    """The largest x found such that `holds` is true of every part of a cover of [0, x] by intervals; elementwise.

    Steps double where they succeed and halve where they do not. The first step is just below `scale`: where `scale`
    is the bound itself, rounding must not fail that step.
    """
    low, step = torch.zeros_like(scale), scale * (1 - 1e-12)
    for _ in range(SEARCH_ROUNDS):
        further = step.isfinite() & holds(low, low + step)
        low = torch.where(further, low + step, low)
        step = torch.where(further, 2 * step, step / 2)
    return torch.where(scale.isfinite(), low, scale)
