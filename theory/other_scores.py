"""By which scores do others tell the experts that need precision? None of them was made for analog noise.

    maxvar_score    largest variance within a neuron            arXiv 2604.06515, eq. of MaxVar
    alphaq_score    heavy-tailed spectra                        arXiv 2606.04980, and its published code
    mc_score        frequency x routing weight x error          arXiv 2410.06270, eq. 3 and 4, and its published code

Weights are (out, in); leading axes, as in fused experts, are kept. MSAN (arXiv 2606.15716) needs the outputs of
experts: `realmodels.statistics.activation_norms`. What each source does beyond its score is left out
[rules/figure-rivals.md].
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from theory.errors import InputError

# Of the published codes. MC's code raises the error to 1, not to GAMMA: here it is as in the paper.
ALPHAQ_EXPONENT = 10
SPECTRUM_BLOCK = 128
TAIL, LEAST_IN_TAIL = 0.1, 10
MC_FREQUENCY, MC_WEIGHT, MC_ERROR = 1.0, 1.5, 2.0


def maxvar_score(layers: Sequence[Float[Tensor, "*batch out in"]]) -> Float[Tensor, "*batch"]:
    """Largest variance of the weights of one neuron of an expert's first linear layer, which is the gate; fp64."""
    return layers[0].double().var(-1, correction=0).amax(-1)


def alphaq_score(layers: Sequence[Float[Tensor, "*batch out in"]]) -> Float[Tensor, "*batch"]:
    """Sum over an expert's linear layers of (variance of the weights)/alpha^10; fp64.

    AlphaQ gives each matrix bits so that the sum over matrices of (alpha_0/alpha)^10 variance 4^-bits is least. With
    two precisions, and one for all matrices of an expert, this ranks experts. alpha_0 is one number for the model and
    ranks nothing.
    """
    each = [
        layer.double().var((-2, -1), correction=0) / hill_exponent(eigenvalues(layer)) ** ALPHAQ_EXPONENT
        for layer in layers
    ]
    return torch.stack(each).sum(0)


def eigenvalues(weight: Float[Tensor, "*batch out in"]) -> Float[Tensor, "*batch n"]:
    """Squared singular values in ascending order, fp64: those of all square blocks of SPECTRUM_BLOCK together.

    Blocks that stick out are left out. A matrix that is smaller than a block is taken as a whole.
    """
    blocks = weight.double()
    if min(weight.shape[-2:]) >= SPECTRUM_BLOCK:
        for axis in (-2, -2):  # the axis of a block goes to the end
            blocks = blocks.unfold(axis, SPECTRUM_BLOCK, SPECTRUM_BLOCK)
        blocks = blocks.flatten(-4, -3)
    else:
        blocks = blocks.unsqueeze(-3)
    if blocks.shape[-2] > blocks.shape[-1]:
        blocks = blocks.mT
    return torch.linalg.eigvalsh(blocks @ blocks.mT).flatten(-2).sort().values


def hill_exponent(ascending: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch"]:
    """Exponent alpha of a density x^-alpha, from the largest tenth of n numbers, or LEAST_IN_TAIL if they are more.

    1 + k/sum(log(x_i/x_0)), i over the k largest numbers, x_0 being the next one [B. Hill, Annals of Statistics 3,
    1163, 1975]. Small: a heavy tail. Infinite if all of them are equal. InputError for a single number.
    """
    n = ascending.shape[-1]
    if n < 2:
        raise InputError(f"a spectrum of {n} has no tail: give matrices of at least 2 rows and columns")
    k = min(max(LEAST_IN_TAIL, int(TAIL * n)), n - 1)
    # Rounding leaves eigenvalues that are 0 a little above or below it.
    floor = (ascending[..., -1:] * torch.finfo(torch.float64).eps).clamp(min=torch.finfo(torch.float64).tiny)
    logs = torch.maximum(ascending, floor).log()
    return 1 + k / (logs[..., -k:] - logs[..., -k - 1 : -k]).sum(-1)


def mc_score(
    frequency: Float[Tensor, "layers experts"],
    weight: Float[Tensor, "layers experts"],
    squared_error: Float[Tensor, "layers experts"],
) -> Float[Tensor, "layers experts"]:
    """f w^1.5 e^2, where e^2 is the `squared_error` of the layer's output if one expert alone is noisy.

    frequency, weight: how often an expert is chosen, and its mean routing weight; as shares f and w of a layer's sums.
    """
    chosen, weighted = (each / each.sum(1, keepdim=True) for each in (frequency, weight))
    return chosen**MC_FREQUENCY * weighted**MC_WEIGHT * squared_error ** (MC_ERROR / 2)
