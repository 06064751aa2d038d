"""Looking whether everything that images are made of is what it should be.

Rules:
- A document and a packed layer are what their digest says.
- **An unpacked layer is what its seal says** (`seal`: everything a container could notice of its tree). A seal is not
  made when a layer comes: that would be a second reading of all its bytes, at the moment when a pod waits for them,
  and the packed layer, whose digest is in the manifest, proves more. The first check makes it: the packed layer is
  unpacked again, apart, and the seal of that is the layer's from then on, so that later checks only read. Where packed
  layers are not kept (`discard_blobs`), the seal is made before the packed layer is let go, so when the image comes.
- What a file looks like is taken from the kernel, so from its cache where it is there: that is what containers get.
- Nothing is changed but seals. Layers under check are held; one at a time is read, and one unpacked apart.
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
    """Checks images of one store."""

    def __init__(self, state: StoreState, unpacker: Unpacker, reaper: Reaper) -> None:
        self._state = state
        self._unpacker = unpacker
        self._reaper = reaper

    async def check(self, manifests: Collection[str], tell: Tell) -> CheckReport:
        """Check the images of these manifests. Cancelling it ends what it started.

        Raises CriShimError when the node keeps it from reading at all.
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
        """Seal layers that were unpacked a moment ago from blobs whose digests were right.

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
        """Seal what can be proven by a packed layer that is still here; the chain ids of damaged layers."""
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
    """One check; every object once, however many images have it."""

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
        """Digests and chain ids."""
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
        for chain_id, blobs in packed.items():  # lowest first in each image
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
        elif manifest in self._state.manifests():  # not removed meanwhile
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
            self._found(Damage.LAYER_MISSING, chain_id, "its record, or its directory, is missing")
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
            self._found(Damage.LAYER_ALTERED, chain_id, f"{path}: it is not what was unpacked")

    async def _proven(self, layer: Layer, blobs: Collection[str]) -> str:
        """The seal that a packed layer proves; empty, and found so, where there is none to do it."""
        usable = [blob for blob in blobs if blob in self._blobs and blob not in self._damaged]
        if not usable:
            self._unverified(layer, "it has no seal, and no packed layer is kept to compare with")
            return ""
        below = self._layers.get(layer.parent)
        path = self._blobs.path(usable[0])
        try:
            blob_fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            self._unverified(layer, "its packed layer was removed meanwhile")
            return ""

        async def unpack(directory_fd: int) -> LayerReport:
            return await self._unpacker.unpack_layer(
                blob_fd, directory_fd, what=f"layer {usable[0]}", owner="an image check"
            )

        parent = None if below is None else _immediately(below)
        try:
            async with self._layers.unpacked(layer.diff_id, unpack, parent) as (apart, report, _):
                if report.implied_dirs and layer.parent in self._damaged:
                    self._unverified(layer, "the layer below it is damaged: repair that first")
                    return ""
                seal = await self._seal_of(apart, layer)
        except (BadArchiveError, ResourceExhaustedError) as error:
            self._unverified(layer, f"unpacking it again, to compare: {error}")
            return ""
        finally:
            os.close(blob_fd)
        try:
            await self._layers.seal(layer.chain_id, seal)
        except OSError as error:
            log.warning("a seal can't be stored", layer=layer.chain_id, error=str(error))
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
    """Nobody wants to know how it goes."""
