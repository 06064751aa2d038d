"""Runtime-specs of pause containers: checks a request once and plans the sandbox, then builds its runtime-spec."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from cri_shim.kernel_call import in_time_for
from cri_shim.oci.spec.profiles import Choice
from cri_shim.oci.spec.sandbox import build_sandbox_spec, check_sizing, plan_sandbox
from cri_shim.oci.spec.security import seccomp_reference
from cri_shim.oci.spec.selinux import Labels
from cri_shim.sandbox.spec.spec_facts import image_defaults, localhost_profile

if TYPE_CHECKING:
    from cri_shim._pb.cri.v1 import api_pb2 as api
    from cri_shim.image.model import Image
    from cri_shim.oci.spec.inputs import Spec
    from cri_shim.oci.spec.sandbox import SandboxPlan
    from cri_shim.oci.spec.seccomp import Profile
    from cri_shim.paths import Paths
    from cri_shim.sandbox.spec.cgroup_paths import CgroupPaths
    from cri_shim.sandbox.spec.spec_facts import SpecFacts
    from cri_shim.sandbox.spec.user_namespace import PodUserNamespace
    from cri_shim.sandbox.store.store import Sandbox


class SandboxSpecs:
    """Plans sandboxes, and builds the runtime-specs of their pause containers."""

    def __init__(self, *, paths: Paths, facts: SpecFacts, cgroup_paths: CgroupPaths) -> None:
        self._paths = paths
        self._facts = facts
        self._cgroup_paths = cgroup_paths

    def plan(self, config: api.PodSandboxConfig, handler: str) -> SandboxPlan:
        """Check the request, and return its plan. Raises InvalidArgumentError, UnsupportedError."""
        return plan_sandbox(
            config, handler=self._facts.handler(handler), node=self._facts.promised_node()
        )

    def labels(self, config: api.PodSandboxConfig) -> Labels:
        """A new pod's SELinux labels. Raises InvalidArgumentError."""
        selinux = self._facts.node_resources.selinux
        return selinux.labels_of_sandbox(config) if selinux else Labels()

    def check_sizing(
        self, overhead: api.LinuxContainerResources, resources: api.LinuxContainerResources
    ) -> None:
        """Raises InvalidArgumentError for invalid resources of a pod."""
        check_sizing(overhead=overhead, size=resources, node=self._facts.node)

    async def build(
        self, sandbox: Sandbox, plan: SandboxPlan, image: Image, users: PodUserNamespace | None
    ) -> Spec:
        """Build the pause container's runtime-spec. `users` is the pod's user namespace, if it has its own."""
        return build_sandbox_spec(
            sandbox.config,
            plan,
            node=await self._facts.current_node(),
            handler=self._facts.handler(sandbox.record.handler),
            sandbox=dataclasses.replace(
                self._facts.of_sandbox(sandbox), userns_path=users.path if users else None
            ),
            image=image_defaults(image, ""),
            rootfs_path=str(self._paths.sandbox(sandbox.id).rootfs_dir),
            cgroups_path=self._cgroup_paths.of(sandbox).spec_path,
            localhost_seccomp=await _seccomp_profile(sandbox),
        )


async def _seccomp_profile(sandbox: Sandbox) -> Profile | None:
    context = sandbox.config.linux.security_context
    if seccomp_reference(context).choice is not Choice.LOCALHOST:
        return None  # without a file to read, no thread is needed
    what = "reading the seccomp profile"
    return await in_time_for(f"pod {sandbox.id}", what, localhost_profile, context)
