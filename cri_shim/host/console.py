"""The console socket, over which an OCI runtime passes the terminal of a process that it starts (--console-socket).

Rules:
- The runtime connects, sends one message with the descriptor of the pty master, and disconnects. It does all of this
  before its command succeeds, so `receive` after that need not wait.
- Descriptors are close-on-exec and non-blocking.
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
    """A context manager that listens at `path` while it is entered."""

    def __init__(self, path: Path) -> None:
        """`path` must not exist, and has at most 107 bytes (unix(7))."""
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
        """The descriptor of the pty master, which the caller closes, or None if the runtime sent none."""
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
