"""One port-forward: a client, and any number of connections into a pod.

Rules:
- Nothing that happens to one connection touches another. Only a reset says that it was reset; words go to the client
  when no connection could be made, since clients end the whole session at any word.
- A target that doesn't read is waited for, with its session, once too much is held for it: the protocols have no other
  way. One that takes nothing for half a minute meanwhile is given up, so that the others go on.
- Both halves of a connection end on their own. What is over holds no descriptor.
- A dial that has begun is seen to its end, and counts as one until then; one that has not is forgotten with its
  connection. So resets, however fast, leave nothing behind.
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
"""For all targets of a session together, by what it costs; beyond it the client isn't listened to."""
TARGET_STALL_S = 30.0
MAX_HALF_OPEN = 4096
"""Pairs of streams of which one is waited for; twice as many as the protocol allows at one time, so that looking for
those that were given up is rare."""
MAX_DIALS = 32
"""Under way at one time, for one session."""


class PortForwardSession(Session):
    """One port-forward, from the 101 to the hang-up: `run` it."""

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
        """`ports`: those that may be connected to; none: any."""
        super().__init__(connection, machine, limits, traffic, turns)
        self._forward = machine
        self._background = background
        self._ports = ports
        self._dialer: Dialer | None = None
        self._undialled: dict[Target, int] = {}
        """With their ports, in their order."""
        self._dials = 0
        """Under way."""
        self._targets: dict[int, Target] = {}
        self.stalled: dict[Target, None] = {}
        """Targets that have something to say while the client doesn't take what there is."""
        self.held = 0
        """What it costs to keep what the targets haven't taken, in bytes."""
        self._stall_timer: asyncio.TimerHandle | None = None
        self._half_open: dict[str, float] = {}
        """Until when the other stream is waited for, of connections of which only one is there; in that order."""
        self._half_open_timer: asyncio.TimerHandle | None = None

    async def run(self, leftover: Buffer, dialer: Dialer) -> None:
        """Serve it whole; `leftover` is what the client sent behind its request."""
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
    def is_full(self) -> bool:
        """Whether the client has still to take what it was sent."""
        return self._connection.unsent > 0

    # --- what the client says

    def data_received(self, data: bytes) -> None:
        """From the connection."""
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
            # The client gave such pairs up, which nothing tells.
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
                raise CriShimError(f"port {port} was not asked for; this session is for {allowed}")
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
        else:
            sock.close()

    def _has(self, target: Target) -> bool:
        return self._targets.get(target.id) is target

    def room(self, connection_id: int) -> int:
        """A target's: how much may be sent."""
        return self._forward.room(connection_id, CHUNK_BYTES)

    def send(self, connection_id: int, data: Buffer) -> None:
        """A target's: as much as there was room for."""
        self._traffic.sent(self._forward.send(connection_id, data))
        self._flush()

    def taken(self, connection_id: int, n_bytes: int) -> None:
        """A target's: it took so much."""
        self._forward.consumed(connection_id, n_bytes)
        self._flush()
        self._throttle()

    def target_ended(self, target: Target) -> None:
        """It has no more to say."""
        self._forward.end(target.id)
        self._settle()

    def target_over(self, target: Target) -> None:
        """Both halves are."""
        self._drop(target)
        self._forward.complete(target.id)
        self._settle()

    def target_reset(self, target: Target) -> None:
        """It is gone."""
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

    # --- who waits for whom

    def drained(self) -> None:
        """From the connection."""
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
        """Too much was held for a while: targets that took nothing of theirs meanwhile are the reason."""
        self._stall_timer = None
        since = self._loop.time() - TARGET_STALL_S
        for target in list(self._targets.values()):
            if target.held and target.last_taken_at <= since:
                log.info("a forwarded connection takes nothing: it is reset", held=target.held)
                self.target_reset(target)
        self._throttle()
