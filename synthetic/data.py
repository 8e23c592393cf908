"""What does a sample of the classification task look like, and which random numbers is it drawn from?

The task is that of theory/setting.py, extended to V kinds of samples. There are d directions o_1 ... o_d. A sample
has n tokens and a label y, uniform on {+1, -1}. One token, at a random position, discriminates: it is y o_j with
probability p_j, and j = 1 ... V is the sample's *kind*. The other tokens are drawn from the irrelevant directions
o_{V+1} ... o_d. Samples hold indices into the d + V distinct tokens, which are in this order: +o_1, -o_1, +o_2,
-o_2, ..., -o_V, o_{V+1}, ..., o_d.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from theory.errors import InputError, require
from theory.setting import Setting
from theory.strict_json import is_finite, is_whole

Dictionary = Literal["standard", "rotated", "coherent"]
Purpose = Literal["train", "test", "noise", "init", "dictionary"]


@dataclass(frozen=True)
class Task:
    """The distribution of samples; the default is the reference instance.

    d: dimension, which is also the number of directions.
    n: tokens of a sample.
    frequencies: p_1 ... p_V, of sum 1.
    label_noise: probability that the label is not the discriminative token's sign.
    correlation: probability that a position repeats the irrelevant token of the position before it, 0 for
        independent tokens. Every irrelevant token stays uniform over the d - V irrelevant directions.
    dictionary: "standard" for directions along the axes, "rotated" for a random orthonormal basis, "coherent" for
        random unit vectors of which each two have the inner product `coherence`.
    coherence: that inner product, 0 unless the dictionary is coherent.
    """

    d: int = 64
    n: int = 16
    frequencies: tuple[float, ...] = (0.9, 0.1)
    label_noise: float = 0.0
    correlation: float = 0.0
    dictionary: Dictionary = "standard"
    coherence: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "frequencies", tuple(self.frequencies))
        kinds, coherent = len(self.frequencies), self.dictionary == "coherent"
        positive = all(is_finite(p) and p > 0 for p in self.frequencies)
        checks = {
            "d": (is_whole(self.d) and self.d >= 3, "a whole number of at least 3"),
            "n": (is_whole(self.n) and self.n >= 1, "a whole number of at least 1"),
            "frequencies": (
                kinds > 0 and positive and math.isclose(math.fsum(self.frequencies), 1, rel_tol=1e-9),
                "numbers above 0 of sum 1",
            ),
            "label_noise": (
                is_finite(self.label_noise) and 0 <= self.label_noise < 0.5,
                "0 or more, below 0.5",
            ),
            "correlation": (
                is_finite(self.correlation) and 0 <= self.correlation <= 1,
                "a number from 0 to 1",
            ),
            "dictionary": (
                self.dictionary in get_args(Dictionary),
                f"one of {', '.join(get_args(Dictionary))}",
            ),
            "coherence": (
                is_finite(self.coherence) and (0 < self.coherence < 1 if coherent else self.coherence == 0),
                "a number above 0 and below 1 for a coherent dictionary, 0 for another",
            ),
        }
        require(self, "task", checks)
        if kinds >= self.d:
            raise InputError(f"task.frequencies has {kinds} kinds: give fewer than d = {self.d}")

    @classmethod
    def of(cls, setting: Setting) -> "Task":
        """The task of a formal setting: the frequent kind has probability 1 - alpha, the rare kind alpha."""
        return cls(setting.d, setting.n, (1 - setting.alpha, setting.alpha))

    @classmethod
    def zipf(cls, kinds: int, exponent: float, *, d: int = 64, n: int = 16) -> "Task":
        """A task of many kinds, whose frequencies p_j are proportional to j^-exponent."""
        if not is_whole(kinds) or kinds < 1:
            raise InputError(f"kinds is {kinds!r}: give a whole number of at least 1")
        if not is_finite(exponent):
            raise InputError(f"exponent is {exponent!r}: give a finite number")
        weights = np.arange(1, kinds + 1, dtype=np.float64) ** -exponent
        return cls(d, n, tuple((weights / weights.sum()).tolist()))

    @property
    def kinds(self) -> int:
        """V, the number of discriminative directions."""
        return len(self.frequencies)

    @property
    def tokens(self) -> int:
        """T = d + V, the number of distinct tokens."""
        return self.d + self.kinds

    @property
    def balanced(self) -> "Task":
        """The same task with equally frequent kinds and clean labels, to measure the accuracy of each kind on."""
        return replace(self, frequencies=(1 / self.kinds,) * self.kinds, label_noise=0.0)


@dataclass(frozen=True)
class Samples:
    """Samples of one training seed, or of several along a leading axis.

    tokens: indices into the distinct tokens.
    labels: +1 or -1.
    kinds: j - 1, counted from 0.
    """

    tokens: Int[Tensor, "*seeds count n"]
    labels: Int[Tensor, "*seeds count"]
    kinds: Int[Tensor, "*seeds count"]

    def to(self, device: torch.device | str) -> "Samples":
        return Samples(self.tokens.to(device), self.labels.to(device), self.kinds.to(device))


def stream(seed: int, purpose: Purpose) -> np.random.Generator:
    """Random numbers of one seed for one purpose. No two seeds or purposes share a number."""
    if not is_whole(seed) or seed < 0:
        raise InputError(f"seed is {seed!r}: give a whole number of at least 0")
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(get_args(Purpose).index(purpose),)))


def sample(task: Task, count: int, rng: np.random.Generator) -> Samples:
    """The next `count` samples; twice 512 are the same as once 1024.

    Every sample takes 4 + 2 n uniform numbers, whatever the task. Tasks that differ only in their frequencies
    therefore have the same labels, positions and irrelevant tokens.
    """
    if not is_whole(count) or count < 1:
        raise InputError(f"count is {count!r}: give a whole number of at least 1")
    uniform = rng.random((count, 4 + 2 * task.n))
    signs, kinds, places, flips = uniform[:, :4].T
    fresh, repeats = uniform[:, 4 : 4 + task.n], uniform[:, 4 + task.n :]

    positions = np.arange(task.n)
    # Position that each token is copied from: the last one, up to the token's own, that is no repetition.
    origin = np.maximum.accumulate(np.where(repeats >= task.correlation, positions, 0), axis=1)
    irrelevant = (np.take_along_axis(fresh, origin, axis=1) * (task.d - task.kinds)).astype(np.int64)
    tokens = 2 * task.kinds + irrelevant
    kind = np.searchsorted(np.cumsum(task.frequencies)[:-1], kinds, side="right")
    negative = signs < 0.5
    tokens[np.arange(count), (places * task.n).astype(np.int64)] = 2 * kind + negative
    labels = np.where(negative ^ (flips < task.label_noise), -1, 1)
    return Samples(torch.from_numpy(tokens), torch.from_numpy(labels), torch.from_numpy(kind))


def evaluation_samples(task: Task, count: int, seeds: Sequence[int]) -> Samples:
    """Samples (seeds, count) of `task.balanced`, disjoint from all training, to measure accuracies on."""
    return stack([sample(task.balanced, count, stream(seed, "test")) for seed in seeds])


def stack(samples: Sequence[Samples]) -> Samples:
    """Samples of several seeds, put together along a new leading axis."""
    tokens, labels, kinds = zip(*((each.tokens, each.labels, each.kinds) for each in samples), strict=True)
    return Samples(torch.stack(tokens), torch.stack(labels), torch.stack(kinds))


def dictionary(task: Task, seed: int) -> Float[Tensor, "tokens d"]:
    """The distinct tokens as unit vectors, in float64."""
    directions = np.eye(task.d)
    if task.dictionary != "standard":
        gaussian = stream(seed, "dictionary").standard_normal((task.d, task.d))
        q, r = np.linalg.qr(gaussian)
        directions = q * np.sign(np.diag(r))  # without the signs q is not uniform over all rotations
    if task.dictionary == "coherent":
        # The symmetric root of the Gram matrix (1 - mu) 1 + mu J, whose eigenvalues are 1 - mu and 1 - mu + mu d.
        flat, tilted = math.sqrt(1 - task.coherence), math.sqrt(1 - task.coherence + task.coherence * task.d)
        directions = flat * directions + (tilted - flat) * directions.mean(0)
    discriminative = directions[: task.kinds]
    signed = np.stack((discriminative, -discriminative), axis=1).reshape(-1, task.d)
    return torch.from_numpy(np.concatenate((signed, directions[task.kinds :])))
