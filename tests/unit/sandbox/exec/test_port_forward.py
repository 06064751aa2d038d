"""Sockets for a forwarding in the node's own network; those in a pod's need root (`tests/integration/streaming`)."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest

from cri_shim.errors import CriShimError, ResourceExhaustedError
from cri_shim.host.port import Host
from cri_shim.sandbox.exec.port_forward import pod_sockets

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.asyncio


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
async def test_they_block_nobody_and_delay_no_small_write(family: int) -> None:
    made = await pod_sockets(Host(), "12ab", None, family, 3)
    assert len(made) == 3
    for sock in made:
        assert sock.family == family
        assert sock.gettimeout() == 0
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        sock.close()


async def test_a_pod_whose_network_is_gone_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        CriShimError,
        match=r"^sandbox 12ab: creating a socket in the pod's network namespace: No such",
    ):
        await pod_sockets(Host(), "12ab", tmp_path / "gone", socket.AF_INET, 1)


async def test_where_descriptors_run_out_those_that_were_made_are_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[socket.socket] = []
    real = socket.socket

    def few(family: int, kind: int) -> socket.socket:
        if len(made) == 2:
            raise OSError(24, "Too many open files")
        made.append(real(family, kind))
        return made[-1]

    monkeypatch.setattr(socket, "socket", few)
    with pytest.raises(ResourceExhaustedError, match=r"sandbox 12ab: .*Too many open files"):
        await pod_sockets(Host(), "12ab", None, socket.AF_INET, 5)
    assert [sock.fileno() for sock in made] == [-1, -1]
