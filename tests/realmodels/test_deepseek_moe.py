"""The native DeepSeekMoE against an independent statement of the same equations, on the original tensors' names."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_models import CONTEXT, EXPERTS, HIDDEN, INNER, TOP_K, VOCABULARY, network_of
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from realmodels.deepseek_moe import DeepseekConfig, DeepseekForCausalLM, DeepseekModel

# As in deepseek-moe-16b-base's config.json, which names code of its own; the numbers that set the size are ours.
ORIGINAL: dict[str, Any] = {
    "architectures": ["DeepseekForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "auto_map": {
        "AutoConfig": "configuration_deepseek.DeepseekConfig",
        "AutoModel": "modeling_deepseek.DeepseekModel",
        "AutoModelForCausalLM": "modeling_deepseek.DeepseekForCausalLM",
    },
    "aux_loss_alpha": 0.001,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "first_k_dense_replace": 1,
    "hidden_act": "silu",
    "hidden_size": HIDDEN,
    "initializer_range": 0.02,
    "intermediate_size": 2 * INNER,
    "max_position_embeddings": CONTEXT,
    "model_type": "deepseek",
    "moe_intermediate_size": INNER,
    "moe_layer_freq": 1,
    "n_routed_experts": EXPERTS,
    "n_shared_experts": 2,
    "norm_topk_prob": False,
    "num_attention_heads": 2,
    "num_experts_per_tok": TOP_K,
    "num_hidden_layers": 4,
    "num_key_value_heads": 2,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 10000,
    "scoring_func": "softmax",
    "seq_aux": True,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
    "transformers_version": "4.36.0",
    "use_cache": True,
    "vocab_size": VOCABULARY,
}
TOKENS = torch.randint(0, VOCABULARY, (2, 20), generator=torch.Generator().manual_seed(0))


def tensors(config: dict[str, Any], seed: int = 0) -> dict[str, Tensor]:
    """Random weights under the names of the original checkpoints."""
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    key_width = hidden // heads * config["num_key_value_heads"]
    shapes = {
        "model.embed_tokens": (VOCABULARY, hidden),
        "lm_head": (VOCABULARY, hidden),
        "model.norm": (hidden,),
    }

    def ffn(name: str, width: int) -> None:
        shapes[f"{name}.gate_proj"] = shapes[f"{name}.up_proj"] = (width, hidden)
        shapes[f"{name}.down_proj"] = (hidden, width)

    for number in range(config["num_hidden_layers"]):
        layer = f"model.layers.{number}"
        shapes[f"{layer}.input_layernorm"] = shapes[f"{layer}.post_attention_layernorm"] = (hidden,)
        shapes[f"{layer}.self_attn.q_proj"] = shapes[f"{layer}.self_attn.o_proj"] = (hidden, hidden)
        shapes[f"{layer}.self_attn.k_proj"] = shapes[f"{layer}.self_attn.v_proj"] = (key_width, hidden)
        if number < config["first_k_dense_replace"] or number % config["moe_layer_freq"]:
            ffn(f"{layer}.mlp", config["intermediate_size"])
            continue
        shapes[f"{layer}.mlp.gate"] = (config["n_routed_experts"], hidden)
        for expert in range(config["n_routed_experts"]):
            ffn(f"{layer}.mlp.experts.{expert}", config["moe_intermediate_size"])
        if config["n_shared_experts"]:
            width = config["n_shared_experts"] * config["moe_intermediate_size"]
            ffn(f"{layer}.mlp.shared_experts", width)
    generator = torch.Generator().manual_seed(seed)
    return {
        f"{name}.weight": torch.randn(shape, generator=generator) * shape[-1] ** -0.5
        if len(shape) > 1
        else torch.rand(shape, generator=generator) + 0.5
        for name, shape in shapes.items()
    }


def logits(config: dict[str, Any], weights: dict[str, Tensor], tokens: Tensor) -> Tensor:
    """Compute token by token where a token matters, in fp64; shapes (length,) to (length, vocabulary)."""
    weights = {name: weight.double() for name, weight in weights.items()}

    def norm(x: Tensor, name: str) -> Tensor:
        return (
            x
            / (x.square().mean(-1, keepdim=True) + config["rms_norm_eps"]).sqrt()
            * weights[f"{name}.weight"]
        )

    def ffn(x: Tensor, name: str) -> Tensor:
        gate, up, down = (weights[f"{name}.{each}_proj.weight"] for each in ("gate", "up", "down"))
        return down @ (F.silu(gate @ x) * (up @ x))

    def mixture(x: Tensor, name: str) -> Tensor:
        probabilities = (weights[f"{name}.gate.weight"] @ x).softmax(0)
        chosen = probabilities.argsort(descending=True)[: config["num_experts_per_tok"]].tolist()
        normalised = config["norm_topk_prob"] and len(chosen) > 1  # the weight of one expert is never 1
        total = sum(float(probabilities[expert]) for expert in chosen) if normalised else 1.0
        result = torch.zeros_like(x)
        for expert in chosen:
            result += probabilities[expert] / total * ffn(x, f"{name}.experts.{expert}")
        return result + ffn(x, f"{name}.shared_experts") if config["n_shared_experts"] else result

    def rotate(x: Tensor) -> Tensor:
        """Pairs (i, i + half) of a head turn by position * theta^(-i/half)."""
        half = x.shape[-1] // 2
        frequency = config["rope_theta"] ** (-torch.arange(half, dtype=torch.float64) / half)
        angle = torch.arange(len(x))[:, None] * frequency
        first, second = x[:, :half], x[:, half:]
        return torch.cat(
            [first * angle.cos() - second * angle.sin(), second * angle.cos() + first * angle.sin()], -1
        )

    def attention(x: Tensor, name: str) -> Tensor:
        query, key, value = (x @ weights[f"{name}.{each}_proj.weight"].T for each in "qkv")
        width = config["hidden_size"] // config["num_attention_heads"]
        sharing = config["num_attention_heads"] // config["num_key_value_heads"]
        outputs = []
        for head in range(config["num_attention_heads"]):
            mine = slice(head * width, (head + 1) * width)
            shared = slice(head // sharing * width, (head // sharing + 1) * width)
            scores = rotate(query[:, mine]) @ rotate(key[:, shared]).T / math.sqrt(width)
            scores = scores.masked_fill(torch.ones_like(scores).triu(1).bool(), -math.inf)
            outputs.append(scores.softmax(-1) @ value[:, shared])
        return torch.cat(outputs, -1) @ weights[f"{name}.o_proj.weight"].T

    x = weights["model.embed_tokens.weight"][tokens]
    for number in range(config["num_hidden_layers"]):
        layer = f"model.layers.{number}"
        x = x + attention(norm(x, f"{layer}.input_layernorm"), f"{layer}.self_attn")
        inputs = norm(x, f"{layer}.post_attention_layernorm")
        block = mixture if f"{layer}.mlp.gate.weight" in weights else ffn
        x = x + torch.stack([block(row, f"{layer}.mlp") for row in inputs])
    return norm(x, "model.norm") @ weights["lm_head.weight"].T


def checkpoint(folder: Path, seed: int = 0, **changes: Any) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """An original checkpoint in `folder`: its config and tensors."""
    config = {**ORIGINAL, **changes}
    weights = tensors(config, seed)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return config, weights


def load(folder: Path, **options: Any) -> Any:
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        folder, trust_remote_code=False, output_loading_info=True, **options
    )
    network, report = loaded
    assert not any(report[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return network.eval()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"norm_topk_prob": True, "num_experts_per_tok": EXPERTS},
        {"norm_topk_prob": True, "num_experts_per_tok": 1},
        {"n_shared_experts": None, "moe_layer_freq": 2, "num_key_value_heads": 1},
        {"first_k_dense_replace": 3, "rope_theta": 500.0},
    ],
    ids=str,
)
@pytest.mark.parametrize("experts", ["eager", "grouped_mm"])
def test_logits_are_those_of_the_equations(tmp_path: Path, changes: dict[str, Any], experts: str) -> None:
    config, weights = checkpoint(tmp_path, **changes)
    network = load(tmp_path, experts_implementation=experts)
    with torch.no_grad():
        found = network(input_ids=TOKENS).logits
    expected = torch.stack([logits(config, weights, tokens) for tokens in TOKENS])
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()


def test_checkpoints_keep_their_names(tmp_path: Path) -> None:
    _, weights = checkpoint(tmp_path)
    load(tmp_path).save_pretrained(tmp_path / "saved")
    saved = load_file(tmp_path / "saved" / "model.safetensors")
    assert saved.keys() == weights.keys()
    assert all(torch.equal(saved[name], weight) for name, weight in weights.items())


def test_auto_classes_know_it(tmp_path: Path) -> None:
    checkpoint(tmp_path)
    assert isinstance(load(tmp_path), DeepseekForCausalLM)
    assert isinstance(AutoConfig.from_pretrained(tmp_path), DeepseekConfig)
    assert isinstance(AutoModel.from_config(DeepseekConfig(**small())), DeepseekModel)


def small() -> dict[str, Any]:
    return {name: value for name, value in ORIGINAL.items() if name not in ("auto_map", "architectures")}


def network() -> Any:
    return network_of(DeepseekConfig(**small()))


def test_defaults_are_those_of_the_published_model() -> None:
    """16.4 billion parameters, 2.8 billion of them used for each token [arXiv 2401.06066, table 1]."""
    with torch.device("meta"):
        model = DeepseekForCausalLM(DeepseekConfig())
    total = sum(parameter.numel() for parameter in model.parameters())
    experts = 27 * 64 * 3 * 2048 * 1408
    assert round(total / 1e9, 1) == 16.4
    assert round((total - experts * (64 - 6) / 64) / 1e9, 1) == 2.8


def test_cached_generation_is_uncached_generation() -> None:
    model, options = (
        network(),
        {"max_new_tokens": 12, "do_sample": False, "attention_mask": torch.ones_like(TOKENS)},
    )
    cached, uncached = (model.generate(TOKENS, use_cache=use, **options) for use in (True, False))
    assert torch.equal(cached, uncached) and cached.shape[1] > TOKENS.shape[1]
    with torch.no_grad():
        whole = model(input_ids=cached).logits
        start = model(input_ids=cached[:, :7], use_cache=True)
        rest = model(input_ids=cached[:, 7:], past_key_values=start.past_key_values, use_cache=True).logits
    torch.testing.assert_close(torch.cat([start.logits, rest], 1), whole, rtol=1e-5, atol=1e-5)


def test_padding_changes_nothing() -> None:
    model = network()
    padded = torch.cat([torch.zeros(2, 3, dtype=torch.long), TOKENS], 1)
    mask = (torch.arange(padded.shape[1]) >= 3).long().expand_as(padded)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        found = model(input_ids=padded, attention_mask=mask, position_ids=positions).logits[:, 3:]
        torch.testing.assert_close(found, model(input_ids=TOKENS).logits, rtol=1e-5, atol=1e-5)


def test_gradient_checkpointing_gives_the_same_gradients() -> None:
    gradients = []
    for checkpointing in (False, True):
        model = network().train().requires_grad_(True)
        if checkpointing:
            model.gradient_checkpointing_enable()
        model(input_ids=TOKENS, labels=TOKENS, use_cache=False).loss.backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    assert all(value is not None and value.any() for value in gradients[0].values())
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-5, atol=1e-7)


def test_router_logits_are_those_of_the_layers_with_experts() -> None:
    output = network().model(input_ids=TOKENS, output_router_logits=True)
    assert [tuple(each.shape) for each in output.router_logits] == [(TOKENS.numel(), EXPERTS)] * 3


def test_weights_start_at_the_config_s_scale() -> None:
    torch.manual_seed(0)
    model = DeepseekForCausalLM(DeepseekConfig(**small() | {"initializer_range": 0.5}))
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            # The variance of n normal draws has standard error sqrt(2/n) of itself; 6.2 of them fail once in 1e9.
            error = 6.2 * math.sqrt(2 / parameter.numel())
            assert abs(float(parameter.detach().double().var()) / 0.25 - 1) < error, name


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"scoring_func": "sigmoid"}, "scoring_func"), ({"num_experts_per_tok": 7}, "num_experts_per_tok is 7")],
)
def test_other_routings_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(Exception, match=message):
        DeepseekConfig(**small() | changes)
