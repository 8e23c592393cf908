"""How does an analog linear layer compute on an NVIDIA GPU, without a partial product in memory?

Few rows: one launch of `experts_kernel.linear`, whose programs convert the inputs that they read. Many rows: `convert`
writes the DAC codes first, once, and blocks of them and of the weights are copied as a whole. The host waits for none.

DAC codes are as in `fused_experts`. Importing this module needs Triton, which comes with torch for CUDA:
`realmodels.analog` imports it only there.
"""

from functools import cache
from typing import TYPE_CHECKING, Any

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
    from realmodels.analog.layers import AnalogLinear

# What programs take, by rows, at most: they decide speed alone.
BLOCKS = {
    1: Blocks(1, 16, 512, 4, 4),
    16: Blocks(16, 16, 512, 4, 3),
    64: Blocks(64, 32, 128, 4, 4),
    256: Blocks(64, 64, 128, 4, 4),
}
LARGEST_BLOCKS = Blocks(128, 128, 64, 8, 5)
CONVERTED = 64  # with more rows, DAC codes are written first
GROUP = 8  # blocks of rows that take turns with one block of outputs

_linear, _convert = Kernel(experts_kernel.linear), Kernel(experts_kernel.convert)


def fused_linear(layer: "AnalogLinear", input: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch out"]:
    """The output of the layer, in the dtype of `input`."""
    crossbars, bias = layer.crossbars["weight"], layer._parameters["bias"]
    levels = crossbars.dac_levels or 0, crossbars.adc_levels or 0
    converters = Converters(layer.hardware.tile_size, *levels, int(crossbars.count_saturation))
    read = crossbars.programmed(), crossbars.scale, crossbars.by_expert, crossbars.counts
    if torch.compiler.is_compiling():
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
    slices, _, outputs, width = weight.shape
    inputs = input.shape[-1]
    x = input.reshape(-1, inputs).contiguous()
    rows = x.shape[0]
    output = x.new_empty(*input.shape[:-1], outputs)
    if rows == 0:
        return output
    converted = rows > CONVERTED
    sizes = next((sizes for most, sizes in BLOCKS.items() if rows <= most), LARGEST_BLOCKS)
    constants = _constants(weight.shape, inputs, scale.shape[2], converters, sizes, converted, input.device)
    with torch.cuda.device_of(x):
        if converters.counted and converters.dac_levels:
            count_inputs(counts, x, by_expert[0, 2], None)
        read: Any = (x, weight)
        if converted:
            terms, columns = constants["terms"], slices * width
            make = torch.empty if columns == inputs else torch.zeros
            codes = make(terms, rows, columns, dtype=torch.float16, device=x.device)
            grid = (rows, _parts(inputs, COLUMNS), 1)
            dac = dac_constants(inputs, slices, width, converters)
            _convert(grid, (x, codes, by_expert, None), (rows,), dac)
            read = (
                TensorDescriptor.from_tensor(
                    codes.view(-1, columns), [sizes.rows, constants["block_inputs"]]
                ),
                TensorDescriptor.from_tensor(
                    weight.view(-1, width), [sizes.outputs, constants["block_inputs"]]
                ),
            )
        programs = _parts(rows, sizes.rows) * _parts(outputs, sizes.outputs)
        _linear((programs, 1, 1), (*read, scale, by_expert, counts, bias, output), (rows,), constants)
    return output


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
