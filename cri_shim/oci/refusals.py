"""Nodes on which an OCI runtime can't create containers, so that `check` finds out without creating one. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cri_shim.host.cgroups.layout import CgroupMode

if TYPE_CHECKING:
    from cri_shim.host.cgroups.layout import Layout


def crun_problem(layout: Layout | None) -> tuple[str, str] | None:
    """Why crun would refuse every container on this node, and the remedy; None if it wouldn't.

    crun wants all controllers on v1 or all on v2. A hybrid node with a controller on the v2 mount is neither.
    """
    if layout is None or layout.mode is not CgroupMode.HYBRID or layout.unified is None:
        return None
    stray = sorted(layout.unified.controllers)
    if not stray:
        return None
    return (
        f"refuses this hybrid cgroup layout: {', '.join(stray)} is on the v2 mount",
        "boot with systemd.unified_cgroup_hierarchy=1 for pure v2, or mount "
        f"{', '.join(stray)} as v1; or use runc",
    )
