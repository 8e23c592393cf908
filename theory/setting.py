"""In which formal setting are the statements proved? Its sizes and constants [docs/theory.md, setting]."""

import math
from dataclasses import dataclass, fields

from theory.errors import InputError
from theory.strict_json import is_finite, is_whole


@dataclass(frozen=True)
class Setting:
    """A task of two discriminative tokens and a network of specialists; the default is the reference instance.

    d: dimension, the number of orthonormal directions; the first two discriminate, the other d - 2 do not.
    n: tokens of a sample, one of which discriminates.
    l: tokens that an expert takes, the same number for each expert.
    m: neurons of an expert.
    N_F, N_R: frequent and rare specialists of each sign.
    alpha: probability of the rare class.
    eta: learning rate of SGD.
    """

    d: int = 64
    n: int = 16
    l: int = 4  # noqa: E741, its name in the paper
    m: int = 8
    N_F: int = 2
    N_R: int = 2
    alpha: float = 0.1
    eta: float = 0.2

    def __post_init__(self) -> None:
        for name, least in (("d", 3), ("n", 1), ("l", 1), ("m", 1), ("N_F", 1), ("N_R", 1)):
            value = getattr(self, name)
            if not is_whole(value) or value < least:
                raise InputError(f"setting.{name} is {value!r}: give a whole number of at least {least}")
        if self.l > self.n:
            raise InputError(
                f"setting.l is {self.l}: an expert takes at most the n = {self.n} tokens there are"
            )
        if not is_finite(self.alpha) or not 0 < self.alpha < 1:
            raise InputError(f"setting.alpha is {self.alpha!r}: give a number above 0 and below 1")
        if not is_finite(self.eta) or self.eta <= 0:
            raise InputError(f"setting.eta is {self.eta!r}: give a finite number above 0")
        for field in fields(self):
            if field.type is float:
                object.__setattr__(self, field.name, float(getattr(self, field.name)))
        if not math.isfinite(self.rho):
            raise InputError(f"setting.alpha is {self.alpha!r}: (1 - alpha)/alpha has to be finite")

    @property
    def rho(self) -> float:
        """How much more often the frequent class occurs than the rare one."""
        return (1 - self.alpha) / self.alpha

    @property
    def experts(self) -> int:
        """Number of experts k, of both signs together."""
        return 2 * (self.N_F + self.N_R)

    @property
    def tokens(self) -> int:
        """Number of distinct tokens: both signs of o_1 and o_2, and the d - 2 others."""
        return self.d + 2
