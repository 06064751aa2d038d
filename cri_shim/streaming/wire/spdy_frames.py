"""SPDY/3.1 on the wire: the numbers, the frames we send, and header blocks.

Rules: pure functions and one codec; nothing here knows of streams' states. All integers are big-endian. A header block
is zlib with the dictionary below; one compression runs through all blocks of a direction, so a block that can't be
inflated ends the session, while one that inflates to nonsense concerns its stream only.

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
"""The most that a control frame's payload may have; the least a peer must support is 8 KiB (§2.2.1)."""
MAX_HEADER_BLOCK_BYTES = 16 << 10
"""Of an inflated header block. Ours have under 100 bytes."""
MAX_INFLATION = 64
"""How many times their own bytes all blocks of a connection may inflate to. Those of clients do eight times at most,
while zlib can do a thousand."""
FREE_INFLATED_BYTES = 64 << 10
"""For which that isn't asked."""
MAX_HEADERS = 64
MAX_SETTINGS = 64

FLAG_FIN = 0x01
FLAG_UNIDIRECTIONAL = 0x02

WORDS = struct.Struct(">II")
WORD = struct.Struct(">I")


class FrameType(IntEnum):
    """Control frames that mean something to us; the others are skipped, as §2.2.1 wants."""

    SYN_STREAM = 1
    SYN_REPLY = 2
    RST_STREAM = 3
    SETTINGS = 4
    PING = 6
    GOAWAY = 7
    HEADERS = 8
    WINDOW_UPDATE = 9


def stream_id(payload: Buffer) -> int:
    """The stream that a control frame of at least four bytes is about."""
    return int(WORD.unpack_from(payload)[0]) & MAX_STREAM_ID


def two_words_at(view: Buffer) -> tuple[int, int]:
    """The first eight bytes of a frame: whose it is and how long."""
    first, second = WORDS.unpack_from(view)
    return first, second


def two_words(name: str, payload: Buffer) -> tuple[int, int]:
    """A stream's id and one number more.

    Raises: ProtocolError if that isn't what the frame has.
    """
    if len(payload) != 8:
        raise ProtocolError(f"{name}: {len(payload)} bytes instead of 8")
    first, second = WORDS.unpack(payload)
    return first & MAX_STREAM_ID, second


def settings(payload: Buffer) -> list[tuple[int, int]]:
    """The entries of SETTINGS, without their flags.

    Raises: ProtocolError if their number doesn't fit, or is beyond reason.
    """
    count = WORD.unpack_from(payload)[0] if len(payload) >= 4 else 0
    if count > MAX_SETTINGS or len(payload) != 4 + 8 * count:
        raise ProtocolError("SETTINGS: the length doesn't fit the entries")
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
"""What both sides' compressions start from (§2.6.10.1): words with their length, then values end to end."""


class HeaderCodec:
    """The two compressions of one connection."""

    def __init__(self) -> None:
        # a window and a memory level that fit our few short headers: 9 KiB, where the defaults take 256
        self._deflate = zlib.compressobj(
            zlib.Z_BEST_SPEED, zlib.DEFLATED, 11, 1, zlib.Z_DEFAULT_STRATEGY, DICTIONARY
        )
        self._inflate = zlib.decompressobj(zdict=DICTIONARY)
        self._room = FREE_INFLATED_BYTES
        """What may still be inflated; each byte that comes adds to it."""

    def compress(self, headers: Mapping[str, str]) -> bytes:
        """A header block; several values of a name are joined with NUL."""
        parts = [WORD.pack(len(headers))]
        for name, value in headers.items():
            for text in (name, value):
                encoded = text.encode("utf-8")
                parts += (WORD.pack(len(encoded)), encoded)
        return self._deflate.compress(b"".join(parts)) + self._deflate.flush(zlib.Z_SYNC_FLUSH)

    def inflate(self, block: Buffer) -> bytes:
        """The bytes of a block.

        Raises: ProtocolError; later blocks can't be read after it.
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
            raise ProtocolError("header block: the compression was ended")
        return inflated


def parse_headers(block: bytes) -> dict[str, str]:
    """The names and values of an inflated block.

    Raises: ProtocolError, which concerns this stream only.
    """
    position = 0

    def word() -> int:
        nonlocal position
        if position + 4 > len(block):
            raise ProtocolError("header block: cut short")
        (value,) = WORD.unpack_from(block, position)
        position += 4
        return int(value)

    def text() -> bytes:
        nonlocal position
        length = word()
        piece = block[position : position + length]
        if len(piece) < length:
            raise ProtocolError("header block: cut short")
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
            raise ProtocolError("header block: a name is empty, not in lower case, or there twice")
        headers[name] = text().decode("utf-8", "replace")
    if position != len(block):
        raise ProtocolError("header block: bytes behind the last header")
    return headers


def control_frame(type_: FrameType, payload: bytes, flags: int = 0) -> bytes:
    """A control frame as bytes."""
    return WORDS.pack(0x80000000 | VERSION << 16 | type_, flags << 24 | len(payload)) + payload


def data_header(stream_id: int, size: int, *, fin: bool) -> bytes:
    """The eight bytes before a DATA frame's payload."""
    return WORDS.pack(stream_id, (FLAG_FIN << 24 if fin else 0) | size)
