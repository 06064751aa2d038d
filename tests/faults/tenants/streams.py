"""Attacks by clients of the streaming server."""

from __future__ import annotations

import socket
from contextlib import suppress
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from tests.faults.tenants.tenant import Tenant

CONNECTIONS = 600


def connections_that_ask_nothing(tenant: Tenant) -> None:
    """Hundreds of connections with half a request, and new ones for those that are ended."""
    pod = tenant.pod()
    where = urlsplit(tenant.client.port_forward_url(pod.id))
    assert where.hostname is not None
    address = (where.hostname, where.port or 80)
    connections: list[socket.socket] = []
    tenant.begin()
    try:
        while tenant.goes_on():
            with suppress(OSError):
                connection = socket.create_connection(address, timeout=1)
                connections.append(connection)
                connection.sendall(b"POST /portforward HTTP/1.1\r\nHost: ")
            if len(connections) >= CONNECTIONS:
                connections.pop(0).close()
    finally:
        for connection in connections:
            connection.close()
