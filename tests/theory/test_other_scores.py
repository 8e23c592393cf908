"""The scores of others: one neuron, one singular value and one expert at a time; their symmetries and scales."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from theory.errors import InputError
from theory.other_scores import alphaq_score, eigenvalues, hill_exponent, maxvar_score, mc_score

seeds = st.integers(0, 2**31)
sizes = st.integers(2, 30)
scales = st.floats(1e-3, 1e3)


def expert(seed: int, hidden: int, inner: int, *experts: int) -> list[Tensor]:
    """gate, up and down."""
    rng = np.random.default_rng(seed)
    shapes = [(inner, hidden), (inner, hidden), (hidden, inner)]
    return [torch.tensor(rng.standard_normal((*experts, *shape))) for shape in shapes]


def direct_hill(values: Sequence[float]) -> float:
    ordered = sorted(values, reverse=True)
    k = min(max(10, len(values) // 10), len(values) - 1)
    return 1 + k / sum(math.log(value / ordered[k]) for value in ordered[:k])


# Direct computations


def test_maxvar_has_known_values() -> None:
    """Variances of the rows 1 and 9, not of the columns, and not around 0."""
    gate = torch.tensor([[10.0, 12.0], [-3.0, 3.0]], dtype=torch.bfloat16)
    score = maxvar_score([gate, 100 * gate, 100 * gate.T])
    assert score.item() == 9 and score.dtype == torch.float64


@given(seed=seeds, hidden=sizes, inner=sizes, experts=st.integers(1, 4))
def test_weights_are_scored_as_one_by_one(seed: int, hidden: int, inner: int, experts: int) -> None:
    layers = expert(seed, hidden, inner, experts)
    maxvar, alphaq = maxvar_score(layers), alphaq_score(layers)
    assert maxvar.shape == alphaq.shape == (experts,)
    for number in range(experts):
        gate, *_ = own = [layer[number].numpy() for layer in layers]
        assert float(maxvar[number]) == pytest.approx(max(np.var(neuron) for neuron in gate), rel=1e-12)
        expected = 0.0
        for matrix in own:
            squares = np.linalg.svd(matrix, compute_uv=False) ** 2
            expected += np.var(matrix) / direct_hill(squares.tolist()) ** 10
        assert float(alphaq[number]) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("rows", "columns"), [(128, 128), (300, 257), (128, 400), (127, 500)])
def test_the_spectrum_of_a_large_matrix_is_that_of_its_blocks(rows: int, columns: int) -> None:
    matrix = np.random.default_rng(rows).standard_normal((rows, columns))
    blocks = [
        matrix[row : row + 128, column : column + 128]
        for row in range(0, rows - 127, 128)
        for column in range(0, columns - 127, 128)
    ] or [matrix]
    expected = sorted(float(s) ** 2 for block in blocks for s in np.linalg.svd(block, compute_uv=False))
    found = eigenvalues(torch.tensor(matrix))
    assert found.shape == (len(expected),)
    assert found.tolist() == pytest.approx(expected, rel=1e-9, abs=1e-9 * expected[-1])
    assert eigenvalues(torch.tensor(matrix).expand(2, 3, -1, -1)).shape == (2, 3, len(expected))


@given(st.lists(st.integers(1, 10**5), min_size=2, max_size=300, unique=True))
def test_the_exponent_is_hills(values: list[int]) -> None:
    """Values differ by 1e-5 of themselves or more: of nearer ones the difference of the logs is rounding."""
    found = hill_exponent(torch.tensor(sorted(values), dtype=torch.float64))
    assert float(found) == pytest.approx(direct_hill(values), rel=1e-9)


@pytest.mark.parametrize("exponent", [1.5, 3.0])
def test_the_exponent_of_a_power_law_is_found(exponent: float) -> None:
    """Hill's estimate of alpha - 1 has a relative standard deviation of 1/sqrt(k) [normal for a k so large]."""
    n = 10**6
    values = torch.rand(n, generator=torch.Generator().manual_seed(0), dtype=torch.float64) ** (
        -1 / (exponent - 1)
    )
    found = float(hill_exponent(values.sort().values)) - 1
    assert found == pytest.approx(exponent - 1, rel=6 / math.sqrt(n / 10))


@given(seed=seeds, layers=st.integers(1, 3), experts=st.integers(1, 5))
def test_mc_is_a_product_of_powers(seed: int, layers: int, experts: int) -> None:
    frequency, weight, error = torch.rand(
        3, layers, experts, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    ).clamp(min=1e-3)
    found = mc_score(frequency, weight, error)
    for layer in range(layers):
        for expert in range(experts):
            f = float(frequency[layer, expert]) / sum(frequency[layer].tolist())
            w = float(weight[layer, expert]) / sum(weight[layer].tolist())
            expected = f * w**1.5 * math.sqrt(float(error[layer, expert])) ** 2
            assert float(found[layer, expert]) == pytest.approx(expected, rel=1e-12)


# Laws


@given(seed=seeds, hidden=sizes, inner=sizes, scale=scales)
def test_weights_count_by_their_squares(seed: int, hidden: int, inner: int, scale: float) -> None:
    layers = expert(seed, hidden, inner)
    larger = [scale * layer for layer in layers]
    for score in (maxvar_score, alphaq_score):
        assert float(score(larger)) == pytest.approx(scale**2 * float(score(layers)), rel=rounding(layers))
    spectrum = eigenvalues(layers[0])
    assert float(hill_exponent(scale * spectrum)) == pytest.approx(float(hill_exponent(spectrum)), rel=1e-6)


def rounding(layers: Sequence[Tensor]) -> float:
    """Relative, of a score: the least eigenvalue errs by n eps times the largest, and AlphaQ takes a tenth power."""
    eps = torch.finfo(torch.float64).eps
    spectra = [eigenvalues(layer) for layer in layers]
    worst = max(
        float((each[..., -1] / each[..., 0].clamp(min=eps * each[..., -1])).max()) for each in spectra
    )
    return 1e-6 + 10 * 10 * spectra[0].shape[-1] * eps * worst


@given(seed=seeds, hidden=sizes, inner=sizes)
def test_neither_neurons_nor_experts_have_an_order(seed: int, hidden: int, inner: int) -> None:
    layers = expert(seed, hidden, inner, 4)
    generator = torch.Generator().manual_seed(seed)
    order, neurons, inputs = (torch.randperm(n, generator=generator) for n in (4, inner, hidden))
    mixed = [layers[0][:, neurons][..., inputs], layers[1][:, neurons], layers[2][..., neurons]]
    for score in (maxvar_score, alphaq_score):
        torch.testing.assert_close(score(mixed), score(layers), rtol=rounding(layers), atol=0)
        permuted = score([layer[order] for layer in layers])
        torch.testing.assert_close(permuted, score(layers)[order], rtol=1e-9, atol=0)


@given(seed=seeds, experts=st.integers(1, 6), scale=scales)
def test_mc_knows_neither_the_order_of_experts_nor_the_number_of_tokens(
    seed: int, experts: int, scale: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    tables = torch.rand(3, 2, experts, generator=generator, dtype=torch.float64) + 0.01
    found, order = mc_score(*tables), torch.randperm(experts, generator=generator)
    torch.testing.assert_close(mc_score(*tables[..., order]), found[:, order], rtol=1e-12, atol=0)
    torch.testing.assert_close(mc_score(scale * tables[0], scale * tables[1], tables[2]), found)
    torch.testing.assert_close(mc_score(tables[0], tables[1], scale * tables[2]), scale * found)


def test_a_mean_is_no_variance_and_a_heavier_tail_scores_more() -> None:
    gate, up, down = expert(0, 30, 20)
    assert float(maxvar_score([gate + 5, up, down])) == pytest.approx(float(maxvar_score([gate, up, down])))
    left, values, right = torch.linalg.svd(gate, full_matrices=False)
    heavier = left @ (values**2).diag() @ right
    heavier *= (gate.var() / heavier.var()).sqrt()
    assert float(alphaq_score([heavier])) > 10 * float(alphaq_score([gate]))


# What has no spectrum


def test_experts_without_weights_come_last() -> None:
    nothing = torch.zeros(20, 30)
    for score in (maxvar_score, alphaq_score):
        assert float(score([nothing])) == 0
    equal, low_rank = torch.eye(20), torch.ones(20, 30)
    assert float(alphaq_score([equal])) == 0  # no tail at all
    assert math.isfinite(float(alphaq_score([low_rank]))) and float(alphaq_score([low_rank])) >= 0


def test_one_number_has_no_tail() -> None:
    with pytest.raises(InputError, match=r"a spectrum of 1 has no tail: give matrices of at least 2 rows"):
        alphaq_score([torch.ones(1, 7)])
