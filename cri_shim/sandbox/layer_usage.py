"""Measures the disk usage of writable layers by walking them, the most expensive part of statistics.

A container decides what it writes, so a walk may take any time.

Rules:
- All callers share one walk of a layer. It runs in a thread; the number of walks at a time is bounded, with one per
  pod.
- A walk ends after `MAX_WALK_S`. The usage so far is used then, and a warning is logged.
- A result is kept for `cache_s` seconds, and at least ten times as long as the walk took. So a layer of millions of
  files uses a tenth of a processor at most.
- A caller waits `PATIENCE_S` for all walks together, and only for layers that are not known to take longer. Then it
  gets the last result, or None for a layer whose first walk has not ended.
"""

from __future__ import annotations

import asyncio
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog

from cri_shim.errors import DeadlineError
from cri_shim.slots import Share, Slots
from cri_shim.threads import in_thread

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from cri_shim.background import Background
    from cri_shim.host.tree import DiskUsage
    from cri_shim.sandbox.store.store import Container, Store

log = structlog.get_logger()
PATIENCE_S = 2.0
MAX_WALK_S = 60.0
AT_ONCE = 4
"""Walks in parallel. As many slow ones may run in addition."""
LONG_S = 0.5
"""Callers do not wait for a layer whose last walk took longer."""
_REST = 10
_BEGUN_IN_A_TURN = 16
"""So many walks begin in one turn of the loop: on a full node all of them would take ten milliseconds."""


@dataclass(frozen=True, slots=True)
class LayerUsage:
    """The usage of a layer, and the walk that measured it."""

    read_at_ns: int
    used_bytes: int
    inodes: int
    walk_s: float
    fresh_until: float


class LayerUsages:
    """Measures layers, and keeps the results."""

    def __init__(
        self,
        store: Store[Container],
        upper_dir: Callable[[str], Path],
        background: Background,
        *,
        cache_s: float,
        disk_usage: Callable[[Path, Callable[[], bool]], DiskUsage],
    ) -> None:
        """`disk_usage` measures a directory, as `Host.disk_usage` does."""
        self._store = store
        self._upper_dir = upper_dir
        self._background = background
        self._cache_s = cache_s
        self._disk_usage = disk_usage
        self._known: dict[str, LayerUsage] = {}
        self._walks: dict[str, tuple[float, asyncio.Task[None]]] = {}
        """Start time and task of the walks under way."""
        self._slots = Slots(AT_ONCE, slow_total=AT_ONCE)

    @property
    def remembered(self) -> frozenset[str]:
        """The containers of which a measurement is kept."""
        return frozenset(self._known)

    async def of(self, containers: Sequence[Container]) -> dict[str, LayerUsage | None]:
        """The usage of these containers' layers, after at most `PATIENCE_S`.

        It is None for a layer whose first walk has not ended. Containers that were removed are missing.
        """
        patient, begun = [], 0
        for container in containers:
            if not self._is_fresh(container.id):
                begun += container.id not in self._walks
                if begun == _BEGUN_IN_A_TURN:
                    begun = 0
                    await asyncio.sleep(0)
                since, walk = self._walks.get(container.id) or self._begin(container)
                if self._is_worth_waiting(container.id, since):
                    patient.append(walk)
        if patient:
            await asyncio.wait(patient, timeout=PATIENCE_S)
        if len(self._known) > len(self._store):
            self._prune()
        return {
            container.id: self._known.get(container.id)
            for container in containers
            if container.id in self._known or container.id in self._walks
        }

    def _is_fresh(self, container_id: str) -> bool:
        known = self._known.get(container_id)
        return known is not None and time.monotonic() <= known.fresh_until

    def _is_worth_waiting(self, container_id: str, since: float) -> bool:
        known = self._known.get(container_id)
        quick = known is None or known.walk_s < LONG_S
        return quick and time.monotonic() - since < PATIENCE_S

    def _prune(self) -> None:
        for container_id in [key for key in self._known if self._store.get(key) is None]:
            del self._known[container_id]

    def _begin(self, container: Container) -> tuple[float, asyncio.Task[None]]:
        name = f"measuring the writable layer of container {container.id}"
        walk = self._background.keep(name, self._measure(container, name))
        walk.add_done_callback(lambda _: self._walks.pop(container.id, None))
        begun = self._walks[container.id] = (time.monotonic(), walk)
        return begun

    async def _measure(self, container: Container, name: str) -> None:
        try:
            share = Share(f"pod {container.sandbox_id}", 1)
            async with self._slots.slot(name, share, tenant=container.record.tenant):
                self._known[container.id] = await self._measured(container.id)
        except (OSError, DeadlineError) as error:  # it was removed, or given up in favour of others
            if isinstance(error, OSError):
                self._known.pop(container.id, None)
            log.debug("no layer usage", container_id=container.id, error=str(error))

    async def _measured(self, container_id: str) -> LayerUsage:
        may_end, started = threading.Event(), time.monotonic()

        def goes_on() -> bool:
            return not may_end.is_set() and time.monotonic() - started < MAX_WALK_S

        def walk() -> DiskUsage:
            return self._disk_usage(self._upper_dir(container_id), goes_on)

        try:
            # A cancellation need not wait for the thread: the walk changes nothing, and `may_end` ends it.
            usage = await asyncio.shield(in_thread(walk))
        finally:
            may_end.set()
        now = time.monotonic()
        walk_s = now - started
        if walk_s >= MAX_WALK_S:
            log.warning(
                "the walk of a writable layer was ended: it has too many files",
                container_id=container_id,
                inodes=usage.inodes,
                seconds=MAX_WALK_S,
            )
        keep_s = self._cache_s if walk_s < LONG_S else max(self._cache_s, _REST * walk_s)
        return LayerUsage(time.time_ns(), usage.used_bytes, usage.inodes, walk_s, now + keep_s)
