"""Finds and removes orphans: remains of objects without a readable record, of which only the ID is known.

Rules:
- An ID belongs to this root only if one of its directories, or a monitor of its state directory, names it. A network
  namespace `cri-…`, a cgroup or an entry of the CNI result cache does not prove it: these may be another root's.
- The ID does not show whether the object was a sandbox or a container, so both are removed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cri_shim.background import uninterrupted
from cri_shim.ids import ID_LENGTH, is_id
from cri_shim.kernel_call import in_time

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from cri_shim.host.port import Host
    from cri_shim.oci.conmon import Monitors
    from cri_shim.oci.runtime import Runtimes
    from cri_shim.paths import ObjectPaths, Paths
    from cri_shim.sandbox.network.pod_network import PodNetwork
    from cri_shim.sandbox.teardown import Teardown


class Orphans:
    """Finds and removes orphans. Each step may be repeated."""

    def __init__(
        self,
        *,
        host: Host,
        paths: Paths,
        teardown: Teardown,
        network: PodNetwork,
        monitors: Monitors,
        runtimes: Callable[[], Runtimes],
    ) -> None:
        self._host = host
        self._paths = paths
        self._teardown = teardown
        self._network = network
        self._monitors = monitors
        self._runtimes = runtimes

    async def ids(self) -> list[str]:
        """All IDs that this root's state names, with or without a record."""
        paths = self._paths
        found = set(await in_time("looking for monitors", self._monitors.find_monitors))
        for directory in (
            *(paths.sandboxes_dir, paths.containers_dir),
            *(paths.state / "sandboxes", paths.state / "containers"),
            *(paths.runtime_root(handler) for handler in self._handlers()),
        ):
            found.update(_names(directory))
        for directory in (paths.damaged_dir, paths.exits_dir):
            found.update(name[:ID_LENGTH] for name in _names(directory))
        return sorted(object_id for object_id in found if is_id(object_id))

    async def tear_down(self, object_id: str, paths: ObjectPaths) -> None:
        """Remove processes, runtime state, cgroups, network attachments and network namespace of an ID.

        Raises DeadlineError for processes that do not end, CriShimError.
        """
        await self._teardown.process_without_record(object_id, self._handlers(), paths)
        await self._network.tear_down_by_id(object_id)

    async def remove(self, object_id: str) -> None:
        """`tear_down`, then remove mounts and all files. Raises what `tear_down` raises, OSError."""
        both = (self._paths.sandbox(object_id), self._paths.container(object_id))
        for paths in both:
            await self.tear_down(object_id, paths)
        for paths in both:
            await self._teardown.state_files(paths)
            await self._teardown.root_files(paths)
        for name in _names(self._paths.damaged_dir):
            if name.startswith(object_id):
                await uninterrupted(self._host.remove_tree, self._paths.damaged_dir / name)

    def _handlers(self) -> list[str]:
        """The configured handlers, and former ones that have a state directory."""
        configured = (runtime.settings.name for runtime in self._runtimes())
        return sorted({*configured, *_names(self._paths.runtime_root(""))})


def _names(directory: Path) -> Iterator[str]:
    try:
        yield from [entry.name for entry in directory.iterdir()]
    except (FileNotFoundError, NotADirectoryError):
        return
