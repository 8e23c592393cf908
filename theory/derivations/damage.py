"""Which variance does independent noise on weights give outputs, and when do its costs add up?

Derivations of D, of D-dense and of D-sum.
"""

import sympy as sp

from theory.damage import gated_variance, product_variance
from theory.derivations import Step, equal

w, w2, z, z2, g, u, G, W = sp.symbols("w w2 z z2 g u G W", real=True)
s, s2, v, v2, vg, vu, c = sp.symbols("s s2 v v2 v_g v_u c", positive=True)
S = sp.Symbol("S", nonnegative=True)
xi, xi2, zeta, zeta2, eps, eta, before = sp.symbols("xi xi2 zeta zeta2 epsilon eta before", real=True)
# Variance of each noise; all have mean 0 and are independent.
NOISE = {xi: sp.Integer(1), xi2: sp.Integer(1), zeta: v, zeta2: v2, eps: vg, eta: vu, before: S}


def _mean(expression: sp.Expr) -> sp.Expr:
    """Expectation of a polynomial that is of at most second degree in every noise."""
    polynomial = sp.Poly(sp.expand(expression), *NOISE)
    total = sp.Integer(0)
    for powers, coefficient in polynomial.terms():
        if max(powers) > 2:
            raise ValueError(f"{expression} has a noise to the power of {max(powers)}")
        if 1 not in powers:
            total += coefficient * sp.Mul(
                *(variance for power, variance in zip(powers, NOISE.values(), strict=True) if power == 2)
            )
    return total


def _variance(expression: sp.Expr) -> sp.Expr:
    return _mean(expression**2) - _mean(expression) ** 2


_product = (w + s * xi) * (z + zeta)
_error = _product - w * z
_other = (w2 + s2 * xi2) * (z2 + zeta2) - w2 * z2
# sum_i G_i e_i over any number of outputs of one inner neuron, which are correlated through zeta: W is
# sum_i G_i w_i, `before` is sum_i G_i s_i xi_i, of variance S = sum_i G_i^2 s_i^2.
_outputs = W * zeta + before * (z + zeta)


def _projection() -> bool:
    """By induction over outputs: one more, G e, leaves the form, adds G w to W and G^2 s^2 to S."""
    one_more = _outputs + G * _error
    return (
        equal(one_more, (W + G * w) * zeta + (before + G * s * xi) * (z + zeta))
        and equal(_variance(before + G * s * xi), S + G**2 * s**2)
        and equal(_mean(_outputs), 0)
        and equal(_mean(_outputs**2), product_variance(W, sp.sqrt(S), z, v))
        and equal(_mean(one_more**2), product_variance(W + G * w, sp.sqrt(S + G**2 * s**2), z, v))
        and _outputs.subs({W: 0, before: 0}) == 0
    )


def _linear_gate() -> bool:
    """For activation(g) = g the variance of (g + eps)(u + eta) is exact but for the product of the two variances."""
    return equal(_variance((g + eps) * (u + eta)), gated_variance(u, g, vg, vu) + vg * vu)


def _slopes() -> bool:
    """Derivatives of silu(g) u by g and by u, as the first-order expansion has them."""
    sigmoid = 1 / (1 + sp.exp(-g))
    inner = g * sigmoid * u
    return equal(sp.diff(inner, g), sigmoid * (1 + g * (1 - sigmoid)) * u) and equal(
        sp.diff(inner, u), g * sigmoid
    )


def _first_order_gate() -> bool:
    """Variance of the tangent f_g eps + f_u eta."""
    slope_gate, slope_up = sp.symbols("f_g f_u", real=True)
    return equal(_variance(slope_gate * eps + slope_up * eta), gated_variance(slope_gate, slope_up, vg, vu))


def _quadratic_in_c() -> bool:
    """Noise c times as large has c^2 times the variance, up to a term of order c^4."""
    scaled = product_variance(w, c * s, z, c**2 * v)
    gated = gated_variance(g, u, c**2 * vg, c**2 * vu)
    return equal(scaled, c**2 * (w**2 * v + s**2 * z**2) + c**4 * s**2 * v) and equal(
        gated, c**2 * gated_variance(g, u, vg, vu)
    )


def _second_order_loss() -> bool:
    """E [G . e + (G . e)^2/2] is half of the second moment of G . e, for errors of mean 0 of any number of outputs."""
    return equal(_mean(_outputs + _outputs**2 / 2), _mean(_outputs**2) / 2)


def _linear_layer() -> bool:
    """By induction over weights: one more, of an input z without noise, leaves `before`, adds G^2 s^2 z^2 to S."""
    one_more = before + G * _error.subs(zeta, 0)
    return (
        equal(_mean(one_more), 0)
        and equal(_mean(one_more**2), S + G**2 * s**2 * z**2)
        and equal(product_variance(0, sp.sqrt(G**2 * s**2), z, 0), G**2 * s**2 * z**2)
    )


def _quadratic_loss() -> bool:
    """By induction over weights: one more adds half its second derivative u times its variance, whichever its module.

    g: derivative of the loss by the weight; `before`: the noise of the others times their mixed second derivatives.
    """
    return equal(_mean((g + before) * s * xi + u * (s * xi) ** 2 / 2), u * s**2 / 2)


def _first_interaction() -> bool:
    """What modules A and B cost together beyond what each costs alone, up to the fourth order.

    The term of order (a, b) is linear in each of a copies of A's noise and of b copies of B's. The two noises are
    independent: it has the mean of A's part times that of B's part, which for a noise of mean 0 is 0 if it stands
    alone. Nothing is assumed of the other parts, nor of a module's weights among each other.
    """
    slope, part_a, part_b = (sp.IndexedBase(name) for name in ("f", "A", "B"))
    together = sum(
        (
            c ** (a + b) * slope[a, b] * part_a[a] * part_b[b] / (sp.factorial(a) * sp.factorial(b))
            for a in range(1, 4)
            for b in range(1, 5 - a)
        ),
        sp.Integer(0),
    )
    left = together.subs({part_a[1]: 0, part_b[1]: 0})
    return equal(left, c**4 * slope[2, 2] * part_a[2] * part_b[2] / 4)


def _chain() -> bool:
    """Two layers in a chain: noise s on the second, and v at its inputs by noise on the first."""
    single = product_variance(w, c * s, z, 0) + product_variance(w, 0, z, c**2 * v)
    return equal(product_variance(w, c * s, z, c**2 * v), single + c**4 * s**2 * v)


STEPS = {
    "D-dense": (
        Step(
            "E (sum_ij G_i s_ij xi_ij z_j)^2 = sum_ij G_i^2 s_ij^2 z_j^2, by induction over weights",
            "exact",
            _linear_layer,
        ),
        Step(
            "the damage of a linear layer is proportional to c^2",
            "exact",
            lambda: equal(product_variance(w, c * s, z, 0), c**2 * product_variance(w, s, z, 0)),
        ),
    ),
    "D-sum": (
        Step(
            "quadratic loss: E increase = sum_k H_kk s_k^2/2 over weights of all modules, by induction over weights",
            "exact",
            _quadratic_loss,
        ),
        Step(
            "any loss: increase of A and B = increase of A + increase of B + c^4 E d^4 L[A, A, B, B]/4 + O(c^5)",
            "exact",
            _first_interaction,
        ),
        Step("two layers in a chain: the interaction is c^4 s^2 v, above 0", "exact", _chain),
    ),
    "D": (
        Step("E (w + s xi)(z + zeta) = w z: the error has mean 0", "exact", lambda: equal(_mean(_error), 0)),
        Step(
            "Var (w + s xi)(z + zeta) = w^2 v + s^2 (z^2 + v)",
            "exact",
            lambda: equal(_variance(_product), product_variance(w, s, z, v)),
        ),
        Step(
            "terms of any two inner neurons are uncorrelated: variances of a sum add up",
            "exact",
            lambda: equal(_mean(_error * _other), 0),
        ),
        Step(
            "E (sum_i G_i e_i)^2 = (sum_i G_i w_i)^2 v + sum_i G_i^2 s_i^2 (z^2 + v), by induction over outputs",
            "exact",
            _projection,
        ),
        Step("d silu(g) u = (sigma(g) (1 + g (1 - sigma(g))) u) dg + silu(g) du", "exact", _slopes),
        Step("Var (f_g eps + f_u eta) = f_g^2 v_g + f_u^2 v_u", "exact", _first_order_gate),
        Step(
            "for a linear activation what first order leaves out is v_g v_u, of order c^4",
            "exact",
            _linear_gate,
        ),
        Step("the damage is proportional to c^2 but for terms of order c^4", "exact", _quadratic_in_c),
        Step("E [G . e + (G . e)^2/2] = E (G . e)^2/2", "exact", _second_order_loss),
    ),
}
