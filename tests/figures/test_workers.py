"""Workers on GPUs: each has one of its own, as long as there are enough."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from figures.run import _cards

PROGRAM = """
import os, sys
from pathlib import Path
from figures.run import _start_worker
_start_worker(int(sys.argv[1]), sys.argv[3:], Path(sys.argv[2]))
print(os.environ["CUDA_VISIBLE_DEVICES"], flush=True)
sys.stdin.read()
"""


def start(folder: Path, *cards: str) -> subprocess.Popen[str]:
    own = str(os.getpid()), str(folder)
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *own, *cards],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def card(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_each_has_a_card_and_leaves_it_to_the_next(tmp_path: Path) -> None:
    """Also if it was killed; with more workers than cards they take turns."""
    started = [start(tmp_path, "2", "GPU-f00d") for _ in range(4)]
    try:
        cards = [card(process) for process in started]
        assert sorted(cards) == ["2", "2", "GPU-f00d", "GPU-f00d"]
        started[1].kill()
        started[1].wait()
        started.append(start(tmp_path, "2", "GPU-f00d"))
        assert card(started[-1]) == cards[1]
    finally:
        for process in started:
            process.communicate()


def test_cards_are_those_that_this_process_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert _cards("cuda") == ["0", "1"] and _cards("cpu") == _cards("auto") == _cards(None) == []
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-f00d")
    assert _cards("cuda") == ["3", "GPU-f00d"]
