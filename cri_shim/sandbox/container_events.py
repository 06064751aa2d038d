"""Publishes the container events of CRI to subscribers, independent of their wire format.

Rules:
- The stores report each state change, so that no code path can omit an event. The events of one object are in the order
  of its state changes.
- A subscriber gets every event since its subscription, or an error. No event is dropped silently.
- Each subscriber has its own queue of at most `MAX_WAITING` events. A subscriber whose queue is full loses the queue
  and its subscription. Publishing never waits, so other subscribers are not affected.
- An event names its object. The statuses are looked up when the event is sent: the queues stay small, and a client
  never sees a status older than the event.
- Without subscribers a state change costs one comparison.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final

import structlog

from cri_shim import metrics
from cri_shim.errors import (
    CriShimError,
    NotReadyError,
    ResourceExhaustedError,
    UnavailableError,
    UnsupportedError,
)
from cri_shim.sandbox.store.model import ContainerState, SandboxState
from cri_shim.sandbox.store.store import Sandbox

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from cri_shim.sandbox.store.model import PodMetadata
    from cri_shim.sandbox.store.store import Container, State, Store

log = structlog.get_logger()
MAX_WAITING: Final = 4096
"""Events in one queue, some 200 bytes each: less than a megabyte. Enough for four events of each of 1000 containers."""


class EventType(StrEnum):
    """The type of an event, with CRI's name."""

    CREATED = "created"
    STARTED = "started"
    STOPPED = "stopped"
    DELETED = "deleted"


@dataclass(frozen=True, slots=True)
class ContainerEvent:
    """An event of a container, or of a sandbox. Then both IDs are that of the sandbox."""

    type: EventType
    object_id: str
    sandbox_id: str
    pod: PodMetadata | None
    """The sandbox's metadata, since it may be removed when the event is sent. None if its record was lost."""
    at_ns: int
    """Nanoseconds since the epoch."""


_EVENTS: Final[Mapping[tuple[State, State], tuple[EventType, ...]]] = {
    # A sandbox has no state between created and started. A failed creation whose undo failed is shown as ended.
    (SandboxState.CREATING, SandboxState.READY): (EventType.CREATED, EventType.STARTED),
    (SandboxState.CREATING, SandboxState.NOT_READY): (EventType.CREATED, EventType.STOPPED),
    (SandboxState.READY, SandboxState.NOT_READY): (EventType.STOPPED,),
    (ContainerState.CREATING, ContainerState.CREATED): (EventType.CREATED,),
    (ContainerState.CREATING, ContainerState.EXITED): (EventType.CREATED, EventType.STOPPED),
    (ContainerState.CREATED, ContainerState.RUNNING): (EventType.STARTED,),
    (ContainerState.CREATED, ContainerState.EXITED): (EventType.STOPPED,),
    (ContainerState.RUNNING, ContainerState.EXITED): (EventType.STOPPED,),
}


class Subscription:
    """The queue of a subscriber."""

    def __init__(self) -> None:
        self._waiting: deque[ContainerEvent] = deque()
        self._news = asyncio.Event()
        self._error: CriShimError | None = None

    @property
    def waiting(self) -> int:
        """The number of events in the queue."""
        return len(self._waiting)

    async def next(self) -> ContainerEvent:
        """Wait for and return the oldest event. After the last event, raises the error that ended the subscription."""
        while not self._waiting:
            if self._error is not None:
                raise self._error
            self._news.clear()
            await self._news.wait()
        return self._waiting.popleft()

    def put(self, event: ContainerEvent) -> None:
        """Append an event. Raises ResourceExhaustedError if the queue is full."""
        if len(self._waiting) >= MAX_WAITING:
            raise ResourceExhaustedError(
                f"GetContainerEvents: {MAX_WAITING} events are waiting for this client, which reads too slowly: "
                "subscribe again, and list"
            )
        self._waiting.append(event)
        self._news.set()

    def end(self, error: CriShimError, *, drop: bool = False) -> None:
        """Make `next` raise `error` once the queue is empty. With `drop` the queue is emptied at once."""
        self._error = error
        if drop:
            self._waiting.clear()
        self._news.set()


class ContainerEvents:
    """Publishes the events of all pods and containers."""

    def __init__(
        self, *, sandboxes: Store[Sandbox], containers: Store[Container], enabled: bool
    ) -> None:
        """Without `enabled` (`events.enabled`) subscriptions are refused."""
        self._sandboxes = sandboxes
        self._containers = containers
        self.enabled = enabled
        self._subscriptions: list[Subscription] = []
        self._opened = asyncio.Event()
        self._closed = False
        sandboxes.stepped = self._on_step
        containers.stepped = self._on_step

    @property
    def subscriptions(self) -> tuple[Subscription, ...]:
        """The subscribers, the oldest first."""
        return tuple(self._subscriptions)

    def open(self) -> None:
        """Accept subscriptions from now on, since lists are complete."""
        self._opened.set()

    def close(self) -> None:
        """End all subscriptions after the events so far, and accept no more."""
        self._closed = True
        self._opened.set()
        for subscription in self._subscriptions:
            subscription.end(_stopping())
        self._subscriptions.clear()

    async def wait_until_open(self) -> None:
        """Return at once if subscriptions are accepted. Otherwise wait until they are, and raise NotReadyError.

        A kubelet tries five times without a pause, then never again, so it must not get an error for each try during
        recovery. The error makes it list again, since earlier lists may be incomplete. Raises UnsupportedError if
        events are disabled, UnavailableError if the daemon is stopping.
        """
        if not self.enabled:
            raise UnsupportedError(
                "GetContainerEvents: events.enabled is false in the configuration"
            )
        if not self._opened.is_set():
            await self._opened.wait()
            if not self._closed:
                raise NotReadyError(
                    "GetContainerEvents: recovery has just ended: list pods and containers, and subscribe again"
                )
        if self._closed:
            raise _stopping()

    @contextmanager
    def subscribed(self) -> Iterator[Subscription]:
        """A subscription to all events while the block runs."""
        subscription = Subscription()
        self._subscriptions.append(subscription)
        try:
            yield subscription
        finally:
            if subscription in self._subscriptions:
                self._subscriptions.remove(subscription)

    def sandbox(self, event: ContainerEvent) -> Sandbox | None:
        """The event's sandbox in its present state, or None if it was removed."""
        return self._sandboxes.get(event.sandbox_id)

    def containers(self, event: ContainerEvent) -> list[Container]:
        """The containers of the event's sandbox in their present state, the oldest first."""
        return [c for c in self._containers.of_sandbox(event.sandbox_id) if c.status.is_complete]

    def _on_step(self, item: Sandbox | Container, before: State, after: State | None) -> None:
        if not self._subscriptions:
            return
        for type_ in _types(before, after):
            event = ContainerEvent(
                type_, item.id, item.sandbox_id, self._pod_of(item), time.time_ns()
            )
            for subscription in list(self._subscriptions):
                self._put(subscription, event)

    def _pod_of(self, item: Sandbox | Container) -> PodMetadata | None:
        sandbox = item if isinstance(item, Sandbox) else self._sandboxes.get(item.sandbox_id)
        return sandbox.record.metadata if sandbox is not None else None

    def _put(self, subscription: Subscription, event: ContainerEvent) -> None:
        try:
            subscription.put(event)
        except ResourceExhaustedError as error:
            # The client lists when it gets the error, and so sees the effect of all dropped events.
            self._subscriptions.remove(subscription)
            subscription.end(error, drop=True)
            metrics.CONTAINER_EVENT_OVERFLOWS.inc()
            log.warning(
                "a client reads container events too slowly; its stream is ended",
                waiting=MAX_WAITING,
            )


def _types(before: State, after: State | None) -> tuple[EventType, ...]:
    """The events of a state change. None for objects that were never listed."""
    if after is None:
        return (EventType.DELETED,) if before != ContainerState.CREATING else ()
    return _EVENTS.get((before, after), ())


def _stopping() -> UnavailableError:
    return UnavailableError("GetContainerEvents: cri-shim is stopping: subscribe again later")
