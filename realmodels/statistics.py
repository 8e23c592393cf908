"""To which experts does a router send text, and with what weights?"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from scipy.stats import rankdata
from torch import Tensor, nn

from realmodels.evaluate import block_results, token_blocks
from realmodels.families import MoELayer
from realmodels.fused import outputs
from realmodels.model import Model
from realmodels.record import Hook, calibration_tokens, hooked
from theory.errors import InputError

# The output of a probed expert: a power of two, far above what else a block adds, far below fp16's largest number.
ANSWER = 2.0**10
LINEAR = 2.0**-6  # relative deviation from linearity that a probed block may have: bf16 rounds


@dataclass(frozen=True)
class Routing:
    """How text is routed, for each MoE layer and expert.

    frequency: share of the tokens that are routed to the expert.
    weight: routing weight of the expert, averaged over all tokens.
    """

    frequency: Float[Tensor, "layers experts"]
    weight: Float[Tensor, "layers experts"]


def routing(model: Model, texts: Sequence[str], blocks: int | None = None) -> Routing:
    """Read `texts`, and count how the router of every layer spreads the tokens over the experts.

    blocks: read at most so many blocks, spread evenly over the text; None for all.
    InputError if `texts` are the evaluation split, which no score may have seen.
    """
    tokens = token_blocks(model, texts, blocks=blocks, purpose="calibration").tokens
    counts = torch.zeros(2, len(model.map.moe_layers), max(model.map.num_experts), dtype=torch.float64)

    def count(layer: int, index: Tensor, weight: Tensor) -> None:
        sent = (index < model.map.num_experts[layer]) & (weight != 0)  # others have no weights
        index, weight = index[sent], weight[sent]
        counts[0, layer].index_add_(0, index, torch.ones_like(weight))
        counts[1, layer].index_add_(0, index, weight)

    observe(model, tokens, count)
    frequency, weight = counts / tokens[:, 1:].numel()
    return Routing(frequency, weight)


@torch.no_grad()
def activation_norms(model: Model, texts: Sequence[str]) -> Float[Tensor, "layers experts"]:
    """MSAN: mean squared norm of an expert's output over the tokens routed to it, without routing weights.

    The source is arXiv 2606.15716. The tokens are `record.calibration_tokens`; for experts in an `nn.ModuleList` those
    of them that their block gives an expert. The result is fp64 on the CPU, and 0 for an expert without any token.
    """
    sums = torch.zeros(2, len(model.map.moe_layers), max(model.map.num_experts), dtype=torch.float64)

    def count(layer: int, expert: Tensor, results: Tensor) -> None:
        norms = results.flatten(0, -2).double().square().sum(1).cpu()
        sums[0, layer].index_add_(0, expert, norms)
        sums[1, layer].index_add_(0, expert, torch.ones_like(norms))

    def fused(layer: int, module: nn.Module, inputs: tuple[Any, ...], _: dict[str, Any], __: Tensor) -> None:
        experts = model.map.num_experts[layer]
        routed = model.map.moe_layers[layer].layout.routing(inputs, experts)
        pairs = routed.by_expert(experts)
        count(layer, pairs.expert.cpu(), outputs(module, routed.hidden, pairs))

    def single(
        layer: int, expert: int, _: nn.Module, __: tuple[Any, ...], ___: dict[str, Any], output: Tensor
    ) -> None:
        count(layer, torch.full((output[..., 0].numel(),), expert), output)

    hooks: dict[str, Hook] = {}
    for number, layer in enumerate(model.map.moe_layers):
        if layer.linears:
            names = [f"{layer.experts}.{expert}" for expert in range(layer.num_experts)]
            hooks |= {name: partial(single, number, expert) for expert, name in enumerate(names)}
        else:
            hooks[layer.experts] = partial(fused, number)
    with hooked(model.network, hooks):
        block_results(model.network, calibration_tokens(model, texts))
    return sums[0] / sums[1].clamp(min=1)


def observe(
    model: Model, tokens: Int[Tensor, "blocks tokens_plus_1"], visit: Callable[[int, Tensor, Tensor], None]
) -> None:
    """Read blocks of text, and call `visit(layer, index, weight)` for every batch and MoE layer.

    index: the experts of each token, (tokens, top_k), on the CPU.
    weight: the routing weights of these experts, of the same shape, fp64 on the CPU.
    """
    hooks: dict[str, Hook] = {}
    for number, layer in enumerate(model.map.moe_layers):
        hooks |= _listeners(layer, partial(visit, number))
    with hooked(model.network, hooks):
        block_results(model.network, tokens)


def choices(
    model: Model, tokens: Int[Tensor, "blocks tokens_plus_1"]
) -> list[tuple[Int[Tensor, "tokens top_k"], Float[Tensor, "tokens top_k"]]]:
    """Experts that every input token is routed to, and their routing weights, for each MoE layer."""
    found: list[list[tuple[Tensor, Tensor]]] = [[] for _ in model.map.moe_layers]
    observe(model, tokens, lambda layer, index, weight: found[layer].append((index, weight)))
    return [
        (torch.cat([index for index, _ in batches]), torch.cat([weight for _, weight in batches]))
        for batches in found
    ]


def rank_correlation(first: NDArray[np.float64], second: NDArray[np.float64]) -> float | None:
    """Spearman's correlation, ties at their mean rank; None for fewer than 4 values, or if they are all alike."""
    ranks = rankdata(first), rankdata(second)
    if len(first) < 4 or any(np.ptp(each) == 0 for each in ranks):
        return None
    return float(np.corrcoef(*ranks)[0, 1])


def log_frequency(stream: Int[Tensor, " tokens"], vocabulary: int) -> Float[Tensor, " vocabulary"]:
    """Log of the relative frequency of every token in a stream, in nats, each seen once more than it is."""
    counts = torch.bincount(stream, minlength=vocabulary).double() + 1
    return (counts / counts.sum()).log()


def _listeners(layer: MoELayer, routed: Callable[[Tensor, Tensor], None]) -> dict[str, Hook]:
    """Hooks, by the name of their module, that call `routed` with the index and the weight of every batch."""
    if layer.linears:
        return _Prober(layer, routed).hooks()

    def called(_: nn.Module, inputs: tuple[Any, ...], __: dict[str, Any], ___: Any) -> None:
        routed(inputs[1].cpu(), inputs[2].double().cpu())

    def scored(router: Any, _: tuple[Any, ...], __: dict[str, Any], output: Any) -> None:
        weight, index = output[0].topk(router.top_k)
        routed(index.cpu(), weight.double().cpu())

    if layer.layout.weighted_inputs:
        return {layer.router: scored}
    return {layer.experts: called}


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

    def hooks(self) -> dict[str, Hook]:
        """Hooks by the name of their module: every expert answers, and the block is probed."""
        answers: dict[str, Hook] = {
            f"{self.layer.experts}.{number}": partial(self._answer, number)
            for number in range(self.layer.num_experts)
        }
        return {**answers, self.layer.block: self._probe}

    def _answer(
        self, expert: int, module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], output: Tensor
    ) -> Tensor:
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
