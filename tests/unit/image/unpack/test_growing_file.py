"""A file that grows while it is read: nothing is read before its writer says that it is there."""

from __future__ import annotations

import os
import socket
import threading
from typing import TYPE_CHECKING

import pytest

from cri_shim.image.unpack.growing_file import GrowingFile, encode_size

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class Writer:
    """Writes a file, and tells a reader of it."""

    def __init__(self, path: Path) -> None:
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT)
        self.ours, self.theirs = socket.socketpair(type=socket.SOCK_SEQPACKET)
        self.reader = GrowingFile(self.fd, self.theirs.fileno())
        self.size = 0

    def write(self, data: bytes, *, told: int | None = None) -> None:
        os.write(self.fd, data)
        self.size += len(data)
        self.ours.send(encode_size(self.size if told is None else told))

    def close(self) -> None:
        self.ours.close()
        self.theirs.close()
        os.close(self.fd)


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[Writer]:
    writer = Writer(tmp_path / "blob")
    yield writer
    writer.close()


def test_what_is_there_is_read_in_pieces_of_the_size_that_was_asked_for(writer: Writer) -> None:
    writer.write(b"abcdef")
    assert [writer.reader.read(4), writer.reader.read(4)] == [b"abcd", b"ef"]


def test_the_end_is_met_after_the_last_byte(writer: Writer) -> None:
    writer.write(b"abc")
    writer.write(b"def")
    writer.ours.close()
    assert [writer.reader.read(10) for _ in range(4)] == [b"abc", b"def", b"", b""]


def test_bytes_that_were_not_told_of_are_not_read(writer: Writer) -> None:
    writer.write(b"abcdef", told=2)
    assert writer.reader.read(10) == b"ab"


def test_a_reader_waits_for_news(writer: Writer) -> None:
    found: list[bytes] = []
    reading = threading.Thread(target=lambda: found.append(writer.reader.read(10)))
    reading.start()
    reading.join(0.02)
    assert reading.is_alive()
    writer.write(b"abc")
    reading.join(5)
    assert found == [b"abc"]
