"""Spool the members of an image archive as numbered files. Runs in the unpacking child only.

Rules: no name of the archive is ever used as a file name. `archive` maps names to files and looks up what the image's
documents refer to. Links stay names, since old `docker save` archives share layers by them. Each file is hashed as it
is written, so that a blob is identified by its content.
"""

from __future__ import annotations

import hashlib
import os
import stat
from typing import TYPE_CHECKING, NamedTuple

from cri_shim.image.unpack.protocol import MAX_PATH_BYTES, InputError, Limits
from cri_shim.image.unpack.tar import show
from cri_shim.image.unpack.tree import normalise

if TYPE_CHECKING:
    from cri_shim.image.unpack.tar import Entry, TarReader

MAX_MEMBERS = 10_000
"""A `docker save` with 500 layers has 1500 files, an OCI layout of many images some thousands."""
_MAX_NAMES_BYTES = 16 << 20


class Member(NamedTuple):
    """One entry of an image archive: a stored file, or a link to another entry."""

    name: bytes
    file: str = ""
    """The stored file's name in the job's directory; empty for a link."""
    size: int = 0
    digest: str = ""
    target: bytes = b""
    """The link's target, relative to the root of the archive."""


class MemberSpool:
    """Stores every regular file of an archive as `/m<number>`."""

    def __init__(self, reader: TarReader, limits: Limits) -> None:
        self._reader = reader
        self._limits = limits
        self._members: dict[bytes, Member] = {}
        self._count = 0
        self._names_bytes = 0

    def spool(self) -> None:
        """Store every file. Of entries with the same name, the last one counts, as in tar.

        Raises InputError, or OSError of the host (no space).
        """
        for entry in self._reader.entries():
            self._count += 1
            if self._count > MAX_MEMBERS:
                raise InputError(
                    f"the archive has more than {MAX_MEMBERS} entries: not an image archive"
                )
            name = normalise(entry.name)
            if not name or entry.file_type == stat.S_IFDIR:
                continue
            if entry.hardlink is not None:
                self._members[name] = Member(name=name, target=normalise(entry.hardlink))
            elif entry.file_type == stat.S_IFLNK:
                self._members[name] = Member(name=name, target=_link_target(name, entry))
            elif entry.file_type == stat.S_IFREG:
                self._members[name] = self._keep(name, entry)
            else:
                raise InputError(
                    f"{show(name)}: neither a file, a directory nor a link: not an image archive"
                )
            self._names_bytes += len(name) + len(self._members[name].target)
            if self._names_bytes > _MAX_NAMES_BYTES:
                raise InputError(
                    f"names of more than {_MAX_NAMES_BYTES} bytes in all: not an image archive"
                )

    @property
    def members(self) -> list[Member]:
        """The stored files and the links."""
        return list(self._members.values())

    def _keep(self, name: bytes, entry: Entry) -> Member:
        file = f"m{self._count}"
        digest = hashlib.sha256()
        size = 0
        # Mode 0600: an image configuration may hold secrets in its environment.
        fd = os.open(f"/{file}", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            for piece in self._reader.read(name):
                digest.update(piece)
                size += len(piece)
                view = piece
                while view:
                    view = view[os.write(fd, view) :]
        finally:
            os.close(fd)
        if size != entry.size:
            raise InputError(
                f"{show(name)}: it has {size} bytes, but its header states {entry.size}"
            )
        return Member(name=name, file=file, size=size, digest="sha256:" + digest.hexdigest())


def _link_target(name: bytes, entry: Entry) -> bytes:
    target = entry.symlink or b""
    if not target or len(target) >= MAX_PATH_BYTES:
        raise InputError(f"{show(name)}: the symbolic link's target is empty or too long")
    if target.startswith(b"/"):
        return normalise(target)
    return normalise(name.rpartition(b"/")[0] + b"/" + target)
