"""Is the exhibit `tolerance` right in its units, its verdicts on data with known answers, and its drawing?"""

import json
import math
from typing import Any

import numpy as np
import pytest
from committed import assert_as_committed
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure

from figures.catalogue import EXHIBITS, find
from figures.drawings import tolerance as drawing
from figures.rules import read
from synthetic.experiments import tolerance
from synthetic.experiments.tolerance import (
    BOUNDS,
    JUDGED,
    MAGNITUDES,
    PLACEMENTS,
    Config,
    grid,
    measure,
    summarise,
)
from theory.errors import InputError
from theory.evidence import Finding, Result, proportion_interval
from theory.separation import FIRST_FRESH_SEED

ALPHAS = (0.02, 0.05, 0.1, 0.25)
SEEDS = 12
Units = tuple[list[Config], list[dict[str, Any]]]


def units(
    *,
    flat: float = 0.0,
    power: float = 1.0,
    knee: float = 0.0,
    found: float = 1.0,
    predicted: float = 1.02,
    floor: float = 0.6,
    ceiling: float = 1.8,
    spread: float = 0.02,
) -> Units:
    """Units with known answers: c* and gain follow power laws, times random factors.

    flat: exponent of alpha in c* of the oracle.
    power, knee: the gain is sqrt(knee + (rho/2)^(2 power)).
    found: c* of MaxNN over c* of the oracle.
    predicted, floor, ceiling: what theory says, over c*.
    spread: standard deviation of the logarithm of the random factors.
    """
    generator = np.random.default_rng(0)
    configs, records = [], []
    for n_f, n_r in tolerance.SPECIALISTS:
        for alpha in ALPHAS:
            for seed in range(SEEDS):
                rho = (1 - alpha) / alpha
                gain = math.sqrt(knee + (rho / 2) ** (2 * power)) * math.exp(
                    spread * generator.standard_normal()
                )
                oracle = alpha**flat * math.exp(spread * generator.standard_normal())
                star = {"none": oracle / gain, "maxnn": oracle * found, "oracle": oracle}
                factors = dict(zip(BOUNDS, (0.05, 0.2, 0.4, floor, predicted, ceiling), strict=True))
                configs.append(Config(n_f, n_r, alpha, seed, 64, 100))
                records.append(
                    {
                        "steps": 70,
                        "score_ratio": rho,
                        "digital": [0, 1, 2, 3],
                        "accuracy": {
                            name: [[1.0, 1 / (1 + (c / star[name]) / 19)] for c in MAGNITUDES]
                            for name in PLACEMENTS
                        },
                        "tolerance": star,
                        "theory": {
                            name: {
                                bound: factor
                                * star[name]
                                * math.exp(0.05 * spread * generator.standard_normal())
                                for bound, factor in factors.items()
                            }
                            for name in JUDGED
                        },
                    }
                )
    return configs, records


def found(result: Result, words: str) -> list[Finding]:
    chosen = [finding for finding in result.findings if words in finding.claim]
    assert len(chosen) == 2, words  # (2, 2) and (3, 1)
    return chosen


@pytest.mark.parametrize(
    ("words", "changes", "verdict", "estimate"),
    [
        ("does not depend on alpha", {}, "holds", 0.0),
        ("does not depend on alpha", {"flat": 0.3}, "fails", 0.3),
        ("does not depend on alpha", {"flat": -0.3}, "fails", -0.3),
        ("does not depend on alpha", {"flat": 0.1}, "inconclusive", 0.1),
        ("by Theta(rho)", {"knee": 1.0}, "holds", None),
        ("by Theta(rho)", {"knee": 1.0, "power": 0.5}, "fails", None),
        ("by Theta(rho)", {"knee": 1.0, "power": 1.4}, "fails", None),
        ("by Theta(rho)", {"knee": 1.0, "power": 0.8}, "fails", None),
        ("rather than g rho", {"knee": 1.0}, "holds", None),
        ("rather than g rho", {"power": 1.3}, "fails", None),
        ("MaxNNScore finds", {}, "holds", 1.0),
        ("MaxNNScore finds", {"found": 0.91}, "holds", 1.0),
        ("MaxNNScore finds", {"found": 0.89}, "fails", 0.0),
        ("predict c*, all analog", {}, "holds", 0.02),
        ("predict c*, all analog", {"predicted": 0.7}, "fails", 0.3),
        ("predict c*, frequent", {"predicted": 1.3}, "fails", 0.3),
        ("between floor", {}, "holds", 0.0),
        ("between floor", {"floor": 1.1}, "fails", 1.0),
        ("between floor", {"ceiling": 0.9}, "fails", 1.0),
        ("floor of the gain", {}, "holds", 1.0),
        ("floor of the gain", {"power": 0.5}, "fails", 0.5),
    ],
)
def test_verdicts_follow_the_data(
    words: str, changes: dict[str, float], verdict: str, estimate: float | None
) -> None:
    for finding in found(summarise(*units(**changes)), words):
        assert (finding.verdict, finding.n) == (verdict, SEEDS)
        if estimate is not None:
            assert finding.estimate == pytest.approx(estimate, abs=0.05)


def test_families_are_those_of_the_rules() -> None:
    rules = read(find("figure-tolerance", EXHIBITS))
    assert {finding.family for finding in summarise(*units(knee=1.0)).findings} == set(rules.families)


def test_claims_are_those_that_are_committed() -> None:
    assert_as_committed("figure-tolerance", summarise(*units(knee=1.0)))


def test_one_violated_bound_of_one_network_decides() -> None:
    configs, records = units()
    records[7]["theory"]["oracle"]["ceiling"] = 0.99 * records[7]["tolerance"]["oracle"]
    violated, other = found(summarise(configs, records), "between floor")
    assert (violated.verdict, other.verdict) == ("fails", "holds")
    assert violated.estimate == pytest.approx(1 / SEEDS) and "ceiling/c*: 0.990" in violated.statistic


@pytest.mark.parametrize(
    ("seeds", "words", "count", "verdict"),
    [
        (5, "MaxNNScore finds", 5, "inconclusive"),  # [.48, 1]
        (8, "MaxNNScore finds", 8, "holds"),  # [.63, 1]
        (8, "between floor", 0, "inconclusive"),  # [0, .37]
        (12, "between floor", 0, "holds"),  # [0, .26]
    ],
)
def test_most_networks_and_no_violation_take_more_than_a_few_seeds(
    seeds: int, words: str, count: int, verdict: str
) -> None:
    few = [pair for pair in zip(*units(), strict=True) if pair[0].seed < seeds]
    for finding in found(summarise(*zip(*few, strict=True)), words):
        assert finding.interval == proportion_interval(count, seeds)
        assert finding.verdict == verdict


def test_the_gain_is_judged_by_the_shape_that_theory_has() -> None:
    """A gain of rho/2 without the 1 in the root is steeper than the law at small rho, and the power law says 1."""
    for finding in found(summarise(*units(spread=1e-3)), "by Theta(rho)"):
        assert finding.estimate > 1.03 and "a verdict: 1.000 [" in finding.statistic
    for finding in found(summarise(*units(knee=1.0, spread=1e-3)), "by Theta(rho)"):
        assert finding.estimate == pytest.approx(1.0, abs=0.06) and finding.verdict == "holds"
        assert "a verdict: 0.9" in finding.statistic  # as a power law the same gain grows more slowly


def test_a_bound_that_says_nothing_is_neither_violated_nor_drawn() -> None:
    configs, records = units()
    for record in records:
        record["theory"]["none"]["ceiling"] = None
    result = summarise(configs, records)
    assert [finding.verdict for finding in found(result, "between floor")] == ["holds"] * 2
    assert not [finding for finding in result.findings if "floor of the gain" in finding.claim]
    assert all(row["gain_floor"] is None for row in result.data["gain"])
    for draw in (drawing.draw, *(draw for draw, _ in drawing.PARTS.values())):
        assert isinstance(draw(result), Figure)


def test_seeds_whose_network_tolerates_nothing_are_left_out_and_counted() -> None:
    configs, records = units()
    records[0]["tolerance"]["none"] = None  # the network of (2, 2), seed 0
    result = summarise(configs, records)
    assert [(law["seeds"], law["seeds_left_out"]) for law in result.data["law"]] == [
        (SEEDS - 1, 1),
        (SEEDS, 0),
    ]
    assert found(result, "by Theta(rho)")[0].n == SEEDS - 1
    for number in range(SEEDS - 1):
        records[number]["tolerance"]["none"] = None
    with pytest.raises(InputError, match=r"--seeds 12: 1 networks with .* need"):
        summarise(configs, records)


def test_the_law_of_the_gain_is_found() -> None:
    for law in summarise(*units(knee=1.0, spread=1e-6)).data["law"]:
        assert law["g"] == pytest.approx(0.5, rel=1e-3)
        assert len(law["idealised"]) == len(ALPHAS)
        # Untrained: above the number of every rho, and growing more slowly than rho as the law has it.
        slope = np.polyfit(np.log([(1 - a) / a for a in ALPHAS]), np.log(law["idealised"]), 1)[0]
        assert 0.7 < slope < 1


def test_the_grid_is_the_product_of_settings_and_seeds() -> None:
    configs = grid("full")
    assert len(configs) == len(set(configs)) == 2 * 6 * tolerance.PRESETS["full"].seeds
    assert tolerance.PRESETS["full"].seeds >= 10
    assert min(config.draws for config in configs) >= 64
    assert {config.alpha for config in configs} == {0.02, 0.05, 0.1, 0.15, 0.2, 0.25}
    assert {config.seed for config in configs} == set(range(FIRST_FRESH_SEED, FIRST_FRESH_SEED + 16))
    assert {config.seed for config in grid("quick", seeds=3, first_seed=0)} == {0, 1, 2}
    with pytest.raises(InputError, match="--seeds 1"):
        grid("quick", seeds=1)


def test_units_measure_what_they_say_and_are_drawn() -> None:
    configs = [config for config in grid("quick") if config.N_F == 3]
    records = [json.loads(json.dumps(measure(config))) for config in configs]
    for config, record in zip(configs, records, strict=True):
        star = record["tolerance"]
        assert record["digital"] == list(range(6))  # experts are ordered, the frequent specialists first
        assert star["oracle"] == star["maxnn"] > star["none"] * (1 - config.alpha) / config.alpha / 4
        for name in PLACEMENTS:
            worse = np.array(record["accuracy"][name]).min(1)
            # The first magnitude beyond c* is where the accuracy is below .95 at last.
            assert (worse[np.array(MAGNITUDES) <= star[name]] >= 0.95).all()
            assert worse[np.array(MAGNITUDES) > star[name]][0] < 0.95 + 1e-6
        for name in JUDGED:
            theory = record["theory"][name]
            order = [theory[bound] for bound in BOUNDS]
            assert order == sorted(order)
            assert theory["floor"] < star[name] < theory["ceiling"]
    result = Result.from_json(summarise(configs, records).to_json())
    figures = [drawing.draw(result), *(draw(result) for draw, _ in drawing.PARTS.values())]
    assert [len(figure.axes) for figure in figures] == [1, 1, 1, 2]
    rows = drawing.table(result)
    assert len(rows) == 2 * len(PLACEMENTS)
    assert all(set(row) == set(rows[0]) for row in rows)
    middle = {(row["alpha"], row["placement"]): row["tolerance"] for row in rows}
    for alpha in {config.alpha for config in configs}:
        stars = [
            record["tolerance"]["none"]
            for config, record in zip(configs, records, strict=True)
            if config.alpha == alpha
        ]
        assert middle[alpha, "none"] == pytest.approx(math.sqrt(math.prod(stars)))


def test_pictures_show_the_measured_points() -> None:
    result = summarise(*units(knee=1.0))
    draws = (drawing.draw_accuracy, drawing.draw, drawing.draw_gain)
    accuracies, tolerances, gains = (draw(result).axes for draw in draws)
    assert [axis.get_title(loc="left") for axis in accuracies] == [
        "$N_F$ = 2, $N_R$ = 2: 12 training seeds",
        "$N_F$ = 3, $N_R$ = 1: 12 training seeds",
    ]
    for axes, part, key in ((tolerances, "tolerance", "tolerance"), (gains, "gain", "oracle")):
        for axis, law in zip(axes, result.data["law"], strict=True):
            (points,) = (
                each.lines[0]
                for each in axis.containers
                if isinstance(each, ErrorbarContainer) and each.get_label() == "frequent specialists digital"
            )
            rows = [row for row in result.data[part] if row["specialists"] == law["specialists"]]
            if part == "tolerance":
                rows = [row for row in rows if row["placement"] == "oracle"]
            assert np.asarray(points.get_ydata()).tolist() == [row[key] for row in rows]


@pytest.mark.parametrize("left", [1, 2])
def test_the_floor_of_the_gain_is_about_seeds_for_which_the_ceiling_says_something(left: int) -> None:
    configs, records = units(knee=1.0)
    for config, record in zip(configs, records, strict=True):
        if config.seed >= left and config.alpha == ALPHAS[0]:
            record["theory"]["none"]["ceiling"] = None
    claims = [
        finding for finding in summarise(configs, records).findings if "floor of the gain" in finding.claim
    ]
    assert [finding.n for finding in claims] == ([left] * 2 if left > 1 else [])
