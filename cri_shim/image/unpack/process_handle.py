"""The daemon's handle of the unpacker's template process: it sends jobs with descriptors and receives wait statuses.

Rules:
- Streams are relayed with backpressure. A file is passed as a descriptor and not read here; of a growing file, only its
  size is relayed.
- However a job ends, its child is gone before `run` returns or raises.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING

import msgspec
import structlog

from cri_shim.background import end_of
from cri_shim.errors import UNREADABLE_DOCUMENT, BadArchiveError, CriShimError, UnavailableError
from cri_shim.host.own_program import spawn_own_program
from cri_shim.host.process import Child, Ending, Reaper
from cri_shim.image.unpack.growing_file import Growing, encode_size
from cri_shim.image.unpack.protocol import (
    MAX_PACKET_BYTES,
    MAX_RESULT_BYTES,
    Broken,
    Ended,
    Job,
    Kill,
    Notice,
    Ready,
    Request,
    Result,
    StepAside,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


log = structlog.get_logger()

_END_GRACE_S = 5.0
_CHUNK_BYTES = 256 << 10
_STDERR_BYTES = 16 << 10

_encode = msgspec.msgpack.Encoder().encode
_decode_notice = msgspec.msgpack.Decoder(Notice).decode
_decode_result = msgspec.msgpack.Decoder(Result).decode


class UnpackerProcess:
    """The template process and the jobs that run in it."""

    def __init__(self, reaper: Reaper) -> None:
        self._loop = asyncio.get_running_loop()
        self._next = 0
        self._jobs: dict[int, asyncio.Future[int]] = {}
        """Job number -> wait status of its child."""
        self._broken = ""
        # A memfd: the last output is wanted only if the process breaks, and until then nobody must read it.
        self._stderr = os.memfd_create("unpacker-stderr", os.MFD_CLOEXEC)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            ours.setblocking(False)
            self._connection = ours
            try:
                self._child: Child = spawn_own_program(
                    reaper,
                    "cri_shim.image.unpack.template_process",
                    theirs.fileno(),
                    stderr=self._stderr,
                    # Without this, the libarchive binding runs ldconfig and a compiler to find the library.
                    env={"LIBARCHIVE": "libarchive.so.13"},
                )
            except OSError as error:
                ours.close()
                os.close(self._stderr)
                raise UnavailableError(f"starting the layer unpacker: {error}") from error
        self._loop.add_reader(ours.fileno(), self._receive)

    @property
    def gone(self) -> bool:
        """Whether the process is gone and accepts no more jobs."""
        return self._connection.fileno() < 0

    def next_number(self) -> int:
        """A job number that this process has not used."""
        self._next += 1
        return self._next

    def step_aside(self, number: int) -> None:
        """Lower the CPU priority of that job's child from now on."""
        if number in self._jobs:
            self._try_send(StepAside(number=number))

    async def run(
        self,
        job: Job,
        source: AsyncIterator[bytes] | Growing | int,
        directory_fd: int,
        what: str,
    ) -> Result:
        """Run one job and return its result. The child is gone when this returns or raises."""
        number = job.number
        result_ours, result_theirs = socket.socketpair()
        with result_ours:
            result_ours.setblocking(False)
            # Our copy is closed once it is sent: the result then ends when the child closes its own, or dies.
            with result_theirs:
                ended = self._jobs[number] = self._loop.create_future()
                feeding: socket.socket | None = None
                try:
                    if isinstance(source, int):
                        self._send(job, (source, directory_fd, result_theirs.fileno()))
                    else:
                        growing = (source.fd,) if isinstance(source, Growing) else ()
                        feeding, theirs = socket.socketpair(
                            type=socket.SOCK_SEQPACKET if growing else socket.SOCK_STREAM
                        )
                        with theirs:
                            feeding.setblocking(False)
                            descriptors = (theirs.fileno(), directory_fd, result_theirs.fileno())
                            self._send(job, descriptors + growing)
                except BaseException:
                    del self._jobs[number]
                    if feeding is not None:
                        feeding.close()
                    raise
            try:
                if feeding is None or isinstance(source, int):
                    data = await self._collect(result_ours, what)
                else:
                    data = await self._feed_and_collect(source, feeding, result_ours, what)
            finally:
                if feeding is not None:
                    feeding.close()
                status = await self._see_the_end(number, ended)
        if not data:
            raise self._no_answer(status, what)
        try:
            answer: Result = _decode_result(data)
        except UNREADABLE_DOCUMENT as error:
            raise CriShimError(
                f"{what}: the unpacker's result can't be decoded: {error}"
            ) from error
        return answer

    async def _feed_and_collect(
        self,
        source: AsyncIterator[bytes] | Growing,
        feeding: socket.socket,
        result: socket.socket,
        what: str,
    ) -> bytes:
        """Feed and collect in parallel: a child that exits early must not wait for a source that has stalled."""
        try:
            async with asyncio.TaskGroup() as group:
                pieces = source.sizes if isinstance(source, Growing) else source
                feed = group.create_task(self._feed(pieces, feeding))
                data = await self._collect(result, what)
                feed.cancel()  # the result is here, so the rest of the input is not needed
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None
        return data

    async def _feed(
        self, source: AsyncIterator[bytes] | AsyncIterator[int], feeding: socket.socket
    ) -> None:
        try:
            async for piece in source:
                data = encode_size(piece) if isinstance(piece, int) else piece
                await self._loop.sock_sendall(feeding, data)
        except (BrokenPipeError, ConnectionResetError):
            pass  # the child has exited; its result says why
        finally:
            feeding.close()
            if isinstance(source, AsyncGenerator):
                # At once: what the source holds must not wait for the garbage collector.
                await source.aclose()

    async def _collect(self, result: socket.socket, what: str) -> bytes:
        data = bytearray()
        while chunk := await self._loop.sock_recv(result, _CHUNK_BYTES):
            data += chunk
            if len(data) > MAX_RESULT_BYTES:
                raise BadArchiveError(
                    f"{what}: the report on its content exceeds {MAX_RESULT_BYTES} bytes"
                )
        return bytes(data)

    async def _see_the_end(self, number: int, ended: asyncio.Future[int]) -> int | None:
        """Wait for the child's exit, and kill it if it still runs; None if the template exited first."""
        if not ended.done():
            # After a result the child exits by itself, and the signal changes nothing.
            self._try_send(Kill(number=number))
        cancelled = await end_of(ended, _END_GRACE_S)
        if not ended.done():
            log.warning("an unpacking child does not exit", job=number)
        self._jobs.pop(number, None)
        if cancelled is not None:
            raise cancelled
        return ended.result() if ended.done() and not ended.cancelled() else None

    def _no_answer(self, status: int | None, what: str) -> CriShimError:
        if self._broken:
            return UnavailableError(f"{what}: {self._broken}")
        if status is None:
            return UnavailableError(f"{what}: the unpacker process exited; try again")
        how = Ending(status).describe()
        return BadArchiveError(
            f"{what}: its unpacking child {how} without a report, as after exceeding its limits of memory or CPU time"
        )

    def _send(self, request: Request, descriptors: tuple[int, ...] = ()) -> None:
        try:
            socket.send_fds(self._connection, [_encode(request)], descriptors)
        except OSError as error:
            reason = self._broken or f"the unpacker process accepts no job: {error}"
            raise UnavailableError(reason) from error

    def _try_send(self, request: Request) -> None:
        try:
            self._send(request)
        except UnavailableError:
            pass  # the process is gone, and its children died with it

    def _receive(self) -> None:
        try:
            packet = self._connection.recv(MAX_PACKET_BYTES)
        except BlockingIOError:
            return
        except ConnectionResetError:
            packet = b""
        if not packet:
            self.hang_up()
            return
        notice = _decode_notice(packet)
        if isinstance(notice, Ended):
            ended = self._jobs.get(notice.number)
            if ended is not None and not ended.done():
                ended.set_result(notice.wait_status)
        elif isinstance(notice, Broken):
            self._broken = notice.reason
        elif isinstance(notice, Ready):
            log.debug("unpacker started", pid=self._child.pid, libarchive=notice.libarchive)

    def hang_up(self) -> None:
        """Close our end, at which the template and its children exit. Idempotent."""
        if self.gone:
            return
        self._loop.remove_reader(self._connection.fileno())
        self._connection.close()
        said = os.pread(self._stderr, _STDERR_BYTES, 0).decode("utf-8", "replace").strip()
        os.close(self._stderr)
        if said and not self._broken:
            log.error("the unpacker process crashed", pid=self._child.pid, said=said)
            self._broken = f"the unpacker process crashed: {said.splitlines()[-1]}"
        for ended in self._jobs.values():
            if not ended.done():
                ended.cancel()

    async def close(self) -> None:
        """Hang up, and wait until the process has exited."""
        self.hang_up()
        try:
            async with asyncio.timeout(_END_GRACE_S):
                await self._child.wait()
        except TimeoutError:
            self._child.kill()
            await self._child.wait()
