"""What programming noise on one gated expert is expected to cost the model it belongs to [claim D].

The noise of every weight is independent. To first order in what it does to gate and up,

    error of output i = sum_j (W_ij + sigma_ij xi_ij)(z_j + zeta_j) - W_ij z_j,   z = activation(gate x) * (up x),

where the zeta_j are independent, as every j has rows of gate and up of its own. The expected damage of an expert is the
sum over the tokens routed to it of (routing weight)^2 times

- the expected squared length of the error, or
- with the gradient G of the loss at the layer's output, E (G . error)^2 / 2: what the error adds to the loss if its
  second derivative is G G^T [the empirical Fisher matrix of the token].

Both are of the same form: output i has the error variance sum_j product_variance(W_ij, sigma_ij, z_j, var zeta_j), the
projection on G the same with sum_i G_i W_ij for W_ij and sum_i G_i^2 sigma_ij^2 for sigma_ij^2.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from theory.functions import Value
from theory.hardware import Hardware, programming_sigma


def product_variance(weight: Value, sigma: Value, mean: Value, variance: Value) -> Value:
    """Variance of w z, for independent w of mean `weight` and deviation `sigma`, z of `mean` and `variance`."""
    return weight**2 * variance + sigma**2 * (mean**2 + variance)


def gated_variance(slope_gate: Value, slope_up: Value, gate_variance: Value, up_variance: Value) -> Value:
    """Variance of activation(g) u to first order; slopes: its derivatives by g and by u."""
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
    """Sum over the tokens routed to an expert, in squared units of its output, or with `gradient` of the loss.

    `hardware`'s programming noise on gate, up and down, each with tiles of its own. Converters and the dead zone of
    a programming model, which are no noise, are left out.
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
