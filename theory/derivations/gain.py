"""How much noise more is tolerated with the frequent experts digital? Derivation of Cor and of Gain.

Cor: the ratio of our bounds B is Theta(rho). Gain: in idealised networks [theory.tolerance.idealised] the factor of the
tolerance itself is at least gamma rho, for all rho above some rho_0, with U for the all-analog network. Trained ones
are not covered. Weights are in units of those of a rare specialist, so that a frequent specialist has weights rho.
"""

from functools import partial

import sympy as sp
import z3
from flint import arb

from theory.derivations import Step, equal, lemmas, proved
from theory.derivations.upper import BERRY_ESSEEN_STEP
from theory.functions import exp, pi, relu, sqrt
from theory.growth import own_gate
from theory.moments import relu_bias, relu_mean, relu_third_moment, relu_variance
from theory.tolerance import (
    FAILURE,
    OWN_SCORE,
    concentration,
    error_bound,
    ideal_frequent_sd,
    ideal_third,
    tolerable_noise,
)

beta_F, beta_R, L_F, L_R = sp.symbols("beta_F beta_R L_F L_R", positive=True)  # noqa: N816
rho, mu, tau = sp.symbols("rho mu tau", positive=True)
l, m, h, noisy, N_R, g, u = sp.symbols("l m h noisy N_R g u", positive=True)  # noqa: E741
variance, third, rare, terms = sp.symbols("variance third rare terms", positive=True)
j = sp.Symbol("j", integer=True)

# The last steps certify these gains for the reference instance: w_max of the layer, half of the neurons active, failure
# .05. For each rho_0 the quantile that U is used at, and gamma.
REFERENCE = {"N_F": 2, "N_R": 2, "m": 8, "l": 4}
CERTIFIED = {19: ("1.0", "0.095"), 3: ("0.01", "0.0009")}


def _ratio() -> sp.Expr:
    """Ratio of B with the frequent specialists digital to B all analog; the margin is the same."""
    digital = tolerable_noise(mu, beta_R, L_R, tau)
    analog = tolerable_noise(mu, rho * beta_F + beta_R, sqrt((rho * L_F) ** 2 + L_R**2), tau)
    return sp.simplify(digital / analog)


def _sandwich() -> bool:
    """kappa rho <= ratio <= 1 + kappa rho, by x <= sqrt(x^2 + y^2) <= x + y."""
    biases = z3.Reals("beta_F beta_R")
    lipschitz = z3.Reals("L_F L_R")
    scale, root, factor, x, y = z3.Reals("rho root tau x y")
    positive = [each > 0 for each in (*biases, *lipschitz, scale, factor)]
    roots = proved(z3.And(root >= x, root <= x + y), root >= 0, root * root == x * x + y * y, x > 0, y > 0)
    digital = biases[1] + factor * lipschitz[1]
    kappa = (biases[0] + factor * lipschitz[0]) / digital
    ratio = (scale * biases[0] + biases[1] + factor * root) / digital
    ordered = (root >= scale * lipschitz[0], root <= scale * lipschitz[0] + lipschitz[1])
    return roots and proved(z3.And(ratio >= kappa * scale, ratio <= 1 + kappa * scale), *positive, *ordered)


def _limit() -> bool:
    kappa = (beta_F + tau * L_F) / (beta_R + tau * L_R)
    return equal(sp.limit(_ratio() / rho, rho, sp.oo), kappa)


def _ideal_mean() -> bool:
    """Mean of y f~/(c rho) for a rare input, with u = 1/(c rho) and rare noise 1/rho: all biases at a = 0 cancel.

    N_R specialists of the label's sign find their token, with gate g: h neurons are at a = u, other noisy neurons at 0.
    They also take l - 1 other tokens, of gates (1 - g)/(l - 1). N_R specialists of the other sign have l tokens at
    a = 0. The biases of frequent specialists cancel.
    """
    noise = 1 / rho
    at_own, at_zero = relu_mean(u, noise), relu_mean(sp.Integer(0), noise)
    mine = g / m * (h * at_own + (noisy - h) * at_zero) + (1 - g) * noisy / m * at_zero
    other = noisy / m * at_zero
    return equal(N_R * (mine - other), N_R * g * h / m * (at_own - at_zero))


def _mean_is_at_most_the_margin() -> bool:
    """E ReLU(u + z/rho) - E ReLU(z/rho) = u + b(u) - b(0) <= u, as b falls."""
    noise = 1 / rho
    difference = relu_mean(u, noise) - relu_mean(sp.Integer(0), noise)
    at_own, at_zero, inverse = z3.Reals("b_u b_0 u")
    return equal(difference, u + relu_bias(u, noise) - relu_bias(sp.Integer(0), noise)) and proved(
        inverse + at_own - at_zero <= inverse, at_own <= at_zero
    )


def _frequent_moments() -> bool:
    """Variance and third moment of `terms` ReLUs with weight 1/(m l) each."""
    weight = 1 / (m * l)
    sd = sqrt(sp.summation(weight**2 * variance, (j, 1, terms)))
    moment = sp.summation(weight**3 * third, (j, 1, terms))
    return equal(sd, ideal_frequent_sd(terms, m, l, variance)) and equal(
        moment, ideal_third(terms, m, l, third, sp.Integer(0), rho)
    )


def _copy() -> bool:
    """|R - R'| <= |z - z'|/rho, and E |z - z'|^3 = E |sqrt(2) z|^3 = 8/sqrt(pi), times (1/rho)^3."""
    shift, draw, other, scale = z3.Reals("a z z' rho")
    gap = relu(shift + draw / scale) - relu(shift + other / scale)
    close = proved(gap**2 <= ((draw - other) / scale) ** 2, scale > 0)
    v = sp.Symbol("v", positive=True)
    moment = 2 * sp.integrate(
        (sqrt(sp.Integer(2)) * v) ** 3 * exp(-(v**2) / 2) / sqrt(2 * sp.pi), (v, 0, sp.oo)
    )
    rest = ideal_third(terms, m, l, third, rare, rho) - ideal_third(terms, m, l, third, sp.Integer(0), rho)
    return close and equal(moment, 8 / sqrt(sp.pi)) and equal(rest, rare * moment / rho**3)


def _cube_is_convex() -> bool:
    v = sp.Symbol("v", positive=True)
    return bool(sp.diff(v**3, v, 2).is_positive) and equal(sp.Abs(-v) ** 3, v**3)


def _all_above() -> bool:
    """The error bound holds for all larger rho and c: third moments fall with rho, and mean/sd falls with c."""
    weight, scale, least, sd, margin, noise, threshold, q = z3.Reals("rare rho rho_0 sd mu c c_U q")
    moments = proved(
        weight / (scale * scale * scale) <= weight / (least * least * least),
        *(weight >= 0, least > 0, scale >= least),
    )
    ratio = proved(
        margin / (noise * scale * sd) <= q,
        *(margin > 0, scale > 0, sd > 0, q > 0, noise >= margin / (scale * sd * q)),
    )
    return (
        moments
        and ratio
        and proved(
            threshold > 0, threshold == margin / (scale * sd * q), margin > 0, scale > 0, sd > 0, q > 0
        )
    )


def _gain_is_linear() -> bool:
    """A digital tolerance of at least mu/D, divided by c_U = mu/(rho sd q), is rho sd q/D."""
    sd, q, floor = sp.symbols("sd q D", positive=True)
    return equal((mu / floor) / (mu / (rho * sd * q)), rho * sd * q / floor)


def _frequent_class_is_not_worse() -> bool:
    """With the frequent specialists digital, a frequent input has rho N_F/N_R times the margin, and equal gates."""
    rare_margin, bias, mine, other, scale, frequent, fewer = z3.Reals("mu beta L L_ rho N_F N_R")
    factor = z3.Real("tau")
    return proved(
        tolerable_noise(scale * frequent / fewer * rare_margin, bias, other, factor)
        >= tolerable_noise(rare_margin, bias, mine, factor),
        *(rare_margin > 0, bias > 0, mine > 0, other > 0, factor > 0, frequent > 0, fewer > 0),
        *(other <= mine, scale * frequent >= fewer),
    )


def _from_above() -> bool:
    """If U bounds the digital tolerance by some C, the gain is at most C over B all analog, of the order of rho too."""
    ceiling, margin, analog, digital, kappa, scale = z3.Reals("C mu D_analog D kappa rho")
    return proved(
        ceiling / (margin / analog) <= ceiling * digital / margin * (1 + kappa * scale),
        *(ceiling > 0, margin > 0, analog > 0, digital > 0, kappa > 0, scale > 0),
        analog <= digital * (1 + kappa * scale),
    )


def _reference(rho_0: int, quantile: str, slope: str) -> bool:
    """gain >= slope rho for all rho >= rho_0, from B alone, by ball arithmetic."""
    N_F, N_R, m, l = (arb(REFERENCE[name]) for name in ("N_F", "N_R", "m", "l"))  # noqa: E741, N806
    one, zero, q = arb(1), arb(0), arb(quantile)
    own = own_gate(arb(OWN_SCORE), l - 1)
    rest = (1 - own) / (l - 1)
    cubes = N_R * m * (own**3 + (l - 1) * rest**3 + l / l**3) / m**3
    count = 2 * N_F * m * l
    sd = ideal_frequent_sd(count, m, l, relu_variance(zero, one))
    moments = ideal_third(count, m, l, relu_third_moment(zero, one), cubes, arb(rho_0))
    errs = error_bound(q, moments, sd) > FAILURE
    squares = N_R * m * (own**2 + (l - 1) * rest**2 + 1 / l) / m**2
    digital = N_R / sqrt(2 * pi(one)) + concentration(arb(FAILURE)) * sqrt(squares)
    return bool(errs and sd * q / digital > arb(slope))


STEPS = {
    "Cor": (
        Step(
            "B digital/B analog = (rho beta_F + beta_R + tau sqrt(rho^2 L_F^2 + L_R^2))/(beta_R + tau L_R)",
            "exact",
            lambda: equal(
                _ratio(),
                (rho * beta_F + beta_R + tau * sqrt((rho * L_F) ** 2 + L_R**2)) / (beta_R + tau * L_R),
            ),
        ),
        Step(
            "kappa rho <= ratio <= 1 + kappa rho, kappa = (beta_F + tau L_F)/(beta_R + tau L_R)",
            "certified",
            _sandwich,
        ),
        Step("ratio/rho tends to kappa: Theta(rho)", "exact", _limit),
    ),
    "Gain": (
        *lemmas.BIAS,
        Step(
            "idealised, rare input: E y f~/(c rho) = N_R g h/m (E ReLU(u + z/rho) - E ReLU(z/rho))",
            "exact",
            _ideal_mean,
        ),
        Step("which is at most u N_R g h/m, the margin over c rho", "certified", _mean_is_at_most_the_margin),
        Step(
            "the frequent specialists' variance and third moment; the others only add variance",
            "exact",
            _frequent_moments,
        ),
        Step(
            "E |R - E R|^3 <= E |R - R'|^3, R' an independent copy",
            "cited",
            _cube_is_convex,
            "Jensen's inequality, conditional on R: Durrett, Probability: Theory and Examples (2019), Theorem 4.1.10",
        ),
        Step("|R - R'| <= |z - z'|/rho, and E |z - z'|^3 = 8/sqrt(pi)", "certified", _copy),
        BERRY_ESSEEN_STEP,
        Step(
            "an error bound at rho_0 and c_U = mu/(rho sd q) holds for all rho >= rho_0, c >= c_U",
            "certified",
            _all_above,
        ),
        Step(
            "frequent digital, frequent input: B is at least that of a rare input",
            "certified",
            _frequent_class_is_not_worse,
        ),
        Step("gain >= (mu/D)/c_U = rho sd q/D", "exact", _gain_is_linear),
        Step(
            "gain <= C D/mu (1 + kappa rho) where U bounds the digital tolerance by C",
            "certified",
            _from_above,
        ),
        *(
            Step(
                f"reference instance, every rho >= {rho_0}: gain >= {slope} rho from B and U alone",
                "certified",
                partial(_reference, rho_0, quantile, slope),
            )
            for rho_0, (quantile, slope) in CERTIFIED.items()
        ),
    ),
}
