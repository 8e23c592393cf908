"""What is programming noise on one gated expert, or on a linear layer, expected to cost its model? [docs/theory.md].

(D) is about an expert. The noise of every weight is independent. To first order in what it does to gate and up,

    error of output i = sum_j (W_ij + sigma_ij xi_ij)(z_j + zeta_j) - W_ij z_j,   z = activation(gate x) * (up x),

where the zeta_j are independent, as every j has its own rows of gate and up. The expected damage of an expert is the
sum, over the tokens routed to it, of (routing weight)^2 times

- the expected squared length of the error, or
- with the gradient G of the loss at the layer's output, E (G . error)^2 / 2. The error adds this to the loss if the
  second derivative of the loss is G G^T [the empirical Fisher matrix of the token].

Both have the same form. Output i has the error variance sum_j product_variance(W_ij, sigma_ij, z_j, var zeta_j). The
projection on G has it with sum_i G_i W_ij for W_ij and sum_i G_i^2 sigma_ij^2 for sigma_ij^2.

(D-dense) is about a linear layer, whose inputs z have no noise: the second form without var zeta_j.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from theory.functions import Value
from theory.hardware import Hardware, programming_sigma


def product_variance(weight: Value, sigma: Value, mean: Value, variance: Value) -> Value:
    """Variance of w z for independent w and z.

    weight, sigma: mean and standard deviation of w.
    mean, variance: mean and variance of z.
    """
    return weight**2 * variance + sigma**2 * (mean**2 + variance)


def gated_variance(slope_gate: Value, slope_up: Value, gate_variance: Value, up_variance: Value) -> Value:
    """Variance of activation(g) u to first order.

    slope_gate, slope_up: derivatives of activation(g) u by g and by u.
    """
    return slope_gate**2 * gate_variance + slope_up**2 * up_variance


def expected_damage(
    x: Float[Tensor, "tokens hidden"],
    gate: Float[Tensor, "inner hidden"],
    up: Float[Tensor, "inner hidden"],
    down: Float[Tensor, "hidden inner"],
    hardware: Hardware,
    activation: Callable[[Tensor], Tensor],
    routing_weights: Float[Tensor, " tokens"],
    gradient: Float[Tensor, "tokens hidden"] | None = None,
) -> Float[Tensor, ""]:
    """Expected damage summed over the tokens routed to an expert.

    gate, up, down: weights of the expert. Each gets the programming noise of `hardware`, on tiles of its own.
    gradient: gradient of the loss at the layer's output. With it the damage is in units of the loss,
        without it in squared units of the expert's output.

    Converters and the dead zone of a programming model are left out, as they are no noise.
    """
    sigma_gate, sigma_up, sigma_down = (programming_sigma(each, hardware) for each in (gate, up, down))
    before, factor = x @ gate.T, x @ up.T
    with torch.enable_grad():
        before = before.detach().requires_grad_()
        (slope,) = torch.autograd.grad(activation(before).sum(), before)
    active = activation(before.detach())
    gate_variance, up_variance = (
        product_variance(weight[:, None], sigma[:, None], x, 0)
        for weight, sigma in ((gate, sigma_gate), (up, sigma_up))
    )
    variance = gated_variance(slope * factor, active, gate_variance.sum(-1).T, up_variance.sum(-1).T)
    inner = active * factor
    if gradient is None:
        each = product_variance(down, sigma_down, inner[:, None], variance[:, None])
        return (routing_weights**2 * each.sum((1, 2))).sum()
    own = (gradient**2 @ sigma_down**2).sqrt()
    return (routing_weights**2 * product_variance(gradient @ down, own, inner, variance).sum(1)).sum() / 2


def linear_damage(
    x: Float[Tensor, "tokens in"],
    weight: Float[Tensor, "out in"],
    hardware: Hardware,
    gradient: Float[Tensor, "tokens out"],
) -> Float[Tensor, ""]:
    """Expected damage of a linear layer summed over its tokens, in units of the loss; fp64.

    gradient: gradient of the loss at the layer's output.
    """
    own = (gradient**2 @ programming_sigma(weight, hardware) ** 2).sqrt()
    return product_variance(0, own, x, 0).double().sum() / 2
