"""Limits the number of open files of a container. The daemon sets the limit: no OCI runtime knows that controller.

Rules:
- The limit is set between the runtime's `create` and `start`, so no program of the container runs without it.
- The runtime starts execs outside the limit. They are moved under it as soon as the runtime has started them.
- The limit is a cgroup in a hierarchy of its own. Removing the container's cgroup removes it as well.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cri_shim.errors import TooManyFilesError, host_step
from cri_shim.kernel_call import in_time

if TYPE_CHECKING:
    from cri_shim.host.cgroups.tree import Cgroups
    from cri_shim.sandbox.spec.cgroup_paths import CgroupPaths
    from cri_shim.sandbox.store.store import Container


class FilesLimits:
    """Sets and changes the limits of open files."""

    def __init__(self, cgroups: Cgroups, cgroup_paths: CgroupPaths) -> None:
        self._cgroups = cgroups
        self._cgroup_paths = cgroup_paths

    async def hold(self, container: Container) -> None:
        """Apply the limit to processes that have entered the container since. A container without a limit has none.

        Raises TooManyFilesError if these have more files open than the limit leaves, CriShimError.
        """
        if self._cgroups.lack_of_files_limits:
            return
        with host_step(f"container {container.id}: applying the limit of open files to an exec"):
            await in_time(
                "limiting open files",
                self._cgroups.gather_files,
                self._cgroup_paths.directory_of(container),
            )

    async def change(self, container: Container, limit: int) -> int:
        """Change the limit of an existing container; -1 means no limit. Returns the former limit.

        Raises TooManyFilesError, with the former limit in force, if the container has more files open; CriShimError.
        """
        relative_dir = self._cgroup_paths.directory_of(container)
        with host_step(f"container {container.id}: changing the limit of its open files"):
            former = self._cgroups.files_limit(relative_dir)
            if former is None and limit < 0:
                return -1
            try:
                await limit_files(self._cgroups, container.id, relative_dir, limit)
            except TooManyFilesError:
                await limit_files(self._cgroups, container.id, relative_dir, former or -1)
                raise
        return former or -1


async def limit_files(cgroups: Cgroups, object_id: str, relative_dir: str, limit: int) -> None:
    """Limit the open files of all processes in the cgroup. Raises TooManyFilesError, CriShimError."""
    with host_step(f"{object_id}: limiting the open files"):
        await in_time("limiting open files", cgroups.limit_files, relative_dir, limit)
