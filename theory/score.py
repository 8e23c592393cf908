"""How large are the largest neurons of an expert? MaxNNScore, the score of the paper [docs/paper.md, method].

A neuron is a row of a linear layer's weight in `nn.Linear` layout, (out, in). Leading axes, as in the fused
(experts, out, in) weights of transformers, are kept.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from theory.errors import InputError


def neuron_norms(weight: Float[Tensor, "*batch out in"]) -> Float[Tensor, "*batch out"]:
    """L2 norm of every neuron, in fp64: squares of fp32 and bf16 weights neither overflow nor vanish there."""
    if weight.ndim < 2 or not weight.numel() or not weight.is_floating_point():
        raise InputError(
            f"weight of shape {tuple(weight.shape)} and {weight.dtype}: give floats (out, in) or (experts, out, in)"
        )
    return torch.linalg.vector_norm(weight, dim=-1, dtype=torch.float64)


def max_neuron_norm(weight: Float[Tensor, "*batch out in"]) -> Float[Tensor, "*batch"]:
    """Norm of the largest neuron."""
    return neuron_norms(weight).amax(-1)


def maxnn_score(layers: Sequence[Float[Tensor, "*batch out in"]]) -> Float[Tensor, "*batch"]:
    """Product over an expert's linear layers (up, gate, down) of the largest neuron's norm.

    A fused layer is scored with all of its experts at once. Gate and up have to be given as two weights.
    """
    norms = [max_neuron_norm(weight) for weight in layers]
    if len({norm.shape for norm in norms}) != 1:
        shapes = ", ".join(str(tuple(weight.shape)) for weight in layers) or "none"
        raise InputError(
            f"layers of shapes {shapes}: give the weights of all linear layers of the same experts"
        )
    return torch.stack(norms).prod(0)
