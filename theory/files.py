"""How is a file read that anybody may have put there? Without waiting, and only if it is as large as it should be."""

import errno
import os
import stat
from pathlib import Path


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
