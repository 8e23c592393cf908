"""Energy and area of an ADC: what the authors' package says, and what must hold whatever its coefficients."""

import math
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given

from theory.converters import FEWEST_BITS, MOST_BITS, adc_area, adc_energy
from theory.errors import InputError

bits = st.integers(FEWEST_BITS, MOST_BITS)
rates = st.floats(1e5, 1e10)
technologies = st.floats(7, 180)


@pytest.mark.parametrize(
    ("bits", "technology", "rate", "joules", "square_metres"),
    [
        (8, 14, 1e7, 3.6221240730878806e-13, 7.180455162597683e-10),
        (8, 32, 1e7, 1.7137119697683604e-12, 2.5981388235104697e-09),
        (4, 32, 1e7, 9.23749333095006e-13, 2.159644554863865e-09),
        (10, 32, 1e9, 1.3945479076352524e-11, 1.1180068071712604e-08),
        (6, 14, 1e8, 2.251194510125043e-13, 9.44241648575507e-10),
    ],
)
def test_numbers_of_the_package(
    bits: int, technology: float, rate: float, joules: float, square_metres: float
) -> None:
    """What `ADC(...).get_energy()` and `._get_area()` of hwcomponents-adc 1.0.21 return."""
    assert adc_energy(bits, rate, technology) == pytest.approx(joules, rel=1e-12)
    assert adc_area(bits, rate, technology) == pytest.approx(square_metres, rel=1e-12)


@given(bits=st.integers(FEWEST_BITS, MOST_BITS - 1), rate=rates, technology=technologies)
def test_a_bit_more_is_never_cheaper(bits: int, rate: float, technology: float) -> None:
    assert adc_energy(bits, rate, technology) <= adc_energy(bits + 1, rate, technology)
    assert adc_area(bits, rate, technology) <= adc_area(bits + 1, rate, technology)


@given(bits=bits, rate=rates, technology=technologies, factor=st.floats(1.01, 4))
def test_faster_or_larger_circuits_are_never_cheaper(
    bits: int, rate: float, technology: float, factor: float
) -> None:
    for found in (adc_energy, adc_area):
        assert found(bits, rate, technology) <= found(bits, factor * rate, technology) * (1 + 1e-12)
        assert found(bits, rate, technology) < found(bits, rate, factor * technology)


def test_fast_converters_take_four_times_the_energy_for_a_bit() -> None:
    """Where the rate bounds the figure of merit, noise has to fall fourfold for each bit: 6.02 dB."""
    ratio = adc_energy(13, 1e10, 32) / adc_energy(12, 1e10, 32)
    assert ratio == pytest.approx(4 * (13 / 12) ** -2.8291256050594527, rel=1e-9)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((3, 1e7, 32), "bits is 3: give a whole number from 4 to 20"),
        ((21, 1e7, 32), "bits is 21"),
        ((8.5, 1e7, 32), "bits is 8.5"),
        ((8, 0, 32), "rate is 0: give conversions per second"),
        ((8, 1e7, math.inf), "technology is inf: give nanometres"),
    ],
)
def test_bad_values_are_named(arguments: tuple[Any, Any, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        adc_area(*arguments)
