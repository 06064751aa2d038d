"""One port-forward session: a client, and any number of connections into a pod.

Rules:
- Nothing that happens to one connection affects another. A reset is passed on as a reset only. The client gets a text
  only if a connection could not be made, since kubectl ends the whole session at any text.
- If too much is held for targets that don't read, the client is not read either: the protocols leave no other way. A
  target that takes nothing for half a minute meanwhile is reset, so that the others can go on.
- The two directions of a connection end independently. A connection that is over holds no descriptor.
- A dial that has begun runs to its end and counts until then. One that has not begun is dropped with its connection. So
  resets, however fast, leave nothing behind.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

from cri_shim.errors import CriShimError
from cri_shim.streaming.connection import CHUNK_BYTES
from cri_shim.streaming.session import MAX_UNSENT_BYTES, Session
from cri_shim.streaming.target import Target
from cri_shim.streaming.wire.portforward import (
    Closed,
    ConnectionData,
    ConnectionEnd,
    ConnectionOpened,
    ConnectionReset,
    ConnectionWritable,
    PairBegun,
)

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Iterable

    from cri_shim.background import Background
    from cri_shim.streaming.backend import Dialer
    from cri_shim.streaming.connection import Connection
    from cri_shim.streaming.session import Limits, Traffic
    from cri_shim.streaming.turns import Turns
    from cri_shim.streaming.wire.buffers import Buffer
    from cri_shim.streaming.wire.portforward import PortForward, PortForwardEvent

log = structlog.get_logger()
MAX_HELD_BYTES = 384 << 10
"""For all targets of a session, by memory. Beyond it the client is not read."""
TARGET_STALL_S = 30.0
MAX_HALF_OPEN = 4096
"""Pairs that lack one stream: twice as many as the protocol allows at once, so that pruning abandoned ones is rare."""
MAX_DIALS = 32
"""Per session, at the same time."""


class PortForwardSession(Session):
    """One port-forward, from the 101 response to the end of the connection: call `run`."""

    def __init__(
        self,
        connection: Connection,
        machine: PortForward,
        limits: Limits,
        traffic: Traffic,
        turns: Turns,
        *,
        background: Background,
        ports: tuple[int, ...],
    ) -> None:
        """`ports` are those that may be dialled; empty for any."""
        super().__init__(connection, machine, limits, traffic, turns)
        self._forward = machine
        self._background = background
        self._ports = ports
        self._dialer: Dialer | None = None
        self._undialled: dict[Target, int] = {}
        """Targets that wait for their dial, with their ports, in order."""
        self._dials = 0
        """Dials under way."""
        self._targets: dict[int, Target] = {}
        self.stalled: dict[Target, None] = {}
        """Targets with output that wait for the client to take what it was sent."""
        self.held = 0
        """Bytes of memory of what the targets haven't taken."""
        self._stall_timer: asyncio.TimerHandle | None = None
        self._half_open: dict[str, float] = {}
        """Pairs that lack one stream, by request ID, with the time until which they are waited for; oldest first."""
        self._half_open_timer: asyncio.TimerHandle | None = None

    async def run(self, leftover: Buffer, dialer: Dialer) -> None:
        """Serve the session. `leftover` are bytes that the client sent after its request."""
        self._dialer = dialer
        try:
            self._handle(self._forward.start())
            self._handle(self._forward.receive_data(leftover))
            self._connection.start(self)
            self._throttle()
            await self._until_any()
            if self._stopped.done():
                log.debug("port-forward ends", reason=self._stopped.result())
            self._close_targets()
            self._forward.close()
            await self._say_the_end()
        finally:
            self._close_targets()
            dialer.close()
            self._release()

    @property
    def targets(self) -> int:
        """How many connections to the pod there are."""
        return len(self._targets)

    @property
    def half_open(self) -> frozenset[str]:
        """The connections whose other stream is waited for, by request ID."""
        return frozenset(self._half_open)

    @property
    def is_full(self) -> bool:
        """Whether sent bytes still wait for the client."""
        return self._connection.unsent > 0

    # --- from the client

    def data_received(self, data: bytes) -> None:
        """Called by the connection."""
        self._handle(self._forward.receive_data(data))
        self._throttle()

    def _handle(self, events: Iterable[PortForwardEvent]) -> None:
        for event in events:
            match event:
                case ConnectionData(connection_id, data):
                    self._traffic.received(len(data))
                    if (target := self._targets.get(connection_id)) is not None:
                        target.write(data)
                    else:
                        self._forward.consumed(connection_id, len(data))
                case ConnectionOpened(connection_id, port, request_id):
                    self._half_open.pop(request_id, None)
                    target = self._targets[connection_id] = Target(self, connection_id)
                    self._undialled[target] = port
                    self._dial_some()
                case ConnectionEnd(connection_id):
                    if (target := self._targets.get(connection_id)) is not None:
                        target.end()
                case ConnectionReset(connection_id):
                    if (target := self._targets.get(connection_id)) is not None:
                        self._drop(target)
                case ConnectionWritable(connection_id):
                    if (target := self._targets.get(connection_id)) is not None:
                        target.go_on()
                case PairBegun(request_id):
                    self._expect_other_half(request_id)
                case Closed(error):
                    self._client_gone(error)
        self._flush()

    def _expect_other_half(self, request_id: str) -> None:
        self._half_open.pop(request_id, None)
        if len(self._half_open) >= MAX_HALF_OPEN:
            # Drop pairs that the client gave up: no event reports these.
            for gone in self._half_open.keys() - self._forward.half_open:
                del self._half_open[gone]
        self._half_open[request_id] = self._loop.time() + self._limits.creation_timeout_s
        if self._half_open_timer is None:
            self._half_open_timer = self._loop.call_later(
                self._limits.creation_timeout_s, self._expire
            )

    def _expire(self) -> None:
        self._half_open_timer = None
        now = self._loop.time()
        for request_id, until in list(self._half_open.items()):
            if until > now:
                self._half_open_timer = self._loop.call_at(until, self._expire)
                break
            del self._half_open[request_id]
            self._forward.expire(request_id)
        self._flush()

    # --- targets

    def _dial_some(self) -> None:
        while self._undialled and self._dials < MAX_DIALS:
            target = next(iter(self._undialled))
            port = self._undialled.pop(target)
            self._dials += 1
            self._background.start(f"dial port {port}", self._dial(target, port))

    async def _dial(self, target: Target, port: int) -> None:
        try:
            await self._connect(target, port)
        finally:
            self._dials -= 1
            self._dial_some()

    async def _connect(self, target: Target, port: int) -> None:
        try:
            if self._ports and port not in self._ports:
                allowed = ", ".join(map(str, self._ports))
                raise CriShimError(f"port {port} was not requested; this session is for {allowed}")
            if self._dialer is None or not self._has(target):
                return
            sock = await self._dialer.connect(port)
        except CriShimError as error:
            if self._has(target):
                self._drop(target)
                self._forward.fail(target.id, str(error))
                self._settle()
            return
        if self._has(target):
            target.open(sock)
        else:  # the client reset the connection during the dial
            sock.close()

    def _has(self, target: Target) -> bool:
        return self._targets.get(target.id) is target

    def room(self, connection_id: int) -> int:
        """Called by a target: how many bytes may be sent."""
        return self._forward.room(connection_id, CHUNK_BYTES)

    def send(self, connection_id: int, data: Buffer) -> None:
        """Called by a target, with at most `room` bytes."""
        self._traffic.sent(self._forward.send(connection_id, data))
        self._flush()

    def taken(self, connection_id: int, n_bytes: int) -> None:
        """Called by a target that has taken bytes."""
        self._forward.consumed(connection_id, n_bytes)
        self._flush()
        self._throttle()

    def target_ended(self, target: Target) -> None:
        """Called by a target that reached the end of its output."""
        self._forward.end(target.id)
        self._settle()

    def target_over(self, target: Target) -> None:
        """Called by a target whose directions have both ended."""
        self._drop(target)
        self._forward.complete(target.id)
        self._settle()

    def target_reset(self, target: Target) -> None:
        """Called by a target whose connection broke, or when it is given up."""
        self._drop(target)
        self._forward.reset(target.id)
        self._settle()

    def _drop(self, target: Target) -> None:
        target.close()
        self._targets.pop(target.id, None)
        self._undialled.pop(target, None)
        self._throttle()

    def _settle(self) -> None:
        self._flush()
        if self._forward.is_finished:
            self.stop("all connections are over")

    def _close_targets(self) -> None:
        if self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None
        if self._half_open_timer is not None:
            self._half_open_timer.cancel()
            self._half_open_timer = None
        self._half_open.clear()
        self._undialled.clear()
        for target in self._targets.values():
            target.close()
        self._targets.clear()
        self.stalled.clear()

    # --- backpressure

    def drained(self) -> None:
        """Called by the connection when everything is sent."""
        stalled, self.stalled = self.stalled, {}
        for target in stalled:
            if self._has(target):
                target.resume()
        self._throttle()

    def _throttle(self) -> None:
        if self.held >= MAX_HELD_BYTES:
            if self._stall_timer is None:
                self._stall_timer = self._loop.call_later(TARGET_STALL_S, self._give_up_stalled)
        elif self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None
        unsent = self._connection.unsent
        self._listen(unless=self.held >= MAX_HELD_BYTES or unsent >= MAX_UNSENT_BYTES)

    def _give_up_stalled(self) -> None:
        """Reset the targets that took nothing while too much was held: they are what the session waits for."""
        self._stall_timer = None
        since = self._loop.time() - TARGET_STALL_S
        for target in list(self._targets.values()):
            if target.held and target.last_taken_at <= since:
                log.info("reset a forwarded connection that takes no data", held=target.held)
                self.target_reset(target)
        self._throttle()
