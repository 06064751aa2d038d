"""Where the image commands get their answers: from the running daemon, or from the store itself where none runs.

Both ways take and give the same messages and end in the same code (`rpc/admin_images`, `rpc/translate_images`), so a
command cannot tell them apart. No second process may write a store, so the choice is made once, by the socket: if it
answers, the daemon is asked; if nothing listens there, the root's lock is taken.
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
    """Called with each answer of a stream, in order."""


class ImageCalls(Protocol):
    """The calls about images. Each raises what `errors` makes of it; use them inside its block."""

    def errors(self, doing: str) -> AbstractContextManager[None]:
        """Turn what a call in the block fails with into one of our errors, with `doing` in front."""

    def list_images(self) -> Sequence[api.Image]:
        """Every image."""

    def find_image(self, name: str) -> api.Image | None:
        """The image of that name, digest or ID."""

    def remove_image(self, name: str) -> None:
        """Take it away with all its names."""

    def import_image(
        self, archive: ArchiveStream, name: str, tell: Tell[admin.ImportImageResponse]
    ) -> None:
        """Store an archive's images, under `name` if one is given."""

    def pull_image(
        self, request: admin.PullImageRequest, tell: Tell[admin.PullImageResponse]
    ) -> None:
        """Bring an image from its registry."""

    def export_image(
        self, request: admin.ExportImageRequest, tell: Tell[admin.ExportImageResponse]
    ) -> None:
        """Get images as an archive."""

    def check_images(
        self, request: admin.CheckImagesRequest, tell: Tell[admin.CheckImagesResponse]
    ) -> None:
        """Look for damage."""

    def collect_images(self, request: admin.CollectImagesRequest) -> admin.CollectImagesResponse:
        """Remove what nothing needs."""


@contextmanager
def open_images(arguments: argparse.Namespace) -> Iterator[ImageCalls]:
    """The images that the options ask for: with `--socket` those of the daemon there and no others.

    Raises ConfigError, PermissionRefusedError, and UnavailableError where neither way is open.
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
    # What opens a store is imported only where it is needed.
    from cri_shim.cli.image_local import LocalImages

    config = load_config(arguments.config, arguments.set)
    with LocalImages(config, no_daemon=no_daemon) as local:
        yield local
