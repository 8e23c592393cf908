"""Where are a benchmark's numbers kept? As JSON with machine, versions, commit and date, which the pages quote."""

import shlex
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from figures.provenance import device_name, git_state, versions, without_folder
from theory.strict_json import dumps

# When and from which commit the benchmark began.
BEGAN = {"date": datetime.now(UTC).isoformat(timespec="seconds"), "git": git_state()}


def write(
    out: Path | None, rows: Sequence[Mapping[str, Any]], settings: Mapping[str, Any], device: str = "cpu"
) -> None:
    """Write the rows that were measured; nothing without a file.

    settings: what all rows have in common, such as threads and runs.
    """
    if out is None:
        return
    source = {
        "command": shlex.join(["python", *without_folder(sys.argv)]),
        **BEGAN,
        "versions": versions(),
        "device": device_name(device),
        "shared": settings,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(dumps({"rows": list(rows), "provenance": source}), encoding="utf-8")
