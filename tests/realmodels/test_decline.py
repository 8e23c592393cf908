"""Accuracy falls from the digital model's to chance; its rate is the least-squares one."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from realmodels.decline import Decline, decline_of
from theory.errors import InputError

CHANCE, DIGITAL = 0.25, 0.65
RATES = st.floats(0.01, 20)


def decline(rate: float) -> Decline:
    return Decline(("continuation",), 100, CHANCE, DIGITAL, rate, {})


def test_accuracy_falls_to_chance() -> None:
    found = decline(2.0)
    assert found.drop(0.0) == 0.0 == found.drop(-0.1)
    assert found.drop(1e-6) == pytest.approx(2e-6 * (DIGITAL - CHANCE), rel=1e-4)
    assert found.drop(math.log(2) / 2) == pytest.approx((DIGITAL - CHANCE) / 2)
    assert found.drop(1e3) == pytest.approx(DIGITAL - CHANCE)


@given(RATES, st.floats(0, 0.399))
def test_the_loss_that_a_drop_allows_costs_that_drop(rate: float, drop: float) -> None:
    assert decline(rate).drop(decline(rate).increase(drop)) == pytest.approx(drop, abs=1e-12)


def test_what_any_loss_is_within() -> None:
    assert decline(2.0).increase(DIGITAL - CHANCE) == decline(0.0).increase(0.01) == math.inf
    ignorant = Decline(("piqa", "mmlu"), 100, 0.375, 0.37, 2.0, {})
    assert ignorant.drop(1.0) == 0.0
    with pytest.raises(
        InputError, match="answers 37.0% of the questions of piqa, mmlu right, and guessing 37.5%"
    ):
        ignorant.increase(0.01)


@given(RATES, st.lists(st.floats(0.01, 2), min_size=1, max_size=6))
def test_the_rate_is_found_again(rate: float, increases: list[float]) -> None:
    measured = {str(number): (each, decline(rate).drop(each)) for number, each in enumerate(increases)}
    found = decline_of(("continuation",), 100, CHANCE, DIGITAL, measured)
    assert found.measured == measured and found.questions == 100
    for each in increases:
        assert found.drop(each) == pytest.approx(decline(rate).drop(each), abs=1e-4)


@given(st.lists(st.tuples(st.floats(0.05, 2) | st.just(-0.05), st.floats(-0.1, 0.5)), min_size=1, max_size=6))
def test_no_other_rate_fits_better(pairs: list[tuple[float, float]]) -> None:
    """As a local minimum at least: of rates near the one found."""
    found = decline_of(
        ("continuation",), 100, CHANCE, DIGITAL, {str(number): pair for number, pair in enumerate(pairs)}
    )

    def misfit(rate: float) -> float:
        return sum((drop - decline(rate).drop(increase)) ** 2 for increase, drop in pairs)

    assert found.rate >= 0
    for times in (0.99, 1.01):
        assert misfit(found.rate) <= misfit(times * found.rate) + 1e-8


def test_nothing_lost_is_no_decline() -> None:
    for pairs in ([(0.1, -0.01)], [(0.1, 0.0)], [(-0.1, 0.2)], [(0.1, 0.01), (1.0, -0.02)]):
        measured = {str(number): each for number, each in enumerate(pairs)}
        assert decline_of((), 0, CHANCE, DIGITAL, measured).rate == 0.0
    assert decline_of((), 0, 0.5, 0.4, {"all": (0.1, 0.2)}).rate == 0.0
    assert np.isfinite(decline_of((), 0, CHANCE, DIGITAL, {"all": (0.1, 0.9)}).rate)
