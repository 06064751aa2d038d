"""The daemon's end of the unpacker: jobs go out, confined children do them, reports come back.

Rules:
- The template process is started with the first job and ended after a while without one: nothing is paid for images
  while none arrive. This process never imports what inflates or unpacks.
- A job has a deadline, counted anew with each piece that a stream brings: a slow sender has limits of its own. However
  it ends (error, cancellation, deadline), its child is gone before the call returns, so that its directory can be
  removed.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from cri_shim.errors import (
    BadArchiveError,
    CriShimError,
    DeadlineError,
    ResourceExhaustedError,
)
from cri_shim.image.growing import Growing
from cri_shim.image.jobs import Failure, Fault, JobKind, LayerReport, Limits, MembersReport
from cri_shim.image.unpacker_process import UnpackerProcess

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from cri_shim.host.process import Reaper

IDLE_S = 60.0
MAX_STREAMS = 4
DEFAULT_TIMEOUT_S = 3600.0

R = TypeVar("R", LayerReport, MembersReport)
T = TypeVar("T")


class Unpacker:
    """Runs jobs in confined children; used on the loop's thread.

    At most `max_parallel` have a file to work on, and `max_streams` a stream: a stream waits for its sender, and may
    not keep anybody from working who has everything at hand.
    """

    def __init__(
        self,
        reaper: Reaper,
        *,
        max_parallel: int | None = None,
        max_streams: int = MAX_STREAMS,
        limits: Limits | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        idle_s: float = IDLE_S,
    ) -> None:
        self._reaper = reaper
        self._limits = limits or Limits()
        self._timeout_s = timeout_s
        self._idle_s = idle_s
        self._files = asyncio.Semaphore(max_parallel or max(2, os.cpu_count() or 1))
        self._streams = asyncio.Semaphore(max_streams)
        self._template: UnpackerProcess | None = None
        self._running = 0
        self._idle: asyncio.TimerHandle | None = None

    @property
    def stream_free(self) -> bool:
        """Whether a stream that begins now would be unpacked at once."""
        return not self._streams.locked()

    def warm_up(self) -> None:
        """Work is coming: start the template process, unless it runs. Raises UnavailableError."""
        self._acquire()
        self._release()

    async def unpack_layer(
        self, source: AsyncIterator[bytes] | Growing | int, directory_fd: int, *, what: str
    ) -> LayerReport:
        """Unpack a layer blob into an empty directory; `what` names the blob in errors.

        `source` is a stream, a file that still grows, or the descriptor of a file at its beginning; the caller closes
        what it opened.

        Raises BadArchiveError, ResourceExhaustedError (disk full), DeadlineError, UnavailableError (the unpacker
        can't run), and whatever the stream raises.
        """
        return await self._run(JobKind.LAYER, source, directory_fd, what, LayerReport)

    async def spool_members(
        self, source: AsyncIterator[bytes] | int, directory_fd: int, *, what: str
    ) -> MembersReport:
        """Put the files of an image archive into an empty directory under numbers. Raises as `unpack_layer`."""
        return await self._run(JobKind.MEMBERS, source, directory_fd, what, MembersReport)

    async def close(self) -> None:
        """End the template process, and with it every child. Idempotent."""
        if self._idle is not None:
            self._idle.cancel()
        template, self._template = self._template, None
        if template is not None:
            await template.close()

    async def _run(
        self,
        kind: JobKind,
        source: AsyncIterator[bytes] | Growing | int,
        directory_fd: int,
        what: str,
        expected: type[R],
    ) -> R:
        async with self._files if isinstance(source, int) else self._streams:
            template = self._acquire()
            try:
                async with asyncio.timeout(self._timeout_s) as deadline:
                    if isinstance(source, Growing):
                        source = replace(source, sizes=self._counted_anew(source.sizes, deadline))
                    elif not isinstance(source, int):
                        source = self._counted_anew(source, deadline)
                    result = await template.run(kind, self._limits, source, directory_fd, what)
            except TimeoutError:
                raise DeadlineError(
                    f"{what}: unpacking went on for {self._timeout_s:g} s and was given up"
                ) from None
            finally:
                self._release()
        if isinstance(result, Failure):
            raise _failure(result, what)
        if not isinstance(result, expected):
            raise CriShimError(f"{what}: the unpacker answered with another job's report")
        return result

    async def _counted_anew(
        self, source: AsyncIterator[T], deadline: asyncio.Timeout
    ) -> AsyncIterator[T]:
        loop = asyncio.get_running_loop()
        try:
            async for piece in source:
                deadline.reschedule(loop.time() + self._timeout_s)
                yield piece
        finally:
            if isinstance(source, AsyncGenerator):
                await source.aclose()

    def _acquire(self) -> UnpackerProcess:
        self._running += 1
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None
        if self._template is None or self._template.gone:
            self._template = UnpackerProcess(self._reaper)
        return self._template

    def _release(self) -> None:
        self._running -= 1
        if self._running == 0:
            loop = asyncio.get_running_loop()
            self._idle = loop.call_later(self._idle_s, self._end_idle)

    def _end_idle(self) -> None:
        template, self._template = self._template, None
        if template is not None:
            template.hang_up()


def _failure(failure: Failure, what: str) -> CriShimError:
    # The child has read hostile bytes, and might be theirs by now.
    reason = "".join(c if c.isprintable() else " " for c in failure.reason[:2000])
    if failure.fault is Fault.INPUT:
        return BadArchiveError(f"{what}: {reason}")
    if failure.fault is Fault.SPACE:
        return ResourceExhaustedError(f"{what}: {reason}; free some space and try again")
    return CriShimError(f"{what}: unpacking failed: {reason}")
