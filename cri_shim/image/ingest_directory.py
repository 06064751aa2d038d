"""The directory for layers that are being unpacked and layers that are being removed.

Rules:
- It is emptied at start. An entry that no work uses is a leftover, which a collection removes.
- It is on the layers' file system, so that one rename commits or withdraws a layer.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from typing import TYPE_CHECKING

import structlog

from cri_shim.background import uninterrupted
from cri_shim.errors import BadArchiveError
from cri_shim.host.allocation import place_apart
from cri_shim.host.files import remove_tree

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
    from pathlib import Path

    from cri_shim.image.unpack.protocol import LayerReport

    Unpack = Callable[[int], Awaitable[LayerReport]]
    """Unpacks a layer into an empty directory, given by its descriptor."""

log = structlog.get_logger()
INGEST_NAME = ".ingest"


class IngestDirectory:
    """One directory per layer under way. Methods run on the event loop's thread, but `open` and `take` block."""

    def __init__(self, path: Path) -> None:
        self._dir = path
        self._live: set[str] = set()
        """Names that work under way uses."""
        self._numbers = itertools.count()

    def open(self) -> None:
        """Create the directory, or empty it. Blocking; raises OSError."""
        remove_tree(self._dir)
        self._dir.mkdir(mode=0o700)
        place_apart(self._dir)

    @contextlib.asynccontextmanager
    async def unpacked(
        self, diff_id: str, unpack: Unpack
    ) -> AsyncIterator[tuple[Path, LayerReport]]:
        """Unpack a layer, in a directory that is removed afterwards unless it was moved.

        Raises BadArchiveError when its bytes are not `diff_id`, and what `unpack` raises.
        """
        directory = self._dir / f"layer-{next(self._numbers)}"
        self._live.add(directory.name)
        try:
            directory.mkdir(mode=0o700)
            yield directory, await _unpack(unpack, diff_id, directory)
        finally:
            # Not moved away, so the layer was not committed.
            if directory.exists():
                await remove_surely(directory)
            self._live.discard(directory.name)

    def take(self, directory: Path) -> Path | None:
        """Move a layer's directory here and return its path, for `delete`; None if it can't be moved. Blocking."""
        trash = self._dir / f"trash-{next(self._numbers)}"
        self._live.add(trash.name)
        try:
            directory.rename(trash)
        except FileNotFoundError:
            pass
        except OSError as error:
            log.warning("a layer's directory can't be moved", name=directory.name, error=str(error))
            self._live.discard(trash.name)
            return None
        return trash

    def abandon(self, trash: Iterable[Path]) -> None:
        """Leave these to the next collection, since nobody will call `delete` for them."""
        self._live -= {directory.name for directory in trash}

    async def delete(self, trash: Iterable[Path]) -> None:
        """Remove what `take` or `leftovers` returned. This may take long."""
        for directory in trash:
            await remove_surely(directory)
            self._live.discard(directory.name)

    def leftovers(self) -> list[Path]:
        """The entries that no work uses, because an earlier removal failed."""
        with os.scandir(self._dir) as found:
            return [self._dir / item.name for item in found if item.name not in self._live]


async def remove_surely(directory: Path) -> None:
    """Remove a tree. A failure is logged; the next collection or start removes the rest."""
    try:
        await uninterrupted(remove_tree, directory)
    except OSError as error:
        log.error("a leftover directory can't be removed", path=str(directory), error=str(error))


async def _unpack(unpack: Unpack, diff_id: str, directory: Path) -> LayerReport:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        report = await unpack(fd)
    finally:
        os.close(fd)
    if report.diff_id != diff_id:
        raise BadArchiveError(
            f"layer {diff_id}: its unpacked bytes have the digest {report.diff_id}: the layer is damaged or truncated"
        )
    if report.dropped_xattrs:
        log.info("dropped extended attributes", layer=diff_id, count=report.dropped_xattrs)
    return report
