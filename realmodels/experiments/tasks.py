"""What does noise cost on a multiple-choice task, measured as the paper does: zero-shot, through lm-eval?

The task is `continuation` [realmodels/tasks.py], which needs no network: which of four continuations of a passage of
held-out text is the real one? Chance is 25 %. Dense modules are digital. Of each layer's experts 12.5 % or 25 % are
digital by MaxNNScore, or 25 % at random (new ones for every draw); all others are analog, with w_max per tile. All
placements share their noise draws and their questions, so that differences are paired.

Rules, fixed before the first run, all but the first at c = 2.5:
1. Ours, "the task measures something": the digital model is better than chance if the 95 % interval of its
   accuracy is above 25 %; fails if it is below.
2. Ours, "there is something to recover": noise on all experts costs accuracy if the interval of (accuracy of the
   digital model - accuracy with no digital expert) is above 0; fails if it is below.
3. The paper's claim that MaxNNScore recovers accuracy holds if the interval of (accuracy with MaxNN - accuracy with
   no digital expert) is above 0, fails if it is below; for 12.5 % and 25 % digital experts each.
4. The paper's claim that MaxNNScore recovers a third to more than a half of the loss: the same for the ratio of rule
   3's difference to rule 2's, and 1/3.
5. The paper's claim that MaxNNScore is better than random choice: the interval of (accuracy with MaxNN - accuracy with
   random experts), 25 % each, above 0 holds, below fails.
Intervals are over noise draws and questions together, rule 1's over questions.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from realmodels.experiments import rig
from realmodels.load import DEFAULT_MODEL
from realmodels.tasks import CHOICES, CONTINUATION, evaluate_tasks
from realmodels.text import held_out, text_hash
from theory.evidence import (
    Result,
    judged,
    mean_finding,
    mean_interval,
    ratio_interval,
    seed_count,
    two_way_interval,
)
from theory.hardware import Granularity, Hardware
from theory.paper import DIGITAL_EXPERTS, RECOVERED, RECOVERED_AT
from theory.placement import Strategy

RANDOM_FRACTION = DIGITAL_EXPERTS.value[1]
PLACEMENTS: tuple[tuple[Strategy, float], ...] = (
    ("none", 0.0),
    *(("maxnn", fraction) for fraction in DIGITAL_EXPERTS.value),
    ("random", RANDOM_FRACTION),
)
W_MAX: Granularity = "tile"
RULE_C = RECOVERED_AT.value
RULE_4_RECOVERED = RECOVERED.value[0]  # a third
CHANCE = 1 / CHOICES


@dataclass(frozen=True)
class Config:
    """One noise draw of one placement at one magnitude.

    weights, text_hash: hashes of the model's weights and of the text.
    questions: the first so many; None for all.
    strategy: None for the reference, which is all digital.
    """

    model: str
    weights: str
    text_hash: str
    device: str
    questions: int | None
    strategy: Strategy | None
    digital_fraction: float
    c: float
    seed: int


@dataclass(frozen=True)
class Preset:
    """How much is computed: values of c, number of noise draws, number of questions (None for all)."""

    magnitudes: tuple[float, ...]
    draws: int
    questions: int | None


PRESETS = {
    "quick": Preset(
        magnitudes=(2.5,),
        draws=2,
        questions=40,
    ),
    "default": Preset(
        magnitudes=(1.5, 2.5),
        draws=4,
        questions=200,
    ),
    "full": Preset(
        magnitudes=(1.5, 2.5),
        draws=8,
        questions=None,
    ),
}


def grid(
    preset: str, model: str = DEFAULT_MODEL, device: str = "cpu", seeds: int | None = None
) -> list[Config]:
    """The units of work; `seeds` noise draws (at least 2)."""
    settings = PRESETS[preset]
    draws = seed_count(seeds, settings.draws, "noise draws")
    reference = Config(
        model=model,
        weights=rig.model(model, device).weights_hash,
        text_hash=text_hash(held_out("evaluation")),
        device=device,
        questions=settings.questions,
        strategy=None,
        digital_fraction=1.0,
        c=0.0,
        seed=0,
    )
    return [
        reference,
        *(
            replace(reference, strategy=strategy, digital_fraction=fraction, c=c, seed=seed)
            for strategy, fraction in PLACEMENTS
            for c in settings.magnitudes
            for seed in range(draws)
        ),
    ]


def measure(config: Config) -> dict[str, Any]:
    """1 for each question where the model's choice is right, 0 where it is wrong."""
    model = rig.model(config.model, config.device)
    if config.strategy is None:
        found = evaluate_tasks(model, (CONTINUATION,), config.questions)
    else:
        with rig.placed(
            config.model,
            config.device,
            Hardware(c=config.c, w_max=W_MAX),
            config.digital_fraction,
            config.seed,
            strategy=config.strategy,
        ):
            found = evaluate_tasks(model, (CONTINUATION,), config.questions)
    return {"correct": [int(each) for each in found[CONTINUATION].correct]}


def summarise(configs: Sequence[Config], records: Sequence[dict[str, Any]]) -> Result:
    """Accuracies with 95 % intervals, and the findings by the rules above."""
    draws: dict[tuple[Strategy, float, float], list[list[int]]] = {}
    for config, record in zip(configs, records, strict=True):
        if config.strategy is None:
            digital = np.array(record["correct"], dtype=float)
        else:
            draws.setdefault((config.strategy, config.digital_fraction, config.c), []).append(
                record["correct"]
            )
    tables = {key: np.array(each, dtype=float) for key, each in draws.items()}  # (draws, questions)
    curves = []
    for (strategy, fraction, c), correct in tables.items():
        none = tables["none", 0.0, c]
        curves.append(
            {
                "strategy": strategy,
                "digital_fraction": fraction,
                "c": c,
                "draws": len(correct),
                "accuracy": float(correct.mean()),
                "accuracy_interval": two_way_interval(correct),
                "accuracy_change": float((correct - digital).mean()),
                "accuracy_change_interval": two_way_interval(correct - digital),
                "gain": float((correct - none).mean()),
                "gain_interval": two_way_interval(correct - none),
            }
        )

    none = tables["none", 0.0, RULE_C]
    cost = digital - none
    where = f"at c = {RULE_C:g}"
    findings = [
        mean_finding(
            "the digital model tells the real continuation from others better than chance",
            "accuracy of the digital model",
            digital,
            CHANCE,
            origin="ours",
        ),
        mean_finding(
            "noise on all experts costs accuracy",
            f"accuracy of the digital model - with no digital expert {where}",
            cost,
            origin="ours",
        ),
    ]
    for fraction in DIGITAL_EXPERTS.value:
        gain = tables["maxnn", fraction, RULE_C] - none
        findings += [
            mean_finding(
                f"MaxNNScore recovers accuracy; {fraction:.1%} of experts digital",
                f"accuracy with MaxNN - with no digital expert {where}",
                gain,
                origin="paper",
            ),
            judged(
                claim=f"MaxNNScore recovers {RECOVERED.said} of the loss of accuracy; {fraction:.1%} of"
                " experts digital",
                origin="paper",
                statistic=f"recovered fraction of the loss of accuracy {where}",
                estimate=float(gain.mean() / cost.mean()) if cost.mean() else 0.0,
                interval=ratio_interval(gain, cost),
                n=len(none),
                threshold=RULE_4_RECOVERED,
            ),
        ]
    findings.append(
        mean_finding(
            f"MaxNNScore is better than random choice; {RANDOM_FRACTION:.1%} of experts digital",
            f"accuracy with MaxNN - with random experts {where}",
            tables["maxnn", RANDOM_FRACTION, RULE_C] - tables["random", RANDOM_FRACTION, RULE_C],
            origin="paper",
        )
    )
    return Result(
        data={
            "digital": {"accuracy": float(digital.mean()), "accuracy_interval": mean_interval(digital)},
            "curves": curves,
            "model": configs[0].model,
            "task": CONTINUATION,
            "questions": len(digital),
            "chance": CHANCE,
            "w_max": W_MAX,
        },
        findings=tuple(findings),
    )
