"""What the images are made of: files of Debian packages, downloaded once and kept outside the checkout.

busybox here is the distribution's dynamic build: the static one's shell prefers the commands that are compiled into it
to those on PATH, so that a command which a test takes away is still there.
"""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
import tempfile
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

PACKAGES = ("busybox", "libc6", "coreutils")
_LIBRARIES = ("libc.so", "libm.so", "libresolv.so", "ld-linux")
"""What busybox is linked with, and the program that loads it."""

Files = dict[str, bytes | PurePosixPath]
"""Path without a leading slash, to contents, or to where a symbolic link points."""


class PackageError(Exception):
    """The packages can't be had; the message says what to do."""


def cache_dir() -> Path:
    """Where downloads are kept: a directory of the user's cache."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "cri-shim" / "conformance"


def fetch() -> Mapping[str, Path]:
    """Each package's file, downloaded if it isn't there. Needs the machine's network. Raises: PackageError."""
    directory = cache_dir()
    directory.mkdir(parents=True, exist_ok=True)
    if lacking := [name for name in PACKAGES if not _downloaded(directory, name)]:
        # An aborted download must not pass for a package.
        with tempfile.TemporaryDirectory(dir=directory) as scratch:
            _download(lacking, Path(scratch))
            for package in Path(scratch).glob("*.deb"):
                package.rename(directory / package.name)
    return {name: _downloaded(directory, name)[-1] for name in PACKAGES}


def busybox_files(packages: Mapping[str, Path]) -> tuple[Files, list[str]]:
    """busybox with its libraries, at their places in an image; and the names of its commands."""
    files: Files = {}
    for path, content in _contents(packages["libc6"]).items():
        if PurePosixPath(path).name.startswith(_LIBRARIES) and "gconv" not in path:
            files[path] = content
    binary = program(packages["busybox"], "busybox")
    files["bin/busybox"] = binary
    return files, _commands(binary)


def program(package: Path, name: str) -> bytes:
    """One of a package's programs. It may need the libraries that come with busybox here, and no others."""
    binary = _contents(package)[f"usr/bin/{name}"]
    assert isinstance(binary, bytes), f"{name} is a link in {package}"
    return binary


def _download(names: list[str], directory: Path) -> None:
    done = subprocess.run(
        ["apt-get", "-q", "download", *names],
        cwd=directory,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise PackageError(f"apt-get download {' '.join(names)} failed: {last}; do: apt-get update")


def _downloaded(directory: Path, name: str) -> list[Path]:
    return sorted(directory.glob(f"{name}_*.deb"))


def _contents(package: Path) -> Files:
    """The files and symbolic links of a package; what releases had outside of /usr is put there."""
    tar = subprocess.run(
        ["dpkg-deb", "--fsys-tarfile", package], capture_output=True, check=True
    ).stdout
    found: Files = {}
    with tarfile.open(fileobj=io.BytesIO(tar)) as members:
        for member in members:
            path = member.name.removeprefix("./")
            if not path.startswith("usr/"):
                path = f"usr/{path}"
            if member.issym():
                found[path] = PurePosixPath(member.linkname)
            elif (content := members.extractfile(member)) is not None:
                found[path] = content.read()
    return found


def _commands(binary: bytes) -> list[str]:
    """What this busybox can do. It is asked, which needs a machine of the release that the package is from."""
    with tempfile.TemporaryDirectory(dir=cache_dir()) as scratch:
        program = Path(scratch) / "busybox"
        program.write_bytes(binary)
        program.chmod(0o755)
        listed = subprocess.run([program, "--list"], capture_output=True, text=True, check=True)
    return listed.stdout.split()
