"""What are the moments of a noisy ReLU? Derivation of M1, M2 and M3, integrals by their antiderivatives."""

import sympy as sp
import z3
from flint import arb

from theory.derivations import Step, equal, lemmas, proved
from theory.functions import Phi, Q, Value, phi, relu
from theory.moments import (
    relu_mean,
    relu_second_moment,
    relu_third_moment,
    relu_third_moment_about,
    relu_variance,
)

a, z, s = sp.symbols("a z s", real=True)
sigma, mu = sp.symbols("sigma mu", positive=True)


def _integral(antiderivative: sp.Expr, low: sp.Expr, high: sp.Expr = sp.oo) -> sp.Expr:
    """Integral over z from low to high, of the derivative of an antiderivative."""
    top = sp.limit(antiderivative, z, sp.oo) if high is sp.oo else antiderivative.subs(z, high)
    return top - antiderivative.subs(z, low)


def _first() -> sp.Expr:
    return a * Phi(z) - sigma * phi(z)


def _second() -> sp.Expr:
    return (a**2 + sigma**2) * Phi(z) - (2 * a * sigma + sigma**2 * z) * phi(z)


def _third() -> sp.Expr:
    even = s**3 + 3 * s * sigma**2
    return even * Phi(z) - sigma * (3 * s**2 + 3 * s * sigma * z + sigma**2 * (z**2 + 2)) * phi(z)


def _third_moment() -> sp.Expr:
    """E |ReLU - mu|^3 for mu > 0 and s = a - mu, as a sum of three pieces."""
    below = mu**3 * Phi(-(mu + s) / sigma)
    lower = -_integral(_third(), -(mu + s) / sigma, -s / sigma)
    upper = _integral(_third(), -s / sigma)
    return below + lower + upper


def _relu_is_on_above() -> bool:
    shift, scale, draw = z3.Reals("a sigma z")
    value = shift + scale * draw
    return proved(relu(value) == z3.If(draw >= -shift / scale, value, 0), scale > 0)


def _constants_of_the_standard_relu() -> bool:
    variance = relu_variance(arb(0), arb(1))
    standardised = relu_third_moment(arb(0), arb(1)) / variance ** (arb(3) / 2)
    return bool(_near(variance, "0.3408", "0.0001") and _near(standardised, "1.985", "0.001"))


def _mean_is_positive() -> bool:
    """E ReLU rises with a, by Phi(a/sigma), from its limit 0 for a -> -oo. Phi rises from 0, by phi > 0."""
    return (
        equal(sp.diff(relu_mean(a, sigma), a), Phi(a / sigma))
        and sp.limit(relu_mean(a, sigma), a, -sp.oo) == 0
        and equal(sp.diff(Phi(z), z), phi(z))
        and phi(z).is_positive is True
        and sp.limit(Phi(z), z, -sp.oo) == 0
    )


def _near(value: Value, centre: str, distance: str) -> bool:
    return bool(abs(value - arb(centre)) < arb(distance))


_DENSITY = (
    Step(
        "Phi' = phi, Phi(-oo) = 0, Phi(oo) = 1, Q = 1 - Phi",
        "exact",
        lambda: (
            equal(sp.diff(Phi(z), z), phi(z))
            and (sp.limit(Phi(z), z, -sp.oo), sp.limit(Phi(z), z, sp.oo)) == (0, 1)
            and equal(Q(z), 1 - Phi(z))
        ),
    ),
    Step(
        "ReLU(a + sigma z) = a + sigma z for z >= -a/sigma, else 0",
        "certified",
        _relu_is_on_above,
    ),
)


_POSITIVE = Step(
    "E ReLU(a + sigma z) > 0: it is 0 for a -> -oo and has the slope Phi > 0", "exact", _mean_is_positive
)

STEPS = {
    "M1": (
        *_DENSITY,
        Step(
            "d/dz [a Phi(z) - sigma phi(z)] = (a + sigma z) phi(z)",
            "exact",
            lambda: equal(sp.diff(_first(), z), (a + sigma * z) * phi(z)),
        ),
        Step(
            "E ReLU(a + sigma z) = a Phi(a/sigma) + sigma phi(a/sigma)",
            "exact",
            lambda: equal(_integral(_first(), -a / sigma), relu_mean(a, sigma)),
        ),
        *lemmas.BIAS,
    ),
    "M2": (
        *_DENSITY,
        Step(
            "d/dz [(a^2 + sigma^2) Phi(z) - (2 a sigma + sigma^2 z) phi(z)] = (a + sigma z)^2 phi(z)",
            "exact",
            lambda: equal(sp.diff(_second(), z), (a + sigma * z) ** 2 * phi(z)),
        ),
        Step(
            "E ReLU(a + sigma z)^2 = (a^2 + sigma^2) Phi(a/sigma) + a sigma phi(a/sigma)",
            "exact",
            lambda: equal(_integral(_second(), -a / sigma), relu_second_moment(a, sigma)),
        ),
        _POSITIVE,
        Step(
            "d/da Var = 2 E ReLU Q(a/sigma), which is positive as Q falls to 0: Q' = -phi < 0, Q(oo) = 0",
            "exact",
            lambda: (
                equal(sp.diff(relu_variance(a, sigma), a), 2 * relu_mean(a, sigma) * Q(a / sigma))
                and equal(sp.diff(Q(z), z), -phi(z))
                and phi(z).is_positive is True
                and sp.limit(Q(z), z, sp.oo) == 0
            ),
        ),
        Step(
            "Var tends to 0 for a -> -oo and to sigma^2 for a -> oo: 0 < Var < sigma^2",
            "exact",
            lambda: (
                sp.limit(relu_variance(a, sigma), a, -sp.oo) == 0
                and equal(sp.limit(sp.expand(relu_variance(a, sigma)), a, sp.oo), sigma**2)
            ),
        ),
    ),
    "M3": (
        *_DENSITY,
        Step(
            "d/dz of the antiderivative of (s + sigma z)^3 phi(z)",
            "exact",
            lambda: equal(sp.diff(_third(), z), (s + sigma * z) ** 3 * phi(z)),
        ),
        Step(
            "E |ReLU - mu|^3: mu^3 where the ReLU is off, and |s + sigma z|^3 below and above z = -s/sigma",
            "exact",
            lambda: equal(_third_moment(), relu_third_moment_about(mu, mu + s, sigma)),
        ),
        Step(
            "the centre is the mean: mu = E ReLU(a + sigma z)",
            "exact",
            lambda: equal(
                relu_third_moment(a, sigma), relu_third_moment_about(relu_mean(a, sigma), a, sigma)
            ),
        ),
        _POSITIVE,
        Step(
            "ReLU(z): variance in .3408 +- .0001, standardised third absolute moment in 1.985 +- .001",
            "certified",
            _constants_of_the_standard_relu,
        ),
    ),
}
