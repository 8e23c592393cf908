"""Converter ranges: the best of the grid, found again by brute force, expert by expert and tile by tile."""

import importlib
import math
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch
from small_models import (
    CONTEXT,
    EXPERTS,
    INNER,
    OTHER_CONFIGS,
    TEXTS,
    TOP_K,
    as_model,
    leave_experts_idle,
    network_of,
    small_model,
    small_network,
)
from torch import Tensor
from torch.nn import functional as F

from realmodels import calibrate, deploy, load, withdraw
from realmodels.calibrate import CALIBRATION_TOKENS, GRID, Calibration
from realmodels.evaluate import block_results, token_blocks
from realmodels.load import CHECKPOINTS, DEFAULT_MODEL, Model
from theory.errors import InputError
from theory.hardware import Hardware, quantise_input, quantise_output
from theory.placement import Placement

module = importlib.import_module("realmodels.calibrate")  # the package has the function under this name
ROWS = 300  # fewer than in earnest, for brute force
EXPERTS_NAME = "model.layers.1.mlp.experts"
LINEARS = ("model.layers.1.self_attn.q_proj", "lm_head")
Group = tuple[Tensor, list[Tensor]]  # rows, and the matrices that each of them is multiplied with


# ------------------------------------------------------------------------------------------- brute force


def module_inputs(model: Model) -> dict[str, tuple[Tensor, ...]]:
    """What every module gets of the calibration tokens, one token of every block after the other."""
    inputs: dict[str, tuple[Tensor, ...]] = {}
    handles = [
        child.register_forward_pre_hook(lambda _, given, name=name: inputs.update({name: given}))
        for name, child in model.network.named_modules()
    ]
    tokens = token_blocks(model, TEXTS, CONTEXT, CALIBRATION_TOKENS // CONTEXT).tokens
    model.network(input_ids=tokens[:, :-1])
    for handle in handles:
        handle.remove()
    return inputs


def spread(rows: Tensor) -> Tensor:
    return rows[[number * len(rows) // ROWS for number in range(ROWS)]].double()


def groups_of(model: Model) -> dict[str, list[Group]]:
    """By parameter name, for two linear layers and the experts of layer 1."""
    inputs = module_inputs(model)
    groups: dict[str, list[Group]] = {
        f"{name}.weight": [
            (spread(inputs[name][0].flatten(0, 1)), [model.network.get_parameter(f"{name}.weight").double()])
        ]
        for name in LINEARS
    }
    hidden, index = (spread(each) for each in inputs[EXPERTS_NAME][:2])
    gate_up = model.network.get_parameter(f"{EXPERTS_NAME}.gate_up_proj").double()
    down = model.network.get_parameter(f"{EXPERTS_NAME}.down_proj").double()
    groups |= {f"{EXPERTS_NAME}.gate_up_proj": [], f"{EXPERTS_NAME}.down_proj": []}
    for expert in range(EXPERTS):
        mine = hidden[(index == expert).any(1)]
        gate, up = gate_up[expert, :INNER], gate_up[expert, INNER:]
        groups[f"{EXPERTS_NAME}.gate_up_proj"].append((mine, [gate, up]))
        groups[f"{EXPERTS_NAME}.down_proj"].append((F.silu(mine @ gate.T) * (mine @ up.T), [down[expert]]))
    return groups


def tiles(weight: Tensor, hardware: Hardware) -> Iterator[tuple[slice, slice, Tensor]]:
    """Every tile, with the w_max of each of its outputs."""
    size = hardware.tile_size
    for top in range(0, weight.shape[0], size):
        for left in range(0, weight.shape[1], size):
            tile = weight[top : top + size, left : left + size].abs()
            w_max = {"tile": tile.max(), "column": tile.amax(1), "layer": weight.abs().max()}
            yield (
                slice(top, top + size),
                slice(left, left + size),
                w_max[hardware.w_max].expand(len(tile)),
            )


def harm(error: Tensor, signal: Tensor) -> float:
    """What the search minimises, from sums of squares over each row: the mean relative error of rows."""
    return float((error / signal)[signal > 0].sum()) / len(error)


def conversions(groups: list[Group], bound: float, hardware: Hardware) -> list[list[tuple[Tensor, Tensor]]]:
    """Of every group, what its rows give every ADC, and the ADC's bound for lam = 1."""
    found = []
    for rows, matrices in groups:
        codes = quantise_input(rows, bound, hardware.dac_bits)
        found.append(
            [
                (codes[:, inputs] @ weight[outputs, inputs].T, bound * w_max)
                for weight in matrices
                for outputs, inputs, w_max in tiles(weight, hardware)
            ]
        )
    return [pairs for pairs in found if len(pairs[0][0])]


def input_harm(rows: Tensor, bound: float, bits: int) -> float:
    return harm((quantise_input(rows, bound, bits) - rows).square().sum(1), rows.square().sum(1))


def output_harm(converted: list[list[tuple[Tensor, Tensor]]], lam: float, bits: int) -> float:
    """A row's outputs are those of all tiles of all its matrices."""
    error = [
        sum((quantise_output(product, lam * unit, bits) - product).square().sum(1) for product, unit in pairs)
        for pairs in converted
    ]
    signal = [sum(product.square().sum(1) for product, _ in pairs) for pairs in converted]
    return harm(torch.cat(error), torch.cat(signal))  # type: ignore[arg-type]


def assert_best_of_grid(found: float, harms: list[float], largest: float) -> None:
    step = round(-4 * math.log2(found / largest))
    assert found == pytest.approx(largest * GRID[step], rel=1e-5)
    assert harms[step] <= min(harms) * (1 + 1e-4)  # the search is in fp32


def assert_calibrated(calibration: Calibration, groups: dict[str, list[Group]]) -> None:
    hardware = calibration.hardware
    for name, group in groups.items():
        ranges, rows = calibration[name], torch.cat([rows for rows, _ in group])
        largest, std = float(rows.abs().max()), float(rows.std())
        # A token counts once, or once for each of its experts: all the same but for the n - 1 of a variance.
        assert ranges.input_std == pytest.approx(std, rel=1 / ROWS)
        std = ranges.input_std
        if hardware.dac_bits is None:
            assert ranges.kappa * std == pytest.approx(largest, rel=1e-5)
        else:
            harms = [input_harm(rows, largest * each, hardware.dac_bits) for each in GRID]
            assert_best_of_grid(ranges.kappa * std, harms, largest)
        bound = std * (ranges.kappa if hardware.kappa is None else hardware.kappa)
        converted = conversions(group, bound, hardware)
        ratios = [(product.abs() / unit)[:, unit > 0] for pairs in converted for product, unit in pairs]
        largest = max(float(ratio.max()) for ratio in ratios if ratio.numel())
        if hardware.adc_bits is None:
            assert ranges.lam == pytest.approx(largest, rel=1e-5)
        else:
            harms = [output_harm(converted, largest * each, hardware.adc_bits) for each in GRID]
            assert_best_of_grid(ranges.lam, harms, largest)


@pytest.fixture(scope="module")
def idle_model() -> Model:
    """With experts 4 and 5 idle, and w_max so different that a row has to go with its own expert's."""
    network = small_network()
    leave_experts_idle(network)
    for name, parameter in network.named_parameters():
        if ".experts." in name:
            parameter.data *= torch.tensor([1.0, 0.1, 3.0, 0.3, 1.0, 1.0]).view(-1, 1, 1)
    return as_model(network)


@pytest.mark.parametrize(
    "hardware",
    [
        Hardware(),
        Hardware(w_max="column", tile_size=16),
        Hardware(w_max="layer", tile_size=10, dac_bits=6, adc_bits=5),
        Hardware(tile_size=20, dac_bits=3, adc_bits=12),
        Hardware(dac_bits=None, tile_size=16),
        Hardware(adc_bits=None, tile_size=16, w_max="column"),
        Hardware(kappa=2.0, tile_size=16),
        Hardware(kappa=20.0, lam=0.1),
    ],
    ids=str,
)
def test_ranges_are_the_best_of_the_grid(
    hardware: Hardware, idle_model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Experts without tokens among them; gate and up have tiles of their own."""
    monkeypatch.setattr(module, "ROWS", ROWS)
    groups = groups_of(idle_model)
    sizes = [len(rows) for rows, _ in groups[f"{EXPERTS_NAME}.down_proj"]]
    assert sum(sizes) == TOP_K * ROWS and min(sizes[:4]) > 0 and sizes[4:] == [0, 0]
    assert_calibrated(calibrate(idle_model, TEXTS, hardware), groups)


def test_tiles_of_zeros_have_no_say(monkeypatch: pytest.MonkeyPatch) -> None:
    """They have neither products nor a w_max."""
    monkeypatch.setattr(module, "ROWS", ROWS)
    network = small_network()
    network.lm_head.weight.data[:40] = 0
    network.model.layers[1].mlp.experts.gate_up_proj.data[2, :, :16] = 0
    model, hardware = as_model(network), Hardware(tile_size=16, w_max="column")
    found = calibrate(model, TEXTS, hardware)
    assert_calibrated(found, groups_of(model))


def test_busy_experts_all_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ROWS", ROWS)
    model = small_model(seed=1)
    groups = groups_of(model)
    assert all(len(rows) for rows, _ in groups[f"{EXPERTS_NAME}.down_proj"])
    assert_calibrated(calibrate(model, TEXTS, Hardware(tile_size=16)), groups)


def test_all_rows_if_there_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    model, texts = small_model(), TEXTS[:2]
    monkeypatch.setattr(module, "ROWS", 10**6)
    everything = calibrate(model, texts, Hardware())
    monkeypatch.setattr(module, "ROWS", len(token_blocks(model, texts).tokens) * CONTEXT)
    assert calibrate(model, texts, Hardware()) == everything
    monkeypatch.setattr(module, "ROWS", 10)
    assert calibrate(model, texts, Hardware()) != everything


def test_grid_begins_where_nothing_saturates() -> None:
    assert GRID[0] == 1.0 and GRID[-1] < 0.01
    assert all(after / before == pytest.approx(2**-0.25) for before, after in pairwise(GRID))


# ------------------------------------------------------------------------------------------- properties


@pytest.mark.parametrize("name", ["olmoe", *OTHER_CONFIGS])
def test_every_layer_that_can_be_analog(name: str) -> None:
    network = network_of(OTHER_CONFIGS[name]) if name in OTHER_CONFIGS else small_network()
    model = as_model(network)
    experts = [
        f"{layer.experts}.{each}" for layer in model.map.moe_layers for each in ("gate_up_proj", "down_proj")
    ]
    found = calibrate(model, TEXTS, Hardware())
    assert found.layers.keys() == {*experts, *(f"{linear}.weight" for linear in model.map.linears)}
    assert calibrate(model, TEXTS, Hardware()) == found


def test_programming_plays_no_part() -> None:
    model = small_model()
    found = [
        calibrate(model, TEXTS, Hardware(programming=programming, c=c, lam=lam)).layers
        for programming, c, lam in (("pcm", 1.0, None), ("hermes", 0.0, None), ("constant", 2.0, 0.1))
    ]
    assert found[0] == found[1] == found[2]


def hooks(model: Model) -> int:
    return sum(len(child._forward_pre_hooks) + len(child._forward_hooks) for child in model.network.modules())


def test_the_model_stays_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_model()
    before = {name: value.clone() for name, value in model.network.state_dict().items()}
    calibrate(model, TEXTS, Hardware())
    assert hooks(model) == 0 and not model.network.training
    assert all(torch.equal(value, before[name]) for name, value in model.network.state_dict().items())
    assert not any(parameter.requires_grad for parameter in model.network.parameters())

    def fail(*_: Any) -> float:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(module, "_best", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        calibrate(model, TEXTS, Hardware())
    assert hooks(model) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_little_saturates(dtype: torch.dtype) -> None:
    """The best 8-bit range of anything like a Gaussian leaves far less than a hundredth outside."""
    model = as_model(small_network().to(dtype))
    kinds = tuple(kind for kind, names in model.map.dense.items() if names)
    placement = Placement(model.map.num_experts, ((), ()), kinds)
    deploy(model, placement, Hardware(c=0.0), TEXTS)
    for analog in model.analog_modules.values():
        analog.count_saturation = True
    block_results(model.network, token_blocks(model, TEXTS).tokens)
    for name, analog in model.analog_modules.items():
        for fractions in analog.saturation().values():
            assert fractions.input < 0.01 and fractions.output < 0.01, name
    withdraw(model)


# ------------------------------------------------------------------------------------------- bad input


def test_deployed_models_are_refused() -> None:
    model = small_model()
    deploy(model, Placement(model.map.num_experts, ((0,), ())), Hardware(), TEXTS)
    with pytest.raises(InputError, match=r"model small is deployed already: call withdraw\(model\) first"):
        calibrate(model, TEXTS, Hardware())


def test_text_too_short() -> None:
    with pytest.raises(InputError, match="two blocks of 64 are needed"):
        calibrate(small_model(), ["short"], Hardware())


def test_inputs_that_do_not_vary() -> None:
    model = small_model()
    model.network.get_parameter("model.embed_tokens.weight").data.zero_()
    with pytest.raises(InputError, match=r"inputs of model.layers.0.self_attn.q_proj.weight do not vary"):
        calibrate(model, TEXTS, Hardware())
    assert hooks(model) == 0


def test_layers_of_another_model() -> None:
    found = calibrate(small_model(), TEXTS, Hardware())
    with pytest.raises(InputError, match=r"calibration has no model.layers.2.mlp.experts.down_proj"):
        found["model.layers.2.mlp.experts.down_proj"]


# ------------------------------------------------------------------------------------------- in earnest


@pytest.mark.skipif(not (CHECKPOINTS / DEFAULT_MODEL).is_dir(), reason="tiny-olmoe is not there yet")
def test_converters_cost_tiny_olmoe_little() -> None:
    """8 bits everywhere: less than 0.01 nats per token."""
    model = load()
    tokens = token_blocks(model, model.texts("evaluation"), 256, 16).tokens
    digital, _ = block_results(model.network, tokens)
    kinds = tuple(kind for kind, names in model.map.dense.items() if names)
    placement = Placement(model.map.num_experts, ((),) * len(model.map.num_experts), kinds)
    for hardware in (Hardware(c=0.0), Hardware(c=0.0, w_max="column")):
        deploy(model, placement, hardware, model.texts("calibration"))
        analog, _ = block_results(model.network, tokens)
        withdraw(model)
        assert abs(float((analog - digital).mean())) < 0.01
