"""What does the kernel of Coq check? Theorems about the formulas that the experiments evaluate.

`Formulas.v` is written from the Python functions below at every check. The other files beside this module state
theorems about these definitions and prove them by hand: a formula that changes breaks its proofs.

`python -m theory.kernel` compiles all and prints every theorem. Exit status 1 unless all are proved.
"""

from collections.abc import Callable
from dataclasses import replace

from theory import functions, moments, tolerance
from theory.derivations import Step, lemmas
from theory.hardware import PROGRAMMING_NOISE, ProgrammingNoise
from theory.kernel import coq
from theory.kernel.terms import Term, definition

FUNCTIONS = ("phi", "Phi", "Q", "relu")
MOMENTS = (
    "relu_mean",
    "relu_bias",
    "relu_second_moment",
    "relu_variance",
    "relu_third_moment_about",
    "relu_third_moment",
)
BOUNDS = (
    "concentration",
    "tolerable_noise",
    "tail_events",
    "failure_bound",
    "error_bound",
    "relu_exponential",
)


def formulas() -> str:
    """`Formulas.v`: every formula as a definition of Coq, its arguments real numbers."""
    hermes = PROGRAMMING_NOISE["hermes"]
    named = {
        **{name: getattr(functions, name) for name in FUNCTIONS},
        **{name: getattr(moments, name) for name in MOMENTS},
        **{name: getattr(tolerance, name) for name in BOUNDS},
        "gaussian_tail": lemmas.gaussian_tail,
        "pcm": _piece(PROGRAMMING_NOISE["pcm"], 0),
        "hermes_one_device": _piece(hermes, 0),
        "hermes_two_devices": _piece(hermes, 1),
        "hermes_border": lambda: Term(hermes.border) / hermes.x_max,
    }
    return coq.HEAD + "".join(definition(name, formula) for name, formula in named.items())


def _piece(noise: ProgrammingNoise, number: int) -> Callable[[Term], Term]:
    """Standard deviation at r by one of the polynomials, in its units."""
    alone = replace(noise, pieces=(noise.pieces[number],))
    return lambda r: noise.scale * alone.sigma(r)


def _theorem(equation: str, name: str) -> Step:
    """The step that a theorem, "File.name", proves."""

    def check() -> bool:
        failure = coq.check(formulas()).failure(name)
        if failure:
            raise coq.BrokenProofError(failure)
        return True

    file, _, theorem = name.partition(".")
    return Step(equation, "kernel", check, f"theory/kernel/{file}.v: {theorem}")


_TAIL = _theorem("Q(t) <= exp(-t^2/2)/2 for all t >= 0", "Tail.gaussian_tail_is_above_Q")
_BIAS = _theorem("0 <= b(a) <= sigma/sqrt(2 pi) for all a", "Tail.relu_bias_is_between_0_and_its_value_at_0")
_FAILURE = _theorem(
    "exp(-(mean/L)^2/2) <= delta if and only if mean >= sqrt(2 ln(1/delta)) L, for 0 < delta <= 1 and mean >= 0",
    "Bound.failure_bound_is_at_most_delta",
)
_SOLUTION = _theorem(
    "c <= mu/(beta + tau L) if and only if mu - c beta >= tau c L, for beta >= 0",
    "Bound.tolerable_noise_is_the_solution",
)

# By claim. What a step says holds for all real numbers that it names; sigma, L and tau are above 0.
STEPS = {
    "M1": (
        _theorem("the integral of phi over the real line is 1", "Moments.density_has_mass_1"),
        _theorem(
            "the integral of ReLU(a + sigma z) phi(z) over the real line is a Phi(a/sigma) + sigma phi(a/sigma)",
            "Moments.relu_mean_is_the_mean",
        ),
        _BIAS,
        _theorem("b(0) = sigma/sqrt(2 pi)", "Tail.relu_bias_at_0"),
        _theorem("b(-a) = b(a)", "Tail.relu_bias_is_even"),
        _theorem("b falls with a >= 0", "Tail.relu_bias_falls"),
    ),
    "M2": (
        _theorem(
            "the integral of ReLU(a + sigma z)^2 phi(z) over the real line is"
            " (a^2 + sigma^2) Phi(a/sigma) + a sigma phi(a/sigma)",
            "Moments.relu_second_moment_is_the_mean",
        ),
        _theorem(
            "the integral of (ReLU(a + sigma z) - E ReLU)^2 phi(z) over the real line is E ReLU^2 - (E ReLU)^2",
            "Moments.relu_variance_is_the_variance",
        ),
        _theorem("0 <= Var <= sigma^2", "Moments.relu_variance_is_between_0_and_sigma_squared"),
    ),
    "M3": (
        _theorem(
            "the integral of |ReLU(a + sigma z) - mu|^3 phi(z) over the real line is"
            " relu_third_moment_about(mu, a, sigma), for every mu >= 0",
            "Moments.relu_third_moment_about_is_the_mean",
        ),
        _theorem(
            "for mu = E ReLU, which is >= 0, it is relu_third_moment(a, sigma)",
            "Moments.relu_third_moment_is_the_mean",
        ),
    ),
    "B": (
        _BIAS,
        _SOLUTION,
        _theorem(
            "exp(-tau^2/2) = delta for tau = sqrt(2 ln(1/delta))", "Bound.failure_bound_is_delta_at_tau"
        ),
        _theorem(
            "c <= mu/(beta + tau L) gives mu - c beta > 0 and exp(-((mu - c beta)/(c L))^2/2) <= delta",
            "Bound.noise_up_to_the_bound_fails_at_most_delta",
        ),
        _theorem(
            "c > mu/(beta + tau L) gives exp(-((mu - c beta)/(c L))^2/2) > delta, as long as mu >= c beta",
            "Bound.noise_above_the_bound_is_not_guaranteed",
        ),
        _theorem("the bound falls with beta, L and tau", "Bound.tolerable_noise_falls"),
    ),
    "B-mean": (
        _BIAS,
        _theorem(
            "for sigma from low > 0 to high, b less its value at low is from phi(a/low) (sigma - low) to"
            " phi(a/high) (sigma - low)",
            "Tail.relu_bias_is_enclosed",
        ),
        _FAILURE,
    ),
    "B-exp": (
        _BIAS,
        _theorem(
            "the integral of exp(t ReLU(a + sigma z)) phi(z) over the real line is"
            " Q(a/sigma) + exp(t a + (t sigma)^2/2) Phi(a/sigma + t sigma), for every t",
            "Moments.relu_exponential_is_the_mean",
        ),
    ),
    "Bu": (
        _BIAS,
        _theorem("tail_events(|A|, d + 2, 4) = 2 |A| d", "Bound.events_of_the_setting"),
        _theorem(
            "K events of probability exp(-tau^2/2) make delta for tau = sqrt(2 ln(K/delta)), for 0 < delta <= K",
            "Bound.events_share_delta",
        ),
        _SOLUTION,
    ),
    "U": (
        _theorem("Q(y) <= Q(x) for x <= y", "Tail.Q_falls"),
        _theorem("E ReLU(a + sigma z) rises with a", "Upper.relu_mean_rises"),
        _theorem("Var ReLU(a + sigma z) rises with a", "Upper.relu_variance_rises"),
        _theorem("E |ReLU(a + sigma z) - E ReLU|^3 rises with a", "Upper.relu_third_moment_rises"),
        _theorem(
            "for u from low to high, E ReLU(a u + sigma z) less its value at low is from"
            " a Phi(a low/sigma) (u - low) to a Phi(a high/sigma) (u - low)",
            "Upper.relu_mean_is_enclosed",
        ),
        _theorem(
            "Q(r) - .56 third/sd^3 falls with r and third >= 0, and rises with sd > 0",
            "Upper.error_bound_falls",
        ),
    ),
    "P": (_TAIL,),
    "H": (
        _theorem(
            ".26348 <= sigma_g <= 1.0864 microsiemens (pcm, c = 1) for 0 <= |w|/w_max <= 1", "Noise.pcm_range"
        ),
        _theorem(
            "2.5797 <= sigma_g <= 8.3623 microsiemens (hermes, c = 1) up to 52.5 of 180 microsiemens, on one device",
            "Noise.hermes_one_device_range",
        ),
        _theorem(
            "8.3549 <= sigma_g <= 19.1985 microsiemens (hermes, c = 1) from there on, on two devices",
            "Noise.hermes_two_devices_range",
        ),
    ),
}
