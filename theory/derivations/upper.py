"""Which noise is certainly too much? Derivation of U, and of P, a prediction that U bounds from one side.

y f~/c is a constant over c plus independent terms coefficient ReLU(a/c + sigma z). u is 1/c throughout: c to infinity
is the point u = 0, and all c above some c_U are the interval from 0 to 1/c_U.
"""

import sympy as sp
import z3
from flint import arb

from theory.derivations import Step, equal, lemmas, proved
from theory.derivations.bound import HOMOGENEOUS, INDEPENDENT, INVERSE_NOISE
from theory.derivations.moments import STEPS as MOMENTS
from theory.functions import Phi, Q, Value, phi, relu, sqrt
from theory.moments import relu_mean, relu_third_moment, relu_third_moment_about, relu_variance
from theory.tolerance import BERRY_ESSEEN, error_bound, failure_bound

a, x, z = sp.symbols("a x z", real=True)
sigma, mu, variance, third, weight = sp.symbols("sigma mu variance third weight", positive=True)
n = sp.Symbol("n", positive=True)
j = sp.Symbol("j", integer=True)

SHEVTSOVA = (
    "Shevtsova, An improvement of convergence rate estimates in the Lyapunov theorem, Doklady Mathematics 82 (2010)"
    " 862-864: constant 0.5600 for independent summands that need not be identically distributed"
)


def _finite_third_moments() -> bool:
    """|R - mu|^3 <= R^3 + mu^3, R = ReLU(a + sigma z) <= |a| + sigma |z|, and E |z|^3 is finite."""
    value, mean, shift, scale, draw = z3.Reals("R mu a sigma z")
    size = z3.If(value > mean, value - mean, mean - value)
    cubes = proved(size**3 <= value**3 + mean**3, value >= 0, mean >= 0)
    below = proved(relu(shift + scale * draw) <= abs(shift) + scale * abs(draw), scale > 0)
    sums = proved((value + mean) ** 3 <= 4 * (value**3 + mean**3), value >= 0, mean >= 0)
    v = sp.Symbol("v", positive=True)
    return cubes and below and sums and sp.integrate(2 * v**3 * phi(v), (v, 0, sp.oo)).is_finite is True


def _hypotheses() -> bool:
    """For every term, whatever a and sigma > 0: centred by definition, with positive variance and finite third moment.

    0.56 is not below Esseen's constant, as none may be.
    """
    esseen = (arb(10).sqrt() + 3) / (6 * (2 * arb.pi()).sqrt())
    spread = all(step.failure() is None for step in MOMENTS["M2"])  # 0 < Var < sigma^2
    constant = bool(esseen < BERRY_ESSEEN and arb("0.5600").overlaps(arb(BERRY_ESSEEN)))
    return spread and constant and _finite_third_moments()


BERRY_ESSEEN_STEP = Step(
    "sup |P((S - E S)/sd <= x) - Phi(x)| <= 0.56 sum_j E|X_j - E X_j|^3/sd^3 for independent X_j with finite third"
    " moments and sd > 0, as all terms c ReLU(a + sigma z) have",
    "cited",
    _hypotheses,
    SHEVTSOVA,
)


def _third_slope() -> bool:
    """d/da of the third moment: 3 Q(a/sigma) E[(h(R) + mu^2) 1(R > 0)], h(R) = sgn(R - mu) (R - mu)^2."""
    s = a - mu
    antiderivative = (s**2 + sigma**2) * Phi(z) - (2 * s * sigma + sigma**2 * z) * phi(z)
    if not equal(sp.diff(antiderivative, z), (s + sigma * z) ** 2 * phi(z)):
        return False
    at_mean, at_zero = antiderivative.subs(z, -s / sigma), antiderivative.subs(z, -a / sigma)
    signed = sp.limit(antiderivative, z, sp.oo) - 2 * at_mean + at_zero
    about = relu_third_moment_about(mu, a, sigma)
    # mu moves with a as the mean does, by Phi(a/sigma).
    total = sp.diff(about, a) + sp.diff(about, mu) * Phi(a / sigma)
    return equal(total, 3 * Q(a / sigma) * (signed + mu**2 * Phi(a / sigma)))


def _third_slope_is_positive() -> bool:
    value, mean = z3.Reals("R mu")
    square = (value - mean) ** 2
    return proved(z3.If(value >= mean, square, -square) + mean**2 >= 0, value >= 0, mean >= 0)


def _enclosure() -> bool:
    """mean/sd and third/sd^3 are at most what the ends of the interval give."""
    mean, most, sd, least_sd, most_sd, moment, most_moment = z3.Reals("mean most sd s S T T_")
    sds = (least_sd > 0, least_sd <= sd, sd <= most_sd)
    ratio = mean / sd <= most / z3.If(most > 0, least_sd, most_sd)
    cubes = least_sd * least_sd * least_sd <= sd * sd * sd
    # The order of the cubes is a lemma: it leaves z3 no product of more than two unknowns.
    low_cube, cube = z3.Reals("s3 sd3")
    fraction = moment / cube <= most_moment / low_cube
    return (
        proved(ratio, mean <= most, *sds)
        and proved(cubes, *sds)
        and proved(fraction, low_cube > 0, low_cube <= cube, moment >= 0, moment <= most_moment)
    )


def _slopes_of_mean_and_variance() -> bool:
    """That they are positive are steps of M2."""
    return equal(sp.diff(relu_mean(a, sigma), a), Phi(a / sigma)) and equal(
        sp.diff(relu_variance(a, sigma), a), 2 * relu_mean(a, sigma) * Q(a / sigma)
    )


def _lipschitz_squared(m: Value, c: Value, largest: Value, length_squared: Value) -> Value:
    """(c L)^2 of one analog expert: (c M)^2 sum_j G_j^2/m   [B]."""
    return (c * largest) ** 2 * length_squared / m


def _variance_is_at_most_the_lipschitz_constant() -> bool:
    """Terms G_j/m ReLU(a + c M z), of variances below (G_j/m)^2 (c M)^2: m neurons, l tokens of any gates."""
    c, largest = sp.symbols("c M", positive=True)
    m, l = sp.symbols("m l", positive=True, integer=True)  # noqa: E741
    r, gate = sp.Symbol("r", integer=True), sp.IndexedBase("G", real=True)
    most = sp.Sum(sp.summation((gate[j] / m) ** 2 * (c * largest) ** 2, (r, 1, m)), (j, 1, l))
    coefficient, spread, size = z3.Reals("coefficient Var sigma2")
    return equal(most, _lipschitz_squared(m, c, largest, sp.Sum(gate[j] ** 2, (j, 1, l)))) and proved(
        coefficient**2 * spread <= coefficient**2 * size, spread >= 0, spread <= size
    )


def _error() -> bool:
    """P(S <= 0) = P((S - mean)/sd <= -mean/sd) >= Phi(-mean/sd) - BE, which is error_bound."""
    bound = Phi(-x) - sp.nsimplify(BERRY_ESSEEN) * third / sigma**3
    return equal(sp.nsimplify(error_bound(x, third, sigma)), bound)


def _equal_terms() -> bool:
    """n terms of one weight: third/sd^3 is the standardised third moment over sqrt(n)."""
    sd = sqrt(sp.summation(weight**2 * variance, (j, 1, n)))
    fraction = sp.summation(weight**3 * third, (j, 1, n)) / sd**3
    return equal(fraction, third / variance ** sp.Rational(3, 2) / sqrt(n))


def _dead_noise() -> bool:
    """At u = 0 every a/c is 0: ReLU(z) has variance (1 - 1/pi)/2, and 2 N_F m l terms make BE less than .0983."""
    exact = equal(relu_variance(sp.Integer(0), sp.Integer(1)), (1 - 1 / sp.pi) / 2)
    fraction = relu_third_moment(arb(0), arb(1)) / relu_variance(arb(0), arb(1)) ** (arb(3) / 2)
    terms = arb(2 * 2 * 8 * 4)
    return bool(exact and BERRY_ESSEEN * fraction / terms.sqrt() < arb("0.0983"))


def _slope_in_inverse() -> bool:
    """d/du E ReLU(a u + sigma z) = a Phi(a u/sigma), which has the slope (a^2/sigma) phi >= 0."""
    inverse = sp.Symbol("u", positive=True)
    slope = a * Phi(a * inverse / sigma)
    return equal(sp.diff(relu_mean(a * inverse, sigma), inverse), slope) and equal(
        sp.diff(slope, inverse), a**2 / sigma * phi(a * inverse / sigma)
    )


def _mean_value() -> bool:
    """A mean of slope s at most is at most the mean at low plus max(s, 0) (high - low), for every u up to high."""
    mean, start, slope, most, low, inverse, high = z3.Reals("mean start slope s low u high")
    return proved(
        mean <= start + z3.If(most > 0, most, 0) * (high - low),
        *(mean == start + slope * (inverse - low), slope <= most, low <= inverse, inverse <= high),
    )


def _cover() -> bool:
    """An interval of u from 0 to 1/c_U holds the u of every c >= c_U."""
    c, u, last = z3.Reals("c u last")
    return proved(z3.And(u > 0, u <= last), c >= 1 / last, u * c == 1, last > 0)


_mean, _sd, _most = z3.Reals("mean sd cL")
_MOMENTS = (*MOMENTS["M2"], *MOMENTS["M3"])
_PER_TERM = Step(
    "d/da of mean and variance: Phi(a/sigma) and 2 E ReLU Q(a/sigma), both positive",
    "exact",
    _slopes_of_mean_and_variance,
)

STEPS = {
    "U": (
        INDEPENDENT,
        HOMOGENEOUS,
        *_MOMENTS,
        BERRY_ESSEEN_STEP,
        Step("P(y f~ <= 0) >= Q(mean/sd) - 0.56 third/sd^3, as Phi(-x) = Q(x)", "exact", _error),
        INVERSE_NOISE,
        _PER_TERM,
        Step(
            "d/da third = 3 Q(a/sigma) E[(h(R) + mu^2) 1(R > 0)], h(R) = sgn(R - mu) (R - mu)^2",
            "exact",
            _third_slope,
        ),
        Step(
            "h(R) + mu^2 >= 0 for R >= 0: the third moment grows with a",
            "certified",
            _third_slope_is_positive,
        ),
        Step(
            "Q falls: dQ/dx = -phi",
            "exact",
            lambda: equal(sp.diff(Q(x), x), -phi(x)) and phi(x).is_positive is True,
        ),
        Step(
            "for u = 1/c from low to high: mean/sd and third/sd^3 are at most their values from the ends",
            "certified",
            _enclosure,
        ),
        Step("d/du E ReLU(a u + sigma z) = a Phi(a u/sigma), which grows with u", "exact", _slope_in_inverse),
        Step("so the mean is at most that of low plus the largest slope's part", "certified", _mean_value),
        Step("intervals from u = 0 to 1/c_U cover every c >= c_U", "certified", _cover),
        Step("n equal terms: third/sd^3 is that of one over sqrt(n)", "exact", _equal_terms),
        Step(
            "ReLU(z): variance (1 - 1/pi)/2; N_F = 2, m = 8, l = 4: 0.56 third/sd^3 < .0983",
            "certified",
            _dead_noise,
        ),
    ),
    "P": (
        INDEPENDENT,
        *MOMENTS["M1"],
        *_MOMENTS,
        Step(
            "means and variances of independent terms add; a normal S has P(S > 0) = Phi(mean/sd) = 1 - Q(mean/sd)",
            "exact",
            lambda: equal(Phi(x), 1 - Q(x)) and equal(1 - Phi(-x), Phi(x)),
        ),
        *lemmas.GAUSSIAN_TAIL,
        Step(
            "sd <= c L: Var ReLU <= sigma^2 (M2), and sum_r sum_j (G_j/m)^2 (c M)^2 = (c M)^2 sum_j G_j^2/m",
            "certified",
            _variance_is_at_most_the_lipschitz_constant,
        ),
        Step(
            "Q(mean/sd) <= exp(-(mean/sd)^2/2)/2 <= exp(-(mean/(c L))^2/2)/2, half of B's bound, for mean >= 0",
            "certified",
            lambda: (
                equal(lemmas.gaussian_tail(mu / sigma), failure_bound(mu, sigma) / 2)
                and proved(_mean / _sd >= _mean / _most, _mean >= 0, _sd > 0, _sd <= _most)
                and sp.diff(lemmas.gaussian_tail(mu), mu).is_negative is True
            ),
        ),
        BERRY_ESSEEN_STEP,
    ),
}
