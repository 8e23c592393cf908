"""Our layers and models against aihwkit's and aihwkit-lightning's.

Single layers, programmed exactly (c = 0), on ADC codes. Whole models with programming noise: in fp64, where no code
is near enough to the border to the next one, all logits agree to rounding, so that the three are one function. In
fp32 they sum in other orders, and there is a budget:

- A code may differ by one where rounding allows it [adc_parity], which for tiny-olmoe is about 1 % of all codes
  (DOUBTFUL); rounding errors being far smaller than their bound, a few in a million do (FLIPPED).
- Every flipped code is a correct rounding to within rounding, and its step then flips codes of later layers. At
  worst a peer's conversion errors end up independent of ours, with the same variance: the root mean square of the
  difference of logits is at most sqrt(2) of that of what converters add.
- To first order a token's loss differs by (p - y) . d, d being the differences of its logits and |p - y|^2 <= 2. For
  uncorrelated d the mean over T tokens then has a standard deviation of at most sqrt(2 / T) of that root mean square.
"""

from contextlib import ExitStack
from dataclasses import replace
from functools import cache
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from adc_parity import Reference, by_slice, reference, settled
from hypothesis import given, settings
from small_models import (
    OTHER_CONFIGS,
    TEXTS,
    VOCABULARY,
    as_model,
    in_fp64,
    network_of,
    small_model,
    small_network,
)
from torch import Tensor, nn
from transformers.models.olmoe.configuration_olmoe import OlmoeConfig
from transformers.models.olmoe.modeling_olmoe import OlmoeExperts

from realmodels.analog import AnalogExperts, AnalogLinear, LayerCalibration, Ranges, apply_gate, for_experts
from realmodels.calibrate import Calibration, calibrate
from realmodels.deploy import deploy, deployed, reprogram, withdraw
from realmodels.evaluate import block_results, token_blocks
from realmodels.load import Model, load
from realmodels.peers import (
    SIMULATORS,
    LightningExperts,
    PeerExperts,
    PeerLinear,
    Simulator,
    aihwkit_linear,
    deployed_on,
    lightning_linear,
)
from theory.errors import InputError
from theory.hardware import Granularity, Hardware
from theory.placement import Placement

ROWS = 64
DOUBTFUL, FLIPPED = 0.02, 1e-4  # of all codes


@settings(max_examples=100, deadline=None)
@given(
    peer=st.sampled_from([aihwkit_linear, lightning_linear]),
    w_max=st.sampled_from(["tile", "column"]),
    shape=st.sampled_from([(16, 48), (16, 16), (9, 11), (5, 32)]),
    dac_bits=st.integers(2, 9),
    adc_bits=st.integers(2, 9),
    calibration=st.builds(LayerCalibration, st.floats(0.5, 2), st.floats(1, 4), st.floats(0.05, 0.8)),
    own_ranges=st.booleans(),
    bias=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_linear_layer_has_the_same_codes(
    peer,
    w_max: Granularity,
    shape: tuple[int, int],
    dac_bits: int,
    adc_bits: int,
    calibration: LayerCalibration,
    own_ranges: bool,
    bias: bool,
    seed: int,
) -> None:
    """Try one range for the layer, and one for each input slice, which lightning finds for itself in training."""
    generator = torch.Generator().manual_seed(seed)
    hardware = Hardware(c=0.0, w_max=w_max, tile_size=16, dac_bits=dac_bits, adc_bits=adc_bits)
    if own_ranges:
        calibration = by_slice(calibration, shape[1], hardware)
    linear = nn.Linear(shape[1], shape[0], bias=bias)
    linear.weight.data.normal_(generator=generator)
    if bias:  # adding a multiple of a power of two far below the outputs' own precision would blur the codes
        linear.bias.data.zero_()
    x = settled(2 * torch.randn(ROWS, shape[1], generator=generator), hardware, calibration)
    ours = AnalogLinear(linear, hardware, calibration)
    ours.program(generator)
    theirs = peer(linear, hardware, calibration)
    with torch.no_grad():
        outputs = ours(x), theirs(x)
    expected = reference(x, linear.weight.detach(), linear.weight.detach(), hardware, calibration)
    for output in outputs:
        expected.assert_agrees(output)
        assert expected.count_flips(output) <= expected.doubtful_codes


def test_lightning_experts_are_the_same_layer() -> None:
    """Compare per column, where both have the same w_max: no expert, slice or routing weight is mixed up.

    gate and up are the same codes on both sides, but their steps and SiLU are rounded in fp32, so that an
    input of down within a few 2^-24 of a DAC border may become another code.
    """
    experts_count, hidden, inner = 4, 32, 16
    generator = torch.Generator().manual_seed(0)
    config = OlmoeConfig(hidden_size=hidden, intermediate_size=inner, num_experts=experts_count)
    experts = OlmoeExperts(config)
    experts.requires_grad_(False)
    for parameter in experts.parameters():
        parameter.normal_(generator=generator)
    hardware = Hardware(c=0.0, w_max="column", tile_size=16)
    gate_up = LayerCalibration(1.0, 3.0, 0.5)
    calibration: dict[str, Ranges] = {
        "gate_up_proj": gate_up,
        "down_proj": [LayerCalibration(std, 3.0, 0.5) for std in (2.0, 1.0, 3.0, 1.5)],
    }
    ours = AnalogExperts(experts, [], hardware, calibration)
    ours.program(generator)
    theirs = LightningExperts(experts, hardware, calibration)
    x = settled(torch.randn(ROWS, hidden, generator=generator), hardware, gate_up)
    weights, index = torch.rand(ROWS, experts_count, generator=generator).topk(2)
    difference = (ours(x, index, weights) - theirs(x, index, weights)).abs()
    # A flipped code anywhere moves an output by at least one step of down's smallest column times its weight.
    step = experts.down_proj.abs().amax(-1).min() * 0.5 * 3 / 127 * weights.min()
    flipped = difference > step / 2
    assert flipped.any(1).sum() <= 1


@pytest.mark.parametrize("peer", [aihwkit_linear, lightning_linear])
@pytest.mark.parametrize(
    ("hardware", "message"),
    [
        (Hardware(w_max="layer"), "w_max"),
        (Hardware(tile_size=24), "tile_size"),
        (Hardware(dac_bits=None), "dac_bits"),
        (Hardware(adc_bits=None), "adc_bits"),
    ],
)
def test_what_a_peer_cannot_do_is_refused(peer, hardware: Hardware, message: str) -> None:
    with pytest.raises(InputError, match=message):
        peer(nn.Linear(32, 8), hardware, LayerCalibration(1.0, 3.0, 0.1))


def test_outputs_may_be_cut_unevenly_where_columns_have_their_own_w_max() -> None:
    hardware = Hardware(tile_size=16)
    calibration, linear = LayerCalibration(1.0, 3.0, 0.5), nn.Linear(32, 20, bias=False)
    with pytest.raises(InputError, match="tile_size"):
        aihwkit_linear(linear, hardware, calibration)
    hardware = replace(hardware, w_max="column")
    x = settled(torch.randn(ROWS, 32, generator=torch.Generator().manual_seed(0)), hardware, calibration)
    weight = linear.weight.detach()
    expected = reference(x, weight, weight, hardware, calibration)
    expected.assert_agrees(aihwkit_linear(linear, hardware, calibration)(x))


# Whole models


@cache
def exact_model(family: str) -> Model:
    """A network in fp64, with a column, a row of an expert and a whole matrix of zeros."""
    network = small_network() if family == "olmoe" else network_of(OTHER_CONFIGS[family])
    model = as_model(in_fp64(network))
    network.lm_head.weight[0] = 0
    experts = network.get_submodule(model.map.moe_layers[-1].experts)
    experts.gate_up_proj[1, 3] = 0
    experts.down_proj[1] = 0
    return model


@cache
def exact_calibration(family: str, hardware: Hardware) -> Calibration:
    return calibrate(exact_model(family), TEXTS, hardware)


def everything_analog(model: Model) -> Placement:
    kinds = tuple(kind for kind, names in model.map.dense.items() if names)
    return Placement(model.map.num_experts, tuple(() for _ in model.map.moe_layers), kinds)


@settings(max_examples=10)
@given(
    simulator=st.sampled_from(SIMULATORS),
    family=st.sampled_from(["olmoe", "deepseek", "qwen2_moe"]),
    w_max=st.sampled_from(["tile", "column", "layer"]),
    tile_size=st.sampled_from([7, 16, 512]),
    bits=st.sampled_from([4, 8]),
    c=st.sampled_from([0.0, 1.5, 20.0]),
    lam=st.sampled_from([None, 0.3]),
    digital=st.sets(st.integers(0, 5)),
    dense=st.sets(st.sampled_from(["attention", "lm_head"])),
    seed=st.integers(0, 2**31),
)
def test_whole_models_are_one_function_in_fp64(
    simulator: Simulator,
    family: str,
    w_max: Granularity,
    tile_size: int,
    bits: int,
    c: float,
    lam: float | None,
    digital: set[int],
    dense: set[str],
    seed: int,
) -> None:
    """Holds for matrices that no tile size divides, and for noise that exceeds w_max (c = 20)."""
    model = exact_model(family)
    converters = Hardware(w_max=w_max, tile_size=tile_size, dac_bits=bits, adc_bits=bits)
    calibration = exact_calibration(family, converters)
    hardware = replace(converters, c=c, lam=lam)
    placement = Placement(
        model.map.num_experts, tuple(tuple(digital) for _ in model.map.moe_layers), tuple(dense)
    )
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(VOCABULARY, (2, 20), generator=generator)

    def logits() -> Tensor:
        with torch.no_grad():
            return model.network(input_ids=tokens, use_cache=False).logits

    before = logits()
    with deployed(model, placement, hardware, calibration, seed) as report:
        ours = logits()
    with deployed_on(simulator, model, placement, hardware, calibration, seed) as their_report:
        theirs = logits()
        assert their_report == report
    assert (theirs - ours).abs().max() <= 1e-10 * ours.abs().max()
    if len(digital) < 6 or dense:
        assert (ours - before).abs().max() > 1e-3
    assert torch.equal(logits(), before)


@pytest.fixture(scope="module")
def tiny() -> tuple[Model, Hardware, Calibration]:
    model, hardware = load("tiny-olmoe"), Hardware(c=1.5)
    return model, hardware, calibrate(model, model.texts("calibration"), hardware)


@pytest.mark.parametrize("simulator", SIMULATORS)
def test_codes_of_tiny_olmoe_flip_within_the_budget(
    simulator: Simulator, tiny: tuple[Model, Hardware, Calibration]
) -> None:
    """Judge each matrix on the inputs that it has in our deployment, and the experts that are used first."""
    model, hardware, calibration = tiny
    tokens = token_blocks(model, model.texts("evaluation"), 32, 2).tokens[:, :-1]
    placement = everything_analog(model)
    inputs: dict[str, tuple[Tensor, ...]] = {}
    with deployed(model, placement, hardware, calibration, seed=3), ExitStack() as hooks, torch.no_grad():
        for name, module in model.analog_modules.items():

            def keep(_: nn.Module, given: tuple[Tensor, ...], name: str = name) -> None:
                inputs[name] = given

            hooks.callback(module.register_forward_pre_hook(keep).remove)
        model.network(input_ids=tokens, use_cache=False)
    exact = replace(hardware, dac_bits=None, adc_bits=None)  # its deployment holds the weights as programmed
    with deployed(model, placement, exact, Calibration(calibration.layers, exact), seed=3):
        programmed = {
            f"{name}.{each}": crossbars.programmed().clone()
            for name, module in model.analog_modules.items()
            for each, crossbars in module.crossbars.items()
        }
    codes, doubtful, flipped = 0, 0, 0

    def judge(expected: Reference, output: Tensor) -> None:
        nonlocal codes, doubtful, flipped
        expected.assert_agrees(output)
        codes += output.numel()
        doubtful += expected.doubtful_codes
        flipped += expected.count_flips(output)

    with deployed_on(simulator, model, placement, hardware, calibration, seed=3), torch.no_grad():
        for name, module in model.analog_modules.items():
            x = inputs[name][0].flatten(0, -2)
            if isinstance(module, PeerLinear):
                (ranges,) = for_experts(calibration[f"{name}.weight"], 1)
                x = settled(x, hardware, ranges)
                weight = programmed[f"{name}.weight"].view_as(module.weight)
                judge(reference(x, module.weight, weight, hardware, ranges), module(x))
                continue
            assert isinstance(module, PeerExperts)
            both: dict[str, Any] = {}
            for each in ("gate_up_proj", "down_proj"):
                target = module.get_parameter(each)
                ranges_of = for_experts(calibration[f"{name}.{each}"], module.num_experts)
                both[each] = target, programmed[f"{name}.{each}"].view_as(target), ranges_of
            for expert in inputs[name][1][0].tolist():
                target, weight, ranges_of = both["gate_up_proj"]
                x = settled(x, hardware, ranges_of[expert])
                gate_up = module.products("gate_up_proj")[expert](x)
                halves = (each[expert].chunk(2) for each in (target, weight))
                for output, half, noisy in zip(gate_up.chunk(2, -1), *halves, strict=True):
                    judge(reference(x, half, noisy, hardware, ranges_of[expert]), output)
                target, weight, ranges_of = both["down_proj"]
                inner = settled(apply_gate(module.original, gate_up), hardware, ranges_of[expert])
                expected = reference(inner, target[expert], weight[expert], hardware, ranges_of[expert])
                judge(expected, module.products("down_proj")[expert](inner))
    assert codes > 300_000
    assert doubtful <= DOUBTFUL * codes
    assert flipped <= FLIPPED * codes


@pytest.mark.parametrize("simulator", SIMULATORS)
def test_flipped_codes_change_tiny_olmoe_as_other_rounding_would(
    simulator: Simulator, tiny: tuple[Model, Hardware, Calibration]
) -> None:
    model, hardware, calibration = tiny
    tokens = token_blocks(model, model.texts("evaluation"), 128, 6).tokens
    placement = everything_analog(model)

    def results() -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            return model.network(input_ids=tokens[:2, :-1]).logits, block_results(model.network, tokens)[0]

    exact = replace(hardware, dac_bits=None, adc_bits=None)
    with deployed(model, placement, exact, Calibration(calibration.layers, exact), seed=4):
        without, _ = results()
    with deployed(model, placement, hardware, calibration, seed=4):
        ours, our_loss = results()
    with deployed_on(simulator, model, placement, hardware, calibration, seed=4):
        theirs, their_loss = results()

    def rms(difference: Tensor) -> float:
        return float(difference.square().mean().sqrt())

    assert rms(theirs - ours) <= 2**0.5 * rms(ours - without)
    assert rms(theirs - without) == pytest.approx(rms(ours - without), rel=0.1)  # of the same size
    tokens_evaluated = tokens[:, 1:].numel()
    standard_deviation = (2 / tokens_evaluated) ** 0.5 * rms(theirs - ours)
    assert abs(float((their_loss - our_loss).mean())) <= 4 * standard_deviation


@pytest.mark.parametrize("simulator", SIMULATORS)
def test_a_deployment_on_a_peer_is_a_deployment(simulator: Simulator) -> None:
    model = small_model()
    placement, hardware = everything_analog(model), Hardware(tile_size=16)
    calibration = calibrate(model, TEXTS, hardware)
    tokens = torch.arange(10)[None]

    def logits() -> Tensor:
        return model.network(input_ids=tokens).logits

    before = logits()
    names, state = dict(model.network.named_parameters()), model.network.state_dict()
    with deployed_on(simulator, model, placement, hardware, TEXTS, seed=1):
        first = logits()
        assert {name: id(each) for name, each in model.network.named_parameters()} == {
            name: id(each) for name, each in names.items()
        }
        assert model.network.state_dict().keys() == state.keys()
        with pytest.raises(InputError, match="deployed already"):
            deploy(model, placement, hardware, calibration)
        with (
            pytest.raises(InputError, match="deployed already"),
            deployed_on(simulator, model, placement, hardware, calibration),
        ):
            pass
        reprogram(model, 2)
        second = logits()
        reprogram(model, 1)
        assert torch.equal(logits(), first)
    with deployed_on(simulator, model, placement, hardware, calibration, seed=2):
        assert torch.equal(logits(), second)
    assert not torch.equal(first, second)
    assert torch.equal(logits(), before)
    with (
        pytest.raises(RuntimeError, match="inside"),
        deployed_on(simulator, model, placement, hardware, calibration),
    ):
        raise RuntimeError("inside")
    assert torch.equal(logits(), before) and not model.analog_modules
    with pytest.raises(InputError, match="not deployed"):
        withdraw(model)


def refused(**given: Any) -> None:
    model = given.get("model", small_model())
    with deployed_on(
        given.get("simulator", "aihwkit"),
        model,
        given.get("placement", everything_analog(model)),
        given.get("hardware", Hardware()),
        given.get("calibration", TEXTS),
    ):
        raise AssertionError("not refused")


def test_what_cannot_be_deployed_on_a_peer_is_refused() -> None:
    halved = small_model()
    halved.network.bfloat16()
    other_layouts = [as_model(network_of(OTHER_CONFIGS[name])) for name in ("gpt_oss", "list_moe")]
    cases: tuple[tuple[dict[str, Any], str], ...] = (
        ({"simulator": "spice"}, "simulator is 'spice': give one of aihwkit, lightning"),
        ({"hardware": Hardware(adc_bits=None)}, "dac_bits and adc_bits"),
        ({"hardware": Hardware(dac_bits=None)}, "dac_bits and adc_bits"),
        *(({"model": model}, "is not laid out as in OLMoE") for model in other_layouts),
        ({"model": halved}, "bfloat16: load it in torch.float32"),
        ({"placement": Placement((6,), ((),))}, "placement.num_experts"),
        ({"calibration": Calibration({}, Hardware(dac_bits=7))}, "calibration is for"),
    )
    for changes, message in cases:
        with pytest.raises(InputError, match=message):
            refused(**changes)
        assert not changes.get("model", halved).analog_modules
