"""Figure 3 on IBM's simulators: are its findings ours alone, or also aihwkit's and aihwkit-lightning's?

The parts of the model that figure 3's rules are about (all dense modules, 87.5 % of the experts, everything without
programming noise) run on three simulators: ours, aihwkit's PyTorch tiles and aihwkit-lightning [realmodels.peers].
Placements, calibrations, programmed weights and text are the same bit for bit. In fp64 the three simulators agree to
rounding. In fp32 they sum in different orders, so that a code within rounding of the border to the next code may differ
by one step. What follows is another sample of rounding errors of the same size, which hardly changes a mean loss.

Rules, fixed before the first run, for w_max per tile and per column:
1. Figure 3's rules, on each of the three simulators by itself.
2. Ours, "a peer finds what ours finds". For each of the two parts and c = 1.5 and 2.5: (loss on the peer - loss on
   ours), relative to the loss increase on ours, has a 95 % interval within -2 % and 2 %: holds; all of it outside:
   fails. In figure 3 those increases are known to 4-13 % and differ by factors of 4 to 6.
3. Ours: the same with everything on analog hardware and c = 0, where the increase itself may be 0: the interval of the
   difference is within -0.005 and 0.005 nats per token, half of what figure 3's rule 3 allows.
Differences are paired: the same draw, the same block. Intervals of rule 2 are over draws and blocks together, those of
rule 3 over blocks.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from realmodels.experiments import figure_3, rig
from realmodels.experiments.figure_3 import DENSE, EVERYTHING, RULE_1_C, RULE_1_EXPERTS, RULE_3_NATS
from realmodels.experiments.rig import Preset
from realmodels.load import DEFAULT_MODEL
from theory.errors import InputError
from theory.evidence import Finding, Result, inside, mean_interval, ratio_interval, two_way_interval

Simulator = Literal["ours", "aihwkit", "lightning"]
SIMULATORS: tuple[Simulator, ...] = get_args(Simulator)
PACKAGES = {"ours": None, "aihwkit": "aihwkit", "lightning": "aihwkit-lightning"}
RULE_2_SHARE = 0.02  # largest difference, as a share of the loss increase on ours
EQUIVALENT_NATS = RULE_3_NATS / 2  # per token


@dataclass(frozen=True)
class Config(figure_3.Config):
    """A unit of figure 3 on one of the simulators; the digital reference has no part and is `ours`.

    version: version of the simulator's package, "" for ours.
    """

    simulator: Simulator
    version: str


PRESETS = {
    "quick": Preset(
        magnitudes=(2.5,),
        draws=2,
        blocks=4,
        block_tokens=128,
    ),
    "default": Preset(
        magnitudes=RULE_1_C,
        draws=8,
        blocks=16,
        block_tokens=128,
    ),
    "full": Preset(
        magnitudes=RULE_1_C,
        draws=16,
        blocks=32,
        block_tokens=256,
    ),
}


def grid(
    preset: str, model: str = DEFAULT_MODEL, text: str | None = None, seeds: int | None = None
) -> list[Config]:
    """The units of work; `seeds` noise draws (at least 2), `text` a UTF-8 file to evaluate on."""
    versions = {simulator: _version(package) for simulator, package in PACKAGES.items()}
    settings = PRESETS[preset]
    reference = Config(
        **rig.evaluated(model, text, "cpu", settings.blocks, settings.block_tokens),
        w_max=rig.GRANULARITIES[0],
        part=None,
        c=0.0,
        seed=0,
        simulator="ours",
        version="",
    )
    parts = {part.label: part for part in figure_3.parts(rig.model(model, "cpu"))}
    draws = settings.seeds(seeds)
    units = [
        (parts[label], c, seed)
        for label in (DENSE, RULE_1_EXPERTS)
        for c in settings.magnitudes
        for seed in draws
    ]
    units.append((parts[EVERYTHING], 0.0, 0))
    return [
        reference,
        *(
            replace(
                reference,
                w_max=w_max,
                part=part,
                c=c,
                seed=seed,
                simulator=simulator,
                version=versions[simulator],
            )
            for simulator in SIMULATORS
            for w_max in rig.GRANULARITIES
            for part, c, seed in units
        ),
    ]


def measure(config: Config) -> dict[str, Any]:
    """What figure 3 measures, on the config's simulator."""
    if config.simulator == "ours":
        return figure_3.measure(config)
    from realmodels.peers import deployed_on  # here: the peers are not on every machine

    return figure_3.measure_with(partial(deployed_on, config.simulator), config)


def summarise(configs: Sequence[Config], records: Sequence[dict[str, Any]]) -> Result:
    """Figure 3's curves and findings on each simulator, and the peers' differences from ours."""
    findings: list[Finding] = []
    curves: list[dict[str, Any]] = []
    for simulator in SIMULATORS:
        mine = [
            (config, record)
            for config, record in zip(configs, records, strict=True)
            if config.part is None or config.simulator == simulator
        ]
        result = figure_3.summarise(*zip(*mine, strict=True))
        curves += [{"simulator": simulator, **curve} for curve in result.data["curves"]]
        findings += [
            replace(finding, claim=f"{finding.claim}; on {simulator}") for finding in result.findings
        ]
    differences = _differences(configs, records)
    return Result(
        data={
            **{name: result.data[name] for name in ("digital", "model", "text", "blocks", "block_tokens")},
            "versions": {config.simulator: config.version for config in configs},
            "curves": curves,
            "differences": differences,
        },
        findings=(*findings, *map(_finding, differences)),
    )


def _version(package: str | None) -> str:
    try:
        return version(package) if package else ""
    except PackageNotFoundError:
        raise InputError(
            f"--figure peers: the package {package} is missing; `make install` installs it, on Linux on x86-64"
        ) from None


def _differences(configs: Sequence[Config], records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Loss on the peer - loss on ours, and its share of the loss increase: for each peer, granularity, part and c."""
    digital = next(record for config, record in zip(configs, records, strict=True) if config.part is None)
    losses: dict[tuple[str, float, str, str], dict[int, list[float]]] = {}
    for config, record in zip(configs, records, strict=True):
        if config.part is not None:
            key = config.w_max, config.c, config.part.label, config.simulator
            losses.setdefault(key, {})[config.seed] = record["loss"]
    tables = {key: _table(draws) for key, draws in losses.items()}
    rows = []
    for simulator in SIMULATORS[1:]:
        for w_max, c, part, _ in (key for key in tables if key[-1] == "ours"):
            ours = tables[w_max, c, part, "ours"]
            difference = tables[w_max, c, part, simulator] - ours
            row: dict[str, Any] = {
                "simulator": simulator,
                "w_max": w_max,
                "part": part,
                "c": c,
                "n": len(difference) if c else difference.size,
                "difference": float(difference.mean()),
            }
            if c:
                increase = ours - np.array(digital["loss"])
                row["interval"] = two_way_interval(difference)
                row["share"] = float(difference.mean() / increase.mean())
                row["share_interval"] = ratio_interval(difference, increase)
            else:
                row["interval"] = mean_interval(difference[0])
            rows.append(row)
    return rows


def _table(draws: dict[int, list[float]]) -> NDArray[np.float64]:
    """Losses (draws, blocks), in the order of the seeds, which is the same for every simulator."""
    return np.array([draws[seed] for seed in sorted(draws)])


def _finding(row: dict[str, Any]) -> Finding:
    """Rule 2, or rule 3 where c is 0."""
    c, simulator = row["c"], row["simulator"]
    if c:
        estimate, interval, margin = row["share"], row["share_interval"], RULE_2_SHARE
        statistic = f"(loss on {simulator} - on ours) / loss increase on ours"
    else:
        estimate, interval, margin = row["difference"], row["interval"], EQUIVALENT_NATS
        statistic = f"loss on {simulator} - on ours, nats per token"
    return Finding(
        claim=f"{simulator} finds what ours finds: {row['part']}; w_max per {row['w_max']}, c = {c:g}",
        origin="ours",
        statistic=statistic,
        estimate=estimate,
        interval=interval,
        n=row["n"],
        rule=f"95 % interval within {-margin:g} and {margin:g}: holds; outside: fails",
        verdict=inside(interval, -margin, margin),
    )
