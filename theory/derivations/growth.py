"""How fast do neurons grow? Derivation of G, G-linear, G-logistic, G-adam and G-token.

The expected gradient follows from the definition of the network, and the weight is its sum over steps. The network is
that of theory.setting. All that the weight in question never meets is a symbol: what is left is one neuron of one
specialist, in the space of o_1, o_2 and an irrelevant o_3. Samples are (y o_1, o_3) with probability 1 - alpha and
(y o_2, o_3) with probability alpha; the label y is +1 or -1, with probability 1/2 each.
"""

from collections.abc import Iterator
from itertools import product

import sympy as sp
import z3

from theory.derivations import Step, equal, lemmas, proved
from theory.functions import Phi, Value, exp, log, relu
from theory.growth import (
    adam_moments,
    adam_rate,
    adam_step,
    class_margin,
    dead_probability,
    growth_rate,
    knee,
    late_ratio,
    leakage,
    logistic_time,
    momentum_step,
    norm_ratio,
    own_gate,
    own_token_weight,
    ratio_correction,
    saturating_weight,
    token_choice_gate,
    weight_ratio,
)

alpha, eta, m, G, G_R, u = sp.symbols("alpha eta m G G_R u", positive=True)
N_F, N_R, q_F, q_R = sp.symbols("N_F N_R q_F q_R", positive=True)  # noqa: N816, as in docs/theory.md
t, t_F, t_R, w_0, w_0_R = sp.symbols("t t_F t_R w_0 w_0_R", positive=True)  # noqa: N816
later, leaked, mu = sp.symbols("later lambda mu", positive=True)
velocity, weight, decay = sp.symbols("v w decay", real=True)
g, m_t = sp.symbols("g m_t", real=True)
beta_1, beta_2, epsilon, kappa, v_t = sp.symbols("beta_1 beta_2 epsilon kappa v_t", positive=True)
chosen = sp.Symbol("K", positive=True)
score = sp.Symbol("score", positive=True)
rho = (1 - alpha) / alpha
KINDS = ("frequent", "rare")
FREQUENCY = {"frequent": 1 - alpha, "rare": alpha}


def _gate(kind: str, y: int) -> sp.Symbol:
    """Mean gate weight that the specialist gives the discriminative token of such samples, 0 where not selected."""
    return sp.Symbol(f"gate_{kind}_{'plus' if y > 0 else 'minus'}", nonnegative=True)


def _expected_growth(sign: int, kind: str) -> sp.Expr:
    """Minus the expected gradient for the weight u > 0 on sign * o of `kind`, in a specialist of that output sign.

    The loss is the hinge at margins below 1, which is 1 - y f. What other experts and neurons add to f is free of u.
    The gate of the irrelevant token is a symbol of its own: gates of an expert sum to 1 under expert choice, gates of a
    token sum to 1 under token choice.
    """
    elsewhere, irrelevant, other_gate = sp.symbols("w_other w_3 gate_3", real=True)
    weights = dict.fromkeys(KINDS, elsewhere) | {kind: sign * u}
    growth = sp.Integer(0)
    for shown, y in product(KINDS, (1, -1)):
        active = _gate(shown, y) * relu(y * weights[shown]) + other_gate * relu(irrelevant)
        loss = 1 - y * sign * active / m
        growth -= FREQUENCY[shown] / 2 * sp.diff(loss, u)
    return growth


def _specialists() -> Iterator[tuple[int, str]]:
    return product((1, -1), KINDS)


def _rates(gate_frequent: Value = G, gate_rare: Value = G) -> tuple[Value, Value]:
    return (
        growth_rate(FREQUENCY["frequent"], gate_frequent, eta, m),
        growth_rate(FREQUENCY["rare"], gate_rare, eta, m),
    )


def _knees(gate_frequent: Value, gate_rare: Value) -> tuple[Value, Value]:
    return (
        knee(FREQUENCY["frequent"], gate_frequent, N_F, q_F, eta, m),
        knee(FREQUENCY["rare"], gate_rare, N_R, q_R, eta, m),
    )


def _hinge_slopes() -> bool:
    x = sp.Symbol("x", real=True)
    slope = sp.diff(relu(1 - x), x)
    return bool(slope.subs(x, 1 - u) == -1 and slope.subs(x, 1 + u) == 0)


def _stays_active() -> bool:
    frequency, gate, rate, neurons, steps, initial = z3.Reals("frequency gate eta m t w_0")
    weight = own_token_weight(steps, growth_rate(frequency, gate, rate, neurons), initial)
    return proved(
        weight > 0, frequency > 0, frequency < 1, gate > 0, rate > 0, neurons >= 1, steps >= 0, initial > 0
    )


def _correction_is_small() -> bool:
    ratio, rate, steps, initial, initial_rare = z3.Reals("rho rate t w_0 w_0_R")
    correction = ratio_correction(steps, ratio, rate, initial, initial_rare)
    bound = (initial + ratio * initial_rare) / (rate * steps)
    positive = [each > 0 for each in (ratio, rate, steps, initial, initial_rare)]
    return proved(z3.And(correction <= bound, correction >= -bound), *positive)


def _knee_is_positive_and_falls_with_active() -> bool:
    frequency, gate, specialists, active, more, rate, neurons = names = z3.Reals("p G N q q' eta m")
    early, late = (knee(frequency, gate, specialists, each, rate, neurons) for each in (more, active))
    return proved(z3.And(early > 0, early < late), *(each > 0 for each in names), active < more)


def _overshoot_is_at_most_a_step() -> bool:
    """r min(t, t_F) <= w <= r min(t, t_F) + r at every step, by induction over t, with w = r t before the knee."""
    steps, end, rate, weight, gate, specialists, active = names = z3.Reals("t t_F r w G N q")

    def margin(value: Value) -> Value:
        return class_margin(value, gate, specialists, active)

    def invariant(steps: Value, weight: Value) -> Value:
        low = saturating_weight(steps, rate, end)
        return z3.And(low <= weight, weight <= low + rate, z3.Or(weight == rate * steps, margin(weight) >= 1))

    after = z3.If(margin(weight) < 1, weight + rate, weight)
    positive = [each > 0 for each in names if each not in (steps, weight)]
    at_the_knee = margin(rate * end) == 1
    return proved(invariant(z3.RealVal(0), z3.RealVal(0)), *positive, at_the_knee) and proved(
        invariant(steps + 1, after), *positive, at_the_knee, steps >= 0, weight >= 0, invariant(steps, weight)
    )


def _ratio_falls_to_its_late_value() -> bool:
    ratio, steps, more, end, end_rare = names = z3.Reals("rho t t' t_F t_R")
    early, late = (weight_ratio(each, ratio, end, end_rare) for each in (steps, more))
    return proved(
        z3.And(ratio * end / end_rare <= late, late <= early, early <= ratio),
        *(each > 0 for each in names),
        steps <= more,
        end <= end_rare,
    )


def _own_score_rises() -> bool:
    gate, own, others = z3.Reals("G v_own v_others")
    mean = gate * own + (1 - gate) * others
    return proved(gate * (own - mean) >= 0, gate > 0, gate < 1, others <= own)


def _score_gradient() -> bool:
    """Term by term: d(G v)/dscore = G (v - G v) for the own token, G (0 - G_j v_j) for any other.

    `rest` stands for the exponentials of all further tokens, however many.
    """
    own, other, value = sp.symbols("own other v", real=True)
    rest = sp.Symbol("rest", nonnegative=True)
    alone, gate = own_gate(own, rest), own_gate(own, exp(other) + rest)
    beside = own_gate(other, exp(own) + rest)
    return equal(sp.diff(alone * value, own), alone * (value - alone * value)) and equal(
        sp.diff(beside * value, own), gate * (0 - beside * value)
    )


def _constant_momentum(step: Value) -> tuple[Value, Value]:
    """Velocity and weight after `step` gradients g, from (0, 0)."""
    gone = (1 - mu**step) / (1 - mu)
    return g * gone, eta * g * (step - mu * gone) / (1 - mu)


def _logistic_time(weight: Value) -> Value:
    """`logistic_time` for the rate `later`, the name of the symbol r here."""
    return logistic_time(weight, later, class_margin(1, G, N_F, q_F))


def _adam_step(moments: tuple[Value, Value], step: Value, epsilon: Value = epsilon) -> Value:
    return adam_step(moments, step, eta, beta_1, beta_2, epsilon)


def _constant_moments(step: Value) -> tuple[Value, Value]:
    """Adam's running means after `step` gradients g, from (0, 0)."""
    return (1 - beta_1**step) * g, (1 - beta_2**step) * g**2


def _logistic_ratio_is_at_most_rho() -> bool:
    """The frequent weight takes at least as long to reach rho u as the rare one takes to reach u."""
    x, excess = sp.symbols("x excess", positive=True)  # x = N q G u; excess = rho - 1
    slope, rate = sp.symbols("slope rate", positive=True)
    gap = (exp((1 + excess) * x) - 1) / (1 + excess) - (exp(x) - 1)
    frequent = logistic_time((1 + excess) * u, (1 + excess) * rate, slope)
    growth = exp(excess * x) - 1  # 0 at x = 0, and its own derivative is positive
    return bool(
        equal(frequent - logistic_time(u, rate, slope), gap.subs(x, slope * u) / (slope * rate))
        and gap.subs(x, 0) == 0
        and equal(sp.diff(gap, x), exp(x) * growth)
        and growth.subs(x, 0) == 0
        and sp.diff(growth, x).is_positive
    )


def _adam_ratio_of_proportional_gradients() -> bool:
    """The step is eta m/(r + epsilon), r the root of the second moment, and linear in the first one, m."""
    ratio, root, rate, small = names = z3.Reals("rho r eta epsilon")
    first = adam_rate(ratio * root, rate, small) / (ratio * root), adam_rate(root, rate, small) / root
    steps = ratio * first[0] / first[1]  # m_F/m_R = rho
    return proved(z3.And(steps >= 1, steps <= ratio), *(each > 0 for each in names), ratio >= 1)


def _adam_ratio_is_near_one() -> bool:
    ratio, rare, rate, small = names = z3.Reals("rho g_R eta epsilon")
    steps = adam_rate(ratio * rare, rate, small) / adam_rate(rare, rate, small)
    size = z3.If(rare > 0, rare, -rare)
    return proved(
        z3.And(steps >= 1, steps <= ratio, steps <= 1 + small / size),
        *(each > 0 for each in names if each is not rare),
        rare != 0,
        ratio >= 1,
    )


_few, _many, _chosen, _exponential = z3.Reals("N_R N_F K exp(s)")
_TOKEN_CHOICE = (_exponential >= 1, _few >= 1, _few <= _many, _many <= _chosen)  # scores are at least 0


def _gate_of(specialists: Value) -> Value:
    """`token_choice_gate` with a z3 real for its exponential, in which the gate is rational."""
    power, number, chosen = sp.symbols("power number chosen", positive=True)
    gate = token_choice_gate(sp.log(power), number, chosen)
    return sp.lambdify((power, number, chosen), gate)(_exponential, specialists, _chosen)


def _gate_ratio() -> sp.Expr:
    return token_choice_gate(score, N_F, chosen) / token_choice_gate(score, N_R, chosen)


def _limit(value: sp.Expr) -> sp.Expr:
    return sp.limit(value, score, sp.oo)


GRADIENT = (
    Step("hinge ReLU(1 - x): slope -1 for x < 1, 0 for x > 1", "exact", _hinge_slopes),
    Step(
        "-E dL/dw on the own token = G p/(2m), p the frequency of the class, for both signs and both classes",
        "exact",
        lambda: all(
            equal(eta * _expected_growth(sign, kind), growth_rate(FREQUENCY[kind], _gate(kind, sign), eta, m))
            for sign, kind in _specialists()
        ),
    ),
)

SUM = (
    Step(
        "w(0) = w_0 and w(t + 1) - w(t) = eta G p/(2m)",
        "exact",
        lambda: (
            own_token_weight(0, _rates()[0], w_0) == w_0
            and equal(
                own_token_weight(t + 1, _rates()[0], w_0) - own_token_weight(t, _rates()[0], w_0), _rates()[0]
            )
        ),
    ),
    Step("an active neuron stays active: w(t) > 0 for all t >= 0", "certified", _stays_active),
)

STEPS = {
    "G": (
        *GRADIENT,
        *SUM,
        Step(
            "w_F(t)/w_R(t) = rho + (w_F(0) - rho w_R(0))/w_R(t)",
            "exact",
            lambda: equal(
                own_token_weight(t, _rates()[0], w_0) / own_token_weight(t, _rates()[1], w_0_R),
                rho + ratio_correction(t, rho, _rates()[1], w_0, w_0_R),
            ),
        ),
        Step(
            "the correction is at most (w_F(0) + rho w_R(0))/(r_R t) in size",
            "certified",
            _correction_is_small,
        ),
        Step(
            "1/(r_R t) = 2m/(eta t G alpha): the correction is O(initial weight times m/(eta t alpha)) of rho",
            "exact",
            lambda: equal(1 / (_rates()[1] * t), 2 * m / (eta * t * G * alpha)),
        ),
        Step(
            "y f of N specialists with q m active neurons of weight w each: (1/m) sum G w = N q G w",
            "exact",
            lambda: equal(N_F * (q_F * m) * (G * u / m), class_margin(u, G, N_F, q_F)),
        ),
        Step(
            "the margin reaches 1 at t_F = 2m/(eta G^2 (1 - alpha) N_F q_F) and t_R alike, from weights 0",
            "exact",
            lambda: all(
                equal(class_margin(own_token_weight(end, rate, 0), gate, number, active), 1)
                for end, rate, gate, number, active in zip(
                    _knees(G, G_R), _rates(G, G_R), (G, G_R), (N_F, N_R), (q_F, q_R), strict=True
                )
            ),
        ),
        Step(
            "effect (i): t_F > 0, and a sign with more active neurons has the earlier one",
            "certified",
            _knee_is_positive_and_falls_with_active,
        ),
        Step(
            "from the knee on the weight stands still, at most one step above r t_F",
            "certified",
            _overshoot_is_at_most_a_step,
        ),
        Step(
            "weights that saturate: w_F(t)/w_R(t) is the ratio of rates, rho G_F/G_R, times min(t, t_F)/min(t, t_R)",
            "exact",
            lambda: equal(
                saturating_weight(t, _rates(G, G_R)[0], t_F) / saturating_weight(t, _rates(G, G_R)[1], t_R),
                weight_ratio(t, rho * G / G_R, t_F, t_R),
            ),
        ),
        Step(
            "ratio, t_F <= t_R: rho for t <= t_F, rho t_F/t up to t_R, then rho t_F/t_R",
            "exact",
            lambda: (
                equal(weight_ratio(t, rho, t + later, t + later + t_R), rho)
                and equal(weight_ratio(t_F + t, rho, t_F, t_F + t + t_R), rho * t_F / (t_F + t))
                and equal(weight_ratio(t_F + t_R + t, rho, t_F, t_F + t_R), rho * t_F / (t_F + t_R))
            ),
        ),
        Step(
            "the ratio never rises, from rho down to rho t_F/t_R, if t_F <= t_R",
            "certified",
            _ratio_falls_to_its_late_value,
        ),
        Step(
            "rho (G_F/G_R) t_F/t_R = N_R q_R G_R/(N_F q_F G_F), free of alpha, eta and m",
            "exact",
            lambda: equal(
                rho * (G / G_R) * _knees(G, G_R)[0] / _knees(G, G_R)[1],
                late_ratio(N_F, N_R, q_F, q_R, G / G_R),
            ),
        ),
        Step(
            "effect (ii): a rare specialist's neuron grows on a_s o_1 by its gate there: ratio rho G_leaked/G_R",
            "exact",
            lambda: all(
                equal(
                    eta * _expected_growth(sign, "frequent") / growth_rate(alpha, G_R, eta, m),
                    leakage(rho, _gate("frequent", sign), G_R),
                )
                for sign in (1, -1)
            ),
        ),
        Step(
            "effect (ii): norm ratio = (w_F/w_R)/sqrt(1 + lambda^2), the rare norm being sqrt(w_R^2 + (lambda w_R)^2)",
            "exact",
            lambda: equal(norm_ratio(u / w_0, leaked), u / sp.sqrt(w_0**2 + (leaked * w_0) ** 2)),
        ),
        Step(
            "effect (iii): all m neurons inactive with probability P(z <= 0)^m = 2^-m",
            "exact",
            lambda: equal(Phi(sp.Integer(0)) ** m, dead_probability(m)),
        ),
        *lemmas.GATES,
        lemmas.SOFTMAX_GRADIENT,
        Step("router: df/dscore_own = G (v_own - sum_j G_j v_j)", "exact", _score_gradient),
        Step(
            "router: the own score rises while the own token's output v_own is the largest",
            "certified",
            _own_score_rises,
        ),
    ),
    "G-linear": (
        *GRADIENT,
        Step(
            "SGD, momentum, L2 decay: kappa times all gradients gives kappa v_t and kappa w_t, by induction over t",
            "exact",
            lambda: all(
                equal(scaled, kappa * plain)
                for scaled, plain in zip(
                    momentum_step((kappa * velocity, kappa * weight), kappa * g, eta, mu, decay),
                    momentum_step((velocity, weight), g, eta, mu, decay),
                    strict=True,
                )
            ),
        ),
        Step(
            "without momentum and decay it is SGD: w + eta g",
            "exact",
            lambda: equal(momentum_step((velocity, weight), g, eta, 0, 0)[1], weight + eta * g),
        ),
        Step(
            "constant gradient and no decay, by induction over t: v_t = g (1 - mu^t)/(1 - mu), w_t its sum times eta",
            "exact",
            lambda: (
                all(equal(each, 0) for each in _constant_momentum(sp.Integer(0)))
                and all(
                    equal(after, expected)
                    for after, expected in zip(
                        momentum_step(_constant_momentum(t), g, eta, mu, 0),
                        _constant_momentum(t + 1),
                        strict=True,
                    )
                )
            ),
        ),
        Step(
            "gradients rho times as large give weights rho times as large, up to t_F",
            "exact",
            lambda: equal(_rates()[0] / _rates()[1], rho),
        ),
    ),
    "G-logistic": (
        *GRADIENT,
        Step(
            "logistic loss ln(1 + exp(-x)): slope -1/(1 + exp(x))",
            "exact",
            lambda: equal(sp.diff(log(1 + exp(-velocity)), velocity), -1 / (1 + exp(velocity))),
        ),
        Step(
            "dw/dt = r/(1 + exp(margin)), margin = N q G w: dt/dw = (1 + exp(N q G w))/r and t = 0 at w = 0",
            "exact",
            lambda: (
                equal(sp.diff(_logistic_time(u), u), (1 + exp(class_margin(u, G, N_F, q_F))) / later)
                and _logistic_time(sp.Integer(0)) == 0
            ),
        ),
        Step(
            "equal margins per weight: w_F <= rho w_R, as (exp(rho x) - 1)/rho - (exp(x) - 1) is 0 at 0 and rises",
            "exact",
            _logistic_ratio_is_at_most_rho,
        ),
        Step(
            "ln(N q G r t)/(N q G w) -> 1: w grows like ln(t)/(N q G), so w_F/w_R -> N_R q_R G_R/(N_F q_F G_F)",
            "exact",
            lambda: (
                sp.limit(
                    log(class_margin(later, G, N_F, q_F) * _logistic_time(u)) / class_margin(u, G, N_F, q_F),
                    u,
                    sp.oo,
                )
                == 1
                and equal(
                    class_margin(u, G_R, N_R, q_R) / class_margin(u, G, N_F, q_F),
                    late_ratio(N_F, N_R, q_F, q_R, G / G_R),
                )
            ),
        ),
    ),
    "G-adam": (
        *GRADIENT,
        Step(
            "the first step is eta g/(|g| + epsilon), whatever beta_1 and beta_2",
            "exact",
            lambda: equal(_adam_step(adam_moments((0, 0), g, beta_1, beta_2), 1), adam_rate(g, eta, epsilon)),
        ),
        Step(
            "constant gradient, by induction over t: m_t = (1 - beta_1^t) g, v_t = (1 - beta_2^t) g^2",
            "exact",
            lambda: (
                _constant_moments(0) == (0, 0)
                and all(
                    equal(after, expected)
                    for after, expected in zip(
                        adam_moments(_constant_moments(t), g, beta_1, beta_2),
                        _constant_moments(t + 1),
                        strict=True,
                    )
                )
            ),
        ),
        Step(
            "so every step is eta g/(|g| + epsilon)",
            "exact",
            lambda: equal(_adam_step(_constant_moments(t), t), adam_rate(g, eta, epsilon)),
        ),
        Step(
            "any gradients: kappa times all of them gives kappa m_t and kappa^2 v_t, by induction over t",
            "exact",
            lambda: all(
                equal(scaled, power * plain)
                for scaled, plain, power in zip(
                    adam_moments((kappa * m_t, kappa**2 * v_t), kappa * g, beta_1, beta_2),
                    adam_moments((m_t, v_t), g, beta_1, beta_2),
                    (kappa, kappa**2),
                    strict=True,
                )
            ),
        ),
        Step(
            "so rare gradients, kappa = 1/rho times the frequent ones, only see a larger epsilon: epsilon/kappa",
            "exact",
            lambda: equal(
                _adam_step((kappa * m_t, kappa**2 * v_t), t), _adam_step((m_t, v_t), t, epsilon / kappa)
            ),
        ),
        Step(
            "proportional gradients, m_F = rho m_R and v_F = rho^2 v_R: 1 <= frequent over rare step <= rho",
            "certified",
            _adam_ratio_of_proportional_gradients,
        ),
        Step(
            "1 <= frequent over rare step <= min(rho, 1 + epsilon/|g_R|) for constant g_F = rho g_R of either sign",
            "certified",
            _adam_ratio_is_near_one,
        ),
    ),
    "G-token": (
        *GRADIENT,
        *SUM,
        Step(
            "gate of a token for each of S specialists: softmax over K scores, S of them s and K - S of them 0",
            "exact",
            lambda: equal(
                own_gate(score, (N_F - 1) * exp(score) + chosen - N_F), token_choice_gate(score, N_F, chosen)
            ),
        ),
        Step(
            "r_F/r_R = rho G_F/G_R up to t_F, the gates being those of the tokens",
            "exact",
            lambda: equal(_rates(G, G_R)[0] / _rates(G, G_R)[1], rho * G / G_R),
        ),
        Step(
            "1/K <= G <= 1/S for scores s >= 0",
            "certified",
            lambda: proved(z3.And(1 / _chosen <= _gate_of(_few), _gate_of(_few) <= 1 / _few), *_TOKEN_CHOICE),
        ),
        Step(
            "N_R/N_F <= G_F/G_R <= 1 for N_R <= N_F <= K: between the two, more specialists slow growth down",
            "certified",
            lambda: proved(
                z3.And(_few * _gate_of(_few) <= _many * _gate_of(_many), _gate_of(_many) <= _gate_of(_few)),
                *_TOKEN_CHOICE,
            ),
        ),
        Step(
            "large scores: G_F/G_R -> N_R/N_F, so the ratio begins at rho N_R/N_F and ends at q_R/q_F",
            "exact",
            lambda: (
                equal(_limit(_gate_ratio()), N_R / N_F)
                and equal(_limit(late_ratio(N_F, N_R, q_F, q_R, _gate_ratio())), q_R / q_F)
            ),
        ),
    ),
}
