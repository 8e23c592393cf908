"""Has MaxNNScore its known values, its symmetries and its precision?"""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from theory.errors import InputError
from theory.score import max_neuron_norm, maxnn_score, neuron_norms

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
DTYPES = [torch.float32, torch.bfloat16, torch.float64]

devices = pytest.mark.parametrize("device", DEVICES)
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)
seeds = st.integers(0, 2**31)
sizes = st.integers(1, 9)


def gamma(roundings: int, dtype: torch.dtype = torch.float64) -> float:
    """Relative error of this many roundings [Higham, Accuracy and Stability of Numerical Algorithms, section 3.1]."""
    unit = torch.finfo(dtype).eps / 2
    return roundings * unit / (1 - roundings * unit)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def whole_numbers(seed: int, *shape: int) -> Tensor:
    """Whole numbers, exact in every dtype with the sums of their squares: equalities hold bit for bit."""
    return torch.randint(-3, 4, shape, generator=seeded(seed), dtype=torch.float64)


def expert(seed: int, hidden: int, inner: int, *experts: int) -> list[Tensor]:
    """Weights up, gate and down of an expert, in whole numbers."""
    shapes = [(inner, hidden), (inner, hidden), (hidden, inner)]
    return [whole_numbers(seed + number, *experts, *shape) for number, shape in enumerate(shapes)]


def as_given(layers: list[Tensor], device: str, dtype: torch.dtype) -> list[Tensor]:
    return [weight.to(device, dtype) for weight in layers]


def matrices(elements: st.SearchStrategy[float], rows: int, columns: int) -> st.SearchStrategy[Tensor]:
    row = st.lists(elements, min_size=columns, max_size=columns)
    return st.lists(row, min_size=rows, max_size=rows).map(torch.tensor)


# Known values


@devices
@dtypes
def test_known_values(device: str, dtype: torch.dtype) -> None:
    """A neuron is a row: the columns of the first weight have norms 3, 4 and 12, its rows 5 and 12."""
    up = torch.tensor([[3.0, -4.0, 0.0], [0.0, 0.0, 12.0]], device=device, dtype=dtype)
    gate = torch.tensor([[1.0, 2.0, -2.0], [1.0, 0.0, 0.0]], device=device, dtype=dtype)
    down = torch.tensor([[0.0, 0.5], [-0.25, 0.0], [0.0, 0.0]], device=device, dtype=dtype)
    assert neuron_norms(up).tolist() == [5, 12]
    assert neuron_norms(torch.stack([up, gate])).tolist() == [[5, 12], [3, 1]]
    assert max_neuron_norm(up).item() == 12
    assert max_neuron_norm(torch.stack([up, gate])).tolist() == [12, 3]
    assert maxnn_score([up]).item() == 12
    assert maxnn_score([up, gate, down]).item() == 12 * 3 * 0.5
    assert maxnn_score([down, gate]).item() == 0.5 * 3
    for result in (neuron_norms(up), max_neuron_norm(up), maxnn_score([up])):
        assert result.dtype == torch.float64 and result.device == up.device


@devices
@given(data=st.data(), rows=sizes, columns=sizes)
def test_norms_are_the_roots_of_the_sums_of_squares(
    device: str, data: st.DataObject, rows: int, columns: int
) -> None:
    moderate = st.floats(-1e6, 1e6, width=32)  # squares are exact in fp64
    weight = data.draw(matrices(moderate, rows, columns))
    for computed, row in zip(neuron_norms(weight.to(device)).tolist(), weight.tolist(), strict=True):
        exact = math.sqrt(math.fsum(value * value for value in row))
        # Roundings: columns - 1 of the sum, and those of two roots.
        assert abs(computed - exact) <= gamma(columns + 1) * exact


# Symmetries


@devices
@dtypes
@given(seed=seeds, hidden=sizes, inner=sizes)
def test_neurons_have_no_order(device: str, dtype: torch.dtype, seed: int, hidden: int, inner: int) -> None:
    layers = expert(seed, hidden, inner)
    mixed = [weight[torch.randperm(len(weight), generator=seeded(seed))] for weight in layers]
    score = maxnn_score(as_given(layers, device, dtype))
    assert torch.equal(maxnn_score(as_given(mixed, device, dtype)), score)


def rotated(weight: Tensor, seed: int) -> Tensor:
    """weight @ Q for an orthogonal Q of whole halves: Hadamard matrices between signed permutations, exact."""
    generator = seeded(seed)
    columns = weight.shape[1]
    for _ in range(2):
        signs = 2 * torch.randint(2, (columns,), generator=generator) - 1
        weight = weight[:, torch.randperm(columns, generator=generator)] * signs
        fours = weight[:, : columns // 4 * 4].unflatten(1, (-1, 4))
        hadamard = torch.tensor([[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]]) / 2
        weight = torch.cat([(fours @ hadamard.double()).flatten(1), weight[:, columns // 4 * 4 :]], 1)
    return weight


@devices
@dtypes
@given(seed=seeds, hidden=st.integers(4, 17), inner=st.integers(4, 17))
def test_rotating_the_inputs_changes_nothing(
    device: str, dtype: torch.dtype, seed: int, hidden: int, inner: int
) -> None:
    layers = expert(seed, hidden, inner)
    turned = [rotated(weight, seed + number) for number, weight in enumerate(layers)]
    for weight, other in zip(layers, turned, strict=True):
        assert torch.equal(other @ other.T, weight @ weight.T)  # it is a rotation
        assert torch.equal(other.to(dtype).double(), other)  # without rounding
    score = maxnn_score(as_given(layers, device, dtype))
    assert torch.equal(maxnn_score(as_given(turned, device, dtype)), score)


@devices
@dtypes
@given(
    seed=seeds, factors=st.lists(st.floats(-1e3, 1e3).filter(lambda a: abs(a) > 1e-3), min_size=3, max_size=3)
)
def test_score_is_homogeneous(device: str, dtype: torch.dtype, seed: int, factors: list[float]) -> None:
    layers = as_given(expert(seed, 6, 4), device, dtype)
    scales = torch.tensor(factors, dtype=dtype)  # as they are in that precision
    scaled = [scale.item() * weight for scale, weight in zip(scales, layers, strict=True)]
    expected = math.prod(abs(scale) for scale in scales.tolist()) * maxnn_score(layers).item()
    # Every weight is rounded once in its dtype, which moves each norm by one unit at most; in fp64, norms of 6
    # squares, sum and root (7 roundings and half of each square's), three of them on either side, and products.
    tolerance = (1 + gamma(3, dtype)) * (1 + gamma(60)) - 1
    assert abs(maxnn_score(scaled).item() - expected) <= tolerance * expected


@devices
@dtypes
@given(
    data=st.data(),
    magnitudes=st.lists(st.sampled_from(["smallest", "one", "largest"]), min_size=3, max_size=3),
    zero=st.sets(st.integers(0, 2)),
)
def test_score_is_zero_only_if_a_layer_is(
    device: str, dtype: torch.dtype, data: st.DataObject, magnitudes: list[str], zero: set[int]
) -> None:
    """One weight that is not zero is enough, however small in fp32 or bf16. In fp64 squares set limits."""
    limits = torch.finfo(dtype)
    subnormal = limits.tiny * limits.eps
    values = {
        "smallest": 1e-50 if dtype == torch.float64 else subnormal,
        "one": 1.0,
        "largest": 1e50 if dtype == torch.float64 else limits.max,
    }
    layers = expert(0, 5, 4)
    for number, weight in enumerate(layers):
        weight.zero_()
        if number not in zero:
            position = data.draw(st.integers(0, weight.numel() - 1))
            weight.view(-1)[position] = data.draw(st.sampled_from([-1, 1])) * values[magnitudes[number]]
    score = maxnn_score(as_given(layers, device, dtype)).item()
    assert math.isfinite(score) and (score == 0) == bool(zero)


# Layouts and precision


@devices
@dtypes
@given(seed=seeds, experts=st.integers(1, 5), hidden=sizes, inner=sizes)
def test_fused_and_separate_experts_have_equal_scores(
    device: str, dtype: torch.dtype, seed: int, experts: int, hidden: int, inner: int
) -> None:
    fused = as_given(expert(seed, hidden, inner, experts), device, dtype)
    separate = torch.stack([maxnn_score([weight[number] for weight in fused]) for number in range(experts)])

    def expect(scores: Tensor) -> None:
        """Norms are equal bit for bit. Products of three may be taken in different orders."""
        torch.testing.assert_close(scores, separate.expand_as(scores), rtol=2 * gamma(2), atol=0)

    expect(maxnn_score(fused))
    expect(maxnn_score([weight[None].expand(2, -1, -1, -1) for weight in fused]))
    expect(maxnn_score([weight.mT.contiguous().mT for weight in fused]))  # as some checkpoints store them


@devices
@given(seed=seeds)
def test_precision_is_that_of_the_weights_not_of_their_dtype(device: str, seed: int) -> None:
    layers = [torch.randn(33, 65, generator=seeded(seed + n)).to(device, torch.bfloat16) for n in range(3)]
    # Without the smallest, sums of squares need 41 bits: exact in fp64 in any order, but not in fp32.
    layers = [torch.where(weight.abs() < 2**-6, 0, weight) for weight in layers]
    score = maxnn_score(layers)
    assert torch.equal(maxnn_score([weight.float() for weight in layers]), score)
    assert torch.equal(maxnn_score([weight.double() for weight in layers]), score)


# Bad input


@pytest.mark.parametrize("function", [neuron_norms, max_neuron_norm, lambda weight: maxnn_score([weight])])
@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (torch.ones(3), r"weight of shape \(3,\)"),
        (torch.tensor(1.0), r"weight of shape \(\)"),
        (torch.ones(2, 3, dtype=torch.int64), r"torch\.int64"),
        (torch.ones(2, 3, dtype=torch.complex64), r"torch\.complex64"),
        (torch.ones(0, 3), r"weight of shape \(0, 3\)"),
        (torch.ones(2, 0), r"weight of shape \(2, 0\)"),
        (torch.ones(0, 2, 3), r"weight of shape \(0, 2, 3\)"),
    ],
)
def test_unusable_weights(function: Callable[[Tensor], Tensor], weight: Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        function(weight)


def test_unusable_layers() -> None:
    with pytest.raises(InputError, match="layers of shapes none"):
        maxnn_score([])
    for experts in ((3,), (1,), ()):  # the last two would be broadcast without a word
        with pytest.raises(InputError, match=r"layers of shapes \(4, 5, 6\), "):
            maxnn_score([torch.ones(4, 5, 6), torch.ones(*experts, 6, 5)])


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_is_passed_on(value: float) -> None:
    """`rank` rejects it."""
    weight = torch.ones(2, 3)
    weight[1, 1] = value
    assert not torch.isfinite(maxnn_score([weight, torch.ones(3, 2)]))
