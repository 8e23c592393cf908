"""What does noise cost on a multiple-choice task, measured as the paper does: zero-shot, through lm-eval?

The task is `continuation` [realmodels/tasks.py], which needs no network: which of four continuations of a passage of
held-out text is the real one? Chance is 25 %. Dense modules are digital. Of each layer's experts 12.5 % or 25 % are
digital by MaxNNScore, or 25 % at random (new ones for every draw); all others are analog. All placements share their
noise draws and their questions, so that differences are paired.

Rules: rules/figure-tasks.md.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from realmodels.experiments import rig
from realmodels.experiments.rig import Noise
from realmodels.load import DEFAULT_MODEL
from realmodels.tasks import CHOICES, CONTINUATION, evaluate_tasks
from realmodels.text import held_out, text_hash
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
from theory.separation import evaluation_seeds

RANDOM_FRACTION = DIGITAL_EXPERTS.value[1]
PLACEMENTS: tuple[tuple[Strategy, float], ...] = (
    ("none", 0.0),
    *(("maxnn", fraction) for fraction in DIGITAL_EXPERTS.value),
    ("random", RANDOM_FRACTION),
)
RULE_C = RECOVERED_AT.value
RULE_4_RECOVERED = RECOVERED.value[0]  # a third
CHANCE = 1 / CHOICES

# (draws, documents) of answers by noise, strategy, digital fraction and c.
Tables = dict[tuple[Noise, Strategy, float, float], NDArray[np.float64]]


@dataclass(frozen=True)
class Config:
    """One noise draw of one placement at one magnitude.

    weights, text_hash: hashes of the model's weights and of the text.
    questions: so many of them; None for all.
    strategy: None for the reference, which is all digital.
    """

    model: str
    weights: str
    text_hash: str
    device: str
    questions: int | None
    noise: Noise
    strategy: Strategy | None
    digital_fraction: float
    c: float
    seed: int

    @property
    def hardware(self) -> tuple[Hardware, ...]:
        """What the analog experts are on."""
        return () if self.strategy is None else (Hardware(c=self.c, **asdict(self.noise)),)


@dataclass(frozen=True)
class Preset:
    """How much is computed: values of c, number of noise draws, of questions (None for all), programming noises."""

    magnitudes: tuple[float, ...]
    draws: int
    questions: int | None
    noises: tuple[Noise, ...] = rig.PCM[:1]


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
        magnitudes=(2.5,),  # that of the rules alone: a unit takes two minutes of a core
        draws=8,
        questions=None,
        noises=rig.NOISES,
    ),
}


def grid(
    preset: str,
    model: str = DEFAULT_MODEL,
    device: str = "cpu",
    seeds: int | None = None,
    first_seed: int | None = None,
) -> list[Config]:
    """The units of work; `seeds` noise draws from `first_seed` on."""
    settings = PRESETS[preset]
    draws = evaluation_seeds(seeds, settings.draws, first_seed, "noise draws")
    reference = Config(
        model=model,
        weights=rig.model(model, device).weights_hash,
        text_hash=text_hash(held_out("evaluation")),
        device=device,
        questions=settings.questions,
        noise=settings.noises[0],
        strategy=None,
        digital_fraction=1.0,
        c=0.0,
        seed=0,
    )
    return [
        reference,
        *(
            replace(reference, noise=noise, strategy=strategy, digital_fraction=fraction, c=c, seed=seed)
            for noise in settings.noises
            for c in settings.magnitudes
            for seed in draws
            for strategy, fraction in PLACEMENTS  # innermost: they share a chip
        ),
    ]


def measure(config: Config) -> dict[str, Any]:
    """1 for each question where the model's choice is right, 0 where it is wrong; and the question's document."""
    rig.require_unchanged(config)
    model = rig.model(config.model, config.device)
    if config.strategy is None:
        found = evaluate_tasks(model, (CONTINUATION,), config.questions)
    else:
        with rig.placed(
            config.model,
            config.device,
            config.hardware[0],
            config.digital_fraction,
            config.seed,
            strategy=config.strategy,
        ):
            found = evaluate_tasks(model, (CONTINUATION,), config.questions)
    answers = found[CONTINUATION]
    return {"correct": [int(each) for each in answers.correct], "documents": list(answers.documents)}


def summarise(configs: Sequence[Config], records: Sequence[dict[str, Any]]) -> Result:
    """Accuracies with 95 % intervals, and the findings by the rules."""
    documents = records[0]["documents"]
    draws: dict[tuple[Noise, Strategy, float, float], list[list[int]]] = {}
    for config, record in zip(configs, records, strict=True):
        if config.strategy is None:
            digital = grouped(record["correct"], documents)
        else:
            key = config.noise, config.strategy, config.digital_fraction, config.c
            draws.setdefault(key, []).append(record["correct"])
    tables = {key: grouped(each, documents) for key, each in draws.items()}
    curves = []
    for (noise, strategy, fraction, c), correct in tables.items():
        none = tables[noise, "none", 0.0, c]
        curves.append(
            {
                **asdict(noise),
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
    model = configs[0].model
    task = mean_finding(
        f"the digital model tells the real continuation from others better than chance; {model}",
        "accuracy of the digital model",
        digital,
        CHANCE,
        origin="ours",
        family="task",
    )
    findings = [
        finding for noise in rig.those_of(tables) for finding in _findings(model, noise, tables, digital)
    ]
    return Result(
        data={
            "digital": {"accuracy": float(digital.mean()), "accuracy_interval": mean_interval(digital)},
            "curves": curves,
            "model": model,
            "task": CONTINUATION,
            "questions": len(documents),
            "documents": len(digital),
            "chance": CHANCE,
        },
        findings=(task, *findings),
    )


def _findings(model: str, noise: Noise, tables: Tables, digital: NDArray[np.float64]) -> list[Finding]:
    """Rules 2 to 5, for one noise."""
    none, setting, where = tables[noise, "none", 0.0, RULE_C], f"{model}, {noise}", f"at c = {RULE_C:g}"
    cost = digital - none
    findings = [
        mean_finding(
            f"noise on all experts costs accuracy; {setting}",
            f"accuracy of the digital model - with no digital expert {where}",
            cost,
            origin="ours",
            family="cost of noise",
        ),
    ]
    for fraction in DIGITAL_EXPERTS.value:
        gain = tables[noise, "maxnn", fraction, RULE_C] - none
        findings += [
            mean_finding(
                f"MaxNNScore recovers accuracy; {setting}, {fraction:.1%} of experts digital",
                f"accuracy with MaxNN - with no digital expert {where}",
                gain,
                origin="paper",
                family="recovers accuracy",
            ),
            judged(
                claim=f"MaxNNScore recovers {RECOVERED.said} of the loss of accuracy; {setting}, {fraction:.1%} of"
                " experts digital",
                origin="paper",
                statistic=f"recovered fraction of the loss of accuracy {where}",
                estimate=float(gain.mean() / cost.mean()) if cost.mean() else 0.0,
                interval=partial(ratio_interval, gain, cost),
                n=min(none.shape),
                threshold=RULE_4_RECOVERED,
                family="recovers a third",
            ),
        ]
    findings.append(
        mean_finding(
            f"MaxNNScore is better than random choice; {setting}, {RANDOM_FRACTION:.1%} of experts digital",
            f"accuracy with MaxNN - with random experts {where}",
            tables[noise, "maxnn", RANDOM_FRACTION, RULE_C]
            - tables[noise, "random", RANDOM_FRACTION, RULE_C],
            origin="paper",
            family="against random choice",
        )
    )
    return findings
