"""A backend for a real streaming process, which delegates to a `LocalBackend`."""

from __future__ import annotations

import asyncio
import os
import socket
from typing import TYPE_CHECKING

from cri_shim.errors import CriShimError
from cri_shim.host.packets import close_all
from cri_shim.streaming import ipc
from tests.fakes.stream_backend import LocalBackend

if TYPE_CHECKING:
    from collections.abc import Callable

    from cri_shim.streaming.backend import Grant
    from cri_shim.streaming.tickets import Tickets


class LocalStreamBackend:
    """Execs only, and sockets of this machine."""

    def __init__(self, tickets: Tickets) -> None:
        self.backend = LocalBackend(tickets)
        self.messages: list[ipc.ToDaemon] = []
        self.opened = self.closed = 0
        self._grants: dict[int, Grant] = {}
        self._send: Callable[..., None] = lambda _told, fds=(): close_all(fds)
        self._tasks: set[asyncio.Task[None]] = set()

    def open(self, say: Callable[..., None]) -> None:
        self.opened += 1
        self._send = say

    def close(self) -> None:
        self.closed += 1

    def handle(self, message: ipc.ToDaemon) -> None:
        self.messages.append(message)
        task = asyncio.get_running_loop().create_task(self._answer(message))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(self, message: ipc.ToDaemon) -> None:
        match message:
            case ipc.Redeem(call=call, token=token, kind=kind):
                grant = await self.backend.redeem(token, kind)
                if grant is not None:
                    self._grants[grant.session] = grant
                self._send(ipc.Granted(call=call, grant=grant))
            case ipc.Begin(call=call, session=session):
                if self._grants[session].kind == "portforward":
                    self._send(ipc.Done(call=call))
                else:
                    await self._exec(call, self._grants[session])
            case ipc.MakeSockets(call=call, family=family, count=count):
                made = [socket.socket(family) for _ in range(count)]
                for sock in made:
                    sock.setblocking(False)
                self._send(ipc.Done(call=call), [sock.detach() for sock in made])
            case _:
                pass

    async def _exec(self, call: int, grant: Grant) -> None:
        try:
            command = await self.backend.exec(grant)
        except CriShimError as error:
            self._send(ipc.Failed(call=call, reason=str(error)))
            return
        given = (command.stdin, command.stdout, command.stderr)
        there = [fd is not None for fd in given]
        self._send(
            ipc.Started(call=call, stdin=there[0], stdout=there[1], stderr=there[2]),
            [fd for fd in given if fd is not None],
        )
        self._send(ipc.Ended(session=grant.session, exit_code=await command.ended))


def descriptors_of(pid: int) -> int:
    """How many that process has."""
    return len(os.listdir(f"/proc/{pid}/fd"))
