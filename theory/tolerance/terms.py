"""What is the noisy output made of? y f~ of every input as a constant and a sum of noisy ReLUs."""

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from theory.errors import InputError
from theory.functions import Phi, exp, log, phi, pi, sqrt
from theory.moments import relu_bias, relu_mean, relu_third_moment, relu_variance
from theory.tolerance.formulas import error_bound, failure_bound, relu_exponential
from theory.tolerance.network import Gates, Network


@dataclass(frozen=True)
class Terms:
    """y f~ of every input as `constant` + the sum over terms of coefficient ReLU(a + c sigma z).

    constant: (inputs,), what digital experts give, less what rounding takes at most.
    coefficient, a, sigma: (inputs, terms) each.
    lipschitz: (inputs,), Lipschitz constant of y f~ at c = 1.
    independent: True if the z of all terms are independent; an ADC that clips or correlated tokens make them dependent.
    correct: True if each term's bias is subtracted, which makes the mean the clean margin   [C].
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
        """Clean margin y f(X), (inputs,)."""
        return self.constant + (self.coefficient * torch.relu(self.a)).sum(-1)

    @cached_property
    def bias(self) -> Tensor:
        """The most by which noise lowers the mean at c = 1: a ReLU gains sigma/sqrt(2 pi) at most."""
        if self.correct:
            return torch.zeros_like(self.margin)
        return (self.coefficient.clamp(max=0).abs() * self.sigma).sum(-1) / sqrt(2 * pi(self.sigma))

    def mean(self, c: Tensor) -> Tensor:
        """Mean of y f~ at the noise magnitudes c, (inputs,)."""
        shift = self.coefficient * relu_bias(self.a, c[:, None] * self.sigma)
        return self.margin if self.correct else self.margin + shift.sum(-1)

    def least_mean(self, low: Tensor, high: Tensor) -> Tensor:
        """A lower bound on the mean for every c from low to high.

        It follows from the mean at low and the least slope in between. A bias has the slope sigma phi(a/(c sigma)),
        which grows with c.
        """
        if self.correct:
            return self.margin
        end = torch.where(self.coefficient > 0, low[:, None], high[:, None])
        ratio = (self.a / (end * self.sigma)).nan_to_num(nan=0.0)
        slope = (self.coefficient * self.sigma * phi(ratio)).sum(-1)
        return self.mean(low) + slope.clamp(max=0) * (high - low)

    def variance(self, c: Tensor) -> Tensor:
        """Variance of y f~ at the noise magnitudes c, (inputs,), if its terms are independent."""
        return self._variance(self.a, c[:, None] * self.sigma)

    def _variance(self, a: Tensor, sigma: Tensor) -> Tensor:
        variance = relu_variance(a, sigma).clamp(min=0)
        # By rounding the variance would exceed sigma^2 where a is much larger than sigma.
        return (self.coefficient**2 * torch.minimum(variance, sigma**2)).sum(-1)

    def most_error(self, low: Tensor, high: Tensor) -> Tensor:
        """An upper bound on P(y f~ <= 0) for every c from low to high   [B-mean; B-exp if terms are independent]."""
        mean = self.least_mean(low, high).clamp(min=0)
        error = failure_bound(mean, self.lipschitz * high)
        return torch.minimum(error, self._exponential(1 / high, 1 / low)) if self.independent else error

    def _exponential(self, low: Tensor, high: Tensor) -> Tensor:
        """An upper bound on E exp(-kappa y f~/c) for every 1/c from low to high, with one kappa for all   [B-exp].

        A term exp(-kappa coefficient ReLU(a/c + sigma z)) is monotone in 1/c, and its bias is monotone in |a|/c.
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
        """A lower bound on P(y f~ <= 0) for every c with 1/c from low to high   [U].

        The sign of y f~ is the sign of y f~/c, whose terms coefficient ReLU(a/c + sigma z) have a limit for c to
        infinity, where 1/c is 0.
        """
        ends = self.a * low[:, None], self.a * high[:, None]
        least, most = torch.minimum(*ends), torch.maximum(*ends)
        if self.correct:
            mean = torch.maximum(self.margin * low, self.margin * high)
        else:
            # A term has the slope a Phi(a/(c sigma)) in 1/c, which is monotone: its largest value is at an end.
            slopes = [
                torch.where(self.sigma > 0, self.a * Phi(each / self.sigma), torch.relu(self.a))
                for each in ends
            ]
            slope = self.constant + torch.maximum(*(self.coefficient * each for each in slopes)).sum(-1)
            start = self.constant * low + (self.coefficient * relu_mean(ends[0], self.sigma)).sum(-1)
            mean = start + slope.clamp(min=0) * (high - low)
        sds = [sqrt(self._variance(each, self.sigma)) for each in (least, most)]
        third = (self.coefficient.abs() ** 3 * relu_third_moment(most, self.sigma)).sum(-1)
        # Q(mean/sd) is smallest for the largest mean. If that mean is positive the smaller sd counts, else the larger.
        error = error_bound(mean / torch.where(mean > 0, sds[0], sds[1]), third, sds[0])
        return error.nan_to_num(nan=0.0).clamp(min=0)  # without any noise 0/0: nothing is said


def terms_of(network: Network, gates: Gates, labels: Tensor, *, bias_correction: bool = False) -> Terms:
    """y f~ of each input as a sum of noisy ReLUs, one for each analog neuron and selected token.

    An ADC that clips adds a second ReLU for each. bias_correction: see `Terms.correct`.
    """
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
        constant = constant - gates.sum(-1) @ adc_loss(network)
    squared = torch.einsum("nkt,ktu,nku->n", gates, network.lipschitz_squared, gates)
    weighed = gates[:, network.analog].flatten(0, 1) > 0
    together = weighed.double().T @ weighed.double() > 0
    independent = network.adc_bound is None and not (together & network.correlated).any()
    coefficient, a, sigma = parts
    return Terms(constant, coefficient, a, sigma, sqrt(squared), independent, bias_correction)


def adc_loss(network: Network) -> Float[Tensor, " experts"]:
    """The most that rounding takes from an analog expert's output: half a step, averaged over neurons   [H]."""
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
