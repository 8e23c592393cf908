"""Are the derived sizes of the formal setting right, and what does it refuse?"""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from theory.errors import InputError
from theory.setting import Setting


def test_the_default_is_the_reference_instance() -> None:
    setting = Setting()
    assert (setting.d, setting.n, setting.l, setting.m, setting.N_F, setting.N_R) == (64, 16, 4, 8, 2, 2)
    assert (setting.alpha, setting.eta) == (0.1, 0.2)
    assert (setting.experts, setting.tokens) == (8, 66)
    assert setting.rho == pytest.approx(9)


@given(alpha=st.floats(1e-6, 0.999999), frequent=st.integers(1, 9), rare=st.integers(1, 9))
def test_derived_quantities(alpha: float, frequent: int, rare: int) -> None:
    setting = Setting(alpha=alpha, N_F=frequent, N_R=rare)
    assert setting.rho * setting.alpha == pytest.approx(1 - alpha)
    assert setting.experts == 2 * frequent + 2 * rare


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"d": 2}, r"setting\.d is 2: give a whole number of at least 3"),
        ({"n": 0, "l": 1}, r"setting\.n is 0: give a whole number of at least 1"),
        ({"l": 0}, r"setting\.l is 0: give a whole number of at least 1"),
        ({"l": 17}, r"setting\.l is 17: an expert takes at most the n = 16 tokens"),
        ({"m": 0}, r"setting\.m is 0: give"),
        ({"m": 2.5}, r"setting\.m is 2\.5: give a whole number"),
        ({"N_F": 0}, r"setting\.N_F is 0: give"),
        ({"N_R": True}, r"setting\.N_R is True: give"),
        ({"alpha": 0}, r"setting\.alpha is 0: give a number above 0 and below 1"),
        ({"alpha": 1.0}, r"setting\.alpha is 1\.0: give"),
        ({"alpha": math.nan}, r"setting\.alpha is nan: give"),
        ({"alpha": "0.1"}, r"setting\.alpha is '0\.1': give"),
        ({"alpha": 5e-324}, r"setting\.alpha is 5e-324: \(1 - alpha\)/alpha has to be finite"),
        ({"eta": 0}, r"setting\.eta is 0: give a finite number above 0"),
        ({"eta": math.inf}, r"setting\.eta is inf: give"),
    ],
)
def test_bad_values_name_the_field(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        Setting(**fields)
    assert "\n" not in str(error.value)
