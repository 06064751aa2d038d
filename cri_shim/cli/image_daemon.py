"""The image calls of a running daemon (`image_calls.ImageCalls`), over its unix socket."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from cri_shim._pb.cri.v1 import api_pb2 as api
from cri_shim.cli.archive_stream import import_messages
from cri_shim.errors import CriShimError
from cri_shim.rpc.client import errors_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from contextlib import AbstractContextManager

    from cri_shim._pb.admin.v1 import admin_pb2 as admin
    from cri_shim.cli.archive_stream import ArchiveStream
    from cri_shim.rpc.client import Client


class DaemonImages:
    """Calls the daemon. Closing the connection cancels a call under way."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def errors(self, doing: str) -> AbstractContextManager[None]:
        """Convert the daemon's gRPC errors."""
        return errors_of(doing)

    def list_images(self) -> Sequence[api.Image]:
        """All images. The Stream call is used, since the list may exceed one message."""
        pieces = self._client.images.StreamImages(api.StreamImagesRequest())
        return [image for piece in pieces for image in piece.images]

    def find_image(self, name: str) -> api.Image | None:
        """The image with that name, digest or ID, or None."""
        request = api.ImageStatusRequest(image=api.ImageSpec(image=name))
        found = self._client.images.ImageStatus(request)
        return found.image if found.HasField("image") else None

    def remove_image(self, name: str) -> None:
        """Remove an image with all its names."""
        self._client.images.RemoveImage(api.RemoveImageRequest(image=api.ImageSpec(image=name)))

    def import_image(
        self,
        archive: ArchiveStream,
        name: str,
        tell: Callable[[admin.ImportImageResponse], None],
    ) -> None:
        """Upload an archive and import it."""
        upload = _Upload(import_messages(archive, name))
        try:
            call = self._client.admin.ImportImage(upload.messages())
            upload.cancel_with(call.cancel)
            for answer in call:
                tell(answer)
        finally:
            upload.raise_failure()  # the cause; to the daemon the stream was just cancelled

    def pull_image(
        self, request: admin.PullImageRequest, tell: Callable[[admin.PullImageResponse], None]
    ) -> None:
        """Pull an image."""
        for answer in self._client.admin.PullImage(request):
            tell(answer)

    def export_image(
        self, request: admin.ExportImageRequest, tell: Callable[[admin.ExportImageResponse], None]
    ) -> None:
        """Export images as an archive."""
        for answer in self._client.admin.ExportImage(request):
            tell(answer)

    def check_images(
        self, request: admin.CheckImagesRequest, tell: Callable[[admin.CheckImagesResponse], None]
    ) -> None:
        """Check images for damage."""
        for answer in self._client.admin.CheckImages(request):
            tell(answer)

    def collect_images(self, request: admin.CollectImagesRequest) -> admin.CollectImagesResponse:
        """Remove unused images and leftovers."""
        return self._client.admin.CollectImages(request)


class _Upload:
    """The request stream of an import.

    grpc iterates it in a thread of its own, where an error would only be logged. So the error is kept, and the call is
    cancelled: if the stream just ended, the archive would look complete to the daemon.
    """

    def __init__(self, messages: Iterable[admin.ImportImageRequest]) -> None:
        self._messages = messages
        self._failure: CriShimError | None = None
        self._cancel: Callable[[], object] | None = None
        self._can_cancel = threading.Event()

    def cancel_with(self, cancel: Callable[[], object]) -> None:
        """Set the function that cancels the call, once the call exists."""
        self._cancel = cancel
        self._can_cancel.set()

    def messages(self) -> Iterator[admin.ImportImageRequest]:
        """The requests: the options, then the archive."""
        try:
            yield from self._messages
        except CriShimError as error:
            self._failure = error
            self._can_cancel.wait()
            if self._cancel is not None:
                self._cancel()

    def raise_failure(self) -> None:
        """Raise the error of the request stream, if there was one."""
        if self._failure is not None:
            raise self._failure
