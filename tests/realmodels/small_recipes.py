"""Recipes of models that train in a second, for the tests of training."""

from dataclasses import replace

from realmodels.pretrain import Recipe

SMALLEST = Recipe(
    vocabulary=300,
    hidden=32,
    layers=2,
    heads=2,
    experts=8,
    top_k=2,
    expert_width=16,
    context=32,
    batch_tokens=512,
)
# As the ladder's: two times as wide as the base, four passes in a step.
OF_LADDER = replace(
    SMALLEST, pass_tokens=128, steps=8, optimiser="adamw", base_width=16, normalise_top_k=False
)
DEEPSEEK_OF_LADDER = replace(OF_LADDER, family="deepseek", shared_experts=1, dense_layers=1)
