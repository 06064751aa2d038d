"""A process that a shim runs in a container beside its first one.

It has the methods of a child of ours (`host/child`), though it is none: who waits for an exec need not know.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

import structlog

from cri_shim.background import settled
from cri_shim.errors import CriShimError
from cri_shim.host.child import Ending

if TYPE_CHECKING:
    from collections.abc import Callable

    from cri_shim.background import Background
    from cri_shim.oci.shim.task import Task

log = structlog.get_logger()
LOST_CODE = 137
"""Of a process whose shim has died: its container is killed."""


class ShimExec:
    """One exec that was started."""

    def __init__(
        self, task: Task, container_id: str, exec_id: str, pid: int, background: Background
    ) -> None:
        self.pid = pid
        """What stands for it on the node, as the shim says."""
        self._task = task
        self._container_id = container_id
        self._exec_id = exec_id
        self._background = background
        self._ended: asyncio.Future[Ending] = asyncio.get_running_loop().create_future()
        background.keep(f"exec in {container_id}", self._follow())

    @property
    def ending(self) -> Ending | None:
        """How it ended; None while it runs."""
        if self._ended.done() and not self._ended.cancelled():
            return self._ended.result()
        return None

    @property
    def settled(self) -> bool:
        """Whether there is nothing to wait for any more."""
        return self._ended.done()

    async def wait(self) -> Ending:
        """How it ended, once it has. Raises CancelledError at the daemon's end."""
        return await asyncio.shield(self._ended)

    async def wait_at_most(self, timeout_s: float | None) -> Ending | None:
        """As `wait`, at most so long; None if it still runs."""
        await settled(self._ended, timeout_s)
        return self.ending

    def on_end(self, callback: Callable[[], None]) -> None:
        """Have `callback` called when there is nothing to wait for any more."""
        self._ended.add_done_callback(lambda _: callback())

    async def resize(self, width: int, height: int) -> None:
        """Set its terminal's size. Raises CriShimError."""
        await self._task.resize(self._container_id, self._exec_id, width, height)

    def end_input(self) -> None:
        """Let it read the end of its input, soon."""
        self._background.start("end an exec's input", self._end_input())

    async def _end_input(self) -> None:
        try:
            await self._task.close_input(self._container_id, self._exec_id)
        except CriShimError as error:  # it ended meanwhile
            log.debug("input not ended", container_id=self._container_id, error=str(error))

    async def _follow(self) -> None:
        try:
            ending = await self._wait()
        except BaseException:
            self._ended.cancel()
            raise
        if not self._ended.done():
            self._ended.set_result(ending)

    async def _wait(self) -> Ending:
        try:
            ended = await self._task.wait(self._container_id, self._exec_id, timeout_s=None)
        except CriShimError as error:
            log.debug("exit of an exec lost", container_id=self._container_id, error=str(error))
            return Ending(LOST_CODE << 8)
        with contextlib.suppress(CriShimError):
            # It returns when the shim has passed on all output, or no longer waits for it.
            await self._task.delete(self._container_id, self._exec_id)
        return Ending((ended.exit_status & 0xFF) << 8)
