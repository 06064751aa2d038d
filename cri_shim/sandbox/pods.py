"""Pod sandboxes: run, stop, remove, find.

RunPodSandbox is a list of numbered steps on one `Rollback`. The network attachment and the pause container need nothing
of each other, so they are made side by side: that is where a pod starts sooner than one after the other.

Rules:
- The work belongs to the server: a retry of the same request joins it, or gets its result.
- Stop and Remove succeed on what is gone, may run at once, and finish what a failed creation or Stop left behind.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import msgspec
import structlog

from cri_shim import metrics
from cri_shim._pb.cri.v1 import api_pb2 as api
from cri_shim.background import side_by_side
from cri_shim.config.model import HandlerKind
from cri_shim.errors import AlreadyExistsError, NotFoundError, UnsupportedError, WrongStateError
from cri_shim.ids import new_id
from cri_shim.operations import documents, step
from cri_shim.paths import netns_file
from cri_shim.rollback import Rollback
from cri_shim.sandbox.details import read_documents, sandbox_details
from cri_shim.sandbox.list_bounds import check_sandbox_entry
from cri_shim.sandbox.network.pod_network import PodNetwork, has_host_network
from cri_shim.sandbox.spec.user_namespace import new_pod_userns
from cri_shim.sandbox.store.model import PodMetadata, SandboxRecord, SandboxState, SandboxStatus
from cri_shim.sandbox.store.requests import name_is_going, request_digest, require_ready
from cri_shim.sandbox.store.store import Sandbox, Store, as_json, as_json_aside
from cri_shim.sandbox.teardown import Attempts, Teardown
from cri_shim.single_flight import SingleFlight

if TYPE_CHECKING:
    from collections.abc import Callable

    from cri_shim.host.port import Host
    from cri_shim.host.process import Reaper
    from cri_shim.image.model import Image
    from cri_shim.oci.runtime import Runtime
    from cri_shim.oci.spec.sysctls import PodSysctls
    from cri_shim.operations import Operations
    from cri_shim.paths import Paths
    from cri_shim.sandbox.containers import Containers
    from cri_shim.sandbox.exits import ExitWatch
    from cri_shim.sandbox.pause import PauseContainers
    from cri_shim.sandbox.pod_images import PauseImage
    from cri_shim.sandbox.spec.cgroup_paths import CgroupPaths
    from cri_shim.sandbox.spec.pod_files import PodFiles
    from cri_shim.sandbox.spec.sandbox_specs import SandboxSpecs
    from cri_shim.sandbox.store.model import Process

log = structlog.get_logger()


class Pods:
    """The sandbox half of RuntimeService."""

    def __init__(
        self,
        *,
        host: Host,
        paths: Paths,
        store: Store[Sandbox],
        runtime_of: Callable[[str], Runtime],
        pause: PauseContainers,
        network: PodNetwork,
        files: PodFiles,
        pause_image: PauseImage,
        specs: SandboxSpecs,
        cgroup_paths: CgroupPaths,
        teardown: Teardown,
        exits: ExitWatch,
        reaper: Reaper,
        operations: Operations,
        boot_id: str,
        containers: Containers,
    ) -> None:
        self._host = host
        self._paths = paths
        self._store = store
        self._runtime_of = runtime_of
        self._pause = pause
        self._network = network
        self._files = files
        self._pause_image = pause_image
        self._specs = specs
        self._cgroup_paths = cgroup_paths
        self._teardown = teardown
        self._exits = exits
        self._reaper = reaper
        self._operations = operations
        self._boot_id = boot_id
        self._containers = containers
        self._creations: SingleFlight[str] = SingleFlight("RunPodSandbox", operations)
        self._stops: SingleFlight[None] = SingleFlight("StopPodSandbox", operations)
        self._removals: SingleFlight[None] = SingleFlight("RemovePodSandbox", operations)

    # --- RunPodSandbox -------------------------------------------------------------------------------------------

    async def run_pod_sandbox(self, config: api.PodSandboxConfig, handler: str) -> str:
        """Make a pod's sandbox and return its ID once it is ready.

        A retry of the same request joins the work or gets its result. Raises UnknownRuntimeHandlerError,
        NotReadyError without a network configuration, AlreadyExistsError for a name that a different sandbox holds,
        and whatever the step that failed says.
        """
        metadata = PodMetadata(
            config.metadata.name,
            config.metadata.namespace,
            config.metadata.uid,
            config.metadata.attempt,
        )
        runtime = self._runtime_of(handler)
        if runtime.settings.kind is not HandlerKind.OCI:
            raise UnsupportedError(
                f"runtime handler {runtime.settings.name!r}: kind {runtime.settings.kind} is not served yet: "
                "use a handler of kind oci"
            )
        digest = request_digest(config.SerializeToString(deterministic=True), runtime.settings.name)
        return await self._creations.run(
            metadata.reserved_name,
            digest.encode(),
            lambda: self._run(config, metadata, runtime, digest),
        )

    async def _run(
        self, config: api.PodSandboxConfig, metadata: PodMetadata, runtime: Runtime, digest: str
    ) -> str:
        holder = self._store.by_name(metadata.reserved_name)
        if holder is not None:
            if holder.record.digest == digest and holder.state is SandboxState.READY:
                return holder.id
            if self._removals.is_under_way(holder.id):
                raise name_is_going("sandbox", holder.name, holder.id, self._operations)
            raise AlreadyExistsError(
                f"sandbox name {metadata.reserved_name} is held by sandbox {holder.id} ({holder.state}): "
                "remove that one or raise the attempt"
            )
        with step("waiting for the pause image"):
            image = await self._pause_image.get()
        document = await as_json_aside(config)
        plan = self._specs.plan(config, runtime.settings.name)
        sandbox = self._plan(config, metadata, runtime, digest, image, document)
        rollback = Rollback(f"sandbox {sandbox.id}")
        async with rollback:
            # 1. The record, before any effect.
            rollback.push("record", lambda: self._forget_failed(sandbox, rollback))
            self._store.create(sandbox)
            own_network = not has_host_network(config)
            async with new_pod_userns(
                self._host, sandbox, self._reaper, with_network=own_network
            ) as users:
                # 2. The namespace that both sides need.
                if own_network:
                    rollback.push("netns", lambda: self._undo_namespace(sandbox, rollback))
                    await self._network.create_namespace(
                        sandbox.id, plan.sysctls.network, users.netns_fd if users else None
                    )
                # 3. Network, and the pause container with the pod's files, side by side.
                process = await side_by_side(
                    self._attach(sandbox, plan.sysctls, rollback),
                    self._pause.start(sandbox, plan, runtime, image, rollback, users),
                )
            # 4. Ready: from here on it is listed.
            self._store.commit(sandbox, sandbox.status.committed(time.time_ns(), process))
            rollback.commit()
        self.watch(sandbox, process)
        log.info("sandbox ready", sandbox_id=sandbox.id, ips=list(sandbox.status.ips))
        return sandbox.id

    def _plan(
        self,
        config: api.PodSandboxConfig,
        metadata: PodMetadata,
        runtime: Runtime,
        digest: str,
        image: Image,
        document: msgspec.Raw,
    ) -> Sandbox:
        """Everything that can be refused is refused here, before the first effect."""
        check_sandbox_entry(config, self._store)
        sandbox_id = new_id()
        networks = self._network.plan(sandbox_id, metadata, config)
        record = SandboxRecord(
            id=sandbox_id,
            metadata=metadata,
            handler=runtime.settings.name,
            digest=digest,
            created_at_ns=time.time_ns(),
            boot_id=self._boot_id,
            cgroup_parent=self._cgroup_paths.parent(config),
            netns="" if has_host_network(config) else str(netns_file(sandbox_id)),
            hostname=self._files.check(config),
            image_id=image.id,
            layers=self._pause_image.layers(image),
            labels=self._specs.labels(config),
            config=document,
        )
        sandbox = Sandbox(record, SandboxStatus(attachments=networks.attachments), config)
        sandbox.host_ports = networks.ports
        return sandbox

    async def _attach(self, sandbox: Sandbox, sysctls: PodSysctls, rollback: Rollback) -> None:
        if sandbox.status.attachments:
            rollback.push("network", lambda: self._network.detach(sandbox))
            ips = await self._network.attach(sandbox)
            sandbox.status = msgspec.structs.replace(sandbox.status, ips=ips)
        if sysctls.interfaces:
            await self._network.set_sysctls(sandbox.id, sysctls.interfaces, sysctls.optional)

    async def _undo_namespace(self, sandbox: Sandbox, rollback: Rollback) -> None:
        # Plugins find what to take away through the namespace: it stays for the DEL that is still to come.
        if "network" not in rollback.failed:
            await self._network.remove_namespace(sandbox.id)

    async def _forget_failed(self, sandbox: Sandbox, rollback: Rollback) -> None:
        if failed := await self._teardown.record(self._paths.sandbox(sandbox.id), rollback):
            reason = f"creation failed, and so did the undoing of: {failed}"
            self.give_up_creating(sandbox, reason)
        else:
            self._store.forget(sandbox)

    def give_up_creating(self, sandbox: Sandbox, reason: str) -> None:
        """Show what could not be undone, as not ready, so that the kubelet's Stop and Remove finish the work."""
        stopped = sandbox.status.stopped(time.time_ns(), reason)
        self._store.update(sandbox, msgspec.structs.replace(stopped, reason=reason))

    async def undo(self, sandbox: Sandbox) -> None:
        """Take away a creation that nobody was told of; a Stop or a Remove that comes meanwhile joins it.

        Raises as `tear_down`.
        """
        await self._removals.run(sandbox.id, b"", lambda: self._undo(sandbox))

    async def _undo(self, sandbox: Sandbox) -> None:
        await self._stops.run(sandbox.id, b"", lambda: self.tear_down(sandbox))
        await self._teardown.root_files(self._paths.sandbox(sandbox.id))
        self._store.forget(sandbox)

    # --- StopPodSandbox, RemovePodSandbox ------------------------------------------------------------------------

    async def stop_pod_sandbox(self, sandbox_id: str) -> None:
        """Stop the pod's containers, take it off its networks, end its pause container.

        Succeeds for a sandbox that is gone. A CNI DEL that fails is pending from then on, and holds nobody up.
        Raises what else failed, after everything was tried: call again.
        """
        if sandbox := await self._find_made(sandbox_id):
            await self._stops.run(sandbox.id, b"", lambda: self._stop(sandbox))

    async def _find_made(self, sandbox_id: str) -> Sandbox | None:
        """To be stopped; the creation of one that is being made is ended first. Raises DeadlineError."""
        try:
            sandbox = self._store.find(sandbox_id)
        except NotFoundError:
            return None
        if sandbox.state is SandboxState.CREATING:
            error = WrongStateError(f"sandbox {sandbox.id} was stopped while it was created")
            await self._creations.end(sandbox.name, error)
        return self._store.get(sandbox.id)

    async def _stop(self, sandbox: Sandbox) -> None:
        if sandbox.status.torn_down:
            await self._network.remove_namespace(sandbox.id)  # a file of its name, that others made
            return
        self._mark_stopped(sandbox, "stopped")  # first: no further container begins to be made
        await self._containers.stop_all(sandbox.id)
        await self.tear_down(sandbox)
        self._store.update(sandbox, msgspec.structs.replace(sandbox.status, torn_down=True))
        log.info("sandbox stopped", sandbox_id=sandbox.id)

    async def tear_down(self, sandbox: Sandbox) -> None:
        """Take away everything a sandbox holds but its record, whatever state it is in.

        Raises what failed; every step that did not is done, and a further call does the rest.
        """
        self._exits.forget(sandbox.id)
        paths = self._paths.sandbox(sandbox.id)
        attempts = Attempts()

        async def end_pause() -> None:
            cgroup = self._cgroup_paths.of(sandbox)
            handler = sandbox.record.handler
            ended = await attempts.each(
                lambda: self._teardown.process(sandbox.id, handler, cgroup.relative_dir, paths)
            )
            # Where it has not ended, the process's note among the files is what a further call needs.
            take_away = self._teardown.state_files if ended else self._teardown.mounts
            await attempts.each(lambda: take_away(paths))

        # Side by side: a DEL finds the namespace by its name, which needs no process in it.
        left = await side_by_side(end_pause(), attempts.each(lambda: self._network.detach(sandbox)))
        if left:
            # Plugins find what to take away through the namespace: it goes after the last DEL.
            await attempts.each(lambda: self._network.remove_namespace(sandbox.id))
        if attempts.failed:
            self._store.save(sandbox)  # which networks it has left
        attempts.finish(sandbox.id)

    async def remove_pod_sandbox(self, sandbox_id: str) -> None:
        """Stop the sandbox if need be, remove its containers by force, and everything that is left of it.

        Succeeds for a sandbox that is gone.
        """
        if sandbox := await self._find_made(sandbox_id):
            await self._removals.run(sandbox.id, b"", lambda: self._remove(sandbox))

    async def _remove(self, sandbox: Sandbox) -> None:
        await self._stops.run(sandbox.id, b"", lambda: self._stop(sandbox))
        await self._containers.remove_all(sandbox.id)
        await self._teardown.root_files(self._paths.sandbox(sandbox.id))
        self._store.forget(sandbox)
        await self._pause_image.sweep_after(sandbox.record.image_id)
        log.info("sandbox removed", sandbox_id=sandbox.id)

    # --- UpdatePodSandboxResources -------------------------------------------------------------------------------

    async def update_pod_sandbox_resources(
        self,
        sandbox_id: str,
        overhead: api.LinuxContainerResources,
        resources: api.LinuxContainerResources,
    ) -> None:
        """Take note of a pod's new size. Its cgroup is kubelet's, which has changed the limits itself.

        Raises NotFoundError, WrongStateError unless it is ready, InvalidArgumentError.
        """
        sandbox = self.find(sandbox_id)
        require_ready(sandbox)
        self._specs.check_sizing(overhead, resources)
        sizing = as_json(api.LinuxPodSandboxConfig(overhead=overhead, resources=resources))
        self._store.update(sandbox, msgspec.structs.replace(sandbox.status, sizing=sizing))

    # --- what happens on its own ---------------------------------------------------------------------------------

    def watch(self, sandbox: Sandbox, process: Process) -> None:
        """Learn of the pause process' end, which makes the pod not ready, at once."""
        self._exits.watch(sandbox.id, process, monitor=None)

    def on_exit(self, sandbox: Sandbox) -> None:
        """The pause process ended: the pod is not ready any more, and says why."""
        self._mark_stopped(sandbox, "the pause container ended on its own")
        log.warning("sandbox not ready", sandbox_id=sandbox.id, reason=sandbox.status.reason)
        metrics.CONTAINER_EXITS.labels(reason="PauseExited").inc()

    def _mark_stopped(self, sandbox: Sandbox, reason: str) -> None:
        if sandbox.state is not SandboxState.NOT_READY:
            self._store.update(sandbox, sandbox.status.stopped(time.time_ns(), reason))

    # --- looking -------------------------------------------------------------------------------------------------

    def find(self, id_or_prefix: str) -> Sandbox:
        """The sandbox of this ID or prefix; NotFoundError for one that is still being created."""
        sandbox = self._store.find(id_or_prefix)
        if sandbox.state is SandboxState.CREATING:
            raise NotFoundError("sandbox", id_or_prefix, "it is still being created")
        return sandbox

    def list_pod_sandbox(self) -> list[Sandbox]:
        """Every sandbox that has been ready once, oldest first."""
        return [s for s in self._store if s.status.is_complete]

    async def verbose_info(self, sandbox: Sandbox) -> dict[str, object]:
        """What an operator may want to know beyond CRI's fields."""
        return sandbox_details(
            sandbox,
            await read_documents(self._paths.sandbox(sandbox.id)),
            self._network.describe(sandbox),
            cgroup=self._cgroup_paths.directory_of(sandbox),
        ) | {"operations": documents(self._operations.under_way(sandbox.id))}

    async def end_creations(self, grace_s: float) -> None:
        """Let what is being made become complete within `grace_s` seconds, else undo it."""
        await self._creations.end_all(grace_s)

    async def close(self, grace_s: float) -> None:
        """Let running work end, at most `grace_s` seconds, then undo it."""
        await asyncio.gather(
            self._creations.close(grace_s),
            self._stops.close(grace_s),
            self._removals.close(grace_s),
        )
