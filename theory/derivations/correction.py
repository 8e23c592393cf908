"""How is the bias of noise removed? Derivation of C: subtract it digitally, or let the two signs cancel.

mean_shift is what noise adds to an expert's mean output, (1/m) sum_r b(w_r . x) for a token. With beta(X) the sum over
analog experts of a_s sum_j G_j mean_shift, E y f~ = mu + y beta.
"""

import sympy as sp
import z3

from theory.derivations import Step, equal, lemmas, proved
from theory.derivations.bound import STEPS as BOUND
from theory.moments import relu_bias, relu_mean
from theory.tolerance import tolerable_noise

sigma, above = sp.symbols("sigma above", positive=True)


def _corrected_mean() -> bool:
    """E [ReLU(a + sigma z) - b(a)] = ReLU(a), for a of either sign."""
    return all(
        equal(relu_mean(a, sigma) - relu_bias(a, sigma), clean)
        for a, clean in ((above, above), (-above, sp.Integer(0)), (sp.Integer(0), sp.Integer(0)))
    )


def _never_below_b() -> bool:
    margin, bias, lipschitz, tau = z3.Reals("mu beta L tau")
    return proved(
        tolerable_noise(margin, 0, lipschitz, tau) >= tolerable_noise(margin, bias, lipschitz, tau),
        *(margin > 0, bias >= 0, lipschitz > 0, tau > 0),
    )


def _worst_label() -> bool:
    """The minimum over y of mu + y beta is mu - |beta|, which is below the corrected mu unless beta = 0."""
    margin, shift = z3.Reals("mu beta")
    plus, minus = margin + shift, margin - shift
    worst = z3.If(plus < minus, plus, minus)
    size = z3.If(shift < 0, -shift, shift)
    return proved(z3.And(worst == margin - size, worst <= margin, (worst == margin) == (shift == 0)))


def _tolerable_for_both() -> bool:
    """Inputs of both labels, of one margin, shift and L, that satisfy B-mean at c satisfy it corrected, too."""
    margin, shift, tau, lipschitz, noise = z3.Reals("mu beta tau L c")
    return proved(
        margin >= tau * lipschitz * noise,
        margin + shift >= tau * lipschitz * noise,
        margin - shift >= tau * lipschitz * noise,
    )


def _range_of_shift() -> bool:
    """beta is the bias of sign + minus the bias of sign -, each from 0 to the sum of M/sqrt(2 pi) over its experts."""
    plus, minus, most_plus, most_minus = z3.Reals("plus minus S_plus S_minus")
    beta = plus - minus
    most = z3.If(most_plus > most_minus, most_plus, most_minus)
    return proved(
        z3.And(beta <= most, -beta <= most), plus >= 0, minus >= 0, plus <= most_plus, minus <= most_minus
    )


def _balance_needs_an_even_budget() -> bool:
    """|beta| = b |plus - minus| where `plus` and `minus` experts of p of each sign become digital, K in all.

    All experts have the bias b. |beta| is 0 if both numbers are K/2, and at least b for every choice if K is odd.
    """
    pairs, plus, minus, half = z3.Ints("p plus minus half")
    bias = z3.Real("b")
    beta = (pairs - plus) * bias - (pairs - minus) * bias
    counts = (bias > 0, plus >= 0, minus >= 0, pairs >= plus, pairs >= minus)
    even = proved(beta == 0, *counts, plus == half, minus == half)
    odd = proved(z3.Or(beta >= bias, beta <= -bias), *counts, plus + minus == 2 * half + 1)
    return even and odd


def _two_margins_do_not() -> bool:
    """With margins .4 and 1 and a shift of .5, tau L c = .45: both inputs satisfy B-mean, one does not corrected."""
    small, large, shift, need = z3.Reals("mu_minus mu_plus beta need")
    return proved(
        z3.And(small + shift >= need, large - shift >= need, small < need),
        *(small == z3.RealVal("0.4"), large == 1, shift == z3.RealVal("0.5"), need == z3.RealVal("0.45")),
    )


def _equal_numbers_do_not() -> bool:
    """One expert of either sign, of sizes 1 and 4, on a token of neither: b(0) - 4 b(0) = -3 c/sqrt(2 pi) at c = 1."""
    one, four = relu_bias(sp.Integer(0), sigma), relu_bias(sp.Integer(0), 4 * sigma)
    return equal(one - four, -3 * sigma / sp.sqrt(2 * sp.pi))


def _one_sign_does_not() -> bool:
    """|beta| = q b with q experts of one sign digital, which an odd budget of q = 1 cannot avoid."""
    pairs, digital, bias, beta = z3.Reals("p q b beta")
    return proved(
        z3.And(beta == -digital * bias, beta < 0),
        *(beta == (pairs - digital) * bias - pairs * bias, digital > 0, bias > 0, pairs >= digital),
    )


def _worse_than_nothing() -> bool:
    """q digital experts of one sign may remove less from tau L than the bias that they uncover."""
    margin, tau, before, after, bias, digital, noise = z3.Reals("mu tau L L_ b q c")
    return proved(
        margin - noise * digital * bias - tau * noise * after < margin - tau * noise * before,
        *(noise > 0, digital > 0, tau > 0, digital * bias > tau * (before - after)),
    )


STEPS = {
    "C": (
        *lemmas.BIAS,
        Step(
            "E [ReLU(a + sigma z) - b(a)] = ReLU(a): E y f~ = mu, whatever is analog",
            "exact",
            _corrected_mean,
        ),
        *BOUND["B"],
        Step("so c <= mu/(tau L) suffices, which is never below B", "certified", _never_below_b),
        Step(
            "of the two labels one has mean mu - |beta|: at most mu, and mu only for beta = 0",
            "certified",
            _worst_label,
        ),
        Step(
            "where inputs of both labels with one mu, beta and L satisfy B-mean at c, both do when corrected",
            "certified",
            _tolerable_for_both,
        ),
        Step(
            "with two margins one of them may not: .4 + .5 and 1 - .5 exceed .45, and .4 does not",
            "certified",
            _two_margins_do_not,
        ),
        Step("|beta| <= c max(sum of M_s of sign +, of sign -)/sqrt(2 pi)", "certified", _range_of_shift),
        Step(
            "p experts of each sign, equal biases b: balanced |beta| = 0 at an even budget, at least b at an odd one",
            "certified",
            _balance_needs_an_even_budget,
        ),
        Step(
            "equal numbers with unequal biases do not balance: sizes 1 and 4 leave b(0) - 4 b(0) = -3 sigma/sqrt(2 pi)",
            "exact",
            _equal_numbers_do_not,
        ),
        Step("q digital experts of one sign leave |beta| = q b > 0", "certified", _one_sign_does_not),
        Step("that costs more than it saves where q b > tau (L - L')", "certified", _worse_than_nothing),
    ),
}
