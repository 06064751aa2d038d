"""The images on this node: import, ingest, removal, check and repair.

Rules:
- `images`, `find` and `layer_stack` answer from memory and never wait. One lock orders changes.
- Names are tags, which move, and `repository@digest`, which don't. Names below `cri-shim.local` belong to the built-in
  images; no archive and no registry can bring one.
- Work under way holds its layers. `store_state` defines the order of writes, `integrity/check` what is checked.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from typing import TYPE_CHECKING, Self

import structlog

from cri_shim.background import uninterrupted
from cri_shim.errors import BadImageReferenceError, CorruptStateError, NotFoundError, host_step
from cri_shim.image.archive_feed import ArchiveFeed, with_names
from cri_shim.image.collect import collect
from cri_shim.image.export import prepare_export
from cri_shim.image.ingest import unpack_layers, warn_of_platforms
from cri_shim.image.integrity.check import Checker
from cri_shim.image.integrity.repair import Repairer
from cri_shim.image.layer_downloads import LayerDownloads
from cri_shim.image.manifest import MAX_CONFIG_BYTES, chain_ids
from cri_shim.image.model import EMPTY_LAYER, FsUsage, Image, ImportProgress, LayerStack
from cri_shim.image.pins import Pins
from cri_shim.image.platforms import platform_of
from cri_shim.image.reference import parse_reference
from cri_shim.image.store_state import StoreState
from cri_shim.image.unpack.client import Unpacker
from cri_shim.image.unpack.document_reader import DocumentReader
from cri_shim.image.volume import check_sub_path, image_volume
from cri_shim.quoting import quoted

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator, Sequence
    from pathlib import Path

    from cri_shim.host.process import Reaper
    from cri_shim.image.blobs import BlobStore
    from cri_shim.image.export import Export
    from cri_shim.image.ingest import Feed
    from cri_shim.image.integrity.report import CheckProgress, CheckReport, Collected, RepairReport
    from cri_shim.image.layer_downloads import RegistryLayers
    from cri_shim.image.planned import PlannedImage
    from cri_shim.image.reference import Reference
    from cri_shim.image.volume import ImageVolume

    Progress = Callable[[ImportProgress], None]
    Pull = Callable[[str], Awaitable[Image]]

__all__ = ["FsUsage", "Image", "ImageStore", "ImportProgress", "LayerStack"]

log = structlog.get_logger()


class ImageStore:
    """The images of one root. Create it with `open`; use it on the event loop's thread."""

    def __init__(
        self, state: StoreState, unpacker: Unpacker, reaper: Reaper, *, machine: str
    ) -> None:
        self._state = state
        self._layers = state.layers
        self.layers_in_use = state.in_use
        """Returns the names of the layers that containers are mounted from."""
        self._unpacker = unpacker
        self.platform = platform_of(machine)
        self._checker = Checker(state, unpacker, reaper)
        self._repairer = Repairer(
            state, unpacker, self.platform, ingest=self.ingest, import_archive=self.import_archive
        )
        self._arrived: dict[str, tuple[int, str]] = {}
        """Complete blobs that pulls under way have spooled, by digest: descriptor of the spool directory, file name."""
        self._maintenance = asyncio.Lock()
        """Held while this node's disk is read and cleaned, never while a registry is waited for."""

    @classmethod
    async def open(
        cls,
        images_dir: Path,
        layers_dir: Path,
        reaper: Reaper,
        *,
        in_use: Callable[[], Collection[str]] = tuple,
        machine: str | None = None,
        pinned: Collection[str] = (),
        discard_blobs: bool = False,
        unpacker: Unpacker | None = None,
    ) -> Self:
        """Load the store. Leftovers of interrupted work are removed, damaged documents are set aside.

        `in_use` returns the names of the layers that containers are mounted from. `pinned` are references and patterns
        (`pins`). Layers that nothing refers to stay until `sweep`, which the daemon calls once it knows its
        containers. Raises ConfigError (`pinned`), OSError when the directories can't be used.
        """
        state = StoreState(
            images_dir, layers_dir, in_use, Pins(pinned), discard_blobs=discard_blobs
        )
        await asyncio.to_thread(state.load)
        return cls(
            state,
            unpacker or Unpacker(reaper),
            reaper,
            machine=machine or os.uname().machine,
        )

    async def close(self) -> None:
        """Stop the unpacker's process."""
        await self._unpacker.close()

    def pin(self, pins: Pins) -> None:
        """Replace the pins."""
        self._state.pins = pins
        self._state.take_over(self._state.index, self._state.described)

    # Queries

    @property
    def blobs(self) -> BlobStore:
        """The blobs of all images."""
        return self._state.blobs

    def images(self) -> Sequence[Image]:
        """Every image."""
        return self._state.catalog.images()

    def find(self, text: str) -> Image | None:
        """The image with that reference, that ID, or the only one whose ID begins so; None if there is none.

        Raises BadImageReferenceError for text that is neither.
        """
        return self._state.catalog.find(text)

    def layer_stack(self, image: Image) -> LayerStack:
        """The directories to mount for `image`. Raises CorruptStateError when a layer is missing."""
        try:
            layers = self._layers.stack(image.chain[-1]) if image.chain else []
        except KeyError as error:
            raise CorruptStateError(
                f"image {image.name}: its layer {error.args[0]} is missing; remove the image and pull it again"
            ) from None
        names = tuple(layer.name for layer in layers)
        return LayerStack(self._state.layers_dir, names or (EMPTY_LAYER,))

    @contextlib.contextmanager
    def hold(self, image: Image) -> Iterator[LayerStack]:
        """The directories to mount. The layers stay while this is open; store a container's record before it closes."""
        with self._layers.hold(image.chain):
            yield self.layer_stack(image)

    @contextlib.asynccontextmanager
    async def volume(self, text: str, sub_path: str = "") -> AsyncIterator[ImageVolume]:
        """A local image as a volume. Its layers stay while this is open; store a container's record before it closes.

        Raises NotFoundError, BadImageReferenceError, InvalidArgumentError (`sub_path`), CriShimError.
        """
        check_sub_path(sub_path)
        image = self.find(text)
        if image is None:
            raise NotFoundError("image", text, "pull or import it first")
        with self.hold(image) as stack:
            with host_step(f"preparing image {image.name} as a volume"):
                volume = await asyncio.to_thread(image_volume, image, stack, sub_path)
            yield volume

    async def configuration(self, image: Image) -> bytes:
        """The configuration document of `image`, byte for byte. Raises CorruptStateError."""
        return await asyncio.to_thread(self.blobs.peek, image.id, MAX_CONFIG_BYTES)

    async def fs_usage(self) -> FsUsage:
        """Disk usage of all images, from running sums."""
        return FsUsage(
            self._state.dir,
            self._layers.disk_bytes + self.blobs.used_bytes,
            self._layers.inodes + self.blobs.inodes,
        )

    async def stored_document(self, digest: str, max_bytes: int) -> bytes | None:
        """A small blob that is here; None if it is not, or is damaged: then it must be fetched again."""
        return await self._state.stored_document(digest, max_bytes)

    # Ingest

    def warm_up(self) -> None:
        """Start the unpacking process now, so that it is up before the first layer arrives."""
        self._unpacker.warm_up()

    async def ingest_from_registry(
        self, planned: PlannedImage, wanted: RegistryLayers
    ) -> tuple[Image, int]:
        """Download and ingest an image. Returns it, and how many of its layers were here already.

        Raises as `ingest` and as the registry.
        """
        downloads = LayerDownloads(wanted, self._unpacker, self.blobs, arrived=self._arrived)
        try:
            await uninterrupted(downloads.borrow, planned.layers)
            [image] = await self.ingest([planned], downloads)
        finally:
            downloads.close()
        return image, downloads.reused

    async def import_archive(
        self,
        source: AsyncIterator[bytes],
        name: str | None = None,
        progress: Progress | None = None,
    ) -> list[Image]:
        """Import every image of an archive, which may be compressed with gzip or zstd. `name` replaces its one name.

        `progress` is called after each step. A failed import leaves nothing. Raises BadArchiveError,
        ResourceExhaustedError (disk full), BadImageReferenceError (`name`), and what `source` raises.
        """
        reference = parse_reference(name) if name else None
        if reference is not None and reference.digest is not None:
            raise BadImageReferenceError(
                f"import name {quoted(name)}: an import takes a tag, not a digest"
            )
        tell = progress or _tell_nobody
        async with self.spool("importing an image archive") as fd:
            planned = await self._unpacker.spool_archive(
                source, fd, self.platform, what="image archive"
            )
            planned = with_names(planned, reference)
            feed = ArchiveFeed(self._unpacker, fd, planned, tell)
            imported = await self.ingest(planned, feed)
        for known in imported:
            tell(ImportProgress("committed", known.name, len(known.chain), len(known.chain)))
            log.info("image imported", image=known.name, id=known.id, size=known.size)
        return imported

    def spool(self, doing: str) -> contextlib.AbstractAsyncContextManager[int]:
        """A temporary directory, as a descriptor. It and its content are removed when the context closes.

        An OSError inside is raised as ResourceExhaustedError (disk full) or CriShimError, prefixed with `doing`.
        """
        return self._state.spool(doing)

    @contextlib.asynccontextmanager
    async def reader(self, spool_fd: int) -> AsyncIterator[DocumentReader]:
        """A reader of image documents that keeps them in the directory `spool_fd`."""
        async with self.spool("reading an image's documents") as apart_fd:
            yield DocumentReader(self._unpacker, self.platform, spool_fd, apart_fd)

    def is_damaged(self, image: Image) -> bool:
        """Whether a check found damage that is not repaired yet; the image must then be ingested again."""
        return any(blob not in self.blobs for blob in (image.id, *image.manifest_digests)) or any(
            map(self._layers.is_damaged, image.chain)
        )

    def is_whole(self, image: Image, reference: Reference) -> bool:
        """Whether a pull of `reference` need not ingest the image again.

        Each packed layer must be here, too, where those are kept.
        """
        if self.is_damaged(image):
            return False
        digest = self._state.index.names.get(str(reference), "")
        facts = self._state.described.get(digest)
        if facts is None or self._state.discard_blobs:
            return True
        return all(blob in self.blobs for blob in facts.packed)

    async def ingest(self, planned: Sequence[PlannedImage], feed: Feed) -> list[Image]:
        """Ingest these images, all or none. `feed` brings the layers that are missing.

        Raises what `feed` raises, OSError, and BadArchiveError for layers that don't match the images' documents.
        """
        warn_of_platforms(planned, self.platform)
        chains = [chain_ids(image.config.diff_ids) for image in planned]
        ours = {chain_id for chain in chains for chain_id in chain}
        try:
            with self._layers.hold(ours):
                before = {chain_id: self._layers.get(chain_id) for chain_id in ours}
                for image, chain in zip(planned, chains, strict=True):
                    await unpack_layers(self._layers, image.layers, chain, feed)
                    if not self._state.discard_blobs:
                        await feed.complete(image.layers)
                if self._state.discard_blobs:
                    now = {chain_id: self._layers.get(chain_id) for chain_id in ours}
                    # Seal them now: the digests of the blobs they were unpacked from have just been verified.
                    came = [new for id_, new in now.items() if new and new is not before[id_]]
                    await self._checker.seal(came)
                async with self._state.changing:
                    await self._state.commit(planned, chains, feed)
        except BaseException:
            # Of these images' layers only: `sweep` alone looks at all.
            await self._clear(among=ours)
            raise
        ids = dict.fromkeys(image.config_document.digest for image in planned)
        return [image for image in map(self.find, ids) if image is not None]

    # Removal

    async def remove(self, text: str) -> Image:
        """Remove the image with that reference or ID, and all its names; returns it.

        Layers that other images or containers use stay. Raises NotFoundError, BadImageReferenceError.
        """
        async with self._state.changing:
            image = self.find(text)
            digests = self._state.lost_called(text) if image is None else image.manifest_digests
            if digests:
                with host_step(f"removing image {text}"):
                    await self._state.forget(digests)
            if image is None:
                raise NotFoundError("image", text)
        await self._clear(among=image.chain)
        log.info("image removed", image=image.name, id=image.id)
        return image

    async def sweep(self) -> int:
        """Remove every layer and blob that no image, import or container refers to; returns the number of layers."""
        return await self._clear(among=None)

    async def sweep_after(self, image_id: str) -> None:
        """Sweep after a container of that image was removed, if it may have been the last user of some layers."""
        if self._layers.some_replaced or self.find(image_id) is None:
            await self.sweep()

    async def _clear(self, *, among: Collection[str] | None) -> int:
        async with self._state.changing:
            trash = await self._state.detach(among=among)
            # In a thread: the kernel takes long to unlink a large file.
            await uninterrupted(self.blobs.sweep, self._state.kept_blobs())
        await self._layers.delete(trash)
        return len(trash)

    # Maintenance

    async def check(
        self,
        names: Collection[str] = (),
        *,
        progress: Callable[[CheckProgress], None] | None = None,
    ) -> CheckReport:
        """Check everything that these images consist of; without names, every image, also those left out at start.

        Raises NotFoundError, BadImageReferenceError, and CriShimError when nothing can be read.
        """
        manifests = self._state.select(names)
        async with self._maintenance:
            return await self._checker.check(manifests, progress or _tell_nobody)

    async def repair(
        self,
        names: Collection[str] = (),
        *,
        pull: Pull,
        progress: Callable[[CheckProgress], None] | None = None,
    ) -> RepairReport:
        """Check, then replace what is damaged: from blobs on this node, else with `pull` of `repository@digest`.

        Containers keep the layers they are mounted from. The report lists what can't be repaired. Raises as `check`.
        """
        manifests = self._state.select(names)
        async with self._maintenance:
            checked = await self._checker.check(manifests, progress or _tell_nobody)
        # Without the lock: a registry decides how long this takes, and other checks and collections must not wait.
        report = await self._repairer.repair(manifests, checked, pull)
        await self.sweep()
        return report

    async def collect(self, *, dry_run: bool = False, untagged: bool = False) -> Collected:
        """Remove unused images without a name, and all leftovers (`collect`); with `dry_run`, only count them.

        `untagged` also removes images without a tag. Raises CriShimError, ResourceExhaustedError (disk full).
        """
        async with self._maintenance:
            damaged: Collection[str] = ()
            if self._state.discard_blobs and not dry_run:
                damaged = await self._checker.seal_all()
            return await collect(self._state, dry_run=dry_run, untagged=untagged, damaged=damaged)

    @contextlib.asynccontextmanager
    async def export(self, names: Sequence[str]) -> AsyncIterator[Export]:
        """An archive of these images, to be sent while this is open.

        Raises NotFoundError, BadImageReferenceError, WrongStateError (a packed layer was not kept).
        """
        images: dict[str, Image] = {}
        for name in names:
            image = self.find(name)
            if image is None:
                raise NotFoundError("image", name)
            images[image.id] = image
        async with self.spool("exporting images") as fd:
            yield await uninterrupted(prepare_export, self._state, tuple(images.values()), fd)


def _tell_nobody(_: object) -> None:
    """Take the place of an absent progress callback."""
