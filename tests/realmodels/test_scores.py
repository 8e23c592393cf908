"""Scores: those of unfused weights, computed one neuron at a time, and a line for whoever asks for the impossible."""

import pytest
import torch
from small_models import EXPERTS, INNER, LAYERS, MODELS, TEXTS, as_model, network_named, small_model, unfused

from realmodels import deploy, scores
from theory.errors import InputError
from theory.hardware import Hardware
from theory.placement import STRATEGIES, Placement, Strategy, place

MODEL = small_model()
MEASURED: tuple[Strategy, ...] = ("activation_frequency", "activation_weight")


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
    if strategy not in (*MEASURED, "router_norm"):
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
