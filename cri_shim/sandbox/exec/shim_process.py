"""A command in a container of a shim: its start, with the pipes that every command has here, and its end.

Rules:
- The shim opens our ends of the pipes by their descriptors (`oci/shim/requests`), before the start returns.
- Of a terminal the shim is the master. Then it passes on what goes through the pipes, and sizes go through the daemon.
- What it says of a process's pid counts only if that is in the container's cgroup: else it may stand for a sandbox.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from cri_shim import metrics
from cri_shim.errors import (
    CriShimError,
    DeadlineError,
    ProgramError,
    RuntimeCommandError,
    host_step,
)
from cri_shim.oci.runtime_errors import program_exit_code
from cri_shim.operations import step
from cri_shim.sandbox.exec.input_relay import InputRelay

if TYPE_CHECKING:
    from collections.abc import Collection

    from cri_shim.host.port import Host
    from cri_shim.oci.runtime import ExecFiles, Runtime
    from cri_shim.oci.shim.exec import ShimExec
    from cri_shim.oci.shim.runtime import ShimRuntime
    from cri_shim.sandbox.exec.process import ExecCall, ProcessStreams

KILL_TIMEOUT_S = 5.0


async def start_in_shim(
    call: ExecCall,
    files: ExecFiles,
    streams: ProcessStreams,
    runtime: ShimRuntime,
    cwd: str,
    left_s: float,
) -> ShimExec:
    """Have the shim start it; `cwd` is its working directory. Raises as `ExecProcesses.start`."""
    container, name = call.container, runtime.settings.name
    call.files = files
    with contextlib.ExitStack() as owner:
        stdin = None
        if streams.stdin is not None:
            with host_step(f"{call.what}: making a pipe"):
                relay = owner.enter_context(InputRelay(streams.stdin))
            stdin = relay.read_fd
        try:
            with metrics.OCI_COMMAND_SECONDS.labels(name, "exec").time():
                child = await runtime.exec_task(
                    container.id,
                    files,
                    terminal=call.tty,
                    streams=(stdin, streams.stdout, streams.stderr),
                    timeout_s=left_s,
                )
        except asyncio.CancelledError:  # given up for others
            await runtime.end_exec(container.id, files, 0)
            raise
        except CriShimError as error:
            metrics.OCI_COMMAND_FAILURES.labels(name, "exec").inc()
            said = error.stderr_tail if isinstance(error, RuntimeCommandError) else ""
            if code := program_exit_code(said, cwd):
                raise ProgramError(call.what, said, code) from error
            if isinstance(error, DeadlineError):
                await runtime.end_exec(container.id, files, 0)
            raise
        call.child = child
        streams.given()
        if stdin is not None:
            relay.start(child)
        owner.pop_all()
    if call.size is not None and call.tty:
        with contextlib.suppress(CriShimError):
            await child.resize(*call.size)
    return child


async def kill_in_shim(
    host: Host, call: ExecCall, child: ShimExec, runtime: Runtime, cgroup_pids: Collection[int]
) -> None:
    """Kill the process, and what it has started as far as the node sees it; `cgroup_pids` are the container's."""
    if child.pid in cgroup_pids:
        await host.kill_family(
            child.pid, None, timeout_s=KILL_TIMEOUT_S, strays=lambda: cgroup_pids
        )
    if call.files is not None:
        with step("ending it in its shim"):
            await runtime.end_exec(call.container.id, call.files, child.pid)
    await child.wait_at_most(KILL_TIMEOUT_S)
