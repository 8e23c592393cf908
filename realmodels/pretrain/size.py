"""How large is a model, and how much of it does a token use?"""

from functools import lru_cache
from typing import Any, NamedTuple

import torch
from transformers import AutoModelForCausalLM

from realmodels.pretrain.recipe import Recipe
from realmodels.pretrain.transfer import kind_of


class Size(NamedTuple):
    """Numbers of parameters.

    dense: those of dense modules: attention, LM head, shared experts, dense FFN.
    active: those that a token is multiplied with: dense modules, routers and the chosen experts.
    """

    total: int
    dense: int
    active: int

    @property
    def flops_per_token(self) -> int:
        """Floating-point operations of training in products with parameters; those of attention are left out."""
        return 6 * self.active


@lru_cache
def size_of(recipe: Recipe) -> Size:
    with torch.device("meta"):
        network: Any = AutoModelForCausalLM.from_config(recipe.model_config())
    total = dense = routers = experts = 0
    for name, parameter in network.named_parameters():
        count = parameter.numel()
        total += count
        if ".mlp.experts." in name:
            experts += count
        elif ".mlp.gate." in name:
            routers += count
        elif kind_of(name, parameter) in ("matrix", "output"):
            dense += count
    return Size(total, dense, dense + routers + experts * recipe.top_k // recipe.experts)
