"""Is the choice the best one within its budgets?"""

import math
import re
from dataclasses import replace
from fractions import Fraction
from functools import cache
from itertools import combinations, product
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import TOP_K, small_model

from realmodels.budgets import Budgets
from realmodels.cost import Machine, Shape, cost
from realmodels.decline import Decline
from realmodels.items import AXES, MAXNN, RANDOM, Choice, Items
from theory.errors import InputError
from theory.placement import Placement, place

MODEL = small_model()
LAYERS, EXPERTS = len(MODEL.map.num_experts), MODEL.map.num_experts[0]

# More digital dense parameters make a step on them faster, and cheaper; the one; the other; neither.
MACHINES = (
    Machine(),
    Machine(rest_power=1.0, memory_energy=1e-7),
    Machine(memory_bandwidth=1e9, dac_energy=1e-6, rest_power=1.0),
    Machine(memory_bandwidth=1e9),
)


def items(seed: int = 0, interaction: float = 0.0, dense: int = 3, machine: Machine | None = None) -> Items:
    """Experts and a few dense modules of MODEL, with damages and loads from a generator; one module has no damage."""
    rng = np.random.default_rng(seed)
    names = MODEL.map.linears[:dense]
    sizes = {name: MODEL.network.get_parameter(f"{name}.weight").numel() for name in MODEL.map.linears}
    sizes = {name: int(sizes[name] * rng.choice([1, 2])) for name in names}
    shape = Shape.of(MODEL)
    load = 0.5 + rng.random((LAYERS, EXPERTS))
    return Items(
        model=MODEL,
        shape=replace(shape, expert_parameters=1024, dense_parameters=sum(sizes.values())),
        ranges=None,
        experts=rng.random((LAYERS, EXPERTS)),
        load=TOP_K * load / load.sum(1, keepdims=True),
        size=1024,  # as a dense module: other choices cost the same
        dense=dict(zip(names, [0.0, *(3 * rng.random(dense - 1)).tolist()], strict=True)),
        sizes=sizes,
        total=60_000,
        batch=4,
        machine=machine,
        interaction=interaction,
    )


def step_of(of: Items, placement: Placement, share: float) -> tuple[float, float]:
    """Seconds and joules."""
    found = cost(of.shape, placement, of.batch, of.machine, dense_digital=share, loads=of.load)
    return found.seconds, found.joules


def every_choice(of: Items) -> dict[str, np.ndarray]:
    """What each subset of experts and dense modules costs; seconds and joules: infinite if not the worst experts."""
    masks = np.array(list(product((False, True), repeat=of.experts.size)))
    dense = np.array(list(product((False, True), repeat=len(of.dense))))
    sizes, damage = np.array([of.sizes[name] for name in of.names]), np.array(list(of.dense.values()))
    numbers, parameters = masks.sum(1), dense @ sizes
    left = (~masks @ of.experts.ravel())[:, None] + (~dense @ damage)[None]
    steps = np.full((*left.shape, 2), math.inf)
    order = np.argsort(-of.experts.ravel())
    for number in range(of.experts.size + 1):
        worst = set(order[:number].tolist())
        digital = tuple(
            tuple(expert for expert in range(EXPERTS) if layer * EXPERTS + expert in worst)
            for layer in range(LAYERS)
        )
        (row,) = np.flatnonzero((masks == np.isin(np.arange(of.experts.size), list(worst))).all(1))
        placement = Placement(MODEL.map.num_experts, digital)
        steps[row] = [step_of(of, placement, share) for share in (parameters / sizes.sum()).tolist()]
    return {
        "experts": np.broadcast_to(numbers[:, None], left.shape),
        "parameters": numbers[:, None] * of.size + parameters[None],
        "seconds": steps[..., 0],
        "joules": steps[..., 1],
        "increase": of.increase(left),
    }


@cache
def case(number: int) -> tuple[Items, dict[str, np.ndarray]]:
    of = items(number, (0.0, 0.05, -0.03, 0.0)[number], 5, MACHINES[number])
    return of, every_choice(of)


SHARE = st.none() | st.floats(0, 1)


def test_seconds_and_joules_rise_and_fall_with_digital_dense_parameters() -> None:
    """In the cases of the next test."""
    rises = [
        tuple((np.diff(ends[1]) > 0).item() for ends in (of.running.seconds, of.running.joules))
        for of, _ in map(case, range(len(MACHINES)))
    ]
    assert rises == [(False, False), (False, True), (True, False), (True, True)]


@settings(max_examples=300)
@given(st.integers(0, len(MACHINES) - 1), SHARE, SHARE, SHARE, SHARE, SHARE)
def test_no_choice_within_the_budgets_is_better(
    number: int,
    experts: float | None,
    parameters: float | None,
    energy: float | None,
    throughput: float | None,
    loss: float | None,
) -> None:
    """Least increase within budgets of resources; with one of the loss the fewest parameters.

    Budgets of energy and throughput: of the choices that take the worst experts first.
    """
    of, every = case(number)
    joules, seconds = (
        None
        if share is None
        else float(np.quantile(every[name][np.isfinite(every[name])], share)) * (1 + 1e-9)
        for share, name in ((energy, "joules"), (throughput, "seconds"))
    )
    nats = None if loss is None else loss * float(every["increase"].max())
    budgets: dict[str, Any] = {
        "digital_experts": experts,
        "digital_parameters": parameters,
        "energy": None if joules is None else joules / of.batch,
        "throughput": None if seconds is None else of.batch / seconds,
        "loss_increase": nats,
    }
    fits = np.ones(every["increase"].shape, dtype=bool)
    if experts is not None:
        fits &= every["experts"] <= int(Fraction(str(experts)) * of.experts.size)
    if parameters is not None:
        fits &= every["parameters"] <= int(Fraction(str(parameters)) * of.total)
    fits &= every["joules"] <= (math.inf if joules is None else joules)
    fits &= every["seconds"] <= (math.inf if seconds is None else seconds)
    small_enough = fits & (every["increase"] <= (math.inf if nats is None else nats + 1e-9))
    if all(value is None for value in budgets.values()):
        return
    if not small_enough.any():
        with pytest.raises(InputError, match="^(a loss increase of|budgets? )"):
            of.best(Budgets(**budgets), 1.0)
        return
    found = of.outcome(of.best(Budgets(**budgets), 1.0))
    if nats is None:
        assert found.predicted == pytest.approx(every["increase"][fits].min(), abs=1e-9)
    else:
        assert found.predicted <= nats + 1e-9
        least = every["parameters"][small_enough].min()
        assert found.digital_parameters == least
        as_small = small_enough & (every["parameters"] == least)
        assert found.predicted == pytest.approx(every["increase"][as_small].min(), abs=1e-9)
    assert found.energy * of.batch <= (math.inf if joules is None else joules * (1 + 1e-9))
    assert of.batch / found.throughput <= (math.inf if seconds is None else seconds * (1 + 1e-9))


@pytest.mark.parametrize("machine", MACHINES)
def test_running_costs_are_those_of_the_cost_model_for_these_experts(machine: Machine) -> None:
    """And on a line between both ends, for any share of digital dense parameters."""
    of = items(machine=machine)
    assert of.running.seconds[0].tolist() == [step_of(of, of.placement(Choice(0, (), 0)), 0.0)[0]] * 2
    for number in range(LAYERS * EXPERTS + 1):
        placement = of.placement(Choice(number, (), 0))
        for share in (1e-9, 0.3, 1.0):
            ends = np.stack([of.running.seconds[number + 1], of.running.joules[number + 1]])
            assert ends @ (1 - share, share) == pytest.approx(step_of(of, placement, share), rel=1e-6)


def test_an_outcome_runs_as_its_own_experts_do() -> None:
    """Not as equally many others, nor as experts of even load."""
    of, none = items(), ((),) * (LAYERS - 1)
    found = [of.outcome(Placement(MODEL.map.num_experts, ((expert,), *none))) for expert in range(EXPERTS)]
    for each in found:
        own = step_of(of, each.placement, 1.0)
        assert (of.batch / each.throughput, each.energy * of.batch) == pytest.approx(own, rel=1e-12)
    assert len({each.energy for each in found}) == EXPERTS
    some = of.outcome(Placement(MODEL.map.num_experts, ((0,), *none), (of.names[1],)))
    share = 1 - of.sizes[of.names[1]] / sum(of.sizes.values())
    assert some.energy * of.batch == pytest.approx(step_of(of, some.placement, share)[1], rel=1e-12)


def test_curves_of_other_scores_are_those_of_their_placements() -> None:
    of, maxnn = items(), torch.rand(LAYERS, EXPERTS, generator=torch.Generator().manual_seed(0))
    found = of.frontiers("any", maxnn)
    for number in range(EXPERTS + 1):
        each = of.outcome(place(maxnn, number / EXPERTS))
        even = cost(of.shape, (number,) * LAYERS, of.batch)
        share = (sum(of.sizes.values()) + number * LAYERS * of.size) / of.total
        chance = of.experts.sum() * (1 - number / EXPERTS)
        for axis, x in zip(AXES, (each.share, each.energy, each.throughput), strict=True):
            assert found[MAXNN][axis][number] == (x, each.predicted)
        for axis, x in zip(AXES, (share, even.joules / of.batch, even.tokens_per_second), strict=True):
            assert found[RANDOM][axis][number] == pytest.approx((x, chance))


def test_with_everything_digital_nothing_is_lost() -> None:
    """Whatever rounding leaves of a sum of damages less the same damages."""
    for seed in range(20):
        found = items(seed, dense=9).frontiers("any", torch.rand(LAYERS, EXPERTS))["any"]["share"]
        assert math.copysign(1, found[-1][1]) == 1 and found[-1][1] == pytest.approx(0, abs=1e-12)


def test_more_budget_never_loses_more() -> None:
    of = items()
    increases = [
        of.outcome(of.best(Budgets(digital_parameters=share / 20), 1.0)).predicted for share in range(11)
    ]
    assert increases == sorted(increases, reverse=True) and increases[0] > increases[-1]


def test_a_loss_out_of_reach_says_what_it_needs_and_what_is_nearest() -> None:
    of = items()
    with pytest.raises(InputError) as caught:
        of.best(Budgets(loss_increase="1%", digital_experts=2), 2.0)
    needs, nearest = re.findall(r"([\d.]+)%", str(caught.value))[1], of.best(Budgets(digital_experts=2), 2.0)
    alone = of.outcome(of.best(Budgets(loss_increase="1%"), 2.0))
    assert str(caught.value).startswith("a loss increase of 0.0200 nats (1.00%) needs ")
    assert float(needs) == pytest.approx(100 * alone.share, abs=0.06)
    assert f"the budget of digital_experts is {of.outcome(nearest).predicted:.4f} nats" in str(caught.value)


def test_experts_may_be_ranked_by_another_score() -> None:
    """The choice is then the best of those that take its highest experts."""
    ranking = np.random.default_rng(5).random((LAYERS, EXPERTS))
    of = replace(items(1), ranking=ranking)
    order = np.argsort(-ranking.ravel()).tolist()
    subsets = [each for size in range(4) for each in combinations(range(3), size)]
    every = [
        of.outcome(of.placement(Choice(n, dense, 0))) for n in range(len(order) + 1) for dense in subsets
    ]
    for share in np.linspace(0, 0.4, 9).tolist():
        found = of.outcome(of.best(Budgets(digital_parameters=share), 1.0))
        fits = [each for each in every if each.digital_parameters <= int(Fraction(str(share)) * of.total)]
        assert found.predicted == pytest.approx(min(each.predicted for each in fits))
        flat = [
            layer * EXPERTS + expert
            for layer, chosen in enumerate(found.placement.digital_experts)
            for expert in chosen
        ]
        assert sorted(flat) == sorted(order[: len(flat)])


def decline(rate: float = 2.0) -> Decline:
    """Of a model that would lose so much in a nat."""
    return Decline(("continuation",), 100, 0.25, 0.75, 2.0, 1.0, 0.5 * -math.expm1(-rate), (0.1, 0.4))


def test_a_budget_of_accuracy_is_one_of_the_loss() -> None:
    of = items(interaction=0.05)
    points = 20.0
    nats = -math.log(1 - 0.2 / 0.5) / 2.0
    assert of.best(Budgets(accuracy_drop=points), 1.0, decline()) == of.best(Budgets(loss_increase=nats), 1.0)
    stricter = Budgets(accuracy_drop=points, loss_increase=nats / 2)
    assert of.best(stricter, 1.0, decline()) == of.best(Budgets(loss_increase=nats / 2), 1.0)
    nothing = of.best(Budgets(digital_experts=0, digital_parameters=0), 1.0)
    assert of.best(Budgets(accuracy_drop=60), 1.0, decline()) == nothing  # more than can be lost
    assert of.best(Budgets(accuracy_drop=1), 1.0, decline(0.0)) == nothing  # nothing is lost
    with pytest.raises(InputError) as caught:
        of.best(Budgets(accuracy_drop=1, digital_experts=2), 2.0, decline())
    assert str(caught.value).startswith(
        f"an accuracy drop of 1 points, by prediction a loss increase of {-math.log(0.98) / 2:.4f} nats"
    )


@pytest.mark.parametrize("number", range(len(MACHINES)))
def test_budgets_that_contradict_each_other_say_what_is_nearest(number: int) -> None:
    """Of throughput, and of energy, within all other budgets."""
    of, every = case(number)
    fits = (every["experts"] <= 2) & (every["parameters"] <= 0.05 * of.total)
    for name, bound, words in (
        ("throughput", "seconds", r"the most throughput is ([\d,]+) tokens/s"),
        ("energy", "joules", r"the least energy is (\S+) J per token"),
    ):
        costs = every[bound]
        extreme, nearest = float(costs.min()), float(costs[fits].min())
        if nearest == extreme:
            continue
        budget = of.batch / extreme if name == "throughput" else extreme / of.batch
        with pytest.raises(InputError, match="cannot be met together, though each can alone") as caught:
            of.best(
                Budgets(digital_experts=2, digital_parameters=0.05, **{name: budget * (1 - 1e-9)})
                if name == "throughput"
                else Budgets(digital_experts=2, digital_parameters=0.05, **{name: budget * (1 + 1e-9)}),
                1.0,
            )
        (found,) = re.findall(words, str(caught.value))
        expected = of.batch / nearest if name == "throughput" else nearest / of.batch
        assert float(found.replace(",", "")) == pytest.approx(expected, rel=6e-3)


@pytest.mark.parametrize("memory", ["99999999TB", 10**400, f"{10**29}TB"])
def test_a_huge_budget_is_none(memory: int | str) -> None:
    of = items()
    assert of.best(Budgets(digital_memory=memory), 1.0) == of.best(Budgets(digital_parameters="100%"), 1.0)
    with np.errstate(all="raise"):
        assert of.best(Budgets(energy=1e300), 1.0) == of.best(Budgets(digital_parameters="100%"), 1.0)
