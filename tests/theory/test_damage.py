"""Do the closed forms of D and D-dense agree with programmed weights, where they are exact and where of first order?"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from monte_carlo import FAILURE
from scipy import stats
from torch import Tensor
from torch.nn.functional import silu

from theory.damage import expected_damage, gated_variance, linear_damage, product_variance
from theory.hardware import Granularity, Hardware, program

pytestmark = pytest.mark.claim("D")

DRAWS = 4000
TOKENS, HIDDEN, INNER = 5, 6, 7
sizes = st.floats(-3, 3)
variances = st.floats(0, 3)


def one(x: Tensor) -> Tensor:
    """Activation without a slope, which leaves the product of two matrices."""
    return 0 * x + 1


class Expert:
    """A random gated expert with the tokens routed to it, fp64."""

    def __init__(self, seed: int, tokens: int = TOKENS) -> None:
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64)

        self.gate, self.up, self.down = normal(INNER, HIDDEN), normal(INNER, HIDDEN), normal(HIDDEN, INNER)
        self.x, self.gradient = normal(tokens, HIDDEN), normal(tokens, HIDDEN)
        self.routing = normal(tokens).abs()

    def arguments(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.x, self.gate, self.up, self.down

    def errors(self, hardware: Hardware, activation: Callable[[Tensor], Tensor], draws: int) -> Tensor:
        """(draws, tokens, hidden) of the routed output: programmed minus exact."""
        generator = torch.Generator().manual_seed(1)

        def output(gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
            inner = activation(self.x @ gate.mT) * (self.x @ up.mT)
            return self.routing[:, None] * (inner @ down.mT)

        weights = (self.gate, self.up, self.down)
        programmed = [program(each.expand(draws, -1, -1), hardware, generator) for each in weights]
        return output(*programmed) - output(*weights)


def assert_mean(draws: Tensor, expected: Tensor) -> None:
    """A normal interval for the mean of thousands of draws of finite variance."""
    error = (draws.mean() - expected).abs() / (draws.std() / len(draws) ** 0.5)
    assert error < stats.norm.isf(FAILURE / 2), float(error)


@pytest.mark.parametrize("programming", ["pcm", "proportional", "constant"])
@pytest.mark.parametrize("w_max", ["tile", "column", "layer"])
@pytest.mark.parametrize("with_gradient", [False, True], ids=["error", "loss"])
@pytest.mark.parametrize("activation", [one, torch.relu, silu], ids=lambda each: each.__name__)
def test_small_noise_costs_what_the_closed_form_says(
    programming: str, w_max: Any, with_gradient: bool, activation: Callable[[Tensor], Tensor]
) -> None:
    expert = Expert(0)
    hardware = Hardware(programming=programming, c=1e-3, w_max=w_max, tile_size=4)
    gradient = expert.gradient if with_gradient else None
    found = expected_damage(*expert.arguments(), hardware, activation, expert.routing, gradient)
    errors = expert.errors(hardware, activation, DRAWS)
    if gradient is None:
        assert_mean(errors.square().sum((1, 2)), found)
    else:
        assert_mean((errors * gradient).sum(2).square().sum(1) / 2, found)


def test_without_a_nonlinearity_large_noise_is_exact_too() -> None:
    expert, hardware = Expert(1), Hardware(programming="constant", c=0.4, w_max="layer")
    found = expected_damage(*expert.arguments(), hardware, one, expert.routing)
    assert_mean(expert.errors(hardware, one, 20 * DRAWS).square().sum((1, 2)), found)


@given(w=sizes, s=variances, z=sizes, v=variances)
def test_product_variance_is_that_of_all_four_corners(w: float, s: float, z: float, v: float) -> None:
    """Two-point distributions w +- s and z +- sqrt(v) have these means and variances."""
    corners = torch.tensor([(w + s * a) * (z + v**0.5 * b) for a in (-1, 1) for b in (-1, 1)])
    found = product_variance(w, s, z, v)
    assert found == pytest.approx(float(corners.double().var(correction=0)), rel=1e-4, abs=1e-4)


@given(slope=sizes, other=sizes, v=variances, u=variances)
def test_gated_variance_is_that_of_the_tangent(slope: float, other: float, v: float, u: float) -> None:
    corners = torch.tensor([slope * v**0.5 * a + other * u**0.5 * b for a in (-1, 1) for b in (-1, 1)])
    expected = float(corners.double().var(correction=0))
    assert gated_variance(slope, other, v, u) == pytest.approx(expected, rel=1e-4, abs=1e-4)


@given(seed=st.integers(0, 2**20), factor=st.floats(0.1, 5))
def test_damage_scales_with_routing_output_and_tokens(seed: int, factor: float) -> None:
    """Twice the routing weight costs four times as much, a larger down projection by its square, tokens add up."""
    expert, hardware = Expert(seed), Hardware(c=0.5, tile_size=4)
    x, gate, up, down = expert.arguments()
    found = expected_damage(x, gate, up, down, hardware, silu, expert.routing)
    assert found > 0
    more = expected_damage(x, gate, up, down, hardware, silu, factor * expert.routing)
    torch.testing.assert_close(more, factor**2 * found)
    torch.testing.assert_close(
        expected_damage(x, gate, up, factor * down, hardware, silu, expert.routing), factor**2 * found
    )
    parts = [
        expected_damage(x[part], gate, up, down, hardware, silu, expert.routing[part])
        for part in (slice(2), slice(2, None))
    ]
    torch.testing.assert_close(parts[0] + parts[1], found)


@given(seed=st.integers(0, 2**20))
def test_no_noise_costs_nothing_and_a_larger_w_max_costs_more(seed: int) -> None:
    expert = Expert(seed)
    tile, column, layer = (Hardware(c=0.5, w_max=w_max, tile_size=4) for w_max in get_args(Granularity))
    by_size = [
        expected_damage(*expert.arguments(), hardware, silu, expert.routing)
        for hardware in (replace(tile, c=0.0), column, tile, layer)
    ]
    assert by_size[0] == 0 and by_size[1] <= by_size[2] <= by_size[3]


@given(seed=st.integers(0, 2**20))
def test_gradients_along_every_axis_add_up_to_the_error(seed: int) -> None:
    """With G = unit vector i: half of output i's variance. The sum over i is the expected squared length."""
    expert, hardware = Expert(seed, tokens=1), Hardware(c=0.5, tile_size=4)
    arguments = (*expert.arguments(), hardware, silu, expert.routing)
    axes = [expected_damage(*arguments, axis[None]) for axis in torch.eye(HIDDEN, dtype=torch.float64)]
    torch.testing.assert_close(2 * torch.stack(axes).sum(), expected_damage(*arguments))


@pytest.mark.claim("D-dense")
def test_one_weight() -> None:
    """sigma = c w_max = 1.5: (G sigma x)^2 / 2 = (4 * 1.5 * 2)^2 / 2."""
    one_by_one = [torch.tensor([[value]]) for value in (2.0, -3.0, 4.0)]
    x, weight, gradient = one_by_one
    hardware = Hardware(programming="constant", c=0.5)
    assert linear_damage(x, weight, hardware, gradient) == 72


@pytest.mark.claim("D-dense")
@pytest.mark.parametrize("programming", ["pcm", "proportional", "constant"])
@pytest.mark.parametrize("w_max", ["tile", "column", "layer"])
def test_a_linear_layer_costs_what_the_closed_form_says_at_any_noise(programming: str, w_max: Any) -> None:
    """The error is linear in the noise. Its square along every axis, and so its length, is a case of this."""
    expert = Expert(2)
    hardware = Hardware(programming=programming, c=1.5, w_max=w_max, tile_size=4)
    generator = torch.Generator().manual_seed(1)
    error = program(expert.gate.expand(DRAWS, -1, -1), hardware, generator) - expert.gate
    axes = torch.eye(INNER, dtype=torch.float64)[:TOKENS]
    for gradient in (axes, torch.randn(TOKENS, INNER, generator=generator, dtype=torch.float64)):
        found = linear_damage(expert.x, expert.gate, hardware, gradient)
        assert_mean(((expert.x @ error.mT) * gradient).sum(2).square().sum(1) / 2, found)


@pytest.mark.claim("D-dense")
@given(seed=st.integers(0, 2**20), factor=st.floats(0.1, 5))
def test_damage_of_a_linear_layer_is_quadratic_and_tokens_add_up(seed: int, factor: float) -> None:
    expert, hardware = Expert(seed), Hardware(c=0.5, tile_size=4)
    inputs, down = torch.cat([expert.x, expert.x[:, :1]], 1), expert.down
    found = linear_damage(inputs, down, hardware, expert.gradient)
    assert found > 0
    louder = replace(hardware, c=0.5 * factor)
    for scaled in (
        linear_damage(inputs, down, louder, expert.gradient),
        linear_damage(factor * inputs, down, hardware, expert.gradient),
        linear_damage(inputs, down, hardware, factor * expert.gradient),
    ):
        torch.testing.assert_close(scaled, factor**2 * found)
    parts = [
        linear_damage(inputs[part], down, hardware, expert.gradient[part])
        for part in (slice(2), slice(2, None))
    ]
    torch.testing.assert_close(parts[0] + parts[1], found)
