"""An exec of a shim that has died, or that the daemon leaves."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, cast

import pytest

from cri_shim.background import Background
from cri_shim.errors import UnavailableError
from cri_shim.oci.shim.exec import LOST_CODE, ShimExec
from tests.fakes.clock import turn_over

if TYPE_CHECKING:
    from cri_shim._pb.shim.v2 import task_pb2 as pb
    from cri_shim.oci.shim.task import Task

pytestmark = pytest.mark.asyncio


class DeadTask:
    """A shim that is gone, after `wait` was begun."""

    def __init__(self, hangs: asyncio.Event | None = None) -> None:
        self._hangs = hangs

    async def wait(self, *_: object, timeout_s: float | None) -> pb.WaitResponse:
        assert timeout_s is None
        if self._hangs is not None:
            await self._hangs.wait()
        raise UnavailableError("gone")

    async def close_input(self, *_: object) -> None:
        raise UnavailableError("gone")


async def test_who_lost_its_shim_has_been_killed() -> None:
    background = Background()
    child = ShimExec(cast("Task", DeadTask()), "c", "e", 7, background)
    assert (await child.wait()).exit_code == LOST_CODE
    ends: list[str] = []
    child.on_end(lambda: ends.append("over"))
    child.end_input()
    await turn_over()
    assert ends == ["over"]
    await background.close(0)


async def test_at_the_daemons_end_nothing_is_waited_for() -> None:

    background = Background()
    child = ShimExec(cast("Task", DeadTask(asyncio.Event())), "c", "e", 7, background)
    waiting = asyncio.create_task(child.wait())
    await turn_over()
    await background.close(0)
    await turn_over()
    assert (child.settled, child.ending) == (True, None)
    assert waiting.cancelled()
