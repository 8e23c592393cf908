"""Routing: counted again from the routers themselves, and nothing is left behind in the model."""

from typing import Any

import pytest
import torch
from small_models import (
    EXPERTS,
    HIDDEN,
    LAYERS,
    MODELS,
    MOE,
    TEXTS,
    TOP_K,
    ListMoe,
    ListMoeConfig,
    as_model,
    in_fp64,
    leave_experts_idle,
    network_named,
    network_of,
    small_model,
    small_network,
)
from torch import Tensor, nn

from realmodels import deploy, scores
from realmodels.evaluate import block_results, token_blocks
from realmodels.load import Model
from realmodels.record import hooked
from realmodels.statistics import _listeners, observe, routing
from theory.errors import InputError
from theory.hardware import Hardware
from theory.placement import Placement, Strategy

MODEL = small_model()
MEASURED: tuple[Strategy, ...] = ("activation_frequency", "activation_weight")


def routed(model: Model) -> tuple[list[Tensor], list[Tensor]]:
    """Experts and weights of every token, by layer, as the routers themselves return them, or logits that decide."""
    indices: list[Tensor] = []
    weights: list[Tensor] = []

    def watch(_: Any, __: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            weight, index = output.float().softmax(-1).topk(TOP_K)
        else:  # logits are beside these two, in an order that is not the same in all releases
            (index,) = (each for each in output if not each.is_floating_point())
            (weight,) = (each for each in output if each.is_floating_point() and each.shape == index.shape)
        weights.append(weight)
        indices.append(index)

    handles = [
        model.network.get_submodule(layer.router).register_forward_hook(watch)
        for layer in model.map.moe_layers
    ]
    model.network(input_ids=token_blocks(model, TEXTS).tokens[:, :-1])
    for handle in handles:
        handle.remove()
    return indices, weights


@pytest.mark.parametrize("name", ["idle", "normalised", "idle list", "shared list", *MODELS])
def test_routing_is_that_of_the_routers(name: str) -> None:
    network = network_named(name)
    if name.endswith("list"):
        network = network_of(ListMoeConfig(**MOE, shared_expert=name.startswith("shared")))
    if name.startswith("idle"):
        leave_experts_idle(network)
    if name == "normalised":
        network = small_network(norm_topk_prob=True)
    model = as_model(in_fp64(network))
    found = routing(model, TEXTS)
    frequencies, weights = scores(model, MEASURED[0], TEXTS), scores(model, MEASURED[1], TEXTS)
    assert torch.equal(found.frequency, frequencies) and torch.equal(found.weight, weights)
    assert frequencies.dtype == weights.dtype == torch.float64
    if name != "deepseek_v3":  # whose router returns logits, and its block chooses
        for layer, (index, weight) in enumerate(zip(*routed(model), strict=True)):
            tokens = len(index)
            for expert in range(EXPERTS):
                chosen = index == expert
                assert float(frequencies[layer, expert]) == pytest.approx(
                    int(chosen.sum()) / tokens, abs=1e-12
                )
                mean = float(weight[chosen].double().sum()) / tokens
                assert float(weights[layer, expert]) == pytest.approx(mean, abs=1e-12)
    assert torch.allclose(frequencies.sum(1), torch.tensor(float(TOP_K)).double(), rtol=0, atol=1e-12)
    assert (weights <= frequencies + 1e-12).all() or name == "deepseek_v3"  # which scales its weights
    if name.startswith("idle"):
        assert (
            (frequencies[:, 4:] == 0).all() and (weights[:, 4:] == 0).all() and (frequencies[:, :4] > 0).all()
        )
    if name in ("normalised", "mixtral", "gpt_oss", "granitemoe"):
        assert weights.sum(1).tolist() == pytest.approx([1.0] * LAYERS, abs=1e-6)


@pytest.mark.parametrize("name", ["olmoe", "list_moe"])
def test_routing_of_a_deployed_model(name: str) -> None:
    """Analog experts in layer 0 do not change the routing there, but all routing after it."""
    model = as_model(network_named(name))
    digital = routing(model, TEXTS)
    deploy(model, Placement(model.map.num_experts, ((), ())), Hardware(c=2.0), TEXTS)
    noisy = routing(model, TEXTS)
    assert torch.equal(noisy.frequency[0], digital.frequency[0])
    assert not torch.equal(noisy.frequency[1], digital.frequency[1])


def hooks(model: Model) -> int:
    return sum(len(each._forward_pre_hooks) + len(each._forward_hooks) for each in model.network.modules())


@pytest.mark.parametrize("name", ["olmoe", "list_moe"])
def test_routing_leaves_nothing_behind(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = as_model(network_named(name))
    tokens = token_blocks(model, TEXTS).tokens
    before = model.network(input_ids=tokens[:2, :-1]).logits
    routing(model, TEXTS)
    assert hooks(model) == 0
    assert torch.equal(model.network(input_ids=tokens[:2, :-1]).logits, before)

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(model.network, "forward", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        routing(model, TEXTS)
    assert hooks(model) == 0


@pytest.mark.parametrize("name", ["list_moe", "shared list"])
def test_measuring_a_list_of_experts_does_not_change_what_is_computed(name: str) -> None:
    network = network_of(ListMoeConfig(**MOE, shared_expert=name == "shared list"))
    model = as_model(network)
    tokens, seen = token_blocks(model, TEXTS).tokens, []
    expected, _ = block_results(network, tokens)
    handle = network.lm_head.register_forward_hook(lambda *_: seen.append(1))
    observe(model, tokens, lambda *_: None)
    handle.remove()
    batches = len(seen)
    visits: list[tuple[int, int, int]] = []
    observe(model, tokens, lambda layer, index, weight: visits.append((layer, *index.shape)))
    assert [layer for layer, _, _ in visits] == list(range(LAYERS)) * batches
    assert sum(count for _, count, _ in visits) == LAYERS * tokens[:, 1:].numel()
    assert torch.equal(block_results(network, tokens)[0], expected)


class OtherListMoe(ListMoe):
    """A block with one difference."""

    def __init__(self, config: ListMoeConfig, what: str) -> None:
        super().__init__(config)
        self.what = what

    def forward(self, hidden: Tensor) -> Any:
        result = super().forward(hidden)
        if self.what == "tuple":
            return result, self.gate(hidden)
        if self.what == "normalised":
            return nn.functional.rms_norm(result, result.shape[-1:])
        if self.what == "mixed":
            return result @ torch.ones(HIDDEN, HIDDEN)
        if self.what == "uneven":  # some tokens have expert 0 beside their best two
            rows = hidden.flatten(0, 1)
            token = torch.where(rows[:, 0] > 0)[0]
            return result.flatten(0, 1).index_add(0, token, self.experts[0](rows[token])).view_as(hidden)
        return result


def with_block(what: str, **changes: Any) -> Model:
    config = ListMoeConfig(**{**MOE, **changes})
    network = network_of(config)
    block = OtherListMoe(config, what)
    block.load_state_dict(network.model.layers[1].mlp.state_dict())
    network.model.layers[1].mlp = block.requires_grad_(False)
    return as_model(network)


def test_blocks_may_return_more_than_hidden_states() -> None:
    model = with_block("tuple")
    block = model.network.model.layers[1].mlp
    found: list[tuple[Tensor, Tensor]] = []
    hooks = _listeners(model.map.moe_layers[1], lambda *each: found.append(each))
    hidden = torch.randn(2, 5, HIDDEN, generator=torch.Generator().manual_seed(0))
    with hooked(model.network, hooks):
        block(hidden)
    weight, index = block.gate(hidden.flatten(0, 1)).softmax(-1).topk(TOP_K)
    ((measured_index, measured_weight),) = found
    assert torch.equal(measured_index, index.sort(1).values)
    assert torch.equal(measured_weight, weight.double().gather(1, index.argsort(1)))


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("normalised", "its output is not linear in those of its experts"),
        ("mixed", "its output is not linear in those of its experts"),
        ("uneven", "it gives tokens to 2 to 3 experts"),
        ("wide", f"it has {HIDDEN + 1} experts and only {HIDDEN} outputs"),
    ],
)
def test_routing_that_cannot_be_measured_is_not_guessed(what: str, message: str) -> None:
    model = with_block(what, num_experts=HIDDEN + 1 if what == "wide" else EXPERTS)
    with pytest.raises(
        InputError, match=f"routing weights of model.layers...mlp cannot be measured: {message}"
    ):
        routing(model, TEXTS)
    assert hooks(model) == 0
    assert scores(model).shape == scores(model, "router_norm").shape
