"""Check that everything an image consists of is undamaged.

Rules:
- A document or packed layer is sound if its bytes have its digest.
- **An unpacked layer is sound if its tree has its seal** (`seal`: a digest of everything a container could notice). A
  new layer has no seal: that would be a second reading of its bytes while a pod waits for them, and the packed layer,
  whose digest is in the manifest, proves more. The first check makes the seal: it unpacks the packed layer again, into
  another directory, and seals that. Later checks only read. If packed layers are not kept (`discard_blobs`), the seal
  is made before the packed layer is dropped, when the image is ingested.
- A file's bytes are read through the page cache, as containers read them.
- A check changes nothing but seals. It holds the layers; it reads one at a time and unpacks one at a time.
"""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

import structlog

from cri_shim.errors import BadArchiveError, ResourceExhaustedError
from cri_shim.image.integrity.inspection import Inspection
from cri_shim.image.integrity.report import CheckProgress, CheckReport, Damage, Finding

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from pathlib import Path

    from cri_shim.host.process import Reaper
    from cri_shim.image.catalog import Described, Lost
    from cri_shim.image.layers import Layer
    from cri_shim.image.store_state import StoreState
    from cri_shim.image.unpack.client import Unpacker
    from cri_shim.image.unpack.protocol import LayerReport

    Tell = Callable[[CheckProgress], None]

log = structlog.get_logger()


class Checker:
    """Checks the images of one store."""

    def __init__(self, state: StoreState, unpacker: Unpacker, reaper: Reaper) -> None:
        self._state = state
        self._unpacker = unpacker
        self._reaper = reaper

    async def check(self, manifests: Collection[str], tell: Tell) -> CheckReport:
        """Check the images of these manifests. A cancellation stops everything that it started.

        Raises CriShimError when nothing can be read.
        """
        known = self._state.manifests()
        targets = {digest: known[digest] for digest in manifests if digest in known}
        chains = dict.fromkeys(chain for facts in targets.values() for chain in facts.chain)
        with self._state.layers.hold(chains):
            async with Inspection(self._reaper) as inspection:
                check = _Check(self._state, self._unpacker, inspection, targets, tell)
                await check.run()
        return CheckReport(
            images=len({facts.image_id for facts in targets.values()}),
            layers=len(chains),
            blobs=check.blobs_checked,
            checked_bytes=inspection.read_bytes,
            findings=tuple(check.findings),
        )

    async def seal(self, layers: Collection[Layer]) -> None:
        """Seal layers that were just unpacked from blobs with verified digests.

        Raises CriShimError, OSError.
        """
        if not layers:
            return
        async with Inspection(self._reaper) as inspection:
            for layer in layers:
                path = self._state.layers.path(layer)
                seal = await inspection.seal(path, _tell_nobody)
                await self._state.layers.seal(layer.chain_id, seal)

    async def seal_all(self) -> set[str]:
        """Seal every layer that a packed layer on this node can prove; returns the chain IDs of damaged layers."""
        unsealed = [
            digest
            for digest, facts in self._state.described.items()
            if any(map(self._could_be_sealed, facts.chain, facts.packed))
        ]
        report = await self.check(unsealed, _tell_nobody) if unsealed else None
        return {finding.object for finding in report.findings} if report else set()

    def _could_be_sealed(self, chain_id: str, blob: str) -> bool:
        layer = self._state.layers.get(chain_id)
        return layer is not None and not layer.seal and blob in self._state.blobs


class _Check:
    """One check. It looks at each object once, however many images share it."""

    def __init__(
        self,
        state: StoreState,
        unpacker: Unpacker,
        inspection: Inspection,
        targets: dict[str, Described | Lost],
        tell: Tell,
    ) -> None:
        self._state = state
        self._blobs = state.blobs
        self._layers = state.layers
        self._unpacker = unpacker
        self._inspection = inspection
        self._targets = targets
        self._tell = tell
        self._damaged: set[str] = set()
        """Digests of blobs and chain IDs of layers."""
        self.findings: list[Finding] = []
        self.blobs_checked = 0

    async def run(self) -> None:
        packed: dict[str, set[str]] = {}
        for digest, facts in self._targets.items():
            await self._document(Damage.MANIFEST, digest, digest)
            if facts.image_id:
                await self._document(Damage.CONFIG, facts.image_id, digest)
            for chain_id, blob in zip(facts.chain, facts.packed, strict=False):
                packed.setdefault(chain_id, set()).add(blob)
        for blob in dict.fromkeys(blob for blobs in packed.values() for blob in blobs):
            if blob in self._blobs:
                await self._blob(Damage.BLOB, blob)
        for (
            chain_id,
            blobs,
        ) in packed.items():  # the lowest layer of each image first, as `_proven` needs it
            await self._layer(chain_id, blobs)
        for digest in self._targets.keys() & self._state.lost.keys():
            lost = self._state.lost[digest]
            if not {digest, lost.image_id, *lost.chain} & self._damaged:
                self._found(Damage.MANIFEST, digest, lost.reason)

    async def _document(self, damage: Damage, digest: str, manifest: str) -> None:
        if digest in self._damaged:
            return
        if digest in self._blobs:
            await self._blob(damage, digest)
        elif manifest in self._state.manifests():  # else the image was removed during the check
            self._found(damage, digest, f"{self._blobs.path(digest)}: missing or damaged")

    async def _blob(self, damage: Damage, digest: str) -> None:
        self.blobs_checked += 1
        path = self._blobs.path(digest)
        size = self._blobs.size(digest)
        try:
            is_digest = await self._inspection.digest(path, self._teller("blob", digest, size))
        except OSError as error:
            if digest in self._blobs:
                self._found(damage, digest, f"{path}: {error.strerror}")
            return
        if is_digest != digest:
            self._found(damage, digest, f"{path}: its bytes have the digest {is_digest}")

    async def _layer(self, chain_id: str, blobs: Collection[str]) -> None:
        layer = self._layers.get(chain_id)
        if layer is None:
            self._found(Damage.LAYER_MISSING, chain_id, "its record or its directory is missing")
            return
        path = self._layers.path(layer)
        if not await asyncio.to_thread(path.is_dir):
            self._found(Damage.LAYER_MISSING, chain_id, f"its directory {path} is missing")
            return
        try:
            seal = await self._seal_of(path, layer)
        except OSError as error:
            self._found(Damage.LAYER_ALTERED, chain_id, f"{path}: {error.strerror}")
            return
        proven = layer.seal or await self._proven(layer, blobs)
        if proven and proven != seal:
            self._found(
                Damage.LAYER_ALTERED, chain_id, f"{path}: it differs from what was unpacked"
            )

    async def _proven(self, layer: Layer, blobs: Collection[str]) -> str:
        """The seal that a packed layer proves; empty, with a finding, if none can prove it."""
        usable = [blob for blob in blobs if blob in self._blobs and blob not in self._damaged]
        if not usable:
            self._unverified(
                layer, "it has no seal, and no packed layer is here to compare it with"
            )
            return ""
        below = self._layers.get(layer.parent)
        path = self._blobs.path(usable[0])
        try:
            blob_fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            self._unverified(layer, "its packed layer was removed during the check")
            return ""

        async def unpack(directory_fd: int) -> LayerReport:
            return await self._unpacker.unpack_layer(
                blob_fd, directory_fd, what=f"layer {usable[0]}", owner="an image check"
            )

        parent = None if below is None else _immediately(below)
        try:
            async with self._layers.unpacked(layer.diff_id, unpack, parent) as (apart, report, _):
                # What it inherits from the layer below (`unpack/finish`) can't be trusted.
                if report.implied_dirs and layer.parent in self._damaged:
                    self._unverified(layer, "the layer below it is damaged: repair that first")
                    return ""
                seal = await self._seal_of(apart, layer)
        except (BadArchiveError, ResourceExhaustedError) as error:
            self._unverified(layer, f"unpacking it again for comparison failed: {error}")
            return ""
        finally:
            os.close(blob_fd)
        try:
            await self._layers.seal(layer.chain_id, seal)
        except OSError as error:
            log.warning("a layer's seal can't be stored", layer=layer.chain_id, error=str(error))
        return seal

    async def _seal_of(self, path: Path, layer: Layer) -> str:
        tell = self._teller("layer", layer.chain_id, layer.disk_bytes)
        return await self._inspection.seal(path, tell)

    def _teller(self, kind: str, digest: str, total_bytes: int) -> Callable[[int], None]:
        what = f"{kind} {digest}"
        self._tell(CheckProgress(what, 0, total_bytes))
        return lambda done: self._tell(CheckProgress(what, min(done, total_bytes), total_bytes))

    def _unverified(self, layer: Layer, detail: str) -> None:
        self._found(Damage.UNVERIFIED, layer.chain_id, detail)

    def _found(self, damage: Damage, digest: str, detail: str) -> None:
        if damage is not Damage.UNVERIFIED:
            self._damaged.add(digest)
        images = dict.fromkeys(
            name
            for manifest, facts in self._targets.items()
            if digest in (manifest, facts.image_id, *facts.chain, *facts.packed)
            for name in (self._state.index.names_of(manifest) or [facts.image_id or manifest])
        )
        self.findings.append(Finding(damage, digest, tuple(images), detail))


def _immediately(layer: Layer) -> asyncio.Future[Layer]:
    here = asyncio.get_running_loop().create_future()
    here.set_result(layer)
    return here


def _tell_nobody(_: object) -> None:
    """Take the place of an absent progress callback."""
