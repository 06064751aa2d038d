"""The sandbox calls of RuntimeService: run, stop, remove, list.

RunPodSandbox is a sequence of numbered steps on one `Rollback`. The network attachments and the pause container do not
depend on each other, so they are created in parallel.

Rules:
- The work belongs to the server, not to the call: a retry of the same request joins it, or gets its result.
- Stop and Remove succeed for a removed sandbox, may run concurrently, and complete what a failed creation or Stop left.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import msgspec
import structlog

from cri_shim import metrics
from cri_shim._pb.cri.v1 import api_pb2 as api
from cri_shim.background import one_by_one, side_by_side
from cri_shim.errors import AlreadyExistsError, NotFoundError, WrongStateError
from cri_shim.ids import new_id
from cri_shim.operations import documents, step
from cri_shim.paths import netns_file
from cri_shim.rollback import Rollback
from cri_shim.sandbox.details import read_documents, sandbox_details
from cri_shim.sandbox.list_bounds import check_sandbox_entry
from cri_shim.sandbox.network.pod_network import PodNetwork, has_host_network
from cri_shim.sandbox.spec.user_namespace import new_pod_userns
from cri_shim.sandbox.store.model import PodMetadata, SandboxRecord, SandboxState, SandboxStatus
from cri_shim.sandbox.store.processes import Held, own_kernel_runtime
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
    """The sandbox calls of RuntimeService."""

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
        """Create and start a sandbox, and return its ID once it is ready.

        A retry of the same request joins the work or gets its result. Raises UnknownRuntimeHandlerError,
        NotReadyError without a network configuration, AlreadyExistsError for a name that another sandbox holds, and the
        error of a failed step.
        """
        metadata = PodMetadata(
            config.metadata.name,
            config.metadata.namespace,
            config.metadata.uid,
            config.metadata.attempt,
        )
        runtime = self._runtime_of(handler)
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
                "remove that sandbox, or use a higher attempt"
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
                # 2. The network namespace, which both parts of step 3 need.
                if own_network:
                    rollback.push("netns", lambda: self._undo_namespace(sandbox, rollback))
                    await self._network.create_namespace(
                        sandbox.id, plan.sysctls.network, users.netns_fd if users else None
                    )
                # 3. Network attachments, and the pause container with the pod's files, in parallel. A pod with its own
                # kernel takes over the interfaces that exist when it starts, so it is started after the attachments.
                pause = await (one_by_one if runtime.settings.own_kernel else side_by_side)(
                    self._attach(sandbox, plan.sysctls, rollback),
                    self._pause.start(sandbox, plan, runtime, image, rollback, users),
                )
            # 4. Ready: from here on the sandbox is listed.
            self._store.commit(
                sandbox, sandbox.status.committed(time.time_ns(), pause.process, pause.monitor)
            )
            rollback.commit()
        self.watch(sandbox, pause.process, pause.monitor)
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
        """Check the request and build the record, before the first effect."""
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
        # Plugins need the namespace for DEL. If a DEL failed, it is pending, and the namespace stays until it succeeds.
        if "network" not in rollback.failed:
            await self._network.remove_namespace(sandbox.id)

    async def _forget_failed(self, sandbox: Sandbox, rollback: Rollback) -> None:
        if failed := await self._teardown.record(self._paths.sandbox(sandbox.id), rollback):
            reason = f"the creation failed, and its undo failed at: {failed}"
            self.give_up_creating(sandbox, reason)
        else:
            self._store.forget(sandbox)

    def give_up_creating(self, sandbox: Sandbox, reason: str) -> None:
        """Show a sandbox whose undo failed as not ready, so that the kubelet's Stop and Remove complete the undo."""
        stopped = sandbox.status.stopped(time.time_ns(), reason)
        self._store.update(sandbox, msgspec.structs.replace(stopped, reason=reason))

    async def undo(self, sandbox: Sandbox) -> None:
        """Remove a sandbox whose creation was never answered. A Stop or Remove that comes meanwhile joins the work.

        Raises what `tear_down` raises.
        """
        await self._removals.run(sandbox.id, b"", lambda: self._undo(sandbox))

    async def _undo(self, sandbox: Sandbox) -> None:
        await self._stops.run(sandbox.id, b"", lambda: self.tear_down(sandbox))
        await self._teardown.root_files(self._paths.sandbox(sandbox.id))
        self._store.forget(sandbox)

    # --- StopPodSandbox, RemovePodSandbox ------------------------------------------------------------------------

    async def stop_pod_sandbox(self, sandbox_id: str) -> None:
        """Stop the pod's containers, detach it from its networks, and end its pause container.

        Succeeds for a removed sandbox. A failed CNI DEL becomes pending and does not fail the call. Raises the first
        error of the other steps, after all were tried; a retry does the rest.
        """
        if sandbox := await self._find_made(sandbox_id):
            await self._stops.run(sandbox.id, b"", lambda: self._stop(sandbox))

    async def _find_made(self, sandbox_id: str) -> Sandbox | None:
        """The sandbox to stop, or None. A creation under way is cancelled and undone first. Raises DeadlineError."""
        try:
            sandbox = self._store.find(sandbox_id)
        except NotFoundError:
            return None
        if sandbox.state is SandboxState.CREATING:
            error = WrongStateError(f"sandbox {sandbox.id} was stopped during its creation")
            await self._creations.end(sandbox.name, error)
        return self._store.get(sandbox.id)

    async def _stop(self, sandbox: Sandbox) -> None:
        if sandbox.status.torn_down:
            # Repeated, since other programs may have created a file with the namespace's name again.
            await self._network.remove_namespace(sandbox.id)
            return
        self._mark_stopped(sandbox, "stopped")  # first, so that no further container is created
        await self._containers.stop_all(sandbox.id)
        await self.tear_down(sandbox)
        self._store.update(sandbox, msgspec.structs.replace(sandbox.status, torn_down=True))
        log.info("sandbox stopped", sandbox_id=sandbox.id)

    async def tear_down(self, sandbox: Sandbox) -> None:
        """Remove everything that a sandbox holds except its record, in whatever state it is.

        All steps are tried. Raises the first error; a further call does the rest.
        """
        self._exits.forget(sandbox.id)
        paths = self._paths.sandbox(sandbox.id)
        attempts = Attempts()

        async def end_pause() -> None:
            cgroup_dir = self._cgroup_paths.directory_of(sandbox)
            held = Held(sandbox.id, sandbox.id, sandbox.record.handler, cgroup_dir, paths)
            ended = await attempts.each(lambda: self._teardown.process(held))
            # If the process has not ended, a further call finds it by its record in the state directory, so keep that.
            take_away = self._teardown.state_files if ended else self._teardown.mounts
            await attempts.each(lambda: take_away(paths))

        # In parallel: a DEL needs the namespace's pin, but no process in the namespace. A pod with its own kernel has
        # taken over the interfaces, so it is ended before the DEL.
        own = own_kernel_runtime(self._runtime_of, sandbox.record.handler)
        leave = attempts.each(lambda: self._network.detach(sandbox))
        left = await (one_by_one if own else side_by_side)(end_pause(), leave)
        if left:
            # Plugins need the namespace for DEL, so it is removed after the last one.
            await attempts.each(lambda: self._network.remove_namespace(sandbox.id))
        if attempts.failed:
            self._store.save(sandbox)  # its status has the attachments that are left
        attempts.finish(sandbox.id)

    async def remove_pod_sandbox(self, sandbox_id: str) -> None:
        """Stop the sandbox if it is not stopped, and remove its containers and everything that it owns.

        Succeeds for a removed sandbox.
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
        """Note a pod's new resources. The kubelet owns the pod's cgroup, and changes its limits itself.

        Raises NotFoundError, WrongStateError if the sandbox is not ready, InvalidArgumentError.
        """
        sandbox = self.find(sandbox_id)
        require_ready(sandbox)
        self._specs.check_sizing(overhead, resources)
        sizing = as_json(api.LinuxPodSandboxConfig(overhead=overhead, resources=resources))
        self._store.update(sandbox, msgspec.structs.replace(sandbox.status, sizing=sizing))

    # --- the end of the pause process ----------------------------------------------------------------------------

    def watch(self, sandbox: Sandbox, process: Process, monitor: Process | None) -> None:
        """Watch the pause process, or its shim as well. The end of either makes the sandbox not ready at once."""
        runtime = own_kernel_runtime(self._runtime_of, sandbox.record.handler)
        by_shim = runtime is not None and runtime.settings.shares_monitor
        self._exits.watch(sandbox.id, process, monitor if by_shim else None)

    def on_exit(self, sandbox: Sandbox) -> None:
        """The pause process ended: show the sandbox as not ready, with the reason."""
        self._mark_stopped(sandbox, "the pause container ended by itself")
        log.warning("sandbox not ready", sandbox_id=sandbox.id, reason=sandbox.status.reason)
        metrics.CONTAINER_EXITS.labels(reason="PauseExited").inc()

    def _mark_stopped(self, sandbox: Sandbox, reason: str) -> None:
        if sandbox.state is not SandboxState.NOT_READY:
            self._store.update(sandbox, sandbox.status.stopped(time.time_ns(), reason))

    # --- looking -------------------------------------------------------------------------------------------------

    def find(self, id_or_prefix: str) -> Sandbox:
        """The sandbox with this ID or prefix. Raises NotFoundError, also while it is being created.

        Raises InvalidArgumentError for a prefix that several sandboxes share.
        """
        sandbox = self._store.find(id_or_prefix)
        if sandbox.state is SandboxState.CREATING:
            raise NotFoundError("sandbox", id_or_prefix, "it is still being created")
        return sandbox

    def list_pod_sandbox(self) -> list[Sandbox]:
        """All sandboxes whose creation is complete, oldest first."""
        return [s for s in self._store if s.status.is_complete]

    async def verbose_info(self, sandbox: Sandbox) -> dict[str, object]:
        """The document of a verbose PodSandboxStatus."""
        return sandbox_details(
            sandbox,
            await read_documents(self._paths.sandbox(sandbox.id)),
            self._network.describe(sandbox),
            cgroup=self._cgroup_paths.directory_of(sandbox),
        ) | {"operations": documents(self._operations.under_way(sandbox.id))}

    async def end_creations(self, grace_s: float) -> None:
        """Wait `grace_s` seconds for creations under way, then cancel and undo them."""
        await self._creations.end_all(grace_s)

    async def close(self, grace_s: float) -> None:
        """Wait `grace_s` seconds for work under way, then cancel and undo it."""
        await asyncio.gather(
            self._creations.close(grace_s),
            self._stops.close(grace_s),
            self._removals.close(grace_s),
        )
