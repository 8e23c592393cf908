"""Files are written whole or not at all, links are not followed, and halves of killed processes go away."""

import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from figures.files import FORGOTTEN_SECONDS, HALF, is_running, remove_halves, replace_file
from theory.files import read_regular


def halves(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if HALF.fullmatch(path.name)]


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    file = tmp_path / "file"
    for content in (b"one", b"", b"two" * 10**6):
        replace_file(file, content)
        assert file.read_bytes() == content and list(tmp_path.iterdir()) == [file]


def test_what_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError):
        replace_file(tmp_path / "folder", b"x")
    assert not halves(tmp_path)


def write_forever(file: Path) -> None:
    while True:
        replace_file(file, os.urandom(10**6))


def test_what_a_killed_process_was_writing_goes_away(tmp_path: Path) -> None:
    """What living processes write stays, as does what only looks alike."""
    context = multiprocessing.get_context("fork")
    found: list[Path] = []
    while not found:  # killed between two files, a process leaves nothing
        process = context.Process(target=write_forever, args=(tmp_path / "file",))
        process.start()
        time.sleep(0.05)
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        found = halves(tmp_path)
    assert process.pid is not None
    number = str(process.pid)
    assert f".{number}." in found[0].name and not is_running(process.pid)
    mine = tmp_path / found[0].name.replace(f".{number}.", f".{os.getpid()}.")
    strange = tmp_path / f".other-host.{number}.{0:016x}.half"
    alike = tmp_path / f".{number}.half"
    for path in (mine, strange, alike):
        path.write_text("")
    remove_halves(tmp_path)
    assert set(tmp_path.iterdir()) == {mine, strange, alike, *tmp_path.glob("file")}
    old = time.time() - FORGOTTEN_SECONDS - 1
    os.utime(strange, (old, old))
    remove_halves(tmp_path)
    assert not strange.exists() and mine.exists()


def test_no_folder_has_no_halves(tmp_path: Path) -> None:
    remove_halves(tmp_path / "none")


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"12345")
    assert read_regular(file, 5) == b"12345"
    with pytest.raises(OSError, match="more than 4 bytes"):
        read_regular(file, 4)
    (tmp_path / "link").symlink_to(file)
    assert read_regular(tmp_path / "link", 5) == b"12345"
    with pytest.raises(OSError, match="symbolic link"):
        read_regular(tmp_path / "link", 5, follow=False)
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", Path("/dev/zero")):
        with pytest.raises(OSError, match="no regular file"):
            read_regular(path, 5)
    with pytest.raises(IsADirectoryError):
        read_regular(tmp_path, 5)
