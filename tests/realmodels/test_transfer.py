"""Models of other sizes: exact numbers of the ladder, and rates that follow the width."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_recipes import DEEPSEEK_OF_LADDER as DEEPSEEK
from small_recipes import OF_LADDER as TINY
from transformers import AutoModelForCausalLM

from realmodels.families import describe
from realmodels.pretrain import Recipe, Training, ladder
from realmodels.pretrain.ladder import LADDER
from realmodels.pretrain.size import size_of
from realmodels.pretrain.training import through
from realmodels.pretrain.transfer import kind_of, rate

CPU = torch.device("cpu")
# Parameters, active ones, tokens, and the dense share.
NUMBERS = {
    "olmoe-4m": (4774208, 1150976, 18415616, 0.1407),
    "olmoe-16m": (16921216, 3481600, 55705600, 0.0968),
    "olmoe-64m": (63333632, 11681792, 186908672, 0.0704),
    "olmoe-256m": (244632064, 42237952, 675807232, 0.0557),
    "olmoe-1b": (961123328, 159973376, 319815680, 0.0480),
    "olmoe-16m-quarter": (16921216, 3481600, 13926400, 0.0968),
    "olmoe-16m-fourfold": (16921216, 3481600, 222822400, 0.0968),
    "olmoe-16m-muon": (16921216, 3481600, 55705600, 0.0968),
    "deepseek-4m": (4291520, 1093632, 17498112, 0.1847),
    "deepseek-16m": (15017856, 3276800, 52428800, 0.1413),
    "deepseek-64m": (55774976, 10911744, 174587904, 0.1146),
}


# Numbers.


@pytest.mark.parametrize("name", LADDER)
def test_the_ladders_numbers(name: str) -> None:
    rung = LADDER[name]
    found = rung.parameters, rung.active_parameters, rung.tokens
    assert (*found, round(rung.dense_share, 4)) == NUMBERS[name]
    assert rung.flops == 6 * rung.active_parameters * rung.tokens


@pytest.mark.parametrize("recipe", [TINY, DEEPSEEK, LADDER["olmoe-4m"].recipe, LADDER["deepseek-4m"].recipe])
def test_dense_modules_are_those_of_the_map(recipe: Recipe) -> None:
    network: Any = AutoModelForCausalLM.from_config(recipe.model_config())
    found, sizes = describe(network), {name: p.numel() for name, p in network.named_parameters()}
    dense = sum(sizes[f"{name}.weight"] for name in found.linears)
    routers = sum(sizes[name] for name in found.never_analog["routers"])
    of_experts = sum(sizes[name] for layer in found.moe_layers for name in layer.weights)
    assert size_of(recipe).total == sum(sizes.values())
    assert size_of(recipe).dense == dense
    assert size_of(recipe).active == dense + routers + of_experts * recipe.top_k // recipe.experts


@pytest.mark.parametrize("recipe", [TINY, DEEPSEEK])
def test_a_dense_model_uses_all_that_it_has(recipe: Recipe) -> None:
    dense = replace(recipe, family="deepseek").dense()
    assert size_of(dense).active == size_of(dense).dense
    routers = recipe.hidden * recipe.experts * (recipe.layers - recipe.dense_layers)
    assert size_of(dense).active == size_of(recipe).active - routers


def test_rungs_have_the_papers_proportions() -> None:
    for name, rung in LADDER.items():
        recipe, config = rung.recipe, rung.recipe.model_config()
        assert (recipe.experts, recipe.normalise_top_k, recipe.hidden // recipe.heads) == (64, False, 32)
        assert recipe.hidden == 64 * recipe.batch_tokens // recipe.pass_tokens
        if name.startswith("olmoe"):
            assert (recipe.top_k, 2 * recipe.expert_width) == (
                8,
                recipe.hidden,
            ) and config.model_type == "olmoe"
        else:
            assert (recipe.top_k, recipe.shared_experts, recipe.dense_layers) == (6, 2, 1)
            assert config.model_type == "deepseek"
        shorter = {"olmoe-1b": 8, "olmoe-16m-quarter": 4, "olmoe-16m-fourfold": 1 / 4}.get(name, 1)
        per_parameter = rung.tokens / rung.active_parameters
        assert per_parameter == pytest.approx(ladder.TOKENS_PER_ACTIVE_PARAMETER / shorter, rel=1e-3)
    assert [LADDER[f"olmoe-{size}"].seeds for size in ("4m", "16m", "64m", "256m", "1b")] == [5, 5, 3, 2, 1]
    assert {rung.recipe.optimiser for name, rung in LADDER.items() if "muon" not in name} == {"adamw"}


# Rates that follow the width.


def test_rates_and_initial_weights_follow_the_width(stream: np.ndarray) -> None:
    given = replace(TINY, matrix_learning_rate=0.01, learning_rate=0.02, weight_decay=0.1)
    wide = replace(given, hidden=64, heads=4, expert_width=32)  # 4 times as wide as the base
    assert rate(wide, "matrix") == pytest.approx((0.01 / 4, 0.4))
    assert rate(wide, "output") == pytest.approx((0.02 / 4, 0.4))
    assert rate(wide, "input") == pytest.approx((0.02, 0.1))
    assert rate(wide, "norm") == (0.02, 0.0)
    assert rate(replace(wide, optimiser="muon"), "matrix") == pytest.approx((0.01 / 2, 0.2))
    training, plain = (Training(each, stream, CPU, False) for each in (wide, replace(wide, base_width=0)))
    factors = {"matrix": 1 / 2, "output": 1 / 4, "input": 1.0, "norm": 1.0}
    kinds = set()
    for name, master in training.masters.items():
        kinds.add(kind_of(name, master))
        torch.testing.assert_close(master, plain.masters[name] * factors[kind_of(name, master)])
    assert kinds == set(factors)
    assert all(rate(replace(wide, base_width=0), kind)[0] in (0.01, 0.02) for kind in kinds)


@pytest.mark.parametrize("recipe", [TINY, DEEPSEEK], ids=lambda recipe: recipe.family)
def test_kinds_of_parameters(recipe: Recipe) -> None:
    network: Any = AutoModelForCausalLM.from_config(recipe.model_config())
    found: dict[str, set[str]] = {}
    for name, parameter in network.named_parameters():
        found.setdefault(kind_of(name, parameter), set()).add(name.removeprefix("model.layers."))
    first = {"0.mlp.gate.weight"} if recipe.family == "olmoe" else set()
    assert found["input"] == {"model.embed_tokens.weight"}
    assert found["output"] == {"lm_head.weight", "1.mlp.gate.weight"} | first
    assert all("norm" in name for name in found["norm"])
    assert {"1.mlp.experts.down_proj", "0.self_attn.q_proj.weight"} < found["matrix"]
    assert ("0.mlp.gate_proj.weight" in found["matrix"]) == (recipe.family == "deepseek")


def moved(recipe: Recipe, stream: np.ndarray, steps: int) -> tuple[float, float]:
    """Root mean square of what so many steps change of the last hidden state and of the logits."""
    training = Training(recipe, stream, CPU, compiled=False)
    crops = torch.from_numpy(stream[:1024].astype(np.int64)).view(32, 32)

    def outputs() -> list[torch.Tensor]:
        with torch.no_grad():
            hidden = through(training.model, crops)[0]
            return [hidden, training.model.lm_head(training.model.model.norm(hidden))]

    before = outputs()
    for _ in range(steps):
        training.advance()
    changes = [(a - b).square().mean().sqrt().item() for a, b in zip(outputs(), before, strict=True)]
    return changes[0], changes[1]


@pytest.mark.parametrize("optimiser", ["adamw", "muon"])
def test_steps_move_activations_alike_at_all_widths(stream: np.ndarray, optimiser: Any) -> None:
    """The coordinate check of muP: without the rule, changes grow with the width.

    Where it holds, changes of logits still fall with the width at first, as the LM head's initial weights do.
    """
    base = replace(
        TINY,
        optimiser=optimiser,
        warmup=0.0,
        weight_decay=0.0,
        matrix_learning_rate=4e-3,
        learning_rate=4e-3,
        pass_tokens=512,
    )

    def growth(base_width: int) -> np.ndarray:
        """Changes at width 256 over those at 64, of the last hidden state and of the logits."""
        found = [
            moved(
                replace(
                    base, hidden=width, heads=width // 16, expert_width=width // 2, base_width=base_width
                ),
                stream,
                5,
            )
            for width in (64, 256)
        ]
        return np.array(found[1]) / np.array(found[0])

    with_rule, without = growth(64), growth(0)
    assert 0.8 < with_rule[0] < 1.25 and 0.5 < with_rule[1] < 1
    assert without[0] > 4 and without[1] > 2


def test_the_page_shows_the_ladder() -> None:
    page = Path(__file__).parents[2] / "docs" / "ladder.md"
    assert ladder.table() in page.read_text(encoding="utf-8")
