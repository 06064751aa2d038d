"""Nodes that an OCI runtime is known to refuse, so that nobody has to make a container to find it out (pure)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cri_shim.host.cgroups.layout import CgroupMode

if TYPE_CHECKING:
    from cri_shim.host.cgroups.layout import Layout


def crun_problem(layout: Layout | None) -> tuple[str, str] | None:
    """Why crun would refuse this node, and the remedy; None if it wouldn't.

    crun manages either all v1 controllers or all v2 ones; one that sits on the v2 mount of a hybrid node is
    between the two, and crun then refuses each container.
    """
    if layout is None or layout.mode is not CgroupMode.HYBRID or layout.unified is None:
        return None
    stray = sorted(layout.unified.controllers)
    if not stray:
        return None
    return (
        f"refuses this hybrid node: {', '.join(stray)} sits on the v2 mount",
        "boot with systemd.unified_cgroup_hierarchy=1 for pure v2, or mount "
        f"{', '.join(stray)} as v1; or use runc",
    )
