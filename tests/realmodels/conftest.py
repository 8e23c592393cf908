"""Fixtures of the bridge's tests."""

from pathlib import Path

import pytest
from small_models import save, small_network


@pytest.fixture(scope="session")
def small_model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random OLMoE as a user would have it on disk."""
    return save(small_network(num_experts=8), tmp_path_factory.mktemp("small model"))
