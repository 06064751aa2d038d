"""Unpacked layers on disk: one directory each under a short name.

Rules:
- Names are as short as base 36 allows, since the options of an overlay mount must fit one page. A name is taken as
  long as a directory, a record or a container uses it. A directory without a record is a leftover.
- One unpacking per chain id and source at a time; whoever comes second waits and finds it done, and if the first fails
  or is cancelled, does it with its own bytes. A failing client spoils no other's work.
- A source decides how long its bytes take, so nobody waits for another one's: layers of one chain id are unpacked side
  by side then. The first that is complete counts; the others find it done, and what they have goes.
- Nothing is removed that an image, a hold (work under way) or a container refers to.
- A layer that is marked damaged is unpacked once more when somebody ingests it, under another name: its record is
  replaced durably before anybody sees the new one, and the old directory goes when no container stands on it any
  longer.
- Everything half made is below `.ingest`, which is emptied at start; what is there and not `live` is a leftover.
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
from cri_shim.errors import BadArchiveError
from cri_shim.host.allocation import place_apart
from cri_shim.host.durable import sync_file_system
from cri_shim.host.files import remove_tree
from cri_shim.image.layer_records import Layer, LayerRecords
from cri_shim.image.model import EMPTY_LAYER
from cri_shim.image.unpack.finish import finish_layer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator, Sequence
    from collections.abc import Set as AbstractSet
    from pathlib import Path

    from cri_shim.image.unpack.protocol import LayerReport

    Unpack = Callable[[int], Awaitable[LayerReport]]
    """Unpacks a layer into the empty directory of this descriptor."""

__all__ = ["INGEST_NAME", "Layer", "LayerStore", "Unneeded"]

log = structlog.get_logger()

INGEST_NAME = ".ingest"
_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"
_MAX_NAME_LENGTH = 4
_NAME = re.compile(r"[0-9a-z]{1,4}")


@dataclass(frozen=True, slots=True)
class Unneeded:
    """What nobody refers to."""

    layers: tuple[Layer, ...]
    names: tuple[str, ...]
    """Directories that belong to no layer."""


class LayerStore:
    """The layers of all images; used on the loop's thread, slow work goes to threads."""

    def __init__(self, layers_dir: Path, records_dir: Path) -> None:
        self._dir = layers_dir
        self._ingest_dir = layers_dir / INGEST_NAME
        self._records = LayerRecords(records_dir)
        self._names: set[str] = set()
        """Of directories, whatever they are."""
        self._coming: set[str] = set()
        """Names whose layer is about to count."""
        self._replaced: set[str] = set()
        """Names that lost their layer to a better copy."""
        self._damaged: set[str] = set()
        self._live: set[str] = set()
        """Directories below `.ingest` that somebody works on."""
        self._holds: Counter[str] = Counter()
        self._held_names: Counter[str] = Counter()
        self._unpacking = _Locks()
        """By chain id and source: held for as long as the source likes."""
        self._placing = _Locks()
        """By chain id: held while this node's own disk is written to."""
        self._numbers = itertools.count()

    def open(self, damaged_dir: Path) -> None:
        """Read the records, empty the ingest area; a record that can't be used goes to `damaged_dir`. Blocking."""
        self._dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        remove_tree(self._ingest_dir)
        self._ingest_dir.mkdir(mode=0o700)
        place_apart(self._ingest_dir)
        with os.scandir(self._dir) as found:
            self._names = {item.name for item in found if item.name != INGEST_NAME}
        self._records.open(self._names, damaged_dir)

    def make_empty(self) -> None:
        """Have the layer of images without one. Blocking; raises OSError."""
        (self._dir / EMPTY_LAYER).mkdir(mode=0o755, parents=True, exist_ok=True)

    @property
    def disk_bytes(self) -> int:
        """What all layers take on disk; counted as they come and go."""
        return self._records.disk_bytes

    @property
    def inodes(self) -> int:
        """How many inodes they take."""
        return self._records.inodes

    def get(self, chain_id: str) -> Layer | None:
        """The layer, if it is here."""
        return self._records.get(chain_id)

    @property
    def some_replaced(self) -> bool:
        """Whether there are directories that lost their layer to a better copy, and stay for containers only."""
        return bool(self._replaced)

    def path(self, layer: Layer) -> Path:
        """Its directory."""
        return self._dir / layer.name

    def lowers(self, top: Layer) -> list[Path]:
        """The directories of `top` and everything below it, topmost first. Raises KeyError if one is missing."""
        return [self.path(layer) for layer in self.stack(top.chain_id)]

    def stack(self, chain_id: str) -> list[Layer]:
        """The layer and everything below it, topmost first. Raises KeyError naming the chain id that is missing."""
        return self._records.stack(chain_id)

    @contextlib.contextmanager
    def hold(self, chain_ids: Collection[str]) -> Iterator[None]:
        """While open, these layers are not swept, whether they are here already or come meanwhile.

        The directories they have now stay, too, should better copies replace them.
        """
        names = [layer.name for layer in map(self.get, chain_ids) if layer is not None]
        chain_ids = tuple(chain_ids)  # a mapping would be taken for counts
        self._holds.update(chain_ids)
        self._held_names.update(names)
        try:
            yield
        finally:
            self._holds.subtract(chain_ids)
            self._holds = +self._holds
            self._held_names.subtract(names)
            self._held_names = +self._held_names

    def mark_damaged(self, chain_id: str) -> None:
        """It is damaged: whoever wants to `ensure` it next brings it anew. Until then it is used as it is."""
        self._damaged.add(chain_id)

    def is_damaged(self, chain_id: str) -> bool:
        """Whether it waits for a better copy."""
        return chain_id in self._damaged

    # How they come

    async def ensure(
        self,
        chain_id: str,
        diff_id: str,
        unpack: Unpack,
        *,
        source: str,
        parent: Awaitable[Layer] | None,
    ) -> Layer:
        """The layer; unless it is here and sound, `unpack` is called to unpack it into an empty directory.

        `parent` gives the layer below; it is awaited only once this one is unpacked. `source` says whence this layer
        and those below it come: with the same one, only one caller at a time unpacks. The caller holds the chain id.

        Raises BadArchiveError (hostile, damaged, or not the `diff_id` that was promised) and what `unpack` raises;
        nothing is left then.
        """
        async with self._unpacking.of(f"{chain_id} {source}"):
            if (sound := self._sound(chain_id)) is not None:
                return sound
            async with (
                self.unpacked(diff_id, unpack, parent) as (directory, report, below),
                self._placing.of(chain_id),
            ):
                if (sound := self._sound(chain_id)) is not None:
                    return sound  # from another source
                known = self.get(chain_id)
                layer = Layer(
                    chain_id=chain_id,
                    diff_id=diff_id,
                    parent="" if below is None else below.chain_id,
                    name=self._free_name(),
                    disk_bytes=report.disk_bytes,
                    inodes=report.inodes,
                )
                directory.rename(self._dir / layer.name)
                self._names.add(layer.name)
                if known is None:
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
        """A layer's tree, complete, in a directory that is gone afterwards unless somebody has moved it away.

        Raises as `ensure`.
        """
        name = f"layer-{next(self._numbers)}"
        directory = self._ingest_dir / name
        self._live.add(name)
        try:
            directory.mkdir(mode=0o700)
            report = await _ingest(unpack, diff_id, directory)
            below = None if parent is None else await parent
            lowers = [] if below is None else self.lowers(below)
            report = await uninterrupted(finish_layer, directory, lowers, report)
            yield directory, report, below
        finally:
            if directory.exists():
                await _remove_surely(directory)
            self._live.discard(name)

    async def _replace(self, old: Layer, new: Layer) -> None:
        self._coming.add(new.name)

        def write() -> None:
            sync_file_system(self._dir)
            self._records.write(new, fsync=True)

        def take_over() -> None:
            self._records.add(new, durable=True)
            self._damaged.discard(new.chain_id)
            self._replaced.add(old.name)

        try:
            await undivided(write, take_over)
        except BaseException:
            if self.get(new.chain_id) is not new:
                await _remove_surely(self.path(new))
                self._names.discard(new.name)
            raise
        finally:
            self._coming.discard(new.name)
        log.info("a layer was replaced", layer=new.chain_id, old=old.name, new=new.name)

    async def seal(self, chain_id: str, seal: str) -> None:
        """Note what the tree of a layer must be. Raises OSError."""
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
                if self.get(chain_id) is layer:
                    self._records.add(sealed, durable=durable)

            await undivided(write, take_over)

    def unrecorded(self, chain_ids: Collection[str]) -> list[Layer]:
        """Those whose bytes may not survive a power cut yet, and that have no record."""
        found = [self.get(chain) for chain in chain_ids if not self._records.is_durable(chain)]
        return [layer for layer in found if layer is not None]

    def record(self, layers: Sequence[Layer]) -> None:
        """Write the records of layers whose file system was synced since they were unpacked. Raises OSError."""
        for layer in layers:
            self._records.write(layer, fsync=False)
            self._records.written(layer.chain_id)

    # How they go

    def unneeded(
        self,
        kept: AbstractSet[str],
        names_in_use: Collection[str],
        *,
        among: Collection[str] | None = None,
    ) -> Unneeded:
        """Layers in neither `kept` (chain ids) nor use, and directories that belong to none.

        With `among` only layers of these chain ids, and of the directories only those that were replaced.
        """
        used = set(names_in_use)
        layers = self._records.all()
        # A container needs its whole stack, and an image that comes back can use it.
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
        """Take these away; what is left of them is for `delete`. A crash before leaves what the next start empties.

        They are out of the list at once, so that nobody begins to use one while its files go, in a thread: of five
        hundred layers, or on a busy disk, that takes long.
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
                # The records that are still there keep what they name; the next sweep tries again.
                log.warning("layers can't be swept", error=str(error))
            for name in (*unneeded.names, *(layer.name for layer in layers[:unlinked])):
                if (trash := self._move_away(name)) is not None:
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
            self._live -= {trash.name for trash in moved.values()}  # leftovers, for a collection
            raise
        return list(moved.values())

    async def delete(self, trash: Sequence[Path]) -> None:
        """Remove what `detach` or `leftovers` gave; it may be much."""
        for directory in trash:
            await _remove_surely(directory)
            self._live.discard(directory.name)

    def leftovers(self) -> list[Path]:
        """What is below `.ingest` and nobody works on: what could not be removed when it should have been."""
        with os.scandir(self._ingest_dir) as found:
            return [self._ingest_dir / item.name for item in found if item.name not in self._live]

    def _strays(self) -> set[str]:
        known = {layer.name for layer in self._records.all()} | self._coming
        # Only what could have been a layer: a volume's own lost+found is nobody's leftover.
        return {name for name in self._names - known if _NAME.fullmatch(name)}

    def _move_away(self, name: str) -> Path | None:
        trash = self._ingest_dir / f"trash-{next(self._numbers)}"
        self._live.add(trash.name)
        try:
            (self._dir / name).rename(trash)
        except FileNotFoundError:
            pass
        except OSError as error:
            log.warning("a layer's directory can't be moved away", name=name, error=str(error))
            self._live.discard(trash.name)
            return None
        return trash

    def _free_name(self) -> str:
        for length in range(1, _MAX_NAME_LENGTH + 1):
            for digits in itertools.product(_DIGITS, repeat=length):
                name = "".join(digits)
                if name not in self._names:
                    return name
        raise AssertionError("more than 1.7 million layers")


class _Locks:
    """A lock for each key, kept while somebody wants it."""

    def __init__(self) -> None:
        self._locks: dict[str, asyncio.Lock] = {}
        self._users: Counter[str] = Counter()

    @contextlib.asynccontextmanager
    async def of(self, key: str) -> AsyncIterator[None]:
        """While open, nobody else has the lock of this key."""
        lock = self._locks.setdefault(key, asyncio.Lock())
        self._users[key] += 1
        try:
            async with lock:
                yield
        finally:
            self._users[key] -= 1
            if not self._users[key]:
                del self._users[key], self._locks[key]


async def _ingest(unpack: Unpack, diff_id: str, directory: Path) -> LayerReport:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        report = await unpack(fd)
    finally:
        os.close(fd)
    if report.diff_id != diff_id:
        raise BadArchiveError(
            f"layer {diff_id}: unpacked it has the digest {report.diff_id}; it was damaged, or cut short"
        )
    if report.dropped_xattrs:
        log.info("attributes dropped", layer=diff_id, count=report.dropped_xattrs)
    return report


async def _remove_surely(directory: Path) -> None:
    """Remove a tree; what can't be removed is logged, and goes at the next collection or start."""
    try:
        await uninterrupted(remove_tree, directory)
    except OSError as error:
        log.error("a leftover can't be removed", path=str(directory), error=str(error))
