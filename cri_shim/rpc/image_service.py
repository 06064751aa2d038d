"""CRI's ImageService: pull, list, status, remove, and disk usage of images.

The rules of `runtime_service` hold here as well.
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
    """Disk usage of images or writable layers."""

    @property
    def used_bytes(self) -> int:
        """Allocated blocks, in bytes."""

    @property
    def inodes(self) -> int:
        """The number of files and directories."""


class Images(Protocol):
    """The image store."""

    def images(self) -> Sequence[Image]:
        """All images of the store."""

    def find(self, text: str) -> Image | None:
        """The image with this name, digest, ID or ID prefix. Raises BadImageReferenceError."""

    async def configuration(self, image: Image) -> bytes:
        """The image's configuration document, unchanged. Raises CorruptStateError."""

    async def remove(self, text: str) -> object:
        """Remove an image with all its names. Raises NotFoundError, BadImageReferenceError."""

    async def fs_usage(self) -> DiskUsage:
        """Disk usage of the image store."""


class Pulls(Protocol):
    """Pulls images from registries."""

    async def pull(self, image: str, credentials: Credentials | None = None) -> Image:
        """Pull the image of that reference, even one that is present.

        Raises BadImageReferenceError, NotFoundError, RegistryAuthError, RegistryUnavailableError, BadArchiveError,
        ResourceExhaustedError, ConfigError.
        """


class LayerUsage(Protocol):
    """Measures the containers' writable layers."""

    async def layers_usage(self) -> DiskUsage:
        """Disk usage of the writable layers of all containers."""


@dataclass(frozen=True, slots=True)
class ImageService:
    """The RPCs of `runtime.v1.ImageService` and `runtime.v1alpha2.ImageService`."""

    images: Images
    pulls: Pulls
    layers: LayerUsage
    mountpoint: Path
    """A directory on the file system of images and writable layers; kubelet calls statfs(2) on it."""

    async def list_images(self, request: api.ListImagesRequest) -> api.ListImagesResponse:
        """List all images, or the one that the filter names."""
        return api.ListImagesResponse(images=map(listed_image, self._selected(request.filter)))

    async def stream_images(
        self,
        request: api.StreamImagesRequest,
        send: Send,
    ) -> None:
        """List images in several messages, for lists that exceed one message."""
        await send_in_pieces(map(_streamed, self._selected(request.filter)), send)

    def _selected(self, filter_: api.ImageFilter) -> Sequence[Image]:
        """Select by the filter's `image.image` alone: every runtime handler of this node has the same images."""
        wanted = filter_.image.image
        if not wanted:
            return list(self.images.images())
        found = self.images.find(wanted)
        return [] if found is None else [found]

    async def image_status(self, request: api.ImageStatusRequest) -> api.ImageStatusResponse:
        """Show one image. For an image that is absent CRI asks for a response without `image`, not for an error."""
        require(request, "image", "image.image")
        image = self.images.find(request.image.image)
        if image is None:
            return api.ImageStatusResponse()
        response = api.ImageStatusResponse(image=image_entry(image))
        if request.verbose:
            try:
                configuration = await self.images.configuration(image)
            except CorruptStateError as error:
                # The record of the image is intact, so the status is answered; only the verbose part is damaged.
                configuration = msgspec.json.encode({"damaged": str(error)})
            response.info["info"] = json_text(image_info(image, configuration))
        return response

    async def pull_image(self, request: api.PullImageRequest) -> api.PullImageResponse:
        """Pull an image, even one that is present; the response has its ID.

        `sandbox_config` and the image's `runtime_handler` are ignored: all pods and handlers share one image store.
        """
        require(request, "image", "image.image")
        image = await self.pulls.pull(request.image.image, credentials(request.auth))
        return api.PullImageResponse(image_ref=image.id)

    async def remove_image(self, request: api.RemoveImageRequest) -> api.RemoveImageResponse:
        """Remove an image. CRI asks for success if it is absent."""
        require(request, "image", "image.image")
        try:
            await self.images.remove(request.image.image)
        except NotFoundError:
            pass  # CRI: "this call is idempotent"; kubelet retries a removal whose answer was lost
        return api.RemoveImageResponse()

    async def image_fs_info(self, request: api.ImageFsInfoRequest) -> api.ImageFsInfoResponse:
        """Disk usage of images and writable layers, which share one file system."""
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
