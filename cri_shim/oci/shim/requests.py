"""What shims and the process that holds streams are asked for: plans, and the messages made of them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cri_shim._pb.shim.v2 import task_pb2 as pb
from cri_shim.oci.shim.streams import Hold
from cri_shim.oci.shim.task import PROCESS_TYPE

if TYPE_CHECKING:
    from pathlib import Path

    from cri_shim.oci.runtime import ExecFiles, HandlerSettings

_RUNC_OPTIONS = "containerd.runc.v1.Options"
_OTHER_OPTIONS = "runtimeoptions.v1.Options"


@dataclass(frozen=True, slots=True)
class TaskPlan:
    """A container that a shim is to create."""

    object_id: str
    pod_id: str
    bundle_dir: Path
    log_file: Path | None = None
    terminal: bool = False
    stdin: bool = False
    stdin_once: bool = False

    @property
    def is_pod(self) -> bool:
        """Whether it is a pause container, which has no streams."""
        return self.object_id == self.pod_id


@dataclass(frozen=True, slots=True)
class CreatedTask:
    """A created container: what stands for it on the node, and its shim."""

    pid: int
    shim_pid: int
    shim_start_ticks: int


def create_request(plan: TaskPlan, options: pb.Any | None) -> pb.CreateTaskRequest:
    """What creates the container; a pause container has no streams."""
    request = pb.CreateTaskRequest(
        id=plan.object_id, bundle=str(plan.bundle_dir), terminal=plan.terminal
    )
    if not plan.is_pod:
        request.stdout = str(plan.bundle_dir / "stdout")
        if not plan.terminal:
            request.stderr = str(plan.bundle_dir / "stderr")
        if plan.stdin:
            request.stdin = str(plan.bundle_dir / "stdin")
    if options is not None:
        request.options.CopyFrom(options)
    return request


def runc_options(root_dir: Path, *, systemd: bool) -> pb.Any:
    """The options of the shim that drives runc: where runc's own state is, and who makes cgroups."""
    options = pb.RuncOptions(root=str(root_dir), systemd_cgroup=systemd)
    return pb.Any(type_url=_RUNC_OPTIONS, value=options.SerializeToString())


def runtime_options(settings: HandlerSettings) -> pb.Any | None:
    """The options of other shims; None for those that are to use their own configuration."""
    if not settings.config_path:
        return None
    options = pb.RuntimeOptions(type_url=settings.type_url, config_path=settings.config_path)
    return pb.Any(type_url=_OTHER_OPTIONS, value=options.SerializeToString())


def exec_request(
    container_id: str,
    files: ExecFiles,
    streams: tuple[int | None, int | None, int | None],
    *,
    terminal: bool,
) -> pb.ExecProcessRequest:
    """One more process, whose streams are pipes of which these are descriptors of ours. Raises OSError."""
    stdin, stdout, stderr = map(_path_of, streams)
    return pb.ExecProcessRequest(
        id=container_id,
        exec_id=files.process.stem,
        terminal=terminal,
        stdin=stdin,
        stdout=stdout,
        stderr="" if terminal else stderr,
        spec=pb.Any(type_url=PROCESS_TYPE, value=files.process.read_bytes()),
    )


def hold_request(plan: TaskPlan) -> Hold:
    """The container's streams, to be held."""
    return Hold(
        plan.object_id,
        str(plan.bundle_dir),
        None if plan.log_file is None else str(plan.log_file),
        plan.terminal,
        plan.stdin,
        plan.stdin_once,
    )


def _path_of(fd: int | None) -> str:
    """By which a process of this node opens our end of a pipe; no stream for None."""
    return "" if fd is None else f"/proc/{os.getpid()}/fd/{fd}"
