"""Resources of the node that containers are given and that may change while the daemon runs.

AppArmor profiles, CDI devices, OCI hooks, SELinux labels: each is asked when a container is made; without one of them
nothing of its kind is there.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cri_shim.oci.cdi_registry import CdiRegistry
from cri_shim.oci.hook_files import HookFiles

if TYPE_CHECKING:
    from cri_shim.background import Background
    from cri_shim.sandbox.spec.apparmor import AppArmor
    from cri_shim.sandbox.spec.selinux import SELinux


@dataclass(frozen=True, slots=True)
class NodeResources:
    """The four together."""

    apparmor: AppArmor | None = None
    cdi: CdiRegistry = field(default_factory=lambda: CdiRegistry(()))
    hooks: HookFiles = field(default_factory=lambda: HookFiles(()))
    selinux: SELinux | None = None

    def watch(self, background: Background) -> None:
        """Follow the directories of devices and hooks; inside the running loop."""
        self.cdi.files.watch(background)
        self.hooks.files.watch(background)

    def follow(self) -> None:
        """Follow those that were made meanwhile."""
        self.cdi.files.follow()
        self.hooks.files.follow()

    def close(self) -> None:
        """Stop following. Idempotent."""
        self.cdi.files.close()
        self.hooks.files.close()
