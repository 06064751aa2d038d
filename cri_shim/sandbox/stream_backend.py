"""The node, as the streaming server sees it: on its loop, and on the daemon's where records and processes are.

Rules: what a method returns holds for the server's loop; everything that has to do with a container's record or a
child process is done on the daemon's, one hop for a session and none for a byte.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import termios
from pathlib import Path
from typing import TYPE_CHECKING

from cri_shim.errors import host_step
from cri_shim.host.loop_thread import on_loop
from cri_shim.sandbox.exec_session import close_streams
from cri_shim.sandbox.pods import require_ready
from cri_shim.sandbox.port_forward import PodDialer
from cri_shim.streaming.backend import Command

if TYPE_CHECKING:
    from collections.abc import Callable

    from cri_shim.host.process import Child
    from cri_shim.sandbox.attach import Attachable, Attachments
    from cri_shim.sandbox.containers import Containers
    from cri_shim.sandbox.exec_session import ExecSessions, ExecStreams
    from cri_shim.sandbox.pods import Pods
    from cri_shim.streaming.backend import (
        AttachRequest,
        Dialer,
        ExecRequest,
        PortForwardRequest,
    )


class StreamBackend:
    """Carries out what tickets are for."""

    def __init__(
        self,
        *,
        daemon_loop: asyncio.AbstractEventLoop,
        containers: Containers,
        pods: Pods,
        execs: ExecSessions,
        attachments: Attachments,
    ) -> None:
        self._daemon_loop = daemon_loop
        self._containers = containers
        self._pods = pods
        self._execs = execs
        self._attachments = attachments

    async def exec(self, request: ExecRequest) -> Command:
        """Start the command."""
        streams = await on_loop(self._daemon_loop, self._exec(request))
        ended = asyncio.wrap_future(
            asyncio.run_coroutine_threadsafe(_exit_code(streams.child), self._daemon_loop)
        )
        terminal = streams.stdout if request.tty else None
        try:
            with host_step(f"container {request.container_id}: exec: its terminal"):
                resize = _no_terminal if terminal is None else _resizer(terminal, ended)
        except BaseException:
            close_streams(streams)
            ended.cancel()
            raise
        return Command(streams.stdin, streams.stdout, streams.stderr, ended, resize)

    async def attach(self, request: AttachRequest) -> Command:
        """Join a container."""
        target = await on_loop(self._daemon_loop, self._attachable(request.container_id))
        member = self._attachments.join(
            target, stdin=request.stdin, stdout=request.stdout, stderr=request.stderr
        )

        def resize(width: int, height: int) -> None:
            if target.terminal:
                self._daemon_loop.call_soon_threadsafe(
                    self._attachments.resize, target, width, height
                )

        return Command(member.stdin, member.stdout, member.stderr, member.ended, resize)

    async def _attachable(self, container_id: str) -> Attachable:
        return self._attachments.attachable(self._containers.find(container_id))

    async def port_forward(self, request: PortForwardRequest) -> Dialer:
        """A way into the pod."""
        netns = await on_loop(self._daemon_loop, self._netns(request.sandbox_id))
        return PodDialer(request.sandbox_id, netns)

    async def _netns(self, sandbox_id: str) -> Path | None:
        sandbox = self._pods.find(sandbox_id)
        require_ready(sandbox)
        return Path(sandbox.record.netns) if sandbox.record.netns else None

    async def _exec(self, request: ExecRequest) -> ExecStreams:
        return await self._execs.open(
            self._containers.find(request.container_id),
            request.command,
            stdin=request.stdin,
            stdout=request.stdout,
            tty=request.tty,
        )


async def _exit_code(child: Child) -> int:
    return (await child.wait()).exit_code


def _no_terminal(_width: int, _height: int) -> None:
    """There is nothing to tell."""


def _resizer(terminal: int, ended: asyncio.Future[int]) -> Callable[[int, int], None]:
    """Sets a terminal's size, through a descriptor of its own that lasts as long as the process or its session."""
    fd = os.dup(terminal)
    ended.add_done_callback(lambda _: os.close(fd))

    def resize(width: int, height: int) -> None:
        if not ended.done():
            with contextlib.suppress(OSError):  # hung up
                termios.tcsetwinsize(fd, (height, width))

    return resize
