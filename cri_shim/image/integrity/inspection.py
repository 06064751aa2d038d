"""The daemon's client of the inspector: it sends paths to read and receives seals and digests.

Rules: one process per inspection, started with the first request and gone before the inspection ends, however it ends.
One request at a time: two would not make the disk faster.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Self

import msgspec

import cri_shim
from cri_shim.errors import UNREADABLE_DOCUMENT, CriShimError, UnavailableError
from cri_shim.image.integrity.inspector import Answer, Task

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from cri_shim.host.process import Child, Reaper

    Tell = Callable[[int], None]

_RECEIVE_BYTES = 64 << 10
_MAX_LINE_BYTES = 64 << 10


class Inspection:
    """Computes seals and digests in an inspector process. Use it with `async with`."""

    def __init__(self, reaper: Reaper) -> None:
        self._reaper = reaper
        self._child: Child | None = None
        self._connection: socket.socket | None = None
        self._received = bytearray()
        self.read_bytes = 0
        """Bytes read so far, over all requests."""

    @property
    def pid(self) -> int | None:
        """The inspector's, once there is one."""
        return None if self._child is None else self._child.pid

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._connection is not None:
            self._connection.close()
        if self._child is not None:
            # At any point: the inspector changes nothing.
            self._child.kill()
            await asyncio.shield(self._child.wait())

    async def seal(self, directory: Path, tell: Tell) -> str:
        """The seal of a tree. `tell` is called with the number of bytes read so far.

        Raises OSError for what can't be read, CriShimError when the inspector fails.
        """
        return await self._ask(Task(path=os.fspath(directory), tree=True), tell)

    async def digest(self, file: Path, tell: Tell) -> str:
        """The digest of a file. Raises as `seal`."""
        return await self._ask(Task(path=os.fspath(file), tree=False), tell)

    async def _ask(self, task: Task, tell: Tell) -> str:
        connection = self._connected()
        loop = asyncio.get_running_loop()
        try:
            await loop.sock_sendall(connection, msgspec.json.encode(task) + b"\n")
            while True:
                answer = msgspec.json.decode(await self._line(connection), type=Answer)
                if answer.value or answer.reason:
                    break
                tell(answer.done_bytes)
        except (BrokenPipeError, ConnectionResetError, *UNREADABLE_DOCUMENT) as error:
            raise CriShimError(
                f"reading {task.path}: the inspector process failed: {error}"
            ) from error
        self.read_bytes += answer.done_bytes
        if answer.errno:
            raise OSError(answer.errno, answer.reason)
        if answer.reason:
            raise CriShimError(f"reading {task.path}: {answer.reason}")
        return answer.value

    async def _line(self, connection: socket.socket) -> bytes:
        while (end := self._received.find(b"\n")) < 0:
            chunk = await asyncio.get_running_loop().sock_recv(connection, _RECEIVE_BYTES)
            if not chunk or len(self._received) > _MAX_LINE_BYTES:
                raise ConnectionResetError(
                    "it closed its socket, or sent too long a line, before its answer"
                )
            self._received += chunk
        line = bytes(self._received[:end])
        del self._received[: end + 1]
        return line

    def _connected(self) -> socket.socket:
        if self._connection is not None:
            return self._connection
        ours, theirs = socket.socketpair()
        with theirs:
            ours.setblocking(False)
            try:
                self._child = self._reaper.spawn(
                    [sys.executable, "-P", "-s", "-m", "cri_shim.image.integrity.inspector"],
                    stdin=theirs.fileno(),
                    env={
                        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
                        "PYTHONPATH": str(Path(cri_shim.__file__).parent.parent),
                    },
                    cwd="/",
                )
            except OSError as error:
                ours.close()
                raise UnavailableError(f"starting the inspector process: {error}") from error
        self._connection = ours
        return ours
