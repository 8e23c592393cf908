"""Placement: how much noise is tolerated for how many digital experts, and which strategy chooses them best?

Networks of theory/setting.py are trained under expert choice (every expert takes l tokens) and token choice (every
token goes to N_F experts; with fewer, some frequent specialists would never be used). Every strategy of
`theory.placement` then places the experts on every budget K of digital experts. Two more placements stand beside
them:
- "oracle" knows the frequent specialists, and makes them digital first, in random order
- "best" is the subset of K experts with the largest tolerance, found by a search on noise draws and inputs of its own
Everything is measured with w_max per expert ("layer", the theory's M_s) and per neuron ("column"), as it is and with
the known bias of every analog expert subtracted digitally [(C), docs/theory.md].
Statistics of routing come from calibration samples, which occur neither in training nor in the test. Experts with
equal scores are ranked at random: under expert choice all experts have the same frequency and the same mean gate, so
that both of these strategies know nothing there.

Rules: rules/figure-placement.md.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray

from synthetic.data import Samples, Task, evaluation_samples, sample, stream
from synthetic.model import ModelConfig, MoE, Routing
from synthetic.robustness import LARGEST_C, LEVEL, SMALLEST_C, Programmed, class_accuracy, program, tolerance
from synthetic.training import Training, train
from theory.errors import InputError
from theory.evidence import (
    Finding,
    Interval,
    Origin,
    Result,
    geometric_interval,
    judged,
    mean_interval,
    proportion_interval,
)
from theory.hardware import Granularity, Hardware
from theory.placement import Strategy, rank
from theory.score import neuron_norms
from theory.separation import evaluation_seeds
from theory.separation import seed as seed_of
from theory.setting import Setting

Choice = tuple[int, ...]  # digital experts, ascending
Name = Literal[Strategy, "oracle", "best"]

GRANULARITIES: tuple[Granularity, ...] = ("layer", "column")
ROUTINGS: tuple[Routing, ...] = get_args(Routing)
NETWORKS = ((2, 2), (3, 1))  # (N_F, N_R)
BASELINES: tuple[Strategy, ...] = ("activation_frequency", "activation_weight", "router_norm", "random")
RANKED: tuple[Strategy, ...] = ("maxnn", "balanced_maxnn", *BASELINES, "minnn")
RULES_ALPHA = 0.1

CALIBRATION_SAMPLES = 4096
SEARCH_INPUTS, SEARCH_DRAWS = 96, 32  # inputs and programming events of the search for the best subset
SEARCHED = 2.0 ** (np.arange(-30, 31) / 3)  # magnitudes c of the search, which interpolates between them


@dataclass(frozen=True)
class Config:
    """One trained network with all placements of its experts.

    inputs: test inputs.
    draws: programming events.
    """

    seed: int
    setting: Setting
    routing: Routing
    inputs: int
    draws: int


@dataclass(frozen=True)
class Preset:
    """How much is measured: frequencies of the rare class, training seeds, test inputs and programming events."""

    alphas: tuple[float, ...]
    seeds: int
    inputs: int
    draws: int


PRESETS = {
    "quick": Preset(
        alphas=(0.1,),
        seeds=2,
        inputs=64,
        draws=16,
    ),
    "default": Preset(
        alphas=(0.02, 0.1, 0.25),
        seeds=5,
        inputs=200,
        draws=32,
    ),
    "full": Preset(
        alphas=(0.02, 0.05, 0.1, 0.15, 0.2, 0.25),
        seeds=16,
        inputs=200,
        draws=64,
    ),
}


def grid(preset: str, seeds: int | None = None, first_seed: int | None = None) -> list[Config]:
    """The units of work. `seeds` overrides the preset's number of training seeds, `first_seed` the first of them."""
    settings = PRESETS[preset]
    trainings = evaluation_seeds(seeds, settings.seeds, first_seed, "training seeds")
    return [
        Config(
            seed=seed,
            setting=Setting(N_F=frequent, N_R=rare, alpha=alpha),
            routing=routing,
            inputs=settings.inputs,
            draws=settings.draws,
        )
        for routing in ROUTINGS
        for frequent, rare in NETWORKS
        for alpha in settings.alphas
        for seed in trainings
    ]


def measure(config: Config) -> dict[str, Any]:
    """Measure the tolerance of every placement of one trained network; None for an infinite tolerance."""
    task = Task.of(config.setting)
    model = train(
        task,
        _network(config),
        Training.of(config.setting),
        (config.seed,),
        record_every=Training.max_steps,
    ).model
    samples = evaluation_samples(task, config.inputs, (config.seed,))
    others = evaluation_samples(task, SEARCH_INPUTS, (seed_of("search", config.seed),))
    chosen = choices(model, task, config.seed)
    placements = []
    for w_max in GRANULARITIES:
        hardware = Hardware(programming="constant", w_max=w_max, dac_bits=None, adc_bits=None)
        test = program(model, hardware, config.draws, (config.seed,))
        search = program(model, hardware, SEARCH_DRAWS, (seed_of("search", config.seed),))
        for correction in (False, True):
            best = best_subsets(search, others, bias_correction=correction)
            found = tolerances(test, samples, {**chosen, "best": best}, bias_correction=correction)
            placements += [
                {"w_max": w_max, "bias_correction": correction, **placement} for placement in found
            ]
    outputs = model.forward(samples.tokens)
    return {
        "clean_accuracy": class_accuracy(outputs, samples, task.kinds).min().item(),
        "placements": placements,
    }


def choices(model: MoE, task: Task, seed: int) -> dict[Name, list[Choice]]:
    """The digital experts that every strategy chooses for K = 1 ... k - 1, and `none` and `all` for 0 and k.

    model: the model of a single training seed.
    seed: that seed, by which equal scores are ranked.
    """
    other = seed_of("search", seed)
    calibration = sample(task, CALIBRATION_SAMPLES, stream(other, "train"))
    _, gates = model.route(calibration.tokens[None])
    size = neuron_norms(model.router[:, :, None]).squeeze(-1)
    usage = torch.tensor(task.frequencies)[model.config.kinds][None]
    scores = dict.fromkeys(RANKED, model.maxnn()) | {
        "activation_frequency": (gates > 0).double().mean((2, 3)),
        # Equal mean gates may differ by rounding, which must not rank them.
        "activation_weight": gates.double().mean((2, 3)).round(decimals=6),
        "router_norm": size,
    }
    experts = model.config.experts
    # Equal scores are ranked by the expert's number, which says what the expert specialises in: shuffle the numbers.
    shuffled = stream(other, "init").permutation(experts)
    signs = [model.config.signs[shuffled].tolist()]

    def ranked(score: Float[torch.Tensor, "1 experts"], strategy: Strategy) -> list[Choice]:
        sets = [
            rank(
                score[:, shuffled],
                count / experts,
                strategy,
                signs=signs,
                # The same numbers for every K, so that a larger K only adds experts.
                generator=torch.Generator().manual_seed(other),
            )
            for count in range(1, experts)
        ]
        return [tuple(sorted(shuffled[list(chosen)].tolist())) for (chosen,) in sets]

    found: dict[Name, list[Choice]] = {"none": [()], "all": [tuple(range(experts))]}
    found |= {strategy: ranked(scores[strategy], strategy) for strategy in RANKED}
    found["oracle"] = ranked(usage, "maxnn")
    return found


def best_subsets(programmed: Programmed, samples: Samples, *, bias_correction: bool) -> list[Choice]:
    """The subset of K digital experts with the largest tolerance, for K = 1 ... k - 1.

    An expert adds the same to f(X) whatever the others are, so the outputs of all 2^k subsets are one matrix product.

    programmed: the models of a single training seed, programmed.
    samples: inputs on which the tolerance is searched.
    bias_correction: as in `Programmed.table`.
    """
    experts = programmed.model.config.experts
    # Bit s of a number: is expert s digital? Neither none nor all of them is a choice.
    numbers = torch.arange(1, 2**experts - 1)
    digital = (numbers[:, None] >> torch.arange(experts)) % 2 == 1
    gates = programmed.model.gates(samples.tokens)[0].transpose(0, 1)  # (k, N, T)
    clean = (gates @ programmed.clean[0][..., None]).squeeze(-1)  # (k, N)
    exact = digital.to(clean) @ clean

    def accuracy(c: float) -> Float[torch.Tensor, "subsets"]:
        table = programmed.table(c, bias_correction=bias_correction)[:, 0].permute(1, 2, 0)  # (k, T, D)
        noisy = (gates @ table).mT  # (k, D, N)
        outputs = ((~digital).to(clean) @ noisy.flatten(1)).unflatten(1, noisy.shape[1:]) + exact[:, None]
        kinds = len(programmed.model.config.specialists)
        return class_accuracy(outputs[:, :, None], samples, kinds).mean(1).amin(-1).squeeze(-1)

    accuracies = []
    for c in SEARCHED.tolist():
        accuracies.append(accuracy(c).double().numpy())
        if len(accuracies) > 1 and (accuracies[-1] < LEVEL).all():
            break  # all subsets have crossed the level; it takes two magnitudes to say where
    tolerated = _first_crossing(np.stack(accuracies))
    sizes = digital.sum(1).numpy()
    of_size = [np.flatnonzero(sizes == count) for count in range(1, experts)]
    winners = [subsets[tolerated[subsets].argmax()] for subsets in of_size]
    return [tuple(digital[winner].nonzero().flatten().tolist()) for winner in winners]


def _first_crossing(accuracy: NDArray[np.float64]) -> NDArray[np.float64]:
    """ln c at which the accuracy of each subset first falls to LEVEL.

    accuracy: (magnitudes, subsets) at the first of SEARCHED.
    Returns -inf for a subset below LEVEL from the beginning, inf for one that never falls to it.
    """
    logarithm = np.log(SEARCHED[: len(accuracy)])
    below = accuracy < LEVEL
    after = below.argmax(0).clip(1)
    subsets = np.arange(accuracy.shape[1])
    left, right = accuracy[after - 1, subsets], accuracy[after, subsets]
    with np.errstate(divide="ignore", invalid="ignore"):  # where there is no crossing
        fraction = (left - LEVEL) / (left - right)
    crossing = logarithm[after - 1] + fraction * (logarithm[after] - logarithm[after - 1])
    return np.where(below[0], -math.inf, np.where(below.any(0), crossing, math.inf))


def tolerances(
    programmed: Programmed,
    samples: Samples,
    chosen: Mapping[Name, Sequence[Choice]],
    *,
    bias_correction: bool,
) -> list[dict[str, Any]]:
    """c* of every choice. Each set of digital experts is measured once, whichever strategies choose it."""
    sets = sorted({choice for choices in chosen.values() for choice in choices})
    analog = torch.ones(len(sets), 1, programmed.model.config.experts, dtype=torch.bool)
    for mask, digital in zip(analog, sets, strict=True):
        mask[0, list(digital)] = False
    c_star = tolerance(programmed, samples, analog, bias_correction=bias_correction)[:, 0].tolist()
    of_set = dict(zip(sets, c_star, strict=True))
    return [
        {"strategy": name, "digital": choice, "c_star": of_set[choice] if of_set[choice] < math.inf else None}
        for name, choices in chosen.items()
        for choice in choices
    ]


def _network(config: Config) -> ModelConfig:
    """The network of the unit, in which a token goes to N_F experts under token choice."""
    network = ModelConfig.of(config.setting)
    if config.routing == "expert_choice":
        return network
    return replace(network, routing=config.routing, selected=config.setting.N_F)


# Summary of the records


@dataclass(frozen=True)
class Cell:
    """One condition: networks that differ only in the training seed."""

    routing: str
    N_F: int
    N_R: int
    alpha: float
    w_max: str
    bias_correction: bool

    @property
    def experts(self) -> int:
        return 2 * (self.N_F + self.N_R)

    def __str__(self) -> str:
        return f"{self.routing.replace('_', ' ')}, N_F, N_R = {self.N_F}, {self.N_R}, w_max per " + (
            "expert" if self.w_max == "layer" else "neuron"
        )


Logarithms = Mapping[Cell, Mapping[tuple[str, int], NDArray[np.float64]]]
"""ln c* of the training seeds, in one order, by cell, and by strategy and number of digital experts."""


def summarise(configs: Sequence[Config], records: Sequence[dict[str, Any]]) -> Result:
    """Curves of c* and of the gain over `none` with 95 % intervals, and the findings by the rules above."""
    logarithms, members = _collect(configs, records)
    curves = []
    for cell, table in logarithms.items():
        signs, frequent = _specialities(cell)
        for (strategy, count), values in sorted(table.items(), key=lambda item: item[0][1]):
            if strategy == "all":
                continue  # nothing is noisy, so any noise is tolerated
            gain = values - table["none", 0]
            sets = [list(digital) for digital in members[cell][strategy, count]]
            curves.append(
                {
                    **vars(cell),
                    "strategy": strategy,
                    "digital": count,
                    "seeds": len(values),
                    "c_star": math.exp(values.mean()),
                    "c_star_interval": geometric_interval(np.exp(values)),
                    "gain": math.exp(gain.mean()),
                    "gain_interval": geometric_interval(np.exp(gain)),
                    "digital_frequent": float(np.mean([frequent[chosen].sum() for chosen in sets])),
                    "digital_sign_imbalance": float(np.mean([abs(signs[chosen].sum()) for chosen in sets])),
                }
            )
    first = configs[0]
    unlearned = sum(record["clean_accuracy"] < LEVEL for record in records)
    return Result(
        data={
            "curves": curves,
            "alphas": sorted({config.setting.alpha for config in configs}),
            "rules_alpha": RULES_ALPHA,
            "trained": len(configs),
            "left_out": unlearned,
            "inputs": first.inputs,
            "draws": first.draws,
        },
        findings=tuple(_findings(logarithms)),
    )


def _collect(
    configs: Sequence[Config], records: Sequence[dict[str, Any]]
) -> tuple[Logarithms, Mapping[Cell, Mapping[tuple[str, int], list[Choice]]]]:
    """ln c* and the digital experts, by cell, and by strategy and number; without seeds that learned too little."""
    logarithms: dict[Cell, dict[tuple[str, int], list[float]]] = {}
    members: dict[Cell, dict[tuple[str, int], list[Choice]]] = {}
    for config, record in sorted(zip(configs, records, strict=True), key=lambda pair: pair[0].seed):
        if record["clean_accuracy"] < LEVEL:
            continue
        setting = config.setting
        for each in record["placements"]:
            cell = Cell(
                config.routing,
                setting.N_F,
                setting.N_R,
                setting.alpha,
                each["w_max"],
                each["bias_correction"],
            )
            key = each["strategy"], len(each["digital"])
            c_star = LARGEST_C if each["c_star"] is None else max(each["c_star"], SMALLEST_C)
            logarithms.setdefault(cell, {}).setdefault(key, []).append(math.log(c_star))
            members.setdefault(cell, {}).setdefault(key, []).append(tuple(each["digital"]))
    for config in configs:
        kind = config.routing, config.setting.N_F, config.setting.N_R, config.setting.alpha
        learned = len(logarithms.get(Cell(*kind, GRANULARITIES[0], False), {}).get(("none", 0), []))
        if learned < 2:
            raise InputError(
                f"--seeds: {learned} networks of {config.setting} learned the task, an interval needs 2; give more"
            )
    arrays = {
        cell: {key: np.array(values) for key, values in table.items()} for cell, table in logarithms.items()
    }
    return arrays, members


def _specialities(cell: Cell) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Sign of every expert, and True for the frequent specialists."""
    network = ModelConfig((cell.N_F, cell.N_R))
    return network.signs.numpy(), network.kinds.numpy() == 0


def _findings(logarithms: Logarithms) -> Iterator[Finding]:
    """The rules."""

    def cell(
        routing: Routing, network: tuple[int, int], w_max: str = "layer", corrected: bool = False
    ) -> Cell:
        return Cell(routing, *network, RULES_ALPHA, w_max, corrected)

    def ratio(where: Cell, first: str, second: str, count: int) -> NDArray[np.float64]:
        """ln(c* of the first / c* of the second) for each training seed; `none` has no digital expert."""
        table = logarithms[where]
        return table[first, 0 if first == "none" else count] - table[second, 0 if second == "none" else count]

    for network in NETWORKS:
        for w_max in GRANULARITIES:
            here = cell("expert_choice", network, w_max)
            yield _smallest(
                f"a small budget spent by MaxNN is worse than none; {here}, K = {network[0]}",
                "ln(c* of MaxNN / c* with nothing digital)",
                [ratio(here, "maxnn", "none", network[0])],
                below=True,
                origin="ours",
                statement="C",
                family="small budgets",
            )
    for network, count, below in (((2, 2), 2, False), ((3, 1), 2, False), ((3, 1), 3, True)):
        here = cell("expert_choice", network)
        claim = "worse than none where it cannot balance the signs" if below else "better than none"
        yield _smallest(
            f"a small budget spent by balanced MaxNN is {claim}; {here}, K = {count}",
            "ln(c* of balanced MaxNN / c* with nothing digital)",
            [ratio(here, "balanced_maxnn", "none", count)],
            below=below,
            origin="ours",
            statement="C",
            family="small budgets",
        )
    for network in NETWORKS:
        here, plain = cell("expert_choice", network, corrected=True), cell("expert_choice", network)
        yield _smallest(
            f"with the bias corrected MaxNN is better than none on every budget; {here}",
            f"ln(c* of MaxNN / c* with nothing digital), both corrected, smallest of K = 1 ... {here.experts - 1}",
            [ratio(here, "maxnn", "none", count) for count in range(1, here.experts)],
            origin="ours",
            statement="C",
            family="bias correction",
        )
        with_and_without = [
            logarithms[here][strategy, count] - logarithms[plain][strategy, count]
            for strategy, count in [("none", 0), *(("maxnn", count) for count in range(1, here.experts))]
        ]
        yield _smallest(
            f"correcting the bias raises the tolerance of MaxNN on every budget; {here}",
            f"ln(c* corrected / c* as it is), smallest of K = 0 ... {here.experts - 1}",
            with_and_without,
            origin="ours",
            statement="C",
            family="bias correction",
        )
    for routing in ROUTINGS:
        for network in NETWORKS:
            here, count = cell(routing, network), 2 * network[0]
            origin: Origin = "paper" if routing == "expert_choice" else "extension"
            yield _most(
                "MaxNN finds the experts that matter: it is as good as the oracle in most networks;"
                f" {here}, K = |F| = {count}",
                "the oracle",
                ratio(here, "maxnn", "oracle", count),
                0.95,
                origin=origin,
            )
            yield _most(
                f"in most networks no other {count} experts are a better choice than MaxNN's;"
                f" {here}, K = |F| = {count}",
                "the best subset found",
                ratio(here, "maxnn", "best", count),
                0.90,
                origin="ours",
            )
            yield _smallest(
                f"MaxNN beats every baseline; {here}, K = |F| = {count}",
                "ln(c* of MaxNN / c* of a baseline), smallest of activation frequency and weight, router norm, random",
                [ratio(here, "maxnn", baseline, count) for baseline in BASELINES],
                origin=origin,
                family="against baselines",
            )
    here = cell("token_choice", (2, 2))
    for first, second in pairwise(("router_norm", "activation_weight", "activation_frequency", "none")):
        names = " beats ".join(name.replace("_", " ") for name in (first, second))
        yield _smallest(
            f"{names}; {here}, K = |F| = 4",
            f"ln(c* of {first} / c* of {second})",
            [ratio(here, first, second, 4)],
            origin="ours",
            family="against baselines",
        )
    for network in NETWORKS:
        here = cell("token_choice", network)
        yield _smallest(
            f"under token choice a small budget spent by MaxNN is better than none; {here}, K = {network[0]}",
            "ln(c* of MaxNN / c* with nothing digital)",
            [ratio(here, "maxnn", "none", network[0])],
            origin="ours",
            family="small budgets",
        )
    for network in NETWORKS:
        count = 2 * network[0]
        gains = [
            ratio(cell("expert_choice", network, w_max), "maxnn", "none", count) for w_max in GRANULARITIES
        ]
        yield _smallest(
            "MaxNN gains more where one large weight makes the whole expert noisy; expert choice,"
            f" N_F, N_R = {network[0]}, {network[1]}, K = |F| = {count}",
            "ln(c* of MaxNN / c* with nothing digital) with w_max per expert - with w_max per neuron",
            [gains[0] - gains[1]],
            origin="ours",
            family="granularity",
        )


def _smallest(
    claim: str,
    statistic: str,
    comparisons: Sequence[NDArray[np.float64]],
    *,
    origin: Origin,
    family: str,
    statement: str | None = None,
    below: bool = False,
) -> Finding:
    """The finding that the smallest mean of the comparisons, each over training seeds, is above 0.

    below: judge that it is below.
    """

    def interval(confidence: float) -> Interval:
        """From the smallest lower to the smallest upper end of Bonferroni's intervals."""
        each = [mean_interval(values, 1 - (1 - confidence) / len(comparisons)) for values in comparisons]
        return min(low for low, _ in each), min(high for _, high in each)

    return judged(
        claim,
        statistic + (", Bonferroni's interval" if len(comparisons) > 1 else ""),
        float(min(values.mean() for values in comparisons)),
        interval,
        len(comparisons[0]),
        0.0,
        "below" if below else "above",
        origin=origin,
        family=family,
        statement=statement,
    )


def _most(
    claim: str, other: str, comparison: NDArray[np.float64], threshold: float, *, origin: Origin
) -> Finding:
    """The finding that c* of MaxNN is above threshold times that of `other` for more than half of the seeds."""
    reached = comparison > math.log(threshold)
    return judged(
        claim,
        f"share of training seeds with c* of MaxNN above {threshold:.2f} times that of {other};"
        f" smallest ratio: {math.exp(comparison.min()):.3f}",
        float(reached.mean()),
        partial(proportion_interval, int(reached.sum()), reached.size),
        reached.size,
        1 / 2,
        origin=origin,
        family="right experts",
    )
