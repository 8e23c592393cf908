"""What the placement strategies rank experts by: their weights, or how calibration text is routed to them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from realmodels.devices import weights_of
from realmodels.evaluate import block_results, token_blocks
from realmodels.families import FUSED_WEIGHTS, MoELayer, fused_layout
from realmodels.load import Model
from theory.errors import InputError
from theory.placement import STRATEGIES, Strategy
from theory.score import maxnn_score, neuron_norms

# Of probed experts: a power of two, far above what else a block adds, far below fp16's largest number.
ANSWER = 2.0**10
LINEAR = 2.0**-6  # of probed blocks, with bf16's rounding in mind


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
            neuron_norms(weights_of(model.network.get_submodule(layer.router))["weight"])
            for layer in model.map.moe_layers
        ]
    else:
        rows = [_maxnn(model.network, layer) for layer in model.map.moe_layers]
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

    handles: list[RemovableHandle] = []
    try:
        for number, layer in enumerate(model.map.moe_layers):
            handles += _listen(model.network, layer, partial(visit, number))
        block_results(model.network, tokens)
    finally:
        for handle in handles:
            handle.remove()


def _listen(
    network: nn.Module, layer: MoELayer, routed: Callable[[Tensor, Tensor], None]
) -> list[RemovableHandle]:
    if layer.linears:
        return _Prober(layer, routed).listen(network)

    def called(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        routed(inputs[1].cpu(), inputs[2].double().cpu())

    return [network.get_submodule(layer.experts).register_forward_pre_hook(called)]


@dataclass
class _Prober:
    """Routing by a block that calls the experts of an `nn.ModuleList` itself.

    Nobody is told the weights, but the block's output is linear in the outputs of its experts, with the routing
    weights as coefficients. So after every call the block is called again, with the same inputs and with experts that
    answer with a multiple of a unit vector instead, each with another: what comes out are the routing weights, as the
    block applies them, however it came by them.
    """

    layer: MoELayer
    routed: Callable[[Tensor, Tensor], None]
    answer: float | None = None  # while probing

    def listen(self, network: nn.Module) -> list[RemovableHandle]:
        experts = network.get_submodule(self.layer.experts).children()
        handles = [
            each.register_forward_hook(partial(self._answer, number)) for number, each in enumerate(experts)
        ]
        block = network.get_submodule(self.layer.block)
        return [*handles, block.register_forward_hook(self._probe, with_kwargs=True)]

    def _answer(self, expert: int, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        if self.answer is None:
            return output
        answer = torch.zeros_like(output)
        answer[..., expert] = self.answer
        return answer

    def _probe(self, block: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
        if self.answer is not None:
            return
        hidden = (output if isinstance(output, Tensor) else output[0]).shape[-1]
        experts = self.layer.num_experts
        if experts > hidden:
            raise self._failure(f"it has {experts} experts and only {hidden} outputs")
        responses = []
        try:
            for self.answer in (0.0, ANSWER, 2 * ANSWER):
                again = block(*inputs, **named)
                responses.append((again if isinstance(again, Tensor) else again[0]).flatten(0, -2).double())
        finally:
            self.answer = None
        once, twice = (response - responses[0] for response in responses[1:])
        if once[:, experts:].any() or not torch.allclose(2 * once, twice, rtol=LINEAR, atol=LINEAR):
            raise self._failure("its output is not linear in those of its experts")
        chosen = once[:, :experts] != 0
        (top_k, *others) = chosen.sum(1).unique().tolist()
        if others or not top_k:
            raise self._failure(f"it gives tokens to {top_k} to {max(others, default=0)} experts")
        index = chosen.nonzero()[:, 1].view(-1, top_k)
        self.routed(index.cpu(), (once.gather(1, index) / ANSWER).cpu())

    def _failure(self, reason: str) -> InputError:
        return InputError(
            f"routing weights of {self.layer.block} cannot be measured: {reason}; rank its experts by maxnn or"
            " router_norm instead"
        )


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
