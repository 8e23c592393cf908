"""How much noise does a whole network tolerate, and how much more with some experts digital?

Floor and ceiling are what proved statements give for a network and some inputs. They are evaluated in float64, without
bounds on the rounding, so that a floor is no proof. The gain that ball arithmetic certifies is in derivations/gain.

Inputs are of several kinds (frequent and rare ones of a class, say); the network tolerates a noise magnitude c if the
mean accuracy of every kind is at least 1 - failure.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

import torch
from jaxtyping import Bool
from torch import Tensor

from theory.functions import Q, sqrt
from theory.moments import relu_third_moment, relu_variance
from theory.setting import Setting
from theory.tolerance.bounds import TINY, independent, inverse_scale, largest, margins, pointwise, probability
from theory.tolerance.formulas import error_bound, ideal_frequent_sd, ideal_third
from theory.tolerance.network import Gates, Network, WMax, idealised
from theory.tolerance.terms import Terms, terms_of

T = TypeVar("T")

FAILURE = 0.05  # 1 minus the mean accuracy of .95 that defines the tolerance
FIRST_FACTOR = 1.1  # from one c to the next in the search of `predicted_tolerance`
LAST_FACTOR = 1 + 2**-20  # where that search ends: its relative error


def tolerance_floor(
    network: Network,
    gates: Gates,
    labels: Tensor,
    kinds: Tensor,
    failure: float = FAILURE,
    *,
    bias_correction: bool = False,
) -> float:
    """c up to which every kind of input has a mean accuracy of at least 1 - failure   [B-mean, averaged over inputs].

    kinds: (inputs,), any whole numbers, equal for inputs of the same kind.

    The accuracy is that of exactly these inputs, in expectation over the noise.
    """
    probability("failure", failure)

    def floor(terms: Terms) -> Tensor:
        def holds(low: Tensor, high: Tensor) -> Tensor:
            ends = low.expand_as(terms.margin), high.expand_as(terms.margin)
            return terms.most_error(*ends).mean(0, keepdim=True) <= failure

        each = pointwise(terms, failure)
        noisy = each[each.isfinite()]
        return largest(holds, noisy.mean(0, keepdim=True) if len(noisy) else each[:1])

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
    """c from which on some kind of input has a mean accuracy below 1 - failure   [U, averaged over inputs]."""
    probability("failure", failure)

    def ceiling(terms: Terms) -> Tensor:
        def holds(low: Tensor, high: Tensor) -> Tensor:
            ends = low.expand_as(terms.margin), high.expand_as(terms.margin)
            return independent(terms).least_error(*ends).mean(0, keepdim=True) > failure

        return 1 / largest(holds, inverse_scale(terms).mean(0, keepdim=True))

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
    """c at which the predicted mean accuracy of some kind falls below 1 - failure   [P].

    The search goes up from the floor.
    """
    probability("failure", failure)
    parts = _by_kind(independent, network, gates, labels, kinds, bias_correction)

    def passes(c: float) -> bool:
        for terms in parts:
            at = torch.full_like(terms.margin, c)
            error = Q((terms.mean(at) / sqrt(terms.variance(at))).nan_to_num(nan=-math.inf))
            if float(error.mean()) > failure:
                return False
        return True

    low = tolerance_floor(network, gates, labels, kinds, failure, bias_correction=bias_correction)
    if low == 0 or math.isinf(low):
        return low
    factor = FIRST_FACTOR
    while factor > LAST_FACTOR:  # goes up while c passes, then in finer steps
        if passes(low * factor):
            low *= factor
            if low > 1 / TINY:
                return math.inf
        else:
            factor = sqrt(factor)
    return float(low)


def gain_floor(
    network: Network,
    digital: Bool[Tensor, " experts"],
    gates: Gates,
    labels: Tensor,
    kinds: Tensor,
    failure: float = FAILURE,
) -> float:
    """Floor of the factor by which making `digital` experts digital raises the tolerance   [Gain, U].

    network: the placement to compare with, usually all analog.

    0 if the tolerance of `network` is not bounded.
    """
    placed = replace(network, analog=network.analog & ~digital)
    ceiling = tolerance_ceiling(network, gates, labels, kinds, failure)
    return tolerance_floor(placed, gates, labels, kinds, failure) / ceiling


def linear_gain(
    setting: Setting, w_max: WMax = "layer", active: int | None = None, failure: float = FAILURE
) -> float:
    """gamma with MaxNN's gain at least gamma rho for every rho >= setting.rho, in `idealised` networks   [Gain].

    In float64; derivations/gain certifies a smaller gamma.

    With all experts analog, a rare input errs with probability above `failure` for all c >= margin/(rho sd quantile).
    With the frequent specialists digital, the tolerance is at least a constant, whatever rho.
    0 where Berry-Esseen says nothing.
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


def _by_kind(
    bound: Callable[[Terms], T],
    network: Network,
    gates: Gates,
    labels: Tensor,
    kinds: Tensor,
    bias_correction: bool,
) -> list[T]:
    return [
        bound(terms_of(network, gates[kinds == kind], labels[kinds == kind], bias_correction=bias_correction))
        for kind in kinds.unique()
    ]
