"""Telling the service manager how the daemon stands (sd_notify(3)); nothing happens where none asked to be told."""

from __future__ import annotations

import os
import socket

import structlog

log = structlog.get_logger()


def notify(state: str) -> None:
    """Send `READY=1`, `STOPPING=1` and the like. A manager that can't be reached is logged, never an error."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
            channel.sendto(state.encode(), address)
    except OSError as error:
        log.warning("service manager not notified", state=state, error=str(error))
