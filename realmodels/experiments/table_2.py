"""Table 2: how do throughput, energy and quality change from all analog to all digital?

Costs come from the model in `realmodels/cost.py`, component by component. Measured here is the loss of a model of ours
under the same placements at c = 1.5. All placements share their noise draws and their text, so that differences are
paired. Costs are those of OLMoE with even loads, which tiny-olmoe stands for and the paper's table is of. Any other
model has costs of its own shape, of its placements, and of the loads of its experts on calibration text.

Rules: rules/table-2.md.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from realmodels.cost import DEEPSEEK_MOE, NOT_MODELLED, OLMOE, Machine, Shape, cost
from realmodels.experiments import rig
from realmodels.experiments.rig import Evaluated, Noise, Preset
from realmodels.load import DEFAULT_MODEL
from theory.evidence import (
    Finding,
    Result,
    certain,
    grouped,
    judged_inside,
    mean_finding,
    mean_interval,
    two_way_interval,
)
from theory.hardware import Hardware
from theory.paper import DIGITAL_EXPERTS, TABLE_2, TABLE_2_BATCH, TABLE_2_C, PlacementRow
from theory.placement import Choice, Placement, place

C = TABLE_2_C.value
TOLERANCE = 0.03  # largest relative deviation from a published number
BATCH = TABLE_2_BATCH.value
FAMILY = "cost model"  # of the findings on costs
BATCHES = (1, 8, 32, 128, 512)
DIGITAL_FRACTIONS = tuple(step / 16 for step in range(17))


@dataclass(frozen=True)
class Row:
    """A placement of the table; published: its tokens/s, tokens/(W s) and accuracy in %, None if it is ours."""

    label: str
    dense_digital: bool
    digital_experts: float
    published: tuple[float, float, float] | None


def _published(row: PlacementRow) -> Row:
    return Row(
        label=row.placement,
        dense_digital=row.dense_digital,
        digital_experts=row.digital_experts,
        published=(row.tokens_per_second, row.tokens_per_joule, row.accuracy),
    )


OURS = Row(
    label="dense + 12.5 % of experts digital",
    dense_digital=True,
    digital_experts=DIGITAL_EXPERTS.value[0],
    published=None,
)
ROWS = tuple(
    sorted(
        (OURS, *map(_published, TABLE_2.value)),
        key=lambda row: (row.dense_digital, row.digital_experts),
    )
)
DIGITAL = ROWS[-1]


@dataclass(frozen=True)
class Config(Evaluated):
    """One noise draw of one row. The row that is all digital has no noise: one draw serves all."""

    noise: Noise
    row: Row
    c: float
    seed: int

    @property
    def hardware(self) -> tuple[Hardware, ...]:
        """What is not digital is on."""
        return () if self.row == DIGITAL else (self.on(self.c, self.noise),)


PRESETS = {
    "quick": Preset(
        magnitudes=(C,),
        draws=2,
        blocks=4,
        block_tokens=128,
    ),
    "default": Preset(
        magnitudes=(C,),
        draws=8,
        blocks=16,
        block_tokens=256,
    ),
    "full": Preset(
        magnitudes=(C,),
        draws=32,
        blocks=32,
        block_tokens=256,
        noises=rig.NOISES,
    ),
}


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
    digital = Config(
        **settings.evaluated(model, text, device, calibration=calibration, hardware=hardware),
        noise=settings.noises[0],
        row=DIGITAL,
        c=0.0,
        seed=0,
    )
    return [
        digital,
        *(
            replace(digital, noise=noise, row=row, c=c, seed=seed)
            for c in settings.magnitudes
            for noise in settings.noises
            for seed in draws
            for row in ROWS[:-1]  # innermost: they share a chip
        ),
    ]


def measure(config: Config) -> dict[str, Any]:
    """Mean loss and accuracy of every block of text, and what decides the cost: shape, loads and digital experts."""
    model = rig.model(config.model, config.device)
    of_text = (config.model, config.device)
    if config.row == DIGITAL:
        loads = rig.scores(*of_text, "activation_frequency", text=config.calibrated_on)
        return {**rig.measured(config), "shape": asdict(Shape.of(model)), "loads": loads.tolist()}
    with rig.placed(
        *of_text,
        config.hardware[0],
        config.row.digital_experts,
        config.seed,
        analog_modules=() if config.row.dense_digital else model.map.dense_kinds,
        calibrated_on=config.calibrated_on,
    ):
        measured = rig.measured(config)
    scores = rig.scores(*of_text, "maxnn", text=config.calibrated_on)
    return {**measured, "digital": place(scores, config.row.digital_experts).digital_experts}


def summarise(configs: Sequence[Config], records: Sequence[dict[str, Any]]) -> Result:
    """The table, curves of cost over digital experts and batch, and the findings by the rules."""
    documents, c = records[0]["documents"], configs[-1].c
    draws: dict[Noise, dict[Row, list[dict[str, Any]]]] = {}
    for config, record in zip(configs[1:], records[1:], strict=True):
        draws.setdefault(config.noise, {}).setdefault(config.row, []).append(record)
    tables: dict[Noise, Quality] = {
        noise: {
            row: {
                quantity: grouped([record[quantity] for record in of_row], documents)
                for quantity in ("loss", "accuracy")
            }
            for row, of_row in (*of_noise.items(), (DIGITAL, records[:1]))
        }
        for noise, of_noise in draws.items()
    }
    ours, stands_for_olmoe = Shape(**records[0]["shape"]), configs[0].model == DEFAULT_MODEL
    loads = None if stands_for_olmoe else records[0]["loads"]
    chosen = {
        config.row.label: record["digital"] for config, record in zip(configs[1:], records[1:], strict=True)
    }
    rows = []
    for noise, quality in tables.items():
        for row, table in quality.items():
            entry: dict[str, Any] = {
                **asdict(noise),
                "placement": row.label,
                "digital_parameters": _digital_share(OLMOE if stands_for_olmoe else ours, row),
                "published": row.published if stands_for_olmoe else None,
            }
            for quantity, values in table.items():
                entry[quantity] = float(values.mean())
                change = values - quality[DIGITAL][quantity]
                entry[f"{quantity}_change"] = float(change.mean())
                entry[f"{quantity}_change_interval"] = (
                    (0.0, 0.0) if row == DIGITAL else two_way_interval(change)
                )
            rows.append(entry)
    return Result(
        data={
            **_costs(rows, ours, configs[0].model, stands_for_olmoe, loads, chosen),
            "batch": BATCH,
            "c": c,
            "model": configs[0].model,
            "blocks": configs[0].blocks,
            "block_tokens": configs[0].block_tokens,
            "documents": len(set(documents)),
            "digital_interval": {
                quantity: mean_interval(grouped(records[0][quantity], documents))
                for quantity in ("loss", "accuracy")
            },
        },
        findings=(
            *(_cost_findings() if stands_for_olmoe else ()),
            *rig.judged_on(
                configs[0].own,
                (
                    finding
                    for noise, quality in tables.items()
                    for finding in _quality_findings(f"{configs[0].model}, {noise}, c = {c:g}", quality)
                ),
            ),
        ),
    )


def judged_again(result: Result) -> Result:
    """A kept result with the costs of now; what was measured on its model stays. Loads that it lacks are even."""
    data = result.data
    stands_for_olmoe = data.get("cost_of", "OLMoE") == "OLMoE"
    ours = Shape(**data["shapes"]["model"])
    costs = _costs(
        data["rows"], ours, data["model"], stands_for_olmoe, data.get("loads"), data.get("digital", {})
    )
    measured = (finding for finding in result.findings if finding.family != FAMILY)
    found = (*(_cost_findings() if stands_for_olmoe else ()), *measured)
    return replace(result, data={**data, **costs}, findings=found)


def _costs(
    rows: Sequence[Mapping[str, Any]],
    ours: Shape,
    model: str,
    stands_for_olmoe: bool,
    loads: Sequence[Sequence[float]] | None,
    chosen: Mapping[str, Choice],
) -> dict[str, Any]:
    """What a result says of costs: in every row, over batch and digital experts, and what they rest on.

    loads: share of the tokens of each expert of the model; None where all are taken to serve equally many.
    chosen: the digital experts of a placement, by its label, which loads need.
    """
    of = OLMOE if stands_for_olmoe else ours
    spent = {row.label: _spent(of, row, loads, chosen.get(row.label)) for row in ROWS}
    return {
        "rows": [{**row, **spent[row["placement"]]} for row in rows],
        "curves": [
            {
                "shape": name,
                "batch": batch,
                "digital_fraction": fraction,
                "tokens_per_second": (found := cost(shape, fraction, batch)).tokens_per_second,
                "tokens_per_joule": found.tokens_per_joule,
            }
            for name, shape in (("OLMoE", OLMOE), ("DeepSeekMoE", DEEPSEEK_MOE), (model, ours))
            for batch in BATCHES
            for fraction in DIGITAL_FRACTIONS
        ],
        "machine": asdict(Machine()),
        "not_modelled": NOT_MODELLED,
        "shapes": {"OLMoE": asdict(OLMOE), "DeepSeekMoE": asdict(DEEPSEEK_MOE), "model": asdict(ours)},
        "cost_of": "OLMoE" if stands_for_olmoe else model,
        "loads": loads,
        "digital": dict(chosen),
    }


def _spent(
    shape: Shape, row: Row, loads: Sequence[Sequence[float]] | None, chosen: Choice | None
) -> dict[str, Any]:
    """The cost of a placement: of the experts that were chosen, where loads tell them apart."""
    experts: float | Placement = row.digital_experts
    if loads is not None and chosen is not None:
        experts = Placement((shape.experts,) * shape.moe_layers, chosen)
    found = cost(shape, experts, BATCH, dense_digital=row.dense_digital, loads=loads)
    return {
        "tokens_per_second": found.tokens_per_second,
        "tokens_per_joule": found.tokens_per_joule,
        "adc_area": found.adc_area,
        "parts": [asdict(part) for part in found.parts],
    }


Quality = dict[Row, dict[str, NDArray[np.float64]]]  # for each row and quantity (draws, documents)


def _digital_share(shape: Shape, row: Row) -> float:
    experts = shape.moe_layers * shape.experts * shape.expert_parameters
    digital = experts * row.digital_experts + shape.dense_parameters * row.dense_digital
    return digital / (experts + shape.dense_parameters)


def _cost_findings() -> list[Finding]:
    """Rules 1 and 2."""

    def deviations(row: Row) -> list[float]:
        assert row.published is not None
        found = cost(OLMOE, row.digital_experts, BATCH, dense_digital=row.dense_digital)
        seconds, joules, _ = row.published
        return [found.tokens_per_second / seconds - 1, found.tokens_per_joule / joules - 1]

    published = [row for row in ROWS[1:] if row.published is not None]
    claims = (
        (
            "the cost model meets the last three published rows",
            max((each for row in published for each in deviations(row)), key=abs),
            False,
        ),
        (
            "the cost model meets the published throughput of the all-analog row",
            deviations(ROWS[0])[0],
            True,
        ),
    )
    return [
        judged_inside(
            claim,
            "largest relative deviation from the published tokens/s and tokens/(W s)",
            deviation,
            certain(deviation),
            None,
            -TOLERANCE,
            TOLERANCE,
            origin="ours",
            family=FAMILY,
            exploratory=known_before,
            words=f"(a point, as nothing is random) within {TOLERANCE:.0%}",
        )
        for claim, deviation, known_before in claims
    ]


def _quality_findings(where: str, tables: Quality) -> list[Finding]:
    """Rule 3, for one noise."""
    return [
        mean_finding(
            f"more digital is better: {more.label} against {less.label}; {where}",
            "loss of the latter - loss of the former, nats per token",
            tables[less]["loss"] - tables[more]["loss"],
            origin="paper",
            family="quality",
        )
        for less, more in pairwise(ROWS)
    ]
