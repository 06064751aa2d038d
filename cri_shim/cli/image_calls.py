"""Gives image commands their calls: to the running daemon, or to the store itself if no daemon runs.

Both ways use the same messages and the same code (`rpc/admin_images`, `rpc/translate_images`), so commands need not
distinguish them. Only one process may write a store, so the choice is made once: if the socket accepts a connection,
the daemon is called; if nothing listens there, this process takes the root's lock.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol, TypeVar

from cri_shim.cli import daemon_address
from cri_shim.cli.image_daemon import DaemonImages
from cri_shim.config import load_config
from cri_shim.errors import UnavailableError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager

    from cri_shim._pb.admin.v1 import admin_pb2 as admin
    from cri_shim._pb.cri.v1 import api_pb2 as api
    from cri_shim.cli.archive_stream import ArchiveStream

    M = TypeVar("M")
    Tell = Callable[[M], None]
    """Called with each response of a stream, in order."""


class ImageCalls(Protocol):
    """The image calls. Make them inside the block of `errors`, which converts their errors."""

    def errors(self, doing: str) -> AbstractContextManager[None]:
        """Convert the error of a call in the block into a CriShimError, with `doing` in front."""

    def list_images(self) -> Sequence[api.Image]:
        """All images."""

    def find_image(self, name: str) -> api.Image | None:
        """The image with that name, digest or ID, or None."""

    def remove_image(self, name: str) -> None:
        """Remove an image with all its names."""

    def import_image(
        self, archive: ArchiveStream, name: str, tell: Tell[admin.ImportImageResponse]
    ) -> None:
        """Store an archive's images, under `name` if one is given."""

    def pull_image(
        self, request: admin.PullImageRequest, tell: Tell[admin.PullImageResponse]
    ) -> None:
        """Pull an image from its registry."""

    def export_image(
        self, request: admin.ExportImageRequest, tell: Tell[admin.ExportImageResponse]
    ) -> None:
        """Export images as an archive."""

    def check_images(
        self, request: admin.CheckImagesRequest, tell: Tell[admin.CheckImagesResponse]
    ) -> None:
        """Check images for damage."""

    def collect_images(self, request: admin.CollectImagesRequest) -> admin.CollectImagesResponse:
        """Remove unused images and leftovers."""


@contextmanager
def open_images(arguments: argparse.Namespace) -> Iterator[ImageCalls]:
    """The image calls that the options select. With `--socket` only the daemon on that socket is used.

    Raises ConfigError, PermissionRefusedError; UnavailableError if neither daemon nor store can be used.
    """
    no_daemon = ""
    try:
        client = daemon_address.connect(arguments)
    except UnavailableError as error:
        if arguments.socket is not None:
            raise
        no_daemon = str(error)
    if not no_daemon:
        with client:
            yield DaemonImages(client)
        return
    # Imported here, since the modules that open a store take long to import.
    from cri_shim.cli.image_local import LocalImages

    config = load_config(arguments.config, arguments.set)
    with LocalImages(config, no_daemon=no_daemon) as local:
        yield local
