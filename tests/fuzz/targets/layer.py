"""Layers, as tars: unpacked inside a bare root as the confined child does it, and spooled as an archive's members.

The process gives up its root directory, its network and most of what root may do, as the child does. Headers keep
their checksums, or nothing behind the first would ever be read.
"""

from __future__ import annotations

import os
import shutil
import stat
import tarfile
from typing import TYPE_CHECKING

from libarchive import ffi

from cri_shim.host import confine
from cri_shim.image.unpack import tar
from cri_shim.image.unpack.extract import LayerUnpacker
from cri_shim.image.unpack.members import MemberSpool
from cri_shim.image.unpack.protocol import InputError, Limits
from cri_shim.image.unpack.template_process import CHILD_CAPABILITIES
from tests.fuzz import assert_sound
from tests.images import device, directory, fifo, file, hardlink, opaque, symlink, tar_of, whiteout

if TYPE_CHECKING:
    import random
    from pathlib import Path

_BLOCK = 512
_LIMITS = Limits(max_bytes=1 << 20, max_inodes=200)
_SPARSE = (
    b"GNU.sparse.major=1",
    b"GNU.sparse.minor=0",
    b"GNU.sparse.name=s",
    b"GNU.sparse.realsize=4096",
)


def _pax(*records: bytes, data: bytes = b"") -> bytes:
    """A file with these records in a header before it."""
    body = b""
    for record in records:
        length = len(record) + 2
        length += len(str(length + len(str(length))))
        body += b"%d %s\n" % (length, record)
    extended = tarfile.TarInfo("pax")
    extended.type = tarfile.XHDTYPE
    extended.size = len(body)
    plain = tarfile.TarInfo("f")
    plain.size = len(data)
    return b"".join(
        [
            *(
                extended.tobuf(tarfile.USTAR_FORMAT),
                body.ljust(-(-len(body) // _BLOCK) * _BLOCK, b"\0"),
            ),
            *(
                plain.tobuf(tarfile.USTAR_FORMAT),
                data.ljust(-(-len(data) // _BLOCK) * _BLOCK, b"\0"),
            ),
            bytes(2 * _BLOCK),
        ]
    )


SEEDS = [
    tar_of(
        [
            *(
                directory("d"),
                file("d/f", b"data", xattrs={"user.a": b"b"}),
                symlink("l", "../../d"),
            ),
            *(hardlink("h", "d/f"), fifo("p"), device("n", 1, 3), whiteout("d/x"), opaque("d")),
        ]
    ),
    tar_of([symlink("a", "/"), file("a/../../b", b"x"), hardlink("c", "a/b"), directory("a")]),
    tar_of([file("n" * 200 + "/" + "m" * 200, b"x", mtime=-1.5, uid=1 << 30)]),
    tar_of([file(".wh..", b""), file("d/.wh..wh.plnk/x"), file(".wh..wh..opq")]),
    _pax(*_SPARSE, data=b"1\n0\n4\n".ljust(_BLOCK, b"\0") + b"abcd"),
    _pax(b"path=../../x", b"linkpath=y", b"size=3", b"mtime=1e99", data=b"abc"),
    _pax(b"SCHILY.xattr.security.capability=\x01\x00\x00\x02", b"uid=-1", b"hdrcharset=BINARY"),
    bytes(1024),
]
WORDS = [
    *(
        b"../",
        b"/",
        b".wh.",
        b".wh..wh..opq",
        b"./",
        b"\0",
        b"7777777",
        b"\xff" * 8,
        b"\x80" + bytes(11),
    ),
    *(b"GNU.sparse.realsize=99999999999", b"SCHILY.xattr.trusted.x=y", b"size=-1", b"path=", b"\n"),
]
_KINDS = b"0123456789xgLKSVDMNA\0"
MAX_BYTES = 16 << 10


def mutate(data: bytes, max_bytes: int, chance: random.Random) -> bytes:
    """Change a few bytes anywhere, or a field of a header, or order and number of blocks; then repair the checksums."""
    changed = bytearray(data)
    changed += bytes(-len(changed) % _BLOCK)
    for _ in range(chance.choice([1, 1, 2, 4])):
        block = chance.randrange(len(changed) // _BLOCK) * _BLOCK
        what = chance.randrange(6)
        if what == 0:
            changed[block + chance.randrange(_BLOCK)] = chance.randrange(256)
        elif what == 1:
            changed[block + 156] = chance.choice(_KINDS)
        elif what == 2:
            start = block + chance.choice([0, 100, 108, 116, 124, 136, 157, 257, 329, 337, 345])
            word = chance.choice(WORDS)
            changed[start : start + len(word)] = word
        elif what == 3 and len(changed) < max_bytes:
            changed[block:block] = changed[block : block + _BLOCK]
        elif what == 4:
            del changed[block : block + _BLOCK]
            changed = changed or bytearray(_BLOCK)
        else:
            other = chance.choice(SEEDS)
            at = chance.randrange(len(other) // _BLOCK) * _BLOCK
            changed[block:block] = other[at : at + _BLOCK]
    changed += bytes(-len(changed) % _BLOCK)
    for block in range(0, len(changed), _BLOCK):
        header = changed[block : block + _BLOCK]
        if header[257:262] == b"ustar":
            total = sum(header[:148]) + 8 * 32 + sum(header[156:])
            changed[block + 148 : block + 156] = b"%06o\0 " % total
    return bytes(changed)


def prepare(directory: Path) -> None:
    """Become as confined as the child is."""
    for codec in ("utf-8", "ascii", "latin-1"):
        b"".decode(codec)  # nothing can be imported from a bare root
    tar.prepare()
    root = directory / "root"
    root.mkdir()
    confine.leave_network()
    root_fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    confine.enter_root(root_fd)
    os.close(root_fd)
    os.umask(0)
    confine.limit(memory_bytes=4 << 30, file_bytes=_LIMITS.max_bytes, descriptors=64, cpu_s=1 << 20)
    confine.keep_capabilities(CHILD_CAPABILITIES)


def fuzz(data: bytes) -> None:
    for apply in (_unpack, _spool):
        fd = os.memfd_create("input", os.MFD_CLOEXEC)
        reader = None
        try:
            os.write(fd, data)
            os.lseek(fd, 0, os.SEEK_SET)
            reader = tar.TarReader(fd)
            apply(reader)
        except InputError as error:
            assert_sound(error)
        finally:
            os.close(fd)
            if reader is not None:  # elsewhere a reader lives as long as its process
                ffi.entry_free(reader._entry)
                ffi.read_free(reader._archive)
            _empty("/")


def _unpack(reader: tar.TarReader) -> None:
    unpacker = LayerUnpacker(reader, _LIMITS)
    unpacker.unpack()
    report = unpacker.report("", 0)
    found: dict[int, os.stat_result] = {}
    for place, names, files in os.walk("/"):
        for name in (*names, *files):
            path = f"{place}/{name}"
            info = os.lstat(path)
            found[info.st_ino] = info
            if not stat.S_ISLNK(info.st_mode):
                for attribute in os.listxattr(path):
                    assert attribute.startswith(
                        ("user.", "system.posix_acl_", "security.capability")
                    )
                    assert not attribute.startswith("user.overlay.")
            if stat.S_ISREG(info.st_mode):
                assert info.st_size <= _LIMITS.max_bytes
    assert report.inodes == len(found) <= _LIMITS.max_inodes
    for real in (*report.opaque_dirs, *report.implied_dirs, *report.whiteout_dirs):
        assert not {b"", b".", b".."} & set(real.split(b"/")) or not real
        assert stat.S_ISDIR(os.lstat(b"/" + real).st_mode)


def _spool(reader: tar.TarReader) -> None:
    spool = MemberSpool(reader, _LIMITS)
    spool.spool()
    kept = {member.file for member in spool.members if member.file}
    assert kept <= set(os.listdir("/"))


def _empty(directory: str) -> None:
    with os.scandir(directory) as found:
        for item in found:
            if item.is_dir(follow_symlinks=False):
                shutil.rmtree(item.path)
            else:
                os.unlink(item.path)
