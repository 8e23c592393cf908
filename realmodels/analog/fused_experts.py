"""How does a layer of analog experts compute on an NVIDIA GPU, without a partial product in memory?

Five launches of `experts_kernel`, for none of which the host waits:

    prepare     the DAC in front of gate and up; and how many pairs of a token and an expert each expert has
    place       group the pairs by expert, and cut each expert's into blocks of rows (few pairs are placed by `prepare`)
    multiply    gate and up: product, ADC, sum over slices, activation, and the DAC in front of down
    multiply    down: product, ADC, sum over slices, times the routing weight
    combine     sum over the experts of a token

DAC codes up to 2048 are exact in fp16; larger ones, and inputs without a DAC, are sums of two fp16 numbers. An
activation that the kernel does not know is computed by torch, in fp32, between the products. Digital experts take part
in the same launches; they multiply in the model's dtype, and sum and activate in fp32. For torch.compile all of it is
one operation, whatever the activation.

Importing this module needs Triton, which comes with torch for CUDA: `realmodels.analog` imports it only there.
"""

from collections.abc import Iterator
from functools import cache
from itertools import count
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakValueDictionary

import torch
import triton  # type: ignore[import-not-found, import-untyped, unused-ignore]
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers.activations import ACT2FN
from transformers.integrations import moe
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts
from transformers.models.openai_privacy_filter.modeling_openai_privacy_filter import (
    OpenAIPrivacyFilterExperts,
)

from realmodels.analog import experts_kernel
from realmodels.analog.crossbars import count_inputs, of_inputs
from realmodels.analog.launch import Constants, Kernel
from realmodels.fused import apply_gate

if TYPE_CHECKING:
    from realmodels.analog.layers import AnalogExperts

RESULTS = 2**28  # numbers that the experts of one pass give: 1 GiB
EXACT_CODES = 2**11  # fp16 holds all integers up to here
# Replaced modules by number, for operations of torch.compile's graph, which take no module.
REPLACED: WeakValueDictionary[int, nn.Module] = WeakValueDictionary()
# What programs take: they decide speed alone.
CHUNK, ALONE = 2**13, 2**14  # pairs times experts of one that groups, and of the only one
COLUMNS = 1024  # numbers of one that converts or combines


class Blocks(NamedTuple):
    """What a program of multiply takes: rows, outputs, inputs at a time; warps; inputs fetched ahead, at most."""

    rows: int
    outputs: int
    inputs: int
    warps: int
    stages: int


# By the rows of an expert, on average, at most.
BLOCKS = {4: Blocks(16, 128, 128, 4, 3), 24: Blocks(32, 128, 64, 4, 4)}
LARGEST_BLOCKS = Blocks(64, 256, 64, 8, 5)
SPARE = 2**14  # bytes of shared memory that are not for inputs


_prepare, _place, _convert, _multiply, _combine = map(
    Kernel,
    (
        experts_kernel.prepare,
        experts_kernel.place,
        experts_kernel.convert,
        experts_kernel.multiply,
        experts_kernel.combine,
    ),
)


class Gate(NamedTuple):
    """What is done with a product; alpha and limit are those of gpt-oss's clamped activation.

    name: an activation. Or "products", to write gate and up as they are; or "weights", to weight what down gives.
    """

    name: str
    alpha: float = 0.0
    limit: float = 0.0


ACTIVATIONS = {
    nn.SiLU: "silu",
    type(ACT2FN["silu"]): "silu",
    nn.ReLU: "relu",
    nn.Identity: "identity",
}
CLAMPED = (GptOssExperts._apply_gate, OpenAIPrivacyFilterExperts._apply_gate)


def numbered(experts: nn.Module, numbers: Iterator[int] = count()) -> int:  # noqa: B008
    """A number of its own for a replaced module."""
    number = next(numbers)
    REPLACED[number] = experts
    return number


def known_gate(experts: Any) -> Gate | None:
    """The activation of `experts`; None if the kernel does not know it."""
    gate = getattr(type(experts), "_apply_gate", None)
    if "_apply_gate" in vars(experts):
        return None
    if gate in CLAMPED:
        return Gate("clamped", float(experts.alpha), float(experts.limit))
    if gate in (None, getattr(moe, "_default_apply_gate", None)) and type(experts.act_fn) in ACTIVATIONS:
        return Gate(ACTIVATIONS[type(experts.act_fn)])
    return None


class Converters(NamedTuple):
    """Tiles and converters, no converter having 0 levels; and if saturation is counted."""

    tile_size: int
    dac_levels: int
    adc_levels: int
    counted: int


class Tiles(NamedTuple):
    """What a product reads: its crossbars [`Crossbars`], and the parameters of the replaced module.

    target: (experts, out, in), in the order of the stored product; the kernel reads those of digital experts.
    interleaved: 1 if outputs are gate 0, up 0, gate 1, up 1, ... in this order.
    """

    weight: Tensor
    scale: Tensor
    by_expert: Tensor
    counts: Tensor
    target: Tensor
    bias: Tensor | None
    interleaved: int


def fused_experts(
    layer: "AnalogExperts",
    hidden_states: Float[Tensor, "tokens hidden"],
    top_k_index: Int[Tensor, "tokens k"],
    top_k_weights: Float[Tensor, "tokens k"],
) -> Float[Tensor, "tokens hidden"]:
    """The output of the layer, in the dtype of `hidden_states`."""
    gate_up, down = (_tiles(layer, name) for name in layer.layout.weights)
    crossbars: Any = layer._modules["crossbars"]._modules["down_proj"]  # type: ignore[union-attr]
    levels = crossbars.dac_levels or 0, crossbars.adc_levels or 0
    converters = Converters(layer.hardware.tile_size, *levels, int(crossbars.count_saturation))
    any_digital = bool(layer.digital)
    routed: tuple[Tensor, Tensor, Tensor, Any, bool] = (
        hidden_states,
        top_k_index,
        top_k_weights,
        layer._buffers["place"],
        any_digital,
    )
    if torch.compiler.is_compiling():
        gate, number = layer.gate or Gate("products"), 0 if layer.gate else layer.number
        return _one_operation(*routed, *gate_up, *down, list(converters), *gate, number)
    return _experts(*routed, gate_up, down, converters, layer.gate, layer.original)


def _tiles(layer: "AnalogExperts", name: str) -> Tiles:
    layout, parameters = layer.layout, layer._parameters
    # As attributes, modules and tensors are found slowly.
    crossbars: Any = layer._modules["crossbars"]._modules[name]  # type: ignore[union-attr]
    buffers = crossbars._buffers
    target, bias = parameters[name], parameters[f"{name}_bias"] if layout.biased else None
    assert target is not None
    read = buffers["weight"], buffers["scale"], buffers["by_expert"], buffers["counts"]
    return Tiles(*read, layout.rows(name, target), bias, int(layout.interleaved or name == "down_proj"))


@torch.library.custom_op("paper_repro::fused_experts", mutates_args=("gate_up_counts", "down_counts"))
def _one_operation(
    hidden: Tensor,
    index: Tensor,
    weights: Tensor,
    place: Tensor,
    any_digital: bool,
    gate_up_weight: Tensor,
    gate_up_scale: Tensor,
    gate_up_by_expert: Tensor,
    gate_up_counts: Tensor,
    gate_up_target: Tensor,
    gate_up_bias: Tensor | None,
    gate_up_interleaved: int,
    down_weight: Tensor,
    down_scale: Tensor,
    down_by_expert: Tensor,
    down_counts: Tensor,
    down_target: Tensor,
    down_bias: Tensor | None,
    down_interleaved: int,
    converters: list[int],
    gate: str,
    alpha: float,
    limit: float,
    number: int,
) -> Tensor:
    """All of it as one node of torch.compile's graph, which cannot look into the kernels.

    number: that of the replaced module in REPLACED, whose activation is taken for the gate "products".
    """
    gate_up = Tiles(
        gate_up_weight, gate_up_scale, gate_up_by_expert, gate_up_counts, gate_up_target, gate_up_bias,
        gate_up_interleaved,
    )  # fmt: skip
    down = Tiles(
        down_weight, down_scale, down_by_expert, down_counts, down_target, down_bias, down_interleaved
    )
    gating = None if gate == "products" else Gate(gate, alpha, limit)
    experts, known = None if gating else REPLACED[number], Converters(*converters)
    return _experts(hidden, index, weights, place, any_digital, gate_up, down, known, gating, experts)


@_one_operation.register_fake
def _(hidden: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(hidden, memory_format=torch.contiguous_format)


def _experts(
    hidden: Float[Tensor, "tokens hidden"],
    index: Int[Tensor, "tokens k"],
    weights: Float[Tensor, "tokens k"],
    place: Int[Tensor, " experts"],
    any_digital: bool,
    gate_up: Tiles,
    down: Tiles,
    converters: Converters,
    gate: Gate | None,
    experts: nn.Module | None,
) -> Float[Tensor, "tokens hidden"]:
    """place: int32, where the crossbars hold each expert; for a digital one beyond all that they hold.

    experts: the replaced module, whose activation is taken if the kernel does not know it.
    """
    if hidden.device.type != "cuda" and not triton.knobs.runtime.interpret:
        raise RuntimeError(
            f"{hidden.device} cannot compute with weights programmed on an NVIDIA GPU: program(generator) again"
        )
    hidden, index, weights = hidden.contiguous(), index.contiguous(), weights.contiguous()
    output = torch.empty_like(hidden)
    tokens = hidden.shape[0]
    at_once = max(1, RESULTS // (index.shape[1] * hidden.shape[1]))
    for start in range(0, tokens, at_once):
        passed = hidden, index, weights, output
        if tokens > at_once:
            passed = tuple(each[start : start + at_once] for each in passed)  # type: ignore[assignment]
        x, chosen, routing_weights, result = passed
        routing = _Routing(chosen, routing_weights, place)
        first, second = (_Product(tiles, down, converters, routing, any_digital) for tiles in (gate_up, down))
        _pass(first, second, x, result, gate, experts)
    return output


def _parts(whole: int, part: int) -> int:
    return -(-whole // part)


def _power_of_2(least: int) -> int:
    return 1 << (least - 1).bit_length()


class _Routing:
    """Pairs of tokens and experts, grouped by expert into blocks of rows once `prepare` and `place` have been launched.

    order: int32, the pair (token * k + choice) of each row.
    blocks: int32 (most blocks, 3): expert, first row, end of the expert's rows, which is 0 for a block without rows.
    """

    def __init__(
        self,
        experts: Int[Tensor, "tokens k"],
        weights: Float[Tensor, "tokens k"],
        place: Int[Tensor, " experts"],
    ) -> None:
        self.experts, self.weights, self.place = experts, weights, place
        self.pairs, number = experts.numel(), place.shape[0]
        self.sizes = next(
            (sizes for most, sizes in BLOCKS.items() if self.pairs <= most * number), LARGEST_BLOCKS
        )
        self.most_blocks = min(self.pairs, self.pairs // self.sizes.rows + number)
        self.columns = columns = _power_of_2(number)
        self.alone = self.pairs * columns <= ALONE
        self.chunk = max(16, _power_of_2(self.pairs) if self.alone else CHUNK // columns)
        make = torch.empty if self.alone else torch.zeros
        sizes = [columns, self.pairs, self.pairs, 3 * self.most_blocks]
        memory = make(sum(sizes), dtype=torch.int32, device=experts.device)
        self.counts, self.ranks, self.order, self.blocks = memory.split(sizes)

    def prepare(
        self, gate_up: "_Product", x: Float[Tensor, "tokens in"]
    ) -> Float[Tensor, "terms tokens columns"]:
        """Group the pairs; the DAC codes of x, which all experts read."""
        tokens = x.shape[0]
        codes = gate_up.codes(tokens)
        grouping, converting = _grouping(self.columns, self.chunk, self.sizes.rows, self.alone, gate_up.dac)
        chunks = 1 if self.alone else _parts(self.pairs, self.chunk)
        parts = tokens * _parts(gate_up.inputs, COLUMNS)
        grouped = self.experts, self.counts, self.ranks, self.order, self.blocks
        _prepare(
            (chunks + parts, 1, 1), (*grouped, x, codes, gate_up.tiles.by_expert),
            (self.pairs, self.most_blocks, chunks, tokens), converting,
        )  # fmt: skip
        if not self.alone:
            programs = _parts(max(self.pairs, self.most_blocks), self.chunk)
            _place((programs, 1, 1), grouped, (self.pairs, self.most_blocks), grouping)
        return codes


def terms_of(converters: Converters) -> int:
    """How many fp16 numbers a DAC code is the sum of."""
    return 1 if 0 < converters.dac_levels <= EXACT_CODES else 2


def fitting(sizes: Blocks, terms: int, device: torch.device) -> Blocks:
    """With as many stages as there is shared memory for."""
    if device.type != "cuda":
        return sizes
    properties: Any = torch.cuda.get_device_properties(device)
    fetched = 2 * sizes.inputs * (terms * sizes.rows + sizes.outputs)
    fit = (properties.shared_memory_per_block_optin - SPARE) // fetched
    return sizes._replace(stages=max(1, min(sizes.stages, fit)))


@cache
def _grouping(
    experts: int, chunk: int, block_rows: int, alone: bool, dac: Constants
) -> tuple[Constants, Constants]:
    """What `place` and `prepare` are compiled for."""
    grouping = Constants(experts=experts, chunk=chunk, block_rows=block_rows)
    return grouping, Constants(**grouping, **dac, alone=alone, num_warps=8 if alone else 4)


@cache
def dac_constants(inputs: int, slices: int, width: int, bounds: int, converters: Converters) -> Constants:
    """What the conversion of inputs is compiled for."""
    return Constants(
        inputs=inputs, tile=min(converters.tile_size, inputs), width=width, columns=slices * width, bounds=bounds,
        levels=converters.dac_levels, terms=terms_of(converters), block=COLUMNS,
    )  # fmt: skip


@cache
def _constants(
    tiles: tuple[int, ...], target: tuple[int, ...], strides: tuple[int, ...], size: int, scale_blocks: int,
    down: tuple[int, ...], inner: int, bounds: tuple[int, int], converters: Converters, sizes: Blocks,
    device: torch.device, gate: str, interleaved: int, choices: int, any_digital: bool,
) -> Constants:  # fmt: skip
    """What the kernel is compiled for, of weights `tiles`, parameter `target`, its item `size`, and down's weights."""
    terms = terms_of(converters)
    sizes = fitting(sizes, terms, device)
    (slices, _, outputs, width), (_, _, inputs) = tiles, target
    block_inputs = max(16, min(sizes.inputs, _power_of_2(width)))
    digital_inputs = max(16, sizes.inputs * 2 // size)
    whole = outputs % sizes.outputs == 0
    return Constants(
        scale_blocks=scale_blocks, digital_expert=strides[0], digital_out=strides[1], digital_in=strides[2],
        gate=gate, matrices=2 if choices else 1, interleaved=bool(interleaved), choices=choices,
        any_digital=any_digital, slices=slices, outputs=outputs, width=width, inputs=inputs, terms=terms,
        dac_levels=converters.dac_levels, adc_levels=converters.adc_levels, count=bool(converters.counted),
        down_tile=min(converters.tile_size, inner), down_width=down[3], down_columns=down[0] * down[3],
        bounds=bounds[0], down_bounds=bounds[1],
        block_rows=sizes.rows, block_outputs=sizes.outputs, block_inputs=block_inputs,
        digital_inputs=digital_inputs, whole=whole and width % block_inputs == 0,
        digital_whole=whole and inputs % digital_inputs == 0,
        num_warps=sizes.warps, num_stages=sizes.stages,
    )  # fmt: skip


class _Product:
    """One of the two products of a layer: with gate and up of each expert, or with down."""

    def __init__(
        self, tiles: Tiles, down: Tiles, converters: Converters, routing: _Routing, any_digital: bool
    ) -> None:
        self.tiles, self.down, self.converters, self.routing = tiles, down, converters, routing
        self.any_digital = any_digital
        self.slices, self.analog, self.outputs, self.width = tiles.weight.shape
        self.inputs = tiles.target.shape[2]
        self.bounds = tiles.by_expert.shape[1]  # input slices with a DAC bound of their own, else 1
        self.dac = dac_constants(self.inputs, self.slices, self.width, self.bounds, converters)

    def input_bound(self, held: int | Int[Tensor, " rows"]) -> Float[Tensor, "rows_or_1 in_or_1"]:
        """The DAC bound of every input; held: where the crossbars hold the expert of each row, or of all rows."""
        bound = self.tiles.by_expert[held, :, 2].view(-1, self.bounds)
        return of_inputs(bound, self.dac["tile"], self.inputs)

    def codes(self, rows: int) -> Float[Tensor, "terms rows columns"]:
        """Memory for DAC codes, in slices as wide as the crossbars'. What no code is written to is zero."""
        columns = self.dac["columns"]
        make = torch.empty if columns == self.inputs else torch.zeros
        return make(self.dac["terms"], rows, columns, dtype=torch.float16, device=self.tiles.weight.device)

    def convert(
        self,
        x: Float[Tensor, "rows in"],
        codes: Float[Tensor, "terms rows columns"],
        held: Int[Tensor, " rows"],
    ) -> None:
        """Write the DAC codes of x; held: where the crossbars hold the expert of each row."""
        rows = codes.shape[1]
        programs = rows, _parts(self.inputs, COLUMNS), 1
        _convert(programs, (x, held, codes, self.tiles.by_expert), (rows,), self.dac)

    def multiply(
        self,
        codes: Float[Tensor, "terms rows columns"],
        digital: Float[Tensor, "rows in"],
        output: Tensor,
        digital_output: Float[Tensor, "rows inner"],
        gate: Gate,
    ) -> None:
        """Multiply, and write what `gate` makes of the products.

        codes, digital: what analog and digital experts read, by token before gate and up, by row before down.
        output: for "weights" fp32 (pairs, out), in the order of pairs; for "products" fp32 (rows, out), in the order of
            the stored product; else the codes that down's analog experts read.
        digital_output: what down's digital experts read.
        """
        routing, tiles, sizes, down = self.routing, self.tiles, self.routing.sizes, self.down
        across = _parts(self.outputs, sizes.outputs)
        target = tiles.target if self.any_digital else tiles.weight  # which is not read
        strides = target.stride() if self.any_digital else (0, 0, 0)
        choices = routing.experts.shape[1] if tiles is not down else 0
        constants = _constants(
            tiles.weight.shape, tiles.target.shape, strides, tiles.target.element_size(),
            tiles.scale.shape[2], down.weight.shape, down.target.shape[2],
            (self.bounds, down.by_expert.shape[1]), self.converters, sizes, codes.device, gate.name,
            tiles.interleaved, choices, self.any_digital,
        )  # fmt: skip
        tensors = (
            codes, tiles.weight, tiles.scale, tiles.by_expert, tiles.counts, digital, target, tiles.bias,
            routing.order, routing.blocks, routing.place, routing.weights,
            output, digital_output, down.by_expert, down.counts,
        )  # fmt: skip
        numbers = codes.shape[1], output.shape[-2], self.analog, gate.alpha, gate.limit
        _multiply((routing.most_blocks * across, 1, 1), tensors, numbers, constants)


@cache
def _combining(outputs: int, choices: int) -> Constants:
    return Constants(outputs=outputs, choices=choices, block=COLUMNS)


def _pass(
    gate_up: _Product,
    down: _Product,
    hidden: Float[Tensor, "tokens hidden"],
    output: Float[Tensor, "tokens hidden"],
    gate: Gate | None,
    experts: nn.Module | None,
) -> None:
    """Write the output of some tokens."""
    routing, count, device = gate_up.routing, gate_up.converters.counted, hidden.device
    pairs = routing.pairs
    codes, inner_codes = routing.prepare(gate_up, hidden), down.codes(pairs)
    if count:
        uses = (routing.place[routing.experts] < gate_up.analog).sum(-1)
        count_inputs(gate_up.tiles.counts, hidden, gate_up.input_bound(0), uses)
    # What digital experts hand on, if there are any.
    rows = pairs if gate_up.any_digital else 0
    inner = torch.empty(rows, down.inputs, dtype=hidden.dtype, device=device) if rows else hidden
    if gate is not None:
        gate_up.multiply(codes, hidden, inner_codes, inner, gate)
    else:
        products = torch.empty(pairs, gate_up.outputs, device=device)
        gate_up.multiply(codes, hidden, products, inner, Gate("products"))
        activation = apply_gate(experts, products).contiguous()
        if rows:
            inner.copy_(activation)
        place = routing.place[routing.experts.flatten()[routing.order]]
        held = place.clamp(max=gate_up.analog - 1)
        down.convert(activation, inner_codes, held)
        if count:
            count_inputs(down.tiles.counts, activation, down.input_bound(held), place < gate_up.analog)
    results = torch.empty(pairs, down.outputs, device=device)
    down.multiply(inner_codes, inner, results, inner, Gate("weights"))
    programs = hidden.shape[0], _parts(down.outputs, COLUMNS), 1
    _combine(programs, (results, output), (), _combining(down.outputs, routing.experts.shape[1]))
