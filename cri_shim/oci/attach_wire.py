"""The formats of conmon's attach socket and of its control pipe. Pure.

- The attach socket is SOCK_SEQPACKET. Each packet from conmon begins with a byte that names the stream. A packet to
  conmon is standard input without a header, of at most 32 KiB: conmon silently drops the rest of a longer one.
- The control pipe takes lines of three numbers: a command and its two arguments.
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_INPUT_PACKET_BYTES = 32 << 10
MAX_OUTPUT_PACKET_BYTES = 64 << 10
"""The buffer for a packet from conmon, which sends at most 8 KiB and the header byte."""
MAX_TERMINAL_SIDE = 0xFFFF


class Source(IntEnum):
    """The header byte of a packet. A terminal's output is all stdout."""

    STDOUT = 2
    STDERR = 3


def split_packets(packets: Sequence[bytes]) -> dict[Source, list[memoryview]]:
    """Group the output of consecutive packets by stream. Packets of an unknown stream are skipped."""
    found: dict[Source, list[memoryview]] = {}
    for packet in packets:
        if len(packet) > 1 and packet[0] in (Source.STDOUT, Source.STDERR):
            found.setdefault(Source(packet[0]), []).append(memoryview(packet)[1:])
    return found


def resize_line(width: int, height: int) -> bytes:
    """The control line that sets the size of the container's terminal, in characters."""
    return b"1 %d %d\n" % (min(height, MAX_TERMINAL_SIDE), min(width, MAX_TERMINAL_SIDE))


REOPEN_LINE = b"2 0 0\n"
"""The control line that makes conmon reopen its log."""
