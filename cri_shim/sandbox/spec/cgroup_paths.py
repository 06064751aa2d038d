"""Derives the cgroup paths of pods and containers from their records, for the node's cgroup driver."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cri_shim.host.cgroups.placement import CgroupPath, cgroup_path, parent_directory

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cri_shim._pb.cri.v1 import api_pb2 as api
    from cri_shim.sandbox.store.store import Container, Sandbox


class CgroupPaths:
    """Derives cgroup paths."""

    def __init__(self, *, systemd: bool, default_parent: str) -> None:
        """`systemd` is whether the cgroup driver is systemd. `default_parent` is used for pods that name no parent."""
        self._systemd = systemd
        self._default_parent = default_parent

    def parent(self, config: api.PodSandboxConfig) -> str:
        """The parent that the pod names, or the configured one.

        Raises InvalidArgumentError if the cgroup driver cannot use it.
        """
        parent = config.linux.cgroup_parent or self._default_parent
        parent_directory(parent, systemd=self._systemd)
        return parent

    @property
    def own_directory(self) -> str:
        """The directory of the configured parent if the daemon must remove it, or "" if systemd does (a slice)."""
        return "" if self._systemd else parent_directory(self._default_parent, systemd=False)

    def below(self, parent: str, object_id: str) -> CgroupPath:
        """The cgroup of an object below a pod's parent."""
        return cgroup_path(parent, object_id, systemd=self._systemd)

    def of(self, item: Sandbox | Container) -> CgroupPath:
        """The cgroup of an object with a record."""
        return self.below(item.record.cgroup_parent, item.id)

    def directory_of(self, item: Sandbox | Container) -> str:
        """The directory of that cgroup in every hierarchy."""
        return self.of(item).relative_dir

    def pod_directory_of(self, sandbox: Sandbox) -> str:
        """The directory of the pod's parent cgroup. Other pods may share it, see `shared`."""
        return parent_directory(sandbox.record.cgroup_parent, systemd=self._systemd)

    def shared(self, sandboxes: Iterable[Sandbox]) -> frozenset[str]:
        """The parent cgroups of more than one of these pods. The root and the configured parent are always included."""
        seen: set[str] = set()
        found = {"", parent_directory(self._default_parent, systemd=self._systemd)}
        for sandbox in sandboxes:
            directory = self.pod_directory_of(sandbox)
            (found if directory in seen else seen).add(directory)
            while directory := directory.rpartition("/")[0]:
                found.add(directory)
        return frozenset(found)
