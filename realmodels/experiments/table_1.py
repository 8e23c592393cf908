"""Table 1: what do converters alone cost, DACs and ADCs without any programming noise (c = 0)?

Three placements are compared: all digital; experts analog; experts and dense modules analog. DAC and ADC have 8, 6 or 4
bits, and w_max is per tile or per column of a tile. kappa and lam are calibrated for each combination: for every layer,
or one of each for the whole model, as the paper's simulator has them [realmodels/calibrate.py].
The published numbers are average accuracies of 8 zero-shot tasks of OLMoE and DeepSeekMoE [theory/paper.py]. Ours are
the next-token loss and top-1 accuracy of our own small models of the same architectures. A heat map shows the loss with
everything analog at 8 bits and w_max per tile, when the kappa and lam found for every layer are multiplied by common
factors. lam is in units of the DAC bound, so that a factor on kappa scales the ADC bound, too.

Rules: rules/table-1.md.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, product
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int

from realmodels.analog import LayerCalibration, Ranges
from realmodels.calibrate import METHODS, Calibration, Method
from realmodels.deploy import deployed
from realmodels.experiments import rig
from realmodels.experiments.rig import Evaluated
from realmodels.load import DEFAULT_MODEL
from theory.errors import InputError
from theory.evidence import Finding, Result, grouped, mean_finding, mean_interval
from theory.hardware import Granularity, Hardware
from theory.paper import CONVERTER_BITS, TABLE_1, Analog
from theory.placement import place

Documents = Float[np.ndarray, " documents"]
Blocks = Float[np.ndarray, " blocks"]
MODELS = (DEFAULT_MODEL, "tiny-deepseek-moe")
QUANTITIES = ("loss", "accuracy")
RULE_BITS = CONVERTER_BITS.value
RULE_1_LOSS, RULE_3_LOSS = 0.01, 0.002  # nats per token
HEAT_MAP_W_MAX: Granularity = "tile"
# What findings on one kappa and lam for the whole model begin with, and how their families end; by method.
PREFIXES: dict[Method, str] = {"layer": "", "model": "one kappa and lambda: "}
FAMILIES: dict[Method, str] = {"layer": "", "model": ", one kappa and lambda"}
HALVES = 4  # least number of blocks of the heat map, so that each half of the documents has an interval


@dataclass(frozen=True)
class Config(Evaluated):
    """Placements under the same converters.

    bits: bits of every DAC and ADC.
    calibration: how kappa and lam are found.
    kappa_factor, lam_factor: multiply the calibrated kappa and lam of every layer.
    """

    part: Literal["table", "heat map"]
    analog: tuple[Analog, ...]
    w_max: Granularity
    bits: int
    calibration: Method
    kappa_factor: float
    lam_factor: float

    @property
    def hardware(self) -> tuple[Hardware, ...]:
        """What is not digital is on."""
        if self.analog == ("nothing",):
            return ()
        return (Hardware(c=0.0, w_max=self.w_max, dac_bits=self.bits, adc_bits=self.bits),)


@dataclass(frozen=True)
class Preset:
    """How much is computed.

    factors: factors on kappa and on lam in the heat map.
    blocks, heat_map_blocks, block_tokens: blocks of the table and of the heat map, predictions in a block.
    """

    bits: tuple[int, ...]
    granularities: tuple[Granularity, ...]
    factors: tuple[float, ...]
    blocks: int
    heat_map_blocks: int
    block_tokens: int


PRESETS = {
    "quick": Preset(
        bits=(8, 4),
        granularities=("tile",),
        factors=(0.5, 1.0, 2.0),
        blocks=4,
        heat_map_blocks=4,
        block_tokens=128,
    ),
    "default": Preset(
        bits=(8, 6, 4),
        granularities=rig.GRANULARITIES,
        factors=(0.25, 0.5, 1.0, 2.0, 4.0),
        blocks=16,
        heat_map_blocks=8,
        block_tokens=256,
    ),
    "full": Preset(
        bits=(8, 6, 4),
        granularities=rig.GRANULARITIES,
        factors=(0.25, 0.5, 1.0, 2.0, 4.0),
        blocks=32,
        heat_map_blocks=16,
        block_tokens=256,
    ),
}


def grid(
    preset: str,
    model: str | None = None,
    text: str | None = None,
    device: str = "cpu",
    calibration: str | None = None,
) -> list[Config]:
    """The units of work; `model` replaces both shipped models, `text` is a UTF-8 file to evaluate on.

    calibration: a UTF-8 file, as `rig.evaluated` takes it.
    """
    settings = PRESETS[preset]
    units = []
    for name in MODELS if model is None else (model,):
        digital = Config(
            **rig.evaluated(
                name, text, device, settings.blocks, settings.block_tokens, calibration=calibration
            ),
            part="table",
            analog=("nothing",),
            w_max=HEAT_MAP_W_MAX,
            bits=RULE_BITS,
            calibration="layer",
            kappa_factor=1.0,
            lam_factor=1.0,
        )
        if digital.blocks < HALVES:
            raise InputError(
                f"the text has {digital.blocks} blocks of {digital.block_tokens} tokens: give at least {HALVES}"
            )
        units += [
            digital,
            *(
                replace(
                    digital, analog=("experts", "everything"), w_max=w_max, bits=bits, calibration=calibration
                )
                for calibration in METHODS
                for w_max in settings.granularities
                for bits in settings.bits
            ),
        ]
        heat_map = replace(digital, part="heat map", blocks=min(settings.heat_map_blocks, digital.blocks))
        units += [
            heat_map,
            *(
                replace(heat_map, analog=("everything",), kappa_factor=kappa, lam_factor=lam)
                for kappa, lam in product(settings.factors, repeat=2)
            ),
        ]
    return units


def measure(config: Config) -> dict[str, Any]:
    """Mean loss and accuracy of every block of text, for every placement."""
    model = rig.model(config.model, config.device)
    record: dict[str, Any] = {}
    for analog in config.analog:
        if analog == "nothing":
            record[analog] = rig.measured(config)
        else:
            found = rig.calibration(
                config.model,
                config.device,
                config.hardware[0],
                config.calibration,
                text=config.calibrated_on,
            )
            placement = place(
                rig.scores(config.model, config.device, "maxnn"),
                0.0,
                analog_modules=model.map.dense_kinds if analog == "everything" else (),
            )
            ranges = scaled(found, config.kappa_factor, config.lam_factor)
            with deployed(model, placement, found.hardware, ranges):
                record[analog] = rig.measured(config)
    return record


def scaled(calibration: Calibration, kappa_factor: float, lam_factor: float) -> Calibration:
    """The calibration with kappa and lam of every layer multiplied by the factors."""

    def each(ranges: LayerCalibration) -> LayerCalibration:
        return replace(ranges, kappa=ranges.kappa * kappa_factor, lam=ranges.lam * lam_factor)

    def layer(ranges: Ranges) -> Ranges:
        return each(ranges) if isinstance(ranges, LayerCalibration) else tuple(map(each, ranges))

    layers = {name: layer(ranges) for name, ranges in calibration.layers.items()}
    return Calibration(layers, calibration.hardware)


def summarise(configs: Sequence[Config], records: Sequence[dict[str, Any]]) -> Result:
    """Table and heat map for each model, and the findings by the rules."""
    models, findings = [], []
    for name in dict.fromkeys(config.model for config in configs):
        units = [unit for unit in zip(configs, records, strict=True) if unit[0].model == name]
        table = [unit for unit in units if unit[0].part == "table"]
        units_of_text = table[0][1]["nothing"]["documents"]
        digital = {name: grouped(table[0][1]["nothing"][name], units_of_text) for name in QUANTITIES}
        cells = {
            (config.calibration, config.w_max, config.bits, analog): {
                quantity: grouped(found[quantity], units_of_text) - digital[quantity]
                for quantity in QUANTITIES
            }
            for config, record in table[1:]
            for analog, found in record.items()
        }
        reference, *others = [unit for unit in units if unit[0].part == "heat map"]
        blocks = {
            (config.kappa_factor, config.lam_factor): np.array(record["everything"]["loss"])
            - np.array(reference[1]["nothing"]["loss"])
            for config, record in others
        }
        labels = np.array(reference[1]["nothing"]["documents"])
        heat_map = {factors: grouped(values, labels) for factors, values in blocks.items()}
        models.append(
            {
                "model": name,
                "documents": len(digital["loss"]),
                "digital": {
                    quantity: {"mean": float(values.mean()), "interval": mean_interval(values)}
                    for quantity, values in digital.items()
                },
                "rows": [
                    {"calibration": calibration, "w_max": w_max, "bits": bits, "analog": analog}
                    | {f"{quantity}_change": float(values.mean()) for quantity, values in changes.items()}
                    | {
                        f"{quantity}_change_interval": mean_interval(values)
                        for quantity, values in changes.items()
                    }
                    for (calibration, w_max, bits, analog), changes in cells.items()
                ],
                "heat_map": [
                    {
                        "kappa_factor": kappa,
                        "lam_factor": lam,
                        "loss_change": float(values.mean()),
                        "loss_change_interval": mean_interval(values),
                        "minus_calibrated": float((values - heat_map[1.0, 1.0]).mean()),
                        "minus_calibrated_interval": mean_interval(values - heat_map[1.0, 1.0]),
                    }
                    for (kappa, lam), values in heat_map.items()
                ],
            }
        )
        losses = {key: changes["loss"] for key, changes in cells.items()}
        findings += [
            *(finding for method in METHODS for finding in _table_findings(name, method, losses)),
            *_method_findings(name, losses),
            _heat_map_finding(name, blocks, labels),
        ]
    first, last = configs[0], configs[-1]
    return Result(
        data={
            "models": models,
            "published": TABLE_1.value,
            "heat_map_bits": RULE_BITS,
            "heat_map_w_max": HEAT_MAP_W_MAX,
            "blocks": first.blocks,
            "heat_map_blocks": last.blocks,
            "block_tokens": first.block_tokens,
            "text": first.text,
        },
        findings=tuple(findings),
    )


Losses = dict[tuple[Method, Granularity, int, str], Documents]


def _table_findings(model: str, method: Method, losses: Losses) -> list[Finding]:
    """Rules 1, 2 and 4, and of the method "model" 5, 6 and 7, from the loss increases against the digital model."""
    findings, start, family = [], PREFIXES[method], FAMILIES[method]
    for w_max in _granularities(losses):
        where = f"{model}, w_max per {w_max}"
        experts = losses[method, w_max, RULE_BITS, "experts"]
        added = losses[method, w_max, RULE_BITS, "everything"] - experts
        findings += [
            mean_finding(
                f"{start}converters on the experts alone cost little; {where}, {RULE_BITS} bits",
                "loss with experts analog - loss all digital, nats per token",
                experts,
                RULE_1_LOSS,
                "below",
                origin="paper",
                family=f"experts alone{family}",
            ),
            mean_finding(
                f"{start}dense modules on analog hardware cost more than the experts; {where}, {RULE_BITS} bits",
                "loss added by the dense modules - loss added by the experts, nats per token",
                added - experts,
                origin="paper",
                family=f"dense against experts{family}",
            ),
        ]
        bits = sorted({key[2] for key in losses})
        for fewer, more in pairwise(bits):
            findings.append(
                mean_finding(
                    f"{start}{fewer} bits cost more than {more}; {where}, everything analog",
                    "loss of the former - loss of the latter, nats per token",
                    losses[method, w_max, fewer, "everything"] - losses[method, w_max, more, "everything"],
                    origin="ours",
                    family=f"fewer bits{family}",
                )
            )
    return findings


def _method_findings(model: str, losses: Losses) -> list[Finding]:
    """Rule 8."""
    return [
        mean_finding(
            "kappa and lambda of every layer cost less than one of each for the whole model;"
            f" {model}, w_max per {w_max}, {RULE_BITS} bits, {analog} analog",
            "loss with one kappa and lambda - loss with those of every layer, nats per token",
            losses["model", w_max, RULE_BITS, analog] - losses["layer", w_max, RULE_BITS, analog],
            origin="ours",
            family="layer against model",
        )
        for w_max in _granularities(losses)
        for analog in ("experts", "everything")
    ]


def _granularities(losses: Losses) -> list[Granularity]:
    return list(dict.fromkeys(key[1] for key in losses))


def _heat_map_finding(
    model: str, losses: dict[tuple[float, float], Blocks], documents: Int[np.ndarray, " blocks"]
) -> Finding:
    """Rule 3. Every other document chooses the cell that the calibrated point is compared with."""
    choosing = np.unique(documents, return_inverse=True)[1] % 2 == 0
    others = [factors for factors in losses if factors != (1.0, 1.0)]
    kappa, lam = min(others, key=lambda factors: float(losses[factors][choosing].mean()))
    difference = (losses[1.0, 1.0] - losses[kappa, lam])[~choosing]
    return mean_finding(
        f"calibration finds the best of the heat map; {model}, w_max per {HEAT_MAP_W_MAX}, {RULE_BITS} bits",
        f"loss of the calibrated point - loss at kappa x {kappa:g}, lam x {lam:g}, the best other cell on the"
        " other half of the documents, nats per token",
        grouped(difference, documents[~choosing]),
        RULE_3_LOSS,
        "below",
        origin="ours",
        family="heat map",
        exploratory=True,
    )
