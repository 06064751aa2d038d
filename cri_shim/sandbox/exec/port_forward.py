"""PortForward: sockets in a pod's network namespace, for whoever is to connect them.

Rules: a socket stays in the namespace it was made in, whoever connects it. So only the making needs a thread that
enters it, and each keeps the namespace until it is closed.
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
    """TCP sockets that don't block; `netns` None is the node's own network.

    Raises CriShimError when the pod's network is gone, ResourceExhaustedError.
    """
    with host_step(f"sandbox {sandbox_id}: making a socket in its network"):
        if netns is None:
            return _make(family, count)
        return await in_time_for(
            f"pod {sandbox_id}",
            "making a socket in the pod's network",
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
