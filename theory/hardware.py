"""What does analog hardware do to a product? Tiles, converters, programming noise [docs/paper.md, hardware model].

This is the reference: one matrix at a time, every step as it is defined. `realmodels.analog` computes the same
thing fast and is held to this module by property tests.

A weight (..., out, in) is cut along both of its last axes into tiles of at most tile_size x tile_size. Each
input slice has its own DAC, each output column of a tile its own ADC, and the partial sums of the input slices
are added digitally. Leading axes are separate matrices with tiles of their own.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from theory.errors import InputError, require, require_kind, shown
from theory.paper import CONVERTER_BITS, TILE_SIZE
from theory.strict_json import is_finite, is_whole

Granularity = Literal["tile", "column", "layer"]

# Weights that are programmed at once: as many as stay in the cache of a CPU, or keep temporary memory of an accelerator
# small.
PROGRAMMED_AT_ONCE = {"cpu": 2**19, "cuda": 2**24}
DRAWN_AT_ONCE = 16  # torch draws normal numbers in such groups on a CPU
LARGEST_TILE = 2**62  # rows and columns: larger numbers overflow where sizes are divided by them
# Of c, kappa and lam. An expert multiplies three programmed weights, and the norm behind it squares: c^6, times what
# rows of weights sum to, has to be a number of fp32. Nor can converters of 16 bits tell apart what is beyond.
LARGEST_FACTOR, SMALLEST_BOUND = 1e5, 1e-5

_NODES = 1000  # of an integral
_TRIED = 101  # values of r
HIGHEST_POWER = 3  # of a polynomial of programming noise

PCM_G_MAX = 25.0  # microsiemens
HERMES_G_MAX = 180.0  # microsiemens
HERMES_TWO_DEVICES = 52.5  # microsiemens; above, a weight is written to two devices
HERMES_DEAD_ZONE = 0.6  # microsiemens


@dataclass(frozen=True)
class ProgrammingNoise:
    """Standard deviation of a programmed weight, in units of w_max, as a function of r = |w|/w_max in 0..1.

    pieces: one or two polynomials of x, as published, in units of w_max / scale. Each is {power: coefficient}, summed
        in its order, with at least one power above 0 and none above 3.
    x_max: x is x_max * r.
    scale: how many units of the polynomials are one w_max.
    border: the first piece holds up to x = border, the second piece, if there is one, above.
    dead_zone: weights with r below this are written as 0, without noise.
    function: the standard deviation as any function of a tensor r, in the place of pieces, which are then (). An NVIDIA
        GPU's kernel takes polynomials alone: with a function, programming is slower there.

    InputError unless there is a function or one or two such polynomials, and the standard deviation of any r in 0..1 is
    a finite number of at least 0.
    """

    pieces: tuple[Mapping[int, float], ...]
    x_max: float = 1.0
    scale: float = 1.0
    border: float = math.inf
    dead_zone: float = 0.0
    function: Callable[[Any], Any] | None = None

    def __post_init__(self) -> None:
        if self.function is None:
            known = all(0 < max(each, default=0) <= HIGHEST_POWER and min(each) >= 0 for each in self.pieces)
            if not known or len(self.pieces) not in (1, 2):
                raise InputError(
                    f"pieces of programming noise are {shown(self.pieces)}: give one or two polynomials,"
                    f" {{power: coefficient}} with powers from 0 to {HIGHEST_POWER}, or a function"
                )
        elif self.pieces:
            raise InputError("programming noise has pieces and a function: give () for the pieces")
        r = torch.linspace(0, 1, _TRIED)
        for place, found in zip(r.tolist(), self.sigma(r).tolist(), strict=True):
            if not (math.isfinite(found) and found >= 0):
                raise InputError(
                    f"programming noise has the standard deviation {found:g} at r = {place:g}: it has to be finite"
                    " and at least 0 for r from 0 to 1"
                )

    def sigma(self, r: Any) -> Any:
        """Standard deviation at r. Models with one piece also accept symbols or floats."""
        if self.function is not None:
            return torch.zeros_like(r).add_(self.function(r))  # new, one for each weight, and as precise as r
        x = r if self.x_max == 1 else self.x_max * r
        value = _polynomial(self.pieces[0], x)
        if len(self.pieces) > 1:
            value = torch.where(x <= self.border, value, _polynomial(self.pieces[1], x))
        return value if self.scale == 1 else value / self.scale


def _polynomial(coefficients: Mapping[int, float], x: Any) -> Any:
    if isinstance(x, Tensor):  # Horner's scheme, in one pass over x for each power
        *rest, highest = (
            x.new_tensor(coefficients.get(power, 0.0)) for power in range(max(coefficients) + 1)
        )
        value = torch.add(rest.pop(), x, alpha=highest.item())
        while rest:
            value = torch.addcmul(rest.pop(), value, x)
        return value
    terms = (
        coefficient * x**power if power > 1 else coefficient * x if power else coefficient
        for power, coefficient in coefficients.items()
    )
    return reduce(add, terms)


PROGRAMMING_NOISE = {
    # aihwkit's PCMLikeNoiseModel: microsiemens, of r [Nandakumar et al., ICECS 2019].
    "pcm": ProgrammingNoise(({0: 0.26348, 1: 1.9650, 2: -1.1731},), scale=PCM_G_MAX),
    # Fit of IBM's Analog Foundation Models to the HERMES chip: microsiemens, of microsiemens. Published for w_max per
    # column.
    "hermes": ProgrammingNoise(
        (
            {3: 2.939751e-5, 2: -3.715812e-3, 1: 0.2241969, 0: 2.579741},  # one device
            {3: 1.232976e-5, 2: -3.054993e-3, 1: 0.2453487, 0: 2.110296},  # two devices
        ),
        x_max=HERMES_G_MAX,
        scale=HERMES_G_MAX,
        border=HERMES_TWO_DEVICES,
        dead_zone=HERMES_DEAD_ZONE / HERMES_G_MAX,
    ),
    "proportional": ProgrammingNoise(({1: 1.0},)),
    "constant": ProgrammingNoise(({0: 1.0, 1: 0.0},)),
}


@dataclass(frozen=True)
class Hardware:
    """A kind of analog hardware.

    programming: name of a model in PROGRAMMING_NOISE.
    c: dimensionless magnitude of the programming noise, 0 for none, at most LARGEST_FACTOR.
    w_max: the weights over which the largest |w| is taken, to which noise and ADC bound are relative. A `tile`, a
        `column` of a tile (one output, one input slice), or the whole matrix of the `layer`.
    tile_size: most rows and columns of a tile.
    dac_bits, adc_bits: 2 to 16, None for no converter.
    kappa: DAC bound in units of std(x), from SMALLEST_BOUND to LARGEST_FACTOR; None: calibrated.
    lam: ADC bound in units of DAC bound times w_max, in the same range; None: calibrated.
    """

    programming: str = "pcm"
    c: float = 1.0
    w_max: Granularity = "tile"
    tile_size: int = TILE_SIZE.value
    dac_bits: int | None = CONVERTER_BITS.value
    adc_bits: int | None = CONVERTER_BITS.value
    kappa: float | None = None
    lam: float | None = None

    def __post_init__(self) -> None:
        valid = {
            "programming": isinstance(self.programming, str) and self.programming in PROGRAMMING_NOISE,
            "c": is_finite(self.c) and 0 <= self.c <= LARGEST_FACTOR,
            "w_max": self.w_max in get_args(Granularity),
            "tile_size": is_whole(self.tile_size) and 1 <= self.tile_size <= LARGEST_TILE,
            "dac_bits": self.dac_bits is None or _is_bits(self.dac_bits),
            "adc_bits": self.adc_bits is None or _is_bits(self.adc_bits),
            "kappa": self.kappa is None or _is_bound(self.kappa),
            "lam": self.lam is None or _is_bound(self.lam),
        }
        words = allowed()
        require(self, "hardware", {name: (each, words[name]) for name, each in valid.items()})


def require_hardware(value: object) -> None:
    """InputError for what is no Hardware, such as a name of it."""
    require_kind(value, Hardware, "hardware", "as load_hardware makes it of a name or a file")


def allowed() -> dict[str, str]:
    """Which values each field of `Hardware` may have, in words."""
    bits = "2 to 16, or None for no converter"
    bound = f"a number from {SMALLEST_BOUND:g} to {LARGEST_FACTOR:g}, or None"
    return {
        "programming": f"one of {', '.join(PROGRAMMING_NOISE)}",
        "c": f"a number from 0 to {LARGEST_FACTOR:g}",
        "w_max": f"one of {', '.join(get_args(Granularity))}",
        "tile_size": f"a whole number from 1 to {LARGEST_TILE}",
        "dac_bits": bits,
        "adc_bits": bits,
        "kappa": bound,
        "lam": bound,
    }


def largest_weights(
    weight: Float[Tensor, "*batch out in"], hardware: Hardware
) -> Float[Tensor, "*batch out slices"]:
    """w_max of every output and input slice: the largest |w| of the weights that `hardware.w_max` names."""
    inputs, size = weight.shape[-1], hardware.tile_size
    if inputs > size and inputs % size == 0:
        columns = _largest(weight.unflatten(-1, (-1, size)))
    else:
        columns = torch.stack([_largest(part) for part in weight.split(size, -1)], -1)
    return largest_of_columns(columns, hardware)


def largest_of_columns(
    columns: Float[Tensor, "*batch out slices"], hardware: Hardware
) -> Float[Tensor, "*batch out slices"]:
    """w_max, given the largest |w| of every output and input slice."""
    if hardware.w_max == "column":
        return columns
    if hardware.w_max == "layer":
        return columns.amax((-2, -1), keepdim=True).expand_as(columns)
    if columns.shape[-2] % hardware.tile_size == 0:
        bands = columns.unflatten(-2, (-1, hardware.tile_size))
        return bands.amax(-2, keepdim=True).expand_as(bands).flatten(-3, -2)
    bands = columns.split(hardware.tile_size, -2)
    return torch.cat([band.amax(-2, keepdim=True).expand_as(band) for band in bands], -2)


def _largest(weight: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch"]:
    """Largest |w|, without abs(), which would copy all weights."""
    if weight.is_cuda:  # the norm reads the weights once, but is 3 to 26 times slower on a CPU
        return torch.linalg.vector_norm(weight, math.inf, -1)
    return torch.maximum(weight.amax(-1), -weight.amin(-1))


def programming_sigma(
    weight: Float[Tensor, "*batch out in"], hardware: Hardware
) -> Float[Tensor, "*batch out in"]:
    """Standard deviation of every programmed weight, in units of the weight, in fp32 at least."""
    weight, noise = _precise(weight), PROGRAMMING_NOISE[hardware.programming]
    inputs = weight.shape[-1]
    # A slice is at most the whole width: a tile size beyond it costs nothing.
    width = min(hardware.tile_size, inputs)
    w_max = largest_weights(weight, hardware).repeat_interleave(width, -1)[..., :inputs]
    r = torch.where(w_max > 0, weight.abs() / w_max, 0)
    return torch.where(r < noise.dead_zone, 0, hardware.c * w_max * noise.sigma(r))


def program(
    weight: Float[Tensor, "*batch out in"],
    hardware: Hardware,
    generator: torch.Generator,
    *,
    mirrored: bool = False,
    w_max: Float[Tensor, "*batch out slices"] | None = None,
    out: Float[Tensor, "*batch out in"] | None = None,
) -> Float[Tensor, "*batch out in"]:
    """The weights as they are on the tiles after one programming event: W + N(0, sigma(|W|)^2).

    mirrored: True for the same noise with the opposite sign, which is just as likely. What is odd in the noise cancels
        in the mean of the two [antithetic draws].
    w_max: `largest_weights`, where they are known.
    out: where to put the result, on the CPU; contiguous.

    The result is fp32 at least (a bf16 weight is exact in fp32). c = 0 is no programming noise at all: it gives the
    exact weights, also in a dead zone. Noise is drawn on the generator's device.
    """
    weight = _precise(weight)
    if hardware.c == 0:
        return weight.clone() if out is None else out.copy_(weight)
    w_max = largest_weights(weight, hardware) if w_max is None else w_max.to(weight.dtype)
    sign = -1 if mirrored else 1
    if weight.device.type == "cpu" and drawn_in_parts(weight.shape[-1], generator):
        programmed = torch.empty(weight.shape, dtype=weight.dtype) if out is None else out
        _program(weight, w_max, programmed, hardware, sign, generator)
    else:
        noise = torch.randn(
            weight.shape, dtype=weight.dtype, device=generator.device, generator=generator, out=out
        )
        programmed = noise.to(weight.device)
        _program(weight, w_max, programmed, hardware, sign)
    return programmed


def drawn_in_parts(numbers: int, generator: torch.Generator) -> bool:
    """True if normal numbers are the same in one call of torch and in parts of so many each."""
    return generator.device.type == "cpu" and numbers > 0 and numbers % DRAWN_AT_ONCE == 0


def _program(
    weight: Float[Tensor, "*batch out in"],
    w_max: Float[Tensor, "*batch out slices"],
    noise: Float[Tensor, "*batch out in"],
    hardware: Hardware,
    sign: int,
    generator: torch.Generator | None = None,
) -> None:
    """Turns unit noise into target + sign * sigma * noise [`programming_sigma`], in place and block by block.

    generator: draws the noise of each block, so that it is used while it is in the cache.
    """
    at_once = PROGRAMMED_AT_ONCE.get(weight.device.type, PROGRAMMED_AT_ONCE["cpu"])
    while len(weight) == 1 and weight.ndim > 2:
        weight, w_max, noise = weight[0], w_max[0], noise[0]
    if weight.numel() > at_once and len(weight) > 1:
        size = max(1, at_once // weight[0].numel())
        for block in zip(weight.split(size), w_max.split(size), noise.split(size), strict=True):
            _program(*block, hardware, sign, generator)
        return
    if generator is not None:
        noise.normal_(generator=generator)
    model = PROGRAMMING_NOISE[hardware.programming]
    parts = (each.split(hardware.tile_size, -1) for each in (weight, noise))
    for target, programmed, largest in zip(*parts, w_max.split(1, -1), strict=True):
        r = target.abs().div_(torch.where(largest > 0, largest, 1))
        programmed.mul_(model.sigma(r).mul_(sign * hardware.c * largest))
        if model.dead_zone:
            dead = r < model.dead_zone
            programmed.masked_fill_(dead, 0).add_(target.masked_fill(dead, 0))
        else:
            programmed.add_(target)


def relative_output_error(hardware: Hardware) -> float:
    """How noisy is hardware? Root mean square error of a product with a Gaussian matrix of the size of a tile.

    In units of the product's own root mean square, from programming noise alone. Weights are independent and N(0, 1),
    so that it is sqrt(E[(programmed - w)^2]), for any input. The largest of n weights, to which noise is relative, has
    (2 Phi(m) - 1)^n as distribution function; given it, the other weights are normal between -m and m. InputError for
    w_max per layer, which does not say how many weights there are.
    """
    if hardware.w_max == "layer":
        raise InputError("hardware.w_max is 'layer', of unknown size: give 'tile' or 'column'")
    weights = hardware.tile_size ** (2 if hardware.w_max == "tile" else 1)
    noise = PROGRAMMING_NOISE[hardware.programming]

    def squared_error(weight: Tensor, largest: Tensor) -> Tensor:
        r = weight / largest
        written = (hardware.c * largest * torch.as_tensor(noise.sigma(r))).square()
        return written if not hardware.c else torch.where(r < noise.dead_zone, weight.square(), written)

    # Midpoints of as many equally likely values of the largest weight, and of the other weights.
    middle = (torch.arange(_NODES, dtype=torch.float64) + 0.5) / _NODES
    inside = middle ** (1 / weights)  # 2 Phi(m) - 1
    largest = math.sqrt(2) * torch.special.erfinv(inside)
    others = math.sqrt(2) * torch.special.erfinv(inside[:, None] * middle)
    of_others = squared_error(others, largest[:, None]).mean(1)
    of_largest = squared_error(largest, largest)
    return math.sqrt(float((of_others + (of_largest - of_others) / weights).mean()))


def quantise_input(x: Tensor, bound: float | Tensor, bits: int | None) -> Tensor:
    """DAC: x rounded to the nearest of the 2^bits - 1 evenly spaced levels in -bound..bound, in fp32 at least."""
    return x if bits is None else _quantise(_precise(x), bound, bits)


def quantise_output(y: Tensor, bound: float | Tensor, bits: int | None) -> Tensor:
    """ADC: y rounded as the DAC rounds. A bound of 0 (a column without any weight) gives 0."""
    if bits is None:
        return y
    y = _precise(y)
    bound = torch.as_tensor(bound, dtype=y.dtype, device=y.device)
    return torch.where(bound > 0, _quantise(y, torch.where(bound > 0, bound, 1), bits), 0)


@dataclass(frozen=True)
class AnalogProduct:
    """Product on analog tiles, and how much of it the converters clipped.

    output: (rows, out).
    input_saturation: fraction of DAC inputs beyond the DAC's bound, 0 without a DAC.
    output_saturation: fraction of ADC outputs beyond the ADC's bound, 0 without an ADC.
    """

    output: Tensor
    input_saturation: float
    output_saturation: float


def analog_matmul(
    x: Float[Tensor, "rows in"],
    weight: Float[Tensor, "out in"],
    hardware: Hardware,
    *,
    input_std: float | tuple[float, ...],
    kappa: float,
    lam: float,
    programmed: Float[Tensor, "out in"] | None = None,
) -> AnalogProduct:
    """x @ weight.T on tiles that hold `programmed` (default: the exact weights).

    input_std, kappa, lam: calibration of the layer. `hardware.kappa` and `hardware.lam` win where given.
        input_std is one number, or one for each input slice.

    w_max is that of the target weights, as the bounds are set before programming. The result is fp32 at least.
    """
    programmed = weight if programmed is None else programmed
    if x.ndim != 2 or weight.ndim != 2 or x.shape[1] != weight.shape[1] or programmed.shape != weight.shape:
        shapes = ", ".join(str(tuple(each.shape)) for each in (x, weight, programmed))
        raise InputError(f"x, weight, programmed of shapes {shapes}: give (rows, in), (out, in), (out, in)")
    x, weight, programmed = _precise(x), _precise(weight), _precise(programmed)
    kappa = kappa if hardware.kappa is None else hardware.kappa
    lam = lam if hardware.lam is None else hardware.lam
    w_max = largest_weights(weight, hardware)  # (out, slices)
    stds = input_std if isinstance(input_std, tuple) else (input_std,) * w_max.shape[1]
    for name, value in (*(("input_std", std) for std in stds), ("kappa", kappa), ("lam", lam)):
        if not _is_positive(value):
            raise InputError(f"{name} is {value!r}: give a finite number above 0")
    if len(stds) != w_max.shape[1]:
        raise InputError(
            f"input_std has {len(stds)} numbers: give one, or one for each of {w_max.shape[1]} slices"
        )
    output = x.new_zeros(x.shape[0], weight.shape[0])
    beyond_input = beyond_output = 0
    for number, start in enumerate(range(0, weight.shape[1], hardware.tile_size)):
        part = slice(start, start + hardware.tile_size)
        input_bound = kappa * stds[number]
        output_bound = lam * input_bound * w_max[:, number]
        product = quantise_input(x[:, part], input_bound, hardware.dac_bits) @ programmed[:, part].T
        beyond_input += int((x[:, part].abs() > input_bound).sum())
        beyond_output += int((product.abs() > output_bound).sum())
        output += quantise_output(product, output_bound, hardware.adc_bits)
    return AnalogProduct(
        output,
        input_saturation=_fraction(beyond_input, x.numel(), hardware.dac_bits),
        output_saturation=_fraction(beyond_output, w_max.shape[1] * output.numel(), hardware.adc_bits),
    )


def _quantise(x: Tensor, bound: float | Tensor, bits: int) -> Tensor:
    levels = 2 ** (bits - 1) - 1
    return (x * levels / bound).round().clamp(-levels, levels) * bound / levels


def _fraction(count: int, total: int, bits: int | None) -> float:
    return count / total if bits is not None and total else 0.0


def _precise(weight: Tensor) -> Tensor:
    return weight.to(torch.promote_types(weight.dtype, torch.float32))


def _is_positive(value: object) -> bool:
    return is_finite(value) and value > 0


def _is_bound(value: object) -> bool:
    return is_finite(value) and SMALLEST_BOUND <= value <= LARGEST_FACTOR


def _is_bits(value: object) -> bool:
    return is_whole(value) and 2 <= value <= 16
