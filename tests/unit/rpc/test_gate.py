from __future__ import annotations

import asyncio

import pytest

from cri_shim.errors import NotReadyError, UnavailableError
from cri_shim.rpc.gate import Gate, Phase

pytestmark = pytest.mark.asyncio


async def test_calls_are_turned_away_until_recovery_is_done() -> None:
    gate = Gate()
    with pytest.raises(NotReadyError, match="recovering"), gate.admitted():
        pass
    gate.open()
    with gate.admitted():
        assert gate.inside == 1
    assert gate.inside == 0


async def test_drain_waits_for_the_calls_inside_and_admits_no_other() -> None:
    gate = Gate()
    gate.open()
    leave = asyncio.Event()

    async def call() -> None:
        with gate.admitted():
            await leave.wait()

    async with asyncio.TaskGroup() as group:
        group.create_task(call())
        await asyncio.sleep(0)
        drained = group.create_task(gate.drain(30))
        await asyncio.sleep(0)
        with pytest.raises(UnavailableError, match="stopping"), gate.admitted():
            pass
        assert not drained.done()
        leave.set()
    assert drained.result() == 0


async def test_drain_gives_up_after_its_grace_period_and_says_how_many_are_left() -> None:
    gate = Gate()
    gate.open()
    with gate.admitted(), gate.admitted():
        assert await gate.drain(0.01) == 2


async def test_draining_an_idle_gate_returns_at_once() -> None:
    gate = Gate()
    assert await gate.drain(30) == 0
    gate.open()
    assert gate.phase is Phase.CLOSED


async def test_while_something_has_the_server_to_itself_others_may_look() -> None:
    gate = Gate()
    gate.open()
    with gate.read_only("it is being wiped"):
        with gate.admitted(is_read_only=True):
            assert gate.inside == 1
        with (
            pytest.raises(UnavailableError, match=r"^it is being wiped; retry when that is over$"),
            gate.admitted(),
        ):
            pass
        with (
            pytest.raises(UnavailableError, match="it is being wiped"),
            gate.read_only("a second time"),
        ):
            pass
    with gate.admitted():
        assert gate.inside == 1
