"""Inflating: packings told from their bytes, damage named, bombs met by their bound."""

from __future__ import annotations

import gzip
import os
import random
import tempfile
from hashlib import sha256

import pytest
import zstandard

from cri_shim.image.unpack.inflate import Inflater, PlainFile
from cri_shim.image.unpack.protocol import InputError

DATA = random.Random(1).randbytes(300_000) + bytes(300_000)
DIGEST = "sha256:" + sha256(DATA).hexdigest()
GZIP = gzip.compress(DATA)
ZSTD = zstandard.ZstdCompressor(write_checksum=True).compress(DATA)
SKIPPABLE = b"\x50\x2a\x4d\x18\x04\x00\x00\x00abcd"


def inflate(packed: bytes, max_bytes: int = 1 << 30) -> tuple[bytes, str]:
    """What comes out, and its digest. Raises what cut it short."""
    with tempfile.TemporaryFile() as source:
        source.write(packed)
        source.seek(0)
        inflater = Inflater(PlainFile(source.fileno()), max_bytes)
        inflater.start()
        out = bytearray()
        try:
            while piece := os.read(inflater.output_fd, 1 << 16):
                out += piece
            return bytes(out), inflater.finish()
        finally:
            os.close(inflater.output_fd)


@pytest.mark.parametrize(
    "packed",
    [DATA, GZIP, ZSTD, GZIP + bytes(512), SKIPPABLE + ZSTD, ZSTD + SKIPPABLE],
    ids=["plain", "gzip", "zstd", "gzip padded", "zstd with a head", "zstd with a tail"],
)
def test_every_packing_gives_the_same_bytes_and_digest(packed: bytes) -> None:
    assert inflate(packed) == (DATA, DIGEST)


@pytest.mark.parametrize("packed", [GZIP, ZSTD], ids=["gzip", "zstd"])
def test_streams_one_after_the_other_are_one(packed: bytes) -> None:
    assert inflate(packed + packed)[0] == DATA + DATA


@pytest.mark.parametrize(
    ("packed", "reason"),
    [
        (GZIP[:-4], "ends too early"),
        (GZIP[:100], "ends too early"),
        (GZIP[:5000] + b"\xff\xff\xff" + GZIP[5003:], "gzip stream is damaged"),
        (GZIP + b"garbage", "garbage follows"),
        (ZSTD[:5000] + b"\xff\xff\xff" + ZSTD[5003:], "zstd stream is damaged"),
        (ZSTD + b"garbage", "zstd stream is damaged"),
        (b"BZh91AY&SY", "bzip2"),
        (b"\xfd7zXZ\x00\x00", "xz"),
    ],
)
def test_damage_is_named(packed: bytes, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        inflate(packed)


@pytest.mark.parametrize(
    "packed",
    [b"", gzip.compress(b""), zstandard.ZstdCompressor().compress(b"")],
    ids=["plain", "gzip", "zstd"],
)
def test_nothing_is_nothing_however_it_is_packed(packed: bytes) -> None:
    assert inflate(packed) == (b"", "sha256:" + sha256(b"").hexdigest())


@pytest.mark.parametrize(
    "bomb",
    [
        gzip.compress(bytes(64 << 20)),
        zstandard.ZstdCompressor(level=19).compress(bytes(64 << 20)),
    ],
    ids=["gzip", "zstd"],
)
def test_a_bomb_ends_at_its_bound(bomb: bytes) -> None:
    with pytest.raises(InputError, match="more than 1048576 bytes"):
        inflate(bomb, 1 << 20)


def test_a_zstd_window_beyond_reason_is_refused() -> None:
    parameters = zstandard.ZstdCompressionParameters(window_log=31, strategy=1)
    compressor = zstandard.ZstdCompressor(compression_params=parameters)
    head = zstandard.frame_header_size(compressor.compress(b"x"))
    assert head > 0
    # A frame header that asks for 2 GiB, and a block that never comes.
    with pytest.raises(InputError, match="damaged"):
        inflate(b"\x28\xb5\x2f\xfd\x00\xa8" + b"\x01\x00\x00")
