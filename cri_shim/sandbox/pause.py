"""The pause container, whose process holds the pod's namespaces, and the files that the pod's containers share.

The undo of each effect is pushed on the caller's `Rollback` before the effect.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cri_shim.sandbox.launch import Launch, Launcher

if TYPE_CHECKING:
    from cri_shim.image.model import Image
    from cri_shim.oci.runtime import Runtime
    from cri_shim.oci.spec.sandbox import SandboxPlan
    from cri_shim.paths import Paths
    from cri_shim.rollback import Rollback
    from cri_shim.sandbox.spec.cgroup_paths import CgroupPaths
    from cri_shim.sandbox.spec.pod_files import PodFiles
    from cri_shim.sandbox.spec.sandbox_specs import SandboxSpecs
    from cri_shim.sandbox.spec.user_namespace import PodUserNamespace
    from cri_shim.sandbox.store.model import Process
    from cri_shim.sandbox.store.store import Sandbox


@dataclass(frozen=True, slots=True)
class Paused:
    """A running pause container."""

    process: Process
    monitor: Process | None
    """Only in a pod with its own kernel: processes that its runtime leaves in the background become its children."""


class PauseContainers:
    """Starts pause containers."""

    def __init__(
        self,
        *,
        paths: Paths,
        files: PodFiles,
        specs: SandboxSpecs,
        cgroup_paths: CgroupPaths,
        launcher: Launcher,
    ) -> None:
        self._paths = paths
        self._files = files
        self._specs = specs
        self._cgroup_paths = cgroup_paths
        self._launcher = launcher

    async def start(
        self,
        sandbox: Sandbox,
        plan: SandboxPlan,
        runtime: Runtime,
        image: Image,
        rollback: Rollback,
        users: PodUserNamespace | None,
    ) -> Paused:
        """Create the pod's files on the node, and start the pause container in the pod's user namespace `users`.

        The files are the root file system, /dev/shm, those in /etc, and the log directory. Raises what `PodFiles`,
        `Launcher` and the runtime's start raise.
        """
        launch = Launch(
            object_id=sandbox.id,
            pod_id=sandbox.id,
            tenant=sandbox.record.tenant,
            paths=self._paths.sandbox(sandbox.id),
            runtime=runtime,
            cgroup_path=self._cgroup_paths.of(sandbox),
            layers=sandbox.record.layers,
            label=sandbox.record.labels.files,
            monitored=runtime.settings.own_kernel,
        )

        def then() -> None:
            self._files.make(sandbox)
            # The log directory may be on a file system that hangs, so it comes last: no effect must follow it.
            self._files.make_log_directory(sandbox)

        await self._launcher.mount_rootfs(launch, rollback, users, then=then)
        spec = await self._specs.build(sandbox, plan, image, users)
        if not launch.monitored:
            return Paused(await self._launcher.run(launch, spec, rollback), None)
        created = await self._launcher.create(launch, spec, rollback)
        await launch.runtime.start(sandbox.id, launch.paths.bundle_dir)
        return Paused(created.process, created.monitor)
