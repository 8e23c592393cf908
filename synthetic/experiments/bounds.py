"""Are the bounds on the noise that a network tolerates valid, and how tight are they?

Networks of the reference instance (theory/setting.py) are trained over the frequency alpha of the rare class, m
neurons and training seeds. Placements:
- "none": all experts analog
- "half": the |F|/2 experts with the highest MaxNNScore digital, which unbalances the signs
- "frequent": all |F| frequent specialists digital
For each placement and delta the bounds [docs/theory.md] are computed:
- B, B-mean, B-exp for single inputs: c up to which the input errs with probability delta at most
- Bu for all inputs at once: c up to which, with probability 1 - delta, no input of clean margin mu or more errs. mu
  is the smallest positive margin of the test inputs. All test inputs with positive margin are checked, which are a
  part of those that Bu speaks of.
- U for single inputs: c from which on the input errs with probability above delta; checked at c_U and 4 c_U
The networks are then programmed many times at these c, by code that knows nothing of the bounds, and the errors are
counted. A *cell* is one network, placement, delta, bound and, except for Bu, input; the draws of a cell are
independent.

Besides the theory's noise (c times the largest weight of the expert) there are: the same noise per neuron
("column"); the noise models of theory/hardware.py with both granularities; and converters of 8, 6 and 4 bits
[(H), docs/theory.md] on a rotated dictionary, whose tokens a DAC does change. There, alpha and m are the reference
instance's.

Tightness is the empirical c, at which the failure rate passes delta, divided by the bound; for U the inverse.

Rules: rules/figure-bounds.md.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from scipy.special import betainccinv, betaincinv
from torch import Tensor

from synthetic.data import Dictionary, Task, evaluation_samples
from synthetic.model import ModelConfig, MoE
from synthetic.robustness import Programmed, bisected, noisy_outputs, program
from synthetic.training import Training, train
from theory.evidence import LEVEL, Finding, Interval, Origin, Result, judged, mean_finding
from theory.hardware import Hardware, quantise_output
from theory.placement import rank
from theory.separation import evaluation_seeds
from theory.setting import Setting
from theory.tolerance import (
    Network,
    WMax,
    exact_mean_bound,
    exponential_bound,
    margins,
    pointwise_bound,
    uniform_bound,
    upper_bound,
)

KINDS = ("frequent", "rare")
PLACEMENTS = ("none", "half", "frequent")
DELTAS = (0.05, 0.1, 0.3)
LOWER = ("Bu", "B", "B-mean", "B-exp")
BOUNDS = (*LOWER, "U")
BEYOND = (1.0, 4.0)  # multiples of c_U at which U is checked
ONE_LABEL = 4  # discriminative tokens, each of which occurs with one label only
TIGHTNESS_DRAWS = 256  # draws, of those that check validity, from which the empirical c is found
SMALLEST_C, LARGEST_C = 2.0**-12, 2.0**10  # the range in which the empirical c is searched
HALVINGS = 10  # halvings of the logarithm of that range, which find the empirical c to within 1.5 %
TIGHT = 10.0  # rule 2


@dataclass(frozen=True)
class Case:
    """What differs between networks and hardware.

    alpha: frequency of the rare class.
    m: neurons of an expert.
    programming, w_max: the noise model and its granularity, as in theory/hardware.py.
    bits: bits of the DAC and of the ADC, None for no converters.
    dictionary: the directions of the tokens.
    """

    alpha: float = 0.1
    m: int = 8
    programming: str = "constant"
    w_max: WMax = "layer"
    bits: int | None = None
    dictionary: Dictionary = "standard"

    @property
    def group(self) -> str:
        """Name of the cases that rule 1 judges together."""
        if self.bits is not None:
            return f"{self.bits}-bit converters"
        if self.programming != "constant":
            return f"{self.programming} noise"
        return "theory" if self.w_max == "layer" else "w_max per neuron"


@dataclass(frozen=True)
class Config:
    """One network on one hardware.

    draws: programming events.
    inputs: test inputs for the bounds of single inputs.
    many: test inputs for Bu.
    """

    case: Case
    seed: int
    draws: int
    inputs: int
    many: int


@dataclass(frozen=True)
class Preset:
    """How much is measured; seeds, draws, inputs and many are as in `Config`.

    alphas: frequencies with the theory's noise.
    widths: values of m beside the reference instance's, with the theory's noise.
    programming: further noise models and their granularities.
    bits: bits of the converters.
    """

    alphas: tuple[float, ...]
    widths: tuple[int, ...]
    programming: tuple[tuple[str, WMax], ...]
    bits: tuple[int, ...]
    seeds: int
    draws: int
    inputs: int
    many: int


_MODELS: tuple[tuple[str, WMax], ...] = (
    ("constant", "column"),
    ("proportional", "layer"),
    ("proportional", "column"),
    ("pcm", "layer"),
    ("pcm", "column"),
    ("hermes", "layer"),
    ("hermes", "column"),
)
PRESETS = {
    "quick": Preset(
        alphas=(0.1,),
        widths=(),
        programming=(("pcm", "column"),),
        bits=(8,),
        seeds=2,
        draws=512,
        inputs=4,
        many=32,
    ),
    "default": Preset(
        alphas=(0.02, 0.05, 0.1, 0.15, 0.2, 0.25),
        widths=(2, 32),
        programming=_MODELS,
        bits=(8, 6, 4),
        seeds=3,
        draws=1024,
        inputs=8,
        many=128,
    ),
    "full": Preset(
        alphas=(0.02, 0.05, 0.1, 0.15, 0.2, 0.25),
        widths=(2, 32),
        programming=_MODELS,
        bits=(8, 6, 4),
        seeds=10,
        draws=3072,
        inputs=8,
        many=128,
    ),
}


def grid(preset: str, seeds: int | None = None, first_seed: int | None = None) -> list[Config]:
    """The units of work. `seeds` overrides the preset's number of training seeds, `first_seed` the first of them."""
    settings = PRESETS[preset]
    each = evaluation_seeds(seeds, settings.seeds, first_seed, "training seeds")
    cases = [
        *(Case(alpha=alpha) for alpha in settings.alphas),
        *(Case(m=m) for m in settings.widths),
        *(Case(programming=programming, w_max=w_max) for programming, w_max in settings.programming),
        *(
            Case(programming=programming, bits=bits, dictionary="rotated")
            for bits in settings.bits
            for programming in ("constant", "pcm")
        ),
    ]
    # The cases of one network follow each other: `_trained` keeps the last network only.
    cases.sort(key=lambda case: (case.alpha, case.m, case.dictionary))
    return [
        Config(case, seed, settings.draws, settings.inputs, settings.many) for seed in each for case in cases
    ]


def measure(config: Config) -> dict[str, Any]:
    """Count errors in each cell and silent cells, and find tightness by class, for each placement, delta and bound."""
    case, seeds = config.case, (config.seed,)
    model = _trained(case.alpha, case.m, case.dictionary, config.seed)
    hardware = Hardware(
        programming=case.programming, w_max=case.w_max, dac_bits=case.bits, adc_bits=case.bits
    )
    programmed = program(model, hardware, config.draws, seeds)
    samples = evaluation_samples(_task(case.alpha, case.dictionary), config.many, seeds)
    gates, labels, kinds = model.gates(samples.tokens), samples.labels, samples.kinds[0, : config.inputs]
    read = _Read.of(programmed, gates[0, : config.inputs], labels[0, : config.inputs])
    rows = []
    for placement, analog in _placements(model).items():
        network = _network(programmed, hardware, analog)
        single = network, gates[0, : config.inputs].double(), labels[0, : config.inputs]
        margin = _margins(network, gates[0].double(), labels[0])
        known = margin > 0
        wrong = _Wrong(programmed, gates[:, known], labels[:, known], analog)
        smallest = float(margin[known].min()) if known.any() else 0.0
        for delta in DELTAS:
            found = _single_inputs(read, single, kinds, delta)
            found["Bu"] = _all_inputs(
                wrong, uniform_bound(network, smallest, delta, one_label=ONE_LABEL), delta
            )
            rows += [{"placement": placement, "delta": delta, "bound": name, **found[name]} for name in found]
    return {"rows": rows}


def _single_inputs(
    read: "_Read", single: tuple[Network, Tensor, Tensor], kinds: Tensor, delta: float
) -> dict[str, dict[str, Any]]:
    """Errors in each cell, number of silent cells and tightness by class, for every bound of single inputs."""
    analog = single[0].analog
    bounds = {
        "B": pointwise_bound(*single, delta),
        "B-mean": exact_mean_bound(*single, delta),
        "B-exp": exponential_bound(*single, delta),
    }
    if single[0].adc_bound is None:  # U knows no ADC
        bounds["U"] = upper_bound(*single, delta)
    empirical = read.largest_c(analog, delta)
    found = {}
    for name, bound in bounds.items():
        stated = bound.isfinite() if name == "U" else bound > 0
        at = [factor * bound for factor in BEYOND] if name == "U" else [bound.clamp(max=LARGEST_C)]
        counts = [read.failures(analog, c) for c in at]
        ratio = bound / empirical if name == "U" else empirical / bound
        found[name] = {
            "failures": [count for each in counts for count in each[stated].tolist()],
            "silent": int((~stated).sum()),
            "tightness": {
                kind: _finite(ratio[stated & (kinds == number)]) for number, kind in enumerate(KINDS)
            },
        }
    return found


def _all_inputs(wrong: "_Wrong", bound: float, delta: float) -> dict[str, Any]:
    """The same for Bu. The tightness counts as one of rare inputs, whose margins are the smallest."""
    if not 0 < bound < math.inf:
        return {"failures": [], "silent": 1, "tightness": {"rare": []}}
    few = replace(wrong, programmed=_first(wrong.programmed, TIGHTNESS_DRAWS))
    ratio = torch.tensor([few.largest_c(delta) / bound])
    return {"failures": [wrong.failures(bound)], "silent": 0, "tightness": {"rare": _finite(ratio)}}


def summarise(configs: Sequence[Config], records: Sequence[dict[str, Any]]) -> Result:
    """Failures and tightness of every case, placement, delta and bound, and the findings by the rules above."""
    cells = [
        _Cells(config.case, config.seed, config.draws, **row)
        for config, record in zip(configs, records, strict=True)
        for row in record["rows"]
    ]
    groups = list(dict.fromkeys(each.case.group for each in cells))
    validity = []
    findings = []
    for group in groups:
        together = [(bound,) for bound in BOUNDS] if group == "theory" else [LOWER, ("U",)]
        for bounds in together:
            chosen = [each for each in cells if each.case.group == group and each.bound in bounds]
            worst = _Worst.of(chosen)
            if worst is not None:
                validity.append({"group": group, "bounds": bounds, **worst.row()})
                findings.append(_valid(group, bounds, worst))
    for bound in BOUNDS:
        finding = _tight(
            bound, [each for each in cells if each.case.group == "theory" and each.bound == bound]
        )
        if finding is not None:
            findings.append(finding)
    tightness = []
    for key in dict.fromkeys((each.case, each.placement, each.delta, each.bound) for each in cells):
        alike = [each for each in cells if (each.case, each.placement, each.delta, each.bound) == key]
        case, placement, delta, bound = key
        silent = sum(each.silent for each in alike)
        stated = sum(len(each.failures) // (len(BEYOND) if bound == "U" else 1) for each in alike)
        tightness.append(
            {
                **asdict(case),
                "group": case.group,
                "placement": placement,
                "delta": delta,
                "bound": bound,
                "stated": stated / (stated + silent),
                **{
                    kind: _quartiles([ratio for each in alike for ratio in each.tightness.get(kind, ())])
                    for kind in KINDS
                },
            }
        )
    first = configs[0]
    return Result(
        data={
            "validity": validity,
            "by_delta": [
                {"bound": bound, "delta": delta, **worst.row()}
                for bound in BOUNDS
                for delta in DELTAS
                if (
                    worst := _Worst.of(
                        each
                        for each in cells
                        if (each.case.group, each.bound, each.delta) == ("theory", bound, delta)
                    )
                )
            ],
            "tightness": tightness,
            "seeds": len({config.seed for config in configs}),
            "draws": first.draws,
            "inputs": first.inputs,
            "many": first.many,
        },
        findings=tuple(findings),
    )


@dataclass(frozen=True)
class _Cells:
    """The cells of one network, placement, delta and bound.

    failures: how many of the `draws` fail, for each cell.
    silent: number of cells whose bound says nothing.
    tightness: ratios of single inputs, by class.
    """

    case: Case
    seed: int
    draws: int
    placement: str
    delta: float
    bound: str
    failures: list[int]
    silent: int
    tightness: dict[str, list[float]]


@dataclass(frozen=True)
class _Worst:
    """The worst of many cells, of either lower or upper bounds alone: arrays over the cells."""

    failures: NDArray[np.float64]
    draws: NDArray[np.float64]
    delta: NDArray[np.float64]
    upper: bool

    @classmethod
    def of(cls, cells: Iterable[_Cells]) -> "_Worst | None":
        """None if there are no cells."""
        listed = [
            (count, each.draws, each.delta, each.bound == "U") for each in cells for count in each.failures
        ]
        if not listed:
            return None
        failures, draws, delta, upper = (
            np.array(column, dtype=np.float64) for column in zip(*listed, strict=True)
        )
        return cls(failures, draws, delta, bool(upper[0]))

    def limits(self, confidence: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Clopper-Pearson limits of every cell's failure probability over delta, which hold together."""
        # Cells with the same numbers have the same limits, and there are few different ones.
        different, which = np.unique(
            np.stack((self.failures, self.draws, self.delta)), axis=1, return_inverse=True
        )
        count, draws, delta = different
        tail = (1 - confidence) / 2 / self.failures.size
        # Quantiles of Beta(count, draws - count + 1) and Beta(count + 1, draws - count).
        low = np.where(count > 0, betaincinv(np.maximum(count, 1), draws - count + 1, tail), 0.0) / delta
        high = (
            np.where(count < draws, betainccinv(count + 1, np.maximum(draws - count, 1), tail), 1.0) / delta
        )
        return low[which.ravel()], high[which.ravel()]

    def interval(self, confidence: float) -> Interval:
        """From the worst lower to the worst upper limit."""
        low, high = self.limits(confidence)
        return self._extreme(low), self._extreme(high)

    def row(self) -> dict[str, Any]:
        """What is drawn and said of the cells."""
        low, high = self.limits(1 - LEVEL)
        return {
            "worst": self._extreme(self.failures / self.draws / self.delta),
            "interval": self.interval(1 - LEVEL),
            "violations": int((high < 1).sum() if self.upper else (low > 1).sum()),
            "cells": self.failures.size,
            "draws": int(self.draws.min()),
            "pairs": int(self.draws.sum()),
            "failures": int(self.failures.sum()),
        }

    def _extreme(self, values: NDArray[np.float64]) -> float:
        return float(values.min() if self.upper else values.max())


def _valid(group: str, bounds: Sequence[str], worst: _Worst) -> Finding:
    """Rule 1, for bounds that are judged together."""
    row = worst.row()
    theory = group == "theory"
    # With the theory's noise each bound is judged by itself; other hardware is what (H) is about.
    origin: Origin = "reconstruction" if theory and bounds != ("B-exp",) else "ours"
    where = "the theory's noise" if theory else group
    extreme = "smallest" if worst.upper else "largest"
    return judged(
        f"{', '.join(bounds)}: an input errs {'more' if worst.upper else 'no more'} often than stated; {where}",
        f"{extreme} failure rate/delta of {row['cells']} cells, {row['violations']} violations in"
        f" {row['pairs']} pairs of input and draw; interval: {extreme} simultaneous Clopper-Pearson limits",
        row["worst"],
        worst.interval,
        row["draws"],
        1.0,
        "above" if worst.upper else "below",
        origin=origin,
        statement=bounds[0] if theory else "H",
        family="validity, theory's noise" if theory else "validity, other hardware",
    )


def _tight(bound: str, cells: Sequence[_Cells]) -> Finding | None:
    """Rule 2, for one bound; None if fewer than two training seeds have a cell."""
    by_seed: dict[int, list[float]] = {}
    for each in cells:
        by_seed.setdefault(each.seed, []).extend(each.tightness["rare"])
    medians = np.array([np.median(ratios) for ratios in by_seed.values() if ratios])
    if medians.size < 2:
        return None
    return mean_finding(
        claim=f"{bound} gives the order of magnitude, rare inputs",
        statistic=f"median of {'the bound / empirical c' if bound == 'U' else 'empirical c / the bound'} at"
        " failure delta, of a training seed",
        samples=medians,
        threshold=TIGHT,
        direction="below",
        origin="ours",
        statement=bound,
        family="tightness",
        scale="log",
    )


def _quartiles(ratios: Sequence[float]) -> list[float] | None:
    """The quartiles, or None without ratios."""
    return np.quantile(ratios, (0.25, 0.5, 0.75)).tolist() if ratios else None


def _finite(ratios: Tensor) -> list[float]:
    """The ratios of inputs whose empirical c was found."""
    kept: list[float] = ratios[ratios.isfinite() & (ratios > 0)].tolist()
    return kept


# Theory's view of a network


def _placements(model: MoE) -> dict[str, Bool[Tensor, " experts"]]:
    """The analog experts of every placement."""
    frequent = model.config.kinds == 0
    count = int(frequent.sum())
    (chosen,) = rank(model.maxnn(), count / 2 / model.config.experts, "maxnn")
    half = torch.ones_like(frequent)
    half[list(chosen)] = False
    return dict(zip(PLACEMENTS, (torch.ones_like(frequent), half, ~frequent), strict=True))


def _network(programmed: Programmed, hardware: Hardware, analog: Bool[Tensor, " experts"]) -> Network:
    """The network as theory sees it: the weights, noise and converters that were programmed."""
    model, converters = programmed.model, programmed.converters["up"]
    w_max: WMax = "column" if hardware.w_max == "column" else "layer"
    network = Network(
        weights=model.weights["up"][0],
        tokens=model.tokens[0],
        signs=model.config.signs,
        analog=analog,
        w_max=w_max,
        programming=hardware.programming,
    )
    if hardware.adc_bits is None:
        return network
    bound = converters.output_bound[0, ..., 0].double().expand(network.weights.shape[:2])
    return replace(
        network,
        analog_tokens=converters.input(model.tokens[:, None])[0, 0],
        adc_bound=bound,
        adc_step=bound / (2 ** (hardware.adc_bits - 1) - 1),
    )


def _margins(network: Network, gates: Tensor, labels: Tensor) -> Float[Tensor, " inputs"]:
    """Clean margins as `uniform_bound` takes them, which itself subtracts what the ADC's rounding costs."""
    if network.adc_step is None:
        return margins(network, gates, labels)
    return margins(replace(network, adc_step=torch.zeros_like(network.adc_step)), gates, labels)


# Counting of errors


@dataclass(frozen=True)
class _Read:
    """What the experts read of single inputs, l tokens each, and the noise of D programming events on it.

    Kept apart for every input, so that each can have a c of its own.
    """

    labels: Float[Tensor, " inputs"]
    weight: Float[Tensor, "inputs experts l 1"]  # gate times sign / m
    target: Float[Tensor, "inputs experts l m"]
    noise: Float[Tensor, "draws inputs experts l m"]
    clean: Float[Tensor, "inputs experts"]
    adc_bound: Float[Tensor, "experts 1 m"]
    adc_bits: int | None

    @classmethod
    def of(
        cls, programmed: Programmed, gates: Float[Tensor, "inputs experts tokens"], labels: Tensor
    ) -> "_Read":
        model, up, converters = programmed.model, programmed.received["up"], programmed.converters["up"]
        gate, token = gates.topk(model.config.selected, -1)
        expert = torch.arange(model.config.experts)[:, None]
        return cls(
            labels=labels.to(gates.dtype),
            weight=(gate * model.output_signs[:, None] / model.config.m)[..., None],
            target=up.target[0].mT[expert, token],
            noise=up.noise[:, 0].mT[:, expert, token],
            clean=(gates * programmed.clean[0]).sum(-1),
            adc_bound=converters.output_bound[0].mT,
            adc_bits=converters.adc_bits,
        )

    def failures(
        self, analog: Bool[Tensor, " experts"], c: Float[Tensor, " inputs"], draws: int | None = None
    ) -> Tensor:
        """Number of draws in which each input is misclassified at that input's c."""
        scale = c.to(self.noise)[:, None, None, None]
        received = quantise_output(
            torch.addcmul(self.target, scale, self.noise[:draws]), self.adc_bound, self.adc_bits
        )
        weight = (self.weight * analog[:, None, None]).expand_as(self.target).flatten(1)
        noisy = torch.einsum("dnx,nx->dn", received.relu_().flatten(2), weight)
        return (self.labels * (noisy + self.clean @ (~analog).to(noisy)) <= 0).sum(0)

    def largest_c(self, analog: Bool[Tensor, " experts"], delta: float) -> Float[Tensor, " inputs"]:
        """The empirical c, up to which an input's failure rate is at most delta; 0 or infinity beyond the range."""
        draws = min(TIGHTNESS_DRAWS, len(self.noise))

        def tolerated(c: Tensor) -> Bool[Tensor, " inputs"]:
            return self.failures(analog, c, draws) <= delta * draws

        return _bisected(tolerated, len(self.labels))


@dataclass(frozen=True)
class _Wrong:
    """Errors on any of many inputs at once, which is what Bu is about."""

    programmed: Programmed
    gates: Float[Tensor, "1 inputs experts tokens"]
    labels: Float[Tensor, "1 inputs"]
    analog: Bool[Tensor, " experts"]

    def failures(self, c: float) -> int:
        """Number of draws in which at least one input is misclassified."""
        outputs = noisy_outputs(self.programmed, self.gates, c, self.analog)
        return int((self.labels * outputs <= 0).any(-1).sum())

    def largest_c(self, delta: float) -> float:
        """The empirical c, up to which the share of such draws is at most delta; 0 or infinity beyond the range."""
        draws = len(self.programmed.received["up"].noise)

        def tolerated(c: Tensor) -> Bool[Tensor, " 1"]:
            return torch.tensor([self.failures(float(c)) <= delta * draws])

        return float(_bisected(tolerated, 1))


def _first(programmed: Programmed, draws: int) -> Programmed:
    """The same programming events, the first ones alone."""
    up = programmed.received["up"]
    return replace(programmed, received={"up": replace(up, noise=up.noise[:draws])})


def _bisected(tolerated: Callable[[Tensor], Tensor], count: int) -> Tensor:
    """The c up to which each of `count` is tolerated: 0 if not at SMALLEST_C, infinity if still at LARGEST_C."""
    return bisected(tolerated, torch.zeros(count, dtype=torch.float64), SMALLEST_C, LARGEST_C, HALVINGS)


# What the units of one process share


def _task(alpha: float, dictionary: Dictionary) -> Task:
    """The reference instance's task with another frequency and dictionary."""
    return replace(Task.of(Setting(alpha=alpha)), dictionary=dictionary)


@lru_cache(maxsize=1)
def _trained(alpha: float, m: int, dictionary: Dictionary, seed: int) -> MoE:
    """The trained network, kept for the next unit if that needs the same."""
    setting = Setting(alpha=alpha, m=m)
    training = Training.of(setting)
    config = ModelConfig.of(setting)
    return train(_task(alpha, dictionary), config, training, (seed,), record_every=training.max_steps).model
