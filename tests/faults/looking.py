"""What tests ask about a daemon's objects and their processes, beyond what CRI's fields say."""

from __future__ import annotations

import json
import re
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cri_shim._pb.cri.v1 import api_pb2 as api
from tests.harness import leaks, procs

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.harness.client import Client

PATIENCE_S = 5.0


@dataclass(frozen=True)
class Pids:
    """Who runs for a container."""

    process: int
    monitor: int


def pause_pid(client: Client, pod: str) -> int:
    """The pause process, which nobody monitors."""
    info = json.loads(client.pod_status(pod, verbose=True).info["info"])
    assert "monitorPid" not in info
    return int(info["pid"])


def container_pids(client: Client, container: str) -> Pids:
    """A container's first process and its monitor."""
    info = json.loads(client.status(container, verbose=True).info["info"])
    return Pids(process=int(info["pid"]), monitor=int(info["monitorPid"]))


def pod_reason(client: Client, pod: str) -> str:
    """Why a pod is not ready."""
    reason: str = json.loads(client.pod_status(pod, verbose=True).info["info"])["reason"]
    return reason


def pod_state(client: Client, pod: str) -> str:
    """SANDBOX_READY or SANDBOX_NOTREADY."""
    return api.PodSandboxState.Name(client.pod_status(pod).status.state)


def container_state(client: Client, container: str) -> str:
    """CONTAINER_RUNNING and so on."""
    return api.ContainerState.Name(client.status(container).status.state)


def is_alive(pid: int) -> bool:
    """Whether a process of this number runs; a zombie does not."""
    process = procs.read_process(pid)
    return process is not None and not process.zombie


def wait_until(
    holds: Callable[[], bool], what: str, *, timeout_s: float = PATIENCE_S, poll_s: float = 0.01
) -> float:
    """Wait for a condition; the seconds it took. Raises: TimeoutError naming `what`."""
    started = time.monotonic()
    while not holds():
        if time.monotonic() - started > timeout_s:
            raise TimeoutError(f"not so after {timeout_s} s: {what}")
        time.sleep(poll_s)
    return time.monotonic() - started


def assert_nothing_new(
    scope: leaks.Scope,
    before: leaks.Snapshot,
    when: str,
    *,
    of_living: Callable[[leaks.Leak], bool] = lambda _leak: False,
) -> None:
    """There is what there was `before`, and nothing else. Raises: AssertionError with what there is.

    `of_living` tells what may come and go while pods live that were there before.
    """
    known = {_identity(name) for name in before.counts["process"]}

    def allowed(leak: leaks.Leak) -> bool:
        # A process that outlived its daemon has another parent, and one that was seen before its exec another command;
        # and what process 1 has become the parent of is for it to reap, which some do seconds late.
        # The test process itself has descriptors that pytest opens and closes as it likes.
        return (
            (leak.kind == "process" and _identity(leak.name) in known)
            or (leak.kind == "zombie" and "parent 1," in leak.name)
            or leak.kind == leaks.OWN_DESCRIPTORS
            or of_living(leak)
        )

    found = leaks.leaks_since(before, scope, allowed=allowed)
    assert not found, f"{when}: {leaks.LeakError(found)}"


def _identity(process: str) -> tuple[str, ...]:
    """Pid and start time of a process as snapshots name it."""
    match = re.search(r"\(pid (\d+), .*started (\d+)\)$", process)
    return match.groups() if match else (process,)
