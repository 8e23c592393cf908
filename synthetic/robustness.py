"""How accurate is a model under programming noise, and how much noise does it tolerate?

Noise on the weights of an analog expert changes only the table of the expert's outputs on the distinct tokens.
`program` computes once what does not depend on the noise magnitude c or on the placement. All magnitudes and
placements then see the same random numbers.

Shapes: D draws, S training seeds, k experts, m neurons, T distinct tokens, N inputs, V kinds.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import silu

from synthetic.data import Samples, stream
from synthetic.model import MoE, product
from theory.errors import InputError
from theory.hardware import Hardware, largest_weights, programming_sigma, quantise_input, quantise_output
from theory.moments import relu_mean
from theory.strict_json import is_whole

LEVEL = 0.95  # the accuracy of every kind that a tolerated noise leaves
SMALLEST_C, LARGEST_C = 2.0**-14, 2.0**10  # the range of c in which the tolerance is searched
HALVINGS = 15  # halvings of the logarithm of that range, which find the tolerance to within a factor of 1.001
SILU_NODES = 64  # nodes of the Gauss-Hermite rule for the mean of silu, which has no closed form


@dataclass(frozen=True)
class Noisy:
    """Quantities linear in the weights, which programming noise of magnitude c > 0 turns into target + c noise.

    exact: the quantities without noise.
    target: their means under noise, which differ from `exact` where a dead zone writes tiny weights as 0.
    deviation: standard deviation of `noise`.
    noise: D draws, along a leading axis.
    """

    exact: Float[Tensor, "seeds experts rows columns"]
    target: Float[Tensor, "seeds experts rows columns"]
    deviation: Float[Tensor, "seeds experts rows columns"]
    noise: Float[Tensor, "draws seeds experts rows columns"]

    def mean(self, c: Float[Tensor, "seeds 1 1 1"]) -> Float[Tensor, "seeds experts rows columns"]:
        """The mean under noise of magnitude c; without noise nothing is programmed, and it is `exact`."""
        return torch.where(c > 0, self.target, self.exact)

    def draws(self, c: Float[Tensor, "seeds 1 1 1"]) -> Float[Tensor, "draws seeds experts rows columns"]:
        """The D draws under noise of magnitude c."""
        return torch.addcmul(self.mean(c), c, self.noise)


@dataclass(frozen=True)
class Converters:
    """Bounds and bits of the converters of a matrix; the bits are None for no converter."""

    input_bound: Float[Tensor, "seeds 1 1 1"]
    output_bound: Float[Tensor, "seeds experts rows 1"]
    dac_bits: int | None
    adc_bits: int | None

    def input(self, x: Tensor) -> Tensor:
        return quantise_input(x, self.input_bound, self.dac_bits)

    def output(self, y: Tensor) -> Tensor:
        return quantise_output(y, self.output_bound, self.adc_bits)


@dataclass(frozen=True)
class Programmed:
    """D programming events of all experts of S models, for every magnitude c of the noise.

    clean: the digital table.
    converters: the converters of each matrix, by the matrix's name.
    received: what the neurons receive from every distinct token (m, T), by `up` and, for gated experts, `gate`.
    down: the trained output weights (1, m), None for fixed signs.
    """

    model: MoE
    clean: Float[Tensor, "seeds experts tokens"]
    converters: Mapping[str, Converters]
    received: Mapping[str, Noisy]
    down: Noisy | None

    def table(
        self, c: float | Float[Tensor, "seeds"], *, bias_correction: bool = False
    ) -> Float[Tensor, "draws seeds experts tokens"]:
        """The tables with all experts analog.

        c: noise magnitude, one for all seeds or one for each.
        bias_correction: subtract the mean shift of every entry digitally [(C), docs/theory.md]. The weights and c
            imply the shift, rounding by converters aside.
        """
        scale = self._per_seed(c)
        received = {
            name: self.converters[name].output(noisy.draws(scale)) for name, noisy in self.received.items()
        }
        hidden = self.model.hidden(received)
        if self.down is None:
            table = self.model.read_out(hidden, None)
        else:
            converters = self.converters["down"]
            sums = converters.output(self.down.draws(scale) @ converters.input(hidden))
            table = sums.squeeze(-2) / self.model.config.m
        return table - self.mean_shift(c) if bias_correction else table

    def mean_shift(self, c: float | Float[Tensor, "seeds"]) -> Float[Tensor, "seeds experts tokens"]:
        """Mean of every entry of the table over the programming noise, minus the clean entry; without converters."""
        scale = self._per_seed(c)
        up = self.received["up"]
        if "gate" in self.received:  # gate's noise is independent of up's, and up's has mean 0
            gate = self.received["gate"]
            hidden = _silu_mean(gate.mean(scale), scale * gate.deviation) * up.mean(scale)
        else:
            hidden = relu_mean(up.mean(scale), scale * up.deviation)
        down = None if self.down is None else self.down.mean(scale)
        return self.model.read_out(hidden, down) - self.clean

    def _per_seed(self, c: float | Tensor) -> Float[Tensor, "seeds 1 1 1"]:
        scale = torch.as_tensor(c, dtype=self.clean.dtype, device=self.clean.device)
        if not (scale >= 0).all() or not scale.isfinite().all():
            raise InputError(f"c is {c}: give a finite number of at least 0")
        return scale.expand(len(self.clean))[:, None, None, None]


def program(model: MoE, hardware: Hardware, draws: int, seeds: Sequence[int]) -> Programmed:
    """Draw programming noise for all experts of the models, for any c (hardware.c is not used).

    hardware: noise model, granularity of w_max and converters. A converter bound that it leaves to calibration is
        the smallest at which no clean value saturates.
    draws: number of programming events. More draws leave the first ones as they are.
    seeds: the models' training seeds, each of which has noise of its own.

    Every matrix is programmed and applied as `theory.hardware` has it. The DAC acts on the distinct tokens and on
    hidden vectors, the ADC on the neurons' inputs and on the outputs. Gates, signs and the mean over neurons are
    digital.
    """
    if not is_whole(draws) or draws < 1:
        raise InputError(f"draws is {draws!r}: give a whole number of at least 1")
    if len(seeds) != len(model.router):
        raise InputError(
            f"seeds has {len(seeds)} entries: give one for each of the {len(model.router)} models"
        )
    widest = max(max(weight.shape[-2:]) for weight in model.weights.values())
    if hardware.tile_size < widest:
        raise InputError(
            f"hardware.tile_size is {hardware.tile_size}: give at least {widest}, one tile a matrix"
        )
    normal = _standard_normal(model, draws, seeds)
    sigma = {
        name: programming_sigma(weight, replace(hardware, c=1.0)).to(weight.dtype)
        for name, weight in model.weights.items()
    }
    # A weight without any noise lies in a dead zone, and is written as 0.
    target = {name: torch.where(sigma[name] > 0, weight, 0) for name, weight in model.weights.items()}
    clean = {name: product(model.weights[name], model.tokens) for name in model.input_names}
    converters = {
        name: _converters(hardware, model.weights[name], model.tokens[:, None], clean[name])
        for name in model.input_names
    }
    received = {}
    for name in model.input_names:
        tokens = converters[name].input(model.tokens[:, None]).squeeze(1)
        received[name] = Noisy(
            exact=product(model.weights[name], tokens),
            target=product(target[name], tokens),
            deviation=product(sigma[name] ** 2, tokens**2).sqrt(),
            noise=product(sigma[name] * normal[name], tokens),
        )
    down = None
    if (weight := model.weights.get("down")) is not None:
        hidden = model.hidden(clean)
        converters["down"] = _converters(hardware, weight, hidden, weight @ hidden)
        down = Noisy(
            exact=weight,
            target=target["down"],
            deviation=sigma["down"],
            noise=sigma["down"] * normal["down"],
        )
    return Programmed(model=model, clean=model.table(), converters=converters, received=received, down=down)


def noisy_outputs(
    programmed: Programmed,
    gates: Float[Tensor, "seeds inputs experts tokens"],
    c: float | Float[Tensor, "seeds"],
    analog: Bool[Tensor, "*seeds experts"],
    *,
    bias_correction: bool = False,
) -> Float[Tensor, "draws seeds inputs"]:
    """The outputs f(X) with the `analog` experts under noise of magnitude c and the other experts exact.

    gates: `MoE.gates(inputs)`.
    c: noise magnitude, one for all seeds or one for each.
    analog: True for the analog experts, the same for all seeds or each seed's own.
    bias_correction: as in `Programmed.table`.
    """
    analog = analog.to(gates.device).expand(gates.shape[0], gates.shape[2])[..., None]
    noisy = programmed.table(c, bias_correction=bias_correction)
    table = torch.where(analog, noisy, programmed.clean)
    return (table.flatten(2).transpose(0, 1) @ gates.flatten(2).mT).transpose(0, 1)


def class_accuracy(
    outputs: Float[Tensor, "*draws seeds inputs"], samples: Samples, kinds: int
) -> Float[Tensor, "*draws seeds kinds"]:
    """Fraction of the inputs of each kind that have y f(X) > 0; NaN for a kind without inputs."""
    correct = (samples.labels * outputs > 0).to(outputs.dtype)
    members = torch.nn.functional.one_hot(samples.kinds, kinds).to(outputs.dtype)
    return (correct[..., None, :] @ members).squeeze(-2) / members.sum(-2)


def tolerance(
    programmed: Programmed,
    samples: Samples,
    analog: Bool[Tensor, "*placements seeds experts"],
    *,
    bias_correction: bool = False,
    level: float = LEVEL,
) -> Float[Tensor, "*placements seeds"]:
    """The tolerance c* of every placement and model: the c up to which the worst kind is accurate enough.

    samples: (seeds, inputs) on which accuracies are measured.
    analog: True for the analog experts of each placement and seed.
    level: least accuracy of the worst kind, as a mean over the draws.

    Bisects log c, on the same draws throughout: the accuracy is at least `level` at the returned c, and below it
    at 1.001 c. Returns 0 if it is below already at SMALLEST_C, infinity if it is not below at LARGEST_C.
    """
    if analog.ndim > 2:
        each = [
            tolerance(programmed, samples, one, bias_correction=bias_correction, level=level)
            for one in analog
        ]
        return torch.stack(each)
    gates, kinds = programmed.model.gates(samples.tokens), len(programmed.model.config.specialists)

    def tolerated(c: Tensor) -> Bool[Tensor, "seeds"]:
        outputs = noisy_outputs(programmed, gates, c, analog, bias_correction=bias_correction)
        return class_accuracy(outputs, samples, kinds).mean(0).amin(-1) >= level

    return bisected(tolerated, programmed.clean.new_zeros(len(gates)), SMALLEST_C, LARGEST_C, HALVINGS)


def bisected(
    tolerated: Callable[[Tensor], Tensor], like: Tensor, smallest: float, largest: float, halvings: int
) -> Tensor:
    """The c up to which each of several things is tolerated, by bisection of log c.

    tolerated: True for each thing that is tolerated at that thing's c.
    like: a tensor of the shape, type and device of the c.
    smallest, largest: the range searched. Returns 0 if not tolerated at `smallest`, infinity if so at `largest`.
    halvings: steps of the bisection; c is tolerated, and not tolerated at (largest/smallest)^(2^-halvings) c.
    """
    low, high = torch.full_like(like, math.log(smallest)), torch.full_like(like, math.log(largest))
    never, always = ~tolerated(low.exp()), tolerated(high.exp())
    for _ in range(halvings):
        middle = (low + high) / 2
        fine = tolerated(middle.exp())
        low, high = torch.where(fine, middle, low), torch.where(fine, high, middle)
    return low.exp().masked_fill(never, 0.0).masked_fill(always, math.inf)


def _standard_normal(model: MoE, draws: int, seeds: Sequence[int]) -> dict[str, Tensor]:
    """N(0, 1) for every weight, draw by draw from each seed's own stream, the same on every device."""
    sizes = [weight[0].numel() for weight in model.weights.values()]
    numbers = [torch.from_numpy(stream(seed, "noise").standard_normal((draws, sum(sizes)))) for seed in seeds]
    parts = torch.stack(numbers, 1).to(model.router).split(sizes, -1)
    return {
        name: part.unflatten(-1, weight.shape[1:])
        for (name, weight), part in zip(model.weights.items(), parts, strict=True)
    }


def _converters(hardware: Hardware, weight: Tensor, x: Tensor, y: Tensor) -> Converters:
    """The converters of a matrix, calibrated on clean values where `hardware` gives no bounds.

    weight: the matrix (S, k, out, in).
    x: the matrix's inputs (S, ...).
    y: the matrix's clean outputs (S, k, out, T).
    """
    if hardware.kappa is None:
        input_bound = x.abs().flatten(1).amax(1)
    else:
        input_bound = hardware.kappa * x.flatten(1).std(1, correction=0)
    input_bound = input_bound[:, None, None, None]
    # lam is in units of the input bound times w_max; every matrix is one tile.
    unit = input_bound * largest_weights(weight, hardware)
    if hardware.lam is None:
        lam = torch.where(unit > 0, y.abs() / unit, 0).flatten(1).amax(1)[:, None, None, None]
    else:
        lam = torch.full_like(input_bound, hardware.lam)
    return Converters(
        input_bound=input_bound,
        output_bound=lam * unit,
        dac_bits=hardware.dac_bits,
        adc_bits=hardware.adc_bits,
    )


def _silu_mean(a: Tensor, sigma: Tensor) -> Tensor:
    """The mean E silu(a + sigma z), z ~ N(0, 1), by a Gauss-Hermite rule."""
    nodes, weights = (torch.from_numpy(each).to(a) for each in np.polynomial.hermite_e.hermegauss(SILU_NODES))
    return silu(a[..., None] + sigma[..., None] * nodes) @ weights / math.sqrt(2 * math.pi)
