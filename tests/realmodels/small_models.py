"""Small random models with tokenizer and text: all that a shipped model has, made within milliseconds."""

import random
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    DeepseekV2Config,
    DeepseekV3Config,
    GptOssConfig,
    GraniteMoeConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
    MixtralConfig,
    OlmoeConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2MoeConfig,
    Qwen3MoeConfig,
)
from transformers.models.auto import AutoConfig
from transformers.models.auto.modeling_auto import AutoModelForCausalLM
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts
from transformers.models.openai_privacy_filter.modeling_openai_privacy_filter import (
    OpenAIPrivacyFilterExperts,
)

from realmodels.deepseek_moe import DeepseekConfig
from realmodels.families import describe
from realmodels.load import Model
from realmodels.pretrain import train_tokenizer

VOCABULARY, HIDDEN, INNER, LAYERS, EXPERTS, TOP_K, CONTEXT = 300, 32, 24, 2, 6, 2, 64
WORDS = "noise on analog tiles hurts dense modules more than most experts of the naïve router, the paper says"
COMMON: Mapping[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2,
    "max_position_embeddings": CONTEXT,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": 0,
}
MOE: Mapping[str, Any] = {**COMMON, "num_key_value_heads": 2, "num_experts_per_tok": TOP_K}
OLMOE: Mapping[str, Any] = {**COMMON, "num_experts": EXPERTS, "num_experts_per_tok": TOP_K}


@strict
class ListMoeConfig(LlamaConfig):
    """No model of transformers 5 holds its experts in an nn.ModuleList any more: this one does."""

    model_type = "list_moe"
    num_experts: int = EXPERTS
    num_experts_per_tok: int = TOP_K
    shared_expert: bool = False
    expert_bias: bool = True


class ListMoeExpert(nn.Module):
    def __init__(self, config: ListMoeConfig) -> None:
        super().__init__()
        hidden, inner, bias = config.hidden_size, config.intermediate_size, config.expert_bias
        self.gate_proj, self.up_proj = nn.Linear(hidden, inner, bias), nn.Linear(hidden, inner, bias)
        self.down_proj = nn.Linear(inner, hidden, bias)

    def forward(self, rows: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(rows)) * self.up_proj(rows))


class ListMoe(nn.Module):
    """Mixtral's block before transformers 5: the block knows the routing weights, the experts do not."""

    def __init__(self, config: ListMoeConfig) -> None:
        super().__init__()
        self.top_k = config.num_experts_per_tok
        self.gate = nn.Linear(config.hidden_size, config.num_experts, bias=False)
        self.experts = nn.ModuleList(ListMoeExpert(config) for _ in range(config.num_experts))
        self.shared_expert = ListMoeExpert(config) if config.shared_expert else None

    def forward(self, hidden: Tensor) -> Tensor:
        rows = hidden.flatten(0, 1)
        weights, index = self.gate(rows).float().softmax(-1).topk(self.top_k)
        weights = weights.to(rows.dtype)
        result = torch.zeros_like(rows)
        for number, expert in enumerate(self.experts):
            token, choice = torch.where(index == number)
            result.index_add_(0, token, expert(rows[token]) * weights[token, choice, None])
        if self.shared_expert is not None:
            result = result + self.shared_expert(rows)
        return result.view_as(hidden)


class ListMoeModel(LlamaModel):
    def __init__(self, config: ListMoeConfig) -> None:
        super().__init__(config)
        for layer in self.layers:
            layer.mlp = ListMoe(config)


class ListMoeForCausalLM(LlamaForCausalLM):
    config_class = ListMoeConfig

    def __init__(self, config: ListMoeConfig) -> None:
        super().__init__(config)
        self.model = ListMoeModel(config)


AutoConfig.register("list_moe", ListMoeConfig)
AutoModelForCausalLM.register(ListMoeConfig, ListMoeForCausalLM)

# Layer 0 of the models with a dense FFN has one, layer 1 has experts and shared experts.
OTHER_CONFIGS: Mapping[str, PreTrainedConfig] = {
    "mixtral": MixtralConfig(**MOE, num_local_experts=EXPERTS),
    "qwen3_moe": Qwen3MoeConfig(**MOE, num_experts=EXPERTS, moe_intermediate_size=INNER),
    "qwen2_moe": Qwen2MoeConfig(
        **MOE,
        num_experts=EXPERTS,
        moe_intermediate_size=16,
        shared_expert_intermediate_size=INNER,
        mlp_only_layers=[0],
    ),
    "deepseek": DeepseekConfig(
        **MOE, n_routed_experts=EXPERTS, n_shared_experts=1, moe_intermediate_size=16, first_k_dense_replace=1
    ),
    "deepseek_v3": DeepseekV3Config(
        **MOE,
        n_routed_experts=EXPERTS,
        n_shared_experts=1,
        moe_intermediate_size=16,
        first_k_dense_replace=1,
        q_lora_rank=8,
        kv_lora_rank=8,
        qk_nope_head_dim=8,
        qk_rope_head_dim=8,
        v_head_dim=8,
        n_group=1,
        topk_group=1,
    ),
    "deepseek_v2": DeepseekV2Config(
        **MOE,
        n_routed_experts=EXPERTS,
        n_shared_experts=1,
        moe_intermediate_size=16,
        first_k_dense_replace=1,
        q_lora_rank=8,
        kv_lora_rank=8,
        qk_nope_head_dim=8,
        qk_rope_head_dim=8,
        v_head_dim=8,
        topk_method="greedy",
        n_group=1,
        topk_group=1,
    ),
    "gpt_oss": GptOssConfig(
        **MOE,
        num_local_experts=EXPERTS,
        head_dim=16,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    ),
    "granitemoe": GraniteMoeConfig(**MOE, num_local_experts=EXPERTS),
    "list_moe": ListMoeConfig(**MOE),
}
REFUSED_CONFIGS: Mapping[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**COMMON),
}


def text(words: int, seed: int) -> str:
    return " ".join(random.Random(seed).choices(WORDS.split(), k=words))


TEXTS = tuple(text(words=60 + 20 * seed, seed=seed) for seed in range(12))


@cache
def small_tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(TEXTS, VOCABULARY)


def network_of(config: PreTrainedConfig, seed: int = 0) -> Any:
    """Weights under which activations keep their size, and routers and heads have opinions."""
    network = AutoModelForCausalLM.from_config(config)
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        if parameter.ndim > 1:
            parameter.data.normal_(0, parameter.shape[-1] ** -0.5, generator=generator)
        else:
            parameter.data.uniform_(0.5, 1.5, generator=generator)
    return network.eval().requires_grad_(False)


def small_network(seed: int = 0, **changes: Any) -> Any:
    """An OLMoE with `changes` to the config."""
    return network_of(OlmoeConfig(**{**OLMOE, **changes}), seed)


MODELS = ("olmoe", *OTHER_CONFIGS)


def network_named(name: str, seed: int = 0) -> Any:
    return network_of(OTHER_CONFIGS[name], seed) if name in OTHER_CONFIGS else small_network(seed)


@dataclass(frozen=True)
class Matrix:
    """weight (out, in) and bias (out) of one linear layer of one expert."""

    weight: Tensor
    bias: Tensor | float = 0.0


def unfused(experts: Any, number: int) -> tuple[Matrix, ...]:
    """gate, up and down of one expert, as the code of its architecture uses them."""
    if isinstance(experts, nn.ModuleList):
        linears = (getattr(experts[number], f"{name}_proj") for name in ("gate", "up", "down"))
        return tuple(Matrix(each.weight, 0.0 if each.bias is None else each.bias) for each in linears)
    gate_up, down = experts.gate_up_proj[number], experts.down_proj[number]
    if isinstance(experts, GptOssExperts):  # x @ gate_up + bias: even columns are gate, odd ones up
        bias = experts.gate_up_proj_bias[number]
        return (
            Matrix(gate_up[:, 0::2].T, bias[0::2]),
            Matrix(gate_up[:, 1::2].T, bias[1::2]),
            Matrix(down.T, experts.down_proj_bias[number]),
        )
    if isinstance(experts, OpenAIPrivacyFilterExperts):  # the same, but first gate, then up
        inner, bias = gate_up.shape[1] // 2, experts.gate_up_proj_bias[number]
        return (
            Matrix(gate_up[:, :inner].T, bias[:inner]),
            Matrix(gate_up[:, inner:].T, bias[inner:]),
            Matrix(down.T, experts.down_proj_bias[number]),
        )
    inner = gate_up.shape[0] // 2  # gate_up @ x: first gate, then up
    return Matrix(gate_up[:inner]), Matrix(gate_up[inner:]), Matrix(down)


def gated(experts: Any, gate: Tensor, up: Tensor) -> Tensor:
    """The activation of an expert, between the two products."""
    if isinstance(experts, GptOssExperts):
        gate, up = gate.clamp(max=7.0), up.clamp(-7.0, 7.0)
        return (up + 1) * gate * torch.sigmoid(1.702 * gate)
    return F.silu(gate) * up


def in_fp64(network: Any) -> Any:
    """The network in fp64, where no router and no converter notices in which order a batch was summed."""
    network.set_experts_implementation("eager")  # grouped_mm takes no fp64
    return network.double()


def as_model(network: PreTrainedModel) -> Model:
    return Model("small", network, small_tokenizer(), describe(network), "hash")


def small_model(seed: int = 0, **changes: Any) -> Model:
    return as_model(small_network(seed, **changes))


def leave_experts_idle(network: nn.Module) -> None:
    """Routers under which exactly experts 0 to 3 can be chosen: one of a pair with opposite rows is positive."""
    for name, router in network.named_parameters():
        if name.endswith("mlp.router.bias"):
            router.data.zero_()
        if name.endswith(("mlp.gate.weight", "mlp.router.weight")):
            router.data.zero_()
            router.data[0, :4] = router.data[2, 4:8] = 10.0
            router.data[1, :4] = router.data[3, 4:8] = -10.0


def save(network: PreTrainedModel, folder: Path, **options: Any) -> Path:
    """The checkpoint folder of a network with the small tokenizer."""
    network.save_pretrained(folder, **options)
    small_tokenizer().save_pretrained(folder)
    return folder
