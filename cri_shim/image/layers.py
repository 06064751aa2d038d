"""Unpacked layers on disk, one directory each under a short name.

Rules:
- Names are short base-36 numbers, since the options of an overlay mount must fit in one page. A name is taken while a
  directory, a record or a container uses it. A directory without a record is a leftover.
- Per chain ID and source, one caller unpacks at a time. The second one waits and finds the layer; if the first fails or
  is cancelled, the second unpacks with its own bytes. So a failing client can't fail another's pull.
- Callers with different sources don't wait for each other, since a source decides how long its bytes take. They unpack
  the same chain ID in parallel. The first complete one is committed; the others find it and drop their own.
- Nothing is removed that an image, a hold (work under way) or a container refers to.
- A layer marked damaged is unpacked again, under another name, when it is next ingested. Its record is replaced
  durably before anybody sees the new layer. The old directory goes when no container is mounted from it any more.
- Everything unfinished, or on its way out, is in the ingest directory (`ingest_directory`).
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import re
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec
import structlog

from cri_shim.background import undivided, uninterrupted
from cri_shim.host.durable import sync_file_system
from cri_shim.image.ingest_directory import INGEST_NAME, IngestDirectory, remove_surely
from cri_shim.image.layer_records import Layer, LayerRecords
from cri_shim.image.model import EMPTY_LAYER
from cri_shim.image.unpack.finish import finish_layer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Collection, Iterator, Sequence
    from collections.abc import Set as AbstractSet
    from pathlib import Path

    from cri_shim.image.ingest_directory import Unpack
    from cri_shim.image.unpack.protocol import LayerReport

__all__ = ["Layer", "LayerStore", "Unneeded"]

log = structlog.get_logger()

_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"
_MAX_NAME_LENGTH = 4
_NAME = re.compile(r"[0-9a-z]{1,4}")


@dataclass(frozen=True, slots=True)
class Unneeded:
    """Layers and directories that nothing refers to."""

    layers: tuple[Layer, ...]
    names: tuple[str, ...]
    """Directories that belong to no layer record."""


class LayerStore:
    """The layers of all images. Methods run on the event loop's thread; slow work runs in threads."""

    def __init__(self, layers_dir: Path, records_dir: Path) -> None:
        self._dir = layers_dir
        self._ingest = IngestDirectory(layers_dir / INGEST_NAME)
        self._records = LayerRecords(records_dir)
        self._names: set[str] = set()
        """Names of all directories, with or without a record."""
        self._coming: set[str] = set()
        """Directories in place whose record is being written."""
        self._replaced: set[str] = set()
        """Directories whose layer now has a better copy elsewhere."""
        self._damaged: set[str] = set()
        """Chain IDs that a check found damaged."""
        self._holds: Counter[str] = Counter()
        self._held_names: Counter[str] = Counter()
        self._unpacking = _Locks()
        """By chain ID and source; held while the source sends."""
        self._placing = _Locks()
        """By chain ID; held only while this node's own disk is written."""

    def open(self, damaged_dir: Path) -> None:
        """Read the records and empty `.ingest`; unusable records move to `damaged_dir`. Blocking; raises OSError."""
        self._dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._ingest.open()
        with os.scandir(self._dir) as found:
            self._names = {item.name for item in found if item.name != INGEST_NAME}
        self._records.open(self._names, damaged_dir)

    def make_empty(self) -> None:
        """Create the empty directory that stands for the layers of an image without any. Blocking; raises OSError."""
        (self._dir / EMPTY_LAYER).mkdir(mode=0o755, parents=True, exist_ok=True)

    @property
    def disk_bytes(self) -> int:
        """Bytes that all layers take on disk: a running sum, not a walk."""
        return self._records.disk_bytes

    @property
    def inodes(self) -> int:
        """Inodes that all layers take: a running sum."""
        return self._records.inodes

    def get(self, chain_id: str) -> Layer | None:
        """The layer with this chain ID, or None."""
        return self._records.get(chain_id)

    @property
    def some_replaced(self) -> bool:
        """Whether replaced directories are left, which stay only for the containers that use them."""
        return bool(self._replaced)

    def path(self, layer: Layer) -> Path:
        """The layer's directory."""
        return self._dir / layer.name

    def lowers(self, top: Layer) -> list[Path]:
        """The directories of `top` and of every layer below it, topmost first. Raises KeyError if one is missing."""
        return [self.path(layer) for layer in self.stack(top.chain_id)]

    def stack(self, chain_id: str) -> list[Layer]:
        """The layer and every layer below it, topmost first. Raises KeyError with the chain ID that is missing."""
        return self._records.stack(chain_id)

    @contextlib.contextmanager
    def hold(self, chain_ids: Collection[str]) -> Iterator[None]:
        """Keep these layers from being swept, those that are here and those that come while the hold is open.

        It also keeps their present directories, in case better copies replace them.
        """
        names = [layer.name for layer in map(self.get, chain_ids) if layer is not None]
        chain_ids = tuple(chain_ids)  # Counter.update takes a mapping's values for counts
        self._holds.update(chain_ids)
        self._held_names.update(names)
        try:
            yield
        finally:
            self._holds.subtract(chain_ids)
            # Drops the zero counts, which would pile up otherwise.
            self._holds = +self._holds
            self._held_names.subtract(names)
            self._held_names = +self._held_names

    def mark_damaged(self, chain_id: str) -> None:
        """Mark a layer damaged: the next `ensure` unpacks it again. Until then it stays in use."""
        self._damaged.add(chain_id)

    def is_damaged(self, chain_id: str) -> bool:
        """Whether the layer waits for a better copy."""
        return chain_id in self._damaged

    # Ingest

    async def ensure(
        self,
        chain_id: str,
        diff_id: str,
        unpack: Unpack,
        *,
        source: str,
        parent: Awaitable[Layer] | None,
    ) -> Layer:
        """Return the layer. Unless it is here and sound, call `unpack` on an empty directory and commit the result.

        `parent` gives the layer below; it is awaited only after this one is unpacked. `source` names where this layer
        and those below it come from: of callers with the same source, one at a time unpacks. The caller holds
        `chain_id`.

        Raises BadArchiveError (the layer is hostile, damaged, or not the `diff_id` that was promised) and what `unpack`
        raises. A failure leaves nothing.
        """
        async with self._unpacking.of(f"{chain_id} {source}"):
            if (sound := self._sound(chain_id)) is not None:
                return sound
            async with (
                self.unpacked(diff_id, unpack, parent) as (directory, report, below),
                self._placing.of(chain_id),
            ):
                if (sound := self._sound(chain_id)) is not None:
                    return sound  # a caller with another source was faster
                known = self.get(chain_id)
                layer = Layer(
                    chain_id=chain_id,
                    diff_id=diff_id,
                    parent="" if below is None else below.chain_id,
                    name=self._free_name(),
                    disk_bytes=report.disk_bytes,
                    inodes=report.inodes,
                )
                # One rename within a file system: after a crash the layer is complete under its name, or not there at
                # all.
                directory.rename(self._dir / layer.name)
                self._names.add(layer.name)
                if known is None:
                    # In memory only. `record` writes it, after one sync for all layers of the image.
                    self._records.add(layer, durable=False)
                    self._damaged.discard(chain_id)
                else:
                    await self._replace(known, layer)
                return layer

    def _sound(self, chain_id: str) -> Layer | None:
        return None if chain_id in self._damaged else self.get(chain_id)

    @contextlib.asynccontextmanager
    async def unpacked(
        self, diff_id: str, unpack: Unpack, parent: Awaitable[Layer] | None
    ) -> AsyncIterator[tuple[Path, LayerReport, Layer | None]]:
        """Unpack a layer and give its complete tree, in a directory that is removed afterwards unless it was moved.

        Raises as `ensure`.
        """
        async with self._ingest.unpacked(diff_id, unpack) as (directory, report):
            below = None if parent is None else await parent
            lowers = [] if below is None else self.lowers(below)
            report = await uninterrupted(finish_layer, directory, lowers, report)
            yield directory, report, below

    async def _replace(self, old: Layer, new: Layer) -> None:
        self._coming.add(new.name)

        def write() -> None:
            # Before the record: after a power cut, a record must not name a tree that did not reach the disk.
            sync_file_system(self._dir)
            self._records.write(new, fsync=True)

        def take_over() -> None:
            self._records.add(new, durable=True)
            self._damaged.discard(new.chain_id)
            self._replaced.add(old.name)

        try:
            await undivided(write, take_over)
        except BaseException:
            # Failed or cancelled before memory knew it: nothing refers to the new directory.
            if self.get(new.chain_id) is not new:
                await remove_surely(self.path(new))
                self._names.discard(new.name)
            raise
        finally:
            self._coming.discard(new.name)
        log.info("replaced a damaged layer", layer=new.chain_id, old=old.name, new=new.name)

    async def seal(self, chain_id: str, seal: str) -> None:
        """Store the seal of a layer's tree (`integrity/seal`). Raises OSError."""
        async with self._placing.of(chain_id):
            layer = self.get(chain_id)
            if layer is None or layer.seal == seal:
                return
            sealed = msgspec.structs.replace(layer, seal=seal)
            durable = self._records.is_durable(chain_id)

            def write() -> None:
                if durable:
                    self._records.write(sealed, fsync=True)

            def take_over() -> None:
                # A better copy may have replaced the layer while the record was written.
                if self.get(chain_id) is layer:
                    self._records.add(sealed, durable=durable)

            await undivided(write, take_over)

    def unrecorded(self, chain_ids: Collection[str]) -> list[Layer]:
        """The layers among these without a record yet, whose bytes a power cut may still take."""
        found = [self.get(chain) for chain in chain_ids if not self._records.is_durable(chain)]
        return [layer for layer in found if layer is not None]

    def record(self, layers: Sequence[Layer]) -> None:
        """Write the records of layers that were synced to disk since they were unpacked. Raises OSError."""
        for layer in layers:
            self._records.write(layer, fsync=False)
            self._records.written(layer.chain_id)

    # Removal

    def unneeded(
        self,
        kept: AbstractSet[str],
        names_in_use: Collection[str],
        *,
        among: Collection[str] | None = None,
    ) -> Unneeded:
        """Layers that are neither in `kept` (chain IDs) nor in use, and directories that belong to no layer.

        With `among`, only layers with these chain IDs, and of the directories only replaced ones.
        """
        used = set(names_in_use)
        layers = self._records.all()
        # A container needs its whole stack. Keeping the records also saves a later pull of the image from unpacking.
        needed = self._records.with_all_below(layer for layer in layers if layer.name in used)
        gone = tuple(
            layer
            for layer in layers
            if layer.chain_id not in kept
            and layer.chain_id not in needed
            and not self._holds[layer.chain_id]
            and (among is None or layer.chain_id in among)
        )
        strays = self._strays() if among is None else self._replaced
        return Unneeded(gone, tuple(sorted(strays - used - self._held_names.keys())))

    async def detach(self, unneeded: Unneeded) -> list[Path]:
        """Remove these from the store and return their directories for `delete`.

        The records leave memory at once, so that nobody begins to use a layer whose files are going. The files move in
        a thread: five hundred layers, or a busy disk, take long. After a crash the next start removes the rest.
        """
        layers = unneeded.layers
        durable = [self._records.is_durable(layer.chain_id) for layer in layers]
        for layer in layers:
            self._records.drop(layer)
        unlinked = 0
        moved: dict[str, Path] = {}

        def remove_files() -> None:
            nonlocal unlinked
            try:
                for layer in layers:
                    self._records.unlink(layer)
                    unlinked += 1
            except OSError as error:
                # The layers whose records are left stay in the store; the next sweep tries again.
                log.warning("layer records can't be removed", error=str(error))
            for name in (*unneeded.names, *(layer.name for layer in layers[:unlinked])):
                if (trash := self._ingest.take(self._dir / name)) is not None:
                    moved[name] = trash

        def note() -> None:
            self._names -= moved.keys()
            self._replaced -= moved.keys()
            self._damaged -= {layer.chain_id for layer in layers[:unlinked]}
            for layer, was_durable in zip(layers[unlinked:], durable[unlinked:], strict=True):
                if self.get(layer.chain_id) is None:
                    self._records.add(layer, durable=was_durable)

        try:
            await undivided(remove_files, note)
        except asyncio.CancelledError:
            # Nobody will call `delete`: the next collection finds them as leftovers.
            self._ingest.abandon(moved.values())
            raise
        return list(moved.values())

    async def delete(self, trash: Sequence[Path]) -> None:
        """Remove the directories that `detach` or `leftovers` returned. This may take long."""
        await self._ingest.delete(trash)

    def leftovers(self) -> list[Path]:
        """Directories below `.ingest` that no work uses, because an earlier removal failed."""
        return self._ingest.leftovers()

    def _strays(self) -> set[str]:
        known = {layer.name for layer in self._records.all()} | self._coming
        # Only names of our own form: a volume mounted here has a lost+found.
        return {name for name in self._names - known if _NAME.fullmatch(name)}

    def _free_name(self) -> str:
        for length in range(1, _MAX_NAME_LENGTH + 1):
            for digits in itertools.product(_DIGITS, repeat=length):
                name = "".join(digits)
                if name not in self._names:
                    return name
        raise AssertionError("more than 1.7 million layers")


class _Locks:
    """One lock per key, kept while somebody holds it or waits for it."""

    def __init__(self) -> None:
        self._locks: dict[str, asyncio.Lock] = {}
        self._users: Counter[str] = Counter()

    @contextlib.asynccontextmanager
    async def of(self, key: str) -> AsyncIterator[None]:
        """Hold the lock of this key."""
        lock = self._locks.setdefault(key, asyncio.Lock())
        self._users[key] += 1
        try:
            async with lock:
                yield
        finally:
            self._users[key] -= 1
            if not self._users[key]:
                del self._users[key], self._locks[key]
