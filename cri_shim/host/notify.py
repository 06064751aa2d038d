"""Notifies the service manager of the daemon's state (sd_notify(3)); no effect without NOTIFY_SOCKET.

A notification is one datagram of `NAME=value` lines. It is sent without blocking; a failure is logged.
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
    """Send assignments such as `READY` and `STATUS=...` in one datagram."""
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
        log.warning("cannot notify the service manager", state=lines[0], error=str(error))


def reloading() -> str:
    """The lines for the begin of a reload. Send `READY` when the reload has ended, also if it failed."""
    now_us = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    return f"RELOADING=1\nMONOTONIC_USEC={now_us}"


def status(text: str) -> str:
    """The line with the text that `systemctl status` shows."""
    return f"STATUS={' '.join(text.split())}"


def extend_timeout(seconds: float) -> str:
    """The line that extends the timeout of the present start to `seconds` from now."""
    return f"EXTEND_TIMEOUT_USEC={int(seconds * 1e6)}"


def watchdog_interval_s() -> float | None:
    """Seconds without `ALIVE` after which the manager kills the daemon (sd_watchdog_enabled(3)), or None."""
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    try:
        interval_us = int(os.environ.get("WATCHDOG_USEC", ""))
    except ValueError:
        return None
    return interval_us / 1e6 if interval_us > 0 else None
