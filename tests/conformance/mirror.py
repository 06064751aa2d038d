"""The images' registry in a thread of its own, and the configuration by which a daemon takes it for all registries."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any

from tests.conformance import images
from tests.fakes.registry import FakeRegistry

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from types import TracebackType
    from typing import Self

REGISTRIES = ("registry.k8s.io", "k8s.gcr.io", "gcr.io", "docker.io")
_START_S = 30.0


class Mirror:
    """Serves on the loopback of the network namespace it is entered in, while it is open."""

    def __init__(self, config_dir: Path, packages: Mapping[str, Path]) -> None:
        """`config_dir` is to be made, for the `hosts.toml` files; `packages` as `packages.fetch` found them."""
        self._config_dir = config_dir
        self._packages = packages
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="registry")
        self.registry = FakeRegistry()

    def __enter__(self) -> Self:
        images.put_all(self.registry, self._packages)
        self._thread.start()
        self._run(self.registry.__aenter__())
        for name in REGISTRIES:
            path = self._config_dir / name / "hosts.toml"
            path.parent.mkdir(parents=True)
            path.write_text(
                f'server = "https://{name}"\n'
                f'[host."{self.registry.url}"]\n'
                'capabilities = ["pull", "resolve"]\n'
            )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._run(self.registry.__aexit__(kind, error, traceback))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def settings(self) -> dict[str, Any]:
        """What to add to a daemon's configuration."""
        return {"images": {"registry_config": str(self._config_dir)}}

    def _run(self, work: Any) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(_START_S)
