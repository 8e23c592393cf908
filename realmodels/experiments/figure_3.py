"""Figure 3: which part of the model suffers most from analog hardware, the dense modules or the experts?

One part of the model at a time has programming noise of magnitude c and 8-bit converters; everything else is
digital. The experts with the lowest MaxNNScores go to analog hardware first, as in the paper. All parts, magnitudes and
noises share their noise draws and their text, so that differences are paired.

Rules: rules/figure-3.md.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from realmodels.experiments import rig
from realmodels.experiments.rig import Evaluated, Noise, Preset
from realmodels.load import DEFAULT_MODEL, Model
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
from theory.paper import CONVERTER_BITS, EXPERTS_THAT_HURT_LESS, RECOVERED_AT, TABLE_2_C

DENSE, EVERYTHING = "all dense modules", "everything"  # labels of two parts
RULE_1_EXPERTS = "87.5 % of experts"  # label of a part, within EXPERTS_THAT_HURT_LESS
RULE_1_C = (TABLE_2_C.value, RECOVERED_AT.value)
RULE_3_NATS = 0.01  # per token


@dataclass(frozen=True)
class Part:
    """A part of the model that is put on analog hardware.

    analog_modules: kinds of dense modules.
    analog_experts: fraction of the experts of each layer.
    """

    label: str
    analog_modules: tuple[str, ...]
    analog_experts: float


@dataclass(frozen=True)
class Config(Evaluated):
    """One noise draw of one part at one magnitude; c = 0 needs only one draw.

    part: None for the reference, which is all digital.
    """

    noise: Noise
    part: Part | None
    c: float
    seed: int

    @property
    def hardware(self) -> tuple[Hardware, ...]:
        """What the part is on."""
        return () if self.part is None else (self.on(self.c, self.noise),)


PRESETS = {
    "quick": Preset(
        magnitudes=(2.5,),
        draws=2,
        blocks=4,
        block_tokens=128,
    ),
    "default": Preset(
        magnitudes=(0.75, 1.5, 2.5),
        draws=8,
        blocks=16,
        block_tokens=256,
    ),
    "full": Preset(
        magnitudes=(0.5, 1.0, 1.5, 2.0, 2.5),
        draws=16,
        blocks=32,
        block_tokens=256,
        noises=rig.NOISES,
    ),
}


def parts(model: Model) -> list[Part]:
    """Dense modules by kind and together, experts by fraction, and everything."""
    kinds = model.map.dense_kinds
    labels = {"lm_head": "LM head", "shared_experts": "shared experts", "dense_ffn": "dense FFN"}
    return [
        *(Part(labels.get(kind, kind), (kind,), 0.0) for kind in kinds),
        Part(DENSE, kinds, 0.0),
        *(Part(f"{percent:g} % of experts", (), percent / 100) for percent in (25, 50, 75, 87.5, 100)),
        Part(EVERYTHING, kinds, 1.0),
    ]


def grid(
    preset: str,
    model: str = DEFAULT_MODEL,
    text: str | None = None,
    device: str = "cpu",
    seeds: int | None = None,
    first_seed: int | None = None,
    hardware: Mapping[str, Any] | None = None,
    calibration: str | None = None,
) -> list[Config]:
    """The units of work; `seeds` noise draws from `first_seed` on, `text` a UTF-8 file to evaluate on.

    hardware, calibration: as `rig.evaluated` takes them.
    """
    settings = PRESETS[preset].on(hardware)
    draws = settings.seeds(seeds, first_seed)
    reference = Config(
        **settings.evaluated(model, text, device, calibration=calibration, hardware=hardware),
        noise=settings.noises[0],
        part=None,
        c=0.0,
        seed=0,
    )
    return [
        reference,
        *(
            replace(reference, noise=noise, part=part, c=c, seed=seed)
            for noise in settings.noises
            for c in dict.fromkeys((0.0, *settings.magnitudes))
            for seed in (draws if c > 0 else draws[:1])
            for part in parts(rig.model(model, device))  # innermost: they share a chip
        ),
    ]


def measure(config: Config) -> dict[str, Any]:
    """Mean loss and accuracy of every block of text, and how many parameters are analog."""
    return measure_with(None, config)


def measure_with(deploy: rig.Deployer | None, config: Config) -> dict[str, Any]:
    """`measure`, with another deployment that takes the same arguments as `realmodels.deploy.deployed`."""
    if config.part is None:
        return {**rig.measured(config), "analog_parameters": 0}
    with rig.placed(
        config.model,
        config.device,
        config.hardware[0],
        1 - config.part.analog_experts,
        config.seed,
        analog_modules=config.part.analog_modules,
        calibrated_on=config.calibrated_on,
        deploy=deploy,
    ) as report:
        return {**rig.measured(config), "analog_parameters": report.count("analog")}


def summarise(configs: Sequence[Config], records: Sequence[dict[str, Any]]) -> Result:
    """Curves with 95 % intervals, and the findings by the rules."""
    reference = next(record for config, record in zip(configs, records, strict=True) if config.part is None)
    tables: dict[tuple[Noise, Part, float], list[dict[str, Any]]] = {}
    for config, record in zip(configs, records, strict=True):
        if config.part is not None:
            tables.setdefault((config.noise, config.part, config.c), []).append(record)

    def change(noise: Noise, part: Part, c: float, quantity: str) -> NDArray[np.float64]:
        """(draws, documents) of the change against the digital model."""
        draws = tables[noise, part, c]
        blocks = np.array([draw[quantity] for draw in draws]) - np.array(reference[quantity])
        return grouped(blocks, reference["documents"])

    curves = []
    for (noise, part, c), draws in tables.items():
        millions = draws[0]["analog_parameters"] / 1e6
        row: dict[str, Any] = {
            **asdict(noise),
            "part": part.label,
            "c": c,
            "analog_millions": millions,
            "draws": len(draws),
        }
        for quantity in ("loss", "accuracy"):
            table = change(noise, part, c, quantity)
            row[f"{quantity}_change"] = float(table.mean())
            row[f"{quantity}_change_interval"] = (
                mean_interval(table[0]) if len(table) == 1 else two_way_interval(table)
            )
        curves.append(row)
    analog_parameters = {part: draws[0]["analog_parameters"] for (_, part, _), draws in tables.items()}
    magnitudes = sorted({c for _, _, c in tables})
    first = configs[0]
    findings = [
        finding
        for noise in rig.those_of(tables)
        for finding in _findings(
            f"{first.model}, {noise}", analog_parameters, magnitudes, partial(change, noise)
        )
    ]
    return Result(
        data={
            "digital": {
                quantity: {
                    "mean": float(np.mean(reference[quantity])),
                    "interval": mean_interval(grouped(reference[quantity], reference["documents"])),
                }
                for quantity in ("loss", "accuracy")
            },
            "parts": [asdict(part) for part in analog_parameters],
            "curves": curves,
            "model": first.model,
            "text": first.text,
            "blocks": first.blocks,
            "block_tokens": first.block_tokens,
            "documents": len(set(reference["documents"])),
        },
        findings=rig.judged_on(first.own, findings),
    )


def _findings(
    where: str,
    analog_parameters: Mapping[Part, int],
    magnitudes: Sequence[float],
    change: Callable[[Part, float, str], NDArray[np.float64]],
) -> list[Finding]:
    """The rules, for one noise."""
    by_label = {part.label: part for part in analog_parameters}
    dense, experts, everything = (by_label[label] for label in (DENSE, RULE_1_EXPERTS, EVERYTHING))
    findings = []
    for c in rig.at_rule(magnitudes, *RULE_1_C):
        above, below = change(dense, c, "loss"), change(experts, c, "loss")
        findings.append(
            mean_finding(
                f"dense modules on analog hurt more than {EXPERTS_THAT_HURT_LESS.said} of the experts; {where},"
                f" c = {c:g}",
                "loss increase of all dense modules - of 87.5 % of experts, nats per token",
                above - below,
                origin="paper",
                family="dense against experts",
            )
        )
        above, below = above / analog_parameters[dense], below / analog_parameters[experts]
        findings.append(
            judged(
                claim=f"a dense parameter on analog costs more than an expert's; {where}, c = {c:g}",
                origin="ours",
                statistic="ratio of loss increases per analog parameter, all dense modules / 87.5 % of experts",
                estimate=float(above.mean() / below.mean()),
                interval=partial(ratio_interval, above, below),
                n=min(above.shape),
                threshold=1.0,
                family="per parameter",
            )
        )
    findings.append(
        mean_finding(
            f"calibrated {CONVERTER_BITS.value}-bit converters alone cost less than {RULE_3_NATS} nats per token;"
            f" {where}",
            "loss increase with everything analog at c = 0, nats per token",
            change(everything, 0.0, "loss")[0],
            RULE_3_NATS,
            "below",
            origin="ours",
            family="converters",
        )
    )
    return findings
