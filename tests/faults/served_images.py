"""Small images for a campaign, in a registry served from a thread; and what a store keeps on disk.

Every image can tell whether it is whole: its top layer has the checksums of the files of all of its layers.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import random
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from tests import images
from tests.fakes.registry import FakeRegistry

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterator, Mapping, Sequence

    from tests.images import LayerBlob

WHOLE = "sha256sum -c -s /sums || exit 99; "
"""What a shell in a container does first, to end with 99 where anything of the image is missing or changed."""
IMAGES_EACH = 3
_BUSYBOX = Path("/bin/busybox")
_APPLETS = ("sh", "sleep", "echo", "sha256sum")
_SHARED_BYTES = 1 << 20
_OWN_BYTES = 256 << 10
_ANSWER_S = 10.0
_HESITATES_S = 0.3
_ANSWERS_S = 0.1
"""It sends layers for so long, and then waits with the next: pulls take long enough to be met by a death."""
T = TypeVar("T")


@dataclass(frozen=True)
class ServedImages:
    """References to pull."""

    own: Sequence[Sequence[str]]
    """For each client, images that nobody else names; their lower layers are everybody's."""
    contended: str
    """One that every client pulls and removes."""


@contextlib.contextmanager
def serve_images(clients: int) -> Iterator[ServedImages]:
    """Images for so many clients; they are served while this is open."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="registry")
    thread.start()

    def inside(work: Coroutine[object, object, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, loop).result(_ANSWER_S)

    registry = FakeRegistry()
    server_log = logging.getLogger("aiohttp.server")
    server_log.addFilter(_is_news)
    try:
        inside(registry.__aenter__())
        hesitating = asyncio.run_coroutine_threadsafe(_hesitate(registry), loop)
        try:
            yield _fill(registry, clients)
        finally:
            hesitating.cancel()
            inside(registry.__aexit__(None, None, None))
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
        server_log.removeFilter(_is_news)


def kept_on_disk(root: Path) -> set[str]:
    """Records, blobs, unpacked layers and everything half made below a daemon's root."""
    kept = {str(path) for path in (root / "images").rglob("*") if not path.is_dir()}
    for directory in (root / "layers", root / "layers/.ingest", root / "images/.ingest"):
        kept.update(str(path) for path in directory.iterdir())
    # The lower layer of every image volume: made once, empty, and kept.
    return kept - {str(root / "layers/.empty")}


def _is_news(record: logging.LogRecord) -> bool:
    """That a daemon died while it was being answered is none."""
    return not (record.exc_info and isinstance(record.exc_info[1], ConnectionError))


async def _hesitate(registry: FakeRegistry) -> None:
    registry.paused = asyncio.Event()
    try:
        while True:
            await asyncio.sleep(_HESITATES_S)
            registry.paused.set()
            await asyncio.sleep(_ANSWERS_S)
            registry.paused.clear()
    finally:
        registry.paused.set()


def _fill(registry: FakeRegistry, clients: int) -> ServedImages:
    tools, tool_files = _tools()
    shared = [_noise(f"shared/{kind}", _SHARED_BYTES, kind) for kind in ("gzip", "zstd", "none")]

    def add(repository: str, number: int) -> str:
        # Each has the tools, one or two of the shared layers, and one that is its own.
        below = [shared[number % 3], *([shared[(number + 1) % 3]] if number % 2 else [])]
        files = dict(tool_files)
        for _, more in below:
            files.update(more)
        own = {"srv/own": _bytes(repository, _OWN_BYTES)}
        files.update(own)
        sums = "".join(
            f"{hashlib.sha256(data).hexdigest()}  /{name}\n" for name, data in files.items()
        )
        top = images.layer(
            *(images.file(name, data) for name, data in own.items()),
            images.file("sums", sums.encode()),
            compression="gzip",
        )
        registry.add(repository, tools, *(layer for layer, _ in below), top, tag="1")
        return f"{registry.host}/{repository}:1"

    return ServedImages(
        own=[
            [add(f"client-{client}/app-{number}", number) for number in range(IMAGES_EACH)]
            for client in range(clients)
        ],
        contended=add("everybody/app", IMAGES_EACH),
    )


def _tools() -> tuple[LayerBlob, Mapping[str, bytes]]:
    program = _BUSYBOX.read_bytes()
    layer = images.layer(
        *(images.directory(name) for name in ("bin", "dev", "etc", "proc", "srv", "sys", "tmp")),
        images.file("bin/busybox", program, mode=0o755),
        *(images.symlink(f"bin/{applet}", "busybox") for applet in _APPLETS),
        compression="gzip",
    )
    return layer, {"bin/busybox": program}


def _noise(name: str, size: int, compression: str) -> tuple[LayerBlob, Mapping[str, bytes]]:
    files = {f"{name}-{part}": _bytes(f"{name}-{part}", size // 4) for part in range(4)}
    entries = (images.file(path, data) for path, data in files.items())
    return images.layer(images.directory("shared"), *entries, compression=compression), files


def _bytes(name: str, size: int) -> bytes:
    """The same bytes for the same name; they can't be compressed."""
    return random.Random(name).randbytes(size)
