"""`cri-shim image import | list | rm`: images of a running daemon, without a registry.

All of it is the daemon's work: these commands talk to its unix socket and show what it says.
"""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cri_shim._pb.admin.v1 import admin_pb2
from cri_shim._pb.cri.v1 import api_pb2 as api
from cri_shim.cli import daemon_address
from cri_shim.cli.archive_stream import ArchiveStream
from cri_shim.cli.output import printable, table
from cri_shim.cli.progress import Progress, size_text
from cri_shim.errors import CriShimError, NotFoundError
from cri_shim.rpc.client import errors_of

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from cri_shim.rpc.client import Client

_SHORT_ID: Final = 12


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the subcommands."""
    commands = parser.add_subparsers(metavar="COMMAND", title="commands", required=True)
    import_ = commands.add_parser(
        "import",
        help="store the images of a file",
        description="Store the images of an OCI archive, a docker-archive or an OCI layout directory.\n"
        "Archives may be plain or compressed with gzip or zstd.",
    )
    import_.add_argument(
        "file", type=Path, metavar="FILE", help="archive or directory; - is standard input"
    )
    import_.add_argument(
        "--name", default="", metavar="REF", help="store under this name instead of the file's own"
    )
    import_.set_defaults(run=run_import)
    list_ = commands.add_parser(
        "list", help="list the images of this node", description="List the images of this node."
    )
    list_.set_defaults(run=run_list)
    remove = commands.add_parser(
        "rm",
        help="remove images",
        description="Remove images from this node; containers keep what they use.",
    )
    remove.add_argument("refs", nargs="+", metavar="REF", help="name, digest or ID")
    remove.set_defaults(run=run_rm)
    for command in (import_, list_, remove):
        daemon_address.add_options(command)


def run_import(arguments: argparse.Namespace) -> int:
    """Import one file."""
    archive = ArchiveStream(arguments.file, stdin=sys.stdin.buffer)
    with daemon_address.connect(arguments) as client:
        import_archive(client, archive, name=arguments.name, progress=Progress(sys.stdout))
    return 0


def run_list(arguments: argparse.Namespace) -> int:
    """List images as a table."""
    with daemon_address.connect(arguments) as client, errors_of("cannot list images"):
        images = client.images.ListImages(api.ListImagesRequest()).images
    for line in table([("IMAGE", "ID", "SIZE"), *sorted(rows_of(images))]):
        print(line)
    return 0


def run_rm(arguments: argparse.Namespace) -> int:
    """Remove images. Raises NotFoundError for one that isn't there, where CRI's own call would succeed."""
    with daemon_address.connect(arguments) as client:
        for ref in dict.fromkeys(arguments.refs):
            spec = api.ImageSpec(image=ref)
            with errors_of(f"cannot remove {ref}"):
                found = client.images.ImageStatus(api.ImageStatusRequest(image=spec))
                if not found.HasField("image"):
                    raise NotFoundError("image", ref, "see `cri-shim image list`")
                client.images.RemoveImage(api.RemoveImageRequest(image=spec))
            # An image goes with all its names, also those that were not said.
            names = ", ".join(found.image.repo_tags) or ref
            print(f"removed {printable(names)} ({_short(found.image.id)})")
    return 0


def import_archive(
    client: Client, archive: ArchiveStream, *, name: str, progress: Progress
) -> Sequence[admin_pb2.ImportedImage]:
    """Send an archive to the daemon and show its progress. Returns the images."""
    upload = _Upload(archive, name)
    imported: Sequence[admin_pb2.ImportedImage] = ()
    try:
        with errors_of("cannot import the image"):
            call = client.admin.ImportImage(upload.messages())
            upload.cancel_with(call.cancel)
            for answer in call:
                if answer.HasField("imported"):
                    imported = answer.imported.images
                else:
                    step = answer.progress
                    progress.show(step.step, step.done_bytes, step.total_bytes)
        upload.raise_failure()
    except CriShimError:
        upload.raise_failure()  # the cause: the daemon only saw the stream break
        raise
    finally:
        progress.close()
    for image in imported:
        progress.say(f"imported {', '.join(image.names) or '(no name)'} as {_short(image.id)}")
    return imported


class _Upload:
    """The messages that carry an archive.

    grpc draws them in a thread of its own, where an error would be logged and lost: so it is kept, and the call is
    cancelled, since a stream that merely ended would look complete.
    """

    def __init__(self, archive: ArchiveStream, name: str) -> None:
        self._archive = archive
        self._name = name
        self._failure: CriShimError | None = None
        self._cancel: Callable[[], object] | None = None
        self._can_cancel = threading.Event()

    def cancel_with(self, cancel: Callable[[], object]) -> None:
        """How to end the call, once there is one."""
        self._cancel = cancel
        self._can_cancel.set()

    def messages(self) -> Iterator[admin_pb2.ImportImageRequest]:
        """The options, then the archive."""
        yield admin_pb2.ImportImageRequest(
            options=admin_pb2.ImportOptions(name=self._name, archive_bytes=self._archive.size_bytes)
        )
        try:
            for chunk in self._archive.chunks():
                yield admin_pb2.ImportImageRequest(chunk=chunk)
        except CriShimError as error:
            self._fail(error)
        except OSError as error:
            self._fail(CriShimError(f"cannot read the image file: {error}"))

    def raise_failure(self) -> None:
        """Raise what went wrong on this side, if anything did."""
        if self._failure is not None:
            raise self._failure

    def _fail(self, error: CriShimError) -> None:
        self._failure = error
        self._can_cancel.wait()
        if self._cancel is not None:
            self._cancel()


def rows_of(images: Iterable[api.Image]) -> Iterator[tuple[str, str, str]]:
    """A row for each name of each image: name, short ID, size."""
    for image in images:
        names = list(image.repo_tags) or list(image.repo_digests) or ["(no name)"]
        for name in names:
            yield printable(name), _short(image.id), size_text(image.size)


def _short(image_id: str) -> str:
    return printable(image_id.removeprefix("sha256:")[:_SHORT_ID])
