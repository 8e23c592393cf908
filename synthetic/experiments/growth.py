"""Growth: are the neurons of frequent experts larger by the ratio of frequencies, until when, and why not exactly?

The reference instance (theory/setting.py) is trained in two ways: up to its stop rule, for every alpha, and far past
it, for some alphas. The prediction of (G) [docs/theory.md] is computed by `theory.growth` for each seed, from the
seed's start alone: active fractions, gates, initial weights and the number of steps. Nothing is fitted. Compared
quantities share their seeds. A seed that has no living specialist of some kind and sign has no own-token ratio and
is set aside.

At the stop rule the ratio of norms nu_F/nu_R is the product of rho and of the factors by which these ratios follow
each other. Weights are means over the neurons that are active at the start.
- "own, unsaturated": own-token weights of the signs that are not saturated, which is (G) itself
- "saturation": own-token weights of all signs (effect i)
- "leakage": the same with the weight on the leaked token added (effect ii)
- "other tokens": norms of living specialists, with all other tokens; the norm is that of the largest of m neurons
- "death": norms of all specialists (effect iii)

Rules: rules/figure-growth.md.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from synthetic.data import Task, evaluation_samples
from synthetic.model import ModelConfig, product
from synthetic.training import Training, train
from theory.evidence import (
    LEVEL,
    Finding,
    Result,
    Scale,
    geometric_interval,
    geometric_mean,
    interval_of,
    mean_finding,
    mean_of,
    mean_within,
)
from theory.growth import (
    dead_probability,
    growth_rate,
    knee,
    late_ratio,
    leakage,
    ratio_correction,
    saturating_weight,
)
from theory.separation import evaluation_seeds
from theory.setting import Setting

Array = NDArray[np.float64]

RECORD_EVERY = 5  # steps between two records
CURVE_POINTS = 80  # points of a curve, log-spaced over the recorded steps
GATE_INPUTS = 16_384  # inputs on which mean gates are measured
SIGNS = (1, -1)
NORM_TOLERANCE = 0.1  # rule 2
SLOPE_TOLERANCE = 0.1  # rule 4
TIME_TOLERANCE = 0.05  # rules 5, 7 and 8
FAMILIES = ("rho at the stop rule", "norms", "past the stop rule")
FACTORS = ("own, unsaturated", "saturation", "leakage", "other tokens", "death")


@dataclass(frozen=True)
class Config:
    """One training.

    steps: length of the training, None for the stop rule.
    """

    setting: Setting
    steps: int | None
    seed: int


@dataclass(frozen=True)
class Preset:
    """How much is trained.

    specialists: the pairs (N_F, N_R).
    alphas: frequencies of the rare class that are trained up to the stop rule.
    far_alphas: frequencies that are trained far past it.
    seeds: training seeds of each.
    """

    specialists: tuple[tuple[int, int], ...]
    alphas: tuple[float, ...]
    far_alphas: tuple[float, ...]
    seeds: int


ALPHAS = (0.02, 0.05, 0.1, 0.15, 0.2, 0.25)
PRESETS = {
    "quick": Preset(
        specialists=((2, 2),),
        alphas=(0.1, 0.25),
        far_alphas=(0.25, 0.4),
        seeds=2,
    ),
    "default": Preset(
        specialists=((2, 2), (3, 1)),
        alphas=ALPHAS,
        far_alphas=(0.1, 0.25),
        seeds=10,
    ),
    "full": Preset(
        specialists=((2, 2), (3, 1)),
        alphas=ALPHAS,
        far_alphas=(0.05, 0.1, 0.25),
        seeds=16,
    ),
}


def grid(preset: str, seeds: int | None = None, first_seed: int | None = None) -> list[Config]:
    """The trainings. `seeds` overrides the preset's number of training seeds, `first_seed` the first of them."""
    chosen = PRESETS[preset]
    each = evaluation_seeds(seeds, chosen.seeds, first_seed, "training seeds")
    settings = {
        alpha: [Setting(alpha=alpha, N_F=frequent, N_R=rare) for frequent, rare in chosen.specialists]
        for alpha in (*chosen.alphas, *chosen.far_alphas)
    }
    stopped = [(setting, None) for alpha in chosen.alphas for setting in settings[alpha]]
    far = [(setting, far_steps(setting)) for alpha in chosen.far_alphas for setting in settings[alpha]]
    # The longest training comes first, so that no worker is left alone with it in the end.
    trainings = sorted([*stopped, *far], key=lambda training: -(training[1] or 0))
    return [Config(setting, steps, seed) for setting, steps in trainings for seed in each]


def far_steps(setting: Setting) -> int:
    """Steps of a training far past the stop rule: twice the knee of rare specialists, half active, with gates of 1."""
    return math.ceil(2 * knee(setting.alpha, 1.0, setting.N_R, 0.5, setting.eta, setting.m))


def measure(config: Config) -> dict[str, Any]:
    """Measure own-token weights and norms of every expert over time, and what the prediction needs of the start."""
    task, network = Task.of(config.setting), ModelConfig.of(config.setting)
    training = Training.of(config.setting)
    if config.steps is not None:
        training = replace(training, stop_margin=None, max_steps=config.steps)
    trained = train(task, network, training, (config.seed,), record_every=RECORD_EVERY)
    history, model = trained.history, trained.model
    weights, norms = history.own_weights[:, 0].double(), history.norms[:, 0].double()  # (records, experts, m)
    active = weights[0] > 0
    last = len(history.steps) - 1
    kept = np.unique(np.geomspace(1, last + 1, CURVE_POINTS).round().astype(int) - 1)

    samples = evaluation_samples(task, GATE_INPUTS, (config.seed,))
    gates = model.gates(samples.tokens)[0].double()  # (inputs, experts, tokens)
    signs, own = network.signs, model.own_tokens
    leaked = 2 * (1 - network.kinds) + (signs < 0)  # token of the other kind and the same sign
    mean_gates = {}
    for name, token, kind in (("own", own, network.kinds), ("leaked", leaked, 1 - network.kinds)):
        shown = (samples.kinds[0, :, None] == kind) & (samples.labels[0, :, None] == signs)
        gate = gates.gather(2, token.expand(len(gates), -1)[..., None]).squeeze(-1)
        mean_gates[name] = ((gate * shown).sum(0) / shown.sum(0)).tolist()

    experts = torch.arange(network.experts)
    largest = product(model.weights["up"], model.tokens)[0].double()[experts, norms[-1].argmax(-1)]
    return {
        "steps": int(trained.steps[0]),
        "active": active.double().mean(-1).tolist(),
        "own_gate": mean_gates["own"],
        "leaked_gate": mean_gates["leaked"],
        "curve": {
            "steps": history.steps[kept].tolist(),
            "own": ((weights * active).sum(-1) / active.sum(-1).clamp(min=1))[kept].tolist(),
            "norm": norms.amax(-1)[kept].tolist(),
        },
        "largest": {
            "own": largest[experts, own].tolist(),
            "leaked": largest[experts, leaked].tolist(),
        },
    }


@dataclass(frozen=True)
class Run:
    """One training: its record as arrays, beside what (G) has for it.

    Arrays are over experts, and over recorded steps first where they change with time.
    """

    setting: Setting
    record: Mapping[str, Any]

    @cached_property
    def network(self) -> ModelConfig:
        return ModelConfig.of(self.setting)

    @cached_property
    def steps(self) -> Array:
        """The recorded steps."""
        return np.array(self.record["curve"]["steps"], dtype=np.float64)

    @cached_property
    def own(self) -> Array:
        """Mean weight of active neurons on their own token (records, experts)."""
        return np.array(self.record["curve"]["own"])

    @cached_property
    def norm(self) -> Array:
        """Norm of the largest neuron (records, experts)."""
        return np.array(self.record["curve"]["norm"])

    @cached_property
    def active(self) -> Array:
        """Fraction of neurons that are active on their own token at the start."""
        return np.array(self.record["active"])

    @cached_property
    def frequent(self) -> NDArray[np.bool_]:
        """True for specialists of the frequent class."""
        return self.network.kinds.numpy() == 0

    @cached_property
    def frequency(self) -> Array:
        """Frequency of the class that each expert specialises in."""
        return np.where(self.frequent, 1 - self.setting.alpha, self.setting.alpha)

    def group(self, frequent: bool, sign: int) -> NDArray[np.bool_]:
        """True for the specialists of one kind and sign."""
        return (self.frequent == frequent) & (self.network.signs.numpy() == sign)

    @cached_property
    def complete(self) -> bool:
        """True if every kind and sign has a living specialist; without one there is no own-token ratio."""
        return all(self.mean_active(kind, sign) > 0 for kind in (True, False) for sign in SIGNS)

    def mean_active(self, frequent: bool, sign: int) -> float:
        """Fraction of active neurons of one kind and sign, q in (G)."""
        return float(self.active[self.group(frequent, sign)].mean())

    def mean_gate(self, frequent: bool, sign: int) -> float:
        """Mean gate of the own token of one kind and sign, G in (G)."""
        return float(np.mean(np.array(self.record["own_gate"])[self.group(frequent, sign)]))

    def knee(self, frequent: bool, sign: int) -> float:
        """Step at which growth of one kind and sign ends, t_F or t_R in (G)."""
        setting = self.setting
        frequency, count = (1 - setting.alpha, setting.N_F) if frequent else (setting.alpha, setting.N_R)
        gate, active = self.mean_gate(frequent, sign), self.mean_active(frequent, sign)
        return float(knee(frequency, gate, count, active, setting.eta, setting.m))

    def weight(self, frequent: bool, sign: int, own: Array | None = None) -> Array:
        """Mean own-token weight over the active neurons of one kind and sign.

        own: weights (..., experts) to average in place of the measured ones.
        """
        share = self.active * self.group(frequent, sign)
        return np.asarray((self.own if own is None else own) @ share / share.sum())

    def own_weight(self, frequent: bool, signs: Sequence[int], own: Array | None = None) -> Array:
        """Mean of `weight` over `signs`."""
        return np.mean([self.weight(frequent, sign, own) for sign in signs], axis=0)

    def own_ratio(self, signs: Sequence[int], own: Array | None = None) -> Array:
        """Frequent over rare own-token weight, each a mean over `signs`."""
        return np.asarray(self.own_weight(True, signs, own) / self.own_weight(False, signs, own))

    @cached_property
    def closed_form(self) -> Array:
        """Own-token weights as (G) has them (records, experts), 0 for dead specialists."""
        rate = growth_rate(
            self.frequency, np.array(self.record["own_gate"]), self.setting.eta, self.setting.m
        )
        ends = np.full(len(rate), np.inf)
        for kind in (True, False):
            for sign in SIGNS:
                ends[self.group(kind, sign)] = self.knee(kind, sign)
        grown = self.own[0] + saturating_weight(self.steps[:, None], rate, ends)
        return np.where(self.active > 0, grown, 0.0)

    @cached_property
    def leaked_closed_form(self) -> Array:
        """Weight on the leaked token over that on the own token, as (G) has it; 0 for frequent specialists."""
        ratio = leakage(
            self.setting.rho, np.array(self.record["leaked_gate"]), np.array(self.record["own_gate"])
        )
        return np.where(self.frequent, 0.0, ratio)

    @cached_property
    def predicted_norm(self) -> Array:
        """Predicted norm of each expert at the end.

        Its square is the sum of the squares of the initial norm, the own-token weight and the leaked token's weight.
        """
        rate = growth_rate(
            self.frequency, np.array(self.record["own_gate"]), self.setting.eta, self.setting.m
        )
        leaked = self.leaked_closed_form * rate * self.steps[-1]
        return np.asarray(np.sqrt(self.norm[0] ** 2 + self.closed_form[-1] ** 2 + leaked**2))

    def norm_ratio(self, norm: Array, which: NDArray[np.bool_] | bool = True) -> float:
        """Mean norm of frequent over that of rare specialists, among the experts `which`."""
        return float(norm[self.frequent & which].mean() / norm[~self.frequent & which].mean())

    @cached_property
    def unsaturated(self) -> list[int]:
        """The signs whose frequent specialists still grow at the end."""
        return [sign for sign in SIGNS if self.knee(True, sign) > self.steps[-1]]

    @cached_property
    def factors(self) -> list[float]:
        """The ratio of frequent to rare after each of FACTORS; a factor is a ratio divided by the one before it."""
        largest = {name: np.array(values) for name, values in self.record["largest"].items()}
        alive = self.active > 0
        # Weight on the leaked token over the same neuron's weight on its own. A dead specialist has no share in any
        # ratio of own-token weights.
        share = np.divide(largest["leaked"], largest["own"], out=np.zeros(len(alive)), where=alive)
        return [
            float(self.own_ratio(self.unsaturated)[-1]),
            float(self.own_ratio(SIGNS)[-1]),
            float(self.own_ratio(SIGNS, self.own[-1] * np.sqrt(1 + share**2))),
            self.norm_ratio(self.norm[-1], alive),
            self.norm_ratio(self.norm[-1]),
        ]

    @cached_property
    def correction(self) -> float:
        """|G's correction for the initial weights| / rho at the end."""
        rate = growth_rate(self.setting.alpha, 1.0, self.setting.eta, self.setting.m)
        frequent, rare = (self.own_weight(kind, self.unsaturated)[0] for kind in (True, False))
        rho = self.setting.rho
        return float(abs(ratio_correction(self.steps[-1], rho, rate, frequent, rare)) / rho)

    @cached_property
    def sampling_variance(self) -> float:
        """Variance of the logarithm of frequent over rare samples seen up to the end, of the unsaturated signs."""
        seen = self.steps[-1] * Training.of(self.setting).batch * len(self.unsaturated) / 2
        return float(sum(1 / (seen * p) for p in (self.setting.alpha, 1 - self.setting.alpha)))


def summarise(configs: Sequence[Config], records: Sequence[dict[str, Any]]) -> Result:
    """Ratios at the stop rule, curves past it, and the findings by the rules above."""
    stopped: dict[Setting, list[Run]] = {}
    far: dict[Setting, list[Run]] = {}
    set_aside = set()
    for config, record in zip(configs, records, strict=True):
        run = Run(config.setting, record)
        if run.complete:  # depends on the seed alone, so the same seeds are left for every alpha
            (stopped if config.steps is None else far).setdefault(config.setting, []).append(run)
        else:
            set_aside.add((_name(config.setting), config.seed))
    findings: list[Finding] = []
    for name in dict.fromkeys(_name(setting) for setting in stopped):
        mine, past = (
            {
                setting: runs
                for setting, runs in sorted(group.items(), key=lambda item: item[0].alpha)
                if _name(setting) == name
            }
            for group in (stopped, far)
        )
        findings += [*_at_the_stop_rule(mine), *_past_it(past)]
    return Result(
        data={
            "at the stop rule": [_row(setting, runs) for setting, runs in stopped.items()],
            "curves": [_curve(setting, runs) for setting, runs in far.items()],
            "seeds": len(dict.fromkeys(config.seed for config in configs)),
            "set_aside": len(set_aside),  # pairs of (N_F, N_R) and seed
        },
        findings=tuple(findings),
    )


def _at_the_stop_rule(runs: Mapping[Setting, list[Run]]) -> list[Finding]:
    """Rules 1 to 4, for one (N_F, N_R)."""
    findings = []
    for setting, each in runs.items():
        ratios = np.array([run.factors[0] for run in each]) / setting.rho
        correction = np.mean([run.correction for run in each])
        sampling = math.sqrt(np.mean([run.sampling_variance for run in each]) / len(each))
        tau = float(correction + 4 * sampling)
        findings.append(
            mean_within(
                f"own-token weights have the ratio rho at the stop rule; {_name(setting)}, alpha = {setting.alpha:g}",
                f"own-token ratio of the signs before their knee / rho; rho = {setting.rho:.4g}",
                ratios,
                1.0,
                tau,
                origin="reconstruction",
                statement="G",
                family=FAMILIES[0],
                scale="log",
                words=f"inside 1 +- {tau:.3f} ({correction:.3f} by G's correction, the rest by class frequencies"
                " of the batches)",
            )
        )
    name = _name(next(iter(runs)))
    rho = np.array([setting.rho for setting in runs])
    norms = np.array([[run.factors[-1] for run in each] for each in runs.values()])  # (alphas, seeds)
    predicted = np.array([[run.norm_ratio(run.predicted_norm) for run in each] for each in runs.values()])
    return [
        *findings,
        mean_within(
            f"with saturation, leakage and death, G predicts the ratio of norms; {name}",
            "nu_F/nu_R measured / predicted, mean over alpha",
            (norms / predicted).mean(0),
            1.0,
            NORM_TOLERANCE,
            origin="ours",
            statement="G",
            family=FAMILIES[1],
            scale="log",
            words=f"inside 1 +- {NORM_TOLERANCE}",
        ),
        mean_finding(
            f"specialists of frequent tokens have the larger neurons; {name}",
            "smallest nu_F/nu_R of any alpha",
            norms.min(0),
            threshold=1.0,
            origin="paper",
            statement="G",
            family=FAMILIES[1],
            scale="log",
        ),
        mean_within(
            f"the ratio of the neurons' norms is proportional to that of the frequencies; {name}",
            "log-log slope of nu_F/nu_R against rho",
            np.polyfit(np.log(rho), np.log(norms), 1)[0],
            1.0,
            SLOPE_TOLERANCE,
            origin="reconstruction",
            statement="G",
            family=FAMILIES[1],
            words=f"inside 1 +- {SLOPE_TOLERANCE}",
        ),
    ]


def _past_it(runs: Mapping[Setting, list[Run]]) -> list[Finding]:
    """Rules 5 to 8, for one (N_F, N_R). Without two seeds that learned both classes there are no rules 7 and 8."""
    name, alphas = _name(next(iter(runs))), [setting.alpha for setting in runs]
    knees, deviations = (
        np.array([[quantity(run) for run in each] for each in runs.values()]).mean(0)
        for quantity in (_knee, _deviation)
    )
    near_one = f"inside 1 +- {TIME_TOLERANCE}"
    findings = [
        mean_within(
            f"frequent neurons stop growing at t_F; {name}",
            "measured knee / t_F, mean over signs and alpha",
            knees,
            1.0,
            TIME_TOLERANCE,
            origin="reconstruction",
            statement="G",
            family=FAMILIES[2],
            scale="log",
            words=near_one,
        ),
        mean_finding(
            f"the own-token ratio follows the closed form, before and after the knee; {name}",
            "root mean square of log(own-token ratio / closed form), mean over alpha",
            deviations,
            threshold=math.log(1.1),
            direction="below",
            origin="reconstruction",
            statement="G",
            family=FAMILIES[2],
        ),
    ]
    late = np.array([[_late(run) for run in each] for each in runs.values()])  # (alphas, seeds, 2)
    ratios = late[:, ~np.isnan(late).any((0, 2))]
    if ratios.shape[1] < 2:
        return findings
    return [
        *findings,
        mean_within(
            f"in the end the own-token ratio is N_R q_R/(N_F q_F); {name}",
            "own-token ratio in the end / predicted, mean over signs and alpha",
            ratios[:, :, 1].mean(0),
            1.0,
            TIME_TOLERANCE,
            origin="reconstruction",
            statement="G",
            family=FAMILIES[2],
            scale="log",
            words=near_one,
        ),
        mean_within(
            f"... which does not depend on alpha; {name}",
            f"own-token ratio in the end at alpha = {alphas[0]:g} / at {alphas[-1]:g}",
            ratios[0, :, 0] / ratios[-1, :, 0],
            1.0,
            TIME_TOLERANCE,
            origin="reconstruction",
            statement="G",
            family=FAMILIES[2],
            scale="log",
            words=near_one,
        ),
    ]


def _knee(run: Run) -> float:
    """Measured knee of frequent specialists (plateau over initial slope) over t_F, a mean over signs."""
    found = []
    for sign in SIGNS:
        weight = run.weight(True, sign)
        half = int(np.argmax(weight >= weight[-1] / 2))
        slope = (weight[half] - weight[0]) / run.steps[half]
        found.append(weight[-1] / slope / run.knee(True, sign))
    return float(np.mean(found))


def _deviation(run: Run) -> float:
    """Root mean square of log(own-token ratio/closed form) over the records from t_F/2 on."""
    measured, predicted = run.own_ratio(SIGNS), run.own_ratio(SIGNS, run.closed_form)
    late = run.steps >= min(run.knee(True, sign) for sign in SIGNS) / 2
    return float(np.sqrt(np.mean(np.log(measured[late] / predicted[late]) ** 2)))


def _late(run: Run) -> tuple[float, float]:
    """The own-token ratio in the end, and that ratio over the predicted one.

    Means over the signs that ought to have learned both classes; NaN if there are none.
    """
    found = []
    for sign in SIGNS:
        if max(run.knee(True, sign), run.knee(False, sign)) < 0.9 * run.steps[-1]:
            ratio = float(run.own_ratio([sign])[-1])
            active = run.mean_active(True, sign), run.mean_active(False, sign)
            gates = run.mean_gate(True, sign) / run.mean_gate(False, sign)
            predicted = late_ratio(run.setting.N_F, run.setting.N_R, *active, gates)
            found.append((ratio, ratio / float(predicted)))
    ratio, relative = np.mean(found, axis=0) if found else (math.nan, math.nan)
    return float(ratio), float(relative)


def _row(setting: Setting, runs: Sequence[Run]) -> dict[str, Any]:
    """Mean and interval of every ratio at the stop rule, and of the effects that make it."""
    successive = np.array([run.factors for run in runs])  # (seeds, factors)
    factors = successive / np.column_stack((np.full(len(runs), setting.rho), successive[:, :-1]))
    rare = ~runs[0].frequent
    return {
        **_names(setting),
        "rho": setting.rho,
        "seeds": len(runs),
        "steps": _mean([run.steps[-1] for run in runs]),
        "own_ratio": _mean(successive[:, 0], "log"),
        "own_ratio_all_signs": _mean(successive[:, 1], "log"),
        "norm_ratio": _mean(successive[:, -1], "log"),
        "predicted_norm_ratio": _mean([run.norm_ratio(run.predicted_norm) for run in runs], "log"),
        "factors": {name: _mean(values, "log") for name, values in zip(FACTORS, factors.T, strict=True)},
        "leakage": {
            "measured": _mean([_leak(run) for run in runs]),
            "predicted": _mean([run.leaked_closed_form[rare].mean() for run in runs]),
        },
        "dead_probability": float(dead_probability(setting.m)),
        "dead_fraction": float(np.mean([run.active == 0 for run in runs])),
        "saturated_fraction": float(np.mean([1 - len(run.unsaturated) / len(SIGNS) for run in runs])),
    }


def _leak(run: Run) -> float:
    """Largest neuron's weight on the leaked token over that on its own, a mean over living rare specialists."""
    chosen = ~run.frequent & (run.active > 0)
    leaked, own = (np.array(run.record["largest"][name])[chosen] for name in ("leaked", "own"))
    return float(np.mean(leaked / own))


def _curve(setting: Setting, runs: Sequence[Run]) -> dict[str, Any]:
    """Weights, norms and their ratios over time, as geometric means over seeds, beside the closed form."""
    active = float(np.mean([run.active for run in runs]))
    gate = float(np.mean([run.record["own_gate"] for run in runs]))
    knees = [
        float(knee(frequency, gate, count, active, setting.eta, setting.m))
        for frequency, count in ((1 - setting.alpha, setting.N_F), (setting.alpha, setting.N_R))
    ]
    first = 1  # the ratio at step 0 is one of initial weights, about which (G) says nothing
    steps = runs[0].steps[first:]
    curves = {
        "own_ratio": [run.own_ratio(SIGNS) for run in runs],
        "own_ratio_closed_form": [run.own_ratio(SIGNS, run.closed_form) for run in runs],
        "norm_ratio": [
            run.norm[:, run.frequent].mean(1) / run.norm[:, ~run.frequent].mean(1) for run in runs
        ],
    }
    for name, kind in (("frequent", True), ("rare", False)):
        curves |= {
            f"own_{name}": [run.own_weight(kind, SIGNS) for run in runs],
            f"own_{name}_closed_form": [run.own_weight(kind, SIGNS, run.closed_form) for run in runs],
            f"norm_{name}": [run.norm[:, run.frequent == kind].mean(1) for run in runs],
        }
    return {
        **_names(setting),
        "rho": setting.rho,
        "seeds": len(runs),
        "knees": knees,
        "late_ratio": float(late_ratio(setting.N_F, setting.N_R, 1.0, 1.0)),
        "steps": steps.tolist(),
        "curves": {name: _band(np.array(values)[:, first:]) for name, values in curves.items()},
    }


def _band(values: Array) -> dict[str, list[float]]:
    """Geometric mean over seeds (the first axis) and its 95 % interval."""
    low, high = zip(*(geometric_interval(column) for column in values.T), strict=True)
    return {
        name: list(each)
        for name, each in (("mean", map(geometric_mean, values.T)), ("low", low), ("high", high))
    }


def _mean(values: Sequence[float] | Array, scale: Scale = "linear") -> dict[str, Any]:
    """Mean over seeds on a scale, and its 95 % interval."""
    return {"mean": mean_of(values, scale), "interval": interval_of(values, scale)(1 - LEVEL)}


def _names(setting: Setting) -> dict[str, Any]:
    """What tells settings apart, for rows of data."""
    return {"N_F": setting.N_F, "N_R": setting.N_R, "alpha": setting.alpha}


def _name(setting: Setting) -> str:
    """The numbers of specialists, as claims name them."""
    return f"N_F, N_R = {setting.N_F}, {setting.N_R}"
