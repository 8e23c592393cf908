"""What are the moments of ReLU(a + sigma z), z ~ N(0, 1)? Closed forms [M1, M2, M3, docs/theory.md].

a, sigma: scalars or tensors that broadcast, in the same unit, float64 where accuracy counts.
sigma: at least 0 for tensors, above 0 for anything else.

Below a = -38 sigma every moment is 0 in float64.
"""

from theory.functions import Phi, Q, Value, library, phi, relu


def relu_mean(a: Value, sigma: Value) -> Value:
    """E ReLU(a + sigma z) = a Phi(a/sigma) + sigma phi(a/sigma)   [M1]."""
    z = _ratio(a, sigma)
    return a * Phi(z) + sigma * phi(z)


def relu_bias(a: Value, sigma: Value) -> Value:
    """b(a) = E ReLU(a + sigma z) - ReLU(a), from 0 to sigma/sqrt(2 pi)   [M1]."""
    return relu_mean(a, sigma) - relu(a)


def relu_second_moment(a: Value, sigma: Value) -> Value:
    """E ReLU(a + sigma z)^2 = (a^2 + sigma^2) Phi(a/sigma) + a sigma phi(a/sigma)   [M2]."""
    z = _ratio(a, sigma)
    return (a**2 + sigma**2) * Phi(z) + a * sigma * phi(z)


def relu_variance(a: Value, sigma: Value) -> Value:
    """Var ReLU(a + sigma z), from 0 to sigma^2   [M2]."""
    return relu_second_moment(a, sigma) - relu_mean(a, sigma) ** 2


def relu_third_moment(a: Value, sigma: Value) -> Value:
    """E |ReLU(a + sigma z) - E ReLU(a + sigma z)|^3   [M3]."""
    return relu_third_moment_about(relu_mean(a, sigma), a, sigma)


def relu_third_moment_about(centre: Value, a: Value, sigma: Value) -> Value:
    """E |ReLU(a + sigma z) - centre|^3 for centre >= 0   [M3].

    Where the ReLU is off, the integral is centre^3 Q(a/sigma). Where it is on, the integrand is |s + sigma z|^3 with
    s = a - centre, and changes form at z = -s/sigma.
    """
    s = a - centre
    off = centre**3 * Q(_ratio(a, sigma))
    return off + _cubic_tail(s, sigma, -a) - 2 * _cubic_tail(s, sigma, -s)


def _cubic_tail(s: Value, sigma: Value, y: Value) -> Value:
    """-(integral of (s + sigma z)^3 phi(z) over z > y/sigma), written with Q so that small tails stay accurate."""
    z = _ratio(y, sigma)
    polynomial = 3 * s**2 + 3 * s * y + y**2 + 2 * sigma**2
    return -(s**3 + 3 * s * sigma**2) * Q(z) - sigma * polynomial * phi(z)


def _ratio(a: Value, sigma: Value) -> Value:
    """a/sigma. In a tensor 0/0 is 0, so that every moment without noise is that of ReLU(a) itself."""
    if library(a) == "torch":
        return (a / sigma).where((a != 0) | (sigma != 0), 0.0)
    return a / sigma
