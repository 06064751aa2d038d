"""The state of the image store: the list of images, their layers and blobs, and the one lock for changing it.

Rules:
- Memory answers queries. A change writes the disk first, `index.json` last, and only the holder of `changing` changes.
- An image that the index names but that can't be read is not listed. It stays in the index, with what is left of it,
  while it has a name: its repair then fetches only what is missing.
- A change removes only what it made or took away. `sweep` alone looks at everything.
- Damage is set aside, with a log line that says what to do. The rest of the store goes on.

**The order of a change.** A crash or power cut at any point leaves the old list or the new one, whole, and leftovers
that the next start removes:

1. Layers are unpacked below `.ingest` and renamed to their names.
2. The layers' file system is synced. Trees and names are durable; nothing refers to them.
3. Records of layers and images are written; blobs are renamed into place.
4. The images' file system is synced. Records and blobs are durable; nothing refers to them.
5. `index.json` is written, synced and renamed, and its directory synced. From here on the images exist.
6. Memory follows, and only then does the caller get its answer.

A removal does 5 and 6 first. Then it unlinks records, moves directories to `.ingest` and empties them there. A power
cut may bring some of them back, but nothing refers to them. A layer's better copy does 1 and 2; then its record is
written as `index.json` is in step 5.
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
    host_step,
)
from cri_shim.host.durable import sync_file_system
from cri_shim.host.files import TMP_SUFFIX, remove_tree
from cri_shim.image.blobs import BlobStore
from cri_shim.image.catalog import Catalog, Described, Lost, describe, read_described
from cri_shim.image.image_records import ImageRecords
from cri_shim.image.index import ImageIndex, load_index, save_index, set_aside
from cri_shim.image.ingest_directory import INGEST_NAME
from cri_shim.image.layers import LayerStore
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
    """The state of one image store. Use it on the event loop's thread."""

    def __init__(
        self,
        images_dir: Path,
        layers_dir: Path,
        in_use: Callable[[], Collection[str]],
        pins: Pins,
        *,
        discard_blobs: bool,
    ) -> None:
        """`in_use` returns the names of the layers that containers are mounted from."""
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
        """Load the store, remove leftovers of interrupted work, set damage aside. Blocking; raises OSError."""
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
            # It is made without fsync, so a power cut may have removed it.
            self.layers.make_empty()
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
                "the image index is damaged and was set aside; pull the images again",
                error=str(error),
                moved_to=str(set_aside(self.dir, self._damaged_dir)),
            )
            return ImageIndex()

    # The list

    def take_over(self, index: ImageIndex, described: dict[str, Described]) -> None:
        """Make a new list of images the current one."""
        self.index = index
        self.described = described
        self.lost = {
            digest: lost
            for digest, lost in self.lost.items()
            if digest in index.manifests and digest not in described
        }
        self.catalog = Catalog(index, described, self.layers, self.pins)

    def drop_unnamed_lost(self, index: ImageIndex, *, but: Collection[str] = ()) -> None:
        """Drop damaged images without a name, since nobody can ask for them; those in `but` are whole again."""
        for digest in self.lost:
            if digest not in but and not index.names_of(digest):
                index.forget(digest)

    def lost_called(self, text: str) -> list[str]:
        """The manifests of images left out at start that have this name, or this ID as far as it is known."""
        try:
            reference = parse_reference(text)
        except BadImageReferenceError:
            return [digest for digest, lost in self.lost.items() if lost.image_id == text]
        digest = self.index.names.get(reference.digested or reference.tagged or "")
        return [digest] if digest in self.lost and digest is not None else []

    def select(self, names: Collection[str]) -> list[str]:
        """The manifests of the images with these names or IDs; without names, of all images.

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
        """Commit images whose layers are in place, by steps 2 to 6. `chains` are their chain IDs. Hold `changing`.

        Raises OSError, and BadArchiveError for a document whose bytes changed. The old list then stays.
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
                # Only of images that the old list lacks: the others' records are still in use.
                new = {image.manifest.digest for image in planned} - self.index.manifests.keys()
                self._records.remove(new)
                raise

        def store() -> None:
            if not all(chains):
                self.layers.make_empty()
            # syncfs(2) once, instead of fsync(2) for each of the layers' files.
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
        """Remove these manifests and all their names from the list. Hold `changing`. Raises OSError."""
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
        """Whether a container is mounted from all layers of `image`, be it as a container of another image."""
        top = self.layers.get(image.chain[-1]) if image.chain else None
        return top is not None and top.name in names_in_use

    # What is referred to

    def manifests(self) -> dict[str, Described | Lost]:
        """Every image that the index names, also those left out, by manifest digest."""
        return {**self.described, **self.lost}

    def kept_chains(self, without: Collection[str] = ()) -> set[str]:
        """Chain IDs of the layers of all images, except those of the manifests `without`."""
        return {
            chain
            for digest, facts in self.manifests().items()
            if digest not in without
            for chain in facts.chain
        }

    def kept_blobs(self, without: Collection[str] = ()) -> set[str]:
        """Digests of the blobs of all images, except those of the manifests `without`."""
        kept = set()
        for digest, facts in self.manifests().items():
            if digest not in without:
                kept |= {digest, facts.image_id, *facts.packed}
        return kept

    async def detach(self, *, among: Collection[str] | None) -> list[Path]:
        """Detach the layers that nothing refers to; returns their directories for `layers.delete`.

        With `among`, only layers with these chain IDs.
        """
        unneeded = self.layers.unneeded(self.kept_chains(), self.in_use(), among=among)
        return await self.layers.detach(unneeded)

    # Temporary directories

    async def stored_document(self, digest: str, max_bytes: int) -> bytes | None:
        """A small blob that is here; None if it is not, or is damaged: then it must be fetched again."""
        if digest not in self.blobs:
            return None
        try:
            return await asyncio.to_thread(self.blobs.peek, digest, max_bytes)
        except CorruptStateError as error:
            log.warning("a stored blob is damaged; fetching it again", error=str(error))
            self.blobs.forget(digest)
            return None

    @contextlib.asynccontextmanager
    async def spool(self, doing: str) -> AsyncIterator[int]:
        """A temporary directory, as a descriptor. It and its content are removed when the context closes.

        An OSError inside is raised as ResourceExhaustedError (disk full) or CriShimError, prefixed with `doing`.
        """
        spool_dir = self.ingest_dir / f"spool-{next(self._numbers)}"
        self._live.add(spool_dir.name)
        try:
            with host_step(doing):
                spool_dir.mkdir(mode=0o700)
                fd = os.open(spool_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                try:
                    yield fd
                finally:
                    os.close(fd)
        finally:
            try:
                await uninterrupted(remove_tree, spool_dir)
            except OSError as error:
                log.error(
                    "a leftover directory can't be removed", path=str(spool_dir), error=str(error)
                )
            self._live.discard(spool_dir.name)

    def leftovers(self) -> list[Path]:
        """Directories that interrupted work left because an earlier removal failed."""
        with os.scandir(self.ingest_dir) as found:
            spools = [self.ingest_dir / item.name for item in found if item.name not in self._live]
        return spools + self.layers.leftovers()
