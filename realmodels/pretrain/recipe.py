"""What decides which model is trained?"""

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Final, Literal, TypeVar, get_args

from transformers import OlmoeConfig, PreTrainedConfig

from realmodels.deepseek_moe import DeepseekConfig
from realmodels.pretrain.tokens import read_object
from theory.errors import InputError, require

Kind = TypeVar("Kind")
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
    shared_experts: int = 0  # experts that every token uses, in DeepSeekMoE
    # The first layers, this many, are dense in DeepSeekMoE, as wide as the experts that a token uses in the others.
    dense_layers: int = 0
    normalise_top_k: bool = True  # routing weights of the chosen experts add up to one
    context: int = 512  # tokens predicted per sequence
    batch_tokens: int = 65536
    pass_tokens: int = 0  # of one pass of a step; a balance loss is of one pass. 0: a step is one pass
    steps: int = 4000
    # The optimiser of attention and expert matrices. All other parameters have AdamW; "sgd" is for everything.
    optimiser: Literal["adamw", "muon", "sgd"] = "muon"
    # The optimiser of the experts alone: "same" is the optimiser of all matrices, "adamw_one_rms" is AdamW with one
    # second moment for all experts of a layer. Under every optimiser, weights shrink by the same factor in a step.
    expert_optimiser: Literal["same", "sgd", "adamw_one_rms"] = "same"
    matrix_learning_rate: float = 5e-3
    learning_rate: float = 3e-3  # embeddings, LM head, routers, norms
    sgd_learning_rate: float = 0.1  # for all parameters that SGD trains
    # The width at which rates and initial weights are as given. At others muP changes them
    # [realmodels.pretrain.transfer]. 0: they are as given at any width.
    base_width: int = 0
    warmup: float = 0.02  # share of the steps in which the rates rise from 0
    decay: float = (
        0.5  # share of the steps, at the end, in which the rates fall to 0; they are constant between
    )
    weight_decay: float = 0.1
    balance: float = 0.01  # weight of a layer's load-balancing loss beside the loss in nats per token
    # How far an expert's bias moves in a step: up if the expert has less than a fair share of the tokens, else down
    # [Wang et al., 2024]. The bias helps to choose experts, and has no part in their weights. 0: no bias.
    balance_bias: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        check_types(self)
        sgd, olmoe = self.optimiser == "sgd", self.family == "olmoe"
        together = {
            "expert_optimiser": (
                not sgd or self.expert_optimiser == "same",
                "same, as sgd is for everything",
            ),
            "sgd_learning_rate": (self.sgd_learning_rate > 0, "a number above 0"),
            "balance_bias": (olmoe or not self.balance_bias, "0, or family=olmoe"),
            "shared_experts": (not (olmoe and self.shared_experts), "0, or family=deepseek"),
            "dense_layers": (not (olmoe and self.dense_layers), "0, or family=deepseek"),
            "top_k": (self.top_k <= self.experts, f"at most experts = {self.experts}"),
            "base_width": (
                not self.base_width or (not sgd and self.expert_optimiser == "same"),
                "0, or optimiser=adamw or muon, and expert_optimiser=same",
            ),
        }
        require(self, "recipe", together)
        for name, divisor in (
            ("hidden", 2 * self.heads),
            ("hidden", ALIGNMENT),
            ("expert_width", ALIGNMENT),
            ("pass_tokens", self.context),
            ("batch_tokens", self.pass_tokens or self.context),
        ):
            require(self, "recipe", {name: (getattr(self, name) % divisor == 0, f"a multiple of {divisor}")})
        if self.warmup + self.decay > 1:
            raise InputError(f"recipe.warmup + decay is {self.warmup + self.decay}: give at most 1")

    @property
    def passes(self) -> int:
        """How many passes a step has."""
        return self.batch_tokens // (self.pass_tokens or self.batch_tokens)

    def dense(self) -> "Recipe":
        """The dense model of as many active parameters: one FFN a layer, as wide as the experts that a token uses."""
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

    def hash(self) -> str:
        """SHA-256 of the entries."""
        return entries_hash(asdict(self))


def entries_hash(entries: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(entries, sort_keys=True).encode()).hexdigest()


# Other integers are at least 1.
MAY_BE_0: Final = ("seed", "shared_experts", "dense_layers", "pass_tokens", "base_width")


def check_types(recipe: Any) -> None:
    """InputError unless each entry of the dataclass is of its type, and no number is negative."""
    own: dict[str, tuple[bool, str]] = {}
    for field in fields(recipe):
        value = getattr(recipe, field.name)
        if field.type is int:
            least = int(field.name not in MAY_BE_0)
            own[field.name] = type(value) is int and value >= least, f"an integer of at least {least}"
        elif field.type is float:
            own[field.name] = (
                type(value) in (int, float) and 0 <= value < math.inf,
                "a number that is not negative",
            )
        elif field.type is bool:
            own[field.name] = type(value) is bool, "true or false"
        else:
            allowed = get_args(field.type)
            own[field.name] = value in allowed, f"one of {', '.join(allowed)}"
    require(recipe, "recipe", own)


def entries(recipe: Recipe) -> list[str]:
    """What `read_recipe` makes the recipe of."""
    return [f"{key}={json.dumps(value)}" for key, value in asdict(recipe).items()]


def read_recipe(kind: Callable[..., Kind], file: Path | None, overrides: Sequence[str]) -> Kind:
    """Read a recipe: the defaults, changed by the entries of a JSON file and then by texts `key=value`."""
    values = {} if file is None else read_object(file)
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals:
            raise InputError(f"{override!r} is no recipe entry; give key=value")
        try:
            values[key] = json.loads(value)
        except (ValueError, RecursionError):
            values[key] = value  # a bare word
    allowed = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    for key in values:
        if key not in allowed:
            raise InputError(f"recipe: unknown entry {key!r}; allowed: {', '.join(allowed)}")
    return kind(**values)
