"""Finish an unpacked layer with the daemon's privileges: opaque marks, inherited attributes, superfluous whiteouts.

Rules:
- `trusted.*` attributes need CAP_SYS_ADMIN, which the unpacking child lacks. So the daemon sets
  `trusted.overlay.opaque`.
- A directory that a layer uses without an entry must look as in the layers below: a layer that adds `/tmp/x` must not
  remove the sticky bit of `/tmp`. The topmost lower layer that shows the directory gives owner, mode, time and
  attributes. This is why layers are stored by chain ID: how a layer looks depends on what is below it.
- overlayfs hides a whiteout from a listing only where it merges directories. In a directory that no lower layer shows,
  a whiteout would be listed as a name that can't be opened. It hides nothing there, so it is removed.
- The paths come from the child and the trees from an image: both are hostile. Everything is reached through descriptors
  opened with openat2, which follows no link and leaves no tree. Blocking: call it in a thread.
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

import msgspec

from cri_shim.errors import BadArchiveError
from cri_shim.host import syscalls
from cri_shim.quoting import quoted

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from cri_shim.image.unpack.protocol import LayerReport

OPAQUE_ATTRIBUTE = "trusted.overlay.opaque"
_INSIDE = syscalls.RESOLVE_BENEATH | syscalls.RESOLVE_NO_SYMLINKS | syscalls.RESOLVE_NO_XDEV
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def finish_layer(directory: Path, lowers: Sequence[Path], report: LayerReport) -> LayerReport:
    """Finish the layer in `directory`. `lowers` are the layers below it, topmost first. Returns the updated report.

    Raises BadArchiveError when a reported directory can't be opened, OSError of the host.
    """
    opened: list[int] = []
    try:
        for path in (directory, *lowers):
            opened.append(os.open(path, _DIRECTORY))  # noqa: PERF401 - what is open must be closed
        removed = _Finisher(opened[0], opened[1:], report).run()
    finally:
        for fd in opened:
            os.close(fd)
    return msgspec.structs.replace(report, inodes=report.inodes - removed)


class _Finisher:
    def __init__(self, layer_fd: int, lower_fds: Sequence[int], report: LayerReport) -> None:
        self._layer_fd = layer_fd
        self._lower_fds = lower_fds
        self._report = report
        self._opaque = frozenset(report.opaque_dirs)
        self._showing: dict[bytes, list[int]] = {b"": list(lower_fds)}
        """Directory -> the lower layers, topmost first, that overlayfs merges it from."""

    def run(self) -> int:
        """Finish the layer; returns how many whiteouts were removed."""
        os.chmod(self._layer_fd, 0o755)  # noqa: S103 - the root directory of a root file system
        for path in self._report.opaque_dirs:
            fd = self._open_own(path)
            try:
                os.setxattr(fd, OPAQUE_ATTRIBUTE, b"y")
            finally:
                os.close(fd)
        for path in self._report.implied_dirs:
            showing = self._shown_by(path)
            if showing:
                self._inherit(path, showing[0])
        return sum(
            self._remove_whiteouts(path)
            for path in self._report.whiteout_dirs
            if path in self._opaque or not self._shown_by(path)
        )

    def _remove_whiteouts(self, path: bytes) -> int:
        fd = self._open_own(path)
        try:
            before = os.fstat(fd)
            with os.scandir(fd) as found:
                names = [item.name for item in found if _is_whiteout(item)]
            for name in names:
                os.unlink(name, dir_fd=fd)
            os.utime(fd, ns=(before.st_atime_ns, before.st_mtime_ns))
        finally:
            os.close(fd)
        return len(names)

    def _open_own(self, path: bytes) -> int:
        try:
            return _open(self._layer_fd, path, _DIRECTORY)
        except OSError as error:
            raise BadArchiveError(
                f"the unpacker reported the directory {quoted(path)}, which can't be opened: {error}"
            ) from error

    def _shown_by(self, path: bytes) -> list[int]:
        """The lower layers that show a directory. Parents come first: a layer that lacks one is not asked again."""
        missing = []
        while path not in self._showing:
            missing.append(path)
            path = path.rpartition(b"/")[0]
        showing = self._showing[path]
        for path in reversed(missing):
            parent = path.rpartition(b"/")[0]
            showing = [] if parent in self._opaque else self._merged(path, showing)
            self._showing[path] = showing
        return showing

    def _merged(self, path: bytes, candidates: list[int]) -> list[int]:
        showing: list[int] = []
        for lower_fd in candidates:
            try:
                fd = _open(lower_fd, path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
            except FileNotFoundError:
                continue
            except OSError:
                break
            try:
                if not stat.S_ISDIR(os.fstat(fd).st_mode):
                    break  # a file, a link or a whiteout hides what is below it
                showing.append(lower_fd)
                if _is_opaque(f"/proc/self/fd/{fd}"):
                    break
            finally:
                os.close(fd)
        return showing

    def _inherit(self, path: bytes, lower_fd: int) -> None:
        target = self._open_own(path)
        try:
            source = _open(lower_fd, path, _DIRECTORY)
            try:
                _copy_attributes(source, target)
            finally:
                os.close(source)
        finally:
            os.close(target)


def _open(directory_fd: int, path: bytes, flags: int) -> int:
    return syscalls.openat2(directory_fd, os.fsdecode(path or b"."), flags, resolve=_INSIDE)


def _is_opaque(path: str) -> bool:
    try:
        return os.getxattr(path, OPAQUE_ATTRIBUTE) == b"y"
    except OSError:
        return False


def _is_whiteout(item: os.DirEntry[str]) -> bool:
    if item.is_file(follow_symlinks=False) or item.is_dir(follow_symlinks=False):
        return False  # the listing itself gives the type; no stat needed
    found = item.stat(follow_symlinks=False)
    return stat.S_ISCHR(found.st_mode) and found.st_rdev == 0


def _copy_attributes(source: int, target: int) -> None:
    found = os.fstat(source)
    os.fchown(target, found.st_uid, found.st_gid)
    for name in os.listxattr(source):
        if not name.startswith("trusted."):
            os.setxattr(target, name, os.getxattr(source, name))
    os.fchmod(target, stat.S_IMODE(found.st_mode))
    os.utime(target, ns=(found.st_mtime_ns, found.st_mtime_ns))
