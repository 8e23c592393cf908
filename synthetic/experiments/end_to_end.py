"""From end to end: does the theorem hold as often as it promises, how loose is it, and do routers specialise?

(E) [docs/theory.md] promises a ranking by MaxNNScore and a gain of kappa rho with probability 1 - p over routers,
initial weights and batches. Its instances (theory/end_to_end.py) are trained from fresh seeds. In each training the
bounds on weights, the ranking, and the tolerances all analog ("none") and with the frequent specialists digital
("oracle") are compared with what is promised.

(E) assumes routers that are specialised from the start. The map of joint training shows what becomes of routers that
are trained with the experts: which experts come to select which token. An expert selects a token if its mean gate on
the token is above SELECTED, over inputs that hold the token.

Rules: rules/figure-end-to-end.md.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, Literal

import numpy as np
import torch

from synthetic.data import Samples, Task, evaluation_samples
from synthetic.model import ROUTER_NOISE, ModelConfig, MoE, initialise
from synthetic.robustness import class_accuracy, program, tolerance
from synthetic.training import Training, train
from theory.end_to_end import INSTANCES, Bounds, Instance, bounds
from theory.evidence import (
    Finding,
    Result,
    geometric_interval,
    geometric_mean,
    judged,
    mean_finding,
    mean_interval,
    proportion_interval,
)
from theory.hardware import Hardware
from theory.separation import evaluation_seeds
from theory.setting import Setting

FAMILIES = ("theorem", "looseness", "emergence")
SELECTED = 0.5  # mean gate above which an expert selects a token
LOOSE = 2.0  # rule 4
EMERGED, WRONG, STAYED = 0.5, 0.1, 0.75  # rules 5, 6 and 7
NEVER = 10**9  # steps between two records: the first and the last are kept
GATE_INPUTS = 2000
MOST_STEPS = 600  # of joint training up to the stop rule
SHARES = ("frequent", "rare", "both", "wrong sign", "own")
PLACEMENTS = ("none", "oracle")


@dataclass(frozen=True)
class Joint:
    """A training of routers and experts together, on the reference instance but for these.

    router: where routers start, "specialised" or "random".
    router_rate: learning rate of the routers.
    init_std: standard deviation of the experts' initial weights.
    alpha: probability of the rare class.
    selected: tokens that an expert takes.
    steps: length, None for the stop rule.
    """

    router: Literal["specialised", "random"] = "random"
    router_rate: float = 20.0
    init_std: float = 1e-4
    alpha: float = 0.1
    selected: int = 4
    steps: int | None = None


@dataclass(frozen=True)
class Config:
    """One training: of an instance, or joint.

    name: of the instance; empty for joint training.
    draws, inputs: noise draws and inputs that tolerances are measured on.
    """

    name: str
    instance: Instance | None
    joint: Joint | None
    seed: int
    draws: int
    inputs: int


@dataclass(frozen=True)
class Preset:
    """How much is trained.

    instances: number of training seeds of each instance, by name.
    joint: cells of the map of joint training.
    joint_seeds: training seeds of each cell.
    draws: noise draws of a tolerance.
    """

    instances: Mapping[str, int]
    joint: tuple[Joint, ...]
    joint_seeds: int
    draws: int


BASE = Joint()  # rules 5 and 6
START = Joint(router="specialised")  # rule 7
JOINT = (
    BASE,
    START,
    *(replace(BASE, router_rate=rate) for rate in (0.0, 1.0, 5.0, 100.0, 500.0)),
    *(replace(BASE, init_std=std) for std in (1e-3, 1e-2, 1e-1)),
    *(replace(BASE, alpha=alpha) for alpha in (0.02, 0.25, 0.4)),
    *(replace(BASE, selected=count) for count in (1, 2, 8)),
    *(replace(BASE, steps=steps) for steps in (300, 1000)),
    *(replace(START, router_rate=rate) for rate in (1.0, 100.0)),
    replace(START, steps=1000),
)
PRESETS = {
    "quick": Preset({"reference": 5, "rho 9": 2}, (BASE, START), 5, 16),
    "default": Preset({"reference": 64, "rho 9": 16}, JOINT[:7], 8, 32),
    "full": Preset(
        {"reference": 1000, "rho 9": 200, "rho 19": 200, "rho 49": 200, "rho 49, l = 4": 200}, JOINT, 16, 32
    ),
}
INPUTS = 400


def grid(preset: str, seeds: int | None = None, first_seed: int | None = None) -> list[Config]:
    """The trainings. `seeds` overrides the preset's numbers of training seeds, `first_seed` the first of them."""
    chosen = PRESETS[preset]
    configs = [
        Config(name, INSTANCES[name][0], None, seed, chosen.draws, INPUTS)
        for name, count in reversed(list(chosen.instances.items()))  # the longest trainings come first
        for seed in evaluation_seeds(seeds, count, first_seed, "training seeds")
    ]
    return configs + [
        Config("", None, joint, seed, chosen.draws, GATE_INPUTS)
        for joint in chosen.joint
        for seed in evaluation_seeds(seeds, chosen.joint_seeds, first_seed, "training seeds")
    ]


def measure(config: Config) -> dict[str, Any]:
    """Measure one training."""
    if config.instance is not None:
        return _measure_instance(config, config.instance)
    assert config.joint is not None
    return _measure_joint(config, config.joint)


def network_of(instance: Instance) -> ModelConfig:
    """The network of an instance, with routers as (E) has them."""
    assert instance.router_noise == ROUTER_NOISE
    return replace(ModelConfig.of(instance.setting), init_std=instance.init_std)


def _measure_instance(config: Config, instance: Instance) -> dict[str, Any]:
    """What (E) speaks of; a tolerance is None if it is infinite."""
    task, network, seeds = Task.of(instance.setting), network_of(instance), (config.seed,)
    training = replace(
        Training.of(instance.setting), batch=instance.batch, stop_margin=None, max_steps=instance.steps
    )
    trained = train(task, network, training, seeds, record_every=NEVER)
    model, samples = trained.model, evaluation_samples(task, config.inputs, seeds)
    found = bounds(instance)
    frequent, norms = network.kinds == 0, model.maxnn()[0]
    analog = torch.ones(len(PLACEMENTS), 1, network.experts, dtype=torch.bool)
    analog[PLACEMENTS.index("oracle"), :, frequent] = False
    constant = Hardware(programming="constant", w_max="layer", dac_bits=None, adc_bits=None)
    stars = tolerance(program(model, constant, config.draws, seeds), samples, analog)[:, 0]
    active = trained.history.own_weights[0, 0] > 0
    return {
        "ranks": bool(norms[frequent].min() > norms[~frequent].max()),
        "norm_ratio": float(norms[frequent].min() / norms[~frequent].max()),
        "tolerance": {
            name: float(star) if star.isfinite() else None
            for name, star in zip(PLACEMENTS, stars, strict=True)
        },
        "within": within(model, active, samples, found),
    }


def within(model: MoE, active: torch.Tensor, samples: Samples, found: Bounds) -> dict[str, bool]:
    """Which bounds of (E) the weights and margins of a model obey.

    active: (experts, m), True for neurons that were active on their own token at the start.
    """
    weights, network = model.weights["up"][0].double(), model.config
    frequent = network.kinds == 0
    components = weights[..., :2] * network.signs[:, None, None]
    margins = samples.labels * model.forward(samples.tokens)
    low = max(float(found.step), float(found.initial))
    obeyed = {"margin": float(margins.max()) <= float(found.most_margin)}
    for name, kind, own, chosen in (
        ("frequent", found.frequent, 0, frequent),
        ("rare", found.rare, 1, ~frequent),
    ):
        grown, leaked, rest = (
            components[chosen, :, own],
            components[chosen, :, 1 - own],
            weights[chosen, :, 2:],
        )
        alive = bool(active[chosen].any(-1).all()) or name == "rare"
        obeyed |= {
            f"{name}: own token, below": alive and bool((grown[active[chosen]] >= float(kind.own_low)).all()),
            f"{name}: own token, above": bool((grown.abs() <= float(kind.own_high)).all()),
            f"{name}: other kind's token": bool((leaked.abs() <= float(kind.leaked)).all()),
            f"{name}: tokens without a label": bool(
                (rest <= float(kind.other)).all() and (rest >= -low).all()
            ),
        }
    return obeyed


def _measure_joint(config: Config, joint: Joint) -> dict[str, Any]:
    """Which experts select which token after joint training, and the accuracy of each kind."""
    setting = Setting(alpha=joint.alpha, l=joint.selected)
    task, seeds = Task.of(setting), (config.seed,)
    network = replace(ModelConfig.of(setting), router=joint.router, init_std=joint.init_std)
    training = replace(
        Training.of(setting),
        router_rate=joint.router_rate,
        stop_margin=None if joint.steps else Training.stop_margin,
        max_steps=joint.steps or MOST_STEPS,
    )
    trained = train(task, network, training, seeds, record_every=NEVER)
    samples = evaluation_samples(task, config.inputs, seeds)
    right = selects(trained.model, samples)
    mine = torch.arange(network.experts), network.kinds
    start = initialise(task, network, seeds).scores()[0]
    token = (network.signs < 0).long()  # a_s o_1
    liked = start[torch.arange(network.experts), token] > 0
    accuracy = class_accuracy(trained.model.forward(samples.tokens), samples, task.kinds)[0]
    return {
        "steps": int(trained.steps[0]),
        "stopped": bool(trained.stopped[0]),
        "frequent": _share(right[:, 0, 0]),
        "rare": _share(right[:, 1, 0]),
        "both": _share(right[:, :, 0].all(1)),
        "wrong sign": _share(right[:, :, 1].any(1)),
        "own": _share(right[..., 0][mine]),
        "any": _share(right[:, :, 0].any(1)),
        "liked": [int(liked.sum()), int(right[liked, 0, 0].sum())],
        "disliked": [int((~liked).sum()), int(right[~liked, 0, 0].sum())],
        "accuracy": accuracy.tolist(),
    }


def selects(model: MoE, samples: Samples) -> torch.Tensor:
    """True where an expert selects a token (experts, kinds, 2), of the expert's own sign first, then of the other."""
    gates = model.gates(samples.tokens)[0]
    kinds, signs = len(model.config.specialists), model.config.signs
    shown = 2 * samples.kinds[0] + (samples.labels[0] < 0)
    mean = torch.stack([gates[shown == token, :, token].mean(0) for token in range(2 * kinds)], -1)
    by_sign = mean.unflatten(-1, (kinds, 2))  # positive token first
    own_first = torch.where((signs > 0)[:, None, None], by_sign, by_sign.flip(-1))
    return own_first > SELECTED


def _share(values: torch.Tensor) -> float:
    return float(values.double().mean())


def summarise(configs: Sequence[Config], records: Sequence[dict[str, Any]]) -> Result:
    """Shares, gains and the map, with 95 % intervals over training seeds, and the findings by the rules."""
    instances: dict[str, list[dict[str, Any]]] = {}
    cells: dict[Joint, list[dict[str, Any]]] = {}
    for config, record in zip(configs, records, strict=True):
        if config.joint is None:
            instances.setdefault(config.name, []).append(record)
        else:
            cells.setdefault(config.joint, []).append(record)
    ordered = {name: instances[name] for name in INSTANCES if name in instances}
    findings = [finding for name, each in ordered.items() for finding in _theorem(name, each)]
    findings += [finding for name, each in ordered.items() for finding in _looseness(name, each)]
    return Result(
        data={
            "instances": [_row(name, each) for name, each in ordered.items()],
            "joint": [_cell(joint, each) for joint, each in cells.items()],
            "draws": configs[0].draws,
            "inputs": INPUTS,
        },
        findings=(*findings, *_emergence(cells)),
    )


def gains(records: Sequence[dict[str, Any]]) -> list[float]:
    """Gain of each training: infinite where all analog tolerates nothing, 0 where no placement does."""
    found = []
    for record in records:
        none, oracle = (math.inf if star is None else star for star in record["tolerance"].values())
        found.append(oracle / none if 0 < none < math.inf else (math.inf if oracle > 0 == none else 0.0))
    return found


def _events(name: str, records: Sequence[dict[str, Any]]) -> dict[str, int]:
    """In how many trainings each promise is kept."""
    kept = {
        "ranking": sum(record["ranks"] for record in records),
        "weights": sum(all(record["within"].values()) for record in records),
    }
    if INSTANCES[name][1] is not None:
        least = float(bounds(INSTANCES[name][0]).gain)
        kept["gain"] = sum(gain >= least for gain in gains(records))
    return kept


def _theorem(name: str, records: Sequence[dict[str, Any]]) -> list[Finding]:
    """Rules 1, 2 and 3."""
    words = {
        "ranking": "every frequent specialist ranks above every rare one",
        "gain": "the gain is at least kappa rho",
        "weights": "all bounds on weights hold",
    }
    threshold = 1 - INSTANCES[name][0].p
    return [
        judged(
            f"{words[event]} with probability 1 - p = {threshold:.3f}; {name}",
            "share of trainings",
            kept / len(records),
            partial(proportion_interval, kept, len(records)),
            len(records),
            threshold,
            origin="ours",
            family="theorem",
            statement="E",
        )
        for event, kept in _events(name, records).items()
    ]


def _finite(name: str, records: Sequence[dict[str, Any]]) -> list[float]:
    """Measured gain over kappa rho, of the trainings in which it is finite and not 0."""
    least = float(bounds(INSTANCES[name][0]).gain)
    return [gain / least for gain in gains(records) if 0 < gain < math.inf] if least > 0 else []


def _looseness(name: str, records: Sequence[dict[str, Any]]) -> list[Finding]:
    """Rule 4, for an instance with a kappa."""
    ratios = _finite(name, records)
    if len(ratios) < 2:
        return []
    return [
        mean_finding(
            f"the proved gain is loose: the measured one is more than {LOOSE:g} times as large; {name}",
            "measured gain / (kappa rho), geometric mean",
            ratios,
            LOOSE,
            origin="ours",
            family="looseness",
            statement="E",
            scale="log",
        )
    ]


def _emergence(cells: Mapping[Joint, list[dict[str, Any]]]) -> list[Finding]:
    """Rules 5, 6 and 7."""
    judge = partial(mean_finding, origin="ours", family="emergence", statement=None)
    base, start = (
        {share: [record[share] for record in cells[cell]] for share in ("any", "wrong sign", "own")}
        for cell in (BASE, START)
    )
    stayed = sum(share == 1 for share in start["own"])
    return [
        judge(
            "trained from random routers, most experts come to select a token of their own sign",
            "share of experts",
            base["any"],
            EMERGED,
        ),
        judge(
            "trained from random routers, hardly an expert comes to select a token of the wrong sign",
            "share of experts",
            base["wrong sign"],
            WRONG,
            "below",
        ),
        judged(
            "routers that are specialised at the start stay so when they are trained",
            "share of trainings in which every expert selects its own token",
            stayed / len(start["own"]),
            partial(proportion_interval, stayed, len(start["own"])),
            len(start["own"]),
            STAYED,
            origin="ours",
            family="emergence",
        ),
    ]


def _row(name: str, records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """An instance: what is promised, and what is measured."""
    instance, kappa = INSTANCES[name]
    found, setting = bounds(instance), instance.setting
    ratios, measured = _finite(name, records), [gain for gain in gains(records) if 0 < gain < math.inf]
    names = ("d", "n", "l", "m", "N_F", "N_R", "alpha", "eta")
    return {
        "name": name,
        **{field: getattr(setting, field) for field in names},
        **{field: getattr(instance, field) for field in ("batch", "steps", "init_std", "delta", "p")},
        "rho": setting.rho,
        "kappa": float(found.kappa) if kappa is not None else None,
        "promised": float(found.gain) if kappa is not None else None,
        "seeds": len(records),
        "kept": {
            event: {"count": kept, "interval": proportion_interval(kept, len(records))}
            for event, kept in _events(name, records).items()
        },
        "broken": {
            bound: sum(not record["within"][bound] for record in records) for bound in records[0]["within"]
        },
        "gains": measured,
        "gain": _geometric(measured),
        "looseness": _geometric(ratios),
        "least_looseness": min(ratios) if ratios else None,
        "norm_ratio": _geometric([record["norm_ratio"] for record in records]),
        "floor": float(found.floor) if kappa is not None else None,
        "ceiling": float(found.ceiling) if kappa is not None else None,
    }


def _geometric(values: Sequence[float]) -> dict[str, Any] | None:
    """Geometric mean and interval; None for fewer than two values."""
    if len(values) < 2:
        return None
    return {"mean": geometric_mean(values), "interval": geometric_interval(values)}


def _cell(joint: Joint, records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A cell of the map: means and intervals over training seeds."""
    row: dict[str, Any] = {**asdict(joint), "seeds": len(records)}
    for share in (*SHARES, "any"):
        values = [record[share] for record in records]
        row[share] = {"mean": float(np.mean(values)), "interval": mean_interval(values)}
    for group in ("liked", "disliked"):
        total, chosen = (sum(record[group][part] for record in records) for part in (0, 1))
        row[group] = chosen / total if total else None
    row["accuracy"] = np.mean([record["accuracy"] for record in records], axis=0).tolist()
    row["steps_taken"] = float(np.mean([record["steps"] for record in records]))
    row["stopped"] = sum(record["stopped"] for record in records)
    return row
