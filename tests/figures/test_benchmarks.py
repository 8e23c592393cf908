"""Benchmarks write what they measured and where it comes from, and every committed file of theirs says so."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "benchmarks" / "data").glob("*.json"))


def test_a_benchmark_writes_its_rows_with_their_source(tmp_path: Path) -> None:
    out = tmp_path / "new" / "table.json"
    options = ["--inputs", "20", "--draws", "2", "--runs", "1", "--out", str(out)]
    command = [sys.executable, "benchmarks/noise_table.py", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    shown = done.stdout
    content = json.loads(out.read_text(encoding="utf-8"))
    assert len(content["rows"]) == 4
    for row in content["rows"]:
        assert row["world"] in shown
        assert row["speedup"] == row["loops"] / row["table"] > 0
    source = content["provenance"]
    assert source["command"] == f"python benchmarks/noise_table.py {' '.join(options[:-2])}"
    assert source["shared"] == {"inputs": 20, "draws": 2, "runs": 1, "threads": 1}
    assert {"date", "git", "versions", "device"} < source.keys()


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_committed_numbers_have_a_source(file: Path) -> None:
    content = json.loads(file.read_text(encoding="utf-8"))
    source = content["provenance"]
    assert content["rows"]
    assert re.fullmatch("[0-9a-f]{40}", source["git"]["commit"])
    assert not source["git"]["dirty"]
    assert source["device"]
    assert re.match(r"\d{4}-\d\d-\d\d", source["date"])
    assert f"{source['command']} ".startswith(f"python benchmarks/{file.stem.partition('-')[0]}.py ")
    assert source.get("versions") or "transcribed" in source


def test_there_are_numbers_of_every_benchmark() -> None:
    scripts = {path.stem for path in (ROOT / "benchmarks").glob("*.py")} - {"record"}
    assert scripts == {file.stem.partition("-")[0] for file in FILES}
