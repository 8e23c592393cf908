"""Is JSON beyond what Python reads, or a number beyond what a float holds, bad input and no traceback?"""

import math

import pytest

from theory.errors import InputError
from theory.hardware import Hardware
from theory.strict_json import is_finite, loads, number


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "1" * 5000, '{"a": 1, "a": 2}'])
def test_unreadable_json(text: str) -> None:
    with pytest.raises(InputError, match="not JSON|twice"):
        loads(text)


@pytest.mark.parametrize("value", [10**400, -(10**400), math.nan, math.inf, True, "1", None])
def test_what_is_no_number(value: object) -> None:
    assert not is_finite(value)
    with pytest.raises(InputError, match="x is"):
        number(value, "x")


@pytest.mark.parametrize("value", [0, -1, 1.5, 2**1023, 1.7976931348623157e308])
def test_what_is_a_number(value: float) -> None:
    assert is_finite(value) and number(value, "x") == value


def test_hardware_uses_the_same_rule() -> None:
    with pytest.raises(InputError, match=r"hardware\.c"):
        Hardware(c=10**400)
