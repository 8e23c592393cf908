"""How much noise is tolerated at least? Derivation of B, B-mean, B-exp and Bu.

y f~ = sum_s y a_s sum_j G_j (1/m) sum_r ReLU(w_r . x_j + c M_r z_r . x_j), z_r standard normal. What holds of every
expert, neuron and token is proved for one of them with symbols. Sums follow term by term, or by induction over terms.
Vectors have any number d of coordinates. M_r = M gives the granularity "layer"; different M_r give "column".
"""

import sympy as sp
import z3

from theory.derivations import Step, at, dot, equal, lemmas, proved, total, vectors
from theory.functions import Phi, Value, exp, phi, pi, relu, sqrt
from theory.moments import relu_bias, relu_mean
from theory.tolerance import concentration, failure_bound, relu_exponential, tail_events, tolerable_noise

a, b, y = sp.symbols("a b y", real=True)
sigma, c, m, M, M_max, g, mu, k = sp.symbols("sigma c m M M_max g mu k", positive=True)
beta, L, theta, A, d = sp.symbols("beta L theta A d", positive=True)
failure = sp.Symbol("delta", positive=True)
r = sp.Symbol("r", integer=True)
place = sp.Symbol("place", integer=True, positive=True)
above = sp.Symbol("above", positive=True)
EVERY_SIGN = (above, -above, sp.Integer(0))  # of w . x
z = sp.Symbol("z", real=True)

CONCENTRATION = (
    "Boucheron, Lugosi, Massart, Concentration Inequalities (2013), Theorem 5.6, for -F; proved in Lean 4 by Zhang,"
    " Lee, Liu (arXiv 2602.02285), lean-stat-learning-theory: gaussian_lipschitz_concentration_one_sided"
)


def _squared_length(squared: Value, along: Value, weight: Value, token: Value) -> Value:
    """|v + q H x|^2, from |v|^2, v . x, q H and |x|^2."""
    return squared + 2 * weight * along + weight**2 * token


def _squared_gradient() -> bool:
    """A token more, of length 1 and orthogonal to all before, adds (q H)^2 to |sum_j p_j G_j x_j|^2 and stays so.

    v is the sum over the tokens before. v . u is 0 if every one of them is orthogonal to u, as a sum of theirs.
    """
    v, x, u, before = vectors("v x u before")
    qh, g = sp.symbols("qH pG", real=True)
    longer = v + qh * x
    return (
        equal(dot(longer, longer), _squared_length(dot(v, v), dot(v, x), qh, dot(x, x)))
        and equal(_squared_length(a, 0, qh, 1), a + qh**2)
        and equal(dot(v + g * before, u), dot(v, u) + g * dot(before, u))
    )


def _worst_pattern() -> bool:
    """The gradient is longest with all ReLUs active (p = 1), whatever p from 0 to 1 they have (between at a kink)."""
    p, q, G, H, C = z3.Reals("p q G H C")  # noqa: N806
    pattern = (p >= 0, p <= 1, q >= 0, q <= 1, G >= 0, H >= 0)
    orthonormal = proved((p * G) ** 2 <= G**2, *pattern)
    correlated = proved(p * q * G * H * C <= G * H * z3.If(C > 0, C, 0), *pattern)
    return orthonormal and correlated


def _lipschitz_of_relu() -> bool:
    u, v = z3.Reals("u v")
    gap, distance = relu(u) - relu(v), u - v
    return proved(gap**2 <= distance**2)


def _opposite_tokens() -> bool:
    """G ReLU(u) + H ReLU(-u) changes by max(G, H) |u - v| at most, and max(G, H)^2 <= G^2 + H^2."""
    gate, other, u, v = z3.Reals("G H u v")
    change = gate * relu(u) + other * relu(-u) - gate * relu(v) - other * relu(-v)
    most = z3.If(gate > other, gate, other)
    return proved(
        z3.And(change <= most * abs(u - v), -change <= most * abs(u - v), most**2 <= gate**2 + other**2),
        gate >= 0,
        other >= 0,
    )


def _noisy_output(w: Value, draw: Value, x: Value) -> Value:
    """w . x with the noise c M z on the weights."""
    return dot(w, x) + c * M * dot(draw, x)


def _gradient_of_one_neuron() -> bool:
    """The derivative by any one coordinate of the draw, of the d that there are."""
    w, draw, x = vectors("w z x")
    slope = sp.diff(_noisy_output(w, draw, x), at(draw, place))
    return equal(total(slope, place), c * M * at(x, place))


def _layer_and_column() -> bool:
    """Squared Lipschitz constant: sum over neurons of (c M_r g/m)^2; equal M_r make it (c M g)^2/m."""
    return equal(sp.summation((c * M * g / m) ** 2, (r, 1, m)), (c * M * g) ** 2 / m)


def _bias_per_term() -> bool:
    """coefficient b >= -s (negative part of the coefficient) for 0 <= b <= s, whatever the coefficient's sign."""
    coefficient, bias, s = z3.Reals("coefficient bias s")
    return proved(coefficient * bias >= -z3.If(coefficient < 0, -coefficient, 0) * s, bias >= 0, bias <= s)


def _bias_of_an_expert() -> bool:
    """Every neuron and token costs c M/sqrt(2 pi) at most: averaged over m neurons, weighed by gates of l tokens."""
    gate = sp.IndexedBase("G")
    count, tokens, number = sp.symbols("m l j", integer=True, positive=True)
    one = c * M / sqrt(2 * pi(c))
    neurons = sp.summation(one / count, (r, 1, count))
    expert = sp.Sum(gate[number] * neurons, (number, 1, tokens))
    gates, most = z3.Reals("gates most")
    return equal(expert, one * sp.Sum(gate[number], (number, 1, tokens))) and proved(
        most * gates <= most, most >= 0, gates >= 0, gates <= 1
    )


def _algebra() -> bool:
    """c <= tolerable_noise makes the mean, mu - c beta at least, exceed 0 by tau Lipschitz constants c L."""
    noise, margin, bias, lipschitz, tau = z3.Reals("c mu beta L tau")
    return proved(
        margin - noise * bias >= tau * noise * lipschitz,
        noise <= tolerable_noise(margin, bias, lipschitz, tau),
        noise >= 0,
        margin > 0,
        bias >= 0,
        lipschitz > 0,
        tau > 0,
    )


def _theorys_form() -> bool:
    biases, squares = sp.symbols("biases squares", positive=True)  # sum of M_s, of M_s^2 g_s^2
    ours = tolerable_noise(mu, biases / sqrt(2 * pi(mu)), sqrt(squares / m), concentration(failure))
    return equal(
        ours.subs(failure, sp.exp(-(k**2))),
        (mu / (biases / sqrt(2 * sp.pi) + sqrt(2 * sp.log(1 / failure) / m) * sqrt(squares))).subs(
            failure, sp.exp(-(k**2))
        ),
    )


def _monotone() -> bool:
    """Less bias, a smaller Lipschitz constant or a larger delta never lower the bound."""
    margin, bias, lipschitz, tau = z3.Reals("mu beta L tau")
    less_bias, less_lipschitz, less_tau = z3.Reals("beta_ L_ tau_")
    return proved(
        tolerable_noise(margin, less_bias, less_lipschitz, less_tau)
        >= tolerable_noise(margin, bias, lipschitz, tau),
        *(margin > 0, less_bias >= 0, less_lipschitz > 0, less_tau > 0),
        *(bias >= less_bias, lipschitz >= less_lipschitz, tau >= less_tau),
    )


def _column_is_not_worse() -> bool:
    """M_r <= M, so that the mean of M_r is at most M and the mean of M_r^2 at most M^2, term by term."""
    column, layer = z3.Reals("M_r M")
    return proved(z3.And(column <= layer, column**2 <= layer**2), column >= 0, column <= layer)


def _delta_is_met() -> bool:
    return equal(failure_bound(concentration(failure) * L, L), failure)


_CONCENTRATE = Step(
    "P(F <= E F - t) <= exp(-t^2/(2 L^2)) for F of Lipschitz constant L of independent standard normals",
    "cited",
    lambda: _lipschitz_of_relu() and _worst_pattern(),
    CONCENTRATION,
)
_ONE_NEURON = (
    Step("|ReLU(u) - ReLU(v)| <= |u - v|", "certified", _lipschitz_of_relu),
    Step("d/dz_i (w . x + c M z . x) = c M x_i", "exact", _gradient_of_one_neuron),
)
_LIPSCHITZ = (
    *_ONE_NEURON,
    Step(
        "|sum_j p_j G_j x_j|^2 = sum_j p_j^2 G_j^2 for orthonormal tokens, by induction over tokens",
        "exact",
        _squared_gradient,
    ),
    Step(
        "active or not, p^2 G^2 <= G^2, and p q G H x.x' <= G H max(x.x', 0) if tokens correlate: all active is worst",
        "certified",
        _worst_pattern,
    ),
    Step(
        "x and -x in one input: G ReLU(u) + H ReLU(-u) has Lipschitz constant max(G, H) <= (G^2 + H^2)^(1/2)",
        "certified",
        _opposite_tokens,
    ),
    Step(
        "over neurons: sum_r (c M_r g/m)^2, with M_r = M (c M g)^2/m; over experts these add up",
        "exact",
        _layer_and_column,
    ),
)
_MEAN = (
    *lemmas.BIAS,
    *lemmas.GATES,
    Step(
        "E y f~ = mu + sum of coefficients times biases >= mu - c beta, term by term",
        "certified",
        _bias_per_term,
    ),
    Step(
        "an expert of the other sign loses (1/m) sum_r sum_j G_j c M/sqrt(2 pi) <= c M/sqrt(2 pi), by gates <= 1",
        "certified",
        _bias_of_an_expert,
    ),
)
_DELTA = Step("exp(-tau^2/2) = delta for tau = sqrt(2 ln(1/delta))", "exact", _delta_is_met)


# B-mean: the exact mean over a range of c


def _bias_grows() -> bool:
    """db/dsigma = phi(a/sigma) > 0, for a of either sign: ReLU(a) does not depend on sigma."""
    return all(
        equal(sp.diff(relu_bias(each, sigma), sigma), phi(each / sigma))
        and bool(phi(each / sigma).is_positive)
        for each in EVERY_SIGN
    )


def _slope_grows() -> bool:
    """In c, db/dc = sigma phi(a/(c sigma)), which has the slope a^2 phi/(c^3 sigma) >= 0."""
    return all(
        equal(sp.diff(relu_bias(each, c * sigma), c), sigma * phi(each / (c * sigma)))
        and equal(
            sp.diff(sigma * phi(each / (c * sigma)), c), each**2 / (c**3 * sigma) * phi(each / (c * sigma))
        )
        for each in EVERY_SIGN
    )


def _least_slope() -> bool:
    """For low <= c <= high a term's slope is at least that at low (coefficient > 0) or high."""
    coefficient, at_low, at_c, at_high = z3.Reals("coefficient low c high")
    return proved(
        coefficient * at_c >= coefficient * z3.If(coefficient > 0, at_low, at_high),
        at_low <= at_c,
        at_c <= at_high,
    )


def _mean_value() -> bool:
    """A mean of slope s at least is at least the mean at low plus min(s, 0) (high - low), for every c up to high."""
    mean, start, slope, least, low, noise, high = z3.Reals("mean start slope s low c high")
    return proved(
        mean >= start + z3.If(least < 0, least, 0) * (high - low),
        *(mean == start + slope * (noise - low), slope >= least, low <= noise, noise <= high),
    )


def _whole_range() -> bool:
    least, mean, tau, lipschitz, noise, high = z3.Reals("least mean tau L c high")
    return proved(
        mean >= tau * lipschitz * noise,
        least >= tau * lipschitz * high,
        *(mean >= least, noise <= high, tau > 0, lipschitz >= 0),
    )


def _contains_b() -> bool:
    """Slopes from 0 to the c of B are at least -beta, as sigma phi <= sigma/sqrt(2 pi), which B needs."""
    margin, bias, lipschitz, tau, slope = z3.Reals("mu beta L tau slope")
    bound = tolerable_noise(margin, bias, lipschitz, tau)
    return proved(
        margin + z3.If(slope < 0, slope, 0) * bound >= tau * lipschitz * bound,
        slope >= -bias,
        *(margin > 0, bias >= 0, lipschitz > 0, tau > 0),
    )


# B-exp: Markov's inequality for an exponential


def _exponential() -> bool:
    """E exp(theta ReLU(a + sigma z)): where the ReLU is on, the antiderivative is a shifted normal distribution."""
    t = sp.Symbol("t", real=True)
    shifted = exp(t * a + (t * sigma) ** 2 / 2) * Phi(z - t * sigma)
    on = sp.limit(shifted, z, sp.oo) - shifted.subs(z, -a / sigma)
    off = Phi(-a / sigma)
    return equal(sp.diff(shifted, z), exp(t * (a + sigma * z)) * phi(z)) and equal(
        off + on, relu_exponential(t, a, sigma)
    )


def _markov() -> bool:
    """1 <= exp(-kappa S) where S <= 0, as exp rises and is 1 at 0."""
    x = sp.Symbol("x", real=True)
    return bool(sp.diff(exp(x), x).is_positive) and exp(sp.Integer(0)) == 1


def _monotone_in_inverse() -> bool:
    """a/c lies between its values at the ends, and with it ReLU(a/c + sigma z) for every z."""
    slope, low, inverse, high, noise = z3.Reals("a low u high n")
    between = (low <= inverse, inverse <= high)
    least = z3.If(slope * low < slope * high, slope * low, slope * high)
    most = z3.If(slope * low < slope * high, slope * high, slope * low)
    u = slope * inverse
    return proved(
        z3.And(relu(least + noise) <= relu(u + noise), relu(u + noise) <= relu(most + noise)), *between
    )


def _independent() -> bool:
    """Cov(w~ . x, w~ . x') = c^2 M^2 x . x' is 0 for orthogonal tokens; being jointly normal, both are independent."""
    x, other = vectors("x u")
    return equal(lemmas.covariance(c * M, x, other), (c * M) ** 2 * dot(x, other))


def _homogeneous() -> bool:
    u, noise, draw = z3.Reals("u c v")
    return proved(relu(u + noise * draw) == noise * relu(u / noise + draw), noise > 0)


HOMOGENEOUS = Step(
    "ReLU(a + c sigma z)/c = ReLU(a/c + sigma z) for c > 0",
    "certified",
    _homogeneous,
)
INDEPENDENT = Step(
    "Cov(w~ . x, w~ . x') = (c M)^2 x . x' = 0: the terms of orthogonal tokens are independent",
    "exact",
    _independent,
)
INVERSE_NOISE = Step(
    "for 1/c from low to high, every ReLU(a/c + sigma z) lies between those of the ends",
    "certified",
    _monotone_in_inverse,
)


# Bu: all inputs at once


def _table_entry() -> bool:
    """Lipschitz constant of (1/m) sum_r ReLU(w~_r . x), the gate being 1: c M/sqrt(m) for the layer's M."""
    return equal(sqrt(sp.summation((c * M / m) ** 2, (r, 1, m))), c * M / sqrt(m))


def _gates_average() -> bool:
    """Deviations of at least -e sum to at least -e if gates sum to at most 1: G dev >= -G e, term by term."""
    gate, deviation, e, gates = z3.Reals("G dev e gates")
    return proved(gate * deviation >= -gate * e, gate >= 0, deviation >= -e) and proved(
        -gates * e >= -e, gates >= 0, gates <= 1, e >= 0
    )


def _events() -> bool:
    """d + 2 tokens with two tails each, and one tail for the four that come with one label, make 2 d."""
    return equal(tail_events(A, d + 2, 4), 2 * A * d)


def _union() -> bool:
    """The union has |A| 2 d events, each of probability exp(-tau^2/2) at most."""
    events = tail_events(A, d + 2, 4)
    tau = concentration(failure / events)
    return equal(events * failure_bound(tau * L, L), failure)


def _uniform_form() -> bool:
    biases, sizes, s = sp.symbols("biases sizes s", positive=True)  # max_y sum of M_s, sum over A of M_s
    ours = tolerable_noise(
        mu, biases / sqrt(2 * pi(mu)), sizes / sqrt(m), concentration(failure / (2 * A * d))
    )
    theirs = mu / (biases / sqrt(2 * sp.pi) + sqrt(2 * sp.log(2 * A * d / failure) / m) * sizes)
    worst = 2 * A * d * exp(-(s**2))
    return equal(ours.subs(failure, worst), theirs.subs(failure, worst))


def _either_label() -> bool:
    mine, other, noise, margin = z3.Reals("mine other c mu")
    worst = z3.If(mine > other, mine, other)
    return proved(
        z3.And(
            margin - noise * mine >= margin - noise * worst, margin - noise * other >= margin - noise * worst
        ),
        noise >= 0,
    )


STEPS = {
    "B": (
        *_LIPSCHITZ,
        *_MEAN,
        _CONCENTRATE,
        _DELTA,
        Step(
            "c <= mu/(beta + tau L) gives E y f~ >= tau c L, so P(y f~ <= 0) <= delta", "certified", _algebra
        ),
        Step(
            "mu/(beta + tau L) = mu/[(2 pi)^(-1/2) sum M_s + sqrt(2 ln(1/delta)/m) (sum M_s^2 g_s^2)^(1/2)]",
            "exact",
            _theorys_form,
        ),
        Step(
            "weights k times as large: mu, beta and L are, and the bound is the same",
            "exact",
            lambda: equal(tolerable_noise(k * mu, k * beta, k * L, 2), tolerable_noise(mu, beta, L, 2)),
        ),
        Step("the bound falls with beta, L and tau: with the analog set and with M", "certified", _monotone),
        Step("M_sr <= M_s: the column's bound is at least the layer's", "certified", _column_is_not_worse),
    ),
    "B-mean": (
        *_LIPSCHITZ,
        *_MEAN,
        Step("db/dsigma = phi(a/sigma) > 0: biases grow with c", "exact", _bias_grows),
        Step(
            "E y f~ = sum of coefficients times relu_mean: relu_mean = ReLU + b",
            "exact",
            lambda: all(
                equal(relu_mean(each, sigma), relu(each) + relu_bias(each, sigma)) for each in EVERY_SIGN
            ),
        ),
        Step("db/dc = sigma phi(a/(c sigma)) grows with c", "exact", _slope_grows),
        Step(
            "from low to high, each term's slope is at least that of one of the ends",
            "certified",
            _least_slope,
        ),
        Step("so the mean is at least least_mean(low, high)", "certified", _mean_value),
        Step("least_mean >= tau L high gives E y f~ >= tau c L for all these c", "certified", _whole_range),
        _CONCENTRATE,
        _DELTA,
        Step("the first range is from 0 to the c of B: B-mean >= B", "certified", _contains_b),
    ),
    "B-exp": (
        INDEPENDENT,
        HOMOGENEOUS,
        INVERSE_NOISE,
        Step(
            "E exp(t ReLU(a + sigma z)) = Q(a/sigma) + exp(t a + (t sigma)^2/2) Phi(a/sigma + t sigma)",
            "exact",
            _exponential,
        ),
        Step(
            "P(S <= 0) <= E exp(-kappa S) for every kappa >= 0, a product if terms are independent",
            "exact",
            _markov,
        ),
        *lemmas.BIAS,
    ),
    "Bu": (
        *_ONE_NEURON,
        *_MEAN,
        Step("an expert's output for one token has Lipschitz constant c M_s/sqrt(m)", "exact", _table_entry),
        _CONCENTRATE,
        Step(
            "gates that sum to 1 at most average deviations of -e at least to -e at least",
            "certified",
            _gates_average,
        ),
        Step("d - 2 tokens with two tails, 4 with one: 2 |A| d events", "exact", _events),
        Step("2 |A| d exp(-tau^2/2) = delta for tau = sqrt(2 ln(2 |A| d/delta))", "exact", _union),
        Step("the larger of the two labels' biases serves both", "certified", _either_label),
        Step("c <= mu/(beta + tau L) gives E y f~ >= tau c L", "certified", _algebra),
        Step(
            "the bound is mu/[(2 pi)^(-1/2) max_y sum M_s + sqrt(2 ln(2 |A| d/delta)/m) sum M_s]",
            "exact",
            _uniform_form,
        ),
    ),
}
