"""What is known of each unpacked layer, in memory and as one record on disk each.

Rules: **a layer counts when its record is there, and the record is written only after the layer's bytes are durable.**
Bytes and inodes stand in the record, so that what all layers take is a sum that is kept, not a walk. A record that
can't be used is set aside.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import structlog

from cri_shim.host.files import TMP_SUFFIX, read_bounded, write_atomic
from cri_shim.image.reference import is_digest
from cri_shim.quoting import quoted

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable
    from pathlib import Path

log = structlog.get_logger()
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
    seal: str = ""
    """What its tree must be (`seal`); empty as long as its blob can still tell."""


class LayerRecords:
    """The layers by chain id."""

    def __init__(self, records_dir: Path) -> None:
        self._dir = records_dir
        self._layers: dict[str, Layer] = {}
        self._durable: set[str] = set()
        self.disk_bytes = 0
        self.inodes = 0

    def open(self, directories: Collection[str], damaged_dir: Path) -> None:
        """Read the records of layers whose directories are there. Blocking; raises OSError."""
        self._dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        for path in sorted(self._dir.iterdir()):
            if path.name.endswith(TMP_SUFFIX):
                path.unlink()
                continue
            try:
                self.add(self._read(path, directories), durable=True)
            except (OSError, ValueError, msgspec.MsgspecError) as error:
                log.error(
                    "a layer record is damaged and set aside; images that need the layer must be pulled again",
                    record=str(path),
                    error=str(error),
                )
                damaged_dir.mkdir(mode=0o700, exist_ok=True)
                path.rename(damaged_dir / path.name)

    def _read(self, path: Path, directories: Collection[str]) -> Layer:
        layer = msgspec.json.decode(read_bounded(path, _MAX_RECORD_BYTES), type=Layer)
        if not is_digest(layer.chain_id) or path != self._file(layer.chain_id):
            raise ValueError(f"it is the record of {quoted(layer.chain_id)}")
        if layer.name not in directories:
            raise ValueError(f"its directory {layer.name} is missing")
        return layer

    def get(self, chain_id: str) -> Layer | None:
        """The layer, if it is here."""
        return self._layers.get(chain_id)

    def all(self) -> list[Layer]:
        """Every layer."""
        return list(self._layers.values())

    def stack(self, chain_id: str) -> list[Layer]:
        """The layer and everything below it, topmost first. Raises KeyError naming the chain id that is missing."""
        found = []
        while chain_id:
            layer = self._layers[chain_id]
            found.append(layer)
            chain_id = layer.parent
        return found

    def with_all_below(self, layers: Iterable[Layer]) -> set[str]:
        """Chain ids of these layers and of all that is here below them; each is looked at once."""
        found: set[str] = set()
        for top in layers:
            layer: Layer | None = top
            while layer is not None and layer.chain_id not in found:
                found.add(layer.chain_id)
                layer = self._layers.get(layer.parent)
        return found

    def is_durable(self, chain_id: str) -> bool:
        """Whether it has a record."""
        return chain_id in self._durable

    def add(self, layer: Layer, *, durable: bool) -> None:
        """It counts from here on, in the place of another of its chain id; `durable`: its record is written."""
        if layer.chain_id in self._layers:
            self.drop(self._layers[layer.chain_id])
        self._layers[layer.chain_id] = layer
        self.disk_bytes += layer.disk_bytes
        self.inodes += layer.inodes
        if durable:
            self._durable.add(layer.chain_id)

    def write(self, layer: Layer, *, fsync: bool) -> None:
        """Write the record of a layer whose bytes are durable. Blocking; raises OSError."""
        write_atomic(self._file(layer.chain_id), msgspec.json.encode(layer), fsync=fsync)

    def written(self, chain_id: str) -> None:
        """Its record is there."""
        self._durable.add(chain_id)

    def unlink(self, layer: Layer) -> None:
        """Take the record of a layer away that was dropped. Blocking; raises OSError."""
        self._file(layer.chain_id).unlink(missing_ok=True)

    def drop(self, layer: Layer) -> None:
        """It doesn't count any more."""
        del self._layers[layer.chain_id]
        self._durable.discard(layer.chain_id)
        self.disk_bytes -= layer.disk_bytes
        self.inodes -= layer.inodes

    def _file(self, chain_id: str) -> Path:
        return self._dir / f"{chain_id.removeprefix('sha256:')}.json"
