"""A backend for the streaming server: runs commands on this machine instead of in containers, with its own loopback."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pty
import socket
import subprocess
import termios
from typing import TYPE_CHECKING

from cri_shim.errors import NotFoundError, UnavailableError
from cri_shim.streaming.backend import KINDS, Command, ExecRequest, Grant, PortForwardRequest

if TYPE_CHECKING:
    from cri_shim.streaming.backend import Request
    from cri_shim.streaming.tickets import Tickets


class LocalBackend:
    """Runs what tickets are for, and remembers it."""

    def __init__(self, tickets: Tickets) -> None:
        self._tickets = tickets
        self._granted: dict[int, Request] = {}
        self.left: list[int] = []
        self.sizes: list[tuple[int, int] | None] = []
        """With which terminals of execs began."""
        self.resizes: list[tuple[int, int]] = []
        """That terminals got while their command ran."""
        self.processes: list[subprocess.Popen[bytes]] = []
        self.commands: list[Command] = []
        self.dialers: list[LocalDialer] = []
        self.dial_delay_s = 0.0

    async def redeem(self, token: str, kind: str) -> Grant | None:
        request = self._tickets.redeem(token, KINDS[kind])
        if request is None:
            return None
        session = len(self._granted) + 1
        self._granted[session] = request
        if isinstance(request, PortForwardRequest):
            return Grant(
                session,
                kind,
                request.sandbox_id,
                ports=request.ports,
                sandbox_id=request.sandbox_id,
            )
        streams = (request.stdin, request.stdout, request.stderr, request.tty)
        return Grant(session, kind, request.container_id, *streams, sandbox_id=request.sandbox_id)

    def leave(self, grant: Grant) -> None:
        self.left.append(grant.session)

    async def exec(self, grant: Grant, size: tuple[int, int] | None = None) -> Command:
        request = self._granted[grant.session]
        self.sizes.append(size)
        assert isinstance(request, ExecRequest)
        if request.container_id == "gone":
            raise NotFoundError("container", "gone")
        command = self._in_terminal(request) if request.tty else self._with_pipes(request)
        self.commands.append(command)
        return command

    async def attach(self, grant: Grant) -> Command:
        """Joins something that says hello and is over."""
        reading, writing = os.pipe()
        os.write(writing, b"hello")
        os.close(writing)
        os.set_blocking(reading, False)
        ended = asyncio.get_running_loop().create_future()
        ended.set_result(0)
        return Command(None, reading, None, ended, lambda _width, _height: None)

    async def port_forward(self, grant: Grant) -> LocalDialer:
        if grant.object_id == "gone":
            raise NotFoundError("sandbox", "gone")
        dialer = LocalDialer(self.dial_delay_s)
        self.dialers.append(dialer)
        return dialer

    def _with_pipes(self, request: ExecRequest) -> Command:
        ours: list[int | None] = [None, None, None]
        theirs = [subprocess.DEVNULL] * 3
        for number, wanted in enumerate((request.stdin, request.stdout, request.stderr)):
            if wanted:
                reading, writing = os.pipe()
                ours[number], theirs[number] = (
                    (writing, reading) if number == 0 else (reading, writing)
                )
                os.set_blocking(writing if number == 0 else reading, False)
        process = subprocess.Popen(
            request.command, stdin=theirs[0], stdout=theirs[1], stderr=theirs[2]
        )
        for fd in theirs:
            if fd >= 0:
                os.close(fd)
        stdin, stdout, stderr = ours
        return Command(stdin, stdout, stderr, self._ending(process), lambda _width, _height: None)

    def _in_terminal(self, request: ExecRequest) -> Command:
        master, slave = pty.openpty()
        os.set_blocking(master, False)
        process = subprocess.Popen(
            ["setsid", "-c", *request.command], stdin=slave, stdout=slave, stderr=slave
        )
        os.close(slave)

        def resize(width: int, height: int) -> None:
            self.resizes.append((width, height))
            with contextlib.suppress(OSError):
                termios.tcsetwinsize(master, (height, width))

        return Command(os.dup(master), master, None, self._ending(process), resize)

    def _ending(self, process: subprocess.Popen[bytes]) -> asyncio.Future[int]:
        self.processes.append(process)
        loop = asyncio.get_running_loop()

        def wait() -> int:
            code = process.wait()
            return code if code >= 0 else 128 - code

        return loop.run_in_executor(None, wait)

    def close(self) -> None:
        """Kill what is left."""
        for process in self.processes:
            process.kill()
            process.wait()


class LocalDialer:
    """Connects to this machine."""

    def __init__(self, delay_s: float) -> None:
        self.closed = False
        self.delay_s = delay_s
        self.begun = self.under_way = self.most_at_once = 0

    async def connect(self, port: int) -> socket.socket:
        self.begun += 1
        self.under_way += 1
        self.most_at_once = max(self.most_at_once, self.under_way)
        try:
            await asyncio.sleep(self.delay_s)
            return await self._connect(port)
        finally:
            self.under_way -= 1

    async def _connect(self, port: int) -> socket.socket:
        sock = socket.socket()
        sock.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
        except OSError as error:
            sock.close()
            raise UnavailableError(f"port {port}: {os.strerror(error.errno or 0)}") from error
        return sock

    def close(self) -> None:
        self.closed = True
