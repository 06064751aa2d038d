"""The limit of a container's open files, which the daemon sets itself: no OCI runtime knows that controller.

Rules:
- It is in force between the runtime's `create` and `start`, so nothing of the container ever runs without it.
- What the runtime puts into the container later, execs, is brought under it as soon as it is there.
- It is a cgroup like the others: whoever removes the container's cgroup removes this one, too.
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
    """Limits how many files containers have open."""

    def __init__(self, cgroups: Cgroups, cgroup_paths: CgroupPaths) -> None:
        self._cgroups = cgroups
        self._cgroup_paths = cgroup_paths

    async def hold(self, container: Container) -> None:
        """Have the limit hold for what has entered the container since; nothing for one without a limit.

        Raises TooManyFilesError where that has more files open than are left, CriShimError.
        """
        if self._cgroups.lack_of_files_limits:
            return
        with host_step(f"container {container.id}: limiting the open files of what entered it"):
            await in_time(
                "limiting open files",
                self._cgroups.gather_files,
                self._cgroup_paths.directory_of(container),
            )

    async def change(self, container: Container, limit: int) -> int:
        """Give a container that was created another limit, -1 for none; the former one.

        Raises TooManyFilesError, with the former limit in force, where it has more open; CriShimError.
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
    """Put the limit in force for all that is in the cgroup. Raises TooManyFilesError, CriShimError."""
    with host_step(f"{object_id}: limiting its open files"):
        await in_time("limiting open files", cgroups.limit_files, relative_dir, limit)
