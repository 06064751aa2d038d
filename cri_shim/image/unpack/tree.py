"""The tree that a layer is unpacked into: names resolved, directories made, things removed, all of it counted.

The root directory of this process is that tree (the child has chrooted), and nobody else writes to it. Runs in the
unpacker's child only.

Rules:
- Paths are bytes, relative to the root. A *real* path has no link, no `.` and no `..` in it: it is what this module
  gives out, and the only kind that is used to make something.
- A name is resolved here, link by link, with the root as its end in every direction; nothing is opened through a link.
- What is noted of a directory for later (its time, an opaque mark) is forgotten together with the directory. So a note
  always means the directory that stood there when the note was made, never what a later entry puts in its place.
- A directory that takes the place of something else is opaque: what stood there had replaced the lower layers' one.
- Nothing recurses: how deep a tree is, its maker decides.
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
        """Real paths of all directories there are."""
        self._times: dict[bytes, int] = {}
        self._implied: dict[bytes, None] = {}
        self._opaque: dict[bytes, None] = {}
        self._whiteout_dirs: dict[bytes, None] = {}
        self._whiteouts: set[int] = set()
        """Inodes of the whiteouts: a device 0/0 may also be an entry of its own."""
        self._reported_bytes = 0

    def implied(self) -> list[bytes]:
        """The directories that no entry described, parents first."""
        return sorted(self._implied)

    def opaque(self) -> list[bytes]:
        """The directories that hide what lower layers have in them."""
        return list(self._opaque)

    def whiteout_dirs(self) -> list[bytes]:
        """The directories in which a whiteout was made; it may have been replaced since."""
        return list(self._whiteout_dirs)

    def describe(self, real: bytes, mtime_ns: int) -> None:
        """An entry describes this directory; its time is set by `set_times`, once nothing more is made in it."""
        self._forget_note(self._implied, real)
        self._times[real] = mtime_ns

    def hide_lower(self, real: bytes) -> None:
        """Note that this directory is opaque. Raises InputError past the bound."""
        self._note(self._opaque, real)

    def white_out(self, directory: bytes, base: bytes) -> None:
        """Hide what lower layers have as `base` in the real `directory`, never what this layer has there.

        Raises InputError past the bound.
        """
        real = join(directory, base)
        path = b"/" + real
        if real in self._directories:
            # The lower directory is gone, and this one has nothing of it, not its owner or mode either.
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
        """Whether what was found here is one that `white_out` made."""
        return stat.S_ISCHR(found.st_mode) and found.st_ino in self._whiteouts

    def set_times(self) -> None:
        """Give the directories the times that their entries say; last of all."""
        for real, mtime_ns in self._times.items():
            os.utime(b"/" + real, ns=(mtime_ns, mtime_ns), follow_symlinks=False)

    def _note(self, kind: dict[bytes, None], real: bytes) -> None:
        if real not in kind:
            kind[real] = None
            self._reported_bytes += len(real) + PATH_BYTES
            if self._reported_bytes > MAX_REPORTED_BYTES:
                raise InputError(
                    "too many long paths of directories that no entry describes, that are opaque, or have whiteouts"
                )

    def _forget_note(self, kind: dict[bytes, None], real: bytes) -> None:
        if real in kind:
            del kind[real]
            self._reported_bytes -= len(real) + PATH_BYTES

    def parent(self, path: bytes, *, create: bool) -> bytes:
        """The real path of the directory `path`, as the kernel would find it from `/`.

        Directories that are missing, or whited out, are made (0755, root) with `create`. Raises InputError where a
        file is in the way, FileNotFoundError without `create`.
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
                    raise InputError(f"{show(path)}: too many links on the way")
                target = os.readlink(b"/" + candidate)
                if target.startswith(b"/"):
                    real = b""
                todo.extend(reversed(target.split(b"/")))
            elif self.is_whiteout(found):
                if not create:
                    raise FileNotFoundError(errno.ENOENT, "whited out", candidate)
                # Not noted as implied: it has nothing of the lower directory, not its owner or mode either.
                self.remove(candidate)
                self._imply(candidate)
                self.hide_lower(candidate)
                real = candidate
            else:
                raise InputError(f"{show(path)}: {show(candidate)} is a file, not a directory")
        return real

    def _imply(self, real: bytes) -> None:
        self.make_directory(real)
        # A setgid parent would have handed down its group and its bit.
        os.chown(b"/" + real, 0, 0, follow_symlinks=False)
        os.chmod(b"/" + real, _IMPLIED_MODE)

    def make_directory(self, real: bytes) -> None:
        """Have a directory there: one that is there stays, anything else gives way. Raises InputError past a bound."""
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
        """Take away what has this name, a whole tree if need be; not by recursion, which depth could break."""
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
        """A directory has gone, and with it all that was noted of it."""
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


def rounded(size: int) -> int:
    """The disk space of `size` bytes."""
    return (size + _BLOCK - 1) // _BLOCK * _BLOCK
