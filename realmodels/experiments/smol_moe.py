"""The paper's figures 4 and 5 as it drew them, on smol-moe: accuracy on its tasks, by what stays digital.

smol-moe is a pretrained model made into a mixture of experts [realmodels/upcycle]. Its weights are not shipped: it is a
folder that `make smol-moe` writes. All placements share noise draws and questions, so that differences are paired. One
of them has the dense modules alone on analog hardware. Without programming noise, at c = 0, converters alone cost.

Rules: rules/figure-smol-moe.md.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from realmodels.experiments import rig
from realmodels.experiments.figure_4 import BASELINES, FRACTIONS, STRATEGIES
from realmodels.experiments.rig import Noise
from realmodels.tasks import PAPER, TasksAccuracy, evaluate_tasks, named_tasks, over_tasks
from realmodels.upcycle.acceptance import CHANCE
from theory.evidence import (
    Finding,
    Interval,
    Result,
    judged,
    mean_finding,
    mean_interval,
    ratio_interval,
    two_way_interval,
)
from theory.hardware import Hardware
from theory.paper import EXPERTS_THAT_HURT_LESS, RECOVERED, RECOVERED_AT, TABLE_2_C
from theory.placement import Strategy
from theory.separation import evaluation_seeds

SMOL_MOE = "smol-moe"  # the folder that `make smol-moe` writes
RULE_C = RECOVERED_AT.value
RULE_1_RECOVERED = RECOVERED.value[0]  # a third
RULE_4_C = (TABLE_2_C.value, RULE_C)
RULE_4_DIGITAL = FRACTIONS[0]  # the other 87.5 % of experts are within EXPERTS_THAT_HURT_LESS
RULE_5_POINTS = 0.01
KNOWN_TASKS = tuple(CHANCE)  # that the dense model is above chance on


@dataclass(frozen=True)
class Placed:
    """What is digital.

    strategy, digital_fraction: which of the experts of each layer, and how many.
    dense: the dense modules.
    """

    strategy: Strategy
    digital_fraction: float
    dense: bool = True


DIGITAL = Placed("maxnn", 1.0)
NOTHING = Placed("none", 0.0)
DENSE_ANALOG = Placed("maxnn", 1.0, dense=False)
EVERYTHING = Placed("none", 0.0, dense=False)
# What is drawn against c, and what is compared at the rules' c.
CURVES = (NOTHING, DENSE_ANALOG, *(Placed("maxnn", fraction) for fraction in FRACTIONS))
PLACEMENTS = (
    *CURVES,
    *(Placed(strategy, fraction) for fraction in FRACTIONS for strategy in STRATEGIES if strategy != "maxnn"),
)


@dataclass(frozen=True)
class Config:
    """One noise draw of one placement at one magnitude; c = 0 needs only one draw.

    weights: hash of the model's weights.
    dtype: of the model's parameters.
    questions: so many of each task; None for all.
    """

    model: str
    weights: str
    device: str
    dtype: str
    tasks: tuple[str, ...]
    questions: int | None
    noise: Noise
    placed: Placed
    c: float
    seed: int

    @property
    def hardware(self) -> tuple[Hardware, ...]:
        """What is not digital is on."""
        return () if self.placed == DIGITAL else (Hardware(c=self.c, **asdict(self.noise)),)


@dataclass(frozen=True)
class Preset:
    """How much is computed.

    magnitudes: values of c besides those of the rules.
    rule_draws, draws: number of noise draws at the rules' values of c, and at the others.
    questions: of each task; None for all.
    """

    magnitudes: tuple[float, ...]
    rule_draws: int
    draws: int
    questions: int | None
    noises: tuple[Noise, ...] = rig.NOISES


PRESETS = {
    "quick": Preset(
        magnitudes=(),
        rule_draws=2,
        draws=2,
        questions=20,
        noises=rig.PCM[-1:],
    ),
    "default": Preset(
        magnitudes=(),
        rule_draws=6,
        draws=2,
        questions=100,
        noises=rig.NOISES[1:],
    ),
    "full": Preset(
        magnitudes=(0.5, 1.0, 2.0),
        rule_draws=8,
        draws=3,
        questions=500,
    ),
}


def grid(
    preset: str,
    model: str = SMOL_MOE,
    device: str = "cpu",
    seeds: int | None = None,
    first_seed: int | None = None,
    tasks: str | None = None,
) -> list[Config]:
    """The units of work; `seeds` noise draws from `first_seed` on at the magnitudes of the rules.

    tasks: as figure 4 takes them; default: those of the paper's whose questions are at hand.
    """
    settings = PRESETS[preset]
    draws = evaluation_seeds(seeds, settings.rule_draws, first_seed, "noise draws")
    dtype = "bfloat16" if device.startswith("cuda") else "float32"
    reference = Config(
        model=model,
        weights=rig.model(model, device, dtype).weights_hash,
        device=device,
        dtype=dtype,
        tasks=named_tasks((PAPER,) if tasks is None else tasks.split(",")),
        questions=settings.questions,
        noise=settings.noises[0],
        placed=DIGITAL,
        c=0.0,
        seed=0,
    )
    converters = {
        noise.w_max: noise for noise in reversed(settings.noises)
    }  # at c = 0 noises differ by w_max alone
    return [
        reference,
        *(
            replace(reference, noise=noise, placed=placed)
            for noise in converters.values()
            for placed in (NOTHING, EVERYTHING)
        ),
        *(
            replace(reference, noise=noise, placed=placed, c=c, seed=seed)
            for noise in settings.noises
            for c in sorted((*settings.magnitudes, *RULE_4_C))
            for seed in (draws if c in RULE_4_C else draws[: settings.draws])
            for placed in (PLACEMENTS if c == RULE_C else CURVES)  # innermost: they share a chip
        ),
    ]


def measure(config: Config) -> dict[str, Any]:
    """Of each task's questions, whether the answer is right (1 or 0)."""
    rig.require_unchanged(config)
    model = rig.model(config.model, config.device, config.dtype)
    if config.placed == DIGITAL:
        return evaluate_tasks(model, config.tasks, config.questions).as_record()
    with rig.placed(
        config.model,
        config.device,
        config.hardware[0],
        config.placed.digital_fraction,
        config.seed,
        strategy=config.placed.strategy,
        analog_modules=() if config.placed.dense else model.map.dense_kinds,
        dtype=config.dtype,
    ):
        return evaluate_tasks(model, config.tasks, config.questions).as_record()


def summarise(configs: Sequence[Config], records: Sequence[dict[str, Any]]) -> Result:
    """Accuracies with 95 % intervals, and the findings by the rules."""
    first, reference = configs[0], records[0]
    draws: dict[Key, list[dict[str, Any]]] = {}
    for config, record in zip(configs[1:], records[1:], strict=True):
        draws.setdefault((config.noise, config.placed, config.c), []).append(record)
    tables, digital = _tables(draws, reference, first.tasks)
    found = TasksAccuracy.of_record(reference, first.tasks)
    findings = _of_tasks(tables, digital, first.model)
    curves = {"curves": _curves(tables, digital, draws, first.tasks)}
    if set(KNOWN_TASKS) < set(first.tasks):
        of_known = _tables(draws, reference, KNOWN_TASKS)
        findings += _of_tasks(*of_known, first.model, " on three tasks")
        curves["curves on three tasks"] = _curves(*of_known, draws, KNOWN_TASKS)
    return Result(
        data={
            "model": first.model,
            "dtype": first.dtype,
            "digital": {
                "accuracy": found.accuracy,
                "accuracy_interval": found.interval,
                "each": {
                    each.task: {
                        "accuracy": each.accuracy,
                        "interval": each.interval,
                        "metric": each.metric,
                        "questions": len(each.correct),
                    }
                    for each in found.tasks
                },
            },
            **curves,
        },
        findings=tuple(findings),
    )


Table = NDArray[np.float64]  # (draws, questions of all tasks); the mean is that over tasks of the accuracies
Key = tuple[Noise, Placed, float]
Tables = dict[Key, Table]


def _tables(
    draws: Mapping[Key, Sequence[dict[str, Any]]], reference: dict[str, Any], tasks: Sequence[str]
) -> tuple[Tables, Table]:
    """The tables of these tasks, and that of the digital model, which is the same against every draw."""

    def of(records: Sequence[dict[str, Any]]) -> Table:
        return over_tasks(
            [{**each, "tasks": {task: each["tasks"][task] for task in tasks}} for each in records]
        )

    return {key: of(each) for key, each in draws.items()}, of([reference])


def _curves(
    tables: Tables, digital: Table, draws: Mapping[Key, Sequence[dict[str, Any]]], tasks: Sequence[str]
) -> list[dict[str, Any]]:
    """A row for each noise, placement and magnitude; `each` has the accuracies on the tasks."""
    rows = []
    for (noise, placed, c), table in tables.items():
        gain = table - tables[noise, NOTHING, c]
        rows.append(
            {
                **asdict(noise),
                **asdict(placed),
                "c": c,
                "draws": len(table),
                "accuracy": float(table.mean()),
                "accuracy_interval": _interval(table),
                "accuracy_change": float((table - digital).mean()),
                "accuracy_change_interval": _interval(table - digital),
                "gain": float(gain.mean()),
                "gain_interval": _interval(gain),
                "each": {
                    task: float(np.mean([draw["tasks"][task] for draw in draws[noise, placed, c]]))
                    for task in tasks
                },
            }
        )
    return rows


def _of_tasks(tables: Tables, digital: Table, model: str, which: str = "") -> list[Finding]:
    """All findings on some tasks; `which` tells them apart from those on all tasks."""
    findings: list[Finding] = []
    for noise in rig.those_of(tables):

        def at(placed: Placed, c: float = RULE_C, noise: Noise = noise) -> Table:
            return tables[noise, placed, c]

        findings += _findings(f"{model}{which}, {noise}", at, digital)
        if (noise, NOTHING, 0.0) in tables:
            findings.append(
                _converters(f"{model}{which}, w_max per {noise.w_max}", digital - at(NOTHING, 0.0))
            )
    if not which:
        return findings
    return [replace(each, origin="ours", family=each.family + which) for each in findings]


def _interval(table: Table) -> Interval:
    return mean_interval(table[0]) if len(table) == 1 else two_way_interval(table)


def _findings(where: str, at: Callable[..., Table], digital: Table) -> list[Finding]:
    """Rules 1 to 4 and 6, for one noise."""
    none = at(NOTHING)
    cost = digital - none
    lost = round(float(cost.mean()), 12)  # rounding errors alone are no loss
    findings = [
        mean_finding(
            f"noise on all experts costs accuracy; {where}",
            f"accuracy of the digital model - with no digital expert at c = {RULE_C:g}",
            cost,
            origin="ours",
            family="cost of noise",
        )
    ]
    for fraction in FRACTIONS:
        maxnn, budget = at(Placed("maxnn", fraction)), f"{where}, {fraction:.1%} of experts digital"
        findings.append(
            judged(
                claim=f"MaxNNScore recovers {RECOVERED.said} of the accuracy lost; {budget}",
                origin="paper",
                statistic=f"recovered fraction of the accuracy lost at c = {RULE_C:g}",
                estimate=float((maxnn - none).mean()) / lost if lost else 0.0,
                interval=partial(ratio_interval, maxnn - none, cost),
                n=min(none.shape),
                threshold=RULE_1_RECOVERED,
                family="recovers",
            )
        )
        for strategy in STRATEGIES[1:]:
            ours = strategy not in BASELINES
            other = "its own reverse" if ours else strategy.replace("_", " ")
            findings.append(
                mean_finding(
                    f"MaxNNScore is better than {other}; {budget}",
                    f"accuracy with MaxNN - with {strategy} at c = {RULE_C:g}",
                    maxnn - at(Placed(strategy, fraction)),
                    origin="ours" if ours else "paper",
                    family="control" if ours else "against baselines",
                )
            )
    findings += [
        mean_finding(
            f"dense modules on analog hurt more than {EXPERTS_THAT_HURT_LESS.said} of the experts; {where}, c = {c:g}",
            f"accuracy with {1 - RULE_4_DIGITAL:.1%} of experts analog - with all dense modules analog",
            at(Placed("maxnn", RULE_4_DIGITAL), c) - at(DENSE_ANALOG, c),
            origin="paper",
            family="dense against experts",
        )
        for c in RULE_4_C
    ]
    return findings


def _converters(where: str, cost: Table) -> Finding:
    """Rule 5."""
    return mean_finding(
        f"8-bit converters cost the experts less than {100 * RULE_5_POINTS:g} point; {where}",
        "accuracy of the digital model - with all experts analog at c = 0",
        cost[0],
        RULE_5_POINTS,
        "below",
        origin="paper",
        family="converters",
    )
