"""What goes between conmon and a client of its attach socket, and down its control pipe. Pure.

- The socket keeps the bounds of packets. From conmon each begins with a byte that names the stream; to conmon each is
  standard input as it is, cut at 32 KiB: of a longer one conmon silently drops the rest.
- The control pipe takes lines of three numbers: what, and two numbers for it.
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_INPUT_PACKET_BYTES = 32 << 10
MAX_OUTPUT_PACKET_BYTES = 64 << 10
"""Room for a packet from conmon, whose own are of 8 KiB and one."""
MAX_TERMINAL_SIDE = 0xFFFF


class Source(IntEnum):
    """The streams that packets are of; a terminal's output is all stdout."""

    STDOUT = 2
    STDERR = 3


def split_packets(packets: Sequence[bytes]) -> dict[Source, list[memoryview]]:
    """The output in packets that came one after the other, by stream; packets of no stream are passed over."""
    found: dict[Source, list[memoryview]] = {}
    for packet in packets:
        if len(packet) > 1 and packet[0] in (Source.STDOUT, Source.STDERR):
            found.setdefault(Source(packet[0]), []).append(memoryview(packet)[1:])
    return found


def resize_line(width: int, height: int) -> bytes:
    """Tells conmon the size of the container's terminal."""
    return b"1 %d %d\n" % (min(height, MAX_TERMINAL_SIDE), min(width, MAX_TERMINAL_SIDE))


REOPEN_LINE = b"2 0 0\n"
"""Tells conmon to open its log anew."""
