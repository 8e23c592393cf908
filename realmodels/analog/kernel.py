"""How are weights programmed on an NVIDIA GPU in one pass, which reads targets, makes noise and stores the sum?

The result is that of `theory.hardware.program` followed by `Crossbars.program`, with other draws. Noise comes from
Philox counters [Salmon et al., SC 2011] made of a weight's expert, matrix, output and input. It depends on nothing
else: not on which experts are programmed, nor on how weights are stored or cut into tiles.

Importing this module needs Triton, which comes with torch for CUDA: `realmodels.analog` imports it only there.
"""

from functools import cache

import torch
import triton  # type: ignore[import-not-found, import-untyped, unused-ignore]
import triton.language as tl  # type: ignore[import-not-found, import-untyped, unused-ignore]
from jaxtyping import Float, Int
from torch import Tensor

from realmodels.analog.launch import Constants, Kernel
from theory.hardware import PROGRAMMING_NOISE, Hardware

# One Philox counter gives four normals, to the weights of four runs of this many inputs; part of what a seed means.
RUN: int = 32
NAN = tl.constexpr(tl.PropagateNan.ALL)  # the larger of a number and none is none
ROUNDS: int = 10  # rounds of Philox, as in torch
# Rows that one program of the grid takes, and the warps for it: they decide speed alone.
ROWS, WARPS = 16, 2
LARGEST_ROWS, LARGEST_INPUTS = 16, 512


@torch.no_grad()
def fused_program(
    target: Float[Tensor, "all_experts matrices out in"],
    w_max: Float[Tensor, "all_experts matrices out slices"],
    gain: Float[Tensor, "experts matrices out slices"],
    experts: Int[Tensor, " experts"],
    programmed: Tensor,
    hardware: Hardware,
    generator: torch.Generator,
    *,
    mirrored: bool = False,
) -> None:
    """Write gain * (target + sigma * noise) of the given experts into `programmed`.

    All tensors are on one device and have any strides. target is fp32, fp16 or bf16; w_max, gain and programmed fp32.

    w_max: the largest weights, as `largest_weights` finds them.
    programmed: (experts, matrices, out, in), or in tiles (slices, experts, matrices, out, width). In tiles, what is
        beyond `in` is left as it is.
    mirrored: take the opposite noise.
    """
    _, matrices, outputs, inputs = target.shape
    # A tensor, so that the host need not wait for it.
    seed = torch.randint(2**63 - 1, (1,), device=generator.device, generator=generator).to(target.device)
    noise = PROGRAMMING_NOISE[hardware.programming]
    cubics = [
        [piece.get(power, 0.0) / noise.scale for power in range(4)]
        for piece in (noise.pieces[0], noise.pieces[-1])
    ]
    constants = _constants(
        target.shape, target.stride(), w_max.shape[-1], w_max.stride(), gain.stride(), programmed.stride(),
        hardware.tile_size, hardware.programming, ROWS, WARPS,
    )  # fmt: skip
    _program(
        (triton.cdiv(outputs, ROWS) * triton.cdiv(inputs, 4 * RUN), matrices, len(experts)),
        (target, w_max, gain, experts, seed, programmed),
        (*cubics[0], *cubics[1], noise.x_max, noise.border, noise.dead_zone,
         float(-hardware.c if mirrored else hardware.c)),
        constants,
    )  # fmt: skip


@cache
def _constants(
    shape: tuple[int, ...], target: tuple[int, ...], slices: int, w_max: tuple[int, ...], gain: tuple[int, ...],
    programmed: tuple[int, ...], tile_size: int, programming: str, rows: int, warps: int,
) -> Constants:  # fmt: skip
    """What the kernel is compiled for: the shape of the targets, and the strides of all tensors."""
    _, _, outputs, inputs = shape
    # All inputs in one slice: as in a tile of whole runs, which is faster, and no size is too large.
    tile = tile_size if slices > 1 else triton.cdiv(inputs, RUN) * RUN
    if len(programmed) == 4:
        programmed = (tile * programmed[-1], *programmed)
    noise = PROGRAMMING_NOISE[programming]
    axes = "expert", "matrix", "out"
    strides = {
        **{f"target_{axis}": each for axis, each in zip((*axes, "in"), target, strict=True)},
        **{f"w_max_{axis}": each for axis, each in zip((*axes, "slice"), w_max, strict=True)},
        **{f"gain_{axis}": each for axis, each in zip((*axes, "slice"), gain, strict=True)},
        **{f"programmed_{axis}": each for axis, each in zip(("slice", *axes, "in"), programmed, strict=True)},
    }
    return Constants(
        outputs=outputs, inputs=inputs, **strides, pieces=len(noise.pieces),
        borders=len(noise.pieces) > 1 or noise.dead_zone > 0, tile=tile, rows=rows, run=RUN, rounds=ROUNDS,
        num_warps=warps, enable_fp_fusion=True,  # which later releases leave off unless told
    )  # fmt: skip


@Kernel
@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _program(  # type: ignore[no-untyped-def]  # a kernel takes no types
    target, w_max, gain, experts, seed, programmed,
    low_0, low_1, low_2, low_3, high_0, high_1, high_2, high_3,
    x_max, border, dead_zone, c,
    outputs: tl.constexpr, inputs: tl.constexpr,
    target_expert: tl.constexpr, target_matrix: tl.constexpr, target_out: tl.constexpr, target_in: tl.constexpr,
    w_max_expert: tl.constexpr, w_max_matrix: tl.constexpr, w_max_out: tl.constexpr, w_max_slice: tl.constexpr,
    gain_expert: tl.constexpr, gain_matrix: tl.constexpr, gain_out: tl.constexpr, gain_slice: tl.constexpr,
    programmed_slice: tl.constexpr, programmed_expert: tl.constexpr, programmed_matrix: tl.constexpr,
    programmed_out: tl.constexpr, programmed_in: tl.constexpr,
    pieces: tl.constexpr, borders: tl.constexpr, tile: tl.constexpr, rows: tl.constexpr, run: tl.constexpr,
    rounds: tl.constexpr,
):  # fmt: skip
    """So many rows times four runs of inputs of one matrix. Strides are named tensor_axis."""
    across = tl.cdiv(inputs, 4 * run)
    group = tl.program_id(0) % across
    row = tl.program_id(0) // across * rows + tl.arange(0, rows)
    matrix = tl.program_id(1).to(tl.int64)
    place = tl.program_id(2).to(tl.int64)
    expert = tl.load(experts + place)

    zeros = tl.zeros((rows, run), tl.int32)
    of_inputs, of_output = zeros + (group * run + tl.arange(0, run))[None, :], zeros + row[:, None]
    of_matrix, of_expert = zeros + matrix.to(tl.int32), zeros + expert.to(tl.int32)
    bits = _philox(tl.load(seed), of_inputs, of_output, of_matrix, of_expert, rounds)
    normals = _normals(bits[0], bits[1]) + _normals(bits[2], bits[3])

    wide_row = row.to(tl.int64)[:, None]  # products with strides may be beyond 2^31
    target += expert * target_expert + matrix * target_matrix + wide_row * target_out
    w_max += expert * w_max_expert + matrix * w_max_matrix + wide_row * w_max_out
    gain += place * gain_expert + matrix * gain_matrix + wide_row * gain_out
    programmed += place * programmed_expert + matrix * programmed_matrix + wide_row * programmed_out
    for part in tl.static_range(4):
        start = (4 * group + part) * run
        column = start + tl.arange(0, run)[None, :]
        # A run within one slice needs one w_max and gain for each row; others one for each weight.
        slice_of = start // tile + tl.zeros((1, 1), tl.int32) if tile % run == 0 else column // tile
        there = (row < outputs)[:, None] & (column < inputs)
        slice_there = (row < outputs)[:, None] & (slice_of * tile < inputs)
        wide_slice = slice_of.to(tl.int64)
        weight = tl.load(target + column.to(tl.int64) * target_in, there, other=0).to(tl.float32)
        largest = tl.load(w_max + wide_slice * w_max_slice, slice_there, other=0)
        divisor = tl.where(largest > 0, largest, 1.0)
        if borders:  # on which side of them a weight is has to be as in the reference
            r = tl.div_rn(tl.abs(weight), tl.broadcast_to(divisor, weight.shape))
            x = x_max * r
        else:
            x = tl.abs(weight) * (x_max / divisor)
        sigma = ((low_3 * x + low_2) * x + low_1) * x + low_0
        if pieces == 2:
            sigma = tl.where(x <= border, sigma, ((high_3 * x + high_2) * x + high_1) * x + high_0)
        sigma *= c * largest
        written = weight + normals[part] * sigma
        if borders:
            written = tl.where(r < dead_zone, 0.0, written)
        scaled = written * tl.load(gain + wide_slice * gain_slice, slice_there, other=0)
        place_in_slice = (column - slice_of * tile).to(tl.int64)
        tl.store(programmed + wide_slice * programmed_slice + place_in_slice * programmed_in, scaled, there)


@torch.no_grad()
def fused_largest(
    target: Float[Tensor, "experts matrices out in"], tile_size: int
) -> Float[Tensor, "experts matrices out slices"]:
    """The largest |w| of every output and input slice, in fp32. target: as for `fused_program`."""
    experts, matrices, outputs, inputs = target.shape
    tile = min(tile_size, inputs)
    slices = triton.cdiv(inputs, tile)
    largest = torch.empty(experts, matrices, outputs, slices, device=target.device)
    programs = triton.cdiv(outputs, LARGEST_ROWS) * slices, matrices, experts
    constants = _largest_constants(outputs, inputs, slices, tile, target.stride())
    _largest(programs, (target, largest), (), constants)
    return largest


@cache
def _largest_constants(
    outputs: int, inputs: int, slices: int, tile: int, strides: tuple[int, ...]
) -> Constants:
    names = (f"target_{axis}" for axis in ("expert", "matrix", "out", "in"))
    block = min(LARGEST_INPUTS, triton.next_power_of_2(tile))
    return Constants(
        outputs=outputs, inputs=inputs, slices=slices, **dict(zip(names, strides, strict=True)),
        tile=tile, rows=LARGEST_ROWS, block=block, num_warps=4,
    )  # fmt: skip


@Kernel
@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _largest(  # type: ignore[no-untyped-def]
    target, largest, outputs: tl.constexpr, inputs: tl.constexpr, slices: tl.constexpr,
    target_expert: tl.constexpr, target_matrix: tl.constexpr, target_out: tl.constexpr, target_in: tl.constexpr,
    tile: tl.constexpr, rows: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """So many rows of one slice of one matrix."""
    number = tl.program_id(0) % slices
    row = (tl.program_id(0) // slices * rows + tl.arange(0, rows)).to(tl.int64)
    matrix, expert = tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    target += expert * target_expert + matrix * target_matrix + row[:, None] * target_out
    found = tl.zeros((rows, block), tl.float32)
    for start in range(0, tile, block):
        inside = start + tl.arange(0, block)
        column = number.to(tl.int64) * tile + inside
        there = (row < outputs)[:, None] & ((inside < tile) & (column < inputs))[None, :]
        weight = tl.load(target + column[None, :] * target_in, there, other=0).to(tl.float32)
        found = tl.maximum(found, tl.abs(weight), propagate_nan=NAN)
    matrices = tl.num_programs(1)
    largest += ((expert * matrices + matrix) * outputs + row) * slices + number
    tl.store(largest, tl.reduce(found, 1, _larger), row < outputs)


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _larger(one, other):  # type: ignore[no-untyped-def]
    return tl.maximum(one, other, propagate_nan=NAN)


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _philox(seed, c0, c1, c2, c3, rounds: tl.constexpr):  # type: ignore[no-untyped-def]
    """What tl.philox gives for counters of 32 bits. Here both halves of a product come from one instruction."""
    k0, k1 = seed.to(tl.uint32), (seed >> 32).to(tl.uint32)
    c0, c1, c2, c3 = c0.to(tl.uint32), c1.to(tl.uint32), c2.to(tl.uint32), c3.to(tl.uint32)
    for _ in tl.static_range(rounds):
        first, second = c0.to(tl.uint64) * 0xD2511F53, c2.to(tl.uint64) * 0xCD9E8D57
        c0, c2 = (second >> 32).to(tl.uint32) ^ c1 ^ k0, (first >> 32).to(tl.uint32) ^ c3 ^ k1
        c1, c3 = second.to(tl.uint32), first.to(tl.uint32)
        k0 = tl.add(k0, 0x9E3779B9, sanitize_overflow=False)
        k1 = tl.add(k1, 0xBB67AE85, sanitize_overflow=False)
    return c0, c1, c2, c3


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _normals(first, second):  # type: ignore[no-untyped-def]
    """Two independent unit normals of two times 32 random bits [Box and Muller 1958], to 6.7 sigma, as cuRAND's.

    In the second, 30 bits are an angle within an eighth of a turn, one swaps the axes, and one turns by half a turn.
    With tl.sin and tl.cos, which take any angle, the kernel has almost twice as many instructions.
    """
    uniform = first.to(tl.float32) * 2.3283064365386963e-10 + 1.1641532182693481e-10  # 2^-32, 2^-33: never 0
    radius = tl.sqrt(-2.0 * tl.log(uniform))
    radius = tl.where(second >> 31 == 1, -radius, radius)
    angle = (second << 2).to(tl.int32, bitcast=True).to(tl.float32) * 3.657295211131668e-10  # pi / 4 / 2^31
    square = angle * angle
    # Taylor's polynomials: (pi/4)^9/9! = 3.2e-7 and (pi/4)^10/10! = 2.5e-8 bound what is left out.
    sine = ((-1.984126984e-4 * square + 8.333333333e-3) * square - 0.1666666667) * square * angle + angle
    cosine = (
        ((2.480158730e-5 * square - 1.388888889e-3) * square + 4.166666667e-2) * square - 0.5
    ) * square + 1.0
    swap = (second >> 30) & 1 == 1
    return radius * tl.where(swap, sine, cosine), radius * tl.where(swap, cosine, sine)
