"""Against this machine's own kernel: cgroups below /cri-shim-test-PID, taken away whatever happens."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cri_shim.errors import CriShimError, DeadlineError
from cri_shim.host.cgroups import open_files
from cri_shim.host.cgroups.tree import Cgroups

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.integration

TOP = f"cri-shim-test-{os.getpid()}"


@pytest.fixture
def cgroups() -> Iterator[Cgroups]:
    found = Cgroups.detect()
    yield found
    asyncio.run(found.kill_all(TOP, 5.0))
    asyncio.run(found.remove(TOP))
    assert not found.exists(TOP)


@pytest.fixture
def sleepers() -> Iterator[list[subprocess.Popen[bytes]]]:
    started: list[subprocess.Popen[bytes]] = []
    yield started
    for process in started:
        process.kill()
        process.wait()


def _make(cgroups: Cgroups, relative_dir: str) -> None:
    """Make a cgroup in every hierarchy, and those above it, as runtimes do; no harm where they are."""
    for tree in cgroups.layout.hierarchies:
        # v2: a cgroup that hands controllers down can't have processes itself, so that only these two do.
        above = (tree.mount_point, tree.directory(TOP))
        directory = tree.mount_point
        for name in relative_dir.split("/"):
            parent, directory = directory, directory / name
            if tree.version == 2 and "memory" in tree.controllers and parent in above:
                (parent / "cgroup.subtree_control").write_text("+memory +pids", encoding="ascii")
            directory.mkdir(exist_ok=True)
            # v1: a new one has neither CPUs nor memory nodes, and nothing may enter it.
            if tree.version == 1 and "cpuset" in tree.controllers:
                for file in ("cpuset.cpus", "cpuset.mems"):
                    (directory / file).write_bytes((parent / file).read_bytes())


def _enter(cgroups: Cgroups, relative_dir: str, pid: int) -> None:
    for tree in cgroups.layout.hierarchies:
        (tree.directory(relative_dir) / "cgroup.procs").write_text(str(pid), encoding="ascii")


def _sleep_in(cgroups: Cgroups, relative_dir: str, sleepers: list[subprocess.Popen[bytes]]) -> None:
    sleepers.append(subprocess.Popen(["sleep", "60"]))
    _enter(cgroups, relative_dir, sleepers[-1].pid)


def test_cgroup_is_made_in_every_hierarchy_and_can_hold_processes(
    cgroups: Cgroups, sleepers: list[subprocess.Popen[bytes]]
) -> None:
    _make(cgroups, f"{TOP}/pod/one")
    _make(cgroups, f"{TOP}/pod/one")
    _sleep_in(cgroups, f"{TOP}/pod/one", sleepers)

    for tree in cgroups.layout.hierarchies:
        assert tree.directory(f"{TOP}/pod/one").is_dir()
    assert cgroups.pids(TOP) == [sleepers[0].pid]
    assert cgroups.cgroup_of(sleepers[0].pid) == f"{TOP}/pod/one"


def test_everything_below_is_killed_and_the_tree_removed_children_first(
    cgroups: Cgroups, sleepers: list[subprocess.Popen[bytes]]
) -> None:
    for name in ("one", "one/inner", "two"):
        _make(cgroups, f"{TOP}/pod/{name}")
        for _ in range(3):
            _sleep_in(cgroups, f"{TOP}/pod/{name}", sleepers)

    asyncio.run(cgroups.kill_all(f"{TOP}/pod", 5.0))
    asyncio.run(cgroups.remove(f"{TOP}/pod"))
    asyncio.run(cgroups.remove(f"{TOP}/pod"))

    assert [process.wait() for process in sleepers] == [-signal.SIGKILL] * 9
    assert not cgroups.exists(f"{TOP}/pod")


def test_frozen_processes_die_too(
    cgroups: Cgroups, sleepers: list[subprocess.Popen[bytes]]
) -> None:
    _make(cgroups, f"{TOP}/frozen")
    _sleep_in(cgroups, f"{TOP}/frozen", sleepers)
    freezer = cgroups.layout.of_controller("freezer")
    if freezer is not None:
        state = freezer.directory(f"{TOP}/frozen") / "freezer.state"
        state.write_text("FROZEN", encoding="ascii")
    else:
        assert cgroups.layout.unified is not None
        state = cgroups.layout.unified.directory(f"{TOP}/frozen") / "cgroup.freeze"
        state.write_text("1", encoding="ascii")

    asyncio.run(cgroups.kill_all(f"{TOP}/frozen", 5.0))

    assert sleepers[0].wait() == -signal.SIGKILL


def test_process_that_forks_as_fast_as_it_can_is_killed(cgroups: Cgroups) -> None:
    _make(cgroups, f"{TOP}/bomb")
    pids = cgroups.layout.of_controller("pids")
    assert pids is not None
    (pids.directory(f"{TOP}/bomb") / "pids.max").write_text("50", encoding="ascii")
    script = "read go; while :; do (sleep 0.2 &) 2>/dev/null; done"
    shell = subprocess.Popen(["sh", "-c", script], stdin=subprocess.PIPE)
    _enter(cgroups, f"{TOP}/bomb", shell.pid)
    assert shell.stdin is not None
    shell.stdin.write(b"go\n")
    shell.stdin.close()

    asyncio.run(cgroups.kill_all(f"{TOP}/bomb", 5.0))
    shell.wait()

    assert cgroups.pids(f"{TOP}/bomb") == []


def test_busy_cgroup_is_not_removed_and_says_who_is_in_it(
    cgroups: Cgroups, sleepers: list[subprocess.Popen[bytes]]
) -> None:
    _make(cgroups, f"{TOP}/busy")
    _sleep_in(cgroups, f"{TOP}/busy", sleepers)

    with pytest.raises(CriShimError, match=rf"busy with 1 process\(es\) {sleepers[0].pid} \(sleep"):
        asyncio.run(cgroups.remove(f"{TOP}/busy", timeout_s=0.02))


def test_kill_gives_up_at_its_deadline_and_names_what_is_left(
    cgroups: Cgroups, sleepers: list[subprocess.Popen[bytes]]
) -> None:
    freezer = cgroups.layout.of_controller("freezer")
    if freezer is None:
        pytest.skip("v2's freezer lets SIGKILL through: nothing outlives one here")
    _make(cgroups, f"{TOP}/stuck")
    _sleep_in(cgroups, f"{TOP}/stuck", sleepers)
    # Frozen from above, out of reach of who kills below: as good as a process stuck in the kernel.
    state = freezer.directory(TOP) / "freezer.state"
    state.write_text("FROZEN", encoding="ascii")
    try:
        with pytest.raises(
            DeadlineError, match=rf"after SIGKILL: .*{sleepers[0].pid} \(sleep, state .\)"
        ):
            asyncio.run(cgroups.kill_all(f"{TOP}/stuck", 0.02))
    finally:
        state.write_text("THAWED", encoding="ascii")


def test_usage_grows_and_limit_is_seen(cgroups: Cgroups) -> None:
    _make(cgroups, f"{TOP}/busy")
    memory = cgroups.layout.of_controller("memory")
    assert memory is not None
    limit = "memory.limit_in_bytes" if memory.version == 1 else "memory.max"
    (memory.directory(f"{TOP}/busy") / limit).write_text(str(64 << 20), encoding="ascii")
    script = "read go; i=0; while [ $i -lt 30000 ]; do i=$((i+1)); done; read end"
    shell = subprocess.Popen(["sh", "-c", script], stdin=subprocess.PIPE)
    _enter(cgroups, f"{TOP}/busy", shell.pid)
    assert shell.stdin is not None
    shell.stdin.write(b"go\n")
    shell.stdin.flush()
    before = cgroups.read_stats(f"{TOP}/busy")
    shell.communicate(b"end\n", timeout=30)
    after = cgroups.read_stats(f"{TOP}/busy")

    assert after.cpu_usage_ns is not None
    assert before.cpu_usage_ns is not None
    assert after.cpu_usage_ns > before.cpu_usage_ns
    assert after.memory_limit_bytes == 64 << 20
    assert after.working_set_bytes is not None
    assert after.memory_available_bytes == (64 << 20) - after.working_set_bytes
    assert after.page_faults is not None
    assert after.pids_current == 0
    assert cgroups.oom_kills(f"{TOP}/busy") == 0


def test_kernel_oom_kills_are_counted(cgroups: Cgroups) -> None:
    _make(cgroups, f"{TOP}/oom")
    memory = cgroups.layout.of_controller("memory")
    assert memory is not None
    limit = "memory.limit_in_bytes" if memory.version == 1 else "memory.max"
    (memory.directory(f"{TOP}/oom") / limit).write_text(str(8 << 20), encoding="ascii")
    shell = subprocess.Popen(
        ["sh", "-c", "read go; exec tail /dev/zero"],
        stdin=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    _enter(cgroups, f"{TOP}/oom", shell.pid)
    shell.communicate(b"go\n", timeout=30)

    assert shell.returncode == -signal.SIGKILL
    assert cgroups.oom_kills(f"{TOP}/oom") == 1


def test_this_process_is_found_where_proc_says() -> None:
    found = Cgroups.detect().cgroup_of(os.getpid(), controller="pids")

    assert found is not None
    assert f"/{found}" in Path("/proc/self/cgroup").read_text(encoding="ascii")


def test_hierarchy_that_no_runtime_knows_is_filled_from_the_others_and_pruned(
    cgroups: Cgroups, sleepers: list[subprocess.Popen[bytes]]
) -> None:
    """As for `files`, which this kernel need not have: another hierarchy stands in for it."""
    pids, stand_in = (cgroups.layout.of_controller(name) for name in ("pids", "freezer"))
    assert pids is not None
    if stand_in is None or stand_in.version != 1:
        return  # version 2 has one hierarchy: there is nothing to gather
    one = f"{TOP}/pod/one"
    for tree in (pids, stand_in):
        tree.directory(one).mkdir(parents=True)
    for _ in range(3):
        sleepers.append(subprocess.Popen(["sleep", "60"]))
        (pids.directory(one) / "cgroup.procs").write_text(str(sleepers[-1].pid))
    listed = stand_in.directory(one) / "cgroup.procs"

    def inside() -> list[int]:
        return [int(pid) for pid in listed.read_text().split()]

    open_files.gather(stand_in, one, everywhere=lambda: cgroups.pids(one), inside=inside)
    assert sorted(inside()) == sorted(process.pid for process in sleepers)

    for process in sleepers:
        process.kill()
        process.wait()
    asyncio.run(cgroups.remove(one))
    assert stand_in.directory(TOP).is_dir()
    open_files.prune(stand_in, one)
    assert not stand_in.directory(TOP).exists()
    assert pids.directory(TOP).is_dir()
