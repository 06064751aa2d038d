"""Read a tar stream with libarchive. Runs in the unpacking child only.

Rules:
- Names are the archive's bytes. In a UTF-8 locale, libarchive rewrites pax names to composed form, so that two files
  become one. In the C locale it returns the raw bytes with a warning (libarchive 3.6.2). So `prepare` sets the C
  locale, and that warning is expected.
- Any other warning means that part of an entry was lost. The layer is then refused, not unpacked wrongly.
- Only one `Entry` is current. Its data is gone once the next one is read.
"""

from __future__ import annotations

import errno
import locale
import logging
from typing import TYPE_CHECKING, Any, NamedTuple

from libarchive import ffi
from libarchive.exception import ArchiveError

from cri_shim.image.unpack.protocol import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator

_BLOCK_BYTES = 128 << 10
_WARN_CONVERSION = b"can't be converted"
_WARN_ACL = b".acl."
"""ACLs in libarchive's own text form, which other unpackers of layers ignore."""

_xattr_reset = ffi.ffi("entry_xattr_reset", [ffi.c_archive_entry_p], ffi.c_int)
_xattr_next = ffi.ffi(
    "entry_xattr_next",
    [
        ffi.c_archive_entry_p,
        ffi.POINTER(ffi.c_char_p),
        ffi.POINTER(ffi.POINTER(ffi.c_ubyte)),
        ffi.POINTER(ffi.c_size_t),
    ],
    ffi.c_int,
)
_sparse_reset = ffi.ffi("entry_sparse_reset", [ffi.c_archive_entry_p], ffi.c_int)
_data_into_fd = ffi.ffi("read_data_into_fd", [ffi.c_archive_p, ffi.c_int], ffi.c_int)

_TYPE_MASK = 0o170000


class Entry(NamedTuple):
    """One header. `name` and the link targets are as written, with `./`, `..` and slashes."""

    name: bytes
    hardlink: bytes | None
    symlink: bytes | None
    file_type: int
    """The S_IFMT bits; 0 for a tar type that file systems lack."""
    mode: int
    uid: int
    gid: int
    size: int
    mtime_ns: int
    device: tuple[int, int]
    sparse: bool


def version() -> int:
    """libarchive's version as a number, such as 3006002."""
    number: int = ffi.version_number()
    return number


def prepare() -> None:
    """Set the locale and the log level for the whole process; call it once, before the first `TarReader`."""
    locale.setlocale(locale.LC_CTYPE, "C")
    # The binding logs every conversion warning. Errors raise anyway.
    logging.getLogger("libarchive").setLevel(logging.CRITICAL)


class TarReader:
    """The entries of an uncompressed tar read from `fd`, which may be a pipe. Raises InputError for other data."""

    def __init__(self, fd: int) -> None:
        self._archive: Any = ffi.read_new()
        self._entry: Any = ffi.entry_new()
        ffi.get_read_format_function("tar")(self._archive)
        try:
            ffi.read_open_fd(self._archive, fd, _BLOCK_BYTES)
        except ArchiveError as error:
            raise _input_error("it is not a tar archive", error) from None

    def entries(self) -> Iterator[Entry]:
        """Yield each header. Raises InputError for data that is no tar, truncated or damaged."""
        archive, entry = self._archive, self._entry
        last = b""
        while True:
            try:
                code = ffi.read_next_header2(archive, entry)
            except ArchiveError as error:
                raise _input_error(
                    f"after {show(last)}" if last else "at its start", error
                ) from None
            if code == ffi.ARCHIVE_EOF:
                return
            name = ffi.entry_pathname(entry)
            if not name:
                raise InputError(f"an entry without a name after {show(last)}")
            if code == ffi.ARCHIVE_WARN:
                self._judge_warning(name)
            last = name
            kind = ffi.entry_filetype(entry) & _TYPE_MASK
            yield Entry(
                name,
                ffi.entry_hardlink(entry),
                ffi.entry_symlink(entry),
                kind,
                ffi.entry_perm(entry) & 0o7777,
                ffi.entry_uid(entry),
                ffi.entry_gid(entry),
                ffi.entry_size(entry),
                _time_ns(ffi.entry_mtime(entry), ffi.entry_mtime_nsec(entry)),
                (ffi.entry_rdevmajor(entry), ffi.entry_rdevminor(entry))
                if kind in (0o020000, 0o060000)
                else (0, 0),
                _sparse_reset(entry) > 0,
            )

    def xattrs(self) -> list[tuple[bytes, bytes]]:
        """The extended attributes of the current entry."""
        found: list[tuple[bytes, bytes]] = []
        if _xattr_reset(self._entry) == 0:
            return found
        name, value, size = ffi.c_char_p(), ffi.POINTER(ffi.c_ubyte)(), ffi.c_size_t()
        while _xattr_next(self._entry, name, value, size) == ffi.ARCHIVE_OK:
            found.append((name.value or b"", bytes(value[: size.value]) if size.value else b""))
        return found

    def write_to(self, fd: int, name: bytes) -> None:
        """Write the current entry's data to a regular file, keeping holes.

        Raises InputError, or OSError when the disk is full or fails.
        """
        code = _data_into_fd(self._archive, fd)
        if code < ffi.ARCHIVE_WARN:
            number = ffi.errno(self._archive)
            if number in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
                raise OSError(number, "writing", name)
            if number == errno.EFBIG:
                raise InputError(f"{show(name)}: the file exceeds the size limit")
            said = (ffi.error_string(self._archive) or b"damaged").decode("utf-8", "replace")
            raise InputError(f"{show(name)}: {said}")

    def read(self, name: bytes) -> Iterator[memoryview]:
        """Yield the current entry's data in pieces. A piece is valid until the next one is requested."""
        buffer = bytearray(_BLOCK_BYTES)
        address = (ffi.c_ubyte * _BLOCK_BYTES).from_buffer(buffer)
        try:
            while (count := ffi.read_data(self._archive, address, _BLOCK_BYTES)) > 0:
                yield memoryview(buffer)[:count]
        except ArchiveError as error:
            raise _input_error(show(name), error) from None

    def _judge_warning(self, name: bytes) -> None:
        said = ffi.error_string(self._archive) or b""
        if _WARN_CONVERSION not in said and _WARN_ACL not in said:
            raise InputError(f"{show(name)}: {said.decode('utf-8', 'replace')}")


def _time_ns(seconds: int, nanoseconds: int) -> int:
    """The time in nanoseconds. libarchive returns the fraction of a pax time as written, positive also in -1.5."""
    if seconds < 0:
        nanoseconds = -nanoseconds
    return seconds * 1_000_000_000 + nanoseconds


def show(name: bytes) -> str:
    """`name` for a message: escaped, on one line, of at most 200 bytes."""
    text = ascii(name[:200].decode("utf-8", "surrogateescape"))
    return text if len(name) <= 200 else f"{text}…"


def _input_error(where: str, error: ArchiveError) -> InputError:
    said = error.msg.decode("utf-8", "replace") if isinstance(error.msg, bytes) else error.msg
    return InputError(f"{where}: {said or 'it is damaged'}")
