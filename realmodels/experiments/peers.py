"""Figure 3 on IBM's simulators: are its findings ours alone, or also aihwkit's and aihwkit-lightning's?

The parts of the model that figure 3's rules are about (all dense modules, 87.5 % of the experts, everything without
programming noise) run on three simulators: ours, aihwkit's PyTorch tiles and aihwkit-lightning [realmodels.peers].
Placements, calibrations, programmed weights and text are the same bit for bit. In fp64 the three simulators agree to
rounding. In fp32 they sum in different orders, so that a code within rounding of the border to the next code may differ
by one step. What follows is another sample of rounding errors of the same size, which hardly changes a mean loss.

The findings on the three simulators are figure 3's finding repeated: the same text, the same model.

Rules: rules/figure-peers.md.
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
from theory.evidence import (
    Finding,
    Interval,
    Result,
    grouped,
    judged_inside,
    mean_interval,
    ratio_interval,
    two_way_interval,
)

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
    preset: str,
    model: str = DEFAULT_MODEL,
    text: str | None = None,
    seeds: int | None = None,
    first_seed: int | None = None,
) -> list[Config]:
    """The units of work; `seeds` noise draws from `first_seed` on, `text` a UTF-8 file to evaluate on."""
    versions = {simulator: _version(package) for simulator, package in PACKAGES.items()}
    settings = PRESETS[preset]
    reference = Config(
        **settings.evaluated(model, text, "cpu"),
        noise=rig.PCM[0],
        part=None,
        c=0.0,
        seed=0,
        simulator="ours",
        version="",
    )
    parts = {part.label: part for part in figure_3.parts(rig.model(model, "cpu"))}
    draws = settings.seeds(seeds, first_seed)
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
                noise=noise,
                part=part,
                c=c,
                seed=seed,
                simulator=simulator,
                version=versions[simulator],
            )
            for simulator in SIMULATORS
            for noise in rig.PCM
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
    comparisons = _comparisons(configs, records)
    return Result(
        data={
            **{
                name: result.data[name]
                for name in ("digital", "model", "text", "blocks", "block_tokens", "documents")
            },
            "versions": {config.simulator: config.version for config in configs},
            "curves": curves,
            "differences": [comparison.row() for comparison in comparisons],
        },
        findings=(*findings, *(comparison.finding(configs[0].model) for comparison in comparisons)),
    )


def _version(package: str | None) -> str:
    try:
        return version(package) if package else ""
    except PackageNotFoundError:
        raise InputError(
            f"--figure peers: the package {package} is missing; `make install` installs it, on Linux on x86-64"
        ) from None


@dataclass(frozen=True)
class _Comparison:
    """A peer against ours, on one part of the model at one magnitude.

    difference: loss on the peer - loss on ours, (draws, documents), or (documents,) where c is 0.
    increase: loss increase on ours, of the same shape.
    """

    simulator: str
    w_max: str
    part: str
    c: float
    difference: NDArray[np.float64]
    increase: NDArray[np.float64]

    @property
    def n(self) -> int:
        return min(self.difference.shape)

    def share(self) -> float:
        return float(self.difference.mean() / self.increase.mean())

    def interval(self, confidence: float = 0.95) -> Interval:
        return (two_way_interval if self.c else mean_interval)(self.difference, confidence)

    def share_interval(self, confidence: float = 0.95) -> Interval | None:
        return ratio_interval(self.difference, self.increase, confidence)

    def row(self) -> dict[str, Any]:
        """The difference as the drawing needs it; its share of the increase, where there is noise."""
        row: dict[str, Any] = {name: getattr(self, name) for name in ("simulator", "w_max", "part", "c", "n")}
        row |= {"difference": float(self.difference.mean()), "interval": self.interval()}
        if self.c:
            row |= {"share": self.share(), "share_interval": self.share_interval()}
        return row

    def finding(self, model: str) -> Finding:
        """Rule 2, or rule 3 where c is 0."""
        claim = (
            f"{self.simulator} finds what ours finds: {self.part}; {model}, w_max per {self.w_max},"
            f" c = {self.c:g}"
        )
        difference = f"loss on {self.simulator} - on ours"
        if self.c:
            return judged_inside(
                claim,
                f"({difference}) / loss increase on ours",
                self.share(),
                self.share_interval,
                self.n,
                -RULE_2_SHARE,
                RULE_2_SHARE,
                origin="ours",
                family="same loss",
            )
        return judged_inside(
            claim,
            f"{difference}, nats per token",
            float(self.difference.mean()),
            self.interval,
            self.n,
            -EQUIVALENT_NATS,
            EQUIVALENT_NATS,
            origin="ours",
            family="same loss without noise",
        )


def _comparisons(configs: Sequence[Config], records: Sequence[dict[str, Any]]) -> list[_Comparison]:
    """One for each peer, granularity, part and c."""
    digital = next(record for config, record in zip(configs, records, strict=True) if config.part is None)
    losses: dict[tuple[str, float, str, str], dict[int, list[float]]] = {}
    for config, record in zip(configs, records, strict=True):
        if config.part is not None:
            key = config.noise.w_max, config.c, config.part.label, config.simulator
            losses.setdefault(key, {})[config.seed] = record["loss"]

    def increase(w_max: str, c: float, part: str, simulator: str) -> NDArray[np.float64]:
        """Draws are in the order of the seeds, which is the same for every simulator."""
        draws = losses[w_max, c, part, simulator]
        blocks = np.array([draws[seed] for seed in sorted(draws)]) - np.array(digital["loss"])
        table = grouped(blocks, digital["documents"])
        return table if c else table[0]

    found = []
    for simulator in SIMULATORS[1:]:
        for w_max, c, part, _ in (key for key in losses if key[-1] == "ours"):
            ours = increase(w_max, c, part, "ours")
            peers = increase(w_max, c, part, simulator)
            found.append(_Comparison(simulator, w_max, part, c, peers - ours, ours))
    return found
