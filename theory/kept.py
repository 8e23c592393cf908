"""What may a unit of work keep for others? Intermediate results that take long, such as scores and calibrations.

Whoever runs units says where such results are kept [figures/cache.py]. Elsewhere, as in a notebook, they are computed.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

# From the name, all that decides the result, and what computes it, to the result as JSON holds it.
Keeper = Callable[[str, Mapping[str, Any], Callable[[], Any]], Any]

_keeper: ContextVar[Keeper | None] = ContextVar("keeper", default=None)


@contextmanager
def keeping(keeper: Keeper) -> Iterator[None]:
    """Within this block, `kept` asks the keeper."""
    token = _keeper.set(keeper)
    try:
        yield
    finally:
        _keeper.reset(token)


def kept(name: str, decided_by: Mapping[str, Any], compute: Callable[[], Any]) -> Any:
    """The result that was kept under the name and all that decides it, else what is computed now.

    decided_by, and what `compute` returns: as JSON holds it. The code and the versions of packages need not be named.
    """
    keeper = _keeper.get()
    return compute() if keeper is None else keeper(name, decided_by, compute)
