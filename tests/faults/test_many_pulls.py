"""A hundred pulls at the same moment, of images whose documents are as large as they may be."""

from __future__ import annotations

import asyncio
import json
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Self

import grpc
import pytest

from cri_shim._pb.cri.v1 import api_pb2 as api
from cri_shim.image.manifest import MAX_CONFIG_BYTES, MAX_MANIFEST_BYTES, digest_of
from tests.fakes.registry import MANIFEST_TYPE
from tests.faults.looking import wait_until

if TYPE_CHECKING:
    from types import TracebackType

    from tests.harness.daemon import Daemon

PULLS = 100
REGISTRIES = 10
LAYERS = 500
QUIET_S = 7.0
"""More than a document may take before others come beside it."""
MAX_DAEMON_MIB = 120
_MARK = "feedf00d"
"""In a document, where an image's number stands."""
_HELD_BACK = 1000
"""The last bytes of a document come when they may."""


class LargeImages:
    """A registry of images at their limits, whose documents end and whose layers are missed when the test says so."""

    def __init__(self) -> None:
        self._config, self._manifest = _config(), _manifest()
        self._configs: dict[str, int] = {}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="registry")
        self._documents_may_end = asyncio.Event()
        self._layers_may_fail = asyncio.Event()
        self._server: asyncio.Server
        self.held = 0
        self.sent: set[str] = set()
        """Documents, as far as they may come; and whole."""

    def __enter__(self) -> Self:
        self._thread.start()
        serving = asyncio.start_server(self._serve, "0.0.0.0", 0)
        self._server = asyncio.run_coroutine_threadsafe(serving, self._loop).result(10)
        self.port: int = self._server.sockets[0].getsockname()[1]
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.let_documents_end()
        self.let_layers_fail()
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def let_documents_end(self) -> None:
        self._loop.call_soon_threadsafe(self._documents_may_end.set)

    def let_layers_fail(self) -> None:
        self._loop.call_soon_threadsafe(self._layers_may_fail.set)

    async def _end(self) -> None:
        self._server.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            method, path = head.split()[:2]
            found = self._document(path.decode())
            if found is None:
                await self._layers_may_fail.wait()
                writer.write(b"HTTP/1.1 404 Gone\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            else:
                writer.write(
                    f"HTTP/1.1 200 OK\r\nContent-Type: {MANIFEST_TYPE}\r\n"
                    f"Content-Length: {len(found)}\r\nConnection: close\r\n\r\n".encode()
                )
                if method == b"GET":
                    await self._send(writer, found)
                    await writer.drain()
                    self.sent.add(path.decode())
            await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass  # the daemon has given up, as it may
        finally:
            writer.close()

    async def _send(self, writer: asyncio.StreamWriter, document: bytes) -> None:
        writer.write(document[:-_HELD_BACK])
        await writer.drain()
        self.held += 1
        await self._documents_may_end.wait()
        writer.write(document[-_HELD_BACK:])

    def _document(self, path: str) -> bytes | None:
        if (named := re.search(r"large/(\d+)/manifests/", path)) is not None:
            number = int(named[1])
            config = _numbered(self._config, number)
            self._configs[digest_of(config)] = number
            manifest = _numbered(self._manifest, number)
            return manifest.replace(digest_of(b"").encode(), digest_of(config).encode(), 1)
        number = self._configs.get(path.rpartition("/")[2], -1)
        if number < 0:
            return None
        return _numbered(self._config, number)


def _numbered(document: bytes, number: int) -> bytes:
    return document.replace(_MARK.encode(), b"%08d" % number)


def _config() -> bytes:
    words = [f"W{number}=" + "x" * 30 for number in range(1200)]
    document = {
        "os": "linux",
        "architecture": "amd64",
        "config": {"Env": words, "Labels": _ballast(MAX_CONFIG_BYTES - (128 << 10))},
        "rootfs": {
            "type": "layers",
            "diff_ids": [f"sha256:{_MARK}{number:056x}" for number in range(LAYERS)],
        },
    }
    return json.dumps(document).encode()


def _manifest() -> bytes:
    layers = [
        {
            "mediaType": "application/vnd.oci.image.layer.v1.tar",
            "digest": f"sha256:{_MARK}{number:056x}",
            "size": 1000,
        }
        for number in range(LAYERS)
    ]
    config = {
        "mediaType": "application/vnd.oci.image.config.v1+json",
        "digest": digest_of(b""),
        "size": len(_config()),
    }
    document = {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": config,
        "layers": layers,
        "annotations": _ballast(MAX_MANIFEST_BYTES - (256 << 10)),
    }
    return json.dumps(document).encode()


def _ballast(size: int) -> dict[str, str]:
    """Nearly `size` bytes, in few strings: what makes a document dear to read is not for the daemon to read."""
    count = 1000
    return {f"{key:08x}": "x" * (size // count - 16) for key in range(count)}


def peak_mib(pid: int | None) -> float:
    match = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert match is not None
    return int(match[1]) / 1024


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_hundred_pulls_of_the_largest_images_cost_little_memory(crash_daemon: Daemon) -> None:
    def pull(number: int) -> str:
        host = f"127.0.0.{1 + number % REGISTRIES}:{registry.port}"
        image = api.ImageSpec(image=f"{host}/large/{number}:1")
        try:
            crash_daemon.client.images.PullImage(api.PullImageRequest(image=image), timeout=240)
        except grpc.RpcError as error:
            return f"{error.code()}: {error.details()}"
        return "pulled"

    with ThreadPoolExecutor(PULLS) as threads, LargeImages() as registry:
        Path(f"/proc/{crash_daemon.pid}/clear_refs").write_text("5")  # the peak begins here
        began_mib = peak_mib(crash_daemon.pid)
        pulls = [threads.submit(pull, number) for number in range(PULLS)]
        wait_until(lambda: registry.held > 0, "no document was asked for", timeout_s=30)
        wait_until(lambda: is_quiet(registry, QUIET_S), "documents come without end", timeout_s=30)
        held, held_mib = registry.held, peak_mib(crash_daemon.pid)
        registry.let_documents_end()
        wait_until(lambda: is_quiet(registry), "documents come without end", timeout_s=60)
        resolved, resolved_mib = len(registry.sent) // 2, peak_mib(crash_daemon.pid)
        registry.let_layers_fail()
        told = [work.result() for work in pulls]
        peak = peak_mib(crash_daemon.pid)
        print(
            f"{began_mib:.0f} MiB at first, {held_mib:.0f} MiB with {held} documents under way, "
            f"{resolved_mib:.0f} MiB with {resolved} images resolved, {peak:.0f} MiB at most"
        )
    crash_daemon.restart()  # the process that unpacks would stay for a minute, and is no leak
    others = [each for each in told if not each.startswith("StatusCode.NOT_FOUND")]
    assert not others, f"{len(others)} pulls: {others[0]}"
    assert peak < MAX_DAEMON_MIB


def is_quiet(registry: LargeImages, quiet_s: float = 2.0) -> bool:
    """Whether no further document has begun for a while."""
    before = registry.held
    threading.Event().wait(quiet_s)
    return registry.held == before
