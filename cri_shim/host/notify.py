"""Telling the service manager how the daemon stands (sd_notify(3)); nothing happens where none asked to be told.

Rules: what is told is one datagram of `NAME=value` lines. A manager that can't be reached, or doesn't read, is logged
and never waited for.
"""

from __future__ import annotations

import os
import socket
import time
from typing import Final

import structlog

log = structlog.get_logger()

READY: Final = "READY=1"
STOPPING: Final = "STOPPING=1"
ALIVE: Final = "WATCHDOG=1"


def notify(*lines: str) -> None:
    """Send what is the case now: `READY`, `STATUS=...` and the like, together."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    kind = socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
    try:
        with socket.socket(socket.AF_UNIX, kind) as channel:
            channel.sendto("\n".join(lines).encode(), address)
    except OSError as error:
        log.warning("service manager not notified", state=lines[0], error=str(error))


def reloading() -> str:
    """That a reload begins, as of now, to be followed by `READY` when it is over, well or not."""
    now_us = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    return f"RELOADING=1\nMONOTONIC_USEC={now_us}"


def status(text: str) -> str:
    """A line for `systemctl status`."""
    return f"STATUS={' '.join(text.split())}"


def extend_timeout(seconds: float) -> str:
    """Ask for that much more time, from now on, for the start that is going on."""
    return f"EXTEND_TIMEOUT_USEC={int(seconds * 1e6)}"


def watchdog_interval_s() -> float | None:
    """How long the manager waits for an `ALIVE` before it takes this process for hung; None if it doesn't."""
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    try:
        interval_us = int(os.environ.get("WATCHDOG_USEC", ""))
    except ValueError:
        return None
    return interval_us / 1e6 if interval_us > 0 else None
