"""Inflate an input of unknown compression into a pipe, hash it and count it. Runs in the unpacking child only.

Rules: the first bytes tell the compression, not a media type. Output comes in bounded pieces whatever the ratio, so a
decompression bomb hits `max_bytes` and never memory. Inflating has its own thread: isal, zstandard, hashlib and
write(2) all release the GIL, so it runs in parallel with the unpacking.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import select
import threading
from typing import IO, TYPE_CHECKING, Protocol, cast

import zstandard
from isal import igzip_lib

from cri_shim.image.unpack.protocol import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator

READ_BYTES = 128 << 10
PIECE_BYTES = 256 << 10
_PIPE_BYTES = 1 << 20
_F_SETPIPE_SZ = 1031
_MAX_ZSTD_WINDOW = 128 << 20
"""The window of `zstd -19 --long=27`. The library refuses streams that need more."""
_GZIP_MAGIC = b"\x1f\x8b\x08"
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_ZSTD_SKIPPABLE = b"\x2a\x4d\x18"
_IsalError = cast("type[Exception]", igzip_lib.IsalError)  # the stub declares an instance
_REFUSED = {
    b"BZh": "bzip2",
    b"\xfd7zXZ\x00": "xz",
}


class Source(Protocol):
    """A source of compressed bytes."""

    def read(self, size: int) -> bytes:
        """Return at most `size` bytes as soon as there are any; empty at the end."""


class PlainFile:
    """The source behind a descriptor: a file, a pipe or a socket."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def read(self, size: int) -> bytes:
        """As `Source.read`."""
        return os.read(self._fd, size)


class Inflater:
    """Inflates one input into a pipe, whose read end is `output_fd`."""

    def __init__(self, source: Source, max_bytes: int) -> None:
        self._source = source
        self._max_bytes = max_bytes
        self._hash = hashlib.sha256()
        self._error: Exception | None = None
        self.inflated_bytes = 0
        self.output_fd, self._pipe_fd = os.pipe()
        _enlarge(self._pipe_fd)
        self._thread = threading.Thread(target=self._run, name="inflate", daemon=True)

    def start(self) -> None:
        """Start. The caller reads `output_fd` up to its end."""
        self._thread.start()

    def has_output(self) -> bool:
        """Whether the input inflates to anything. Waits for the first byte or the end; call it before reading."""
        poll = select.poll()
        poll.register(self.output_fd, select.POLLIN)
        [(_, events)] = poll.poll()
        return bool(events & select.POLLIN)  # an end without a byte gives POLLHUP alone

    def finish(self) -> str:
        """Read the rest, wait, and return the digest of the inflated bytes.

        Raises the error that ended the output early, if any: InputError or OSError.
        """
        while os.read(self.output_fd, PIECE_BYTES):
            pass  # bytes after the tar's end mark are part of the diff ID
        self._thread.join()
        if self._error is not None:
            raise self._error
        return "sha256:" + self._hash.hexdigest()

    @property
    def ended_early(self) -> Exception | None:
        """The error that ended the output early, for a reader that met its end too soon; None if there is none."""
        return self._error

    def _run(self) -> None:
        try:
            for piece in self._pieces():
                self.inflated_bytes += len(piece)
                if self.inflated_bytes > self._max_bytes:
                    raise InputError(f"inflates to more than {self._max_bytes} bytes")
                self._hash.update(piece)
                view = memoryview(piece)
                while view:
                    view = view[os.write(self._pipe_fd, view) :]
        except (InputError, OSError) as error:
            self._error = error
        except MemoryError:
            self._error = InputError("inflating it exceeds the memory limit of a layer")
        finally:
            os.close(self._pipe_fd)  # after `_error` is set: with the end, the reader looks at it

    def _pieces(self) -> Iterator[bytes]:
        head = b""
        while len(head) < 6 and (more := self._source.read(READ_BYTES)):
            head += more
        if head.startswith(_GZIP_MAGIC):
            return self._gzip(head)
        if head.startswith(_ZSTD_MAGIC) or head[1:4] == _ZSTD_SKIPPABLE:
            return self._zstd(head)
        for magic, name in _REFUSED.items():
            if head.startswith(magic):
                raise InputError(
                    f"compressed with {name}; uncompressed, gzip and zstd are supported"
                )
        return self._plain(head)

    def _plain(self, head: bytes) -> Iterator[bytes]:
        piece = head
        while piece:
            yield piece
            piece = self._source.read(READ_BYTES)

    def _gzip(self, head: bytes) -> Iterator[bytes]:
        """Consecutive members are one stream (RFC 1952). Zeros after the last one are padding."""
        data = head
        while data:
            member = igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP)
            while not member.eof:
                if member.needs_input and not data:
                    data = self._source.read(READ_BYTES)
                    if not data:
                        raise InputError("the gzip stream ends too early")
                try:
                    piece = member.decompress(data, PIECE_BYTES)
                except _IsalError as error:
                    raise InputError(f"the gzip stream is damaged: {error}") from None
                data = b""
                if piece:
                    yield piece
            data = member.unused_data
            while not data.lstrip(b"\0"):
                data = self._source.read(READ_BYTES)
                if not data:
                    return
            if data[:1] != _GZIP_MAGIC[:1]:
                raise InputError("garbage follows the gzip stream")

    def _zstd(self, head: bytes) -> Iterator[bytes]:
        """Consecutive frames, skippable ones among them, are one stream (RFC 8878)."""
        source = cast("IO[bytes]", _Replayed(head, self._source))
        inflater = zstandard.ZstdDecompressor(max_window_size=_MAX_ZSTD_WINDOW)
        try:
            with inflater.stream_reader(
                source, read_size=READ_BYTES, read_across_frames=True, closefd=False
            ) as reader:
                while piece := reader.read(PIECE_BYTES):
                    yield piece
        except zstandard.ZstdError as error:
            raise InputError(f"the zstd stream is damaged: {error}") from None


class _Replayed:
    """A file object for zstandard that first returns the bytes already read."""

    def __init__(self, head: bytes, source: Source) -> None:
        self._head = head
        self._source = source

    def read(self, size: int = -1) -> bytes:
        """Return at most `size` bytes; empty at the end."""
        if self._head:
            head, self._head = self._head, b""
            return head
        return self._source.read(size if size > 0 else READ_BYTES)


def _enlarge(pipe_fd: int) -> None:
    """Enlarge the pipe: with the usual 64 KiB the two threads wait for each other. Not every system grants more."""
    try:
        fcntl.fcntl(pipe_fd, _F_SETPIPE_SZ, _PIPE_BYTES)
    except OSError:
        pass
