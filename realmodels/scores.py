"""Which score does each placement strategy rank the experts of a model by?"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from realmodels.devices import weights_of
from realmodels.families import MoELayer, router_rows
from realmodels.fused import fused_layout
from realmodels.model import Model, require_model
from realmodels.statistics import activation_norms, routing
from theory.errors import InputError
from theory.other_scores import alphaq_score, maxvar_score
from theory.placement import STRATEGIES, Strategy
from theory.score import maxnn_score, neuron_norms

Score = Callable[[Sequence[Tensor]], Tensor]  # of linear layers (*batch, out, in): (*batch)


def scores(
    model: Model, strategy: Strategy = "maxnn", texts: Sequence[str] | None = None
) -> Float[Tensor, "layers experts"]:
    """Scores for `theory.placement.place`, fp64 on the CPU; highest is digital first.

    `activation_frequency`, `activation_weight` and `msan` are measured on `texts`. `router_norm` is the norm of an
    expert's row of router weights. `maxvar` and `alphaq` are scores of others [theory.other_scores]. Every other
    strategy ranks by MaxNNScore or not at all.
    InputError if the model is deployed: noisy experts change the routing.
    """
    require_model(model)
    model.require_digital()
    if strategy not in STRATEGIES:
        raise InputError(f"strategy is {strategy!r}: give one of {', '.join(STRATEGIES)}")
    if strategy in ("activation_frequency", "activation_weight", "msan"):
        if texts is None:
            raise InputError(
                f"strategy {strategy!r} needs texts: give calibration texts, never evaluation texts"
            )
        if strategy == "msan":
            return activation_norms(model, texts)
        measured = routing(model, texts)
        return measured.frequency if strategy == "activation_frequency" else measured.weight
    if strategy == "router_norm":
        rows = [neuron_norms(router_rows(model.network, layer)) for layer in model.map.moe_layers]
    else:
        score = {"maxvar": maxvar_score, "alphaq": alphaq_score}.get(strategy, maxnn_score)
        rows = [_of_weights(model.network, layer, score) for layer in model.map.moe_layers]
    return torch.stack([row.cpu() for row in rows])


def parameters(model: Model) -> Int[Tensor, "layers experts"]:
    """Number of weights of each expert, without biases; costs for `theory.placement.knapsack`."""
    return torch.stack([_of_weights(model.network, layer, _count).cpu() for layer in model.map.moe_layers])


def _count(layers: Sequence[Float[Tensor, "*batch out in"]]) -> Int[Tensor, "*batch"]:
    number = sum(layer.shape[-2] * layer.shape[-1] for layer in layers)
    return torch.full(layers[0].shape[:-2], number)


def _of_weights(network: nn.Module, layer: MoELayer, score: Score) -> Float[Tensor, " experts"]:
    """The score of the weights of each expert: gate, up, down, or up, down; of modules in the expert's own order."""
    if layer.linears:
        return torch.stack(
            [
                score([weights_of(network.get_submodule(name))["weight"] for name in expert])
                for expert in layer.linears
            ]
        )
    experts = network.get_submodule(layer.experts)
    layout, weights = fused_layout(experts), weights_of(experts)
    return score(
        [matrix for name in layout.weights for matrix in layout.matrices(name, weights[name]).unbind(1)]
    )
