"""Figures 4 and 5: which experts to keep digital, when the dense modules are.

Programming noise of magnitude c and 8-bit converters on all experts but the digital ones, 12.5 % or 25 % of each
layer, which a placement strategy chooses: MaxNNScore, the baselines of the paper, random ones (new ones for every
draw), and, as a control, the experts with the *smallest* scores. All strategies share their noise draws and text,
and all that need routing statistics take them from the same calibration text. Figure 4 is OLMoE, figure 5
DeepSeekMoE; `balanced_maxnn` has no meaning here, as gated experts have no sign.

Rules, fixed before the first run, at c = 2.5, each for w_max per tile (ours by default) and per column of a tile, and
for 12.5 % and 25 % digital experts:
1. The paper's claim "MaxNNScore recovers a third to more than a half of the loss" holds if the 95 % interval of
   (loss of no digital expert - loss of MaxNN)/(loss increase of no digital expert) is above 1/3, fails if below.
2. Its claim "MaxNNScore is the best" against each baseline holds if the 95 % interval of (loss of MaxNN - loss of
   the baseline) is below 0, fails if it is above.
3. Our control: the same against the smallest scores.
Intervals are over noise draws and blocks of text together.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from realmodels.deploy import deployed
from realmodels.evaluate import block_results
from realmodels.experiments import shared
from realmodels.experiments.shared import Evaluated, Preset
from realmodels.load import DEFAULT_MODEL
from theory.evidence import Finding, Result, mean_interval, ratio_interval, two_way_interval, verdict
from theory.hardware import Granularity, Hardware
from theory.placement import Strategy, place

STRATEGIES: tuple[Strategy, ...] = (
    "maxnn",
    "activation_frequency",
    "activation_weight",
    "router_norm",
    "random",
    "minnn",
)
FRACTIONS = (0.125, 0.25)
RULE_C, RULE_1_RECOVERED = 2.5, 1 / 3


@dataclass(frozen=True)
class Config(Evaluated):
    """One noise draw of one placement at one magnitude; strategy None: all digital, the reference."""

    w_max: Granularity
    strategy: Strategy | None
    digital_fraction: float
    c: float
    seed: int


PRESETS = {
    "quick": Preset((2.5,), 2, 4, 128),
    "default": Preset((1.5, 2.5), 6, 8, 256),
    "full": Preset((0.5, 1.0, 1.5, 2.0, 2.5), 24, 32, 256),
}


def grid(
    preset: str,
    model: str = DEFAULT_MODEL,
    text: str | None = None,
    device: str = "cpu",
    seeds: int | None = None,
) -> list[Config]:
    """The units of work; `seeds` noise draws (at least 2), `text` a UTF-8 file to evaluate on."""
    settings = PRESETS[preset]
    draws = settings.seeds(seeds)
    reference = Config(
        **shared.evaluated(model, text, device, settings.blocks, settings.block_tokens),
        w_max=shared.GRANULARITIES[0],
        strategy=None,
        digital_fraction=1.0,
        c=0.0,
        seed=0,
    )
    placements: list[tuple[Strategy, float]] = [
        ("none", 0.0),
        *((strategy, fraction) for fraction in FRACTIONS for strategy in STRATEGIES),
    ]
    return [
        reference,
        *(
            replace(reference, w_max=w_max, strategy=strategy, digital_fraction=fraction, c=c, seed=seed)
            for w_max in shared.GRANULARITIES
            for strategy, fraction in placements
            for c in settings.magnitudes
            for seed in draws
        ),
    ]


def measure(config: Config) -> dict[str, Any]:
    """Mean loss and accuracy of every block of text."""
    model, tokens = shared.model(config.model, config.device), shared.tokens(config)
    if config.strategy is None:
        losses, hits = block_results(model.network, tokens)
        return {"loss": losses.tolist(), "accuracy": hits.tolist()}
    placement = place(
        shared.scores(config.model, config.device, config.strategy),
        config.digital_fraction,
        config.strategy,
        generator=torch.Generator().manual_seed(config.seed),
    )
    calibration = shared.calibration(config.model, config.device, config.w_max)
    hardware = Hardware(c=config.c, w_max=config.w_max)
    with deployed(model, placement, hardware, calibration, seed=config.seed):
        losses, hits = block_results(model.network, tokens)
    return {"loss": losses.tolist(), "accuracy": hits.tolist()}


def summarise(configs: Sequence[Config], records: Sequence[dict[str, Any]]) -> Result:
    """Curves with 95 % intervals, and the findings by the rules above."""
    reference = next(
        record for config, record in zip(configs, records, strict=True) if config.strategy is None
    )
    tables: dict[tuple[str, Strategy, float, float], list[dict[str, Any]]] = {}
    for config, record in zip(configs, records, strict=True):
        if config.strategy is not None:
            key = config.w_max, config.strategy, config.digital_fraction, config.c
            tables.setdefault(key, []).append(record)

    def change(
        w_max: str, strategy: Strategy, fraction: float, c: float, quantity: str = "loss"
    ) -> NDArray[np.float64]:
        """(draws, blocks) of the change against the digital model."""
        draws = tables[w_max, strategy, fraction, c]
        return np.array([draw[quantity] for draw in draws]) - np.array(reference[quantity])

    curves = []
    for w_max, strategy, fraction, c in tables:
        none = change(w_max, "none", 0.0, c)
        loss, accuracy = (change(w_max, strategy, fraction, c, each) for each in ("loss", "accuracy"))
        curves.append(
            {
                "w_max": w_max,
                "strategy": strategy,
                "digital_fraction": fraction,
                "c": c,
                "draws": len(loss),
                "loss_change": float(loss.mean()),
                "loss_change_interval": two_way_interval(loss),
                "accuracy_change": float(accuracy.mean()),
                "accuracy_change_interval": two_way_interval(accuracy),
                "recovered": float((none - loss).mean() / none.mean()),
                "recovered_interval": ratio_interval(none - loss, none),
            }
        )
    first = configs[0]
    return Result(
        data={
            "digital": {
                quantity: {
                    "mean": float(np.mean(reference[quantity])),
                    "interval": mean_interval(reference[quantity]),
                }
                for quantity in ("loss", "accuracy")
            },
            "curves": curves,
            "model": first.model,
            "text": first.text,
            "blocks": first.blocks,
            "block_tokens": first.block_tokens,
        },
        findings=tuple(
            finding
            for w_max in shared.GRANULARITIES
            for fraction in FRACTIONS
            for finding in _findings(w_max, fraction, change)
        ),
    )


def _findings(w_max: str, fraction: float, change: Callable[..., NDArray[np.float64]]) -> list[Finding]:
    """The rules of the module's docstring, for one granularity and one budget."""
    none = change(w_max, "none", 0.0, RULE_C)
    maxnn = change(w_max, "maxnn", fraction, RULE_C)
    where = f"w_max per {w_max}, {fraction:.1%} of experts digital"
    recovered = ratio_interval(none - maxnn, none)
    findings = [
        Finding(
            claim=f"[paper] MaxNNScore recovers a third to more than a half of the loss; {where}",
            statistic=f"recovered fraction of the loss increase at c = {RULE_C:g}",
            estimate=float((none - maxnn).mean() / none.mean()),
            interval=recovered,
            n=len(maxnn),
            rule="95 % interval above 1/3: holds; below: fails",
            verdict=verdict(recovered, RULE_1_RECOVERED, "above"),
        )
    ]
    for strategy in STRATEGIES[1:]:
        difference = maxnn - change(w_max, strategy, fraction, RULE_C)
        interval = two_way_interval(difference)
        ours = strategy == "minnn"
        other = "its own reverse" if ours else strategy.replace("_", " ")
        findings.append(
            Finding(
                claim=f"[{'ours' if ours else 'paper'}] MaxNNScore is better than {other}; {where}",
                statistic=f"loss of MaxNN - loss of {strategy} at c = {RULE_C:g}, nats per token",
                estimate=float(difference.mean()),
                interval=interval,
                n=len(difference),
                rule="95 % interval below 0: holds; above: fails",
                verdict=verdict(interval, 0.0, "below"),
            )
        )
    return findings
