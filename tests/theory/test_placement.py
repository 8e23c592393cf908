"""Do placements survive only honest round trips, and are rankings nested, of exact size and ordered as documented?"""

import dataclasses
import json
import math
import os
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from itertools import combinations, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from monte_carlo import assert_plausible
from scipy import stats
from torch import Tensor

from theory.errors import InputError
from theory.hardware import Hardware
from theory.placement import (
    STRATEGIES,
    Placement,
    Strategy,
    knapsack,
    num_digital,
    place,
    rank,
    read_placement,
)
from theory.score import maxnn_score

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
BY_SCORE: list[Strategy] = ["maxnn", "activation_frequency", "activation_weight", "router_norm"]
ORDERED: list[Strategy] = [*BY_SCORE, "minnn", "balanced_maxnn", "random"]

devices = pytest.mark.parametrize("device", DEVICES)
seeds = st.integers(0, 2**31)
fractions = st.floats(0, 1) | st.integers(0, 10**4).map(lambda n: n / 10**4) | st.sampled_from([0, 1])
# Few different values: many ties.
levels = st.integers(-2, 2).map(float) | st.floats(-1e30, 1e30)


def seeded(seed: int, device: str = "cpu") -> torch.Generator:
    return torch.Generator(device).manual_seed(seed)


@st.composite
def score_tables(draw: st.DrawFn, layers: int | None = None, unique: bool = False) -> Tensor:
    experts = draw(st.integers(1, 9))
    row = st.lists(levels, min_size=experts, max_size=experts, unique=unique)
    bounds = (0, 3) if layers is None else (layers, layers)
    rows = draw(st.lists(row, min_size=bounds[0], max_size=bounds[1]))
    return torch.tensor(rows, dtype=torch.float64).reshape(-1, experts)


def signs_of(scores: Tensor, seed: int) -> list[list[int]]:
    return (2 * torch.randint(2, scores.shape, generator=seeded(seed)) - 1).tolist()


def chosen(scores: Tensor, fraction: float, strategy: Strategy, seed: int = 0) -> tuple[tuple[int, ...], ...]:
    return rank(scores, fraction, strategy, signs=signs_of(scores, seed), generator=seeded(seed))


def order_of(scores: Tensor, strategy: Strategy, seed: int = 0) -> list[int]:
    """Ranking of one layer, from the sets for 0, 1, ... experts, which have to be nested."""
    (experts,) = scores.shape[1:]
    order: list[int] = []
    for count in range(experts + 1):
        (digital,) = chosen(scores, count / experts, strategy, seed)
        new = set(digital) - set(order)
        assert len(digital) == count and len(new) == min(count, 1)
        order += new
    return order


# How many


def round_half_up(fraction: float, experts: int) -> int:
    """Rounding of the decimal number that the fraction is written as."""
    return math.floor(Fraction(repr(fraction)) * experts + Fraction(1, 2))


@pytest.mark.parametrize(
    ("fraction", "experts", "count"),
    [
        (0, 7, 0),
        (1, 7, 7),
        (0.0, 1, 0),
        (1.0, 1, 1),
        (0.125, 64, 8),
        (0.25, 64, 16),
        (0.25, 6, 2),  # 1.5
        (0.5, 1, 1),
        (0.5, 3, 2),
        (0.5, 5, 3),  # 2.5: to even would be 2
        (0.5, 63, 32),
        (0.29, 50, 15),  # 14.5 in decimal, 14.499999999999998 in binary
        (0.145, 100, 15),
        (0.29, 49, 14),
        (0.49999999999999994, 1, 0),
        (5e-324, 64, 0),
    ],
)
def test_number_of_digital_experts(fraction: float, experts: int, count: int) -> None:
    assert num_digital(fraction, experts) == count == round_half_up(fraction, experts)
    assert rank(torch.zeros(2, experts), fraction) == (tuple(range(count)),) * 2


@given(fraction=fractions, other=fractions, experts=st.integers(1, 10**6))
def test_number_is_rounded_half_up_and_grows_with_the_fraction(
    fraction: float, other: float, experts: int
) -> None:
    assert num_digital(fraction, experts) == round_half_up(fraction, experts)
    low, high = sorted((fraction, other))
    assert 0 <= num_digital(low, experts) <= num_digital(high, experts) <= experts


@pytest.mark.parametrize("fraction", [-0.01, 1.01, math.nan, math.inf, True, False, None, "0.5", 0.5j])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_unusable_fractions(fraction: Any, strategy: Strategy) -> None:
    with pytest.raises(InputError, match=r"^digital_fraction is "):
        chosen(torch.zeros(1, 4), fraction, strategy)


# Which


@given(
    scores=score_tables(), first=fractions, second=fractions, strategy=st.sampled_from(ORDERED), seed=seeds
)
def test_digital_experts_are_nested_ascending_and_of_exact_number(
    scores: Tensor, first: float, second: float, strategy: Strategy, seed: int
) -> None:
    layers, experts = scores.shape
    low, high = sorted((first, second))
    small, large = (chosen(scores, fraction, strategy, seed) for fraction in (low, high))
    assert len(small) == len(large) == layers
    for few, many in zip(small, large, strict=True):
        assert len(few) == round_half_up(low, experts) and len(many) == round_half_up(high, experts)
        assert set(few) <= set(many) <= set(range(experts))
        assert list(few) == sorted(set(few)) and list(many) == sorted(set(many))
        assert all(type(expert) is int for expert in many)


@devices
@given(scores=score_tables(layers=1), strategy=st.sampled_from(BY_SCORE))
def test_highest_score_first_then_lower_index(device: str, scores: Tensor, strategy: Strategy) -> None:
    by_hand = sorted(range(scores.shape[1]), key=lambda expert: (-scores[0, expert].item(), expert))
    assert order_of(scores.to(device), strategy) == by_hand


@devices
@given(scores=score_tables(layers=1))
def test_minnn_is_lowest_score_first_then_lower_index(device: str, scores: Tensor) -> None:
    by_hand = sorted(range(scores.shape[1]), key=lambda expert: (scores[0, expert].item(), expert))
    assert order_of(scores.to(device), "minnn") == by_hand


@given(scores=score_tables(layers=1, unique=True))
def test_minnn_is_the_reverse_of_maxnn_without_ties(scores: Tensor) -> None:
    assert order_of(scores, "minnn") == order_of(scores, "maxnn")[::-1]


@devices
@pytest.mark.parametrize("strategy", [*BY_SCORE, "minnn"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.int64], ids=str)
def test_ties_among_many_experts(device: str, strategy: Strategy, dtype: torch.dtype) -> None:
    """Sorting is stable for short rows by luck: these rows are as long as a real layer, and longer."""
    for experts in (64, 5000):
        scores = torch.randint(3, (1, experts), generator=seeded(experts)).to(device, dtype)
        direction = 1 if strategy == "minnn" else -1
        by_hand = sorted(range(experts), key=lambda expert: (direction * scores[0, expert].item(), expert))
        for count in (1, experts // 4, experts // 2, experts - 1):
            assert chosen(scores, count / experts, strategy) == (tuple(sorted(by_hand[:count])),)


@given(scores=score_tables(layers=1), seed=seeds)
def test_balanced_maxnn_takes_the_best_of_either_sign_in_turn(scores: Tensor, seed: int) -> None:
    order, (signs,) = order_of(scores, "balanced_maxnn", seed), signs_of(scores, seed)
    best = order_of(scores, "maxnn")
    assert order[0] == best[0]
    for sign in (1, -1):  # among themselves they keep their order
        assert [each for each in order if signs[each] == sign] == [
            each for each in best if signs[each] == sign
        ]
    remaining = Counter(signs)
    taken: Counter[int] = Counter()
    for expert in order:
        if remaining[1] and remaining[-1]:
            # Even counts before this pick: the first sign's turn; else the other's.
            first = signs[best[0]]
            assert signs[expert] == (first if taken[first] == taken[-first] else -first)
        taken[signs[expert]] += 1
        remaining[signs[expert]] -= 1
        if remaining[1] and remaining[-1]:
            assert abs(taken[1] - taken[-1]) <= 1


def test_balanced_maxnn_by_hand() -> None:
    scores = torch.tensor([[9.0, 8, 7, 6, 5, 4], [4.0, 5, 6, 7, 8, 9]])
    signs = [[1, 1, 1, 1, -1, -1], [1, -1, 1, 1, 1, 1]]
    by_count = {
        1: ((0,), (5,)),
        2: ((0, 4), (1, 5)),
        3: ((0, 1, 4), (1, 4, 5)),
        5: ((0, 1, 2, 4, 5), (1, 2, 3, 4, 5)),
    }
    for count, digital in by_count.items():
        assert rank(scores, count / 6, "balanced_maxnn", signs=signs) == digital


@given(scores=score_tables(), fraction=fractions)
def test_none_and_all(scores: Tensor, fraction: float) -> None:
    layers, experts = scores.shape
    assert rank(scores, fraction, "none") == ((),) * layers
    assert rank(scores, fraction, "all") == (tuple(range(experts)),) * layers


@given(
    scores=score_tables(),
    fraction=fractions,
    strategy=st.sampled_from([s for s in STRATEGIES if s != "random"]),
    seed=seeds,
)
def test_every_layer_is_ranked_for_itself(
    scores: Tensor, fraction: float, strategy: Strategy, seed: int
) -> None:
    signs = signs_of(scores, seed)
    alone = [
        rank(row[None], fraction, strategy, signs=[sign])[0] for row, sign in zip(scores, signs, strict=True)
    ]
    assert rank(scores, fraction, strategy, signs=signs) == tuple(alone)


@given(
    scores=score_tables(),
    fraction=fractions,
    seed=seeds,
    strategy=st.sampled_from([*BY_SCORE, "minnn", "random"]),
)
def test_across_layers_the_model_is_ranked_as_one_layer(
    scores: Tensor, fraction: float, seed: int, strategy: Strategy
) -> None:
    found = rank(scores, fraction, strategy, across_layers=True, generator=seeded(seed))
    assert len(found) == len(scores)
    flat = [layer * scores.shape[1] + expert for layer, experts in enumerate(found) for expert in experts]
    if len(scores):
        (one,) = rank(scores.view(1, -1), fraction, strategy, generator=seeded(seed))
        assert tuple(flat) == one and len(flat) == num_digital(fraction, scores.numel())


def test_across_layers_by_hand() -> None:
    scores = torch.tensor([[1.0, 9.0, 8.0, 7.0], [2.0, 6.0, 0.0, 9.0]])
    assert rank(scores, 0.5, across_layers=True) == ((1, 2, 3), (3,))
    assert place(scores, 0.25, across_layers=True).digital_experts == ((1,), (3,))
    assert rank(scores, 0.5) == ((1, 2), (1, 3))
    with pytest.raises(InputError, match="across_layers: 'balanced_maxnn'"):
        rank(scores, 0.5, "balanced_maxnn", across_layers=True, signs=[[1, -1, 1, -1]] * 2)


@devices
@given(
    seed=seeds,
    exponent=st.integers(-20, 20),
    layer=st.integers(0, 2),
    fraction=fractions,
    strategy=st.sampled_from(["maxnn", "minnn", "balanced_maxnn"]),
)
def test_scaling_all_experts_of_a_layer_changes_no_choice(
    device: str, seed: int, exponent: int, layer: int, fraction: float, strategy: Strategy
) -> None:
    """Scaling by a power of two rounds nothing: ties stay ties."""
    shapes = [(3, 6, 4, 5), (3, 6, 4, 5), (3, 6, 5, 4)]
    generator = seeded(seed)
    weights = [torch.randint(-2, 3, shape, generator=generator).to(device, torch.float32) for shape in shapes]
    scores = maxnn_score(weights)
    scaled = [weight.clone() for weight in weights]
    for weight in scaled:
        weight[layer] *= 2.0**exponent
    rescaled = maxnn_score(scaled)
    assert rescaled[layer].tolist() == (8.0**exponent * scores[layer]).tolist()
    assert chosen(rescaled, fraction, strategy) == chosen(scores, fraction, strategy)


# At random


@devices
def test_random_choice_is_uniform_over_all_subsets(device: str) -> None:
    """Every layer is a draw of its own, and how often a subset comes is binomial."""
    layers, experts, count = 20_000, 5, 2
    digital = rank(torch.zeros(layers, experts), count / experts, "random", generator=seeded(0, device))
    frequency = Counter(digital)
    subsets = list(combinations(range(experts), count))
    assert set(frequency) <= set(subsets)
    p = 1 / len(subsets)
    assert_plausible([stats.binomtest(frequency[subset], layers, p).pvalue for subset in subsets])
    # And so is how often two layers in a row agree: no layer follows from the one before.
    agreeing = sum(one == two for one, two in zip(digital[::2], digital[1::2], strict=True))
    assert_plausible([stats.binomtest(agreeing, layers // 2, p).pvalue])


@devices
@given(scores=score_tables(), fraction=fractions, seed=seeds)
def test_random_choice_follows_from_its_generator_alone(
    device: str, scores: Tensor, fraction: float, seed: int
) -> None:
    first = rank(scores, fraction, "random", generator=seeded(seed, device))
    torch.manual_seed(0)
    assert rank(-scores, fraction, "random", generator=seeded(seed, device)) == first


def test_random_choices_of_one_generator_differ() -> None:
    generator, scores = seeded(0), torch.zeros(1, 64)
    choices = {rank(scores, 0.5, "random", generator=generator) for _ in range(10)}
    assert len(choices) == 10  # of 1.8e18 subsets


# Bad input


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        (torch.zeros(4), r"scores of shape \(4,\)"),
        (torch.zeros(1, 2, 3), r"scores of shape \(1, 2, 3\)"),
        (torch.zeros(2, 0), r"scores of shape \(2, 0\)"),
        ([[1.0, 2.0]], "scores of shape list"),
        (torch.tensor([[1.0, math.nan]]), "scores: some are not finite"),
        (torch.tensor([[1.0, math.inf]]), "scores: some are not finite"),
        (torch.tensor([[1.0, -math.inf]]), "scores: some are not finite"),
    ],
)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_unusable_scores(scores: Any, message: str, strategy: Strategy) -> None:
    with pytest.raises(InputError, match=message):
        rank(scores, 0.5, strategy, signs=[[1, -1]], generator=seeded(0))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"strategy": "best"}, "strategy is 'best': give one of maxnn, "),
        ({"strategy": None}, "strategy is None"),
        ({"strategy": "random"}, "'random' needs a generator"),
        ({"strategy": "balanced_maxnn"}, r"needs signs of shape \(2, 3\)"),
        ({"strategy": "balanced_maxnn", "signs": [[1, 1, 1]]}, r"needs signs of shape \(2, 3\)"),
        ({"strategy": "balanced_maxnn", "signs": [[1, 1, 1], [1, 1]]}, r"needs signs of shape \(2, 3\)"),
        ({"strategy": "balanced_maxnn", "signs": [[1, 1, 1], [1, 0, 1]]}, "give [+]1 or -1"),
        ({"strategy": "balanced_maxnn", "signs": [[1, 1, 2], [1, 1, 1]]}, "give [+]1 or -1"),
    ],
)
def test_unusable_strategies(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        rank(torch.zeros(2, 3), 0.5, **arguments)


# Placements


@st.composite
def placements(draw: st.DrawFn) -> Placement:
    sizes = draw(st.lists(st.integers(1, 70), max_size=5))
    experts = [draw(st.permutations(range(size)))[: draw(st.integers(0, size))] for size in sizes]
    modules = draw(st.lists(st.text(min_size=1), unique=True, max_size=4))
    return Placement(tuple(sizes), tuple(tuple(each) for each in experts), tuple(modules))


@given(placements())
def test_a_placement_survives_the_round_trip(placement: Placement) -> None:
    again = Placement.from_json(placement.to_json())
    assert again == placement and hash(again) == hash(placement)
    assert again.to_json() == placement.to_json()
    assert again.to_json().encode().decode() == placement.to_json()  # as it is in a file


@given(scores=score_tables(), fraction=fractions, strategy=st.sampled_from(STRATEGIES), seed=seeds)
def test_place_holds_what_rank_chooses(
    scores: Tensor, fraction: float, strategy: Strategy, seed: int
) -> None:
    placement = place(
        scores,
        fraction,
        strategy,
        analog_modules=["lm_head", "attention"],
        signs=signs_of(scores, seed),
        generator=seeded(seed),
    )
    layers, experts = scores.shape
    assert placement.num_experts == (experts,) * layers
    assert placement.digital_experts == chosen(scores, fraction, strategy, seed)
    assert placement.analog_modules == ("attention", "lm_head")


def test_one_name_of_a_module_is_no_list_of_names() -> None:
    with pytest.raises(InputError, match="^placement.analog_modules is 'attention': give a list$"):
        place(torch.ones(1, 2), 0.5, analog_modules="attention")


def test_place_is_the_papers_method_by_default() -> None:
    scores = torch.tensor([[1.0, 3.0, 2.0, 0.0]])
    assert place(scores, 0.5) == Placement((4,), ((1, 2),), ())


def test_a_placement_is_a_set() -> None:
    """Placements are equal whatever the order of their experts, given as lists or tuples."""
    one = Placement((3, 2), ((2, 0), ()), ("b", "a"))
    assert one == Placement([3, 2], [[0, 2], []], ["a", "b"])  # type: ignore[arg-type]
    assert one.digital_experts == ((0, 2), ()) and one.analog_modules == ("a", "b")
    assert one != Placement((3, 2), ((2, 0), (1,)), ("b", "a"))


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Placement)])
def test_a_placement_is_frozen(field: str) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(Placement((2,), ((0,),)), field, ())


CONTENT: dict[str, Any] = {
    "num_experts": [4, 2],
    "digital_experts": [[0, 3], []],
    "analog_modules": ["attention"],
}


NOT_LISTS: list[Any] = [None, 1, 0.5, "01", {}, True]
NOT_WHOLE: list[Any] = [1.0, True, False, None, "1", [1]]


@pytest.mark.parametrize("key", CONTENT)
def test_a_missing_key_is_named(key: str) -> None:
    content = {name: value for name, value in CONTENT.items() if name != key}
    with pytest.raises(InputError, match=f"placement lacks the key '{key}'.*placement file"):
        Placement.from_json(json.dumps(content))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"digital": []}, "unknown key 'digital'"),
        *[({name: value}, f"placement.{name} is ") for name in CONTENT for value in NOT_LISTS],
        *[
            ({"num_experts": [4, value]}, r"placement.num_experts\[1\] has .* at least 1$")
            for value in (0, -1, *NOT_WHOLE)
        ],
        ({"digital_experts": []}, "placement.digital_experts has 0 layers.* the 2 layers"),
        ({"digital_experts": [[0]]}, "placement.digital_experts has 1 layers"),
        ({"digital_experts": [[0], [1], []]}, "placement.digital_experts has 3 layers"),
        ({"num_experts": [4]}, "placement.digital_experts has 2 layers.* the 1 layers"),
        *[({"digital_experts": [[], value]}, r"placement.digital_experts\[1\] is ") for value in NOT_LISTS],
        *[
            ({"digital_experts": [[], [0, value]]}, r"placement.digital_experts\[1\] has .* from 0 to 1$")
            for value in (2, -1, *NOT_WHOLE)
        ],
        ({"digital_experts": [[4], []]}, r"placement.digital_experts\[0\] has 4: .* from 0 to 3$"),
        ({"digital_experts": [[0, 3, 0], []]}, r"placement.digital_experts\[0\] has 0 twice"),
        *[
            ({"analog_modules": ["a", value]}, "placement.analog_modules has .* names of modules$")
            for value in ("", None, 1, ["b"], True)
        ],
        ({"analog_modules": ["a", "b", "a"]}, "placement.analog_modules has 'a' twice"),
    ],
)
def test_a_malformed_placement_is_rejected_by_field(change: dict[str, Any], message: str) -> None:
    content = CONTENT | change
    hint = "; restore the placement file or make it again$"
    with pytest.raises(InputError, match=message.removesuffix("$") + ".*" + hint):
        Placement.from_json(json.dumps(content))
    if content.keys() == CONTENT.keys():
        with pytest.raises(InputError, match=message):
            Placement(**content)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not JSON"),
        ("{", "not JSON"),
        (json.dumps(CONTENT)[:-1], "not JSON"),
        ("{'num_experts': []}", "not JSON"),
        ("[]", r"placement is \[\]: an object is needed"),
        ("null", "placement is None"),
        ('"num_experts"', "placement is 'num_experts'"),
        (json.dumps(CONTENT)[:-1] + ', "num_experts": [4, 2]}', "'num_experts' occurs twice"),
        (json.dumps(CONTENT | {"num_experts": [4, math.nan]}), r"placement.num_experts\[1\] has nan"),
    ],
)
def test_what_is_no_placement_at_all(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message + ".*; restore the placement file"):
        Placement.from_json(text)


# Knapsack


@st.composite
def priced(draw: st.DrawFn) -> tuple[Tensor, Tensor, int]:
    """Values, costs and a budget, of at most 12 experts."""
    layers, experts = draw(st.sampled_from([(1, 1), (1, 7), (2, 3), (3, 4), (2, 6), (4, 3)]))
    number = layers * experts
    each = st.floats(-1, 1) | st.floats(0.01, 100) | st.sampled_from([0.0, 1.0, 2.0])
    worth = draw(st.lists(each, min_size=number, max_size=number))
    sizes = draw(st.sampled_from([st.integers(1, 9), st.sampled_from([36864, 30720]), st.integers(1, 10**6)]))
    costs = torch.tensor(draw(st.lists(sizes, min_size=number, max_size=number)))
    values = torch.tensor(worth, dtype=torch.float64)
    budget = draw(st.integers(0, int(costs.sum()) + 1))
    return values.view(layers, experts), costs.view(layers, experts), budget


def as_mask(choice: tuple[tuple[int, ...], ...], values: Tensor) -> Tensor:
    mask = torch.zeros(values.shape, dtype=torch.bool)
    for row, digital in zip(mask, choice, strict=True):
        row[list(digital)] = True
    return mask


def hard(seed: int) -> tuple[Tensor, Tensor, int]:
    """Values that differ by 1e-7, and large costs with a common divisor: where the solver's tolerances would show."""
    rng = np.random.default_rng(seed)
    values = 1 + 1e-7 * rng.random((2, 6))
    unit, largest = ((1, 10), (10**6 + 3, 10**9))[seed % 2]
    costs = torch.tensor(rng.integers(1, largest, (2, 6)) * unit)
    return (
        torch.tensor(values if seed % 4 < 2 else rng.random((2, 6))),
        costs,
        int(costs.sum() * rng.random()),
    )


@pytest.mark.parametrize("seed", range(40))
def test_tolerances_of_the_solver_do_not_show(seed: int) -> None:
    assert_best(*hard(seed))


@given(priced())
def test_no_choice_within_the_budget_is_worth_more(case: tuple[Tensor, Tensor, int]) -> None:
    assert_best(*case)


def assert_best(values: Tensor, costs: Tensor, budget: int) -> None:
    choice = knapsack(values, costs, budget)
    assert all(list(row) == sorted(set(row)) for row in choice)
    digital = as_mask(choice, values)
    assert int(costs[digital].sum()) <= budget and (values[digital] > 0).all()
    subsets = torch.tensor(list(product((False, True), repeat=values.numel())))
    affordable = subsets.long() @ costs.flatten() <= budget
    best = float((subsets.double() @ values.flatten())[affordable].max())
    assert float(values[digital].sum()) == pytest.approx(best, rel=1e-9, abs=1e-9 * float(values.abs().max()))


@given(
    st.lists(st.integers(1, 10**4).map(lambda n: n / 100), min_size=24, max_size=24, unique=True),
    st.integers(0, 24),
    st.integers(1, 10**7),
)
def test_at_equal_costs_the_knapsack_is_the_ranking_across_layers(
    worth: list[float], count: int, cost: int
) -> None:
    """So the exhibit rivals needs no placement of its own for it: experts of one model are of one size."""
    values = torch.tensor(worth, dtype=torch.float64).view(4, 6)
    found = knapsack(values, torch.full((4, 6), cost), count * cost)
    assert found == rank(values, count / 24, across_layers=True)


@given(priced(), st.integers(0, 2**31), st.integers(1, 1000))
def test_neither_the_order_of_experts_nor_the_unit_of_costs_matters(
    case: tuple[Tensor, Tensor, int], seed: int, unit: int
) -> None:
    values, costs, budget = case
    order = torch.randperm(values.shape[1], generator=seeded(seed))
    worth = [
        float(each_values[as_mask(knapsack(each_values, each_costs, each_budget), each_values)].sum())
        for each_values, each_costs, each_budget in (
            (values, costs, budget),
            (values[:, order], costs[:, order], budget),
            (values, unit * costs, unit * budget + unit - 1),
        )
    ]
    assert worth == pytest.approx([worth[0]] * 3, rel=1e-9, abs=1e-9 * float(values.abs().max()))


def test_a_budget_goes_where_a_digital_weight_is_worth_most() -> None:
    """The most valuable expert is as large as two others together, which are worth more."""
    values = torch.tensor([[5.0, 1.0], [3.0, 4.0]])
    costs = torch.tensor([[20, 20], [10, 10]])
    assert knapsack(values, costs, 20) == ((), (0, 1))
    assert knapsack(values, costs, 19) == ((), (1,))
    assert rank(values, 0.25, across_layers=True) == ((0,), ())
    assert knapsack(values, costs, 30) == ((0,), (1,))
    assert knapsack(values, costs, 60) == ((0, 1), (0, 1))
    assert knapsack(values, costs, 0) == ((), ())


def test_experts_that_are_worth_nothing_stay_analog() -> None:
    values, costs = torch.tensor([[0.0, -1.0, 1e-12]]), torch.ones(1, 3, dtype=torch.int64)
    assert knapsack(values, costs, 3) == ((2,),)
    assert knapsack(-values.abs(), costs, 3) == ((),)
    assert knapsack(torch.zeros(0, 3), costs[:0], 3) == ()


@pytest.mark.parametrize(
    ("costs", "budget", "message"),
    [
        (torch.ones(2, 3), 3, "costs: give whole numbers of shape (2, 3)"),
        (torch.ones(3, 2, dtype=torch.int64), 3, "costs: give whole numbers of shape (2, 3)"),
        ([[1, 1, 1], [1, 1, 1]], 3, "costs: give whole numbers of shape (2, 3)"),
        (torch.tensor([[1, 1, 1], [1, 0, 1]]), 3, "costs: the least is 0: give whole numbers above 0"),
        (torch.tensor([[1, 1, 1], [1, 2, 1]]), -1, "budget is -1: give a whole number of at least 0"),
        (torch.tensor([[1, 1, 1], [1, 2, 1]]), 0.25, "budget is 0.25: give a whole number of at least 0"),
    ],
)
def test_unusable_costs_and_budgets(costs: Any, budget: Any, message: str) -> None:
    with pytest.raises(InputError, match=f"^{re.escape(message)}"):
        knapsack(torch.ones(2, 3), costs, budget)


# ------------------------------------------------------------------------------------------------- files


@dataclass(frozen=True)
class Named:
    name: str = "models/small"
    weights_hash: str = "0123456789abcdef"


SOME = Placement((3, 4), ((0, 2), ()), ("attention",))


def refused(file: Path) -> str:
    messages = []
    for read in (read_placement, lambda path: Placement.load(path, Named())):
        with pytest.raises(InputError) as caught:
            read(file)
        messages.append(str(caught.value))
    assert messages[0] == messages[1] and "\n" not in messages[0] and str(file) in messages[0]
    assert len(messages[0]) < 1000
    return messages[0]


@pytest.mark.parametrize("hardware", [None, Hardware(c=1.5, dac_bits=None)])
def test_a_placement_is_kept_with_what_it_is_of(tmp_path: Path, hardware: Hardware | None) -> None:
    SOME.save(tmp_path / "placement.json", Named(), score="maxnn", hardware=hardware)
    assert Placement.load(tmp_path / "placement.json", Named("elsewhere/small")) == SOME
    saved = read_placement(tmp_path / "placement.json")
    assert (saved.model, saved.weights_hash, saved.score) == ("small", "0123456789abcdef", "maxnn")
    assert (saved.hardware, saved.placement) == (hardware, SOME)
    assert abs(datetime.now(UTC) - datetime.fromisoformat(saved.date)) < timedelta(minutes=5)


def test_another_models_placement_is_refused(tmp_path: Path) -> None:
    SOME.save(tmp_path / "placement.json", Named())
    with pytest.raises(InputError) as caught:
        Placement.load(tmp_path / "placement.json", Named("other", "fedcba9876543210"))
    assert str(caught.value) == (
        f"placement file {tmp_path / 'placement.json'} is of the model 'small' with the weights 0123456789ab, not of"
        " other with fedcba987654: load that model, or place this one"
    )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda content: content.pop("date"), "it lacks the key 'date'"),
        (lambda content: content.update(more=1), "the unknown key 'more'"),
        (lambda content: content.update(weights_hash=1), "weights_hash is 1: give a text"),
        (lambda content: content.update(score=["x" * 10_000]), "score is ['xxx"),
        (lambda content: content.update(hardware={"c": 1}), "hardware lacks the key"),
        (lambda content: content["hardware"].update(c=-1), "hardware.c is -1"),
        (lambda content: content.update(placement=[]), "placement is []"),
        (lambda content: content["placement"].update(digital_experts=[[9], []]), "has 9: give whole numbers"),
        (
            lambda content: content["placement"].update(num_experts="x" * 10_000),
            "placement.num_experts is 'xxx",
        ),
    ],
)
def test_a_damaged_file_of_a_placement_is_refused(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], said: str
) -> None:
    file = tmp_path / "placement.json"
    SOME.save(file, Named(), hardware=Hardware())
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))
    assert said in refused(file) and refused(file).endswith("; give a file that Placement.save wrote")


def test_what_is_no_file_of_a_placement_is_refused(tmp_path: Path) -> None:
    assert "cannot be read (No such file or directory)" in refused(tmp_path / "missing")
    os.mkfifo(tmp_path / "fifo")
    assert "no regular file" in refused(tmp_path / "fifo")
    for content in (b"", b"\xff", b"[]", b"[" * 100_000, b'{"model": 1, "model": 2}', b"\x80\x04."):
        (tmp_path / "file").write_bytes(content)
        refused(tmp_path / "file")
    with pytest.raises(InputError, match="placement file .* cannot be written"):
        SOME.save(tmp_path, Named())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            {"hardware": "pcm"},
            "hardware is 'pcm': give a Hardware, as load_hardware makes it of a name or a file",
        ),
        ({"hardware": {"c": 1}}, "hardware is {'c': 1}: give a Hardware"),
        ({"score": None}, "score is None: give a text"),
        ({"score": torch.zeros(2, 1)}, "score is tensor("),
        ({"model": "tiny-olmoe"}, "model is 'tiny-olmoe': give a Model, as realmodels.load returns it"),
        ({"model": torch.nn.Linear(1, 1)}, "model is Linear("),
        ({"model": Named(weights_hash=None)}, "give a Model"),  # type: ignore[arg-type]
    ],
)
def test_what_could_not_be_read_back_is_not_written(
    tmp_path: Path, arguments: dict[str, Any], said: str
) -> None:
    with pytest.raises(InputError) as caught:
        SOME.save(**{"file": tmp_path / "placement.json", "model": Named(), **arguments})
    assert said in str(caught.value) and "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_placement_is_loaded_for_a_model(tmp_path: Path) -> None:
    SOME.save(tmp_path / "placement.json", Named())
    with pytest.raises(InputError, match="model is 'small': give a Model"):
        Placement.load(tmp_path / "placement.json", "small")  # type: ignore[arg-type]


def test_names_of_files_that_are_no_unicode_are_kept(tmp_path: Path) -> None:
    SOME.save(tmp_path / "placement.json", Named(name="models/\udcff"))
    assert read_placement(tmp_path / "placement.json").model == "\udcff"


def test_a_placement_is_printed_in_a_line() -> None:
    assert str(SOME) == "2 of 7 experts digital, attention analog"
    assert str(Placement((3,), ((),), ("attention", "lm_head"))).endswith(", attention and lm_head analog")
    assert str(Placement((3,), ((0, 1, 2),))) == "3 of 3 experts digital"
