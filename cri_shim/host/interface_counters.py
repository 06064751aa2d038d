"""Reads the counters of the network interfaces in a process's network namespace, without entering it.

Rules:
- /proc/PID/net/dev shows the namespace of that process (proc(5)); the read needs neither a child nor a thread in there,
  and a frozen or stopped process does not delay it.
- A reused pid shows another namespace. So the process's namespace is compared with the pinned one first.
- Whoever may add interfaces in the namespace decides how long the file is: at most `MAX_BYTES` are read.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pathlib import Path

MAX_BYTES: Final = 1 << 17
"""Of some thousand interfaces."""
_CHUNK_BYTES: Final = 1 << 16
_RECEIVE_COLUMNS: Final = 8
_COLUMNS: Final = 16


@dataclass(frozen=True, slots=True)
class InterfaceCounters:
    """What passed one interface since it was made."""

    name: str
    received_bytes: int
    received_packets: int
    receive_errors: int
    receive_drops: int
    sent_bytes: int
    sent_packets: int
    send_errors: int
    send_drops: int


def interface_counters(
    pid: int, netns: Path, proc_dir: str = "/proc"
) -> list[InterfaceCounters] | None:
    """The interfaces in the pinned namespace `netns` that the process `pid` runs in, in the kernel's order.

    None if the process or the pin is gone, or the process is in another namespace. Synchronous: one file.
    """
    try:
        its, pinned = os.stat(f"{proc_dir}/{pid}/ns/net"), os.stat(netns)
        if (its.st_dev, its.st_ino) != (pinned.st_dev, pinned.st_ino):
            return None
        text = _read(f"{proc_dir}/{pid}/net/dev")
    except OSError:
        return None
    return parse_net_dev(text)


def parse_net_dev(text: bytes) -> list[InterfaceCounters]:
    """The rows of /proc/net/dev. Lines of another form, such as a cut last one, are left out. Pure."""
    found = []
    for line in text.splitlines():
        name, colon, numbers = line.rpartition(b":")
        columns = numbers.split()
        if not colon or len(columns) != _COLUMNS or not all(each.isdigit() for each in columns):
            continue
        received, sent = columns[:_RECEIVE_COLUMNS], columns[_RECEIVE_COLUMNS:]
        found.append(
            InterfaceCounters(
                name.strip().decode("utf-8", "replace"),
                *(int(each) for each in received[:4]),
                *(int(each) for each in sent[:4]),
            )
        )
    return found


def _read(path: str) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        chunks, size = [], 0
        # The kernel returns a page at a time.
        while size < MAX_BYTES and (chunk := os.read(fd, _CHUNK_BYTES)):
            chunks.append(chunk)
            size += len(chunk)
    finally:
        os.close(fd)
    return b"".join(chunks)
