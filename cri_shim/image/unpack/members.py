"""Spooling the members of an image archive as numbered files. Runs in the unpacker's child only.

Rules: no name of the archive is ever used as a file name; which file has which name is for `archive`, which looks up
what the image's documents ask for. Links stay names: old `docker save` archives share layers by them. Each file is
hashed while it is written, so that a blob is known by its content.
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
"""500 layers of a `docker save` are 1500 files; an OCI layout of many images some thousands."""
_MAX_NAMES_BYTES = 16 << 20


class Member(NamedTuple):
    """One entry of an image archive: a file that was kept, or a link to another entry."""

    name: bytes
    file: str = ""
    """Name of the kept file in the job's directory; empty for a link."""
    size: int = 0
    digest: str = ""
    target: bytes = b""
    """What a link points to, relative to the root of the archive."""


class MemberSpool:
    """Writes every regular file of an archive to `/m<number>`."""

    def __init__(self, reader: TarReader, limits: Limits) -> None:
        self._reader = reader
        self._limits = limits
        self._members: dict[bytes, Member] = {}
        self._count = 0
        self._names_bytes = 0

    def spool(self) -> None:
        """Everything the reader gives; of two entries with one name the later counts, as tar has it.

        Raises InputError, or OSError of the host (no space).
        """
        for entry in self._reader.entries():
            self._count += 1
            if self._count > MAX_MEMBERS:
                raise InputError(f"more than {MAX_MEMBERS} entries: not an image archive")
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
                raise InputError(f"{show(name)}: an image archive has only files and links")
            self._names_bytes += len(name) + len(self._members[name].target)
            if self._names_bytes > _MAX_NAMES_BYTES:
                raise InputError("too many long names: not an image archive")

    @property
    def members(self) -> list[Member]:
        """What was kept."""
        return list(self._members.values())

    def _keep(self, name: bytes, entry: Entry) -> Member:
        file = f"m{self._count}"
        digest = hashlib.sha256()
        size = 0
        # Readable by its owner only: configurations may hold secrets in their environment.
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
            raise InputError(f"{show(name)}: {size} bytes, but its header says {entry.size}")
        return Member(name=name, file=file, size=size, digest="sha256:" + digest.hexdigest())


def _link_target(name: bytes, entry: Entry) -> bytes:
    target = entry.symlink or b""
    if not target or len(target) >= MAX_PATH_BYTES:
        raise InputError(f"{show(name)}: a link to nowhere, or to too long a path")
    if target.startswith(b"/"):
        return normalise(target)
    return normalise(name.rpartition(b"/")[0] + b"/" + target)
