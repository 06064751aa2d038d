"""The pause image: the built-in one, imported at its first use, or the one that the configuration names, pulled."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from cri_shim.image.builtin import PAUSE_REFERENCE, pause_archive

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from cri_shim.image.model import Image
    from cri_shim.image.store import ImageStore


class PauseImage:
    """Finds, and if need be makes, the image of pause containers."""

    def __init__(
        self,
        images: ImageStore,
        reference: str | None,
        pull: Callable[[str], Awaitable[Image]],
    ) -> None:
        self._images = images
        self._reference = reference
        self._pull = pull
        self._lock = asyncio.Lock()

    async def get(self) -> Image:
        """The image.

        Raises what a pull of the configured one raises, CriShimError naming the package to install where the built-in
        one can't be made.
        """
        reference = self._reference or PAUSE_REFERENCE
        image = self._images.find(reference)
        if image is not None:
            return image
        if self._reference:
            return await self._pull(self._reference)
        async with self._lock:
            image = self._images.find(reference)
            if image is None:
                [image] = await self._images.import_archive(pause_archive(), name=reference)
            return image

    async def sweep_after(self, image_id: str) -> None:
        """A sandbox of that image is gone: if the image had been removed before it, so are its layers now."""
        await self._images.sweep_after(image_id)

    def layers(self, image: Image) -> tuple[str, ...]:
        """Short names of its layers, topmost first."""
        return tuple(self._images.layer_stack(image).lowers)
