"""What people write for a budget is what they mean."""

from typing import Any

import pytest

from realmodels.budgets import Budgets, bytes_of, count_of
from theory.errors import InputError


@pytest.mark.parametrize(
    ("value", "bytes_"), [(1500, 1500), ("1500", 1500), ("1.5 kB", 1500), ("2KiB", 2048), ("3gb", 3 * 10**9)]
)
def test_memory_is_written_in_bytes(value: Any, bytes_: int) -> None:
    assert bytes_of(value) == bytes_


def test_shares_are_decimal() -> None:
    assert count_of("x", "29%", 100) == count_of("x", 0.29, 100) == 29
    assert count_of("x", 1, 100) == 1 and count_of("x", 1.0, 100) == 100
    assert Budgets(loss_increase="2.5 %").nats(2.0) == 0.05 and Budgets(loss_increase=1).nats(2.0) == 1


@pytest.mark.parametrize("value", ["1%", -1, 101, True, float("nan"), "1"])
def test_accuracy_is_written_in_points(value: Any) -> None:
    with pytest.raises(
        InputError, match="budget accuracy_drop is .*: give points of accuracy, from 0 to 100"
    ):
        Budgets(accuracy_drop=value)
    assert Budgets(accuracy_drop=0).given == {"accuracy_drop": 0}
