from __future__ import annotations

import asyncio
import json
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cri_shim import metrics
from cri_shim.errors import NotFoundError, RuntimeCommandError
from cri_shim.host.mounts import bind
from cri_shim.oci.runtime import ExecFiles
from tests.integration.oci.conftest import BUSYBOX, until

if TYPE_CHECKING:
    from cri_shim.host.process import Child
    from tests.integration.oci.conftest import Host, Made

pytestmark = [pytest.mark.integration, pytest.mark.asyncio]

GONE = "ab" * 32


def _failures(handler: str, command: str) -> float:
    labels = {"handler": handler, "command": command}
    name = "cri_shim_oci_command_failures_total"
    return metrics.REGISTRY.get_sample_value(name, labels) or 0.0


async def _running(host: Host, *args: str) -> Made:
    made = host.bundle(*(args or ("sleep", "60")))
    await host.create(made)
    await host.runtime.start(made.container_id, made.dir)
    return made


def exec_files(directory: Path) -> ExecFiles:
    return ExecFiles(directory / "exec.json", directory / "exec.pid", directory / "exec.inner")


async def _exec(host: Host, made: Made, *args: str, stdout: int | None = None) -> Child:
    """As the daemon does: a detached process whose ending comes to us."""
    files = exec_files(made.dir)
    files.process.write_text(
        json.dumps(
            {"args": list(args), "cwd": "/", "env": ["PATH=/bin"], "user": {"uid": 0, "gid": 0}}
        ),
        encoding="utf-8",
    )
    argv = (await host.runtime.exec_command(made.container_id, files)).argv
    with host.reaper.awaiting_orphans():
        runc = host.reaper.spawn(argv, stdout=stdout, env=host.runtime.environment())
        assert (await runc.wait()).exit_code == 0
        child = host.reaper.claim(int(files.pid.read_text(encoding="ascii")))
    assert child is not None
    return child


async def test_states_of_a_life(host: Host) -> None:
    made = host.bundle("sleep", "60")
    assert await host.runtime.state(made.container_id) is None

    monitored = await host.create(made)
    created = await host.runtime.state(made.container_id)
    await host.runtime.start(made.container_id, made.dir)
    running = await host.runtime.state(made.container_id)
    await host.runtime.kill(made.container_id, signal.SIGKILL)
    await host.exit_code(made)
    stopped = await host.runtime.state(made.container_id)
    await host.runtime.delete(made.container_id)

    assert created is not None
    assert (created.status, created.pid) == ("created", monitored.container_pid)
    assert created.bundle == str(made.dir)
    assert running is not None
    assert running.status == "running"
    assert stopped is not None
    assert stopped.status == "stopped"
    assert await host.runtime.state(made.container_id) is None
    assert not host.cgroups.exists(made.cgroup)


async def test_container_that_ends_at_once_was_started(host: Host) -> None:
    made = await _running(host, "true")

    assert await host.exit_code(made) == 0


async def test_signal_reaches_the_process(host: Host) -> None:
    made = await _running(
        host, "sh", "-c", "trap 'exit 9' TERM; echo ready; while :; do sleep 0.01; done"
    )
    await host.logged(made)

    assert await host.runtime.kill(made.container_id, signal.SIGTERM)

    assert await host.exit_code(made) == 9


async def test_killing_what_has_ended_or_never_was_is_no_error(host: Host) -> None:
    made = await _running(host, "true")
    await host.exit_code(made)

    assert not await host.runtime.kill(made.container_id, signal.SIGKILL)
    await host.runtime.kill(made.container_id, signal.SIGKILL, all_processes=True)
    assert not await host.runtime.kill(GONE, signal.SIGKILL)


async def test_deleting_what_is_not_there_is_no_error(host: Host) -> None:
    await host.runtime.delete(GONE)
    await host.runtime.delete(GONE, force=True)


async def test_deleting_a_running_container_takes_force(host: Host) -> None:
    made = await _running(host)

    with pytest.raises(RuntimeCommandError) as caught:
        await host.runtime.delete(made.container_id)
    await host.runtime.delete(made.container_id, force=True)

    assert str(caught.value).startswith(
        f"deleting container {made.container_id} (runtime handler 'runc'): "
    )
    assert str(caught.value).endswith("that is not stopped: running")
    assert await host.exit_code(made) == 137


async def test_forced_delete_clears_what_a_runtime_killed_half_way_left(host: Host) -> None:
    left = host.runtime.settings.root_dir / GONE
    left.mkdir(parents=True)
    (left / "runc.abcdef").touch()
    bind(BUSYBOX, left / "runc.abcdef")

    await host.runtime.delete(GONE, force=True)

    assert not left.exists()
    assert BUSYBOX.exists()


@pytest.mark.parametrize("delay_ms", [0, 4, 8, 12, 16, 20, 24, 28, 32])
async def test_creation_cut_off_at_any_moment_can_be_undone(host: Host, delay_ms: int) -> None:
    made = host.bundle("sleep", "60")
    task = asyncio.create_task(host.create(made))
    await asyncio.sleep(delay_ms / 1000)

    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await host.cgroups.kill_all(made.cgroup, 5.0)
    await host.runtime.delete(made.container_id, force=True)
    await host.cgroups.remove(made.cgroup)

    await until(lambda: not host.monitors.find_monitors())
    assert not host.cgroups.exists(made.cgroup)
    assert not (host.runtime.settings.root_dir / made.container_id).exists()


async def test_starting_twice_is_refused_and_starting_nothing_is_not_found(host: Host) -> None:
    made = await _running(host)
    before = _failures("runc", "start")

    with pytest.raises(RuntimeCommandError, match="exited with status 1: cannot start an already"):
        await host.runtime.start(made.container_id, made.dir)
    with pytest.raises(NotFoundError, match=f"container '{GONE}' not found"):
        await host.runtime.start(GONE, Path("/nonexistent"))

    assert _failures("runc", "start") == before + 1


async def test_exec_is_ours_and_ends_with_its_exact_code(host: Host) -> None:
    made = await _running(host)
    read_fd, write_fd = os.pipe2(os.O_CLOEXEC)
    child = await _exec(host, made, "sh", "-c", "echo from inside; exit 33", stdout=write_fd)
    os.close(write_fd)

    assert (await child.wait()).exit_code == 33
    assert os.read(read_fd, 100) == b"from inside\n"
    os.close(read_fd)


async def test_exec_that_ends_before_it_is_claimed_is_not_lost(host: Host) -> None:
    made = await _running(host)

    codes = [
        (await (await _exec(host, made, "sh", "-c", f"exit {code}")).wait()).exit_code
        for code in range(5)
    ]

    assert codes == list(range(5))


async def test_exec_of_nothing_writes_no_pid(host: Host) -> None:
    made = await _running(host)
    (made.dir / "exec.json").write_text(
        '{"args": ["/none"], "cwd": "/", "user": {}}', encoding="ascii"
    )
    argv = (await host.runtime.exec_command(made.container_id, exec_files(made.dir))).argv

    done = await host.reaper.run(argv, timeout_s=30)

    assert done.ending.exit_code == 255
    assert not (made.dir / "exec.pid").exists()


async def test_versions_and_features_of_what_is_installed(host: Host) -> None:
    runc = await host.runtime.version()
    features = await host.runtime.features()
    crun = host.runtime_of("crun")

    assert runc.name == "runc"
    assert runc.version[0].isdigit()
    assert runc.spec_version.startswith("1.")
    assert features is not None
    assert features.linux is not None
    assert "user" in (features.linux.namespaces or ())
    assert (await crun.version()).name == "crun"
    await crun.features()  # None or an answer: both are versions in use
    assert await crun.state(GONE) is None
    await crun.delete(GONE)
    await crun.delete(GONE, force=True)
    assert not await crun.kill(GONE, signal.SIGKILL)


async def test_runtime_that_is_not_there_is_said_with_what_to_do(host: Host) -> None:
    with pytest.raises(
        RuntimeCommandError, match=r"handler 'gone': gone was not found: install it, or set"
    ):
        await host.runtime_of("gone").version()


async def test_calls_run_side_by_side(host: Host, tmp_path: Path) -> None:
    slow = tmp_path / "slow"
    slow.write_text("#!/bin/sh\nsleep 0.3\necho slow version 1\n", encoding="ascii")
    slow.chmod(0o755)
    runtime = host.runtime_of(str(slow), name="slow")

    async with asyncio.timeout(1.2):
        versions = await asyncio.gather(*(runtime.version() for _ in range(6)))

    assert {version.version for version in versions} == {"1"}


@pytest.mark.runsc
async def test_runsc_lives_the_same_life(host: Host) -> None:
    host.runtime = host.runtime_of(
        "runsc", args=("--platform=ptrace", "--network=none", "--ignore-cgroups")
    )
    made = host.bundle("sh", "-c", "exit 6")

    with pytest.raises(NotFoundError):
        await host.runtime.start(GONE, Path("/nonexistent"))
    await host.create(made)
    await host.runtime.start(made.container_id, made.dir)

    assert await host.exit_code(made) == 6
    assert not await host.runtime.kill(made.container_id, signal.SIGKILL)
    assert await host.runtime.state(GONE) is None
    await host.runtime.delete(GONE)
    await host.runtime.delete(made.container_id)
