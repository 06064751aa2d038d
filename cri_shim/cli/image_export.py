"""`cri-shim image export`: writes an image to a file, completely or not at all."""

from __future__ import annotations

import os
import stat
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final

from cri_shim._pb.admin.v1 import admin_pb2 as admin
from cri_shim._pb.cri.v1 import api_pb2 as api
from cri_shim.cli.image_calls import open_images
from cri_shim.cli.progress import Progress, size_text
from cri_shim.errors import host_step

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

STDOUT: Final = Path("-")
PART_SUFFIX: Final = ".part"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("ref", metavar="REF", help="name, digest or ID")
    parser.add_argument(
        "file",
        nargs="?",
        type=Path,
        default=STDOUT,
        metavar="FILE",
        help="file to write; - or none is standard output",
    )

    def run_export(arguments: argparse.Namespace) -> int:
        if arguments.file == STDOUT and sys.stdout.isatty():
            parser.error(
                "refusing to write an archive to a terminal: give FILE, or redirect the output"
            )
        return run(arguments)

    parser.set_defaults(run=run_export)


def run(arguments: argparse.Namespace) -> int:
    """Export one image."""
    is_piped = arguments.file == STDOUT
    progress = Progress(sys.stderr if is_piped else sys.stdout)
    request = admin.ExportImageRequest(images=[api.ImageSpec(image=arguments.ref)])
    total_bytes = done_bytes = 0
    step = f"exporting {arguments.ref}"

    with open_images(arguments) as images, _target(arguments.file) as file:

        def tell(answer: admin.ExportImageResponse) -> None:
            nonlocal total_bytes, done_bytes
            if answer.HasField("start"):
                total_bytes = answer.start.archive_bytes
            else:
                with host_step(f"writing {arguments.file}"):
                    file.write(answer.chunk)
                done_bytes += len(answer.chunk)
            progress.show(step, done_bytes, total_bytes)

        try:
            with images.errors(f"cannot export {arguments.ref}"):
                images.export_image(request, tell)
        finally:
            progress.close()
    if not is_piped:
        progress.say(f"exported {arguments.ref} to {arguments.file} ({size_text(done_bytes)})")
    return 0


@contextmanager
def _target(path: Path) -> Iterator[BinaryIO]:
    """Open the target. A file gets its name once it is complete, and mode 0600, since images may contain secrets.

    Raises OSError, CriShimError.
    """
    if path == STDOUT:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    if path.exists() and not stat.S_ISREG(path.stat().st_mode):
        with path.open("wb") as device:  # a pipe or device must not be replaced by a file
            yield device
        return
    part = path.with_name(path.name + PART_SUFFIX)
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        with open(os.open(part, flags, 0o600), "wb") as file:
            yield file
            with host_step(f"writing {path}"):
                file.flush()
                os.fsync(file.fileno())
        part.rename(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
