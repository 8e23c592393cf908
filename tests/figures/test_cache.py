"""A kept unit is believed only if it is whole and its own; nothing there is executed, and no unit is computed twice."""

import json
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from hypothesis import given, settings
from hypothesis import strategies as st

from figures.cache import DECIDING, LARGEST, NO_LOCKS, Unit, earlier_layout, forget, tidy
from figures.provenance import versions
from theory.errors import InputError

KEY = {"exhibit": "figure-pi", "config": ["Config", {"seed": 3}], "code": "c0de", "versions": {"torch": "2"}}
RECORD = {"pi": 3.14, "seeds": [1, 2], "nothing": None, "text": "é"}


@pytest.fixture
def unit(tmp_path: Path) -> Unit:
    kept = Unit(tmp_path / ".cache", KEY)
    assert kept.once(lambda: RECORD, wait=False) == (RECORD, True)
    return kept


def never() -> Any:
    raise AssertionError("computed again")


def test_a_record_is_computed_once(unit: Unit) -> None:
    assert unit.once(never, wait=False) == (RECORD, False) and unit.read() == RECORD and not unit.damaged
    assert [path.name for path in unit.path.parent.iterdir()] == [unit.path.name]  # no lock is left


@pytest.mark.parametrize("name", list(KEY))
def test_another_key_is_another_unit(unit: Unit, name: str) -> None:
    other = Unit(unit.folder, KEY | {name: "figure-e" if name == "exhibit" else "other"})
    assert other.path != unit.path and other.read() is None and not other.damaged
    # Moved into its place, a record of another unit is not believed.
    other.path.parent.mkdir(exist_ok=True)
    unit.path.rename(other.path)
    assert other.read() is None and other.damaged
    assert other.once(lambda: [1], wait=False) == ([1], True) and other.read() == [1]


@settings(max_examples=300)
@given(place=st.floats(0, 1, exclude_max=True), change=st.integers(1, 255), cut=st.booleans())
def test_a_damaged_record_is_never_believed(
    tmp_path_factory: pytest.TempPathFactory, place: float, change: int, cut: bool
) -> None:
    """Every byte, changed or cut off: the record is read as it was, or not at all."""
    kept = Unit(tmp_path_factory.mktemp("out") / ".cache", KEY)
    kept.once(lambda: RECORD, wait=False)
    content = bytearray(kept.path.read_bytes())
    index = int(place * len(content))
    if cut:
        del content[index:]
    else:
        content[index] ^= change
    kept.path.write_bytes(content)
    assert kept.read() in (None, RECORD)
    assert kept.read() is None or json.loads(content)["record"] == RECORD
    assert kept.once(lambda: RECORD, wait=False) in ((RECORD, True), (RECORD, False))
    assert kept.read() == RECORD


def as_link(path: Path) -> None:
    target = path.with_name("elsewhere.json")
    path.rename(target)
    path.symlink_to(target)


def as_hole(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(LARGEST + 1)


def as_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def as_loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path)


STRANGE: dict[str, Callable[[Path], Any]] = {
    "empty": lambda path: path.write_bytes(b""),
    "pickle": lambda path: path.write_bytes(b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x04true\x85R."),
    "deep": lambda path: path.write_text("[" * 200_000),
    "list": lambda path: path.write_text("[1]"),
    "digits": lambda path: path.write_text("9" * 10_000),
    "fifo": as_fifo,
    "link": as_link,
    "loop": as_loop,
    "huge": as_hole,
    "infinity": lambda path: path.write_text(path.read_text().replace("3.14", "1e999")),
    "NaN": lambda path: path.write_text(path.read_text().replace("3.14", "NaN")),
    "deep inside": lambda path: path.write_text(path.read_text().replace("3.14", "[" * 10**5)),
    "unreadable": lambda path: path.chmod(0) if os.getuid() else path.write_bytes(b"\xff"),
}


@pytest.mark.parametrize("strange", list(STRANGE))
def test_what_is_no_record_is_replaced(unit: Unit, strange: str) -> None:
    STRANGE[strange](unit.path)
    assert unit.read() is None and unit.damaged
    assert unit.once(lambda: RECORD, wait=False) == (RECORD, True)
    assert unit.read() == RECORD and unit.path.is_file() and not unit.path.is_symlink()


def test_a_folder_in_the_place_of_a_record_is_named(unit: Unit) -> None:
    unit.path.unlink()
    unit.path.mkdir()
    with pytest.raises(InputError, match=r"the cache cannot be written \(.*\.json\); make it writable"):
        unit.once(lambda: RECORD, wait=False)


def test_what_json_cannot_hold_is_not_kept(tmp_path: Path) -> None:
    unit = Unit(tmp_path, KEY)
    with pytest.raises(InputError, match=r"figure-pi: record\.x is nan"):
        unit.once(lambda: {"x": float("nan")}, wait=False)
    assert not unit.path.exists()


def compute(folder: Path, key: dict[str, Any], log: Path, pause: float, wait: bool) -> None:
    def measure() -> int:
        with log.open("a") as file:
            file.write("x")
        time.sleep(pause)
        return 1

    Unit(folder, key).once(measure, wait)


def test_processes_share_units(tmp_path: Path) -> None:
    """Four processes go over eight units in orders of their own: each unit is computed once."""
    folder, log = tmp_path / ".cache", tmp_path / "log"

    def work(seed: int) -> None:
        order = random.Random(seed).sample(range(8), 8)
        for wait in (False, True):
            for number in order:
                compute(folder, KEY | {"config": number}, log, 0.02, wait)

    processes = [multiprocessing.get_context("fork").Process(target=work, args=(seed,)) for seed in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert len(log.read_text()) == 8
    assert [path.suffix for path in (folder / "units" / "figure-pi").iterdir()] == [".json"] * 8


@pytest.mark.parametrize("number", NO_LOCKS)
def test_a_file_system_without_locks(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Units are computed and kept there, too."""

    def acquire(self: Any, *_: Any, **__: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(FileLock, "acquire", acquire)
    unit = Unit(tmp_path, KEY)
    assert unit.once(lambda: RECORD, wait=True) == (RECORD, True)
    assert unit.once(never, wait=True) == (RECORD, False)


def test_parts_are_shared_by_the_units_of_an_exhibit(tmp_path: Path) -> None:
    decided_by = {"weights": "a1", "hardware": {"c": 0.1}}
    one, two = (Unit(tmp_path, KEY | {"config": number}) for number in range(2))
    assert one.part("scores", decided_by, lambda: [0.1, 1 / 3]) == ([0.1, 1 / 3], False)
    assert two.part("scores", decided_by, never) == ([0.1, 1 / 3], False)
    others = [
        (two, "ranges", decided_by),
        (two, "scores", decided_by | {"weights": "a2"}),
        (Unit(tmp_path, KEY | {"code": "other"}), "scores", decided_by),
        (Unit(tmp_path, KEY | {"versions": {"torch": "3"}}), "scores", decided_by),
    ]
    for number, (unit, name, by) in enumerate(others):
        assert unit.part(name, by, partial(int, number)) == (number, False)
    for file in tmp_path.rglob("*.json"):
        file.write_text(file.read_text().replace("0.1,", "0.2,"))
    assert one.part("scores", decided_by, lambda: 5) == (5, True)
    assert two.part("scores", decided_by, never) == (5, False)


def test_tidying_leaves_what_is_in_use(unit: Unit, tmp_path: Path) -> None:
    lock, other = unit.path.with_suffix(".lock"), unit.path.with_name("other.lock")
    for path in (lock, other):
        path.write_text("")
    with FileLock(lock):
        tidy(tmp_path, "figure-pi")
        assert lock.exists()
    tidy(tmp_path, "figure-pi")
    assert not lock.exists() and other.exists()  # the other one may be of a process that was killed
    assert unit.read() == RECORD


def test_the_claim_of_a_killed_process_is_free(tmp_path: Path) -> None:
    folder, log = tmp_path / ".cache", tmp_path / "log"
    process = multiprocessing.get_context("fork").Process(target=compute, args=(folder, KEY, log, 60, False))
    process.start()
    deadline = time.monotonic() + 30
    while not log.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    unit = Unit(folder, KEY)
    assert unit.once(never, wait=False) is None  # the other one is at it
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert unit.once(lambda: 2, wait=True) == (2, True)
    assert [path.suffix for path in unit.path.parent.iterdir()] == [".json"]


def test_only_forgetting_deletes_and_only_what_it_names(unit: Unit) -> None:
    other = Unit(unit.folder, KEY | {"exhibit": "figure-e"})
    other.once(lambda: 1, wait=False)
    size = unit.path.stat().st_size
    assert forget(unit.folder.parent, "figure-pi") == (1, size)
    assert unit.read() is None and other.read() == 1
    assert forget(unit.folder.parent, "figure-pi") == (0, 0)


def test_what_cannot_be_forgotten_is_named(unit: Unit) -> None:
    (unit.path.parent / "folder.json").mkdir()
    with pytest.raises(InputError, match=r"the cache cannot be written \(.*folder\.json\)"):
        forget(unit.folder.parent, "figure-pi")


def test_the_earlier_layout_is_named(tmp_path: Path) -> None:
    assert earlier_layout(tmp_path) == ""
    (tmp_path / ".cache" / "joblib").mkdir(parents=True)
    assert earlier_layout(tmp_path).endswith(
        "joblib: kept by an earlier version, not read; delete it if you like"
    )


def test_versions_are_those_that_are_installed() -> None:
    found = versions(DECIDING)
    assert found["torch"] and found["numpy"]
