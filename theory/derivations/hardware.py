"""Do the bounds hold on measured hardware? Derivation of H: noise that depends on each weight, and converters.

Noise of standard deviation sigma_i = c w_max sigma(|w_i|/w_max) on weight i. A DAC gives x' for x. An ADC clips each
neuron's w~ . x' to +-B and rounds it to a multiple of its step, which divides B.
"""

import sympy as sp
import z3

from theory.derivations import Step, at, dot, equal, lemmas, proved, vectors
from theory.derivations.bound import STEPS as BOUND
from theory.functions import Value, relu
from theory.moments import relu_bias, relu_mean

sigma, m, clip = sp.symbols("sigma m B", positive=True)
a = sp.Symbol("a", real=True)
r, j = sp.symbols("r j", integer=True)


def _covariance() -> bool:
    """Cov(w~ . x, w~ . x') = sum_i sigma_i^2 x_i x'_i: 0 in the standard basis, not for all orthogonal tokens."""
    x, other, sizes = vectors("x u s")
    return equal(lemmas.covariance(sizes, x, other), dot(sizes**2 * x, other))


def _largest_sigma() -> bool:
    """(sigma_i v_i)^2 <= sigma_max^2 v_i^2, term by term."""
    size, largest, v = z3.Reals("sigma largest v")
    return proved((size * v) ** 2 <= (largest * v) ** 2, size >= 0, size <= largest)


def _gap(w: Value, x: Value, i: Value, k: Value) -> Value:
    """What the coordinates i of one factor and k of the other add to |w|^2 |x|^2 - (w . x)^2."""
    return at(w, i) ** 2 * at(x, k) ** 2 - at(w, i) * at(x, i) * at(w, k) * at(x, k)


def _cauchy_schwarz() -> bool:
    """|w|^2 |dx|^2 - (w . dx)^2 is a sum of squares (Lagrange), for every d.

    It is a sum over all pairs i, k of coordinates. The pair and its mirror image give one square.
    """
    w, x = vectors("w x")
    i, k = sp.symbols("one other", integer=True)
    square = (at(w, i) * at(x, k) - at(w, k) * at(x, i)) ** 2
    return equal(_gap(w, x, i, k) + _gap(w, x, k, i), square)


def _input_error() -> bool:
    """ReLU(u + e) >= ReLU(u) - |e|, and <= ReLU(u) + |e|."""
    u, error = z3.Reals("u e")
    size = z3.If(error < 0, -error, error)
    return proved(z3.And(relu(u + error) >= relu(u) - size, relu(u + error) <= relu(u) + size))


def _clipped() -> bool:
    """The ReLU of u clipped to +-B is ReLU(u) - ReLU(u - B), which has the Lipschitz constant 1 as well."""
    u, v, bound = z3.Reals("u v B")

    def clip_relu(value: z3.ArithRef) -> z3.ArithRef:
        return relu(z3.If(value > bound, bound, z3.If(value < -bound, -bound, value)))

    same = proved(clip_relu(u) == relu(u) - relu(u - bound), bound >= 0)
    return same and proved((clip_relu(u) - clip_relu(v)) ** 2 <= (u - v) ** 2, bound >= 0)


def _clipped_mean() -> bool:
    """A clipped ReLU has the mean relu_mean(a) - relu_mean(a - B) and the bias b(a) - b(a - B)."""
    mean = relu_mean(a, sigma) - relu_mean(a - clip, sigma)
    bias = relu_bias(a, sigma) - relu_bias(a - clip, sigma)
    return equal(mean - bias, relu(a) - relu(a - clip))


def _clipped_bias() -> bool:
    """A clipped bias is between -s and s for 0 <= b <= s: an expert of the label's sign may lose s by clipping."""
    first, second, s = z3.Reals("b_a b_aB s")
    return proved(
        z3.And(first - second >= -s, first - second <= s), first >= 0, first <= s, second >= 0, second <= s
    )


def _rounding() -> bool:
    """Rounding to the nearest multiple k of a step is off by step/2 at most, and a ReLU does not enlarge that."""
    v, step, u, rounded = z3.Reals("v step u q")
    k = z3.Real("k")  # the whole number nearest to v/step
    near = proved(
        z3.And(k * step - v <= step / 2, v - k * step <= step / 2),
        *(step > 0, v / step - k <= z3.RealVal("0.5"), k - v / step <= z3.RealVal("0.5")),
    )
    kept = proved(
        z3.And(relu(rounded) >= relu(u) - step / 2, relu(rounded) <= relu(u) + step / 2),
        *(step > 0, rounded - u <= step / 2, u - rounded <= step / 2),
    )
    return near and kept


def _averaged() -> bool:
    """Losses average over m neurons, and over tokens with gates that sum to 1: step/2 for each analog expert."""
    step, gate = sp.Symbol("step", positive=True), sp.IndexedBase("G")
    l = sp.Symbol("l", integer=True, positive=True)  # noqa: E741
    neurons = sp.summation(step / 2 / m, (r, 1, m))
    tokens, gates = sp.Sum(gate[j] * neurons, (j, 1, l)), sp.Sum(gate[j], (j, 1, l))
    return equal(neurons, step / 2) and equal(tokens, step / 2 * gates)


def _margin() -> bool:
    """With mu - input - output for mu, E y f~ less the loss of the ADC still exceeds 0 by tau Lipschitz constants."""
    margin, loss, noise, bias, lipschitz, tau = z3.Reals("mu loss c beta L tau")
    return proved(
        margin - loss - noise * bias >= tau * noise * lipschitz,
        noise * (bias + tau * lipschitz) <= margin - loss,
    )


STEPS = {
    "H": (
        *lemmas.PCM_RANGE,
        Step("Cov(w~ . x, w~ . x') = sum_i sigma_i^2 x_i x'_i in R^d", "exact", _covariance),
        Step(
            "|diag(sigma) v| <= max_i sigma_i |v|: M_sr becomes the largest sigma_i/c",
            "certified",
            _largest_sigma,
        ),
        *BOUND["B"],
        Step(
            "DAC: a known token x' in place of x; (w . dx)^2 <= |w|^2 |dx|^2 in R^d, w without noise",
            "exact",
            _cauchy_schwarz,
        ),
        Step("so the margin falls by |w| |x' - x| per neuron at most", "certified", _input_error),
        Step("ADC: ReLU(clip(u)) = ReLU(u) - ReLU(u - B), of Lipschitz constant 1", "certified", _clipped),
        Step(
            "E ReLU(clip(a + sigma z)) = relu_mean(a) - relu_mean(a - B), of bias b(a) - b(a - B)",
            "exact",
            _clipped_mean,
        ),
        Step(
            "which is between -s and s: experts of both signs may lose sigma/sqrt(2 pi)",
            "certified",
            _clipped_bias,
        ),
        Step("rounding to multiples of a step costs step/2 at most", "certified", _rounding),
        Step(
            "averaged over m neurons and l tokens, of gates that sum to 1: step/2 for each analog expert",
            "exact",
            _averaged,
        ),
        Step("mu becomes the DAC's margin less these losses", "certified", _margin),
    ),
}
