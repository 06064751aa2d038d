"""The daemon's client of the unpacker: it sends jobs to confined children and returns their reports.

Rules:
- The template process starts with the first job and exits after a while without one, so that images cost nothing while
  none arrive. The daemon never imports the libraries that inflate or unpack.
- A job has a deadline. Each piece of a stream restarts it, since slow senders have limits of their own. However a job
  ends (error, cancellation, deadline), its child is gone before the call returns, so the directory can be removed.
- A layer's author decides how long its unpacking takes. So each image has a share of the children that unpack files,
  and a slow child gives its slot to others (`slots`). It goes on at a low CPU priority.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from cri_shim.background import uninterrupted
from cri_shim.errors import (
    BadArchiveError,
    CriShimError,
    DeadlineError,
    ResourceExhaustedError,
    UnavailableError,
)
from cri_shim.host.mounts import without_devices
from cri_shim.image.manifest import Platform
from cri_shim.image.planned import PlannedImage, checked
from cri_shim.image.unpack.growing_file import Growing
from cri_shim.image.unpack.process_handle import UnpackerProcess
from cri_shim.image.unpack.protocol import (
    ArchiveReport,
    ConfigReport,
    Failure,
    Fault,
    Job,
    JobKind,
    LayerReport,
    Limits,
    ManifestReport,
)
from cri_shim.slots import Share, Slots

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from cri_shim.host.process import Reaper
    from cri_shim.image.manifest import ImageConfig

IDLE_S = 60.0
MIN_FILES, MAX_FILES = 4, 16
"""Bounds of how many layers unpack from files at once: one per processor. Slow ones come on top."""
MAX_SLOW_FILES = 8
SLOW_AFTER_S = 10.0
PATIENCE_S = 120.0
"""How long every layer may take, however many are slow. One gigabyte takes some ten seconds."""
MAX_STREAMS = 4
_MAX_ARCHIVES = 4
_MAX_DOCUMENTS = 2
_ANY = Platform()
_MAX_WHAT_CHARS = 700
"""The limit for the name of a job's input: a job must fit into one packet."""
_MAX_TYPE_CHARS = 100
"""Longer than any media type that we know."""
DEFAULT_TIMEOUT_S = 3600.0

R = TypeVar("R", LayerReport, ArchiveReport, ManifestReport, ConfigReport)
T = TypeVar("T")


class Unpacker:
    """Runs jobs in confined children. Use it on the event loop's thread.

    At most `max_parallel` jobs unpack files, half of them for one owner; `MAX_SLOW_FILES` slow ones come on top. At
    most `max_streams` jobs unpack streams: a stream waits for its sender and must not take a slot from a complete file.
    Documents, which are short, and archives, which only an operator imports, wait for neither.
    """

    def __init__(
        self,
        reaper: Reaper,
        *,
        max_parallel: int | None = None,
        max_streams: int = MAX_STREAMS,
        limits: Limits | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        slow_after_s: float = SLOW_AFTER_S,
        idle_s: float = IDLE_S,
    ) -> None:
        self._reaper = reaper
        self._limits = limits or Limits()
        self._timeout_s = timeout_s
        self._idle_s = idle_s
        self._slow_after_s = slow_after_s
        files = max_parallel or min(max(MIN_FILES, os.cpu_count() or 1), MAX_FILES)
        self._files = Slots(
            files, slow_total=MAX_SLOW_FILES, slow_after_s=slow_after_s, patience_s=PATIENCE_S
        )
        self._files_of_one = max(1, files // 2)
        self._streams = asyncio.Semaphore(max_streams)
        self._archives = asyncio.Semaphore(_MAX_ARCHIVES)
        self._documents = asyncio.Semaphore(_MAX_DOCUMENTS)
        self._template: UnpackerProcess | None = None
        self._running = 0
        self._idle: asyncio.TimerHandle | None = None

    @asynccontextmanager
    async def stream(self) -> AsyncIterator[bool]:
        """Reserve one of the slots for streams while this is open. Yields False at once if none is free.

        Nobody waits for such a slot, since its holder may wait for a sender as long as the sender likes.
        """
        if self._streams.locked():
            yield False
            return
        async with self._streams:
            yield True

    def warm_up(self) -> None:
        """Start the template process ahead of work, unless it runs. Raises UnavailableError."""
        self._acquire()
        self._release()

    async def unpack_layer(
        self,
        source: AsyncIterator[bytes] | Growing | int,
        directory_fd: int,
        *,
        what: str,
        owner: str = "",
    ) -> LayerReport:
        """Unpack a layer blob into an empty directory. `what` names the blob in errors, `owner` its share of slots.

        `source` is a stream, a growing file (the caller holds a slot from `stream`), or the descriptor of a file at
        its start. The caller closes what it opened.

        Raises BadArchiveError, ResourceExhaustedError (disk full), DeadlineError (the deadline passed, or too many
        layers are slow), UnavailableError (the unpacker can't run), and whatever the stream raises.
        """
        slot: AbstractAsyncContextManager[object] = self._streams
        if isinstance(source, int):
            share = Share(owner or what, self._files_of_one)
            slot = self._files.slot(f"unpacking {what}", share, waiting="waiting for other layers")
        elif isinstance(source, Growing):
            slot = nullcontext()
        return await self._run(JobKind.LAYER, source, directory_fd, what, LayerReport, slot)

    async def spool_archive(
        self,
        source: AsyncIterator[bytes] | int,
        directory_fd: int,
        platform: Platform,
        *,
        what: str,
    ) -> list[PlannedImage]:
        """Store the files of an image archive under numbers in an empty directory; returns its images for `platform`.

        Raises as `unpack_layer`.
        """
        report = await self._run(
            JobKind.MEMBERS,
            source,
            directory_fd,
            what,
            ArchiveReport,
            self._archives,
            platform,
        )
        return [checked(image) for image in report.images]

    async def read_manifest(
        self,
        document_fd: int,
        directory_fd: int,
        platform: Platform,
        *,
        what: str,
        content_type: str,
    ) -> ManifestReport:
        """Parse a manifest, or choose an index's entry for `platform`, from a file at its start.

        `content_type` is what the registry sent it as. The child gets the directory, which is empty, as its root;
        ignore what it leaves there. Raises as `unpack_layer`.
        """
        return await self._run(
            JobKind.MANIFEST,
            document_fd,
            directory_fd,
            what,
            ManifestReport,
            self._documents,
            platform,
            content_type,
        )

    async def read_config(
        self, document_fd: int, directory_fd: int, platform: Platform, *, what: str
    ) -> ImageConfig:
        """Parse an image configuration for `platform`. Otherwise as `read_manifest`."""
        report = await self._run(
            JobKind.CONFIG,
            document_fd,
            directory_fd,
            what,
            ConfigReport,
            self._documents,
            platform,
        )
        return report.config

    async def close(self) -> None:
        """Stop the template process and with it every child. Idempotent."""
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
        slot: AbstractAsyncContextManager[object],
        platform: Platform = _ANY,
        content_type: str = "",
    ) -> R:
        async with slot:
            template = self._acquire()
            try:
                async with asyncio.timeout(self._timeout_s) as deadline:
                    if isinstance(source, Growing):
                        source = replace(source, sizes=self._counted_anew(source.sizes, deadline))
                    elif not isinstance(source, int):
                        source = self._counted_anew(source, deadline)
                    job = Job(
                        number=template.next_number(),
                        kind=kind,
                        limits=self._limits,
                        what=what[:_MAX_WHAT_CHARS],
                        platform=platform,
                        content_type=content_type[:_MAX_TYPE_CHARS],
                    )
                    async with _apart(directory_fd, what) as apart_fd:
                        with self._aside_when_slow(template, job):
                            result = await template.run(job, source, apart_fd, what)
            except TimeoutError:
                raise DeadlineError(
                    f"{what}: unpacking took longer than {self._timeout_s:g} s and was stopped"
                ) from None
            finally:
                self._release()
        if isinstance(result, Failure):
            raise _failure(result, what)
        if not isinstance(result, expected):
            raise CriShimError(f"{what}: the unpacker returned the report of another kind of job")
        return result

    @contextmanager
    def _aside_when_slow(self, template: UnpackerProcess, job: Job) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        timer = loop.call_later(self._slow_after_s, template.step_aside, job.number)
        try:
            yield
        finally:
            timer.cancel()

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
                # At once: what the source holds must not wait for the garbage collector.
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


@asynccontextmanager
async def _apart(directory_fd: int, what: str) -> AsyncIterator[int]:
    """The directory on a `nodev` clone of its mount; the directory itself before Linux 5.12, which lacks the call."""
    try:
        fd = without_devices(directory_fd)
    except OSError as error:
        if error.errno != errno.ENOSYS:
            raise UnavailableError(
                f"{what}: mounting its directory without devices: {error}"
            ) from error
        fd = os.dup(directory_fd)
    try:
        yield fd
    finally:
        # The clone goes with its descriptor, after an RCU grace period: for 10 to 40 ms beside a pull.
        await uninterrupted(os.close, fd)


def _failure(failure: Failure, what: str) -> CriShimError:
    # Cleaned and cut: the child has parsed hostile bytes and may be under their control.
    reason = "".join(c if c.isprintable() else " " for c in failure.reason[:2000])
    if failure.fault is Fault.INPUT:
        return BadArchiveError(reason if reason.startswith(what) else f"{what}: {reason}")
    if failure.fault is Fault.SPACE:
        return ResourceExhaustedError(f"{what}: {reason}; free some space and try again")
    return CriShimError(f"{what}: unpacking failed: {reason}")
