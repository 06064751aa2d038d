"""`cri-shim image`: manages the images of this node, through the daemon, or without one in the store itself.

This module has the command's parser, and `import`, `list` and `rm`. Longer subcommands have modules of their own.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cri_shim.cli import daemon_address, image_export, image_pull
from cri_shim.cli import image_maintenance as image_maintenance
from cri_shim.cli.archive_stream import ArchiveStream
from cri_shim.cli.image_calls import open_images
from cri_shim.cli.output import json_text, printable, short_id, table
from cri_shim.cli.progress import Progress, size_text
from cri_shim.errors import NotFoundError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable, Iterator, Sequence

    from cri_shim._pb.admin.v1 import admin_pb2 as admin
    from cri_shim._pb.cri.v1 import api_pb2 as api
    from cri_shim.cli.image_calls import ImageCalls


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the subcommands."""
    commands = parser.add_subparsers(metavar="COMMAND", title="commands", required=True)
    parser.epilog = "Without a running daemon, the commands open the image store themselves."
    add: Any = commands.add_parser
    image_pull.configure(
        add(
            "pull",
            help="pull an image from its registry",
            description="Pull an image from its registry; layers on the node are not downloaded again.",
        )
    )
    _configure_import(
        add(
            "import",
            help="import the images of a file",
            description="Import the images of an OCI archive, a docker archive or an OCI layout.\n"
            "Archives may be plain or compressed with gzip or zstd.",
        )
    )
    image_export.configure(
        add(
            "export",
            help="export an image to a file",
            description="Export an image as an OCI archive. `image import`, podman, skopeo, ctr and\n"
            "`docker load` read it.",
        )
    )
    list_ = add(
        "list", help="list the images of this node", description="List the images of this node."
    )
    list_.add_argument("--json", action="store_true", help="print JSON")
    list_.set_defaults(run=run_list)
    remove = add(
        "rm",
        help="remove images",
        description="Remove images from this node. Containers keep the layers that they use.",
    )
    remove.add_argument("refs", nargs="+", metavar="REF", help="name, digest or ID")
    remove.set_defaults(run=run_rm)
    image_maintenance.configure_check(
        add(
            "check",
            help="find damaged images, and repair them",
            description="Read images completely and list damage. Exit code 1 if any damage is left.",
        )
    )
    image_maintenance.configure_gc(
        add(
            "gc",
            help="remove images and leftovers that nothing needs",
            description="Remove unnamed images that no container uses, and leftovers on disk.\n"
            "Named images stay, unless --untagged removes them; pinned ones always stay.",
        )
    )
    for command in commands.choices.values():
        daemon_address.add_options(command)


def _configure_import(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "file", type=Path, metavar="FILE", help="archive or directory; - for standard input"
    )
    parser.add_argument(
        "--name", default="", metavar="REF", help="name of the image, instead of the file's own"
    )
    parser.set_defaults(run=run_import)


def run_import(arguments: argparse.Namespace) -> int:
    """Import one file."""
    archive = ArchiveStream(arguments.file, stdin=sys.stdin.buffer)
    with open_images(arguments) as images:
        import_archive(images, archive, name=arguments.name, progress=Progress(sys.stdout))
    return 0


def import_archive(
    images: ImageCalls, archive: ArchiveStream, *, name: str, progress: Progress
) -> Sequence[admin.ImportedImage]:
    """Import an archive and show the progress. Returns the images."""
    imported: list[admin.ImportedImage] = []

    def tell(answer: admin.ImportImageResponse) -> None:
        if answer.HasField("imported"):
            imported.extend(answer.imported.images)
        else:
            step = answer.progress
            progress.show(step.step, step.done_bytes, step.total_bytes)

    try:
        with images.errors("cannot import the image"):
            images.import_image(archive, name, tell)
    finally:
        progress.close()
    for image in imported:
        progress.say(f"imported {', '.join(image.names) or '(no name)'} as {short_id(image.id)}")
    return imported


def run_list(arguments: argparse.Namespace) -> int:
    """List images, as a table or as JSON."""
    with open_images(arguments) as images, images.errors("cannot list images"):
        found = images.list_images()
    if arguments.json:
        print(json_text([document_of(image) for image in found]))
        return 0
    for line in table([("IMAGE", "ID", "SIZE"), *sorted(rows_of(found))]):
        print(line)
    return 0


def run_rm(arguments: argparse.Namespace) -> int:
    """Remove images. Raises NotFoundError for an unknown one; CRI's RemoveImage succeeds for it."""
    with open_images(arguments) as images:
        for ref in dict.fromkeys(arguments.refs):
            with images.errors(f"cannot remove {ref}"):
                found = images.find_image(ref)
                if found is not None:
                    images.remove_image(ref)
            if found is None:
                raise NotFoundError("image", ref, "see `cri-shim image list`")
            # All names of the image are removed, also those that were not given.
            names = ", ".join(found.repo_tags) or ref
            print(f"removed {printable(names)} ({short_id(found.id)})")
    return 0


def rows_of(images: Iterable[api.Image]) -> Iterator[tuple[str, str, str]]:
    """A row for each name of each image: name, short ID, size."""
    for image in images:
        names = list(image.repo_tags) or list(image.repo_digests) or ["(no name)"]
        for name in names:
            yield printable(name), short_id(image.id), size_text(image.size)


def document_of(image: api.Image) -> dict[str, object]:
    """An image as a JSON document."""
    return {
        "id": image.id,
        "tags": list(image.repo_tags),
        "digests": list(image.repo_digests),
        "size": image.size,
        "user": str(image.uid.value) if image.HasField("uid") else image.username,
        "pinned": image.pinned,
        "annotations": dict(image.spec.annotations),
    }
