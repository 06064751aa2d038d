"""Resources of the node that may change while the daemon runs: AppArmor profiles, CDI devices, OCI hooks, SELinux
labels.

They are read when a container is created. Each part may be absent or empty.
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
    """The four kinds of resources."""

    apparmor: AppArmor | None = None
    cdi: CdiRegistry = field(default_factory=lambda: CdiRegistry(()))
    hooks: HookFiles = field(default_factory=lambda: HookFiles(()))
    selinux: SELinux | None = None

    def watch(self, background: Background) -> None:
        """Watch the directories of CDI devices and hooks. Call it inside the running loop."""
        self.cdi.files.watch(background)
        self.hooks.files.watch(background)

    def follow(self) -> None:
        """Watch directories that were created since."""
        self.cdi.files.follow()
        self.hooks.files.follow()

    def close(self) -> None:
        """Stop watching. Idempotent."""
        self.cdi.files.close()
        self.hooks.files.close()
