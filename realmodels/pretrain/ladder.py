"""Which models does the ladder have, and how large are they?

Rungs of one family differ in width alone, which doubles from rung to rung: 64 experts, as in the paper's models, and
heads of 32 dimensions. OLMoE's experts are half as wide as the model, and a token uses 8. DeepSeekMoE's are 5/8 as wide
(11/16 in deepseek-moe-16b, where rows need not be aligned), a token uses 6 beside 2 shared ones, and the first layer is
dense. Each rung's rates follow from those of width 64 [realmodels.pretrain.transfer].

A batch grows with the width, as the square root of the tokens [Zhang et al., 2025, "How does critical batch size scale
in pre-training?"]. A pass, and so a balance loss, is of equally many tokens everywhere.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from realmodels.pretrain.recipe import Recipe
from realmodels.pretrain.size import size_of

TOKENS_PER_ACTIVE_PARAMETER: Final = 16
BASE: Final = Recipe(
    vocabulary=8192,
    hidden=64,
    layers=9,
    heads=2,
    experts=64,
    top_k=8,
    expert_width=32,
    normalise_top_k=False,
    context=512,
    batch_tokens=16384,
    pass_tokens=16384,
    optimiser="adamw",
    matrix_learning_rate=4e-3,
    learning_rate=4e-3,
    base_width=64,
    warmup=0.05,
    weight_decay=0.1,
    balance=0.05,  # as of the models that ship
)
DEEPSEEK: Final = replace(
    BASE, family="deepseek", layers=7, top_k=6, shared_experts=2, dense_layers=1, expert_width=40
)
MUON_MATRIX_RATE: Final = 2e-2  # at width 64


@dataclass(frozen=True)
class Rung:
    """A model of the ladder. seeds: how many trainings, with seeds from 0."""

    recipe: Recipe
    seeds: int

    @property
    def parameters(self) -> int:
        return size_of(self.recipe).total

    @property
    def active_parameters(self) -> int:
        """Those that a token is multiplied with: without embeddings and norms."""
        return size_of(self.recipe).active

    @property
    def dense_share(self) -> float:
        """The share of the parameters that are in dense modules: attention, LM head, shared experts, dense FFN."""
        return size_of(self.recipe).dense / self.parameters

    @property
    def tokens(self) -> int:
        """How many are read in training."""
        return self.recipe.steps * self.recipe.batch_tokens

    @property
    def flops(self) -> int:
        """Floating-point operations of training [Size.flops_per_token]."""
        return size_of(self.recipe).flops_per_token * self.tokens


def _rung(base: Recipe, wider: int, seeds: int, lengths: float = 1, **entries: Any) -> Rung:
    """lengths: tokens per active parameter, relative to the ladder's."""
    recipe = replace(
        base,
        hidden=base.hidden * wider,
        heads=base.heads * wider,
        expert_width=base.expert_width * wider,
        batch_tokens=base.batch_tokens * wider,
        **entries,
    )
    tokens = lengths * TOKENS_PER_ACTIVE_PARAMETER * size_of(recipe).active
    return Rung(replace(recipe, steps=round(tokens / recipe.batch_tokens)), seeds)


LADDER: Final[Mapping[str, Rung]] = {
    "olmoe-4m": _rung(BASE, 1, 5),
    "olmoe-16m": _rung(BASE, 2, 5),
    "olmoe-64m": _rung(BASE, 4, 3),
    "olmoe-256m": _rung(BASE, 8, 2),
    "olmoe-1b": _rung(BASE, 16, 1, 1 / 8),  # for half an hour on two GPUs
    "olmoe-16m-quarter": _rung(BASE, 2, 5, 1 / 4),
    "olmoe-16m-fourfold": _rung(BASE, 2, 5, 4),
    "olmoe-16m-muon": _rung(BASE, 2, 5, optimiser="muon", matrix_learning_rate=MUON_MATRIX_RATE),
    "deepseek-4m": _rung(DEEPSEEK, 1, 5),
    "deepseek-16m": _rung(DEEPSEEK, 2, 5),
    "deepseek-64m": _rung(DEEPSEEK, 4, 3),
}


HEAD: Final = (
    "| model | width | parameters | active | dense share | tokens | batch | steps | FLOPs | seeds |",
    "|---|---|---|---|---|---|---|---|---|---|",
)


def table() -> str:
    """The ladder as a table of Markdown."""
    rows: list[list[object]] = [
        [
            f"`{name}`",
            rung.recipe.hidden,
            f"{rung.parameters / 1e6:.1f}M",
            f"{rung.active_parameters / 1e6:.2f}M",
            f"{rung.dense_share:.3f}".removeprefix("0"),
            f"{rung.tokens / 1e6:.0f}M",
            rung.recipe.batch_tokens,
            rung.recipe.steps,
            f"{rung.flops:.1e}",
            rung.seeds,
        ]
        for name, rung in LADDER.items()
    ]
    return "\n".join([*HEAD, *(f"| {' | '.join(map(str, row))} |" for row in rows)])
