"""Collect garbage: images without a name, layers and blobs without an image, leftovers of interrupted work.

Rules:
- An image is removed when it has no name (with `untagged`: no tag), is not pinned, and no container uses its layers. An
  image that was left out at start because of damage is removed too, unless one of its names is pinned.
- If packed layers are not kept (`discard_blobs`), those from before that setting are removed once their unpacked layers
  are sealed and sound. Before that, only the packed layer can prove what the unpacked one must be.
- The report counts what is removed: layers by their records, the rest by walking it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

from cri_shim.background import uninterrupted
from cri_shim.errors import host_step
from cri_shim.host.files import disk_usage
from cri_shim.image.integrity.report import Collected

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable
    from pathlib import Path

    from cri_shim.image.model import Image
    from cri_shim.image.store_state import StoreState

log = structlog.get_logger()


async def collect(
    state: StoreState, *, dry_run: bool, untagged: bool, damaged: Collection[str]
) -> Collected:
    """Remove, or with `dry_run` only count, what nothing needs. The blobs of `damaged` layers stay.

    Raises CriShimError, ResourceExhaustedError when the list can't be written: then nothing was removed.
    """
    async with state.changing:
        gone = [image for image in state.catalog.images() if _may_go(state, image, untagged)]
        lost = [
            digest for digest in state.lost if not state.pins.match(state.index.names_of(digest))
        ]
        manifests = {digest for image in gone for digest in image.manifest_digests}.union(lost)
        unneeded = state.layers.unneeded(state.kept_chains(manifests), state.in_use())
        kept_blobs = state.kept_blobs(manifests) - _discardable(state, damaged)
        blobs = state.blobs.unneeded(kept_blobs)
        leftovers = state.leftovers()
        strays = [state.layers_dir / name for name in unneeded.names]
        stray_bytes, stray_inodes = await uninterrupted(_measure, [*leftovers, *strays])
        layers = unneeded.layers
        names = [image.name for image in gone]
        names += [next(iter(state.index.names_of(digest)), digest) for digest in lost]
        collected = Collected(
            images=tuple(names),
            layers=len(layers),
            blobs=len(blobs),
            leftovers=len(leftovers) + len(strays),
            freed_bytes=stray_bytes
            + sum(layer.disk_bytes for layer in layers)
            + sum(map(state.blobs.disk_bytes, blobs)),
            freed_inodes=stray_inodes + sum(layer.inodes for layer in layers) + len(blobs),
        )
        if dry_run:
            return collected
        if manifests:
            with host_step("collecting images"):
                await state.forget(manifests)
        # Determined again: a container may have started, or other work ended, while the list was written.
        unneeded = state.layers.unneeded(state.kept_chains(), state.in_use())
        trash = await state.layers.detach(unneeded)
        await uninterrupted(state.blobs.sweep, kept_blobs)
    await state.layers.delete([*trash, *leftovers])
    log.info(
        "collected unused images",
        images=len(names),
        layers=collected.layers,
        blobs=collected.blobs,
        freed_bytes=collected.freed_bytes,
    )
    return collected


def _may_go(state: StoreState, image: Image, untagged: bool) -> bool:
    named = image.repo_tags if untagged else (*image.repo_tags, *image.repo_digests)
    return not named and not image.pinned and not state.is_in_use(image, state.in_use())


def _discardable(state: StoreState, damaged: Collection[str]) -> set[str]:
    if not state.discard_blobs:
        return set()
    packed: set[str] = set()
    wanted: set[str] = set()
    for digest, facts in state.manifests().items():
        wanted |= {digest, facts.image_id}
        # Not strict: of a damaged image, one of the two may be unknown.
        for chain_id, blob in zip(facts.chain, facts.packed, strict=False):
            layer = state.layers.get(chain_id)
            sealed = layer is not None and layer.seal
            (packed if sealed and chain_id not in damaged else wanted).add(blob)
    return packed - wanted


def _measure(directories: Iterable[Path]) -> tuple[int, int]:
    used_bytes = inodes = 0
    for directory in directories:
        try:
            usage = disk_usage(directory)
        except OSError:
            continue  # gone meanwhile
        used_bytes += usage.used_bytes
        inodes += usage.inodes
    return used_bytes, inodes
