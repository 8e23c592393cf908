"""Where are a benchmark's numbers kept? As JSON with machine, versions, commit and date, which the pages quote."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from figures.provenance import provenance
from theory.strict_json import dumps


def write(
    out: Path | None,
    rows: Sequence[Mapping[str, Any]],
    settings: Mapping[str, Any],
    *,
    seconds: float,
    device: str = "cpu",
) -> None:
    """Write the rows that were measured; nothing without a file.

    settings: what all rows have in common, such as threads and runs.
    seconds: how long the benchmark took.
    """
    if out is None:
        return
    command = ["python", *sys.argv]
    source = provenance(
        command, [settings], device=device, wall_seconds=seconds, computed=len(rows), from_cache=0
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(dumps({"rows": list(rows), "provenance": source}), encoding="utf-8")
