"""PortForward: creates sockets in a pod's network namespace, which the streaming process connects.

A socket belongs to the namespace in which it was created, whichever process connects it. So only the creation needs a
thread that enters the namespace. An open socket keeps the namespace alive.
"""

from __future__ import annotations

import socket
from functools import partial
from typing import TYPE_CHECKING

from cri_shim.errors import host_step
from cri_shim.kernel_call import in_time_for

if TYPE_CHECKING:
    from pathlib import Path

    from cri_shim.host.port import Host


async def pod_sockets(
    host: Host, sandbox_id: str, netns: Path | None, family: int, count: int
) -> list[socket.socket]:
    """Create non-blocking TCP sockets. `netns` is None for a pod on the node's network.

    Raises CriShimError if the pod's network namespace is gone, ResourceExhaustedError.
    """
    with host_step(f"sandbox {sandbox_id}: creating a socket in the pod's network namespace"):
        if netns is None:
            return _make(family, count)
        return await in_time_for(
            f"pod {sandbox_id}",
            "creating a socket in the pod's network namespace",
            host.run_in_netns,
            netns,
            partial(_make, family, count),
        )


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
