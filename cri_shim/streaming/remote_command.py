"""One exec or attach session: a client, and a process whose streams the session pumps.

Rules:
- The process starts once the client has opened all its streams. From then on only its output waits for the client, and
  nothing else in this process does.
- If the client vanishes, its descriptors are closed: the process gets end of file on stdin and EPIPE on output; a
  terminal hangs up. The process is not killed. Other runtimes behave so, and a process that cares can end itself.
- The session ends when the process has exited and its output is sent. A child of the process that goes on is not waited
  for.
- A terminal gets its client's size before the process starts, if the size arrives at once: programs query it first.
- With a terminal, an end of the input is ignored, since a terminal's input has no end.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

from cri_shim.errors import CriShimError
from cri_shim.streaming.pumps import Input, Output
from cri_shim.streaming.session import MAX_INPUT_BYTES, MAX_UNSENT_BYTES, STALL_S, Session
from cri_shim.streaming.wire.outcome import Exited, Failed
from cri_shim.streaming.wire.remotecommand import (
    Channel,
    Closed,
    Ready,
    Resized,
    StdinData,
    StdinEnd,
    Writable,
)

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Awaitable, Callable, Iterable

    from cri_shim.streaming.backend import Command
    from cri_shim.streaming.connection import Connection
    from cri_shim.streaming.session import Limits, Traffic
    from cri_shim.streaming.turns import Turns
    from cri_shim.streaming.wire.buffers import Buffer
    from cri_shim.streaming.wire.outcome import Outcome
    from cri_shim.streaming.wire.remotecommand import RemoteCommand, RemoteCommandEvent

    Start = Callable[[tuple[int, int] | None], Awaitable[Command]]
    """Starts or attaches to a process, given the size of the client's terminal if known."""

log = structlog.get_logger()
SIZE_PATIENCE_S = 0.2
"""How long a command waits for its terminal's size, which clients send right after they open the last stream."""


class _Source:
    """One output of the process, with the bytes for which the client's window has no room yet."""

    def __init__(self, session: RemoteCommandSession, channel: Channel, fd: int) -> None:
        self.channel = channel
        self._session = session
        self.output = Output(fd, self._take, self._end)
        self.held: Buffer = b""
        self._ended = False

    @property
    def over(self) -> bool:
        return self._ended and not self.held

    def go_on(self) -> None:
        """The client has room again."""
        if self.held:
            self.held = self.held[self._session.send(self.channel, self.held) :]
        if self.over:
            self._session.source_over(self.channel)

    def _take(self, data: bytes) -> None:
        taken = self._session.send(self.channel, data)
        if taken < len(data):
            self.held = memoryview(data)[taken:]
        self._session.throttle()

    def _end(self) -> None:
        self._ended = True
        if self.over:
            self._session.source_over(self.channel)


class RemoteCommandSession(Session):
    """One exec or attach, from the 101 response to the end of the connection: call `run`."""

    def __init__(
        self,
        connection: Connection,
        machine: RemoteCommand,
        limits: Limits,
        traffic: Traffic,
        turns: Turns,
        *,
        tty: bool,
    ) -> None:
        super().__init__(connection, machine, limits, traffic, turns)
        self._commands = machine
        self._tty = tty
        self._input = Input(self._input_taken)
        self._sources: dict[Channel, _Source] = {}
        self._size: tuple[int, int] | None = None
        self._sized: asyncio.Future[None] = self._loop.create_future()
        self._command: Command | None = None
        self._ready: asyncio.Future[None] = self._loop.create_future()
        self._all_sent: asyncio.Future[None] = self._loop.create_future()

    async def run(self, leftover: Buffer, start: Start) -> None:
        """Serve the session. `leftover` are bytes that the client sent after its request."""
        try:
            self._handle(self._commands.start())
            self._handle(self._commands.receive_data(leftover))
            self._connection.start(self)
            self.throttle()
            outcome = await self._follow(start)
            self._release_command()
            self._commands.finish(outcome)
            await self._say_the_end()
        finally:
            self._release_command()
            self._release()

    async def _follow(self, start: Start) -> Outcome:
        timeout_s = self._limits.creation_timeout_s
        if not await self._until_any(self._ready, timeout_s=timeout_s):
            missing = ", ".join(self._commands.missing)
            return Failed(f"the client did not open its streams within {timeout_s:g} s: {missing}")
        if not self._ready.done():
            return self._ended_early()
        if self._tty and not self._sized.done():
            await self._until_any(self._sized, timeout_s=SIZE_PATIENCE_S)
        try:
            self._open(await start(self._size))
        except CriShimError as error:
            return Failed(str(error))
        assert self._command is not None  # noqa: S101 - `_open` has set it
        ended = self._command.ended
        await self._until_any(ended)
        if not ended.done():
            return self._ended_early()
        try:
            outcome = Exited(ended.result())
        except CriShimError as error:
            return Failed(str(error))
        for source in list(self._sources.values()):
            source.output.expect_end()
        # Send the rest of the output as long as the client takes some of it every `STALL_S` seconds.
        before = -1
        while self._connection.sent_total > before and not self._all_sent.done():
            before = self._connection.sent_total
            await self._until_any(self._all_sent, timeout_s=STALL_S)
            if self._gone.done() or self._stopped.done():
                break
        return outcome

    def _ended_early(self) -> Outcome:
        if self._gone.done():
            log.debug("streaming client is gone", error=self._gone.result())
            return Failed("the client is gone")
        return Failed(self._stopped.result())

    def _open(self, command: Command) -> None:
        self._command = command
        if self._size is not None:
            command.resize(*self._size)
        self._input.open(command.stdin)
        for channel, fd in ((Channel.STDOUT, command.stdout), (Channel.STDERR, command.stderr)):
            if fd is not None:
                self._sources[channel] = _Source(self, channel, fd)
        if not self._sources:
            self._all_sent.set_result(None)
        self.throttle()

    def _release_command(self) -> None:
        self._input.close()
        for source in self._sources.values():
            source.output.close()
        if self._command is not None and not self._command.ended.done():
            self._command.ended.cancel()  # tells the backend that nobody waits for the exit any more

    # --- from the client

    def data_received(self, data: bytes) -> None:
        """Called by the connection."""
        self._handle(self._commands.receive_data(data))
        self.throttle()

    def _handle(self, events: Iterable[RemoteCommandEvent]) -> None:
        for event in events:
            match event:
                case StdinData(data):
                    self._traffic.received(len(data))
                    self._input.write(data)
                case StdinEnd():
                    if not self._tty:
                        self._input.end()
                case Resized(width, height):
                    self._size = width, height
                    if not self._sized.done():
                        self._sized.set_result(None)
                    if self._command is not None:
                        self._command.resize(width, height)
                case Ready():
                    self._ready.set_result(None)
                case Writable(channel):
                    if (source := self._sources.get(channel)) is not None:
                        source.go_on()
                case Closed(error):
                    self._client_gone(error)
        self._flush()

    # --- from the process

    def send(self, channel: Channel, data: Buffer) -> int:
        """Called by a source; returns how many bytes were taken."""
        taken = self._commands.send(channel, data)
        self._traffic.sent(taken)
        self._flush()
        return taken

    def source_over(self, channel: Channel) -> None:
        """Called by a source that has ended and whose bytes are all sent."""
        self._commands.end(channel)
        self._flush()
        if not self._all_sent.done() and all(s.over for s in self._sources.values()):
            self._all_sent.set_result(None)

    # --- backpressure

    def drained(self) -> None:
        """Called by the connection when everything is sent."""
        self.throttle()

    def _input_taken(self, n_bytes: int) -> None:
        self._commands.consumed(n_bytes)
        self._flush()
        self.throttle()

    def throttle(self) -> None:
        """Pause and resume the client and the outputs according to what waits."""
        unsent = self._connection.unsent
        self._listen(unless=self._input.cost >= MAX_INPUT_BYTES or unsent >= MAX_UNSENT_BYTES)
        for source in self._sources.values():
            if unsent or source.held:
                source.output.pause()
            else:
                source.output.resume()
