"""Which items are worth most within a budget, and which cost least for what they are worth? The 0/1 knapsack, exactly.

A choice of items is on the frontier if no other choice costs as little and is worth as much. The frontier answers the
question for every budget at once, and the reverse question, too. Where a choice has to cost something at least, one
that is beaten can be the best: then the most valuable choice of every total cost is needed.

Why it is exact, whatever the values:

1. Of items that cost the same, a choice on the frontier takes the most valuable ones: to exchange one of them for a
   better one that was left out would cost nothing. So n items of one cost have n + 1 choices, not 2^n.
2. If a part of a choice is replaced by one that costs no more and is worth no less, so is the whole. So choices that
   are beaten among the items looked at so far can be dropped before further items are looked at
   [Nemhauser and Ullmann, Management Science 15 (1969), 494-505].

For the choices of every total cost, 1 holds as it is, and 2 for parts that cost the same.

By 1 there are at most prod (n_s + 1) choices for n_s items of each cost s. By 2 there are at most (sum of costs)/g + 1,
where g is the greatest common divisor of the costs. A model has few kinds of modules, and few costs.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from theory.errors import InputError

MOST_CHOICES = 2**22  # on a frontier, in memory
_AT_ONCE = 2**22  # pairs of choices that are compared


@dataclass(frozen=True)
class Frontier:
    """All choices that no other choice beats, from nothing to everything that is worth something.

    Or the most valuable choice of every total cost, from nothing to everything: then `worths` can fall.

    costs, worths: (choices,) of whole choices, both rising.
    counts: (choices, groups) how many items of each group are taken.
    groups: the items of each cost, the most valuable first.
    """

    costs: NDArray[np.int64]
    worths: NDArray[np.float64]
    counts: NDArray[np.int32]
    groups: tuple[NDArray[np.int64], ...]

    def within(self, budget: ArrayLike) -> NDArray[np.int64]:
        """The choice that is worth most and costs at most the budget; -1 for a budget below 0."""
        return np.searchsorted(self.costs, budget, "right") - 1

    def worth(self, least: ArrayLike) -> NDArray[np.int64]:
        """The choice that costs least and is worth at least so much; the number of choices where none is."""
        return np.searchsorted(self.worths, least, "left")

    def between(self, low: ArrayLike, high: ArrayLike) -> NDArray[np.int64]:
        """The choice that is worth most and costs from `low` to `high`, of equals the cheapest; -1 for none.

        It is exact for choices of every total cost.
        """
        ends = zip(*self._ends(low, high), strict=True)
        return np.array([a + np.argmax(self.worths[a:b]) if a < b else -1 for a, b in ends])

    def worth_between(self, low: ArrayLike, high: ArrayLike, least: ArrayLike) -> NDArray[np.int64]:
        """The choice that costs least, from `low` to `high`, and is worth at least so much; -1 for none.

        It is exact for choices of every total cost.
        """
        least, (first, last) = np.atleast_1d(least), self._ends(low, high)
        found = [np.flatnonzero(self.worths[a:b] >= w) for a, b, w in zip(first, last, least, strict=True)]
        return np.array([a + each[0] if each.size else -1 for a, each in zip(first, found, strict=True)])

    def _ends(self, low: ArrayLike, high: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Of the choices that cost from `low` to `high`: the first, and the one after the last."""
        return (
            np.searchsorted(self.costs, np.atleast_1d(low), "left"),
            np.searchsorted(self.costs, np.atleast_1d(high), "right"),
        )

    def items(self, choice: int) -> list[int]:
        """The items of a choice, in ascending order."""
        taken = [
            group[:count] for group, count in zip(self.groups, self.counts[choice].tolist(), strict=True)
        ]
        return sorted(np.concatenate([np.empty(0, np.int64), *taken]).tolist())


def frontier(
    values: ArrayLike, costs: ArrayLike, budget: int | None = None, *, every: bool = False
) -> Frontier:
    """The frontier of the choices among items.

    values: (items,) what they are worth; an item of value 0 or less is in no choice, except with `every`.
    costs: (items,) whole numbers above 0.
    budget: leave out choices that cost more; None for all.
    every: the most valuable choice of every total cost, beaten or not.
    InputError if more than MOST_CHOICES are on the frontier.
    """
    value, cost = np.asarray(values, np.float64), np.asarray(costs, np.int64)
    found = Frontier(np.zeros(1, np.int64), np.zeros(1), np.zeros((1, 0), np.int32), ())
    chosen = (value > 0) | every
    for size in np.unique(cost[chosen])[::-1]:
        group = np.flatnonzero((cost == size) & chosen)
        group = group[np.argsort(-value[group], kind="stable")]
        worth = np.concatenate([[0.0], np.cumsum(value[group])])
        if budget is not None:
            worth = worth[: budget // int(size) + 1]
        found = _with_group(found, group, int(size), worth, budget, every)
    return found


def _with_group(
    before: Frontier,
    group: NDArray[np.int64],
    size: int,
    worth: NDArray[np.float64],
    budget: int | None,
    every: bool,
) -> Frontier:
    """The frontier with a further group of items of one size; worth: of the first 0, 1, ... of them."""
    costs, worths = np.empty(0, np.int64), np.empty(0)
    parents, counts = np.empty(0, np.int64), np.empty(0, np.int32)
    for taken in _parts(len(worth), len(before.costs)):
        own = np.arange(len(before.costs))
        costs = np.concatenate([costs, np.add.outer(size * taken, before.costs).ravel()])
        worths = np.concatenate([worths, np.add.outer(worth[taken], before.worths).ravel()])
        parents = np.concatenate([parents, np.tile(own, len(taken))])
        counts = np.concatenate([counts, np.repeat(taken, len(own)).astype(np.int32)])
        kept = _unbeaten(costs, worths, every)
        if budget is not None:
            kept = kept[costs[kept] <= budget]
        costs, worths, parents, counts = costs[kept], worths[kept], parents[kept], counts[kept]
        if len(costs) > MOST_CHOICES:
            raise InputError(
                f"knapsack: more than {MOST_CHOICES} choices are on the frontier: give costs that are multiples of a"
                " larger unit"
            )
    return Frontier(costs, worths, np.column_stack([before.counts[parents], counts]), (*before.groups, group))


def _parts(numbers: int, each: int) -> Iterator[NDArray[np.int64]]:
    """0, 1, ... in parts of at most _AT_ONCE pairs with `each` others."""
    step = max(1, _AT_ONCE // each)
    for start in range(0, numbers, step):
        yield np.arange(start, min(start + step, numbers))


def _unbeaten(costs: NDArray[np.int64], worths: NDArray[np.float64], every: bool) -> NDArray[np.int64]:
    """Indices of what is worth more than all that costs no more, or with `every` no less and no more; of equals one."""
    order = np.lexsort((-worths, costs))
    best = costs[order] if every else np.maximum.accumulate(worths[order])
    return order[np.concatenate([[True], best[1:] > best[:-1]])]
