"""The state of the image store: the list of images, the layers and blobs they are made of, and the one lock for
changing any of it.

Rules:
- Memory answers; disk is written first, `index.json` last of all (see `store`). Only whoever has `changing` changes.
- An image that the index names and that can't be read is not listed, but stays in the index, with what is left of it,
  as long as it has a name of its own: its repair then brings only what is missing.
- A change removes only what it made or what it took away; `sweep` looks at all.
- Damage is set aside with a log line that says what to do; the rest goes on.

**The order of a change**, so that a crash or power cut at any point leaves the old list or the new one, whole, and
leftovers that the next start empties:

1. layers are unpacked below `.ingest` and renamed to their names;
2. the layers' file system is synced: trees and names are durable, nothing refers to them;
3. the layers' and images' records are written, and blobs put in their places by rename;
4. the images' file system is synced: records and blobs are durable, nothing refers to them;
5. `index.json` is written, synced, renamed, and its directory synced: from here on the images are here;
6. memory follows, and only then the caller hears of it.

A removal is 5 and 6 first, then records are unlinked, directories moved to `.ingest` and emptied there: what a power
cut brings back of these nobody refers to. A layer's better copy does 1 and 2, and then its record as `index.json`.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
from typing import TYPE_CHECKING

import structlog

from cri_shim.background import undivided, uninterrupted
from cri_shim.errors import (
    BadImageReferenceError,
    CorruptStateError,
    NotFoundError,
)
from cri_shim.host.durable import sync_file_system
from cri_shim.host.files import TMP_SUFFIX, remove_tree
from cri_shim.image.blobs import BlobStore
from cri_shim.image.catalog import Catalog, Described, Lost, describe, read_described
from cri_shim.image.image_records import ImageRecords
from cri_shim.image.index import ImageIndex, load_index, save_index, set_aside
from cri_shim.image.ingest import storage_error
from cri_shim.image.layers import INGEST_NAME, LayerStore
from cri_shim.image.reference import parse_reference

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Collection, Sequence
    from pathlib import Path

    from cri_shim.image.ingest import Feed
    from cri_shim.image.model import Image
    from cri_shim.image.pins import Pins
    from cri_shim.image.planned import PlannedImage

log = structlog.get_logger()


class StoreState:
    """The state of one image store; used on the loop's thread."""

    def __init__(
        self,
        images_dir: Path,
        layers_dir: Path,
        in_use: Callable[[], Collection[str]],
        pins: Pins,
        *,
        discard_blobs: bool,
    ) -> None:
        """`in_use` gives the short names of layers that containers are mounted from."""
        self.dir = images_dir
        self.layers_dir = layers_dir
        self.ingest_dir = images_dir / INGEST_NAME
        self.in_use = in_use
        self.pins = pins
        self.discard_blobs = discard_blobs
        self.blobs = BlobStore(images_dir)
        self.layers = LayerStore(layers_dir, images_dir / "layers")
        self.index = ImageIndex()
        self.described: dict[str, Described] = {}
        self.lost: dict[str, Lost] = {}
        self._records = ImageRecords(images_dir / "described")
        self.catalog = Catalog(self.index, {}, self.layers, pins)
        self.changing = asyncio.Lock()
        self._damaged_dir = images_dir / "damaged"
        self._live: set[str] = set()
        self._numbers = itertools.count()

    # Start

    def load(self) -> None:
        """Read what is there; leftovers of interrupted work go, damage is set aside. Blocking; raises OSError."""
        self.dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        remove_tree(self.ingest_dir)
        self.ingest_dir.mkdir(mode=0o700)
        for cut_short in self.dir.glob(f"*{TMP_SUFFIX}"):
            cut_short.unlink()
        self.blobs.open()
        self.layers.open(self._damaged_dir)
        index = self._load_index()
        self._records.open(index.manifests)
        described: dict[str, Described] = {}
        for digest in list(index.manifests):
            found = self._records.read(digest, self.blobs, self.layers) or self._parse(digest)
            if isinstance(found, Described):
                described[digest] = found
                continue
            log.error(
                "an image is damaged and left out; pull it again, or run `cri-shim image check --repair`",
                names=index.names_of(digest),
                error=found.reason,
            )
            self.lost[digest] = found
        if not all(image.chain for image in described.values()):
            self.layers.make_empty()  # a power cut may have taken it away
        self.drop_unnamed_lost(index)
        self.take_over(index, described)

    def _parse(self, digest: str) -> Described | Lost:
        found = read_described(digest, self.blobs, self.layers)
        if isinstance(found, Described):
            try:
                self._records.write(digest, found)
            except OSError as error:
                log.warning("an image's record can't be written", error=str(error))
        return found

    def _load_index(self) -> ImageIndex:
        try:
            return load_index(self.dir)
        except CorruptStateError as error:
            log.error(
                "the image index is damaged and set aside; images must be pulled again",
                error=str(error),
                moved_to=str(set_aside(self.dir, self._damaged_dir)),
            )
            return ImageIndex()

    # The list

    def take_over(self, index: ImageIndex, described: dict[str, Described]) -> None:
        """The new list counts from here on."""
        self.index = index
        self.described = described
        self.lost = {
            digest: lost
            for digest, lost in self.lost.items()
            if digest in index.manifests and digest not in described
        }
        self.catalog = Catalog(index, described, self.layers, self.pins)

    def drop_unnamed_lost(self, index: ImageIndex, *, but: Collection[str] = ()) -> None:
        """Nobody can ask for a damaged image whose last name has gone; those in `but` are damaged no longer."""
        for digest in self.lost:
            if digest not in but and not index.names_of(digest):
                index.forget(digest)

    def lost_called(self, text: str) -> list[str]:
        """Manifests of images that were left out, by a name of theirs, or what is known of their ID."""
        try:
            reference = parse_reference(text)
        except BadImageReferenceError:
            return [digest for digest, lost in self.lost.items() if lost.image_id == text]
        digest = self.index.names.get(reference.digested or reference.tagged or "")
        return [digest] if digest in self.lost and digest is not None else []

    def select(self, names: Collection[str]) -> list[str]:
        """The manifests of the images of these names or IDs; of all, without any.

        Raises NotFoundError, BadImageReferenceError.
        """
        if not names:
            return list(self.manifests())
        found: dict[str, None] = {}
        for name in names:
            image = self.catalog.find(name)
            digests = self.lost_called(name) if image is None else image.manifest_digests
            if not digests:
                raise NotFoundError("image", name)
            found.update(dict.fromkeys(digests))
        return list(found)

    async def commit(
        self, planned: Sequence[PlannedImage], chains: Sequence[Sequence[str]], feed: Feed
    ) -> None:
        """The images are here, by the steps 2 to 6; `chains` are their layers, all in place. The caller has the lock.

        Raises OSError, and BadArchiveError for a document that is not what it was; then the list is the old one.
        """
        index = self.index.copy()
        described = dict(self.described)
        for image, chain in zip(planned, chains, strict=True):
            digest = image.manifest.digest
            described[digest] = describe(image, chain)
            index.manifests[digest] = (image.manifest_type, image.manifest.size)
            for name in image.names:
                index.names[str(name)] = digest
                if image.by_digest:
                    index.names[str(name.with_digest(digest))] = digest
        self.drop_unnamed_lost(index, but=described)
        fresh = self.layers.unrecorded({chain_id for chain in chains for chain_id in chain})

        def write() -> None:
            try:
                store()
            except BaseException:
                new = {image.manifest.digest for image in planned} - self.index.manifests.keys()
                self._records.remove(new)
                raise

        def store() -> None:
            if not all(chains):
                self.layers.make_empty()
            if fresh:
                sync_file_system(self.layers_dir)
            self.layers.record(fresh)
            for image in planned:
                feed.commit_document(image.config_document, self.blobs)
                feed.commit_document(image.manifest, self.blobs)
                for layer in () if self.discard_blobs else image.layers:
                    feed.commit_layer(layer, self.blobs)
                self._records.write(image.manifest.digest, described[image.manifest.digest])
            sync_file_system(self.dir)
            save_index(self.dir, index)

        await undivided(write, lambda: self.take_over(index, described))

    async def forget(self, manifest_digests: Collection[str]) -> None:
        """Take these out of the list, with all their names. The caller has the lock. Raises OSError."""
        index = self.index.copy()
        described = dict(self.described)
        for digest in manifest_digests:
            index.forget(digest)
            described.pop(digest, None)

        def write() -> None:
            save_index(self.dir, index)
            self._records.remove(manifest_digests)

        await undivided(write, lambda: self.take_over(index, described))

    def is_in_use(self, image: Image, names_in_use: Collection[str]) -> bool:
        """Whether a container stands on the layers of `image`; one of another image with all of them counts, too."""
        top = self.layers.get(image.chain[-1]) if image.chain else None
        return top is not None and top.name in names_in_use

    # What is needed

    def manifests(self) -> dict[str, Described | Lost]:
        """Every image that the index names, also those left out, by the digest of its manifest."""
        return {**self.described, **self.lost}

    def kept_chains(self, without: Collection[str] = ()) -> set[str]:
        """Chain ids of the layers that some image has, but for those of some manifests."""
        return {
            chain
            for digest, facts in self.manifests().items()
            if digest not in without
            for chain in facts.chain
        }

    def kept_blobs(self, without: Collection[str] = ()) -> set[str]:
        """Digests of the blobs that some image has, but for those of some manifests."""
        kept = set()
        for digest, facts in self.manifests().items():
            if digest not in without:
                kept |= {digest, facts.image_id, *facts.packed}
        return kept

    async def detach(self, *, among: Collection[str] | None) -> list[Path]:
        """Take away the layers that nobody needs; what is left of them is for `layers.delete`.

        `among`: only layers of these chain ids.
        """
        unneeded = self.layers.unneeded(self.kept_chains(), self.in_use(), among=among)
        return await self.layers.detach(unneeded)

    # Places to work in

    @contextlib.asynccontextmanager
    async def spool(self, doing: str) -> AsyncIterator[int]:
        """A directory, by its descriptor, for files of work under way: gone with all that is in it when this closes.

        An OSError in it is raised as ResourceExhaustedError (disk full) or CriShimError, with `doing` in front.
        """
        spool_dir = self.ingest_dir / f"spool-{next(self._numbers)}"
        self._live.add(spool_dir.name)
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
            try:
                await uninterrupted(remove_tree, spool_dir)
            except OSError as error:
                log.error("a leftover can't be removed", path=str(spool_dir), error=str(error))
            self._live.discard(spool_dir.name)

    def leftovers(self) -> list[Path]:
        """What work that was cut short left, and could not be removed when it should have been."""
        with os.scandir(self.ingest_dir) as found:
            spools = [self.ingest_dir / item.name for item in found if item.name not in self._live]
        return spools + self.layers.leftovers()
