"""What the placement strategies rank experts by: their weights, or how calibration text is routed to them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from realmodels.evaluate import block_results, token_blocks
from realmodels.load import Model
from theory.errors import InputError
from theory.placement import STRATEGIES, Strategy
from theory.score import maxnn_score, neuron_norms


@dataclass(frozen=True)
class Routing:
    """Per MoE layer and expert: share of tokens routed to it, and its routing weight averaged over all tokens."""

    frequency: Float[Tensor, "layers experts"]
    weight: Float[Tensor, "layers experts"]


def scores(
    model: Model, strategy: Strategy = "maxnn", texts: Sequence[str] | None = None
) -> Float[Tensor, "layers experts"]:
    """Scores for `theory.placement.place`, fp64 on the CPU; highest is digital first.

    `activation_frequency` and `activation_weight` are measured on `texts`; `router_norm` is the norm of an
    expert's row of router weights; every other strategy ranks by MaxNNScore or not at all. InputError if the model
    is deployed: its routing would be that of noisy experts.
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
            neuron_norms(model.network.get_parameter(f"{layer.router}.weight"))
            for layer in model.map.moe_layers
        ]
    else:
        rows = [_maxnn(model.network.get_submodule(layer.experts)) for layer in model.map.moe_layers]
    return torch.stack([row.cpu() for row in rows])


def routing(model: Model, texts: Sequence[str]) -> Routing:
    """How the router of every layer spreads the tokens of `texts` over its experts."""
    tokens = token_blocks(model, texts).tokens
    counts = torch.zeros(2, len(model.map.moe_layers), max(model.map.num_experts), dtype=torch.float64)

    def count(layer: int, index: Tensor, weight: Tensor) -> None:
        counts[0, layer].index_add_(0, index.flatten(), torch.ones_like(weight).flatten())
        counts[1, layer].index_add_(0, index.flatten(), weight.flatten())

    observe(model, tokens, count)
    frequency, weight = counts / tokens[:, 1:].numel()
    return Routing(frequency, weight)


def observe(
    model: Model, tokens: Int[Tensor, "blocks tokens_plus_1"], visit: Callable[[int, Tensor, Tensor], None]
) -> None:
    """Routes blocks of text; for every batch and MoE layer `visit(layer, index, weight)`.

    index (tokens, top_k): the experts of each token; weight: their routing weights, fp64; both on the CPU.
    """

    def hook(layer: int) -> Any:
        def routed(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            visit(layer, inputs[1].cpu(), inputs[2].double().cpu())

        return routed

    handles = [
        model.network.get_submodule(layer.experts).register_forward_pre_hook(hook(number))
        for number, layer in enumerate(model.map.moe_layers)
    ]
    try:
        block_results(model.network, tokens)
    finally:
        for handle in handles:
            handle.remove()


def _maxnn(experts: nn.Module) -> Float[Tensor, " experts"]:
    gate, up = experts.get_parameter("gate_up_proj").detach().chunk(2, dim=1)
    return maxnn_score([gate, up, experts.get_parameter("down_proj").detach()])
