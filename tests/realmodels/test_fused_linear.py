"""The fused path of analog linear layers is theory.hardware on its stored weights, on every ADC code.

On an NVIDIA GPU; or, with TRITON_INTERPRET=1 and Triton installed, in Triton's interpreter on the CPU.
"""

import copy
import math
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from adc_parity import by_slice, reference, settled
from hypothesis import Phase, given, settings
from test_analog import PLAIN, matrix_sizes, seeded

# Where there is neither a GPU nor the interpreter, this import skips the module. `forced` is a fixture for all of it.
from test_fused_experts import BACKEND, DEVICE, GPU_ONLY, GRANULARITIES, INTERPRETED, forced  # noqa: F401
from torch import Tensor, nn

import realmodels.analog.fused_linear as fused
from realmodels.analog import AnalogLinear, LayerCalibration
from realmodels.analog.fused_experts import Blocks
from realmodels.analog.fused_linear import Way
from theory.hardware import Granularity, Hardware, largest_weights

# Each hardware is compiled for a GPU, which takes seconds.
some = settings(
    max_examples=60 if INTERPRETED else 20,
    deadline=None,
    derandomize=not INTERPRETED,
    phases=(Phase.explicit, Phase.reuse, Phase.generate),  # shrinking would take many minutes
)
WAYS = ["one row", "inputs", "codes", "copies"]


def way_of(patch: pytest.MonkeyPatch, way: str) -> None:
    """Take this way whatever the number of rows, in blocks of which there are several."""
    blocks = Blocks(1, 8, 16, 4, 3) if way == "one row" else Blocks(16, 32, 32, 4, 3)
    patch.setattr(fused, "WAYS", {})
    patch.setattr(fused, "MANY_ROWS", 2 * (Way(blocks, way in ("codes", "copies"), way == "copies"),))
    patch.setattr(fused, "_plan", fused._plan.__wrapped__)
    patch.setattr(fused, "GROUP", 2)


def linear_of(inputs: int, outputs: int, bias: bool = False, seed: int = 0, **options: Any) -> nn.Linear:
    linear = nn.Linear(inputs, outputs, bias=bias, **options)
    for parameter in linear.parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=seeded(seed)))
    return linear


def layer_of(
    linear: nn.Linear,
    hardware: Hardware,
    calibration: LayerCalibration = PLAIN,
    seed: int = 0,
    fp32: bool = False,
) -> AnalogLinear:
    layer = AnalogLinear(linear.to(DEVICE), hardware, calibration, fp32=fp32)
    layer.program(torch.Generator(DEVICE).manual_seed(seed))
    assert layer.why_not_fused == ("fp32" if fp32 else None)
    return layer


def stored_weights(layer: AnalogLinear) -> Tensor:
    """The programmed weights (out, in) that the fp16 numbers stand for, in fp64."""
    w_max = largest_weights(layer.weight.detach(), layer.hardware).float().double()
    width = min(layer.hardware.tile_size, layer.in_features)
    stored = layer.crossbars["weight"].programmed()
    assert stored.dtype == torch.float16 and (stored[..., width:] == 0).all()
    tiles = stored[:, 0, :, :width].double().transpose(0, 1) * w_max[..., None] / 16
    return tiles.flatten(1)[:, : layer.in_features]


def flips_and_codes(
    hardware: Hardware,
    sizes: tuple[int, int, int],
    bias: bool,
    seed: int,
    calibration: LayerCalibration = PLAIN,
) -> tuple[int, int]:
    """Compare a layer with the reference: how many codes are off by one, as may be near a half, and of how many."""
    rows, inputs, outputs = sizes
    linear = linear_of(inputs, outputs, bias, seed)
    grid = 2.0**10  # without a DAC, of numbers this coarse nothing is lost
    x = (torch.randn(rows, inputs, generator=seeded(seed + 1)) * grid).round() / grid
    x = settled(x, hardware, calibration)
    layer = layer_of(linear, hardware, calibration, seed)
    output = layer(x.to(DEVICE).unsqueeze(1)).squeeze(1).cpu()
    target = layer.weight.detach().cpu()
    expected = reference(x, target, stored_weights(layer).cpu(), hardware, calibration)
    if bias:
        added = linear.bias.detach().cpu().double()
        expected.output.add_(added)
        # Rounding of the sum with the bias.
        expected.floats.add_(2.0**-24 * (expected.output.abs() + expected.flips + added.abs()))
    expected.assert_agrees(output)
    return expected.count_flips(output), output.numel() * math.ceil(inputs / hardware.tile_size)


# ---------------------------------------------------------------------------------- equal to the reference


@some
@given(
    hardware=st.builds(
        Hardware,
        c=st.sampled_from([0.0, 1.5]),
        w_max=st.sampled_from(GRANULARITIES),
        tile_size=st.sampled_from([4, 5, 16, 40, 512]),
        dac_bits=st.none() | st.integers(2, 16),
        adc_bits=st.none() | st.integers(2, 12),
        kappa=st.none() | st.floats(0.5, 4),
        lam=st.none() | st.floats(0.01, 0.5),
    ).filter(lambda hardware: hardware.dac_bits is not None or hardware.adc_bits is not None),
    rows=st.integers(0, 50),
    bias=st.booleans(),
    own_ranges=st.booleans(),
    way=st.sampled_from(WAYS),
    data=st.data(),
    seed=st.integers(0, 2**31),
)
def test_products_equal_the_reference_on_the_stored_weights(
    hardware: Hardware, rows: int, bias: bool, own_ranges: bool, way: str, data: st.DataObject, seed: int
) -> None:
    """Any converters, tiles and sizes; one range for the layer, or one for each input slice."""
    inputs, outputs = (
        data.draw(matrix_sizes(min(hardware.tile_size, 64)), label=name) for name in ("in", "out")
    )
    with pytest.MonkeyPatch.context() as patch:
        way_of(patch, way)
        calibration = by_slice(PLAIN, inputs, hardware) if own_ranges else PLAIN
        flips_and_codes(hardware, (rows, inputs, outputs), bias, seed, calibration)


@pytest.mark.parametrize("enough", [1, 2**30])
@pytest.mark.parametrize("rows", [1, 16, 64, 200, 300])
def test_few_codes_are_off(rows: int, enough: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those within rounding of a half: of 8-bit codes at most one in 10000. With the blocks that such rows take."""
    monkeypatch.setattr(fused, "ENOUGH", enough)
    monkeypatch.setattr(fused, "_plan", fused._plan.__wrapped__)
    flips, codes = flips_and_codes(Hardware(c=1.5, tile_size=64), (rows, 200, 300), True, 5)
    assert codes >= 1000 * rows and flips <= max(1, 1e-4 * codes)


@pytest.mark.parametrize("w_max", GRANULARITIES)
def test_weights_are_programmed_ones_rounded_to_fp16(w_max: Granularity) -> None:
    hardware = Hardware(c=1.5, tile_size=24, w_max=w_max, adc_bits=None)
    layer, exact = (layer_of(linear_of(70, 50), hardware, seed=7, fp32=fp32) for fp32 in (False, True))
    programmed = exact.crossbars["weight"].programmed()[:, 0].double().transpose(0, 1).flatten(1)[:, :70]
    largest = largest_weights(layer.weight.detach(), hardware).amax()
    error = (stored_weights(layer) - programmed).abs()
    assert (error <= (2.0**-11 + 2.0**-20) * programmed.abs() + 2.0**-28 * largest).all()


@pytest.mark.parametrize("way", WAYS)
def test_saturation_is_counted_as_without_the_kernel(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    way_of(monkeypatch, way)
    linear, hardware = linear_of(20, 40), Hardware(c=0.0, tile_size=8)
    linear.weight.data.mul_(4).round_().div_(4)  # exact in fp16, and so are the products
    linear.weight.data[:, ::4] = 4.0
    exact, x = LayerCalibration(50.8, 2.5, 0.5), torch.randint(-4, 5, (37, 20), generator=seeded(1)) * 64.0
    layer, other = (layer_of(linear, hardware, exact, fp32=fp32) for fp32 in (False, True))
    uncounted = layer(x.to(DEVICE))
    for each in (layer, other):
        each.count_saturation = True
        torch.testing.assert_close(each(x.to(DEVICE)), uncounted, rtol=1e-6, atol=1e-4)
        assert min(each.crossbars["weight"].counts.tolist()) > 0
    assert layer.crossbars["weight"].counts.tolist() == other.crossbars["weight"].counts.tolist()


@pytest.mark.parametrize("way", WAYS)
def test_what_is_no_number_stays_none(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    way_of(monkeypatch, way)
    layer, x = layer_of(linear_of(50, 30), Hardware(tile_size=16)), torch.randn(3, 50, generator=seeded(1))
    x[1, 5] = math.nan
    output = layer(x.to(DEVICE))
    assert output[1].isnan().all() and output[[0, 2]].isfinite().all()


@pytest.mark.parametrize("way", WAYS)
def test_tiles_of_zeros_give_zeros(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    way_of(monkeypatch, way)
    linear = linear_of(16, 12)
    linear.weight.data[:4] = 0
    layer = layer_of(linear, Hardware(c=2.0, tile_size=4))
    output = layer(torch.randn(5, 16, generator=seeded(1)).to(DEVICE))
    assert (output[:, :4] == 0).all() and output[:, 4:].any(1).all()


@pytest.mark.parametrize("rows", [3, 100])
def test_inputs_of_any_strides(rows: int) -> None:
    layer = layer_of(linear_of(40, 24, bias=True), Hardware(tile_size=16))
    x = torch.randn(41, 2 * rows, generator=seeded(1)).to(DEVICE).T[::2, 1:]
    assert torch.equal(layer(x), layer(x.contiguous()))
    assert torch.equal(layer(x.view(rows, 1, 40)), layer(x).view(rows, 1, 24))


# --------------------------------------------------------------------------------------- on a GPU alone


def large(
    fp32: bool = False,
    dtype: torch.dtype = torch.bfloat16,
    outputs: int = 1000,
    bits: tuple[int | None, int | None] = (8, 8),
) -> AnalogLinear:
    linear = linear_of(1024, outputs, bias=True, dtype=dtype)
    linear.weight.data.mul_(0.02)
    return layer_of(
        linear,
        Hardware(tile_size=256, dac_bits=bits[0], adc_bits=bits[1]),
        LayerCalibration(1.0, 3.0, 3.0),
        fp32=fp32,
    )


def rows_of(rows: int, dtype: torch.dtype = torch.bfloat16, seed: int = 1) -> Tensor:
    return torch.randn(rows, 1024, generator=seeded(seed)).to(DEVICE, dtype)


@GPU_ONLY
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("rows", [1, 3, 16, 17, 64, 65, 257, 3000])
def test_all_sizes_of_blocks_give_what_the_slower_path_gives(rows: int, dtype: torch.dtype) -> None:
    """But for the rounding of weights, and for codes that it moves; and the same every time."""
    for outputs in (1000, 20000):
        layer, other = (large(fp32, dtype, outputs) for fp32 in (False, True))
        x = rows_of(rows, dtype)
        output, expected = layer(x), other(x)
        assert output.dtype == dtype and output.shape == expected.shape
        assert expected.any() and (output - expected).norm() <= 0.02 * expected.norm()
        assert torch.equal(layer(x), output)


@GPU_ONLY
@pytest.mark.parametrize("rows", [1, 64, 3000])
@pytest.mark.parametrize("bits", [(None, 8), (16, 8), (8, None)], ids=str)
def test_all_converters_fit_in_all_blocks(bits: tuple[int | None, int | None], rows: int) -> None:
    layer, other = large(bits=bits), large(True, bits=bits)
    output, expected = layer(rows_of(rows)), other(rows_of(rows))
    assert expected.any() and (output - expected).norm() <= 0.02 * expected.norm()


@GPU_ONLY
@pytest.mark.filterwarnings("ignore:Synchronization debug mode:UserWarning")
@pytest.mark.parametrize("rows", [1, 300])
def test_the_host_never_waits(rows: int) -> None:
    layer, x = large(), rows_of(rows)
    expected = layer(x)
    layer.count_saturation = True
    torch.cuda.set_sync_debug_mode("error")
    try:
        assert layer(x).shape == expected.shape
    finally:
        torch.cuda.set_sync_debug_mode("default")
    layer.count_saturation = False
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = layer(x)
    for seed in (2, 3):
        x.copy_(rows_of(rows, seed=seed))
        graph.replay()
        assert torch.equal(output, layer(x))


def test_torch_compile_keeps_one_graph() -> None:
    dtype = torch.float32 if INTERPRETED else torch.bfloat16
    layer = large(dtype=dtype, outputs=100)
    compiled = torch.compile(lambda x: 2 * layer(x), fullgraph=True, backend=BACKEND)
    for rows in (1, 70, 71):
        assert torch.equal(compiled(rows_of(rows, dtype)), 2 * layer(rows_of(rows, dtype)))


@GPU_ONLY
def test_a_layer_is_programmed_where_it_computes() -> None:
    layer = copy.deepcopy(large()).cpu()
    with pytest.raises(RuntimeError, match="program"):
        layer(rows_of(3).cpu())


@GPU_ONLY
def test_programmed_weights_take_two_bytes() -> None:
    large()
    torch.cuda.synchronize()
    held = torch.cuda.memory_allocated()
    layer = large(outputs=20000)
    assert torch.cuda.memory_allocated() - held <= 1.05 * (2 + 2) * layer.weight.numel()
