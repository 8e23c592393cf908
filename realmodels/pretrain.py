"""Trains the tokenizer and the models of `checkpoints/`.

    python -m realmodels.pretrain tokenize TEXTS TOKENS --vocabulary 2048
    python -m realmodels.pretrain train TOKENS OUT [--recipe FILE] [KEY=VALUE ...] [--dense] [--seconds S]

TEXTS is what `realmodels.build_corpus` writes. TOKENS is small enough to be carried to a machine with a GPU:
the tokenizer and the token streams of the three splits. OUT receives the model as transformers saves it,
`recipe.json` and `log.jsonl`; a run that was stopped goes on when it is started again. Training never reads
the evaluation split, which is there for the baselines: choices are made by the loss on calibration text.

Numbers are bf16 on a GPU, with fp32 master weights for the optimiser, and fp32 on a CPU.
"""

import argparse
import json
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm
from transformers import (
    AutoModelForCausalLM,
    OlmoeConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.models.olmoe.modeling_olmoe import OlmoeTopKRouter

from realmodels.deepseek_moe import DeepseekConfig
from realmodels.text import SPLITS
from theory.errors import InputError, run

END_OF_TEXT: Final = "<|endoftext|>"  # the only special token: id 0, before every document

BETAS: Final = (0.9, 0.95)
EPSILON: Final = 1e-8  # torch's of AdamW
LARGEST_GRADIENT_NORM: Final = 1.0
MOMENTUM: Final = 0.95
NEWTON_SCHULZ: Final = (3.4445, -4.7750, 2.0315)  # [Jordan et al., 2024]: singular values end near 1
NEWTON_SCHULZ_STEPS: Final = 5
ADAM_UPDATE_SIZE: Final = (
    0.2  # root mean square of AdamW's updates; Muon's are scaled to it [Liu et al., 2025]
)

ENTRIES_PER_RUN: Final = 40  # log entries, each with a pass over the calibration text and a checkpoint
HELD_OUT_BATCH_TOKENS: Final = 32768
WARM_UP_STEPS, TIMED_STEPS = 10, 30  # of the throwaway run that turns seconds into steps
ALIGNMENT: Final = 8  # bf16 numbers in the 16 bytes that grouped matrix products align rows to


@dataclass(frozen=True)
class Recipe:
    """Everything that decides which model comes out of a token folder, except for the machine's rounding."""

    family: Literal["olmoe", "deepseek"] = "olmoe"
    vocabulary: int = 2048
    hidden: int = 256
    layers: int = 4
    heads: int = 4
    experts: int = 32
    top_k: int = 4
    expert_width: int = 56
    # DeepSeekMoE's: experts that every token uses, and layers, the first ones, that have no others; they are as wide
    # as what a token uses of the other layers.
    shared_experts: int = 0
    dense_layers: int = 0
    normalise_top_k: bool = True  # routing weights of the chosen experts add up to one
    context: int = 512  # tokens predicted per sequence
    batch_tokens: int = 65536
    steps: int = 4000
    # Of attention and expert matrices; the rest has AdamW, but for "sgd", which is for everything.
    optimiser: Literal["adamw", "muon", "sgd"] = "muon"
    # Of the experts alone: "same" is the optimiser of all matrices, "adamw_one_rms" AdamW with one second moment for
    # all experts of a layer. Whatever the optimiser, weights shrink by the same factor in a step.
    expert_optimiser: Literal["same", "sgd", "adamw_one_rms"] = "same"
    matrix_learning_rate: float = 5e-3
    learning_rate: float = 3e-3  # embeddings, LM head, routers, norms
    sgd_learning_rate: float = 0.1  # of whatever is trained by SGD
    warmup: float = 0.02  # share of the steps in which the rates rise from 0
    decay: float = 0.5  # share of the steps, the last ones, in which they fall to 0; constant between
    weight_decay: float = 0.1
    balance: float = 0.01  # weight of a layer's load-balancing loss beside the loss in nats per token
    # How much an expert's bias moves in a step, up below its fair share of the tokens, down above [Wang et al., 2024].
    # It has a say in which experts are chosen, none in their weights. 0: no bias.
    balance_bias: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            least = field.name not in ("seed", "shared_experts", "dense_layers")
            if field.type is int and (type(value) is not int or value < least):
                raise InputError(f"recipe: {field.name} is {value!r}; give an integer of at least {least:d}")
            if field.type is float and (type(value) not in (int, float) or not 0 <= value < math.inf):
                raise InputError(f"recipe: {field.name} is {value!r}; give a number that is not negative")
        if type(self.normalise_top_k) is not bool:
            raise InputError(f"recipe: normalise_top_k is {self.normalise_top_k!r}; give true or false")
        for name, allowed in (
            ("optimiser", ("adamw", "muon", "sgd")),
            ("expert_optimiser", ("same", "sgd", "adamw_one_rms")),
            ("family", ("olmoe", "deepseek")),
        ):
            if getattr(self, name) not in allowed:
                raise InputError(f"recipe: {name} is {getattr(self, name)!r}; allowed: {', '.join(allowed)}")
        if self.optimiser == "sgd" and self.expert_optimiser != "same":
            raise InputError(
                f"recipe: expert_optimiser is {self.expert_optimiser}, but sgd is for everything; give same"
            )
        if not self.sgd_learning_rate > 0:
            raise InputError(f"recipe: sgd_learning_rate is {self.sgd_learning_rate}; give a number above 0")
        if self.balance_bias and self.family != "olmoe":
            raise InputError(f"recipe: balance_bias is {self.balance_bias}; give 0, or family=olmoe")
        for name in ("shared_experts", "dense_layers"):
            if self.family == "olmoe" and getattr(self, name):
                raise InputError(f"recipe: {name} is {getattr(self, name)}; give 0, or family=deepseek")
        if self.top_k > self.experts:
            raise InputError(f"recipe: top_k is {self.top_k}; give at most experts = {self.experts}")
        for name, divisor in (
            ("hidden", 2 * self.heads),
            ("hidden", ALIGNMENT),
            ("expert_width", ALIGNMENT),
            ("batch_tokens", self.context),
        ):
            if getattr(self, name) % divisor:
                raise InputError(f"recipe: {name} is {getattr(self, name)}; give a multiple of {divisor}")
        if self.warmup + self.decay > 1:
            raise InputError(f"recipe: warmup + decay is {self.warmup + self.decay}; give at most 1")

    @classmethod
    def read(cls, file: Path | None, overrides: Sequence[str]) -> "Recipe":
        """The default recipe, changed by the entries of a JSON file and then by texts `key=value`."""
        values = {} if file is None else json.loads(_read(file))
        for override in overrides:
            key, equals, value = override.partition("=")
            if not equals:
                raise InputError(f"{override!r} is no recipe entry; give key=value")
            try:
                values[key] = json.loads(value)
            except json.JSONDecodeError:
                values[key] = value  # a bare word
        allowed = [field.name for field in fields(cls)]
        for key in values:
            if key not in allowed:
                raise InputError(f"recipe: unknown entry {key!r}; allowed: {', '.join(allowed)}")
        return cls(**values)

    def dense(self) -> "Recipe":
        """The dense model of as many active parameters: one FFN a layer, as wide as what a token uses of them."""
        if self.family == "deepseek":
            return replace(self, dense_layers=self.layers, balance=0.0)
        return replace(self, experts=1, top_k=1, expert_width=self.top_k * self.expert_width, balance=0.0)

    def model_config(self) -> PreTrainedConfig:
        common: dict[str, Any] = {
            "vocab_size": self.vocabulary,
            "hidden_size": self.hidden,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_experts_per_tok": self.top_k,
            "norm_topk_prob": self.normalise_top_k,
            "max_position_embeddings": self.context,
            "pad_token_id": None,
            "bos_token_id": None,
            "eos_token_id": 0,
        }
        config: PreTrainedConfig
        if self.family == "olmoe":
            config = OlmoeConfig(**common, intermediate_size=self.expert_width, num_experts=self.experts)
        else:
            config = DeepseekConfig(
                **common,
                intermediate_size=(self.top_k + self.shared_experts) * self.expert_width,
                moe_intermediate_size=self.expert_width,
                n_routed_experts=self.experts,
                n_shared_experts=self.shared_experts,
                first_k_dense_replace=self.dense_layers,
            )
        config._experts_implementation = "grouped_mm"
        return config

    def rate(self, step: int) -> float:
        """The learning rates at a step (from 0), as a share of the recipe's."""
        rising = (step + 1) / max(self.warmup * self.steps, 1)
        falling = (self.steps - step) / max(self.decay * self.steps, 1)
        return min(rising, 1.0, falling)


# ---------------------------------------------------------------------------------------------------- tokens


class TokenFolder(NamedTuple):
    """`sizes` holds, per split, the number of tokens and of the UTF-8 bytes they stand for."""

    folder: Path
    vocabulary: int
    sizes: dict[str, dict[str, int]]

    @classmethod
    def open(cls, folder: Path) -> "TokenFolder":
        return cls(folder, **json.loads(_read(folder / "tokens.json")))

    def stream(self, split: str) -> np.ndarray:
        """The tokens of a split, uint16: every document after an end-of-text token."""
        with np.load(self.folder / "tokens.npz") as streams:
            return streams[split]


def train_tokenizer(documents: Sequence[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE [Sennrich et al., 2016]: any text can be encoded, and decodes to itself."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    tokenizer.train_from_iterator(documents, trainer, length=len(documents))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END_OF_TEXT, clean_up_tokenization_spaces=False
    )


def encode(tokenizer: PreTrainedTokenizerFast, documents: Sequence[str]) -> np.ndarray:
    """The stream of some documents: before each an end-of-text token, all concatenated, uint16."""
    encoded = tokenizer(list(documents), add_special_tokens=False, return_attention_mask=False)["input_ids"]
    return np.concatenate([np.array([tokenizer.eos_token_id, *ids], np.uint16) for ids in encoded])


def tokenize(texts: Path, out: Path, vocabulary: int) -> None:
    """Trains a tokenizer on TEXTS/training.txt and writes a token folder."""
    smallest = len(pre_tokenizers.ByteLevel.alphabet()) + 1
    if not smallest <= vocabulary <= np.iinfo(np.uint16).max + 1:
        raise InputError(f"the vocabulary is {vocabulary}; give {smallest} to {np.iinfo(np.uint16).max + 1}")
    documents = {split: _read(texts / f"{split}.txt").split("\0") for split in SPLITS}
    tokenizer = train_tokenizer(documents["training"], vocabulary)
    streams = {split: encode(tokenizer, found) for split, found in documents.items()}
    sizes = {
        split: {"tokens": len(streams[split]), "bytes": sum(len(text.encode()) for text in documents[split])}
        for split in SPLITS
    }
    out.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(out)
    np.savez_compressed(out / "tokens.npz", **streams)  # type: ignore[arg-type]
    _write_json(out / "tokens.json", {"vocabulary": len(tokenizer), "sizes": sizes})
    for split, size in sizes.items():
        print(f"{split}: {size['tokens']} tokens, {size['bytes'] / size['tokens']:.3f} bytes per token")


# ----------------------------------------------------------------------------------------------------- model


class Routing(NamedTuple):
    """One layer's routing: `probabilities` (tokens, experts), fp32, and `chosen` (tokens, top_k)."""

    probabilities: Tensor
    chosen: Tensor

    def load(self) -> Tensor:
        """The share of the choices that each expert got: (experts,), adds up to one."""
        ones = torch.ones_like(self.chosen, dtype=torch.float32).flatten()
        counts = torch.zeros_like(self.probabilities[0]).scatter_add(0, self.chosen.flatten(), ones)
        return counts / self.chosen.numel()

    def balance_loss(self) -> Tensor:
        """Load-balancing loss of one layer [Fedus et al., 2022, eq. 4]: 1 if all experts are used alike.

        transformers averages over all layers before it multiplies, so there a layer may balance another one.
        """
        return self.probabilities.shape[1] * (self.load() * self.probabilities.mean(0)).sum()


class BiasedRouter(OlmoeTopKRouter):
    """OLMoE's router with a bias in the choice of the experts, which their weights do not see; it starts at 0.

    The bias is no parameter: no gradient trains it. transformers has no such OLMoE, so that a model that holds these
    routers is for use in memory only.
    """

    bias: Tensor

    def __init__(self, router: OlmoeTopKRouter, config: PreTrainedConfig) -> None:
        super().__init__(config)
        self.weight = router.weight
        self.register_buffer("bias", torch.zeros(self.num_experts))

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As OLMoE's: (tokens, experts) logits, weights and indices (tokens, top_k) of the chosen experts."""
        logits = F.linear(hidden_states.reshape(-1, self.hidden_dim), self.weight)
        weights, chosen = choose(self, logits.softmax(-1, dtype=torch.float32))
        return logits, weights.to(logits.dtype), chosen


def choose(router: Any, probabilities: Tensor) -> tuple[Tensor, Tensor]:
    """Weights and indices (tokens, top_k) of the experts that a router chooses by (tokens, experts) probabilities."""
    if isinstance(router, BiasedRouter):
        chosen = (probabilities + router.bias).topk(router.top_k).indices
        weights = probabilities.gather(1, chosen)
    else:
        weights, chosen = probabilities.topk(router.top_k)
    if router.norm_topk_prob:
        weights = weights / weights.sum(-1, keepdim=True)
    return weights, chosen


def forward(model: Any, tokens: Tensor) -> tuple[Tensor, list[Routing]]:
    """Logits (batch, length, vocabulary) of tokens (batch, length), and the routing of each layer with experts.

    The forward pass of transformers in one piece: it compiles as a whole, and needs no hooks for the routing.
    """
    hidden = model.model.embed_tokens(tokens)
    rotation = model.model.rotary_emb(hidden, torch.arange(tokens.shape[1], device=tokens.device)[None])
    routings = []
    for layer in model.model.layers:
        hidden = hidden + layer.self_attn(layer.input_layernorm(hidden), rotation, None)[0]
        inputs = layer.post_attention_layernorm(hidden).flatten(0, 1)
        if not hasattr(layer.mlp, "experts"):
            hidden = hidden + layer.mlp(inputs).view_as(hidden)
            continue
        probabilities = F.linear(inputs, layer.mlp.gate.weight).softmax(-1, dtype=torch.float32)
        weights, chosen = choose(layer.mlp.gate, probabilities)
        mixed = layer.mlp.experts(inputs, chosen, weights.to(inputs.dtype))
        if getattr(layer.mlp, "shared_experts", None) is not None:
            mixed = mixed + layer.mlp.shared_experts(inputs)
        hidden = hidden + mixed.view_as(hidden)
        routings.append(Routing(probabilities, chosen))
    return model.lm_head(model.model.norm(hidden)), routings


def losses(
    model: PreTrainedModel, crops: Tensor, with_loads: bool = False
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Next-token loss in nats per token, the sum of the balance losses, and each layer's load (experts,) if asked for.

    crops (batch, length + 1).
    """
    logits, routings = forward(model, crops[:, :-1])
    loss = F.cross_entropy(logits.flatten(0, 1).float(), crops[:, 1:].flatten())
    loads = [routing.load() for routing in routings] if with_loads else []
    return loss, sum((routing.balance_loss() for routing in routings), loss.new_zeros(())), loads


class HeldOut(NamedTuple):
    """Total loss in nats of `tokens` predicted tokens, and the load of each expert: (layers, experts)."""

    nats: float
    tokens: int
    load: Tensor

    def balance(self) -> list[float]:
        """Per layer with experts, the least used one's share of the choices over the fair share: 1 is perfect."""
        return (self.load.amin(1) * self.load.shape[1]).tolist() if self.load.ndim else []


@torch.no_grad()
def held_out(model: PreTrainedModel, stream: Tensor, context: int) -> HeldOut:
    """Loss on a stream cut into blocks of T = `context` predicted tokens (the last shorter), each on its own.

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


# ------------------------------------------------------------------------------------------------- optimiser


def orthogonalise(matrices: Tensor) -> Tensor:
    """About U V^T of each U S V^T: (batch, rows, columns), rows <= columns; bf16, as the result is coarse."""
    a, b, c = NEWTON_SCHULZ
    x = (matrices / (matrices.norm(dim=(-2, -1), keepdim=True) + 1e-7)).bfloat16()  # singular values <= 1
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x


class Muon(torch.optim.Optimizer):
    """Nesterov momentum with orthogonalised updates [Jordan et al., 2024], for tensors (..., rows, columns).

    Unlike torch.optim.Muon it takes stacks of matrices, such as the experts of a layer, and orthogonalises
    all matrices of one shape at once. Updates are as large as AdamW's, so that both take similar rates.
    """

    def __init__(self, params: Sequence[Tensor], lr: float, weight_decay: float) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            same_shape = defaultdict(list)
            for parameter in group["params"]:
                state = self.state[parameter]
                momentum = state.setdefault("momentum", torch.zeros_like(parameter))
                momentum.lerp_(parameter.grad, 1 - MOMENTUM)
                update = parameter.grad.lerp(momentum, MOMENTUM)
                stack = update.reshape(-1, *update.shape[-2:])
                tall = stack.shape[1] > stack.shape[2]
                stack = stack.mT if tall else stack
                same_shape[stack.shape[1:]].append((parameter, tall, stack))
            for shape, members in same_shape.items():
                size = ADAM_UPDATE_SIZE * math.sqrt(max(shape))
                updates = orthogonalise(torch.cat([stack for _, _, stack in members]))
                updates = updates.split([len(stack) for _, _, stack in members])
                for (parameter, tall, _), stack in zip(members, updates, strict=True):
                    update = (stack.mT if tall else stack).reshape(parameter.shape).to(parameter.dtype)
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    parameter.add_(update, alpha=-group["lr"] * size)


class SGD(torch.optim.Optimizer):
    """SGD with momentum as torch's, and with AdamW's weight decay [SGDW, Loshchilov & Hutter, 2019].

    A step is b <- MOMENTUM b + gradient, p <- (1 - lr weight_decay) p - lr b.
    """

    def __init__(self, params: Sequence[dict[str, Any]]) -> None:
        super().__init__(params, {})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                momentum = self.state[parameter].setdefault("momentum", torch.zeros_like(parameter))
                momentum.mul_(MOMENTUM).add_(parameter.grad)
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(momentum, alpha=-group["lr"])


class OneRmsAdamW(torch.optim.Optimizer):
    """AdamW whose second moment is one number for a tensor, the mean over its entries: its steps follow gradients.

    What AdamW divides by differs between weights and makes all their steps alike; here large gradients make large
    steps, as they do under SGD, and the tensor as a whole moves as fast as under AdamW.
    """

    def __init__(self, params: Sequence[dict[str, Any]]) -> None:
        super().__init__(params, {})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                state, gradient = self.state[parameter], parameter.grad
                momentum = state.setdefault("momentum", torch.zeros_like(parameter))
                square = state.setdefault("square", parameter.new_zeros(()))
                state["step"] = state.get("step", 0) + 1
                momentum.lerp_(gradient, 1 - BETAS[0])
                square.lerp_(gradient.square().mean(), 1 - BETAS[1])
                first, second = (1 - beta ** state["step"] for beta in BETAS)
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.sub_(momentum / first / ((square / second).sqrt() + EPSILON) * group["lr"])


# -------------------------------------------------------------------------------------------------- training


@lru_cache(maxsize=1)
def _epoch(pieces: int, context: int, seed: int, epoch: int) -> np.ndarray:
    generator = np.random.default_rng((seed, epoch))
    return generator.permutation(pieces) * context + generator.integers(context)


def crop_starts(length: int, recipe: Recipe, step: int) -> np.ndarray:
    """Where the crops of a step start: each epoch cuts the stream at a new phase and visits every piece once.

    Depends on nothing but the recipe's seed and the step, so that a resumed run goes on with the same crops.
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
        self.recipe, self.step = recipe, 0
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
        _cast(self.model, torch.bfloat16 if device.type == "cuda" else torch.float32)

        def members(kind: Callable[[str, Tensor], bool]) -> list[Tensor]:
            return [master for name, master in self.masters.items() if kind(name, master)]

        def group(parameters: list[Tensor], rate: float, decay: float, sgd: bool = False) -> dict[str, Any]:
            """SGD's rate is its own, and its decay such that weights shrink as they do under another optimiser."""
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
        """One step; its next-token loss in nats per token, left on the device."""
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


def _cast(model: nn.Module, dtype: torch.dtype) -> None:
    """Parameters only: model.to(dtype) would round the frequencies of the rotary embedding too."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)


def _is_matrix(name: str, parameter: Tensor) -> bool:
    """Whether Muon may take it: attention, experts and dense FFN. Rows of embeddings, LM head and routers are tokens
    and experts, each with a gradient of its own size."""
    inside = (".self_attn." in name or ".mlp." in name) and not name.endswith(".mlp.gate.weight")
    return inside and parameter.ndim > 1


def _matrices(name: str, parameter: Tensor) -> Tensor:
    """A parameter as a stack of matrices: an expert's fused gate and up projections are two."""
    return parameter.unflatten(1, (2, -1)) if name.endswith("gate_up_proj") else parameter


def steps_within(
    seconds: float, recipe: Recipe, stream: np.ndarray, device: torch.device, compiled: bool
) -> int:
    """How many steps of a recipe take so many seconds here: timed on a run that is thrown away."""
    training = Training(recipe, stream, device, compiled)
    for _ in range(WARM_UP_STEPS):
        loss = training.advance()
    loss.item()
    start = time.perf_counter()
    for _ in range(TIMED_STEPS):
        loss = training.advance()
    loss.item()
    return max(int(seconds * TIMED_STEPS / (time.perf_counter() - start)), 1)


def train(
    tokens: TokenFolder, out: Path, recipe: Recipe, device: torch.device, compiled: bool = False
) -> None:
    """Trains a model and saves it to OUT; goes on from OUT's checkpoint if there is one."""
    if recipe.vocabulary != tokens.vocabulary:
        raise InputError(
            f"the recipe has vocabulary={recipe.vocabulary} but the tokens in {tokens.folder} have"
            f" {tokens.vocabulary}: set vocabulary={tokens.vocabulary}"
        )
    if recipe.balance_bias:
        raise InputError(
            f"balance_bias is {recipe.balance_bias}: no checkpoint of transformers' OLMoE can hold the bias; give 0"
        )
    if (out / "model.safetensors").exists():
        raise InputError(f"{out} holds a finished model: give another folder")
    training = Training(recipe, tokens.stream("training"), device, compiled)
    seconds = _resume(training, out)
    calibration = torch.from_numpy(tokens.stream("calibration").astype(np.int64)).to(device)
    out.mkdir(parents=True, exist_ok=True)
    _write_json(out / "recipe.json", asdict(recipe))
    with tqdm(total=recipe.steps, initial=training.step, unit="step", smoothing=0.1) as bar:
        for end in _entry_steps(recipe.steps, training.step):
            start, first = time.perf_counter(), training.step
            total = torch.zeros((), device=device)
            while training.step < end:
                total += training.advance()
                bar.update()
            loss = total.item() / (end - first)
            spent = time.perf_counter() - start
            if not math.isfinite(loss):
                raise InputError(f"the loss is {loss} at step {end}: lower the learning rates of the recipe")
            seconds += spent
            found = held_out(training.model, calibration, recipe.context)
            balance = found.balance()
            bits = found.nats / math.log(2) / tokens.sizes["calibration"]["bytes"]
            speed = (end - first) * recipe.batch_tokens / spent
            entry = {
                "step": end,
                "tokens": end * recipe.batch_tokens,
                "training_loss": loss,
                "calibration_loss": found.nats / found.tokens,
                "calibration_bits_per_byte": bits,
                "balance": balance,
                "seconds": seconds,
                "tokens_per_second": speed,
            }
            with (out / "log.jsonl").open("a") as log:
                log.write(json.dumps(entry) + "\n")
            _save_checkpoint(training, out, seconds)
            bar.set_postfix_str(
                f"loss {loss:.3f}, calibration {bits:.4f} bits per byte, balance {min(balance, default=1):.2f},"
                f" {speed:.0f} tokens/s"
            )
    _cast(training.model, torch.bfloat16)
    training.model.save_pretrained(out)
    PreTrainedTokenizerFast.from_pretrained(tokens.folder).save_pretrained(out)
    (out / "checkpoint.pt").unlink()


def _entry_steps(steps: int, done: int) -> Iterator[int]:
    """After which steps, beyond those done, there is a log entry; the last step is one of them."""
    entries = min(ENTRIES_PER_RUN, steps)
    return (end for entry in range(entries) if (end := (entry + 1) * steps // entries) > done)


def _save_checkpoint(training: Training, out: Path, seconds: float) -> None:
    unfinished = out / "checkpoint.unfinished"
    torch.save(training.state() | {"seconds": seconds}, unfinished)
    unfinished.replace(out / "checkpoint.pt")


def _resume(training: Training, out: Path) -> float:
    """Loads OUT's checkpoint, if any, and drops later log entries; the seconds that were spent up to it."""
    log = out / "log.jsonl"
    if not (out / "checkpoint.pt").exists():
        log.unlink(missing_ok=True)
        return 0.0
    state = torch.load(out / "checkpoint.pt", map_location=training.stream.device, weights_only=True)
    if state["recipe"] != asdict(training.recipe):
        raise InputError(
            f"{out} holds a checkpoint of another recipe: give its recipe.json, or another folder"
        )
    training.load_state(state)
    entries = log.read_text().splitlines(keepends=True)
    log.write_text("".join(entry for entry in entries if json.loads(entry)["step"] <= training.step))
    return state["seconds"]


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(
            f"{path} cannot be read ({error.strerror}): give an existing file or folder"
        ) from None


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m realmodels.pretrain", description="Trains the models that ship."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("tokenize", help="train a tokenizer and encode the corpus")
    command.add_argument("texts", type=Path)
    command.add_argument("out", type=Path)
    command.add_argument("--vocabulary", type=int, default=Recipe.vocabulary)
    command = commands.add_parser("train", help="train a model")
    command.add_argument("tokens", type=Path)
    command.add_argument("out", type=Path)
    command.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="entries of the recipe")
    command.add_argument("--recipe", type=Path, help="JSON file with entries of the recipe")
    command.add_argument("--dense", action="store_true", help="a dense model of the same active parameters")
    command.add_argument("--seconds", type=float, help="set the recipe's steps to what takes so long here")
    command.add_argument("--compile", action="store_true", help="use torch.compile")
    command.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args(arguments)
    if options.command == "tokenize":
        tokenize(options.texts, options.out, options.vocabulary)
        return
    recipe = Recipe.read(options.recipe, options.overrides)
    recipe = recipe.dense() if options.dense else recipe
    tokens, device = TokenFolder.open(options.tokens), torch.device(options.device)
    if options.seconds is not None:
        steps = steps_within(options.seconds, recipe, tokens.stream("training"), device, options.compile)
        recipe = replace(recipe, steps=steps)
    train(tokens, options.out, recipe, device, options.compile)


if __name__ == "__main__":
    run(main)
