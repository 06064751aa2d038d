"""ImageService: pull, list, look up, remove, and how much disk images take.

Rules are those of `runtime_service`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import msgspec

from cri_shim._pb.cri.v1 import api_pb2 as api
from cri_shim.errors import CorruptStateError, NotFoundError
from cri_shim.rpc.fields import require
from cri_shim.rpc.pieces import send_in_pieces
from cri_shim.rpc.runtime_service import json_text
from cri_shim.rpc.translate_images import (
    credentials,
    image_entry,
    image_info,
    listed_image,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from cri_shim.image.model import Image
    from cri_shim.image.registry.credentials import Credentials
    from cri_shim.rpc.pieces import Send


class DiskUsage(Protocol):
    """What something takes on disk."""

    @property
    def used_bytes(self) -> int:
        """Blocks in use, in bytes."""

    @property
    def inodes(self) -> int:
        """Files and directories."""


class Images(Protocol):
    """The image store."""

    def images(self) -> Sequence[Image]:
        """All images."""

    def find(self, text: str) -> Image | None:
        """The image with this name, digest, ID or ID prefix. Raises BadImageReferenceError."""

    async def configuration(self, image: Image) -> bytes:
        """Its configuration, as its maker wrote it. Raises CorruptStateError."""

    async def remove(self, text: str) -> object:
        """Take an image away with all its names. Raises NotFoundError, BadImageReferenceError."""

    async def fs_usage(self) -> DiskUsage:
        """What images take on disk."""


class Pulls(Protocol):
    """Brings images from registries."""

    async def pull(self, image: str, credentials: Credentials | None = None) -> Image:
        """Have the image of that reference here.

        Raises BadImageReferenceError, NotFoundError, RegistryAuthError, RegistryUnavailableError, BadArchiveError,
        ResourceExhaustedError, ConfigError.
        """


class LayerUsage(Protocol):
    """Counts the writable layers."""

    async def layers_usage(self) -> DiskUsage:
        """What the writable layers of all containers take on disk."""


@dataclass(frozen=True, slots=True)
class ImageService:
    """The RPCs of `runtime.v1.ImageService`, and of its older namesake."""

    images: Images
    pulls: Pulls
    layers: LayerUsage
    mountpoint: Path
    """What clients are told holds images and writable layers: kubelet asks the kernel how full its file system is."""

    async def list_images(self, request: api.ListImagesRequest) -> api.ListImagesResponse:
        """All images, or the one that the filter names."""
        return api.ListImagesResponse(images=map(listed_image, self._selected(request.filter)))

    async def stream_images(
        self,
        request: api.StreamImagesRequest,
        send: Send,
    ) -> None:
        """The same in pieces: for more images than one message can hold."""
        await send_in_pieces(map(_streamed, self._selected(request.filter)), send)

    def _selected(self, filter_: api.ImageFilter) -> Sequence[Image]:
        """Only the filter's `image.image` counts: the images of this node are the same for every runtime handler."""
        wanted = filter_.image.image
        if not wanted:
            return list(self.images.images())
        found = self.images.find(wanted)
        return [] if found is None else [found]

    async def image_status(self, request: api.ImageStatusRequest) -> api.ImageStatusResponse:
        """One image; an answer without it, and no error, when it isn't there: so CRI has it."""
        require(request, "image", "image.image")
        image = self.images.find(request.image.image)
        if image is None:
            return api.ImageStatusResponse()
        response = api.ImageStatusResponse(image=image_entry(image))
        if request.verbose:
            try:
                configuration = await self.images.configuration(image)
            except CorruptStateError as error:
                configuration = msgspec.json.encode({"damaged": str(error)})
            response.info["info"] = json_text(image_info(image, configuration))
        return response

    async def pull_image(self, request: api.PullImageRequest) -> api.PullImageResponse:
        """Have an image here as its registry has it now; the answer is its ID.

        The pod that it is for (`sandbox_config`) makes no difference, nor does the runtime handler: all take the same.
        """
        require(request, "image", "image.image")
        image = await self.pulls.pull(request.image.image, credentials(request.auth))
        return api.PullImageResponse(image_ref=image.id)

    async def remove_image(self, request: api.RemoveImageRequest) -> api.RemoveImageResponse:
        """Take an image away; succeeds for one that isn't there."""
        require(request, "image", "image.image")
        try:
            await self.images.remove(request.image.image)
        except NotFoundError:
            pass  # as CRI wants it: kubelet's retry of a removal that worked
        return api.RemoveImageResponse()

    async def image_fs_info(self, request: api.ImageFsInfoRequest) -> api.ImageFsInfoResponse:
        """What images and writable layers take; both are on one file system."""
        return api.ImageFsInfoResponse(
            image_filesystems=[self._filesystem(await self.images.fs_usage())],
            container_filesystems=[self._filesystem(await self.layers.layers_usage())],
        )

    def _filesystem(self, usage: DiskUsage) -> api.FilesystemUsage:
        return api.FilesystemUsage(
            timestamp=time.time_ns(),
            fs_id=api.FilesystemIdentifier(mountpoint=str(self.mountpoint)),
            used_bytes=api.UInt64Value(value=usage.used_bytes),
            inodes_used=api.UInt64Value(value=usage.inodes),
        )


def _streamed(image: Image) -> bytes:
    return api.StreamImagesResponse(images=[listed_image(image)]).SerializeToString()
