"""How does training lead to a gain, with which probability? Derivation of E, from initialisation to the tolerance.

First, what routers do with tokens. Second, what a sample adds to a weight, as long as no margin has reached 1. Third,
sums over samples and draws of the initialisation stay within bounds, with Ville's inequality for all steps at once.
Fourth, MaxNNScore ranks the specialists. Fifth, B bounds the tolerance with the frequent specialists digital from
below, and Berry-Esseen that of all analog from above.

An expert has the sign a. Its own token is a o_1 (or a o_2); the other kind's tokens are +-o_2 (or +-o_1), and tokens
without a label are o_3 ... o_d. In a sample a token without a label would get the gate v were the own token absent.
"""

import sympy as sp
import z3
from flint import arb

from theory.derivations import Step, equal, lemmas, proved
from theory.derivations.bound import INDEPENDENT
from theory.derivations.bound import STEPS as BOUND
from theory.derivations.growth import GRADIENT
from theory.derivations.upper import BERRY_ESSEEN_STEP
from theory.derivations.upper import STEPS as UPPER
from theory.end_to_end import (
    EVENTS,
    INSTANCES,
    binomial_tail,
    bounds,
    class_counts,
    deviation,
    digital_floor,
    evaluate,
    failure_probability,
    frequent_lyapunov,
    gate_rest,
    gaussian_size,
    least_margin,
    least_successes,
    most_decrease,
    most_mean,
    most_output,
    noise_sd,
    rare_lyapunov,
    rise_exponent,
    rise_size,
    step_unit,
)
from theory.functions import Phi, Q, exp, phi, relu, sqrt
from theory.growth import own_gate
from theory.moments import relu_mean, relu_variance
from theory.tolerance import BERRY_ESSEEN, OWN_SCORE, concentration, error_bound, tolerable_noise

score, other, x, t, g = sp.symbols("score other x t g", real=True)
theta, V, L, delta, count, std = sp.symbols("theta V L delta count std", positive=True)
eta, m, B, T, d, n, l, N, p = sp.symbols("eta m B T d n l N p", positive=True)  # noqa: E741
M, w, mu, own, sigma, c, rest, gate = sp.symbols("M w mu own sigma c rest gate", positive=True)
variance, third = sp.symbols("variance third", positive=True)
i, j = sp.symbols("i j", integer=True, nonnegative=True)

VILLE = (
    "Howard, Ramdas, McAuliffe, Sekhon, Probability Surveys 17 (2020) 257-317, section 2: Ville's inequality"
)
JENSEN = (
    "Jensen's inequality, conditional on R: Durrett, Probability: Theory and Examples (2019), Theorem 4.1.10"
)


# Routing


def _gate_slopes() -> bool:
    """A gate rises with its own score by G (1 - G), and falls with the sum of the others' exponentials."""
    others = sp.Symbol("others", positive=True)
    value = own_gate(score, others)
    fall = exp(score) / (exp(score) + others) ** 2
    return bool(
        equal(sp.diff(value, score), value * (1 - value))
        and equal(sp.diff(value, others), -fall)
        and fall.is_positive
    )


def _others() -> bool:
    """Of l - 1 other scores from -score to score, exponentials sum to (l - 1) exp(-score) to (l - 1) exp(score)."""
    one, least, most, total, number = z3.Reals("e^s e^-score e^score sum l-1")
    return proved(  # one more score, by induction
        z3.And(total + one >= (number + 1) * least, total + one <= (number + 1) * most),
        *(total >= number * least, total <= number * most, one >= least, one <= most, number >= 0),
    )


def _order() -> bool:
    """The own token comes first, and its opposite after the n - 1 >= l tokens without a label."""
    size, token = z3.Reals("score token")
    own_score = z3.RealVal(str(OWN_SCORE))
    return proved(
        z3.And(own_score > token, -own_score < token), size < own_score, token <= size, token >= -size
    )


def _rest() -> bool:
    """u = e^s/(e^6 + R) <= rest v, v = e^s/S, where S <= l e^score and rest = l e^score/e^6."""
    exponential, total, remaining, most, own_exponential, ratio = z3.Reals(
        "e^s S R l*e^score e^6 l*e^score/S"
    )
    positive = (exponential > 0, own_exponential > 0, total > 0, remaining >= 0)
    bound = (
        proved(exponential / (own_exponential + remaining) <= exponential / own_exponential, *positive)
        and proved(most / total >= 1, *positive, total <= most)
        and proved(
            exponential / own_exponential <= ratio * (exponential / own_exponential), *positive, ratio >= 1
        )
    )
    return bound and equal(gate_rest(other, score, l), l * exp(score) / exp(other))


def _leak_lowers() -> bool:
    """A token of score 0 is selected in place of one of score below 0: sums grow, gates fall."""
    exponential, total, lowest = z3.Reals("e^s S e^lowest")
    return proved(
        exponential / (total - lowest + 1) <= exponential / total,
        *(exponential > 0, lowest > 0, lowest <= 1, total > lowest),
    )


# What a sample adds


def _sample() -> bool:
    """-eta dL/dv for a weight v on a token, of one sample of B with the label y: a y G eta/(m B), 0 if inactive."""
    a, y, G = sp.symbols("a y G", real=True)  # noqa: N806
    v = sp.Symbol("v", positive=True)

    def added(weight: sp.Expr) -> sp.Expr:
        return -eta * sp.diff((1 - y * a * (G * relu(weight) + rest) / m) / B, v)

    return equal(added(v), a * y * G * step_unit(eta, m, B)) and added(-v) == 0


def _own_rises() -> bool:
    """v = a w . o on a direction with a label: token +-o comes with the label +-1, and both raise v, of either sign."""
    G, v = sp.symbols("G v", positive=True)  # noqa: N806
    for a in (1, -1):
        for sign in (1, -1):  # of v; the active token is sign a o, whose label is sign a
            value = sign * v
            loss = 1 - (sign * a) * a * G * relu(sign * value) / m
            if not equal(-sp.diff(loss, v) * sign, G / m):
                return False
    return True


def _stays_below() -> bool:
    """Induction over steps: a weight is v_0 + S while it is positive; once it is not, it stands still above -low."""
    start, total, value, rise, added, drop, low = z3.Reals("v_0 S v top x drop low")

    def invariant(value: z3.ArithRef, total: z3.ArithRef) -> z3.BoolRef:
        return z3.And(z3.Or(value == start + total, value <= 0), value <= low + rise, value >= -low)

    step = z3.If(value > 0, value + added, value)
    given = (start <= low, start >= -low, drop <= low, drop >= 0, rise >= 0, added >= -drop)
    return proved(invariant(start, z3.RealVal(0)), *given) and proved(
        z3.And(invariant(step, total + added), z3.Or(step == start + total + added, step <= 0)),
        *given,
        invariant(value, total),
        total <= rise,
        total + added <= rise,
    )


# Sums over samples, at all steps at once


def _chords() -> bool:
    """exp(s g) is convex in g: on [0, 1] at most 1 + g (exp(s) - 1), for s of either sign."""
    s = sp.Symbol("s", real=True, nonzero=True)
    chord = 1 + g * (exp(s) - 1)
    return bool(
        equal(sp.diff(exp(s * g), g, 2), s**2 * exp(s * g))
        and (s**2 * exp(s * g)).is_positive
        and equal(chord.subs(g, 0), 1)
        and equal(chord.subs(g, 1), exp(s))
    )


def _exponential_mean() -> bool:
    """E exp(theta x) - 1 is at most v (A - 1)/(2 A) (p (rest A - 1) + (1 - p) (A - 1)), A = exp(theta): 0 at our theta.

    By the chords, u <= rest v and g <= v.
    """
    A, u, v, frequency, left, g = z3.Reals("A u v p rest g")  # noqa: N806
    mean = frequency / 2 * (u * (A - 1) + v * (1 / A - 1)) + (1 - frequency) * g * (A + 1 / A - 2) / 2
    most = frequency / 2 * v * (left * (A - 1) + 1 / A - 1) + (1 - frequency) * v * (A + 1 / A - 2) / 2
    bounded = proved(
        mean <= most,
        *(v >= 0, u >= 0, u <= left * v, g >= 0, g <= v, A >= 1, frequency >= 0, frequency <= 1),
    )
    power, part, free = sp.symbols("A rest v", positive=True)
    symbolic = p / 2 * free * (part * (power - 1) + 1 / power - 1)
    symbolic += (1 - p) * free * (power + 1 / power - 2) / 2
    factors = free * (power - 1) / (2 * power) * (p * (part * power - 1) + (1 - p) * (power - 1))
    return bounded and equal(symbolic, factors) and equal(factors.subs(power, exp(rise_exponent(p, part))), 0)


def _rise() -> bool:
    """exp(-theta x) = delta/count at x = ln(count/delta)/theta."""
    return equal(exp(-theta * rise_size(count, delta, theta)), delta / count)


def _remainder() -> bool:
    """exp(x) - 1 - x = x^2 int_0^1 (1 - t) exp(t x) dt: not negative, and its ratio to x^2 rises with x."""
    integral = sp.integrate((1 - t) * exp(t * x), (t, 0, 1))
    known = sp.Symbol("x", real=True, nonzero=True)
    return equal(sp.simplify(integral.subs(x, known)) * known**2, exp(known) - 1 - known) and equal(
        sp.diff((1 - t) * exp(t * x), x), t * (1 - t) * exp(t * x)
    )


def _factorial() -> bool:
    """2 3^(k - 2) <= k! by induction from k = 2, and the two series that this compares."""
    k, factorial, power = z3.Reals("k k! 2*3^(k-2)")
    grows = proved(3 * power <= (k + 1) * factorial, power <= factorial, power > 0, k >= 2)
    q = theta / 3
    partial = theta**2 / 2 * (1 - q**j) / (1 - q)  # of j terms
    geometric = (
        equal(sp.simplify(partial.subs(j, j + 1) - partial), theta**2 / 2 * q**j) and partial.subs(j, 0) == 0
    )
    k_ = sp.Symbol("k", integer=True)
    series = sp.summation(theta**k_ / sp.factorial(k_), (k_, 2, sp.oo))
    return grows and geometric and equal(series, exp(theta) - 1 - theta) and sp.factorial(2) == 2


def _bernstein() -> bool:
    """At theta = x/(V + x/3) the exponent -theta x + V theta^2/(2 (1 - theta/3)) is -x^2/(2 (V + x/3)), = -L."""
    y = sp.Symbol("y", positive=True)
    best = y / (V + y / 3)
    exponent = -best * y + V * best**2 / (2 * (1 - best / 3))
    solved = deviation(V, L)
    return (
        equal(exponent, -(y**2) / (2 * (V + y / 3)))
        and equal(solved**2, 2 * L * (V + solved / 3))
        and equal(1 - best / 3, V / (V + y / 3))
    )


def _indicator() -> bool:
    """Terms 1[A] - q and q - 1[A] are at most 1, of mean 0 and second moment q (1 - q) <= q."""
    q = sp.Symbol("q", positive=True)
    chance = z3.Real("q")
    moments = [equal(q * (sign * (1 - q)) ** 2 + (1 - q) * (sign * -q) ** 2, q * (1 - q)) for sign in (1, -1)]
    return all(moments) and proved(
        z3.And(chance * (1 - chance) <= chance, 1 - chance <= 1, chance <= 1), chance >= 0, chance <= 1
    )


def _counts() -> bool:
    low, high = class_counts(T * B, p, L)
    mean = T * B * (p / 2)
    return equal(mean - low, deviation(mean, L)) and equal(high - mean, deviation(mean, L))


def _decrease() -> bool:
    """Copies of a token are binomial: E = N q, E squared = N q (1 - q) + (N q)^2; half of the samples have a label."""
    trials, chance = n - 1, 1 / (d - 2)
    first, second = trials * chance, trials * chance * (1 - chance) + (trials * chance) ** 2
    moments = B * gate * first / 2 + deviation(B * gate**2 * second / 2, L)
    return equal(most_decrease(gate, n, d, B, L) ** 1, moments)


# Initialisation


def _normal_sizes() -> bool:
    """count normals, two tails each, exp(-t^2/2)/2 a tail, t = size/std: delta in all."""
    size = gaussian_size(std, count, delta)
    return equal(2 * count * lemmas.gaussian_tail(size / std), delta)


def _tail_falls() -> bool:
    """d/dq of P(at most j of N) telescopes to -N C(N - 1, j) q^j (1 - q)^(N - 1 - j) < 0, for every N and j.

    A term t_h = C(N, h) q^h (1 - q)^(N - h) has the slope h t_h/q - (N - h) t_h/(1 - q), and the first part of
    t_(i + 1) is the second part of t_i.
    """
    trials = sp.Symbol("N", integer=True, positive=True)
    q, weight, hits = sp.symbols("q C h", positive=True)
    term = weight * q**hits * (1 - q) ** (trials - hits)
    slope = equal(sp.diff(term, q) / term, hits / q - (trials - hits) / (1 - q))
    # The coefficients of neighbours cancel: (i + 1) C(N, i + 1) = N C(N - 1, i) = (N - i) C(N, i).
    middle = trials * sp.binomial(trials - 1, i)
    telescopes = [
        equal(sp.combsimp((i + 1) * sp.binomial(trials, i + 1) / middle), 1),
        equal(sp.combsimp((trials - i) * sp.binomial(trials, i) / middle), 1),
    ]
    sizes = {(instance.setting.n - 1, instance.setting.l - 1) for instance, _ in INSTANCES.values()}
    code = all(
        equal(
            binomial_tail(number, most, q),
            sum(sp.binomial(number, hits) * q**hits * (1 - q) ** (number - hits) for hits in range(most + 1)),
        )
        for number, most in sizes | {(number, most) for number in range(1, 7) for most in range(number + 1)}
    )
    return slope and all(telescopes) and code


def _failure() -> bool:
    return equal(failure_probability(N, m, delta), len(EVENTS) * delta + 2 * N * Phi(sp.Integer(0)) ** m)


# Margins and ranking


def _output() -> bool:
    """G h + (1 - G) o <= h + (1 - gate) o for gate <= G <= 1; then h adds up to N (share of active) own."""
    G, least, output, remaining, share, most, number = z3.Reals("G gate h o share own N")  # noqa: N806
    one = proved(
        G * output + (1 - G) * remaining <= output + (1 - least) * remaining,
        *(least <= G, G <= 1, least >= 0, output >= 0, remaining >= 0),
    )
    total = z3.Real("sum h")
    return one and proved(
        total + number * (1 - least) * remaining <= most_output(number, share, least, most, remaining),
        total <= number * share * most,
    )


def _norms() -> bool:
    """A norm is at least each of its components, and at most the root of the sum of what bounds their squares."""
    component, square, bound = z3.Reals("w rest bound")
    return proved(component * component + square >= component * component, square >= 0) and proved(
        component * component <= bound * bound, component <= bound, component >= -bound
    )


def _margin() -> bool:
    """Specialists of the label add gate share own each at least, experts of the other sign take `against` at most."""
    G, least, output, total, number, share, least_own, taken, against = z3.Reals(  # noqa: N806
        "G gate h sum N share own taken against"
    )
    return proved(G * output >= least * output, least <= G, output >= 0) and proved(
        least * total - taken >= least_margin(number, share, least, least_own, against),
        *(total >= number * share * least_own, taken <= against, least >= 0),
    )


# The tolerance


def _floor() -> bool:
    """B for N rare specialists of each sign: bias N M/sqrt(2 pi), Lipschitz constant sqrt(2 N M^2 1^2/m)."""
    ours = digital_floor(mu, M, N, m, delta)
    return equal(
        ours,
        tolerable_noise(
            mu, N * M / sqrt(2 * sp.pi), sqrt(sp.summation(M**2 / m, (j, 1, 2 * N))), concentration(delta)
        ),
    )


def _mean_of_one() -> bool:
    """relu_mean(-A) >= relu_mean(0) - A/2, as the slope Phi(a/sigma) rises to 1/2 at a = 0."""
    a = sp.Symbol("a", real=True)
    return bool(
        equal(sp.diff(relu_mean(a, sigma), a), Phi(a / sigma))
        and equal(sp.diff(Phi(a / sigma), a), phi(a / sigma) / sigma)
        and (phi(a / sigma) / sigma).is_positive
        and equal(Phi(sp.Integer(0)), sp.Rational(1, 2))
        and equal(relu_mean(sp.Integer(0), sigma), sigma / sqrt(2 * sp.pi))
    )


def _worse_label() -> bool:
    """sum a_s y M_s has opposite signs for the two labels; in the sum of means its part is not above 0 for one."""
    rare, frequent, low, experts, mine, theirs = z3.Reals("rare frequent low experts mine theirs")
    mean = rare + frequent + mine - (theirs - experts * low / 2)
    return proved(mean <= most_mean(rare, frequent, experts, low), mine <= theirs) and proved(
        z3.Or(mine <= theirs, theirs <= mine)
    )


def _mean_error() -> bool:
    first, second, failure = z3.Reals("first second failure")
    return proved((first + second) / 2 >= failure, first >= 2 * failure, second >= 0)


def _variance_scales() -> bool:
    a = sp.Symbol("a", real=True)
    return equal(relu_variance(c * a, c * sigma), c**2 * relu_variance(a, sigma))


def _sd() -> bool:
    """2 N experts with m neurons: variance (c w G/m)^2 each, sum of G^2 at least 1/l."""
    total = 2 * N * m * (c * w / m) ** 2 * variance / l
    return equal(c * noise_sd(w, N, variance, l, m), sqrt(total))


def _cubes() -> bool:
    """y^3 <= y_max y^2, and the largest y = G c M over the root of W = sum y^2 is at most that at G M = w_max."""
    value, most, extra = z3.Reals("y most K")
    return proved(value * value * value <= most * value * value, value >= 0, value <= most) and proved(
        value * value / (value * value + extra) <= most * most / (most * most + extra),
        *(value >= 0, value <= most, most > 0, extra > 0),
    )


def _frequent_fraction() -> bool:
    """third (y W/m^2)/(variance W/m)^(3/2) = third/variance^(3/2) y/sqrt(m W), W = y^2 + (2 N - 1) own^2/l."""
    excess = sp.Symbol("excess", nonnegative=True)
    count = sp.Rational(1, 2) + excess  # N
    W = M**2 + (2 * count - 1) * own**2 / l  # noqa: N806
    fraction = third * M * W / m**2 / (variance * W / m) ** sp.Rational(3, 2)
    return equal(
        sp.powdenest(fraction**2), sp.powdenest(frequent_lyapunov(own, M, count, variance, third, l, m) ** 2)
    )


def _rare_fraction() -> bool:
    """2 N m terms with |coefficient|^3 <= (c M/m)^3 G^3, sum of G^3 at most 1, third moments 8/sqrt(pi)."""
    total = 2 * N * m * (c * M / m) ** 3 * 8 / sqrt(sp.pi)
    return equal(total / (c * sigma) ** 3, rare_lyapunov(M, N, m, sigma))


def _copy() -> bool:
    """(ReLU(a + sigma z) - ReLU(a + sigma z'))^2 <= sigma^2 (z - z')^2, and E |sqrt(2) z|^3 = 8/sqrt(pi)."""
    shift, scale, draw, other = z3.Reals("a sigma z z'")
    gap = relu(shift + scale * draw) - relu(shift + scale * other)
    close = proved(gap**2 <= (scale * (draw - other)) ** 2, scale > 0)
    y = sp.Symbol("y", positive=True)
    density = exp(-(y**2) / 2) / sqrt(2 * sp.pi)
    moment = 2 * sp.integrate((sqrt(sp.Integer(2)) * y) ** 3 * density, (y, 0, sp.oo))
    return close and equal(moment, 8 / sqrt(sp.pi))


def _cube_is_convex() -> bool:
    y = sp.Symbol("y", positive=True)
    return bool(sp.diff(y**3, y, 2).is_positive) and equal(sp.Abs(-y) ** 3, y**3)


def _powers_of_gates() -> bool:
    """G^3 <= G for gates from 0 to 1, whose sum is 1."""
    value = z3.Real("G")
    return proved(value * value * value <= value, value >= 0, value <= 1)


def _above_the_ceiling() -> bool:
    """c >= ceiling: the mean over c sd is at most `quantile`, and |w . x|/(c M_s) at most `offset`."""
    mean, noise, sd, quantile, size, offset, least, largest = z3.Reals("mean c sd q size offset own M_s")
    return proved(
        mean / (noise * sd) <= quantile,
        *(sd > 0, quantile > 0, noise > 0, noise >= mean / (quantile * sd)),
    ) and proved(
        size / (noise * largest) <= offset,
        *(size >= 0, offset > 0, least > 0, largest >= least, noise > 0, noise >= size / (offset * least)),
    )


def _error() -> bool:
    """Q falls and Q(mean/sd) - 0.56 third/sd^3 is `error_bound`: at least 2 FAILURE by the choice of `quantile`."""
    ours = error_bound(x, third, sigma)
    return equal(sp.diff(Q(x), x), -phi(x)) and equal(
        sp.nsimplify(ours), sp.nsimplify(Q(x) - BERRY_ESSEEN * third / sigma**3)
    )


def _gain() -> bool:
    digital, analog, floor, ceiling = z3.Reals("digital analog floor ceiling")
    return proved(
        digital / analog >= floor / ceiling,
        *(digital >= floor, analog <= ceiling, analog > 0, floor > 0, ceiling > 0),
    )


def _instances() -> bool:
    """By balls: every instance ranks, and those that claim a gain have it; counts of coins exactly."""
    for instance, kappa in INSTANCES.values():
        found = evaluate(instance, bounds(instance).choice, arb)
        if not found.ranks or not instance.p <= 0.05:
            return False
        if kappa is not None and not found.kappa > kappa:
            return False
        setting = instance.setting
        for trials, chance in (
            (setting.d - 2, instance.delta / setting.experts),
            (setting.N_F * setting.m, instance.delta / 8),
            (setting.N_R * setting.m, instance.delta / 8),
        ):
            most = least_successes(trials, chance) - 1
            if most >= 0 and not binomial_tail(trials, most, sp.Rational(1, 2)) <= sp.Rational(chance):
                return False
    return True


_THIRD_MOMENT_GROWS = tuple(step for step in UPPER["U"] if step.equation.startswith(("d/da", "h(R) + mu^2")))

STEPS = {
    "E": (
        *lemmas.GATES,
        Step(
            "l - 1 other exponentials sum to (l - 1) e^(+-score), by induction over l", "certified", _others
        ),
        Step("a gate rises with its own score by G (1 - G) and falls with the others", "exact", _gate_slopes),
        Step(
            "scores below 6: the own token is always selected, its opposite never (n > l)",
            "certified",
            _order,
        ),
        Step("own token present: other gates are at most l e^(score - 6) times v", "certified", _rest),
        Step(
            "the other kind's token has the score 0, whatever its sign, and only lowers gates: g <= v",
            "certified",
            _leak_lowers,
        ),
        Step(
            "P(at most l - 1 of n - 1 tokens score above 0) falls with their share; the code for n <= 7 and instances",
            "exact",
            _tail_falls,
        ),
        *GRADIENT,
        Step(
            "a sample adds a y G eta/(m B) to an active weight, and nothing to an inactive one",
            "exact",
            _sample,
        ),
        Step(
            "on directions with a label every sample raises a w . o, as the label is the token's sign",
            "exact",
            _own_rises,
        ),
        Step(
            "a weight without a label: v_0 + S while positive, then still; from -low to low + sup S",
            "certified",
            _stays_below,
        ),
        Step("exp(s g) <= 1 + g (exp(s) - 1) for g from 0 to 1", "exact", _chords),
        Step(
            "E exp(theta x) <= 1 at theta = -ln(1 - p (1 - rest))",
            "certified",
            _exponential_mean,
        ),
        Step("P(sup_t S_t >= x) <= exp(-theta x) if E exp(theta x_i) <= 1", "cited", _rise, VILLE),
        Step(
            "(exp(x) - 1 - x)/x^2 rises: exp(theta x) <= 1 + theta x + x^2 (exp(theta) - 1 - theta), x <= 1",
            "exact",
            _remainder,
        ),
        Step(
            "exp(theta) - 1 - theta <= theta^2/(2 (1 - theta/3)), as k! >= 2 3^(k - 2)", "exact", _factorial
        ),
        Step(
            "sums of second moments V exceed x, x^2 = 2 L (V + x/3), with probability exp(-L): Bernstein",
            "exact",
            _bernstein,
        ),
        Step("indicators: terms at most 1, second moment at most the probability", "certified", _indicator),
        Step("counts of a kind and label: T B p/2 within that deviation", "exact", _counts),
        Step(
            "one batch: first and second moments of a token's gates, gate (n - 1)/(d - 2) and copies",
            "exact",
            _decrease,
        ),
        *lemmas.GAUSSIAN_TAIL,
        Step("count normals exceed `gaussian_size` with probability delta at most", "exact", _normal_sizes),
        Step("p = 8 delta + 2 N_F 2^-m", "exact", _failure),
        Step(
            "outputs of a kind's specialists: at most N (share own + (1 - gate) other)", "certified", _output
        ),
        Step("norms: at least the own weight, at most the root of the sum of squares", "certified", _norms),
        Step("margins: at least N share gate own less what the other sign outputs", "certified", _margin),
        *BOUND["B"],
        Step("B, frequent digital: M_s <= M, g_s <= 1, N_R of each sign", "exact", _floor),
        INDEPENDENT,
        Step("E ReLU(-A + sigma z) >= sigma/sqrt(2 pi) - A/2", "exact", _mean_of_one),
        Step(
            "for one of the labels the biases c M_s/sqrt(2 pi) add nothing: E y f~ <= rare + frequent + experts low/2",
            "certified",
            _worse_label,
        ),
        Step(
            "a rare class is wrong half as often, at least, as that label's inputs", "certified", _mean_error
        ),
        *_THIRD_MOMENT_GROWS,
        Step("Var ReLU(c a + c sigma z) = c^2 Var ReLU(a + sigma z)", "exact", _variance_scales),
        Step("sd/c >= own sqrt(2 N_F variance/(l m)), from frequent specialists alone", "exact", _sd),
        Step("sum y^3 <= y_max sum y^2; y/sqrt(y^2 + K) rises with y", "certified", _cubes),
        Step("third moments over sd^3, frequent", "exact", _frequent_fraction),
        Step("E |R - E R|^3 <= E |R - R'|^3, R' an independent copy", "cited", _cube_is_convex, JENSEN),
        Step("|R - R'| <= sigma |z - z'|, and E |z - z'|^3 = 8/sqrt(pi)", "certified", _copy),
        Step("sum G^3 <= sum G = 1", "certified", _powers_of_gates),
        Step("third moments over sd^3, rare", "exact", _rare_fraction),
        BERRY_ESSEEN_STEP,
        Step("above the ceiling mean/sd <= quantile and offsets are small", "certified", _above_the_ceiling),
        Step(
            "P(y f~ <= 0) >= Q(quantile) - error, as Q falls; a choice is allowed if that is 2 x .05",
            "exact",
            _error,
        ),
        Step("gain >= floor/ceiling = kappa rho", "certified", _gain),
        Step("instances: p <= .05, ranking, and kappa as stated, by balls", "certified", _instances),
    ),
}
