"""What strategies rank by: scores from unfused weights, and routing counted again from the routers."""

from typing import Any

import pytest
import torch
from small_models import (
    EXPERTS,
    INNER,
    LAYERS,
    OTHER_CONFIGS,
    TEXTS,
    TOP_K,
    as_model,
    in_fp64,
    leave_experts_idle,
    network_of,
    small_model,
    small_network,
)
from torch import Tensor

from realmodels import deploy, scores
from realmodels.evaluate import token_blocks
from realmodels.load import Model
from realmodels.statistics import routing
from theory.errors import InputError
from theory.hardware import Hardware
from theory.placement import STRATEGIES, Placement, Strategy, place

MODEL = small_model()
MEASURED: tuple[Strategy, ...] = ("activation_frequency", "activation_weight")


def routed(model: Model) -> tuple[list[Tensor], list[Tensor]]:
    """Experts and weights of every token, by layer, as the routers themselves return them."""
    indices: list[Tensor] = []
    weights: list[Tensor] = []

    def watch(_: Any, __: Any, output: tuple[Tensor, Tensor, Tensor]) -> None:
        weights.append(output[1])
        indices.append(output[2])

    handles = [
        model.network.get_submodule(layer.router).register_forward_hook(watch)
        for layer in model.map.moe_layers
    ]
    model.network(input_ids=token_blocks(model, TEXTS).tokens[:, :-1])
    for handle in handles:
        handle.remove()
    return indices, weights


# ------------------------------------------------------------------------------------------- from weights


@pytest.mark.parametrize("name", ["olmoe", *OTHER_CONFIGS])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_maxnn_is_the_product_of_the_largest_neurons(name: str, dtype: torch.dtype) -> None:
    """Of gate, up and down, one expert and one neuron at a time; gate above up, as transformers applies them."""
    network = network_of(OTHER_CONFIGS[name]) if name in OTHER_CONFIGS else small_network()
    model = as_model(network.to(dtype))
    found = scores(model)
    assert found.shape == (len(model.map.moe_layers), EXPERTS) and found.dtype == torch.float64
    for layer, row in zip(model.map.moe_layers, found, strict=True):
        gate_up = model.network.get_parameter(f"{layer.experts}.gate_up_proj").double()
        down = model.network.get_parameter(f"{layer.experts}.down_proj").double()
        for expert in range(EXPERTS):
            inner = down.shape[-1]
            matrices = gate_up[expert, :inner], gate_up[expert, inner:], down[expert]
            product = 1.0
            for matrix in matrices:
                product *= max(float((neuron * neuron).sum()) ** 0.5 for neuron in matrix)
            assert float(row[expert]) == pytest.approx(product, rel=1e-12)


def test_a_large_neuron_counts_where_it_is() -> None:
    """Doubling one neuron of gate and one of up doubles the score twice, which two neurons of gate would not."""
    model = small_model()
    before = scores(model)
    largest = model.network.get_parameter("model.layers.1.mlp.experts.gate_up_proj")
    gate, up = largest[3].norm(dim=1).view(2, INNER)
    largest.data[3, int(gate.argmax())] *= 2
    assert scores(model)[1, 3] == pytest.approx(2 * before[1, 3])
    largest.data[3, INNER + int(up.argmax())] *= 2
    assert scores(model)[1, 3] == pytest.approx(4 * before[1, 3])
    assert (scores(model) != before).sum() == 1


def test_router_norm() -> None:
    found = scores(MODEL, "router_norm")
    for number in range(LAYERS):
        weight = MODEL.network.get_parameter(f"model.layers.{number}.mlp.gate.weight").double()
        assert found[number].tolist() == pytest.approx([float((row * row).sum()) ** 0.5 for row in weight])


@pytest.mark.parametrize("strategy", [strategy for strategy in STRATEGIES if strategy != "balanced_maxnn"])
def test_every_strategy_leads_to_a_placement(strategy: Strategy) -> None:
    found = scores(MODEL, strategy, TEXTS)
    placement = place(found, 0.5, strategy, generator=torch.Generator().manual_seed(0))
    assert placement.num_experts == MODEL.map.num_experts
    if strategy not in (*MEASURED, "router_norm"):
        assert torch.equal(found, scores(MODEL))


# ------------------------------------------------------------------------------------------- from text


@pytest.mark.parametrize("name", ["olmoe", "idle", "normalised", *OTHER_CONFIGS])
def test_routing_is_that_of_the_routers(name: str) -> None:
    network = network_of(OTHER_CONFIGS[name]) if name in OTHER_CONFIGS else small_network()
    if name == "idle":
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
    if name == "idle":
        assert (
            (frequencies[:, 4:] == 0).all() and (weights[:, 4:] == 0).all() and (frequencies[:, :4] > 0).all()
        )
    if name in ("normalised", "mixtral"):
        assert weights.sum(1).tolist() == pytest.approx([1.0] * LAYERS, abs=1e-6)


def test_routing_of_a_deployed_model() -> None:
    """Experts in layer 0 make no difference to what is routed there, but to all that comes after."""
    digital, model = routing(MODEL, TEXTS), small_model()
    deploy(model, Placement(model.map.num_experts, ((), ())), Hardware(c=2.0), TEXTS)
    noisy = routing(model, TEXTS)
    assert torch.equal(noisy.frequency[0], digital.frequency[0])
    assert not torch.equal(noisy.frequency[1], digital.frequency[1])


def test_routing_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_model()
    routing(model, TEXTS)
    assert not any(module._forward_pre_hooks for module in model.network.modules())

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(model.network, "forward", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        routing(model, TEXTS)
    assert not any(module._forward_pre_hooks for module in model.network.modules())


# ------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize("strategy", MEASURED)
def test_texts_are_needed(strategy: Strategy) -> None:
    with pytest.raises(InputError, match=f"strategy '{strategy}' needs texts: give calibration texts"):
        scores(MODEL, strategy)
    with pytest.raises(InputError, match="two blocks of 64 are needed"):
        scores(MODEL, strategy, ["short"])


def test_unknown_strategy() -> None:
    with pytest.raises(InputError, match="strategy is 'best': give one of maxnn, balanced_maxnn,"):
        scores(MODEL, "best")  # type: ignore[arg-type]


def test_deployed_models_are_refused() -> None:
    model = small_model()
    deploy(model, Placement(model.map.num_experts, ((0,), ())), Hardware(), TEXTS)
    for strategy in STRATEGIES:
        with pytest.raises(
            InputError, match=r"model small is deployed already: call withdraw\(model\) first"
        ):
            scores(model, strategy, TEXTS)
