"""Is the plan the best one within its budgets, is its prediction what it says, and what is refused?"""

import io
import json
import math
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from importlib import import_module
from typing import Any

import numpy as np
import pytest
import torch
from small_models import MODELS, TEXTS, as_model, network_named, small_model, small_network
from test_items import items

from realmodels.budgets import BUDGETS
from realmodels.calibrate import calibrate
from realmodels.deploy import deployed
from realmodels.evaluate import block_results
from realmodels.items import AXES, MAXNN, POINTS, RANDOM, Items
from realmodels.load import load
from realmodels.plan import plan
from realmodels.plan_file import THE_PLAN, Plan, read_plan
from realmodels.progress import progress
from realmodels.scores import scores
from realmodels.tasks import CONTINUATION, evaluate_tasks
from theory.errors import InputError
from theory.evidence import mean_interval
from theory.hardware import Hardware
from theory.placement import Placement

under_test: Any = import_module("realmodels.plan")  # `realmodels.plan` is the function
HARDWARE = Hardware(c=1.5, tile_size=16)
CALIBRATION, HELD_OUT = TEXTS[:6], TEXTS[6:]
QUESTIONS = 16
MODEL = small_model()
LAYERS, EXPERTS = len(MODEL.map.num_experts), MODEL.map.num_experts[0]


def planned(model: Any = MODEL, hardware: Hardware = HARDWARE, **budgets: Any) -> Plan:
    return plan(model, hardware, texts=HELD_OUT, calibration=CALIBRATION, draws=2, **budgets)


@cache
def a_plan() -> Plan:
    return planned(digital_parameters="30%")


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
    bare = sum(
        dense.damage / found.kinds[dense.kind].factor for dense in found.dense.values() if not dense.digital
    )
    bare += sum(row["damage"] for row in found.rows() if not row["digital"]) / found.kinds["experts"].factor
    assert each.closed == pytest.approx(bare)
    assert model.deployment is None


@pytest.mark.parametrize("budget", ["27kB", "100%"])
def test_embeddings_that_the_head_shares_stay_digital(budget: str) -> None:
    """Also if the head is analog; they count once if it is digital."""
    model = as_model(small_network(tie_word_embeddings=True))
    name = "digital_parameters" if "%" in budget else "digital_memory"
    budgets: dict[str, Any] = {name: budget}
    found = planned(model, **budgets)
    total = sum(each.numel() for each in model.network.parameters())
    linears = [f"{each}.weight" for each in found.placement.analog_modules if each != "lm_head"]
    analog = sum(model.network.get_parameter(each).numel() for each in linears)
    experts = LAYERS * EXPERTS - found.outcome.digital_experts
    analog += experts * 3 * model.network.config.hidden_size * model.network.config.intermediate_size
    assert found.outcome.memory == 2 * (total - analog) <= (27_000 if name == "digital_memory" else 2 * total)
    assert ("lm_head" in found.placement.analog_modules) == (name == "digital_memory")


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
    assert set(found.frontiers) == {found.score, MAXNN, RANDOM}
    for axis in AXES:
        best = np.array(found.frontiers[found.score][axis])
        order = np.argsort(-best[:, 0] if axis == "throughput" else best[:, 0])
        assert (np.diff(best[order][:, 1]) <= 1e-12).all() and best[:, 1].min() == pytest.approx(0, abs=1e-9)
        for score in (MAXNN, RANDOM):
            for x, increase in found.frontiers[score][axis]:
                within = (
                    best[:, 0] >= x * (1 - 1e-9) if axis == "throughput" else best[:, 0] <= x * (1 + 1e-9)
                )
                if axis == "share":  # the grid is coarse: the next budget on it is at least as good
                    within = best[:, 0] <= x + 1 / (POINTS - 1)
                    assert best[within][:, 1].min() <= increase + 1e-9


def test_a_plan_is_read_back_as_it_was(tmp_path: Any) -> None:
    for found in (a_plan(), on_tasks()):
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
        (lambda content: content.update(damage="no"), "it.damage is 'no': no tuple"),
        (lambda content: content.update(model=3), "it.model is 3: no str"),
        (lambda content: content.update(digital_loss=0.0), "digital_loss is 0.0: not above 0"),
        (lambda content: content.update(digital_loss=10**400), "it.digital_loss is 1000"),
        (lambda content: content.update(digital_loss=math.nan), "it.digital_loss is nan: no float"),
        (lambda content: content["ranking"].pop(), "ranking is not of the experts"),
        (lambda content: content["load"][0].pop(), "load is not of the experts"),
        (lambda content: content["frontiers"][MAXNN].update(share=[]), "frontiers.MaxNNScore lacks 'share'"),
        (lambda content: content["frontiers"].pop(RANDOM), "frontiers lacks 'random'"),
        (lambda content: content["outcomes"][THE_PLAN].update(share=True), "it.outcomes.plan.share is True"),
        (
            lambda content: next(iter(content["outcomes"].values()))["placement"].update(
                num_experts=[2], digital_experts=[[0]]
            ),
            "is not of the experts",
        ),
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


@cache
def on_tasks() -> Plan:
    return planned(long_model(), tasks=(CONTINUATION,), questions=QUESTIONS, digital_parameters="30%")


@cache
def long_model() -> Any:
    """A small model that can read questions."""
    return as_model(small_network(max_position_embeddings=512))


def test_accuracies_are_those_of_deploy_on_questions_that_nothing_was_chosen_by() -> None:
    found, model = on_tasks(), long_model()
    decline = found.decline
    assert decline is not None and decline.tasks == (CONTINUATION,) and decline.questions == QUESTIONS

    def asked(shares: Sequence[int], limit: int) -> Any:
        return evaluate_tasks(model, [CONTINUATION], limit, shares=shares)

    right = asked(range(8, 16), QUESTIONS)
    for each in found.outcomes.values():
        drops = []
        for seed in (1000, 1001):
            with deployed(model, each.placement, HARDWARE, CALIBRATION, seed):
                drops.append(right.accuracy - asked(range(8, 16), QUESTIONS).accuracy)
        assert each.accuracy is not None
        assert each.accuracy.measured == pytest.approx(float(np.mean(drops)), abs=1e-12)
        assert each.accuracy.predicted == decline.drop(each.predicted)
        assert each.accuracy.expected == decline.expected(each.predicted)
        low, high = each.accuracy.interval
        assert low <= each.accuracy.measured <= high
    assert "points of accuracy lost on continuation: " in str(found)


def test_the_decline_is_measured_where_much_is_lost() -> None:
    """With everything analog, both signs of each draw, on blocks and questions that nothing else is measured on."""
    found, model = on_tasks(), long_model()
    decline = found.decline
    assert decline is not None
    every = sum(dense.damage for dense in found.dense.values()) + float(np.sum(found.damage))
    assert decline.c == pytest.approx(1.5 * min(10.0, math.sqrt(0.5 / every)))
    none = ((),) * len(model.map.num_experts)
    placement = Placement(model.map.num_experts, none, tuple(found.dense))
    blocks = under_test.blocks_of(model, CALIBRATION, "calibration").tokens
    draws, calibration = min(8, len(blocks)), calibrate(model, CALIBRATION, HARDWARE)
    increases, known, lost = [], [], []
    for index, part in enumerate(blocks.tensor_split(draws)):
        losses, _ = block_results(model.network, part)

        def asked(share: int = index) -> float:
            return evaluate_tasks(model, [CONTINUATION], 4 * QUESTIONS // draws, shares=[share]).accuracy

        known.append(asked())
        noisy, right = [], []
        for mirrored in (False, True):
            seed = under_test.seed("search", 8 + index)
            hardware = replace(HARDWARE, c=decline.c)
            with deployed(model, placement, hardware, calibration, seed, mirrored=mirrored):
                noisy.append(float((block_results(model.network, part)[0] - losses).mean()))
                right.append(asked())
        increases.append(np.mean(noisy))
        lost.append(known[-1] - np.mean(right))
    assert decline.increase == pytest.approx(float(np.mean(increases)), abs=1e-9)
    assert decline.lost == pytest.approx(float(np.mean(lost)), abs=1e-12)
    assert decline.interval == pytest.approx(mean_interval(lost), abs=1e-12)
    assert decline.digital == pytest.approx(float(np.mean(known))) and decline.chance == 0.25


def test_experts_are_ranked_by_any_score() -> None:
    """And predictions are of expected damage all the same."""
    by = torch.rand(LAYERS, EXPERTS, generator=torch.Generator().manual_seed(1))
    for score, values, name in (
        (by, by.numpy(), "own score"),
        ("router_norm", scores(MODEL, "router_norm").numpy(), "router norm"),
    ):
        found = planned(score=score, digital_experts=3)
        assert found.score == name
        np.testing.assert_allclose(found.ranking, values, rtol=1e-7)
        best = np.sort(np.ravel(values))[-3:]
        assert sorted(row["score"] for row in found.rows() if row["digital"]) == pytest.approx(best.tolist())
        np.testing.assert_array_equal(found.damage, a_plan().damage)
        assert set(found.frontiers) == {name, MAXNN, RANDOM}
    assert a_plan().score == "expected damage" and a_plan().ranking == a_plan().damage


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"accuracy_drop": 1},
            "budget accuracy_drop: of which tasks? Give tasks, such as paper or continuation",
        ),
        ({"accuracy_drop": 1, "tasks": ["continuaton"]}, "task 'continuaton': no such task"),
        (
            {"digital_experts": 1, "tasks": [CONTINUATION], "questions": 3},
            "questions is 3: give a whole number of",
        ),
        ({"digital_experts": 1, "score": "maxn"}, "score is 'maxn': give one of expected_damage, maxnn"),
        ({"digital_experts": 1, "score": "random"}, "score is 'random': give one of expected_damage"),
        (
            {"digital_experts": 1, "score": torch.ones(3)},
            "score has the shape (3,) and the type torch.float32: give finite numbers of shape",
        ),
        (
            {"digital_experts": 1, "score": [[1], [1, 2]]},
            "score is [[1], [1, 2]]: give finite numbers of shape",
        ),
        ({"digital_experts": 1, "score": {}}, "score is {}: give finite numbers of shape"),
        ({"digital_experts": 1, "score": 1j * torch.ones(LAYERS, EXPERTS)}, "score has the shape"),
        ({"digital_experts": 1, "score": [[1e300] * EXPERTS] * LAYERS}, "score has the shape"),
        ({"digital_experts": 1, "score": torch.full((LAYERS, EXPERTS), math.nan)}, "score has the shape"),
    ],
)
def test_unusable_tasks_and_scores(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=f"^{re.escape(message)}"):
        planned(**options)


def test_a_budget_of_accuracy_needs_tasks_that_the_model_knows() -> None:
    with pytest.raises(
        InputError, match=r"budget accuracy_drop: the digital model answers .* guessing 25.0%"
    ):
        planned(long_model(), tasks=(CONTINUATION,), questions=QUESTIONS, accuracy_drop=1)


def test_tasks_are_checked_before_anything_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of which the model does not know all tokens."""
    monkeypatch.setattr(under_test, "block_results", lambda *_: pytest.fail("the model was run"))
    model = as_model(small_network(vocab_size=64, max_position_embeddings=512))
    with pytest.raises(InputError, match="task continuation, question 0: the tokenizer of"):
        planned(model, tasks=(CONTINUATION,), questions=QUESTIONS, digital_experts=1)


@pytest.mark.parametrize("name", ["digital_experts", "digital_parameters"])
def test_more_than_the_model_has_is_refused_before_anything_is_computed(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(under_test, "block_results", lambda *_: pytest.fail("the model was run"))
    budgets: dict[str, Any] = {name: 10**400}
    with pytest.raises(InputError, match=rf"^budget {name} is 10+ \.\.\.: the model has \d+; give at most"):
        planned(**budgets)


def test_a_plan_of_another_model_is_refused(tmp_path: Any) -> None:
    (tmp_path / "plan.json").write_text(a_plan().to_json())
    assert read_plan(tmp_path / "plan.json", MODEL) == a_plan()
    (tmp_path / "plan.json").write_text(replace(a_plan(), weights_hash="1" * 64).to_json())
    with pytest.raises(InputError, match=r"plan file .* is of the model 'small' with the weights .*, not of"):
        read_plan(tmp_path / "plan.json", MODEL)


def test_bad_settings() -> None:
    with pytest.raises(InputError, match=r"hardware.c is 0: without programming noise"):
        planned(hardware=Hardware(c=0.0), digital_experts=1)
    with pytest.raises(InputError, match=r"hardware is 'pcm': give a Hardware"):
        planned(hardware="pcm", digital_experts=1)  # type: ignore[arg-type]
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
    measured = under_test.measurements(
        model, hardware, of.ranges, placements, range(4), blocks, digital, lambda *_: None
    )
    bare = of.uncorrected(kinds)

    def error(by: Items) -> float:
        return sum(
            abs(math.log(by.outcome(each).predicted / float(measured[kind].increases.mean())))
            for kind, each in placements.items()
        )

    assert error(of) < error(bare)
