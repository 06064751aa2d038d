"""Connect to the ports of one pod, over sockets that the daemon creates in the pod's network namespace.

Rules:
- The daemon creates sockets in batches, which grow while many are used at once. Unused ones are closed soon, since each
  keeps the pod's network namespace alive.
- The pod's loopback is dialled, IPv4 first and then IPv6, as other runtimes do. Servers that must not be reachable
  from outside the pod listen there. A pod with its own kernel may have another loopback than its network namespace:
  then its addresses are dialled from the node.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from typing import TYPE_CHECKING, NamedTuple, Protocol

from cri_shim.errors import CriShimError, DeadlineError, UnavailableError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Sequence

CONNECT_TIMEOUT_S = 10.0
MAX_AHEAD = 32
KEPT_AHEAD_S = 1.0
_UNAVAILABLE_FAMILY = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL)


class MakesSockets(Protocol):
    """Who makes sockets for a pod."""

    def __call__(
        self, family: int, count: int, *, on_node: bool = False
    ) -> Awaitable[list[socket.socket]]:
        """At least one, in the pod's network, or in the node's."""


class _Place(NamedTuple):
    family: int
    address: str
    on_node: bool
    """Whether that is an address as the node's network knows it."""


_LOOPBACKS = (
    _Place(socket.AF_INET, "127.0.0.1", on_node=False),
    _Place(socket.AF_INET6, "::1", on_node=False),
)


def _family(address: str) -> int:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


class PodDialer:
    """Connects to one pod."""

    def __init__(
        self,
        sandbox_id: str,
        make: MakesSockets,
        addresses: Sequence[str] = (),
    ) -> None:
        """`make` raises CriShimError, caused by the OSError if the kernel refused.

        `addresses` are dialled after the loopback's.
        """
        self._places = [
            *_LOOPBACKS,
            *(_Place(_family(each), each, on_node=True) for each in addresses),
        ]
        self._what = f"sandbox {sandbox_id}"
        self._make = make
        self._loop = asyncio.get_running_loop()
        self._ahead: dict[tuple[int, bool], list[socket.socket]] = {}
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
        for family, address, on_node in self._places:
            try:
                sock = await self._socket(family, on_node)
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

    async def _socket(self, family: int, on_node: bool) -> socket.socket:
        ahead = self._ahead.setdefault((family, on_node), [])
        async with self._making:
            if not ahead:
                count, self._wanted = self._wanted, min(self._wanted * 2, MAX_AHEAD)
                ahead += await self._make(family, count, on_node=on_node)
                self._forget_later()
            return ahead.pop()

    def _forget_later(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

        def forget() -> None:
            self.close()
            self._wanted = 1

        self._timer = self._loop.call_later(KEPT_AHEAD_S, forget)
