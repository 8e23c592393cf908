"""Do symbols, balls, tensors, arrays and numbers get the same values? They are held to SciPy and mpmath."""

import math
from collections.abc import Callable
from typing import Any

import flint
import mpmath
import numpy as np
import pytest
import sympy as sp
import torch
import z3
from hypothesis import given
from hypothesis import strategies as st

from theory.functions import Phi, Q, erfc, exp, library, log, minimum, phi, pi, relu, sqrt

ROUNDING = 1e-12  # relative: a few roundings of arguments up to 30, squared and exponentiated
REFERENCES: dict[Callable[[Any], Any], Callable[[Any], Any]] = {
    Phi: mpmath.ncdf,
    Q: lambda x: mpmath.ncdf(-x),
    phi: mpmath.npdf,
    exp: mpmath.exp,
    erfc: mpmath.erfc,
    relu: lambda x: max(x, 0),
    sqrt: mpmath.sqrt,
    log: mpmath.log,
}
numbers = st.floats(-30, 30).map(lambda x: round(x, 3))


def forms(x: float) -> list[Any]:
    """The number in each library."""
    return [x, np.array([x]), torch.tensor([x], dtype=torch.float64), sp.Float(x, 30), flint.arb(x)]


def plain(value: Any) -> float:
    if isinstance(value, np.ndarray | torch.Tensor):
        return float(value[0])
    return float(value)


@given(x=numbers)
@pytest.mark.parametrize("function", REFERENCES, ids=lambda function: function.__name__)
def test_every_library_gives_the_value_of_mpmath(function: Callable[[Any], Any], x: float) -> None:
    if function in (sqrt, log):
        x = abs(x) + 0.01
    with mpmath.workdps(40):
        expected = float(REFERENCES[function](mpmath.mpf(x)))
    for form in forms(x):
        assert plain(function(form)) == pytest.approx(expected, rel=ROUNDING, abs=1e-300), library(form)


@given(x=numbers)
def test_a_ball_holds_the_exact_value(x: float) -> None:
    with mpmath.workdps(40):
        tail = mpmath.nstr(mpmath.ncdf(-mpmath.mpf(x)), 30)
    assert (Q(flint.arb(x)) - flint.arb(tail)).contains(0)
    assert (Phi(flint.arb(x)) + Q(flint.arb(x)) - 1).contains(0)


def test_symbols_stay_exact() -> None:
    x = sp.Symbol("x", real=True)
    assert sp.diff(Phi(x), x).equals(phi(x)) and sp.simplify(Phi(x) + Q(x)) == 1
    assert pi(x) is sp.pi and pi(1.0) == math.pi and pi(flint.arb(1)).contains(flint.arb.pi().mid())
    assert relu(sp.Symbol("p", positive=True)).is_positive


@given(x=numbers, y=numbers)
def test_minimum(x: float, y: float) -> None:
    for a, b in zip(forms(x), forms(y), strict=True):
        for smaller in (minimum(a, b), minimum(a, y), minimum(x, b)):
            assert plain(smaller) == min(x, y)


def test_z3_knows_arithmetic_only() -> None:
    a, b = z3.Reals("a b")
    for claim in (relu(a) >= a, relu(a) >= 0, z3.Or(relu(a) == a, relu(a) == 0), minimum(a, b) <= a):
        solver = z3.Solver()
        solver.add(z3.Not(claim))
        assert solver.check() == z3.unsat
    with pytest.raises(TypeError, match="z3 knows no exp"):
        exp(a)
