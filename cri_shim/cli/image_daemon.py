"""Images of the running daemon (`image_calls.ImageCalls`): its calls over the unix socket."""

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
    """Calls a daemon. What is under way ends with the connection."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def errors(self, doing: str) -> AbstractContextManager[None]:
        """The daemon's answers as our errors."""
        return errors_of(doing)

    def list_images(self) -> Sequence[api.Image]:
        """Every image, however many there are."""
        pieces = self._client.images.StreamImages(api.StreamImagesRequest())
        return [image for piece in pieces for image in piece.images]

    def find_image(self, name: str) -> api.Image | None:
        """One image."""
        request = api.ImageStatusRequest(image=api.ImageSpec(image=name))
        found = self._client.images.ImageStatus(request)
        return found.image if found.HasField("image") else None

    def remove_image(self, name: str) -> None:
        """Take one away."""
        self._client.images.RemoveImage(api.RemoveImageRequest(image=api.ImageSpec(image=name)))

    def import_image(
        self,
        archive: ArchiveStream,
        name: str,
        tell: Callable[[admin.ImportImageResponse], None],
    ) -> None:
        """Send an archive."""
        upload = _Upload(import_messages(archive, name))
        try:
            call = self._client.admin.ImportImage(upload.messages())
            upload.cancel_with(call.cancel)
            for answer in call:
                tell(answer)
        finally:
            upload.raise_failure()  # the cause: the daemon only saw the stream break

    def pull_image(
        self, request: admin.PullImageRequest, tell: Callable[[admin.PullImageResponse], None]
    ) -> None:
        """Let the daemon pull."""
        for answer in self._client.admin.PullImage(request):
            tell(answer)

    def export_image(
        self, request: admin.ExportImageRequest, tell: Callable[[admin.ExportImageResponse], None]
    ) -> None:
        """Let the daemon export."""
        for answer in self._client.admin.ExportImage(request):
            tell(answer)

    def check_images(
        self, request: admin.CheckImagesRequest, tell: Callable[[admin.CheckImagesResponse], None]
    ) -> None:
        """Let the daemon check."""
        for answer in self._client.admin.CheckImages(request):
            tell(answer)

    def collect_images(self, request: admin.CollectImagesRequest) -> admin.CollectImagesResponse:
        """Let the daemon collect."""
        return self._client.admin.CollectImages(request)


class _Upload:
    """The messages that carry an archive.

    grpc draws them in a thread of its own, where an error would be logged and lost: so it is kept, and the call is
    cancelled, since a stream that merely ended would look complete.
    """

    def __init__(self, messages: Iterable[admin.ImportImageRequest]) -> None:
        self._messages = messages
        self._failure: CriShimError | None = None
        self._cancel: Callable[[], object] | None = None
        self._can_cancel = threading.Event()

    def cancel_with(self, cancel: Callable[[], object]) -> None:
        """How to end the call, once there is one."""
        self._cancel = cancel
        self._can_cancel.set()

    def messages(self) -> Iterator[admin.ImportImageRequest]:
        """The options, then the archive."""
        try:
            yield from self._messages
        except CriShimError as error:
            self._failure = error
            self._can_cancel.wait()
            if self._cancel is not None:
                self._cancel()

    def raise_failure(self) -> None:
        """Raise what went wrong on this side, if anything did."""
        if self._failure is not None:
            raise self._failure
