"""Stress: where does the claim live, that frequent experts have the larger neurons and belong on digital hardware?

The answer is a map over optimiser x loss x length of training x routing x type of expert x granularity of w_max x
frequency alpha of the rare class. Everything in a row of the map is measured on the same training seeds, test samples
and programming noise.
- Task of two kinds (N_F = N_R = 2). The ratio of norms nu_F/nu_R is compared with rho = (1 - alpha)/alpha. The
  tolerance c* is measured with 2 N_F = 4 of the 8 experts digital: those of largest MaxNNScore, random ones
  (geometric mean over RANDOM choices), the frequent specialists (oracle), or none. Where the model does not classify
  both kinds to 95 % without noise, no placement can help: every gain counts as 1 there.
- Zipf task (four kinds, exponent 1, one specialist of each sign). Spearman's correlation of MaxNNScore and frequency.
Length 1 is the stop rule; lengths 3 and 15 are that multiple of the median over seeds of the stop rule's steps.
Routers are frozen; nothing has weight decay.

Rules: rules/figure-stress.md.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor
from torch.nn.functional import softplus

from synthetic.data import Task, evaluation_samples, sample, stack, stream
from synthetic.model import Expert, ModelConfig, MoE, Routing
from synthetic.robustness import program, tolerance
from synthetic.training import Loss, Optimiser, Training, train
from theory.errors import InputError
from theory.evidence import (
    LEVEL,
    Finding,
    Interval,
    Origin,
    Result,
    Scale,
    balanced_accuracy,
    best_threshold,
    correlation_mean,
    interval_of,
    judged,
    mean_finding,
    mean_interval,
    mean_of,
    mean_within,
)
from theory.hardware import Granularity, Hardware
from theory.separation import apart, evaluation_seeds, seed
from theory.setting import Setting

Array = NDArray[np.float64]

OPTIMISERS: tuple[Optimiser, ...] = ("sgd", "momentum", "adamw")
LOSSES: tuple[Loss, ...] = ("hinge", "logistic")
ROUTINGS: tuple[Routing, ...] = ("expert_choice", "token_choice")
EXPERTS: tuple[Expert, ...] = ("one_layer", "two_layer", "gated")
GRANULARITIES: tuple[Granularity, ...] = ("layer", "column")
LENGTHS = (1, 3, 15)
PLACEMENTS = ("none", "random", "oracle", "maxnn")
STATISTICS = ("top over rest", "top over median", "loss left")

# Smaller than the reference instance in d, n and l, which decide the time and nothing else.
SETTING = Setting(d=16, n=8, l=2)
ALPHAS = (0.02, 0.05, 0.1, 0.15, 0.2, 0.25)
ZIPF = Task.zipf(4, 1.0, d=SETTING.d, n=SETTING.n)
# A kind and sign has one specialist there. With 8 neurons, the fraction that is active would decide its size.
ZIPF_NEURONS = 16
# Chosen so that the stop rule is reached in 20 to 300 steps everywhere. Products of weights need larger steps.
LEARNING_RATES = {"one_layer": 0.5, "two_layer": 2.0, "gated": 2.0}
MOMENTUM_FACTOR = 0.1  # momentum sums ten steps: its learning rate is this part of SGD's
ADAMW_RATE = 0.01
# Products of very small weights would not start to grow.
INIT_STD = {"one_layer": 1e-4, "two_layer": 0.1, "gated": 0.3}
SELECTED = {"expert_choice": SETTING.l, "token_choice": 2}  # tokens of an expert; experts of a token
BATCH = 128
MAX_STOP_STEPS = 1000
INPUTS = 256  # test samples
RANDOM = 4  # random placements of each seed
NEAR_ONE = 0.25  # rules 1, 2, 3 and 9
RANKED = 0.5  # rule 5
PAYS = 1.2  # rule 7: least gain over random at which MaxNN pays
TOLD = 0.75  # rule 7

REASONS = {
    "SGD, stop rule": "up to the knee t_F a weight grows at the frequency of its class: the ratio is rho (G)",
    "momentum": "its steps are linear in the gradients, so the ratio stays what it is for SGD (G-linear)",
    "AdamW": "the size of its steps does not depend on that of the gradients: all norms grow alike (G-adam)",
    "length 3": "frequent neurons stand still from t_F on, rare ones grow: the ratio falls as rho t_F/t (G)",
    "length 15": "both classes have margin 1, which takes N_R q_R/(N_F q_F) whatever the frequencies (G)",
    "logistic loss": "gradients fade as margins grow, those of the frequent class first: below rho (G-logistic)",
    "token choice": "the same growth but for the gates, which are equal where N_F = N_R (G-token)",
    "two layers, gated": "products of weights: the larger grows the faster, and rare classes come long after (no G)",
    "the same, length 15": "some experts are large whatever their frequency: MaxNN finds them, the oracle does not",
    "w_max per column": "a large neuron's noise reaches that neuron alone and not all of its expert",
}


@dataclass(frozen=True)
class Config:
    """One way of training, for several training seeds.

    alpha: frequency of the rare class; None for the Zipf task.
    lengths: lengths of training after which the models are measured.
    draws: programming events.
    seeds: training seeds.
    """

    alpha: float | None
    optimiser: Optimiser
    loss: Loss
    routing: Routing
    expert: Expert
    lengths: tuple[int, ...]
    draws: int
    seeds: tuple[int, ...]


@dataclass(frozen=True)
class Preset:
    """How much of the map is measured; `seeds` is the number of training seeds."""

    alphas: tuple[float, ...]
    lengths: tuple[int, ...]
    optimisers: tuple[Optimiser, ...]
    experts: tuple[Expert, ...]
    draws: int
    seeds: int


PRESETS = {
    "quick": Preset(
        alphas=(0.1,),
        lengths=(1,),
        optimisers=("sgd", "adamw"),
        experts=("one_layer",),
        draws=16,
        seeds=4,
    ),
    "default": Preset(
        alphas=(0.05, 0.1, 0.25),
        lengths=LENGTHS,
        optimisers=OPTIMISERS,
        experts=EXPERTS,
        draws=48,
        seeds=5,
    ),
    "full": Preset(
        alphas=ALPHAS,
        lengths=LENGTHS,
        optimisers=OPTIMISERS,
        experts=EXPERTS,
        draws=64,
        seeds=12,
    ),
}


def grid(preset: str, seeds: int | None = None, first_seed: int | None = None) -> list[Config]:
    """Every way of training.

    seeds: number of training seeds, if not the preset's; at least 4, two to design the rule of thumb, two to test it.
    first_seed: the first of them.
    """
    chosen = PRESETS[preset]
    trainings = evaluation_seeds(seeds, chosen.seeds, first_seed, "training seeds")
    if len(trainings) < 4:
        raise InputError(
            f"--seeds {len(trainings)}: two training seeds to design the rule and two to test it are needed: 4"
        )
    return [
        Config(
            alpha=alpha,
            optimiser=optimiser,
            loss=loss,
            routing=routing,
            expert=expert,
            lengths=chosen.lengths,
            draws=chosen.draws,
            seeds=tuple(trainings),
        )
        for expert, routing, optimiser, loss, alpha in product(
            reversed(chosen.experts), reversed(ROUTINGS), chosen.optimisers, LOSSES, (*chosen.alphas, None)
        )
    ]


def measure(config: Config) -> dict[str, Any]:
    """Measure norms, tolerances and statistics of each seed at every length, or correlations for the Zipf task."""
    network = ModelConfig(
        specialists=(SETTING.N_F, SETTING.N_R),
        m=SETTING.m,
        routing=config.routing,
        selected=SELECTED[config.routing],
        expert=config.expert,
        init_std=INIT_STD[config.expert],
    )
    if config.alpha is None:
        network = replace(network, specialists=(1,) * ZIPF.kinds, m=ZIPF_NEURONS)
        frequencies = np.array(ZIPF.frequencies)[network.kinds.numpy()]
        return {
            "lengths": [
                {"spearman": [float(stats.spearmanr(each, frequencies).statistic) for each in model.maxnn()]}
                for model, _ in _models(ZIPF, network, config)
            ]
        }
    task = Task.of(replace(SETTING, alpha=config.alpha))
    lengths = []
    for model, steps in _models(task, network, config):
        scores = model.maxnn()
        frequent = network.kinds == 0
        lengths.append(
            {
                "steps": steps,
                "ratio": (scores[:, frequent].mean(1) / scores[:, ~frequent].mean(1)).tolist(),
                "tolerance": _tolerances(model, task, config),
                "statistics": _statistics(model, task, config),
            }
        )
    return {"lengths": lengths}


def _models(task: Task, network: ModelConfig, config: Config) -> Iterator[tuple[MoE, float]]:
    """The models of all seeds at every length, with the median over seeds of the steps of their training."""
    rate = LEARNING_RATES[config.expert]
    rates = {"sgd": rate, "momentum": MOMENTUM_FACTOR * rate, "adamw": ADAMW_RATE}
    training = Training(
        optimiser=config.optimiser,
        loss=config.loss,
        learning_rate=rates[config.optimiser],
        batch=BATCH,
        max_steps=MAX_STOP_STEPS,
    )
    never = MAX_STOP_STEPS * max(config.lengths)  # more steps than are made: the history is not needed
    stopped = train(task, network, training, config.seeds, record_every=never)
    median = float(stopped.steps.double().quantile(0.5))
    for length in config.lengths:
        if length == 1:
            yield stopped.model, median
        else:
            steps = round(length * median)
            longer = replace(training, stop_margin=None, max_steps=steps)
            yield train(task, network, longer, config.seeds, record_every=never).model, float(steps)


def _tolerances(model: MoE, task: Task, config: Config) -> dict[str, dict[str, list[float]]]:
    """c* of each seed by granularity and placement; for "random" the geometric mean over the random placements."""
    samples = evaluation_samples(task, INPUTS, config.seeds)
    digital = _digital(model, config.seeds)
    found: dict[str, dict[str, list[float]]] = {}
    for granularity in GRANULARITIES:
        hardware = Hardware(programming="constant", w_max=granularity, dac_bits=None, adc_bits=None)
        c = tolerance(program(model, hardware, config.draws, config.seeds), samples, ~digital).double()
        none, oracle, maxnn, *random = c
        mean = torch.stack(random).log().mean(0).exp()
        found[granularity] = {
            name: values.tolist()
            for name, values in zip(PLACEMENTS, (none, mean, oracle, maxnn), strict=True)
        }
    return found


def _digital(model: MoE, seeds: Sequence[int]) -> Tensor:
    """Digital experts (placements, seeds, experts) of none, oracle, MaxNN and the random placements.

    All placements but none have equally many.
    """
    oracle = (model.config.kinds == 0).expand(len(seeds), -1)
    count = int(oracle[0].sum())
    randoms = [
        [torch.from_numpy(rng.permutation(model.config.experts)) for _ in range(RANDOM)]
        for rng in (np.random.default_rng([seed, 1]) for seed in seeds)
    ]
    orders = [model.maxnn().argsort(dim=1, descending=True, stable=True)]
    orders += [torch.stack([each[i] for each in randoms]) for i in range(RANDOM)]
    chosen = [torch.zeros_like(oracle).scatter(1, order[:, :count], True) for order in orders]
    return torch.stack([torch.zeros_like(oracle), oracle, *chosen])


def _statistics(model: MoE, task: Task, config: Config) -> dict[str, list[float]]:
    """The STATISTICS of each seed's model, known without the frequencies, on calibration samples of other seeds."""
    scores = model.maxnn().sort(1, descending=True).values
    count = int((model.config.kinds == 0).sum())
    others = [stream(seed("search", each), "test") for each in config.seeds]
    calibration = stack([sample(task, 4 * INPUTS, rng) for rng in others])
    margins = calibration.labels * model.forward(calibration.tokens)
    loss = (1 - margins).relu() if config.loss == "hinge" else softplus(-margins) / math.log(2)
    return {
        "top over rest": (scores[:, :count].mean(1) / scores[:, count:].mean(1)).tolist(),
        "top over median": (scores[:, 0] / scores.quantile(0.5, 1)).tolist(),
        "loss left": loss.mean(1).tolist(),
    }


@dataclass(frozen=True)
class Cell:
    """A field of the map, with the values of every seed.

    seeds: the training seeds, in the order of the values.
    length: length of training, in multiples of the stop rule's steps.
    steps: the steps themselves.
    ratio: nu_F/nu_R.
    spearman: correlation on the Zipf task, which has no alpha.
    statistics: values by STATISTICS.
    c: tolerance c* by PLACEMENTS.
    """

    seeds: tuple[int, ...]
    alpha: float
    optimiser: str
    loss: str
    routing: str
    expert: str
    length: int
    w_max: str
    steps: float
    ratio: Array
    spearman: Array
    statistics: Mapping[str, Array]
    c: Mapping[str, Array]

    @property
    def rho(self) -> float:
        """How much more often the frequent class occurs than the rare one."""
        return replace(SETTING, alpha=self.alpha).rho

    @property
    def learned(self) -> NDArray[np.bool_]:
        """True for seeds whose model classifies both kinds to 95 % without noise."""
        return np.asarray(self.c["none"] > 0)

    def gain(self, over: str) -> Array:
        """c* of MaxNN over c* of another placement; 1 where nothing was learned."""
        return np.divide(self.c["maxnn"], self.c[over], out=np.ones_like(self.c[over]), where=self.learned)


def summarise(configs: Sequence[Config], records: Sequence[dict[str, Any]]) -> Result:
    """The map, the rule of thumb, and the findings by the rules above."""
    cells = list(_cells(configs, records))
    choice, rule_of_thumb = _rule_of_thumb(cells)
    return Result(
        data={
            "map": [_row(cell) for cell in cells],
            "rule of thumb": choice,
            "reasons": REASONS,
            "seeds": len(configs[0].seeds),
            "setting": asdict(SETTING),
        },
        findings=(*_ratios(cells), *_gains(cells), *_correlations(cells), rule_of_thumb),
    )


def _cells(configs: Sequence[Config], records: Sequence[dict[str, Any]]) -> Iterator[Cell]:
    """The fields of the map, each with the correlations of the same training on the Zipf task."""
    zipf = {config: record for config, record in zip(configs, records, strict=True) if config.alpha is None}
    for config, record in zip(configs, records, strict=True):
        if config.alpha is None:
            continue
        correlations = zipf[replace(config, alpha=None)]["lengths"]
        for (length, found, correlation), w_max in product(
            zip(config.lengths, record["lengths"], correlations, strict=True), GRANULARITIES
        ):
            yield Cell(
                seeds=config.seeds,
                alpha=config.alpha,
                optimiser=config.optimiser,
                loss=config.loss,
                routing=config.routing,
                expert=config.expert,
                length=length,
                w_max=w_max,
                steps=found["steps"],
                ratio=np.array(found["ratio"]),
                spearman=np.array(correlation["spearman"]),
                statistics={name: np.array(values) for name, values in found["statistics"].items()},
                c={name: np.array(values) for name, values in found["tolerance"][w_max].items()},
            )


def _row(cell: Cell) -> dict[str, Any]:
    """Means of a cell over seeds, with 95 % intervals."""
    row: dict[str, Any] = {
        name: getattr(cell, name)
        for name in ("alpha", "rho", "optimiser", "loss", "routing", "expert", "length", "w_max", "steps")
    }
    row["learned"] = float(cell.learned.mean())
    row["spearman"], row["spearman_interval"] = _mean(cell.spearman, "fisher")
    ratios = {"ratio": cell.ratio, **{f"gain over {over}": cell.gain(over) for over in PLACEMENTS[:-1]}}
    for name, values in ratios.items():
        row[name], row[f"{name}_interval"] = _mean(values, "log")
    return row


def _mean(values: Array, scale: Scale) -> tuple[float, Interval | None]:
    """Mean on a scale, and its 95 % interval."""
    return mean_of(values, scale), interval_of(values, scale)(1 - LEVEL)


def _select(cells: Sequence[Cell], **wanted: Any) -> list[Cell]:
    """The cells with the wanted values of these attributes."""
    return [cell for cell in cells if all(getattr(cell, name) == value for name, value in wanted.items())]


def _mean_log(cells: Sequence[Cell], quantity: Callable[[Cell], Array]) -> Array:
    """Geometric mean over cells of a quantity, for each seed."""
    return np.asarray(np.exp(np.mean([np.log(quantity(cell)) for cell in cells], axis=0)))


def _present(cells: Sequence[Cell], name: str) -> list[Any]:
    """Values that occur on an axis of the map, in the order in which they are declared above."""
    order: Sequence[Any] = {
        "optimiser": OPTIMISERS,
        "expert": EXPERTS,
        "length": LENGTHS,
        "routing": ROUTINGS,
        "alpha": ALPHAS,
    }[name]
    found = {getattr(cell, name) for cell in cells}
    return [value for value in order if value in found]


def _slope(cells: Sequence[Cell], quantity: Callable[[Cell], Array]) -> Array:
    """Slope of the logarithm of a quantity on log rho, for each seed; at every alpha the mean over cells is taken."""
    rhos = sorted({cell.rho for cell in cells})
    logs = [np.log(_mean_log([cell for cell in cells if cell.rho == rho], quantity)) for rho in rhos]
    return np.asarray(np.polyfit(np.log(rhos), np.stack(logs), 1)[0])


def _ratios(cells: Sequence[Cell]) -> Iterator[Finding]:
    """Rules 1 to 3, 8 and 9."""
    plain = _select(cells, expert="one_layer", loss="hinge", w_max="layer")
    optimisers, lengths = _present(plain, "optimiser"), _present(plain, "length")
    over_rho = "(nu_F/nu_R) / rho"

    def relative(chosen: Sequence[Cell]) -> Array:
        return _mean_log(chosen, lambda cell: cell.ratio / cell.rho)

    for optimiser, routing in product(optimisers, ROUTINGS):
        in_setting = (optimiser, routing) == ("sgd", "expert_choice")
        yield _near_one(
            f"norms have the ratio of frequencies; {optimiser}, {_words(routing)}, stop rule",
            over_rho,
            relative(_select(plain, optimiser=optimiser, routing=routing, length=1)),
            origin="reconstruction" if in_setting else "extension",
            statement=_statement(optimiser, routing),
        )
    for length in lengths[1:]:
        yield _near_one(
            f"norms have the ratio of frequencies; sgd, {length} times as long as to the stop rule",
            over_rho,
            relative(_select(plain, optimiser="sgd", length=length)),
            origin="extension",
        )
    logistic = _select(cells, expert="one_layer", loss="logistic", w_max="layer", length=1)
    yield mean_finding(
        "the logistic loss makes the ratio of norms smaller than that of frequencies; stop rule",
        over_rho,
        relative([cell for cell in logistic if cell.optimiser != "adamw"]),
        1.0,
        "below",
        origin="ours",
        statement="G-logistic",
        family="norms",
        scale="log",
    )
    if "adamw" in optimisers:
        yield _near_one(
            "AdamW makes all norms equal, whatever the frequencies; stop rule",
            "nu_F/nu_R",
            _mean_log(_select(plain, optimiser="adamw", length=1), lambda cell: cell.ratio),
            origin="ours",
            statement="G-adam",
        )
    if len(_present(cells, "alpha")) == 1:
        return
    for optimiser, length in [*product(optimisers, lengths[:1]), *product(optimisers[:1], lengths[1:])]:
        chosen = _select(plain, optimiser=optimiser, length=length)
        yield _near_one(
            f"the ratio of norms is proportional to that of frequencies; {optimiser}, length {length}",
            "slope of log (nu_F/nu_R) on log rho",
            _slope(chosen, lambda cell: cell.ratio),
            scale="linear",
            origin="extension",
            statement=_statement(optimiser) if length == 1 else None,
        )


def _near_one(
    claim: str,
    statistic: str,
    values: Array,
    *,
    origin: Origin,
    statement: str | None = None,
    scale: Scale = "log",
) -> Finding:
    """The finding of the family of norms that a mean over seeds is near 1."""
    return mean_within(
        claim,
        statistic,
        values,
        1.0,
        NEAR_ONE,
        origin=origin,
        statement=statement,
        family="norms",
        scale=scale,
        words="inside 1 +- .25",
    )


def _statement(optimiser: str, routing: str = "expert_choice") -> str | None:
    """The statement that has the ratio of norms equal to rho at the stop rule; None for AdamW: (G-adam) denies it."""
    if optimiser == "adamw":
        return None
    if routing == "token_choice":
        return "G-token"
    return "G-linear" if optimiser == "momentum" else "G"


def _gains(cells: Sequence[Cell]) -> Iterator[Finding]:
    """Rules 4, 6 and 10."""
    optimisers, lengths = _present(cells, "optimiser"), _present(cells, "length")

    def pays(**wanted: Any) -> Finding:
        chosen = _select(cells, **wanted)
        learned = float(np.mean([cell.learned for cell in chosen]))
        where = ", ".join(
            f"length {value}" if name == "length" else _words(value) for name, value in wanted.items()
        )
        return mean_finding(
            f"MaxNN tolerates more noise than random choice; {where} w_max",
            f"c* of MaxNN / of random; {learned:.0%} of models learned",
            _mean_log(chosen, lambda cell: cell.gain("random")),
            1.0,
            origin="extension",
            family="gains",
            scale="log",
        )

    for optimiser, length in product(optimisers, lengths):
        yield pays(optimiser=optimiser, expert="one_layer", length=length, w_max="layer")
    for expert, length in product(_present(cells, "expert")[1:], lengths):
        yield pays(optimiser="sgd", expert=expert, length=length, w_max="layer")
    for optimiser in optimisers:
        yield pays(optimiser=optimiser, expert="one_layer", length=1, w_max="column")
    per_layer, per_column = (
        _mean_log(
            [
                cell
                for cell in _select(cells, expert="one_layer", length=1, w_max=w_max)
                if cell.optimiser != "adamw"
            ],
            lambda cell: cell.gain("none"),
        )
        for w_max in ("layer", "column")
    )
    yield mean_finding(
        "w_max per column leaves less to gain than per layer; SGD and momentum, one layer, stop rule",
        "gain of MaxNN over none, per column / per layer",
        per_column / per_layer,
        1.0,
        "below",
        origin="ours",
        family="granularity",
        scale="log",
    )
    if len(_present(cells, "alpha")) == 1:
        return
    for optimiser in optimisers:
        chosen = _select(cells, optimiser=optimiser, expert="one_layer", length=1, w_max="layer")
        yield mean_finding(
            f"the rarer the rare class, the more MaxNN gains over random choice; {optimiser}, stop rule",
            "slope of log (c* of MaxNN / of random) on log rho",
            _slope(chosen, lambda cell: cell.gain("random")),
            origin="ours",
            family="gains",
        )


def _correlations(cells: Sequence[Cell]) -> Iterator[Finding]:
    """Rule 5."""
    for optimiser, length in product(_present(cells, "optimiser"), _present(cells, "length")):
        chosen = _select(
            cells, optimiser=optimiser, length=length, expert="one_layer", w_max="layer", alpha=cells[0].alpha
        )
        by_seed = np.stack([cell.spearman for cell in chosen], axis=1)
        yield mean_finding(
            f"MaxNNScore ranks experts by frequency; {optimiser}, one layer, length {length}",
            "Spearman's correlation of MaxNNScore and frequency, Zipf task",
            [correlation_mean(each) for each in by_seed],
            RANKED,
            origin="extension",
            family="ranking",
            scale="fisher",
        )


def _rule_of_thumb(cells: Sequence[Cell]) -> tuple[dict[str, Any], Finding]:
    """Rule 7: the rule of thumb that the design cells choose, for drawing, and the finding on the test cells."""
    design, test = _design_and_test(cells)
    accuracy, name, threshold = max(
        (accuracy, name, threshold)
        for name in STATISTICS
        for accuracy, threshold, _ in [
            best_threshold(np.array([each.statistics[name] for each in design]), _pays(design))
        ]
    )
    by_seed: dict[int, list[_Model]] = {}
    for each in test:
        by_seed.setdefault(each.seed, []).append(each)
    tested = [
        balanced_accuracy(np.array([each.statistics[name] >= threshold for each in models]), _pays(models))
        for models in by_seed.values()
    ]
    choice = {
        "statistic": name,
        "threshold": threshold,
        "pays": PAYS,
        "design accuracy": accuracy,
        "points": [
            {
                "design": side is design,
                "seed": each.seed,
                "gain": each.gain,
                "optimiser": each.optimiser,
                name: each.statistics[name],
            }
            for side in (design, test)
            for each in side
        ],
    }

    def interval(confidence: float) -> Interval:
        """Student's, as far as it lies in the range of an accuracy."""
        low, high = mean_interval(tested, confidence)
        return max(low, 0.0), min(high, 1.0)

    return choice, judged(
        f"MaxNN pays (gain over random of {PAYS} or more) where {name} is at least {threshold:.3g};"
        " designed on expert choice, tested on token choice and other seeds",
        f"balanced accuracy on the test cells (on the design cells {accuracy:.2f})",
        mean_of(tested),
        interval,
        len(tested),
        TOLD,
        origin="ours",
        family="rule of thumb",
    )


@dataclass(frozen=True)
class _Model:
    """A model that learned: what a rule of thumb may know of it, and MaxNN's gain over random choice."""

    seed: int
    routing: str
    optimiser: str
    gain: float
    statistics: Mapping[str, float]


def _design_and_test(cells: Sequence[Cell]) -> tuple[tuple[_Model, ...], tuple[_Model, ...]]:
    """The models on which the rule of thumb is chosen and tested, which share no seed and no routing."""
    seeds = cells[0].seeds
    designing = seeds[: len(seeds) // 2]
    models = [
        _Model(
            own,
            cell.routing,
            cell.optimiser,
            float(cell.gain("random")[place]),
            {name: float(cell.statistics[name][place]) for name in STATISTICS},
        )
        for cell in cells
        for place, own in enumerate(cell.seeds)
        if cell.learned[place]
    ]
    return apart(
        [each for each in models if each.routing == "expert_choice" and each.seed in designing],
        [each for each in models if each.routing == "token_choice" and each.seed not in designing],
        seed=lambda each: each.seed,
        routing=lambda each: each.routing,
    )


def _pays(models: Sequence[_Model]) -> NDArray[np.bool_]:
    """True for the models on which MaxNN pays."""
    return np.array([each.gain >= PAYS for each in models])


def _words(name: str) -> str:
    """The value of an axis as claims name it."""
    return {
        "one_layer": "one layer",
        "two_layer": "two layers",
        "layer": "per-layer",
        "column": "per-column",
    }.get(name, name.replace("_", " "))
