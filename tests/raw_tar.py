"""Tar headers by hand, for what no tar program would write.

blob = header(b"f", size=number(-1, 12)) + header(b"g", kind=b"5") + END
"""

from __future__ import annotations

BLOCK = 512
END = bytes(2 * BLOCK)


def number(value: int, width: int) -> bytes:
    """In base 256, which takes negative and very large ones (GNU)."""
    data = bytearray(value.to_bytes(width, "big", signed=True))
    if value >= 0:
        data[0] |= 0x80
    return bytes(data)


def header(
    name: bytes,
    data: bytes = b"",
    *,
    kind: bytes = b"0",
    size: bytes | None = None,
    mode: bytes = b"0000644\0",
    uid: bytes = b"0000000\0",
    mtime: bytes = b"00000000000\0",
    link: bytes = b"",
    major: bytes = b"0000000\0",
    minor: bytes = b"0000000\0",
) -> bytes:
    """One header with its data; `size` says another size than the data has, each field is what stands in it."""
    block = bytearray(BLOCK)
    fields = {
        0: name[:100],
        100: mode,
        108: uid,
        116: b"0000000\0",
        124: b"%011o\0" % len(data) if size is None else size,
        136: mtime,
        148: b" " * 8,
        156: kind,
        157: link[:100],
        257: b"ustar\x0000",
        329: major,
        337: minor,
    }
    for start, field in fields.items():
        block[start : start + len(field)] = field
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block) + padded(data)


def padded(data: bytes) -> bytes:
    """As data stand in a tar."""
    return data + bytes(-len(data) % BLOCK)


def pax(*records: bytes, kind: bytes = b"x") -> bytes:
    """An extended header of `key=value` records, for the entry that follows it; `kind` g: for all of them."""
    body = b""
    for record in records:
        length = len(record) + 2
        while len(b"%d" % length) + len(record) + 2 != length:
            length = len(b"%d" % length) + len(record) + 2
        body += b"%d %s\n" % (length, record)
    return header(b"pax", body, kind=kind)
