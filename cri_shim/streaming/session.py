"""What every streaming session has: a client, a machine of the wire, limits of time, and numbers for the metrics.

Rules:
- The client's bytes go to the machine, the machine's buffers to the client; nothing else touches the connection.
- Backpressure both ways: outputs wait while anything is unsent, the client waits while its input is not taken or
  while it doesn't take what it is sent.
- A client has its turns (`turns`): what it sent is read on only after everybody else had one.
- A session holds about a megabyte, whatever its client does or doesn't: of input that nobody took `MAX_INPUT_BYTES`, by
  what it costs; the chunk that was read last, 256 KiB; what it was sent and doesn't take, `MAX_UNSENT_BYTES` and one
  chunk of output; and early data of a port-forward, 64 KiB. What else grows with what clients do is counted for all of
  them (`server`): the streams of port-forwards.
- A session ends by itself, by its client, by silence for too long, or with the server; its client is told why.
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
"""Held of what a client sent and nobody took yet; the chunk in which it is exceeded comes on top."""
MAX_UNSENT_BYTES = 128 << 10
"""A client that takes no more than this of its own replies isn't listened to meanwhile."""
STALL_S = 30.0
"""How long a client may take nothing of what is left to send once the session is over."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Times, in seconds."""

    creation_timeout_s: float
    """For the client to make the streams of a session, or of a forwarded connection."""
    idle_timeout_s: float
    """Without a byte in either direction."""


class Traffic:
    """Counts one session and its bytes."""

    def __init__(self, meter: Meter, kind: str, protocol: str) -> None:
        self._meter = meter
        self._kind, self._protocol = kind, protocol
        self._loop = asyncio.get_running_loop()
        self.last_at = self._loop.time()
        """When there was any."""
        meter.begun(kind, protocol)

    def received(self, n_bytes: int) -> None:
        """Payload from the client."""
        self._meter.carried(self._kind, "in", n_bytes)
        self.last_at = self._loop.time()

    def sent(self, n_bytes: int) -> None:
        """Payload to the client."""
        self._meter.carried(self._kind, "out", n_bytes)
        self.last_at = self._loop.time()

    def over(self) -> None:
        """The session is."""
        self._meter.ended(self._kind, self._protocol)


class Machine(Protocol):
    """What the machines of all kinds have in common."""

    @property
    def is_finished(self) -> bool:
        """Whether nothing more is to be sent than what `data_to_send` has."""

    @property
    def has_more(self) -> bool:
        """Whether something that came was not looked at yet, and waits for another turn."""

    def data_to_send(self) -> list[Buffer]:
        """What to send next."""


class Session:
    """The part that doesn't depend on what is streamed; the kinds of session derive from it."""

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
        """The client is; with what was wrong."""
        self._stopped: asyncio.Future[str] = self._loop.create_future()
        """Somebody wants it to end; with the reason."""
        self._idle_timer = self._loop.call_later(limits.idle_timeout_s, self._look_for_silence)

    def stop(self, reason: str) -> None:
        """End it soon; the client is told the reason."""
        if not self._stopped.done():
            self._stopped.set_result(reason)

    # --- the connection's receiver

    def data_received(self, data: bytes) -> None:
        """From the client; with nothing new, go on with what came before."""
        raise NotImplementedError

    def connection_lost(self, error: str | None) -> None:
        """The client is gone without another word."""
        self._client_gone(error)

    # --- for the kinds

    def _client_gone(self, error: str | None) -> None:
        if not self._gone.done():
            self._gone.set_result(error)

    def _flush(self) -> None:
        self._connection.send(self._machine.data_to_send())

    def _listen(self, *, unless: bool) -> None:
        """Go on with what the client says, unless there is a reason not to."""
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
        """Wait for one of these, or for the client or the server to end the session; False after `timeout_s`."""
        done, _ = await asyncio.wait(
            (*futures, self._gone, self._stopped),
            timeout=timeout_s,
            return_when=asyncio.FIRST_COMPLETED,
        )
        return bool(done)

    async def _say_the_end(self) -> None:
        """Everything was said to the machine: have it sent, as far as the client takes it, and hang up."""
        self._idle_timer.cancel()
        self._flush()
        if not self._gone.done() and not self._machine.is_finished:
            # A client that counts hasn't room for the last words yet.
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
            self.stop(f"nothing was sent or received for {self._limits.idle_timeout_s:g} s")
        else:
            self._idle_timer = self._loop.call_later(left, self._look_for_silence)
