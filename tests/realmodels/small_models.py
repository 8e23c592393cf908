"""Small random models with tokenizer and text: all that a shipped model has, made within milliseconds."""

import random
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    DeepseekV3Config,
    GptOssConfig,
    LlamaConfig,
    MixtralConfig,
    OlmoeConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2MoeConfig,
    Qwen3MoeConfig,
)
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

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
}
REFUSED_CONFIGS: Mapping[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**COMMON),
    "gpt_oss": GptOssConfig(**MOE, num_local_experts=EXPERTS, head_dim=16),  # its experts have biases
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
    """OLMoE; `changes` to its config."""
    return network_of(OlmoeConfig(**{**OLMOE, **changes}), seed)


def in_fp64(network: Any) -> Any:
    """Where no router and no converter notices in which order a batch was summed."""
    network.set_experts_implementation("eager")  # grouped_mm takes no fp64
    return network.double()


def as_model(network: PreTrainedModel) -> Model:
    return Model("small", network, small_tokenizer(), describe(network), "hash")


def small_model(seed: int = 0, **changes: Any) -> Model:
    return as_model(small_network(seed, **changes))


def leave_experts_idle(network: nn.Module) -> None:
    """Routers under which exactly experts 0 to 3 can be chosen: one of a pair with opposite rows is positive."""
    for name, router in network.named_parameters():
        if name.endswith("mlp.gate.weight"):
            router.data.zero_()
            router.data[0, :4] = router.data[2, 4:8] = 10.0
            router.data[1, :4] = router.data[3, 4:8] = -10.0


def save(network: PreTrainedModel, folder: Path, **options: Any) -> Path:
    """The checkpoint folder of a network with the small tokenizer."""
    network.save_pretrained(folder, **options)
    small_tokenizer().save_pretrained(folder)
    return folder
