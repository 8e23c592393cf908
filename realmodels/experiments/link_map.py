"""Link map: what has to be true of the training for MaxNNScore to follow frequency, and for MaxNN to pay?

A map of small MoE language models, trained here, over optimiser, weight decay, load balancing, learning rate, number of
experts, vocabulary and length of training. Every cell differs in one thing from the base (Muon, weight decay .1, a
load-balancing loss of weight .05), and has several seeds. Three cells ask which assumption of the theory decides. They
change nothing but the optimiser of the experts of the AdamW cell: SGD, or AdamW whose second moment is one number for
all experts of a layer, so that steps follow the gradients. A run is looked at after a quarter, a half and the whole of
the steps (rates are constant for the first half, then fall to 0). Models that were trained with a balancing bias are
measured with routers that hold the bias, which OLMoE's router in transformers cannot.

Scores and statistics come from calibration text, losses from evaluation text; neither occurs in training text.
- Spearman's correlation of MaxNNScore, mean over layers: with the mean log frequency, in the training text, of the
  tokens that an expert serves (experts that serve none are left out); with the expert's load; and with the expert's
  measured damage, the loss that noise on this expert alone adds. A layer with fewer than 4 experts to compare, or all
  alike, counts as 0.
- Recovered fraction of the loss, (loss of no digital expert - loss)/(loss of no digital expert - digital loss), means
  over noise draws and text, for 12.5 % and 25 % digital experts: MaxNN, its reverse, RANDOM random ones (mean), load,
  routing weight, expected damage (closed form, with gradient) and measured damage; the two damages are ranked across
  layers. Measured damage is the best known placement here. Dense modules are digital. Where noise on all experts costs
  less than HURTS nats per token there is nothing to recover: every fraction is 0 there, and no rule counts it.
- Hardware: pcm at c = 2.5 with w_max per tile, column and layer, and, per tile, each other noise at the c at which the
  root mean square of the noise on the experts' weights is that of pcm. Tiles are of a quarter of the hidden size, as
  OLMoE has it; in tiles of 512 one tile would hold a whole matrix of these models, and tile and layer be the same.
  There are no converters, as in the synthetic map, because the best ranges of converters differ between cells.
An expert is alive with more than ALIVE of its fair share of the calibration tokens. A cell says for how many seeds all
experts are alive.

A candidate statistic of a checkpoint, or of it and one batch, may tell whether MaxNN beats load (a larger recovered
fraction at 25 %, for one model, length and hardware): "damage edge" (expected damage of MaxNN's experts minus that of
load's, 25 % of each layer, over that of the layer, mean over layers), "rank agreement" (Spearman of MaxNN and load),
"spread of MaxNN" and "spread of load" (largest over median, mean over layers; an unused expert counts as one token).
Candidate, threshold and side are those of largest balanced accuracy on the design cells; they are then tested on the
fresh cells, each of two changes and with other seeds.

Rules: rules/figure-link-map.md. The committed result was judged again by them (`python -m figures.rejudge`), from what
it keeps: means over seeds, no single seeds.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor

from realmodels.calibrate import calibrate
from realmodels.compare import as_mask, expert_damage, losses
from realmodels.damage import expected_damage
from realmodels.evaluate import block_results, token_blocks
from realmodels.experiments.rig import as_noisy
from realmodels.experiments.trainings import (
    ADAMW,
    ALIVE,
    BASE,
    BASE_RECIPE,
    CHANGES,
    OPTIMISERS,
    SMALL_RECIPE,
    device_for,
    snapshot,
    spearman,
    spearman_with_frequency,
    spread,
    training_tokens,
)
from realmodels.load import Model
from realmodels.pretrain import Recipe, Training
from realmodels.scores import scores
from realmodels.statistics import routing
from theory.errors import InputError
from theory.evidence import (
    Finding,
    Interval,
    IntervalAt,
    Origin,
    Result,
    balanced_accuracy,
    best_threshold,
    interval_of,
    judged,
    mean_finding,
    mean_interval,
    student_quantile,
)
from theory.hardware import PROGRAMMING_NOISE, Granularity, Hardware
from theory.paper import DIGITAL_EXPERTS, RECOVERED_AT
from theory.placement import rank
from theory.separation import apart, evaluation_seeds, seed

Array = NDArray[np.float64]

C = RECOVERED_AT.value  # magnitude of pcm
TILES = 4  # the hidden size is cut into so many
KINDS: tuple[tuple[str, Granularity], ...] = (
    ("pcm", "tile"),
    ("pcm", "column"),
    ("pcm", "layer"),
    *((name, "tile") for name in PROGRAMMING_NOISE if name != "pcm"),
)
FRACTIONS = DIGITAL_EXPERTS.value
RULE_FRACTION = FRACTIONS[1]
RULE_1_SPEARMAN, RULE_7_ACCURACY = 0.5, 0.75
PLACEMENTS = ("maxnn", "random", "load", "weight", "minnn", "expected damage", "measured damage")
CORRELATIONS = ("frequency", "load", "damage")
STATISTICS = ("damage edge", "rank agreement", "spread of MaxNN", "spread of load")
RANDOM = 4  # number of random placements
HURTS = 0.01  # noise that adds less, in nats per token, leaves nothing to recover
FRESH_SEED = 100  # training seeds of the fresh cells are so much larger: design cells have fewer


AXES = (  # rule 3: what grows along the axis, cell at the upper end, cell at the lower end
    ("weight decay", "weight decay .3", "weight decay 0"),
    ("load-balancing loss against none", BASE, "no balancing"),
    ("load-balancing bias against none", "balancing by bias", "no balancing"),
    ("learning rates", "rates x 3", "rates / 3"),
    ("number of experts", "64 experts", "16 experts"),
    ("vocabulary", BASE, "vocabulary 2048"),
    ("steps", "4 times the steps", BASE),
)


FRESH = (
    (ADAMW, "weight decay 0"),
    (ADAMW, "no balancing"),
    ("AdamW, experts SGD", "64 experts"),
    ("weight decay .3", "4 times the steps"),
    ("no balancing", "rates / 3"),
    ("16 experts", "rates x 3"),
)


@dataclass(frozen=True)
class Config:
    """One training run, looked at after each of `lengths` steps.

    fresh: True for a cell that rule 7 is tested on.
    recipe: `seed` overrides the recipe's seed.
    text: a folder with a token folder `tokens-VOCABULARY` for each vocabulary, or packages, separated by commas, whose
        docstrings are the training text.
    text_hash: hash of the tokens of the training text.
    kinds: programming noise and w_max of each hardware.
    draws, blocks: noise draws and blocks of evaluation text for losses.
    damage_draws, damage_blocks: noise draws and blocks of calibration text for damage; each draw has its own blocks.
    every: use one calibration document in this many.
    """

    cell: str
    fresh: bool
    recipe: Recipe
    seed: int
    lengths: tuple[int, ...]
    text: str
    text_hash: str
    kinds: tuple[tuple[str, Granularity], ...]
    draws: int
    blocks: int
    damage_draws: int
    damage_blocks: int
    every: int
    block_tokens: int
    device: str


@dataclass(frozen=True)
class Preset:
    """How much of the map is computed; further fields are those of `Config`.

    text: packages; empty where `--text` has to name a folder.
    design, fresh: names of the cells, as in CHANGES.
    parts: look at the model after steps // part, for each part.
    """

    recipe: Recipe
    text: str
    design: tuple[str, ...]
    fresh: tuple[tuple[str, str], ...]
    seeds: int
    parts: tuple[int, ...]
    kinds: tuple[tuple[str, Granularity], ...]
    draws: int
    blocks: int
    damage_draws: int
    damage_blocks: int
    every: int
    block_tokens: int


PRESETS = {
    "quick": Preset(
        recipe=replace(SMALL_RECIPE, steps=12, batch_tokens=1024),
        text="networkx",
        design=(BASE, ADAMW, "AdamW, experts SGD"),
        fresh=((ADAMW, "weight decay 0"), ("no balancing", "rates / 3")),
        seeds=2,
        parts=(1,),
        kinds=KINDS[:3],
        draws=2,
        blocks=4,
        damage_draws=1,
        damage_blocks=2,
        every=16,
        block_tokens=64,
    ),
    "default": Preset(
        recipe=replace(SMALL_RECIPE, steps=80),
        text="sympy,networkx",
        design=OPTIMISERS,
        fresh=((ADAMW, "weight decay 0"), ("no balancing", "rates / 3")),
        seeds=3,
        parts=(1,),
        kinds=KINDS[:3],
        draws=2,
        blocks=6,
        damage_draws=1,
        damage_blocks=4,
        every=8,
        block_tokens=128,
    ),
    "full": Preset(
        recipe=BASE_RECIPE,
        text="",
        design=tuple(CHANGES),
        fresh=FRESH,
        seeds=3,
        parts=(4, 2, 1),
        kinds=KINDS,
        draws=4,
        blocks=32,
        damage_draws=4,
        damage_blocks=16,
        every=4,
        block_tokens=128,
    ),
}


def grid(
    preset: str,
    text: str | None = None,
    device: str = "cpu",
    seeds: int | None = None,
    first_seed: int | None = None,
) -> list[Config]:
    """Every training run; `seeds` of each cell from `first_seed` on, `text` a folder of token folders."""
    chosen = PRESETS[preset]
    design = evaluation_seeds(seeds, chosen.seeds, first_seed, "training seeds")
    source = text or chosen.text
    if not source:
        raise InputError(
            "--text is missing: give a folder with tokens-4096 and tokens-2048, each made by python -m"
            " realmodels.pretrain tokenize, or take --preset default"
        )
    cells: list[tuple[str, ...]] = [*((name,) for name in chosen.design), *chosen.fresh]
    found = []
    for changes in cells:
        recipe = chosen.recipe
        for name in changes:
            recipe = CHANGES[name](recipe)
        fresh = len(changes) == 2
        found += [
            Config(
                cell=" + ".join(changes),
                fresh=fresh,
                recipe=recipe,
                seed=number + FRESH_SEED * fresh,
                lengths=tuple(recipe.steps // part for part in chosen.parts),
                text=source,
                text_hash=training_tokens(source, recipe.vocabulary).hash,
                kinds=chosen.kinds,
                draws=chosen.draws,
                blocks=chosen.blocks,
                damage_draws=chosen.damage_draws,
                damage_blocks=chosen.damage_blocks,
                every=chosen.every,
                block_tokens=chosen.block_tokens,
                device=device,
            )
            for number in design
        ]
    return sorted(found, key=lambda config: -config.recipe.steps)  # so that workers end together


# --------------------------------------------------------------------------------------------------- measure


def measure(config: Config) -> dict[str, Any]:
    """Losses, least share, correlations, statistics and recovered fractions, for every length."""
    device = device_for(config.device)
    tokens = training_tokens(config.text, config.recipe.vocabulary)
    recipe = replace(config.recipe, seed=config.seed)
    training = Training(recipe, tokens.stream, device, compiled=False)
    frequency = tokens.log_frequency(recipe.vocabulary)
    looks = []
    for length in config.lengths:
        while training.step < length:
            loss = training.advance()
        if not math.isfinite(float(loss)):
            raise InputError(
                f"{config.cell}: the loss is {float(loss)} after {length} steps: lower its rates"
            )
        looks.append(_look(snapshot(training, tokens.tokenizer), frequency, config))
    return {"looks": looks}


def _look(model: Model, frequency: Float[Tensor, " vocabulary"], config: Config) -> dict[str, Any]:
    device = model.network.device
    calibration = model.texts("calibration")[:: config.every]
    blocks = token_blocks(
        model, model.texts("evaluation"), config.block_tokens, config.blocks, purpose="evaluation"
    )
    read = token_blocks(model, calibration, purpose="calibration").tokens
    seen = token_blocks(
        model, calibration, config.block_tokens, config.damage_blocks, purpose="calibration"
    ).tokens
    draws, search = apart(
        [seed("evaluation", index) for index in range(config.draws)],
        [seed("search", index) for index in range(config.damage_draws)],
        seed=int,
    )
    per_block, _ = block_results(model.network, blocks.tokens)
    digital_loss = float(per_block.mean())
    maxnn, used = scores(model, "maxnn"), routing(model, calibration)
    found: dict[str, Any] = {
        "loss": digital_loss,
        "bits_per_byte": digital_loss / math.log(2) / blocks.bytes_per_token,
        "least_share": float(used.frequency.min()) * used.frequency.shape[1] / config.recipe.top_k,
        "spearman": {
            "frequency": spearman_with_frequency(model, maxnn, frequency, read),
            "load": spearman(maxnn, used.frequency),
        },
        "hardware": [],
    }
    unit = 1 / read[:, 1:].numel()  # the load of one token
    pcm = Hardware(c=C, tile_size=config.recipe.hidden // TILES, dac_bits=None, adc_bits=None)
    converters = calibrate(model, calibration, pcm)  # a calibration of hardware without converters: no range
    for programming, w_max in config.kinds:
        hardware = as_noisy(model, replace(pcm, w_max=w_max), programming)
        ranges = replace(converters, hardware=hardware)
        measured = expert_damage(
            model,
            hardware,
            ranges,
            search,
            seen.to(device),
        )
        expected = expected_damage(model, calibration, hardware, gradient=True)
        labels, placed = placements(maxnn, used.frequency, used.weight, expected, measured, config.seed)
        noisy = torch.stack(
            [losses(model, placed, hardware, ranges, draw, blocks.tokens.to(device)) for draw in draws]
        ).mean((0, 2))
        found["hardware"].append(
            {
                "c": hardware.c,
                "loss_increase": float(noisy[0]) - digital_loss,
                "spearman": spearman(maxnn, measured),
                "recovered": recovered(labels, noisy, digital_loss),
                "statistics": {
                    "damage edge": edge(expected, maxnn, used.frequency),
                    "rank agreement": found["spearman"]["load"],
                    "spread of MaxNN": spread(maxnn),
                    "spread of load": spread(used.frequency.clamp(min=unit)),
                },
            }
        )
    return found


def placements(
    maxnn: Float[Tensor, "layers experts"],
    load: Float[Tensor, "layers experts"],
    weight: Float[Tensor, "layers experts"],
    expected: Float[Tensor, "layers experts"],
    measured: Float[Tensor, "layers experts"],
    seed: int,
) -> tuple[list[tuple[float, str]], Bool[Tensor, "placements layers experts"]]:
    """Fraction and name of every placement, and its digital experts. The first placement, of fraction 0, has none."""
    generator = torch.Generator().manual_seed(seed)
    labels, chosen = [(0.0, "none")], [rank(maxnn, 0.0)]
    for fraction in FRACTIONS:
        found = {
            "maxnn": rank(maxnn, fraction),
            "load": rank(load, fraction),
            "weight": rank(weight, fraction),
            "minnn": rank(maxnn, fraction, "minnn"),
            "expected damage": rank(expected, fraction, across_layers=True),
            "measured damage": rank(measured, fraction, across_layers=True),
        }
        labels += [(fraction, name) for name in found]
        chosen += found.values()
        labels += [(fraction, "random")] * RANDOM
        chosen += [rank(maxnn, fraction, "random", generator=generator) for _ in range(RANDOM)]
    return labels, torch.stack([as_mask(choice, maxnn.shape[1]) for choice in chosen])


def recovered(
    labels: Sequence[tuple[float, str]], loss: Float[Tensor, " placements"], digital: float
) -> list[dict[str, float]]:
    """Recovered fraction of the loss by name, for each of FRACTIONS; random placements are averaged.

    (loss of none - loss)/(loss of none - digital loss), and 0 where that denominator is below HURTS.
    """
    none = float(loss[0])
    hurts = none - digital
    found = []
    for fraction in FRACTIONS:
        mean = {
            name: float(
                np.mean(
                    [
                        float(each)
                        for label, each in zip(labels, loss, strict=True)
                        if label == (fraction, name)
                    ]
                )
            )
            for name in PLACEMENTS
        }
        found.append({name: (none - each) / hurts if hurts >= HURTS else 0.0 for name, each in mean.items()})
    return found


def edge(
    damage: Float[Tensor, "layers experts"],
    first: Float[Tensor, "layers experts"],
    second: Float[Tensor, "layers experts"],
) -> float:
    """Damage of the experts with the highest first scores minus with the highest second scores, over the damage of all.

    RULE_FRACTION of the experts of each layer; mean over layers.
    """
    total = 0.0
    for layer, one, other in zip(
        damage, rank(first, RULE_FRACTION), rank(second, RULE_FRACTION), strict=True
    ):
        total += float((layer[list(one)].sum() - layer[list(other)].sum()) / layer.sum())
    return total / len(damage)


# ------------------------------------------------------------------------------------------------- summarise


@dataclass(frozen=True)
class Cell:
    """A row of the map: all seeds of a cell. `looks` are by seed, then by length."""

    name: str
    fresh: bool
    seeds: tuple[int, ...]
    lengths: tuple[int, ...]
    kinds: tuple[str, ...]
    looks: tuple[tuple[dict[str, Any], ...], ...]

    def loss(self, length: int, quantity: str) -> Array:
        return np.array([looks[length][quantity] for looks in self.looks])

    def spearman(self, quantity: str, length: int = -1, kind: int = 0) -> Array:
        if quantity == "damage":
            return np.array([looks[length]["hardware"][kind]["spearman"] for looks in self.looks])
        return np.array([looks[length]["spearman"][quantity] for looks in self.looks])

    def hurts(self, kind: int, length: int = -1) -> NDArray[np.bool_]:
        return np.array([looks[length]["hardware"][kind]["loss_increase"] >= HURTS for looks in self.looks])

    def recovered(self, name: str, fraction: float, kind: int, length: int = -1) -> Array:
        number = FRACTIONS.index(fraction)
        return np.array([looks[length]["hardware"][kind]["recovered"][number][name] for looks in self.looks])


def summarise(configs: Sequence[Config], records: Sequence[dict[str, Any]]) -> Result:
    """The map, the statistic, and the findings by the rules."""
    cells = _cells(configs, records)
    choice, tested = _statistic(cells)
    design = {cell.name: cell for cell in cells if not cell.fresh}
    return Result(
        data={
            "map": [row for cell in cells for row in _rows(cell)],
            "kinds": list(cells[0].kinds),
            "statistic": choice,
            "seeds": len(cells[0].seeds),
            "hurts": HURTS,
        },
        findings=(*_links(design), *_axes(design), *_through_w_max(design), *_gains(design), tested),
    )


def _cells(configs: Sequence[Config], records: Sequence[dict[str, Any]]) -> list[Cell]:
    by_name: dict[str, list[tuple[Config, dict[str, Any]]]] = {}
    for config, record in zip(configs, records, strict=True):
        by_name.setdefault(config.cell, []).append((config, record))
    order = [*CHANGES, *(" + ".join(changes) for changes in FRESH)]
    return [
        Cell(
            name,
            runs[0][0].fresh,
            tuple(config.seed for config, _ in runs),
            runs[0][0].lengths,
            tuple(_kind(*kind) for kind in runs[0][0].kinds),
            tuple(tuple(record["looks"]) for _, record in runs),
        )
        for name, runs in sorted(by_name.items(), key=lambda item: order.index(item[0]))
    ]


def _kind(programming: str, w_max: str) -> str:
    return f"{programming}, {w_max}"


def _rows(cell: Cell) -> Iterator[dict[str, Any]]:
    for length, steps in enumerate(cell.lengths):
        row: dict[str, Any] = {
            "cell": cell.name,
            "fresh": cell.fresh,
            "steps": steps,
            "last": steps == cell.lengths[-1],
        }
        row["alive"] = float((cell.loss(length, "least_share") > ALIVE).mean())
        quantities = {name: cell.loss(length, name) for name in ("loss", "bits_per_byte", "least_share")}
        quantities |= {f"spearman {name}": cell.spearman(name, length) for name in CORRELATIONS[:2]}
        for number, kind in enumerate(cell.kinds):
            quantities[f"loss increase, {kind}"] = np.array(
                [looks[length]["hardware"][number]["loss_increase"] for looks in cell.looks]
            )
            quantities[f"spearman damage, {kind}"] = cell.spearman("damage", length, number)
            for fraction, name in product(FRACTIONS, PLACEMENTS):
                quantities[f"{name} {fraction:.1%}, {kind}"] = cell.recovered(name, fraction, number, length)
        for name, values in quantities.items():
            row[name], row[f"{name}_interval"] = float(values.mean()), mean_interval(values)
        yield row


def _mean(cells: dict[str, Cell], quantity: Callable[[Cell], Array]) -> Array:
    """Mean of the quantity over the design cells, for each seed."""
    return np.asarray(np.mean([quantity(cell) for cell in cells.values()], axis=0))


def _links(design: dict[str, Cell]) -> Iterator[Finding]:
    """Rules 1 and 2."""
    for name in (name for name in OPTIMISERS if name in design):
        for length, steps in enumerate(design[name].lengths):
            yield mean_finding(
                f"MaxNNScore follows token frequency; {name}, {steps} steps",
                "Spearman's correlation of MaxNNScore and mean log token frequency",
                design[name].spearman("frequency", length),
                RULE_1_SPEARMAN,
                origin="extension",
                family="token frequency",
                exploratory=True,
            )
    changed = [name for name in OPTIMISERS if name in design and name not in (BASE, ADAMW)]
    for name, quantity in product(changed, CORRELATIONS[:2]):
        yield mean_finding(
            f"MaxNNScore follows {_WORDS[quantity]} more than under AdamW; {name}",
            f"Spearman's correlation with {_WORDS[quantity]}, difference to AdamW, paired by seed",
            design[name].spearman(quantity) - design[ADAMW].spearman(quantity),
            origin="ours",
            family="optimiser of the experts",
            exploratory=True,
        )


_WORDS = {"frequency": "token frequency", "load": "load"}


def _axes(design: dict[str, Cell]) -> Iterator[Finding]:
    """Rule 3."""
    for axis, upper, lower in AXES:
        if upper in design and lower in design:
            yield mean_finding(
                f"MaxNNScore follows load more with more of: {axis} ({upper} against {lower})",
                "Spearman's correlation with load, difference, paired by seed",
                design[upper].spearman("load") - design[lower].spearman("load"),
                origin="ours",
                family="other axes",
                exploratory=True,
            )


def _through_w_max(design: dict[str, Cell]) -> Iterator[Finding]:
    """Rule 4."""
    kinds = next(iter(design.values())).kinds
    for number, kind in enumerate(kinds):
        if kind.startswith("pcm"):
            yield mean_finding(
                f"MaxNNScore tells damage better than load, as noise scales with w_max; {kind}",
                "Spearman's correlation of MaxNNScore with measured damage minus with load, mean over design cells",
                _mean(design, lambda cell, n=number: cell.spearman("damage", kind=n) - cell.spearman("load")),  # type: ignore[misc]
                origin="ours",
                family="damage against load",
                exploratory=True,
            )


COMPARISONS: tuple[tuple[Origin, str, str, float], ...] = (  # rule 5
    *(("extension", "maxnn", "random", fraction) for fraction in FRACTIONS),
    ("ours", "maxnn", "load", RULE_FRACTION),
    ("ours", "maxnn", "minnn", RULE_FRACTION),
    ("ours", "expected damage", "maxnn", RULE_FRACTION),
)
LAYER, COLUMN = (_kind("pcm", w_max) for w_max in ("layer", "column"))


def _gains(design: dict[str, Cell]) -> Iterator[Finding]:
    """Rules 5 and 6."""
    kinds = next(iter(design.values())).kinds

    def difference(first: str, second: str, fraction: float, kind: int) -> Array:
        """(cells, seeds)."""
        return np.array(
            [
                cell.recovered(first, fraction, kind) - cell.recovered(second, fraction, kind)
                for cell in design.values()
            ]
        )

    def hurts(kind: int) -> NDArray[np.bool_]:
        return np.array([cell.hurts(kind) for cell in design.values()])

    for comparison, (number, kind) in product(COMPARISONS, enumerate(kinds)):
        _, first, second, fraction = comparison
        differences, there = difference(first, second, fraction, number), hurts(number)
        yield _gain(comparison, kind, _where(there, "trainings"), *_over_seeds(differences, there))
    layer, column = kinds.index(LAYER), kinds.index(COLUMN)
    differences, there = (
        difference("maxnn", "random", RULE_FRACTION, layer)
        - difference("maxnn", "random", RULE_FRACTION, column),
        hurts(layer) & hurts(column),
    )
    yield _per_layer(_where(there, "trainings"), *_over_seeds(differences, there))


def _over_seeds(values: Array, there: NDArray[np.bool_]) -> tuple[float, IntervalAt, int]:
    """Mean, interval and number of seeds of values (cells, seeds), each seed's mean taken where noise hurts.

    Seeds at which no cell is hurt are left out; two of the others are needed for an interval.
    """
    means = np.array([values[mask, seed].mean() for seed, mask in enumerate(there.T) if mask.any()])
    interval = interval_of(means) if len(means) > 1 else _unknown
    return float(means.mean()) if len(means) else 0.0, interval, max(1, len(means))


def _unknown(confidence: float) -> Interval | None:
    return None


def _where(there: NDArray[np.bool_], what: str) -> str:
    return f"mean over the {there.sum()} of {there.size} design {what} where noise hurts"


def _gain(
    comparison: tuple[Origin, str, str, float],
    kind: str,
    where: str,
    estimate: float,
    interval: IntervalAt,
    n: int,
) -> Finding:
    origin, first, second, fraction = comparison
    return judged(
        f"{first} recovers more than {second}; {kind}, {fraction:.1%} digital",
        f"difference in the recovered fraction of the loss, {where}",
        estimate,
        interval,
        n,
        origin=origin,
        family=f"{first} against {second}",
        exploratory=True,
    )


def _per_layer(where: str, estimate: float, interval: IntervalAt, n: int) -> Finding:
    return judged(
        "w_max per layer leaves more to MaxNN than per column",
        f"recovered by MaxNN minus by random, per layer minus per column, 25.0% digital, {where} on both",
        estimate,
        interval,
        n,
        origin="ours",
        family="granularity",
        exploratory=True,
    )


def _statistic(cells: Sequence[Cell]) -> tuple[dict[str, Any], Finding]:
    """Rule 7."""
    everything: list[dict[str, Any]] = [
        {
            "cell": cell.name,
            "seed": seed,
            "design": not cell.fresh,
            "kind": kind,
            "gain": each["recovered"][FRACTIONS.index(RULE_FRACTION)]["maxnn"]
            - each["recovered"][FRACTIONS.index(RULE_FRACTION)]["load"],
            "hurts": each["loss_increase"] >= HURTS,
            **each["statistics"],
        }
        for cell in cells
        for seed, looks in zip(cell.seeds, cell.looks, strict=True)
        for look in looks
        for kind, each in zip(cell.kinds, look["hardware"], strict=True)
    ]
    points = [point for point in everything if point["hurts"]]

    def columns(chosen: Sequence[dict[str, Any]], name: str) -> tuple[Array, NDArray[np.bool_]]:
        return np.array([each[name] for each in chosen]), np.array([each["gain"] > 0 for each in chosen])

    def both(chosen: Sequence[dict[str, Any]]) -> bool:
        return len({point["gain"] > 0 for point in chosen}) == 2

    design = [point for point in points if point["design"]]
    fresh: dict[int, list[dict[str, Any]]] = {}
    for point in points:
        if not point["design"]:
            fresh.setdefault(point["seed"], []).append(point)
    fresh_seeds = len({seed for cell in cells if cell.fresh for seed in cell.seeds})
    usable = [chosen for chosen in fresh.values() if both(chosen)]
    if not both(design) or len(usable) < 2:
        return {"points": []}, judged(
            claim="a statistic of a checkpoint and one batch tells whether MaxNN beats load",
            origin="ours",
            statistic=f"share of the {len(design)} design points, where noise hurts, at which MaxNN beats load; a test"
            " needs both outcomes there and in the fresh cells",
            estimate=float(np.mean([point["gain"] > 0 for point in design])) if design else 0.0,
            interval=_unknown,
            n=max(1, len(usable)),
            threshold=RULE_7_ACCURACY,
            family="statistic",
            exploratory=True,
        )
    best = {name: best_threshold(*columns(design, name), both_sides=True) for name in STATISTICS}
    name = max(STATISTICS, key=lambda each: best[each][0])
    accuracy, threshold, side = best[name]
    tested = []
    for chosen in usable:
        values, beats = columns(chosen, name)
        tested.append(balanced_accuracy(side * values >= side * threshold, beats))
    choice = {
        "name": name,
        "threshold": threshold,
        "side": "above" if side > 0 else "below",
        "design accuracy": accuracy,
        "design accuracy of all": {other: found for other, (found, _, _) in best.items()},
        "fresh accuracy": tested,
        "fresh seeds without both outcomes": fresh_seeds - len(tested),
        "points": [{key: point[key] for key in ("cell", "design", "kind", "gain", name)} for point in points],
    }
    claim = (
        f"MaxNN beats load where {name} is {'at least' if side > 0 else 'at most'} {threshold:.3g};"
        " chosen on the design cells, tested on fresh ones"
    )
    return choice, _tested(claim, accuracy, tested, fresh_seeds)


def _tested(claim: str, accuracy: float, tested: Sequence[float], seeds: int) -> Finding:
    return mean_finding(
        claim,
        f"balanced accuracy, one for each of the {len(tested)} of {seeds} seeds of the fresh cells that have both"
        f" outcomes (on the design cells {accuracy:.2f})",
        np.array(tested),
        RULE_7_ACCURACY,
        origin="ours",
        family="statistic",
        exploratory=True,
    )


# ---------------------------------------------------------------------------------------------- judged again


def judged_again(result: Result) -> Result:
    """A result that was computed before the rules were written, judged by them from what it keeps.

    It keeps means over seeds and their 95 % intervals. Those of rules 1 to 4 stay. Those of rules 5 and 6 counted
    trainings that noise does not hurt: only estimates can be had without them, from the cells' means.
    """
    data, seeds = result.data, int(result.data["seeds"])
    design = [row for row in data["map"] if row["last"] and not row["fresh"]]
    old = {finding.claim: finding for finding in result.findings}
    found: list[Finding] = []

    def kept(family: str, start: str, threshold: float = 0.0, origin: Origin = "ours") -> None:
        for claim, finding in old.items():
            if claim.startswith(start) and claim not in {each.claim for each in found}:
                assert finding.interval is not None
                found.append(
                    judged(
                        claim,
                        finding.statistic,
                        finding.estimate,
                        _students(finding.estimate, finding.interval, seeds),
                        seeds,
                        threshold,
                        origin=origin,
                        family=family,
                        exploratory=True,
                    )
                )

    kept("token frequency", "MaxNNScore follows token frequency; ", RULE_1_SPEARMAN, "extension")
    kept("other axes", "MaxNNScore follows load more with more of: ")
    kept("optimiser of the experts", "MaxNNScore follows ")
    kept("damage against load", "MaxNNScore tells damage better than load")

    def hurts(kind: str) -> NDArray[np.bool_]:
        return np.array([row[f"loss increase, {kind}"] >= HURTS for row in design])

    def difference(first: str, second: str, fraction: float, kind: str) -> Array:
        return np.array(
            [
                row[f"{first} {fraction:.1%}, {kind}"] - row[f"{second} {fraction:.1%}, {kind}"]
                for row in design
            ]
        )

    for comparison, kind in product(COMPARISONS, data["kinds"]):
        _, first, second, fraction = comparison
        there = hurts(kind)
        estimate = float(difference(first, second, fraction, kind)[there].mean())
        found.append(_gain(comparison, kind, _where(there, "cells"), estimate, _unknown, seeds))
    there = hurts(LAYER) & hurts(COLUMN)
    coarser = [difference("maxnn", "random", RULE_FRACTION, kind)[there].mean() for kind in (LAYER, COLUMN)]
    where = _where(there, "cells")
    found.append(_per_layer(where, float(coarser[0] - coarser[1]), _unknown, seeds))
    choice = data["statistic"]
    (claim,) = (claim for claim in old if claim.startswith("MaxNN beats load where "))
    found.append(_tested(claim, choice["design accuracy"], choice["fresh accuracy"], seeds))
    if {each.claim for each in found} != {*old}:
        raise InputError("link-map: the result has findings that no rule judges: train it again")
    missing = seeds - len(choice["fresh accuracy"])
    choice = {**choice, "fresh seeds without both outcomes": missing}
    return replace(result, data={**data, "hurts": HURTS, "statistic": choice}, findings=tuple(found))


def _students(estimate: float, interval: Interval, n: int) -> IntervalAt:
    """Student's interval of n samples at each confidence, from the one at 95 %."""
    error = (interval[1] - interval[0]) / 2 / student_quantile(n - 1)

    def at(confidence: float) -> Interval:
        half = error * student_quantile(n - 1, confidence)
        return estimate - half, estimate + half

    return at
