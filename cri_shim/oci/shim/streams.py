"""The daemon's side of the process that holds the streams of shims' containers (`streams_process`).

Rules:
- There is one for the node. Whichever daemon comes finds it by its socket; one that is dead, or does not answer within
  `ANSWER_S`, is replaced, and the new one is told everything that is to be held.
- It is left, and ends, when nothing is to be held any more.
- The socket is bound here and inherited: it can be connected to before the process has begun to work.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import structlog

import cri_shim
from cri_shim.errors import UNREADABLE_DOCUMENT, CriShimError, DeadlineError, host_step
from cri_shim.host.files import write_atomic
from cri_shim.host.pidfd import kill_process, start_time_ticks

if TYPE_CHECKING:
    from collections.abc import Callable

    from cri_shim.background import Background
    from cri_shim.host.process import Reaper

log = structlog.get_logger()
ANSWER_S = 10.0
FINISH_ANSWER_S = 8.0
ATTEMPTS = 3
HELD_AGAIN_S = 0.5
MAX_PACKET_BYTES = 64 << 10


class Hold(msgspec.Struct, frozen=True):
    """A container whose streams are to be held."""

    id: str
    dir: str
    """Where its FIFOs are, or are made: its bundle."""
    log: str | None
    terminal: bool
    stdin: bool
    stdin_once: bool


class _Said(msgspec.Struct, frozen=True):
    call: int = 0
    failed: str = ""
    left: int = 0
    """How many containers' streams are held after this answer."""
    event: str = ""
    id: str = ""
    pid: int = 0
    width: int = 0
    height: int = 0


class StreamsHolder:
    """Starts, finds and asks the process."""

    def __init__(self, reaper: Reaper, background: Background, socket_path: Path) -> None:
        self._reaper = reaper
        self._background = background
        self._socket_path = socket_path
        self._pid_file = socket_path.with_suffix(".json")
        self._connection: socket.socket | None = None
        self._pid = 0
        self._held: dict[str, Hold] = {}
        self._expected: set[str] = set()
        self._calls: dict[int, asyncio.Future[_Said]] = {}
        self._numbers = itertools.count(1)
        self._connecting = asyncio.Lock()
        self._restoring: asyncio.Task[None] | None = None
        self.on_size: Callable[[str, int, int], None] = lambda _id, _width, _height: None
        """Called when somebody gives a held container's terminal a size."""
        self.on_input_end: Callable[[str], None] = lambda _id: None
        """Called when a held container's standard input is over."""

    @property
    def held(self) -> tuple[str, ...]:
        """The containers whose streams the process is to hold."""
        return tuple(self._held)

    @property
    def pid(self) -> int:
        """The process, as it says; 0 while there is none."""
        return self._pid

    def expect(self, pod_id: str) -> None:
        """Have the process ready for containers of this pod, soon, and until the pod is finished."""
        self._expected.add(pod_id)
        if self._connection is None:
            self._background.start("ready to hold streams", self._make_ready())

    async def _make_ready(self) -> None:
        try:
            await self._connected()
        except CriShimError as error:  # who holds something is told
            log.warning("no process holds streams", error=str(error))

    async def hold(self, request: Hold) -> None:
        """Have a container's streams held from now on; once more changes nothing. Raises CriShimError."""
        self._held[request.id] = request
        try:
            said = await self._ask({"do": "hold", **msgspec.to_builtins(request)}, ANSWER_S)
        except BaseException:
            self._held.pop(request.id, None)
            raise
        if said.failed:
            self._held.pop(request.id, None)
            raise CriShimError(f"container {request.id}: its streams can't be held: {said.failed}")

    async def finish(self, container_id: str, *, at_once: bool = False) -> None:
        """Return when the rest of an ended container's output is in its log and its clients have it.

        `at_once`: what is still to come is not waited for. Raises CriShimError where that can't be had.
        """
        self._held.pop(container_id, None)
        self._expected.discard(container_id)
        if self._connection is None and not self._socket_path.exists():
            return
        said = await self._finish(container_id, at_once=at_once)
        if not (said.left or self._held or self._expected or self._calls):
            # It ends when nobody is connected; who connects meanwhile starts another one. It may hold what a former
            # daemon has told it, of which this one does not know yet.
            self._disconnect()
            self._socket_path.unlink(missing_ok=True)
            self._pid_file.unlink(missing_ok=True)

    async def _finish(self, container_id: str, *, at_once: bool) -> _Said:
        return await self._ask(
            {"do": "drop" if at_once else "finish", "id": container_id}, FINISH_ANSWER_S
        )

    def close(self) -> None:
        """Leave the process alone, which goes on."""
        if self._restoring is not None:
            self._restoring.cancel()
        self._held.clear()
        self._expected.clear()
        self._disconnect()

    # --- the connection

    async def _ask(self, request: dict[str, Any], timeout_s: float) -> _Said:
        for _ in range(ATTEMPTS):
            connection = await self._connected()
            call = next(self._numbers)
            answer: asyncio.Future[_Said] = asyncio.get_running_loop().create_future()
            self._calls[call] = answer
            try:
                connection.send(msgspec.json.encode({**request, "call": call}))
                async with asyncio.timeout(timeout_s):
                    return await answer
            except (TimeoutError, BlockingIOError):
                if request["do"] != "hold":  # that container's log may hang, and no other's
                    break
                self._replace()
            except OSError:
                self._lost()
            finally:
                self._calls.pop(call, None)
        raise DeadlineError(
            f"container {request['id']}: the process that holds its streams does not answer"
        )

    async def _connected(self) -> socket.socket:
        async with self._connecting:
            if self._connection is not None:
                return self._connection
            with host_step("starting the process that holds containers' streams"):
                connection = self._connect() or self._start()
            self._connection = connection
            asyncio.get_running_loop().add_reader(connection, self._receive, connection)
            return connection

    def _connect(self) -> socket.socket | None:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        connection.setblocking(False)
        try:
            connection.connect(str(self._socket_path))
        except OSError:
            connection.close()
            return None
        return connection

    def _start(self) -> socket.socket:
        with contextlib.suppress(FileNotFoundError):
            self._socket_path.unlink()
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listening:
            listening.bind(str(self._socket_path))
            listening.listen(16)
            child = self._reaper.spawn(
                # -P and -s: no imports from the working directory or a user's site-packages.
                [
                    *(sys.executable, "-P", "-s", "-m"),
                    *("cri_shim.oci.shim.streams_process", str(listening.fileno())),
                ],
                env={
                    "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
                    "PYTHONPATH": str(Path(cri_shim.__file__).parent.parent),
                    "LC_ALL": "C",
                    "MALLOC_ARENA_MAX": "2",
                },
                cwd="/",
                pass_fds=(listening.fileno(),),
            )
        self._reaper.let_go(child)
        process = [child.pid, start_time_ticks(child.pid)]
        write_atomic(self._pid_file, msgspec.json.encode(process))
        connection = self._connect()
        if connection is None:
            raise CriShimError("the process that holds containers' streams ended at once")
        return connection

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        self._pid = 0
        if connection is not None:
            asyncio.get_running_loop().remove_reader(connection)
            connection.close()
        for answer in self._calls.values():
            if not answer.done():
                answer.set_exception(ConnectionResetError())

    def _replace(self) -> None:
        log.warning("the process that holds streams hangs and is replaced", pid=self._pid)
        with contextlib.suppress(OSError, *UNREADABLE_DOCUMENT):
            pid, ticks = msgspec.json.decode(self._pid_file.read_bytes(), type=tuple[int, int])
            kill_process(pid, ticks)
        with contextlib.suppress(FileNotFoundError):
            self._socket_path.unlink()
        self._lost()

    def _lost(self) -> None:
        self._disconnect()
        if self._held and (self._restoring is None or self._restoring.done()):
            self._restoring = self._background.keep("hold streams anew", self._restore())

    async def _restore(self) -> None:
        log.warning("streams are held anew", containers=len(self._held))
        for request in tuple(self._held.values()):
            if request.id in self._held:
                await self._hold_again(request.id)

    async def _hold_later(self, container_id: str) -> None:
        await asyncio.sleep(HELD_AGAIN_S)
        await self._hold_again(container_id)

    async def _hold_again(self, container_id: str) -> None:
        if (request := self._held.get(container_id)) is not None:
            try:
                await self.hold(request)
            except CriShimError as error:
                log.warning("streams not held", container_id=container_id, error=str(error))

    def _receive(self, connection: socket.socket) -> None:
        try:
            packet = connection.recv(MAX_PACKET_BYTES)
        except BlockingIOError:
            return
        except OSError:
            packet = b""
        if not packet:
            if connection is self._connection:
                self._lost()
            return
        try:
            said = msgspec.json.decode(packet, type=_Said)
        except UNREADABLE_DOCUMENT:
            return
        if said.event == "hello":
            self._pid = said.pid
        elif said.event == "size":
            self.on_size(said.id, said.width, said.height)
        elif said.event == "lost":
            self._background.start("hold streams anew", self._hold_later(said.id))
        elif said.event == "input ended":
            self.on_input_end(said.id)
        elif (answer := self._calls.get(said.call)) is not None and not answer.done():
            answer.set_result(said)
