"""Connections over sockets that somebody else makes."""

from __future__ import annotations

import asyncio
import errno
import socket
from typing import TYPE_CHECKING

import pytest

from cri_shim.errors import CriShimError, DeadlineError, UnavailableError
from cri_shim.streaming import dialer as module
from cri_shim.streaming.dialer import MAX_AHEAD, PodDialer
from tests.fakes.clock import until

if TYPE_CHECKING:
    from tests.fakes.clock import MovableClock

pytestmark = pytest.mark.asyncio


class Maker:
    """Makes sockets of this machine."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, int]] = []
        self.on_node: list[bool] = []
        self.made: list[socket.socket] = []
        self.error: CriShimError | None = None
        self.cause: OSError | None = None

    async def make(self, family: int, count: int, *, on_node: bool = False) -> list[socket.socket]:
        self.asked.append((family, count))
        self.on_node.append(on_node)
        await asyncio.sleep(0)
        if self.error is not None and family == socket.AF_INET6:
            raise self.error from self.cause
        made = [socket.socket(family) for _ in range(count)]
        for sock in made:
            sock.setblocking(False)
        self.made += made
        return made

    @property
    def open(self) -> int:
        return sum(sock.fileno() >= 0 for sock in self.made)


async def test_loopback_of_ipv4_comes_first_and_ipv6_then() -> None:
    maker = Maker()
    dialer = PodDialer("s1", maker.make)
    for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
        with socket.create_server((host, 0), family=family) as target:
            sock = await dialer.connect(target.getsockname()[1])
            with sock:
                assert sock.getpeername()[0] == host
    dialer.close()
    assert [family for family, _ in maker.asked] == [
        socket.AF_INET,
        socket.AF_INET,
        socket.AF_INET6,
    ]
    assert maker.open == 0


async def test_more_are_made_at_once_the_more_are_used() -> None:
    maker = Maker()
    dialer = PodDialer("s1", maker.make)
    with socket.create_server(("127.0.0.1", 0), backlog=200) as target:
        found = [await dialer.connect(target.getsockname()[1]) for _ in range(100)]
    assert [count for _, count in maker.asked] == [1, 2, 4, 8, 16, MAX_AHEAD, MAX_AHEAD, MAX_AHEAD]
    for sock in found:
        sock.close()
    dialer.close()
    assert maker.open == 0


async def test_those_not_used_soon_are_closed(clock: MovableClock) -> None:
    maker = Maker()
    dialer = PodDialer("s1", maker.make)
    with socket.create_server(("127.0.0.1", 0)) as target:
        for _ in range(2):
            (await dialer.connect(target.getsockname()[1])).close()
        assert maker.open == 1
        await clock.sleep(module.KEPT_AHEAD_S)
        await until(lambda: maker.open == 0)
        (await dialer.connect(target.getsockname()[1])).close()
    assert maker.asked[-1][1] == 1
    dialer.close()


async def test_nobody_who_listens_is_said_of_both_families() -> None:
    maker = Maker()
    dialer = PodDialer("s1", maker.make)
    with socket.create_server(("127.0.0.1", 0)) as target:
        port = target.getsockname()[1]
    with pytest.raises(
        UnavailableError,
        match=rf"sandbox s1: cannot connect to port {port}: 127\.0\.0\.1: .*; ::1: ",
    ):
        await dialer.connect(port)
    dialer.close()
    assert maker.open == 0


async def test_a_node_without_ipv6_has_one_refusal_less() -> None:
    maker = Maker()
    maker.error, maker.cause = CriShimError("no"), OSError(errno.EAFNOSUPPORT, "no")
    dialer = PodDialer("s1", maker.make)
    with socket.create_server(("127.0.0.1", 0)) as target:
        port = target.getsockname()[1]
    with pytest.raises(UnavailableError) as refused:
        await dialer.connect(port)
    assert "::1" not in str(refused.value)
    maker.error, maker.cause = CriShimError("the pod's network is gone"), None
    with pytest.raises(CriShimError, match="network is gone"):
        await dialer.connect(port)
    dialer.close()


async def test_who_does_not_answer_is_not_waited_for_long(clock: MovableClock) -> None:
    maker = Maker()
    dialer = PodDialer("s1", maker.make)
    with socket.socket() as target:
        target.bind(("127.0.0.1", 0))
        target.listen(0)
        port = target.getsockname()[1]
        waiting = [socket.socket() for _ in range(3)]
        for sock in waiting:
            sock.setblocking(False)
            sock.connect_ex(("127.0.0.1", port))
        limit_s = module.CONNECT_TIMEOUT_S
        dialing = asyncio.ensure_future(dialer.connect(port))
        await clock.until(dialing.done, within_s=3 * limit_s)
        with pytest.raises(DeadlineError, match=f"port {port} did not answer within {limit_s:g} s"):
            await dialing
        for sock in waiting:
            sock.close()
    dialer.close()
    assert maker.open == 0


async def test_addresses_of_a_pod_are_tried_from_the_node_after_the_loopbacks() -> None:
    maker = Maker()
    listening = socket.create_server(("127.0.0.1", 0))
    port = listening.getsockname()[1]
    listening.close()
    # Now only 127.0.0.2 listens on that port: an address that the loopback's own is not.
    listening = socket.create_server(("127.0.0.2", port))
    dialer = PodDialer("s1", maker.make, ["127.0.0.2"])

    connected = await dialer.connect(port)

    assert connected.getpeername()[0] == "127.0.0.2"
    assert maker.on_node[-1] is True
    assert True not in maker.on_node[:-1]
    connected.close()
    dialer.close()
    listening.close()
