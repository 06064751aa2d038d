"""The common part of streaming sessions: a client, a protocol machine, time limits, and traffic counters.

Rules:
- The client's bytes go to the machine, and the machine's buffers to the client. Nothing else uses the connection.
- Backpressure works both ways. Outputs wait while anything is unsent. The client is not read while its input is not
  taken, or while it doesn't take what it is sent.
- The bytes of one client are parsed in turns (`turns`): the rest of a chunk waits until everybody else had a turn.
- A session's buffers are bounded to about a megabyte: `MAX_INPUT_BYTES` of input that nobody took, by memory, and the
  last chunk read, 256 KiB; of output `MAX_UNSENT_BYTES` and one chunk, 256 KiB; 64 KiB of early data of a port-forward.
  Objects that grow with a client's requests, the streams of port-forwards, are counted for all sessions (`server`).
- A session ends by itself, by its client, by an idle timeout, or with the server. Its client gets the reason.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from cri_shim.background import settled

if TYPE_CHECKING:
    from cri_shim.streaming.connection import Connection
    from cri_shim.streaming.meter import Meter
    from cri_shim.streaming.turns import Turns
    from cri_shim.streaming.wire.buffers import Buffer

MAX_INPUT_BYTES = 256 << 10
"""Input that a client sent and nobody took yet, by memory. The chunk that exceeds it comes on top."""
MAX_UNSENT_BYTES = 128 << 10
"""A client that leaves more than this of its replies unread is not read meanwhile."""
STALL_S = 30.0
"""How long a client may take nothing of the remaining output once the session is over."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Time limits, in seconds."""

    creation_timeout_s: float
    """For the client to open the streams of a session, or of a forwarded connection."""
    idle_timeout_s: float
    """Without payload in either direction."""


class Traffic:
    """Counts one session and its payload."""

    def __init__(self, meter: Meter, kind: str, protocol: str) -> None:
        self._meter = meter
        self._kind, self._protocol = kind, protocol
        self._loop = asyncio.get_running_loop()
        self.last_at = self._loop.time()
        """Loop time of the last payload."""
        meter.begun(kind, protocol)

    def received(self, n_bytes: int) -> None:
        """Count payload from the client."""
        self._meter.carried(self._kind, "in", n_bytes)
        self.last_at = self._loop.time()

    def sent(self, n_bytes: int) -> None:
        """Count payload to the client."""
        self._meter.carried(self._kind, "out", n_bytes)
        self.last_at = self._loop.time()

    def over(self) -> None:
        """Count the end of the session."""
        self._meter.ended(self._kind, self._protocol)


class Machine(Protocol):
    """The common part of the protocol machines."""

    @property
    def is_finished(self) -> bool:
        """Whether `data_to_send` returns the last bytes of the session."""

    @property
    def has_more(self) -> bool:
        """Whether something that came was not looked at yet, and waits for another turn."""

    def data_to_send(self) -> list[Buffer]:
        """The bytes to send next."""


class Session:
    """The part that doesn't depend on what is streamed. Each kind of session derives from it."""

    def __init__(
        self,
        connection: Connection,
        machine: Machine,
        limits: Limits,
        traffic: Traffic,
        turns: Turns,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._connection = connection
        self._machine = machine
        self._limits = limits
        self._traffic = traffic
        self._turns = turns
        self._waits_for_turn = self._released = False
        self._gone: asyncio.Future[str | None] = self._loop.create_future()
        """Set when the client is gone; the result is the reason, if something was wrong."""
        self._stopped: asyncio.Future[str] = self._loop.create_future()
        """Set when the session has to end; the result is the reason."""
        self._idle_timer = self._loop.call_later(limits.idle_timeout_s, self._look_for_silence)

    @property
    def unsent(self) -> int:
        """Bytes that wait for the client to take what came before them."""
        return self._connection.unsent

    def stop(self, reason: str) -> None:
        """End it soon; the client is told the reason."""
        if not self._stopped.done():
            self._stopped.set_result(reason)

    # --- the connection's receiver

    def data_received(self, data: bytes) -> None:
        """Process bytes from the client; with none, go on with those left from the last turn."""
        raise NotImplementedError

    def connection_lost(self, error: str | None) -> None:
        """The connection has ended."""
        self._client_gone(error)

    # --- for the derived classes

    def _client_gone(self, error: str | None) -> None:
        if not self._gone.done():
            self._gone.set_result(error)

    def _flush(self) -> None:
        self._connection.send(self._machine.data_to_send())

    def _listen(self, *, unless: bool) -> None:
        """Read and parse the client's bytes, unless there is a reason not to."""
        if not unless and not self._machine.has_more:
            self._connection.resume_reading()
            return
        self._connection.pause_reading()
        if not unless and not self._waits_for_turn:
            self._waits_for_turn = True
            self._turns.later(self._go_on)

    def _go_on(self) -> None:
        self._waits_for_turn = False
        if not self._released:
            self.data_received(b"")

    async def _until_any(
        self, *futures: asyncio.Future[Any], timeout_s: float | None = None
    ) -> bool:
        """Wait for one of these, or for the end of the session; False after `timeout_s`."""
        done, _ = await asyncio.wait(
            (*futures, self._gone, self._stopped),
            timeout=timeout_s,
            return_when=asyncio.FIRST_COMPLETED,
        )
        return bool(done)

    async def _say_the_end(self) -> None:
        """Send the machine's last bytes, as far as the client takes them, and hang up."""
        self._idle_timer.cancel()
        self._flush()
        if not self._gone.done() and not self._machine.is_finished:
            # The client's window has no room for the last bytes: wait for it to open, or for the client to go.
            await settled(self._gone, STALL_S)
        await self._connection.finish(STALL_S)

    def _release(self) -> None:
        self._released = True
        self._idle_timer.cancel()
        self._connection.close()
        self._traffic.over()

    def _look_for_silence(self) -> None:
        left = self._traffic.last_at + self._limits.idle_timeout_s - self._loop.time()
        if left <= 0:
            self.stop(f"no data was sent or received for {self._limits.idle_timeout_s:g} s")
        else:
            self._idle_timer = self._loop.call_later(left, self._look_for_silence)
