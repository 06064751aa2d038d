"""A registry on the loopback, and pulls from it into a real store, with an unpacker that needs no root."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import pytest
import pytest_asyncio

from cri_shim.config.model import ImageSettings
from cri_shim.host.process import Reaper
from cri_shim.image.pull import Puller
from cri_shim.image.registry import client as registry_module
from cri_shim.image.store import ImageStore
from tests.fakes.registry import FakeRegistry
from tests.fakes.unpacker import FakeUnpacker

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path


@pytest_asyncio.fixture
async def registry() -> AsyncIterator[FakeRegistry]:
    async with FakeRegistry() as registry:
        yield registry


@pytest.fixture
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses between tries that a test can wait for."""
    monkeypatch.setattr(registry_module, "_FIRST_PAUSE_S", 0.001)


class Node:
    """A place to pull to."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.certs = root / "certs.d"
        self.unpacker = FakeUnpacker()
        self.in_use: set[str] = set()
        self.store: ImageStore
        self.puller: Puller

    async def open(
        self,
        *,
        reaper: Reaper | None = None,
        pinned: Sequence[str] = (),
        discard_blobs: bool = False,
        **settings: Any,
    ) -> None:
        """Without `reaper` no process can be started."""
        self.store = await ImageStore.open(
            self.root / "images",
            self.root / "layers",
            cast("Any", reaper),
            in_use=lambda: self.in_use,
            pinned=pinned,
            discard_blobs=discard_blobs,
            unpacker=cast("Any", self.unpacker),
        )
        self.puller = Puller(self.store, self.settings(**settings))

    def settings(self, **settings: Any) -> ImageSettings:
        return ImageSettings(
            registry_config=self.certs, **{"pull_progress_timeout_s": 5.0, **settings}
        )

    def hosts(self, domain: str, text: str) -> None:
        """Write a `hosts.toml`."""
        directory = self.certs / domain
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "hosts.toml").write_text(text)

    def leftovers(self) -> list[str]:
        """Everything below the store that is no image's."""
        kept = {"index.json", "oci-layout"}
        if self.store.images():
            return [str(path) for path in self.root.glob("*/.ingest/*")]
        return [
            str(path.relative_to(self.root))
            for directory in ("images", "layers")
            for path in (self.root / directory).rglob("*")
            if path.is_file() and path.name not in kept
        ] + [str(path) for path in self.root.glob("*/.ingest/*")]


@pytest_asyncio.fixture
async def reaper() -> AsyncIterator[Reaper]:
    reaper = Reaper()
    reaper.open()
    yield reaper
    reaper.close()


@pytest_asyncio.fixture
async def node(tmp_path: Path, quick_retries: None) -> AsyncIterator[Node]:
    node = Node(tmp_path)
    await node.open()
    yield node
    await node.puller.close(0)
    await node.store.close()
