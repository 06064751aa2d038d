"""A desk for a real streaming process: it answers with what a `LocalBackend` does."""

from __future__ import annotations

import asyncio
import os
import socket
from typing import TYPE_CHECKING

from cri_shim.errors import CriShimError
from cri_shim.host.packets import close_all
from cri_shim.streaming import link
from tests.fakes.stream_backend import LocalBackend

if TYPE_CHECKING:
    from collections.abc import Callable

    from cri_shim.streaming.backend import Grant
    from cri_shim.streaming.tickets import Tickets


class LocalDesk:
    """Execs only, and sockets of this machine."""

    def __init__(self, tickets: Tickets) -> None:
        self.backend = LocalBackend(tickets)
        self.heard_all: list[link.Asked] = []
        self.opened = self.closed = 0
        self._grants: dict[int, Grant] = {}
        self._say: Callable[..., None] = lambda _told, fds=(): close_all(fds)
        self._tasks: set[asyncio.Task[None]] = set()

    def open(self, say: Callable[..., None]) -> None:
        self.opened += 1
        self._say = say

    def close(self) -> None:
        self.closed += 1

    def heard(self, asked: link.Asked) -> None:
        self.heard_all.append(asked)
        task = asyncio.get_running_loop().create_task(self._answer(asked))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(self, asked: link.Asked) -> None:
        match asked:
            case link.Redeem(call=call, token=token, kind=kind):
                grant = await self.backend.redeem(token, kind)
                if grant is not None:
                    self._grants[grant.session] = grant
                self._say(link.Granted(call=call, grant=grant))
            case link.Begin(call=call, session=session):
                if self._grants[session].kind == "portforward":
                    self._say(link.Done(call=call))
                else:
                    await self._exec(call, self._grants[session])
            case link.MakeSockets(call=call, family=family, count=count):
                made = [socket.socket(family) for _ in range(count)]
                for sock in made:
                    sock.setblocking(False)
                self._say(link.Done(call=call), [sock.detach() for sock in made])
            case _:
                pass

    async def _exec(self, call: int, grant: Grant) -> None:
        try:
            command = await self.backend.exec(grant)
        except CriShimError as error:
            self._say(link.Failed(call=call, reason=str(error)))
            return
        given = (command.stdin, command.stdout, command.stderr)
        there = [fd is not None for fd in given]
        self._say(
            link.Started(call=call, stdin=there[0], stdout=there[1], stderr=there[2]),
            [fd for fd in given if fd is not None],
        )
        self._say(link.Ended(session=grant.session, exit_code=await command.ended))


def descriptors_of(pid: int) -> int:
    """How many that process has."""
    return len(os.listdir(f"/proc/{pid}/fd"))
