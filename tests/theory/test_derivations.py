"""Does every step of every derivation pass, and do the checks that steps are made of refuse what is false?"""

from collections.abc import Callable

import pytest
import sympy as sp
import z3
from flint import arb
from hypothesis import given
from hypothesis import strategies as st

from theory.claims import CLAIMS
from theory.derivations import Step, equal, everywhere, proved
from theory.derivations.lemmas import gaussian_tail
from theory.errors import InputError
from theory.functions import Q

x, y = sp.symbols("x y", real=True)
a, b = z3.Reals("a b")

# The first of several claims that share a step. What the kernel checks is in test_kernel.py.
STEPS = {step: claim.id for claim in reversed(CLAIMS) for step in claim.steps() if step.kind != "kernel"}


@pytest.mark.parametrize("step", STEPS, ids=lambda step: f"{STEPS[step]}: {step.equation}")
def test_step(step: Step) -> None:
    assert step.failure() is None


def test_equal() -> None:
    assert equal((x + y) ** 2, x**2 + 2 * x * y + y**2) and equal(sp.sin(x) ** 2 + sp.cos(x) ** 2, 1)
    assert not equal((x + y) ** 2, x**2 + x * y + y**2)
    assert not equal(sp.sqrt(x**2), x)  # x may be negative


def test_proved() -> None:
    assert proved(a * b <= (a**2 + b**2) / 2)
    assert proved(a * a > 0, a > 0)
    assert not proved(a * a > 0)  # false at 0
    assert not proved(a <= 1, a > 0)
    assert not proved(a * b > 0, a > 0, a < 0)  # nothing satisfies the assumptions


def test_everywhere() -> None:
    assert everywhere(lambda ball: ball**2 - ball + 1 > 0, -10.0, 10.0)
    assert not everywhere(lambda ball: ball**2 > 0, -1.0, 1.0)  # 0 at one point only
    assert not everywhere(lambda ball: (ball - arb(1) / 3).exp() > 1, 0.0, 1.0)


@given(zero=st.floats(-1, 1), low=st.floats(-2, -1), high=st.floats(1, 2))
def test_no_point_is_left_out(zero: float, low: float, high: float) -> None:
    assert not everywhere(lambda ball: abs(ball - zero) > 0, low, high)


@given(value=st.floats(0, 30))
def test_the_tail_bound_is_what_is_proved(value: float) -> None:
    assert Q(value) <= gaussian_tail(value) * (1 + 1e-12)


@pytest.mark.parametrize(
    ("check", "failure"),
    [
        (lambda: False, "not proved"),
        (lambda: None, "not proved"),
        (lambda: 1, "not proved"),  # a number is no verdict
        (lambda: sp.true, "not proved"),
        (lambda: 1 / 0 > 0, "ZeroDivisionError: division by zero"),
    ],
)
def test_whatever_is_not_true_fails(check: Callable[[], bool], failure: str) -> None:
    assert Step("0 = 1", "exact", check).failure() == failure


@pytest.mark.parametrize(
    ("equation", "kind", "reference", "message"),
    [
        (" ", "exact", "", r"step\.equation is empty"),
        ("0 = 0", "sampled", "", r"step\.kind is 'sampled': give one of exact, certified, kernel, cited"),
        ("0 = 0", "cited", "", r"step\.reference of '0 = 0': a cited theorem or a proof"),
        ("0 = 0", "kernel", "", r"step\.reference of '0 = 0'"),
        ("0 = 0", "exact", "Gauss", r"step\.reference of '0 = 0'"),
    ],
)
def test_malformed_steps(equation: str, kind: str, reference: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Step(equation, kind, lambda: True, reference)  # type: ignore[arg-type]
