"""PortForward: sockets connected to ports of a pod, made in its network namespace.

Rules:
- A socket stays in the namespace it was made in, whoever connects it. So only the making needs a thread that enters
  it, and a few are made ahead while many are asked for. Those not used soon are closed: each keeps the namespace.
- Loopback only, IPv4 first and then IPv6, as peers do: what nobody else may reach listens there.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from functools import partial
from typing import TYPE_CHECKING

from cri_shim.background import uninterrupted
from cri_shim.errors import CriShimError, DeadlineError, UnavailableError, host_step
from cri_shim.host.namespaces import run_in_netns

if TYPE_CHECKING:
    from pathlib import Path

CONNECT_TIMEOUT_S = 10.0
MAX_AHEAD = 32
KEPT_AHEAD_S = 1.0
_LOOPBACKS = ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1"))
_UNAVAILABLE_FAMILY = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL)


class PodDialer:
    """Connects to one pod."""

    def __init__(self, sandbox_id: str, netns: Path | None) -> None:
        """`netns` None is the node's own network."""
        self._what = f"sandbox {sandbox_id}"
        self._netns = netns
        self._loop = asyncio.get_running_loop()
        self._ahead: dict[int, list[socket.socket]] = {family: [] for family, _ in _LOOPBACKS}
        self._wanted = 1
        """How many to make next time: twice as many as before, while they go at once."""
        self._making = asyncio.Lock()
        self._timer: asyncio.TimerHandle | None = None

    async def connect(self, port: int) -> socket.socket:
        """A connected socket that doesn't block.

        Raises UnavailableError when nobody listens, DeadlineError when nobody answers, CriShimError when the pod's
        network is gone.
        """
        refusals = []
        for family, address in _LOOPBACKS:
            try:
                sock = await self._socket(family)
            except CriShimError as error:
                if getattr(error.__cause__, "errno", None) in _UNAVAILABLE_FAMILY:
                    continue  # a node without IPv6
                raise
            try:
                async with asyncio.timeout(CONNECT_TIMEOUT_S):
                    await self._loop.sock_connect(sock, (address, port))
            except TimeoutError:
                sock.close()
                raise DeadlineError(
                    f"{self._what}: port {port} did not answer within {CONNECT_TIMEOUT_S:g} s"
                ) from None
            except OSError as error:
                sock.close()
                # asyncio puts a sentence of its own over the kernel's.
                refusals.append(f"{address}: {os.strerror(error.errno or 0)}")
            except BaseException:
                sock.close()
                raise
            else:
                return sock
        raise UnavailableError(
            f"{self._what}: cannot connect to port {port}: {'; '.join(refusals)}"
        )

    def close(self) -> None:
        """Close what was made ahead. Idempotent."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for sockets in self._ahead.values():
            while sockets:
                sockets.pop().close()

    async def _socket(self, family: int) -> socket.socket:
        ahead = self._ahead[family]
        if self._netns is None:
            with host_step(f"{self._what}: making a socket"):
                return _make(family, 1)[0]
        async with self._making:
            if not ahead:
                count, self._wanted = self._wanted, min(self._wanted * 2, MAX_AHEAD)
                with host_step(f"{self._what}: making a socket in its network"):
                    ahead += await uninterrupted(
                        run_in_netns, self._netns, partial(_make, family, count)
                    )
                self._forget_later()
            return ahead.pop()

    def _forget_later(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

        def forget() -> None:
            self.close()
            self._wanted = 1

        self._timer = self._loop.call_later(KEPT_AHEAD_S, forget)


def _make(family: int, count: int) -> list[socket.socket]:
    made: list[socket.socket] = []
    try:
        for _ in range(count):
            sock = socket.socket(family, socket.SOCK_STREAM)
            made.append(sock)
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except OSError:
        for sock in made:
            sock.close()
        raise
    return made
