"""The layer records: one per unpacked layer, in memory and on disk.

Rules: **a layer exists once its record does, and the record is written only after the layer's bytes are durable.**
Records hold bytes and inodes, so the total is a running sum and not a walk. A damaged record is set aside.
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
    """An unpacked layer, in the form of its record."""

    chain_id: str
    diff_id: str
    parent: str = ""
    """Chain ID of the layer below; empty for the lowest."""
    name: str
    """The layer's directory below the layers directory."""
    disk_bytes: int
    inodes: int
    seal: str = ""
    """The digest of the layer's tree (`integrity/seal`); empty until a check or `discard_blobs` needs it."""


class LayerRecords:
    """The layers by chain ID."""

    def __init__(self, records_dir: Path) -> None:
        self._dir = records_dir
        self._layers: dict[str, Layer] = {}
        self._durable: set[str] = set()
        self.disk_bytes = 0
        self.inodes = 0

    def open(self, directories: Collection[str], damaged_dir: Path) -> None:
        """Read the records, set aside those that are damaged or lack their directory. Blocking; raises OSError."""
        self._dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        for path in sorted(self._dir.iterdir()):
            # An interrupted write.
            if path.name.endswith(TMP_SUFFIX):
                path.unlink()
                continue
            try:
                self.add(self._read(path, directories), durable=True)
            except (OSError, ValueError, msgspec.MsgspecError) as error:
                log.error(
                    "a layer record is damaged and was set aside; pull the images that need the layer again",
                    record=str(path),
                    error=str(error),
                )
                damaged_dir.mkdir(mode=0o700, exist_ok=True)
                path.rename(damaged_dir / path.name)

    def _read(self, path: Path, directories: Collection[str]) -> Layer:
        layer = msgspec.json.decode(read_bounded(path, _MAX_RECORD_BYTES), type=Layer)
        if not is_digest(layer.chain_id) or path != self._file(layer.chain_id):
            raise ValueError(f"the record is of layer {quoted(layer.chain_id)}")
        if layer.name not in directories:
            raise ValueError(f"the layer's directory {layer.name} is missing")
        return layer

    def get(self, chain_id: str) -> Layer | None:
        """The layer with this chain ID, or None."""
        return self._layers.get(chain_id)

    def all(self) -> list[Layer]:
        """Every layer."""
        return list(self._layers.values())

    def stack(self, chain_id: str) -> list[Layer]:
        """The layer and every layer below it, topmost first. Raises KeyError with the chain ID that is missing."""
        found = []
        while chain_id:
            layer = self._layers[chain_id]
            found.append(layer)
            chain_id = layer.parent
        return found

    def with_all_below(self, layers: Iterable[Layer]) -> set[str]:
        """Chain IDs of these layers and of every layer below them. Each layer is visited once."""
        found: set[str] = set()
        for top in layers:
            layer: Layer | None = top
            while layer is not None and layer.chain_id not in found:
                found.add(layer.chain_id)
                layer = self._layers.get(layer.parent)
        return found

    def is_durable(self, chain_id: str) -> bool:
        """Whether the layer's record is on disk."""
        return chain_id in self._durable

    def add(self, layer: Layer, *, durable: bool) -> None:
        """Add a layer, or replace the one with its chain ID. `durable`: its record is on disk."""
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
        """Note that the layer's record is on disk."""
        self._durable.add(chain_id)

    def unlink(self, layer: Layer) -> None:
        """Remove the record of a layer that was dropped. Blocking; raises OSError."""
        self._file(layer.chain_id).unlink(missing_ok=True)

    def drop(self, layer: Layer) -> None:
        """Remove a layer from memory."""
        del self._layers[layer.chain_id]
        self._durable.discard(layer.chain_id)
        self.disk_bytes -= layer.disk_bytes
        self.inodes -= layer.inodes

    def _file(self, chain_id: str) -> Path:
        return self._dir / f"{chain_id.removeprefix('sha256:')}.json"
