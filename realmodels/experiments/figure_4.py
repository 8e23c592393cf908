"""Figures 4 and 5: which experts should stay digital, when the dense modules do?

A placement strategy chooses 12.5 % or 25 % of the experts of each layer to be digital; all other experts have
programming noise of magnitude c and 8-bit converters. Strategies are MaxNNScore, the paper's baselines, random choice
(new for every draw), and, as a control, the *smallest* scores. All strategies share noise draws and text, and take
routing statistics from the same calibration text. Figure 4 is OLMoE, figure 5 DeepSeekMoE. `balanced_maxnn` has no
meaning here, as gated experts have no sign.

With tasks [realmodels.tasks], zero-shot accuracy is measured, too: the plain mean over tasks, of every unit on the same
questions.

Rules: rules/figure-4.md, rules/figure-5.md, and rules/figure-4-smol-moe.md.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from realmodels.experiments import rig
from realmodels.experiments.rig import Evaluated, Noise, Preset
from realmodels.load import DEFAULT_MODEL
from realmodels.tasks import TasksAccuracy, evaluate_tasks, named_tasks, over_tasks
from theory.evidence import (
    Finding,
    Result,
    grouped,
    judged,
    mean_finding,
    mean_interval,
    ratio_interval,
    two_way_interval,
)
from theory.hardware import Hardware
from theory.paper import DIGITAL_EXPERTS, RECOVERED, RECOVERED_AT
from theory.placement import Strategy

STRATEGIES: tuple[Strategy, ...] = (
    "maxnn",
    "activation_frequency",
    "activation_weight",
    "router_norm",
    "random",
    "minnn",
)
FRACTIONS = DIGITAL_EXPERTS.value
BASELINES = STRATEGIES[1:-1]
RULE_C = RECOVERED_AT.value
RULE_1_RECOVERED = RECOVERED.value[0]  # a third
RULE_4_FRACTION = DIGITAL_EXPERTS.value[0]


# The records of all draws by noise, strategy, digital fraction and c.
Tables = dict[tuple[Noise, Strategy, float, float], list[dict[str, Any]]]


@dataclass(frozen=True)
class Config(Evaluated):
    """One noise draw of one placement at one magnitude.

    strategy: None for the reference, which is all digital.
    questions: the first so many of each task; None for all.
    """

    noise: Noise
    strategy: Strategy | None
    digital_fraction: float
    c: float
    seed: int
    tasks: tuple[str, ...]
    questions: int | None

    @property
    def hardware(self) -> tuple[Hardware, ...]:
        """What the analog experts are on."""
        return () if self.strategy is None else (self.on(self.c, self.noise),)


PRESETS = {
    "quick": Preset(
        magnitudes=(2.5,),
        draws=2,
        blocks=4,
        block_tokens=128,
    ),
    "default": Preset(
        magnitudes=(1.5, 2.5),
        draws=6,
        blocks=8,
        block_tokens=256,
    ),
    "full": Preset(
        magnitudes=(0.5, 1.0, 1.5, 2.0, 2.5),
        draws=64,
        blocks=256,
        block_tokens=256,
        noises=rig.NOISES,
    ),
}
# A full run on a model of hundreds of millions of parameters.
LARGE = replace(PRESETS["full"], magnitudes=(1.5, 2.5), draws=16, blocks=32)
QUESTIONS = {"quick": 40, "default": 200, "full": None}  # so many of each task


def grid(
    preset: str,
    model: str = DEFAULT_MODEL,
    text: str | None = None,
    device: str = "cpu",
    seeds: int | None = None,
    first_seed: int | None = None,
    tasks: str | None = None,
    hardware: Mapping[str, Any] | None = None,
    calibration: str | None = None,
    large: bool = False,
) -> list[Config]:
    """The units of work; `seeds` noise draws from `first_seed` on, `text` a UTF-8 file to evaluate on.

    tasks: names with commas between them [realmodels.tasks.named_tasks].
    hardware, calibration: as `rig.evaluated` takes them.
    large: the preset full is LARGE.
    """
    settings = (LARGE if large and preset == "full" else PRESETS[preset]).on(hardware)
    named = () if tasks is None else named_tasks(tasks.split(","))
    draws = settings.seeds(seeds, first_seed)
    reference = Config(
        **settings.evaluated(model, text, device, calibration=calibration, hardware=hardware),
        noise=settings.noises[0],
        strategy=None,
        digital_fraction=1.0,
        c=0.0,
        seed=0,
        tasks=named,
        questions=QUESTIONS[preset] if named else None,
    )
    placements: list[tuple[Strategy, float]] = [
        ("none", 0.0),
        *((strategy, fraction) for fraction in FRACTIONS for strategy in STRATEGIES),
    ]
    return [
        reference,
        *(
            replace(reference, noise=noise, strategy=strategy, digital_fraction=fraction, c=c, seed=seed)
            for noise in settings.noises
            for c in settings.magnitudes
            for seed in draws
            for strategy, fraction in placements  # innermost: they share a chip
        ),
    ]


def measure(config: Config) -> dict[str, Any]:
    """Mean loss and accuracy of every block of text; of each task's questions, whether the answer is right (1 or 0)."""
    if config.strategy is None:
        return _results(config)
    with rig.placed(
        config.model,
        config.device,
        config.hardware[0],
        config.digital_fraction,
        config.seed,
        strategy=config.strategy,
        calibrated_on=config.calibrated_on,
    ):
        return _results(config)


def _results(config: Config) -> dict[str, Any]:
    """What `measure` returns, of the model as it is now."""
    found = rig.measured(config)
    if config.tasks:
        model = rig.model(config.model, config.device)
        found |= evaluate_tasks(model, config.tasks, config.questions).as_record()
    return found


def summarise(configs: Sequence[Config], records: Sequence[dict[str, Any]]) -> Result:
    """Curves with 95 % intervals, and the findings by the rules."""
    first = configs[0]
    reference = next(
        record for config, record in zip(configs, records, strict=True) if config.strategy is None
    )
    tables: Tables = {}
    for config, record in zip(configs, records, strict=True):
        if config.strategy is not None:
            key = config.noise, config.strategy, config.digital_fraction, config.c
            tables.setdefault(key, []).append(record)

    def change(
        noise: Noise, strategy: Strategy, fraction: float, c: float, quantity: str = "loss"
    ) -> NDArray[np.float64]:
        """(draws, documents) of the change against the digital model."""
        draws = tables[noise, strategy, fraction, c]
        blocks = np.array([draw[quantity] for draw in draws]) - np.array(reference[quantity])
        return grouped(blocks, reference["documents"])

    curves = []
    for noise, strategy, fraction, c in tables:
        none = change(noise, "none", 0.0, c)
        loss, accuracy = (change(noise, strategy, fraction, c, each) for each in ("loss", "accuracy"))
        curves.append(
            {
                **asdict(noise),
                "strategy": strategy,
                "digital_fraction": fraction,
                "c": c,
                "draws": len(loss),
                "loss_change": float(loss.mean()),
                "loss_change_interval": two_way_interval(loss),
                "accuracy_change": float(accuracy.mean()),
                "accuracy_change_interval": two_way_interval(accuracy),
                "recovered": _ratio(none - loss, none),
                "recovered_interval": ratio_interval(none - loss, none),
                **(_curve_on_tasks(tables, noise, strategy, fraction, c) if first.tasks else {}),
            }
        )
    noises, (c,) = rig.those_of(tables), rig.at_rule({key[-1] for key in tables}, RULE_C)
    findings = [
        finding
        for noise in noises
        for fraction in FRACTIONS
        for finding in _findings(f"{first.model}, {noise}", fraction, c, partial(change, noise))
    ]
    digital: dict[str, Any] = {
        quantity: {
            "mean": float(np.mean(reference[quantity])),
            "interval": mean_interval(grouped(reference[quantity], reference["documents"])),
        }
        for quantity in ("loss", "accuracy")
    }
    if first.tasks:
        found = TasksAccuracy.of_record(reference, first.tasks)
        digital["tasks"] = {
            "mean": found.accuracy,
            "interval": found.interval,
            "each": {
                each.task: {"mean": each.accuracy, "questions": len(each.correct)} for each in found.tasks
            },
        }
        for noise in noises:
            findings += _findings_on_tasks(tables, first.model, noise, c, reference)
    return Result(
        data={
            "digital": digital,
            "curves": curves,
            "model": first.model,
            "text": first.text,
            "blocks": first.blocks,
            "block_tokens": first.block_tokens,
            "documents": len(set(reference["documents"])),
        },
        findings=rig.judged_on(first.own, findings),
    )


def _ratio(part: NDArray[np.float64], whole: NDArray[np.float64]) -> float:
    """Ratio of the means; 0 where nothing is lost, as on hardware that does not err."""
    return float(part.mean() / whole.mean()) if whole.mean() else 0.0


def _findings(
    setting: str, fraction: float, c: float, change: Callable[..., NDArray[np.float64]]
) -> list[Finding]:
    """Rules 1 to 3, for one noise, budget and magnitude."""
    none, maxnn = change("none", 0.0, c), change("maxnn", fraction, c)
    where = f"{setting}, {fraction:.1%} of experts digital"
    findings = [
        judged(
            claim=f"MaxNNScore recovers {RECOVERED.said} of the loss; {where}",
            origin="paper",
            statistic=f"recovered fraction of the loss increase at c = {c:g}",
            estimate=_ratio(none - maxnn, none),
            interval=partial(ratio_interval, none - maxnn, none),
            n=min(maxnn.shape),
            threshold=RULE_1_RECOVERED,
            family="recovers",
        )
    ]
    for strategy in STRATEGIES[1:]:
        ours = strategy == "minnn"
        other = "its own reverse" if ours else strategy.replace("_", " ")
        findings.append(
            mean_finding(
                f"MaxNNScore is better than {other}; {where}",
                f"loss of MaxNN - loss of {strategy} at c = {c:g}, nats per token",
                maxnn - change(strategy, fraction, c),
                direction="below",
                origin="ours" if ours else "paper",
                family="control" if ours else "against baselines",
            )
        )
    return findings


def _curve_on_tasks(
    tables: Tables, noise: Noise, strategy: Strategy, fraction: float, c: float
) -> dict[str, Any]:
    """Accuracy on the tasks, and accuracy minus that of MaxNN with as many digital experts, if there are any."""
    draws = tables[noise, strategy, fraction, c]
    accuracy = over_tasks(draws)
    found: dict[str, Any] = {
        "tasks_accuracy": float(accuracy.mean()),
        "tasks_accuracy_interval": two_way_interval(accuracy),
        "tasks_minus_maxnn": None,
        "tasks_minus_maxnn_interval": None,
    }
    if strategy != "none":
        difference = accuracy - over_tasks(tables[noise, "maxnn", fraction, c])
        found["tasks_minus_maxnn"] = float(difference.mean())
        found["tasks_minus_maxnn_interval"] = two_way_interval(difference)
    for task in draws[0]["tasks"]:
        found[f"{task}_accuracy"] = float(np.mean([draw["tasks"][task] for draw in draws]))
    return found


def _findings_on_tasks(
    tables: Tables, model: str, noise: Noise, c: float, reference: dict[str, Any]
) -> list[Finding]:
    """Rules 4 and 5, for one noise and magnitude."""
    none = over_tasks(tables[noise, "none", 0.0, c])
    gain = over_tasks(tables[noise, "maxnn", RULE_4_FRACTION, c]) - none
    cost = over_tasks([reference]) - none  # the same digital model against every draw
    lost = round(float(cost.mean()), 12)  # rounding errors alone are no loss
    findings = [
        judged(
            claim="MaxNNScore recovers more than a third of the accuracy lost on the tasks;"
            f" {model}, {noise}, {RULE_4_FRACTION:.1%} of experts digital",
            origin="paper",
            statistic=f"recovered fraction of the accuracy lost at c = {c:g}",
            estimate=float(gain.mean()) / lost if lost else 0.0,
            interval=partial(ratio_interval, gain, cost),
            n=min(none.shape),
            threshold=RULE_1_RECOVERED,
            family="recovers on tasks",
        )
    ]
    for fraction in FRACTIONS:
        maxnn = over_tasks(tables[noise, "maxnn", fraction, c])
        findings += [
            mean_finding(
                f"MaxNNScore is better than {strategy.replace('_', ' ')} on the tasks;"
                f" {model}, {noise}, {fraction:.1%} of experts digital",
                f"accuracy with MaxNN - with {strategy} at c = {c:g}",
                maxnn - over_tasks(tables[noise, strategy, fraction, c]),
                origin="paper",
                family="against baselines on tasks",
            )
            for strategy in BASELINES
        ]
    return findings
