"""Removes everything that a container owns, for RemoveContainer, recovery and wipe."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cri_shim.image.store import ImageStore
    from cri_shim.paths import Paths
    from cri_shim.sandbox.exit_handling import ExitHandling
    from cri_shim.sandbox.exits import ExitWatch
    from cri_shim.sandbox.store.store import Container, Store
    from cri_shim.sandbox.teardown import Teardown


class ContainerRemoval:
    """Removes containers. Callers ensure that a container is removed by one of them at a time."""

    def __init__(
        self,
        *,
        paths: Paths,
        store: Store[Container],
        images: ImageStore,
        exits: ExitWatch,
        exit_handling: ExitHandling,
        teardown: Teardown,
    ) -> None:
        self._paths = paths
        self._store = store
        self._images = images
        self._exits = exits
        self._exit_handling = exit_handling
        self._teardown = teardown

    async def destroy(self, container: Container) -> None:
        """Kill the container's processes, and remove everything that it owns, in whatever state it is.

        Raises what `teardown` raises. A further call removes the rest.
        """
        self._exits.forget(container.id)
        await self._exit_handling.tear_down_process(container)
        paths = self._paths.container(container.id)
        await self._teardown.state_files(paths)
        await self._teardown.root_files(paths)
        self._store.forget(container)
        volumes = (volume.image_id for volume in container.record.image_volumes)
        for image_id in dict.fromkeys((container.record.image_id, *volumes)):
            await self._images.sweep_after(image_id)
