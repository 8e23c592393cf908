"""Are the moments of a noisy ReLU those of quadrature and of draws, and do they obey their laws?"""

import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from monte_carlo import FAILURE
from numpy.typing import NDArray
from scipy import stats

from theory.moments import (
    relu_bias,
    relu_mean,
    relu_second_moment,
    relu_third_moment,
    relu_third_moment_about,
    relu_variance,
)

Array = NDArray[np.float64]
EPS = np.finfo(np.float64).eps
means = st.floats(-8, 8)
deviations = st.floats(0.01, 10)
MOMENTS = {relu_mean: 1, relu_bias: 1, relu_second_moment: 2, relu_variance: 2, relu_third_moment: 3}


NODES, WEIGHTS = np.polynomial.legendre.leggauss(24)
PANELS = (
    16  # between two kinks: 24 nodes on a piece of a smooth integrand of this length are exact to rounding
)
END = 13.0  # of the integral over z; phi(13) is below 1e-37


def quadrature(power: Callable[[Array], Array], a: float, sigma: float, *kinks: float) -> float:
    """E power(ReLU(a + sigma z)) by Gauss-Legendre between the kinks of the integrand (values of z)."""
    bounds = np.clip(sorted((-END, -a / sigma, *kinks, END)), -END, END)
    edges = np.concatenate([np.linspace(*pair, PANELS + 1) for pair in pairwise(bounds)])
    half, middle = np.diff(edges)[:, None] / 2, (edges[:-1] + edges[1:])[:, None] / 2
    z = middle + half * NODES
    return float((half * WEIGHTS * power(np.maximum(a + sigma * z, 0.0)) * stats.norm.pdf(z)).sum())


def rounding(a: float, sigma: float, degree: int) -> float:
    """Absolute error of a few float64 operations on quantities of size (|a| + sigma)^degree."""
    return 32 * EPS * (abs(a) + sigma) ** degree


@pytest.mark.claim("M1")
@given(a=means, sigma=deviations)
def test_mean_and_bias_are_the_integrals(a: float, sigma: float) -> None:
    expected = quadrature(lambda x: x, a, sigma)
    assert relu_mean(a, sigma) == pytest.approx(expected, rel=0, abs=rounding(a, sigma, 1))
    assert relu_bias(a, sigma) == pytest.approx(expected - max(a, 0.0), rel=0, abs=rounding(a, sigma, 1))


@pytest.mark.claim("M2")
@given(a=means, sigma=deviations)
def test_second_moment_and_variance_are_the_integrals(a: float, sigma: float) -> None:
    mean, second = quadrature(lambda x: x, a, sigma), quadrature(lambda x: x**2, a, sigma)
    assert relu_second_moment(a, sigma) == pytest.approx(second, rel=0, abs=rounding(a, sigma, 2))
    assert relu_variance(a, sigma) == pytest.approx(second - mean**2, rel=0, abs=rounding(a, sigma, 2))


@pytest.mark.claim("M3")
@given(a=means, sigma=deviations, centre=st.floats(0, 10))
def test_third_moment_is_the_integral(a: float, sigma: float, centre: float) -> None:
    for middle, value in (
        (relu_mean(a, sigma), relu_third_moment(a, sigma)),
        (centre, relu_third_moment_about(centre, a, sigma)),
    ):
        expected = quadrature(lambda x, c=middle: abs(x - c) ** 3, a, sigma, (middle - a) / sigma)  # type: ignore[misc]
        assert value == pytest.approx(expected, rel=0, abs=rounding(abs(a) + middle, sigma, 3))


@pytest.mark.claim("M1")
@given(a=means, sigma=deviations, seed=st.integers(0, 2**32 - 1))
def test_mean_is_that_of_draws(a: float, sigma: float, seed: int) -> None:
    """A mean of n draws is t off with probability < 2 exp(-n t^2/(2 sigma^2)): the ReLU is sigma-Lipschitz in z."""
    n = 10_000
    draws = np.maximum(a + sigma * np.random.default_rng(seed).standard_normal(n), 0.0)
    assert abs(draws.mean() - relu_mean(a, sigma)) < sigma * math.sqrt(2 * math.log(2 / FAILURE) / n)


@pytest.mark.claim("M1")
@given(a=st.floats(-1e3, 1e3), sigma=deviations)
def test_the_bias_is_even_and_between_its_bounds(a: float, sigma: float) -> None:
    error = rounding(a, sigma, 1)
    assert -error <= relu_bias(a, sigma) <= sigma / math.sqrt(2 * math.pi) + error
    assert relu_bias(a, sigma) == pytest.approx(relu_bias(-a, sigma), rel=0, abs=error)


@pytest.mark.claim("M2")
@given(low=means, high=means, sigma=deviations)
def test_the_variance_rises_with_a_and_stays_below_that_of_the_input(
    low: float, high: float, sigma: float
) -> None:
    low, high = sorted((low, high))
    error = rounding(max(abs(low), abs(high)), sigma, 2)
    assert -error <= relu_variance(low, sigma) <= relu_variance(high, sigma) + error <= sigma**2 + 2 * error


@pytest.mark.claim("M3")
@given(a=means, sigma=deviations)
def test_the_third_moment_is_at_least_the_variance_to_the_power_of_three_halves(
    a: float, sigma: float
) -> None:
    """Lyapunov's inequality. The moment is at most that of the whole normal, sigma^3 sqrt(8/pi): ReLU contracts."""
    third, error = relu_third_moment(a, sigma), rounding(a, sigma, 3)
    assert max(relu_variance(a, sigma), 0.0) ** 1.5 - error <= third
    # E|R - ER|^3 <= E|R - R'|^3 for an independent copy R', and |R - R'| <= sigma |z - z'|.
    assert third <= 2**1.5 * math.sqrt(8 / math.pi) * sigma**3 + error


@pytest.mark.claim("M1")
@pytest.mark.claim("M2")
@pytest.mark.claim("M3")
@given(a=means, sigma=deviations, scale=st.floats(0.1, 10))
def test_moments_are_homogeneous(a: float, sigma: float, scale: float) -> None:
    for moment, degree in MOMENTS.items():
        error = 4 * scale**degree * rounding(a, sigma, degree)
        assert moment(scale * a, scale * sigma) == pytest.approx(
            scale**degree * moment(a, sigma), rel=0, abs=error
        )


@pytest.mark.claim("M1")
@pytest.mark.claim("M2")
@pytest.mark.claim("M3")
def test_without_noise_tensors_are_certain() -> None:
    a = torch.tensor([-2.0, -0.0, 0.0, 3.0], dtype=torch.float64)
    none = torch.zeros_like(a)
    assert torch.equal(relu_mean(a, none), torch.relu(a))
    assert torch.equal(relu_second_moment(a, none), torch.relu(a) ** 2)
    for moment in (relu_bias, relu_variance, relu_third_moment):
        assert torch.equal(moment(a, none).abs(), none), moment.__name__


@given(a=means, sigma=deviations)
def test_tensors_and_numbers_agree(a: float, sigma: float) -> None:
    for moment, degree in MOMENTS.items():
        tensor = moment(torch.tensor([[a]], dtype=torch.float64), torch.tensor([sigma], dtype=torch.float64))
        assert tensor.shape == (1, 1)
        assert float(tensor) == pytest.approx(moment(a, sigma), rel=0, abs=rounding(a, sigma, degree))
