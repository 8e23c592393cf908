"""How does each statement follow from the definitions? A chain of steps for each, checked by a machine.

A module holds `STEPS`, the steps of each of its claims by id; `lemmas` holds the steps that several claims share.
The steps call the functions that the experiments evaluate, on symbols, so that a wrong formula breaks its own
derivation.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

from theory.errors import InputError

Kind = Literal["exact", "certified", "kernel", "cited"]
KINDS: tuple[Kind, ...] = get_args(Kind)
Z3_MILLISECONDS = 20_000
NOT_RUN = "not run"
# What the real numbers and their integrals are built on in Coq. A theorem that rests on anything else, such as a lemma
# without a proof, is not proved.
AXIOMS = frozenset(
    {
        "Classical_Prop.classic",
        "ClassicalDedekindReals.sig_forall_dec",
        "ClassicalDedekindReals.sig_not_dec",
        "FunctionalExtensionality.functional_extensionality_dep",
    }
)
DEEPEST = 40  # how often `everywhere` bisects one part of an interval


class NotRunError(Exception):
    """A step cannot be checked here; the message says what is missing."""


@dataclass(frozen=True)
class Step:
    """One step of a derivation, with its check.

    equation: the step in plain text.
    kind: how it is proved.
        `exact`: SymPy proves an equality.
        `certified`: z3 or ball arithmetic proves an inequality on its whole domain.
        `kernel`: the kernel of Coq checks a theorem about the formulas [theory.kernel].
        `cited`: a named theorem says so; only the hypotheses of the theorem are checked.
    check: True if the step is proved. A step fails with any other value, and with an exception.
    reference: where to read a cited theorem, or the proof that the kernel checks.
    """

    equation: str
    kind: Kind
    check: Callable[[], bool]
    reference: str = ""

    def __post_init__(self) -> None:
        if not self.equation.strip():
            raise InputError("step.equation is empty: say what the step proves")
        if self.kind not in KINDS:
            raise InputError(f"step.kind is {self.kind!r}: give one of {', '.join(KINDS)}")
        if bool(self.reference) != (self.kind in ("cited", "kernel")):
            raise InputError(
                f"step.reference of {self.equation!r}: a cited theorem or a proof of the kernel needs one, no other"
            )

    def failure(self) -> str | None:
        """Why the step fails; None if it is proved. A step that cannot be checked here begins with NOT_RUN."""
        try:
            return None if self.check() is True else "not proved"
        except NotRunError as error:
            return f"{NOT_RUN}: {error}"
        except Exception as error:
            return f"{type(error).__name__}: {error}"


def equal(left: Any, right: Any) -> bool:
    """True if SymPy proves left = right."""
    import sympy

    return bool(sympy.simplify(sympy.expand(left - right)) == 0)


def vectors(names: str) -> list[Any]:
    """A vector of R^d for each name, d being a symbol: its coordinate number i, a real symbol like x[i].

    Sums and multiples of vectors are those of their coordinates; `dot` gives inner products.
    """
    import sympy

    index, _ = _coordinates()
    return [sympy.IndexedBase(name, real=True)[index] for name in names.split()]


def dot(left: Any, right: Any) -> Any:
    """Inner product of two vectors of R^d for a symbol d, a SymPy sum over coordinates; `equal` compares such sums."""
    import sympy

    index, dimension = _coordinates()
    return sympy.Sum(left * right, (index, 1, dimension))


def at(vector: Any, place: Any) -> Any:
    """Coordinate number `place` of a vector, a symbol of any name."""
    return vector.subs(_coordinates()[0], place)


def delta(place: Any) -> Any:
    """The vector whose coordinate number `place` is 1, and whose others are 0."""
    import sympy

    return sympy.KroneckerDelta(_coordinates()[0], place)


def total(sum_of_coordinates: Any, place: Any) -> Any:
    """The value of a sum over coordinates with the `delta` of a coordinate `place` from 1 to d."""
    import sympy

    further = sympy.Symbol("further", integer=True, nonnegative=True)  # coordinates after this one
    return sum_of_coordinates.subs(_coordinates()[1], place + further).doit()


def summed(value: Any, place: Any) -> Any:
    """Sum of a value that depends on the coordinate `place`, over all coordinates from 1 to d."""
    return dot(value.subs(place, _coordinates()[0]), 1)


def _coordinates() -> tuple[Any, Any]:
    """Index of a coordinate, and the dimension d."""
    import sympy

    return sympy.Symbol("i", integer=True), sympy.Symbol("d", integer=True, positive=True)


def proved(conclusion: Any, *assumptions: Any) -> bool:
    """True if z3 proves the conclusion for all reals that satisfy the assumptions, which have to be satisfiable."""
    import z3

    solver = z3.Solver()
    solver.set("timeout", Z3_MILLISECONDS)
    solver.add(*assumptions)
    possible = solver.check() == z3.sat
    solver.add(z3.Not(conclusion))
    return possible and bool(solver.check() == z3.unsat)


def everywhere(holds: Callable[[Any], bool], low: float, high: float) -> bool:
    """True if `holds` is certainly true of every ball of a cover of [low, high], found by bisection.

    holds: gets a flint.arb that contains a part of the interval. A comparison of balls is true only if it is true for
        all of their points.
    low, high: floats, taken as the exact binary numbers that they are.
    """
    import flint

    parts = [(low, high, 0)]
    while parts:
        start, end, depth = parts.pop()
        if holds(flint.arb(start).union(flint.arb(end))):  # the smallest ball around both, rounded outwards
            continue
        if depth == DEEPEST:
            return False
        middle = (start + end) / 2
        parts += [(start, middle, depth + 1), (middle, end, depth + 1)]
    return True
