"""UpdateContainerResources: changes the limits of a container, in its cgroup and in its record.

Rules:
- Fields that a request leaves unset stay as they are: the kubelet's CPU manager sends only CPUs. The status keeps the
  whole set in force. ContainerStatus shows it, and the runtime gets it as a whole.
- The OCI runtime changes the cgroup of a created or running container. A container that has exited, or whose program
  cannot be run, has no cgroup; only its status changes.
- If a limit cannot be set, the call fails and the limits in force stay.
- `oom_score_adj` belongs to processes, not to the cgroup. It is set at the start; an update does not change it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import structlog
from google.protobuf import json_format

from cri_shim._pb.cri.v1 import api_pb2 as api
from cri_shim.errors import (
    CriShimError,
    InvalidArgumentError,
    RuntimeCommandError,
    TooManyFilesError,
    WrongStateError,
    host_step,
)
from cri_shim.host.files import write_atomic
from cri_shim.oci.runtime_errors import refused_limit
from cri_shim.oci.spec.resources import (
    FILES_LIMIT_ANNOTATION,
    field_of_limit,
    merge_resources,
    pids_limit,
)
from cri_shim.sandbox.store.model import ContainerState
from cri_shim.sandbox.store.processes import running
from cri_shim.sandbox.store.store import as_json

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from cri_shim.host.cgroups.tree import Cgroups
    from cri_shim.host.port import Host
    from cri_shim.oci.runtime import Runtime
    from cri_shim.oci.spec.inputs import Spec
    from cri_shim.paths import Paths
    from cri_shim.sandbox.exec.files_limits import FilesLimits
    from cri_shim.sandbox.spec.cgroup_paths import CgroupPaths
    from cri_shim.sandbox.spec.container_limits import ContainerLimits
    from cri_shim.sandbox.store.store import Container, Store

log = structlog.get_logger()


class ContainerResources:
    """Changes the limits of containers."""

    def __init__(
        self,
        *,
        host: Host,
        paths: Paths,
        store: Store[Container],
        runtime_of: Callable[[str], Runtime],
        limits: ContainerLimits,
        cgroups: Cgroups,
        cgroup_paths: CgroupPaths,
        files_limits: FilesLimits,
    ) -> None:
        self._host = host
        self._paths = paths
        self._store = store
        self._runtime_of = runtime_of
        self._limits = limits
        self._cgroups = cgroups
        self._cgroup_paths = cgroup_paths
        self._files_limits = files_limits

    async def update(
        self,
        container: Container,
        wanted: api.LinuxContainerResources,
        annotations: Mapping[str, str],
    ) -> None:
        """Apply the fields set in `wanted`, and the limits of processes and open files in `annotations`.

        Raises InvalidArgumentError and UnsupportedError with the field, WrongStateError for a limit below the memory or
        files in use, RuntimeCommandError with the runtime's message.
        """
        async with container.lock:
            now = resources_in_force(container)
            self._limits.check_unchangeable(now, wanted)
            resources = merge_resources(now, wanted)
            pids = pids_limit(annotations) or _pids_in_force(container)
            files = self._limits.files_limit(annotations, container.record.handler)
            document = self._limits.update_document(resources, pids)
            if container.state is not ContainerState.EXITED and not container.status.start_fault:
                self._check_memory(container, wanted.memory_limit_in_bytes)
                former = None if files is None else await self._limit_files(container, files)
                try:
                    await self._tell_runtime(container, document)
                except CriShimError:
                    if former is not None:
                        await self._limit_files(container, former)
                    raise
            self._store.update(
                container,
                msgspec.structs.replace(
                    container.status, resources=as_json(resources), pids_limit=pids
                ),
            )
        log.info("container resources updated", container_id=container.id)

    async def _limit_files(self, container: Container, limit: int) -> int:
        try:
            return await self._files_limits.change(container, limit)
        except TooManyFilesError as error:
            raise WrongStateError(
                f"container {container.id}: annotations[{FILES_LIMIT_ANNOTATION!r}]: {limit} is below the number of "
                f"open files: {error}"
            ) from error

    async def _tell_runtime(self, container: Container, document: Spec) -> None:
        file = self._paths.container(container.id).resources_file
        with host_step(f"container {container.id}: writing the new resources"):
            write_atomic(file, msgspec.json.encode(document))
        try:
            await self._runtime_of(container.record.handler).update(container.id, file)
        except RuntimeCommandError as error:
            if not running(self._host, container.status.process):
                return  # it ended meanwhile, and its exit will be noted: there is nothing to limit
            limit, used = (
                document.get("memory", {}).get("limit", -1),
                self._memory_in_use(container),
            )
            words = error.stderr_tail.strip()
            if used is not None and 0 < limit < used:
                raise _in_use(container, limit, used, f": {words}") from error
            if field := field_of_limit(refused_limit(words)):
                raise InvalidArgumentError(
                    f"container {container.id}: {field}: the kernel rejected the value: {words}"
                ) from error
            raise
        finally:
            file.unlink(missing_ok=True)

    def _check_memory(self, container: Container, limit: int) -> None:
        """Refuse a limit below the working set on cgroup v2, which would OOM-kill to enforce it. v1 refuses it."""
        if limit <= 0 or self._cgroups.mode != "v2":
            return
        used = self._cgroups.read_stats(
            self._cgroup_paths.directory_of(container)
        ).working_set_bytes
        if used is not None and limit < used:
            raise _in_use(container, limit, used)

    def _memory_in_use(self, container: Container) -> int | None:
        return self._cgroups.read_stats(
            self._cgroup_paths.directory_of(container)
        ).memory_usage_bytes


def resources_in_force(container: Container) -> api.LinuxContainerResources:
    """The limits in force: those of the request, merged with all updates."""
    kept = bytes(container.status.resources)
    if kept == b"{}":
        return container.config.linux.resources
    return json_format.Parse(kept, api.LinuxContainerResources())


def _pids_in_force(container: Container) -> int:
    return container.status.pids_limit or pids_limit(container.config.annotations) or 0


def _in_use(container: Container, limit: int, used: int, words: str = "") -> WrongStateError:
    return WrongStateError(
        f"container {container.id}: memory_limit_in_bytes: {limit} is less than the {used} bytes in use{words}"
    )
