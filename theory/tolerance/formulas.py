"""Which formulas give the tolerable noise? Each serves symbols and tensors alike [B to U and Gain, docs/theory.md].

y f~ is the noisy output of a network for an input of label y, c the magnitude of the noise.
"""

from theory.functions import Phi, Q, Value, exp, log, pi, sqrt

# The constant of the Berry-Esseen theorem for independent summands that need not be identically distributed: Shevtsova,
# "An improvement of convergence rate estimates in the Lyapunov theorem", Doklady Mathematics 82 (2010) 862-864.
BERRY_ESSEEN = 0.56


def concentration(delta: Value) -> Value:
    """tau with exp(-tau^2/2) = delta: a function of Lipschitz constant L falls tau L below its mean this rarely."""
    return sqrt(2 * log(1 / delta))


def tolerable_noise(margin: Value, bias: Value, lipschitz: Value, tau: Value) -> Value:
    """c = margin/(bias + tau lipschitz)   [B]."""
    return margin / (bias + tau * lipschitz)


def tail_events(analog: Value, tokens: Value, one_label: Value) -> Value:
    """Number of pairs of an analog expert and a token's tail   [Bu].

    A token has two tails, and one if it comes with one label only.
    """
    return analog * (2 * tokens - one_label)


def failure_bound(mean: Value, lipschitz: Value) -> Value:
    """exp(-(mean/lipschitz)^2/2), an upper bound on P(y f~ <= 0) for a mean above 0   [B-mean]."""
    return exp(-((mean / lipschitz) ** 2) / 2)


def error_bound(ratio: Value, third: Value, sd: Value) -> Value:
    """Q(mean/sd) - BERRY_ESSEEN third/sd^3, a lower bound on P(y f~ <= 0)   [U]."""
    return Q(ratio) - BERRY_ESSEEN * third / sd**3


def relu_exponential(theta: Value, a: Value, sigma: Value) -> Value:
    """E exp(theta ReLU(a + sigma z)) for sigma above 0   [B-exp].

    The ReLU is off with probability Q(a/sigma); where it is on, the exponential shifts the normal.
    """
    return Q(a / sigma) + exp(theta * a + (theta * sigma) ** 2 / 2) * Phi(a / sigma + theta * sigma)


def ideal_frequent_sd(terms: Value, m: Value, l: Value, variance: Value) -> Value:  # noqa: E741
    """Standard deviation of y f~/(c rho) that comes from `terms` idealised ReLUs of frequent specialists   [Gain]."""
    return sqrt(terms * variance) / (m * l)


def ideal_third(terms: Value, m: Value, l: Value, third: Value, rare: Value, rho: Value) -> Value:  # noqa: E741
    """An upper bound on the sum of third moments of y f~/(c rho), over all specialists   [Gain].

    terms: number of ReLUs of frequent specialists; each has the third moment `third`.
    rare: sum of |coefficient|^3 of the other specialists, whose noise is 1/rho.

    ReLU(a + sigma z) differs by at most sigma |z - z'| from an independent copy, so that its third moment is at most
    sigma^3 E |z - z'|^3 = 8/sqrt(pi) sigma^3.
    """
    return terms * third / (m * l) ** 3 + rare * 8 / sqrt(pi(third)) / rho**3
