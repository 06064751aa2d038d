"""Connect to the ports of one pod, over sockets that the daemon creates in the pod's network namespace.

Rules:
- The daemon creates sockets in batches, which grow while many are used at once. Unused ones are closed soon, since each
  keeps the pod's network namespace alive.
- Only the pod's loopback is dialled, IPv4 first and then IPv6, as other runtimes do. Servers that must not be reachable
  from outside the pod listen there.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from typing import TYPE_CHECKING

from cri_shim.errors import CriShimError, DeadlineError, UnavailableError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

CONNECT_TIMEOUT_S = 10.0
MAX_AHEAD = 32
KEPT_AHEAD_S = 1.0
_LOOPBACKS = ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1"))
_UNAVAILABLE_FAMILY = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL)


class PodDialer:
    """Connects to one pod."""

    def __init__(
        self, sandbox_id: str, make: Callable[[int, int], Awaitable[list[socket.socket]]]
    ) -> None:
        """`make(family, count)` returns at least one socket in the pod's network.

        It raises CriShimError, caused by the OSError if the kernel refused.
        """
        self._what = f"sandbox {sandbox_id}"
        self._make = make
        self._loop = asyncio.get_running_loop()
        self._ahead: dict[int, list[socket.socket]] = {family: [] for family, _ in _LOOPBACKS}
        self._wanted = 1
        """The size of the next batch. It doubles while batches are used up at once."""
        self._making = asyncio.Lock()
        self._timer: asyncio.TimerHandle | None = None

    async def connect(self, port: int) -> socket.socket:
        """A connected, non-blocking socket.

        Raises UnavailableError when nothing listens, DeadlineError when nothing answers, CriShimError when the pod's
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
                # The kernel's text: asyncio replaces it with a sentence of its own.
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
        """Close the sockets created ahead. Idempotent."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for sockets in self._ahead.values():
            while sockets:
                sockets.pop().close()

    async def _socket(self, family: int) -> socket.socket:
        ahead = self._ahead[family]
        async with self._making:
            if not ahead:
                count, self._wanted = self._wanted, min(self._wanted * 2, MAX_AHEAD)
                ahead += await self._make(family, count)
                self._forget_later()
            return ahead.pop()

    def _forget_later(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

        def forget() -> None:
            self.close()
            self._wanted = 1

        self._timer = self._loop.call_later(KEPT_AHEAD_S, forget)
