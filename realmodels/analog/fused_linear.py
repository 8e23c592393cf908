"""How does an analog linear layer compute on an NVIDIA GPU, without a partial product in memory?

Few rows: one launch of `experts_kernel.linear`, whose programs convert the inputs that they read. Many rows: `convert`
writes the DAC codes first, once, and blocks of them and of the weights are copied as a whole. The host waits for none.

DAC codes are as in `fused_experts`. Importing this module needs Triton, which comes with torch for CUDA:
`realmodels.analog` imports it only there.
"""

from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import triton  # type: ignore[import-not-found, import-untyped, unused-ignore]
from jaxtyping import Float
from torch import Tensor
from triton.tools.tensor_descriptor import (  # type: ignore[import-not-found, import-untyped, unused-ignore]
    TensorDescriptor,
)

from realmodels.analog import experts_kernel
from realmodels.analog.crossbars import count_inputs
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
    """What a program takes, and if DAC codes are written first."""

    blocks: Blocks
    converted: bool


# By rows, at most: for as many outputs that ENOUGH programs have something to do, and for fewer. For speed alone.
WAYS = {
    1: (Way(Blocks(1, 8, 512, 2, 4), False), Way(Blocks(1, 8, 512, 2, 4), False)),
    16: (Way(Blocks(16, 128, 128, 4, 4), False), Way(Blocks(16, 16, 512, 4, 3), False)),
    64: (Way(Blocks(64, 128, 64, 4, 5), True), Way(Blocks(16, 32, 256, 4, 4), False)),
}
MANY_ROWS = Way(Blocks(128, 128, 64, 4, 3), True), Way(Blocks(64, 128, 128, 4, 3), True)
ENOUGH = 128
GROUP = 8  # blocks of rows that take turns with one block of outputs

_linear, _convert = Kernel(experts_kernel.linear), Kernel(experts_kernel.convert)


def fused_linear(
    crossbars: "Crossbars", bias: Float[Tensor, " out"] | None, input: Float[Tensor, "*batch in"]
) -> Float[Tensor, "*batch out"]:
    """The output of a layer, in the dtype of `input`."""
    buffers = crossbars._buffers  # as attributes, tensors are found slowly
    read: Any = buffers["weight"], buffers["scale"], buffers["by_expert"], buffers["counts"]
    levels = crossbars.dac_levels or 0, crossbars.adc_levels or 0
    converters = Converters(crossbars.hardware.tile_size, *levels, int(crossbars.count_saturation))
    if torch.compiler.is_compiling():
        with torch.no_grad():
            return _one_operation(input, *read, bias, list(converters))
    return _product(input, *read, bias, converters)


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
    return _product(input, weight, scale, by_expert, counts, bias, Converters(*converters))


@_one_operation.register_fake
def _(input: Tensor, weight: Tensor, *_: Any) -> Tensor:
    return input.new_empty(*input.shape[:-1], weight.shape[2])


def _product(
    input: Float[Tensor, "*batch in"],
    weight: Float[Tensor, "slices 1 out width"],
    scale: Float[Tensor, "slices 1 blocks 1"],
    by_expert: Float[Tensor, "1 3"],
    counts: Tensor,
    bias: Float[Tensor, " out"] | None,
    converters: Converters,
) -> Float[Tensor, "*batch out"]:
    if input.device.type != "cuda" and not triton.knobs.runtime.interpret:
        raise RuntimeError(
            f"{input.device} cannot compute with weights programmed on an NVIDIA GPU: program(generator) again"
        )
    shape = weight.shape
    outputs, inputs = shape[2], input.shape[-1]
    x = input.contiguous()
    rows = x.numel() // inputs
    output = x.new_empty(*input.shape[:-1], outputs)
    if rows == 0:
        return output
    way, few = next((ways for most, ways in WAYS.items() if rows <= most), MANY_ROWS)
    sizes, converted = way
    if _parts(rows, sizes.rows) * _parts(outputs, sizes.outputs) < ENOUGH:
        sizes, converted = few
    constants = _constants(shape, inputs, scale.shape[2], converters, sizes, converted, x.device)
    if converters.counted and converters.dac_levels:
        count_inputs(counts, x.view(rows, inputs), by_expert[0, 2], None)
    programs = _parts(rows, sizes.rows) * _parts(outputs, sizes.outputs), 1, 1
    with torch.cuda.device_of(x):
        read = _converted(x, rows, weight, by_expert, converters, constants) if converted else (x, weight)
        _linear(programs, (*read, scale, by_expert, counts, bias, output), (rows,), constants)
    return output


def _converted(
    x: Float[Tensor, "*batch in"],
    rows: int,
    weight: Float[Tensor, "slices 1 out width"],
    by_expert: Float[Tensor, "1 3"],
    converters: Converters,
    constants: Constants,
) -> tuple[TensorDescriptor, TensorDescriptor]:
    """Blocks of DAC codes, which are written now, and of weights."""
    slices, _, _, width = weight.shape
    inputs, columns, block = constants["inputs"], slices * width, constants["block_inputs"]
    make = torch.empty if columns == inputs else torch.zeros
    codes = make(constants["terms"] * rows, columns, dtype=torch.float16, device=x.device)
    dac = dac_constants(inputs, slices, width, converters)
    _convert((rows, _parts(inputs, COLUMNS), 1), (x, None, codes, by_expert), (rows,), dac)
    return (
        TensorDescriptor(codes, codes.shape, (columns, 1), [constants["block_rows"], block]),
        TensorDescriptor(
            weight, (slices * weight.shape[2], width), (width, 1), [constants["block_outputs"], block]
        ),
    )


@cache
def _constants(
    weight: tuple[int, ...], inputs: int, scale_blocks: int, converters: Converters, sizes: Blocks,
    converted: bool, device: torch.device,
) -> Constants:  # fmt: skip
    """What `linear` is compiled for, of weights with the shape `weight`."""
    slices, _, outputs, width = weight
    terms, tile = terms_of(converters), min(converters.tile_size, inputs)
    sizes = fitting(sizes, terms, device)
    block_inputs = max(16, min(sizes.inputs, _power_of_2(width)))
    whole = outputs % sizes.outputs == 0 and width % block_inputs == 0 and slices * width == inputs
    return Constants(
        converted=converted, bulk=converted, scale_blocks=scale_blocks, slices=slices, outputs=outputs,
        width=width, inputs=inputs, tile=tile, terms=terms, dac_levels=converters.dac_levels,
        adc_levels=converters.adc_levels, count=bool(converters.counted), block_rows=sizes.rows,
        block_outputs=sizes.outputs, block_inputs=block_inputs, whole=whole, group=GROUP,
        num_warps=sizes.warps, num_stages=sizes.stages,
    )  # fmt: skip
