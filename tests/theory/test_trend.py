"""Lines, and the intervals that predict from them, against other formulas and by simulation."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from theory.errors import InputError
from theory.evidence import Result
from theory.trend import LEAST_POINTS, fit, prediction

FAILURE = 1e-9  # of a correct implementation, per assertion
SIMULATIONS = 4000
X = np.repeat([0.6, 1.2, 1.8], [5, 5, 3])  # sizes of the ladder, in decades

points = st.lists(
    st.tuples(st.integers(-9, 9), st.integers(-9, 9)), min_size=LEAST_POINTS, max_size=12
).filter(lambda each: len({x for x, _ in each}) > 1)


@given(points, st.integers(-20, 20), st.integers(1, 5))
def test_the_line_is_that_of_the_normal_equations(found: list[tuple[int, int]], place: int, new: int) -> None:
    x, y = np.array(found, float).T
    line, design = fit(x, y), np.column_stack([np.ones_like(x), x])
    coefficients, *_ = np.linalg.lstsq(design, y, rcond=None)
    rest = y - design @ coefficients
    covariance = rest @ rest / (len(x) - 2) * np.linalg.inv(design.T @ design)
    half = stats.t.ppf(0.95, len(x) - 2)  # both sides of 90 %
    there = np.array([1, place])
    for interval, middle, variance in (
        (line.slope_interval(0.9), coefficients[1], covariance[1, 1]),
        (line.interval(place, 0.9), coefficients @ there, there @ covariance @ there),
        (
            line.prediction_interval(place, new, 0.9),
            coefficients @ there,
            there @ covariance @ there + rest @ rest / (len(x) - 2) / new,
        ),
    ):
        expected = middle - half * np.sqrt(variance), middle + half * np.sqrt(variance)
        assert interval == pytest.approx(expected, abs=1e-6)


def test_a_prediction_by_hand() -> None:
    """Three points, one degree of freedom: the quantile of 95 % is 12.706."""
    line = fit([0, 1, 2], [0, 3, 0])
    assert (line.slope, line.height, line.spread) == pytest.approx((0, 1, math.sqrt(6)))
    for new in (1, 2, 4):
        half = 12.7062 * math.sqrt(6 * (1 / new + 1 / 3 + 3**2 / 2))
        assert line.prediction_interval(4, new) == pytest.approx((1 - half, 1 + half), rel=1e-5)


@pytest.mark.parametrize(("place", "new"), [(2.4, 2), (3.0, 1), (1.0, 5)])
def test_predictions_cover_as_often_as_they_say(place: float, new: int) -> None:
    """Points of a line with normal errors: the mean of new ones, also far outside, lies inside in 95 % of cases."""
    rng = np.random.default_rng(0)
    inside = at_line = of_slope = 0
    for _ in range(SIMULATIONS):
        line = fit(X, 3 - 0.7 * X + 0.2 * rng.standard_normal(len(X)))
        truth = 3 - 0.7 * place
        low, high = line.prediction_interval(place, new)
        inside += low <= truth + 0.2 * rng.standard_normal(new).mean() <= high
        low, high = line.interval(place)
        at_line += low <= truth <= high
        low, high = line.slope_interval()
        of_slope += low <= -0.7 <= high
    ends = stats.binom.ppf([FAILURE / 2, 1 - FAILURE / 2], SIMULATIONS, 0.95)
    assert all(ends[0] <= count <= ends[1] for count in (inside, at_line, of_slope))


@pytest.mark.parametrize(
    ("measured", "verdict"), [([2.9, 3.1], "holds"), ([9.0, 9.0], "fails"), ([-9.0], "fails")]
)
def test_a_prediction_holds_where_the_mean_lies_inside(measured: list[float], verdict: str) -> None:
    line = fit(X, X + 0.01 * np.cos(9 * np.arange(len(X))))
    found = prediction("it is predicted", "a mean", line, 3.0, measured, origin="ours", family="predictions")
    assert (found.verdict, found.alone, found.n) == (verdict, verdict, None)
    assert found.estimate == np.mean(measured)
    assert found.interval == line.prediction_interval(3.0, len(measured))
    assert (
        Result(data={}, findings=(found,) * 9).findings[0].verdict == verdict
    )  # no correction takes it away


@pytest.mark.parametrize(
    ("x", "y"), [([1, 2], [1, 2]), ([1, 1, 1], [1, 2, 3]), ([1, 2, 3], [1, 2]), ([[1, 2, 3]], [[1, 2, 3]])]
)
def test_points_that_make_no_line_are_refused(x: object, y: object) -> None:
    with pytest.raises(InputError, match="a line needs 3, and more than one x"):
        fit(x, y)  # type: ignore[arg-type]
