"""How is a file read that anybody may have put there, and how is one written whole or not at all?

It is read without waiting, and only if it is as large as it should be.
"""

import errno
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from theory.errors import InputError, shown


def read_regular(path: Path, largest: int, *, follow: bool = True) -> bytes:
    """Content of a regular file of at most `largest` bytes; OSError for anything else, as a FIFO or a device.

    follow: False refuses links, too.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW))
    with os.fdopen(descriptor, "rb") as file:
        about = os.fstat(descriptor)
        if not stat.S_ISREG(about.st_mode):
            raise OSError(errno.EINVAL, "it is no regular file", str(path))
        content = file.read(largest + 1)  # files of some file systems do not know their size
        if len(content) > largest:
            raise OSError(errno.EFBIG, f"it has more than {largest} bytes", str(path))
        return content


def from_home(file: str | Path) -> Path:
    """The path, ~ being a home; where there is no such home, that of a file which is called so.

    InputError for what is no path.
    """
    if not isinstance(file, str | os.PathLike):
        raise InputError(f"file is {shown(file)}: give a path")
    path = Path(file)
    with suppress(RuntimeError):
        path = path.expanduser()
    return path


@contextmanager
def write_whole(path: Path, what: str) -> Iterator[BinaryIO]:
    """A file to write, which is in its place if the block ends well, and else not at all; links are replaced.

    InputError, naming `what` it is, if it cannot be written, or if a folder, a FIFO or a device is in its place.
    """
    half = path.parent / f".{path.name}.{secrets.token_hex(8)}.half"
    try:
        if path.is_dir():
            raise OSError(errno.EISDIR, "a folder is in its place")
        if os.path.lexists(path) and not (path.is_symlink() or path.is_file()):
            raise OSError(errno.EINVAL, "it is no regular file")
        with half.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        half.replace(path)
    except OSError as error:
        raise InputError(f"{what} {path} cannot be written ({error.strerror}): give another place") from None
    finally:
        with suppress(OSError):
            half.unlink(missing_ok=True)
