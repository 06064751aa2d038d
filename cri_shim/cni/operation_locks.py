"""The order of plugin calls: one operation per container at a time, garbage collection exclusively on its network.

Rules:
- Operations on different containers run in parallel, on whatever networks.
- A collection begins when no operation runs on its network, and blocks those that come meanwhile. It never makes an
  operation wait before it begins: if operations follow each other without a gap, the collection gives up, not they.

CNI spec 1.1 §3 "Lifecycle & Ordering".
"""

from __future__ import annotations

import asyncio
import contextlib
import weakref
from collections import Counter
from typing import TYPE_CHECKING

from cri_shim.operations import step

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class OperationLocks:
    """Orders operations. Use it on the event loop's thread."""

    def __init__(self) -> None:
        # Weak: a lock goes when nobody holds it or waits for it any more.
        self._containers: weakref.WeakValueDictionary[str, asyncio.Lock] = (
            weakref.WeakValueDictionary()
        )
        self._running: Counter[str] = Counter()
        self._quiet: dict[str, asyncio.Event] = {}
        self._collected: dict[str, asyncio.Event] = {}

    @contextlib.asynccontextmanager
    async def operation(self, container_id: str, network: str) -> AsyncIterator[None]:
        """Hold the turn of one operation on one attachment."""
        lock = self._containers.get(container_id)
        if lock is None:
            lock = self._containers[container_id] = asyncio.Lock()
        with step("waiting for another cni operation"):
            await lock.acquire()
        try:
            while (collected := self._collected.get(network)) is not None:
                with step("waiting for cni GC"):
                    await collected.wait()
            self._running[network] += 1
            try:
                yield
            finally:
                self._running[network] -= 1
                if not self._running[network]:
                    del self._running[network]
                    if (quiet := self._quiet.get(network)) is not None:
                        quiet.set()
        finally:
            lock.release()

    @contextlib.asynccontextmanager
    async def collection(self, network: str, *, patience_s: float) -> AsyncIterator[None]:
        """Hold the turn of a network's collection. Raises TimeoutError if operations leave no gap for `patience_s`."""
        async with asyncio.timeout(patience_s):
            while self._running[network] or network in self._collected:
                if (collected := self._collected.get(network)) is not None:
                    await collected.wait()
                    continue
                quiet = self._quiet.setdefault(network, asyncio.Event())
                # The loop checks again after the wait: another operation may have begun before this task runs.
                quiet.clear()
                await quiet.wait()
        self._quiet.pop(network, None)
        collected = self._collected[network] = asyncio.Event()
        try:
            yield
        finally:
            del self._collected[network]
            collected.set()
