"""No two purposes share a seed, and seeds that were looked at are not the default."""

import itertools
from typing import get_args

import pytest

from theory.errors import InputError
from theory.separation import FIRST_FRESH_SEED, SEEDS_OF_A_PURPOSE, Purpose, evaluation_seeds, seed


def test_purposes_share_no_seed() -> None:
    ends = [
        (seed(purpose, 0), seed(purpose, SEEDS_OF_A_PURPOSE - 1)) for purpose in sorted(get_args(Purpose))
    ]
    ends.sort()
    assert all(high < low for (_, high), (low, _) in itertools.pairwise(ends))


@pytest.mark.parametrize("index", [-1, SEEDS_OF_A_PURPOSE, 1.5, True])
def test_a_seed_of_another_purpose_is_refused(index: int) -> None:
    with pytest.raises(InputError, match="give a whole number from 0 to 999999"):
        seed("search", index)
    with pytest.raises(InputError, match="purpose is 'luck'"):
        seed("luck", 0)  # type: ignore[arg-type]


def test_evaluation_seeds() -> None:
    assert evaluation_seeds(None, 8, None, "draws") == range(FIRST_FRESH_SEED, FIRST_FRESH_SEED + 8)
    assert evaluation_seeds(3, 8, 0, "draws") == range(3)
    assert evaluation_seeds(2, 8, SEEDS_OF_A_PURPOSE - 2, "draws")[-1] == seed("search", 0) - 1
    with pytest.raises(InputError, match="--seeds 1: an interval needs at least 2 draws"):
        evaluation_seeds(1, 8, None, "draws")
    with pytest.raises(
        InputError, match=r"--first-seed 999999: give a whole number from 0 to 999998 for 2 draws"
    ):
        evaluation_seeds(2, 8, SEEDS_OF_A_PURPOSE - 1, "draws")
    with pytest.raises(InputError, match="--first-seed -1"):
        evaluation_seeds(None, 8, -1, "draws")
