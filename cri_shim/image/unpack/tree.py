"""The tree that a layer is unpacked into: it resolves names, creates directories, removes things, and counts.

The root directory of this process is that tree (the child has chrooted), and nothing else writes to it. Runs in the
unpacking child only.

Rules:
- Paths are bytes, relative to the root. A *real* path contains no link, no `.` and no `..`. This module returns real
  paths, and only real paths are used to create something.
- Names are resolved here, link by link, and never leave the root. Nothing is opened through a link.
- Notes about a directory for later (its time, an opaque mark) vanish with the directory. So a note always belongs to
  the directory that it was made for, never to what a later entry puts in its place.
- A directory that replaces something else is opaque, since what it replaces had replaced the lower layers' directory.
- Nothing recurses, since the layer's author decides how deep a tree is.
"""

from __future__ import annotations

import errno
import os
import stat

from cri_shim.image.unpack.protocol import (
    MAX_NAME_BYTES,
    MAX_PATH_BYTES,
    MAX_REPORTED_BYTES,
    PATH_BYTES,
    InputError,
    Limits,
)
from cri_shim.image.unpack.tar import show

_MAX_LINKS = 40
"""The kernel's own limit for one path (ELOOP)."""
_IMPLIED_MODE = 0o755
"""The mode of a directory without an entry, as in other unpackers."""
_BLOCK = 4096


class LayerTree:
    """The tree below `/` so far, and its size."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._made = 0
        self.inodes = 0
        self.disk_bytes = 0
        self._directories: set[bytes] = {b""}
        """Real paths of all directories."""
        self._times: dict[bytes, int] = {}
        self._implied: dict[bytes, None] = {}
        self._opaque: dict[bytes, None] = {}
        self._whiteout_dirs: dict[bytes, None] = {}
        self._whiteouts: set[int] = set()
        """Inodes of our whiteouts: an entry may also be a device 0/0 of its own."""
        self._reported_bytes = 0

    def implied(self) -> list[bytes]:
        """The directories without an entry, parents first."""
        return sorted(self._implied)

    def opaque(self) -> list[bytes]:
        """The directories that hide the content of lower layers."""
        return list(self._opaque)

    def whiteout_dirs(self) -> list[bytes]:
        """The directories in which whiteouts were created. A whiteout may have been replaced since."""
        return list(self._whiteout_dirs)

    def describe(self, real: bytes, mtime_ns: int) -> None:
        """Note that an entry describes this directory. `set_times` sets its time, after the last change in it."""
        self._forget_note(self._implied, real)
        self._times[real] = mtime_ns

    def hide_lower(self, real: bytes) -> None:
        """Note that this directory is opaque. Raises InputError past the bound."""
        self._note(self._opaque, real)

    def white_out(self, directory: bytes, base: bytes) -> None:
        """Hide what lower layers have as `base` in the real `directory`. What this layer has there stays.

        Raises InputError past the bound.
        """
        real = join(directory, base)
        path = b"/" + real
        if real in self._directories:
            # This layer removes the lower directory and brings its own: it inherits no owner and mode.
            self._forget_note(self._implied, real)
            self.hide_lower(real)
            return
        try:
            os.mknod(path, stat.S_IFCHR, 0)
        except FileExistsError:
            return
        self._whiteouts.add(os.lstat(path).st_ino)
        self.count(0)
        self._note(self._whiteout_dirs, directory)

    def is_whiteout(self, found: os.stat_result) -> bool:
        """Whether the file with this status is a whiteout of ours."""
        return stat.S_ISCHR(found.st_mode) and found.st_ino in self._whiteouts

    def set_times(self) -> None:
        """Set the directories' times as their entries state them. Call it last."""
        for real, mtime_ns in self._times.items():
            os.utime(b"/" + real, ns=(mtime_ns, mtime_ns), follow_symlinks=False)

    def _note(self, kind: dict[bytes, None], real: bytes) -> None:
        if real not in kind:
            kind[real] = None
            self._reported_bytes += len(real) + PATH_BYTES
            if self._reported_bytes > MAX_REPORTED_BYTES:
                raise InputError(
                    "the paths of opaque directories, directories with whiteouts and directories without an entry "
                    f"exceed {MAX_REPORTED_BYTES} bytes"
                )

    def _forget_note(self, kind: dict[bytes, None], real: bytes) -> None:
        if real in kind:
            del kind[real]
            self._reported_bytes -= len(real) + PATH_BYTES

    def parent(self, path: bytes, *, create: bool) -> bytes:
        """Resolve the directory `path` to its real path, as the kernel would from `/`.

        With `create`, directories that are missing or whited out are created (0755, root). Raises InputError where a
        file is in the way, FileNotFoundError for a missing directory without `create`.
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
                found = os.lstat(b"/" + candidate)
            except FileNotFoundError:
                if not create:
                    raise
                self._imply(candidate)
                self._note(self._implied, candidate)
                real = candidate
                continue
            if stat.S_ISLNK(found.st_mode):
                links += 1
                if links > _MAX_LINKS:
                    raise InputError(
                        f"{show(path)}: more than {_MAX_LINKS} symbolic links on its way"
                    )
                target = os.readlink(b"/" + candidate)
                if target.startswith(b"/"):
                    real = b""
                todo.extend(reversed(target.split(b"/")))
            elif self.is_whiteout(found):
                if not create:
                    raise FileNotFoundError(errno.ENOENT, "whited out", candidate)
                # Opaque and not implied: the whiteout removed the lower directory, so nothing is inherited from it.
                self.remove(candidate)
                self._imply(candidate)
                self.hide_lower(candidate)
                real = candidate
            else:
                raise InputError(f"{show(path)}: {show(candidate)} is a file, not a directory")
        return real

    def _imply(self, real: bytes) -> None:
        self.make_directory(real)
        # Undo what a setgid parent passes on: its group and the bit.
        os.chown(b"/" + real, 0, 0, follow_symlinks=False)
        os.chmod(b"/" + real, _IMPLIED_MODE)

    def make_directory(self, real: bytes) -> None:
        """Create a directory. An existing one stays; anything else is replaced. Raises InputError past a bound."""
        if real in self._directories:
            return
        try:
            os.mkdir(b"/" + real, _IMPLIED_MODE)
        except FileExistsError:
            self.remove(real)
            os.mkdir(b"/" + real, _IMPLIED_MODE)
            self.hide_lower(real)
        self._directories.add(real)
        self.count(_BLOCK)

    def remove(self, real: bytes) -> None:
        """Remove what has this name, also a whole tree. Without recursion, which a deep tree could exhaust."""
        path = b"/" + real
        if real not in self._directories:
            self._unlink(path)
            return
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
            self._forget(directory[1:])

    def _forget(self, real: bytes) -> None:
        """Drop everything noted about a directory that was removed."""
        self._directories.discard(real)
        self._times.pop(real, None)
        for kind in (self._implied, self._opaque, self._whiteout_dirs):
            self._forget_note(kind, real)

    def _unlink(self, path: bytes) -> None:
        found = os.lstat(path)
        os.unlink(path)
        if found.st_nlink == 1:
            self._whiteouts.discard(found.st_ino)
            self._discount(rounded(found.st_size) if stat.S_ISREG(found.st_mode) else 0)

    def count(self, disk_bytes: int, *, inodes: int = 1) -> None:
        """Count something that was created. Raises InputError past the bound."""
        self._made += 1
        if self._made > self._limits.max_inodes:
            raise InputError(
                f"the layer has more than {self._limits.max_inodes} files and directories"
            )
        self.inodes += inodes
        self.disk_bytes += disk_bytes

    def _discount(self, disk_bytes: int) -> None:
        self.inodes -= 1
        self.disk_bytes = max(0, self.disk_bytes - disk_bytes)


def normalise(name: bytes) -> bytes:
    """`name` relative to the root, without `.` and empty components. `..` is resolved as text and stops at the root.

    Raises InputError for a name that no file system can hold.
    """
    if len(name) >= MAX_PATH_BYTES:
        raise InputError(
            f"{show(name)}: the path has {len(name)} bytes; the limit is {MAX_PATH_BYTES - 1}"
        )
    parts: list[bytes] = []
    for part in name.split(b"/"):
        if part in (b"", b"."):
            continue
        if part == b"..":
            if parts:
                parts.pop()
            continue
        if len(part) > MAX_NAME_BYTES:
            raise InputError(
                f"{show(name)}: a component has {len(part)} bytes; the limit is {MAX_NAME_BYTES}"
            )
        parts.append(part)
    return b"/".join(parts)


def join(directory: bytes, base: bytes) -> bytes:
    """The path of `base` in the real `directory`. Raises InputError if it is too long."""
    path = directory + b"/" + base if directory else base
    if len(path) >= MAX_PATH_BYTES - 1:
        raise InputError(
            f"{show(path)}: with its links resolved the path has {len(path)} bytes; the limit is {MAX_PATH_BYTES - 2}"
        )
    return path


def rounded(size: int) -> int:
    """`size` in whole blocks."""
    return (size + _BLOCK - 1) // _BLOCK * _BLOCK
