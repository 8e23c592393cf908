"""Fixtures of the bridge's tests."""

from pathlib import Path

import numpy as np
import pytest
from small_models import save, small_network
from small_recipes import SMALLEST


@pytest.fixture(scope="session")
def small_model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random OLMoE as a user would have it on disk."""
    return save(small_network(num_experts=8), tmp_path_factory.mktemp("small model"))


@pytest.fixture(scope="module")
def stream() -> np.ndarray:
    """Each token decides the next one but for noise, so that there is something to learn."""
    generator = np.random.default_rng(0)
    steps = 7 * np.ones(4000, int) + generator.integers(0, 3, 4000)
    return (steps.cumsum() % SMALLEST.vocabulary).astype(np.uint16)
