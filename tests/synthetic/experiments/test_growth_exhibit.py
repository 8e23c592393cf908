"""Is the exhibit `growth` right on records with known answers, in its closed form, its drawing and one real run?"""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from committed import assert_as_committed
from hypothesis import given
from hypothesis import strategies as st

from figures.catalogue import EXHIBITS, find
from figures.drawings import growth as drawing
from figures.rules import read
from synthetic.experiments import growth
from synthetic.experiments.growth import SIGNS, Config, Run, far_steps, grid, measure, summarise
from synthetic.model import ModelConfig
from theory.errors import InputError
from theory.evidence import Result, inside, mean_interval, mean_within
from theory.growth import growth_rate, knee
from theory.separation import FIRST_FRESH_SEED
from theory.setting import Setting

GATE = 0.99
STEPS = 80


def record(
    setting: Setting,
    seed: int,
    *,
    steps: int | None = None,
    exponent: float = 1.0,
    leaked_gate: float = 0.0,
    knees: float = 1.0,
    drift: float = 0.0,
    active: float = 0.5,
    rare_gate: float = GATE,
) -> dict[str, Any]:
    """The record that (G) predicts, with .3 % of noise, and with what the arguments change.

    steps: length of the training, STEPS for the stop rule.
    exponent: exponent of rho in the ratio of the classes' frequencies.
    leaked_gate: gate of the leaked token.
    knees: factor on the steps at which growth ends.
    drift: exponent of a further factor rho^drift on these steps for rare specialists.
    active: the active fraction of every expert.
    rare_gate: gate of the own token of rare specialists.
    """
    network = ModelConfig.of(setting)
    frequent = network.kinds.numpy() == 0
    frequency = np.where(frequent, 1 - setting.alpha, (1 - setting.alpha) / setting.rho**exponent)
    gates = np.where(frequent, GATE, rare_gate)
    rate = growth_rate(frequency, gates, setting.eta, setting.m)
    counts = np.where(frequent, setting.N_F, setting.N_R)
    ends = knees * knee(frequency, gates, counts, active, setting.eta, setting.m)
    ends = ends * np.where(frequent, 1, setting.rho**drift)
    last = steps or STEPS
    times = np.unique(np.concatenate(([0], np.geomspace(5, last, 60).round())))
    noise = 1 + 0.003 * np.random.default_rng([seed, round(1000 * setting.alpha)]).standard_normal()
    own = 1e-4 + rate * np.minimum(times[:, None], ends) * np.where(frequent, noise, 1)
    leaked = np.where(frequent, 0, leaked_gate / gates * setting.rho * own[-1])
    norm = np.sqrt(own**2 + (leaked * times[:, None] / last) ** 2)
    return {
        "steps": last,
        "active": [active] * network.experts,
        "own_gate": gates.tolist(),
        "leaked_gate": [leaked_gate] * network.experts,
        "curve": {"steps": times.tolist(), "own": own.tolist(), "norm": norm.tolist()},
        "largest": {"own": own[-1].tolist(), "leaked": leaked.tolist()},
    }


def result(seeds: int = 6, **changes: Any) -> Result:
    configs = [
        Config(Setting(alpha=alpha), steps, seed)
        for alpha in (0.1, 0.25)
        for steps in (None, far_steps(Setting(alpha=alpha)))
        for seed in range(seeds)
    ]
    return summarise(
        configs, [record(config.setting, config.seed, steps=config.steps, **changes) for config in configs]
    )


def verdicts(found: Result) -> dict[str, str]:
    return {
        finding.claim.partition("; N_F")[0] + finding.claim.partition("alpha =")[2]: finding.verdict
        for finding in found.findings
    }


OWN = "own-token weights have the ratio rho at the stop rule"
NORMS = "the ratio of the neurons' norms is proportional to that of the frequencies"
PREDICTED = "with saturation, leakage and death, G predicts the ratio of norms"
LARGER = "specialists of frequent tokens have the larger neurons"
KNEE = "frequent neurons stop growing at t_F"
CURVE = "the own-token ratio follows the closed form, before and after the knee"
LATE = "in the end the own-token ratio is N_R q_R/(N_F q_F)"
WITHOUT_ALPHA = "... which does not depend on alpha"


def test_families_are_those_of_the_rules() -> None:
    rules = read(find("figure-growth", EXHIBITS))
    assert {finding.family for finding in result().findings} == set(rules.families)


def test_claims_are_those_that_are_committed() -> None:
    assert_as_committed("figure-growth", result(), computed=["have the ratio rho at the stop rule"])


def test_the_late_ratio_knows_the_gates() -> None:
    found = verdicts(result(rare_gate=0.8))
    assert {verdict for claim, verdict in found.items() if claim.startswith(LATE)} == {"holds"}


def test_the_late_ratio_waits_for_both_classes() -> None:
    setting = Setting(alpha=0.1)
    run = Run(setting, record(setting, 0))
    ends = [max(run.knee(frequent, sign) for sign in SIGNS) for frequent in (True, False)]
    between, after = (Run(setting, record(setting, 0, steps=math.ceil(end / 0.9) + 1)) for end in ends)
    assert all(map(math.isnan, growth._late(between)))
    assert growth._late(after)[1] == pytest.approx(1, abs=0.02)


def test_everything_holds_on_what_the_statement_has() -> None:
    found = verdicts(result())
    assert set(found) == {
        f"{OWN} 0.1",
        f"{OWN} 0.25",
        NORMS,
        PREDICTED,
        LARGER,
        KNEE,
        CURVE,
        LATE,
        WITHOUT_ALPHA,
    }
    assert set(found.values()) == {"holds"}


@pytest.mark.parametrize(
    ("changes", "failing"),
    [
        # All growth alike, as for Adam.
        ({"exponent": 0.0}, {f"{OWN} 0.1", f"{OWN} 0.25", NORMS, PREDICTED, CURVE}),
        ({"exponent": -0.5}, {f"{OWN} 0.1", f"{OWN} 0.25", NORMS, PREDICTED, CURVE, LARGER}),
        # The norms alone, and (G, i-iii) foresees it.
        ({"leaked_gate": 0.5}, {NORMS}),
        ({"knees": 0.5}, {f"{OWN} 0.1", f"{OWN} 0.25", KNEE, CURVE}),
        ({"drift": -0.3}, {CURVE, LATE, WITHOUT_ALPHA}),
    ],
)
def test_each_rule_can_fail(changes: dict[str, Any], failing: set[str]) -> None:
    found = verdicts(result(**changes))
    failed = {claim for claim, verdict in found.items() if verdict == "fails"}
    assert failed >= failing
    if "drift" in changes or "leaked_gate" in changes:
        assert failed == failing


def test_the_closed_form_is_reproduced_by_its_own_record() -> None:
    setting = Setting(alpha=0.1)
    run = Run(setting, record(setting, 0, steps=far_steps(setting)))
    assert run.complete
    assert run.own[:, ~run.frequent] == pytest.approx(run.closed_form[:, ~run.frequent], rel=1e-12)
    assert run.own_ratio(SIGNS, run.closed_form)[-1] == pytest.approx(1.0, rel=1e-3)
    assert run.norm_ratio(run.predicted_norm) == pytest.approx(run.norm_ratio(run.norm[-1]), rel=0.1)


def test_a_saturated_sign_is_left_out_and_a_dead_kind_set_aside() -> None:
    setting = Setting(alpha=0.1)
    content = record(setting, 0)
    plus = Run(setting, content).group(True, 1)
    content["active"] = np.where(plus, 1.0, 0.5).tolist()  # twice as active: it is past its knee at STEPS
    run = Run(setting, content)
    assert run.knee(True, 1) < STEPS < run.knee(True, -1) and run.unsaturated == [-1]
    content["active"] = np.where(plus, 0.0, 0.5).tolist()
    assert not Run(setting, content).complete
    configs = [
        Config(each, steps, seed)
        for each in (setting, replace(setting, alpha=0.25))
        for steps in (None, far_steps(each))
        for seed in range(3)
    ]
    records = [record(config.setting, config.seed, steps=config.steps) for config in configs]
    for config, each in zip(configs, records, strict=True):
        if config.seed == 0:  # the dead one is dead in all trainings of its seed
            each["active"] = content["active"]
    found = summarise(configs, records)
    assert {finding.n for finding in found.findings} == {2}
    assert {finding.verdict for finding in found.findings} == {"inconclusive"}  # of too few seeds
    assert found.data["at the stop rule"][0]["seeds"] == 2 and found.data["set_aside"] == 1


@given(st.floats(-3, 3), st.floats(0, 2), st.floats(0.01, 1))
def test_an_interval_is_inside_outside_or_neither(centre: float, half: float, tolerance: float) -> None:
    low, high = centre - half, centre + half
    found = inside((low, high), 1 - tolerance, 1 + tolerance)
    if found == "holds":
        assert 1 - tolerance < low and high < 1 + tolerance
    elif found == "fails":
        assert high < 1 - tolerance or low > 1 + tolerance
    else:
        assert low <= 1 + tolerance and high >= 1 - tolerance


@given(
    st.lists(st.floats(-10, 10), min_size=2, max_size=5),
    st.floats(-10, 10),
    st.floats(0.01, 5),
    st.booleans(),
)
def test_a_mean_is_judged_by_its_interval_and_the_rule_says_so(
    samples: list[float], centre: float, margin: float, named: bool
) -> None:
    words = "inside what it ought to be" if named else ""
    finding = mean_within(
        "a claim",
        "a statistic",
        samples,
        centre,
        margin,
        origin="ours",
        statement="G",
        family="f",
        words=words,
    )
    assert finding.interval == mean_interval(samples)
    assert finding.estimate == pytest.approx(np.mean(samples)) and finding.n == len(samples)
    if finding.interval[0] < finding.interval[1]:
        assert finding.alone == inside(finding.interval, centre - margin, centre + margin)
    else:
        assert finding.alone == "inconclusive"  # without any spread
    where = words or f"within {margin:g} of {centre:g}"
    assert finding.rule == f"95 % interval {where}: holds; outside: fails"
    assert (finding.origin, finding.statement) == ("ours", "G")


def test_factors_multiply_to_the_ratio_of_norms() -> None:
    for row in result(seeds=2, leaked_gate=0.01).data["at the stop rule"]:
        product = math.prod(factor["mean"] for factor in row["factors"].values())
        assert product * row["rho"] == pytest.approx(row["norm_ratio"]["mean"])
        leaked = row["leakage"]["measured"]["mean"]
        assert row["factors"]["leakage"]["mean"] == pytest.approx(1 / math.sqrt(1 + leaked**2), rel=1e-9)
        assert row["leakage"]["measured"]["mean"] == pytest.approx(row["leakage"]["predicted"]["mean"])


def test_the_grid() -> None:
    for preset in growth.PRESETS:
        units = grid(preset)
        assert len(set(units)) == len(units)
        # Every training has the same seeds.
        seeds = {(unit.setting, unit.steps): [] for unit in units}  # type: dict[tuple[Setting, int | None], list[int]]
        for unit in units:
            seeds[unit.setting, unit.steps].append(unit.seed)
        assert len({tuple(each) for each in seeds.values()}) == 1
    full = grid("full")
    assert {unit.setting.alpha for unit in full if unit.steps is None} == {0.02, 0.05, 0.1, 0.15, 0.2, 0.25}
    assert {unit.seed for unit in full} == set(range(FIRST_FRESH_SEED, FIRST_FRESH_SEED + 16))
    assert {unit.seed for unit in grid("quick", first_seed=7)} == {7, 8}
    with pytest.raises(InputError, match="--seeds 1: .*at least 2"):
        grid("quick", seeds=1)


@pytest.mark.claim("G")
def test_trained_models_follow_the_closed_form() -> None:
    """One seed is trained to its stop rule and far past it. The measurement is reproducible."""
    setting = Setting(d=16, alpha=0.25)
    runs = [Run(setting, measure(Config(setting, steps, 0))) for steps in (None, far_steps(setting))]
    stopped, far = runs
    assert measure(Config(setting, None, 0)) == stopped.record
    assert stopped.steps[-1] == stopped.record["steps"] < far.record["steps"] == far_steps(setting)
    assert stopped.own[0] == pytest.approx(far.own[0])
    for run in runs:
        # The share of the rare class in the batches, up to 6 standard deviations of it, and a step of overshoot.
        error = 6 * math.sqrt(run.sampling_variance if run.unsaturated else 1e-4) + 0.05
        assert math.log(
            run.own_ratio(SIGNS)[-1] / run.own_ratio(SIGNS, run.closed_form)[-1]
        ) == pytest.approx(0, abs=error)
        assert run.norm_ratio(run.norm[-1]) > 0


def test_the_drawing_shows_curves_ratios_and_effects() -> None:
    found = result()
    rows = found.data["at the stop rule"]
    weights, ratios = drawing.draw(found).axes
    assert "own token" in weights.get_ylabel() and len(ratios.containers) == 2  # of weights and of norms
    for points, key in zip(ratios.containers, ("own_ratio", "norm_ratio"), strict=True):
        assert np.asarray(points[0].get_ydata()).tolist() == [row[key]["mean"] for row in rows[::-1]]
    (over_time,) = drawing.draw_over_time(found).axes
    curve = found.data["curves"][0]["curves"]["own_ratio"]["mean"]
    assert any(np.array_equal(line.get_ydata(), curve) for line in over_time.lines)
    effects = drawing.draw_effects(found).axes
    assert len(effects) == len(growth.FACTORS) + 1 and set(drawing.FACTORS) == set(growth.FACTORS)
    # Drawn points are the result's.
    for axis, name in zip(effects, drawing.FACTORS, strict=False):
        (points,) = axis.containers
        assert np.asarray(points[0].get_ydata()).tolist() == [row["factors"][name]["mean"] for row in rows]
    rows = drawing.table(found)
    assert [row["alpha"] for row in rows] == [0.1, 0.25]
    assert all(set(row) == set(rows[0]) for row in rows)
    assert rows[0]["norm_ratio, low"] <= rows[0]["norm_ratio"] <= rows[0]["norm_ratio, high"]
    assert (
        Result.from_json(replace(found, exhibit="figure-growth", preset="quick").to_json()).data == found.data
    )
