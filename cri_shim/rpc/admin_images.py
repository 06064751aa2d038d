"""The image calls of the admin service: import, pull with progress, export, check and collection.

Rules:
- The rules of `runtime_service` hold here as well.
- The methods take and return the messages of `api/admin/v1`. Their caller is grpc in the daemon, or the command line
  itself where no daemon runs (`cli/image_local`).
- Import, pull, export and check belong to their call: cancelling the call ends the work, since no client returns for
  the result. A pull that a kubelet asked for as well goes on.
"""

from __future__ import annotations

from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from cri_shim._pb.admin.v1 import admin_pb2 as admin
from cri_shim.errors import BadArchiveError, InvalidArgumentError
from cri_shim.image.model import PullStep
from cri_shim.rpc.fields import require
from cri_shim.rpc.relay import Relay
from cri_shim.rpc.translate_images import credentials, damage_entry, image_entry

if TYPE_CHECKING:
    from collections.abc import (
        AsyncGenerator,
        AsyncIterator,
        Awaitable,
        Callable,
        Collection,
        Sequence,
    )
    from contextlib import AbstractAsyncContextManager

    from cri_shim._pb.cri.v1 import api_pb2 as api
    from cri_shim.image.integrity.report import CheckProgress, CheckReport, Collected, RepairReport
    from cri_shim.image.model import Image, ImportProgress, PullProgress
    from cri_shim.image.registry.credentials import Credentials

LAYER_STATES: Final = {
    PullStep.WAITING: admin.LayerProgress.WAITING,
    PullStep.DOWNLOADING: admin.LayerProgress.DOWNLOADING,
    PullStep.UNPACKING: admin.LayerProgress.UNPACKING,
    PullStep.HERE: admin.LayerProgress.HERE,
    PullStep.DONE: admin.LayerProgress.DONE,
}


class Archive(Protocol):
    """An image archive that is generated while it is read."""

    @property
    def total_bytes(self) -> int:
        """The size of the whole archive."""

    def chunks(self) -> AsyncGenerator[bytes, None]:
        """The archive, in pieces well below `limits.grpc_message`. Raises CorruptStateError for a damaged blob."""


class ImageStore(Protocol):
    """The image store, with the calls of an administrator."""

    async def import_archive(
        self,
        source: AsyncIterator[bytes],
        name: str | None = None,
        progress: Callable[[ImportProgress], None] | None = None,
    ) -> Sequence[Image]:
        """Store the images of an archive, under `name` if one is given, else under the names in the archive.

        Raises BadArchiveError, BadImageReferenceError, ResourceExhaustedError.
        """

    def export(self, names: Sequence[str]) -> AbstractAsyncContextManager[Archive]:
        """Open an archive of these images. Raises NotFoundError, BadImageReferenceError, WrongStateError."""

    async def check(
        self,
        names: Collection[str] = (),
        *,
        progress: Callable[[CheckProgress], None] | None = None,
    ) -> CheckReport:
        """Find damage in these images, or in all if `names` is empty. Raises NotFoundError, BadImageReferenceError."""

    async def repair(
        self,
        names: Collection[str] = (),
        *,
        pull: Callable[[str], Awaitable[Image]],
        progress: Callable[[CheckProgress], None] | None = None,
    ) -> RepairReport:
        """Check as `check` does, and fetch what is damaged again with `pull`. Raises what `check` raises."""

    async def collect(self, *, dry_run: bool = False, untagged: bool = False) -> Collected:
        """Remove layers, blobs and leftovers that no image refers to, and with `untagged` images without a name.

        With `dry_run` only count them.
        """


class Pulls(Protocol):
    """Pulls images from registries."""

    async def pull(
        self,
        image: str,
        credentials: Credentials | None = None,
        progress: Callable[[PullProgress], None] | None = None,
        *,
        abandon: bool = False,
    ) -> Image:
        """Pull `image`. With `abandon`, cancelling the last caller cancels the pull. Errors: see `image_service`."""


@dataclass(frozen=True, slots=True)
class ImageCalls:
    """The image RPCs of `cri_shim.admin.v1.Admin`."""

    images: ImageStore
    pulls: Pulls

    async def import_image(
        self,
        requests: AsyncIterator[admin.ImportImageRequest],
        send: Callable[[admin.ImportImageResponse], Awaitable[None]],
    ) -> None:
        """Store the images of the archive that the client streams, and report progress.

        Raises: InvalidArgumentError for messages out of order, and what `ImageStore.import_archive` raises.
        """
        first = await anext(requests, None)
        if first is None or not first.HasField("options"):
            raise InvalidArgumentError("ImportImageRequest: the first message must carry `options`")
        relay: Relay[admin.ImportImageResponse] = Relay()

        def tell(step: str, done_bytes: int = 0, total_bytes: int = 0) -> None:
            progress = admin.ImportProgress(
                step=step, done_bytes=done_bytes, total_bytes=total_bytes
            )
            relay.tell("step", admin.ImportImageResponse(progress=progress))

        imported = await relay.run(
            lambda: self.images.import_archive(
                _chunks(requests, first.options.archive_bytes, tell),
                first.options.name or None,
                lambda progress: tell(step_text(progress)),
            ),
            send,
        )
        entries = [admin.ImportedImage(id=image.id, names=image.repo_tags) for image in imported]
        await send(admin.ImportImageResponse(imported=admin.ImportedImages(images=entries)))

    async def pull_image(
        self,
        request: admin.PullImageRequest,
        send: Callable[[admin.PullImageResponse], Awaitable[None]],
    ) -> None:
        """Pull an image, even one that is present, and report the progress of each layer."""
        require(request, "image", "image.image")
        shown = credentials(request.auth)
        relay: Relay[admin.PullImageResponse] = Relay()

        def tell(progress: PullProgress) -> None:
            layer = admin.LayerProgress(
                digest=progress.blob,
                state=LAYER_STATES[progress.step],
                done_bytes=progress.done_bytes,
                total_bytes=progress.total_bytes,
            )
            relay.tell(progress.blob, admin.PullImageResponse(layer=layer))

        image = await relay.run(
            lambda: self.pulls.pull(request.image.image, shown, tell, abandon=True), send
        )
        await send(admin.PullImageResponse(pulled=image_entry(image)))

    async def export_image(
        self,
        request: admin.ExportImageRequest,
        send: Callable[[admin.ExportImageResponse], Awaitable[None]],
    ) -> None:
        """Stream images to the client as one archive: first its size, then its bytes."""
        require(request, "images")
        async with self.images.export(_names(request.images)) as archive:
            start = admin.ExportStart(archive_bytes=archive.total_bytes)
            await send(admin.ExportImageResponse(start=start))
            # A client may disconnect between two pieces. Without `aclosing` the event loop would close the generator
            # later, in another task, and the archive's context could end before its generator does.
            async with aclosing(archive.chunks()) as chunks:
                async for chunk in chunks:
                    await send(admin.ExportImageResponse(chunk=chunk))

    async def check_images(
        self,
        request: admin.CheckImagesRequest,
        send: Callable[[admin.CheckImagesResponse], Awaitable[None]],
    ) -> None:
        """Check images, repair them if the client asks for it, and send each damage and the sums."""
        relay: Relay[admin.CheckImagesResponse] = Relay()

        def tell(progress: CheckProgress) -> None:
            step = admin.CheckProgress(
                step=f"checking {progress.what}",
                done_bytes=progress.done_bytes,
                total_bytes=progress.total_bytes,
            )
            relay.tell("step", admin.CheckImagesResponse(progress=step))

        names = _names(request.images)
        if request.repair:
            repair = await relay.run(
                lambda: self.images.repair(names, pull=self.pulls.pull, progress=tell), send
            )
            report = repair.checked
            is_sound = not repair.left
            damages = [damage_entry(finding, repaired=True) for finding in repair.repaired]
            damages += [damage_entry(left.finding, reason=left.reason) for left in repair.left]
        else:
            report = await relay.run(lambda: self.images.check(names, progress=tell), send)
            is_sound = report.sound
            damages = [damage_entry(finding) for finding in report.findings]
        for damage in damages:
            await send(admin.CheckImagesResponse(damage=damage))
        sums = admin.CheckedImages(
            images=report.images,
            layers=report.layers,
            blobs=report.blobs,
            bytes=report.checked_bytes,
            sound=is_sound,
        )
        await send(admin.CheckImagesResponse(checked=sums))

    async def collect_images(
        self, request: admin.CollectImagesRequest
    ) -> admin.CollectImagesResponse:
        """Remove what no image refers to, or with `dry_run` only count it."""
        collected = await self.images.collect(dry_run=request.dry_run, untagged=request.untagged)
        return admin.CollectImagesResponse(
            images=collected.images,
            layers=collected.layers,
            blobs=collected.blobs,
            leftovers=collected.leftovers,
            freed_bytes=collected.freed_bytes,
            freed_inodes=collected.freed_inodes,
        )


def step_text(progress: ImportProgress) -> str:
    """A step of an import as text for the client."""
    match progress.step:
        case "received":
            return "archive received"
        case "layer":
            return f"{progress.image}: layer {progress.done} of {progress.total} unpacked"
        case _:
            return f"{progress.image}: {progress.step}" if progress.image else progress.step


def _names(specs: Sequence[api.ImageSpec]) -> list[str]:
    for spec in specs:
        require(spec, "image")
    return [spec.image for spec in specs]


async def _chunks(
    requests: AsyncIterator[admin.ImportImageRequest],
    total_bytes: int,
    tell: Callable[[str, int, int], None],
) -> AsyncIterator[bytes]:
    received = 0
    async for request in requests:
        if not request.HasField("chunk"):
            raise InvalidArgumentError(
                "ImportImageRequest: after the first message, each must carry a `chunk`"
            )
        received += len(request.chunk)
        tell("receiving the archive", received, total_bytes)
        yield request.chunk
    # grpc ends the request iterator alike for a client that disconnected and for one that sent everything. Without this
    # comparison a truncated archive could be taken for a whole one.
    if total_bytes and received != total_bytes:
        raise BadArchiveError(
            f"the archive ended after {received} of {total_bytes} bytes: import it again"
        )
