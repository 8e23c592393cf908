"""Does the generator draw the task that is defined, and the same samples however they are asked for?"""

import itertools
from dataclasses import replace
from typing import Any, get_args

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from monte_carlo import assert_plausible
from scipy import stats

from synthetic.data import Purpose, Samples, Task, dictionary, evaluation_samples, sample, stack, stream
from theory.errors import InputError
from theory.setting import Setting

COUNT = 20_000
TASKS = {
    "reference": Task(),
    "Zipf": Task.zipf(8, 1.0, d=12, n=5),
    "label noise": Task(d=6, n=3, frequencies=(0.7, 0.3), label_noise=0.2),
    "correlated": Task(d=7, n=6, frequencies=(0.5, 0.5), correlation=0.6),
    "one kind": Task(d=3, n=1, frequencies=(1.0,)),
}
any_task = pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
seeds = st.integers(0, 2**63)
small_tasks = st.builds(
    Task,
    d=st.integers(4, 20),
    n=st.integers(1, 8),
    frequencies=st.lists(st.integers(1, 9), min_size=1, max_size=3).map(
        lambda counts: tuple(count / sum(counts) for count in counts)
    ),
    label_noise=st.sampled_from([0.0, 0.1]),
    correlation=st.sampled_from([0.0, 0.5, 1.0]),
)


def assert_binomial(successes: Any, trials: Any, probability: Any) -> None:
    """Assert that every count is Binomial(trials, probability), by the exact two-sided test; 0 trials say nothing."""
    arrays = np.broadcast_arrays(np.asarray(successes), np.asarray(trials), np.asarray(probability))
    cases = zip(*map(np.ravel, arrays), strict=True)
    assert_plausible([1.0] + [stats.binomtest(int(s), int(n), p).pvalue for s, n, p in cases if n])


def draw(task: Task, count: int = COUNT, seed: int = 0) -> Samples:
    return sample(task, count, stream(seed, "train"))


def discriminative(task: Task, samples: Samples) -> torch.Tensor:
    """True for discriminative tokens (samples, n)."""
    return samples.tokens < 2 * task.kinds


@any_task
def test_kinds_occur_with_their_frequencies(task: Task) -> None:
    assert_binomial(np.bincount(draw(task).kinds, minlength=task.kinds), COUNT, task.frequencies)


@any_task
def test_labels_are_balanced_within_every_kind(task: Task) -> None:
    samples = draw(task)
    for kind in range(task.kinds):
        labels = samples.labels[samples.kinds == kind]
        assert set(labels.tolist()) <= {1, -1}
        assert_binomial((labels == 1).sum(), len(labels), 0.5)


@any_task
def test_the_one_discriminative_token_is_the_kind_s_with_the_label_as_sign(task: Task) -> None:
    samples = draw(task)
    chosen = discriminative(task, samples)
    assert (chosen.sum(1) == 1).all()
    token = samples.tokens[chosen]
    assert (token // 2 == samples.kinds).all()
    flipped = (token % 2 == 1) != (samples.labels == -1)
    assert_binomial(flipped.sum(), COUNT, task.label_noise)
    assert_binomial((flipped & (samples.kinds == 0)).sum(), (samples.kinds == 0).sum(), task.label_noise)


@any_task
def test_its_position_is_uniform_and_independent_of_kind_and_label(task: Task) -> None:
    samples = draw(task)
    position = discriminative(task, samples).int().argmax(1)
    for kind, sign in itertools.product(range(task.kinds), (1, -1)):
        cell = position[(samples.kinds == kind) & (samples.labels == sign)]
        assert_binomial(np.bincount(cell, minlength=task.n), len(cell), 1 / task.n)


@any_task
def test_irrelevant_tokens_are_uniform_at_every_position_whatever_kind_and_label(task: Task) -> None:
    samples = draw(task)
    irrelevant = ~discriminative(task, samples)
    assert int(samples.tokens.max()) < task.tokens
    for rows in (samples.labels == 1, samples.labels == -1, samples.kinds == 0, samples.kinds > 0):
        for place in range(task.n):
            tokens = samples.tokens[irrelevant[:, place] & rows, place] - 2 * task.kinds
            counts = np.bincount(tokens, minlength=task.d - task.kinds)
            assert_binomial(counts, len(tokens), 1 / (task.d - task.kinds))


@any_task
def test_neighbours_are_equal_by_correlation_or_by_chance(task: Task) -> None:
    """Pairs within a sample depend on each other, so every place is tested by itself."""
    samples = draw(task)
    by_chance = 1 / (task.d - task.kinds)
    expected = task.correlation + (1 - task.correlation) * by_chance
    irrelevant = ~discriminative(task, samples)
    for place in range(task.n - 1):
        pairs = samples.tokens[irrelevant[:, place] & irrelevant[:, place + 1], place : place + 2]
        assert_binomial((pairs[:, 0] == pairs[:, 1]).sum(), len(pairs), expected)
    if task.correlation == 0 and task.n > 2:
        ends = samples.tokens[irrelevant[:, 0] & irrelevant[:, -1]][:, [0, -1]]
        assert_binomial((ends[:, 0] == ends[:, 1]).sum(), len(ends), by_chance)


@given(small_tasks, st.lists(st.integers(1, 40), min_size=1, max_size=4), seeds)
def test_batches_of_any_sizes_are_the_same_samples(task: Task, sizes: list[int], seed: int) -> None:
    whole, rng = draw(task, sum(sizes), seed), stream(seed, "train")
    parts = [sample(task, size, rng) for size in sizes]
    for name in ("tokens", "labels", "kinds"):
        assert torch.equal(getattr(whole, name), torch.cat([getattr(part, name) for part in parts]))


@given(small_tasks, seeds)
def test_frequencies_change_nothing_but_the_kinds(task: Task, seed: int) -> None:
    uneven, even = (
        draw(task, 50, seed),
        draw(replace(task, frequencies=(1 / task.kinds,) * task.kinds), 50, seed),
    )
    same = uneven.kinds == even.kinds
    assert torch.equal(uneven.labels, even.labels)
    assert torch.equal(uneven.tokens[same], even.tokens[same])
    position = [discriminative(task, samples) for samples in (uneven, even)]
    assert torch.equal(*position)
    assert torch.equal(uneven.tokens[~position[0]], even.tokens[~position[0]])


def test_streams_of_seeds_and_purposes_share_no_number() -> None:
    streams = [stream(seed, purpose) for seed in range(20) for purpose in get_args(Purpose)]
    numbers = np.concatenate([rng.random(200) for rng in streams])
    assert len(np.unique(numbers)) == numbers.size


def test_evaluation_samples_are_balanced_clean_and_of_each_seed_alone() -> None:
    task = Task(frequencies=(0.99, 0.01), label_noise=0.3)
    samples = evaluation_samples(task, COUNT, (4, 7))
    assert samples.tokens.shape == (2, COUNT, task.n)
    assert_binomial((samples.kinds == 1).sum(1), COUNT, 0.5)
    token = samples.tokens[samples.tokens < 4].view(2, COUNT)
    assert torch.equal(1 - 2 * (token % 2), samples.labels)
    alone = evaluation_samples(task, COUNT, (7,))
    assert torch.equal(samples.tokens[1:], alone.tokens)
    assert not torch.equal(samples.tokens[0], samples.tokens[1])
    assert not torch.equal(samples.tokens[0], draw(task.balanced, seed=4).tokens)


@given(
    st.integers(3, 30),
    st.sampled_from([("standard", 0.0), ("rotated", 0.0), ("coherent", 0.1), ("coherent", 0.9)]),
    st.integers(0, 100),
)
def test_the_dictionary_has_the_inner_products_it_claims(d: int, form: tuple[Any, float], seed: int) -> None:
    kind, coherence = form
    task = Task(d=d, dictionary=kind, coherence=coherence)
    tokens = dictionary(task, seed)
    assert tokens.shape == (d + 2, d)
    assert torch.equal(tokens[[1, 3]], -tokens[[0, 2]])
    directions = torch.cat((tokens[:4:2], tokens[4:]))
    gram = (1 - coherence) * torch.eye(d, dtype=torch.float64) + coherence
    # Bound for a product of orthogonal factors of size d, each with a backward error of order d eps.
    torch.testing.assert_close(directions @ directions.T, gram, rtol=0, atol=40 * d * 2.2e-16)
    assert torch.equal(tokens, dictionary(task, seed))
    assert (kind == "standard") == torch.equal(tokens, dictionary(task, seed + 1))


def test_tasks_of_settings_and_of_zipf() -> None:
    assert Task.of(Setting(d=10, n=5, l=2, alpha=0.3)) == Task(10, 5, (0.7, 0.3))
    assert Task.of(Setting()) == Task()
    zipf = Task.zipf(3, 2.0, d=9, n=4)
    assert zipf.frequencies == pytest.approx((36 / 49, 9 / 49, 4 / 49), rel=1e-15)
    assert (zipf.d, zipf.n, zipf.kinds, zipf.tokens) == (9, 4, 3, 12)


def test_stacking_keeps_the_seeds_apart() -> None:
    parts = [draw(Task(), 5, seed) for seed in range(3)]
    stacked = stack(parts)
    assert stacked.tokens.shape == (3, 5, 16)
    assert torch.equal(stacked.labels[2], parts[2].labels) and torch.equal(stacked.kinds[1], parts[1].kinds)


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("d", 2, "at least 3"),
        ("d", True, "at least 3"),
        ("n", 0, "at least 1"),
        ("n", 2.0, "at least 1"),
        ("frequencies", (0.5, 0.6), "sum 1"),
        ("frequencies", (1.0, 0.0), "above 0"),
        ("frequencies", (), "above 0"),
        ("frequencies", (1 / 64,) * 64, "fewer than d = 64"),
        ("label_noise", 0.5, "below 0.5"),
        ("label_noise", -0.1, "0 or more"),
        ("correlation", 1.1, "from 0 to 1"),
        ("correlation", float("nan"), "from 0 to 1"),
        ("dictionary", "random", "standard, rotated, coherent"),
        ("coherence", 0.1, "0 for another"),
    ],
)
def test_bad_tasks_name_the_field_and_what_is_allowed(field: str, value: Any, allowed: str) -> None:
    with pytest.raises(InputError, match=rf"task\.{field} .*{allowed}"):
        replace(Task(), **{field: value})


@pytest.mark.parametrize("coherence", [0.0, 1.0, -0.1])
def test_a_coherent_dictionary_needs_a_coherence(coherence: float) -> None:
    with pytest.raises(InputError, match=r"task\.coherence .*above 0 and below 1"):
        Task(dictionary="coherent", coherence=coherence)


def test_other_bad_input() -> None:
    with pytest.raises(InputError, match="kinds is 0: give a whole number of at least 1"):
        Task.zipf(0, 1.0)
    with pytest.raises(InputError, match="exponent is inf: give a finite number"):
        Task.zipf(3, float("inf"))
    with pytest.raises(InputError, match="seed is -1: give a whole number of at least 0"):
        stream(-1, "train")
    with pytest.raises(InputError, match="count is 0: give a whole number of at least 1"):
        draw(Task(), 0)
