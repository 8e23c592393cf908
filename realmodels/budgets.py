"""What may a placement cost? Budgets as people write them."""

import math
import re
from dataclasses import dataclass, fields
from fractions import Fraction
from typing import Any

from theory.errors import InputError, shown
from theory.strict_json import is_finite, is_whole

Share = float | int | str
_NUMBER = r"(\d{1,30}(?:\.\d{0,30})?|\.\d{1,30})"  # Python reads no number of thousands of digits
_BYTES = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12} | {
    f"{letter}i": 2 ** (10 * power) for power, letter in enumerate("kmgt", 1)
}


@dataclass(frozen=True)
class Budgets:
    """What a placement may cost; at least one is given.

    digital_experts, digital_parameters: a share of all (.1 or "10%"), or a whole number.
    digital_memory: bytes of all digital weights at 2 bytes each, with those that no placement touches; or "1.5 GB".
    energy: J per generated token, at most.
    throughput: generated tokens/s, at least.
    loss_increase: nats per token (.03), or a share of the digital loss ("1%"), at most.
    accuracy_drop: points of the mean accuracy on tasks, at most; 1 is a hundredth.
    """

    digital_experts: Share | None = None
    digital_parameters: Share | None = None
    digital_memory: Share | None = None
    energy: float | None = None
    throughput: float | None = None
    loss_increase: float | str | None = None
    accuracy_drop: float | None = None

    def __post_init__(self) -> None:
        if not self.given:
            raise InputError(f"plan needs a budget: give one or several of {', '.join(BUDGETS)}")
        for name in ("energy", "throughput"):
            value = getattr(self, name)
            if value is not None and (not is_finite(value) or value <= 0):
                raise InputError(f"budget {name} is {shown(value)}: give a number above 0")
        for name in ("digital_experts", "digital_parameters"):
            if (value := getattr(self, name)) is not None:
                count_of(name, value, None)
        if self.digital_memory is not None:
            bytes_of(self.digital_memory)
        if self.loss_increase is not None:
            self.nats(1.0)
        points = self.accuracy_drop
        if points is not None and (not is_finite(points) or not 0 <= points <= 100):
            raise InputError(
                f"budget accuracy_drop is {shown(points)}: give points of accuracy, from 0 to 100"
            )

    @property
    def given(self) -> dict[str, Any]:
        return {name: value for name in BUDGETS if (value := getattr(self, name)) is not None}

    def nats(self, digital_loss: float) -> float:
        """The budget of the loss, infinite if there is none."""
        value = self.loss_increase
        if value is None:
            return math.inf
        percent = _percent(value)
        found = value if percent is None else float(percent) * digital_loss
        if not is_finite(found) or found < 0:
            raise InputError(
                f"budget loss_increase is {shown(value)}: give nats (.03) or per cent (1%), of at least 0"
            )
        return float(found)


BUDGETS = tuple(field.name for field in fields(Budgets))


def budgets_of(given: dict[str, Any]) -> Budgets:
    """The budgets of these names; InputError for any other name."""
    for name in given:
        if name not in BUDGETS:
            raise InputError(f"{name} is no budget: give some of {', '.join(BUDGETS)}")
    return Budgets(**given)


def _percent(value: object) -> Fraction | None:
    """The share that a text such as "10%" says; None for anything else."""
    found = re.fullmatch(rf"\s*{_NUMBER}\s*%\s*", value) if isinstance(value, str) else None
    return Fraction(found[1]) / 100 if found else None


def count_of(name: str, value: object, total: int | None) -> int:
    """The whole number that a share or a number stands for; total: None where only the form is checked."""
    share = _percent(value)
    if share is None and isinstance(value, float) and 0 <= value <= 1:
        share = Fraction(str(value))
    if share is not None and share <= 1:
        return int(share * (total or 0))
    if is_whole(value) and value >= 0:
        if total is not None and value > total:
            raise InputError(
                f"budget {name} is {shown(value)}: the model has {total}; give at most so many, or a share"
            )
        return value
    raise InputError(f"budget {name} is {shown(value)}: give a share (.1 or 10%) or a whole number")


def bytes_of(value: object) -> int:
    """Bytes that a number or a text such as "1.5 GB" stands for."""
    if is_whole(value) and value >= 0:
        return value
    found = (
        re.fullmatch(rf"{_NUMBER}([kmgt]?i?)b?", value.strip().lower().replace(" ", ""))
        if isinstance(value, str)
        else None
    )
    if not found or found[2] not in _BYTES:
        raise InputError(
            f'budget digital_memory is {shown(value)}: give bytes (1500000) or a text such as "1.5 GB"'
        )
    return int(Fraction(found[1]) * _BYTES[found[2]])


def in_nats(value: float, digital_loss: float) -> str:
    return f"{value:.4f} nats ({value / digital_loss:.2%})"
