"""A backend with a container whose commands and monitor are this machine's, and a pod on this machine's network."""

from __future__ import annotations

import os
import socket
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, cast

from cri_shim.errors import NotFoundError
from cri_shim.oci.conmon_control import connect_attach
from cri_shim.sandbox.exec.attach import AttachSessions
from cri_shim.sandbox.store.model import SandboxStatus
from cri_shim.sandbox.stream_backend import StreamBackend
from cri_shim.streaming.backend import AttachRequest, ExecRequest, PortForwardRequest
from cri_shim.streaming.tickets import Tickets
from tests.unit.sandbox.exec_node import Node, exec_node
from tests.unit.sandbox.records import make_sandbox

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from cri_shim.oci.conmon import Monitors
    from cri_shim.oci.runtime import Runtime
    from cri_shim.sandbox.containers import Containers
    from cri_shim.sandbox.pods import Pods


class Held:
    """One object, by its ID."""

    def __init__(self, held: object, object_id: str) -> None:
        self._held = {object_id: held}

    def find(self, key: str) -> object:
        if key not in self._held:
            raise NotFoundError("object", key)
        return self._held[key]


class Monitor:
    """What of conmon is reached."""

    def __init__(self) -> None:
        self.sizes: list[tuple[int, int]] = []

    def connect_attach(self, bundle_dir: Path) -> socket.socket:
        return connect_attach(bundle_dir)

    async def resize_terminal(self, bundle_dir: Path, width: int, height: int) -> None:
        self.sizes.append((width, height))


class StreamBackendNode:
    """The backend, its tickets, and what it answers from."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.container = node.container
        self.container.config.stdin = True
        self.sandbox = make_sandbox(status=SandboxStatus(ready_at_ns=1))
        self.tickets = Tickets(60)
        self.monitor = Monitor()
        self.attach_sessions = AttachSessions(
            paths=node.paths,
            monitors=cast("Monitors", self.monitor),
            background=node.background,
        )
        self.backend = StreamBackend(
            host=node.host,
            tickets=self.tickets,
            containers=cast("Containers", Held(self.container, self.container.id)),
            pods=cast("Pods", Held(self.sandbox, self.sandbox.id)),
            execs=node.sessions,
            attach_sessions=self.attach_sessions,
            background=node.background,
            runtime_of=lambda _handler: cast("Runtime", node.runtime),
        )
        bundle_dir = node.paths.container(self.container.id).bundle_dir
        bundle_dir.mkdir(parents=True, exist_ok=True)
        self.listening = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        directory = os.open(bundle_dir, os.O_PATH)  # its path may be too long
        self.listening.bind(f"/proc/self/fd/{directory}/attach")
        os.close(directory)
        self.listening.listen()
        self.listening.setblocking(False)

    def exec_ticket(self, *command: str, tty: bool = False, container_id: str = "") -> str:
        request = ExecRequest(container_id or self.container.id, command, True, True, not tty, tty)
        return self.tickets.issue(request)

    def attach_ticket(self) -> str:
        return self.tickets.issue(
            AttachRequest(self.container.id, stdin=True, stdout=True, stderr=True, tty=False)
        )

    def forward_ticket(self, *ports: int) -> str:
        return self.tickets.issue(PortForwardRequest(self.sandbox.id, ports))

    def accept(self) -> socket.socket:
        """What the backend connected to the monitor."""
        accepted, _ = self.listening.accept()
        accepted.setblocking(False)
        return accepted


@asynccontextmanager
async def stream_backend_node(base: Path) -> AsyncIterator[StreamBackendNode]:
    async with exec_node(base) as node:
        made = StreamBackendNode(node)
        try:
            yield made
        finally:
            made.backend.close()
            made.listening.close()
