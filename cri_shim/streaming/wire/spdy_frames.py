"""The SPDY/3.1 wire format: constants, the frames we send, and header blocks.

Rules: pure functions and one codec, without knowledge of streams' states. Integers are big-endian. Header blocks are
zlib-compressed with the dictionary below, and one compression context spans all blocks of a direction. So a block that
can't be inflated ends the session, while one with invalid content concerns its stream only.

SPDY protocol draft 3.1: §2.2 framing, §2.6 control frames, §2.6.10 name/value header block.
"""

from __future__ import annotations

import struct
import zlib
from enum import IntEnum
from typing import TYPE_CHECKING

from cri_shim.streaming.wire.errors import ProtocolError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cri_shim.streaming.wire.buffers import Buffer

VERSION = 3
FRAME_HEADER_BYTES = 8
MAX_STREAM_ID = 0x7FFFFFFF

MAX_CONTROL_BYTES = 16 << 10
"""The longest payload of a control frame that is accepted. The draft requires at least 8 KiB (§2.2.1)."""
MAX_HEADER_BLOCK_BYTES = 16 << 10
"""The limit for an inflated header block. Kubernetes' clients send less than 100 bytes."""
MAX_INFLATION = 64
"""The ratio of inflated to received bytes, over all blocks of a connection. Clients' blocks reach eight at most; zlib
can reach a thousand."""
FREE_INFLATED_BYTES = 64 << 10
"""Inflated bytes that are exempt from that ratio."""
MAX_HEADERS = 64
MAX_SETTINGS = 64

FLAG_FIN = 0x01
FLAG_UNIDIRECTIONAL = 0x02

WORDS = struct.Struct(">II")
WORD = struct.Struct(">I")


class FrameType(IntEnum):
    """The control frames that we handle. Others are skipped, as §2.2.1 requires."""

    SYN_STREAM = 1
    SYN_REPLY = 2
    RST_STREAM = 3
    SETTINGS = 4
    PING = 6
    GOAWAY = 7
    HEADERS = 8
    WINDOW_UPDATE = 9


def stream_id(payload: Buffer) -> int:
    """The stream ID in a control frame's payload of at least four bytes."""
    return int(WORD.unpack_from(payload)[0]) & MAX_STREAM_ID


def two_words_at(view: Buffer) -> tuple[int, int]:
    """The first eight bytes of a frame, as two words."""
    first, second = WORDS.unpack_from(view)
    return first, second


def two_words(name: str, payload: Buffer) -> tuple[int, int]:
    """Parse a payload of a stream ID and one number.

    Raises: ProtocolError if the payload has another length.
    """
    if len(payload) != 8:
        raise ProtocolError(f"{name}: payload of {len(payload)} bytes instead of 8")
    first, second = WORDS.unpack(payload)
    return first & MAX_STREAM_ID, second


def settings(payload: Buffer) -> list[tuple[int, int]]:
    """Parse the entries of SETTINGS, without their flags.

    Raises: ProtocolError if their number doesn't match the payload, or exceeds `MAX_SETTINGS`.
    """
    count = WORD.unpack_from(payload)[0] if len(payload) >= 4 else 0
    if count > MAX_SETTINGS or len(payload) != 4 + 8 * count:
        raise ProtocolError("SETTINGS: the payload's length doesn't match the number of entries")
    entries = (WORDS.unpack_from(payload, position) for position in range(4, len(payload), 8))
    return [(setting & 0xFFFFFF, value) for setting, value in entries]


class Reset(IntEnum):
    """Status of RST_STREAM (§2.6.3)."""

    PROTOCOL_ERROR = 1
    INVALID_STREAM = 2
    REFUSED_STREAM = 3
    UNSUPPORTED_VERSION = 4
    CANCEL = 5
    INTERNAL_ERROR = 6
    FLOW_CONTROL_ERROR = 7
    STREAM_IN_USE = 8
    STREAM_ALREADY_CLOSED = 9


class GoAway(IntEnum):
    """Status of GOAWAY (§2.6.6)."""

    OK = 0
    PROTOCOL_ERROR = 1
    INTERNAL_ERROR = 2


SETTINGS_INITIAL_WINDOW_SIZE = 7

_WORDS = (
    "options head post put delete trace accept accept-charset accept-encoding accept-language accept-ranges age allow "
    "authorization cache-control connection content-base content-encoding content-language content-length "
    "content-location content-md5 content-range content-type date etag expect expires from host if-match "
    "if-modified-since if-none-match if-range if-unmodified-since last-modified location max-forwards pragma "
    "proxy-authenticate proxy-authorization range referer retry-after server te trailer transfer-encoding upgrade "
    "user-agent vary via warning www-authenticate method get status"
)
_TAIL = (
    "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505"
    "203 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized"
    "403 Forbidden404 Not Found500 Internal Server Error501 Not Implemented503 Service Unavailable"
    "Jan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMT"
    "chunked,text/html,image/png,image/jpg,image/gif,application/xml,application/xhtml+xml,text/plain,"
    "text/javascript,publicprivatemax-age=gzip,deflate,sdchcharset=utf-8charset=iso-8859-1,utf-,*,enq=0."
)


def _dictionary() -> bytes:
    words = [*_WORDS.split(), "200 OK", "version", "HTTP/1.1", "url", "public"]
    words += ["set-cookie", "keep-alive", "origin"]
    prefixed = b"".join(WORD.pack(len(word)) + word.encode("ascii") for word in words)
    return prefixed + _TAIL.encode("ascii")


DICTIONARY = _dictionary()
"""The initial dictionary of both directions' compression (§2.6.10.1): words with their length, then plain values."""


class HeaderCodec:
    """The compression contexts of one connection, one per direction."""

    def __init__(self) -> None:
        # A small window and memory level: 9 KiB instead of the default 256, enough for few and short headers.
        self._deflate = zlib.compressobj(
            zlib.Z_BEST_SPEED, zlib.DEFLATED, 11, 1, zlib.Z_DEFAULT_STRATEGY, DICTIONARY
        )
        self._inflate = zlib.decompressobj(zdict=DICTIONARY)
        self._room = FREE_INFLATED_BYTES
        """How many bytes may still be inflated. Each byte received adds to it."""

    def compress(self, headers: Mapping[str, str]) -> bytes:
        """Build a header block. Several values of one name are joined with NUL."""
        parts = [WORD.pack(len(headers))]
        for name, value in headers.items():
            for text in (name, value):
                encoded = text.encode("utf-8")
                parts += (WORD.pack(len(encoded)), encoded)
        return self._deflate.compress(b"".join(parts)) + self._deflate.flush(zlib.Z_SYNC_FLUSH)

    def inflate(self, block: Buffer) -> bytes:
        """Inflate a block.

        Raises: ProtocolError; later blocks can't be inflated after it.
        """
        try:
            inflated = self._inflate.decompress(block, MAX_HEADER_BLOCK_BYTES + 1)
        except zlib.error as e:
            raise ProtocolError(f"header block: {e}") from e
        if len(inflated) > MAX_HEADER_BLOCK_BYTES:
            raise ProtocolError(f"header block of more than {MAX_HEADER_BLOCK_BYTES} bytes")
        self._room += len(block) * MAX_INFLATION - len(inflated)
        if self._room < 0:
            raise ProtocolError(
                f"header blocks inflate to more than {MAX_INFLATION} times their size"
            )
        if self._inflate.eof or self._inflate.unconsumed_tail:
            raise ProtocolError("header block: the compressed stream has ended")
        return inflated


def parse_headers(block: bytes) -> dict[str, str]:
    """Parse an inflated block into names and values.

    Raises: ProtocolError, which concerns this stream only.
    """
    position = 0

    def word() -> int:
        nonlocal position
        if position + 4 > len(block):
            raise ProtocolError("header block: truncated")
        (value,) = WORD.unpack_from(block, position)
        position += 4
        return int(value)

    def text() -> bytes:
        nonlocal position
        length = word()
        piece = block[position : position + length]
        if len(piece) < length:
            raise ProtocolError("header block: truncated")
        position += length
        return piece

    count = word()
    if count > MAX_HEADERS:
        raise ProtocolError(f"more than {MAX_HEADERS} headers")
    headers: dict[str, str] = {}
    for _ in range(count):
        raw = text()
        name = raw.decode("utf-8", "replace")
        if not raw or raw != raw.lower() or name in headers:
            raise ProtocolError("header block: a name is empty, duplicate, or not in lower case")
        headers[name] = text().decode("utf-8", "replace")
    if position != len(block):
        raise ProtocolError("header block: bytes after the last header")
    return headers


def control_frame(type_: FrameType, payload: bytes, flags: int = 0) -> bytes:
    """Encode a control frame."""
    return WORDS.pack(0x80000000 | VERSION << 16 | type_, flags << 24 | len(payload)) + payload


def data_header(stream_id: int, size: int, *, fin: bool) -> bytes:
    """Encode the eight bytes before the payload of a DATA frame."""
    return WORDS.pack(stream_id, (FLAG_FIN << 24 if fin else 0) | size)
