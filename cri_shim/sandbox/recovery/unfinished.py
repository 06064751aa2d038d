"""Runs recovery work that may hang, and bounds how long the server's readiness waits for it.

Rules:
- Several objects are worked on in parallel, each in its own task. A task that stays at one step longer than
  `PATIENCE_S` returns its slot and continues, so it blocks neither other objects nor the server. Progress of steps is
  what distinguishes a hanging object from a busy node.
- No task is cancelled. Every step that could hang for ever has its own deadline.
- The outcome of each object is logged and counted once.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING

import structlog

from cri_shim import metrics

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from cri_shim.background import Background
    from cri_shim.operations import Operations

log = structlog.get_logger()
AT_ONCE = 8
"""Objects in parallel. Most of their time is spent waiting for a runtime."""
PATIENCE_S = 2.0
"""Limit for one step of one object. The whole undo of a pod usually takes a tenth of it."""
ALL_PATIENCE_S = 10.0
"""Limit for all objects together, if many hang."""


class Unfinished:
    """Recovery work on objects. On the loop's thread only."""

    def __init__(self, background: Background, operations: Operations) -> None:
        self._background = background
        self._operations = operations
        self._slots = asyncio.Semaphore(AT_ONCE)
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._passed_on: set[str] = set()
        """Objects whose task continues without a slot."""
        self._waited_for: set[str] = set()
        self._overdue: dict[str, Callable[[str], None]] = {}
        self._settled = asyncio.Event()
        self._settled.set()
        self.outcomes: Counter[str] = Counter()

    def add(
        self,
        kind: str,
        object_id: str,
        work: Callable[[], Coroutine[object, object, str]],
        *,
        overdue: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Start `work`, which returns the outcome, as soon as a slot is free.

        `overdue` is called once, with the current step, if the server stops waiting for the object.
        """
        self._waited_for.add(object_id)
        self._overdue[object_id] = overdue
        self._settled.clear()
        self._background.start(f"recovery of {object_id}", self._take(kind, object_id, work))

    async def settled(self) -> int:
        """Wait until each object is done or given up. Returns the number of objects that are not done."""
        try:
            async with asyncio.timeout(ALL_PATIENCE_S):
                await self._settled.wait()
        except TimeoutError:
            for object_id in list(self._waited_for):
                self._give_up(object_id)
        return len(self._overdue)

    async def _take(
        self, kind: str, object_id: str, work: Callable[[], Coroutine[object, object, str]]
    ) -> None:
        await self._slots.acquire()
        self._look_later(object_id, PATIENCE_S)
        try:
            with self._operations.begin("recovery", object_id):
                outcome = await work()
        except Exception as error:  # noqa: BLE001 - one broken object must not stop the rest
            self.failed(kind, object_id, error)
        else:
            self.count(kind, object_id, outcome)
        finally:
            self._timers.pop(object_id).cancel()
            if object_id in self._passed_on:
                self._passed_on.remove(object_id)
            else:
                self._slots.release()
            self._overdue.pop(object_id, None)
            self._wait_no_more(object_id)

    def _look_later(self, object_id: str, after_s: float) -> None:
        loop = asyncio.get_running_loop()
        self._timers[object_id] = loop.call_later(after_s, self._look, object_id)

    def _look(self, object_id: str) -> None:
        standing_s = self._operations.standing_s(object_id)
        if standing_s < PATIENCE_S:
            self._look_later(object_id, PATIENCE_S - standing_s)
            return
        self._passed_on.add(object_id)
        self._slots.release()
        self._give_up(object_id)

    def _give_up(self, object_id: str) -> None:
        if object_id not in self._waited_for:
            return
        doing = self._operations.doing(object_id) or "waiting for others"
        log.warning(
            "recovery of an object takes long; it continues in the background",
            id=object_id,
            doing=doing,
        )
        self._overdue[object_id](f"still being recovered: {doing}")
        self._wait_no_more(object_id)

    def _wait_no_more(self, object_id: str) -> None:
        self._waited_for.discard(object_id)
        if not self._waited_for:
            self._settled.set()

    def failed(self, kind: str, object_id: str, error: Exception) -> None:
        """Log and count an object that could not be recovered."""
        log.error("cannot recover object", kind=kind, id=object_id, error=str(error) or repr(error))
        self._count(kind, "failed")

    def count(self, kind: str, object_id: str, outcome: str) -> None:
        """Log and count the outcome of an object."""
        level = log.debug if outcome in ("running", "kept") else log.info
        level("recovered object", kind=kind, id=object_id, outcome=outcome)
        self._count(kind, outcome)

    def _count(self, kind: str, outcome: str) -> None:
        self.outcomes[f"{kind} {outcome}"] += 1
        metrics.RECOVERED_OBJECTS.labels(kind=kind, outcome=outcome).inc()
