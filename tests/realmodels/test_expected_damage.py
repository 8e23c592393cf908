"""Claims D, D-dense and D-sum on models: the references module by module, real programming, and measured losses."""

from typing import Any

import every_family
import pytest
import torch
from monte_carlo import FAILURE
from scipy import stats
from small_models import (
    EXPERTS,
    HIDDEN,
    INNER,
    MODELS,
    MOE,
    TEXTS,
    ListMoeConfig,
    as_model,
    network_named,
    network_of,
    small_model,
    unfused,
)
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, silu

from realmodels.analog import AnalogExperts, LayerCalibration
from realmodels.calibrate import calibrate
from realmodels.damage import dense_damage, expected_damage
from realmodels.deepseek_moe import DeepseekConfig
from realmodels.deploy import deploy, reprogram, withdraw
from realmodels.evaluate import token_blocks
from realmodels.load import Model, load
from realmodels.record import Call, calibration_tokens, record
from theory import damage as reference
from theory.errors import InputError
from theory.evidence import mean_interval
from theory.hardware import Hardware, program
from theory.placement import Placement

pytestmark = pytest.mark.claim("D")

FUSED = [name for name in MODELS if name != "list_moe"]
DRAWS = 400
LINEAR_DRAWS = 200
CHIPS = 6
PERCENT = 0.01  # up to here a sum counts as right


def calls(model: Model, gradient: bool) -> list[Call]:
    """The one call of the experts of each MoE layer."""
    tokens = token_blocks(model, TEXTS, model.context, 64).tokens
    names = [layer.experts for layer in model.map.moe_layers]
    calls = record(model, names, tokens, gradient=gradient)
    assert all(len(calls[name]) == 1 for name in names)
    return [calls[name][0] for name in names]


@pytest.mark.parametrize("gradient", [False, True], ids=["error", "loss"])
@pytest.mark.parametrize("name", ["olmoe", "mixtral", "deepseek", "granitemoe", "qwen2_moe"])
def test_fast_form_is_the_reference_for_every_expert(name: str, gradient: bool) -> None:
    model = as_model(network_named(name))
    hardware = Hardware(programming="pcm", c=1.3, w_max="tile", tile_size=16)
    found = expected_damage(model, TEXTS, hardware, gradient=gradient)
    assert found.dtype == torch.float64 and (found >= 0).all() and found.max() > 0
    for number, (layer, call) in enumerate(zip(model.map.moe_layers, calls(model, gradient), strict=True)):
        (hidden, index, weights), slope = call.inputs[:3], call.gradient
        for expert in range(layer.num_experts):
            token, choice = (index == expert).nonzero(as_tuple=True)
            gate, up, down = (
                each.weight for each in unfused(model.network.get_submodule(layer.experts), expert)
            )
            own = None if slope is None else slope.reshape(hidden.shape)[token]
            expected = reference.expected_damage(
                hidden[token], gate, up, down, hardware, silu, weights[token, choice], own
            )
            assert float(found[number, expert]) == pytest.approx(
                float(expected) / len(hidden), rel=1e-3, abs=1e-12
            )


@pytest.mark.parametrize("name", FUSED)
@pytest.mark.parametrize("gradient", [False, True], ids=["error", "loss"])
def test_a_programmed_layer_errs_as_much_as_its_experts_are_expected_to(name: str, gradient: bool) -> None:
    """Experts' noises are independent: the expected squared error of a layer is the sum of theirs."""
    model = as_model(network_named(name))
    hardware = Hardware(programming="constant", c=1e-3, dac_bits=None, adc_bits=None)
    found = expected_damage(model, TEXTS, hardware, gradient=gradient)[0].sum()
    call = calls(model, gradient)[0]
    inputs, slope = call.inputs[:3], call.gradient
    experts = model.network.get_submodule(model.map.moe_layers[0].experts)
    exact = experts(*inputs)
    placement = Placement(model.map.num_experts, ((),) * len(model.map.moe_layers))
    deploy(model, placement, hardware, calibrate(model, TEXTS, hardware))
    analog = model.analog_modules[model.map.moe_layers[0].experts]
    costs = []
    for seed in range(DRAWS):
        reprogram(model, seed)
        error = (analog(*inputs) - exact).double()
        if slope is None:
            costs.append(error.square().sum(1).mean())
        else:
            costs.append((error * slope.reshape(error.shape)).sum(1).square().mean() / 2)
    withdraw(model)
    cost = torch.stack(costs)
    z = (cost.mean() - found) / (cost.std() / DRAWS**0.5)
    assert abs(float(z)) < stats.norm.isf(FAILURE / 2)
    assert float(cost.mean()) == pytest.approx(float(found), rel=0.2)


@pytest.mark.parametrize("gradient", [False, True], ids=["error", "loss"])
def test_experts_in_a_list_have_the_same_damage_as_fused_ones(gradient: bool) -> None:
    """Both are a Llama with experts. expected_damage of fused ones is the reference's [above]."""
    listed = network_of(ListMoeConfig(**MOE, expert_bias=False))
    options: Any = {"n_routed_experts": EXPERTS, "moe_intermediate_size": INNER, "n_shared_experts": None}
    fused = network_of(DeepseekConfig(**MOE, **options, first_k_dense_replace=0))
    given = listed.state_dict()
    for name, weight in fused.state_dict().items():
        block = name.rpartition(".")[0]
        projections = {"gate_up_proj": ("gate", "up"), "down_proj": ("down",)}.get(
            name.rpartition(".")[2], ()
        )
        parts = [
            torch.stack([given[f"{block}.{expert}.{each}_proj.weight"] for expert in range(EXPERTS)])
            for each in projections
        ]
        weight.copy_(torch.cat(parts, 1) if parts else given[name])
    hardware = Hardware(programming="pcm", c=1.3, tile_size=16)
    first, second = (
        expected_damage(as_model(each), TEXTS, hardware, gradient=gradient) for each in (listed, fused)
    )
    assert (first > 0).all()
    torch.testing.assert_close(first, second, rtol=1e-4, atol=0)


def test_a_list_of_other_experts_has_no_expected_damage() -> None:
    network = network_named("list_moe")
    network.model.layers[1].mlp.experts = nn.ModuleList(
        nn.Sequential(nn.Linear(HIDDEN, 5), nn.Linear(5, 7), nn.Linear(7, HIDDEN)) for _ in range(EXPERTS)
    )
    with pytest.raises(InputError, match="experts.0 of small is no expert that expected_damage knows"):
        expected_damage(as_model(network), TEXTS, Hardware())


@pytest.mark.slow
@pytest.mark.parametrize("gradient", [False, True], ids=["error", "loss"])
@pytest.mark.parametrize("kind", ["nemotron_h", "longcat_flash", "llama4_text"])
def test_other_layouts_err_as_much_as_they_are_expected_to(kind: str, gradient: bool) -> None:
    """Without a gate, with experts that have no weights, with weighted inputs: noise on all experts of a layer."""
    model = as_model(every_family.network(kind))
    hardware = Hardware(programming="constant", c=1e-3, dac_bits=None, adc_bits=None)
    found = expected_damage(model, TEXTS, hardware, gradient=gradient)[0].sum()
    call, tokens = calls(model, gradient)[0], calibration_tokens(model, TEXTS)[:, 1:].numel()
    experts = model.network.get_submodule(model.map.moe_layers[0].experts)
    ranges = {name: LayerCalibration(1.0, 1.0, 1.0) for name in model.map.moe_layers[0].layout.weights}
    analog, exact = AnalogExperts(experts, (), hardware, ranges), experts(*call.inputs)
    costs = []
    for seed in range(DRAWS):
        analog.program(torch.Generator().manual_seed(seed))
        error = (analog(*call.inputs) - exact).double()
        if call.gradient is None:
            costs.append(error.square().sum() / tokens)
        else:
            costs.append((error * call.gradient.reshape(error.shape)).sum(1).square().sum() / 2 / tokens)
    cost = torch.stack(costs)
    z = (cost.mean() - found) / (cost.std() / DRAWS**0.5)
    assert abs(float(z)) < stats.norm.isf(FAILURE / 2)
    assert float(cost.mean()) == pytest.approx(float(found), rel=0.2)


def test_the_loss_form_predicts_what_small_noise_adds_to_the_loss() -> None:
    """Up to what the Fisher matrix leaves out: the right order of magnitude, and proportional to c^2."""
    model = small_model()
    one, two = (expected_damage(model, TEXTS, Hardware(c=c), gradient=True) for c in (0.01, 0.02))
    torch.testing.assert_close(two, 4 * one, rtol=1e-3, atol=0)


def test_an_expert_without_tokens_costs_nothing() -> None:
    from small_models import leave_experts_idle

    network = network_named("olmoe")
    leave_experts_idle(network)
    found = expected_damage(as_model(network), TEXTS, Hardware(c=1.0))
    assert (found[:, :4] > 0).any() and (found[:, 4:] == 0).all()


def test_inference_mode_and_deployed_models() -> None:
    model = small_model()
    with torch.inference_mode():
        found = expected_damage(model, TEXTS, Hardware(c=1.0), gradient=True)
    assert torch.equal(found, expected_damage(model, TEXTS, Hardware(c=1.0), gradient=True))
    hardware = Hardware()
    deploy(model, Placement(model.map.num_experts, ((),) * 2), hardware, calibrate(model, TEXTS, hardware))
    for damage in (expected_damage, dense_damage):
        with pytest.raises(InputError, match="deployed already"):
            damage(model, TEXTS, hardware)


@pytest.mark.claim("D-dense")
@pytest.mark.parametrize("name", ["olmoe", "deepseek", "deepseek_v3", "gpt_oss", "qwen2_moe"])
def test_dense_damage_is_the_reference_for_every_linear_layer(name: str) -> None:
    model = as_model(network_named(name))
    hardware = Hardware(programming="pcm", c=1.3, tile_size=16)
    with torch.inference_mode():
        found = dense_damage(model, TEXTS, hardware)
    assert tuple(found) == model.map.linears and min(found.values()) > 0
    tokens = calibration_tokens(model, TEXTS)
    for linear, (call,) in record(model, model.map.linears, tokens).items():
        assert call.gradient is not None
        rows, slopes = (each.flatten(0, -2).double() for each in (call.inputs[0], call.gradient))
        weight = model.network.get_parameter(f"{linear}.weight").double()
        expected = reference.linear_damage(rows, weight, hardware, slopes) / tokens[:, 1:].numel()
        assert found[linear] == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.slow
@pytest.mark.claim("D-dense")
def test_every_programmed_linear_layer_costs_what_it_is_expected_to() -> None:
    """At any noise, given the inputs and the gradient of the digital model."""
    model = as_model(network_named("deepseek"))
    hardware = Hardware(programming="pcm", c=1.5, dac_bits=None, adc_bits=None)
    found = dense_damage(model, TEXTS, hardware)
    tokens = calibration_tokens(model, TEXTS)
    calls = record(model, model.map.linears, tokens)
    exact = {name: model.network.get_submodule(name)(*call.inputs) for name, (call,) in calls.items()}
    everything = Placement(model.map.num_experts, ((),), model.map.dense_kinds)
    deploy(model, everything, hardware, calibrate(model, TEXTS, hardware))
    costs: dict[str, list[Tensor]] = {name: [] for name in found}
    for seed in range(LINEAR_DRAWS):
        reprogram(model, seed)
        for name, (call,) in calls.items():
            error = model.analog_modules[name](*call.inputs) - exact[name]
            costs[name].append((error * call.gradient).sum(-1).square().sum().double() / 2)
    assert len(costs) > 10
    for name, each in costs.items():
        cost = torch.stack(each) / tokens[:, 1:].numel()
        z = (cost.mean() - found[name]) / (cost.std() / LINEAR_DRAWS**0.5)
        assert abs(float(z)) < stats.norm.isf(FAILURE / 2), name
        assert float(cost.mean()) == pytest.approx(found[name], rel=0.3), name


@pytest.mark.claim("D-dense")
def test_linear_layers_on_which_the_loss_does_not_depend_cost_nothing() -> None:
    model = small_model()
    attention = "model.layers.0.self_attn"
    model.network.get_parameter(f"{attention}.o_proj.weight").zero_()
    found = dense_damage(model, TEXTS, Hardware())
    assert all((damage == 0) == name.startswith(attention) for name, damage in found.items())


@pytest.mark.claim("D-sum")
def test_what_modules_cost_beyond_the_sum_is_of_fourth_order() -> None:
    """Over both signs of each module's noise all lower orders cancel, draw by draw. No routing comes after them."""
    network = network_of(ListMoeConfig(**MOE, shared_expert=True)).double()
    tokens = token_blocks(as_model(network), TEXTS).tokens
    parts = [network.model.layers[1].mlp.shared_expert.down_proj, network.lm_head]
    original = [part.weight.clone() for part in parts]
    generator = torch.Generator().manual_seed(0)
    noise = [torch.randn(each.shape, generator=generator, dtype=each.dtype) / 20 for each in original]

    def loss(c: float, *signs: int) -> float:
        for part, weight, own, sign in zip(parts, original, noise, signs, strict=True):
            part.weight.copy_(weight + c * sign * own)
        logits = network(input_ids=tokens[:, :-1], use_cache=False).logits
        return float(cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()))

    def increases(c: float) -> tuple[float, float]:
        """Sum of what each costs alone, and what both cost beyond that."""
        first, second, both, nothing = (
            sum(loss(c, a, b) for a in (one, -one) for b in (two, -two)) / 4
            for one, two in ((1, 0), (0, 1), (1, 1), (0, 0))
        )
        return first + second - 2 * nothing, both - first - second + nothing

    (single, beyond), (twice_single, twice_beyond) = increases(0.1), increases(0.2)
    assert twice_single == pytest.approx(4 * single, rel=0.01)
    assert twice_beyond == pytest.approx(16 * beyond, rel=0.01)
    assert 0 < abs(beyond) < 1e-4 * single


@pytest.mark.slow
@pytest.mark.claim("D-sum")
def test_damages_of_a_trained_model_add_up_at_small_noise_and_not_at_large() -> None:
    """Attention and LM head of tiny-olmoe, each with both signs of its noise, so that lower orders cancel."""
    model = load("tiny-olmoe")
    network: Any = model.network
    blocks = token_blocks(model, model.texts("calibration"), 256, 2 * CHIPS).tokens
    attention = [network.get_submodule(name).weight for name in model.map.dense["attention"]]
    clean, head = [each.clone() for each in attention], network.lm_head.weight

    def noisy(weights: list[Tensor], hardware: Hardware, seed: int) -> list[list[Tensor]]:
        """As they are; and with noise of either sign."""
        signs = [(torch.Generator().manual_seed(seed), mirrored) for mirrored in (False, True)]
        return [
            weights,
            *([program(each, hardware, draw, mirrored=sign) for each in weights] for draw, sign in signs),
        ]

    def beyond(c: float, seed: int, tokens: Tensor) -> float:
        """What both cost beyond the sum, in units of the sum."""
        hardware = Hardware(c=c)
        losses = torch.zeros(3, 3, dtype=torch.float64)
        for row, weights in zip(losses, noisy(clean, hardware, seed), strict=True):
            for weight, own in zip(attention, weights, strict=True):
                weight.copy_(own)
            hidden = network.model(input_ids=tokens[:, :-1], use_cache=False).last_hidden_state
            for number, (own,) in enumerate(noisy([head], hardware, seed)):
                row[number] = cross_entropy((hidden @ own.mT).flatten(0, 1), tokens[:, 1:].flatten())
        cost = losses - losses[0, 0]
        single = cost[1:, 0].mean() + cost[0, 1:].mean()
        return float(cost[1:, 1:].mean() / single - 1)

    small, large = (
        torch.tensor([beyond(c, *each) for each in enumerate(blocks.split(2))]) for c in (0.5, 2.5)
    )
    (low, high), (least, _) = mean_interval(small.numpy()), mean_interval(large.numpy())
    assert max(-low, high) < PERCENT < least
