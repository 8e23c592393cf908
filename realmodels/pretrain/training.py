"""How is one training step computed, and how well does the model do on held-out text?"""

import hashlib
from collections.abc import Callable
from dataclasses import asdict
from functools import lru_cache, partial
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.olmoe.modeling_olmoe import OlmoeTopKRouter

from realmodels.pretrain import experts
from realmodels.pretrain.optimisers import BETAS, SGD, Muon, OneRmsAdamW
from realmodels.pretrain.processes import ALONE, Group
from realmodels.pretrain.recipe import Recipe
from realmodels.pretrain.transfer import Kind, kind_of, rate, scale_initial
from theory.errors import InputError

LARGEST_GRADIENT_NORM: Final = 1.0
HELD_OUT_BATCH_TOKENS: Final = 32768
CAPTURE_WARM_UPS: Final = 3  # passes before one is captured as a CUDA graph, as torch's documentation has it


class Routing(NamedTuple):
    """The routing of one layer.

    probabilities: (tokens, experts), fp32.
    chosen: the experts of each token, (tokens, top_k).
    """

    probabilities: Tensor
    chosen: Tensor

    def load(self) -> Tensor:
        """The share of the choices that each expert got, (experts,); the shares add up to one."""
        experts = torch.arange(self.probabilities.shape[1], device=self.chosen.device)
        # Adding into counts by index would wait for itself.
        counts = (self.chosen[..., None] == experts).sum((0, 1))
        return counts.float() / self.chosen.numel()

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


def layer_pass(
    layer: Any, hidden: Tensor, rotation: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The output of a layer, and, if it has experts, its load-balancing loss and its load."""
    hidden, routing = decoder_layer(layer, hidden, rotation)
    return (hidden, None, None) if routing is None else (hidden, routing.balance_loss(), routing.load())


def next_token_loss(model: Any, hidden: Tensor, targets: Tensor) -> Tensor:
    """In nats per token. hidden: the last layer's output (batch, length, hidden). targets: (batch, length)."""
    logits = model.lm_head(model.model.norm(hidden))
    return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())


def through(
    model: Any, tokens: Tensor, layer: Callable[..., Any] = layer_pass
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """The last layer's output, and of each layer with experts the balance loss and the load (experts,).

    layer: `layer_pass`, or what computes the same. Compiled alone, one compilation serves all layers of a kind.
    """
    hidden, rotation = embed(model, tokens)
    balances, loads = [], []
    for each in model.model.layers:
        hidden, balance, load = layer(each, hidden, rotation)
        balances += [] if balance is None else [balance]
        loads += [] if load is None else [load]
    return hidden, balances, loads


def losses(
    model: Any,
    crops: Tensor,
    layer: Callable[..., Any] = layer_pass,
    loss: Callable[..., Tensor] = next_token_loss,
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Next-token loss in nats per token, the sum of the balance losses, and the load (experts,) of each layer.

    crops: (batch, length + 1).
    """
    hidden, balances, loads = through(model, crops[:, :-1], layer)
    nats = loss(model, hidden, crops[:, 1:])
    return nats, sum(balances, nats.new_zeros(())), loads


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


class Masters:
    """fp32 copies of a model's parameters, and gradients of them, each as one flat tensor."""

    def __init__(self, network: nn.Module) -> None:
        self.parameters = dict(network.named_parameters())
        self.weights = torch.cat([each.detach().flatten().float() for each in self.parameters.values()])
        self.gradient = torch.zeros_like(self.weights)
        self.pieces, self.gradients = self._pieces(self.weights), self._pieces(self.gradient)

    def _pieces(self, flat: Tensor) -> dict[str, Tensor]:
        """The parts of a flat tensor, by the name and in the shape of the parameter that each belongs to."""
        parts = flat.split([each.numel() for each in self.parameters.values()])
        named = zip(self.parameters.items(), parts, strict=True)
        return {name: part.view_as(parameter) for (name, parameter), part in named}

    def collect(self) -> None:
        """Add the parameters' gradients, and take them from the parameters."""
        found = [
            torch.zeros_like(each) if each.grad is None else each.grad for each in self.parameters.values()
        ]
        self.gradient += torch.cat([each.flatten() for each in found])
        for parameter in self.parameters.values():
            parameter.grad = None

    @torch.no_grad()
    def copy_back(self) -> None:
        for name, parameter in self.parameters.items():
            parameter.copy_(self.pieces[name])


def require_same_text(state: dict[str, Any], text: dict[str, Any]) -> None:
    """InputError unless a checkpoint was trained on the text."""
    if state.get("text") != text:
        raise InputError("the checkpoint was trained on other text: give its text, or another folder")


class Training:
    """The state of a run: a model in working precision, fp32 master weights, and their optimisers."""

    def __init__(
        self,
        recipe: Recipe,
        stream: np.ndarray,
        device: torch.device,
        compiled: bool,
        group: Group = ALONE,
    ) -> None:
        self.recipe, self.device, self.group, self.step = recipe, device, group, 0
        group.require_shares(recipe.passes, "batch_tokens / pass_tokens")
        self.text = {"tokens": len(stream), "sha256": hashlib.sha256(stream.tobytes()).hexdigest()}
        self.stream = torch.from_numpy(stream.astype(np.int32)).to(device)
        wrap: Callable[..., Any] = torch.compile if compiled else lambda function: function
        self.losses = partial(losses, layer=wrap(layer_pass), loss=wrap(next_token_loss))
        torch.manual_seed(recipe.seed)
        self.model = AutoModelForCausalLM.from_config(recipe.model_config())
        scale_initial(self.model, recipe)
        if device.type == "cuda":
            self.model.set_experts_implementation(experts.NAME)
        self.biased: list[BiasedRouter] = []
        for layer in self.model.model.layers if recipe.balance_bias else ():
            layer.mlp.gate = BiasedRouter(layer.mlp.gate, self.model.config)
            self.biased.append(layer.mlp.gate)
        self.model.to(device)
        self.flat = Masters(self.model)
        self.masters: dict[str, Tensor] = {}
        for name, piece in self.flat.pieces.items():
            self.masters[name] = master = _matrices(name, piece)
            master.grad = _matrices(name, self.flat.gradients[name])
        cast_parameters(self.model, torch.bfloat16 if device.type == "cuda" else torch.float32)
        self.optimisers = self._optimisers()
        layers = sum(hasattr(layer.mlp, "experts") for layer in self.model.model.layers)
        self.total = torch.zeros((), device=device)  # loss of a step so far
        self.loads = torch.zeros(layers, recipe.experts, device=device)
        self.compiled = compiled
        self.captured: tuple[torch.cuda.CUDAGraph, Tensor] | None = None
        self.full_rates = [group["lr"] for optimiser in self.optimisers for group in optimiser.param_groups]

    def _optimisers(self) -> list[torch.optim.Optimizer]:
        recipe = self.recipe

        def group(kind: Kind, only: Callable[[str], bool] = lambda _: True, sgd: bool = False) -> Any:
            """The parameter group of a kind; SGD has its own rate, and a decay by which weights shrink as elsewhere."""
            members = [p for name, p in self.masters.items() if kind_of(name, p) == kind and only(name)]
            own, decay = rate(recipe, kind)
            if sgd:
                own, decay = recipe.sgd_learning_rate, decay * own / recipe.sgd_learning_rate
            return {"params": members, "lr": own, "weight_decay": decay}

        apart, everywhere = recipe.expert_optimiser != "same", recipe.optimiser == "sgd"
        rest = [group(kind, sgd=everywhere) for kind in ("input", "output", "norm")]
        matrices = group("matrix", lambda name: not (apart and ".mlp.experts." in name), everywhere)
        found: list[torch.optim.Optimizer] = []
        if recipe.optimiser == "muon":
            found.append(Muon(**matrices))
        else:
            rest.append(matrices)
        found.append(SGD(rest) if everywhere else torch.optim.AdamW(rest, betas=BETAS, fused=True))
        if apart:
            sgd = recipe.expert_optimiser == "sgd"
            of_experts = group("matrix", lambda name: ".mlp.experts." in name, sgd)
            found.append(SGD([of_experts]) if sgd else OneRmsAdamW([of_experts]))
        return found

    def advance(self) -> Tensor:
        """Take one step; its next-token loss in nats per token, left on the device."""
        starts = torch.from_numpy(crop_starts(len(self.stream), self.recipe, self.step)).to(self.device)
        mine = starts.reshape(self.recipe.passes, -1)[self.group.rank :: self.group.size]
        offsets = torch.arange(self.recipe.context + 1, device=self.device)
        self._clear()
        for part in mine:
            self._add_pass(self.stream[part[:, None] + offsets].long())
        self.group.sum(self.flat.gradient, self.total, self.loads)
        nn.utils.clip_grad_norm_(self.masters.values(), LARGEST_GRADIENT_NORM)
        groups = [group for optimiser in self.optimisers for group in optimiser.param_groups]
        for group, full in zip(groups, self.full_rates, strict=True):
            group["lr"] = full * self.recipe.rate(self.step)
        for optimiser in self.optimisers:
            optimiser.step()
        self.flat.copy_back()
        for router, load in zip(self.biased, self.loads, strict=False):
            router.bias += self.recipe.balance_bias * (1 / self.recipe.experts - load).sign()
        self.step += 1
        return self.total.clone()

    def _clear(self) -> None:
        """Forget gradients, loss and loads of the step before."""
        for sum_of_passes in (self.flat.gradient, self.total, self.loads):
            sum_of_passes.zero_()

    def _pass(self, crops: Tensor) -> None:
        """Add a pass, forward and backward, to the step's gradients, loss and loads. crops: (batch, length + 1)."""
        loss, balance_loss, loads = self.losses(self.model, crops)
        ((loss + self.recipe.balance * balance_loss) / self.recipe.passes).backward()
        self.flat.collect()
        self.total += loss.detach() / self.recipe.passes
        if loads:
            self.loads += torch.stack(loads) / self.recipe.passes

    def _add_pass(self, crops: Tensor) -> None:
        """As `_pass`. On a GPU, compiled passes replay one that was captured: a thousand kernels, and one launch."""
        if not (self.compiled and self.device.type == "cuda"):
            self._pass(crops)
            return
        if self.captured is None:
            self.captured = self._capture(crops)
            self._clear()
        graph, its_crops = self.captured
        its_crops.copy_(crops)
        graph.replay()

    def _capture(self, crops: Tensor) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        """A CUDA graph of `_pass`, and the crops that it reads."""
        own, aside, graph = crops.clone(), torch.cuda.Stream(), torch.cuda.CUDAGraph()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(CAPTURE_WARM_UPS):  # these compile, which a captured pass must not
                self._pass(own)
        torch.cuda.current_stream().wait_stream(aside)
        with torch.cuda.graph(graph):
            self._pass(own)
        return graph, own

    def state(self) -> dict[str, Any]:
        return {
            "recipe": asdict(self.recipe),
            "text": self.text,
            "step": self.step,
            "master": self.flat.weights,
            "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
        }

    def load_state(self, state: dict[str, Any]) -> None:
        require_same_text(state, self.text)
        self.step = state["step"]
        self.flat.weights.copy_(state["master"])
        for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        self.flat.copy_back()


def cast_parameters(model: nn.Module, dtype: torch.dtype) -> None:
    """Cast parameters alone: model.to(dtype) would round the frequencies of the rotary embedding, too."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)


def _matrices(name: str, parameter: Tensor) -> Tensor:
    """A parameter as a stack of matrices: the fused gate and up projections of an expert are two."""
    return parameter.unflatten(1, (2, -1)) if name.endswith("gate_up_proj") else parameter
