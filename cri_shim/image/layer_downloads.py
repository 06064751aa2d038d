"""The layers of one pull: each is downloaded and unpacked as one stream, several in parallel.

Rules:
- A blob is downloaded once, however many layers of the image refer to it, and not at all if it is here.
- A layer is unpacked while it arrives, if the unpacker has room for another stream. Otherwise it is unpacked from the
  file that every download writes. A download never waits for an unpacking.
- A download below the minimum rate gives its slot back and goes on among the slow ones (`slots`). Any usable link is
  faster, so only a server that drips or stalls is slow.
- An unpacked layer that is here may be packed differently in this image. Its blob is downloaded all the same: without
  it the image could not be exported.
- A layer counts only after its blob's digest was verified. If the digest is wrong, that is the error, whatever the
  unpacker reported about the bytes.
- Names are created and renamed in threads: a file system that writes its journal blocks such calls.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

import structlog

from cri_shim import metrics
from cri_shim.background import uninterrupted
from cri_shim.errors import BadArchiveError, DamagedBlobError
from cri_shim.image.archive_feed import put_document
from cri_shim.image.ingest import TRIES
from cri_shim.image.model import PullProgress, PullStep
from cri_shim.image.transfer import Transfer
from cri_shim.image.unpack.growing_file import Growing
from cri_shim.slots import Share

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Sequence

    from cri_shim.image.blobs import BlobStore
    from cri_shim.image.manifest import Descriptor
    from cri_shim.image.planned import PlannedDocument, PlannedLayer
    from cri_shim.image.reference import Reference
    from cri_shim.image.unpack.client import Unpacker
    from cri_shim.image.unpack.protocol import LayerReport
    from cri_shim.slots import Slot, Slots

log = structlog.get_logger()
_PART_SUFFIX = ".part"
WINDOW_S = 10.0
MIN_BYTES_PER_S = 1024
"""Over one window. At this rate for all of a node's downloads, an image would take weeks."""


class BlobSource(Protocol):
    """The registry, as far as layers go. It raises the errors of `registry.client.Registry`."""

    async def download(self, blob: Descriptor, sink: Transfer) -> str:
        """Write exactly as many bytes as the descriptor says to the sink; returns the server that sent them."""


@dataclass(frozen=True, slots=True)
class RegistryLayers:
    """Where an image's layers come from, and within which limits."""

    reference: Reference
    """The image's."""
    registry: BlobSource
    spool_fd: int
    """A directory of this pull's own."""
    at_once: int
    """How many layers may download in parallel."""
    slots: Slots
    """Each download takes one of these, which all pulls share."""
    of_a_registry: int
    """How many of them one registry gets."""
    tell: Callable[[PullProgress], None]
    """Called at each step."""


class _Held(NamedTuple):
    """The slots of a download, given back when it ends."""

    of_all: Slot
    of_image: contextlib.ExitStack

    def end(self) -> None:
        self.of_all.end()
        self.of_image.close()


class LayerDownloads:
    """The feed of one image's layers from a registry (`ingest.Feed`)."""

    def __init__(
        self,
        wanted: RegistryLayers,
        unpacker: Unpacker,
        blobs: BlobStore,
        *,
        arrived: dict[str, tuple[int, str]],
    ) -> None:
        """`arrived` is shared by all pulls: complete blobs that are not in the store yet, by digest, as spool
        directory and file name.
        """
        self._reference = wanted.reference
        self._source = wanted.registry
        self._unpacker = unpacker
        self._blobs = blobs
        self._spool_fd = wanted.spool_fd
        self._at_once = asyncio.Semaphore(wanted.at_once)
        self._slots = wanted.slots
        self._share = Share(self.source, wanted.of_a_registry)
        self._arrived = arrived
        self._tell = wanted.tell
        self._locks: dict[str, asyncio.Lock] = {}
        self._unpacked: set[int] = set()
        """`id()`s of layers: an image may have equal layers."""
        self.reused = 0
        """How many layers were here already."""

    def borrow(self, layers: Sequence[PlannedLayer]) -> None:
        """Link the blobs that are here into the spool directory, where the removal of another image can't reach them.

        Blocking; raises OSError.
        """
        for name, digest in {layer.file: layer.blob.digest for layer in layers}.items():
            self._blobs.lend(digest, self._spool_fd, name)

    def close(self) -> None:
        """Withdraw our spooled blobs from `arrived`. Call it before the spool directory is removed."""
        for digest, (directory_fd, _) in list(self._arrived.items()):
            if directory_fd == self._spool_fd:
                del self._arrived[digest]

    # ingest.Feed

    @property
    def source(self) -> str:
        """The registry. Its servers decide how fast a blob arrives, whichever repository it is requested from."""
        return f"registry {self._reference.domain}"

    async def unpack(self, layer: PlannedLayer, directory_fd: int) -> LayerReport:
        """Unpack from the blob on this node, or else from the registry. Raises as `ingest.Feed.unpack`."""
        digest = layer.blob.digest
        async with self._locks.setdefault(digest, asyncio.Lock()):
            if _is_file(layer.file, self._spool_fd):
                report = await self._unpack_file(layer, directory_fd)
            else:
                report = await self._obtain(layer, directory_fd)
        self._unpacked.add(id(layer))
        return report

    def placed(self, layer: PlannedLayer) -> None:
        """Report the layer as done, or as reused if it was here."""
        here = id(layer) not in self._unpacked
        if here:
            self.reused += 1
            metrics.IMAGE_LAYER_REUSE.inc()
        self._say(layer, PullStep.HERE if here else PullStep.DONE, layer.blob.size)

    async def complete(self, layers: Sequence[PlannedLayer]) -> None:
        """Download the blobs of layers that were here, packed differently. Raises as the registry, and OSError."""
        for layer in self._without_file(layers):
            await self._borrow_from_another_pull(layer)
        await uninterrupted(self.borrow, self._without_file(layers))
        missing = self._without_file(layers)
        try:
            async with asyncio.TaskGroup() as group:
                for layer in missing:
                    group.create_task(self._fetch(layer))
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None

    def commit_layer(self, layer: PlannedLayer, blobs: BlobStore) -> None:
        """Move the downloaded file into the blob store, if there is one."""
        if _is_file(layer.file, self._spool_fd):
            blobs.adopt(self._spool_fd, layer.file, layer.blob.digest)

    def commit_document(self, document: PlannedDocument, blobs: BlobStore) -> None:
        """Copy the document that the pull spooled into the blob store."""
        put_document(document, self._spool_fd, blobs)

    # One layer

    async def _obtain(self, layer: PlannedLayer, directory_fd: int) -> LayerReport:
        async with self._receiving(layer) as (transfer, held):
            async with self._unpacker.stream() as is_free:
                if is_free:
                    return await self._obtain_as_stream(layer, directory_fd, transfer, held)
            await self._download(layer, transfer, held)
        return await self._unpack_file(layer, directory_fd)

    async def _fetch(self, layer: PlannedLayer) -> None:
        async with self._locks.setdefault(layer.blob.digest, asyncio.Lock()):
            for left in reversed(range(TRIES)):
                if _is_file(layer.file, self._spool_fd):
                    return
                try:
                    async with self._receiving(layer) as (transfer, held):
                        await self._download(layer, transfer, held)
                    self._say(layer, PullStep.DONE, layer.blob.size)
                except DamagedBlobError as error:
                    if not left:
                        raise
                    log.warning("a layer arrived damaged; fetching it again", error=str(error))

    async def _borrow_from_another_pull(self, layer: PlannedLayer) -> None:
        """Link the blob from another pull that has put the layer here and not committed yet."""
        found = self._arrived.get(layer.blob.digest)
        if found is None:
            return
        # Our own descriptor: the other pull may close its directory while the thread links.
        directory_fd, name = os.dup(found[0]), found[1]
        try:
            await uninterrupted(_link, name, directory_fd, layer.file, self._spool_fd)
        finally:
            os.close(directory_fd)

    def _without_file(self, layers: Sequence[PlannedLayer]) -> list[PlannedLayer]:
        """The layers whose blob is not in the spool directory, one per blob: an image may have a layer twice."""
        blobs = {layer.file: layer for layer in layers}.values()
        return [layer for layer in blobs if not _is_file(layer.file, self._spool_fd)]

    @contextlib.asynccontextmanager
    async def _receiving(self, layer: PlannedLayer) -> AsyncIterator[tuple[Transfer, _Held]]:
        """Wait for the slots of a download, then give an empty file. The download gives the slots back."""
        self._say(layer, PullStep.WAITING, 0)
        part = layer.file + _PART_SUFFIX
        what = self._what(layer)
        with contextlib.ExitStack() as of_image:
            await self._at_once.acquire()
            of_image.callback(self._at_once.release)
            async with self._slots.slot(
                f"{what}: its download", self._share, waiting="waiting for other downloads"
            ) as slot:
                await uninterrupted(_make_empty, part, self._spool_fd)
                with _opened(part, os.O_RDWR, self._spool_fd) as fd:
                    transfer = Transfer(
                        fd,
                        layer.blob,
                        what=what,
                        tell=lambda got: self._say(layer, PullStep.DOWNLOADING, got),
                    )
                    yield transfer, _Held(slot, of_image)

    async def _obtain_as_stream(
        self,
        layer: PlannedLayer,
        directory_fd: int,
        transfer: Transfer,
        held: _Held,
    ) -> LayerReport:
        # Read-only: the unpacking child is confined, and must not be able to write to the blob.
        with _opened(layer.file + _PART_SUFFIX, os.O_RDONLY, self._spool_fd) as fd:
            source = Growing(fd, transfer.follow())
            # gather, not TaskGroup: if the unpacker fails, the download goes on to its digest. That tells whether the
            # registry sent wrong bytes or the layer is bad.
            downloaded, unpacked = await asyncio.gather(
                self._download(layer, transfer, held),
                self._unpacker.unpack_layer(source, directory_fd, what=self._what(layer)),
                return_exceptions=True,
            )
        if isinstance(downloaded, BaseException):
            raise downloaded
        if isinstance(unpacked, BaseException):
            raise unpacked
        return unpacked

    async def _download(self, layer: PlannedLayer, transfer: Transfer, held: _Held) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                watch = group.create_task(self._watch(layer, transfer, held.of_all))
                sender = await self._source.download(layer.blob, transfer)
                watch.cancel()
            transfer.finish(sender)
        except BaseExceptionGroup as errors:
            # The unpacking child waits for bytes: show it the end.
            transfer.fail(errors.exceptions[0])
            raise errors.exceptions[0] from None
        except BaseException as error:
            transfer.fail(error)
            raise
        finally:
            held.end()
        await uninterrupted(self._keep, layer)
        self._arrived.setdefault(layer.blob.digest, (self._spool_fd, layer.file))
        self._say(layer, PullStep.UNPACKING, layer.blob.size)

    async def _watch(self, layer: PlannedLayer, transfer: Transfer, slot: Slot) -> None:
        """Call the download slow once less than the minimum has arrived in one window."""
        before = -MIN_BYTES_PER_S * WINDOW_S
        while transfer.received - before >= MIN_BYTES_PER_S * WINDOW_S:
            before = transfer.received
            await asyncio.sleep(WINDOW_S)
        log.info("a layer downloads slowly", image=str(self._reference), layer=layer.blob.digest)
        slot.now_slow()

    async def _unpack_file(self, layer: PlannedLayer, directory_fd: int) -> LayerReport:
        self._say(layer, PullStep.UNPACKING, layer.blob.size)
        with _opened(layer.file, os.O_RDONLY, self._spool_fd) as fd:
            try:
                return await self._unpacker.unpack_layer(
                    fd,
                    directory_fd,
                    what=self._what(layer),
                    owner=f"image {self._reference.repository}",
                )
            except BadArchiveError:
                # The blob may be an earlier image's, and damaged on disk since. Then fetch it again.
                if await uninterrupted(_digest_of_file, fd) != layer.blob.digest:
                    os.unlink(layer.file, dir_fd=self._spool_fd)
                    self._blobs.forget(layer.blob.digest)
                    raise DamagedBlobError(
                        f"{self._what(layer)}: its blob on this node's disk is damaged"
                    ) from None
                raise

    def _keep(self, layer: PlannedLayer) -> None:
        """Give a complete blob its name without the suffix, which `_is_file` looks for."""
        os.rename(
            layer.file + _PART_SUFFIX,
            layer.file,
            src_dir_fd=self._spool_fd,
            dst_dir_fd=self._spool_fd,
        )

    def _what(self, layer: PlannedLayer) -> str:
        return f"{self._reference}: layer {layer.blob.digest}"

    def _say(self, layer: PlannedLayer, step: PullStep, done_bytes: int) -> None:
        self._tell(PullProgress(step, layer.blob.digest, done_bytes, layer.blob.size))


def _make_empty(name: str, directory_fd: int) -> None:
    """Create an empty file, or truncate what an earlier try left."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    os.close(os.open(name, flags, 0o600, dir_fd=directory_fd))


def _link(name: str, directory_fd: int, new_name: str, new_directory_fd: int) -> None:
    with contextlib.suppress(FileNotFoundError):  # the other pull has moved it into the store
        os.link(
            name,
            new_name,
            src_dir_fd=directory_fd,
            dst_dir_fd=new_directory_fd,
            follow_symlinks=False,
        )


@contextlib.contextmanager
def _opened(name: str, access: int, directory_fd: int) -> Iterator[int]:
    fd = os.open(name, access | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory_fd)
    try:
        yield fd
    finally:
        os.close(fd)


def _digest_of_file(fd: int) -> str:
    os.lseek(fd, 0, os.SEEK_SET)
    with open(fd, "rb", buffering=0, closefd=False) as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


def _is_file(name: str, directory_fd: int) -> bool:
    try:
        os.stat(name, dir_fd=directory_fd, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True
