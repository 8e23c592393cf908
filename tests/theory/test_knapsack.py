"""Is every choice on the frontier the best one, and is no best one missing?"""

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from theory import knapsack
from theory.errors import InputError
from theory.knapsack import Frontier, frontier


@st.composite
def items(draw: st.DrawFn) -> tuple[list[float], list[int]]:
    """At most 9 items of few or of many costs; whole values, so that sums are exact and ties occur."""
    number = draw(st.integers(0, 9))
    sizes = draw(st.sampled_from([st.integers(1, 20), st.sampled_from([6, 10]), st.just(7)]))
    costs = draw(st.lists(sizes, min_size=number, max_size=number))
    values = draw(st.lists(st.integers(-2, 12), min_size=number, max_size=number))
    return [float(value) for value in values], costs


def all_choices(values: list[float], costs: list[int]) -> list[tuple[int, float]]:
    return [
        (
            sum(cost for cost, taken in zip(costs, each, strict=True) if taken),
            sum(value for value, taken in zip(values, each, strict=True) if taken),
        )
        for each in product((False, True), repeat=len(costs))
    ]


@given(items())
def test_the_frontier_is_all_that_no_choice_beats(case: tuple[list[float], list[int]]) -> None:
    values, costs = case
    every, found = all_choices(values, costs), frontier(values, costs)
    unbeaten = {
        (cost, worth)
        for cost, worth in every
        if not any(c <= cost and w >= worth and (c, w) != (cost, worth) for c, w in every)
    }
    assert list(zip(found.costs.tolist(), found.worths.tolist(), strict=True)) == sorted(unbeaten)


@given(items())
def test_a_choice_is_made_of_the_items_that_it_names(case: tuple[list[float], list[int]]) -> None:
    values, costs = case
    found = frontier(values, costs)
    for number, (cost, worth) in enumerate(zip(found.costs, found.worths, strict=True)):
        chosen = found.items(number)
        assert chosen == sorted(set(chosen))
        assert sum(costs[item] for item in chosen) == cost
        assert sum(values[item] for item in chosen) == worth


@given(items(), st.integers(0, 200), st.integers(0, 120))
def test_both_questions_have_the_best_answer(
    case: tuple[list[float], list[int]], budget: int, least: int
) -> None:
    every, found = all_choices(*case), frontier(*case)
    assert found.worths[found.within(budget)] == max(worth for cost, worth in every if cost <= budget)
    cheapest = min((cost for cost, worth in every if worth >= least), default=None)
    choice = int(found.worth(least))
    assert (None if choice == len(found.costs) else found.costs[choice]) == cheapest
    assert found.within(-1) == -1


@given(items())
def test_every_total_cost_has_its_most_valuable_choice(case: tuple[list[float], list[int]]) -> None:
    """Worth something or not, beaten or not; and it is made of the items that it names."""
    values, costs = case
    best: dict[int, float] = {}
    for cost, worth in all_choices(values, costs):
        best[cost] = max(worth, best.get(cost, worth))
    found = frontier(values, costs, every=True)
    assert list(zip(found.costs.tolist(), found.worths.tolist(), strict=True)) == sorted(best.items())
    for number, (cost, worth) in enumerate(zip(found.costs, found.worths, strict=True)):
        chosen = found.items(number)
        assert chosen == sorted(set(chosen)) and sum(values[item] for item in chosen) == worth
        assert sum(costs[item] for item in chosen) == cost


@given(items(), st.lists(st.tuples(*[st.integers(-5, 120)] * 3), min_size=1, max_size=4))
def test_both_questions_have_the_best_answer_where_a_least_cost_is_asked_for(
    case: tuple[list[float], list[int]], asked: list[tuple[int, int, int]]
) -> None:
    every, found = all_choices(*case), frontier(*case, every=True)
    low, high, least = np.array(asked).T
    most, cheapest = found.between(low, high), found.worth_between(low, high, least)
    for (lowest, highest, needed), one, other in zip(asked, most.tolist(), cheapest.tolist(), strict=True):
        inside = [(-worth, cost) for cost, worth in every if lowest <= cost <= highest]
        assert (None if one < 0 else (-found.worths[one], found.costs[one])) == min(inside, default=None)
        enough = [cost for worth, cost in inside if -worth >= needed]
        assert (None if other < 0 else found.costs[other]) == min(enough, default=None)
        assert other < 0 or found.worths[other] >= needed


def test_a_beaten_choice_is_best_where_a_least_cost_is_asked_for() -> None:
    found = frontier([5.0, 1.0, -1.0], [2, 3, 4], every=True)
    assert found.items(int(found.between(3, 4)[0])) == [1]
    assert found.items(int(found.between(4, 4)[0])) == [2]
    assert found.items(int(found.worth_between(3, 9, 1.0)[0])) == [1]
    assert found.items(int(found.worth_between(4, 9, 1.0)[0])) == [0, 1]


@given(items(), st.integers(0, 100))
def test_a_budget_leaves_out_what_costs_more(case: tuple[list[float], list[int]], budget: int) -> None:
    for every in (False, True):
        whole, within = frontier(*case, every=every), frontier(*case, budget, every=every)
        number = int(whole.within(budget)) + 1
        assert within.costs.tolist() == whole.costs[:number].tolist()
        assert within.worths.tolist() == whole.worths[:number].tolist()


@pytest.mark.parametrize("pairs", [1, 3, 50])
def test_parts_change_nothing(pairs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    values, costs = rng.random(30), rng.choice([12, 20, 33], 30)
    expected = frontier(values, costs)
    monkeypatch.setattr(knapsack, "_AT_ONCE", pairs)
    assert_equal(frontier(values, costs), expected)


def assert_equal(found: Frontier, expected: Frontier) -> None:
    assert found.costs.tolist() == expected.costs.tolist()
    assert found.worths.tolist() == pytest.approx(expected.worths.tolist(), rel=1e-12)


def test_the_number_of_choices_is_bounded_by_the_costs_and_by_their_divisor() -> None:
    rng = np.random.default_rng(0)
    costs = np.repeat([36, 4, 64], [128, 16, 1])
    found = frontier(rng.random(len(costs)), costs)
    assert 100 < len(found.costs) <= min(129 * 17 * 2, costs.sum() // 4 + 1)


def test_too_many_choices_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(knapsack, "MOST_CHOICES", 10)
    with pytest.raises(InputError, match="^knapsack: more than 10 choices are on the frontier"):
        frontier([1.0, 2.0, 4.0, 8.0], [1, 2, 4, 8])
