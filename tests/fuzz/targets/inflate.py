"""Packed bytes: what comes out is what they say, within the bound, or they are refused."""

from __future__ import annotations

import gzip
import hashlib
import os
import zlib

import zstandard

from cri_shim.image.unpack.inflate import Inflater, PlainFile
from cri_shim.image.unpack.protocol import InputError
from tests.fuzz import assert_sound

_LIMIT = 1 << 20
_TEXT = b"what a layer may have in it " * 40
SEEDS = [
    gzip.compress(_TEXT, mtime=0),
    gzip.compress(_TEXT, mtime=0) * 2 + bytes(100),
    gzip.compress(bytes(2 * _LIMIT), mtime=0),
    zstandard.ZstdCompressor().compress(_TEXT),
    zstandard.ZstdCompressor(write_content_size=False).compress(_TEXT) * 2,
    b"\x50\x2a\x4d\x18\x04\x00\x00\x00abcd" + zstandard.ZstdCompressor().compress(b"x"),
    zstandard.ZstdCompressor().compress(bytes(2 * _LIMIT)),
    b"BZh9",
    b"\xfd7zXZ\x00",
    _TEXT,
]
WORDS = [b"\x1f\x8b\x08", b"\x28\xb5\x2f\xfd", b"\x50\x2a\x4d\x18", bytes(8), b"\xff" * 4]


def fuzz(data: bytes) -> None:
    input_fd = os.memfd_create("input", os.MFD_CLOEXEC)
    inflater = None
    try:
        os.write(input_fd, data)
        os.lseek(input_fd, 0, os.SEEK_SET)
        inflater = Inflater(PlainFile(input_fd), _LIMIT)
        inflater.start()
        digest = inflater.finish()
        assert inflater.inflated_bytes <= _LIMIT
        _compare(data, digest)
    except InputError as error:
        assert_sound(error)
    finally:
        os.close(input_fd)
        if inflater is not None:
            os.close(inflater.output_fd)


def _compare(data: bytes, digest: str) -> None:
    """With what another library makes of it, if it is one member or no packing at all."""
    plain = data
    if data.startswith(b"\x1f\x8b\x08"):
        one = zlib.decompressobj(wbits=31)
        try:
            plain = one.decompress(data)
        except zlib.error:
            return  # stricter on reserved bits of a header than others are
        if one.unused_data.strip(b"\0"):
            return
    elif data.startswith(b"\x28\xb5\x2f\xfd") or data[1:4] == b"\x2a\x4d\x18":
        return
    assert digest == f"sha256:{hashlib.sha256(plain).hexdigest()}"
