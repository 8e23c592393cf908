"""Do steps that speak of all l, K, d and signs notice a formula that is right in special cases only?

Every mutant is the formula itself in the special case (up to four tokens, three coordinates, positive gradients, say)
and something else beyond. Its steps have to fail.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import pytest
import sympy as sp
import z3

from theory import functions, growth, moments
from theory.claims import CLAIMS
from theory.damage import product_variance
from theory.derivations import bound, dot, equal, hardware, lemmas, upper, vectors
from theory.functions import exp, sqrt

v, w, x = vectors("v w x")
d = sp.Symbol("d", integer=True, positive=True)  # the dimension of `vectors`
i, k = sp.symbols("one other", integer=True)
g = sp.Symbol("g", positive=True)


def beyond(number: Any, last: int) -> Any:
    """0 for numbers up to `last`, and not 0 for larger ones."""
    return sp.Max(number - last, 0)


def in_three(value: Any) -> Any:
    """Sums over the first three coordinates only."""
    return sp.sympify(value).subs(d, sp.Min(d, 3))


def first(value: Any, coordinates: int) -> Any:
    return value.subs(d, coordinates).doit()


@dataclass(frozen=True)
class Mutant:
    """A formula that is wrong beyond a special case.

    where: the module and name in theory.derivations under which steps call it.
    wrong: what stands in its place.
    agrees: pairs of right and wrong values in the special case.
    steps: beginnings of the equations that must not hold any more.
    """

    where: str
    wrong: Callable[..., Any]
    agrees: Callable[[Callable[..., Any]], list[tuple[Any, Any]]]
    steps: tuple[str, ...]


def more_than_four_tokens(score: Any, others: Any) -> Any:
    return exp(score) / (exp(score) + others + beyond(others, 3))


def more_than_six_experts(score: Any, specialists: Any, chosen: Any) -> Any:
    return growth.token_choice_gate(score, specialists, chosen) + beyond(chosen, 6)


def more_than_two_outputs(weight: Any, sigma: Any, z: Any, variance: Any) -> Any:
    return product_variance(weight, sigma, z, variance) + beyond(sigma**2, 2)


def absolute_moment(moments: Any, step: Any, eta: Any, beta_1: Any, beta_2: Any, epsilon: Any) -> Any:
    return growth.adam_step((abs(moments[0]), moments[1]), step, eta, beta_1, beta_2, epsilon)


def gates_of(wrong: Callable[..., Any]) -> list[tuple[Any, Any]]:
    return [(growth.own_gate(g, sp.Integer(others)), wrong(g, sp.Integer(others))) for others in range(4)]


def biases_of(wrong: Callable[..., Any]) -> list[tuple[Any, Any]]:
    return [(moments.relu_bias(g, 1), wrong(g, 1))]


def bias_of_active_neurons(a: Any, sigma: Any) -> Any:
    return moments.relu_mean(a, sigma) - a


MUTANTS = (
    Mutant(
        "lemmas.own_gate",
        more_than_four_tokens,
        gates_of,
        ("sum_j G_j = 1", "0 < G_j < 1", "softmax gradient"),
    ),
    Mutant(
        "growth.own_gate",
        more_than_four_tokens,
        gates_of,
        ("router: df/dscore_own", "gate of a token for each"),
    ),
    Mutant(
        "growth.token_choice_gate",
        more_than_six_experts,
        lambda wrong: [(growth.token_choice_gate(g, 2, each), wrong(g, 2, each)) for each in range(2, 7)],
        ("gate of a token for each",),
    ),
    Mutant(
        "growth.adam_rate",
        lambda gradient, eta, epsilon: eta * gradient / (gradient + epsilon),
        lambda wrong: [(growth.adam_rate(g, 1, 1), wrong(g, 1, 1))],
        ("the first step is", "so every step is", "1 <= frequent over rare step"),
    ),
    Mutant(
        "growth.adam_step",
        absolute_moment,
        lambda wrong: [
            (growth.adam_step((g, g**2), 1, 1, 0, 0, 1), wrong((g, g**2), 1, 1, 0, 0, 1)),
        ],
        ("the first step is", "so every step is"),
    ),
    Mutant(
        "bound._squared_length",
        lambda squared, along, weight, token: bound._squared_length(squared, along, weight, in_three(token)),
        lambda wrong: [
            (
                first(bound._squared_length(dot(v, v), dot(v, x), g, dot(x, x)), 3),
                first(wrong(dot(v, v), dot(v, x), g, dot(x, x)), 3),
            )
        ],
        ("|sum_j p_j G_j x_j|^2",),
    ),
    Mutant(
        "bound._noisy_output",
        lambda w, draw, x: dot(w, x) + bound.c * bound.M * in_three(dot(draw, x)),
        lambda wrong: [(first(bound._noisy_output(w, v, x), 3), first(wrong(w, v, x), 3))],
        ("d/dz_i (w . x + c M z . x)",),
    ),
    Mutant(
        "lemmas.covariance",
        lambda sizes, x, other: in_three(lemmas.covariance(sizes, x, other)),
        lambda wrong: [(first(lemmas.covariance(v, w, x), 3), first(wrong(v, w, x), 3))],
        ("Cov(w~ . x, w~ . x') = (c M)^2 x . x'", "Cov(w~ . x, w~ . x') = sum_i sigma_i^2"),
    ),
    Mutant(
        "hardware._gap",
        lambda w, x, i, k: hardware._gap(w, x, i, k) + sp.KroneckerDelta(i, 4),
        lambda wrong: [(hardware._gap(w, x, 1, 3), wrong(w, x, 1, 3))],
        ("DAC: a known token",),
    ),
    Mutant(
        "hardware.relu_bias",
        bias_of_active_neurons,
        biases_of,
        ("E ReLU(clip(a + sigma z))",),
    ),
    Mutant(
        "bound.relu_bias",
        bias_of_active_neurons,
        biases_of,
        ("E y f~ = sum of coefficients times relu_mean",),
    ),
    Mutant(
        "damage.product_variance",
        more_than_two_outputs,
        lambda wrong: [
            (product_variance(g, sqrt(sp.Integer(each)), 1, 1), wrong(g, sqrt(sp.Integer(each)), 1, 1))
            for each in range(3)
        ],
        ("E (sum_i G_i e_i)^2",),
    ),
    Mutant(
        "upper._lipschitz_squared",
        lambda m, c, largest, squared: upper._lipschitz_squared(
            m, c, largest, squared.subs(sp.Symbol("l", integer=True, positive=True), 4)
        ),
        lambda wrong: [(upper._lipschitz_squared(g, 1, 1, v), wrong(g, 1, 1, v))],
        ("sd <= c L",),
    ),
    Mutant(  # the same at 0; its third moment is not finite
        "upper.phi",
        lambda z: 1 / sp.sqrt(2 * sp.pi) / (1 + z**2),
        lambda wrong: [(functions.phi(sp.Integer(0)), wrong(sp.Integer(0)))],
        ("sup |P((S - E S)/sd <= x)",),
    ),
    Mutant(  # the same up to 1; it grows faster beyond
        "upper.relu",
        lambda u: z3.If(u > 1, u * u, z3.If(u > 0, u, 0)),
        lambda wrong: [(1, z3.simplify(wrong(z3.RealVal(1))).as_long())],
        ("sup |P((S - E S)/sd <= x)",),
    ),
    Mutant(
        "gain.relu",
        lambda u: z3.If(u > 1, u * u, z3.If(u > 0, u, 0)),
        lambda wrong: [(1, z3.simplify(wrong(z3.RealVal(1))).as_long())],
        ("|R - R'| <= |z - z'|/rho",),
    ),
)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.where)
def test_a_formula_that_is_right_in_special_cases_only_is_noticed(
    mutant: Mutant, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert all(equal(*pair) for pair in mutant.agrees(mutant.wrong))
    steps = {step.equation: step for claim in CLAIMS for step in claim.steps()}
    module, _, name = mutant.where.partition(".")
    monkeypatch.setattr(import_module(f"theory.derivations.{module}"), name, mutant.wrong)
    for beginning in mutant.steps:
        (step,) = [step for equation, step in steps.items() if equation.startswith(beginning)]
        assert step.failure() is not None, step.equation
