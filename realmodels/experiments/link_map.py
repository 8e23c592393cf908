"""Link map: what has to be true of the training for MaxNNScore to follow frequency, and for MaxNN to pay?

A map of small MoE language models, trained here, over optimiser, weight decay, load balancing, learning rate, number of
experts, vocabulary and length of training: every cell differs in one thing from the base (Muon, weight decay .1, a
load-balancing loss of weight .05), and has several seeds. Three cells ask which assumption of the theory decides, by
changing nothing but the optimiser of the experts of the AdamW cell: SGD, or AdamW whose second moment is one number for
all experts of a layer, so that its steps follow the gradients. A run is looked at after a quarter, a half and the whole
of its steps (rates are constant for its first half, then fall to 0). Bias-based balancing is as it was trained, with
routers that hold the bias: OLMoE's of transformers cannot.

Scores and statistics come from calibration text, losses from evaluation text; neither occurs in training text.
- Spearman's correlation of MaxNNScore, mean over layers: with the mean log frequency, in the training text, of the
  tokens that an expert serves (experts that serve none are left out); with its load; and with its measured damage, the
  loss that its noise alone adds. A layer with fewer than 4 experts to compare, or all alike, counts as 0.
- Recovered fraction of the loss, (loss of no digital expert - loss)/(loss of no digital expert - digital loss), means
  over noise draws and text, for 12.5 % and 25 % digital experts: MaxNN, its reverse, RANDOM random ones (mean), load,
  routing weight, expected damage (closed form, with gradient) and measured damage, these two ranked across layers. The
  last is the best known placement here. Dense modules are digital. Where noise on all experts costs less than HURTS
  nats per token there is nothing to recover: every fraction is 0 there.
- Hardware: pcm at c = 2.5 with w_max per tile, column and layer, and, per tile, each other noise at the c at which the
  root mean square of the noise on the experts' weights is that of pcm. Tiles are of a quarter of the hidden size, as
  OLMoE has it; in tiles of 512 one tile would hold a whole matrix of these models, and tile and layer be the same.
  There are no converters, as in the synthetic map: their best ranges differ between cells.
An expert is alive with more than ALIVE of its fair share of the calibration tokens; a cell says for how many of its
seeds all are.

Rules, fixed before the first run. Intervals are 95 % intervals over training seeds, of what is named or of its mean
over the design cells, at the end of training unless a length is named.
1. [paper] MaxNNScore follows token frequency: Spearman above .5 holds, below fails. One finding for each optimiser (the
   base is one of them) and length.
2. [ours] The experts' optimiser decides: the Spearman with token frequency, and that with load, is larger with only
   the experts' optimiser changed, and with all changed to SGD, than with AdamW: paired difference above 0 holds, below
   fails.
3. [ours] Other axes: the same for both ends of each axis (more weight decay, load balancing against none, longer
   training, larger learning rates, more experts, larger vocabulary), the Spearman with load.
4. [ours] Large neurons matter through w_max and not through frequency: (Spearman with damage) - (Spearman with load)
   above 0 holds, below fails, mean over the design cells; for each granularity.
5. [paper] MaxNN recovers more than random choice, 12.5 % and 25 %: difference above 0 holds, below fails, mean over
   the design cells, for each hardware. [ours] The same over load, over its reverse, and of expected damage over MaxNN,
   25 %.
6. [ours] The finer w_max, the less there is in MaxNN: (MaxNN - random) per layer minus per column above 0 holds, below
   fails, 25 %.
7. [ours] A statistic of a checkpoint, or of it and one batch, tells whether MaxNN will beat load. MaxNN "beats load"
   where its recovered fraction is the larger one at 25 %, for one model, length and hardware. Candidates: "damage
   edge" (expected damage of MaxNN's experts minus that of load's, 25 % of each layer, over that of the layer, mean
   over layers), "rank agreement" (Spearman of MaxNN and load), "spread of MaxNN" and "spread of load" (largest over
   median, mean over layers; an unused expert counts as one token). Candidate, threshold and side are those of largest
   balanced accuracy on the design cells; they are then tested on the fresh cells, each of two changes and with other
   seeds: balanced accuracy, one for each of these seeds, above .75 holds, below fails. Only where noise hurts; a test
   needs points of both outcomes.
"""

import hashlib
import math
import re
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product
from multiprocessing import current_process
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from scipy.stats import rankdata
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from realmodels import text as corpus
from realmodels.calibrate import calibrate
from realmodels.compare import as_mask, expert_damage, losses
from realmodels.damage import expected_damage
from realmodels.evaluate import block_results, token_blocks
from realmodels.experiments.rig import as_noisy
from realmodels.families import describe
from realmodels.load import CHECKPOINTS, DEFAULT_MODEL, Model
from realmodels.pretrain import Recipe, TokenFolder, Training, encode
from realmodels.scores import scores
from realmodels.statistics import choices, routing
from theory.errors import InputError
from theory.evidence import (
    Finding,
    Origin,
    Result,
    balanced_accuracy,
    best_threshold,
    judged,
    mean_finding,
    mean_interval,
    seed_count,
)
from theory.hardware import PROGRAMMING_NOISE, Granularity, Hardware
from theory.paper import DIGITAL_EXPERTS, RECOVERED_AT
from theory.placement import rank

Array = NDArray[np.float64]

C = RECOVERED_AT.value  # of pcm
TILES = 4  # that the hidden size is cut into
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
RANDOM = 4  # random placements
ALIVE = 0.05  # of the fair share
HURTS = 0.01  # nats per token
FRESH_SEED = 100  # of the first seed of the fresh cells
DAMAGE_SEED = 1000  # of the first noise draw that damage is measured with

# In 100 steps of small models, SGD learned most at a rate of .1 (Recipe's), of .03, .1, .3 and 1. Experts alone hardly
# grow at such rates: in 80 steps their norm went from 6.04 to 6.06 at .3, to 6.25 at 1, and at 3 to 20 with dead ones.
EXPERT_SGD_RATE = 1.0

BASE = "muon"
ADAMW = "AdamW"
OPTIMISERS = (BASE, ADAMW, "SGD", "AdamW, experts SGD", "AdamW, experts one RMS")
AXES = (  # rule 3: what is larger, at its upper and at its lower end
    ("weight decay", "weight decay .3", "weight decay 0"),
    ("load-balancing loss against none", BASE, "no balancing"),
    ("load-balancing bias against none", "balancing by bias", "no balancing"),
    ("learning rates", "rates x 3", "rates / 3"),
    ("number of experts", "64 experts", "16 experts"),
    ("vocabulary", BASE, "vocabulary 2048"),
    ("steps", "4 times the steps", BASE),
)


def _scaled(recipe: Recipe, factor: float) -> Recipe:
    return replace(
        recipe,
        matrix_learning_rate=factor * recipe.matrix_learning_rate,
        learning_rate=factor * recipe.learning_rate,
        sgd_learning_rate=factor * recipe.sgd_learning_rate,
    )


# Each changes one thing.
CHANGES: dict[str, Callable[[Recipe], Recipe]] = {
    BASE: lambda recipe: recipe,
    ADAMW: lambda recipe: replace(recipe, optimiser="adamw"),
    "SGD": lambda recipe: replace(recipe, optimiser="sgd"),
    "AdamW, experts SGD": lambda recipe: replace(
        recipe, optimiser="adamw", expert_optimiser="sgd", sgd_learning_rate=EXPERT_SGD_RATE
    ),
    "AdamW, experts one RMS": lambda recipe: replace(
        recipe, optimiser="adamw", expert_optimiser="adamw_one_rms"
    ),
    "weight decay 0": lambda recipe: replace(recipe, weight_decay=0.0),
    "weight decay .3": lambda recipe: replace(recipe, weight_decay=0.3),
    "no balancing": lambda recipe: replace(recipe, balance=0.0),
    "balancing by bias": lambda recipe: replace(recipe, balance=0.0, balance_bias=0.001),
    "rates / 3": lambda recipe: _scaled(recipe, 1 / 3),
    "rates x 3": lambda recipe: _scaled(recipe, 3.0),
    "16 experts": lambda recipe: replace(recipe, experts=16),
    "64 experts": lambda recipe: replace(recipe, experts=64),
    "vocabulary 2048": lambda recipe: replace(recipe, vocabulary=2048),
    "4 times the steps": lambda recipe: replace(recipe, steps=4 * recipe.steps),
}
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

    text: a folder with a token folder `tokens-VOCABULARY` for each vocabulary, or packages whose docstrings are the
    training text, separated by commas; text_hash: of its tokens. recipe: its own seed does not matter. draws,
    damage_draws: of the noise, for losses and for damage; blocks, damage_blocks: of evaluation text, and of
    calibration text, where each draw has its own. every: of so many documents of the calibration text, one is used.
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
    recipe: Recipe
    text: str  # packages; full has none
    design: tuple[str, ...]
    fresh: tuple[tuple[str, str], ...]
    seeds: int
    parts: tuple[int, ...]  # of the run, one over which are its lengths
    kinds: tuple[tuple[str, Granularity], ...]
    draws: int
    blocks: int
    damage_draws: int
    damage_blocks: int
    every: int
    block_tokens: int


_BASE_RECIPE = Recipe(
    vocabulary=4096,
    expert_width=48,
    batch_tokens=32768,
    steps=300,
    balance=0.05,
    weight_decay=0.1,
)
_SMALL_RECIPE = replace(
    _BASE_RECIPE,
    hidden=64,
    layers=2,
    heads=2,
    experts=8,
    top_k=2,
    expert_width=32,
    context=128,
    batch_tokens=2048,
)
PRESETS = {
    "quick": Preset(
        replace(_SMALL_RECIPE, steps=12, batch_tokens=1024),
        "networkx",
        (BASE, ADAMW, "AdamW, experts SGD"),
        ((ADAMW, "weight decay 0"), ("no balancing", "rates / 3")),
        2, (1,), (("pcm", "tile"), ("pcm", "column"), ("pcm", "layer")), 2, 4, 1, 2, 16, 64,
    ),
    "default": Preset(
        replace(_SMALL_RECIPE, steps=80),
        "sympy,networkx",
        OPTIMISERS,
        ((ADAMW, "weight decay 0"), ("no balancing", "rates / 3")),
        3, (1,), KINDS[:3], 2, 6, 1, 4, 8, 128,
    ),
    "full": Preset(
        _BASE_RECIPE, "", tuple(CHANGES), FRESH, 3, (4, 2, 1), KINDS, 4, 32, 4, 16, 4, 128
    ),
}  # fmt: skip


def grid(preset: str, text: str | None = None, device: str = "cpu", seeds: int | None = None) -> list[Config]:
    """Every training run; `seeds` of each cell (at least 2), `text` a folder of token folders."""
    chosen = PRESETS[preset]
    count = seed_count(seeds, chosen.seeds, "training seeds")
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
                seed=seed + FRESH_SEED * fresh,
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
            for seed in range(count)
        ]
    return sorted(found, key=lambda config: -config.recipe.steps)  # so that workers end together


# ------------------------------------------------------------------------------------------------------ text


@dataclass(frozen=True)
class Tokens:
    """Training text in tokens, and the hash of both."""

    tokenizer: PreTrainedTokenizerFast
    stream: NDArray[np.uint16]
    hash: str

    def log_frequency(self, vocabulary: int) -> Float[Tensor, " vocabulary"]:
        """Of every token in the text, with one added to every count."""
        counts = np.bincount(self.stream, minlength=vocabulary) + 1.0
        return torch.from_numpy(np.log(counts / counts.sum()))


@lru_cache(maxsize=2)
def training_tokens(source: str, vocabulary: int) -> Tokens:
    folder = CHECKPOINTS / DEFAULT_MODEL
    if set(source.split(",")) <= set(corpus.HELD_OUT_PACKAGES):
        documents = training_documents(source)
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
        stream = encode(tokenizer, documents)
    else:
        folder = Path(source) / f"tokens-{vocabulary}"
        if not (folder / "tokens.npz").is_file():
            raise InputError(
                f"--text {source}: it has no {folder.name} with tokens.npz; make it with python -m realmodels.pretrain"
                f" tokenize TEXTS {folder} --vocabulary {vocabulary}"
            )
        tokens = TokenFolder.open(folder)
        if tokens.vocabulary != vocabulary:
            raise InputError(
                f"--text {source}: {folder.name} is of {tokens.vocabulary} tokens; give {vocabulary}"
            )
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
        stream = tokens.stream("training")
    digest = hashlib.sha256((folder / "tokenizer.json").read_bytes() + stream.tobytes())
    return Tokens(tokenizer, stream, digest.hexdigest())


def training_documents(packages: str) -> list[str]:
    """Docstrings and comments of the packages' training modules, each paragraph once.

    What of them occurs in held-out modules was removed from the held-out texts when the corpus was built.
    """
    keep = corpus.FirstOccurrence()
    return [
        document
        for package in packages.split(",")
        for document in corpus.documents(corpus.package_folder(package), package, keep, "training")
    ]


# --------------------------------------------------------------------------------------------------- measure


def measure(config: Config) -> dict[str, Any]:
    """For every length: losses, least share, correlations, statistics, recovered fractions."""
    device = _device(config.device)
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


def _device(kind: str) -> torch.device:
    """Of several GPUs, the workers of joblib take one each in turn."""
    if kind != "cuda":
        return torch.device(kind)
    number = re.search(r"\d+$", current_process().name)
    device = torch.device(kind, int(number[0] if number else 0) % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device


def snapshot(training: Training, tokenizer: PreTrainedTokenizerFast) -> Model:
    """The model as `load` would give it from the checkpoint that training would save: weights of bf16, in fp32."""
    network = deepcopy(training.model)
    for name, parameter in network.named_parameters():
        parameter.data = training.masters[name].view_as(parameter).bfloat16().float()
    network.eval().requires_grad_(False)
    return Model("link-map", network, tokenizer, describe(network), weights_hash="")


def _look(model: Model, frequency: Float[Tensor, " vocabulary"], config: Config) -> dict[str, Any]:
    device = model.network.device
    calibration = model.texts("calibration")[:: config.every]
    blocks = token_blocks(model, model.texts("evaluation"), config.block_tokens, config.blocks)
    read = token_blocks(model, calibration).tokens
    seen = token_blocks(model, calibration, config.block_tokens, config.damage_blocks).tokens
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
    converters = calibrate(model, calibration, pcm)  # none, but it says so
    for programming, w_max in config.kinds:
        hardware = as_noisy(model, replace(pcm, w_max=w_max), programming)
        ranges = replace(converters, hardware=hardware)
        measured = expert_damage(
            model,
            hardware,
            ranges,
            range(DAMAGE_SEED, DAMAGE_SEED + config.damage_draws),
            seen.to(device),
        )
        expected = expected_damage(model, calibration, hardware, gradient=True)
        labels, placed = placements(maxnn, used.frequency, used.weight, expected, measured, config.seed)
        noisy = torch.stack(
            [
                losses(model, placed, hardware, ranges, seed, blocks.tokens.to(device))
                for seed in range(config.draws)
            ]
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


def spearman_with_frequency(
    model: Model,
    maxnn: Float[Tensor, "layers experts"],
    frequency: Float[Tensor, " vocabulary"],
    tokens: Int[Tensor, "blocks tokens_plus_1"],
) -> float:
    inputs = tokens[:, :-1].flatten()
    found = []
    for score, (index, _) in zip(maxnn, choices(model, tokens), strict=True):
        count, total = score.new_zeros(len(score)), score.new_zeros(len(score))
        count.index_add_(0, index.flatten(), count.new_ones(index.numel()))
        total.index_add_(0, index.flatten(), frequency[inputs].repeat_interleave(index.shape[1]))
        served = count > 0
        found.append(spearman(score[served][None], (total / count)[served][None]))
    return float(np.mean(found))


def spearman(first: Float[Tensor, "layers experts"], second: Float[Tensor, "layers experts"]) -> float:
    """Mean over layers of Spearman's correlation; a layer of fewer than 4 experts, or all alike, counts as 0."""
    total = 0.0
    for pair in zip(first, second, strict=True):
        ranks = [rankdata(each.numpy()) for each in pair]
        if len(ranks[0]) >= 4 and all(np.ptp(each) > 0 for each in ranks):
            total += float(np.corrcoef(*ranks)[0, 1])
    return total / len(first)


def placements(
    maxnn: Float[Tensor, "layers experts"],
    load: Float[Tensor, "layers experts"],
    weight: Float[Tensor, "layers experts"],
    expected: Float[Tensor, "layers experts"],
    measured: Float[Tensor, "layers experts"],
    seed: int,
) -> tuple[list[tuple[float, str]], Bool[Tensor, "placements layers experts"]]:
    """Fraction and name of every placement, and which experts are digital; the first, of fraction 0, has none."""
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
    """Of every fraction, by name: (loss of none - loss)/(loss of none - digital loss), random ones averaged.

    0 where that denominator is below HURTS.
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
    """Damage of the experts of highest first score minus that of highest second, of all; mean over layers."""
    total = 0.0
    for layer, one, other in zip(
        damage, rank(first, RULE_FRACTION), rank(second, RULE_FRACTION), strict=True
    ):
        total += float((layer[list(one)].sum() - layer[list(other)].sum()) / layer.sum())
    return total / len(damage)


def spread(values: Float[Tensor, "layers experts"]) -> float:
    """Largest over median, mean over layers."""
    return float((values.amax(1) / values.quantile(0.5, 1)).mean())


# ------------------------------------------------------------------------------------------------- summarise


@dataclass(frozen=True)
class Cell:
    """A row of the map: all seeds of a cell; `looks` by seed and length."""

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

    def recovered(self, name: str, fraction: float, kind: int, length: int = -1) -> Array:
        number = FRACTIONS.index(fraction)
        return np.array([looks[length]["hardware"][kind]["recovered"][number][name] for looks in self.looks])


def summarise(configs: Sequence[Config], records: Sequence[dict[str, Any]]) -> Result:
    """The map, the statistic, and the findings by the rules above."""
    cells = _cells(configs, records)
    choice, tested = _statistic(cells)
    design = {cell.name: cell for cell in cells if not cell.fresh}
    return Result(
        data={
            "map": [row for cell in cells for row in _rows(cell)],
            "kinds": list(cells[0].kinds),
            "statistic": choice,
            "seeds": len(cells[0].seeds),
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
    """Over the design cells, for each seed."""
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
                origin="paper",
            )
    changed = [name for name in OPTIMISERS if name in design and name not in (BASE, ADAMW)]
    for name, quantity in product(changed, CORRELATIONS[:2]):
        yield mean_finding(
            f"MaxNNScore follows {_WORDS[quantity]} more than under AdamW; {name}",
            f"Spearman's correlation with {_WORDS[quantity]}, difference to AdamW, paired by seed",
            design[name].spearman(quantity) - design[ADAMW].spearman(quantity),
            origin="ours",
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
            )


def _gains(design: dict[str, Cell]) -> Iterator[Finding]:
    """Rules 5 and 6."""
    kinds = next(iter(design.values())).kinds

    def difference(first: str, second: str, fraction: float, kind: int) -> Array:
        return _mean(
            design,
            lambda cell: cell.recovered(first, fraction, kind) - cell.recovered(second, fraction, kind),
        )

    comparisons: list[tuple[Origin, str, str, float]] = [
        *(("paper", "maxnn", "random", fraction) for fraction in FRACTIONS),
        ("ours", "maxnn", "load", RULE_FRACTION),
        ("ours", "maxnn", "minnn", RULE_FRACTION),
        ("ours", "expected damage", "maxnn", RULE_FRACTION),
    ]
    for (origin, first, second, fraction), (number, kind) in product(comparisons, enumerate(kinds)):
        yield mean_finding(
            f"{first} recovers more than {second}; {kind}, {fraction:.1%} digital",
            "difference in the recovered fraction of the loss, mean over design cells",
            difference(first, second, fraction, number),
            origin=origin,
        )
    layer, column = (kinds.index(_kind("pcm", w_max)) for w_max in ("layer", "column"))
    yield mean_finding(
        "w_max per layer leaves more to MaxNN than per column",
        "recovered by MaxNN minus by random, per layer minus per column, 25.0% digital, mean over design cells",
        difference("maxnn", "random", RULE_FRACTION, layer)
        - difference("maxnn", "random", RULE_FRACTION, column),
        origin="ours",
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
    usable = [chosen for chosen in fresh.values() if both(chosen)]
    if not both(design) or len(usable) < 2:
        return {"points": []}, judged(
            claim="a statistic of a checkpoint and one batch tells whether MaxNN beats load",
            origin="ours",
            statistic=f"share of the {len(design)} design points, where noise hurts, at which MaxNN beats load; a test"
            " needs both outcomes there and in the fresh cells",
            estimate=float(np.mean([point["gain"] > 0 for point in design])) if design else 0.0,
            interval=None,
            n=max(1, len(usable)),
            threshold=RULE_7_ACCURACY,
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
        "points": [{key: point[key] for key in ("cell", "design", "kind", "gain", name)} for point in points],
    }
    return choice, mean_finding(
        f"MaxNN beats load where {name} is {'at least' if side > 0 else 'at most'} {threshold:.3g};"
        " chosen on the design cells, tested on fresh ones",
        f"balanced accuracy, one for each seed of the fresh cells (on the design cells {accuracy:.2f})",
        np.array(tested),
        RULE_7_ACCURACY,
        origin="ours",
    )
