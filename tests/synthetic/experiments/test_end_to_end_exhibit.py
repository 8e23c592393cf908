"""Does the exhibit of the theorem judge what is promised, and do real trainings obey the bounds?"""

from typing import Any

import pytest
import torch
from committed import assert_as_committed
from hypothesis import given, settings
from hypothesis import strategies as st

from figures.drawings import end_to_end as drawing
from synthetic.data import Task, evaluation_samples
from synthetic.experiments import end_to_end
from synthetic.experiments.end_to_end import (
    BASE,
    PRESETS,
    START,
    Config,
    Joint,
    gains,
    grid,
    measure,
    selects,
    summarise,
)
from synthetic.model import ModelConfig, initialise
from theory.end_to_end import INSTANCES, bounds
from theory.evidence import Result
from theory.separation import FIRST_FRESH_SEED
from theory.setting import Setting


def records(configs: list[Config], **changes: Any) -> list[dict[str, Any]]:
    """Records that keep every promise, with `changes`: by name of a field of any record."""
    made = []
    for index, config in enumerate(configs):
        record: dict[str, Any]
        if config.joint is None:
            star = 3.0 + 0.01 * (index % 5)
            record = {
                "ranks": True,
                "norm_ratio": 9.0 + 0.01 * (index % 5),
                "tolerance": {"none": 0.3, "oracle": star},
                "within": {"margin": True, "rare: own token, above": True},
            }
        else:
            share = 0.75 + 0.125 * (index % 2)
            record = dict.fromkeys(("frequent", "rare", "both", "own", "any"), share)
            record |= {"wrong sign": 0.05 * (index % 2), "own": 1.0, "steps": 90, "stopped": True}
            record |= {"liked": [4, 3], "disliked": [4, 0], "accuracy": [1.0, 0.9]}
        made.append(record | {name: value for name, value in changes.items() if name in record})
    return made


def configs() -> list[Config]:
    return [
        *(config for config in grid("full") if config.name in ("reference", "rho 9")),
        *(config for config in grid("full") if config.joint in (BASE, START)),
    ]


def verdicts(result: Result) -> dict[str, str]:
    return {finding.claim: finding.verdict for finding in result.findings}


def test_promises_that_are_kept_hold() -> None:
    result = summarise(configs(), records(configs()))
    assert set(verdicts(result).values()) == {"holds"}
    assert len(result.findings) == 2 + 3 + 1 + 3
    assert_as_committed("figure-end-to-end", result, computed=("with probability 1 - p",))
    shares = [each.estimate for each in result.findings if each.statistic.startswith("share of trainings")]
    assert shares == [1.0] * 6
    assert result.data["inputs"] == 400
    base = next(row for row in result.data["joint"] if row["router"] == "random")
    assert (base["liked"], base["disliked"]) == (0.75, 0.0)
    row = result.data["instances"][1]
    assert row["promised"] == pytest.approx(float(bounds(INSTANCES["rho 9"][0]).gain))
    assert row["kept"]["ranking"]["count"] == row["seeds"] == 200
    for draw in (drawing.draw, *(draw for draw, _ in drawing.PARTS.values())):
        assert draw(result).axes


@pytest.mark.parametrize(
    ("changes", "claim"),
    [
        ({"ranks": False}, "every frequent specialist ranks above every rare one"),
        ({"within": {"margin": False}}, "all bounds on weights hold"),
        ({"tolerance": {"none": 0.3, "oracle": 0.1}}, "the gain is at least kappa rho"),
        ({"tolerance": {"none": 0.3, "oracle": None}, "ranks": False}, "every frequent specialist"),
        ({"any": 0.1}, "trained from random routers, most experts"),
        ({"own": 0.5}, "routers that are specialised at the start stay so"),
    ],
)
def test_promises_that_are_broken_fail(changes: dict[str, Any], claim: str) -> None:
    made = records(configs(), **changes)
    if "any" in changes:  # samples without spread decide nothing
        made = [
            record | {"any": 0.1 + 0.01 * (i % 2)} if "any" in record else record
            for i, record in enumerate(made)
        ]
    found = [
        verdict for words, verdict in verdicts(summarise(configs(), made)).items() if words.startswith(claim)
    ]
    assert found and set(found) == {"fails"}


def test_one_training_in_ten_that_breaks_a_promise_is_too_many() -> None:
    made = records(configs())
    for index, record in enumerate(made):
        if "ranks" in record and index % 10 == 0:
            record["ranks"] = False
    ranking = [
        verdict for words, verdict in verdicts(summarise(configs(), made)).items() if "ranks above" in words
    ]
    assert ranking == ["fails", "fails"]


def test_the_measured_gain_in_units_of_the_proved_one() -> None:
    """Gains below 1 count, and one that is just what is promised is kept; two trainings have an interval."""
    least = float(bounds(INSTANCES["rho 9"][0]).gain)
    everything = [*(config for config in configs() if config.joint is not None)]
    for trainings in (1, 2, 3):
        chosen = [config for config in configs() if config.name == "rho 9"][:trainings] + everything
        made = records(chosen, tolerance={"none": 1.0, "oracle": least})
        made[0]["tolerance"] = {
            "none": 1.0,
            "oracle": least * (1 + 1e-9),
        }  # samples without spread decide nothing
        result = summarise(chosen, made)
        (row,) = result.data["instances"]
        assert row["kept"]["gain"]["count"] == len(row["gains"]) == trainings and least < 1
        loose = [each for each in result.findings if "is loose" in each.claim]
        assert len(loose) == (trainings > 1) and (row["looseness"] is not None) == (trainings > 1)
        for each in loose:
            assert each.estimate == pytest.approx(1) == row["looseness"]["mean"]


def test_a_group_without_experts_has_no_share() -> None:
    row = summarise(configs(), records(configs(), disliked=[0, 0])).data["joint"][0]
    assert row["disliked"] is None and row["liked"] == 0.75


@pytest.mark.parametrize(
    ("none", "oracle", "gain"),
    [
        (0.5, 2.0, 4.0),
        (0.5, None, float("inf")),
        (0.0, 1.0, float("inf")),
        (0.0, 0.0, 0.0),
        (None, None, 0.0),
    ],
)
def test_gains_of_tolerances_without_a_number(none: float | None, oracle: float | None, gain: float) -> None:
    assert gains([{"tolerance": {"none": none, "oracle": oracle}}]) == [gain]


def test_presets() -> None:
    full = grid("full")
    assert {config.name for config in full} == {*INSTANCES, ""}
    assert all(count >= 200 for count in PRESETS["full"].instances.values())
    assert min(config.seed for config in full) == FIRST_FRESH_SEED
    assert [config.seed for config in grid("quick", seeds=2, first_seed=7) if config.joint == BASE] == [7, 8]


def test_routers_select_the_tokens_that_they_are_made_for() -> None:
    setting = Setting()
    task = Task.of(setting)
    samples = evaluation_samples(task, 500, (3,))
    right = selects(initialise(task, ModelConfig.of(setting), (3,)), samples)
    expected = torch.zeros(8, 2, 2, dtype=torch.bool)
    expected[:4, 0, 0] = expected[4:, 1, 0] = True
    assert torch.equal(right, expected)


@pytest.mark.claim("E")
@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 10**5))
def test_a_training_of_the_reference_instance_obeys_the_bounds(seed: int) -> None:
    """A dead frequent specialist is the one bound that fails often enough (1.6 %) to be met here."""
    instance = INSTANCES["reference"][0]
    record = measure(Config("reference", instance, None, seed, 2, 20))
    broken = {name for name, obeyed in record["within"].items() if not obeyed}
    assert broken <= {"frequent: own token, below"}
    assert record["ranks"] or broken


@pytest.mark.claim("E")
def test_bounds_that_are_too_tight_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every bound on weights moved by what separates it from typical weights is broken."""
    instance = INSTANCES["reference"][0]
    found = bounds(instance)
    frequent = found.frequent._replace(own_low=found.frequent.own_high, leaked=0.0, other=0.0)
    rare = found.rare._replace(own_high=found.rare.own_low, leaked=0.0, other=0.0)

    def tight(_: object) -> object:
        return type(found)(**{**found.__dict__, "frequent": frequent, "rare": rare, "most_margin": 0.0})

    monkeypatch.setattr(end_to_end, "bounds", tight)
    record = measure(Config("reference", instance, None, 0, 2, 20))
    held = {name for name, obeyed in record["within"].items() if obeyed}
    assert held == {"frequent: own token, above", "rare: own token, below"}


def test_joint_training_from_specialised_routers() -> None:
    record = measure(Config("", None, Joint(router="specialised", steps=20), 1, 2, 500))
    assert record["own"] == 1.0 and record["wrong sign"] == 0.0
    assert record["steps"] == 20 and record["accuracy"] == [1.0, 1.0]
