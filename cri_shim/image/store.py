"""Images on this node: how they come, how they go, what is left after a crash.

Rules:
- Memory answers `images`, `find` and `layer_stack`; they never wait. One lock orders changes.
- **Order of a change**: layers unpacked and synced, their records, blobs, a second sync, `index.json` last. A crash
  or power cut at any point leaves either the old list or the new one, and leftovers that are swept.
- Names are tags (which move) and `repository@digest` (which don't). Names below `cri-shim.local` are the built-in
  images': no archive can bring one.
- Work half done holds its layers. A change removes only what it made or what it took away; `sweep` looks at all.
- Damage is set aside with a log line that says what to do; the rest goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
from typing import TYPE_CHECKING, Self

import structlog

from cri_shim.errors import (
    BadArchiveError,
    BadImageReferenceError,
    CorruptStateError,
    NotFoundError,
)
from cri_shim.host.durable import sync_file_system
from cri_shim.host.files import TMP_SUFFIX, remove_tree
from cri_shim.image.archive import Archive, ArchiveFeed, with_names
from cri_shim.image.arrival import Feed, PlannedImage, storage_error, unpack_layers
from cri_shim.image.blobs import BlobStore
from cri_shim.image.catalog import Catalog, Described, describe, read_described
from cri_shim.image.index import ImageIndex, load_index, save_index, set_aside
from cri_shim.image.layers import INGEST_NAME, LayerStore
from cri_shim.image.manifest import Manifest, chain_ids, digest_of, parse_document, platform_of
from cri_shim.image.model import FsUsage, Image, ImportProgress, LayerStack
from cri_shim.image.reference import parse_reference
from cri_shim.image.undivided import undivided
from cri_shim.image.unpack import Unpacker

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Collection, Iterator, Sequence
    from pathlib import Path

    from cri_shim.host.process import Reaper

    Progress = Callable[[ImportProgress], None]

__all__ = ["FsUsage", "Image", "ImageStore", "ImportProgress", "LayerStack"]

log = structlog.get_logger()


class ImageStore:
    """The images of one root. Made by `open`; used on the loop's thread."""

    def __init__(
        self,
        images_dir: Path,
        layers_dir: Path,
        unpacker: Unpacker,
        in_use: Callable[[], Collection[str]],
        *,
        machine: str,
        pinned: Collection[str],
        discard_blobs: bool,
    ) -> None:
        self._dir = images_dir
        self._layers_dir = layers_dir
        self._ingest_dir = images_dir / INGEST_NAME
        self._damaged_dir = images_dir / "damaged"
        self.unpacker = unpacker
        self._in_use = in_use
        self.platform = platform_of(machine)
        self._pinned = frozenset(str(parse_reference(name)) for name in pinned)
        self._discard_blobs = discard_blobs
        self.blobs = BlobStore(images_dir)
        self._layers = LayerStore(layers_dir, images_dir / "layers")
        self._index = ImageIndex()
        self._described: dict[str, Described] = {}
        self._catalog = Catalog(self._index, {}, self._layers, self._pinned)
        self._changing = asyncio.Lock()
        self._numbers = itertools.count()

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
        """Read what is there; leftovers of an interrupted import go, damage is set aside.

        `in_use` gives the names of the layers that containers are mounted from. `pinned` are references whose images
        kubelet shall not collect. Layers that nothing refers to stay until `sweep`, which the daemon calls once it
        knows its containers. Raises OSError when the directories can't be used.
        """
        store = cls(
            images_dir,
            layers_dir,
            unpacker or Unpacker(reaper),
            in_use,
            machine=machine or os.uname().machine,
            pinned=pinned,
            discard_blobs=discard_blobs,
        )
        await asyncio.to_thread(store._load)
        return store

    async def close(self) -> None:
        """End the unpacker's process."""
        await self.unpacker.close()

    # What there is

    def images(self) -> Sequence[Image]:
        """Every image."""
        return self._catalog.images()

    def find(self, text: str) -> Image | None:
        """The image of that reference, ID, or beginning of an ID that only one has.

        Raises BadImageReferenceError for what can be none of these.
        """
        return self._catalog.find(text)

    def layer_stack(self, image: Image) -> LayerStack:
        """What to mount for `image`. Raises CorruptStateError when a layer went missing."""
        try:
            layers = self._layers.stack(image.chain[-1]) if image.chain else []
        except KeyError as error:
            raise CorruptStateError(
                f"image {image.name}: its layer {error.args[0]} is gone; remove the image and pull it again"
            ) from None
        return LayerStack(self._layers_dir, tuple(layer.name for layer in layers))

    @contextlib.contextmanager
    def hold(self, image: Image) -> Iterator[LayerStack]:
        """What to mount; the layers stay while this is open. A container's record takes over before it closes."""
        with self._layers.hold(image.chain):
            yield self.layer_stack(image)

    async def fs_usage(self) -> FsUsage:
        """What images take; counted as they come and go, not by walking the disk."""
        return FsUsage(
            self._dir,
            self._layers.disk_bytes + self.blobs.used_bytes,
            self._layers.inodes + self.blobs.inodes,
        )

    # How they come

    async def import_archive(
        self,
        source: AsyncIterator[bytes],
        name: str | None = None,
        progress: Progress | None = None,
    ) -> list[Image]:
        """Every image of an archive, which may be packed with gzip or zstd; `name`, if any, replaces its name.

        `progress` is told each step as it is done.

        Raises BadArchiveError, BadImageReferenceError (`name`), ResourceExhaustedError (disk full), and what
        `source` raises. Nothing is left then.
        """
        reference = parse_reference(name) if name else None
        if reference is not None and reference.digest is not None:
            raise BadImageReferenceError(f"name {name!r} for an import: give a tag, not a digest")
        tell = progress or _tell_nobody
        async with self.spool("importing an image archive") as fd:
            members = await self.unpacker.spool_members(source, fd, what="image archive")
            planned = Archive(members.members, fd, self.platform).images()
            planned = with_names(planned, reference)
            feed = ArchiveFeed(self.unpacker, fd, planned, tell)
            imported = await self.bring_in(planned, feed)
        for known in imported:
            tell(ImportProgress("committed", known.name, len(known.chain), len(known.chain)))
            log.info("image imported", image=known.name, id=known.id, size=known.size)
        return imported

    @contextlib.asynccontextmanager
    async def spool(self, doing: str) -> AsyncIterator[int]:
        """A directory, by its descriptor, for the files of one arrival: gone with all that is in it when this closes.

        An OSError in it is raised as ResourceExhaustedError (disk full) or CriShimError, with `doing` in front.
        """
        spool_dir = self._ingest_dir / f"spool-{next(self._numbers)}"
        try:
            spool_dir.mkdir(mode=0o700)
            fd = os.open(spool_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                yield fd
            finally:
                os.close(fd)
        except OSError as error:
            raise storage_error(error, doing) from error
        finally:
            await undivided(lambda: remove_tree(spool_dir))

    async def bring_in(self, planned: Sequence[PlannedImage], feed: Feed) -> list[Image]:
        """Have these images here, whole or not at all; their layers come from `feed`, unless they are here already.

        Raises what `feed` raises, OSError, and BadArchiveError for layers that aren't what the images promise.
        """
        chains = [chain_ids(image.config.diff_ids) for image in planned]
        ours = {chain_id for chain in chains for chain_id in chain}
        try:
            with self._layers.hold(ours):
                for image, chain in zip(planned, chains, strict=True):
                    await unpack_layers(self._layers, image.layers, chain, feed)
                async with self._changing:
                    await self._commit(planned, chains, feed)
        except BaseException:
            async with self._changing:
                trash = self._detach(among=ours)
            await self._layers.delete(trash)
            raise
        ids = dict.fromkeys(digest_of(image.config_bytes) for image in planned)
        return [image for image in map(self.find, ids) if image is not None]

    async def _commit(
        self, planned: Sequence[PlannedImage], chains: Sequence[Sequence[str]], feed: Feed
    ) -> None:
        index = self._index.copy()
        described = dict(self._described)
        for image, chain in zip(planned, chains, strict=True):
            digest = digest_of(image.manifest)
            document = parse_document(image.manifest, f"manifest {digest}")
            if not isinstance(document, Manifest):
                raise BadArchiveError(f"manifest {digest}: an index")
            described[digest] = describe(digest, document, image.config, chain)
            index.manifests[digest] = (image.manifest_type, len(image.manifest))
            for name in image.names:
                index.names[str(name)] = digest
                if image.by_digest:
                    index.names[str(name.with_digest(digest))] = digest
        fresh = self._layers.unrecorded({chain_id for chain in chains for chain_id in chain})

        def write() -> None:
            if fresh:
                sync_file_system(self._layers_dir)
            self._layers.record(fresh)
            for image in planned:
                self.blobs.put(image.config_bytes)
                self.blobs.put(image.manifest)
                for layer in () if self._discard_blobs else image.layers:
                    feed.put_away(layer, self.blobs)
            sync_file_system(self._dir)
            save_index(self._dir, index)

        await undivided(write, lambda: self._take_over(index, described))

    # How they go

    async def remove(self, text: str) -> Image:
        """Remove the image of that reference or ID, with all its names; what was removed.

        Layers of other images and of containers stay. Raises NotFoundError, BadImageReferenceError.
        """
        async with self._changing:
            image = self.find(text)
            if image is None:
                raise NotFoundError("image", text)
            index = self._index.copy()
            described = dict(self._described)
            for digest in image.manifest_digests:
                index.forget(digest)
                del described[digest]
            try:
                await undivided(
                    lambda: save_index(self._dir, index), lambda: self._take_over(index, described)
                )
            except OSError as error:
                raise storage_error(error, f"removing image {image.name}") from error
            trash = self._detach(among=image.chain)
        await self._layers.delete(trash)
        log.info("image removed", image=image.name, id=image.id)
        return image

    async def sweep(self) -> int:
        """Remove every layer and blob that no image, import or container refers to; how many layers went."""
        async with self._changing:
            trash = self._detach(among=None)
        await self._layers.delete(trash)
        return len(trash)

    def _detach(self, *, among: Collection[str] | None) -> list[Path]:
        """`among`: only layers of these chain ids. The caller has the lock, so that no blob is on its way in."""
        kept = {chain_id for facts in self._described.values() for chain_id in facts.chain}
        try:
            trash = self._layers.detach(kept, self._in_use(), among=among)
        except OSError as error:
            # The records that are still there keep what they name; the next sweep tries again.
            log.warning("layers can't be swept", error=str(error))
            trash = []
        self.blobs.sweep({blob for facts in self._described.values() for blob in facts.blobs})
        return trash

    def _take_over(self, index: ImageIndex, described: dict[str, Described]) -> None:
        """The new list counts from here on."""
        self._index = index
        self._described = described
        self._catalog = Catalog(index, described, self._layers, self._pinned)

    # Start

    def _load(self) -> None:
        self._dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        remove_tree(self._ingest_dir)
        self._ingest_dir.mkdir(mode=0o700)
        for cut_short in self._dir.glob(f"*{TMP_SUFFIX}"):
            cut_short.unlink()
        self.blobs.open()
        self._layers.open(self._damaged_dir)
        index = self._load_index()
        described: dict[str, Described] = {}
        for digest in list(index.manifests):
            try:
                described[digest] = read_described(digest, self.blobs, self._layers)
            except (CorruptStateError, BadArchiveError) as error:
                log.error(
                    "an image is damaged and left out; pull it again",
                    names=index.names_of(digest),
                    error=str(error),
                )
                index.forget(digest)
        self._take_over(index, described)

    def _load_index(self) -> ImageIndex:
        try:
            return load_index(self._dir)
        except CorruptStateError as error:
            log.error(
                "the image index is damaged and set aside; images must be pulled again",
                error=str(error),
                moved_to=str(set_aside(self._dir, self._damaged_dir)),
            )
            return ImageIndex()


def _tell_nobody(_: ImportProgress) -> None:
    """Nobody wants to know how it goes."""
