"""The pause image: the built-in one, which is imported at its first use, or the configured one, which is pulled."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from cri_shim.image.builtin import PAUSE_REFERENCE, pause_archive

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from cri_shim.image.model import Image
    from cri_shim.image.store import ImageStore


class PauseImage:
    """Provides the image of pause containers."""

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
        """The pause image; it is imported or pulled if it is missing.

        Raises the errors of a pull; CriShimError with the package to install if the built-in image cannot be built.
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
        """Remove the image's layers if the image was removed while a sandbox, which is removed now, used them."""
        await self._images.sweep_after(image_id)

    def layers(self, image: Image) -> tuple[str, ...]:
        """Short names of the image's layers, the topmost first."""
        return tuple(self._images.layer_stack(image).lowers)
