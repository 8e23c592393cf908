"""How does a formula of Python become a definition of Coq? It is called on terms, which write down what it does.

A `Term` takes part in formulas as a ball of flint does [theory.functions]. Nothing is simplified on the way: the
definition is the formula, operation by operation.
"""

from collections.abc import Callable
from fractions import Fraction
from inspect import signature
from typing import Union

Operand = Union["Term", int, float]


class Term:
    """A real number in Coq's notation.

    value: a text of Coq; or a number, of which a float stands for its shortest decimal: .56 is 56/100.
    """

    text: str

    def __init__(self, value: "Operand | str") -> None:
        self.text = (
            value if isinstance(value, str) else value.text if isinstance(value, Term) else _number(value)
        )

    def __repr__(self) -> str:
        return self.text

    def __add__(self, other: Operand) -> "Term":
        return Term(f"({self} + {Term(other)})")

    def __radd__(self, other: Operand) -> "Term":
        return Term(other) + self

    def __sub__(self, other: Operand) -> "Term":
        return Term(f"({self} - {Term(other)})")

    def __rsub__(self, other: Operand) -> "Term":
        return Term(other) - self

    def __mul__(self, other: Operand) -> "Term":
        return Term(f"({self} * {Term(other)})")

    def __rmul__(self, other: Operand) -> "Term":
        return Term(other) * self

    def __truediv__(self, other: Operand) -> "Term":
        return Term(f"({self} / {Term(other)})")

    def __rtruediv__(self, other: Operand) -> "Term":
        return Term(other) / self

    def __neg__(self) -> "Term":
        return Term(f"(- {self})")

    def __pow__(self, power: int) -> "Term":
        if type(power) is not int or power < 0:  # Coq's ^ takes a natural number
            raise TypeError(f"a term to the power of {power!r}: only whole powers from 0 on")
        return Term(f"({self} ^ {power})")

    def exp(self) -> "Term":
        return Term(f"(exp {self})")

    def log(self) -> "Term":
        return Term(f"(ln {self})")

    def sqrt(self) -> "Term":
        return Term(f"(sqrt {self})")

    def erfc(self) -> "Term":
        return Term(f"(erfc {self})")

    def max(self, other: Operand) -> "Term":
        return Term(f"(Rmax {self} {Term(other)})")

    @staticmethod
    def pi() -> "Term":
        return Term("PI")


def _number(value: int | float) -> str:
    exact = Fraction(value) if isinstance(value, int) else Fraction(repr(float(value)))  # NumPy's floats, too
    size = (
        str(abs(exact.numerator))
        if exact.denominator == 1
        else f"({abs(exact.numerator)} / {exact.denominator})"
    )
    return size if exact >= 0 else f"(- {size})"


def definition(name: str, formula: Callable[..., Term | float]) -> str:
    """`Definition NAME (PARAMETERS : R) : R := TERM.`, the formula called on terms of its parameters' names."""
    parameters = list(signature(formula).parameters)
    binder = f" ({' '.join(parameters)} : R)" if parameters else ""
    return f"Definition {name}{binder} : R :=\n  {Term(formula(*map(Term, parameters)))}.\n"
