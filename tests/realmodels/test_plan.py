"""Is the plan the best one within its budgets, is its prediction what it says, and what is refused?"""

import io
import json
import math
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from fractions import Fraction
from functools import cache
from importlib import import_module
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import MODELS, TEXTS, TOP_K, as_model, network_named, small_model

from realmodels.cost import Machine, Shape, cost
from realmodels.deploy import deployed
from realmodels.evaluate import block_results
from realmodels.load import load
from realmodels.plan import (
    AXES,
    BUDGETS,
    DAMAGE,
    MAXNN,
    RANDOM,
    THE_PLAN,
    Budgets,
    Choice,
    Items,
    Plan,
    plan,
    read_plan,
)
from realmodels.progress import progress
from theory.errors import InputError
from theory.hardware import Hardware
from theory.placement import Placement, place

under_test: Any = import_module("realmodels.plan")  # `realmodels.plan` is the function
HARDWARE = Hardware(c=1.5, tile_size=16)
CALIBRATION, HELD_OUT = TEXTS[:6], TEXTS[6:]
MODEL = small_model()
LAYERS, EXPERTS = len(MODEL.map.num_experts), MODEL.map.num_experts[0]


def planned(model: Any = MODEL, hardware: Hardware = HARDWARE, **budgets: Any) -> Plan:
    return plan(model, hardware, texts=HELD_OUT, calibration=CALIBRATION, draws=2, **budgets)


@cache
def a_plan() -> Plan:
    return planned(digital_parameters="30%")


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


def test_what_everything_costs_together_comes_out_right() -> None:
    """And the increase rises with the damage, however little everything costs."""
    for measured in (0.0, 0.1, 0.9, 1.0, 3.0):
        b = under_test._interaction(1.0, measured)
        of = items(interaction=b)
        assert of.increase(1.0) == pytest.approx(max(measured, 0.5))
        sums = np.linspace(0, 1, 50)
        assert (np.diff(of.increase(sums)) >= -1e-12).all()
        for each in sums.tolist():
            assert of.sum_of(of.increase(each)) == pytest.approx(each, abs=1e-6)
    assert under_test._interaction(0.0, 1.0) == 0.0


def test_closed_forms_are_corrected_only_by_what_was_measured_above_0() -> None:
    assert under_test._corrected(0.5, [0.9, 1.0, 1.1]).factor == pytest.approx(2.0)
    assert under_test._corrected(0.5, [-1.0, 1.0, 1.1]).factor == 1.0
    assert under_test._corrected(0.0, [0.9, 1.0, 1.1]).factor == 1.0


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
    found = of.frontiers(maxnn)
    for number in range(EXPERTS + 1):
        each = of.outcome(place(maxnn, number / EXPERTS))
        even = cost(of.shape, (number,) * LAYERS, of.batch)
        share = (sum(of.sizes.values()) + number * LAYERS * of.size) / of.total
        chance = of.experts.sum() * (1 - number / EXPERTS)
        for axis, x in zip(AXES, (each.share, each.energy, each.throughput), strict=True):
            assert found[MAXNN][axis][number] == (x, each.predicted)
        for axis, x in zip(AXES, (share, even.joules / of.batch, even.tokens_per_second), strict=True):
            assert found[RANDOM][axis][number] == pytest.approx((x, chance))


def test_loads_are_shares_of_tokens() -> None:
    """Each layer's sum to the experts that a token uses."""
    np.testing.assert_allclose(np.sum(a_plan().load, axis=1), MODEL.network.config.num_experts_per_tok)


@pytest.mark.parametrize("name", MODELS)
def test_any_model_has_a_plan_whose_numbers_are_those_of_its_placement(name: str) -> None:
    model = as_model(network_named(name))
    found = planned(model, digital_parameters="25%")
    each = found.outcome
    sizes = {linear: model.network.get_parameter(f"{linear}.weight").numel() for linear in model.map.linears}
    digital = [linear for linear in sizes if linear not in found.placement.analog_modules]
    assert [linear for linear, dense in found.dense.items() if dense.digital] == digital
    assert each.digital_experts == sum(map(len, found.placement.digital_experts))
    from realmodels.deploy import planned as accounted

    report, _ = accounted(model, found.placement)
    assert each.digital_parameters == report.count("digital by placement") <= 0.25 * report.total
    assert each.share == each.digital_parameters / report.total
    assert each.memory == 2 * (report.total - report.count("analog"))
    damages = sum(dense.damage for linear, dense in found.dense.items() if not dense.digital)
    damages += sum(row["score"] for row in found.rows() if not row["digital"])
    assert each.predicted == pytest.approx(damages + found.interaction * damages**2)
    assert model.deployment is None


def test_what_is_measured_is_what_deploy_gives_under_the_same_noise() -> None:
    found = a_plan()
    blocks = under_test.blocks_of(MODEL, HELD_OUT, "evaluation")
    before, _ = block_results(MODEL.network, blocks.tokens)
    assert found.digital_loss == float(before.mean())
    for each in found.outcomes.values():
        increases = []
        for seed in (1000, 1001):
            with deployed(MODEL, each.placement, HARDWARE, CALIBRATION, seed):
                increases.append(block_results(MODEL.network, blocks.tokens)[0] - before)
        assert each.measured == pytest.approx(float(torch.stack(increases).mean()), abs=1e-9)
        assert each.interval[0] <= each.measured <= each.interval[1]


def test_a_kind_is_measured_alone() -> None:
    """Both signs of each draw, on blocks of its own."""
    found = a_plan().kinds["attention"]
    blocks = under_test.blocks_of(MODEL, CALIBRATION, "calibration").tokens
    every = tuple(tuple(range(size)) for size in MODEL.map.num_experts)
    placement = Placement(MODEL.map.num_experts, every, ("attention",))
    increases = []
    for index, part in enumerate(blocks.tensor_split(under_test.DRAWS)):
        before, _ = block_results(MODEL.network, part)
        for mirrored in (False, True):
            seed = under_test.seed("search", index)
            with deployed(MODEL, placement, HARDWARE, CALIBRATION, seed, mirrored=mirrored):
                increases.append(float((block_results(MODEL.network, part)[0] - before).mean()))
    assert found.measured == pytest.approx(float(np.mean(increases)), abs=1e-9)


def test_frontiers_fall_and_no_score_beats_the_best() -> None:
    found = a_plan()
    assert set(found.frontiers) == {DAMAGE, MAXNN, RANDOM}
    for axis in AXES:
        best = np.array(found.frontiers[DAMAGE][axis])
        order = np.argsort(-best[:, 0] if axis == "throughput" else best[:, 0])
        assert (np.diff(best[order][:, 1]) <= 1e-12).all() and best[:, 1].min() == pytest.approx(0, abs=1e-9)
        for score in (MAXNN, RANDOM):
            for x, increase in found.frontiers[score][axis]:
                within = (
                    best[:, 0] >= x * (1 - 1e-9) if axis == "throughput" else best[:, 0] <= x * (1 + 1e-9)
                )
                if axis == "share":  # the grid is coarse: the next budget on it is at least as good
                    within = best[:, 0] <= x + 1 / (under_test.POINTS - 1)
                    assert best[within][:, 1].min() <= increase + 1e-9


def test_more_budget_never_loses_more() -> None:
    of = items()
    increases = [
        of.outcome(of.best(Budgets(digital_parameters=share / 20), 1.0)).predicted for share in range(11)
    ]
    assert increases == sorted(increases, reverse=True) and increases[0] > increases[-1]


def test_a_plan_is_read_back_as_it_was(tmp_path: Any) -> None:
    found = a_plan()
    (tmp_path / "plan.json").write_text(found.to_json())
    assert read_plan(tmp_path / "plan.json") == found
    assert str(found).startswith("small: ") and "off by" in str(found)
    assert found.error == found.outcome.predicted - found.outcome.measured


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content.pop("kinds"), "lacks the key 'kinds'"),
        (lambda content: content.update(more=1), "unknown key 'more'"),
        (lambda content: content["hardware"].update(c=-1), "hardware.c is -1"),
        (lambda content: content["outcomes"].pop(THE_PLAN), "'plan'"),
        (lambda content: content.update(frontiers=3), ""),
        (lambda content: content.update(dense=[1]), ""),
        (lambda content: content.update(damage="no"), ""),
    ],
)
def test_what_is_no_plan_is_refused(change: Any, message: str, tmp_path: Any) -> None:
    content = json.loads(a_plan().to_json())
    change(content)
    (tmp_path / "a.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=f"plan file .*a.json: .*{re.escape(message)}.*; give a plan.json"):
        read_plan(tmp_path / "a.json")
    with pytest.raises(InputError, match="cannot be read"):
        read_plan(tmp_path / "missing.json")


@pytest.mark.parametrize(
    ("budgets", "message"),
    [
        ({}, f"plan needs a budget: give one or several of {', '.join(BUDGETS)}"),
        ({"experts": 3}, "experts is no budget: give some of digital_experts"),
        (
            {"digital_experts": "120%"},
            "budget digital_experts is '120%': give a share (.1 or 10%) or a whole",
        ),
        ({"digital_experts": 1.5}, "budget digital_experts is 1.5: give a share"),
        ({"digital_experts": True}, "budget digital_experts is True: give a share"),
        ({"digital_experts": 13}, "budget digital_experts is 13: the model has 12; give at most so many"),
        ({"digital_parameters": -1}, "budget digital_parameters is -1: give a share"),
        ({"digital_memory": "some"}, "budget digital_memory is 'some': give bytes (1500000) or a text"),
        ({"digital_memory": 100}, "budget digital_memory is 100: what no placement touches"),
        ({"energy": 0}, "budget energy is 0: give a number above 0"),
        ({"energy": 1e-30}, "budget energy is 1e-30 J per token: the least is "),
        ({"throughput": 1e30}, "budget throughput is 1e+30 tokens/s: the most is "),
        ({"loss_increase": "-1%"}, "budget loss_increase is '-1%': give nats (.03) or per cent (1%)"),
        ({"loss_increase": math.nan}, "budget loss_increase is nan: give nats"),
    ],
)
def test_unusable_budgets(budgets: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(under_test, "items_of", lambda *_: (items(dense=9), {}))
    with pytest.raises(InputError, match=f"^{re.escape(message)}"):
        planned(**budgets)


def test_a_loss_out_of_reach_says_what_it_needs_and_what_is_nearest() -> None:
    of = items()
    with pytest.raises(InputError) as caught:
        of.best(Budgets(loss_increase="1%", digital_experts=2), 2.0)
    needs, nearest = re.findall(r"([\d.]+)%", str(caught.value))[1], of.best(Budgets(digital_experts=2), 2.0)
    alone = of.outcome(of.best(Budgets(loss_increase="1%"), 2.0))
    assert str(caught.value).startswith("a loss increase of 0.0200 nats (1.00%) needs ")
    assert float(needs) == pytest.approx(100 * alone.share, abs=0.06)
    assert f"the budget of digital_experts is {of.outcome(nearest).predicted:.4f} nats" in str(caught.value)


@pytest.mark.parametrize(
    ("value", "bytes_"), [(1500, 1500), ("1500", 1500), ("1.5 kB", 1500), ("2KiB", 2048), ("3gb", 3 * 10**9)]
)
def test_memory_is_written_in_bytes(value: Any, bytes_: int) -> None:
    assert under_test._bytes(value) == bytes_


def test_shares_are_decimal() -> None:
    assert under_test._count("x", "29%", 100) == under_test._count("x", 0.29, 100) == 29
    assert under_test._count("x", 1, 100) == 1 and under_test._count("x", 1.0, 100) == 100
    assert Budgets(loss_increase="2.5 %").nats(2.0) == 0.05 and Budgets(loss_increase=1).nats(2.0) == 1


def test_bad_settings() -> None:
    with pytest.raises(InputError, match=r"hardware.c is 0: without programming noise"):
        planned(hardware=Hardware(c=0.0), digital_experts=1)
    with pytest.raises(InputError, match=r"--seeds 1: an interval needs at least 2"):
        plan(MODEL, HARDWARE, draws=1, digital_experts=1)
    with pytest.raises(InputError, match=r"calibration: \d+ of its paragraphs are in the evaluation text"):
        plan(MODEL, HARDWARE, texts=TEXTS, calibration=TEXTS, digital_experts=1)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("stream", [Terminal, io.StringIO])
def test_progress_is_shown_on_a_terminal_alone(stream: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of the work is announced, and done: the bar of a plan ends full."""
    shown, done, expected = stream(), list[float](), list[float]()
    monkeypatch.setattr(sys, "stderr", shown)
    monkeypatch.setenv("TERM", "xterm")
    with progress(2.0) as advance:
        for _ in range(2):
            advance("measuring", 1.0)
    assert ("measuring" in shown.getvalue()) == ("left" in shown.getvalue()) == shown.isatty()

    @contextmanager
    def counted(work: float) -> Iterator[Any]:
        expected.append(work)
        yield lambda step, each: done.append(each)

    monkeypatch.setattr(under_test, "progress", counted)
    planned(digital_experts=3)
    assert sum(done) == pytest.approx(expected[0])


@pytest.mark.slow
@pytest.mark.claim("D-dense")
@pytest.mark.claim("D-sum")
@pytest.mark.parametrize(("name", "c"), [("tiny-olmoe", 2.5), ("tiny-deepseek-moe", 2.5)])
def test_the_correction_makes_predictions_better(name: str, c: float) -> None:
    """On held-out text, of the whole of each kind alone, and of everything together, at large noise.

    At c = 1.5 the closed forms of tiny-olmoe are as near as other text lets any prediction be.
    """
    model, hardware = load(name), Hardware(c=c)
    of, kinds = under_test.items_of(model, hardware, model.texts("calibration"), 32, None, lambda *_: None)
    sizes = model.map.num_experts
    every, none = tuple(tuple(range(size)) for size in sizes), ((),) * len(sizes)
    placements = {kind: Placement(sizes, every, (kind,)) for kind in kinds if kind != "experts"}
    placements |= {"experts": Placement(sizes, none), "all": Placement(sizes, none, model.map.dense_kinds)}
    blocks = under_test.blocks_of(model, model.texts("evaluation"), "evaluation")
    digital, _ = block_results(model.network, blocks.tokens)
    tables = under_test.increases_of(
        model, hardware, of.ranges, placements, range(4), blocks, digital, lambda *_: None
    )
    bare = of.uncorrected(kinds)

    def error(by: Items) -> float:
        return sum(
            abs(math.log(by.outcome(each).predicted / float(tables[kind].mean())))
            for kind, each in placements.items()
        )

    assert error(of) < error(bare)
