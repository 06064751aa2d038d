"""Assigns SELinux labels to pods and containers, and relabels volumes.

The records of sandboxes and containers are the only list of used levels. So levels survive a restart, and a level is
free again when the last object with it is removed.
"""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import TYPE_CHECKING

from cri_shim._pb.cri.v1 import api_pb2 as api
from cri_shim.config.model import Switch
from cri_shim.errors import ConfigError, host_step
from cri_shim.host.selinux import container_contexts, enforcing, relabel
from cri_shim.kernel_call import working_on
from cri_shim.oci.spec.selinux import (
    UNTOUCHABLE,
    Contexts,
    Labels,
    container_labels,
    free_level,
    parse_contexts,
    pod_labels,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from cri_shim.sandbox.spec.host_paths import HostPath


class SELinux:
    """Assigns labels. Exists only on nodes on which containers are labelled."""

    def __init__(self, contexts: Contexts, levels_taken: Callable[[], Iterable[str]]) -> None:
        self._contexts = contexts
        self._levels_taken = levels_taken

    def labels_of_sandbox(self, config: api.PodSandboxConfig) -> Labels:
        """A new pod's labels. The caller must store them before the next call, which may choose the same level.

        Raises InvalidArgumentError; ResourceExhaustedError if no level is free.
        """
        context = config.linux.security_context
        options = context.namespace_options
        return pod_labels(
            context.selinux_options,
            self._contexts,
            free_level=free_level(self._levels_taken(), secrets.randbelow(1 << 19)),
            shares_with_node=api.NODE in (options.pid, options.ipc),
        )

    def labels_of_container(self, config: api.ContainerConfig, pod: Labels) -> Labels:
        """A new container's labels. Raises InvalidArgumentError."""
        context = config.linux.security_context
        return container_labels(
            context.selinux_options, pod, self._contexts, privileged=context.privileged
        )

    def relabel_volumes(
        self, config: api.ContainerConfig, host_paths: Mapping[int, HostPath], label: str
    ) -> None:
        """Give the files of volumes with `selinux_relabel` the container's label. Blocks long for large volumes.

        The resolved path is labelled, which is also the one that is mounted. Raises InvalidArgumentError for a system
        directory of the node, and for a path that has become a link since it was resolved.
        """
        for index, mount in enumerate(config.mounts):
            if mount.selinux_relabel and index in host_paths:
                path = host_paths[index].path
                working_on(f"mounts[{index}].host_path", path)
                with host_step(f"mounts[{index}].selinux_relabel: labelling {path}"):
                    relabel(path, label, untouchable=UNTOUCHABLE)


def open_selinux(
    switch: Switch, levels_taken: Callable[[], Iterable[str]], root: Path = Path("/")
) -> SELinux | None:
    """The labels of this node, or None if containers are not labelled. `root` replaces / in tests.

    Raises ConfigError if the configuration requires labels, and the node lacks SELinux or a policy for containers.
    """
    mode = enforcing(root)
    if switch is Switch.ON and mode is None:
        raise ConfigError("security.selinux: on, but this node's kernel has no SELinux")
    if switch is Switch.OFF or mode is None or (switch is Switch.AUTO and not mode):
        return None
    return SELinux(parse_contexts(*container_contexts(root)), levels_taken)
