"""CPU rates from samples of the background, the same for all who ask."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from cri_shim.background import Background
from cri_shim.sandbox.cpu_rates import IDLE_S, PERIOD_S, CpuRates, CpuReading
from tests.fakes.clock import turn_over

if TYPE_CHECKING:
    from tests.fakes.clock import MovableClock

pytestmark = pytest.mark.asyncio
SECOND = 1_000_000_000


class Node:
    """Cgroups that use a constant part of a processor each, by a clock that goes with the test's."""

    def __init__(self, clock: MovableClock, monkeypatch: pytest.MonkeyPatch) -> None:
        self._clock = clock
        self._start_s = clock()
        self.cores: dict[str, float] = {}
        self.set_back_s = 0.0
        self.read: list[str] = []
        monkeypatch.setattr(time, "time_ns", self.now_ns)
        self.background = Background()
        self.rates = CpuRates(self._usage_ns, self.background)

    def now_ns(self) -> int:
        return int((self._clock() - self._start_s + 1000 - self.set_back_s) * SECOND)

    def reading(self, cgroup_dir: str) -> CpuReading:
        age_s = self._clock() - self._start_s
        return CpuReading(self.now_ns(), int(age_s * self.cores[cgroup_dir] * SECOND))

    def _usage_ns(self, cgroup_dir: str) -> int | None:
        self.read.append(cgroup_dir)
        return self.reading(cgroup_dir).usage_ns if cgroup_dir in self.cores else None

    def ask(self, *names: str) -> list[float | None]:
        """The rates of cgroups, in cores."""
        rates = [self.rates.rate(name, self.reading(name), name) for name in names]
        self.rates.asked()
        return [None if rate is None else round(rate / SECOND, 2) for rate in rates]

    async def sampled(self, *names: str) -> None:
        """Wait until these cgroups have rates."""
        await self._clock.until(lambda: None not in self.ask(*names), within_s=PERIOD_S)


@pytest.fixture
def node(clock: MovableClock, monkeypatch: pytest.MonkeyPatch) -> Node:
    return Node(clock, monkeypatch)


async def test_a_newcomer_has_a_rate_soon(node: Node, clock: MovableClock) -> None:
    node.cores = {"a": 0.5}
    assert node.ask("a") == [None]
    await clock.until(lambda: node.ask("a") != [None], within_s=0.8)
    assert node.ask("a") == [0.5]


async def test_readers_share_a_rate_however_often_they_ask(node: Node, clock: MovableClock) -> None:
    node.cores = {"a": 0.25}
    await node.sampled("a")
    node.read.clear()
    for _ in range(50):
        assert node.ask("a") == [0.25]
        await clock.sleep(PERIOD_S / 50)
    assert len(node.read) <= 2, "who asks reads nothing"


async def test_a_rate_follows_what_is_used(node: Node, clock: MovableClock) -> None:
    node.cores = {"a": 0.0, "b": 2.0}
    await node.sampled("a", "b")
    assert node.ask("a", "b") == [0.0, 2.0]
    await clock.sleep(2 * PERIOD_S)
    assert node.ask("a", "b") == [0.0, 2.0]


async def test_a_newcomer_disturbs_no_others_sample(node: Node, clock: MovableClock) -> None:
    node.cores = {"a": 1.0, "b": 1.0}
    await node.sampled("a")
    node.read.clear()
    node.ask("a", "b")
    await clock.until(lambda: node.read, within_s=1)
    assert node.read == ["b"]


async def test_nothing_is_read_when_nobody_asks(node: Node, clock: MovableClock) -> None:
    node.cores = {"a": 1.0}
    await turn_over()
    assert node.background.tasks == ()
    node.ask("a")
    await clock.until(lambda: not node.rates.followed, within_s=IDLE_S + 3 * PERIOD_S)
    await clock.until(lambda: not node.background.tasks, within_s=2 * PERIOD_S)
    # And again from the beginning, not over the time in which nobody looked.
    assert node.ask("a") == [None]
    await node.sampled("a")
    assert node.ask("a") == [1.0]


async def test_what_nobody_asks_for_any_more_is_forgotten_beside_others(
    node: Node, clock: MovableClock
) -> None:
    node.cores = {"a": 1.0, "b": 1.0}
    node.ask("a", "b")
    for _ in range(int(IDLE_S / PERIOD_S) + 2):
        await clock.sleep(PERIOD_S)
        node.ask("b")
    assert node.rates.followed == {"b"}


async def test_a_cgroup_that_is_gone_is_forgotten(node: Node, clock: MovableClock) -> None:
    node.cores = {"a": 1.0, "b": 1.0}
    node.ask("a", "b")
    del node.cores["a"]
    await clock.until(lambda: node.rates.followed == {"b"}, within_s=PERIOD_S)


async def test_a_clock_that_is_set_back_is_no_rate(node: Node, clock: MovableClock) -> None:
    node.cores = {"a": 1.0}
    await node.sampled("a")
    node.set_back_s = 500
    await clock.until(lambda: node.ask("a") == [None], within_s=2 * PERIOD_S)
    await node.sampled("a")
    assert node.ask("a") == [1.0]


async def test_a_counter_that_falls_is_no_negative_rate(node: Node, clock: MovableClock) -> None:
    node.cores = {"a": 1.0}
    await node.sampled("a")
    node.cores = {"a": 0.0}
    await clock.until(lambda: node.ask("a") == [0.0], within_s=3 * PERIOD_S)


async def test_what_no_cgroup_counts_has_its_rate_from_the_readings(
    node: Node, clock: MovableClock
) -> None:
    rates = node.rates
    assert rates.rate("vm", CpuReading(10 * SECOND, SECOND), None) is None
    assert rates.rate("vm", CpuReading(12 * SECOND, 2 * SECOND), None) == SECOND // 2
    # Too soon after the last to say anything new, and the same reading again.
    for at_ns in (12 * SECOND + 1, 12 * SECOND):
        assert rates.rate("vm", CpuReading(at_ns, 9 * SECOND), None) == SECOND // 2
    rates.asked()
    await clock.sleep(1)
    assert node.read == []
    assert rates.followed == {"vm"}
