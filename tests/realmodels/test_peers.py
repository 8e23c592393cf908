"""Our converters against aihwkit's and aihwkit-lightning's, on ADC codes; programmed exactly (c = 0)."""

import hypothesis.strategies as st
import pytest
import torch
from adc_parity import reference, settled
from hypothesis import given, settings
from torch import nn
from transformers.models.olmoe.configuration_olmoe import OlmoeConfig
from transformers.models.olmoe.modeling_olmoe import OlmoeExperts

from realmodels.analog import AnalogExperts, AnalogLinear, LayerCalibration, Ranges
from realmodels.peers import LightningExperts, aihwkit_linear, lightning_linear
from theory.errors import InputError
from theory.hardware import Granularity, Hardware

ROWS = 64


@settings(max_examples=100, deadline=None)
@given(
    peer=st.sampled_from([aihwkit_linear, lightning_linear]),
    w_max=st.sampled_from(["tile", "column"]),
    shape=st.sampled_from([(16, 48), (16, 16), (9, 11), (5, 32)]),
    dac_bits=st.integers(2, 9),
    adc_bits=st.integers(2, 9),
    calibration=st.builds(LayerCalibration, st.floats(0.5, 2), st.floats(1, 4), st.floats(0.05, 0.8)),
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
    bias: bool,
    seed: int,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    hardware = Hardware(c=0.0, w_max=w_max, tile_size=16, dac_bits=dac_bits, adc_bits=adc_bits)
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
    """Per column, where both have the same w_max: no expert, slice or routing weight is mixed up.

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
