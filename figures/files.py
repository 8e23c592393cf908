"""How is a file written whole or not at all, and what becomes of a half that a killed process left?"""

import errno
import os
import platform
import re
import secrets
import shutil
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from theory.errors import InputError

# EFBIG: a limit on the size of files is, for the user, the same as a full disk.
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
HALF = re.compile(r"\.(?P<host>[\w-]*)\.(?P<process>\d+)\.[0-9a-f]{16}\.half")
# Semaphores, folders for large arguments, and places of GPUs. The number is that of the run's process.
OF_PLACES = "paper-repro-places-"
OF_WORKERS = re.compile(rf"(sem\.loky-|joblib_memmapping_folder_|{OF_PLACES})(?P<process>\d+)[-_]")
SHARED_MEMORY = Path("/dev/shm")
FORGOTTEN_SECONDS = 24 * 3600  # no process takes as long to write a file


def replace_file(path: Path, content: bytes) -> None:
    """Write the file whole or not at all. A link in the place of the file, or of the half, is not followed."""
    half = passing(path.parent)
    try:
        with half.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        half.replace(path)
    finally:
        half.unlink(missing_ok=True)


def keep_file(path: Path, content: bytes, what: str) -> None:
    """`replace_file` of something that a run has made; InputError, naming it, if that cannot be done."""
    try:
        replace_file(path, content)
    except OSError as error:
        raise unwritable(path, error, what) from None


def passing(folder: Path) -> Path:
    """A new name in the folder, for a file that `remove_halves` removes if this process is killed."""
    return folder / f".{_host()}.{os.getpid()}.{secrets.token_hex(8)}.half"


def remove_halves(folder: Path) -> None:
    """Remove what processes that are gone were writing into the folder."""
    with suppress(OSError):  # no such folder
        for path in sorted(folder.iterdir()):
            if found := HALF.fullmatch(path.name):
                old = time.time() - path.lstat().st_mtime > FORGOTTEN_SECONDS
                if old or (found["host"] == _host() and not is_running(int(found["process"]))):
                    path.unlink(missing_ok=True)


def remove_leftovers() -> None:
    """Remove what workers of runs that are gone have left in shared memory and in the folder of temporary files."""
    folders = [SHARED_MEMORY]
    with suppress(OSError):  # there is no usable one
        folders.append(Path(tempfile.gettempdir()))
    for folder in folders:
        with suppress(OSError):  # no such folder
            for path in sorted(folder.iterdir()):
                found = OF_WORKERS.match(path.name)
                if found and path.lstat().st_uid == os.getuid() and not is_running(int(found["process"])):
                    if path.is_dir() and not path.is_symlink():
                        shutil.rmtree(path, ignore_errors=True)
                    else:
                        path.unlink(missing_ok=True)


def is_running(process: int) -> bool:
    """True if this machine has a process of that number."""
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # somebody else's
        return True
    return True


def _host() -> str:
    return re.sub(r"[^\w-]", "-", platform.node())[:32]


def unwritable(path: Path, error: OSError, what: str) -> InputError:
    """The one line about a file that could not be written."""
    if is_disk_full(error):
        return InputError(disk_full(error))
    return InputError(f"{what} cannot be written ({error.strerror}: {path}); make it writable, run it again")


def is_disk_full(error: OSError) -> bool:
    return error.errno in DISK_FULL


def disk_full(error: OSError) -> str:
    """The one line about a full disk."""
    return f"{error.strerror}: finished units are kept; free space (or choose another --out) and run it again"
