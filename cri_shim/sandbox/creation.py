"""CreateContainer: from a request to a created process that waits for its start.

Rules:
- The request is checked before the first effect. Errors that show only in the image come later, and the creation is
  undone.
- The undo of each effect is pushed on the `Rollback` before the effect. `teardown` implements it.
- A mistake in the request, such as in limits, mounts or users, fails the creation. A program that cannot be run fails
  the start, as CRI clients expect: the container is created without a process.
"""

from __future__ import annotations

import time
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import msgspec
import structlog

from cri_shim.errors import (
    AlreadyExistsError,
    InvalidArgumentError,
    NotFoundError,
    ProgramError,
    RuntimeCommandError,
    TooManyFilesError,
)
from cri_shim.ids import new_id
from cri_shim.kernel_call import at_length_for, in_time_for
from cri_shim.oci.runtime_errors import (
    device_not_made,
    program_exit_code,
    refused_limit,
    says_too_little_memory,
)
from cri_shim.oci.spec.checks import clean_container_path
from cri_shim.oci.spec.mounts import check_cost, volume_paths
from cri_shim.oci.spec.process import exec_base
from cri_shim.oci.spec.resources import FILES_LIMIT_ANNOTATION, field_of_limit
from cri_shim.quoting import quoted
from cri_shim.rollback import Rollback
from cri_shim.sandbox.container_log import log_path, prepare_log
from cri_shim.sandbox.launch import Launch, Launcher
from cri_shim.sandbox.list_bounds import check_container_entry
from cri_shim.sandbox.spec.user_namespace import root_of, user_namespace_of
from cri_shim.sandbox.spec.volumes import (
    Volumes,
    hold_image_volumes,
    make_volumes,
    mount_images,
    volume_records,
)
from cri_shim.sandbox.store.model import (
    ContainerMetadata,
    ContainerRecord,
    ContainerState,
    ContainerStatus,
    User,
)
from cri_shim.sandbox.store.requests import require_ready
from cri_shim.sandbox.store.store import Container, Sandbox, Store, as_json_aside, without_words

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from cri_shim._pb.cri.v1 import api_pb2 as api
    from cri_shim.host.port import Host
    from cri_shim.image.model import Image
    from cri_shim.image.store import ImageStore
    from cri_shim.image.volume import ImageVolume
    from cri_shim.oci.runtime import Runtime
    from cri_shim.oci.spec.inputs import BindVolume, Spec
    from cri_shim.oci.waiting_monitor import WaitingMonitor
    from cri_shim.paths import Paths
    from cri_shim.sandbox.exits import ExitWatch
    from cri_shim.sandbox.launch import Created
    from cri_shim.sandbox.spec.cgroup_paths import CgroupPaths
    from cri_shim.sandbox.spec.container_limits import ContainerLimits
    from cri_shim.sandbox.spec.container_specs import ContainerSpecs
    from cri_shim.sandbox.teardown import Teardown

log = structlog.get_logger()


class Creation:
    """Creates containers. The caller runs at most one creation per name at a time."""

    def __init__(
        self,
        *,
        host: Host,
        paths: Paths,
        store: Store[Container],
        images: ImageStore,
        runtime_of: Callable[[str], Runtime],
        launcher: Launcher,
        specs: ContainerSpecs,
        limits: ContainerLimits,
        cgroup_paths: CgroupPaths,
        teardown: Teardown,
        exits: ExitWatch,
        boot_id: str,
    ) -> None:
        self._host = host
        self._paths = paths
        self._store = store
        self._images = images
        self._runtime_of = runtime_of
        self._launcher = launcher
        self._specs = specs
        self._limits = limits
        self._cgroup_paths = cgroup_paths
        self._teardown = teardown
        self._exits = exits
        self._boot_id = boot_id

    async def create(
        self,
        sandbox: Sandbox,
        config: api.ContainerConfig,
        metadata: ContainerMetadata,
        digest: str,
    ) -> str:
        """Create a container, or find the one that the same request has created before. Returns its ID.

        Raises NotFoundError (image), WrongStateError (sandbox not ready), InvalidArgumentError, AlreadyExistsError
        (name in use), and the errors of the runtime.
        """
        name = metadata.reserved_name(sandbox.id)
        holder = self._store.by_name(name)
        if holder is not None:
            if holder.record.digest == digest and holder.state is ContainerState.CREATED:
                return holder.id
            raise AlreadyExistsError(
                f"container name {name} is held by container {holder.id} ({holder.state}): "
                "remove that container, or use a higher attempt"
            )
        require_ready(sandbox)
        check_cost(config)
        async with AsyncExitStack() as held:
            volumes = await hold_image_volumes(self._images, config, held)
            document = await as_json_aside(config)
            # Checked again, since the awaits above may have taken long. There is no await from here to the record, so a
            # StopPodSandbox either is seen here or finds the container's record.
            require_ready(sandbox)
            container, launch, image = self._plan(
                sandbox, config, metadata, digest, document, volumes
            )
            await self._make(sandbox, container, launch, image, volumes)
        log.info("container created", container_id=container.id, sandbox_id=sandbox.id)
        return container.id

    async def _make(
        self,
        sandbox: Sandbox,
        container: Container,
        launch: Launch,
        image: Image,
        image_volumes: Mapping[int, ImageVolume],
    ) -> None:
        config, paths = container.config, launch.paths
        rollback = Rollback(f"container {container.id}")
        async with rollback:
            # 1. The record, before any effect.
            rollback.push("record", lambda: self._forget_failed(container, rollback))
            self._store.create(container)
            # 2. Root file system, log directory, image volumes.
            with user_namespace_of(self._host, sandbox) as users:
                await self._launcher.mount_rootfs(
                    launch,
                    rollback,
                    users,
                    then=lambda: prepare_log(sandbox.config.log_directory, launch.log_file),
                )
                # Start the monitor now, so that it loads while the runtime-spec is built.
                monitor = await self._launcher.start_early(launch, rollback)
                mounted: Mapping[int, Path] = {}
                if image_volumes:
                    rollback.push("image volumes", lambda: self._teardown.mounts(paths))
                    mounted = await in_time_for(
                        f"pod {sandbox.id}",
                        "mounting image volumes",
                        mount_images,
                        self._host,
                        paths,
                        image_volumes,
                        userns_fd=users.fd if users else None,
                        label=launch.label,
                    )
            made: tuple[BindVolume, ...] = ()
            if image.config.volumes:
                made = await at_length_for(
                    f"pod {sandbox.id}",
                    "copying the image's VOLUMEs",
                    make_volumes,
                    paths,
                    volume_paths(image.config.volumes, config),
                    root_of(sandbox),
                )
            # 3. The runtime-spec, and the created process.
            user: User | None = None
            created: Created | None = None
            try:
                spec, resolved = await self._specs.build(
                    sandbox, container, image, Volumes(mounted, made)
                )
                user = User(resolved.uid, resolved.gid, resolved.additional_gids)
                created = await self._launch(sandbox, config, launch, spec, rollback, monitor)
                container.process_spec = exec_base(spec["process"])
                status = container.status.committed(
                    time.time_ns(), created.process, created.monitor, user
                )
            except ProgramError as error:
                log.info("the program cannot be run", container_id=container.id, error=str(error))
                if monitor is not None:
                    await monitor.end()
                status = container.status.unstartable(time.time_ns(), error.words, user)
            # 4. The container is complete, unless the pod was stopped meanwhile.
            require_ready(sandbox)
            self._store.commit(container, status)
            rollback.commit()
        container.config = without_words(config)
        if created is not None:
            self._exits.watch(container.id, created.process, created.monitor)

    async def _launch(
        self,
        sandbox: Sandbox,
        config: api.ContainerConfig,
        launch: Launch,
        spec: Spec,
        rollback: Rollback,
        monitor: WaitingMonitor | None,
    ) -> Created:
        """Create the process. Raises ProgramError, after the process was torn down; InvalidArgumentError for a limit or
        device that the kernel rejects; and what `Launcher.create` raises.
        """
        try:
            return await self._launcher.create(launch, spec, rollback, monitor)
        except RuntimeCommandError as error:
            require_ready(sandbox)  # if the pod was stopped meanwhile, that is the real cause
            words = error.stderr_tail
            if code := program_exit_code(words, spec["process"]["cwd"]):
                await self._teardown.process(launch.held)
                raise ProgramError("the program cannot be run", words, code) from error
            if refusal := _clearer(error, config):
                raise refusal from error
            raise
        except TooManyFilesError as error:
            raise InvalidArgumentError(
                f"annotations[{FILES_LIMIT_ANNOTATION!r}]: {launch.files_limit} is too low for the container to start: "
                f"{error}"
            ) from error

    def _plan(
        self,
        sandbox: Sandbox,
        config: api.ContainerConfig,
        metadata: ContainerMetadata,
        digest: str,
        document: msgspec.Raw,
        volumes: Mapping[int, ImageVolume],
    ) -> tuple[Container, Launch, Image]:
        """Check the request and build the record, before the first effect."""
        image = self._images.find(config.image.image)
        if image is None:
            raise NotFoundError("image", config.image.image, "pull or import it first")
        check_container_entry(config, self._store)
        container_id = new_id()
        paths = self._paths.container(container_id)
        layers = self._images.layer_stack(image).lowers
        log_file = log_path(sandbox.config.log_directory, config.log_path)
        record = ContainerRecord(
            id=container_id,
            sandbox_id=sandbox.id,
            pod_namespace=sandbox.record.metadata.namespace,
            metadata=metadata,
            handler=sandbox.record.handler,
            digest=digest,
            created_at_ns=time.time_ns(),
            boot_id=self._boot_id,
            cgroup_parent=sandbox.record.cgroup_parent,
            image_id=image.id,
            image_ref=image.repo_digests[0] if image.repo_digests else image.id,
            image_name=image.name_for(config.image.user_specified_image or config.image.image),
            layers=tuple(layers),
            image_volumes=volume_records(volumes),
            log_path=str(log_file) if log_file else "",
            stop_signal=self._specs.stop_signal(config, image),
            labels=self._specs.labels(sandbox, config),
            config=document,
        )
        launch = Launch(
            object_id=container_id,
            pod_id=sandbox.id,
            tenant=record.tenant,
            paths=paths,
            runtime=self._runtime_of(record.handler),
            cgroup_path=self._cgroup_paths.below(record.cgroup_parent, container_id),
            layers=layers,
            label=record.labels.files,
            files_limit=self._limits.files_limit(config.annotations, record.handler),
            log_file=log_file,
            terminal=config.tty,
            stdin=config.stdin,
            stdin_once=config.stdin_once,
        )
        return Container(record, ContainerStatus(), config), launch, image

    async def _forget_failed(self, container: Container, rollback: Rollback) -> None:
        if failed := await self._teardown.record(self._paths.container(container.id), rollback):
            self.give_up(container, f"the undo of its creation failed at: {failed}")
        else:
            self._store.forget(container)

    def give_up(self, container: Container, message: str) -> None:
        """Show a container whose undo failed as exited, so that the kubelet's RemoveContainer completes the undo."""
        self.show_given_up(container, message)
        self._store.save(container)

    def show_given_up(self, container: Container, message: str) -> None:
        """As `give_up`, but only in memory: by its files it is being created, so the next daemon undoes it."""
        now = time.time_ns()
        status = msgspec.structs.replace(
            container.status,
            committed_at_ns=now,
            finished_at_ns=now,
            exit_code=128,
            reason="CreateContainerError",
            message=message,
        )
        container.config = without_words(container.config)
        container.ended.set()
        self._store.note(container, status)


def _clearer(
    error: RuntimeCommandError, config: api.ContainerConfig
) -> InvalidArgumentError | None:
    """The error in terms of the request's field, if the runtime's message concerns one; else None."""
    words = error.stderr_tail
    if says_too_little_memory(words):
        limit = config.linux.resources.memory_limit_in_bytes
        return InvalidArgumentError(
            f"memory_limit_in_bytes: {limit} is too low for a container to start: {error}"
        )
    if field := field_of_limit(refused_limit(words)):
        value = getattr(config.linux.resources, field)
        return InvalidArgumentError(
            f"{field}: the kernel rejected the value {quoted(value)}: {words}"
        )
    if path := device_not_made(words):
        for index, device in enumerate(config.devices):
            place = clean_container_path(device.container_path or device.host_path, "devices")
            if f"{path}/".partition(place)[2].startswith("/"):
                return InvalidArgumentError(
                    f"devices[{index}].container_path: no device can be created at {quoted(place)}: {words}"
                )
    return None
