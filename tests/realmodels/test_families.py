"""The map of a model: every parameter in one kind, and every name in a placement means something."""

from collections import Counter

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from small_models import (
    EXPERTS,
    HIDDEN,
    LAYERS,
    OTHER_CONFIGS,
    REFUSED_CONFIGS,
    network_of,
    small_network,
)
from torch import nn

from realmodels.families import DENSE_KINDS, NEVER_ANALOG_KINDS, ModelMap, MoELayer, describe
from theory.errors import InputError

OLMOE = describe(small_network())
DEEP = describe(small_network(num_hidden_layers=12))


def assert_complete(network: nn.Module) -> None:
    """Every name of a parameter is in exactly one kind."""
    found = describe(network)
    names = Counter(
        [f"{layer.experts}.{each}" for layer in found.moe_layers for each in ("gate_up_proj", "down_proj")]
        + [f"{name}.weight" for name in found.linears]
        + [name for kind in found.never_analog.values() for name in kind]
    )
    assert names == Counter(name for name, _ in network.named_parameters(remove_duplicate=False))
    assert tuple(found.dense) == DENSE_KINDS and tuple(found.never_analog) == NEVER_ANALOG_KINDS


@pytest.mark.parametrize("tied", [False, True])
def test_olmoe(tied: bool) -> None:
    network = small_network(tie_word_embeddings=tied)
    assert_complete(network)
    layers = [f"model.layers.{number}" for number in range(LAYERS)]
    assert describe(network) == ModelMap(
        moe_layers=tuple(MoELayer(f"{layer}.mlp.experts", f"{layer}.mlp.gate", EXPERTS) for layer in layers),
        dense={
            "attention": tuple(f"{layer}.self_attn.{each}_proj" for layer in layers for each in "qkvo"),
            "lm_head": ("lm_head",),
            "shared_experts": (),
            "dense_ffn": (),
        },
        never_analog={
            "embeddings": ("model.embed_tokens.weight",),
            "norms and biases": (
                *(
                    f"{layer}.{norm}.weight"
                    for layer in layers
                    for norm in (
                        "self_attn.q_norm",
                        "self_attn.k_norm",
                        "input_layernorm",
                        "post_attention_layernorm",
                    )
                ),
                "model.norm.weight",
            ),
            "routers": tuple(f"{layer}.mlp.gate.weight" for layer in layers),
        },
    )


def test_layers_come_in_the_order_of_the_model() -> None:
    """Not in that of their names, where layer 10 comes before layer 2."""
    assert [layer.experts.split(".")[2] for layer in DEEP.moe_layers] == [str(number) for number in range(12)]
    assert DEEP.num_experts == (EXPERTS,) * 12


@pytest.mark.parametrize("name", OTHER_CONFIGS)
def test_other_architectures(name: str) -> None:
    network = network_of(OTHER_CONFIGS[name])
    assert_complete(network)
    found = describe(network)
    assert all(layer.router == layer.experts.replace("experts", "gate") for layer in found.moe_layers)
    mixed = name in ("qwen2_moe", "deepseek", "deepseek_v3")
    assert [layer.experts for layer in found.moe_layers] == [
        f"model.layers.{number}.mlp.experts" for number in range(LAYERS) if number or not mixed
    ]
    projections = [f"{each}_proj" for each in ("gate", "up", "down")]
    shared_experts = {
        "qwen2_moe": (*(f"shared_expert.{each}" for each in projections), "shared_expert_gate"),
        "deepseek": tuple(f"shared_experts.{each}" for each in projections),
        "deepseek_v3": tuple(f"shared_experts.{each}" for each in projections),
    }
    assert found.dense["shared_experts"] == tuple(
        f"model.layers.1.mlp.{each}" for each in shared_experts.get(name, ())
    )
    assert found.dense["dense_ffn"] == tuple(f"model.layers.0.mlp.{each}" for each in projections if mixed)
    assert all(".self_attn." in linear for linear in found.dense["attention"])
    assert found.dense["lm_head"] == ("lm_head",)


@pytest.mark.parametrize("name", REFUSED_CONFIGS)
def test_models_that_are_not_supported(name: str) -> None:
    expected = {
        "llama": "LlamaForCausalLM has no fused experts",
        "gpt_oss": "gate_up_proj_bias .*not supported",
    }
    with pytest.raises(InputError, match=expected[name]):
        describe(network_of(REFUSED_CONFIGS[name]))


def test_a_part_of_no_known_kind_is_refused() -> None:
    network = small_network()
    network.model.layers[0].extra = nn.Parameter(torch.zeros(HIDDEN))
    assert "model.layers.0.extra" in describe(network).never_analog["norms and biases"]
    network.model.layers[1].extra = nn.Conv1d(HIDDEN, HIDDEN, 3)
    with pytest.raises(
        InputError, match=r"model.layers.1.extra.weight \(32, 32, 3\) belongs to no known kind"
    ):
        describe(network)


def test_a_part_that_shares_its_parameter_is_refused_too() -> None:
    network = small_network()
    network.extra = nn.Conv1d(1, 1, 1)
    network.extra.weight = network.lm_head.weight
    with pytest.raises(InputError, match=r"parameter extra.weight \(300, 32\) belongs to no known kind"):
        describe(network)


def test_what_is_beside_the_experts_is_not_shared() -> None:
    """However its name begins."""
    network = small_network()
    network.model.layers[1].mlp_2 = nn.Linear(HIDDEN, HIDDEN)
    assert describe(network).dense["dense_ffn"] == ("model.layers.1.mlp_2",)


def test_a_router_may_be_a_linear_layer() -> None:
    """It is none of the dense modules even so."""
    network = small_network()
    network.model.layers[1].mlp.gate = nn.Linear(HIDDEN, EXPERTS, bias=False)
    assert describe(network) == OLMOE


@pytest.mark.parametrize("candidates", [0, 2])
def test_the_router_has_to_be_known(candidates: int) -> None:
    network = small_network()
    block = network.model.layers[1].mlp
    if candidates:
        block.another = nn.Linear(HIDDEN, EXPERTS)
    else:
        del block.gate
    with pytest.raises(InputError, match=f"model.layers.1.mlp has {candidates} candidates for the router"):
        describe(network)


# ------------------------------------------------------------------------------------------- names


@given(names=st.lists(st.sampled_from([*OLMOE.linears, "attention", "lm_head", "model", "model.layers.1"])))
def test_names_mean_modules(names: list[str]) -> None:
    """Kinds, modules and what is below a module; once each, in the order of the model."""
    meant = {
        linear
        for name in names
        for linear in OLMOE.linears
        if linear in OLMOE.dense.get(name, ()) or f"{linear}.".startswith(f"{name}.")
    }
    assert OLMOE.resolve(tuple(names)) == tuple(linear for linear in OLMOE.linears if linear in meant)


def test_a_name_is_not_the_beginning_of_another() -> None:
    assert DEEP.resolve(("model.layers.1",)) == tuple(
        f"model.layers.1.self_attn.{each}_proj" for each in "qkvo"
    )


@pytest.mark.parametrize(
    "name",
    [
        "shared_experts",  # a kind of which OLMoE has none
        "experts",  # placed by index
        "routers",
        "model.layers.0.mlp",  # has experts only
        "model.layers.0.mlp.gate",
        "model.embed_tokens",
        "model.layers.2",
        "model.layers.0.self_attn.q",
        "lm_head.weight",
    ],
)
def test_names_of_nothing_are_refused(name: str) -> None:
    with pytest.raises(InputError, match=f"{name!r}, which matches no dense module.*attention, lm_head,"):
        OLMOE.resolve(("attention", name))
