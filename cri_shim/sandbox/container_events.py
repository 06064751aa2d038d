"""Tells subscribers of the steps of pods and containers: CRI's container events, before they have a wire format.

Rules:
- The stores say which object has taken which step, whoever caused it. So no path of a pod's or container's life can
  forget an event, and those of one object are in the order of its steps.
- A subscriber gets every event from its subscription on, or an error: nothing is left out in silence.
- Each subscriber has a queue of its own, of at most `MAX_WAITING` events. One that lets it grow full loses what waits
  and its subscription. Nobody else notices: publishing never waits.
- An event names its object. The statuses that go with it are looked up when it is sent, so that a queue is small and
  a client never sees a status that is older than the event.
- Without subscribers a step costs one comparison.
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
"""Events in one queue, some 200 bytes each, so less than a megabyte: four steps of each of a node's 1000 containers."""


class EventType(StrEnum):
    """What happened, as CRI names it."""

    CREATED = "created"
    STARTED = "started"
    STOPPED = "stopped"
    DELETED = "deleted"


@dataclass(frozen=True, slots=True)
class ContainerEvent:
    """One step of a container, or of a sandbox: then both IDs are the same."""

    type: EventType
    object_id: str
    sandbox_id: str
    pod: PodMetadata | None
    """The sandbox's, which may be gone when the event is sent. None where its record was lost."""
    at_ns: int
    """Since the epoch."""


_EVENTS: Final[Mapping[tuple[State, State], tuple[EventType, ...]]] = {
    # A sandbox has no step between created and started. What fails half made is shown, ended, until it is removed.
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
    """The events that one subscriber has still to take."""

    def __init__(self) -> None:
        self._waiting: deque[ContainerEvent] = deque()
        self._news = asyncio.Event()
        self._error: CriShimError | None = None

    @property
    def waiting(self) -> int:
        """How many events have not been taken."""
        return len(self._waiting)

    async def next(self) -> ContainerEvent:
        """The oldest event that was not taken yet. Raises what ended the subscription, after the last event."""
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
                f"container events: {MAX_WAITING} wait for this client, which does not read them: "
                "subscribe again and list, and read faster"
            )
        self._waiting.append(event)
        self._news.set()

    def end(self, error: CriShimError, *, drop: bool = False) -> None:
        """Let `next` raise `error` once the queue is empty, which it is at once with `drop`."""
        self._error = error
        if drop:
            self._waiting.clear()
        self._news.set()


class ContainerEvents:
    """Publishes the events of all pods and containers."""

    def __init__(
        self, *, sandboxes: Store[Sandbox], containers: Store[Container], enabled: bool
    ) -> None:
        """Without `enabled` there are no subscriptions (`events.enabled`)."""
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
        """Those that are told of events, the oldest first."""
        return tuple(self._subscriptions)

    def open(self) -> None:
        """Take subscriptions from now on: the lists are complete."""
        self._opened.set()

    def close(self) -> None:
        """End every subscription, after the events so far, and take no more."""
        self._closed = True
        self._opened.set()
        for subscription in self._subscriptions:
            subscription.end(_stopping())
        self._subscriptions.clear()

    async def wait_until_open(self) -> None:
        """Return at once if subscriptions are taken; else wait for that, and raise NotReadyError.

        A kubelet tries five times without a pause, then never again: so it gets one answer for a whole recovery. The
        error makes it list again, since what it has listed before may lack pods. Raises UnsupportedError where events
        are off, UnavailableError when the daemon stops.
        """
        if not self.enabled:
            raise UnsupportedError(
                "GetContainerEvents: events.enabled is false in the configuration"
            )
        if not self._opened.is_set():
            await self._opened.wait()
            if not self._closed:
                raise NotReadyError(
                    "cri-shim has recovered the pods of its last run: list them, and subscribe again"
                )
        if self._closed:
            raise _stopping()

    @contextmanager
    def subscribed(self) -> Iterator[Subscription]:
        """A subscription to every event while the block runs."""
        subscription = Subscription()
        self._subscriptions.append(subscription)
        try:
            yield subscription
        finally:
            if subscription in self._subscriptions:
                self._subscriptions.remove(subscription)

    def sandbox(self, event: ContainerEvent) -> Sandbox | None:
        """The event's sandbox as it is now; None once it was removed."""
        return self._sandboxes.get(event.sandbox_id)

    def containers(self, event: ContainerEvent) -> list[Container]:
        """The containers of the event's sandbox as they are now, the oldest first."""
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
            # Its client relists when it sees the error; a list shows more than what would have been left out.
            self._subscriptions.remove(subscription)
            subscription.end(error, drop=True)
            metrics.CONTAINER_EVENT_OVERFLOWS.inc()
            log.warning("container events are not read, stream ended", waiting=MAX_WAITING)


def _types(before: State, after: State | None) -> tuple[EventType, ...]:
    """The events that a step is; none for what was never shown."""
    if after is None:
        return (EventType.DELETED,) if before != ContainerState.CREATING else ()
    return _EVENTS.get((before, after), ())


def _stopping() -> UnavailableError:
    return UnavailableError("cri-shim is stopping; subscribe again when it is up")
