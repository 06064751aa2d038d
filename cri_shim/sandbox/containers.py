"""The container calls of RuntimeService: create, start, stop, remove, list and others.

Rules:
- The work of a creation, start, stop or removal belongs to the server, not to the call (`single_flight`).
- A container's lock is held while its state changes, never during a grace period or a removal.
- `creation` creates containers; `exit_handling` stops them and handles exits.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from cri_shim.errors import CriShimError, NotFoundError, ProgramError, WrongStateError
from cri_shim.kernel_call import in_time_for
from cri_shim.operations import documents, step
from cri_shim.sandbox.container_log import check_log_file
from cri_shim.sandbox.details import container_details, read_documents
from cri_shim.sandbox.exit_handling import NOT_STARTED
from cri_shim.sandbox.store.model import ContainerMetadata, ContainerState
from cri_shim.sandbox.store.processes import own_kernel_runtime
from cri_shim.sandbox.store.requests import name_is_going, request_digest, require_ready
from cri_shim.single_flight import SingleFlight

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from cri_shim._pb.cri.v1 import api_pb2 as api
    from cri_shim.oci.conmon import Monitors
    from cri_shim.oci.runtime import Runtime
    from cri_shim.operations import Operations
    from cri_shim.paths import Paths
    from cri_shim.sandbox.container_removal import ContainerRemoval
    from cri_shim.sandbox.container_resources import ContainerResources
    from cri_shim.sandbox.creation import Creation
    from cri_shim.sandbox.exec.attach import AttachSessions
    from cri_shim.sandbox.exec.sync import ExecResult, Execs
    from cri_shim.sandbox.exit_handling import ExitHandling
    from cri_shim.sandbox.spec.cgroup_paths import CgroupPaths
    from cri_shim.sandbox.store.store import Container, Sandbox, Store

log = structlog.get_logger()


class Containers:
    """The container calls of RuntimeService."""

    def __init__(
        self,
        *,
        paths: Paths,
        store: Store[Container],
        sandboxes: Store[Sandbox],
        creation: Creation,
        exit_handling: ExitHandling,
        removal: ContainerRemoval,
        resources: ContainerResources,
        runtime_of: Callable[[str], Runtime],
        monitors: Monitors,
        execs: Execs,
        cgroup_paths: CgroupPaths,
        attach_sessions: AttachSessions,
        operations: Operations,
    ) -> None:
        self._paths = paths
        self._store = store
        self._sandboxes = sandboxes
        self._creation = creation
        self._exit_handling = exit_handling
        self._removal = removal
        self._resources = resources
        self._runtime_of = runtime_of
        self._monitors = monitors
        self._execs = execs
        self._cgroup_paths = cgroup_paths
        self._attach_sessions = attach_sessions
        self._operations = operations
        self._creations: SingleFlight[str] = SingleFlight("CreateContainer", operations)
        self._starts: SingleFlight[None] = SingleFlight("StartContainer", operations)
        self._removals: SingleFlight[None] = SingleFlight("RemoveContainer", operations)

    # --- CreateContainer -----------------------------------------------------------------------------------------

    async def create_container(
        self,
        sandbox_id: str,
        config: api.ContainerConfig,
        sandbox_config: api.PodSandboxConfig,
    ) -> str:
        """Create a container in a ready sandbox and return its ID.

        A retry of the same request joins the work or gets its result. Raises NotFoundError (sandbox, image),
        WrongStateError (sandbox not ready), InvalidArgumentError, AlreadyExistsError (name in use), and the errors of
        the runtime.
        """
        sandbox = self._sandboxes.find(sandbox_id)
        metadata = ContainerMetadata(config.metadata.name, config.metadata.attempt)
        digest = request_digest(config.SerializeToString(deterministic=True), sandbox.id)
        name = metadata.reserved_name(sandbox.id)
        holder = self._store.by_name(name)
        if holder is not None and self._removals.is_under_way(holder.id):
            raise name_is_going("container", name, holder.id, self._operations)
        return await self._creations.run(
            name,
            digest.encode(),
            lambda: self._creation.create(sandbox, config, metadata, digest),
        )

    async def undo(self, container: Container) -> None:
        """Remove a container whose creation was never answered.

        A RemoveContainer that comes meanwhile joins the work.
        """
        await self._removals.run(container.id, b"", lambda: self._removal.destroy(container))

    # --- StartContainer ------------------------------------------------------------------------------------------

    async def start_container(self, container_id: str) -> None:
        """Start a created container.

        Raises WrongStateError if it is not in state created, ProgramError if its program cannot be run,
        RuntimeCommandError if the runtime fails. With the last two it becomes exited, with the reason StartError.
        """
        container = self.find(container_id)
        await self._starts.run(container.id, b"", lambda: self._start(container))

    async def _start(self, container: Container) -> None:
        require_ready(self._sandboxes.find(container.sandbox_id))
        async with container.lock:
            if container.state is not ContainerState.CREATED:
                raise WrongStateError(f"container {container.id} is {container.state}, not created")
            if fault := container.status.start_fault:
                self._exit_handling.finish_unstarted(container, fault)
                raise ProgramError(f"cannot start container {container.id}", fault, NOT_STARTED)
            runtime = self._runtime_of(container.record.handler)
            try:
                await runtime.start(container.id, self._paths.container(container.id).bundle_dir)
            except CriShimError as error:
                if await _runs(runtime, container.id):
                    # A former daemon was killed during the start, which succeeded without it.
                    self._store.update(container, container.status.started(time.time_ns()))
                    return
                self._exit_handling.finish_unstarted(container, str(error))
                raise
            self._store.update(container, container.status.started(time.time_ns()))
        log.info("container started", container_id=container.id)

    # --- StopContainer -------------------------------------------------------------------------------------------

    async def stop_container(self, container_id: str, timeout_s: int) -> None:
        """Send the stop signal, wait up to `timeout_s` seconds, then kill. Returns once the container has exited.

        Succeeds for a container that is removed or has exited. Raises DeadlineError if SIGKILL does not end it.
        """
        try:
            container = self._store.find(container_id)
        except NotFoundError:
            return
        self._attach_sessions.unblock(container.id)
        await self._exit_handling.stop(container, timeout_s)

    async def stop_all(self, sandbox_id: str) -> None:
        """Kill every container of a sandbox, and undo creations under way. Raises DeadlineError.

        The caller has marked the sandbox as not ready, so no further creation begins.
        """
        being_made = [
            container.name
            for container in self._store.of_sandbox(sandbox_id)
            if not container.status.is_complete
        ]
        await asyncio.gather(
            self._stop_complete(sandbox_id),
            *(self._end_creation(sandbox_id, name) for name in being_made),
        )
        if being_made:  # a creation may have completed before it could be cancelled
            await self._stop_complete(sandbox_id)
        # Containers in a pod with its own kernel are torn down before that kernel ends.
        inside = [
            each
            for each in self.containers_of(sandbox_id)
            if own_kernel_runtime(self._runtime_of, each.record.handler) is not None
        ]
        await asyncio.gather(*map(self._exit_handling.tear_down_process, inside))

    async def _stop_complete(self, sandbox_id: str) -> None:
        containers = self.containers_of(sandbox_id)
        for container in containers:
            self._attach_sessions.unblock(container.id)
        await asyncio.gather(*(self._exit_handling.stop(c, 0) for c in containers))

    async def _end_creation(self, sandbox_id: str, name: str) -> None:
        error = WrongStateError(
            f"sandbox {sandbox_id} was stopped during the creation of container {name}"
        )
        await self._creations.end(name, error)

    # --- RemoveContainer -----------------------------------------------------------------------------------------

    async def remove_container(self, container_id: str) -> None:
        """Remove a container; a running one is killed. Succeeds for a container that is removed already."""
        try:
            container = self._store.find(container_id)
        except NotFoundError:
            return
        await self._removals.run(container.id, b"", lambda: self._remove(container))

    async def _remove(self, container: Container) -> None:
        if container.state is ContainerState.CREATING:
            raise WrongStateError(f"container {container.id} is still being created: retry")
        self._attach_sessions.unblock(container.id)
        await self._exit_handling.stop(container, 0)
        await self._removal.destroy(container)
        log.info("container removed", container_id=container.id)

    async def remove_all(self, sandbox_id: str) -> None:
        """Remove every container of a sandbox."""
        for container in self._store.of_sandbox(sandbox_id):
            # An incomplete container of a former daemon is not listed, but is being undone: join that.
            if container.status.is_complete or self._removals.is_under_way(container.id):
                await self.remove_container(container.id)

    # --- UpdateContainerResources --------------------------------------------------------------------------------

    async def update_container_resources(
        self,
        container_id: str,
        resources: api.LinuxContainerResources,
        annotations: Mapping[str, str],
    ) -> None:
        """Change the limits that are set in `resources`; see `container_resources`."""
        container = self.find(container_id)
        with self._operations.begin("UpdateContainerResources", container.id):
            await self._resources.update(container, resources, annotations)

    # --- looking, and small things -------------------------------------------------------------------------------

    def find(self, id_or_prefix: str) -> Container:
        """The container with this ID or prefix. Raises NotFoundError, also while it is being created.

        Raises InvalidArgumentError for a prefix that several containers share.
        """
        container = self._store.find(id_or_prefix)
        if container.state is ContainerState.CREATING:
            raise NotFoundError("container", id_or_prefix, "it is still being created")
        return container

    def list_containers(self) -> list[Container]:
        """All containers whose creation is complete, oldest first."""
        return [c for c in self._store if c.status.is_complete]

    def containers_of(self, sandbox_id: str) -> list[Container]:
        """The containers of one sandbox whose creation is complete, oldest first."""
        return [c for c in self._store.of_sandbox(sandbox_id) if c.status.is_complete]

    async def exec_sync(
        self, container_id: str, command: Sequence[str], timeout_s: int
    ) -> ExecResult:
        """Run a command in a running container; `timeout_s` 0 means none. See `exec.sync`."""
        container = self.find(container_id)
        with self._operations.begin("ExecSync", container.id), step("waiting for the command"):
            return await self._execs.exec_sync(container, command, timeout_s)

    async def reopen_container_log(self, container_id: str) -> None:
        """Have conmon reopen the log file after a rotation. Returns once the new file exists.

        Raises WrongStateError if the container does not run, has no log, or its log has become a link.
        """
        container = self.find(container_id)
        if container.state is not ContainerState.RUNNING:
            raise WrongStateError(f"container {container.id} is {container.state}, not running")
        if not container.record.log_path:
            raise WrongStateError(f"container {container.id} has no log: its log_path is empty")
        log_file = Path(container.record.log_path)
        sandbox = self._sandboxes.find(container.sandbox_id)
        await in_time_for(
            f"pod {sandbox.id}",
            "looking at the log",
            check_log_file,
            sandbox.config.log_directory,
            log_file,
        )
        self._attach_sessions.unblock(container.id)
        await self._monitors.reopen_log(self._paths.container(container.id).bundle_dir, log_file)

    async def verbose_info(self, container: Container) -> dict[str, object]:
        """The document of a verbose ContainerStatus."""
        read = await read_documents(self._paths.container(container.id))
        details = container_details(
            container, read, cgroup=self._cgroup_paths.directory_of(container)
        )
        return details | {"operations": documents(self._operations.under_way(container.id))}

    async def end_creations(self, grace_s: float) -> None:
        """Wait `grace_s` seconds for creations under way, then cancel and undo them."""
        await self._creations.end_all(grace_s)

    async def close(self, grace_s: float) -> None:
        """Wait `grace_s` seconds for work under way, then cancel and undo it."""
        await asyncio.gather(
            self._creations.close(grace_s),
            self._starts.close(grace_s),
            self._exit_handling.close(grace_s),
            self._removals.close(grace_s),
        )


async def _runs(runtime: Runtime, container_id: str) -> bool:
    try:
        state = await runtime.state(container_id)
    except CriShimError:
        return False
    return state is not None and state.status == "running"
