"""How does an analog linear layer compute on an NVIDIA GPU, without a partial product in memory?

Few rows: one launch of `experts_kernel.linear`, whose programs convert the inputs that they read. Many rows: `convert`
writes the DAC codes first, once, and blocks of them and of the weights are copied as a whole. The host waits for none.

DAC codes are as in `fused_experts`. Importing this module needs Triton, which comes with torch for CUDA:
`realmodels.analog` imports it only there.
"""

from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
import triton  # type: ignore[import-not-found, import-untyped, unused-ignore]
from jaxtyping import Float, Int
from torch import Tensor
from triton.tools.tensor_descriptor import (  # type: ignore[import-not-found, import-untyped, unused-ignore]
    TensorDescriptor,
)

from realmodels.analog import experts_kernel
from realmodels.analog.crossbars import count_inputs, of_inputs
from realmodels.analog.fused_experts import (
    COLUMNS,
    Blocks,
    Converters,
    _parts,
    _power_of_2,
    dac_constants,
    fitting,
    terms_of,
)
from realmodels.analog.launch import Constants, Kernel

if TYPE_CHECKING:
    from realmodels.analog.crossbars import Crossbars


class Way(NamedTuple):
    """How some rows are computed.

    blocks: what a program takes.
    converted: DAC codes are written first, by a launch of their own.
    copied: blocks of codes and weights are copied as a whole, by descriptors. For the host that is more work.
    """

    blocks: Blocks
    converted: bool = False
    copied: bool = False


# By rows, at most: for as many outputs that ENOUGH programs have something to do, and for fewer. For speed alone.
WAYS = {
    1: (Way(Blocks(1, 8, 512, 2, 4)), Way(Blocks(1, 8, 512, 2, 4))),
    16: (Way(Blocks(16, 128, 128, 4, 4)), Way(Blocks(16, 16, 512, 4, 3))),
    64: (Way(Blocks(64, 128, 64, 4, 5), True), Way(Blocks(16, 64, 256, 4, 3))),
    256: (Way(Blocks(128, 128, 64, 8, 4), True, True), Way(Blocks(64, 64, 128, 4, 4), True)),
}
MANY_ROWS = Way(Blocks(128, 256, 64, 8, 4), True, True), Way(Blocks(64, 128, 128, 4, 3), True, True)
ENOUGH = 128
GROUP = 8  # blocks of rows that take turns with one block of outputs


class Plan(NamedTuple):
    """What is launched for some number of rows, and compiled for what. dac: None if codes are not written first."""

    programs: tuple[int, int, int]
    linear: Constants
    dac: Constants | None


_linear, _convert = Kernel(experts_kernel.linear), Kernel(experts_kernel.convert)
_plans: WeakKeyDictionary["Crossbars", dict[Any, Plan]] = WeakKeyDictionary()


def fused_linear(
    crossbars: "Crossbars", bias: Float[Tensor, " out"] | None, input: Float[Tensor, "*batch in"]
) -> Float[Tensor, "*batch out"]:
    """The output of a layer, in the dtype of `input`."""
    buffers = crossbars._buffers  # as attributes, tensors are found slowly
    read: tuple[Any, Any, Any, Any, Any] = (
        buffers["weight"],
        buffers["scale"],
        buffers["by_expert"],
        buffers["counts"],
        bias,
    )
    count = crossbars.count_saturation
    if torch.compiler.is_compiling():
        with torch.no_grad():
            return _one_operation(input, *read, list(_converters(crossbars, count)))
    inputs = input.shape[-1]
    rows = input.numel() // inputs
    plans = _plans.get(crossbars)
    if plans is None:
        plans = _plans[crossbars] = {}
    plan = plans.get((rows, count, input.device))
    if plan is None:
        converters = _converters(crossbars, count)
        shapes = read[0].shape, inputs, read[1].shape[2], read[2].shape[1]
        plan = _plan(*shapes, converters, rows, input.device)
        plans[rows, count, input.device] = plan
    return _product(input, rows, *read, plan)


def _converters(crossbars: "Crossbars", count: bool) -> Converters:
    levels = crossbars.dac_levels or 0, crossbars.adc_levels or 0
    return Converters(crossbars.hardware.tile_size, *levels, int(count))


@torch.library.custom_op("paper_repro::fused_linear", mutates_args=("counts",))
def _one_operation(
    input: Tensor,
    weight: Tensor,
    scale: Tensor,
    by_expert: Tensor,
    counts: Tensor,
    bias: Tensor | None,
    converters: list[int],
) -> Tensor:
    """All of it as one node of torch.compile's graph, which cannot look into the kernels."""
    inputs = input.shape[-1]
    rows = input.numel() // inputs
    shapes = weight.shape, inputs, scale.shape[2], by_expert.shape[1]
    plan = _plan(*shapes, Converters(*converters), rows, input.device)
    return _product(input, rows, weight, scale, by_expert, counts, bias, plan)


@_one_operation.register_fake
def _(input: Tensor, weight: Tensor, *_: Any) -> Tensor:
    return input.new_empty(*input.shape[:-1], weight.shape[2])


def _product(
    input: Float[Tensor, "*batch in"],
    rows: int,
    weight: Float[Tensor, "slices 1 out width"],
    scale: Float[Tensor, "slices 1 blocks 1"],
    by_expert: Float[Tensor, "1 bounds 3"],
    counts: Int[Tensor, " 4"],
    bias: Float[Tensor, " out"] | None,
    plan: Plan,
) -> Float[Tensor, "*batch out"]:
    constants, dac = plan.linear, plan.dac
    x: Any = input.contiguous()
    output = x.new_empty(*x.shape[:-1], constants["outputs"])
    if rows == 0:
        return output
    if constants["count"] and constants["dac_levels"]:
        inputs = constants["inputs"]
        bound = of_inputs(by_expert[:, :, 2], constants["tile"], inputs)
        count_inputs(counts, x.view(rows, inputs), bound, None)
    tiles: Any = weight
    if dac is not None:
        columns = dac["columns"]
        make = torch.empty if columns == dac["inputs"] else torch.zeros
        codes = make(constants["terms"] * rows, columns, dtype=torch.float16, device=x.device)
        _convert((rows, _parts(dac["inputs"], COLUMNS), 1), (x, None, codes, by_expert), (rows,), dac)
        x = codes
        if constants["bulk"]:
            shapes = [(constants[f"block_{each}"], constants["block_inputs"]) for each in ("rows", "outputs")]
            x, tiles = (
                TensorDescriptor.from_tensor(each, list(shape))
                for each, shape in zip((codes, weight.view(-1, weight.shape[3])), shapes, strict=True)
            )
    _linear(plan.programs, (x, tiles, scale, by_expert, counts, bias, output), (rows,), constants)
    return output


@lru_cache(maxsize=2**12)
def _plan(
    weight: tuple[int, ...],
    inputs: int,
    scale_blocks: int,
    bounds: int,
    converters: Converters,
    rows: int,
    device: torch.device,
) -> Plan:
    """What to launch for so many rows and weights with the shape `weight`.

    bounds: how many input slices have a DAC bound of their own, else 1.
    """
    if device.type != "cuda" and not triton.knobs.runtime.interpret:
        raise RuntimeError(
            f"{device} cannot compute with weights programmed on an NVIDIA GPU: program(generator) again"
        )
    slices, _, outputs, width = weight
    way, few = next((ways for most, ways in WAYS.items() if rows <= most), MANY_ROWS)
    if _parts(rows, way.blocks.rows) * _parts(outputs, way.blocks.outputs) < ENOUGH:
        way = few
    programs = _parts(rows, way.blocks.rows) * _parts(outputs, way.blocks.outputs), 1, 1
    dac = dac_constants(inputs, slices, width, bounds, converters) if way.converted else None
    return Plan(programs, _constants(weight, inputs, scale_blocks, bounds, converters, way, device), dac)


@cache
def _constants(
    weight: tuple[int, ...], inputs: int, scale_blocks: int, bounds: int, converters: Converters, way: Way,
    device: torch.device,
) -> Constants:  # fmt: skip
    """What `linear` is compiled for, of weights with the shape `weight`."""
    slices, _, outputs, width = weight
    terms, tile = terms_of(converters), min(converters.tile_size, inputs)
    sizes = fitting(way.blocks, terms, device)
    block_inputs = max(16, min(sizes.inputs, _power_of_2(width)))
    whole = outputs % sizes.outputs == 0 and width % block_inputs == 0 and slices * width == inputs
    return Constants(
        converted=way.converted, bulk=way.copied, scale_blocks=scale_blocks, slices=slices, outputs=outputs,
        width=width, inputs=inputs, tile=tile, bounds=bounds, terms=terms, dac_levels=converters.dac_levels,
        adc_levels=converters.adc_levels, count=bool(converters.counted), block_rows=sizes.rows,
        block_outputs=sizes.outputs, block_inputs=block_inputs, whole=whole, group=GROUP,
        num_warps=sizes.warps, num_stages=sizes.stages,
    )  # fmt: skip
