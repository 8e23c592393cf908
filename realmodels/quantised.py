"""Which numbers do the bytes of a quantised checkpoint stand for?

FP8 (e4m3) with a scale for each block [DeepSeek-V3, arXiv 2412.19437, section 3.3], or MXFP4 [OCP Microscaling Formats
1.0]. Each tensor becomes numbers when it is read, on the CPU: no machine reads others, and one tensor at a time is in
fp32. transformers keeps FP8 on a GPU, and takes the size of a block from the number of scales, which is wrong where
the last block is cut.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from theory.errors import InputError
from theory.strict_json import is_whole

BLOCK = (128, 128)  # rows and columns that share a scale, unless config.json says otherwise
MX_BLOCK = 32  # weights of a row that share a scale
# e2m1: sign, two bits of exponent, one of mantissa.
FP4 = [sign * magnitude for sign in (1.0, -1.0) for magnitude in (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)]
FP4_PAIRS = torch.tensor([(FP4[byte & 15], FP4[byte >> 4]) for byte in range(256)], dtype=torch.bfloat16)
FP8, FP4_BYTES = "F8_E4M3", ("I8", "U8")
POWERS = ("U8", "F8_E8M0")  # dtypes of scales: exponents alone, or numbers
NUMBERS = ("F32", "BF16", "F16")
INPUT_SCALE = ".activation_scale"

Slice = Any  # of safetensors: it has get_shape(), get_dtype(), and is read when it is indexed


@dataclass(frozen=True)
class Dequantised:
    """A weight that is read and becomes numbers when it is indexed, as a slice of safetensors is.

    shape: of the weight.
    decode: makes numbers of stored values and scales.
    """

    values: Slice
    scales: Slice
    shape: tuple[int, ...]
    decode: Callable[[Tensor, Tensor], Tensor]

    def get_shape(self) -> list[int]:
        return list(self.shape)

    def __getitem__(self, index: Any) -> Tensor:
        return self.decode(self.values[...], self.scales[...])[index]


def method_of(config: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]] | None:
    """How the weights are quantised, by the content of config.json; None if they are not.

    InputError for a method that is not read here.
    """
    parts = [config, *(part for part in [config.get("text_config")] if isinstance(part, dict))]
    names = ("quantization_config", "compression_config")
    found = [part[name] for part in parts for name in names if part.get(name) is not None]
    if not found:
        return None
    about = found[0] if isinstance(found[0], dict) else {}
    bits = next((f"bitsandbytes {bits} bits" for bits in (4, 8) if about.get(f"load_in_{bits}bit")), None)
    method = bits or about.get("quant_method") or "by no method that it names"
    if method not in ("fp8", "mxfp8", "mxfp4"):
        raise InputError(
            f"its weights are quantised ({str(method)[:40]}): dequantise them first, and save the result with"
            " save_pretrained; only FP8 and MXFP4 are dequantised here"
        )
    return method, about


def dequantised(stored: Mapping[str, Slice], method: str, about: Mapping[str, Any]) -> dict[str, Slice]:
    """The weights by name: those that are quantised as `Dequantised`, the others as they are stored.

    stored: all tensors of the checkpoint.
    method, about: what `method_of` says.
    InputError if scales are missing, or do not fit their weights.
    """
    return _mxfp4(stored) if method == "mxfp4" else _fp8(stored, _block(method, about))


def _block(method: str, about: Mapping[str, Any]) -> tuple[int, int] | None:
    """Rows and columns of a block; None if a matrix has one scale."""
    given = about.get("weight_block_size", (1, MX_BLOCK) if method == "mxfp8" else BLOCK)
    if given is None:
        return None
    if not (
        isinstance(given, list | tuple) and len(given) == 2 and all(is_whole(n) and n >= 1 for n in given)
    ):
        raise InputError(f"config.json has weight_block_size {given!r}: give two whole numbers from 1")
    return given[0], given[1]


def _fp8(stored: Mapping[str, Slice], block: tuple[int, int] | None) -> dict[str, Slice]:
    scale_of = {
        name: scale
        for name, values in stored.items()
        if values.get_dtype() in (FP8, *FP4_BYTES)
        for scale in _scale_names(name)
        if scale in stored
    }
    for name, values in stored.items():
        if values.get_dtype() == FP8 and name not in scale_of:
            raise InputError(f"{name} is FP8 without scales: get the complete checkpoint")
    used = {*scale_of.values(), *(name.removesuffix(".weight") + INPUT_SCALE for name in scale_of)}
    return {
        name: _blocks(name, values, stored[scale_of[name]], block) if name in scale_of else values
        for name, values in stored.items()
        if name not in used
    }


def _scale_names(weight: str) -> list[str]:
    """As transformers and DeepSeek-V3 have it, as DeepSeek-V4, and as Mistral."""
    module, _, own = weight.rpartition(".")
    other = [f"{module}.scale", f"{module}.qscale_weight"] if own == "weight" else []
    return [f"{weight}_scale_inv", *other]


def _blocks(name: str, values: Slice, scales: Slice, block: tuple[int, int] | None) -> Dequantised:
    shape, packed = tuple(values.get_shape()), values.get_dtype() != FP8
    if len(shape) < 2:
        raise InputError(f"{name} is quantised and has shape {shape}: only matrices are dequantised")
    if packed:  # two FP4 weights in a byte, whatever block the FP8 weights beside have
        shape, block = (*shape[:-1], 2 * shape[-1]), (1, MX_BLOCK)
    rows, columns = block or shape[-2:]
    wanted = (*shape[:-2], -(-shape[-2] // rows), -(-shape[-1] // columns))
    found = tuple(scales.get_shape())
    fits = found == wanted or (found in ((), (1,)) and not packed)
    if not fits or scales.get_dtype() not in (*POWERS, *NUMBERS):
        raise InputError(
            f"{name} of shape {shape} has scales of shape {found} and dtype {scales.get_dtype()}, not {wanted}, for"
            f" blocks of {rows} x {columns}: get the complete checkpoint"
        )
    decode = partial(blockwise, block=(rows, columns), packed=packed)
    return Dequantised(values, scales, shape, decode)


def blockwise(values: Tensor, scales: Tensor, block: tuple[int, int], packed: bool = False) -> Tensor:
    """Each weight times the scale of its block.

    values: (..., out, in) e4m3, or (..., out, in/2) bytes of two FP4 weights if they are packed.
    scales: (..., ceil(out/rows), ceil(in/columns)), as numbers or as exponents; or one number.
    block: rows and columns of a block; the last one may be cut.
    Returns (..., out, in) in fp32.
    """
    weight = (unpacked(values) if packed else values).float()
    factor = _powers(scales) if scales.element_size() == 1 else scales.float()
    if factor.ndim < 2:
        return weight.mul_(factor)
    out, inputs = weight.shape[-2:]
    factor = factor.repeat_interleave(min(block[0], out), -2)[..., :out, :]
    return weight.mul_(factor.repeat_interleave(min(block[1], inputs), -1)[..., :inputs])


def _mxfp4(stored: Mapping[str, Slice]) -> dict[str, Slice]:
    weights: dict[str, Slice] = {}
    for name, values in stored.items():
        base, _, end = name.rpartition("_")
        if end == "scales" and f"{base}_blocks" in stored:
            continue
        if end != "blocks":
            weights[name] = values
            continue
        scales = stored.get(f"{base}_scales")
        if scales is None:
            raise InputError(f"{base} is MXFP4 without scales: get the complete checkpoint")
        blocks, found = tuple(values.get_shape()), tuple(scales.get_shape())
        fits = len(blocks) == 4 and blocks[3] == MX_BLOCK // 2 and found == blocks[:3]
        if not fits or values.get_dtype() != "U8" or scales.get_dtype() not in POWERS:
            raise InputError(
                f"{base} has MXFP4 bytes of shape {blocks} and scales of shape {found}: (experts, out, in/32, 16) and"
                " (experts, out, in/32) are read: get the complete checkpoint"
            )
        shape = (blocks[0], blocks[2] * MX_BLOCK, blocks[1])
        weights[base] = Dequantised(values, scales, shape, experts_of_mxfp4)
    return weights


def experts_of_mxfp4(blocks: Tensor, scales: Tensor) -> Tensor:
    """Fused experts as gpt-oss uses them: x @ weight.

    blocks: (experts, out, in/32, 16) bytes, each of two weights, the first in the low bits.
    scales: (experts, out, in/32) exponents of two.
    Returns (experts, in, out) in bf16, which holds each of these numbers exactly.
    """
    experts, out, groups, _ = blocks.shape
    weights = torch.empty(experts, groups * MX_BLOCK, out, dtype=torch.bfloat16)
    for number in range(experts):  # one at a time: unpacking takes many times their memory
        scaled = unpacked(blocks[number]) * _powers(scales[number]).bfloat16()[..., None]
        weights[number] = scaled.flatten(1).T
    return weights


def unpacked(values: Tensor) -> Tensor:
    """(..., n) bytes of two FP4 weights each, the first in the low bits, as (..., 2n) in bf16."""
    return FP4_PAIRS[values.view(torch.uint8).int()].flatten(-2)


def _powers(scales: Tensor) -> Tensor:
    """Exponents of two in bytes (e8m0, 127 is 1, 255 is NaN) as fp32."""
    return scales.view(torch.float8_e8m0fnu).float()
