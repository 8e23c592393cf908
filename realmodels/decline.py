"""How does accuracy on multiple-choice tasks fall with the loss?

No closed form tells. Between what is known at both ends, the digital model's accuracy and that of guessing, it is taken
to fall as

    accuracy = chance + (digital - chance) exp(-rate * loss increase).

So small increases cost in proportion, and a model that knows nothing guesses. The rate is the least-squares one of
several placements whose loss and accuracy were measured.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize_scalar

from theory.errors import InputError
from theory.evidence import Interval

Pair = tuple[float, float]
_STEEPEST = 100.0  # of rates: times the one at which the largest loss increase measured costs 1 - 1/e


@dataclass(frozen=True)
class Drop:
    """How far accuracy falls, as shares of the questions: .01 is a point.

    predicted: from the predicted loss increase. measured, interval: over noise draws and questions that nothing else
        was chosen by.
    """

    predicted: float
    measured: float
    interval: Interval

    @property
    def points(self) -> tuple[float, float, float]:
        """What was measured and its interval, in points."""
        return 100 * self.measured, 100 * self.interval[0], 100 * self.interval[1]


@dataclass(frozen=True)
class Decline:
    """How the mean accuracy on tasks falls with the loss.

    questions: of each task, at most, that placements are measured on.
    chance, digital: accuracy of guessing and of the digital model, on the questions that the rate is of.
    rate: per nat.
    measured: for each placement that the rate is of, loss increase and drop of accuracy.
    """

    tasks: tuple[str, ...]
    questions: int
    chance: float
    digital: float
    rate: float
    measured: Mapping[str, Pair]

    def drop(self, increase: float) -> float:
        """The drop of accuracy at a loss increase."""
        return max(self.digital - self.chance, 0.0) * -math.expm1(-self.rate * max(increase, 0.0))

    def increase(self, drop: float) -> float:
        """The largest loss increase whose drop is at most so much; infinite if any increase's is."""
        if self.digital <= self.chance:
            raise InputError(
                f"budget accuracy_drop: the digital model answers {self.digital:.1%} of the questions of"
                f" {', '.join(self.tasks)} right, and guessing {self.chance:.1%}: give tasks that it knows, or"
                " loss_increase"
            )
        left = 1 - drop / (self.digital - self.chance)
        return math.inf if left <= 0 or not self.rate else -math.log(left) / self.rate


def decline_of(
    tasks: tuple[str, ...], questions: int, chance: float, digital: float, measured: Mapping[str, Pair]
) -> Decline:
    """The decline with the rate that fits what was measured; 0 where no accuracy was lost."""
    increases, drops = np.maximum(np.array(list(measured.values())).T, [[0.0], [-np.inf]])
    height, most = digital - chance, float(increases.max())
    rate = 0.0
    if height > 0 and drops @ increases > 0:  # else the misfit rises from rate 0 on

        def misfit(rate: ArrayLike) -> NDArray[np.float64]:
            fitted = -height * np.expm1(np.multiply.outer(rate, -increases))
            total: NDArray[np.float64] = ((drops - fitted) ** 2).sum(-1)
            return total

        grid = np.geomspace(1e-4, _STEEPEST, 500) / most
        best = int(misfit(grid).argmin())
        ends = float(grid[max(best - 1, 0)]), float(grid[min(best + 1, len(grid) - 1)])
        rate = float(minimize_scalar(misfit, bounds=ends, method="bounded", options={"xatol": 1e-9 / most}).x)
    return Decline(tasks, questions, chance, digital, rate, dict(measured))
