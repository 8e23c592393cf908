"""How do learning rates and initial weights follow from those of another width?

By muP [Yang et al., 2022, Tensor Programs V, table 3]. Each is multiplied by a power of the width over
`Recipe.base_width`, so that what a step changes of the activations does not depend on the width:

| kind   | parameters                   | initial weights | rate of AdamW | rate of Muon |
|--------|------------------------------|-----------------|---------------|--------------|
| matrix | attention, experts, FFN      | -1/2            | -1            | -1/2         |
| output | LM head, routers             | -1              | -1            |              |
| input  | embeddings                   | 0               | 0             |              |
| norm   | norms                        | 0               | 0             |              |

A router is an output, as the number of experts does not grow [Małaśnicki et al., 2025, muP for mixture of experts]. A
step of our Muon has the root mean square of AdamW's and equal singular values, which are to stay [Yang, Simon &
Bernstein, 2023, "A spectral condition for feature learning"]. In a step, weights shrink by the same factor at all
widths [Wang & Aitchison, 2025, "How to set AdamW's weight decay"].
"""

from typing import Final, Literal

import torch
from torch import Tensor, nn

from realmodels.pretrain.recipe import Recipe

Kind = Literal["matrix", "output", "input", "norm"]
INITIAL: Final[dict[Kind, float]] = {"matrix": -0.5, "output": -1.0, "input": 0.0, "norm": 0.0}
RATE: Final[dict[Kind, float]] = {"matrix": -1.0, "output": -1.0, "input": 0.0, "norm": 0.0}
MUON_RATE: Final = -0.5


def kind_of(name: str, parameter: Tensor) -> Kind:
    """The kind of a parameter of OLMoE or DeepSeekMoE. Muon may train matrices.

    Rows of embeddings, LM head and routers are tokens and experts, each with a gradient of its own size.
    """
    if parameter.ndim == 1:
        return "norm"
    if ".embed_tokens." in name:
        return "input"
    inside = (".self_attn." in name or ".mlp." in name) and not name.endswith(".mlp.gate.weight")
    return "matrix" if inside else "output"


def wider(recipe: Recipe) -> float:
    """How many times as wide as its base a recipe's model is."""
    return recipe.hidden / (recipe.base_width or recipe.hidden)


def rate(recipe: Recipe, kind: Kind) -> tuple[float, float]:
    """The learning rate and the weight decay of the parameters of a kind."""
    matrix = kind == "matrix"
    given = recipe.matrix_learning_rate if matrix else recipe.learning_rate
    power = MUON_RATE if matrix and recipe.optimiser == "muon" else RATE[kind]
    factor = wider(recipe) ** power
    return given * factor, 0.0 if kind == "norm" else recipe.weight_decay / factor


@torch.no_grad()
def scale_initial(network: nn.Module, recipe: Recipe) -> None:
    """Turn the initial weights of the base's width into those of the recipe's."""
    for name, parameter in network.named_parameters():
        parameter.mul_(wider(recipe) ** INITIAL[kind_of(name, parameter)])
