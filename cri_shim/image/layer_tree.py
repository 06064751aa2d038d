"""The tree that a layer is unpacked into: names resolved, directories made, things removed, all of it counted.

The root directory of this process is that tree (the child has chrooted), and nobody else writes to it. Runs in the
unpacker's child only.

Rules:
- Paths are bytes, relative to the root. A *real* path has no link, no `.` and no `..` in it: it is what this module
  gives out, and the only kind that is used to make something.
- A name is resolved here, link by link, with the root as its end in every direction; nothing is opened through a link.
- Nothing recurses: how deep a tree is, its maker decides.
"""

from __future__ import annotations

import os
import stat

from cri_shim.image.jobs import (
    MAX_NAME_BYTES,
    MAX_PATH_BYTES,
    MAX_REPORTED_BYTES,
    PATH_BYTES,
    InputError,
    Limits,
)
from cri_shim.image.tar import show

_MAX_LINKS = 40
"""As many as the kernel follows in one path."""
_IMPLIED_MODE = 0o755
"""Of a directory that no entry describes, as every unpacker has it."""
_BLOCK = 4096


class LayerTree:
    """What was made so far below `/`, and how much of it there is."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._made = 0
        self.inodes = 0
        self.disk_bytes = 0
        self._directories: set[bytes] = {b""}
        """Real paths known to be directories; forgotten as a whole whenever one of them may have gone."""
        self._implied: dict[bytes, None] = {}
        self._opaque: dict[bytes, None] = {}
        self._reported_bytes = 0

    def implied(self) -> list[bytes]:
        """The directories that no entry described, parents first."""
        return sorted(path for path in self._implied if is_directory(path))

    def opaque(self) -> list[bytes]:
        """The directories that hide what lower layers have in them."""
        return [path for path in self._opaque if is_directory(path)]

    def describe(self, real: bytes) -> None:
        """An entry has described this directory after all."""
        if real in self._implied:
            del self._implied[real]
            self._reported_bytes -= len(real) + PATH_BYTES

    def hide_lower(self, real: bytes) -> None:
        """Note that this directory is opaque. Raises InputError past the bound."""
        self._note(self._opaque, real)

    def _note(self, kind: dict[bytes, None], real: bytes) -> None:
        if real not in kind:
            kind[real] = None
            self._reported_bytes += len(real) + PATH_BYTES
            if self._reported_bytes > MAX_REPORTED_BYTES:
                raise InputError(
                    "too many long paths of directories that no entry describes, or that are opaque"
                )

    def parent(self, path: bytes, *, create: bool) -> bytes:
        """The real path of the directory `path`, as the kernel would find it from `/`.

        Directories that are missing are made (0755, root) with `create`. Raises InputError where a file is in the
        way, FileNotFoundError without `create`.
        """
        if path in self._directories:
            return path
        real = b""
        links = 0
        todo = path.split(b"/")
        todo.reverse()
        while todo:
            part = todo.pop()
            if part in (b"", b"."):
                continue
            if part == b"..":
                real = real.rpartition(b"/")[0]
                continue
            candidate = join(real, part)
            if candidate in self._directories:
                real = candidate
                continue
            try:
                mode = os.lstat(b"/" + candidate).st_mode
            except FileNotFoundError:
                if not create:
                    raise
                self.make_directory(candidate)
                # A setgid parent would have handed down its group and its bit.
                os.chown(b"/" + candidate, 0, 0, follow_symlinks=False)
                os.chmod(b"/" + candidate, _IMPLIED_MODE)
                self._note(self._implied, candidate)
                real = candidate
                continue
            if stat.S_ISDIR(mode):
                self._directories.add(candidate)
                real = candidate
            elif stat.S_ISLNK(mode):
                links += 1
                if links > _MAX_LINKS:
                    raise InputError(f"{show(path)}: too many links on the way")
                target = os.readlink(b"/" + candidate)
                if target.startswith(b"/"):
                    real = b""
                todo.extend(reversed(target.split(b"/")))
            else:
                raise InputError(f"{show(path)}: {show(candidate)} is a file, not a directory")
        return real

    def make_directory(self, real: bytes) -> bool:
        """False where something else is in the way. What is there already as a directory stays."""
        try:
            os.mkdir(b"/" + real, _IMPLIED_MODE)
        except FileExistsError:
            if not is_directory(real):
                return False
        else:
            self.count(_BLOCK)
        self._directories.add(real)
        return True

    def remove(self, real: bytes) -> None:
        """Take away what has this name, a whole tree if need be; not by recursion, which depth could break."""
        path = b"/" + real
        if not stat.S_ISDIR(os.lstat(path).st_mode):
            self._unlink(path)
            return
        self._directories = {b""}
        todo = [path]
        emptied: list[bytes] = []
        while todo:
            directory = todo.pop()
            emptied.append(directory)
            with os.scandir(directory) as found:
                for item in found:
                    if item.is_dir(follow_symlinks=False):
                        todo.append(item.path)
                    else:
                        self._unlink(item.path)
        for directory in reversed(emptied):
            os.rmdir(directory)
            self._discount(_BLOCK)

    def _unlink(self, path: bytes) -> None:
        found = os.lstat(path)
        os.unlink(path)
        if found.st_nlink == 1:
            self._discount(rounded(found.st_size) if stat.S_ISREG(found.st_mode) else 0)

    def count(self, disk_bytes: int, *, inodes: int = 1) -> None:
        """Something was made. Raises InputError past the bound."""
        self._made += 1
        if self._made > self._limits.max_inodes:
            raise InputError(f"more than {self._limits.max_inodes} files and directories")
        self.inodes += inodes
        self.disk_bytes += disk_bytes

    def _discount(self, disk_bytes: int) -> None:
        self.inodes -= 1
        self.disk_bytes = max(0, self.disk_bytes - disk_bytes)


def normalise(name: bytes) -> bytes:
    """`name` relative to the root: no `.`, no empty parts, `..` resolved as text and stopped at the root.

    Raises InputError for what no file system can name.
    """
    if len(name) >= MAX_PATH_BYTES:
        raise InputError(f"{show(name)}: a path of {len(name)} bytes")
    parts: list[bytes] = []
    for part in name.split(b"/"):
        if part in (b"", b"."):
            continue
        if part == b"..":
            if parts:
                parts.pop()
            continue
        if len(part) > MAX_NAME_BYTES:
            raise InputError(f"{show(name)}: a name of {len(part)} bytes")
        parts.append(part)
    return b"/".join(parts)


def join(directory: bytes, base: bytes) -> bytes:
    """The path of `base` in the real `directory`. Raises InputError when it gets too long."""
    path = directory + b"/" + base if directory else base
    if len(path) >= MAX_PATH_BYTES - 1:
        raise InputError(f"{show(path)}: a path of {len(path)} bytes, links on the way counted in")
    return path


def is_directory(real: bytes) -> bool:
    """Whether there is a directory, not a link to one."""
    try:
        return stat.S_ISDIR(os.lstat(b"/" + real).st_mode)
    except OSError:
        return False


def rounded(size: int) -> int:
    """The disk space of `size` bytes."""
    return (size + _BLOCK - 1) // _BLOCK * _BLOCK
