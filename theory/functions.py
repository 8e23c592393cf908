"""How does one formula serve symbols, balls, tensors, arrays and plain numbers alike?

The functions here pick the library of their argument; plain numbers are NumPy's. Experiments evaluate a formula on
tensors, derivations prove the same formula on SymPy symbols, z3 reals or Arb balls.
"""

from typing import Any

import numpy as np
import torch
from scipy import special

# Argument of a formula: torch.Tensor, numpy.ndarray, float, sympy.Expr, flint.arb, z3.ArithRef (arithmetic only),
# theory.kernel.terms.Term (which becomes a definition of Coq).
Value = Any


def library(x: Value) -> str:
    """Name of the library that `x` belongs to: torch, sympy, flint, z3, theory (a term of Coq), or else numpy."""
    name = type(x).__module__.partition(".")[0]
    return name if name in ("torch", "sympy", "flint", "z3", "theory") else "numpy"


def exp(x: Value) -> Value:
    return _apply("exp", x)


def log(x: Value) -> Value:
    return _apply("log", x)


def sqrt(x: Value) -> Value:
    return _apply("sqrt", x)


def erfc(x: Value) -> Value:
    return _apply("erfc", x)


def pi(like: Value) -> Value:
    """pi, exact where the library of `like` is: SymPy's symbol or a ball that holds it."""
    match library(like):
        case "sympy":
            import sympy

            return sympy.pi
        case "flint" | "theory":
            return type(like).pi()
    return np.pi


def phi(x: Value) -> Value:
    """Density of N(0, 1)."""
    return exp(-(x**2) / 2) / sqrt(2 * pi(x))


def Phi(x: Value) -> Value:  # noqa: N802, its usual name
    """P(z <= x) for z ~ N(0, 1)."""
    return erfc(-x / _root_of_two(x)) / 2


def Q(x: Value) -> Value:  # noqa: N802, its usual name
    """P(z > x) for z ~ N(0, 1), accurate in the upper tail."""
    return erfc(x / _root_of_two(x)) / 2


def relu(x: Value) -> Value:
    match library(x):
        case "torch":
            return torch.relu(x)
        case "sympy":
            import sympy

            return sympy.Max(x, 0)
        case "flint" | "theory":
            return x.max(type(x)(0))
        case "z3":
            import z3

            return z3.If(x > 0, x, 0)
    return np.maximum(x, 0.0)


def minimum(x: Value, y: Value) -> Value:
    """The smaller of the two. One of them may be a plain number."""
    match library(y if library(x) == "numpy" else x):
        case "torch":
            tensor = x if isinstance(x, torch.Tensor) else y
            x, y = (torch.as_tensor(each, dtype=tensor.dtype, device=tensor.device) for each in (x, y))
            return torch.minimum(x, y)
        case "sympy":
            import sympy

            return sympy.Min(x, y)
        case "flint":
            import flint

            return flint.arb(x).min(flint.arb(y))
        case "z3":
            import z3

            return z3.If(x <= y, x, y)
    return np.minimum(x, y)


def _apply(name: str, x: Value) -> Value:
    match library(x):
        case "torch":
            return getattr(torch, name)(x)
        case "sympy":
            import sympy

            return getattr(sympy, name)(x)
        case "flint" | "theory":
            return getattr(x, name)()
        case "z3":
            raise TypeError(f"z3 knows no {name}: give SymPy symbols or Arb balls")
    return getattr(special if name == "erfc" else np, name)(x)


def _root_of_two(x: Value) -> Value:
    match library(x):
        case "sympy":
            import sympy

            return sympy.sqrt(2)
        case "flint" | "theory":
            return type(x)(2).sqrt()
    return np.sqrt(2.0)
