"""CPU rates of pods and containers from background samples, the same for all clients.

If each call computed the rate since the previous call, clients would affect each other's time spans.

Rules:
- Objects that clients ask for are sampled every `PERIOD_S`, in one pass in a thread. The rate is that between the last
  two samples. The first reading of a new object is its first sample, and the second follows after `FIRST_SPAN_S`.
- Sampling of an object stops if no client asks for it within `IDLE_S`, or its cgroup is gone. Without objects the task
  ends.
- For an object without a cgroup on this node, the readings of the calls are the samples.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cri_shim.background import uninterrupted

if TYPE_CHECKING:
    from collections.abc import Callable

    from cri_shim.background import Background

PERIOD_S = 5.0
FIRST_SPAN_S = 0.5
IDLE_S = 120.0
_SECOND_NS = 1_000_000_000
_SHORTEST_NS = 400_000_000
"""The shortest span of a rate, a little less than `FIRST_SPAN_S`."""
_REGULAR_NS = int(0.9 * PERIOD_S * _SECOND_NS)


@dataclass(frozen=True, slots=True)
class CpuReading:
    """The CPU time used so far, with the time of the reading since the epoch."""

    at_ns: int
    usage_ns: int


@dataclass(slots=True)
class _Followed:
    """An object's last sample, and the rate up to it."""

    cgroup_dir: str | None
    last: CpuReading
    asked_s: float
    rate: int | None = None


class CpuRates:
    """Samples the CPU time of the objects that clients ask for."""

    def __init__(self, cpu_usage_ns: Callable[[str], int | None], background: Background) -> None:
        """`cpu_usage_ns` reads the CPU time of a cgroup, or returns None if it is gone. It is called in a thread."""
        self._cpu_usage_ns = cpu_usage_ns
        self._background = background
        self._followed: dict[str, _Followed] = {}
        """By object ID. Threads change it as well, each time by a single, atomic operation of the dictionary."""
        self._newcomers = asyncio.Event()
        self._sampling: asyncio.Task[None] | None = None

    @property
    def followed(self) -> frozenset[str]:
        """The objects of which a sample is kept."""
        return frozenset(self._followed)

    def rate(self, object_id: str, reading: CpuReading, cgroup_dir: str | None) -> int | None:
        """CPU nanoseconds per second of the object, or None before the second sample. May be called in any thread.

        `reading` is the caller's reading. Samples are read from `cgroup_dir`; None if the object has no cgroup on this
        node. Call `asked` on the loop afterwards.
        """
        followed = self._followed.get(object_id)
        if followed is None or followed.cgroup_dir != cgroup_dir:
            self._followed[object_id] = _Followed(cgroup_dir, reading, time.monotonic())
            return None
        followed.asked_s = time.monotonic()
        if cgroup_dir is None:
            _take(followed, reading)
        return followed.rate

    def asked(self) -> None:
        """Start the sampling task if it does not run. New objects are sampled soon."""
        if self._followed and (self._sampling is None or self._sampling.done()):
            self._sampling = self._background.keep("sampling CPU time", self._sample())
        if any(each.rate is None for each in tuple(self._followed.values())):
            self._newcomers.set()

    async def _sample(self) -> None:
        while self._followed:
            try:
                async with asyncio.timeout(PERIOD_S):
                    await self._newcomers.wait()
            except TimeoutError:
                pass
            else:
                await asyncio.sleep(FIRST_SPAN_S)
            self._newcomers.clear()
            self._forget()
            await uninterrupted(self._take_all)

    def _forget(self) -> None:
        idle_since = time.monotonic() - IDLE_S
        for object_id, followed in tuple(self._followed.items()):
            if followed.asked_s < idle_since:
                self._followed.pop(object_id, None)

    def _take_all(self) -> None:
        now_ns = time.time_ns()
        for object_id, followed in tuple(self._followed.items()):
            if followed.cgroup_dir is None or not _is_due(followed, now_ns):
                continue
            usage_ns = self._cpu_usage_ns(followed.cgroup_dir)
            if usage_ns is None:
                self._followed.pop(object_id, None)
            else:
                _take(followed, CpuReading(time.time_ns(), usage_ns))


def _is_due(followed: _Followed, now_ns: int) -> bool:
    """Whether to sample again, which it also is after the clock was set back."""
    age_ns = now_ns - followed.last.at_ns
    return followed.rate is None or age_ns < 0 or age_ns >= _REGULAR_NS


def _take(followed: _Followed, reading: CpuReading) -> None:
    span_ns = reading.at_ns - followed.last.at_ns
    if 0 <= span_ns < _SHORTEST_NS:
        return
    used_ns = max(reading.usage_ns - followed.last.usage_ns, 0)
    followed.rate = used_ns * _SECOND_NS // span_ns if span_ns > 0 else None
    followed.last = reading
