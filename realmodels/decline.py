"""How does accuracy on multiple-choice tasks fall with the loss?

No closed form tells. Between what is known at both ends, the digital model's accuracy and that of guessing, it is taken
to fall as

    accuracy = chance + (digital - chance) exp(-rate * loss increase).

Small increases cost in proportion: a question is answered otherwise where noise on its log-likelihoods is larger than
their differences, and both the noise's variance and its mean are of second order in c, as the loss increase is. Large
ones leave a model that guesses. The rate is measured where much is lost and not all, at a loss increase of about NATS,
whatever the noise that one plans for: there is no telling one point of accuracy from none with a few hundred questions.
"""

import math
from dataclasses import dataclass

from theory.errors import InputError
from theory.evidence import Interval

NATS = 0.5
_MOST_LOST = 0.99  # of what the digital model knows more than guessing: a rate is finite


@dataclass(frozen=True)
class Drop:
    """How far accuracy falls, as shares of the questions: .01 is a point.

    predicted, expected: from the predicted loss increase, and the interval that the rate's gives.
    measured, interval: over noise draws and questions that nothing else was chosen by.
    """

    predicted: float
    expected: Interval
    measured: float
    interval: Interval

    def __str__(self) -> str:
        """In points."""
        return "{} predicted, {} measured".format(*self.texts())

    def texts(self) -> tuple[str, str]:
        """What was predicted and what was measured, in points."""
        return _points(self.predicted, self.expected), _points(self.measured, self.interval)


def _points(value: float, interval: Interval) -> str:
    return f"{100 * value:.2f} [{100 * interval[0]:.2f}, {100 * interval[1]:.2f}]"


@dataclass(frozen=True)
class Decline:
    """How the mean accuracy on tasks falls with the loss.

    questions: of each task, at most, that placements are measured on.
    chance, digital: accuracy of guessing and of the digital model, on the questions that the rate is of.
    c: of the noise, on everything, that the rate is of. increase: nats per token that it cost.
    lost, interval: accuracy that it cost, as a share of the questions; over noise draws with questions of their own.
    """

    tasks: tuple[str, ...]
    questions: int
    chance: float
    digital: float
    c: float
    increase: float
    lost: float
    interval: Interval

    @property
    def rate(self) -> float:
        """Per nat; 0 where no accuracy was lost."""
        return self._rate(self.lost)

    def _rate(self, lost: float) -> float:
        if self.digital <= self.chance or self.increase <= 0:
            return 0.0
        share = lost / (self.digital - self.chance)
        return -math.log1p(-min(max(share, 0.0), _MOST_LOST)) / self.increase

    def drop(self, increase: float) -> float:
        """The drop of accuracy at a loss increase."""
        return self._drop(increase, self.rate)

    def expected(self, increase: float) -> Interval:
        """The 95 % interval of the drop, as far as the rate is concerned."""
        low, high = (self._drop(increase, self._rate(end)) for end in self.interval)
        return low, high

    def _drop(self, increase: float, rate: float) -> float:
        return max(self.digital - self.chance, 0.0) * -math.expm1(-rate * max(increase, 0.0))

    def allowed(self, drop: float) -> float:
        """The largest loss increase whose drop is at most so much; infinite if any increase's is."""
        if self.digital <= self.chance:
            raise InputError(
                f"budget accuracy_drop: the digital model answers {self.digital:.1%} of the questions of"
                f" {', '.join(self.tasks)} right, and guessing {self.chance:.1%}: give tasks that it knows, or"
                " loss_increase"
            )
        left = 1 - drop / (self.digital - self.chance)
        return math.inf if left <= 0 or not self.rate else abs(math.log(left)) / self.rate
