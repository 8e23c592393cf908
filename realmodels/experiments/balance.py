"""Balance: does the load-balancing loss break the link between MaxNNScore and load, and who decides its sign?

The map of trainings (`link-map`) found, after the fact, that MaxNNScore follows neither load nor token
frequency under a load-balancing loss, and that without such a loss MaxNNScore follows load: upwards or downwards,
depending on the optimiser. The theory knows no such loss; experts of the theory have unequal load and train by SGD.
This exhibit tests that guess. The optimisers of the map train with a load-balancing loss of weight .05 and with none,
all else alike, at another size and with other seeds. Both runs of a seed start from the same weights and see the same
text. No weight is noisy here.

Scores and routing come from calibration text, the loss from evaluation text; neither occurs in training text.
- Spearman's correlation of MaxNNScore, mean over layers: with load, and with the mean log frequency, in the training
  text, of the tokens that an expert serves. A layer with fewer than 4 experts to compare, or all alike, counts as 0.
- The correlation with load among the experts alive, which have more than ALIVE of their fair share of the tokens. Other
  experts were thought to keep their first weights, but for decay, and could be all there is in a link. (They turned
  out to grow under Muon and AdamW.) The number of experts alive is in the data.
- Spread of load and of MaxNNScore: largest over median, mean over layers. An unused expert counts as one token.
- Growth: last MaxNNScore over first MaxNNScore of the same expert, geometric mean over the quarter of the experts of
  each layer with the most load, and over the quarter with the least.

Rules: rules/figure-balance.md.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from realmodels.evaluate import block_results, token_blocks
from realmodels.experiments.trainings import (
    ALIVE,
    BASE,
    CHANGES,
    OPTIMISERS,
    SMALL_RECIPE,
    off_one,
    snapshot,
    spearman,
    spearman_with_frequency,
    spread,
    training_tokens,
)
from realmodels.pretrain import Recipe, Training
from realmodels.scores import scores
from realmodels.statistics import routing
from theory.errors import InputError
from theory.evidence import (
    Finding,
    Origin,
    Result,
    Scale,
    interval_of,
    mean_finding,
    mean_of,
    mean_within,
)
from theory.separation import evaluation_seeds

Array = NDArray[np.float64]

NO_LINK = 0.3  # a Spearman correlation within -NO_LINK ... NO_LINK is no link
LINK = 0.5  # a Spearman correlation beyond LINK is a link
SIGNS = {name: -1 if name == BASE else 1 for name in OPTIMISERS}
OURS = (BASE, "AdamW")  # optimisers whose sign is a guess of ours; the theory assumes the others
QUANTITIES = (
    "spearman load",
    "spearman load among alive",
    "spearman frequency",
    "alive",
    "spread of load",
    "spread of MaxNN",
    "growth of the most used",
    "growth of the least used",
    "loss",
)
SCALES: dict[str, Scale] = {
    name: "fisher"
    if name.startswith("spearman")
    else "log"
    if name.startswith(("spread", "growth"))
    else "linear"
    for name in QUANTITIES
}


@dataclass(frozen=True)
class Config:
    """One training run.

    optimiser: one of OPTIMISERS.
    balanced: True with the load-balancing loss.
    recipe: `seed` overrides the recipe's seed.
    text, text_hash, every, blocks, block_tokens: as in the config of `link-map`.
    """

    optimiser: str
    balanced: bool
    recipe: Recipe
    seed: int
    text: str
    text_hash: str
    every: int
    blocks: int
    block_tokens: int


@dataclass(frozen=True)
class Preset:
    """How much is computed; `recipe` has the load-balancing loss."""

    recipe: Recipe
    text: str
    seeds: int
    every: int
    blocks: int


_RECIPE = replace(SMALL_RECIPE, steps=80, batch_tokens=1024)
BLOCK_TOKENS = 128
PRESETS = {
    "quick": Preset(
        recipe=replace(_RECIPE, hidden=32, batch_tokens=512, steps=6),
        text="networkx",
        seeds=2,
        every=16,
        blocks=4,
    ),
    "default": Preset(
        recipe=_RECIPE,
        text="sympy,networkx",
        seeds=3,
        every=16,
        blocks=16,
    ),
    "full": Preset(
        recipe=replace(
            _RECIPE,
            hidden=128,
            layers=3,
            heads=4,
            experts=16,
            expert_width=48,
            batch_tokens=2048,
            steps=150,
        ),
        text="sympy,networkx",
        seeds=8,
        every=8,
        blocks=32,
    ),
}


def grid(preset: str, seeds: int | None = None, first_seed: int | None = None) -> list[Config]:
    """Every training run: each optimiser with and without the loss; `seeds` from `first_seed` on for each of both."""
    chosen = PRESETS[preset]
    trained = evaluation_seeds(seeds, chosen.seeds, first_seed, "training seeds")
    text_hash = training_tokens(chosen.text, chosen.recipe.vocabulary).hash
    found = []
    for optimiser, balanced, seed in product(OPTIMISERS, (True, False), trained):
        recipe = CHANGES[optimiser](chosen.recipe)
        found.append(
            Config(
                optimiser=optimiser,
                balanced=balanced,
                recipe=recipe if balanced else CHANGES["no balancing"](recipe),
                seed=seed,
                text=chosen.text,
                text_hash=text_hash,
                every=chosen.every,
                blocks=chosen.blocks,
                block_tokens=BLOCK_TOKENS,
            )
        )
    return found


# --------------------------------------------------------------------------------------------------- measure


def measure(config: Config) -> dict[str, Any]:
    """QUANTITIES of one run, and for each layer load, MaxNNScore and first MaxNNScore of the experts.

    Loads are in fair shares of the tokens. "alive" is the mean number of experts alive in a layer.
    """
    tokens = training_tokens(config.text, config.recipe.vocabulary)
    training = Training(
        replace(config.recipe, seed=config.seed), tokens.stream, torch.device("cpu"), compiled=False
    )
    first = scores(snapshot(training, tokens.tokenizer), "maxnn")
    while training.step < config.recipe.steps:
        loss = training.advance()
    if not math.isfinite(float(loss)):
        raise InputError(f"{config.optimiser}: the last loss is {float(loss)}: lower its rates")
    model = snapshot(training, tokens.tokenizer)
    calibration = model.texts("calibration")[:: config.every]
    read = token_blocks(model, calibration, purpose="calibration").tokens
    evaluation = token_blocks(
        model, model.texts("evaluation"), config.block_tokens, config.blocks, purpose="evaluation"
    )
    maxnn, used = scores(model, "maxnn"), routing(model, calibration).frequency
    fair = config.recipe.top_k / config.recipe.experts
    frequency = tokens.log_frequency(config.recipe.vocabulary)
    least, most = growth(first, maxnn, used)
    return {
        "spearman load": spearman(maxnn, used),
        "spearman load among alive": spearman_alive(maxnn, used, fair),
        "spearman frequency": spearman_with_frequency(model, maxnn, frequency, read),
        "alive": float((used > ALIVE * fair).double().sum(1).mean()),
        "spread of load": spread(used.clamp(min=1 / read[:, 1:].numel())),
        "spread of MaxNN": spread(maxnn),
        "growth of the most used": most,
        "growth of the least used": least,
        "loss": float(block_results(model.network, evaluation.tokens)[0].mean()),
        "experts": [
            {"load": load.tolist(), "score": score.tolist(), "first": before.tolist()}
            for load, score, before in zip(used / fair, maxnn, first, strict=True)
        ],
    }


def spearman_alive(
    maxnn: Float[Tensor, "layers experts"], load: Float[Tensor, "layers experts"], fair: float
) -> float:
    """Spearman's correlation among the experts with more than ALIVE of the fair load, mean over layers.

    A layer with fewer than 4 experts alive counts as 0.
    """
    return float(
        np.mean(
            [
                spearman(score[alive][None], used[alive][None])
                for score, used, alive in zip(maxnn, load, load > ALIVE * fair, strict=True)
            ]
        )
    )


def growth(
    first: Float[Tensor, "layers experts"],
    last: Float[Tensor, "layers experts"],
    load: Float[Tensor, "layers experts"],
) -> tuple[float, float]:
    """Geometric means of last over first MaxNNScore: over the quarter with least load, and with most load."""
    quarter = load.shape[1] // 4
    ordered = (last / first).log().gather(1, load.argsort(dim=1, stable=True))
    return float(ordered[:, :quarter].mean().exp()), float(ordered[:, -quarter:].mean().exp())


# ------------------------------------------------------------------------------------------------- summarise


@dataclass(frozen=True)
class Pair:
    """Runs of an optimiser without (`free`) and with (`balanced`) the load-balancing loss, in one order of seeds."""

    optimiser: str
    free: tuple[dict[str, Any], ...]
    balanced: tuple[dict[str, Any], ...]

    def without(self, quantity: str) -> Array:
        return self._values(self.free, quantity)

    def with_loss(self, quantity: str) -> Array:
        return self._values(self.balanced, quantity)

    def _values(self, records: Sequence[dict[str, Any]], quantity: str) -> Array:
        values = np.array([record[quantity] for record in records])
        if SCALES[quantity] != "fisher":
            return values
        return off_one(values, min(len(layer["score"]) for layer in records[0]["experts"]))


def summarise(configs: Sequence[Config], records: Sequence[dict[str, Any]]) -> Result:
    """Quantities with and without the loss, experts of the first seed, findings by the rules."""
    pairs = _pairs(configs, records)
    return Result(
        data={
            "runs": [row for pair in pairs for row in _rows(pair)],
            "experts": [
                {
                    "optimiser": pair.optimiser,
                    "with": pair.balanced[0]["experts"],
                    "without": pair.free[0]["experts"],
                }
                for pair in pairs
            ],
            "seeds": sorted({config.seed for config in configs}),
        },
        findings=tuple(finding for rule in _RULES for pair in pairs for finding in [rule(pair)]),
    )


def _pairs(configs: Sequence[Config], records: Sequence[dict[str, Any]]) -> list[Pair]:
    runs = {
        (config.optimiser, config.balanced, config.seed): record
        for config, record in zip(configs, records, strict=True)
    }
    seeds = sorted({config.seed for config in configs})
    return [
        Pair(
            name,
            tuple(runs[name, False, seed] for seed in seeds),
            tuple(runs[name, True, seed] for seed in seeds),
        )
        for name in OPTIMISERS
    ]


def _rows(pair: Pair) -> Iterator[dict[str, Any]]:
    for balancing, values_of in (("with", pair.with_loss), ("without", pair.without)):
        row: dict[str, Any] = {"optimiser": pair.optimiser, "balancing": balancing}
        for name in QUANTITIES:
            values = values_of(name)
            row[name] = mean_of(values, SCALES[name])
            row[f"{name}_interval"] = interval_of(values, SCALES[name])(0.95)
        yield row


def _no_link(pair: Pair) -> Finding:
    """Rule 1."""
    return mean_within(
        f"with a load-balancing loss MaxNNScore does not follow load; {pair.optimiser}",
        "Spearman's correlation of MaxNNScore and load",
        pair.with_loss("spearman load"),
        0.0,
        NO_LINK,
        origin="ours",
        family="no link with balancing",
        scale="fisher",
    )


def _link(pair: Pair) -> Finding:
    """Rule 2."""
    return _beyond(
        f"without a load-balancing loss MaxNNScore {_way(pair)} with load; {pair.optimiser}",
        "Spearman's correlation of MaxNNScore and load",
        pair.without("spearman load"),
        LINK,
        SIGNS[pair.optimiser],
        origin="ours" if pair.optimiser in OURS else "extension",
        family="link without balancing",
    )


def _among_alive(pair: Pair) -> Finding:
    """Rule 3."""
    return _beyond(
        f"without a load-balancing loss, and among alive experts alone, MaxNNScore {_way(pair)} with"
        f" load; {pair.optimiser}",
        "Spearman's correlation of MaxNNScore and load among alive experts",
        pair.without("spearman load among alive"),
        0.0,
        SIGNS[pair.optimiser],
        origin="ours",
        family="link among alive experts",
    )


def _breaks(pair: Pair) -> Finding:
    """Rule 4."""
    return _beyond(
        f"load balancing takes the link away: without it MaxNNScore {_way(pair)} more with load;"
        f" {pair.optimiser}",
        "Spearman's correlation of MaxNNScore and load, without the loss minus with it, paired by seed",
        pair.without("spearman load") - pair.with_loss("spearman load"),
        0.0,
        SIGNS[pair.optimiser],
        origin="ours",
        family="balancing breaks the link",
        scale="linear",  # a difference of correlations is none
    )


def _frequency(pair: Pair) -> Finding:
    """Rule 5."""
    return _beyond(
        f"without a load-balancing loss MaxNNScore follows token frequency; {pair.optimiser}",
        "Spearman's correlation of MaxNNScore and mean log token frequency",
        pair.without("spearman frequency"),
        LINK,
        origin="extension",
        family="token frequency",
    )


_RULES: tuple[Callable[[Pair], Finding], ...] = (_no_link, _link, _among_alive, _breaks, _frequency)


def _way(pair: Pair) -> str:
    return "rises" if SIGNS[pair.optimiser] > 0 else "falls"


def _beyond(
    claim: str,
    statistic: str,
    values: Array,
    limit: float,
    sign: int = 1,
    *,
    origin: Origin,
    family: str,
    scale: Scale = "fisher",
) -> Finding:
    """The finding that the mean is beyond sign times `limit`, on the side that the sign says."""
    return mean_finding(
        claim,
        statistic,
        values,
        sign * limit + 0.0,  # not -0
        "above" if sign > 0 else "below",
        origin=origin,
        family=family,
        scale=scale,
    )
