"""Rows of results as rows of a CSV."""

from collections.abc import Iterable
from typing import Any


def with_bounds(rows: Iterable[dict[str, Any]], separator: str = "_") -> list[dict[str, Any]]:
    """The rows with both ends of each "NAME_interval" after all else: NAME_low, NAME_high, empty where unbounded."""
    found = []
    for each in rows:
        row = {name: value for name, value in each.items() if not name.endswith("_interval")}
        for name, interval in each.items():
            if name.endswith("_interval"):
                quantity = name.removesuffix("_interval")
                row[f"{quantity}{separator}low"], row[f"{quantity}{separator}high"] = interval or (None, None)
        found.append(row)
    return found
