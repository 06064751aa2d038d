"""Statistics that runtimes tell: asked seldom, waited for a moment, and read as they are written."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import pytest

from cri_shim.background import Background
from cri_shim.config.model import HandlerKind
from cri_shim.errors import RuntimeCommandError, UnknownRuntimeHandlerError
from cri_shim.host.cgroups.usage import CgroupStats
from cri_shim.oci.runtime import RuntimeStats
from cri_shim.paths import Paths
from cri_shim.sandbox import runtime_usage
from cri_shim.sandbox.runtime_usage import RuntimeUsages, as_cgroup_stats
from cri_shim.sandbox.store.model import ContainerStatus
from cri_shim.sandbox.store.store import Container, Store, read_container
from tests.fakes.clock import turn_over
from tests.fakes.kernel import Kernel
from tests.fakes.points import Points
from tests.fakes.runtime import Entry, FakeRuntime
from tests.unit.sandbox.records import make_container

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.asyncio
RUNNING = ContainerStatus(committed_at_ns=1, started_at_ns=2)


class Node:
    """Containers of a runtime of kind vm."""

    def __init__(self, base: Path, *, kind: HandlerKind = HandlerKind.VM, cache_s: float) -> None:
        self.paths = Paths(base / "root", base / "state")
        self.paths.containers_dir.mkdir(parents=True)
        self.store: Store[Container] = Store(
            "container", self.paths.containers_dir, self.paths.container, read_container
        )
        self.kernel = Kernel(Points())
        self.runtime = FakeRuntime(self.kernel, "runc", kind)
        self.runtime.uses = stats(memory={"usage": {"usage": 5}})
        self.known = True
        self.usages = RuntimeUsages(self.store, self.runtime_of, Background(), cache_s=cache_s)

    def runtime_of(self, handler: str) -> FakeRuntime:
        if not self.known:
            raise UnknownRuntimeHandlerError(handler)
        return self.runtime

    def add(self, letter: str) -> Container:
        container = make_container(letter * 64, name=letter, status=RUNNING)
        self.store.create(container)
        self.runtime.containers[container.id] = Entry("running", self.kernel.spawn(("shim",)))
        return container


def stats(**data: object) -> RuntimeStats:
    return msgspec.convert(data, RuntimeStats)


async def test_what_was_said_is_kept_for_a_while(tmp_path: Path) -> None:
    node = Node(tmp_path, cache_s=60)
    container = node.add("a")
    first = (await node.usages.of([container]))[container.id]
    node.runtime.uses = stats(memory={"usage": {"usage": 6}})
    second = (await node.usages.of([container]))[container.id]
    assert first is not None
    assert first.memory_usage_bytes == 5
    assert second is first


async def test_without_a_cache_each_question_is_asked(tmp_path: Path) -> None:
    node = Node(tmp_path, cache_s=0)
    container = node.add("a")
    await node.usages.of([container])
    node.runtime.uses = stats(memory={"usage": {"usage": 6}})
    second = (await node.usages.of([container]))[container.id]
    assert second is not None
    assert second.memory_usage_bytes == 6


async def test_a_runtime_that_hangs_is_not_waited_for_and_asked_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime_usage, "PATIENCE_S", 0.02)
    node = Node(tmp_path, cache_s=0)
    stuck = node.add("a")
    hold = node.kernel.points.hold("runtime.stats")
    assert await node.usages.of([stuck]) == {stuck.id: None}
    assert await node.usages.of([stuck]) == {stuck.id: None}
    hold.release()
    await turn_over(20)
    found = (await node.usages.of([stuck]))[stuck.id]
    assert found is not None


async def test_a_refusal_is_nothing_known(tmp_path: Path) -> None:
    node = Node(tmp_path, cache_s=0)
    container = node.add("a")
    node.kernel.points.fail("runtime.stats", RuntimeCommandError("asking", ["x"], "failed", "no"))
    assert await node.usages.of([container]) == {container.id: None}


async def test_containers_of_the_nodes_kernel_and_of_no_handler_are_not_asked_about(
    tmp_path: Path,
) -> None:
    node = Node(tmp_path, kind=HandlerKind.OCI, cache_s=0)
    container = node.add("a")
    assert await node.usages.of([container]) == {}
    node.known = False
    assert await node.usages.of([container]) == {}


async def test_what_is_left_out_is_nothing_used() -> None:
    assert as_cgroup_stats(stats(), 7) == CgroupStats(
        read_at_ns=7,
        cpu_usage_ns=0,
        memory_usage_bytes=0,
        working_set_bytes=0,
        swap_usage_bytes=0,
        pids_current=0,
    )


async def test_a_guests_own_words_are_read() -> None:
    said = stats(
        cpu={"usage": {"total": 11, "percpu": [11]}},
        memory={
            "usage": {"usage": 100, "limit": 150},
            "swap": {"usage": 3},
            "raw": {
                "total_inactive_file": 40,
                "total_rss": 50,
                "total_pgfault": 2,
                "total_pgmajfault": 1,
            },
        },
        pids={"current": 4},
    )
    assert as_cgroup_stats(said, 7) == CgroupStats(
        read_at_ns=7,
        cpu_usage_ns=11,
        memory_usage_bytes=100,
        working_set_bytes=60,
        rss_bytes=50,
        page_faults=2,
        major_page_faults=1,
        memory_limit_bytes=150,
        memory_available_bytes=90,
        swap_usage_bytes=3,
        pids_current=4,
    )
