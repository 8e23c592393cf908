"""Scores: those of unfused weights, computed one neuron at a time, and a line for whoever asks for the impossible."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import (
    EXPERTS,
    INNER,
    LAYERS,
    MODELS,
    TEXTS,
    as_model,
    gated,
    leave_experts_idle,
    network_named,
    small_model,
    unfused,
)

from realmodels import deploy, scores
from realmodels.evaluate import block_results
from realmodels.experiments.rivals import OTHERS
from realmodels.record import calibration_tokens, hooked
from realmodels.scores import parameters
from realmodels.statistics import observe
from theory.errors import InputError
from theory.hardware import Hardware
from theory.other_scores import alphaq_score
from theory.placement import STRATEGIES, Placement, Strategy, knapsack, place, rank

MODEL = small_model()
MEASURED: tuple[Strategy, ...] = ("activation_frequency", "activation_weight", "msan")


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_maxnn_is_the_product_of_the_largest_neurons(name: str, dtype: torch.dtype) -> None:
    """Takes gate, up and down, one expert and one neuron at a time; biases have no part in it."""
    model = as_model(network_named(name).to(dtype))
    found = scores(model)
    assert found.shape == (len(model.map.moe_layers), EXPERTS) and found.dtype == torch.float64
    for layer, row in zip(model.map.moe_layers, found, strict=True):
        experts = model.network.get_submodule(layer.experts)
        for expert in range(EXPERTS):
            product = 1.0
            for matrix in unfused(experts, expert):
                product *= max(float((neuron * neuron).sum()) ** 0.5 for neuron in matrix.weight.double())
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


@pytest.mark.parametrize("name", MODELS)
def test_scores_of_others_that_need_weights_alone(name: str) -> None:
    """Takes one expert and one neuron at a time; the first matrix is the gate."""
    model = as_model(network_named(name))
    maxvar, alphaq = scores(model, "maxvar"), scores(model, "alphaq")
    assert maxvar.dtype == alphaq.dtype == torch.float64
    for number, layer in enumerate(model.map.moe_layers):
        experts = model.network.get_submodule(layer.experts)
        for expert in range(EXPERTS):
            matrices = [matrix.weight.double() for matrix in unfused(experts, expert)]
            largest = max(float(((row - row.mean()) ** 2).mean()) for row in matrices[0])
            assert float(maxvar[number, expert]) == pytest.approx(largest, rel=1e-12)
            expected = sum(float(alphaq_score([matrix])) for matrix in matrices)
            assert float(alphaq[number, expert]) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("name", "idle"), [*((name, False) for name in MODELS), ("olmoe", True), ("list_moe", True)]
)
def test_msan_is_the_mean_squared_norm_of_an_experts_outputs(name: str, idle: bool) -> None:
    """Takes one token and one expert at a time, from what the block is given; an idle expert has 0."""
    network = network_named(name)
    if idle:
        leave_experts_idle(network)
    model = as_model(network)
    tokens, found = calibration_tokens(model, TEXTS), scores(model, "msan", TEXTS)
    routed: dict[int, list[torch.Tensor]] = {}
    observe(model, tokens, lambda layer, index, _: routed.setdefault(layer, []).append(index))
    for number, layer in enumerate(model.map.moe_layers):
        given_to: list[torch.Tensor] = []

        def keep(_: Any, inputs: Any, named: Any, __: Any, given_to: list[torch.Tensor] = given_to) -> None:
            given_to.append((*inputs, *named.values())[0].flatten(0, -2))

        with hooked(network, {layer.block: keep}):
            block_results(network, tokens)
        hidden = torch.cat(given_to)
        index = torch.cat(routed[number])
        experts = network.get_submodule(layer.experts)
        for expert in range(EXPERTS):
            gate, up, down = unfused(experts, expert)
            norms = []
            for row in hidden[(index == expert).any(1)]:
                inner = gated(experts, gate.weight @ row + gate.bias, up.weight @ row + up.bias)
                norms.append(float((down.weight @ inner + down.bias).double().square().sum()))
            mean = sum(norms) / len(norms) if norms else 0.0
            assert float(found[number, expert]) == pytest.approx(mean, rel=1e-4)
        if idle:
            assert (found[number, 4:] == 0).all() and (found[number, :4] > 0).all()


def permuted(order: torch.Tensor) -> Any:
    """The model with the experts of every layer, and their rows of the router, in another order."""
    model = small_model()
    for name, parameter in model.network.named_parameters():
        if ".mlp." in name:
            parameter.data = parameter.data[order]
    return model


@settings(max_examples=5)
@given(st.permutations(range(EXPERTS)))
def test_scores_of_others_go_with_their_expert(experts: list[int]) -> None:
    order = torch.tensor(experts)
    for strategy in STRATEGIES:
        if strategy in OTHERS:
            expected = scores(MODEL, strategy, TEXTS)[:, order]
            torch.testing.assert_close(scores(permuted(order), strategy, TEXTS), expected, rtol=1e-5, atol=0)


@settings(max_examples=5)
@given(st.floats(0.1, 10))
def test_msan_is_of_outputs_without_routing_weights(scale: float) -> None:
    """Larger down projections count by their square; in the last layer, which no other layer reads."""
    model, before = small_model(), scores(MODEL, "msan", TEXTS)
    model.network.get_parameter(f"model.layers.{LAYERS - 1}.mlp.experts.down_proj").data *= scale
    found = scores(model, "msan", TEXTS)
    torch.testing.assert_close(found[-1], scale**2 * before[-1], rtol=1e-4, atol=0)
    assert torch.equal(found[:-1], before[:-1])


@pytest.mark.parametrize("name", MODELS)
def test_parameters_are_the_costs_of_a_knapsack(name: str) -> None:
    model = as_model(network_named(name))
    costs, values = parameters(model), scores(model)
    experts = model.network.get_submodule(model.map.moe_layers[0].experts)
    assert costs.unique().tolist() == [sum(matrix.weight.numel() for matrix in unfused(experts, 0))]
    half = int(costs.sum()) // 2
    assert knapsack(values, costs, half) == rank(values, 0.5, across_layers=True)


@pytest.mark.parametrize("name", MODELS)
def test_router_norm(name: str) -> None:
    model = as_model(network_named(name))
    block, router = {
        "gpt_oss": ("mlp", "router"),
        "granitemoe": ("block_sparse_moe", "router"),
    }.get(name, ("mlp", "gate"))
    first = LAYERS - len(model.map.moe_layers)
    for number, found in enumerate(scores(model, "router_norm"), first):
        weight = model.network.get_parameter(f"model.layers.{number}.{block}.{router}.weight").double()
        assert found.tolist() == pytest.approx([float((row * row).sum()) ** 0.5 for row in weight])


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("strategy", [strategy for strategy in STRATEGIES if strategy != "balanced_maxnn"])
def test_every_strategy_leads_to_a_placement(strategy: Strategy, name: str) -> None:
    model = as_model(network_named(name))
    found = scores(model, strategy, TEXTS)
    placement = place(found, 0.5, strategy, generator=torch.Generator().manual_seed(0))
    assert placement.num_experts == model.map.num_experts
    if strategy not in (*MEASURED, "router_norm", *OTHERS):
        assert torch.equal(found, scores(model))


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
