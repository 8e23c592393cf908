"""Which inequalities do several derivations need? Each is proved once here: splice the steps in with `*`."""

import sympy as sp
import z3
from flint import arb

from theory.derivations import Step, at, delta, dot, equal, everywhere, proved, summed, total
from theory.functions import Q, Value, exp, phi, pi, sqrt
from theory.growth import own_gate
from theory.hardware import PCM_G_MAX, PROGRAMMING_NOISE
from theory.moments import relu_bias

x = sp.Symbol("x", real=True)
sigma, above = sp.symbols("sigma above", positive=True)
TAIL = 6.0  # balls prove the tail bound up to here, monotonicity beyond
PCM_LOWEST, PCM_HIGHEST = "0.26348", "1.0864"  # microsiemens, at c = 1


def gaussian_tail(t: Value) -> Value:
    """exp(-t^2/2)/2, which is at least Q(t) for t >= 0."""
    return exp(-(t**2) / 2) / 2


def _tail_gap(t: Value) -> Value:
    return gaussian_tail(t) - Q(t)


def _tail_slope(t: Value) -> Value:
    """Derivative of `_tail_gap`, divided by exp(-t^2/2)."""
    return 1 / sqrt(2 * pi(t)) - t / 2


GAUSSIAN_TAIL = (
    Step(
        "h(x) = exp(-x^2/2)/2 - Q(x): h(0) = 0 and h(oo) = 0",
        "exact",
        lambda: _tail_gap(sp.Integer(0)) == 0 and sp.limit(_tail_gap(x), x, sp.oo) == 0,
    ),
    Step(
        "h'(x) = exp(-x^2/2) (1/sqrt(2 pi) - x/2)",
        "exact",
        lambda: equal(sp.diff(_tail_gap(x), x), exp(-(x**2) / 2) * _tail_slope(x)),
    ),
    Step(
        "Q(x) <= exp(-x^2/2)/2 for x >= 0: h rises up to x = 1/2, is positive up to 6, and falls to 0 beyond",
        "certified",
        lambda: (
            everywhere(lambda ball: _tail_slope(ball) > 0, 0.0, 0.5)
            and everywhere(lambda ball: _tail_gap(ball) > 0, 0.5, TAIL)
            # The slope falls with x: negative at 6, it stays negative.
            and bool(_tail_slope(arb(TAIL)) < 0 and sp.diff(_tail_slope(x), x) < 0)
        ),
    ),
)

BIAS = (
    Step(
        "b(-a) = b(a)",
        "exact",
        lambda: equal(relu_bias(above, sigma), relu_bias(-above, sigma)),
    ),
    Step(
        "b'(a) = -Q(a/sigma) for a > 0",
        "exact",
        lambda: equal(sp.diff(relu_bias(above, sigma), above), -Q(above / sigma)),
    ),
    Step(
        "Q' = -phi, phi > 0 and Q(oo) = 0: Q > 0, so b falls from a = 0 on",
        "exact",
        lambda: (
            equal(sp.diff(Q(x), x), -phi(x)) and phi(x).is_positive is True and sp.limit(Q(x), x, sp.oo) == 0
        ),
    ),
    Step(
        "b(0) = sigma/sqrt(2 pi), the largest value, and b(oo) = 0, the infimum",
        "exact",
        lambda: (
            equal(relu_bias(sp.Integer(0), sigma), sigma / sqrt(2 * sp.pi))
            and sp.limit(relu_bias(above, sigma), above, sp.oo) == 0
        ),
    ),
    Step(
        "b(a) = phi(a) - a Q(a) for a > 0, both in units of sigma",
        "exact",
        lambda: equal(relu_bias(above, sigma), sigma * _unit_bias(above / sigma)),
    ),
    Step(
        "0 < b(a) <= sigma/sqrt(2 pi) for all a: by balls b > 0 and b' < 0 up to a = 6 sigma, falling to 0 beyond",
        "certified",
        lambda: everywhere(lambda ball: _unit_bias(ball) > 0 and Q(ball) > 0, 0.0, TAIL),
    ),
)


def _unit_bias(t: Value) -> Value:
    return phi(t) - t * Q(t)


_score, _other_score = sp.symbols("score score_j", real=True)
_rest = sp.Symbol("rest", nonnegative=True)  # exponentials of all scores that are not named, however many
_own, _others = z3.Reals("own others")
_gate, _l = z3.Reals("gate l")


def _gates_sum_to_one() -> bool:
    """For every l, the others of score j having the exponentials sum_k exp(score_k) - exp(score_j)."""
    j, l, scores = sp.Symbol("j"), sp.Symbol("l", integer=True, positive=True), sp.IndexedBase("score")  # noqa: E741
    every = sp.Symbol("every", positive=True)
    gate = own_gate(scores[j], every - exp(scores[j]))
    whole = sp.Sum(exp(scores[j]), (j, 1, l))
    return equal(sp.Sum(gate, (j, 1, l)), whole / every) and equal((whole / every).subs(every, whole), 1)


def _gate_is_a_fraction() -> bool:
    """Own over own and other exponentials, which are positive: between 0 and 1 for two tokens or more."""
    fraction = _own / (_own + _others)
    return proved(z3.And(fraction > 0, fraction < 1), _own > 0, _others > 0) and equal(
        own_gate(_score, _rest), exp(_score) / (exp(_score) + _rest)
    )


def _softmax_gradient() -> bool:
    """One token, or any pair of them, among any number of others."""
    alone = own_gate(_score, _rest)
    gate = own_gate(_score, exp(_other_score) + _rest)
    other = own_gate(_other_score, exp(_score) + _rest)
    return equal(sp.diff(alone, _score), alone * (1 - alone)) and equal(
        sp.diff(gate, _other_score), -gate * other
    )


GATES = (
    Step("sum_j G_j = 1, for every number l of tokens", "exact", _gates_sum_to_one),
    Step("0 < G_j < 1: own and other exponentials are positive", "certified", _gate_is_a_fraction),
    Step(
        "sum_j G_j^2 <= 1: term by term, G^2 <= G for 0 <= G <= 1",
        "certified",
        lambda: proved(_gate**2 <= _gate, _gate >= 0, _gate <= 1),
    ),
    Step(
        "sum_j G_j^2 >= 1/l: term by term, G^2 >= 2 G/l - 1/l^2, and 2/l - l/l^2 = 1/l",
        "certified",
        lambda: proved(
            z3.And(_gate**2 >= 2 * _gate / _l - 1 / _l**2, 2 / _l - _l / _l**2 == 1 / _l), _l >= 1
        ),
    ),
)

SOFTMAX_GRADIENT = Step(
    "softmax gradient: dG_i/dscore_j = G_i (1[i = j] - G_j), for every l", "exact", _softmax_gradient
)


def covariance(sizes: Value, x: Value, other: Value) -> sp.Expr:
    """Cov(w~ . x, w~ . x') in R^d for independent noise of standard deviation `sizes`: E z_i z_j is 1 if i = j, or 0.

    It is a sum over i and j. That over j is taken for any one i, that over i is left.
    """
    place = sp.Symbol("place", integer=True, positive=True)
    row = total(dot(at(sizes * x, place) * sizes * other, delta(place)), place)
    return summed(row, place)


PCM_RANGE = (
    Step(
        f"{PCM_LOWEST} <= sigma_g <= {PCM_HIGHEST} microsiemens (pcm, c = 1) for 0 <= |w|/w_max <= 1",
        "certified",
        lambda: proved(
            z3.And(_pcm(_gate) >= z3.RealVal(PCM_LOWEST), _pcm(_gate) <= z3.RealVal(PCM_HIGHEST)),
            _gate >= 0,
            _gate <= 1,
        ),
    ),
)


def _pcm(r: Value) -> Value:
    """The polynomial of theory.hardware, in microsiemens."""
    return PCM_G_MAX * PROGRAMMING_NOISE["pcm"].sigma(r)
