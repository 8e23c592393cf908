"""The map of a model: every parameter in one kind, and every name in a placement means something."""

import math
from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from small_models import (
    EXPERTS,
    HIDDEN,
    INNER,
    LAYERS,
    MOE,
    OTHER_CONFIGS,
    REFUSED_CONFIGS,
    ListMoeConfig,
    network_of,
    small_network,
    unfused,
)
from torch import nn
from transformers.models.deepseek_v2.modeling_deepseek_v2 import DeepseekV2Experts
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts
from transformers.models.granitemoe.modeling_granitemoe import GraniteMoeExperts
from transformers.models.llama4.modeling_llama4 import Llama4TextExperts
from transformers.models.longcat_flash.modeling_longcat_flash import LongcatFlashExperts
from transformers.models.nemotron_h.modeling_nemotron_h import NemotronHExperts
from transformers.models.olmoe.modeling_olmoe import OlmoeExperts
from transformers.models.openai_privacy_filter.modeling_openai_privacy_filter import (
    OpenAIPrivacyFilterExperts,
)

from realmodels.families import (
    DENSE_KINDS,
    NEVER_ANALOG_KINDS,
    FusedLayout,
    ModelMap,
    MoELayer,
    describe,
    fused_layout,
)
from theory.errors import InputError

OLMOE = describe(small_network())
DEEP = describe(small_network(num_hidden_layers=12))


def assert_complete(network: nn.Module) -> None:
    """Every name of a parameter is in exactly one kind."""
    found = describe(network)
    names = Counter(
        [weight for layer in found.moe_layers for weight in layer.weights]
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
            "mixer": (),
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
            "indexers": (),
            "other": (),
        },
    )


def test_layers_come_in_the_order_of_the_model() -> None:
    """The order is not that of names, where layer 10 comes before layer 2."""
    assert [layer.experts.split(".")[2] for layer in DEEP.moe_layers] == [str(number) for number in range(12)]
    assert DEEP.num_experts == (EXPERTS,) * 12


@pytest.mark.parametrize("name", OTHER_CONFIGS)
def test_other_architectures(name: str) -> None:
    network = network_of(OTHER_CONFIGS[name])
    assert_complete(network)
    found = describe(network)
    block = "block_sparse_moe" if name == "granitemoe" else "mlp"
    router = "router" if name in ("gpt_oss", "granitemoe") else "gate"
    mixed = name in ("qwen2_moe", "deepseek", "deepseek_v2", "deepseek_v3")
    blocks = [f"model.layers.{number}.{block}" for number in range(LAYERS) if number or not mixed]
    assert [layer.block for layer in found.moe_layers] == blocks
    assert [layer.experts for layer in found.moe_layers] == [f"{each}.experts" for each in blocks]
    assert [layer.router for layer in found.moe_layers] == [f"{each}.{router}" for each in blocks]
    assert found.num_experts == (EXPERTS,) * len(blocks)
    assert all(bool(layer.linears) == (name == "list_moe") for layer in found.moe_layers)
    projections = [f"{each}_proj" for each in ("gate", "up", "down")]
    shared_experts = {
        "qwen2_moe": tuple(f"shared_expert.{each}" for each in projections),
        "deepseek": tuple(f"shared_experts.{each}" for each in projections),
        "deepseek_v2": tuple(f"shared_experts.{each}" for each in projections),
        "deepseek_v3": tuple(f"shared_experts.{each}" for each in projections),
    }
    assert found.dense["shared_experts"] == tuple(
        f"model.layers.1.mlp.{each}" for each in shared_experts.get(name, ())
    )
    assert found.dense["dense_ffn"] == tuple(f"model.layers.0.mlp.{each}" for each in projections if mixed)
    assert all(".self_attn." in linear for linear in found.dense["attention"])
    assert found.dense["lm_head"] == ("lm_head",)
    gates = [name for name in found.never_analog["routers"] if "shared" in name]
    assert gates == ["model.layers.1.mlp.shared_expert_gate.weight"] * (name == "qwen2_moe")


def test_biases_of_experts_are_never_analog() -> None:
    found = describe(network_of(OTHER_CONFIGS["gpt_oss"])).never_analog
    for name in ("gate_up_proj_bias", "down_proj_bias"):
        assert f"model.layers.1.mlp.experts.{name}" in found["norms and biases"]
    assert "model.layers.1.mlp.router.bias" in found["routers"]


@pytest.mark.parametrize("name", REFUSED_CONFIGS)
def test_models_that_are_not_supported(name: str) -> None:
    expected = {"llama": "LlamaForCausalLM has no fused experts .* and no nn.ModuleList of experts"}
    with pytest.raises(InputError, match=expected[name]):
        describe(network_of(REFUSED_CONFIGS[name]))


def test_what_is_no_linear_layer_is_never_analog() -> None:
    """Vectors are norms and biases; convolutions, and linear layers that compute something else, are other parts."""

    class Grouped(nn.Linear):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return super().forward(input).relu()

    network = small_network()
    network.model.layers[0].extra = zeros(HIDDEN)
    network.model.layers[1].extra = nn.Conv1d(HIDDEN, HIDDEN, 3)
    network.model.layers[1].grouped = Grouped(HIDDEN, HIDDEN, bias=False)
    found = describe(network).never_analog
    assert "model.layers.0.extra" in found["norms and biases"]
    assert "model.layers.1.extra.bias" in found["norms and biases"]
    assert found["other"] == ("model.layers.1.extra.weight", "model.layers.1.grouped.weight")
    assert_complete(network)


def test_linear_layers_beside_a_convolution_are_a_mixer() -> None:
    """So are those of attention in a layer that the config declares to be linear. Convolutions within attention, as
    before its keys, make no mixer of it."""
    network = small_network()
    first, second = network.model.layers
    first.mamba = nn.ModuleDict(
        {"conv1d": nn.Conv1d(4, 4, 3), "in_proj": nn.Linear(4, 4), "dt_proj": nn.Linear(4, 4)}
    )
    second.self_attn.keys = nn.ModuleDict({"conv": nn.Conv1d(4, 4, 3), "linear": nn.Linear(4, 4)})
    found = describe(network)
    assert found.dense["mixer"] == ("model.layers.0.mamba.in_proj",)
    assert (
        "model.layers.0.mamba.dt_proj.weight" in found.never_analog["other"]
    )  # its weight is read by a kernel
    assert "model.layers.1.self_attn.keys.linear" in found.dense["attention"]
    network.config.layer_types = ["linear_attention", "full_attention"]
    assert describe(network).dense["mixer"] == tuple(
        f"model.layers.0.{each}" for each in (*(f"self_attn.{name}_proj" for name in "qkvo"), "mamba.in_proj")
    )


def test_indexers_are_never_analog() -> None:
    """They choose what attention reads, as routers choose experts, and the loss has no gradient there."""

    class SparseIndexer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wk = nn.Linear(HIDDEN, 8)

    network = small_network()
    network.model.layers[1].self_attn.indexer = SparseIndexer()
    found = describe(network)
    assert found.never_analog["indexers"] == tuple(
        f"model.layers.1.self_attn.indexer.wk.{each}" for each in ("weight", "bias")
    )
    assert not any("indexer" in name for name in found.linears)


def test_what_is_beside_the_experts_is_not_shared() -> None:
    """The beginning of the name makes no difference."""
    network = small_network()
    network.model.layers[1].mlp_2 = nn.Linear(HIDDEN, HIDDEN)
    assert describe(network).dense["dense_ffn"] == ("model.layers.1.mlp_2",)


def test_a_router_may_be_a_linear_layer() -> None:
    """Even so the router is none of the dense modules."""
    network = small_network()
    network.model.layers[1].mlp.gate = nn.Linear(HIDDEN, EXPERTS, bias=False)
    assert describe(network) == OLMOE


def test_a_router_is_what_the_network_declares() -> None:
    """Whatever else has as many rows as there are experts."""
    network = small_network()
    network.model.layers[1].mlp.another = nn.Linear(HIDDEN, EXPERTS, bias=False)
    found = describe(network)
    assert found.moe_layers == OLMOE.moe_layers
    assert found.dense["shared_experts"] == ("model.layers.1.mlp.another",)


@pytest.mark.parametrize("candidates", [0, 2])
def test_the_router_has_to_be_known(candidates: int) -> None:
    network = small_network()
    block = network.model.layers[1].mlp
    del block.gate
    for number in range(candidates):
        block.add_module(f"gate_{number}", nn.Linear(HIDDEN, EXPERTS))
    with pytest.raises(InputError, match=f"model.layers.1.mlp has {candidates} candidates for the router"):
        describe(network)


# ------------------------------------------------------------------------------------------- fused layouts


CONFIG = SimpleNamespace(
    hidden_size=HIDDEN,
    intermediate_size=INNER,
    moe_intermediate_size=INNER,
    expert_ffn_hidden_size=INNER,
    num_experts=EXPERTS,
    n_routed_experts=EXPERTS,
    num_local_experts=EXPERTS,
    zero_expert_num=2,
    moe_latent_size=None,
    mlp_hidden_act="relu2",
    hidden_act="silu",
    swiglu_alpha=1.702,
    swiglu_limit=7.0,
)
LAYOUTS: dict[str, tuple[type[nn.Module], FusedLayout]] = {
    "olmoe": (OlmoeExperts, FusedLayout()),
    "deepseek_v2": (DeepseekV2Experts, FusedLayout()),
    "granitemoe": (GraniteMoeExperts, FusedLayout()),
    "openai_privacy_filter": (OpenAIPrivacyFilterExperts, FusedLayout(transposed=True, biased=True)),
    "gpt_oss": (GptOssExperts, FusedLayout(transposed=True, interleaved=True, biased=True)),
    "nemotron_h": (NemotronHExperts, FusedLayout(gated=False)),
    "longcat_flash": (LongcatFlashExperts, FusedLayout(identities=2)),
    "llama4": (Llama4TextExperts, FusedLayout(transposed=True, weighted_inputs=True)),
}


def experts_of(kind: type[Any]) -> Any:
    experts = kind(CONFIG)
    for parameter in experts.parameters():
        parameter.data.normal_(generator=torch.Generator().manual_seed(0))
    return experts


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts_of_transformers(name: str) -> None:
    kind, expected = LAYOUTS[name]
    assert fused_layout(experts_of(kind)) == expected


LAYOUT = st.builds(FusedLayout, transposed=st.booleans(), interleaved=st.booleans(), biased=st.booleans())
SIZE = st.integers(1, 5)


@given(layout=LAYOUT, experts=SIZE, hidden=SIZE, inner=SIZE)
def test_matrices_are_views_and_stored_is_their_inverse(
    layout: FusedLayout, experts: int, hidden: int, inner: int
) -> None:
    for name, size in (("gate_up_proj", (2, inner, hidden)), ("down_proj", (1, hidden, inner))):
        shape = layout.shapes(experts, hidden, inner)[name]
        parameter = torch.arange(math.prod(shape)).view(shape)
        matrices = layout.matrices(name, parameter)
        assert matrices.shape == (experts, *size) and matrices.data_ptr() == parameter.data_ptr()
        stored = layout.stored(name, matrices)
        assert torch.equal(stored, parameter) and stored.is_contiguous()


@given(layout=LAYOUT, experts=SIZE, hidden=SIZE, inner=SIZE)
def test_outputs_in_either_order(layout: FusedLayout, experts: int, hidden: int, inner: int) -> None:
    """Outputs of the product with the parameter as it is stored, and of the products with gate and with up."""
    shape = layout.shapes(experts, hidden, inner)["gate_up_proj"]
    parameter = torch.arange(math.prod(shape)).view(shape)
    x = torch.arange(3 * hidden).view(3, hidden)
    for expert, (gate, up) in enumerate(layout.matrices("gate_up_proj", parameter)):
        both = x @ (parameter[expert] if layout.transposed else parameter[expert].T)
        canonical = torch.cat([x @ gate.T, x @ up.T], 1)
        assert torch.equal(layout.gate_then_up(both), canonical)
        assert torch.equal(layout.stored_order(canonical), both)
        assert torch.equal(x @ layout.rows("gate_up_proj", parameter)[expert].T, both)


@pytest.mark.parametrize("name", ["olmoe", "openai_privacy_filter", "gpt_oss"])
def test_matrices_are_those_of_the_architecture(name: str) -> None:
    experts = experts_of(LAYOUTS[name][0])
    layout = fused_layout(experts)
    for number in range(EXPERTS):
        gate, up, down = (matrix.weight for matrix in unfused(experts, number))
        assert torch.equal(
            layout.matrices("gate_up_proj", experts.gate_up_proj)[number], torch.stack([gate, up])
        )
        assert torch.equal(layout.matrices("down_proj", experts.down_proj)[number, 0], down)


def changed(kind: type[nn.Module] = OlmoeExperts, **attributes: Any) -> Any:
    experts = experts_of(kind)
    for name, value in attributes.items():
        setattr(experts, name, value)
    return experts


def without(kind: type[nn.Module], name: str) -> Any:
    experts = experts_of(kind)
    delattr(experts, name)
    return experts


def zeros(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.zeros(shape))


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "no gate": (lambda: changed(has_gate=False), "has_gate=False"),
    "no activation": (lambda: without(NemotronHExperts, "act_fn"), "no act_fn"),
    "norm": (lambda: changed(has_post_expert_norm=True), "has_post_expert_norm=True"),
    "no routing": (lambda: changed(forward=lambda hidden: hidden), "a forward that does not take"),
    "other numbers": (
        lambda: changed(gate_up_proj=zeros(EXPERTS + 2, 2 * INNER, HIDDEN)),
        r"gate_up_proj \(8, 48, 32\)",
    ),
    "expert parallel": (lambda: changed(_is_expert_parallel=True), "_is_expert_parallel=True"),
    "declared transposed": (lambda: changed(is_transposed=True), "is_transposed=True"),
    "declared straight": (lambda: changed(GptOssExperts, is_transposed=False), "is_transposed=False"),
    "declared biased": (lambda: changed(has_bias=True), "has_bias=True"),
    "declared unbiased": (lambda: changed(GptOssExperts, has_bias=False), "has_bias=False"),
    "one bias": (
        lambda: without(GptOssExperts, "down_proj_bias"),
        r"gate_up_proj_bias \(6, 48\), down_proj .*: this layout",
    ),
    "short bias": (
        lambda: changed(GptOssExperts, down_proj_bias=zeros(EXPERTS, INNER)),
        r"down_proj_bias \(6, 24\): this layout",
    ),
    "other parameters": (lambda: changed(scale=zeros(EXPERTS)), r"scale \(6,\): this layout"),
    "odd": (
        lambda: changed(gate_up_proj=zeros(EXPERTS, 2 * INNER + 1, HIDDEN)),
        r"\(6, 49, 32\).*: this layout",
    ),
    "one transposed": (
        lambda: changed(down_proj=zeros(EXPERTS, INNER, HIDDEN)),
        r"\(6, 24, 32\): this layout",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_layouts_are_refused(name: str) -> None:
    """The model is refused as soon as it is described, whatever the other layers are."""
    make, message = REFUSED[name]
    network = small_network()
    network.model.layers[1].mlp.experts = make()
    with pytest.raises(InputError, match=message) as caught:
        describe(network)
    assert "\n" not in str(caught.value)


def test_experts_without_an_activation_are_refused() -> None:
    experts = nn.Module()
    experts.gate_up_proj, experts.down_proj = zeros(EXPERTS, 2 * INNER, HIDDEN), zeros(EXPERTS, HIDDEN, INNER)
    with pytest.raises(InputError, match="no _apply_gate and no act_fn: this layout"):
        fused_layout(experts)
    experts.act_fn = nn.SiLU()
    assert fused_layout(experts) == FusedLayout()


# ------------------------------------------------------------------------------------------- lists of experts


def list_moe(**changes: Any) -> Any:
    return network_of(ListMoeConfig(**{**MOE, **changes}))


def test_experts_in_a_list() -> None:
    found = describe(list_moe(shared_expert=True))
    names = [[f"{each}_proj" for each in ("gate", "up", "down")]] * EXPERTS
    for number, layer in enumerate(found.moe_layers):
        block = f"model.layers.{number}.mlp"
        linears = tuple(
            tuple(f"{block}.experts.{expert}.{each}" for each in each_of)
            for expert, each_of in enumerate(names)
        )
        assert layer == MoELayer(f"{block}.experts", f"{block}.gate", EXPERTS, linears)
        assert layer.weights == tuple(f"{linear}.weight" for each in linears for linear in each)
        assert f"{block}.experts.3.up_proj.bias" in found.never_analog["norms and biases"]
    assert len(found.moe_layers) == LAYERS
    assert found.dense["shared_experts"] == tuple(
        f"model.layers.{number}.mlp.shared_expert.{each}" for number in range(LAYERS) for each in names[0]
    )
    assert found.dense["dense_ffn"] == ()
    assert_complete(list_moe(shared_expert=True))


def test_experts_may_have_any_structure() -> None:
    """Experts may hold linear layers at any depth, or be one, with or without norms."""
    network = list_moe()
    network.model.layers[0].mlp.experts = nn.ModuleList(nn.Linear(HIDDEN, HIDDEN) for _ in range(EXPERTS))
    network.model.layers[1].mlp.experts = nn.ModuleList(
        nn.Sequential(nn.Sequential(nn.Linear(HIDDEN, 5)), nn.Linear(5, HIDDEN), nn.LayerNorm(HIDDEN))
        for _ in range(EXPERTS)
    )
    assert_complete(network)
    plain, nested = describe(network).moe_layers
    assert plain.linears[2] == ("model.layers.0.mlp.experts.2",)
    assert nested.linears[2] == ("model.layers.1.mlp.experts.2.0.0", "model.layers.1.mlp.experts.2.1")


def test_a_list_without_a_router_is_no_layer_of_experts() -> None:
    """Lists that hold anything but linear layers are not experts: decoder layers, or norms."""
    network = list_moe()
    block = network.model.layers[1].mlp
    del block.gate
    block.norms = nn.ModuleList(nn.LayerNorm(HIDDEN) for _ in range(EXPERTS))
    found = describe(network)
    assert [layer.block for layer in found.moe_layers] == ["model.layers.0.mlp"]
    assert found.dense["dense_ffn"] == tuple(
        f"model.layers.1.mlp.experts.{expert}.{each}_proj"
        for expert in range(EXPERTS)
        for each in ("gate", "up", "down")
    )
    embedded = list_moe()
    del embedded.model.layers[1].mlp.gate
    embedded.model.layers[1].mlp.positions = nn.Embedding(EXPERTS, HIDDEN)
    assert len(describe(embedded).moe_layers) == 1


def test_the_router_of_a_list_has_to_be_known() -> None:
    network = list_moe()
    network.model.layers[1].mlp.another = nn.Linear(HIDDEN, EXPERTS)
    with pytest.raises(
        InputError, match="model.layers.1.mlp has 2 candidates for the router of its 6 experts"
    ):
        describe(network)


@pytest.mark.parametrize("change", ["size", "name", "none"])
def test_experts_of_a_list_have_to_be_alike(change: str) -> None:
    network = list_moe()
    experts = network.model.layers[1].mlp.experts
    expert = experts[4]
    if change == "none":  # as one that returns its inputs
        experts[4] = nn.Identity()
    elif change == "size":
        expert.up_proj, expert.down_proj = nn.Linear(HIDDEN, 5), nn.Linear(5, HIDDEN)
    else:
        expert.w1 = expert.gate_proj
        del expert.gate_proj
    with pytest.raises(InputError, match="model.layers.1.mlp.experts holds experts of different shapes"):
        describe(network)


def test_experts_of_a_list_with_other_weights_are_refused() -> None:
    network = list_moe()
    for expert in network.model.layers[1].mlp.experts:
        expert.extra = zeros(HIDDEN, HIDDEN)
    with pytest.raises(InputError, match=r"experts.0.extra \(32, 32\) is of an expert"):
        describe(network)


# ------------------------------------------------------------------------------------------- names


@given(names=st.lists(st.sampled_from([*OLMOE.linears, "attention", "lm_head", "model", "model.layers.1"])))
def test_names_mean_modules(names: list[str]) -> None:
    """Names may be kinds, modules and what is below a module; each linear comes once, in the order of the model."""
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
