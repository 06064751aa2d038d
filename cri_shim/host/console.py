"""The socket over which an OCI runtime hands out the terminal of a process that it starts.

Rules: the runtime connects, sends one message with the master's descriptor beside it, and hangs up, all before it says
that the process runs; so whoever asks after that finds it there. Descriptors are close-on-exec and don't block.
"""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING, Self

from cri_shim.host.packets import receive_packet

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

MAX_NAME_BYTES = 4096


class ConsoleSocket:
    """A context: the socket is at `path` while it lasts."""

    def __init__(self, path: Path) -> None:
        """`path` is free, and at most 107 bytes long."""
        self.path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)

    def __enter__(self) -> Self:
        try:
            self._socket.setblocking(False)
            self._socket.bind(os.fspath(self.path))
            self._socket.listen(1)
        except BaseException:
            self._socket.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._socket.close()
        self.path.unlink(missing_ok=True)

    def receive(self) -> int | None:
        """The terminal's master, now the caller's; None when the runtime handed out none."""
        try:
            connected, _address = self._socket.accept()
        except BlockingIOError:
            return None
        with connected:
            connected.setblocking(False)
            try:
                _name, descriptors = receive_packet(connected, MAX_NAME_BYTES, 1)
            except BlockingIOError:
                return None
        for fd in descriptors:
            os.set_blocking(fd, False)
            return fd
        return None
