"""Scores of others: do MaxNNScore and the expected damage lose less than MaxVar, AlphaQ, MSAN and MC?

The four were made for quantisation and pruning [theory.other_scores, realmodels.statistics.activation_norms].
MaxNNScore is compared with them inside each layer, as the paper ranks. The expected damage [(D), docs/theory.md] is
compared across layers. Every placement of a fraction has the same number of digital experts, which are of one size,
and digital dense modules. Scores see calibration text, losses are of evaluation text.

Rules: rules/figure-rivals.md, and rules/figure-rivals-deepseek.md.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from realmodels.compare import as_mask, losses
from realmodels.damage import expected_damage
from realmodels.evaluate import block_results
from realmodels.experiments import rig
from realmodels.experiments.better_score import ACROSS, DAMAGE_CLAIM, RULE_C, RULE_FRACTIONS
from realmodels.experiments.rig import Evaluated
from realmodels.load import DEFAULT_MODEL
from theory.evidence import Finding, Result, grouped, mean_finding, mean_interval, two_way_interval
from theory.hardware import Granularity, Hardware
from theory.other_scores import mc_score
from theory.placement import Strategy, rank

OTHERS = {"maxvar": "MaxVar", "alphaq": "AlphaQ", "msan": "MSAN", "mc": "MC"}  # and their names


@dataclass(frozen=True)
class Own:
    """A score that is compared with those of others: by which form of ranking, and which statement it tests."""

    name: str
    form: str
    statement: str | None


OWN = {"maxnn": Own("MaxNNScore", "", None), "damage": Own("expected damage", ACROSS, DAMAGE_CLAIM)}
LABELS = tuple(score + own.form for key, own in OWN.items() for score in (key, *OTHERS))


@dataclass(frozen=True)
class Config(Evaluated):
    """One w_max, at c = 2.5 with programming noise pcm and 8-bit converters.

    fractions: of digital experts.
    seeds: noise draws on which losses are measured.
    """

    w_max: Granularity
    fractions: tuple[float, ...]
    seeds: tuple[int, ...]

    @property
    def hardware(self) -> tuple[Hardware, ...]:
        """What the analog experts are on."""
        return (Hardware(c=RULE_C, w_max=self.w_max),)


PRESETS = {
    "quick": rig.Preset((RULE_C,), draws=2, blocks=4, block_tokens=64, noises=rig.PCM[:1]),
    "default": rig.Preset((RULE_C,), draws=4, blocks=8, block_tokens=128),
    "full": rig.Preset((RULE_C,), draws=16, blocks=32, block_tokens=256),
}


def grid(
    preset: str,
    model: str = DEFAULT_MODEL,
    text: str | None = None,
    device: str = "cpu",
    seeds: int | None = None,
    first_seed: int | None = None,
) -> list[Config]:
    """The units of work; `seeds` noise draws from `first_seed` on, `text` a UTF-8 file to evaluate on."""
    chosen = PRESETS[preset]
    shared = chosen.evaluated(model, text, device)
    draws = tuple(chosen.seeds(seeds, first_seed))
    return [
        Config(**shared, w_max=noise.w_max, fractions=RULE_FRACTIONS, seeds=draws) for noise in chosen.noises
    ]


def measure(config: Config) -> dict[str, Any]:
    """Loss of every draw and block for every placement that is compared."""
    model, tokens = rig.model(config.model, config.device), rig.tokens(config)
    (hardware,) = config.hardware
    calibration = rig.calibration(config.model, config.device, Hardware(w_max=config.w_max))
    digital, _ = block_results(model.network, tokens)
    ranked = _scores(config, hardware)
    placements = {
        (label, fraction): as_mask(
            rank(ranked[label.removesuffix(ACROSS)], fraction, across_layers=label.endswith(ACROSS)),
            max(model.map.num_experts),
        )
        for fraction in config.fractions
        for label in LABELS
    }
    stacked = torch.stack(list(placements.values()))
    tables = [losses(model, stacked, hardware, calibration, draw, tokens) for draw in config.seeds]
    return {
        "digital": digital.tolist(),
        "documents": rig.documents(config),
        "losses": [
            {"label": label, "fraction": fraction, "loss": table.tolist()}
            for (label, fraction), table in zip(placements, torch.stack(tables, 1), strict=True)
        ],
    }


def _scores(config: Config, hardware: Hardware) -> dict[str, Float[Tensor, "layers experts"]]:
    """Every score, by calibration text; none of them has a noise draw."""
    model = rig.model(config.model, config.device)
    strategies: tuple[Strategy, ...] = (
        "maxnn",
        "maxvar",
        "alphaq",
        "msan",
        "activation_frequency",
        "activation_weight",
    )
    found = {str(name): rig.scores(config.model, config.device, name) for name in strategies}
    found["damage"] = expected_damage(model, model.texts("calibration"), hardware)
    found["mc"] = mc_score(found["activation_frequency"], found["activation_weight"], found["damage"])
    return found


def summarise(configs: Sequence[Config], records: Sequence[dict[str, Any]]) -> Result:
    """What each placement adds to the loss of the digital model; the findings by the rules."""
    rows: list[dict[str, Any]] = []
    findings: list[Finding] = []
    for config, record in zip(configs, records, strict=True):
        tables = {  # each (draws, documents)
            (each["label"], each["fraction"]): grouped(
                np.array(each["loss"]) - np.array(record["digital"]), record["documents"]
            )
            for each in record["losses"]
        }
        rows += [
            {
                "w_max": config.w_max,
                "label": label,
                "fraction": fraction,
                "c": RULE_C,
                "draws": len(table),
                "loss_change": float(table.mean()),
                "loss_change_interval": two_way_interval(table),
            }
            for (label, fraction), table in tables.items()
        ]
        for fraction in config.fractions:
            where = f"{config.model}, w_max per {config.w_max}, {fraction:.1%} of experts digital"
            findings += _findings(where, {label: tables[label, fraction] for label in LABELS})
    first, documents = configs[0], records[0]["documents"]
    return Result(
        data={
            "digital": {
                "mean": float(np.mean(records[0]["digital"])),
                "interval": mean_interval(grouped(records[0]["digital"], documents)),
            },
            "rows": rows,
            "model": first.model,
            "text": first.text,
            "blocks": first.blocks,
            "block_tokens": first.block_tokens,
            "documents": len(set(documents)),
        },
        findings=tuple(findings),
    )


def _findings(where: str, tables: Mapping[str, NDArray[np.float64]]) -> list[Finding]:
    """The rules, for one granularity and budget."""
    return [
        mean_finding(
            f"{own.name}{own.form} loses less than {name}{own.form}; {where}",
            f"loss of {own.name}{own.form} - loss of {name}{own.form} at c = {RULE_C:g}, nats per token",
            tables[key + own.form] - tables[other + own.form],
            direction="below",
            origin="ours",
            family=f"{own.name} against others",
            statement=own.statement,
        )
        for other, name in OTHERS.items()
        for key, own in OWN.items()
    ]
