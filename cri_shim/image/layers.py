"""Unpacked layers on disk: one directory each under a short name, one record each under its chain id.

Rules:
- Names are as short as base 36 allows, since the options of an overlay mount must fit one page. A name is taken as
  long as a directory, a record or a container uses it.
- **A layer counts when its record is there, and the record is written only after the layer's bytes are durable.** A
  directory without a record is a leftover.
- One unpacking per chain id at a time; whoever comes second waits and finds it done, and if the first fails or is
  cancelled, does it with its own bytes. A failing client spoils no other's work.
- Nothing is removed that an image, a hold (work under way) or a container refers to.
- Everything half made is below `.ingest`, which is emptied at start.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import re
from collections import Counter
from typing import TYPE_CHECKING

import msgspec
import structlog

from cri_shim.errors import BadArchiveError
from cri_shim.host.allocation import place_apart
from cri_shim.host.files import TMP_SUFFIX, read_bounded, remove_tree, write_atomic
from cri_shim.image.finish import finish_layer
from cri_shim.image.reference import is_digest
from cri_shim.image.undivided import undivided

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator, Sequence
    from pathlib import Path

    from cri_shim.image.jobs import LayerReport

    Unpack = Callable[[int], Awaitable[LayerReport]]
    """Unpacks a layer into the empty directory of this descriptor."""

log = structlog.get_logger()

INGEST_NAME = ".ingest"
_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"
_MAX_NAME_LENGTH = 4
_NAME = re.compile(r"[0-9a-z]{1,4}")
_MAX_RECORD_BYTES = 64 << 10


class Layer(msgspec.Struct, frozen=True, kw_only=True):
    """An unpacked layer, as its record has it."""

    chain_id: str
    diff_id: str
    parent: str = ""
    """Chain id of the layer below; empty for the lowest."""
    name: str
    """Its directory below the layers directory."""
    disk_bytes: int
    inodes: int


class LayerStore:
    """The layers of all images; used on the loop's thread, slow work goes to threads."""

    def __init__(self, layers_dir: Path, records_dir: Path) -> None:
        self._dir = layers_dir
        self._records_dir = records_dir
        self._ingest_dir = layers_dir / INGEST_NAME
        self._layers: dict[str, Layer] = {}
        self._durable: set[str] = set()
        self._names: set[str] = set()
        self._holds: Counter[str] = Counter()
        self._locks: dict[str, _SharedLock] = {}
        self._numbers = itertools.count()
        self.disk_bytes = 0
        self.inodes = 0

    def open(self, damaged_dir: Path) -> None:
        """Read the records, empty the ingest area; a record that can't be used goes to `damaged_dir`. Blocking."""
        for directory in (self._dir, self._records_dir):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        remove_tree(self._ingest_dir)
        self._ingest_dir.mkdir(mode=0o700)
        place_apart(self._ingest_dir)
        with os.scandir(self._dir) as found:
            self._names = {item.name for item in found if item.name != INGEST_NAME}
        for path in sorted(self._records_dir.iterdir()):
            if path.name.endswith(TMP_SUFFIX):
                path.unlink()
                continue
            try:
                self._add(self._load(path), durable=True)
            except (OSError, ValueError, msgspec.MsgspecError) as error:
                log.error(
                    "a layer record is damaged and set aside; images that need the layer must be pulled again",
                    record=str(path),
                    error=str(error),
                )
                damaged_dir.mkdir(mode=0o700, exist_ok=True)
                path.rename(damaged_dir / path.name)

    def get(self, chain_id: str) -> Layer | None:
        """The layer, if it is here."""
        return self._layers.get(chain_id)

    def path(self, layer: Layer) -> Path:
        """Its directory."""
        return self._dir / layer.name

    @contextlib.contextmanager
    def hold(self, chain_ids: Collection[str]) -> Iterator[None]:
        """While open, these layers are not swept, whether they are here already or come meanwhile."""
        self._holds.update(chain_ids)
        try:
            yield
        finally:
            self._holds.subtract(chain_ids)
            self._holds = +self._holds

    async def ensure(
        self,
        chain_id: str,
        diff_id: str,
        unpack: Unpack,
        *,
        parent: Awaitable[Layer] | None,
    ) -> Layer:
        """The layer; unless it is here, `unpack` is called to unpack it into an empty directory.

        `parent` gives the layer below; it is awaited only once this one is unpacked. The caller holds the chain id.

        Raises BadArchiveError (hostile, damaged, or not the `diff_id` that was promised) and what `unpack` raises;
        nothing is left then.
        """
        async with self._locked(chain_id):
            known = self._layers.get(chain_id)
            if known is not None:
                return known
            directory = self._ingest_dir / f"layer-{next(self._numbers)}"
            directory.mkdir(mode=0o700)
            try:
                report = await _ingest(unpack, diff_id, directory)
                below = None if parent is None else await parent
                lowers = [] if below is None else self.lowers(below)
                await asyncio.to_thread(finish_layer, directory, lowers, report)
                return self._place(directory, chain_id, report, below)
            except BaseException:
                await _remove_surely(directory)
                raise

    def _place(
        self, directory: Path, chain_id: str, report: LayerReport, below: Layer | None
    ) -> Layer:
        name = self._free_name()
        directory.rename(self._dir / name)
        layer = Layer(
            chain_id=chain_id,
            diff_id=report.diff_id,
            parent="" if below is None else below.chain_id,
            name=name,
            disk_bytes=report.disk_bytes,
            inodes=report.inodes,
        )
        self._add(layer, durable=False)
        return layer

    def lowers(self, top: Layer) -> list[Path]:
        """The directories of `top` and everything below it, topmost first. Raises KeyError if one is missing."""
        return [self.path(layer) for layer in self.stack(top.chain_id)]

    def stack(self, chain_id: str) -> list[Layer]:
        """The layer and everything below it, topmost first. Raises KeyError naming the chain id that is missing."""
        found = []
        while chain_id:
            layer = self._layers[chain_id]
            found.append(layer)
            chain_id = layer.parent
        return found

    def unrecorded(self, chain_ids: Collection[str]) -> list[Layer]:
        """Those whose bytes may not survive a power cut yet, and that have no record."""
        return [self._layers[chain] for chain in chain_ids if chain not in self._durable]

    def record(self, layers: Sequence[Layer]) -> None:
        """Write the records of layers whose file system was synced since they were unpacked. Raises OSError."""
        for layer in layers:
            write_atomic(self._record_file(layer.chain_id), msgspec.json.encode(layer))
            self._durable.add(layer.chain_id)

    def detach(
        self,
        kept: Collection[str],
        names_in_use: Collection[str],
        *,
        among: Collection[str] | None = None,
    ) -> list[Path]:
        """Take away layers in neither `kept` (chain ids) nor use; what is left of them is for `delete`.

        Only those of the chain ids `among`, if given; else directories without a record go as well. A crash before
        `delete` leaves what the next start empties.
        """
        used = set(names_in_use)
        kept = set(kept)
        for layer in self._layers.values():
            if layer.name in used:
                # A container needs its whole stack, and an image that comes back can use it.
                kept.update(below.chain_id for below in self._known_stack(layer))
        gone = [
            layer
            for chain_id, layer in self._layers.items()
            if chain_id not in kept
            and not self._holds[chain_id]
            and (among is None or chain_id in among)
        ]
        names = [] if among is not None else self._strays(used)
        for layer in gone:
            self._record_file(layer.chain_id).unlink(missing_ok=True)
            del self._layers[layer.chain_id]
            self._durable.discard(layer.chain_id)
            self.disk_bytes -= layer.disk_bytes
            self.inodes -= layer.inodes
            names.append(layer.name)
        return [trash for name in names if (trash := self._move_away(name)) is not None]

    async def delete(self, trash: Sequence[Path]) -> None:
        """Remove what `detach` gave; it may be much."""
        for directory in trash:
            await _remove_surely(directory)

    def _strays(self, used: Collection[str]) -> list[str]:
        known = {layer.name for layer in self._layers.values()}
        # Only what could have been a layer: a volume's own lost+found is nobody's leftover.
        return [
            name
            for name in self._names
            if name not in known and name not in used and _NAME.fullmatch(name)
        ]

    def _move_away(self, name: str) -> Path | None:
        trash = self._ingest_dir / f"trash-{next(self._numbers)}"
        try:
            (self._dir / name).rename(trash)
        except FileNotFoundError:
            pass
        except OSError as error:
            log.warning("a layer's directory can't be moved away", name=name, error=str(error))
            return None
        self._names.discard(name)
        return trash

    def _known_stack(self, layer: Layer) -> list[Layer]:
        try:
            return self.stack(layer.chain_id)
        except KeyError:
            return [layer]

    def _load(self, path: Path) -> Layer:
        layer = msgspec.json.decode(read_bounded(path, _MAX_RECORD_BYTES), type=Layer)
        if not is_digest(layer.chain_id) or path != self._record_file(layer.chain_id):
            raise ValueError(f"it is the record of {layer.chain_id!r}")
        if layer.name not in self._names:
            raise ValueError(f"its directory {self._dir / layer.name} is missing")
        return layer

    def _add(self, layer: Layer, *, durable: bool) -> None:
        self._layers[layer.chain_id] = layer
        self._names.add(layer.name)
        self.disk_bytes += layer.disk_bytes
        self.inodes += layer.inodes
        if durable:
            self._durable.add(layer.chain_id)

    def _record_file(self, chain_id: str) -> Path:
        return self._records_dir / f"{chain_id.removeprefix('sha256:')}.json"

    def _free_name(self) -> str:
        for length in range(1, _MAX_NAME_LENGTH + 1):
            for digits in itertools.product(_DIGITS, repeat=length):
                name = "".join(digits)
                if name not in self._names:
                    return name
        raise AssertionError("more than 1.7 million layers")

    @contextlib.asynccontextmanager
    async def _locked(self, chain_id: str) -> AsyncIterator[None]:
        lock = self._locks.setdefault(chain_id, _SharedLock())
        lock.users += 1
        try:
            async with lock.lock:
                yield
        finally:
            lock.users -= 1
            if lock.users == 0:
                del self._locks[chain_id]


class _SharedLock:
    """One chain id's lock, kept while somebody wants it."""

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.users = 0


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
    """Remove a tree; what can't be removed is logged, and goes at the next start."""
    try:
        await undivided(lambda: remove_tree(directory))
    except OSError as error:
        log.error("a leftover can't be removed", path=str(directory), error=str(error))
