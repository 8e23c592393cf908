"""How much programming noise does a network tolerate? Bounds and a prediction.

The statements behind the bounds are proved (derivations/). Here they are evaluated in float64, without bounds on the
rounding.

formulas.py holds the formulas, network.py what they are about, terms.py the noisy output as a sum of terms, bounds.py
the tolerance of one input or of all at once, classes.py that of a network on several kinds of input.
"""

from theory.tolerance.bounds import (
    corrected_bound,
    exact_mean_bound,
    exponential_bound,
    margins,
    mean_shift,
    pointwise_bound,
    predicted_accuracy,
    uniform_bound,
    upper_bound,
)
from theory.tolerance.classes import (
    FAILURE,
    gain_floor,
    linear_gain,
    predicted_tolerance,
    tolerance_ceiling,
    tolerance_floor,
)
from theory.tolerance.formulas import (
    BERRY_ESSEEN,
    concentration,
    error_bound,
    failure_bound,
    ideal_frequent_sd,
    ideal_third,
    relu_exponential,
    tail_events,
    tolerable_noise,
)
from theory.tolerance.network import ORTHOGONAL, OWN_SCORE, Gates, Network, WMax, idealised

__all__ = [
    "BERRY_ESSEEN",
    "FAILURE",
    "ORTHOGONAL",
    "OWN_SCORE",
    "Gates",
    "Network",
    "WMax",
    "concentration",
    "corrected_bound",
    "error_bound",
    "exact_mean_bound",
    "exponential_bound",
    "failure_bound",
    "gain_floor",
    "ideal_frequent_sd",
    "ideal_third",
    "idealised",
    "linear_gain",
    "margins",
    "mean_shift",
    "pointwise_bound",
    "predicted_accuracy",
    "predicted_tolerance",
    "relu_exponential",
    "tail_events",
    "tolerable_noise",
    "tolerance_ceiling",
    "tolerance_floor",
    "uniform_bound",
    "upper_bound",
]
