"""No two purposes share a seed, seeds that were looked at are not the default, and no choice is tested on itself."""

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from theory.errors import InputError
from theory.separation import FIRST_FRESH_SEED, SEEDS_OF_A_PURPOSE, Purpose, apart, evaluation_seeds, seed

NUMBERS = st.lists(st.integers(0, 20), max_size=8)


@dataclass(frozen=True)
class Cell:
    seed: int
    routing: str


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
    looks = (Path(__file__).parents[2] / "rules" / "looks.md").read_text(encoding="utf-8")
    assert f"use seeds from {FIRST_FRESH_SEED} on" in looks
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


@given(design=NUMBERS, test=NUMBERS)
def test_sides_come_back_unless_they_share_a_value(design: list[int], test: list[int]) -> None:
    if shared := set(design) & set(test):
        with pytest.raises(InputError, match=f"share {len(shared)} values of number, first"):
            apart(design, test, number=int)
    else:
        assert apart(design, test, number=int) == (tuple(design), tuple(test))


def test_every_key_has_to_differ() -> None:
    design = [Cell(0, "expert choice"), Cell(1, "expert choice")]
    for test in ([Cell(2, "expert choice")], [Cell(1, "token choice")]):
        with pytest.raises(InputError, match="share 1 values of"):
            apart(design, test, seed=lambda cell: cell.seed, routing=lambda cell: cell.routing)
    test = [Cell(2, "token choice")]
    found = apart(design, test, seed=lambda cell: cell.seed, routing=lambda cell: cell.routing)
    assert found == (tuple(design), tuple(test))
    with pytest.raises(InputError, match="at least one key"):
        apart(design, design)
