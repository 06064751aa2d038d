"""CPU rates of pods and containers, the same for all who ask, from samples taken in the background.

Readers that each compared with the last reading, whosever it was, would give one another rates over arbitrary spans.
Rules:
- What is asked for is sampled every `PERIOD_S`, in one pass in a thread; the rate is that between the last two samples.
  A newcomer's first reading is its first sample, and its second follows after `FIRST_SPAN_S`.
- Nothing is sampled that nobody has asked for within `IDLE_S`, or whose cgroup is gone; without any the task ends.
- What is not counted by a cgroup of this node has its rate from the readings that come with the questions.
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
"""Two readings closer than this say nothing about a rate; a little less than `FIRST_SPAN_S`."""
_REGULAR_NS = int(0.9 * PERIOD_S * _SECOND_NS)


@dataclass(frozen=True, slots=True)
class CpuReading:
    """CPU time at a time of the real-time clock."""

    at_ns: int
    usage_ns: int


@dataclass(slots=True)
class _Followed:
    """One object: its last sample, and the rate up to it."""

    cgroup_dir: str | None
    last: CpuReading
    asked_s: float
    rate: int | None = None


class CpuRates:
    """Follows the CPU time of what is asked for."""

    def __init__(self, cpu_usage_ns: Callable[[str], int | None], background: Background) -> None:
        """`cpu_usage_ns` reads the CPU time of a cgroup; it is called in a thread."""
        self._cpu_usage_ns = cpu_usage_ns
        self._background = background
        self._followed: dict[str, _Followed] = {}
        """By object ID. Changed in threads as well, each time by one operation of the dictionary."""
        self._newcomers = asyncio.Event()
        self._sampling: asyncio.Task[None] | None = None

    @property
    def followed(self) -> frozenset[str]:
        """The objects of which a sample is kept."""
        return frozenset(self._followed)

    def rate(self, object_id: str, reading: CpuReading, cgroup_dir: str | None) -> int | None:
        """CPU nanoseconds per second of the object; None while there is one sample only. For any thread.

        `reading` is the caller's; `cgroup_dir` is where samples are read, None for what no cgroup of this node counts.
        Call `asked` on the loop afterwards.
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
        """Begin to sample, if that is not under way; soon, if there are newcomers."""
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
    """Whether to sample again. A clock that was set back makes a new beginning."""
    age_ns = now_ns - followed.last.at_ns
    return followed.rate is None or age_ns < 0 or age_ns >= _REGULAR_NS


def _take(followed: _Followed, reading: CpuReading) -> None:
    span_ns = reading.at_ns - followed.last.at_ns
    if 0 <= span_ns < _SHORTEST_NS:
        return
    used_ns = max(reading.usage_ns - followed.last.usage_ns, 0)
    followed.rate = used_ns * _SECOND_NS // span_ns if span_ns > 0 else None
    followed.last = reading
