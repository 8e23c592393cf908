"""How does a quantity change along an axis, and what does that say of a place where nothing was measured?

The line of least squares through points with independent normal errors of one size. The intervals are Student's, exact
if the truth is such a line. None of them counts that it may be bent: a prediction can fail for that.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from theory.errors import InputError
from theory.evidence import Finding, Interval, Origin, Verdict, student_quantile

LEAST_POINTS = 3  # of a line whose errors are to be estimated


@dataclass(frozen=True)
class Line:
    """y = height + slope (x - centre).

    points: how many the line was fitted to.
    length: sum over these of (x - centre)^2.
    spread: estimated standard deviation of a point about the line.
    """

    centre: float
    height: float
    slope: float
    points: int
    length: float
    spread: float

    def at(self, x: float) -> float:
        return self.height + self.slope * (x - self.centre)

    def slope_interval(self, confidence: float = 0.95) -> Interval:
        return self._around(self.slope, 1 / self.length, confidence)

    def interval(self, x: float, confidence: float = 0.95) -> Interval:
        """Interval for the true line at x."""
        return self._around(self.at(x), self._variance(x), confidence)

    def prediction_interval(self, x: float, new: int = 1, confidence: float = 0.95) -> Interval:
        """Interval for the mean of `new` further points at x."""
        return self._around(self.at(x), self._variance(x) + 1 / new, confidence)

    def _variance(self, x: float) -> float:
        """Of the fitted line at x, in units of spread^2."""
        return 1 / self.points + (x - self.centre) ** 2 / self.length

    def _around(self, middle: float, variance: float, confidence: float) -> Interval:
        half = student_quantile(self.points - 2, confidence) * self.spread * math.sqrt(variance)
        return middle - half, middle + half


def fit(x: ArrayLike, y: ArrayLike) -> Line:
    """The line through points (n,); InputError for fewer than LEAST_POINTS, or if all are at one x."""
    at, values = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if at.shape != values.shape or at.ndim != 1 or len(at) < LEAST_POINTS or np.ptp(at) == 0:
        raise InputError(
            f"points of shapes {at.shape} and {values.shape}: a line needs {LEAST_POINTS}, and more than one x"
        )
    away = at - at.mean()
    length = float((away**2).sum())
    slope = float(away @ values / length)
    rest = values - values.mean() - slope * away
    spread = math.sqrt(float(rest @ rest) / (len(at) - 2))
    return Line(float(at.mean()), float(values.mean()), slope, len(at), length, spread)


def prediction(
    claim: str, statistic: str, line: Line, x: float, measured: ArrayLike, *, origin: Origin, family: str
) -> Finding:
    """The finding that the mean of points measured at x lies in the 95 % interval that the line predicted for it.

    The finding's interval is the predicted one. It has no n and no p, as it is no test: of right predictions one in
    twenty fails.
    """
    values = np.asarray(measured, dtype=np.float64)
    low, high = line.prediction_interval(x, len(values))
    verdict: Verdict = "holds" if low <= values.mean() <= high else "fails"
    return Finding(
        claim=claim,
        origin=origin,
        statistic=statistic,
        estimate=float(values.mean()),
        interval=(low, high),
        n=None,
        rule="measured mean inside the predicted interval: holds; outside: fails",
        family=family,
        p=0.0,
        alone=verdict,
        verdict=verdict,
    )
