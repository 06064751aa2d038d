"""The host port: what pods and containers do to this node's processes, mounts and namespaces, as one object.

The sandbox layer reaches them through the `Host` that it is given, and imports none of these functions itself (an
import contract holds it to that). A unit test hands in a node of its own instead; what that node lacks fails the test
and never reaches the kernel. Cgroups come as an object of their own, `cgroups.tree.Cgroups`.
"""

from __future__ import annotations

from cri_shim.host import (
    block_devices,
    interface_counters,
    mounts,
    namespaces,
    pidfd,
    process_counters,
    procstat,
    proctree,
    standin,
    tree,
    userns,
)
from cri_shim.host.files import read_in_root


class Host:
    """The operations of this node; see each function for its errors."""

    # Processes

    watch_pids = pidfd.PidWatch
    kill_process = staticmethod(pidfd.kill_process)
    start_time_ticks = staticmethod(pidfd.start_time_ticks)
    ends_of = staticmethod(pidfd.ends_of)
    process_entry = staticmethod(procstat.process_entry)
    pid_namespace_depth = staticmethod(procstat.pid_namespace_depth)
    family_of = staticmethod(proctree.family_of)
    kill_family = staticmethod(proctree.kill_family)
    orphans_naming = staticmethod(proctree.orphans_naming)
    names = staticmethod(procstat.names)
    open_files_limit = staticmethod(process_counters.open_files_limit)

    # Mounts, and trees that mounts may lie in

    mount_overlay = staticmethod(mounts.mount_overlay)
    mount_tmpfs = staticmethod(mounts.mount_tmpfs)
    bind = staticmethod(mounts.bind)
    unmount_below = staticmethod(mounts.unmount_below)
    remove_tree = staticmethod(tree.remove_tree)
    disk_usage = staticmethod(tree.disk_usage)
    read_in_root = staticmethod(read_in_root)
    file_system_of = staticmethod(block_devices.file_system_of)
    device_path = staticmethod(block_devices.device_path)

    # Namespaces

    create_netns = staticmethod(namespaces.create_netns)
    set_netns_sysctls = staticmethod(namespaces.set_netns_sysctls)
    remove_netns = staticmethod(namespaces.remove_netns)
    run_in_netns = staticmethod(namespaces.run_in_netns)
    interface_counters = staticmethod(interface_counters.interface_counters)
    restore_addresses = staticmethod(standin.restore_addresses)
    new_user_namespace = staticmethod(userns.new_user_namespace)
    open_user_namespace = staticmethod(userns.open_user_namespace)
