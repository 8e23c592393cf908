"""Accuracy falls from the digital model's to chance, through what was measured between."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from realmodels.decline import Decline, Drop
from theory.errors import InputError

CHANCE, DIGITAL = 0.25, 0.65


def decline(rate: float = 2.0, increase: float = 0.5) -> Decline:
    lost = [(DIGITAL - CHANCE) * -math.expm1(-each * increase) for each in (rate, 0.5 * rate, 1.5 * rate)]
    return Decline(("continuation",), 100, CHANCE, DIGITAL, 2.0, increase, lost[0], (lost[1], lost[2]))


def test_accuracy_falls_to_chance() -> None:
    found = decline(2.0)
    assert found.drop(0.0) == 0.0 == found.drop(-0.1)
    assert found.drop(1e-6) == pytest.approx(2e-6 * (DIGITAL - CHANCE), rel=1e-4)
    assert found.drop(math.log(2) / 2) == pytest.approx((DIGITAL - CHANCE) / 2)
    assert found.drop(1e3) == pytest.approx(DIGITAL - CHANCE)


@given(st.floats(0.01, 6), st.floats(0.05, 1))
def test_what_was_measured_comes_out(rate: float, increase: float) -> None:
    """Rate, drop and interval; half and one and a half times the rate are the interval's ends."""
    found = decline(rate, increase)
    if found.interval[1] < 0.98 * (DIGITAL - CHANCE):
        assert found.rate == pytest.approx(rate)
        assert found.drop(increase) == pytest.approx(found.lost)
        assert found.expected(increase) == pytest.approx(found.interval)
        ends = found.expected(0.1)
        assert ends == pytest.approx((decline(0.5 * rate).drop(0.1), decline(1.5 * rate).drop(0.1)))
        assert ends[0] < found.drop(0.1) < ends[1]


@given(st.floats(0.01, 6), st.floats(0, 0.39))
def test_the_loss_that_a_drop_allows_costs_that_drop(rate: float, drop: float) -> None:
    assert decline(rate).drop(decline(rate).allowed(drop)) == pytest.approx(drop, abs=1e-12)


def test_what_any_loss_is_within() -> None:
    nothing = replace(decline(), lost=-0.01)
    assert nothing.rate == 0.0 == nothing.drop(1.0)
    assert decline().allowed(DIGITAL - CHANCE) == nothing.allowed(0.01) == math.inf
    assert replace(decline(), increase=-0.1).rate == 0.0
    everything = replace(decline(), lost=0.9)  # below chance
    assert math.isfinite(everything.rate) and everything.drop(0.5) == pytest.approx(
        DIGITAL - CHANCE, rel=0.02
    )
    ignorant = replace(decline(), tasks=("piqa", "mmlu"), chance=0.375, digital=0.37)
    assert ignorant.drop(1.0) == 0.0
    with pytest.raises(
        InputError, match="answers 37.0% of the questions of piqa, mmlu right, and guessing 37.5%"
    ):
        ignorant.allowed(0.01)


def test_drops_are_shown_in_points() -> None:
    found = Drop(0.0123, (0.01, 0.02), 0.0456, (-0.01, 0.08))
    assert str(found) == "1.23 [1.00, 2.00] predicted, 4.56 [-1.00, 8.00] measured"


def test_no_drop_allows_no_increase() -> None:
    """0, which a message shows without a sign."""
    assert math.copysign(1, decline().allowed(0)) == 1 and decline().allowed(0) == 0
