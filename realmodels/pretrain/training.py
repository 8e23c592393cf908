"""How is one training step computed, and how well does the model do on held-out text?"""

from collections.abc import Callable
from dataclasses import asdict
from functools import lru_cache
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.olmoe.modeling_olmoe import OlmoeTopKRouter

from realmodels.pretrain.optimisers import BETAS, SGD, Muon, OneRmsAdamW
from realmodels.pretrain.recipe import Recipe
from theory.errors import InputError

LARGEST_GRADIENT_NORM: Final = 1.0
HELD_OUT_BATCH_TOKENS: Final = 32768


class Routing(NamedTuple):
    """The routing of one layer.

    probabilities: (tokens, experts), fp32.
    chosen: the experts of each token, (tokens, top_k).
    """

    probabilities: Tensor
    chosen: Tensor

    def load(self) -> Tensor:
        """The share of the choices that each expert got, (experts,); the shares add up to one."""
        ones = torch.ones_like(self.chosen, dtype=torch.float32).flatten()
        counts = torch.zeros_like(self.probabilities[0]).scatter_add(0, self.chosen.flatten(), ones)
        return counts / self.chosen.numel()

    def balance_loss(self) -> Tensor:
        """Load-balancing loss of one layer [Fedus et al., 2022, eq. 4], which is 1 if all experts are used alike.

        transformers averages over all layers before it multiplies, so that there one layer may balance another.
        """
        return self.probabilities.shape[1] * (self.load() * self.probabilities.mean(0)).sum()


class BiasedRouter(OlmoeTopKRouter):
    """OLMoE's router with a bias in the choice of the experts. Routing weights do not see the bias, which starts at 0.

    The bias is no parameter: no gradient trains it. transformers has no such OLMoE, so a model with these routers is
    for use in memory only.
    """

    bias: Tensor

    def __init__(self, router: OlmoeTopKRouter, config: PreTrainedConfig) -> None:
        super().__init__(config)
        self.weight = router.weight
        self.register_buffer("bias", torch.zeros(self.num_experts))

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Route as OLMoE does: logits (tokens, experts), weights and indices (tokens, top_k) of the chosen experts."""
        logits = F.linear(hidden_states.reshape(-1, self.hidden_dim), self.weight)
        weights, chosen = choose(self, logits.softmax(-1, dtype=torch.float32))
        return logits, weights.to(logits.dtype), chosen


def choose(router: Any, probabilities: Tensor) -> tuple[Tensor, Tensor]:
    """Choose experts by probabilities (tokens, experts); the weights and indices (tokens, top_k) of the chosen ones."""
    if isinstance(router, BiasedRouter):
        chosen = (probabilities + router.bias).topk(router.top_k).indices
        weights = probabilities.gather(1, chosen)
    else:
        weights, chosen = probabilities.topk(router.top_k)
    if getattr(router, "norm_topk_prob", True):  # Mixtral's routers have no choice
        weights = weights / weights.sum(-1, keepdim=True)
    return weights, chosen


def forward(model: Any, tokens: Tensor) -> tuple[Tensor, list[Routing]]:
    """Logits (batch, length, vocabulary) of tokens (batch, length), and the routing of each layer with experts.

    This is the forward pass of transformers in one piece: it compiles as a whole, and needs no hooks for the routing.
    """
    hidden, rotation = embed(model, tokens)
    routings = []
    for layer in model.model.layers:
        hidden, routing = decoder_layer(layer, hidden, rotation)
        routings += [] if routing is None else [routing]
    return model.lm_head(model.model.norm(hidden)), routings


def embed(model: Any, tokens: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """The first layer's input (batch, length, hidden), and the rotary embedding of the positions."""
    hidden = model.model.embed_tokens(tokens)
    return hidden, model.model.rotary_emb(hidden, torch.arange(tokens.shape[1], device=tokens.device)[None])


def decoder_layer(
    layer: Any, hidden: Tensor, rotation: tuple[Tensor, Tensor]
) -> tuple[Tensor, Routing | None]:
    """The output of a layer, shaped as its input, and its routing, or None for a dense layer."""
    hidden = hidden + layer.self_attn(layer.input_layernorm(hidden), rotation, None)[0]
    inputs = layer.post_attention_layernorm(hidden).flatten(0, 1)
    if not hasattr(layer.mlp, "experts"):
        return hidden + layer.mlp(inputs).view_as(hidden), None
    probabilities = F.linear(inputs, layer.mlp.gate.weight).softmax(-1, dtype=torch.float32)
    weights, chosen = choose(layer.mlp.gate, probabilities)
    mixed = layer.mlp.experts(inputs, chosen, weights.to(inputs.dtype))
    if getattr(layer.mlp, "shared_experts", None) is not None:
        mixed = mixed + layer.mlp.shared_experts(inputs)
    return hidden + mixed.view_as(hidden), Routing(probabilities, chosen)


def losses(
    model: PreTrainedModel, crops: Tensor, with_loads: bool = False
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Next-token loss in nats per token, the sum of the balance losses, and the load (experts,) of each layer.

    crops: (batch, length + 1).
    with_loads: False for no loads.
    """
    logits, routings = forward(model, crops[:, :-1])
    loss = F.cross_entropy(logits.flatten(0, 1).float(), crops[:, 1:].flatten())
    loads = [routing.load() for routing in routings] if with_loads else []
    return loss, sum((routing.balance_loss() for routing in routings), loss.new_zeros(())), loads


class HeldOut(NamedTuple):
    """How a model does on held-out text.

    nats: total loss.
    tokens: how many tokens were predicted.
    load: load of each expert, (layers, experts).
    """

    nats: float
    tokens: int
    load: Tensor

    def balance(self) -> list[float]:
        """The least used expert's share of the choices over the fair share, for each layer with experts; 1 at best."""
        return (self.load.amin(1) * self.load.shape[1]).tolist() if self.load.ndim else []


@torch.no_grad()
def held_out(model: PreTrainedModel, stream: Tensor, context: int) -> HeldOut:
    """Loss on a stream cut into independent blocks of T = `context` predicted tokens; the last block is shorter.

    Blocks overlap by one token: block i reads stream[i T : i T + T], predicts stream[i T + 1 : i T + T + 1].
    """
    blocks = (len(stream) - 1) // context
    whole, rest = stream[: blocks * context + 1], stream[blocks * context :]
    batches = list(whole.unfold(0, context + 1, context).split(max(HELD_OUT_BATCH_TOKENS // context, 1)))
    batches += [rest[None]] if len(rest) > 1 else []
    nats, tokens, load = 0.0, 0, torch.zeros(())
    for batch in batches:
        logits, routings = forward(model, batch[:, :-1])
        nats += F.cross_entropy(logits.flatten(0, 1).float(), batch[:, 1:].flatten(), reduction="sum").item()
        predicted = batch[:, 1:].numel()
        tokens += predicted
        if routings:
            load = load + predicted * torch.stack([routing.load() for routing in routings]).cpu()
    return HeldOut(nats, tokens, load / tokens)


@lru_cache(maxsize=1)
def _epoch(pieces: int, context: int, seed: int, epoch: int) -> np.ndarray:
    generator = np.random.default_rng((seed, epoch))
    return generator.permutation(pieces) * context + generator.integers(context)


def crop_starts(length: int, recipe: Recipe, step: int) -> np.ndarray:
    """Where the crops of a step start. Each epoch cuts the stream at a new phase and visits every piece once.

    The starts depend on nothing but the recipe's seed and the step, so that a resumed run goes on with the same crops.
    """
    batch = recipe.batch_tokens // recipe.context
    pieces = length // recipe.context - 2  # any phase leaves this many, each with a token after its end
    if pieces < batch:
        raise InputError(f"batch_tokens is {recipe.batch_tokens}: the training text has only {length} tokens")
    steps_per_epoch = pieces // batch
    epoch, position = divmod(step, steps_per_epoch)
    return _epoch(pieces, recipe.context, recipe.seed, epoch)[position * batch : (position + 1) * batch]


class Training:
    """The state of a run: a model in working precision, fp32 master weights, and their optimisers."""

    def __init__(self, recipe: Recipe, stream: np.ndarray, device: torch.device, compiled: bool) -> None:
        self.recipe, self.device, self.step = recipe, device, 0
        self.stream = torch.from_numpy(stream.astype(np.int32)).to(device)
        self.losses: Callable[..., tuple[Tensor, Tensor, list[Tensor]]] = (
            torch.compile(losses) if compiled else losses
        )
        torch.manual_seed(recipe.seed)
        self.model = AutoModelForCausalLM.from_config(recipe.model_config())
        self.biased: list[BiasedRouter] = []
        for layer in self.model.model.layers if recipe.balance_bias else ():
            layer.mlp.gate = BiasedRouter(layer.mlp.gate, self.model.config)
            self.biased.append(layer.mlp.gate)
        self.model.to(device)
        self.masters = {
            name: _matrices(name, parameter).detach().clone()
            for name, parameter in self.model.named_parameters()
        }
        cast_parameters(self.model, torch.bfloat16 if device.type == "cuda" else torch.float32)

        def members(kind: Callable[[str, Tensor], bool]) -> list[Tensor]:
            return [master for name, master in self.masters.items() if kind(name, master)]

        def group(parameters: list[Tensor], rate: float, decay: float, sgd: bool = False) -> dict[str, Any]:
            """A parameter group; SGD has its own rate, and a decay by which weights shrink as elsewhere."""
            if sgd:
                rate, decay = recipe.sgd_learning_rate, decay * rate / recipe.sgd_learning_rate
            return {"params": parameters, "lr": rate, "weight_decay": decay}

        apart = recipe.expert_optimiser != "same"
        experts = members(lambda name, _: apart and ".mlp.experts." in name)
        matrices = members(lambda name, p: _is_matrix(name, p) and not (apart and ".mlp.experts." in name))
        others = members(lambda name, p: not _is_matrix(name, p) and p.ndim > 1)
        norms = members(lambda name, p: p.ndim == 1)
        everywhere = recipe.optimiser == "sgd"
        rest = [
            group(others, recipe.learning_rate, recipe.weight_decay, everywhere),
            group(norms, recipe.learning_rate, 0.0, everywhere),
        ]
        matrix_group = group(matrices, recipe.matrix_learning_rate, recipe.weight_decay, everywhere)
        self.optimisers: list[torch.optim.Optimizer] = []
        if recipe.optimiser == "muon":
            self.optimisers.append(Muon(**matrix_group))
        else:
            rest.append(matrix_group)
        self.optimisers.append(SGD(rest) if everywhere else torch.optim.AdamW(rest, betas=BETAS, fused=True))
        if apart:
            sgd = recipe.expert_optimiser == "sgd"
            expert_group = group(experts, recipe.matrix_learning_rate, recipe.weight_decay, sgd)
            self.optimisers.append(SGD([expert_group]) if sgd else OneRmsAdamW([expert_group]))
        self.full_rates = [group["lr"] for optimiser in self.optimisers for group in optimiser.param_groups]

    def advance(self) -> Tensor:
        """Take one step; its next-token loss in nats per token, left on the device."""
        starts = torch.from_numpy(crop_starts(len(self.stream), self.recipe, self.step))
        positions = starts[:, None] + torch.arange(self.recipe.context + 1)
        crops = self.stream[positions.to(self.stream.device)].long()
        loss, balance_loss, loads = self.losses(self.model, crops, bool(self.biased))
        (loss + self.recipe.balance * balance_loss).backward()
        for name, parameter in self.model.named_parameters():
            master = self.masters[name]
            master.grad = parameter.grad.to(master.dtype).view_as(master)
            parameter.grad = None
        nn.utils.clip_grad_norm_(self.masters.values(), LARGEST_GRADIENT_NORM)
        groups = [group for optimiser in self.optimisers for group in optimiser.param_groups]
        for group, full in zip(groups, self.full_rates, strict=True):
            group["lr"] = full * self.recipe.rate(self.step)
        for optimiser in self.optimisers:
            optimiser.step()
        self._copy_masters()
        for router, load in zip(self.biased, loads, strict=True):
            router.bias += self.recipe.balance_bias * (1 / self.recipe.experts - load).sign()
        self.step += 1
        return loss.detach()

    @torch.no_grad()
    def _copy_masters(self) -> None:
        for name, parameter in self.model.named_parameters():
            parameter.copy_(self.masters[name].view_as(parameter))

    def state(self) -> dict[str, Any]:
        return {
            "recipe": asdict(self.recipe),
            "step": self.step,
            "masters": self.masters,
            "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
        }

    def load_state(self, state: dict[str, Any]) -> None:
        self.step = state["step"]
        for name, master in self.masters.items():
            master.copy_(state["masters"][name])
        for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        self._copy_masters()


def cast_parameters(model: nn.Module, dtype: torch.dtype) -> None:
    """Cast parameters alone: model.to(dtype) would round the frequencies of the rotary embedding, too."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)


def _is_matrix(name: str, parameter: Tensor) -> bool:
    """True if Muon may train the parameter: attention, experts and dense FFN.

    Rows of embeddings, LM head and routers are tokens and experts, each with a gradient of its own size.
    """
    inside = (".self_attn." in name or ".mlp." in name) and not name.endswith(".mlp.gate.weight")
    return inside and parameter.ndim > 1


def _matrices(name: str, parameter: Tensor) -> Tensor:
    """A parameter as a stack of matrices: the fused gate and up projections of an expert are two."""
    return parameter.unflatten(1, (2, -1)) if name.endswith("gate_up_proj") else parameter
