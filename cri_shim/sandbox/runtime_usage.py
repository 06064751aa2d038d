"""Resource usage of containers in pods with their own kernels, from their runtimes: the node's cgroups do not have it.

Rules:
- Each query runs a process of the runtime that enters the sandbox. Their number is bounded, with one per pod at a time.
- An answer is kept for `cache_s` seconds. A caller waits at most `PATIENCE_S` for all containers together. Then it gets
  the last answers, however old, and None for containers without one.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import structlog

from cri_shim.errors import CriShimError
from cri_shim.host.cgroups.usage import CgroupStats
from cri_shim.sandbox.store.processes import own_kernel_runtime
from cri_shim.slots import Share, Slots

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cri_shim.background import Background
    from cri_shim.oci.runtime import Runtime, RuntimeStats
    from cri_shim.sandbox.store.store import Container, Store

log = structlog.get_logger()
PATIENCE_S = 2.0
AT_ONCE = 4
"""Queries in parallel. As many slow ones may run in addition."""


class RuntimeUsages:
    """Queries runtimes, and caches the answers."""

    def __init__(
        self,
        store: Store[Container],
        runtime_of: Callable[[str], Runtime],
        background: Background,
        *,
        cache_s: float,
    ) -> None:
        self._store = store
        self._runtime_of = runtime_of
        self._background = background
        self._cache_s = cache_s
        self._known: dict[str, tuple[float, CgroupStats]] = {}
        """The answers with their times on the monotonic clock, by container ID."""
        self._asking: dict[str, asyncio.Task[None]] = {}
        self._slots = Slots(AT_ONCE, slow_total=AT_ONCE)

    async def of(self, containers: Sequence[Container]) -> dict[str, CgroupStats | None]:
        """The usage of those of these containers whose pods have their own kernels, after at most `PATIENCE_S`."""
        chosen = [
            each
            for each in containers
            if own_kernel_runtime(self._runtime_of, each.record.handler) is not None
        ]
        waited_for = [self._ask(each) for each in chosen if not self._is_fresh(each.id)]
        if waited_for:
            await asyncio.wait(waited_for, timeout=PATIENCE_S)
        if len(self._known) > len(self._store):
            for container_id in [key for key in self._known if self._store.get(key) is None]:
                del self._known[container_id]
        return {each.id: self._latest(each.id) for each in chosen}

    def _latest(self, container_id: str) -> CgroupStats | None:
        known = self._known.get(container_id)
        return None if known is None else known[1]

    def _is_fresh(self, container_id: str) -> bool:
        known = self._known.get(container_id)
        return known is not None and time.monotonic() - known[0] < self._cache_s

    def _ask(self, container: Container) -> asyncio.Task[None]:
        asking = self._asking.get(container.id)
        if asking is None:
            name = f"reading the usage of container {container.id}"
            asking = self._background.keep(name, self._read(container, name))
            self._asking[container.id] = asking
            asking.add_done_callback(lambda _: self._asking.pop(container.id, None))
        return asking

    async def _read(self, container: Container, name: str) -> None:
        share = Share(f"pod {container.sandbox_id}", 1)
        try:
            async with self._slots.slot(name, share, tenant=container.record.tenant):
                runtime = self._runtime_of(container.record.handler)
                said = await runtime.stats(container.id)
        except CriShimError as error:  # it has ended, hangs, or `Slots` gave it up
            log.debug("no stats", container_id=container.id, error=str(error))
        else:
            self._known[container.id] = (time.monotonic(), as_cgroup_stats(said, time.time_ns()))


def as_cgroup_stats(said: RuntimeStats, read_at_ns: int) -> CgroupStats:
    """Convert the runtime's statistics. Values that it leaves out are 0 or None. Pure."""
    memory = said.memory
    usage, limit = memory.usage.usage, memory.usage.limit
    reclaimable = memory.raw.get("total_inactive_file", memory.raw.get("inactive_file", 0))
    working_set = max(usage - reclaimable, 0)
    limited = 0 < limit < 1 << 62
    return CgroupStats(
        read_at_ns=read_at_ns,
        cpu_usage_ns=said.cpu.usage.total,
        memory_usage_bytes=usage,
        working_set_bytes=working_set,
        rss_bytes=memory.raw.get("total_rss", memory.raw.get("anon")),
        page_faults=memory.raw.get("total_pgfault", memory.raw.get("pgfault")),
        major_page_faults=memory.raw.get("total_pgmajfault", memory.raw.get("pgmajfault")),
        memory_limit_bytes=limit if limited else None,
        memory_available_bytes=max(limit - working_set, 0) if limited else None,
        swap_usage_bytes=memory.swap.usage,
        pids_current=said.pids.current,
    )
