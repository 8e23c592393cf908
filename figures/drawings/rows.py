"""How rows of a result become rows of a CSV: an interval is two columns, its low and its high end."""

from collections.abc import Iterable
from typing import Any

INTERVAL = "interval"


def with_bounds(rows: Iterable[dict[str, Any]], separator: str = "_") -> list[dict[str, Any]]:
    """The rows with the ends of each interval after all else, empty where it is unbounded.

    "NAME_interval" becomes NAME_low and NAME_high, "interval" alone becomes low and high.
    """
    found = []
    for each in rows:
        row = {name: value for name, value in each.items() if not _is_interval(name)}
        for name, interval in each.items():
            if _is_interval(name):
                prefix = name.removesuffix(INTERVAL).removesuffix("_")
                prefix += separator if prefix else ""
                row[f"{prefix}low"], row[f"{prefix}high"] = interval or (None, None)
        found.append(row)
    return found


def _is_interval(name: str) -> bool:
    return name == INTERVAL or name.endswith(f"_{INTERVAL}")
