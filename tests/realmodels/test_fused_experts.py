"""The fused path of analog experts is theory.hardware on its stored weights, on every ADC code.

On an NVIDIA GPU; or, with TRITON_INTERPRET=1 and Triton installed, in Triton's interpreter on the CPU.
"""

import copy
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import adc_parity
import hypothesis.strategies as st
import pytest
import torch
from adc_parity import by_slice, reference, settled
from hypothesis import Phase, given, settings
from small_models import TEXTS, gated, small_model, unfused
from test_analog import (
    EXACT,
    EXPERTS,
    HIDDEN,
    INNER,
    LAYOUTS,
    PLAIN,
    _absolute,
    exact_experts,
    exact_inputs,
    exact_ranges,
    expected_layer,
    fused_experts,
    in_layout,
    matrix_sizes,
    seeded,
)
from torch import Tensor, nn

import realmodels.analog.layers as analog_layers
from realmodels import deploy, load_chip, save_chip, withdraw
from realmodels.analog import AnalogExperts, LayerCalibration, Ranges
from theory.errors import InputError
from theory.hardware import Granularity, Hardware, largest_weights
from theory.placement import Placement

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
if not (INTERPRETED or torch.cuda.is_available()):
    pytest.skip("no CUDA device here, and TRITON_INTERPRET is not 1", allow_module_level=True)
pytest.importorskip("triton")

import realmodels.analog.fused_experts as fused  # noqa: E402
from realmodels.analog.fused_experts import Blocks, _Routing  # noqa: E402

DEVICE = "cpu" if INTERPRETED else "cuda"
BACKEND = "aot_eager" if INTERPRETED else "inductor"
GPU_ONLY = pytest.mark.skipif(INTERPRETED, reason="not on a GPU")
# Each hardware is compiled for a GPU, which takes seconds.
some = settings(
    max_examples=25 if INTERPRETED else 12,
    deadline=None,
    derandomize=not INTERPRETED,
    phases=(Phase.explicit, Phase.reuse, Phase.generate),  # shrinking would take many minutes
)
GRANULARITIES: list[Granularity] = ["tile", "column", "layer"]
UNIT_ROUNDOFF = 2.0**-24


@pytest.fixture(autouse=True, scope="module")
def forced() -> Iterator[None]:
    """The fused path on the CPU, too. On a GPU, tensor cores truncate: 2^-22 for each term of a sum, not 2^-24."""
    with pytest.MonkeyPatch.context() as patch:
        if INTERPRETED:
            patch.setattr(analog_layers, "why_not_fused", lambda *_: None)
        else:
            patch.setattr(adc_parity, "UNIT_ROUNDOFF", 2.0**-22)
        yield


def on_device(*tensors: Tensor) -> tuple[Tensor, ...]:
    return tuple(each.to(DEVICE) for each in tensors)


def layer_of(
    experts: Any,
    digital: list[int],
    hardware: Hardware,
    calibration: Any = None,
    seed: int = 0,
    **options: Any,
) -> AnalogExperts:
    both = {"gate_up_proj": PLAIN, "down_proj": PLAIN} if calibration is None else calibration
    layer = AnalogExperts(experts.to(DEVICE), digital, hardware, both, **options)
    layer.program(torch.Generator(DEVICE).manual_seed(seed))
    assert (layer.why_not_fused is None) is not options.get("fp32", False)
    return layer


def stored_weights(layer: AnalogExperts, name: str) -> Tensor:
    """The programmed weights (experts, matrices, out, in) that the fp16 numbers stand for, in fp64."""
    target = layer.layout.matrices(name, layer.get_parameter(name).detach())[layer.analog]
    w_max = largest_weights(target, layer.hardware).float().double()
    width = min(layer.hardware.tile_size, target.shape[-1])
    stored = layer.crossbars[name].programmed()
    assert stored.dtype == torch.float16 and (stored[..., width:] == 0).all()
    tiles = (
        stored[..., :width].double().unflatten(2, (target.shape[2], target.shape[1])).permute(1, 3, 2, 0, 4)
    )
    return (tiles * w_max[..., None] / 16).flatten(3)[..., : target.shape[-1]]


# ---------------------------------------------------------------------------------- equal to the reference


@some
@given(
    layout=st.sampled_from(sorted(LAYOUTS)),
    digital=st.lists(st.integers(0, EXPERTS - 1), unique=True, max_size=EXPERTS - 1),
    tokens=st.integers(0, 12),
    k=st.integers(1, 3),
    tile_size=st.sampled_from([4, 8, 512]),
    w_max=st.sampled_from(GRANULARITIES),
    own_ranges=st.booleans(),
    pass_tokens=st.sampled_from([5, 2**14]),
    activation=st.sampled_from(["fused", "torch"]),
    seed=st.integers(0, 2**31),
)
def test_whole_layer_equals_reference_bit_for_bit(
    layout: str,
    digital: list[int],
    tokens: int,
    k: int,
    tile_size: int,
    w_max: Granularity,
    own_ranges: bool,
    pass_tokens: int,
    activation: str,
    seed: int,
) -> None:
    """Try any layout, placement and routing: one token, none, idle experts, one expert twice, several passes."""
    ranges = exact_ranges(tile_size) if own_ranges else EXACT
    generator = seeded(seed)
    experts, hardware = exact_experts(generator, layout), Hardware(c=0.0, tile_size=tile_size, w_max=w_max)
    inputs = exact_inputs(tokens, k, generator)
    expected = expected_layer(experts, digital, hardware, inputs, ranges)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fused, "RESULTS", pass_tokens * k * HIDDEN)
        if activation == "torch":
            patch.setattr(fused, "known_gate", lambda _: None)
        output = layer_of(experts, digital, hardware, ranges)(*on_device(*inputs))
    assert torch.equal(output.cpu(), expected)


@some
@given(
    layout=st.sampled_from(sorted(LAYOUTS)),
    made=st.sets(st.integers(0, EXPERTS - 1), max_size=EXPERTS - 2),
    later=st.sets(st.integers(0, EXPERTS - 1)),
    activation=st.sampled_from(["fused", "torch"]),
    hardware=st.sampled_from([Hardware(c=1.0, tile_size=8), Hardware(c=1.0, tile_size=8, w_max="column")]),
    seed=st.integers(0, 2**31),
)
def test_other_digital_experts_without_programming(
    layout: str, made: set[int], later: set[int], activation: str, hardware: Hardware, seed: int
) -> None:
    """The layer is then the one that was made with them, to the last bit; also its counts, and back again."""
    experts = exact_experts(seeded(seed), layout)
    inputs = on_device(*exact_inputs(7, 2, seeded(seed)))
    with pytest.MonkeyPatch.context() as patch:
        if activation == "torch":
            patch.setattr(fused, "known_gate", lambda _: None)
        layer, first = (layer_of(experts, sorted(made), hardware, EXACT, seed) for _ in range(2))
        if len(made | later) < EXPERTS:
            both: Any = layer_of(experts, sorted(made | later), hardware, EXACT, seed)
        else:
            both = first.original
        for digital, other in ((made | later, both), (made, first)):
            layer.keep_digital(sorted(digital))
            if isinstance(other, AnalogExperts):
                for each in (layer, other):
                    each.count_saturation = True
                    each.reset_saturation()
            assert torch.equal(layer(*inputs), other(*inputs))
            if isinstance(other, AnalogExperts):
                assert layer.saturation() == other.saturation()


def routings(patch: pytest.MonkeyPatch) -> list[_Routing]:
    """The routing of each pass from now on."""
    seen: list[_Routing] = []

    class Recorded(_Routing):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            seen.append(self)

    patch.setattr(fused, "_Routing", Recorded)
    return seen


def flips_and_codes(
    hardware: Hardware,
    layout: str,
    digital: list[int],
    hidden: int,
    inner: int,
    counts: list[int],
    seed: int,
    by_slices: tuple[bool, bool] = (False, False),
) -> tuple[int, int]:
    """Compare gate, up and down of each analog expert with the reference; down's have ranges of their own.

    by_slices: if every input slice has a range of its own, before gate and up, and before down.

    An activation sees what comes out of gate and up, and replaces what goes into down.

    Returns how many outputs have a code that is off by one, as may be near a half, and how many codes there are.
    """
    number, rows = len(counts), sum(counts)
    experts = in_layout(fused_experts(number, hidden, inner, seeded(seed)), layout)
    ranges = [LayerCalibration(1.0 + expert, 2.5, 0.1 + 0.05 * expert) for expert in range(number)]
    gate_up = by_slice(PLAIN, hidden, hardware) if by_slices[0] else PLAIN
    if by_slices[1]:
        ranges = [by_slice(each, inner, hardware) for each in ranges]
    expert = torch.arange(number).repeat_interleave(torch.tensor(counts))
    grid = 2.0**10  # without a DAC, of numbers this coarse nothing is lost
    x = settled((torch.randn(rows, hidden, generator=seeded(seed)) * grid).round() / grid, hardware, gate_up)
    middle = (torch.randn(rows, inner, generator=seeded(seed + 1)) * grid).round() / grid
    for each in range(number):
        middle[expert == each] = settled(middle[expert == each], hardware, ranges[each])
    seen: dict[str, Tensor] = {}
    with pytest.MonkeyPatch.context() as patch:
        passes = routings(patch)

        def activation(products: Tensor) -> Tensor:
            seen["products"], seen["order"] = products.cpu(), passes[0].order.cpu().long()
            return middle[seen["order"]].to(products)

        experts._apply_gate = activation
        layer = layer_of(experts, digital, hardware, {"gate_up_proj": gate_up, "down_proj": ranges}, seed)
        output = layer(*on_device(x, expert[:, None], torch.ones(rows, 1))).cpu()
    both = torch.empty_like(seen["products"])
    both[seen["order"]] = layer.layout.gate_then_up(seen["products"])
    flips = codes = 0
    for name, inputs, products in (("gate_up_proj", x, both), ("down_proj", middle, output)):
        programmed = stored_weights(layer, name).cpu()
        targets = layer.layout.matrices(name, layer.get_parameter(name).detach().cpu())
        for place, each in enumerate(layer.analog):
            own = expert == each
            for matrix, result in enumerate(products.unflatten(1, (targets.shape[1], -1)).unbind(1)):
                calibration = ranges[each] if name == "down_proj" else gate_up
                weights = targets[each, matrix], programmed[place, matrix]
                expected = reference(inputs[own], *weights, hardware, calibration)
                expected.assert_agrees(result[own])
                flips += expected.count_flips(result[own])
                codes += result[own].numel() * math.ceil(inputs.shape[1] / hardware.tile_size)
    return flips, codes


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
    layout=st.sampled_from(sorted(LAYOUTS)),
    digital=st.sampled_from([[], [0], [1]]),
    by_slices=st.tuples(st.booleans(), st.booleans()),
    data=st.data(),
    seed=st.integers(0, 2**31),
)
def test_products_equal_the_reference_on_the_stored_weights(
    hardware: Hardware,
    layout: str,
    digital: list[int],
    by_slices: tuple[bool, bool],
    data: st.DataObject,
    seed: int,
) -> None:
    """Any converters, tiles, sizes, ranges and numbers of rows, some experts without rows."""
    hidden, inner = (data.draw(matrix_sizes(min(hardware.tile_size, 64)), label=name) for name in ("H", "I"))
    counts = data.draw(st.lists(st.integers(0, 5), min_size=2, max_size=4).filter(any), label="rows")
    flips_and_codes(hardware, layout, digital, hidden, inner, counts, seed, by_slices)


@pytest.mark.parametrize("digital", [[], [1]])
def test_few_codes_are_off(digital: list[int]) -> None:
    """Those within rounding of a half: of 8-bit codes at most one in 10000."""
    flips, codes = flips_and_codes(
        Hardware(c=1.5, tile_size=64), "gpt_oss", digital, 200, 100, [30, 0, 90], 5
    )
    assert codes > 100_000 and flips <= 1e-4 * codes


@pytest.mark.parametrize("w_max", GRANULARITIES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_weights_are_programmed_ones_rounded_to_fp16(layout: str, w_max: Granularity) -> None:
    hardware = Hardware(c=1.5, tile_size=24, w_max=w_max)
    layer = layer_of(in_layout(fused_experts(3, 40, 20, seeded(0)), layout), [1], hardware, seed=7)
    exact = layer_of(layer.original, [1], hardware, seed=7, fp32=True)
    for name, crossbars in exact.crossbars.items():
        target = layer.layout.matrices(name, layer.get_parameter(name).detach())[layer.analog]
        _, matrices, outputs, inputs = target.shape
        step = (
            largest_weights(target, hardware) * 0.2 / 1
        )  # lam * w_max, times levels of the DAC over the ADC's
        tiles = crossbars.programmed().double().unflatten(2, (matrices, outputs)).permute(1, 2, 3, 0, 4)
        programmed = (tiles * step.double()[..., None]).flatten(3)[..., :inputs]
        error = (stored_weights(layer, name) - programmed).abs()
        assert (error <= (2.0**-11 + 2.0**-20) * programmed.abs() + 2.0**-28 * step[..., :1]).all()


# ------------------------------------------------------------------------------- activations and digital experts


def gating(name: str) -> Any:
    experts = fused_experts(EXPERTS, HIDDEN, INNER, seeded(0))
    if name in LAYOUTS:
        experts = in_layout(experts, name)
        for parameter in experts.parameters():
            if parameter.ndim == 2:
                parameter.data.normal_(generator=seeded(1))
        if hasattr(experts, "limit"):
            experts.limit = 2.0  # so that it clamps
    else:
        experts.act_fn = {"relu": nn.ReLU(), "identity": nn.Identity(), "tanh": nn.Tanh()}[name]
    return experts


@pytest.mark.parametrize("name", [*LAYOUTS, "relu", "identity", "tanh"])
def test_digital_experts_are_the_replaced_ones(name: str) -> None:
    """With biases and every activation, of which one is torch's."""
    experts = gating(name)
    hidden, weights = torch.randn(9, HIDDEN, generator=seeded(2)), torch.rand(9, 2, generator=seeded(3))
    index = torch.randint(1, EXPERTS, (9, 2), generator=seeded(4))
    layer = layer_of(experts, list(range(1, EXPERTS)), Hardware())
    assert (layer.gate is None) is (name == "tanh")
    inputs = on_device(hidden, index, weights)
    torch.testing.assert_close(layer(*inputs), experts(*inputs), rtol=1e-5, atol=1e-5)
    for expert in range(EXPERTS):  # and what tests take for the activation
        gate, up, _ = unfused(experts, expert)
        if name in LAYOUTS:
            assert gated(experts, gate.weight, up.weight).shape == gate.weight.shape


@pytest.mark.parametrize("name", [*LAYOUTS, "relu"])
def test_analog_experts_have_torchs_activation(name: str) -> None:
    """One of 2047 DAC levels may be another after it; here no ADC follows."""
    experts, hardware = gating(name), Hardware(c=0.0, dac_bits=12, adc_bits=None, tile_size=8)
    inputs = (
        torch.randn(9, HIDDEN, generator=seeded(2)),
        torch.randint(0, EXPERTS, (9, 2), generator=seeded(4)),
        torch.rand(9, 2, generator=seeded(3)),
    )
    wide = {each: LayerCalibration(20.0, 2.5, 0.2) for each in ("gate_up_proj", "down_proj")}
    layer = layer_of(experts, [2], hardware, wide)
    output = layer(*on_device(*inputs))
    assert layer.gate is not None
    layer.gate = None
    expected = layer(*on_device(*inputs))
    assert (output - expected).norm() <= 1e-3 * expected.norm()
    exact = experts(*on_device(*inputs))
    assert (output - exact).norm() <= 0.05 * exact.norm()


@GPU_ONLY  # the interpreter multiplies bf16 as if it were integers
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("digital", [[], [1, 3]])
def test_bfloat16_model_computes_codes_in_fp32(digital: list[int], layout: str) -> None:
    experts, (hidden, index, weights) = exact_experts(seeded(0), layout), exact_inputs(9, 2, seeded(1))
    expected = expected_layer(experts, digital, Hardware(c=0.0), (hidden, index, weights))
    magnitude = expected_layer(
        _absolute(experts),
        digital,
        Hardware(c=0.0, dac_bits=None, adc_bits=None),
        (hidden.abs(), index, weights),
    )
    layer = layer_of(experts.to(torch.bfloat16), digital, Hardware(c=0.0), EXACT)
    output = layer(*on_device(hidden.bfloat16(), index, weights.bfloat16())).cpu()
    assert output.dtype == torch.bfloat16
    if not digital:
        assert torch.equal(output, expected.bfloat16())
    # What a digital expert rounds to bf16: what it hands to down, and the result.
    unit = 2.0**-9 * 2
    assert ((output.double() - expected).abs() <= unit / (1 - unit) * magnitude).all()


def test_what_is_no_number_stays_none() -> None:
    layer = layer_of(fused_experts(EXPERTS, HIDDEN, INNER, seeded(0)), [], Hardware())
    hidden, index = torch.randn(3, HIDDEN, generator=seeded(1)), torch.tensor([[0, 1], [0, 2], [3, 4]])
    hidden[1, 5] = math.nan
    output = layer(*on_device(hidden, index, torch.ones(3, 2)))
    assert output[1].isnan().all() and output[[0, 2]].isfinite().all()


def test_tiles_of_zeros_give_zeros() -> None:
    experts = fused_experts(EXPERTS, HIDDEN, INNER, seeded(0))
    experts.down_proj.data[:, :4] = 0
    layer = layer_of(experts, [], Hardware(c=2.0, tile_size=4))
    output = layer(
        *on_device(torch.randn(4, HIDDEN, generator=seeded(1)), torch.arange(4)[:, None], torch.ones(4, 1))
    )
    assert (output[:, :4] == 0).all() and output[:, 4:].any(1).all()


@pytest.mark.parametrize("ranges", [EXACT, exact_ranges(8), exact_ranges(4)], ids=["one", "two", "four"])
@pytest.mark.parametrize("activation", ["fused", "torch"])
def test_saturation_is_counted_as_without_the_kernel(
    activation: str, ranges: dict[str, Ranges], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Try one range for all input slices, and one for each."""
    if activation == "torch":
        monkeypatch.setattr(fused, "known_gate", lambda _: None)
    experts, inputs = exact_experts(seeded(0)), on_device(*exact_inputs(40, 2, seeded(1)))
    hardware = Hardware(c=0.0, tile_size=4 if ranges == exact_ranges(4) else 8)
    layer = layer_of(experts, [1], hardware, ranges)
    other = layer_of(experts, [1], hardware, ranges, fp32=True)
    uncounted = layer(*inputs)
    for each in (layer, other):
        each.count_saturation = True
        assert torch.equal(each(*inputs), uncounted)
    for name in layer.crossbars:
        assert layer.crossbars[name].counts.tolist() == other.crossbars[name].counts.tolist()
        assert min(layer.crossbars[name].counts.tolist()) > 0
    assert layer.saturation() == other.saturation()


# ------------------------------------------------------------------------------------------ routing


@some
@given(
    experts=st.integers(1, 9),
    tokens=st.integers(1, 40),
    k=st.integers(1, 3),
    rows=st.sampled_from([16, 32]),
    alone=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_every_pair_is_in_one_block_of_its_expert(
    experts: int, tokens: int, k: int, rows: int, alone: bool, seed: int
) -> None:
    index = torch.randint(experts, (tokens, k), generator=seeded(seed))
    index[tokens // 2 :] = index[0].clone()  # many of one expert
    layer = layer_of(fused_experts(experts, 4, 4, seeded(0)), [], Hardware())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fused, "BLOCKS", {})
        patch.setattr(fused, "LARGEST_BLOCKS", Blocks(rows, 64, 64, 4, 3))
        patch.setattr(fused, "CHUNK", 2**8)
        patch.setattr(fused, "ALONE", 2**15 if alone else 0)
        passes = routings(patch)
        layer(*on_device(torch.ones(tokens, 4), index, torch.ones(tokens, k)))
    order, blocks = passes[0].order.cpu().long(), passes[0].blocks.cpu().view(-1, 3)
    assert order.sort().values.tolist() == list(range(tokens * k))
    of_row, covered = index.flatten()[order], []
    for expert, first, end in blocks.tolist():
        if end == 0:
            continue
        own = list(range(first, min(end, first + rows)))
        assert own and (of_row[own] == expert).all()
        covered += own
    assert covered == list(range(tokens * k)) and (of_row.diff() >= 0).all()


# --------------------------------------------------------------------------------------- on a GPU alone


def olmoe_like(
    digital: list[int],
    dtype: torch.dtype = torch.bfloat16,
    bits: tuple[int | None, int | None] = (8, 8),
    fp32: bool = False,
    activation: nn.Module | None = None,
) -> AnalogExperts:
    experts = fused_experts(16, 512, 256, seeded(0), dtype)
    if activation is not None:
        experts.act_fn = activation
    for parameter in experts.parameters():
        parameter.data.mul_(0.02)
    wide = {
        "gate_up_proj": LayerCalibration(1.0, 3.0, 3.0),
        "down_proj": LayerCalibration(0.1, 3.0, 3.0),
    }
    hardware = Hardware(c=1.0, tile_size=128, dac_bits=bits[0], adc_bits=bits[1])
    return layer_of(experts, digital, hardware, wide, fp32=fp32)


def routed(tokens: int, dtype: torch.dtype = torch.bfloat16, seed: int = 1) -> tuple[Tensor, ...]:
    weights, index = torch.rand(tokens, 16, generator=seeded(seed)).softmax(-1).topk(4)
    return on_device(torch.randn(tokens, 512, generator=seeded(seed)).to(dtype), index, weights.to(dtype))


@GPU_ONLY
@pytest.mark.parametrize("digital", [[], [0, 5, 9]])
@pytest.mark.parametrize("tokens", [1, 3, 40, 200, 3000, 100_000])
def test_all_sizes_of_blocks_give_what_the_slower_path_gives(tokens: int, digital: list[int]) -> None:
    """But for the rounding of weights, and for codes that it moves; and the same every time."""
    layer, other = olmoe_like(digital), olmoe_like(digital, fp32=True)
    inputs = routed(tokens)
    output, expected = layer(*inputs), other(*inputs)
    assert expected.any() and (output - expected).norm() <= 0.02 * expected.norm()
    assert torch.equal(layer(*inputs), output)


@GPU_ONLY
@pytest.mark.parametrize("bits", [(None, 8), (16, 8), (8, None)], ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_all_converters_fit_in_the_largest_blocks(
    dtype: torch.dtype, bits: tuple[int | None, int | None]
) -> None:
    layer, other = (olmoe_like([0, 5, 9], dtype, bits, fp32) for fp32 in (False, True))
    inputs = routed(3000, dtype)
    output, expected = layer(*inputs), other(*inputs)
    assert expected.any() and (output - expected).norm() <= 0.02 * expected.norm()


@GPU_ONLY
@pytest.mark.filterwarnings("ignore:Synchronization debug mode:UserWarning")
@pytest.mark.parametrize("digital", [[], [0, 5, 9]])
def test_the_host_never_waits(digital: list[int]) -> None:
    layer, inputs = olmoe_like(digital), routed(70)
    expected = layer(*inputs)
    layer.count_saturation = True
    torch.cuda.set_sync_debug_mode("error")
    try:
        assert layer(*inputs).shape == expected.shape
    finally:
        torch.cuda.set_sync_debug_mode("default")
    layer.count_saturation = False
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = layer(*inputs)
    for seed in (2, 3):
        for memory, new in zip(inputs, routed(70, seed=seed), strict=True):
            memory.copy_(new)
        graph.replay()
        assert torch.equal(output, layer(*inputs))


@pytest.mark.parametrize("activation", [nn.SiLU(), nn.Tanh()], ids=str)
@pytest.mark.parametrize("digital", [[], [0, 5, 9]])
def test_torch_compile_keeps_one_graph(digital: list[int], activation: nn.Module) -> None:
    dtype = torch.float32 if INTERPRETED else torch.bfloat16
    layer = olmoe_like(digital, dtype, activation=activation)
    assert (layer.gate is None) is isinstance(activation, nn.Tanh)
    compiled = torch.compile(lambda *inputs: 2 * layer(*inputs), fullgraph=True, backend=BACKEND)
    for tokens in (2, 3):
        inputs = routed(tokens, dtype)
        assert torch.equal(compiled(*inputs), 2 * layer(*inputs))


@GPU_ONLY
def test_which_layers_are_fused() -> None:
    assert olmoe_like([]).why_not_fused is None
    assert olmoe_like([], torch.float32).why_not_fused is None
    double = AnalogExperts(
        fused_experts(2, 32, 16, seeded(0), torch.float64).to(DEVICE),
        [],
        Hardware(),
        EXACT | {"down_proj": PLAIN},
    )
    double.program(torch.Generator(DEVICE))
    assert double.why_not_fused == "they are in fp64"
    moved = copy.deepcopy(olmoe_like([])).cpu()
    with pytest.raises(RuntimeError, match="program"):
        moved(*(each.cpu() for each in routed(3)))


@GPU_ONLY
def test_programmed_weights_take_two_bytes() -> None:
    torch.cuda.synchronize()
    held = torch.cuda.memory_allocated()
    layer = olmoe_like([])
    parameters = sum(parameter.numel() for parameter in layer.original.parameters())
    assert torch.cuda.memory_allocated() - held <= 1.05 * (2 + 2) * parameters


def test_a_chip_in_fp16_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same outputs, bit for bit; where weights are stored otherwise, as on a CPU, the file is refused."""
    model, other = small_model(), small_model()
    for each in (model, other):
        each.network.to(DEVICE)  # type: ignore[arg-type]
    placement = Placement((6, 6), ((0, 2), ()), ("attention",))
    deploy(model, placement, Hardware(c=1.5, tile_size=16), TEXTS, seed=3)
    stored = [each for module in model.analog_modules.values() for each in module.crossbars.values()]
    assert {each.stored_form[0] for each in stored} == {torch.float16}
    tokens = torch.arange(8, device=DEVICE)[None]
    analog = model.network(input_ids=tokens).logits
    save_chip(model, tmp_path / "chip")
    load_chip(other, tmp_path / "chip")
    assert torch.equal(other.network(input_ids=tokens).logits, analog)
    withdraw(other)
    monkeypatch.setattr(analog_layers, "why_not_fused", lambda *_: "another device")
    with pytest.raises(
        InputError, match=r"F16 .*load the model on the kind of device that the chip was programmed"
    ):
        load_chip(other, tmp_path / "chip")
