"""Unpack one layer's tar into the root directory of this process. Runs in the unpacking child only.

The child has chrooted into an empty directory that it alone uses, so no name can lead out. In addition, `tree` resolves
each parent directory itself, and the last component is created with O_EXCL. Entries mean what the field's unpackers
agree on:

- `..` and links are resolved inside the root. An entry for the root itself is ignored: a container's root directory has
  the attributes of the writable layer.
- An entry replaces what has its name. A directory entry keeps an existing directory and its content.
- A hard link must point to an earlier entry of the same layer. The inode gets owner, mode and time of the link's
  header.
- A whiteout hides what lower layers have, never what this layer has (image-spec, layer, "Whiteouts"). It is created as
  a character device 0/0 when its entry arrives, so that no later change of its directory can misplace it. A directory
  of that name in this layer, from before or after, is opaque instead.
- `security.capability`, POSIX ACLs and `user.*` attributes are kept. overlayfs' own, other `security.*` (a node's
  policy, not an image's) and `trusted.*` attributes are dropped and counted.
- Directory times are set last. Everything is bounded by `Limits`.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING

from cri_shim.image.unpack.protocol import MAX_PATH_BYTES, InputError, LayerReport, Limits
from cri_shim.image.unpack.tar import show
from cri_shim.image.unpack.tree import LayerTree, join, normalise, rounded

if TYPE_CHECKING:
    from cri_shim.image.unpack.tar import Entry, TarReader

WHITEOUT_PREFIX = b".wh."
OPAQUE_MARKER = b".wh..wh..opq"
_AUFS_PREFIX = b".wh..wh."
"""Bookkeeping files of aufs (`.wh..wh.plnk`, `.wh..wh.orph`), which mean nothing in an image."""
_ACLS = frozenset({b"system.posix_acl_access", b"system.posix_acl_default"})
_MAX_ID = 2**32 - 2
"""The highest UID and GID: to chown(2), -1 means "unchanged"."""
_MAX_TIME_NS = 2**34 * 1_000_000_000
"""ext4's last second, in 2446. The kernel clamps later times, but Python refuses larger numbers before the call."""
_XATTR_REFUSED = frozenset({errno.ERANGE, errno.E2BIG, errno.EINVAL, errno.EPERM})
_OF_INPUT = frozenset(
    {
        *(errno.ENAMETOOLONG, errno.EINVAL, errno.ENOTDIR, errno.EISDIR, errno.EMLINK),
        *(errno.ELOOP, errno.ENOENT, errno.EFBIG),
    }
)
"""Errors that only an odd entry can cause. Every other error is the host's."""
# O_EXCL and O_NOFOLLOW: nothing is ever written through a link, or into a file that another name shares.
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class LayerUnpacker:
    """Applies the entries of a tar to `/`."""

    def __init__(self, reader: TarReader, limits: Limits) -> None:
        self._reader = reader
        self._limits = limits
        self._tree = LayerTree(limits)
        self._entries = 0
        self._dropped_xattrs = 0

    def unpack(self) -> None:
        """Apply every entry. Raises InputError, or OSError of the host (no space)."""
        for entry in self._reader.entries():
            self._entries += 1
            if self._entries > self._limits.max_inodes:
                raise InputError(f"the layer has more than {self._limits.max_inodes} entries")
            try:
                self._apply(entry)
            except OSError as error:
                raise _judge(entry.name, error) from error
        self._tree.set_times()

    def report(self, diff_id: str, inflated_bytes: int) -> LayerReport:
        """The report on the tree. Call it once, after `unpack`."""
        return LayerReport(
            diff_id=diff_id,
            inflated_bytes=inflated_bytes,
            disk_bytes=self._tree.disk_bytes,
            inodes=self._tree.inodes,
            opaque_dirs=self._tree.opaque(),
            implied_dirs=self._tree.implied(),
            whiteout_dirs=self._tree.whiteout_dirs(),
            dropped_xattrs=self._dropped_xattrs,
        )

    def _apply(self, entry: Entry) -> None:
        path = normalise(entry.name)
        if not path:
            return
        directory, _, base = path.rpartition(b"/")
        if base.startswith(WHITEOUT_PREFIX):
            self._white_out(path, directory, base)
            return
        if path.startswith(_AUFS_PREFIX):
            return
        real = join(self._tree.parent(directory, create=True), base)
        kind = entry.file_type
        if entry.hardlink is not None:
            self._hard_link(entry, entry.hardlink, real)
        elif kind == stat.S_IFREG:
            self._file(entry, real)
        elif kind == stat.S_IFDIR:
            self._directory(entry, real)
        elif kind == stat.S_IFLNK:
            self._symlink(entry, real)
        elif kind in (stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO):
            self._node(entry, real)
        else:
            raise InputError(f"{show(entry.name)}: unknown entry type {kind:#o}")

    # One method per kind of entry

    def _file(self, entry: Entry, real: bytes) -> None:
        try:
            fd = os.open(b"/" + real, _CREATE, 0o600)
        except FileExistsError:
            self._tree.remove(real)
            fd = os.open(b"/" + real, _CREATE, 0o600)
        try:
            self._tree.count(0)
            if entry.size:
                self._reader.write_to(fd, entry.name)
                if entry.sparse:
                    os.ftruncate(fd, entry.size)  # libarchive does not write a hole at the end
                    self._tree.disk_bytes += os.fstat(fd).st_blocks * 512
                else:
                    self._tree.disk_bytes += rounded(entry.size)
            os.fchown(fd, *_owner(entry))
            self._set_xattrs(entry, fd)
            os.fchmod(fd, entry.mode)  # after chown, which clears the setuid and setgid bits
            os.utime(fd, ns=_times(entry.mtime_ns))
        finally:
            os.close(fd)

    def _directory(self, entry: Entry, real: bytes) -> None:
        path = b"/" + real
        self._tree.make_directory(real)
        os.chown(path, *_owner(entry), follow_symlinks=False)
        xattrs = self._reader.xattrs()
        if xattrs:
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                self._set_xattrs(entry, fd)
            finally:
                os.close(fd)
        os.chmod(path, entry.mode)
        self._tree.describe(real, _bounded(entry.mtime_ns))

    def _symlink(self, entry: Entry, real: bytes) -> None:
        target = entry.symlink
        if not target or len(target) >= MAX_PATH_BYTES:
            raise InputError(f"{show(entry.name)}: the symbolic link's target is empty or too long")
        path = b"/" + real
        try:
            os.symlink(target, path)
        except FileExistsError:
            self._tree.remove(real)
            os.symlink(target, path)
        self._tree.count(0)
        os.chown(path, *_owner(entry), follow_symlinks=False)
        os.utime(path, ns=_times(entry.mtime_ns), follow_symlinks=False)
        self._dropped_xattrs += len(self._reader.xattrs())

    def _node(self, entry: Entry, real: bytes) -> None:
        path = b"/" + real
        major, minor = entry.device
        if not (0 <= major < 1 << 12 and 0 <= minor < 1 << 20):
            raise InputError(f"{show(entry.name)}: Linux has no device number {major}:{minor}")
        device = os.makedev(major, minor)
        try:
            os.mknod(path, entry.file_type | 0o600, device)
        except FileExistsError:
            self._tree.remove(real)
            os.mknod(path, entry.file_type | 0o600, device)
        self._tree.count(0)
        os.chown(path, *_owner(entry), follow_symlinks=False)
        os.chmod(path, entry.mode)
        os.utime(path, ns=_times(entry.mtime_ns))
        self._dropped_xattrs += len(self._reader.xattrs())

    def _hard_link(self, entry: Entry, target: bytes, real: bytes) -> None:
        wanted = normalise(target)
        directory, _, base = wanted.rpartition(b"/")
        problem = f"{show(entry.name)}: hard link to {show(target)}"
        try:
            source = join(self._tree.parent(directory, create=False), base)
            found = os.lstat(b"/" + source)
        except (FileNotFoundError, NotADirectoryError):
            raise InputError(f"{problem}, which is no earlier entry of this layer") from None
        if not wanted or stat.S_ISDIR(found.st_mode):
            raise InputError(f"{problem}, a directory")
        if self._tree.is_whiteout(found):
            raise InputError(f"{problem}, of which this layer has only a whiteout")
        # A link to itself changes nothing. os.link would fail with EEXIST, and to remove the name would lose the file.
        if source == real:
            return
        try:
            os.link(b"/" + source, b"/" + real, follow_symlinks=False)
        except FileExistsError:
            self._tree.remove(real)
            os.link(b"/" + source, b"/" + real, follow_symlinks=False)
        self._tree.count(0, inodes=0)
        path = b"/" + real
        owner = _owner(entry)
        if owner != (found.st_uid, found.st_gid):
            os.chown(path, *owner, follow_symlinks=False)
        if not stat.S_ISLNK(found.st_mode):
            os.chmod(path, entry.mode)
        os.utime(path, ns=_times(entry.mtime_ns), follow_symlinks=False)

    def _set_xattrs(self, entry: Entry, fd: int) -> None:
        for name, value in self._reader.xattrs():
            kept = (
                name == b"security.capability"
                or name in _ACLS
                or (name.startswith(b"user.") and not name.startswith(b"user.overlay."))
            )
            if not kept:
                self._dropped_xattrs += 1
                continue
            try:
                os.setxattr(fd, name, value)
            except OSError as error:
                if error.errno == errno.EOPNOTSUPP:
                    self._dropped_xattrs += 1  # the file system has no ACLs or user attributes
                elif error.errno in _XATTR_REFUSED or os.statvfs("/").f_bavail > 0:
                    # ext4 returns ENOSPC also when an inode's attributes exceed one block: not a full disk then.
                    what = f"{show(entry.name)}: attribute {show(name)} of {len(value)} bytes"
                    raise InputError(f"{what}: {error.strerror}") from None
                else:
                    raise

    def _white_out(self, path: bytes, directory: bytes, base: bytes) -> None:
        if base == OPAQUE_MARKER:
            self._tree.hide_lower(self._tree.parent(directory, create=True))
            return
        if base.startswith(_AUFS_PREFIX):
            return
        hidden = base[len(WHITEOUT_PREFIX) :]
        if hidden in (b"", b".", b".."):
            raise InputError(f"{show(path)}: whiteout of {show(hidden)}, which is no file name")
        self._tree.white_out(self._tree.parent(directory, create=True), hidden)


def empty_report(diff_id: str) -> LayerReport:
    """The report on an empty layer. Some builders write one, without even a tar's end mark, for a no-op step."""
    return LayerReport(
        diff_id=diff_id,
        inflated_bytes=0,
        disk_bytes=0,
        inodes=0,
        opaque_dirs=[],
        implied_dirs=[],
        whiteout_dirs=[],
        dropped_xattrs=0,
    )


def _owner(entry: Entry) -> tuple[int, int]:
    if not (0 <= entry.uid <= _MAX_ID and 0 <= entry.gid <= _MAX_ID):
        raise InputError(
            f"{show(entry.name)}: owner {entry.uid}:{entry.gid} does not fit into 32 bits"
        )
    return entry.uid, entry.gid


def _bounded(mtime_ns: int) -> int:
    return max(-_MAX_TIME_NS, min(mtime_ns, _MAX_TIME_NS))


def _times(mtime_ns: int) -> tuple[int, int]:
    return _bounded(mtime_ns), _bounded(mtime_ns)


def _judge(name: bytes, error: OSError) -> Exception:
    """Classify an error: the input's if only an odd entry can cause it, else the host's, with the entry's name."""
    if error.errno in _OF_INPUT:
        return InputError(f"{show(name)}: {error.strerror}")
    return OSError(error.errno, f"{show(name)}: {error.strerror}")
