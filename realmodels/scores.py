"""Which score does each placement strategy rank the experts of a model by?"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from realmodels.devices import weights_of
from realmodels.families import MoELayer
from realmodels.fused import FUSED_WEIGHTS, fused_layout
from realmodels.model import Model
from realmodels.statistics import routing
from theory.errors import InputError
from theory.placement import STRATEGIES, Strategy
from theory.score import maxnn_score, neuron_norms


def scores(
    model: Model, strategy: Strategy = "maxnn", texts: Sequence[str] | None = None
) -> Float[Tensor, "layers experts"]:
    """Scores for `theory.placement.place`, fp64 on the CPU; highest is digital first.

    `activation_frequency` and `activation_weight` are measured on `texts`. `router_norm` is the norm of an expert's
    row of router weights. Every other strategy ranks by MaxNNScore or not at all.
    InputError if the model is deployed: noisy experts change the routing.
    """
    model.require_digital()
    if strategy not in STRATEGIES:
        raise InputError(f"strategy is {strategy!r}: give one of {', '.join(STRATEGIES)}")
    if strategy in ("activation_frequency", "activation_weight"):
        if texts is None:
            raise InputError(
                f"strategy {strategy!r} needs texts: give calibration texts, never evaluation texts"
            )
        measured = routing(model, texts)
        return measured.frequency if strategy == "activation_frequency" else measured.weight
    if strategy == "router_norm":
        rows = [
            neuron_norms(weights_of(model.network.get_submodule(layer.router))["weight"])
            for layer in model.map.moe_layers
        ]
    else:
        rows = [_maxnn(model.network, layer) for layer in model.map.moe_layers]
    return torch.stack([row.cpu() for row in rows])


def _maxnn(network: nn.Module, layer: MoELayer) -> Float[Tensor, " experts"]:
    if layer.linears:
        return torch.stack(
            [
                maxnn_score([weights_of(network.get_submodule(name))["weight"] for name in expert])
                for expert in layer.linears
            ]
        )
    experts = network.get_submodule(layer.experts)
    layout, weights = fused_layout(experts), weights_of(experts)
    matrices = [matrix for name in FUSED_WEIGHTS for matrix in layout.matrices(name, weights[name]).unbind(1)]
    return maxnn_score(matrices)
