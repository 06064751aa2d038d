"""Containers: create, start, stop, remove, find, and what happens when one ends.

Rules:
- A creation's work belongs to the server (see `pods`); so do a stop and a removal.
- A container's lock is held while its state is decided, never across a grace period or a removal's waiting.
- The exit is shown as soon as it is known; the runtime's state and the cgroup go right after it, so that an exited
  container costs nothing but its files.
- Concurrent stops share one: the earliest deadline counts.
"""

from __future__ import annotations

import asyncio
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import structlog

from cri_shim import metrics
from cri_shim.background import until_done
from cri_shim.errors import (
    AlreadyExistsError,
    CriShimError,
    DeadlineError,
    InvalidArgumentError,
    NotFoundError,
    RuntimeCommandError,
    WrongStateError,
    host_step,
)
from cri_shim.host.files import make_dirs_in_root
from cri_shim.host.pidfd import kill_process
from cri_shim.ids import new_id
from cri_shim.rollback import Rollback
from cri_shim.sandbox.exits import Exit
from cri_shim.sandbox.launch import Launch, Launcher
from cri_shim.sandbox.model import (
    ContainerMetadata,
    ContainerRecord,
    ContainerState,
    ContainerStatus,
    SandboxState,
    User,
)
from cri_shim.sandbox.pods import request_digest
from cri_shim.sandbox.release import running
from cri_shim.sandbox.store import Container, Sandbox, Store, as_json
from cri_shim.single_flight import SingleFlight

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cri_shim._pb.cri.v1 import api_pb2 as api
    from cri_shim.background import Background
    from cri_shim.host.cgroups.tree import Cgroups
    from cri_shim.image.model import Image
    from cri_shim.image.store import ImageStore
    from cri_shim.oci.conmon import Monitors
    from cri_shim.oci.runtime import Runtime
    from cri_shim.paths import Paths
    from cri_shim.sandbox.container_io import ExecResult, Execs
    from cri_shim.sandbox.exits import ExitWatch
    from cri_shim.sandbox.release import Release
    from cri_shim.sandbox.specs import Specs

log = structlog.get_logger()
KILL_TIMEOUT_S = 10.0
"""After SIGKILL: what has not ended by then sits in the kernel, and the caller is told."""
KILLED = 128 + signal.SIGKILL


@dataclass(slots=True, eq=False)
class _Stop:
    """One stop that concurrent callers share."""

    deadline: float
    """When the grace period ends, by the loop's clock."""
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    """The container ended, or the deadline moved."""
    killing: bool = False
    """The grace period is over; the deadline is now that of SIGKILL, which nobody shortens."""

    def shorten(self, deadline: float) -> None:
        if not self.killing and deadline < self.deadline:
            self.deadline = deadline
            self.changed.set()


class Containers:
    """The container half of RuntimeService."""

    def __init__(
        self,
        *,
        paths: Paths,
        store: Store[Container],
        sandboxes: Store[Sandbox],
        images: ImageStore,
        runtime_of: Callable[[str], Runtime],
        monitors: Monitors,
        execs: Execs,
        launcher: Launcher,
        specs: Specs,
        cgroups: Cgroups,
        release: Release,
        exits: ExitWatch,
        background: Background,
        boot_id: str,
    ) -> None:
        self._paths = paths
        self._store = store
        self._sandboxes = sandboxes
        self._images = images
        self._runtime_of = runtime_of
        self._monitors = monitors
        self._execs = execs
        self._launcher = launcher
        self._specs = specs
        self._cgroups = cgroups
        self._release = release
        self._exits = exits
        self._background = background
        self._boot_id = boot_id
        self._creations: SingleFlight[str] = SingleFlight()
        self._starts: SingleFlight[None] = SingleFlight()
        self._stopping: SingleFlight[None] = SingleFlight()
        self._removals: SingleFlight[None] = SingleFlight()
        self._stops: dict[str, _Stop] = {}

    # --- CreateContainer -----------------------------------------------------------------------------------------

    async def create_container(
        self,
        sandbox_id: str,
        config: api.ContainerConfig,
        sandbox_config: api.PodSandboxConfig,
    ) -> str:
        """Create a container in a ready sandbox and return its ID.

        A retry of the same request joins the work or gets its result. Raises NotFoundError (sandbox, image),
        WrongStateError (sandbox not ready), InvalidArgumentError, AlreadyExistsError, and what the runtime says.
        """
        sandbox = self._sandboxes.find(sandbox_id)
        metadata = ContainerMetadata(config.metadata.name, config.metadata.attempt)
        digest = request_digest(config.SerializeToString(deterministic=True), sandbox.id)
        return await self._creations.run(
            metadata.reserved_name(sandbox.id),
            digest.encode(),
            lambda: self._create(sandbox, config, metadata, digest),
        )

    async def _create(
        self,
        sandbox: Sandbox,
        config: api.ContainerConfig,
        metadata: ContainerMetadata,
        digest: str,
    ) -> str:
        name = metadata.reserved_name(sandbox.id)
        holder = self._store.by_name(name)
        if holder is not None:
            if holder.record.digest == digest and holder.state is ContainerState.CREATED:
                return holder.id
            raise AlreadyExistsError(
                f"container name {name} is held by container {holder.id} ({holder.state}): "
                "remove that one or raise the attempt"
            )
        require_ready(sandbox)
        container, launch, image = self._plan(sandbox, config, metadata, digest)
        rollback = Rollback(f"container {container.id}")
        async with rollback:
            # 1. The record, before any effect.
            rollback.push("record", lambda: self._forget_failed(container, rollback))
            self._store.create(container)
            _make_log_directory(sandbox.config.log_directory, launch.log_file)
            # 2. The root file system: the user is looked up in it.
            await self._launcher.mount_rootfs(launch, rollback)
            # 3. The spec, and the process that waits for its start.
            spec, user = await self._specs.container_spec(sandbox, container, image)
            try:
                created = await self._launcher.create(launch, spec, rollback)
            except RuntimeCommandError:
                require_ready(sandbox)  # says it better, if the pod was stopped meanwhile
                raise
            # 4. Complete, unless the pod was stopped meanwhile.
            require_ready(sandbox)
            container.process_spec = spec["process"]
            self._store.commit(
                container,
                container.status.committed(
                    time.time_ns(),
                    created.process,
                    created.monitor,
                    User(user.uid, user.gid, user.additional_gids),
                ),
            )
            rollback.commit()
        self._exits.watch(container.id, created.process, created.monitor)
        log.info("container created", container_id=container.id, sandbox_id=sandbox.id)
        return container.id

    def _plan(
        self,
        sandbox: Sandbox,
        config: api.ContainerConfig,
        metadata: ContainerMetadata,
        digest: str,
    ) -> tuple[Container, Launch, Image]:
        """Everything that can be refused is refused here, before the first effect."""
        image = self._images.find(config.image.image)
        if image is None:
            raise NotFoundError("image", config.image.image, "pull or import it first")
        container_id = new_id()
        paths = self._paths.container(container_id)
        layers = self._images.layer_stack(image).lowers
        log_file = log_path(sandbox.config.log_directory, config.log_path)
        record = ContainerRecord(
            id=container_id,
            sandbox_id=sandbox.id,
            metadata=metadata,
            handler=sandbox.record.handler,
            digest=digest,
            created_at_ns=time.time_ns(),
            boot_id=self._boot_id,
            cgroup_parent=sandbox.record.cgroup_parent,
            image_id=image.id,
            image_ref=image.repo_digests[0] if image.repo_digests else image.id,
            layers=tuple(layers),
            log_path=str(log_file) if log_file else "",
            stop_signal=self._specs.stop_signal(config, image),
            config=as_json(config),
        )
        launch = Launch(
            object_id=container_id,
            paths=paths,
            runtime=self._runtime_of(record.handler),
            place=self._specs.place(record.cgroup_parent, container_id),
            layers=layers,
            log_file=log_file,
            terminal=config.tty,
            stdin=config.stdin,
            stdin_once=config.stdin_once,
        )
        return Container(record, ContainerStatus(), config), launch, image

    async def _forget_failed(self, container: Container, rollback: Rollback) -> None:
        if not rollback.failed:
            try:
                await self._release.root_files(self._paths.container(container.id))
            except OSError:
                rollback.failed.append("record")
                log.exception("record not removed", container_id=container.id)
        if rollback.failed:
            self.give_up_creating(container, f"the undoing failed of: {', '.join(rollback.failed)}")
            return
        self._store.forget(container)

    def give_up_creating(self, container: Container, message: str) -> None:
        """Show what could not be undone, as exited, so that the kubelet's Remove finishes the work."""
        now = time.time_ns()
        self._store.update(
            container,
            msgspec.structs.replace(
                container.status,
                committed_at_ns=now,
                finished_at_ns=now,
                exit_code=128,
                reason="CreateContainerError",
                message=message,
            ),
        )
        container.ended.set()

    # --- StartContainer ------------------------------------------------------------------------------------------

    async def start_container(self, container_id: str) -> None:
        """Start a created container.

        Raises WrongStateError for any other, RuntimeCommandError when the runtime refuses: then it is exited, with the
        reason StartError.
        """
        container = self.find(container_id)
        await self._starts.run(container.id, b"", lambda: self._start(container))

    async def _start(self, container: Container) -> None:
        require_ready(self._sandboxes.find(container.sandbox_id))
        async with container.lock:
            if container.state is not ContainerState.CREATED:
                raise WrongStateError(f"container {container.id} is {container.state}, not created")
            runtime = self._runtime_of(container.record.handler)
            try:
                await runtime.start(container.id)
            except CriShimError as error:
                if await _runs(runtime, container.id):
                    # A start that a former daemon had begun came to its end without it.
                    self._store.update(container, container.status.started(time.time_ns()))
                    return
                self._finish(container, 128, time.time_ns(), "StartError", str(error))
                self._background.start("release", self._release_exited(container))
                raise
            self._store.update(container, container.status.started(time.time_ns()))
        log.info("container started", container_id=container.id)

    # --- the end of a container ----------------------------------------------------------------------------------

    def on_exit(self, container: Container, exit_: Exit) -> None:
        """Its process ended, or its monitor did."""
        self._background.start(f"exit of {container.id}", self.note_exit(container, exit_))

    async def note_exit(
        self, container: Container, exit_: Exit, *, reason: str | None = None
    ) -> None:
        """Make an exit known and release what it held. `reason` is for an end whose cause is known better."""
        code, at_ns, message = exit_.code, exit_.at_ns or time.time_ns(), ""
        if code is None:
            # Nobody will ever know the real code; a container that nobody watches must not go on.
            await until_done(
                f"killing container {container.id}",
                lambda: self._release.kill_processes(
                    container.id, self.cgroup_dir(container), self._paths.container(container.id)
                ),
            )
            code, reason, message = KILLED, "MonitorDied", "its monitor ended; it was killed"
        async with container.lock:  # a start under way comes first
            self._finish(container, code, at_ns, reason or self._explain(container, code), message)
        await self._release_exited(container)

    def _explain(self, container: Container, code: int) -> str:
        if code == 0:
            return "Completed"
        if (
            code == KILLED
            and container.id not in self._stops
            and self._ran_out_of_memory(container)
        ):
            return "OOMKilled"
        return "Error"

    def _ran_out_of_memory(self, container: Container) -> bool:
        kills = self._cgroups.oom_kills(self.cgroup_dir(container))
        if kills is not None:
            return kills > 0
        return (self._paths.container(container.id).persist_dir / "oom").exists()

    def _finish(
        self, container: Container, code: int, at_ns: int, reason: str, message: str
    ) -> None:
        if container.state is ContainerState.EXITED:
            return
        self._exits.forget(container.id)
        self._store.update(
            container, container.status.exited(at_ns, code, reason=reason, message=message)
        )
        container.ended.set()
        if (stop := self._stops.get(container.id)) is not None:
            stop.changed.set()
        metrics.CONTAINER_EXITS.labels(reason=reason).inc()
        if reason == "OOMKilled":
            metrics.CONTAINER_OOMS.inc()
        log.info("container exited", container_id=container.id, exit_code=code, reason=reason)

    async def _release_exited(self, container: Container) -> None:
        await until_done(
            f"releasing container {container.id}", lambda: self.release_process(container)
        )

    async def release_process(self, container: Container) -> None:
        """Take away what the runtime and the kernel still hold of a container; what runs of it is killed."""
        async with container.lock:
            if container.status.released:
                return
            await self._release.process(
                container.id,
                container.record.handler,
                self.cgroup_dir(container),
                self._paths.container(container.id),
            )
            self._store.update(container, msgspec.structs.replace(container.status, released=True))

    # --- StopContainer -------------------------------------------------------------------------------------------

    async def stop_container(self, container_id: str, timeout_s: int) -> None:
        """Send the stop signal, wait up to `timeout_s` seconds, then kill. Returns once the container has exited.

        Succeeds for one that is gone or has exited. Raises DeadlineError if even SIGKILL doesn't end it.
        """
        try:
            container = self._store.find(container_id)
        except NotFoundError:
            return
        await self._stop_and_wait(container, timeout_s)

    async def _stop_and_wait(self, container: Container, timeout_s: float) -> None:
        if container.state is ContainerState.EXITED:
            return
        deadline = asyncio.get_running_loop().time() + max(timeout_s, 0)
        stop = self._stops.get(container.id)
        if stop is None:
            stop = self._stops[container.id] = _Stop(deadline)
        else:
            stop.shorten(deadline)
        shared = stop
        await self._stopping.run(container.id, b"", lambda: self._stop(container, shared))

    async def _stop(self, container: Container, stop: _Stop) -> None:
        process = container.status.process
        try:
            if process is not None and stop.deadline > asyncio.get_running_loop().time():
                kill_process(process.pid, process.start_ticks, container.record.stop_signal)
                await _wait_for_end(container, stop)
            if not container.ended.is_set():
                stop.killing = True
                if process is not None:
                    kill_process(process.pid, process.start_ticks)
                await self._cgroups.kill_all(self.cgroup_dir(container), timeout_s=KILL_TIMEOUT_S)
                stop.deadline = asyncio.get_running_loop().time() + KILL_TIMEOUT_S
                await _wait_for_end(container, stop)
            if not container.ended.is_set() and not running(process):
                # Its end was missed, whatever the reason: it must not keep the container from being removed.
                exit_ = self._exits.read(container.id) or Exit(None, 0)
                await self.note_exit(container, exit_)
            if not container.ended.is_set():
                raise DeadlineError(
                    f"container {container.id}: process {process.pid if process else '?'} did not end "
                    f"{KILL_TIMEOUT_S:g} s after SIGKILL: it hangs in the kernel (see its /proc/PID/stack)"
                )
        finally:
            self._stops.pop(container.id, None)

    async def stop_all(self, sandbox_id: str) -> None:
        """End every container of a sandbox at once, without grace."""
        await asyncio.gather(
            *(self._stop_and_wait(c, 0) for c in self._of_sandbox(sandbox_id) if _is_complete(c))
        )

    # --- RemoveContainer -----------------------------------------------------------------------------------------

    async def remove_container(self, container_id: str) -> None:
        """Remove a container, by force if it runs. Succeeds for one that is gone."""
        try:
            container = self._store.find(container_id)
        except NotFoundError:
            return
        await self._removals.run(container.id, b"", lambda: self._remove(container))

    async def _remove(self, container: Container) -> None:
        if container.state is ContainerState.CREATING:
            raise WrongStateError(f"container {container.id} is still being created: call again")
        await self._stop_and_wait(container, 0)
        await self.destroy(container)
        log.info("container removed", container_id=container.id)

    async def destroy(self, container: Container) -> None:
        """Take away everything a container owns, whatever state it is in; its processes are killed."""
        self._exits.forget(container.id)
        await self.release_process(container)
        paths = self._paths.container(container.id)
        await self._release.state_files(paths)
        await self._release.root_files(paths)
        self._store.forget(container)
        if self._images.find(container.record.image_id) is None:
            # The image was removed while this container still stood on its layers.
            await self._images.sweep()

    async def remove_all(self, sandbox_id: str) -> None:
        """Remove every container of a sandbox."""
        for container in self._of_sandbox(sandbox_id):
            if _is_complete(container):
                await self.remove_container(container.id)

    # --- looking, and small things -------------------------------------------------------------------------------

    def find(self, id_or_prefix: str) -> Container:
        """The container of this ID or prefix; NotFoundError for one that is still being created."""
        container = self._store.find(id_or_prefix)
        if container.state is ContainerState.CREATING:
            raise NotFoundError("container", id_or_prefix, "it is still being created")
        return container

    def list_containers(self) -> list[Container]:
        """Every container whose creation is complete, oldest first."""
        return [c for c in self._store if _is_complete(c)]

    async def exec_sync(
        self, container_id: str, command: Sequence[str], timeout_s: int
    ) -> ExecResult:
        """Run a command in a running container; see `container_io`."""
        return await self._execs.exec_sync(self.find(container_id), command, timeout_s)

    async def reopen_container_log(self, container_id: str) -> None:
        """Make the monitor open the log file anew, after a rotation; returns once the new file exists.

        Raises WrongStateError for a container that does not run or keeps no log.
        """
        container = self.find(container_id)
        if container.state is not ContainerState.RUNNING:
            raise WrongStateError(f"container {container.id} is {container.state}, not running")
        if not container.record.log_path:
            raise WrongStateError(f"container {container.id} keeps no log: its log_path is empty")
        await self._monitors.reopen_log(
            self._paths.container(container.id).bundle_dir, Path(container.record.log_path)
        )

    def verbose_info(self, container: Container) -> dict[str, object]:
        """What an operator may want to know beyond CRI's fields."""
        paths = self._paths.container(container.id)
        status = container.status
        try:
            spec = msgspec.json.decode(paths.spec_file.read_bytes())
        except (OSError, msgspec.MsgspecError):
            spec = None
        return {
            "sandboxID": container.sandbox_id,
            "pid": status.process.pid if status.process and not status.finished_at_ns else 0,
            "monitorPid": status.monitor.pid if status.monitor else 0,
            "runtimeHandler": container.record.handler,
            "image": container.record.image_id,
            "snapshot": {"layers": list(container.record.layers), "upper": str(paths.upper_dir)},
            "cgroup": self.cgroup_dir(container),
            "rootDirectory": str(paths.root_dir),
            "runtimeSpec": spec,
            "config": msgspec.json.decode(container.record.config),
        }

    async def close(self, grace_s: float) -> None:
        """Let running work end, at most `grace_s` seconds, then undo it."""
        await asyncio.gather(
            self._creations.close(grace_s),
            self._starts.close(grace_s),
            self._stopping.close(grace_s),
            self._removals.close(grace_s),
        )

    def _of_sandbox(self, sandbox_id: str) -> list[Container]:
        return [c for c in self._store if c.sandbox_id == sandbox_id]

    def cgroup_dir(self, container: Container) -> str:
        """Its cgroup's directory in every hierarchy."""
        return self._specs.place(container.record.cgroup_parent, container.id).relative_dir


def _is_complete(container: Container) -> bool:
    return container.state is not ContainerState.CREATING


def _make_log_directory(log_directory: str, log_file: Path | None) -> None:
    """What kubelet makes itself and a person with crictl forgets; never out of the pod's directory by a link."""
    if log_file is None:
        return
    parent = str(log_file.parent.relative_to(log_directory))
    with host_step(f"log directory {log_file.parent}"):
        Path(log_directory).mkdir(parents=True, exist_ok=True, mode=0o755)
        make_dirs_in_root(Path(log_directory), parent, mode=0o755, uid=0, gid=0)


async def _runs(runtime: Runtime, container_id: str) -> bool:
    try:
        state = await runtime.state(container_id)
    except CriShimError:
        return False
    return state is not None and state.status == "running"


async def _wait_for_end(container: Container, stop: _Stop) -> None:
    """Return when the container has ended or the stop's deadline, which may move, is over."""
    loop = asyncio.get_running_loop()
    while not container.ended.is_set() and (left := stop.deadline - loop.time()) > 0:
        stop.changed.clear()
        try:
            async with asyncio.timeout(left):
                await stop.changed.wait()
        except TimeoutError:
            return


def require_ready(sandbox: Sandbox) -> None:
    """Raises WrongStateError, with the reason, for a sandbox that is not ready."""
    if sandbox.state is not SandboxState.READY:
        why = sandbox.status.reason or "it is still being created"
        raise WrongStateError(f"sandbox {sandbox.id} is not ready: {why}")


MAX_NAME_BYTES = 255
"""NAME_MAX of Linux's file systems."""


def log_path(log_directory: str, path: str) -> Path | None:
    """Where the container's log goes: inside the pod's log directory, or nowhere when CRI names no path.

    Raises InvalidArgumentError for a path that leaves the directory.
    """
    if not log_directory or not path:
        return None
    parts = path.split("/")
    if path.startswith("/") or ".." in parts or "\0" in path or path.endswith("/"):
        raise InvalidArgumentError(
            f"config.log_path: {path!r}: a relative path without '..' below the pod's log_directory"
        )
    if max(len(part.encode()) for part in parts) > MAX_NAME_BYTES:
        raise InvalidArgumentError(f"config.log_path: a name of more than {MAX_NAME_BYTES} bytes")
    return Path(log_directory) / path
