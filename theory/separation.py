"""Which random numbers serve which purpose? No two purposes share a seed, and none can take another's by mistake.

A seed is an index in the range of one purpose. Verdicts rest on the seeds of `evaluation`; whatever is chosen by
looking at results (a placement by search, a second copy, a threshold) has seeds of its own.
"""

from typing import Final, Literal, get_args

from theory.errors import InputError
from theory.strict_json import is_whole

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
