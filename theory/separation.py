"""What serves which purpose? No two purposes share a seed, and no choice is tested on what it was made on.

A seed is an index in the range of one purpose. Verdicts rest on the seeds of `evaluation`. Whatever is chosen by
looking at results has seeds of `search`; noise that must not be that of another deployment has seeds of `copies`.
Texts are kept apart by `realmodels.text`.
"""

from collections.abc import Callable, Hashable, Sequence
from typing import Final, Literal, TypeVar, get_args

from theory.errors import InputError
from theory.strict_json import is_whole

T = TypeVar("T")
Purpose = Literal["evaluation", "search", "copies"]

SEEDS_OF_A_PURPOSE: Final = 1_000_000
# Seeds below this one were looked at before the rules in rules/ were written, on 2026-11-29.
FIRST_FRESH_SEED: Final = 1000
LEAST_SEEDS: Final = 2


def seed(purpose: Purpose, index: int) -> int:
    """Seed number `index` (0 to SEEDS_OF_A_PURPOSE - 1) of a purpose."""
    if purpose not in get_args(Purpose):
        raise InputError(f"purpose is {purpose!r}: give one of {', '.join(get_args(Purpose))}")
    if not is_whole(index) or not 0 <= index < SEEDS_OF_A_PURPOSE:
        raise InputError(f"seed {index!r}: give a whole number from 0 to {SEEDS_OF_A_PURPOSE - 1}")
    return get_args(Purpose).index(purpose) * SEEDS_OF_A_PURPOSE + index


def evaluation_seeds(given: int | None, default: int, first: int | None, units: str) -> range:
    """Seeds that verdicts rest on.

    given: how many, as `--seeds` says; None for the preset's `default`. InputError below LEAST_SEEDS.
    first: the first of them, as `--first-seed` says; None for FIRST_FRESH_SEED.
    units: what a seed is one of, as the message says it.
    """
    count = default if given is None else given
    if count < LEAST_SEEDS:
        raise InputError(f"--seeds {count}: an interval needs at least {LEAST_SEEDS} {units}")
    start = FIRST_FRESH_SEED if first is None else first
    if not is_whole(start) or start < 0 or start + count > SEEDS_OF_A_PURPOSE:
        raise InputError(
            f"--first-seed {start}: give a whole number from 0 to {SEEDS_OF_A_PURPOSE - count} for {count} {units}"
        )
    return range(seed("evaluation", start), seed("evaluation", start + count - 1) + 1)


def apart(
    design: Sequence[T], test: Sequence[T], **keys: Callable[[T], Hashable]
) -> tuple[tuple[T, ...], tuple[T, ...]]:
    """What a choice is made on (`design`) and what it is tested on, refused where the two overlap.

    keys: by name, what both sides must not share: `apart(cells, others, seed=lambda cell: cell.seed)`. With several
        keys, none of them may be shared.
    """
    if not keys:
        raise InputError("apart: give at least one key that design and test must not share")
    for name, key in keys.items():
        shared = {key(each) for each in design} & {key(each) for each in test}
        if shared:
            raise InputError(
                f"design and test share {len(shared)} values of {name}, first {min(shared, key=repr)!r}: give each"
                " side its own"
            )
    return tuple(design), tuple(test)
