"""Execs that a former daemon left behind in a container with a kernel of its own: told from the rest, and ended."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import pytest

from cri_shim._pb.shim.v2 import task_pb2 as pb
from cri_shim.config.model import HandlerKind
from cri_shim.host.process import Reaper
from cri_shim.paths import Paths
from cri_shim.sandbox.exec.leftovers import LeftoverExecs
from cri_shim.sandbox.store.model import ContainerStatus, Process
from tests.fakes.kernel import Kernel
from tests.fakes.points import Points
from tests.fakes.runtime import FakeRuntime
from tests.fakes.task_shim import shim_handler
from tests.unit.sandbox.records import make_container

if TYPE_CHECKING:
    from pathlib import Path

    from cri_shim.host.port import Host
    from cri_shim.sandbox.store.store import Container
    from tests.fakes.kernel import FakeProcess

pytestmark = pytest.mark.asyncio


class Node:
    """A container in a sandbox with its own kernel, and the files of its execs."""

    def __init__(self, base: Path) -> None:
        self.kernel = Kernel(Points())
        self.runtime = FakeRuntime(self.kernel, "kata", HandlerKind.VM)
        self.paths = Paths(base / "root", base / "state")
        shim, monitor = self.spawn("kata-shim", "-container", "c" * 64), self.spawn("conmon")
        self.container = self.make(shim, monitor)
        self.exec_dir = self.paths.container(self.container.id).exec_dir
        self.exec_dir.mkdir(parents=True)
        self.paths.console_dir.mkdir(parents=True)
        self.shim = shim

    def spawn(self, *argv: str) -> FakeProcess:
        return self.kernel.spawn(argv)

    @staticmethod
    def make(shim: FakeProcess, monitor: FakeProcess) -> Container:
        process = Process(shim.pid, shim.start_ticks)
        status = ContainerStatus(
            committed_at_ns=1,
            started_at_ns=2,
            process=process,
            monitor=Process(monitor.pid, monitor.start_ticks),
        )
        return make_container(status=status)

    def file(self, name: str, pid: object) -> None:
        (self.exec_dir / f"{name}.json").write_text("{}")
        (self.exec_dir / f"{name}.pid").write_text(str(pid))
        (self.paths.console_dir / name).touch()

    def leftovers(self, *, of_vm: bool = True) -> LeftoverExecs:
        return LeftoverExecs.of(
            cast("Host", self.kernel),
            self.container,
            self.paths,
            (),
            self.runtime if of_vm else None,
        )


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


async def test_what_stands_for_an_exec_is_ended_inside_and_on_the_node(node: Node) -> None:
    command = node.spawn("kata-shim", "-container", node.container.id, "-exec-id", "1")
    node.file("one", command.pid)
    left = node.leftovers()
    assert left
    assert [entry.pid for entry in left.processes] == [command.pid]
    await left.end()
    assert node.runtime.ended_execs == [(node.container.id, command.pid)]
    assert command.pid not in node.kernel.processes
    assert node.shim.pid in node.kernel.processes
    assert list(node.exec_dir.iterdir()) == []
    assert list(node.paths.console_dir.iterdir()) == []
    assert not node.leftovers()


@pytest.mark.parametrize("text", ["", "no number", "4294967"])
async def test_files_that_name_no_process_are_removed_alone(node: Node, text: str) -> None:
    node.file("one", text)
    left = node.leftovers()
    assert left
    assert left.processes == ()
    await left.end()
    assert node.runtime.ended_execs == []
    assert list(node.exec_dir.iterdir()) == []


async def test_neither_a_later_owner_of_the_pid_nor_the_containers_own_process_is_touched(
    node: Node,
) -> None:
    stranger = node.spawn("sleep", "600")
    node.file("one", stranger.pid)
    node.file("two", node.shim.pid)
    await node.leftovers().end()
    assert {stranger.pid, node.shim.pid} <= node.kernel.processes.keys()
    assert node.runtime.ended_execs == []


async def test_without_a_kernel_of_its_own_only_processes_of_the_cgroup_count(node: Node) -> None:
    command = node.spawn("true", node.container.id)
    node.file("one", command.pid)
    left = node.leftovers(of_vm=False)
    assert left.processes == ()
    await left.end()
    assert command.pid in node.kernel.processes


async def test_execs_of_a_shim_are_ended_by_their_names(node: Node, short_path: Path) -> None:
    reaper = Reaper()
    reaper.open()
    try:
        async with shim_handler(short_path, reaper) as handler:
            await handler.run(node.container.id)
            node.file("one", 1)
            left = LeftoverExecs.of(
                cast("Host", node.kernel), node.container, node.paths, (), handler.runtime
            )
            await left.end()
            [killed] = handler.shim.requested(pb.KillRequest)
            assert (killed.id, killed.exec_id) == (node.container.id, "one")
            assert not list(node.exec_dir.iterdir())
    finally:
        reaper.close()
