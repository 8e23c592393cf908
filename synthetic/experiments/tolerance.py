"""How much programming noise does a network tolerate, and how much more if its frequent experts are digital?

Networks of the reference instance (theory/setting.py) are trained with (N_F, N_R) = (2, 2) and (3, 1) specialists of
each sign, at several frequencies alpha of the rare class; rho = (1 - alpha)/alpha. Placements:
- "none": all experts analog
- "maxnn": the 2 N_F experts with the highest MaxNNScore digital
- "oracle": the 2 N_F frequent specialists digital
The tolerance c* is the largest c at which the worse class keeps an accuracy of .95. The gain of a placement is c*
over c* of "none". Placements share their noise. Frequencies share initial weights, noise, and samples but for the
classes.

For each network's own test inputs, theory [docs/theory.md] computes:
- Bu, B, B-mean: the smallest c over the inputs at delta = .05, a lower bound on c*
- "floor": the failure bounds B-mean and B-exp, averaged over the inputs of a class; holds for the expected accuracy
- "ceiling": U, averaged likewise; holds for the expected accuracy
- P: the prediction
- the floor of the gain: floor of "oracle" / ceiling of "none"

Rules: rules/figure-tolerance.md.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache, partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

from synthetic.data import Task, evaluation_samples
from synthetic.model import ModelConfig
from synthetic.robustness import class_accuracy, noisy_outputs, program, tolerance
from synthetic.training import Training, train
from theory.errors import InputError
from theory.evidence import (
    LEVEL,
    Finding,
    Interval,
    Result,
    Verdict,
    deciding_level,
    geometric_interval,
    geometric_mean,
    judged,
    mean_finding,
    mean_interval,
    mean_within,
    proportion_interval,
)
from theory.hardware import Hardware
from theory.placement import rank
from theory.separation import evaluation_seeds
from theory.setting import Setting
from theory.tolerance import (
    FAILURE,
    Network,
    exact_mean_bound,
    idealised,
    linear_gain,
    margins,
    pointwise_bound,
    predicted_tolerance,
    tolerance_ceiling,
    tolerance_floor,
    uniform_bound,
)

Array = NDArray[np.float64]

PLACEMENTS = ("none", "maxnn", "oracle")
JUDGED = ("none", "oracle")  # placements that theory is asked about
BOUNDS = ("Bu", "B", "B-mean", "floor", "P", "ceiling")
MAGNITUDES = tuple(np.geomspace(0.01, 5.0, 25).tolist())  # c of the accuracy curves
ONE_LABEL = 4  # discriminative tokens, each of which occurs with one label only
FLAT = 0.1  # rule 1
SHAPED = 0.1  # rule 2
FOUND, MOST = 0.9, 1 / 2  # rule 4
PREDICTED = 0.1  # rule 5
VIOLATED = 1 / 3  # rule 6
PROPORTIONAL = 0.2  # rule 7


@dataclass(frozen=True)
class Config:
    """One network.

    N_F, N_R: frequent and rare specialists of each sign.
    alpha: frequency of the rare class.
    seed: seed of the training, the noise and the test samples.
    draws: programming events.
    inputs: test samples.
    """

    N_F: int
    N_R: int
    alpha: float
    seed: int
    draws: int
    inputs: int


@dataclass(frozen=True)
class Preset:
    """How much is measured; the fields are those of `Config`, `seeds` being the number of training seeds."""

    alphas: tuple[float, ...]
    seeds: int
    draws: int
    inputs: int


PRESETS = {
    "quick": Preset(
        alphas=(0.05, 0.25),
        seeds=2,
        draws=16,
        inputs=40,
    ),
    "default": Preset(
        alphas=(0.02, 0.05, 0.1, 0.15, 0.2, 0.25),
        seeds=6,
        draws=256,
        inputs=120,
    ),
    "full": Preset(
        alphas=(0.02, 0.05, 0.1, 0.15, 0.2, 0.25),
        seeds=16,
        draws=512,
        inputs=200,
    ),
}
SPECIALISTS = ((2, 2), (3, 1))


def grid(preset: str, seeds: int | None = None, first_seed: int | None = None) -> list[Config]:
    """The units of work. `seeds` overrides the preset's number of training seeds, `first_seed` the first of them."""
    settings = PRESETS[preset]
    each = evaluation_seeds(seeds, settings.seeds, first_seed, "training seeds")
    return [
        Config(N_F, N_R, alpha, seed, settings.draws, settings.inputs)
        for N_F, N_R in SPECIALISTS
        for alpha in settings.alphas
        for seed in each
    ]


def measure(config: Config) -> dict[str, Any]:
    """Measure accuracies, tolerances and bounds of one network; None for a tolerance or bound of 0 or infinity."""
    setting = Setting(alpha=config.alpha, N_F=config.N_F, N_R=config.N_R)
    task, seeds = Task.of(setting), (config.seed,)
    trained = train(
        task, ModelConfig.of(setting), Training.of(setting), seeds, record_every=Training.max_steps
    )
    model = trained.model
    samples = evaluation_samples(task, config.inputs, seeds)
    frequent, scores = model.config.kinds == 0, model.maxnn()
    (chosen,) = rank(scores, 2 * config.N_F / model.config.experts, "maxnn")
    analog = {name: torch.ones(model.config.experts, dtype=torch.bool) for name in PLACEMENTS}
    analog["maxnn"][list(chosen)] = False
    analog["oracle"][frequent] = False

    theirs = Hardware(programming="constant", w_max="layer", dac_bits=None, adc_bits=None)
    programmed = program(model, theirs, config.draws, seeds)
    gates = model.gates(samples.tokens)
    stars = tolerance(programmed, samples, torch.stack([analog[name] for name in PLACEMENTS])[:, None])
    accuracy = {
        name: [
            class_accuracy(noisy_outputs(programmed, gates, c, analog[name]), samples, task.kinds)
            .mean((0, 1))
            .tolist()
            for c in MAGNITUDES
        ]
        for name in PLACEMENTS
    }
    network = Network(model.weights["up"][0], model.tokens[0], model.config.signs, analog["none"])
    given = gates[0].double(), samples.labels[0], samples.kinds[0]
    return {
        "steps": int(trained.steps),
        "score_ratio": float(scores[0, frequent].mean() / scores[0, ~frequent].mean()),
        "digital": list(chosen),
        "accuracy": accuracy,
        "tolerance": {name: _proper(float(star)) for name, star in zip(PLACEMENTS, stars, strict=True)},
        "theory": {name: _theory(replace(network, analog=analog[name]), *given) for name in JUDGED},
    }


def summarise(configs: Sequence[Config], records: Sequence[dict[str, Any]]) -> Result:
    """Curves with 95 % intervals over training seeds, and the findings by the rules above."""
    data: dict[str, Any] = {"c": MAGNITUDES, "accuracy": [], "tolerance": [], "gain": [], "law": []}
    findings: list[Finding] = []
    for specialists in dict.fromkeys((config.N_F, config.N_R) for config in configs):
        units = {
            (config.alpha, config.seed): record
            for config, record in zip(configs, records, strict=True)
            if specialists == (config.N_F, config.N_R)
        }
        alphas, seeds = (sorted(set(axis)) for axis in zip(*units, strict=True))
        usable = [
            seed
            for seed in seeds
            if all(None not in units[alpha, seed]["tolerance"].values() for alpha in alphas)
        ]
        if len(usable) < 2:
            raise InputError(
                f"--seeds {len(seeds)}: {len(usable)} networks with (N_F, N_R) = {specialists} tolerate noise"
                " at all, an interval needs 2; give more"
            )
        table = _Table(specialists, alphas, [[units[alpha, seed] for seed in usable] for alpha in alphas])
        data["accuracy"] += table.accuracies()
        data["tolerance"] += table.tolerances()
        data["gain"] += table.gains()
        data["law"].append(table.law() | {"seeds": len(usable), "seeds_left_out": len(seeds) - len(usable)})
        findings += _findings(table)
    first = configs[0]
    return Result(data=data | {"draws": first.draws, "inputs": first.inputs}, findings=tuple(findings))


class _Table:
    """All networks of one (N_F, N_R). Every array is (alphas, seeds)."""

    def __init__(
        self,
        specialists: tuple[int, int],
        alphas: list[float],
        records: list[list[dict[str, Any]]],
    ):
        self.specialists, self.alphas, self.records = specialists, alphas, records
        self.rho = (1 - np.array(alphas)) / np.array(alphas)

    def of(self, value: Callable[[dict[str, Any]], Any]) -> Array:
        """A value of every network's record."""
        return np.array([[value(record) for record in row] for row in self.records], dtype=np.float64)

    def star(self, placement: str) -> Array:
        """The tolerance c*."""
        return self.of(lambda record: record["tolerance"][placement])

    def theory(self, placement: str, bound: str) -> Array:
        """What a bound or the prediction says; NaN for a bound that says nothing."""
        return self.of(lambda record: record["theory"][placement][bound])

    def gain(self, placement: str) -> Array:
        """c* of the placement over c* with all experts analog."""
        return self.star(placement) / self.star("none")

    @property
    def gain_floor(self) -> Array:
        """Lower bound on the gain of "oracle"."""
        return self.theory("oracle", "floor") / self.theory("none", "ceiling")

    def accuracies(self) -> list[dict[str, Any]]:
        """Rows of the accuracy curves, with 95 % intervals."""
        rows = []
        for alpha, records in zip(self.alphas, self.records, strict=True):
            for placement in PLACEMENTS:
                values = np.array([record["accuracy"][placement] for record in records])  # (seeds, c, kinds)
                for kind, name in enumerate(("frequent", "rare")):
                    low, high = zip(*(mean_interval(each) for each in values[:, :, kind].T), strict=True)
                    rows.append(
                        {
                            "specialists": self.specialists,
                            "alpha": alpha,
                            "placement": placement,
                            "kind": name,
                            "mean": values[:, :, kind].mean(0).tolist(),
                            "low": low,
                            "high": high,
                        }
                    )
        return rows

    def tolerances(self) -> list[dict[str, Any]]:
        """Rows of c* by alpha and placement, beside what theory says; geometric means over seeds."""
        columns = {"none": BOUNDS, "maxnn": (), "oracle": BOUNDS}
        return [
            {
                "specialists": self.specialists,
                "alpha": alpha,
                "placement": placement,
                **_centre("tolerance", self.star(placement)[row]),
                **{
                    bound: _geometric_mean(self.theory(placement, bound)[row]) for bound in columns[placement]
                },
            }
            for row, alpha in enumerate(self.alphas)
            for placement in PLACEMENTS
        ]

    def gains(self) -> list[dict[str, Any]]:
        """Rows of the gain by alpha, beside its prediction and its floor; geometric means over seeds."""
        predicted = self.theory("oracle", "P") / self.theory("none", "P")
        ratio = self.of(lambda record: record["score_ratio"])
        return [
            {
                "specialists": self.specialists,
                "alpha": alpha,
                "rho": self.rho[row],
                **_centre("oracle", self.gain("oracle")[row]),
                **_centre("maxnn", self.gain("maxnn")[row]),
                "oracle_median": float(np.median(self.gain("oracle")[row])),
                "predicted": _geometric_mean(predicted[row]),
                "gain_floor": _geometric_mean(self.gain_floor[row]),
                "score_ratio": _geometric_mean(ratio[row]),
            }
            for row, alpha in enumerate(self.alphas)
        ]

    @property
    def setting(self) -> Setting:
        """The setting of the largest alpha."""
        return Setting(alpha=max(self.alphas), N_F=self.specialists[0], N_R=self.specialists[1])

    @cached_property
    def idealised(self) -> list[float]:
        """The gain by alpha of the network that (G) tends to, computed without any training."""
        return [_idealised_gain(replace(self.setting, alpha=alpha)) for alpha in self.alphas]

    @property
    def theory_g(self) -> float:
        """The g of sqrt(1 + (g rho)^2) that describes `idealised`."""
        return _saturating(np.log(self.rho), np.log(self.idealised))[0]

    def law(self) -> dict[str, Any]:
        """The law of the gain: fitted, and computed without any training for the network that (G) tends to."""
        log_rho, log_gain = np.log(self.rho), np.log(self.gain("oracle"))
        slopes = _slopes(log_rho, log_gain)
        return {
            "specialists": self.specialists,
            "g": _saturating(log_rho, log_gain.mean(1))[0],
            "theory_g": self.theory_g,
            "slope": float(slopes.mean()),
            "slope_interval": mean_interval(slopes),
            "idealised_gain_floor": _linear_gain(self.setting),
            "idealised": self.idealised,
        }


def _findings(table: _Table) -> list[Finding]:
    """The rules, for one (N_F, N_R)."""
    where = "(N_F, N_R) = ({}, {})".format(*table.specialists)
    log_rho, log_alpha = np.log(table.rho), np.log(table.alphas)
    log_gain = np.log(table.gain("oracle"))
    power = _slopes(log_rho, log_gain)
    found = (table.star("maxnn") / table.star("oracle")).min(0) > FOUND
    findings = [
        mean_within(
            f"with the frequent specialists digital c* does not depend on alpha; {where}",
            "slope of log c* against log alpha, frequent specialists digital",
            _slopes(log_alpha, np.log(table.star("oracle"))),
            0.0,
            FLAT,
            origin="reconstruction",
            statement="Cor",
            family="gain",
        ),
        mean_within(
            f"digital frequent experts multiply the tolerated noise by Theta(rho), as sqrt(1 + (g rho)^2); {where}",
            f"slope of log gain against log sqrt(1 + (g rho)^2), g = {table.theory_g:.3f} by theory; against log rho,"
            " without a verdict: {:.3f} [{:.3f}, {:.3f}]".format(power.mean(), *mean_interval(power)),
            _slopes(_log_law(np.log(table.theory_g), log_rho), log_gain),
            1.0,
            SHAPED,
            origin="reconstruction",
            statement="Cor",
            family="gain",
        ),
        mean_finding(
            f"the gain is sqrt(1 + (g rho)^2) rather than g rho; {where}",
            "root mean square error of log gain, of sqrt(1 + (g rho)^2) minus of g rho",
            np.array([_saturating(log_rho, seed)[1] - (seed - log_rho).std() for seed in log_gain.T]),
            0.0,
            "below",
            origin="ours",
            statement="Cor",
            family="gain",
        ),
        judged(
            f"MaxNNScore finds the frequent specialists; {where}",
            f"share of training seeds with c* of maxnn / c* of the oracle above {FOUND:g} at every alpha",
            float(found.mean()),
            partial(proportion_interval, int(found.sum()), found.size),
            found.size,
            MOST,
            origin="paper",
            statement="G",
            family="MaxNN",
        ),
    ]
    for placement, words in (("none", "all analog"), ("oracle", "frequent specialists digital")):
        findings.append(
            mean_finding(
                f"exact moments and a normal approximation (P) predict c*, {words}; {where}",
                "mean of |P/c* - 1| over the alphas",
                np.abs(table.theory(placement, "P") / table.star(placement) - 1).mean(0),
                PREDICTED,
                "below",
                origin="reconstruction",
                statement="P",
                family="prediction",
            )
        )
    findings.append(_between(table, where))
    slopes = _slopes(log_rho, np.log(table.gain_floor))
    slopes = slopes[np.isfinite(slopes)]
    if slopes.size >= 2:  # U says nothing for some networks
        findings.append(
            mean_within(
                f"the floor of the gain grows like rho; {where}",
                "slope of the logarithm of floor (frequent digital) / ceiling (all analog) against log rho",
                slopes,
                1.0,
                PROPORTIONAL,
                origin="ours",
                statement="Gain",
                family="bounded gain",
            )
        )
    return findings


def _between(table: _Table, where: str) -> Finding:
    """Rule 6."""
    slack = np.stack(
        [
            each
            for name in JUDGED
            for each in (
                table.star(name) / table.theory(name, "floor"),
                table.theory(name, "ceiling") / table.star(name),
            )
        ]
    )  # (bounds, alphas, seeds); NaN where a bound says nothing, which violates nothing
    violations = int((slack < 1).any((0, 1)).sum())
    seeds = slack.shape[-1]

    def judge(share: Interval | None) -> Verdict:
        if violations:
            return "fails"
        return "holds" if share is not None and share[1] < VIOLATED else "inconclusive"

    interval = partial(proportion_interval, violations, seeds)
    alone = judge(interval(1 - LEVEL))
    return Finding(
        claim=f"c* is between floor (B-mean, B-exp) and ceiling (U); {where}",
        origin="ours",
        statement="U",
        statistic=f"share of training seeds with a violation; smallest c*/floor or ceiling/c*: {np.nanmin(slack):.3f}",
        estimate=violations / seeds,
        interval=interval(1 - LEVEL),
        n=seeds,
        rule="a violation: fails; none, and 95 % interval below 1/3: holds",
        family="bounds",
        p=deciding_level(interval, judge),
        alone=alone,
        verdict=alone,
    )


def _theory(
    network: Network, gates: torch.Tensor, labels: torch.Tensor, kinds: torch.Tensor
) -> dict[str, Any]:
    """Every one of BOUNDS for one network and placement; None where it says nothing."""
    given = network, gates, labels
    values = (
        uniform_bound(network, float(margins(*given).min()), FAILURE, one_label=ONE_LABEL),
        float(pointwise_bound(*given, FAILURE).min()),
        float(exact_mean_bound(*given, FAILURE).min()),
        tolerance_floor(*given, kinds),
        predicted_tolerance(*given, kinds),
        tolerance_ceiling(*given, kinds),
    )
    return {name: _proper(value) for name, value in zip(BOUNDS, values, strict=True)}


@lru_cache
def _idealised_gain(setting: Setting) -> float:
    """The predicted gain of "oracle" for the untrained network that (G) tends to."""
    network, gates, labels, kinds = idealised(setting)
    rare = torch.tensor(([False] * setting.N_F + [True] * setting.N_R) * 2)
    all_analog, placed = (
        predicted_tolerance(each, gates, labels, kinds) for each in (network, replace(network, analog=rare))
    )
    return placed / all_analog


_linear_gain = lru_cache(linear_gain)


def _saturating(log_rho: Array, log_gain: Array) -> tuple[float, float]:
    """The best g in log gain = log sqrt(1 + (g rho)^2), and the root mean square error that it leaves."""

    def error(log_g: float) -> float:
        return float(np.sqrt(np.mean((_log_law(log_g, log_rho) - log_gain) ** 2)))

    best = minimize_scalar(error, bounds=(-10, 10), method="bounded")
    return float(np.exp(best.x)), float(best.fun)


def _log_law(log_g: float, log_rho: Array) -> Array:
    """Logarithm of sqrt(1 + (g rho)^2)."""
    return np.asarray(np.logaddexp(0, 2 * (log_g + log_rho)) / 2)


def _slopes(x: Array, y: Array) -> Array:
    """Least squares slope of every column of y (points, seeds) against x (points,)."""
    centred = x - x.mean()
    slopes: Array = centred @ y / (centred @ centred)
    return slopes


def _centre(name: str, values: Array) -> dict[str, float | Interval]:
    """The geometric mean over seeds and its 95 % interval, under `name` and `name`_interval."""
    return {name: geometric_mean(values), f"{name}_interval": geometric_interval(values)}


def _geometric_mean(values: Array) -> float | None:
    """The geometric mean, or None if a value is 0, infinite or NaN."""
    return _proper(float(np.exp(np.log(values).mean())))


def _proper(value: float) -> float | None:
    """The value, or None for 0, infinity and NaN, which have no logarithm."""
    return value if 0 < value < float("inf") else None
