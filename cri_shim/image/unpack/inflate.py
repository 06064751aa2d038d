"""Inflating an input of unknown packing into a pipe, while hashing and counting it. Runs in the unpacker's child only.

Rules: the packing is told from the first bytes, not from what anybody called it. Output is produced in bounded
pieces whatever the ratio, so that a bomb meets `max_bytes` and never memory. Inflating runs in a thread of its own:
isal, zstandard, hashlib and write(2) all release the GIL, so that it goes on beside the unpacking.
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
"""zstd -19 --long=27 needs it; what wants more is refused by the library."""
_GZIP_MAGIC = b"\x1f\x8b\x08"
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_ZSTD_SKIPPABLE = b"\x2a\x4d\x18"
_IsalError = cast("type[Exception]", igzip_lib.IsalError)  # its stub calls the class an instance
_REFUSED = {
    b"BZh": "bzip2",
    b"\xfd7zXZ\x00": "xz",
}


class Source(Protocol):
    """Where packed bytes come from."""

    def read(self, size: int) -> bytes:
        """The next bytes, at most `size`, as soon as there are any; empty at the end."""


class PlainFile:
    """A descriptor: a file, a pipe, a socket."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def read(self, size: int) -> bytes:
        """As `Source.read`."""
        return os.read(self._fd, size)


class Inflater:
    """One input on its way to a pipe whose reading end is `output_fd`."""

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
        """Begin; the caller reads `output_fd` to its end."""
        self._thread.start()

    def has_output(self) -> bool:
        """Whether anything comes out at all; waits for the first byte, or the end. To be asked before it is read."""
        poll = select.poll()
        poll.register(self.output_fd, select.POLLIN)
        [(_, events)] = poll.poll()
        return bool(events & select.POLLIN)  # without a byte, the end alone is POLLHUP

    def finish(self) -> str:
        """Read what is left, wait, and give the digest of the inflated bytes.

        Raises the error that cut the output short, if one did: InputError or OSError.
        """
        while os.read(self.output_fd, PIECE_BYTES):
            pass  # what follows a tar's end mark belongs to the diff id all the same
        self._thread.join()
        if self._error is not None:
            raise self._error
        return "sha256:" + self._hash.hexdigest()

    @property
    def ended_early(self) -> Exception | None:
        """Why the output was cut short, for a reader that met its end too soon; None if it wasn't, or goes on."""
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
            self._error = InputError("inflating it takes more memory than a layer may use")
        finally:
            os.close(self._pipe_fd)  # after the error is set: the reader sees the end only now

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
                raise InputError(f"packed with {name}; plain, gzip and zstd are supported")
        return self._plain(head)

    def _plain(self, head: bytes) -> Iterator[bytes]:
        piece = head
        while piece:
            yield piece
            piece = self._source.read(READ_BYTES)

    def _gzip(self, head: bytes) -> Iterator[bytes]:
        """Members one after the other are one stream; zeros after the last one are padding."""
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
        """Frames one after the other, skippable ones among them, are one stream."""
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
    """A source of which the first bytes were read already, as zstandard wants to read it."""

    def __init__(self, head: bytes, source: Source) -> None:
        self._head = head
        self._source = source

    def read(self, size: int = -1) -> bytes:
        """The next bytes, at most `size`; empty at the end."""
        if self._head:
            head, self._head = self._head, b""
            return head
        return self._source.read(size if size > 0 else READ_BYTES)


def _enlarge(pipe_fd: int) -> None:
    """A pipe of 64 KiB would make the two threads wait for each other; not every system grants more."""
    try:
        fcntl.fcntl(pipe_fd, _F_SETPIPE_SZ, _PIPE_BYTES)
    except OSError:
        pass
